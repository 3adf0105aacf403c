"""Loudness against a reference of its standard, and the gain that follows from it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinywave.loudness_tinywave import MAX_GAIN, apply_gain, integrated_loudness, matching_gain


def tone(level, seconds=3.0, rate=48_000, frequency=997.0):
    return level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("decibels", [0, -20, -40])
def test_a_tone_has_the_loudness_of_the_standard(rate, decibels):
    """ITU-R BS.1770-4: a sine of 997 Hz at 0 dB of full scale in one channel has -3.01 LUFS."""
    found = integrated_loudness(tone(10 ** (decibels / 20), rate=rate), rate)
    assert found == pytest.approx(-3.01 + decibels, abs=0.1)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.39, 0.4, 0.41, 2.0])
def test_short_sounds_are_measured(seconds):
    assert integrated_loudness(tone(0.5, seconds), 48_000) == pytest.approx(-9.03, abs=1.5)


def test_the_gain_matches_and_is_limited():
    reference = tone(0.2)
    for level in (0.02, 0.1, 0.2, 0.9):
        gain = matching_gain(reference, 48_000, tone(level, rate=24_000), 24_000)
        assert gain == pytest.approx(0.2 / level, rel=0.02)
    assert matching_gain(reference, 48_000, tone(1e-3), 48_000) == MAX_GAIN
    assert matching_gain(tone(1e-3), 48_000, tone(0.9), 48_000) == pytest.approx(1 / MAX_GAIN)


@pytest.mark.parametrize("silence", [np.zeros(48_000), np.zeros(0), np.full(48_000, 1e-9)])
def test_silence_leaves_the_level_alone(silence):
    assert matching_gain(silence, 48_000, tone(0.5), 48_000) == 1.0
    assert matching_gain(tone(0.5), 48_000, silence, 48_000) == 1.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0.1, 10))
def test_peaks_stay_below_full_scale_and_quiet_samples_are_only_scaled(samples, gain):
    waveform = torch.tensor(samples, dtype=torch.float64)
    found = apply_gain(waveform, gain)
    assert found.abs().max() <= 1
    quiet = (waveform * gain).abs() <= 0.9
    torch.testing.assert_close(found[quiet], (waveform * gain)[quiet])
    assert torch.equal(found.sign(), (waveform * gain).sign())
