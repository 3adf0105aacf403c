"""Synthesised backgrounds: recordings by seed, and domains that a listener to spectra can tell apart."""

import numpy as np
import pytest
from scipy import signal

from tinywave.eval.background_sounds import DOMAINS, make_background

NUM_SAMPLES = 3 * 16_000


@pytest.fixture(scope="module")
def recordings():
    """Domain -> four recordings of 3 s; the crowd, which has to be spoken, has two."""
    return {
        domain: [make_background(domain, seed, NUM_SAMPLES) for seed in range(2 if domain == "crowd" else 4)]
        for domain in DOMAINS
    }


def texture_of(sound):
    """Mean and spread over time of the level in dB of 20 bands of a 32 ms spectrum."""
    power = np.abs(signal.stft(sound, 16_000, nperseg=512)[2][1:]) ** 2
    bands = [10 * np.log10(band.sum(axis=0) + 1e-6) for band in np.array_split(power, 20)]
    return np.array([[band.mean(), band.std()] for band in bands]).ravel()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_recording_has_its_length_and_power(recordings, domain):
    for sound in recordings[domain]:
        assert sound.shape == (NUM_SAMPLES,) and np.isfinite(sound).all()
        assert np.mean(sound**2) == pytest.approx(1) and np.mean(sound) == pytest.approx(0, abs=1e-9)
        # Something is heard in every second.
        assert min(np.mean(second**2) for second in sound.reshape(3, -1)) > 0.02


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_seed_names_a_recording(recordings, domain):
    first, second, *_ = recordings[domain]
    np.testing.assert_array_equal(make_background(domain, 0, NUM_SAMPLES), first)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_recordings_of_one_domain_are_closer_than_those_of_others(recordings):
    textures = [(domain, texture_of(sound)) for domain, sounds in recordings.items() for sound in sounds]
    nearest = [
        min((np.linalg.norm(one - other), name) for j, (name, other) in enumerate(textures) if j != i)[1]
        for i, (_, one) in enumerate(textures)
    ]
    agree = [domain == name for (domain, _), name in zip(textures, nearest, strict=True)]
    assert np.mean(agree) > 0.8


def test_an_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="Unknown background 'sea'; expected one of .*'rain', 'wind'"):
        make_background("sea", 0, 100)
