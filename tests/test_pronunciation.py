"""Text to phonemes, and durations to times."""

import numpy as np
import pytest

from tinywave.data.pronunciation import (
    durations_to_times,
    limit_peak,
    phoneme_vocabulary,
    phonemes_to_ids,
    phonemes_to_pronunciation,
    text_to_phonemes,
    text_to_pronunciation,
)

SENTENCES = (
    "She said, 'I don't know,' and left.",
    "The re-opened inn - a small one - cost 12 pounds!",
    'Mr. Knightley, "a sensible man," smiled; Emma (as usual) did not.',
    "In the U.S.A., dogs & cats eat rock'n'roll cookies...",
)


@pytest.mark.parametrize("text", SENTENCES)
def test_every_spoken_chunk_of_the_text_is_a_word(text):
    pronunciation = text_to_pronunciation(text)
    chunks = [chunk for chunk in text.split() if chunk != "-"]
    assert len(pronunciation.words) == len(chunks)
    assert all(word in chunk for (word, _, _), chunk in zip(pronunciation.words, chunks, strict=True))


@pytest.mark.parametrize("text", SENTENCES)
def test_words_cover_all_phonemes_in_order(text):
    pronunciation = text_to_pronunciation(text)
    covered = " ".join(pronunciation.phonemes[start:end] for _, start, end in pronunciation.words)
    letters = [character for character in pronunciation.phonemes if character.isalpha()]
    assert [character for character in covered if character.isalpha()] == letters
    assert set(pronunciation.phonemes) <= phoneme_vocabulary().keys()


def test_numbers_are_one_word_and_times_of_day_are_written_out():
    words = [word for word, _, _ in text_to_pronunciation("10,000 ships at 3:15.").words]
    assert words == ["10,000", "ships", "at", "three", "fifteen"]


def test_accents_differ():
    assert text_to_phonemes("A tower.") == "ɐ tˈWəɹ."
    assert text_to_phonemes("A tower.", british=True) == "ɐ tˈWə."


@pytest.mark.parametrize("text", ["", "...", "☃"])
def test_nothing_to_say_is_refused(text):
    with pytest.raises(ValueError, match="no words to pronounce"):
        text_to_pronunciation(text)


def test_marks_belong_to_their_phones_and_times_run_ahead_of_the_durations():
    # Ticks:   pad ˈ  ɑ  ː  t  ␣  b  ɪ  pad
    durations = [4, 1, 2, 3, 4, 2, 1, 5, 3]
    phones, words = durations_to_times(phonemes_to_pronunciation("ˈɑːt bɪ", "art bi"), durations)
    assert [label for label, _, _ in phones] == ["ɑː", "t", "b", "ɪ"]
    np.testing.assert_allclose([phone.start for phone in phones], [0.06, 0.21, 0.36, 0.385])
    np.testing.assert_allclose([phone.end for phone in phones], [0.21, 0.31, 0.385, 0.51])
    assert words == (("art", 0.06, 0.31), ("bi", 0.36, 0.51))


def test_times_are_not_negative():
    phones, _ = durations_to_times(phonemes_to_pronunciation("ɑ"), [1, 1, 1])
    assert phones == (("ɑ", 0.0, 0.01),)


def test_phonemes_are_checked():
    with pytest.raises(ValueError, match=r"unknown phonemes \['7', '☃'\]"):
        phonemes_to_pronunciation("b☃7")
    with pytest.raises(ValueError, match="no phones"):
        phonemes_to_pronunciation(" ,")
    with pytest.raises(ValueError, match="Found 1 words in 'blick' and 2 in the phonemes"):
        phonemes_to_pronunciation("blˈɪk dˈæks", "blick")
    with pytest.raises(ValueError, match="Found 11 phonemes .* at most 10"):
        phonemes_to_ids("a" * 11, max_phonemes=10)


def test_ids_are_padded():
    assert phonemes_to_ids("a b", 10).tolist() == [[0, 43, 16, 44, 0]]


def test_limit_peak_scales_down_only():
    loud, quiet = np.array([0.5, -2.0], np.float32), np.array([0.5, -0.9], np.float32)
    np.testing.assert_allclose(limit_peak(loud), [0.2375, -0.95], rtol=1e-6)
    np.testing.assert_array_equal(limit_peak(quiet), quiet)
    assert limit_peak(np.zeros(0, np.float32)).shape == (0,)
