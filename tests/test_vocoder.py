"""The vocoder: batches, durations, both ways to a waveform, loading as remote code."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tinywave.configuration_tinywave import VocoderConfig
from tinywave.vocoder_tinywave import Vocoder, log_mel_to_waveform, mel_filters, waveform_to_log_mel


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(num_units=20, hidden_size=32, duration_hidden_size=16)).eval()
    vocoder.output_mean.normal_()
    vocoder.output_std.uniform_(0.5, 2.0)
    return vocoder


@pytest.fixture(scope="module")
def expressive() -> Vocoder:
    """A vocoder that hears pitch and style."""
    torch.manual_seed(1)
    sizes = {"num_units": 20, "hidden_size": 32, "duration_hidden_size": 16}
    return Vocoder(VocoderConfig(**sizes, num_pitch_tokens=8, num_style_tokens=3)).eval()


def test_rows_of_a_batch_come_out_as_alone(vocoder):
    rows = [torch.randint(20, (size,)) for size in (3, 40, 17)]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7)
    together = vocoder(padded, lengths)
    durations = vocoder.predict_log_durations(padded, lengths)
    for index, row in enumerate(rows):
        alone = vocoder(row[None])
        num_frames = int(alone.lengths[0])
        assert together.lengths[index] == num_frames
        for name in ("features", "log_f0", "voicing_logits", "energy"):
            torch.testing.assert_close(together[name][index, :num_frames], alone[name][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.log_mel[index, : 2 * num_frames], alone.log_mel[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(durations[index, : len(row)], vocoder.predict_log_durations(row[None])[0])


def test_rows_with_pitch_and_style_come_out_as_alone(expressive):
    rows = [[torch.randint(count, (size,)) for count in (20, 8, 3)] for size in (31, 4, 18)]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_value=-1)
    padded = [pad(part) for part in zip(*rows, strict=True)]
    together = expressive(padded[0], None, *padded[1:])
    for index, row in enumerate(rows):
        units, pitch, style = (part[None] for part in row)
        alone = expressive(units, None, pitch, style)
        num_frames = int(alone.lengths[0])
        assert together.lengths[index] == num_frames
        torch.testing.assert_close(together.features[index, :num_frames], alone.features[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def flexible() -> Vocoder:
    """A vocoder that hears pitch and style where they are there."""
    torch.manual_seed(2)
    sizes = {"num_units": 20, "hidden_size": 32, "duration_hidden_size": 16, "optional_prosody": True}
    return Vocoder(VocoderConfig(**sizes, num_pitch_tokens=8, num_style_tokens=3)).eval()


def test_no_prosody_is_no_code_at_any_unit(flexible):
    units, pitch, style = (torch.randint(count, (1, 40)) for count in (20, 8, 3))
    none = torch.full_like(units, -1)
    for given, absent in (
        ((None, None), (none, none)),
        ((pitch, None), (pitch, none)),
        ((None, style), (none, style)),
    ):
        torch.testing.assert_close(flexible(units, None, *given).features, flexible(units, None, *absent).features)
    assert not torch.equal(flexible(units).features, flexible(units, None, pitch).features)
    assert not torch.equal(flexible(units).features, flexible(units, None, None, style).features)


def test_a_code_is_missing_only_where_it_is(flexible):
    """Frames that no missing code reaches come out as with all codes."""
    units, pitch, style = (torch.randint(count, (1, 100)) for count in (20, 8, 3))
    partly = pitch.clone()
    partly[0, 50:] = -1
    whole, missing = flexible(units, None, pitch, style), flexible(units, None, partly, style)
    moved = (whole.log_f0 - missing.log_f0).abs()[0].amax(-1).nonzero()[:, 0]
    assert int(moved.min()) >= 80 - 15 and int(moved.max()) == 159


def test_rows_with_and_without_prosody_come_out_as_alone(flexible):
    rows = [torch.randint(20, (size,)) for size in (31, 4, 18)]
    pitch = [torch.randint(8, (31,)), torch.full((4,), -1), torch.randint(8, (18,))]
    style = [torch.randint(3, (31,)), torch.randint(3, (4,)), torch.full((18,), -1)]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_value=-1)
    together = flexible(pad(rows), None, pad(pitch), pad(style))
    for index, (row, *codes) in enumerate(zip(rows, pitch, style, strict=True)):
        alone = flexible(row[None], None, *(None if int(code[0]) < 0 else code[None] for code in codes))
        num_frames = int(alone.lengths[0])
        assert together.lengths[index] == num_frames
        torch.testing.assert_close(together.features[index, :num_frames], alone.features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heard", [(), ("pitch",), ("style",)])
def test_streamed_outputs_without_prosody_are_those_of_the_whole(flexible, heard):
    units, durations = torch.randint(20, (60,)), torch.randint(1, 3, (60,))
    codes = {"pitch": torch.randint(8, (60,)), "style": torch.randint(3, (60,))}
    frames = {name: codes[name].repeat_interleave(durations)[None] for name in heard}
    whole = flexible(units.repeat_interleave(durations)[None], **frames)
    given = {name: codes[name].tolist() for name in heard}
    pieces = list(flexible.stream_outputs(units.tolist(), durations.tolist(), **given, chunk_units=20))
    for name in ("features", "log_f0", "log_mel"):
        joined = torch.cat([piece[name] for piece in pieces], dim=1)
        torch.testing.assert_close(joined, whole[name], rtol=1e-5, atol=1e-6)


def test_units_alone_are_spoken(flexible):
    spoken = flexible.units_to_waveform([1, 2, 3], [4, 4, 5])
    assert spoken.shape == (13 * 960,)
    assert not torch.equal(spoken, flexible.units_to_waveform([1, 2, 3], [4, 4, 5], pitch=[1, 2, 3], style=1))
    with pytest.raises(ValueError, match="between -1 and 1; this vocoder knows 0 to 7"):
        flexible.units_to_waveform([1, 2], [1, 1], pitch=[1, -1])


def test_a_vocoder_of_units_alone_has_no_prosody_to_leave_out():
    vocoder = Vocoder(
        VocoderConfig(num_units=20, hidden_size=16, duration_hidden_size=8, optional_prosody=True)
    ).eval()
    assert vocoder(torch.tensor([[1, 2]])).features.shape == (1, 3, 128)
    with pytest.raises(ValueError, match="no pitch input"):
        vocoder(torch.tensor([[1, 2]]), None, torch.tensor([[1, 2]]))


def test_a_pitch_code_is_heard_at_its_own_time(expressive):
    """It reaches 15 frames: three convolutions of kernel 7 at the frame rate, two of them dilated by 2."""
    units, pitch, style = (torch.randint(count, (1, 100)) for count in (20, 8, 3))
    changed = pitch.clone()
    changed[0, 50] = (changed[0, 50] + 1) % 8
    difference = (expressive(units, None, pitch, style).log_f0 - expressive(units, None, changed, style).log_f0).abs()
    heard = difference[0].amax(-1).nonzero()[:, 0]
    assert (int(heard.min()), int(heard.max())) == (80 - 15, 81 + 15)


def test_predictions_depend_on_the_receptive_field_and_no_more(vocoder):
    assert vocoder.receptive_field == 20
    units = torch.zeros(1, 100, dtype=torch.long)
    changed = units.clone()
    changed[0, 50] = 1
    difference = (vocoder(units).features - vocoder(changed).features).abs()[0].amax(-1)
    reached = difference.nonzero()[:, 0] * 25 // 40  # the unit under each frame that moved
    assert 50 - 20 <= int(reached.min()) <= 50 - 19
    assert 50 + 19 <= int(reached.max()) <= 50 + 20


@pytest.mark.parametrize("chunk_units", [1, 25, 38, 1000])
def test_streamed_outputs_are_those_of_the_whole(expressive, chunk_units):
    units, pitch, style = (torch.randint(count, (83,)) for count in (20, 8, 3))
    durations = torch.randint(1, 4, (83,))
    whole = expressive(
        *(None if x is None else x.repeat_interleave(durations)[None] for x in (units, None, pitch, style))
    )
    arguments = (part.tolist() for part in (units, durations, pitch, style))
    pieces = list(expressive.stream_outputs(*arguments, chunk_units=chunk_units))
    assert sum(int(piece.lengths) for piece in pieces) == int(whole.lengths)
    for name in ("features", "log_f0", "voicing_logits", "energy", "log_mel"):
        joined = torch.cat([piece[name] for piece in pieces], dim=1)
        torch.testing.assert_close(joined, whole[name], rtol=1e-5, atol=1e-6)


def test_streamed_waveform_has_all_its_samples_and_starts_early(vocoder):
    units = torch.randint(20, (90,)).tolist()
    read = []

    def source():
        for unit in units:
            read.append(unit)
            yield unit

    def decoder(features, f0, energy, style):
        return np.full(600 * len(features), 0.25, dtype=np.float32)

    pieces = vocoder.stream_waveform(source(), decoder=decoder)
    first = next(pieces)
    # 25 units of the piece, 20 that the network hears, 5 that the decoder hears, 2 for the durations.
    assert len(read) <= 25 + 20 + 5 + 2
    waveform = torch.cat([first, *pieces])
    assert waveform.shape == vocoder.units_to_waveform(units, decoder=decoder).shape
    torch.testing.assert_close(waveform, torch.full_like(waveform, 0.25))


def test_seams_of_a_streamed_waveform_do_not_click(vocoder):
    """A decoder with another phase every time: at the seams the tone goes on as steep as anywhere else."""
    rng = np.random.default_rng(0)

    def decoder(features, f0, energy, style):
        times = np.arange(600 * len(features)) / 24_000
        return np.sin(2 * np.pi * 110 * times + rng.uniform(0, 2 * np.pi)).astype(np.float32)

    waveform = torch.cat(list(vocoder.stream_waveform([3, 4, 5] * 40, [1] * 120, decoder=decoder, chunk_units=10)))
    assert len(waveform) == 120 * 960
    assert float(waveform.diff().abs().max()) < 1.2 * 2 * np.pi * 110 / 24_000
    assert float(waveform.unfold(0, 240, 120).square().mean(1).min()) > 0.4


def test_streaming_without_a_decoder_uses_the_fallback(vocoder):
    pieces = list(vocoder.stream_waveform([1, 2, 3] * 7, [1] * 21, chunk_units=10))
    assert [len(piece) for piece in pieces] == [9600, 9600, 960]
    with pytest.raises(ValueError, match="chunk_units=0"):
        next(vocoder.stream_outputs([1, 2], chunk_units=0))


def test_timed_codes_and_one_code_a_unit_say_the_same(expressive):
    units, pitch = torch.randint(20, (40,)), torch.randint(8, (20,))
    ones = torch.ones(40, dtype=torch.long)
    timed = expressive.units_to_waveform(units, ones, pitch=pitch, style=[1, 1])
    held = expressive.units_to_waveform(units, ones, pitch=pitch.repeat_interleave(2), style=1)
    torch.testing.assert_close(timed, held)


def test_missing_and_unknown_codes_are_refused(vocoder, expressive):
    with pytest.raises(ValueError, match="Found no pitch"):
        expressive.units_to_waveform([1, 2], style=1)
    with pytest.raises(ValueError, match="Found no style"):
        expressive(torch.tensor([[1, 2]]), None, torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="no pitch input"):
        vocoder.units_to_waveform([1, 2], pitch=[1, 2])


def test_frames_cover_the_time_of_the_units(vocoder):
    output = vocoder(torch.zeros(1, 25, dtype=torch.long))
    assert output.features.shape == (1, 40, 128)
    assert output.log_mel.shape == (1, 80, 80)


def test_time_runs_the_same_for_units_and_frames():
    """Interpolation, checked with numpy: a ramp over unit centres stays a ramp over frame centres."""
    vocoder = Vocoder(VocoderConfig(num_units=5, hidden_size=8))
    unit_times = (np.arange(30) + 0.5) / 25
    frame_times = (np.arange(48) + 0.5) / 40
    ramp = torch.from_numpy(unit_times).float()[None, :, None]
    result = vocoder._interpolate(ramp, torch.tensor([30]), 48)[0, :, 0]
    np.testing.assert_allclose(result.numpy(), np.interp(frame_times, unit_times, unit_times), rtol=1e-5)


def test_durations_are_at_least_one_and_follow_the_published_rule(vocoder):
    units = torch.randint(20, (2, 12))
    log_durations = vocoder.predict_log_durations(units)
    expected = [[max(1, round(np.exp(p) - 1)) for p in row] for row in log_durations.tolist()]
    assert vocoder.predict_durations(units).tolist() == expected


def test_neural_path_hands_features_to_the_decoder(vocoder):
    received = {}

    def decoder(features, f0, energy, style):
        received.update(features=features, f0=f0, energy=energy)
        return np.full(600 * len(features), 0.25, dtype=np.float32)

    units, durations = [3, 4, 5], [10, 5, 10]
    waveform = vocoder.units_to_waveform(units, durations, decoder)
    raw = torch.tensor([3] * 10 + [4] * 5 + [5] * 10)
    expected = vocoder(raw[None])
    np.testing.assert_allclose(received["features"], expected.features[0].detach().numpy(), rtol=1e-5, atol=1e-5)
    voiced = expected.voicing_logits[0].reshape(-1) > 0
    assert ((received["f0"] > 0) == voiced.numpy()).all()
    assert received["energy"].shape == received["f0"].shape == (80,)
    assert waveform.shape == (25 * 960,) and bool((waveform == 0.25).all())


def test_the_decoder_hears_the_style_of_every_frame(flexible):
    received = []

    def decoder(features, f0, energy, style):
        received.append((len(features), style))
        return np.full(600 * len(features), 0.25, dtype=np.float32)

    units, durations, style = [3, 4, 5] * 10, [5] * 30, [0] * 12 + [2] * 6 + [1] * 12
    flexible.units_to_waveform(units, durations, decoder, style=style)
    assert received.pop()[1].tolist() == [0] * 96 + [2] * 48 + [1] * 96  # 8 frames for 5 units
    list(flexible.stream_waveform(units, durations, decoder, style=style, chunk_units=25))
    margins = [0, *[8] * (len(received) - 1)]  # what a piece is decoded with before it starts
    pieces = [codes[margin : margin + 40] for (_, codes), margin in zip(received, margins, strict=True)]
    assert np.concatenate(pieces).tolist() == [0] * 96 + [2] * 48 + [1] * 96
    flexible.units_to_waveform(units, durations, decoder)
    assert received[-1] == (240, None)


def test_without_a_decoder_the_fallback_speaks_deterministically(vocoder):
    waveform = vocoder.units_to_waveform([1, 2, 3], [4, 4, 5])
    assert waveform.shape == (13 * 960,)
    assert torch.isfinite(waveform).all()
    torch.testing.assert_close(waveform, vocoder.units_to_waveform([1, 2, 3], [4, 4, 5]))


def test_griffin_lim_rebuilds_a_chord():
    """The spectrum of the rebuilt waveform, measured apart by numpy, peaks where the original does."""
    config = VocoderConfig()
    times = torch.arange(24_000) / 24_000
    chord = 0.3 * torch.sin(2 * torch.pi * 440 * times) + 0.3 * torch.sin(2 * torch.pi * 1760 * times)
    rebuilt = log_mel_to_waveform(waveform_to_log_mel(chord, config), config)
    assert rebuilt.shape == chord.shape
    spectrum = np.abs(np.fft.rfft(rebuilt.numpy()[4_000:20_000]))
    frequencies = np.fft.rfftfreq(16_000, 1 / 24_000)
    low = frequencies[spectrum[: len(spectrum) // 12].argmax()]
    high_start = np.searchsorted(frequencies, 1_200)
    high = frequencies[high_start + spectrum[high_start:].argmax()]
    assert low == pytest.approx(440, abs=40) and high == pytest.approx(1_760, abs=60)
    assert 0.5 < rebuilt.std() / chord.std() < 2.0


def test_every_mel_band_hears_something():
    assert bool((mel_filters(VocoderConfig()).sum(0) > 0).all())


@pytest.mark.parametrize(
    ("units", "durations", "message"),
    [
        ([], None, "at least one unit"),
        ([[1, 2]], None, "one sequence"),
        ([1, 20], None, "knows 0 to 19"),
        ([-1, 2], None, "knows 0 to 19"),
        ([1, 2], [1], "one duration"),
        ([1, 2], [1, 0], "at least 1 frame"),
    ],
)
def test_bad_units_are_refused(vocoder, units, durations, message):
    with pytest.raises(ValueError, match=message):
        vocoder.units_to_waveform(units, durations)


def test_saved_equals_loaded(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = Vocoder.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == vocoder.state_dict().keys()
    for name, tensor in vocoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_folder_from_before_pitch_and_style_loads_unchanged(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("num_pitch_tokens", "num_style_tokens", "pitch_rate", "style_rate", "optional_prosody"):
        del config[name]
    path.write_text(json.dumps(config))
    loaded = Vocoder.from_pretrained(tmp_path).eval()
    units = torch.randint(20, (1, 30))
    assert torch.equal(loaded(units).features, vocoder(units).features)
    assert not any("pitch" in name or "style" in name for name in loaded.state_dict())


def test_default_size_fits_the_file_budget():
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig())
    bytes_in_bfloat16 = 2 * sum(tensor.numel() for tensor in vocoder.state_dict().values())
    assert bytes_in_bfloat16 <= 5_000_000


def test_loads_as_remote_code_where_the_package_is_missing(vocoder, tmp_path):
    Vocoder.register_for_auto_class("AutoModel")
    vocoder.save_pretrained(tmp_path / "vocoder")
    torch.save(vocoder(torch.tensor([[1, 2, 2, 3]])).features.detach(), tmp_path / "expected.pt")
    script = f"""
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tinywave", "hibari"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
import torch
from transformers import AutoModel
vocoder = AutoModel.from_pretrained({str(tmp_path / "vocoder")!r}, trust_remote_code=True)
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
torch.testing.assert_close(vocoder(torch.tensor([[1, 2, 2, 3]])).features, expected)
assert vocoder.units_to_waveform([1, 2, 3], [2, 2, 2]).shape == (5760,)
print("loaded", type(vocoder).__module__)
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "loaded transformers_modules" in result.stdout
