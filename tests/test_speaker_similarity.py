"""The speaker encoder, against a slow implementation of the same network on weights of the published names."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.eval.recordings import read_recordings
from tinywave.eval.speaker_similarity import SpeakerEncoder, load_speaker_encoder, speaker_similarity

ASSETS = Path(__file__).resolve().parents[1] / "assets"
HIDDEN, LAYERS = 12, 2


@pytest.fixture(scope="module")
def state():
    """The published names, and shapes but for two layers of width 12 and vectors of 16 numbers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"similarity_weight": (1,), "similarity_bias": (1,), "linear.weight": (16, HIDDEN), "linear.bias": (16,)}
    for layer in range(LAYERS):
        inputs = 40 if layer == 0 else HIDDEN
        shapes |= {f"lstm.weight_ih_l{layer}": (4 * HIDDEN, inputs), f"lstm.weight_hh_l{layer}": (4 * HIDDEN, HIDDEN)}
        shapes |= {f"lstm.bias_ih_l{layer}": (4 * HIDDEN,), f"lstm.bias_hh_l{layer}": (4 * HIDDEN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("resemblyzer") / "pretrained.pt"
    torch.save({"step": 1, "model_state": state}, path)
    return path


@pytest.fixture(scope="module")
def recordings():
    return [recording.waveform for recording in read_recordings(ASSETS / "audio" / "librivox")]


def mel_by_hand(samples):
    """Power in 40 triangles that are evenly spaced on Slaney's scale, each of area 1; `(frames, 40)`."""

    def mel_to_hertz(mel):
        return 200 / 3 * mel if mel < 15 else 1000 * math.exp(math.log(6.4) / 27 * (mel - 15))

    highest = 15 + 27 / math.log(6.4) * math.log(8)  # 8 kHz
    edges = [mel_to_hertz(highest * index / 41) for index in range(42)]
    bins = np.arange(201) * 40.0
    filters = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
        filters.append(np.maximum(0, triangle) * 2 / (high - low))
    padded = np.pad(np.asarray(samples, dtype=np.float64), 200)
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    frames = [np.abs(np.fft.rfft(window * padded[start : start + 400])) ** 2 for start in range(0, len(samples), 160)]
    return np.stack(frames) @ np.stack(filters).T


def lstm_by_hand(state, mel):
    """The equations of the LSTM, step by step -> vector of length 1."""
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    sequence = mel
    for layer in range(LAYERS):
        hidden, cell, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), []
        for values in sequence:
            gates = weights[f"lstm.weight_ih_l{layer}"] @ values + weights[f"lstm.bias_ih_l{layer}"]
            gates = gates + weights[f"lstm.weight_hh_l{layer}"] @ hidden + weights[f"lstm.bias_hh_l{layer}"]
            gate_in, gate_forget, candidate, gate_out = np.split(gates, 4)
            cell = cell / (1 + np.exp(-gate_forget)) + np.tanh(candidate) / (1 + np.exp(-gate_in))
            hidden = np.tanh(cell) / (1 + np.exp(-gate_out))
            outputs.append(hidden)
        sequence = outputs
    vector = np.maximum(0, weights["linear.weight"] @ hidden + weights["linear.bias"])
    return vector / np.linalg.norm(vector)


def vector_by_hand(state, waveform, starts):
    """Mean over partial utterances that begin at these mel frames."""
    waveform = waveform * max(1, 10**-1.5 / np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    mel = mel_by_hand(np.pad(waveform, (0, max(0, (starts[-1] + 160) * 160 - len(waveform)))))
    total = sum(lstm_by_hand(state, mel[start : start + 160]) for start in starts)
    return total / np.linalg.norm(total)


@pytest.mark.parametrize(
    ("num_samples", "starts"),
    [
        (8_000, [0]),  # half a second, followed by silence
        (25_600, [0]),  # of the second partial utterance, frames 77 to 237, 83 of 160 would be speech
        (32_000, [0, 77]),  # 123 of 160
        (48_000, [0, 77, 154]),  # 146 of 160
    ],
)
def test_it_is_the_published_network(state, weights_file, recordings, num_samples, starts):
    speech = recordings[0][16_000 : 16_000 + num_samples]
    found = load_speaker_encoder(weights_file).speaker_vector(speech)
    np.testing.assert_allclose(found, vector_by_hand(state, speech, starts), atol=1e-4)


def test_speech_is_alike_itself_whatever_its_level(weights_file, recordings):
    encoder, speech = load_speaker_encoder(weights_file), recordings[0]
    assert speaker_similarity(encoder, speech, speech) == pytest.approx(1)
    quiet = 0.01 * speech
    assert speaker_similarity(encoder, quiet, 0.1 * quiet) == pytest.approx(1)
    first, second = (encoder.speaker_vector(waveform).numpy() for waveform in recordings[:2])
    assert np.linalg.norm(first) == pytest.approx(1) and first.min() >= 0
    assert speaker_similarity(encoder, *recordings[:2]) == pytest.approx(float(first @ second))
    assert first @ second < 0.999


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros(16_000), np.full(16_000, np.nan)])
def test_what_is_no_speech_has_no_vector(weights_file, waveform):
    with pytest.raises(ValueError, match="expected speech"):
        load_speaker_encoder(weights_file).speaker_vector(waveform)


def test_other_weights_are_refused(state, weights_file, tmp_path):
    with pytest.raises(ValueError, match="not those of the speaker encoder"):
        SpeakerEncoder({name: tensor for name, tensor in state.items() if name != "lstm.bias_hh_l1"})
    with pytest.raises(ValueError, match="not those of the speaker encoder"):
        SpeakerEncoder({})
    torch.save({"weights": state}, tmp_path / "a")
    (tmp_path / "b").write_bytes(b"no weights")
    (tmp_path / "c.whl").write_bytes(b"no wheel")
    with zipfile.ZipFile(tmp_path / "d.whl", "w") as wheel:
        wheel.write(weights_file, "resemblyzer/pretrained.pt")
    for name, message in (("a", "cannot be read"), ("b", "cannot be read"), ("c.whl", "cannot be read"),
                          ("d.whl", "holds weights of sha256 .*; expected 39373b86")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_speaker_encoder(tmp_path / name)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps resemblyzer==0.1.4"):
        load_speaker_encoder()
