"""Levels, rooms and switches, measured on a real LibriVox recording."""

from pathlib import Path

import numpy as np
import pyroomacoustics
import pytest

from tinywave.data.audio_io import load_audio
from tinywave.eval.acoustic_scenes import (
    ROOMS,
    SPEECH_LEVEL_DB,
    active_level,
    impulse_response,
    limit_pair,
    match_power,
    measured_t60,
    reverberate,
    scale_to_snr,
    switch,
    to_speech_level,
)

CLIPS = sorted((Path(__file__).resolve().parent.parent / "assets" / "audio" / "librivox").glob("*.flac"))


@pytest.fixture(scope="module")
def speech():
    return load_audio(CLIPS[0], max_seconds=60)[: 6 * 16_000].astype(np.float64)


def power_db(signal):
    return 10 * np.log10(np.mean(signal**2))


def test_active_level_of_a_tone_and_of_a_tone_with_silence():
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(16_000) / 16_000)
    assert active_level(tone) == pytest.approx(0.5 / np.sqrt(2))
    padded = np.concatenate([np.zeros(32_000), tone, np.zeros(16_000)])
    assert active_level(padded) == pytest.approx(0.5 / np.sqrt(2))
    with pytest.raises(ValueError, match="Found 800 samples of silence"):
        active_level(np.zeros(800))


def test_pauses_do_not_lower_the_level_of_speech(speech):
    with_pauses = np.concatenate([np.zeros(16_000), speech, np.zeros(32_000)])
    assert active_level(with_pauses) == pytest.approx(active_level(speech), rel=0.02)
    assert 20 * np.log10(active_level(to_speech_level(speech))) == pytest.approx(SPEECH_LEVEL_DB)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5])
def test_noise_has_the_stated_ratio_to_active_speech(speech, snr_db):
    noise = scale_to_snr(np.random.default_rng(0).standard_normal(len(speech)), speech, snr_db)
    assert 20 * np.log10(active_level(speech)) - power_db(noise) == pytest.approx(snr_db, abs=1e-6)


def test_a_changed_background_is_as_strong_as_the_one_it_follows(speech):
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal(len(speech)), 5 * rng.standard_normal(len(speech)) * np.hanning(len(speech))
    matched = match_power(second, first, 40_000)
    assert power_db(matched[40_000:]) == pytest.approx(power_db(first[40_000:]))
    mixed = switch(first, matched, 40_000)
    assert power_db(mixed) == pytest.approx(power_db(first), abs=0.1)


def test_a_switch_keeps_what_is_before_and_takes_what_is_after():
    first, second = np.arange(1000.0), -np.arange(3000.0)
    mixed = switch(first, second, 600, 2000)
    np.testing.assert_array_equal(mixed[:600], first[:600])
    np.testing.assert_array_equal(mixed[760:], second[2160:])
    # In the middle of the 160 samples of the crossfade both count half.
    assert mixed[680] == pytest.approx(0.5 * first[680] + 0.5 * second[2080])
    assert len(mixed) == 600 + 1000
    with pytest.raises(ValueError, match="from sample 1001 of 1000 to sample 5 of 3000"):
        switch(first, second, 1001, 5)


def test_both_halves_are_limited_by_one_factor():
    loud, quiet = np.array([0.1, 1.9, -0.2]), np.array([0.1, 0.3])
    positive, negative = limit_pair(loud, quiet)
    np.testing.assert_allclose(positive, [0.05, 0.95, -0.1], rtol=1e-6)
    np.testing.assert_allclose(negative, [0.05, 0.15], rtol=1e-6)
    np.testing.assert_array_equal(limit_pair(quiet, quiet)[0], quiet.astype(np.float32))


@pytest.mark.parametrize("room", ROOMS[:4], ids=lambda room: room.name)
def test_rooms_have_their_reverberation_time(room):
    response = impulse_response(room, seed=7)
    assert response[0] == 1.0 and np.abs(response).max() == 1.0
    assert measured_t60(response) == pytest.approx(room.t60, rel=0.1)
    # An independent measure: the package's own, which extrapolates from 30 dB as well.
    assert pyroomacoustics.measure_rt60(response, fs=16_000, decay_db=30) == pytest.approx(room.t60, rel=0.12)


def test_a_seed_names_the_places_in_a_room():
    office = ROOMS[1]
    np.testing.assert_array_equal(impulse_response(office, 1), impulse_response(office, 1))
    one, other = impulse_response(office, 1), impulse_response(office, 2)
    assert not np.array_equal(one[:500], other[:500])


def test_measured_t60_of_an_exponential_decay():
    time = np.arange(16_000) / 16_000
    decay = np.random.default_rng(0).standard_normal(16_000) * 10 ** (-3 * time / 0.4)
    assert measured_t60(decay) == pytest.approx(0.4, rel=0.03)


def test_a_room_fills_pauses_and_keeps_level_and_length(speech):
    wet = reverberate(speech, impulse_response(ROOMS[3], 0))
    assert len(wet) == len(speech) and active_level(wet) == pytest.approx(active_level(speech), rel=1e-6)
    quietest = [np.quantile(np.mean(sound[:95_680].reshape(-1, 320) ** 2, axis=1), 0.1) for sound in (speech, wet)]
    assert quietest[1] > 2 * quietest[0]
