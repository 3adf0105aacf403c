"""Recordings that a codec is measured on, from a real corpus and the shipped ones."""

import numpy as np
import pytest

from tinywave.cli.shipped import AUDIO
from tinywave.data.corpus import CorpusError
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.data.story_language import split_of
from tinywave.eval.codec_material import (
    HeldOutUtterance,
    describe_set,
    pairs_of_voices,
    read_clip_utterances,
    read_corpus_utterances,
    speak_in_every_voice,
    voice_sentences,
)


def test_shipped_recordings_have_what_the_measures_need():
    documents = read_corpus_utterances(AUDIO / "kokoro", "test", max_utterances=3)
    assert len(documents) == 3 and {item.voice for item in documents} <= set(TEST_VOICES)
    for item in documents:
        assert item.style == "base" and item.phones[-1]["end"] <= item.seconds + 0.2 and item.text
    clips = read_clip_utterances(AUDIO / "librivox")
    assert len(clips) == 5 and not any(item.phones for item in clips)
    assert describe_set(clips) == {"n": 5, "seconds": pytest.approx(24.7, abs=0.1), "voices": None}
    with pytest.raises(ValueError, match="no document of the split 'validation'"):
        read_corpus_utterances(AUDIO / "kokoro", "validation")
    with pytest.raises(CorpusError):
        read_corpus_utterances(AUDIO / "librivox", "test")


def test_sentences_for_voices_are_short_and_of_the_test_split():
    sentences = voice_sentences()
    assert len(set(sentences)) == 6 and sentences == voice_sentences()
    assert all(6 <= len(text.split()) <= 9 and split_of(text) == "test" for text in sentences)
    assert sentences != voice_sentences(seed=1)


def test_the_same_sentences_are_spoken_by_every_voice_once(tmp_path):
    utterances = speak_in_every_voice(tmp_path, ["A dog."], ("af_bella", "bm_george"))
    assert [item.voice for item in utterances] == ["af_bella", "bm_george"]
    written = (tmp_path / "shard-00000.parquet").stat().st_mtime_ns
    assert len(speak_in_every_voice(tmp_path, ["A dog."], ("af_bella", "bm_george"))) == 2
    assert (tmp_path / "shard-00000.parquet").stat().st_mtime_ns == written


def test_pairs_say_the_same():
    texts = ["a", "b", "a", "b", "a"]
    utterances = [HeldOutUtterance(str(index), np.zeros(1), text) for index, text in enumerate(texts)]
    assert list(pairs_of_voices(utterances)) == [(0, 2), (0, 4), (1, 3), (2, 4)]
    seconds = HeldOutUtterance("x", np.zeros(8000), "").seconds
    assert seconds == 0.5
