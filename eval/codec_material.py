"""Evaluation material for codecs: sets of recordings that no part of the codec was trained on."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np

from ..data.audio_io import load_audio
from ..data.corpus import SAMPLING_RATE, TextItem, iterate_corpus, prepare_corpus
from ..data.kokoro_voice import TEST_VOICES
from ..data.text_items import book_sentences
from .recordings import read_recordings

NUM_VOICE_SENTENCES = 6
_WORDS_OF_VOICE_SENTENCE = range(6, 10)


@dataclass(frozen=True, eq=False)
class HeldOutUtterance:
    """A recording, what is said in it, and what else is known of it.

    Attributes:
        id: unique in its set.
        waveform: float32 mono at 16 kHz.
        text: what is said.
        voice: who speaks.
        style: name of the speaking style, "" where it is unknown.
        phones: dictionaries with `phone`, `start` and `end` in seconds, none where they are unknown.
    """

    id: str
    waveform: np.ndarray
    text: str
    voice: str = ""
    style: str = ""
    phones: Sequence[dict] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / SAMPLING_RATE


def read_corpus_utterances(
    folder: str | os.PathLike, split: str, max_utterances: int | None = None
) -> list[HeldOutUtterance]:
    """Read the documents of one split of a speech corpus, at most the first `max_utterances`.

    Raises `CorpusError` for a damaged corpus, `ValueError` for one without the split.
    """
    utterances = []
    for row in iterate_corpus(folder, ("id", "split", "text", "voice", "style", "phones", "audio")):
        if row["split"] == split:
            waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=f"{folder}: {row['id']}")
            utterances.append(
                HeldOutUtterance(row["id"], waveform, row["text"], row["voice"], row["style"], row["phones"])
            )
            if len(utterances) == max_utterances:
                break
    if not utterances:
        raise ValueError(f"found no document of the split {split!r} in {folder}; prepare the corpus with that split")
    return utterances


def read_clip_utterances(folder: str | os.PathLike) -> list[HeldOutUtterance]:
    """Read a folder of audio files with `transcripts.json`, as [`read_recordings`] does."""
    return [HeldOutUtterance(item.id, item.waveform, item.text) for item in read_recordings(folder)]


def describe_set(utterances: Sequence[HeldOutUtterance]) -> dict:
    """Return {"n": utterances, "seconds": of audio, "voices": number of them, or None where they are unknown}."""
    voices = {utterance.voice for utterance in utterances} - {""}
    seconds = sum(utterance.seconds for utterance in utterances)
    return {"n": len(utterances), "seconds": round(seconds, 1), "voices": len(voices) or None}


def voice_sentences(num_sentences: int = NUM_VOICE_SENTENCES, seed: int = 0) -> list[str]:
    """Return book sentences of the test split, of six to nine words, chosen at random."""
    sentences = [text for text in book_sentences("test") if len(text.split()) in _WORDS_OF_VOICE_SENTENCE]
    return Random(seed).sample(sentences, num_sentences)


def speak_in_every_voice(
    folder: str | os.PathLike,
    sentences: Sequence[str],
    voices: Sequence[str] = TEST_VOICES,
    num_processes: int = 1,
) -> list[HeldOutUtterance]:
    """Speak every sentence in every voice into a corpus in `folder`, and read it; what is there already is kept.

    Args:
        folder: made if missing.
        sentences: each becomes a document of its own, in each voice.
        voices (default the voices that nothing is trained on): of Kokoro.
        num_processes (`int`, default 1): of `prepare_corpus`.
    """
    items = [
        TextItem(
            id=f"test-{number:02d}-{voice}",
            split="test",
            domain="book",
            sentences=(sentence,),
            voice=voice,
            style="base",
            seed=number,
            text_licence="public domain",
            source="Jane Austen, novels (r-cran-janeaustenr)",
        )
        for number, sentence in enumerate(sentences)
        for voice in voices
    ]
    prepare_corpus(items, Path(folder), num_processes=num_processes, rows_per_shard=len(voices))
    return read_corpus_utterances(folder, "test")


def pairs_of_voices(utterances: Sequence[HeldOutUtterance]) -> Iterator[tuple[int, int]]:
    """Yield the positions of all pairs of utterances of the same text."""
    for first, second in combinations(range(len(utterances)), 2):
        if utterances[first].text == utterances[second].text:
            yield first, second
