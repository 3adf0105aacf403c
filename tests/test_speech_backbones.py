"""HuBERT inside the speech encoder: transformers' own numbers, exact batches, and units while speech arrives."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from tinywave.configuration_tinywave import SpeechEncoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_speech_encoder
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.training.checkpoints import save_in_bfloat16

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
PUBLISHED_CONVOLUTIONS = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2]}
BACKBONE = {
    "model_type": "hubert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [8, 8, 8, 8, 12, 12, 16, 16],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    **PUBLISHED_CONVOLUTIONS,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def tiny_encoder(layer=2, backbone=None, **overrides):
    torch.manual_seed(0)
    settings = {"quantizer": "linear", "quantizer_hidden_sizes": [24], "num_units": 40}
    config = {"pooling": 1, "backbone_frame_rate": 25.0, **settings, **overrides}
    config["backbone_config"] = {**BACKBONE, **(backbone or {})}
    return SpeechEncoder(SpeechEncoderConfig(layer=layer, **config)).eval()


def windowed_encoder(**overrides):
    return tiny_encoder(backbone=STABLE, **{"attention_window": 3, **overrides})


@pytest.fixture(scope="module")
def clips():
    return [load_audio(path) for path in sorted(LIBRIVOX.glob("*.flac"))[:3]]


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("kind", [{}, STABLE], ids=["group norm, norm after", "layer norm, norm before"])
def test_features_are_those_of_transformers_own_forward(clips, kind, layer):
    encoder = tiny_encoder(layer, kind)
    config = HubertConfig(**{key: value for key, value in {**BACKBONE, **kind}.items() if key != "model_type"})
    reference = HubertModel(config).eval()
    missing, unexpected = reference.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert not unexpected and all("layers" in name or name.startswith("encoder.layer_norm") for name in missing)
    with torch.no_grad():
        output = reference(torch.from_numpy(clips[0])[None], output_hidden_states=True)
    expected = output.last_hidden_state[0] if layer == 3 else output.hidden_states[layer][0]
    found = encoder.extract_features([clips[0]])[0]
    assert len(encoder.backbone.encoder.layers) == layer
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_samples", "num_units"), [(146_160, 228), (1280, 1), (1359, 1), (1360, 2), (16_000, 24)])
def test_units_follow_the_arithmetic_of_the_convolutions(num_samples, num_units):
    encoder = tiny_encoder(1)
    length = num_samples
    for kernel, stride in zip(*PUBLISHED_CONVOLUTIONS.values(), strict=True):
        length = (length - kernel) // stride + 1
    assert len(encoder.encode([noise(num_samples)])[0]) == length == num_units
    assert encoder.num_samples_to_num_units(num_samples) == num_units
    assert (encoder.samples_per_unit, encoder.samples_per_window, encoder.frame_rate) == (640, 720, 25.0)


@pytest.mark.parametrize("make", [tiny_encoder, windowed_encoder], ids=["group norm", "window"])
def test_units_are_the_same_alone_and_in_a_batch(make, clips):
    encoder = make()
    waveforms = [*clips, clips[0][:1280], clips[1][:20_000], noise(1999), clips[2][5000:30_000], noise(16_000)]
    alone = [encoder.extract_features([waveform])[0] for waveform in waveforms]
    together = encoder.extract_features(waveforms, batch_size=8)
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    units = [row.tolist() for row in encoder.encode(waveforms)]
    assert [row.tolist() for row in encoder.encode(waveforms, batch_size=8)] == units
    assert len(set(sum(units, []))) > 5


def test_padding_of_a_batch_is_not_heard():
    encoder = tiny_encoder()
    waveforms = [torch.from_numpy(noise(1280)), torch.from_numpy(noise(9999, seed=2))]
    for padding in (0.7, float("nan")):
        values = torch.full((2, 9999), padding)
        mask = torch.zeros(2, 9999, dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            values[row, : len(waveform)], mask[row, : len(waveform)] = waveform, 1
        output = encoder(values, mask)
        for row, waveform in enumerate(waveforms):
            expected = encoder.extract_features([waveform])[0]
            torch.testing.assert_close(output.features[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_a_window_limits_what_a_unit_depends_on():
    encoder = windowed_encoder(layer=2)
    # Two layers of 3 frames and half of the positional convolution, 14 frames on each side.
    assert encoder.context_seconds == pytest.approx((14 * 640 + 720) / 16_000)
    assert tiny_encoder().context_seconds == math.inf
    waveform = noise(4 * 16_000)
    changed = waveform.copy()
    changed[50 * 640 : 50 * 640 + 640] += 0.5
    difference = (encoder.extract_features([waveform])[0] - encoder.extract_features([changed])[0]).abs().amax(-1)
    (moved,) = torch.nonzero(difference > 1e-4, as_tuple=True)
    assert 50 - 15 <= moved.min() < 50 < moved.max() <= 50 + 15
    assert encoder.fingerprint() != windowed_encoder(attention_window=4).fingerprint()


@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("sizes", [[31], [640 * 7], [100, 3, 50_000], [10**9]], ids=["tiny", "frames", "mixed", "all"])
def test_a_stream_gives_the_units_of_the_whole(clips, sizes, pooling):
    encoder = windowed_encoder(pooling=pooling)
    waveform = clips[1][: 16_000 if sizes == [31] else None]
    stream, units, start = encoder.stream(chunk_seconds=0.4), [], 0
    while start < len(waveform):
        size = sizes[len(units) % len(sizes)]
        units.append(stream.push(waveform[start : start + size]))
        start += size
        certain = (start / 16_000 - encoder.context_seconds - 0.5) * encoder.frame_rate
        assert sum(map(len, units)) >= min(certain, encoder.num_samples_to_num_units(len(waveform)) - 40 * pooling)
    units.append(stream.finish())
    assert torch.cat(units).tolist() == encoder.encode([waveform])[0].tolist()
    with pytest.raises(ValueError, match="has been finished"):
        stream.push(waveform)


def test_a_stream_needs_a_window():
    for encoder in (tiny_encoder(), tiny_encoder(attention_window=3), tiny_encoder(backbone=STABLE)):
        with pytest.raises(ValueError, match="a stream needs block_units, or a .hubert. backbone"):
            encoder.stream()
    with pytest.raises(ValueError, match="chunk_seconds is 0"):
        windowed_encoder().stream(chunk_seconds=0)


def test_a_stream_refuses_what_encode_refuses():
    stream = windowed_encoder().stream()
    with pytest.raises(ValueError, match="the piece holds NaN"):
        stream.push(np.full(10, np.nan, np.float32))
    assert len(stream.push(noise(100))) == 0
    with pytest.raises(ValueError, match="the recording lasts 6 ms; .* at least 80 ms"):
        stream.finish()


def with_blanks(encoder, share):
    """Make the last output win on about this share of frames of noise."""
    features = encoder.extract_features([noise(160_000)])[0]
    with torch.no_grad():
        scores = encoder.quantizer.logits(features)
        lead = scores[:, :-1].amax(-1) - scores[:, -1]
        encoder.quantizer.layers[-1].bias[-1] += lead.quantile(share)
    return encoder


def test_a_blank_takes_the_unit_on_its_left_and_leading_blanks_the_first(clips):
    encoder = with_blanks(windowed_encoder(), 0.6)
    waveforms = [noise(60_000, seed=seed) for seed in range(4)]
    leading = 0
    for waveform, found in zip(waveforms, encoder.encode(waveforms, batch_size=4), strict=True):
        raw = encoder.quantizer(encoder.extract_features([waveform])[0]).tolist()
        assert 0.2 < raw.count(40) / len(raw) < 0.95
        leading += raw[0] == 40
        expected, last = [], next(unit for unit in raw if unit != 40)
        for unit in raw:
            last = last if unit == 40 else unit
            expected.append(last)
        assert found.tolist() == expected
        stream = encoder.stream(chunk_seconds=0.1)
        pieces = [stream.push(waveform[start : start + 1000]) for start in range(0, len(waveform), 1000)]
        assert torch.cat([*pieces, stream.finish()]).tolist() == expected
    assert leading


def test_audio_of_blanks_only_is_refused_by_number():
    encoder = windowed_encoder()
    with torch.no_grad():
        encoder.quantizer.layers[-1].bias[-1] += 1e4
    with pytest.raises(ValueError, match="waveform 0: all 24 frames are blank.*not silent"):
        encoder.encode([noise(16_000)])
    stream = encoder.stream()
    stream.push(noise(16_000))
    with pytest.raises(ValueError, match="all 24 frames are blank"):
        stream.finish()


def test_silence_has_units_like_any_sound():
    assert len(windowed_encoder().encode([np.zeros(16_000, np.float32)])[0]) == 24


def test_long_audio_is_joined_so_that_a_window_cannot_notice():
    encoder = windowed_encoder()
    waveform = noise(130 * 16_000 + 777)
    found = encoder.extract_features([waveform])[0]
    whole = encoder.backbone.waveforms_to_frames([torch.from_numpy(waveform)])[0].detach()
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_long_audio_without_a_window_keeps_every_frame():
    encoder = tiny_encoder(1, quantizer="centroids", quantizer_hidden_sizes=None)
    encoder.quantizer.centroids = torch.randn(40, 32)
    waveform = noise(230 * 16_000)
    num_units = (230 * 16_000 - 720) // 640 + 1
    edges = [num_units * part // 3 for part in range(4)]
    pieces = [waveform[640 * start : 640 * stop + 80] for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    pieces[-1] = waveform[640 * edges[2] :]
    expected = torch.cat([encoder.encode([piece])[0] for piece in pieces])
    assert len(expected) == num_units
    assert encoder.encode([waveform], batch_size=2)[0].tolist() == expected.tolist()


def test_the_published_quantizer_shape():
    encoder = tiny_encoder(num_units=500, quantizer_hidden_sizes=[702, 635])
    shapes = [tuple(parameter.shape) for parameter in encoder.quantizer.parameters() if parameter.dim() == 2]
    assert shapes == [(702, 32), (635, 702), (501, 635)]
    features = torch.randn(5, 32)
    layers = encoder.quantizer.layers
    hidden = features
    for index in (0, 2):
        hidden = hidden @ layers[index].weight.T + layers[index].bias
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    expected = hidden @ layers[4].weight.T + layers[4].bias
    torch.testing.assert_close(encoder.quantizer.logits(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"layer": 4}, "layer is 4, but the backbone has 3"),
        ({"backbone_frame_rate": 50.0}, "backbone_frame_rate is 50 Hz, but this backbone makes 25 frames"),
        ({"attention_window": 0}, "attention_window is 0"),
        ({"quantizer": "nearest"}, "quantizer is 'nearest'; expected 'centroids' or 'linear'"),
        ({"quantizer": "centroids"}, "quantizer_hidden_sizes are those of a linear quantizer"),
        ({"quantizer_hidden_sizes": [0]}, "they must be positive"),
    ],
)
def test_impossible_configurations_are_refused_at_construction(overrides, reason):
    with pytest.raises(Exception, match=reason):
        tiny_encoder(**overrides)


STRANGER = '''
import json, sys

class Hidden:
    """Make every import of the package fail."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
import numpy as np
from transformers import AutoModel

encoder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
waveform = np.load(sys.argv[2], allow_pickle=False)
stream = encoder.stream()
streamed = stream.push(waveform).tolist() + stream.finish().tolist()
print(json.dumps({"units": encoder.encode([waveform])[0].tolist(), "streamed": streamed}))
'''


def test_a_saved_folder_gives_the_same_units_also_where_tinywave_is_not_importable(clips, tmp_path):
    encoder = windowed_encoder()
    save_in_bfloat16(encoder, tmp_path / "model")
    loaded = load_speech_encoder(tmp_path / "model")
    assert loaded.dtype == torch.float32
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name
    np.save(tmp_path / "clip.npy", clips[1])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), str(tmp_path / "clip.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["units"] == found["streamed"] == loaded.encode([clips[1]])[0].tolist()
    assert len(set(found["units"])) > 3
