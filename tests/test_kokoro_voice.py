"""Kokoro voices, from the installed packages and the cached archive of style tables."""

import numpy as np
import pytest
import soxr

from tinywave.data import kokoro_voice
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.kokoro_voice import TEST_VOICES, TRAIN_VOICES, KokoroVoice
from tinywave.data.pronunciation import MissingMaterialError


def mean_pitch(waveform: np.ndarray) -> float:
    """In Hz, where voiced."""
    f0, is_voiced = load_f0_extractor()(soxr.resample(waveform, 24_000, 16_000))
    return float(f0[is_voiced].mean())


@pytest.fixture(scope="module")
def voice():
    return KokoroVoice()


@pytest.fixture(scope="module")
def utterances(voice):
    return {name: voice.synthesize("A tall tower.", voice=name) for name in ("af_bella", "bm_george")}


def test_test_voices_are_unseen_and_balanced():
    assert not set(TRAIN_VOICES) & set(TEST_VOICES)
    assert (len(TRAIN_VOICES), len(TEST_VOICES)) == (18, 10)
    groups = [name[:2] for name in TEST_VOICES]
    assert {group: groups.count(group) for group in groups} == {"af": 3, "am": 3, "bf": 2, "bm": 2}


@pytest.mark.parametrize("name", ["af_bella", "bm_george"])
def test_speech_is_as_long_as_its_phones(utterances, name):
    utterance = utterances[name]
    assert 0.1 < np.abs(utterance.waveform).max() <= 0.95
    assert [word for word, _, _ in utterance.words] == ["A", "tall", "tower"]
    loudness = utterance.waveform**2
    first, last = (int(time * 24_000) for time in (utterance.phones[0].start, utterance.phones[-1].end))
    assert loudness[first:last].sum() > 0.98 * loudness.sum()
    assert last <= len(utterance.waveform)


def test_british_voices_read_british_english(utterances):
    assert utterances["af_bella"].phonemes.endswith("tˈWəɹ.")
    assert utterances["bm_george"].phonemes.endswith("tˈWə.")


def test_equal_arguments_give_equal_samples_and_voices_differ(voice, utterances):
    again = voice.synthesize("A tall tower.", voice="af_bella")
    np.testing.assert_array_equal(again.waveform, utterances["af_bella"].waveform)
    other = voice.synthesize(phonemes=again.phonemes, voice="am_echo")
    assert len(other.waveform) != len(again.waveform) or not np.allclose(other.waveform, again.waveform)


def test_a_mix_is_a_new_speaker_between_two(voice, utterances):
    """Its style is halfway, so that mixing a speaker with itself, or two in the other order, changes nothing."""
    same = voice.synthesize("A tall tower.", voice="af_bella+af_bella")
    np.testing.assert_array_equal(same.waveform, utterances["af_bella"].waveform)
    mixed = voice.synthesize("A tall tower.", voice="af_bella+am_echo")
    turned = voice.synthesize("A tall tower.", voice="am_echo+af_bella")
    np.testing.assert_array_equal(mixed.waveform, turned.waveform)
    other = voice.synthesize("A tall tower.", voice="am_echo")
    pitches = [mean_pitch(utterance.waveform) for utterance in (other, mixed, utterances["af_bella"])]
    assert pitches[0] < 0.95 * pitches[1] and pitches[1] < 0.95 * pitches[2]


def test_unknown_voice_is_refused(voice):
    with pytest.raises(ValueError, match="voice 'af_nobody'; expected one of af_alloy"):
        voice.synthesize("Hello.", voice="af_heart+af_nobody")
    with pytest.raises(ValueError, match="voice 'af_nobody'; expected one of af_alloy"):
        voice.synthesize("Hello.", voice="af_nobody")


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYWAVE_CACHE", str(tmp_path))
    kokoro_voice.read_style_tables.cache_clear()
    yield tmp_path
    kokoro_voice.read_style_tables.cache_clear()


def test_missing_npm_is_explained(fresh_cache, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh_cache))
    with pytest.raises(MissingMaterialError, match="Found no npm.* or put the archive of kokoro-js@1.2.1"):
        kokoro_voice.read_style_tables()


def test_a_failing_npm_is_explained_and_leaves_nothing(fresh_cache, monkeypatch, tmp_path_factory):
    programs = tmp_path_factory.mktemp("programs")
    (programs / "npm").write_text("#!/bin/sh\necho 'network is unreachable' >&2\nexit 1\n")
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(MissingMaterialError, match="failed: network is unreachable"):
        kokoro_voice.read_style_tables()
    assert list(fresh_cache.iterdir()) == []


def test_another_archive_is_refused(fresh_cache):
    kokoro_voice.style_archive_path().write_bytes(b"not the archive")
    with pytest.raises(ValueError, match="Found sha256 .* expected 1f0d03.* delete the file"):
        kokoro_voice.read_style_tables()
