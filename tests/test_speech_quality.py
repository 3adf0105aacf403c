"""DistillMOS, against a slow implementation of the same network on weights of the published names."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tinywave.data.hibari_voice import HibariVoice
from tinywave.eval.speech_quality import NUM_SAMPLES, load_distill_mos

WIDTH, NUM_HEADS = 16, 8
BACK = "transformer_pool_attn."
LAYER = BACK + "transformer.transformer_encoder.layers.0."


@pytest.fixture(scope="module")
def state():
    """The published names, and shapes but for a transformer of width 16 and one layer."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))

    tensors = {BACK + "transformer.position_encoding.pe": normal(1, 384, WIDTH)}
    channels = (2, 64, 64, 128, 256, 256, 256)
    for index, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        tensors[f"cnn.cnn.{2 * index}.weight"] = normal(outputs, inputs, 3, 3)
        tensors[f"cnn.cnn.{2 * index}.bias"] = normal(outputs)
    for name, size in (("norm_input", 1024), ("transformer.norm", 1024), ("norm_trans", WIDTH)):
        for kind in ("weight", "bias", "running_mean"):
            tensors[f"{BACK}{name}.{kind}"] = normal(size)
        tensors[f"{BACK}{name}.running_var"] = normal(size).abs() + 0.1
        tensors[f"{BACK}{name}.num_batches_tracked"] = torch.tensor(3)
    linear = {
        BACK + "transformer.linear_proj.": (WIDTH, 1024), BACK + "pool.linear1.": (2 * WIDTH, WIDTH),
        BACK + "pool.linear2.": (1, 2 * WIDTH), BACK + "pool.linear3.": (1, WIDTH),
        LAYER + "self_attn.in_proj_": (3 * WIDTH, WIDTH), LAYER + "self_attn.out_proj.": (WIDTH, WIDTH),
        LAYER + "linear1.": (2 * WIDTH, WIDTH), LAYER + "linear2.": (WIDTH, 2 * WIDTH),
        LAYER + "norm1.": (WIDTH,), LAYER + "norm2.": (WIDTH,),
    }  # fmt: skip
    for name, shape in linear.items():
        tensors[name + "weight"], tensors[name + "bias"] = normal(*shape), normal(shape[0])
    return tensors


@pytest.fixture(scope="module")
def weights_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("distillmos") / "weights.pt"
    torch.save({"model": state}, path)
    return path


def score_by_hand(state, waveform):
    """The network in the order of the paper's figure, operation by operation."""

    def linear(name, hidden):
        return hidden @ state[name + "weight"].T + state[name + "bias"]

    def batch_norm(name, hidden):
        mean, variance = state[f"{BACK}{name}.running_mean"], state[f"{BACK}{name}.running_var"]
        scaled = (hidden - mean) / (variance + 1e-5).sqrt()
        return scaled * state[f"{BACK}{name}.weight"] + state[f"{BACK}{name}.bias"]

    def layer_norm(name, hidden):
        return F.layer_norm(hidden, (WIDTH,), state[LAYER + name + "weight"], state[LAYER + name + "bias"])

    samples = np.zeros(NUM_SAMPLES)
    samples[: len(waveform)] = waveform[:NUM_SAMPLES]
    samples = np.pad(samples / np.abs(samples).max(), 80, mode="reflect")
    window = np.sin(np.pi * np.arange(320) / 320) ** 2
    spectra = np.stack([np.fft.rfft(window * samples[start : start + 320]) for start in range(0, NUM_SAMPLES, 160)])
    magnitude = np.abs(spectra) + 1e-30
    spectra = (spectra / magnitude * magnitude**0.3).T
    hidden = torch.from_numpy(np.stack([spectra.real, spectra.imag])).float()
    for index in range(6):
        stride = (1 if index == 0 else 2, 2 if index == 5 else 1)
        weight, bias = state[f"cnn.cnn.{2 * index}.weight"], state[f"cnn.cnn.{2 * index}.bias"]
        hidden = F.leaky_relu(F.conv2d(hidden[None], weight, bias, stride, (0, 1))[0], 0.1)
    hidden = hidden.reshape(1024, 384).T
    hidden = linear(
        BACK + "transformer.linear_proj.", batch_norm("transformer.norm", batch_norm("norm_input", hidden))
    )
    hidden = hidden + state[BACK + "transformer.position_encoding.pe"][0]
    query, key, value = linear(LAYER + "self_attn.in_proj_", hidden).split(WIDTH, dim=1)
    size = WIDTH // NUM_HEADS
    heads = []
    for head in range(NUM_HEADS):
        own = slice(head * size, (head + 1) * size)
        heads.append((query[:, own] @ key[:, own].T / math.sqrt(size)).softmax(1) @ value[:, own])
    hidden = layer_norm("norm1.", hidden + linear(LAYER + "self_attn.out_proj.", torch.cat(heads, dim=1)))
    hidden = layer_norm("norm2.", hidden + linear(LAYER + "linear2.", linear(LAYER + "linear1.", hidden).relu()))
    hidden = batch_norm("norm_trans", hidden)
    weight = linear(BACK + "pool.linear2.", linear(BACK + "pool.linear1.", hidden).relu()).softmax(0)
    return float(1 + 4 * linear(BACK + "pool.linear3.", (weight * hidden).sum(0)).sigmoid())


def test_it_is_the_published_network(state, weights_file):
    speech = HibariVoice().synthesize("The dog found a golden key.").waveform
    judged = load_distill_mos(weights_file)
    assert judged.judge(speech) == pytest.approx(score_by_hand(state, speech), abs=1e-3)
    long = np.tile(speech, 3)
    assert judged.judge(0.1 * long) == pytest.approx(judged.judge(long[:NUM_SAMPLES]), abs=1e-3)


def test_other_weights_are_refused(state, tmp_path):
    torch.save({"model": {name: tensor for name, tensor in state.items() if "cnn.cnn.4" not in name}}, tmp_path / "a")
    torch.save({"weights": state}, tmp_path / "b")
    (tmp_path / "c").write_bytes(b"no weights")
    for name, message in (("a", "not those of DistillMOS"), ("b", "cannot be read"), ("c", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            load_distill_mos(tmp_path / name)


def test_an_empty_waveform_has_no_score(weights_file):
    with pytest.raises(ValueError, match="empty waveform"):
        load_distill_mos(weights_file).judge(np.zeros(0, np.float32))


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps distillmos==0.9.1"):
        load_distill_mos()
