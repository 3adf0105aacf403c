"""A speech encoder of blocks streams what it encodes; weights of 8 bits are stored, loaded and trained again."""

import numpy as np
import pytest
import torch

from tinywave.configuration_tinywave import SpeechEncoderConfig
from tinywave.quantization_tinywave import round_weights, unround_weights
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.training.checkpoints import save_in_bfloat16

BACKBONE = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "num_mel_bins": 20, "max_source_positions": 60,
}  # fmt: skip
NUM_UNITS = 9
PIECES = (1, 639, 640, 4000, 16_000)


def block_encoder(**changes):
    torch.manual_seed(0)
    settings = {"layer": 2, "num_units": NUM_UNITS, "quantizer": "linear", "block_units": 12, "block_context": 5}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=BACKBONE, **(settings | changes))).eval()
    # Random features are all much alike; as whole numbers of standard deviations they have many units.
    features = encoder.extract_features([noise(20_000)])[0]
    layer = encoder.quantizer.layers[0]
    with torch.no_grad():
        layer.weight.div_(features.std(0))
        layer.bias.sub_(encoder.quantizer.logits(features).mean(0))
    return encoder


def noise(num_samples, seed=0):
    """Noise whose loudness changes, so that its frames differ."""
    generator = np.random.default_rng(seed)
    loudness = np.repeat(generator.uniform(0.01, 1, num_samples // 1000 + 1), 1000)[:num_samples]
    return torch.from_numpy((loudness * generator.standard_normal(num_samples)).astype(np.float32))


@pytest.mark.parametrize("num_samples", [1300, 640 * 12, 640 * 17, 640 * 17 + 1, 640 * 29, 640 * 30 + 639, 100_000])
@pytest.mark.parametrize("piece", PIECES)
def test_streamed_equals_whole(num_samples, piece):
    piece = max(piece, num_samples // 1000)
    encoder, waveform = block_encoder(), noise(num_samples)
    stream = encoder.stream()
    units = [stream.push(waveform[start : start + piece]) for start in range(0, num_samples, piece)]
    streamed = torch.cat([*units, stream.finish()])
    whole = encoder.encode([waveform])[0]
    assert torch.equal(streamed, whole)
    assert len(whole) == num_samples // 640
    if len(whole) > 20:
        assert len(whole.unique()) > 2


def test_a_stream_knows_a_block_as_soon_as_its_context_is_there():
    encoder, waveform = block_encoder(), noise(40_000)
    stream = encoder.stream()
    assert len(stream.push(waveform[: 17 * 640 - 1])) == 0
    assert len(stream.push(waveform[17 * 640 - 1 : 17 * 640])) == 12
    assert encoder.context_seconds == pytest.approx((11 + 5 + 1) * 0.04)


def test_each_block_is_what_the_backbone_makes_of_it_and_its_context():
    encoder, waveform = block_encoder(), noise(640 * 40)
    features = encoder.extract_features([waveform])[0]
    window = waveform[(24 - 5) * 640 : (36 + 5) * 640]  # the third block; only four units follow it
    alone = encoder.pool(encoder.backbone.waveforms_to_frames([window])[0])
    assert torch.allclose(features[24:36], alone[5:17], atol=1e-6)


def test_a_block_depends_on_its_context_and_on_nothing_beyond():
    encoder, waveform = block_encoder(), noise(640 * 60)
    changed = waveform.clone()
    changed[640 * 17 :] = 0  # the first block hears 17 units
    before, after = (encoder.extract_features([item])[0] for item in (waveform, changed))
    assert torch.equal(before[:12], after[:12])
    assert not torch.allclose(before[12:24], after[12:24], atol=1e-3)


def test_blocks_do_not_depend_on_the_batch():
    encoder = block_encoder()
    waveforms = [noise(length, seed) for seed, length in enumerate((5000, 30_000, 64_000))]
    pairs = zip(encoder.extract_features(waveforms), encoder.extract_features(waveforms, batch_size=8), strict=True)
    for alone, together in pairs:
        assert torch.allclose(alone, together, atol=1e-5)


def test_units_of_other_blocks_are_not_mixed():
    encoder, other = block_encoder(), block_encoder(block_context=4)
    other.load_state_dict(encoder.state_dict())
    assert encoder.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_units": 0, "block_context": 0}, "block_units is 0"),
        ({"block_context": -1}, "block_context is -1"),
        ({"block_units": None}, "block_context is 5 and block_units None"),
        ({"block_units": 21}, "31 units, but the backbone takes 30 at once"),
        ({"attention_window": 4}, "choose one"),
        ({"weight_bits": 4}, "weight_bits is 4; expected 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        block_encoder(**changes)


def test_rounded_weights_are_within_half_a_step_and_stored_in_a_byte(tmp_path):
    encoder, waveform = block_encoder(), noise(64_000)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features = encoder.extract_features([waveform])[0]
    encoder.round_weights()
    for name in ("backbone.conv2", "backbone.layers.1.fc1", "quantizer.layers.0"):
        module, weight = encoder.get_submodule(name), before[f"{name}.weight"]
        step = weight.flatten(1).abs().amax(1) / 127
        assert ((module.weight - weight).flatten(1).abs() <= step[:, None] / 2 + 1e-7).all()
        assert module.parametrizations.weight.original0.dtype == torch.int8
    rounded = encoder.extract_features([waveform])[0]
    assert not torch.equal(rounded, features)
    assert torch.allclose(rounded, features, atol=0.05)
    save_in_bfloat16(encoder, tmp_path)
    loaded = SpeechEncoder.from_pretrained(tmp_path).eval()
    assert loaded.config.weight_bits == 8
    stored, original = (item.backbone.conv2.parametrizations.weight.original0 for item in (loaded, encoder))
    assert stored.dtype == torch.int8 and torch.equal(stored, original)
    assert torch.allclose(loaded.extract_features([waveform])[0], rounded, atol=0.05)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.4 * 4 * sum(t.numel() for t in before.values())


def test_rounded_weights_learn_only_after_they_are_unrounded():
    encoder = block_encoder()
    encoder.round_weights()
    values = encoder.backbone.layers[0].fc1.weight.clone()
    assert not any(name.endswith("fc1.weight") for name, _ in encoder.named_parameters())
    encoder.unround_weights()
    assert encoder.config.weight_bits is None
    weight = dict(encoder.named_parameters())["backbone.layers.0.fc1.weight"]
    assert weight.requires_grad and torch.equal(weight, values)


def test_weights_that_are_not_finite_are_not_rounded():
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        round_weights(layer)


def test_only_rounded_modules_are_unrounded():
    layer = torch.nn.Linear(3, 2)
    unround_weights(layer)
    assert layer.weight.requires_grad
