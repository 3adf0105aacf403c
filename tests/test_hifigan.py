"""The code HiFi-GAN: published sizes and names, an independent reference, batches, streaming, remote code."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch.nn import functional as F

from tinywave.configuration_tinywave import HifiGanConfig
from tinywave.hifigan_tinywave import HifiGanVocoder

TINY = {"num_units": 20, "num_pitch_tokens": 8, "num_style_tokens": 6, "num_speakers": 3, "embedding_size": 8}
TINY |= {"initial_channels": 32, "duration_hidden_size": 16}
BASE = {"num_pitch_tokens": 0, "num_style_tokens": 0, "num_styles": 34}


def _vocoder(**changes) -> HifiGanVocoder:
    """A tiny vocoder whose waveform is loud enough to compare."""
    torch.manual_seed(0)
    vocoder = HifiGanVocoder(HifiGanConfig(**TINY | changes)).eval()
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith("original0"):
                parameter.uniform_(1, 2)  # each layer keeps the size of its input
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
    return vocoder


@pytest.fixture(scope="module")
def vocoder() -> HifiGanVocoder:
    return _vocoder()


@pytest.fixture(scope="module")
def exact() -> HifiGanVocoder:
    """In double precision, so that what differs by a rounding in another order is equal."""
    return _vocoder().double()


@pytest.fixture(scope="module")
def base() -> HifiGanVocoder:
    """The published base kind: one style an utterance, no pitch."""
    names = ["default", "happy", "sad", "whisper"]
    return _vocoder(num_pitch_tokens=0, num_style_tokens=0, num_styles=4, style_names=names)


def _codes(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    counts = (TINY["num_units"], TINY["num_pitch_tokens"], TINY["num_style_tokens"])
    return [torch.randint(count, sizes, generator=generator) for count in counts]


def _published_names(vocoder: HifiGanVocoder) -> dict[str, torch.Tensor]:
    """The state as a published `generator.pt` names it."""
    renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, tensor in vocoder.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


def _reference_waveform(state: dict, config: HifiGanConfig, units, pitch, style, speaker: int) -> torch.Tensor:
    """HiFi-GAN with plain functions on the published names: one row, no masks, the norm by its definition."""

    def weight(name):
        direction = state[f"{name}.weight_v"]
        length = direction.flatten(1).square().sum(1).sqrt()[:, None, None]
        return state[f"{name}.weight_g"] * direction / length

    def convolve(x, name, dilation=1):
        size = state[f"{name}.weight_v"].shape[-1]
        return F.conv1d(x, weight(name), state[f"{name}.bias"], dilation=dilation, padding=dilation * (size - 1) // 2)

    embedded = [state["dict.weight"][units], state["f0_dict.weight"][pitch], state["style_dict.weight"][style]]
    embedded.append(state["spkr.weight"][speaker].repeat(len(units), 1))
    x = convolve(torch.cat(embedded, dim=1).T[None], "conv_pre")
    block = itertools.count()
    for stage, (rate, size) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)):
        x = F.conv_transpose1d(
            F.leaky_relu(x, 0.1), weight(f"ups.{stage}"), state[f"ups.{stage}.bias"], rate, (size - rate) // 2
        )
        total = 0
        for _ in config.resblock_kernel_sizes:
            number, y = next(block), x
            for layer, dilation in enumerate(config.resblock_dilations):
                z = convolve(F.leaky_relu(y, 0.1), f"resblocks.{number}.convs1.{layer}", dilation)
                y = y + convolve(F.leaky_relu(z, 0.1), f"resblocks.{number}.convs2.{layer}")
            total = total + y
        x = total / len(config.resblock_kernel_sizes)
    return torch.tanh(convolve(F.leaky_relu(x, 0.01), "conv_post"))[0, 0]


@pytest.mark.parametrize(("changes", "published"), [({}, 14.82), (BASE, 14.34)])
def test_published_sizes(changes, published):
    """The published figures count the weights for use; the sizes kept apart for training are 10,433 numbers more."""
    with torch.device("meta"):
        training, use = (HifiGanVocoder(HifiGanConfig(**changes, weight_norm=flag)) for flag in (True, False))
    assert round(use.num_parameters() / 1e6, 2) == published
    assert training.num_parameters() - use.num_parameters() == 10_433
    assert (use.samples_per_unit, use.sampling_rate, use.config.unit_rate, use.receptive_field) == (640, 16000, 25, 20)


def test_published_names_and_shapes():
    with torch.device("meta"):
        state = _published_names(HifiGanVocoder(HifiGanConfig()))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {
        "dict.weight": (501, 128),
        "f0_dict.weight": (64, 128),
        "style_dict.weight": (100, 128),
        "spkr.weight": (4, 128),
        "conv_pre.weight_g": (512, 1, 1),
        "conv_pre.weight_v": (512, 512, 7),
        "ups.0.weight_g": (512, 1, 1),
        "ups.0.weight_v": (512, 256, 11),
        "ups.4.bias": (16,),
        "resblocks.14.convs2.2.weight_v": (16, 16, 11),
        "conv_post.weight_v": (1, 16, 7),
        "dur_predictor.conv1.0.weight": (128, 128, 3),
        "dur_predictor.ln2.bias": (128,),
        "dur_predictor.proj.weight": (1, 128),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert len(state) == 4 + 10 + 3 * (1 + 5 + 1 + 15 * 6)


def test_waveform_is_that_of_the_reference_under_the_published_names(vocoder):
    units, pitch, style = _codes(9)
    ones = torch.ones(9, dtype=torch.long)
    expected = _reference_waveform(_published_names(vocoder), vocoder.config, units, pitch, style, speaker=2)
    waveform = vocoder.units_to_waveform(units, ones, pitch, style, speaker=2)
    assert waveform.shape == (9 * 640,) and waveform.std() > 0.05
    # Convolutions sum in another order for another number of threads.
    torch.testing.assert_close(waveform, expected, rtol=1e-4, atol=1e-3 * expected.std().item())


def test_published_names_load_in_both_ways(vocoder, tmp_path):
    state = _published_names(vocoder)
    loaded = _vocoder(num_units=20)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    loaded.load_state_dict(state)
    vocoder.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for other in (loaded, HifiGanVocoder.from_pretrained(tmp_path)):
        assert other.state_dict().keys() == vocoder.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in vocoder.state_dict().items())


def test_rows_of_a_batch_come_out_as_alone(exact):
    rows = [_codes(size, seed=size) for size in (3, 31, 17, 24)]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_value=-1)
    padded = [pad(part) for part in zip(*rows, strict=True)]
    speakers = torch.tensor([0, 1, 2, 1])
    together = exact(padded[0], None, *padded[1:], speakers)
    units = padded[0].masked_fill(padded[0] < 0, 7)
    filled = exact(units, torch.tensor([3, 31, 17, 24]), *padded[1:], speakers)
    durations = exact.predict_log_durations(padded[0])
    for index, row in enumerate(rows):
        units, pitch, style = (part[None] for part in row)
        alone = exact(units, None, pitch, style, speakers[index : index + 1]).waveform[0]
        assert together.lengths[index] == len(alone) == 640 * len(row[0])
        for batch in (together, filled):
            torch.testing.assert_close(batch.waveform[index, : len(alone)], alone, rtol=1e-6, atol=1e-7)
            assert bool((batch.waveform[index, len(alone) :] == 0).all())
        torch.testing.assert_close(durations[index, : len(row[0])], exact.predict_log_durations(units)[0])


def test_samples_depend_on_the_receptive_field_and_no_more(vocoder):
    """Counted by gradients: of the first and the last sample of frame 50, over the frames of the embeddings."""
    hidden = torch.randn(1, 4 * 8, 100, requires_grad=True)
    waveform = vocoder.generate_waveform(hidden)[0]
    reached = []
    for sample in (50 * 640, 51 * 640 - 1):
        gradient = torch.autograd.grad(waveform[sample], hidden, retain_graph=True)[0]
        reached += gradient[0].abs().sum(0).nonzero()[:, 0].tolist()
    assert max(50 - min(reached), max(reached) - 50) == vocoder.receptive_field == 20


@pytest.mark.parametrize("chunk_units", [3, 25, 1000])
def test_streamed_is_the_whole(exact, chunk_units):
    units, pitch, style = _codes(40)
    whole = exact.units_to_waveform(units, None, pitch, style, speaker=1)
    arguments = (units.tolist(), None, pitch.tolist(), style.tolist())
    pieces = list(exact.stream_waveform(*arguments, speaker=1, chunk_units=chunk_units))
    assert {len(piece) for piece in pieces[:-1]} <= {640 * chunk_units}
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-6, atol=1e-7)


def test_the_first_piece_comes_before_the_last_unit_is_read(vocoder):
    units, pitch, style = (codes.tolist() for codes in _codes(100))
    read = []

    def source():
        for unit in units:
            read.append(unit)
            yield unit

    pieces = vocoder.stream_waveform(source(), itertools.repeat(1), pitch, style, chunk_units=10)
    assert len(next(pieces)) == 6400
    assert len(read) == 10 + vocoder.receptive_field


def test_durations_follow_the_published_rule(vocoder):
    units = _codes(2, 12)[0]
    log_durations = vocoder.predict_log_durations(units)
    expected = [[max(1, round(np.exp(p) - 1)) for p in row] for row in log_durations.tolist()]
    assert vocoder.predict_durations(units).tolist() == expected


def test_timed_codes_and_one_code_a_unit_say_the_same(vocoder):
    units, pitch, style = _codes(50)
    ones = torch.ones(50, dtype=torch.long)
    timed = vocoder.units_to_waveform(units, ones, pitch[:25], style[:2])
    held = vocoder.units_to_waveform(units, ones, pitch[:25].repeat_interleave(2), style[:2].repeat_interleave(25))
    torch.testing.assert_close(timed, held)
    assert not torch.allclose(timed, vocoder.units_to_waveform(units, ones, pitch[:25], 3))


def test_one_style_and_speaker_by_number_or_name(base):
    named = base.units_to_waveform([1, 2, 3], [2, 2, 2], style="sad")
    torch.testing.assert_close(named, base.units_to_waveform([1, 2, 3], [2, 2, 2], style=2))
    assert not torch.allclose(named, base.units_to_waveform([1, 2, 3], [2, 2, 2]))
    assert not torch.allclose(named, base.units_to_waveform([1, 2, 3], [2, 2, 2], style=2, speaker=1))
    streamed = torch.cat(list(base.stream_waveform([1, 2, 3], [2, 2, 2], style="sad", chunk_units=2)))
    torch.testing.assert_close(named, streamed, rtol=1e-4, atol=1e-5)


def test_a_vocoder_of_units_alone_speaks():
    sizes = {"num_pitch_tokens": 0, "num_style_tokens": 0, "num_speakers": 0, "duration_hidden_size": 0}
    plain = _vocoder(**sizes)
    assert plain.units_to_waveform([1, 2], [1, 3]).shape == (4 * 640,)
    with pytest.raises(ValueError, match="no duration predictor; give it durations"):
        plain.units_to_waveform([1, 2])


def test_without_weight_norm_the_output_stays_and_reloads(tmp_path):
    vocoder = _vocoder()
    units, pitch, style = _codes(12)
    before = vocoder.units_to_waveform(units, None, pitch, style)
    with_norm = vocoder.num_parameters()
    vocoder.remove_weight_norm()
    vocoder.remove_weight_norm()
    after = vocoder.units_to_waveform(units, None, pitch, style)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert vocoder.num_parameters() < with_norm
    assert not any("parametrizations" in name for name in vocoder.state_dict())
    vocoder.save_pretrained(tmp_path)
    loaded = HifiGanVocoder.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.units_to_waveform(units, None, pitch, style), after)


def test_saved_equals_loaded(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = HifiGanVocoder.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == vocoder.config.to_diff_dict()
    assert loaded.state_dict().keys() == vocoder.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in vocoder.state_dict().items())


def test_weights_that_a_folder_lacks_are_drawn_and_the_others_kept(vocoder, tmp_path):
    """What a base checkpoint that becomes a larger one goes through."""
    vocoder.config.save_pretrained(tmp_path)
    absent = ("f0_dict", "ups.1")
    state = {name: tensor for name, tensor in vocoder.state_dict().items() if not name.startswith(absent)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = HifiGanVocoder.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in state.items())
    assert 0.5 < float(loaded.f0_dict.weight.detach().std()) < 1.5
    assert 0.005 < float(loaded.ups[1].weight.detach().std()) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], None, [], 1), "at least one unit"),
        (([1, 20], None, [1, 1], 1), "knows 0 to 19"),
        (([1, 2], [1], [1, 1], 1), "one duration"),
        (([1, 2], [1, 1], None, 1), "Found no pitch; this vocoder speaks with 8"),
        (([1, 2], [1, 1], [1, 1], None), "Found no style"),
        (([1, 2], [1, 1], [1, 8], 1), "pitch codes between 1 and 8"),
        (([1, 2], [1, 1], [1, 1], "happy"), "Found style 'happy'"),
        (([1, 2], [1, 1], [1, 1], 1, 3), "Found speaker 3; this vocoder knows 0 to 2"),
        (([1, 2], [1, 1], [1, 1], 1, "Anna"), "Found speaker 'Anna'"),
    ],
)
def test_what_cannot_be_spoken_is_refused(vocoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        vocoder.units_to_waveform(*arguments)


def test_streams_that_are_not_there_are_refused(vocoder, base):
    with pytest.raises(ValueError, match="no pitch input"):
        base.units_to_waveform([1, 2], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="one style, a number"):
        base.units_to_waveform([1, 2], [1, 1], style=[1, 2])
    with pytest.raises(ValueError, match="Found style 4; this vocoder knows 0 to 3"):
        base.units_to_waveform([1, 2], [1, 1], style=4)
    with pytest.raises(ValueError, match="Found no pitch"):
        vocoder(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="chunk_units=0"):
        next(vocoder.stream_waveform([1], None, [1], 1, chunk_units=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_rates": [5, 4]}, "found 2 upsample_rates and 5 upsample_kernel_sizes"),
        ({"upsample_kernel_sizes": [10, 8, 8, 8, 4]}, "kernel of 10 for the rate 5"),
        ({"upsample_kernel_sizes": [3, 8, 8, 8, 4]}, "kernel of 3 for the rate 5"),
        ({"initial_channels": 48}, "multiple of 32"),
        ({"resblock_kernel_sizes": [3, 4]}, "kernel size of 4; kernels must be odd"),
        ({"resblock_dilations": []}, "resblock_dilations is"),
        ({"num_units": 0}, "num_units is 0"),
        ({"num_speakers": -1}, "must be 0"),
        ({"num_styles": 3}, "both num_styles and num_style_tokens"),
        ({"speaker_names": ["a"]}, "found 1 names for 4 speakers"),
    ],
)
def test_impossible_sizes_are_refused_at_construction(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        HifiGanConfig(**changes)


def test_loads_as_remote_code_where_the_package_is_missing(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path / "vocoder")
    torch.save(vocoder.units_to_waveform([1, 2, 3], None, [1, 2, 3], 4), tmp_path / "expected.pt")
    script = f"""
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
import torch
from transformers import AutoModel
vocoder = AutoModel.from_pretrained({str(tmp_path / "vocoder")!r}, trust_remote_code=True).eval()
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
torch.testing.assert_close(vocoder.units_to_waveform([1, 2, 3], None, [1, 2, 3], 4), expected)
vocoder.remove_weight_norm()
torch.testing.assert_close(vocoder.units_to_waveform([1, 2, 3], None, [1, 2, 3], 4), expected, rtol=0, atol=1e-5)
print("loaded", type(vocoder).__module__)
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "loaded transformers_modules" in result.stdout
