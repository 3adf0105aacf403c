"""The story grammar: held-out text is really held out, and pairs differ where they should."""

from random import Random

import pytest

from tinywave.data.story_language import (
    PHENOMENA,
    SPLITS,
    content_words,
    plural,
    sample_grammar_pair,
    sample_story,
    sample_story_pair,
    sample_word_list,
    split_of,
)


@pytest.mark.parametrize("split", SPLITS)
def test_every_sentence_of_a_document_is_of_its_split(split):
    rng = Random(1)
    sentences = [sentence for _ in range(40) for sentence in sample_story(rng, split).sentences]
    sentences += [sample_word_list(rng, split) for _ in range(20)]
    sentences += [sample_grammar_pair(rng, split).grammatical for _ in range(40)]
    assert {split_of(sentence) for sentence in sentences} == {split}


def test_the_same_seed_gives_the_same_story():
    assert sample_story(Random(7), "train") == sample_story(Random(7), "train")
    assert sample_story(Random(7), "train") != sample_story(Random(8), "train")


def test_a_wrong_ending_is_the_right_one_about_another_topic():
    rng = Random(3)
    for _ in range(50):
        pair = sample_story_pair(rng, "test")
        assert pair.topic != pair.wrong_topic
        right, wrong = pair.right.split(), pair.wrong.split()
        assert len(right) == len(wrong)
        differing = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert 0 < len(differing) <= 3


def test_every_phenomenon_occurs_and_changes_the_sentence():
    rng = Random(5)
    pairs = [sample_grammar_pair(rng, "test") for _ in range(300)]
    assert {pair.phenomenon for pair in pairs} == set(PHENOMENA)
    assert all(pair.grammatical != pair.ungrammatical for pair in pairs)


def test_content_words_are_single_distinct_words():
    words = content_words()
    assert len(words) == len(set(words)) >= 250
    assert all(word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("fox", "foxes"), ("daisy", "daisies"), ("monkey", "monkeys"), ("tomato", "tomatoes"), ("peach", "peaches")],
)
def test_plural(noun, expected):
    assert plural(noun) == expected


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        sample_word_list(Random(0), "dev")
