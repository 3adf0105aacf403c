"""Minimal pairs of twelve phenomena: one word or one order differs, and no pair is the wrong way round."""

from random import Random

import pytest

from tinywave.data.story_language import GIRLS, TOPICS, plural, split_of
from tinywave.eval.grammar_pairs import SUBTYPES, sample_blimp_pair


def words_of(sentence):
    return sentence.rstrip(".").lower().split()


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_a_pair_differs_in_one_word_or_in_order(subtype):
    for seed in range(30):
        pair = sample_blimp_pair(Random(seed), subtype, "test")
        right, wrong = words_of(pair.grammatical), words_of(pair.ungrammatical)
        assert split_of(pair.grammatical) == "test" and pair.subtype == subtype
        changed = [one for one, other in zip(right, wrong, strict=True) if one != other]
        assert len(changed) == 1 or (pair.field == "word_order" and sorted(right) == sorted(wrong))


def test_twelve_phenomena_of_seven_fields():
    assert len(set(SUBTYPES)) == 12
    assert len({sample_blimp_pair(Random(0), subtype, "test").field for subtype in SUBTYPES}) == 7


def test_reflexives_agree_with_whom_they_mean():
    for seed in range(30):
        pair = sample_blimp_pair(Random(seed), "anaphor_gender_agreement", "test")
        girl = words_of(pair.grammatical)[0] in {name.lower() for name in GIRLS}
        assert ("herself" in pair.grammatical) == girl == ("himself" in pair.ungrammatical)
        assert "themselves" in sample_blimp_pair(Random(seed), "anaphor_number_agreement", "test").grammatical


def test_verbs_agree_past_a_distractor():
    plurals = {plural(thing) for topic in TOPICS for thing in topic.things}
    for seed in range(30):
        pair = sample_blimp_pair(Random(seed), "distractor_agreement", "test")
        _, head, _, _, distractor, verb, *_ = words_of(pair.grammatical)
        assert (head in plurals) == (verb == "are") != (distractor in plurals)


def test_only_nobody_has_ever():
    pair = sample_blimp_pair(Random(0), "negative_polarity", "test")
    assert pair.grammatical.startswith("Nobody has ever") and pair.ungrammatical.startswith("Everybody has ever")
