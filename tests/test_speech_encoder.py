"""The speech encoder: Whisper's own numbers, units that depend on the utterance alone, folders that load alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tinywave.configuration_tinywave import SpeechEncoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_speech_encoder, new_speech_encoder
from tinywave.data.whisper_weights import WHISPER_BASE_CONFIG, load_whisper_encoder
from tinywave.speech_backbones_tinywave import log_mel_spectrogram
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.speech_quantizers_tinywave import CentroidQuantizer

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
TINY_BACKBONE = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": 1500,
}

STRANGER = '''
import json, sys

class Hidden:
    """Make every import of the package fail."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
try:
    import tinywave
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tinywave is importable: this process proves nothing")

import numpy as np
from transformers import AutoModel

folder, audio = sys.argv[1:]
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
units = encoder.encode([np.load(audio, allow_pickle=False)])[0]
print(json.dumps({"units": units.tolist(), "fingerprint": encoder.fingerprint(), "name": type(encoder).__name__}))
'''


@pytest.fixture(scope="module")
def clips():
    paths = sorted(LIBRIVOX.glob("*.flac"))
    assert len(paths) == 5
    return [load_audio(path) for path in paths]


@pytest.fixture(scope="module")
def encoder(clips):
    """Whisper base with frames of the clips themselves as centroids."""
    encoder = new_speech_encoder()
    features = torch.cat(encoder.extract_features(clips))
    encoder.quantizer.mean = features.mean(0)
    encoder.quantizer.standard_deviation = features.std(0)
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[: encoder.num_units]
    encoder.quantizer.centroids = encoder.quantizer.normalize(features[chosen])
    return encoder


def tiny_encoder(num_units=16, **overrides):
    torch.manual_seed(0)
    config = SpeechEncoderConfig(**{"backbone_config": TINY_BACKBONE, "layer": 2, "num_units": num_units, **overrides})
    encoder = SpeechEncoder(config).eval()
    encoder.quantizer.centroids = torch.randn(num_units, 32)
    return encoder


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def padded_batch(waveforms, padding):
    """Stack waveforms; what stands behind the shorter ones is `padding`, which nothing may depend on."""
    longest = max(map(len, waveforms))
    values, mask = padding.repeat(len(waveforms), longest), torch.zeros(len(waveforms), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        values[row, : len(waveform)] = torch.from_numpy(waveform)
        mask[row, : len(waveform)] = 1
    return values, mask


@pytest.mark.parametrize("num_samples", [1280, 16000, 47999])
def test_log_mel_is_whispers(clips, num_samples):
    waveform = clips[0][:num_samples]
    extractor = WhisperFeatureExtractor(feature_size=80)
    expected = extractor(waveform, sampling_rate=16000, padding=False, return_tensors="np").input_features[0]
    found = log_mel_spectrogram([torch.from_numpy(waveform), torch.from_numpy(clips[0])], 80, 16000)[0]
    np.testing.assert_allclose(found[:, : expected.shape[1]].numpy(), expected, atol=1e-5)
    assert not found[:, expected.shape[1] :].any()


def test_features_equal_whispers_own_forward_on_30_seconds(encoder, clips):
    waveform = np.concatenate(clips * 2)[: 30 * 16000]
    reference = WhisperEncoder(WhisperConfig(**{**WHISPER_BASE_CONFIG, "encoder_layers": 5})).eval()
    reference.load_state_dict(load_whisper_encoder(5), strict=False)
    mel = WhisperFeatureExtractor(feature_size=80)(waveform, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        frames = reference(mel, output_hidden_states=True).hidden_states[4][0]
    found = encoder.extract_features([waveform])[0]
    assert found.shape == (750, 512)
    expected = (frames[0::2] + frames[1::2]) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


def test_units_are_the_same_alone_and_in_a_batch_with_any_padding(encoder, clips):
    alone = [encoder.encode([clip])[0] for clip in clips]
    assert len(torch.cat(alone).unique()) > 300
    for together in (encoder.encode(clips, batch_size=5), encoder.encode(clips[::-1], batch_size=2)[::-1]):
        assert [units.tolist() for units in together] == [units.tolist() for units in alone]
    values, mask = padded_batch(clips, torch.tensor(0.9))
    output = encoder(values, mask)
    assert output.lengths.tolist() == [len(units) for units in alone]
    for row, units in enumerate(alone):
        assert output.units[row, : len(units)].tolist() == units.tolist()
        assert (output.units[row, len(units) :] == -1).all() and not output.features[row, len(units) :].any()


def test_features_do_not_see_the_padding_at_all():
    encoder = tiny_encoder()
    waveforms = [noise(1280), noise(1281 + 160, seed=1), noise(9999, seed=2)]
    alone = [encoder.extract_features([waveform])[0] for waveform in waveforms]
    for padding in (0.0, 0.5, float("nan")):
        output = encoder(*padded_batch(waveforms, torch.tensor(padding)))
        for row, expected in enumerate(alone):
            torch.testing.assert_close(output.features[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1280, 1919, 1920, 16000, 16639, 480000, 480001, 481280])
def test_one_unit_for_every_640_samples(num_samples):
    assert len(tiny_encoder().encode([noise(num_samples)])[0]) == num_samples // 640


def test_long_audio_is_cut_into_equal_chunks_and_joined():
    encoder = tiny_encoder()
    waveform = noise(70 * 16000)
    edges = [unit * 640 for unit in (0, 583, 1166, 1750)]
    expected = [encoder.encode([waveform[a:b]])[0] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert encoder.encode([waveform], batch_size=2)[0].tolist() == torch.cat(expected).tolist()


def test_pooling_1_gives_50_hz():
    encoder = tiny_encoder(pooling=1)
    assert encoder.frame_rate == 50.0 and len(encoder.encode([noise(16000)])[0]) == 50


def test_the_quantizer_finds_the_nearest_centroid():
    quantizer = CentroidQuantizer(20, 8)
    generator = torch.Generator().manual_seed(0)
    quantizer.mean = torch.randn(8, generator=generator)
    quantizer.standard_deviation = torch.rand(8, generator=generator) + 0.1
    quantizer.centroids = torch.randn(20, 8, generator=generator)
    features = torch.randn(3, 50, 8, generator=generator)
    points = (features.double() - quantizer.mean) / quantizer.standard_deviation
    expected = torch.cdist(points, quantizer.centroids.double()).argmin(-1)
    assert torch.equal(quantizer(features), expected) and expected.unique().numel() > 10


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (noise(800), "lasts 50 ms; .* at least 80 ms"),
        (np.full(16000, np.nan, np.float32), "NaN or infinite"),
        (noise(32000).reshape(2, 16000), r"shape \(2, 16000\); expected mono"),
    ],
)
def test_bad_waveforms_are_refused_by_number(waveform, reason):
    with pytest.raises(ValueError, match=f"waveform 1 .*{reason}"):
        tiny_encoder().encode([noise(16000), waveform])


def test_padding_on_the_left_is_refused():
    mask = torch.ones(1, 16000)
    mask[:, :100] = 0
    with pytest.raises(ValueError, match="pad the waveforms on the right"):
        tiny_encoder()(torch.zeros(1, 16000), mask)


def test_an_encoder_without_centroids_is_refused():
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=TINY_BACKBONE, layer=2, num_units=16))
    with pytest.raises(ValueError, match="no centroids"):
        encoder.encode([noise(16000)])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [({"layer": 3}, "layer is 3, but the backbone has 2"), ({"backbone_config": {"model_type": "bert"}}, "'bert'")],
)
def test_impossible_configurations_are_refused_at_construction(overrides, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_encoder(**overrides)


def test_a_saved_folder_loads_where_tinywave_is_not_importable(encoder, clips, tmp_path):
    encoder.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "clip.npy", clips[1])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), str(tmp_path / "clip.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "units": encoder.encode([clips[1]])[0].tolist(),
        "fingerprint": encoder.fingerprint(),
        "name": "SpeechEncoder",
    }
    again = load_speech_encoder(tmp_path / "model")
    assert again.encode([clips[1]])[0].tolist() == found["units"]


def test_a_saved_quantizer_holds_nothing_of_whisper_and_gives_the_same_units(encoder, clips, tmp_path):
    encoder.save_quantizer(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "quantizer.safetensors"]
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "quantizer.safetensors").items()}
    assert shapes == {"centroids": (500, 512), "mean": (512,), "standard_deviation": (512,)}
    again = load_speech_encoder(tmp_path)
    assert again.fingerprint() == encoder.fingerprint()
    assert again.encode([clips[1]])[0].tolist() == encoder.encode([clips[1]])[0].tolist()


def test_a_damaged_quantizer_is_refused(tmp_path):
    encoder = tiny_encoder()
    with pytest.raises(ValueError, match="does not exist"):
        encoder.load_quantizer(tmp_path)
    tiny_encoder(num_units=8).save_quantizer(tmp_path)
    with pytest.raises(ValueError, match="quantizer.safetensors does not fit"):
        encoder.load_quantizer(tmp_path)
    (tmp_path / "quantizer.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="quantizer.safetensors does not fit"):
        encoder.load_quantizer(tmp_path)


def test_the_fingerprint_follows_weights_layer_and_pooling():
    fingerprints = [tiny_encoder().fingerprint(), tiny_encoder(pooling=1).fingerprint()]
    fingerprints.append(tiny_encoder(layer=1).fingerprint())
    changed = tiny_encoder()
    changed.quantizer.centroids[3, 4] += 1e-3
    fingerprints.append(changed.fingerprint())
    assert len(set(fingerprints)) == 4 and tiny_encoder().fingerprint() == fingerprints[0]
