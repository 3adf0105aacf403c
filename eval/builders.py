"""Build the suites of minimal pairs from the held-out split of the story language, spoken by neural voices.

| suite | positive | negative | group |
|---|---|---|---|
| lexical | an isolated word | a pseudo-word of matched phonemes, same style | word |
| syntactic | a grammatical sentence | the same sentence with one rule broken | grammatical sentence |
| story | four sentences and their ending | the same four and the ending of another topic | context |
| speaker | two sentences by one voice | the same two, the second by another voice | the two voices |

A pair is planned as documents of a corpus, which is then spoken and encoded, so that a seed fixes the whole suite.
Both halves share voice, style, seed and pauses: only what the suite is about differs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path
from random import Random

import numpy as np
from tqdm.auto import tqdm

from ..codec_tinywave import SpeechCodec
from ..data.audio_io import load_audio
from ..data.corpus import PAUSE_SECONDS, SAMPLING_RATE, TextItem, iterate_corpus, prepare_corpus
from ..data.hibari_voice import STYLES, VOICE
from ..data.kokoro_voice import TEST_VOICES
from ..data.pronunciation import text_to_phonemes
from ..data.story_language import (
    TEXT_LICENCE,
    content_words,
    sample_grammar_pair,
    sample_story,
    sample_story_pair,
)
from ..tokenization_tinywave import SpeechStreams
from .pseudo_words import PseudoWordGenerator, dictionary_keys, phonemes_to_key, phonemes_to_phones
from .suite_encoding import encode_pairs, halves_to_columns
from .suites import Pair, SuiteError, read_suite, write_suite

MINIMUM_PHONES = 3
SPEAKER_SENTENCES = 12
_SOURCE = "tinywave.data.story_language"
_STYLE_NAMES = tuple(STYLES)
_ROWS_PER_SHARD = 50
_PAIRS_PER_CHUNK = 8


@dataclass(frozen=True)
class PairPlan:
    """A pair before it is spoken; a half is one document, or several joined by a pause.

    Args:
        phenomenon, group, voice (`str`): as in the manifest.
        positive, negative (`tuple[TextItem, ...]`): documents of both halves.
        positive_text, negative_text (`str`): as in the manifest.
    """

    phenomenon: str
    group: str
    positive: tuple[TextItem, ...]
    negative: tuple[TextItem, ...]
    positive_text: str
    negative_text: str
    voice: str


def _document(name: str, domain: str, sentences: Sequence[str], voice: str, style: str, seed: int, phonemes=None):
    return TextItem(name, "test", domain, tuple(sentences), voice, style, seed, TEXT_LICENCE, _SOURCE, phonemes)


def plan_lexical(rng: Random) -> Iterator[PairPlan]:
    """Word / pseudo-word pairs; each round visits every word once, in another style than the round before."""
    phonemes_of = {word: text_to_phonemes(word) for word in content_words()}
    generator = PseudoWordGenerator(phonemes_of.values(), dictionary_keys())
    words = [word for word, phonemes in phonemes_of.items() if len(phonemes_to_phones(phonemes)) >= MINIMUM_PHONES]
    rng.shuffle(words)
    used: set[str] = set()
    for round_ in range(len(_STYLE_NAMES)):
        for index, word in enumerate(words):
            pseudo_word = generator.sample(phonemes_of[word], rng, used)
            if pseudo_word is None:
                continue
            used.add(phonemes_to_key(pseudo_word))
            style, seed = _STYLE_NAMES[(index + round_) % len(_STYLE_NAMES)], rng.randrange(2**31)
            positive, negative = (
                _document(f"{word}-{round_}-{half}", "lexical", (text,), VOICE, style, seed, (f"{phonemes}.",))
                for half, text, phonemes in (
                    ("positive", word, "".join(phonemes_to_phones(phonemes_of[word]))),
                    ("negative", pseudo_word, pseudo_word),
                )
            )
            yield PairPlan("pseudo_word", word, (positive,), (negative,), word, pseudo_word, f"{VOICE}/{style}")


def _sentence_pair(
    index: int, phenomenon: str, group: str, right: Sequence[str], wrong: Sequence[str], rng: Random
) -> PairPlan:
    """A pair of documents that one style of the hibari voice speaks with the same seed."""
    style, seed = rng.choice(_STYLE_NAMES), rng.randrange(2**31)
    positive, negative = (
        _document(f"{index:05d}-{half}", phenomenon, sentences, VOICE, style, seed)
        for half, sentences in (("positive", right), ("negative", wrong))
    )
    return PairPlan(phenomenon, group, (positive,), (negative,), " ".join(right), " ".join(wrong), f"{VOICE}/{style}")


def plan_syntactic(rng: Random) -> Iterator[PairPlan]:
    """Grammatical / ungrammatical sentences; no sentence twice."""
    seen: set[str] = set()
    while True:
        pair = sample_grammar_pair(rng, "test")
        if pair.grammatical not in seen:
            yield _sentence_pair(
                len(seen), pair.phenomenon, pair.grammatical, (pair.grammatical,), (pair.ungrammatical,), rng
            )
            seen.add(pair.grammatical)


def plan_story(rng: Random) -> Iterator[PairPlan]:
    """Right / wrong endings; the audio before the ending is the same in both halves."""
    for index in count():
        pair = sample_story_pair(rng, "test")
        context = " ".join(pair.context)
        yield _sentence_pair(index, pair.topic, context, (*pair.context, pair.right), (*pair.context, pair.wrong), rng)


def plan_speaker(rng: Random) -> Iterator[PairPlan]:
    """One voice / another voice from the second sentence on.

    Each draw gives two pairs, the second with the voices exchanged, so that a voice that is easy to predict helps as
    often as it hurts. All sentences come from one small pool, which keeps synthesis affordable.
    """
    pool: dict[str, None] = {}
    while len(pool) < SPEAKER_SENTENCES:
        pool[rng.choice(sample_story(rng, "test").sentences)] = None
    sentences = list(pool)
    voice_pairs = list(combinations(TEST_VOICES, 2))
    while True:
        rng.shuffle(voice_pairs)
        for voices in voice_pairs:
            first, second = rng.sample(range(SPEAKER_SENTENCES), 2)
            for voice, other in (voices, voices[::-1]):
                start, same, switched = (
                    _document(f"{speaker}-{index:02d}", "speaker", (sentences[index],), speaker, "base", seed=0)
                    for index, speaker in ((first, voice), (second, voice), (second, other))
                )
                text = f"{sentences[first]} {sentences[second]}"
                yield PairPlan(
                    "voice_switch", "|".join(voices), (start, same), (start, switched), text, text, f"{voice}>{other}"
                )


PLANS: dict[str, Callable[[Random], Iterator[PairPlan]]] = {
    "lexical": plan_lexical,
    "syntactic": plan_syntactic,
    "story": plan_story,
    "speaker": plan_speaker,
}


def plan_suite(name: str, n: int, seed: int) -> list[PairPlan]:
    """The first `n` pairs of a suite, fixed by the seed.

    Raises:
        SuiteError: an unknown suite, or fewer than `n` pairs exist.
    """
    if name not in PLANS:
        raise SuiteError(f"Unknown suite {name!r}; expected one of {tuple(PLANS)}.")
    # `range` comes first: `zip` then stops without drawing one more plan.
    plans = [plan for _, plan in zip(range(n), PLANS[name](Random(f"{name}-{seed}")), strict=False)]
    if len(plans) < n:
        raise SuiteError(f"Suite {name!r} has only {len(plans)} pairs for seed {seed}; asked for {n}.")
    return plans


def build_suite(
    name: str,
    n: int,
    seed: int,
    output: str | os.PathLike,
    *,
    codec: SpeechCodec,
    corpus_folder: str | os.PathLike,
    num_processes: int = 2,
) -> Path:
    """Build one suite, or return the existing file if it holds the same suite.

    An interrupted build continues: finished shards of speech are kept.

    Args:
        name (`str`): "lexical", "syntactic", "story" or "speaker".
        n (`int`): number of pairs.
        seed (`int`): fixes texts, pseudo-words, styles and synthesis noise.
        output (path): the manifest to write.
        codec ([`SpeechCodec`]): the manifest holds all streams that it has an encoder for.
        corpus_folder (path): where the speech of this suite goes; it can be deleted afterwards.
        num_processes (`int`, defaults to 2): processes that speak.

    Returns:
        `Path` of the manifest.
    """
    output, encoder = Path(output), codec.fingerprint()
    ids = [f"{name}-{seed}-{index:04d}" for index in range(n)]
    if output.is_file() and _is_same_suite(output, ids, encoder):
        return output
    plans = plan_suite(name, n, seed)
    halves = [half for plan in plans for half in (plan.positive, plan.negative)]
    documents = {document.id: document for half in halves for document in half}
    prepare_corpus(
        list(documents.values()), corpus_folder, num_processes=num_processes, rows_per_shard=_ROWS_PER_SHARD
    )
    speech = _encode_halves(name, halves, Path(corpus_folder), codec)
    pairs = [
        _plan_to_pair(id_, name, plan, positive, negative, encoder)
        for id_, plan, positive, negative in zip(ids, plans, speech[::2], speech[1::2], strict=True)
    ]
    return write_suite(pairs, output)


def _is_same_suite(path: Path, ids: list[str], encoder: str) -> bool:
    try:
        pairs = read_suite(path)
    except SuiteError:
        return False
    return [pair.id for pair in pairs] == ids and pairs[0].encoder == encoder


def _encode_halves(
    name: str, halves: list[tuple[TextItem, ...]], folder: Path, codec: SpeechCodec
) -> list[SpeechStreams]:
    """Streams of every half, in order."""
    audio = {row["id"]: row["audio"]["bytes"] for row in iterate_corpus(folder, columns=("id", "audio"))}
    streams: list[SpeechStreams] = []
    with tqdm(total=len(halves), desc=f"Encoding {name}") as bar:
        for start in range(0, len(halves), 2 * _PAIRS_PER_CHUNK):
            chunk = halves[start : start + 2 * _PAIRS_PER_CHUNK]
            waveforms = [
                _join([load_audio(audio[item.id], SAMPLING_RATE, name=f"{folder}: {item.id}") for item in half])
                for half in chunk
            ]
            pairs = list(zip(waveforms[::2], waveforms[1::2], strict=True))
            streams += [half for pair in encode_pairs(pairs, codec, share_beginnings=True) for half in pair]
            bar.update(len(chunk))
    return streams


def _join(waveforms: list[np.ndarray]) -> np.ndarray:
    """Join documents by the mean pause that stands between the sentences of a document."""
    pause = np.zeros(round(sum(PAUSE_SECONDS) / 2 * SAMPLING_RATE), dtype=np.float32)
    pieces = [piece for waveform in waveforms for piece in (waveform, pause)]
    return np.concatenate(pieces[:-1])


def _plan_to_pair(
    id_: str, name: str, plan: PairPlan, positive: SpeechStreams, negative: SpeechStreams, encoder: str
) -> Pair:
    return Pair(
        id=id_,
        suite=name,
        phenomenon=plan.phenomenon,
        group=plan.group,
        positive_text=plan.positive_text,
        negative_text=plan.negative_text,
        voice=plan.voice,
        encoder=encoder,
        **halves_to_columns(positive, negative),
    )
