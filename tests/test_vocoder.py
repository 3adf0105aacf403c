"""The vocoder: batches, durations, both ways to a waveform, loading as remote code."""

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

    def decoder(features, f0, energy):
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
