"""SALMon's parts: what the halves share, what they differ in, and that each cue can be measured in the sound."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tinywave.data.audio_io import load_audio
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.data.story_language import split_of
from tinywave.eval.acoustic_scenes import active_level, to_speech_level
from tinywave.eval.acoustic_texts import MOOD_TEMPLATES, SCENE_TEMPLATES
from tinywave.eval.release_plan import Speech
from tinywave.eval.salmon_parts import MINIMUM_WORDS, PARTS, gender_of, middle_boundary, plan_part
from tinywave.eval.suite_releases import build_release, read_release_record
from tinywave.eval.suites import SuiteError

CLIPS = sorted((Path(__file__).resolve().parent.parent / "assets" / "audio" / "librivox").glob("*.flac"))


@pytest.fixture(scope="module")
def plans():
    return {part: plan_part(part, 40, seed=0) for part in PARTS}


@pytest.fixture(scope="module")
def speech():
    """Six seconds of a real reader; where its words are does not matter here."""
    return Speech(load_audio(CLIPS[0])[: 6 * 16_000], (("one", 0.0, 2.9), ("two", 3.1, 6.0)))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """One spoken pair of each part, with its record."""
    folder = build_release("salmon", tmp_path_factory.mktemp("salmon") / "suite", 1, seed=6, num_processes=1)
    return folder, {item["part"]: item for item in read_release_record(folder)["items"]}


def matches(text, templates):
    patterns = (re.sub(r"\\{\w+\\}", "[A-Za-z ]+", re.escape(template)) for template in templates)
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def test_the_parts_are_those_of_the_release():
    assert list(PARTS) == [
        "bg_alignment", "bg_all_consistency", "bg_domain_consistency", "gender_consistency", "rir_consistency",
        "sentiment_alignment", "sentiment_consistency", "speaker_consistency",
    ]  # fmt: skip
    with pytest.raises(SuiteError, match="Unknown part 'pitch_consistency'"):
        plan_part("pitch_consistency", 1, seed=0)


@pytest.mark.parametrize("part", PARTS)
def test_texts_are_held_out_and_a_seed_fixes_a_plan(plans, part):
    texts = [pair.text for pair in plans[part]]
    assert {split_of(text) for text in texts} == {"test"}
    assert len(set(texts)) == (40 if part.endswith("_alignment") else 20)
    assert all(len(text.split()) >= MINIMUM_WORDS for text in texts if not part.endswith("_alignment"))
    again, other = plan_part(part, 5, seed=0), plan_part(part, 5, seed=1)
    assert [pair.text for pair in again] == texts[:5] != [pair.text for pair in other]
    assert [pair.differs for pair in again] == [pair.differs for pair in plans[part][:5]]


@pytest.mark.parametrize("part", PARTS)
def test_what_is_right_in_one_pair_is_wrong_in_its_twin(plans, part):
    for one, other in zip(plans[part][::2], plans[part][1::2], strict=True):
        facts = [value for name, value in one.differs.items() if name != "snr_db"]
        exchanged = [value for name, value in other.differs.items() if name != "snr_db"]
        assert facts == exchanged[::-1] and facts[0] != facts[1]


def test_voices_are_unseen_and_of_the_wanted_gender(plans):
    for part in ("speaker_consistency", "gender_consistency"):
        pairs = [(pair.positive.voice, pair.negative.voice) for pair in plans[part]]
        assert {voice for pair in pairs for voice in pair} <= set(TEST_VOICES)
        assert all(one != other for one, other in pairs)
        assert Counter(one for one, _ in pairs) == Counter(other for _, other in pairs)
    assert all(
        gender_of(pair.positive.voice) != gender_of(pair.negative.voice) for pair in plans["gender_consistency"]
    )


def test_backgrounds_change_the_recording_or_the_domain(plans):
    for part, same in (("bg_domain_consistency", True), ("bg_all_consistency", False)):
        for pair in plans[part]:
            first, second = pair.differs["positive_background"], pair.differs["negative_background"]
            assert (first["domain"] == second["domain"]) == same and first["recording"] != second["recording"]
            assert 0 <= pair.differs["snr_db"] <= 10


def test_only_the_right_half_fits_the_words(plans):
    for pair in plans["bg_alignment"]:
        assert matches(pair.text, SCENE_TEMPLATES[pair.differs["positive_background"]["domain"]])
        assert not matches(pair.text, SCENE_TEMPLATES[pair.differs["negative_background"]["domain"]])
    for pair in plans["sentiment_alignment"]:
        assert matches(pair.text, MOOD_TEMPLATES[pair.differs["positive_style"]])
        assert not matches(pair.text, MOOD_TEMPLATES[pair.differs["negative_style"]])


def test_enough_sentences_for_a_suite_of_the_official_size():
    for part in ("bg_alignment", "sentiment_alignment"):
        assert len(plan_part(part, 200, seed=0)) == 200
        with pytest.raises(ValueError, match="Found no further sentence like"):
            plan_part(part, 2000, seed=0)


def test_the_middle_is_between_two_words():
    words = [("a", 0.0, 0.5), ("b", 0.6, 1.0), ("c", 1.2, 2.0)]
    assert middle_boundary(words) == 17_600
    assert middle_boundary(words[:2]) == 8_800
    with pytest.raises(ValueError, match="Found 1 words"):
        middle_boundary(words[:1])


@pytest.mark.parametrize("part", ["bg_all_consistency", "bg_domain_consistency", "bg_alignment"])
def test_the_mix_has_the_stated_ratio(plans, part, speech):
    clean = to_speech_level(speech.waveform)
    for pair in plans[part][:6]:
        if "crowd" in str(pair.differs):
            continue
        halves, _ = pair.render(speech, speech)
        if max(np.abs(half).max() for half in halves) > 0.9499:
            continue  # scaled to the peak: the speech in it is no longer `clean`
        for half in halves:
            noise = half - clean
            measured = 20 * np.log10(active_level(clean) / np.sqrt(np.mean(noise**2)))
            assert measured == pytest.approx(pair.differs["snr_db"], abs=0.1)
        break
    else:
        pytest.fail("every mix of this plan was limited")


@pytest.mark.parametrize("part", PARTS)
def test_halves_are_the_same_up_to_the_switch(release, part):
    folder, items = release
    positive, negative = (load_audio(folder / file) for file in items[part]["files"])
    assert items[part]["files"] == [f"{part}/sample_0_0.wav", f"{part}/sample_0_1.wav"]
    if part.endswith("_alignment"):
        length = min(len(positive), len(negative))
        assert np.mean(positive[:length] != negative[:length]) > 0.5
        return
    place = items[part]["switch_sample"]
    assert 0.25 * len(positive) < place < 0.75 * len(positive)
    np.testing.assert_array_equal(positive[:place], negative[:place])
    length = min(len(positive), len(negative))
    # Both may end in the same silence.
    assert np.mean(positive[place:length] != negative[place:length]) > 0.5


def test_the_voice_changes_its_pitch_with_the_gender(release):
    folder, items = release
    item, extractor = items["gender_consistency"], load_f0_extractor()

    def median_f0(waveform):
        f0, voiced = extractor(waveform)
        return np.median(f0[voiced])

    halves = [load_audio(folder / file) for file in item["files"]]
    kept, changed = (median_f0(half[item["switch_sample"] :]) for half in halves)
    voices = item["positive_voice"], item["negative_voice_after_switch"]
    higher, lower = (kept, changed) if gender_of(voices[0]) == "female" else (changed, kept)
    assert higher > 1.25 * lower


def test_the_rooms_have_their_stated_times(release):
    item = release[1]["rir_consistency"]
    stated = [item["positive_room"]["t60_s"], item["negative_room"]["t60_s"]]
    assert stated[0] != stated[1]
    np.testing.assert_allclose(item["measured_t60_s"], stated, rtol=0.1)
