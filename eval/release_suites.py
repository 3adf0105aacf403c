"""Plans of the four suites in the layouts of their official releases.

| suite | folders | layout |
|---|---|---|
| swuggy | `lexical/dev/*.wav`, `gold.csv` | sLM21 of the ZeroSpeech challenge 2021 (arXiv 2011.11588) |
| sblimp | `syntactic/dev/*.wav`, `gold.csv` | the same |
| storycloze | `sSC/`, `tSC/`: `<i>_correct.wav`, `<i>_incorrect.wav`, `.txt` | SpokenStoryCloze (arXiv 2305.13009) |
| salmon | `<part>/sample_<i>_<j>.wav`, `j` 0 the positive | SALMon (arXiv 2409.07437) |
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from random import Random

import numpy as np

from ..data.corpus import PAUSE_SECONDS, SAMPLING_RATE
from ..data.hibari_voice import VOICE
from ..data.kokoro_voice import TEST_VOICES
from ..data.story_language import TOPICS, sample_story, sample_story_pair
from . import salmon_parts
from .acoustic_scenes import SPEECH_LEVEL_DB, limit_pair, to_speech_level
from .background_sounds import LICENCE as BACKGROUND_LICENCE
from .general_words import BANDS, REFERENCE_TEXT, sample_word_pairs
from .grammar_pairs import SUBTYPES, BlimpPair, sample_blimp_pair
from .pseudo_words import phonemes_to_phones
from .release_plan import STORY_TEXT, ReleaseItem, ReleasePlan, Speech, expect_unseen, plan_document

VOICES_PER_PAIR = 4
"""Voices that speak each pair of swuggy and sblimp: hibari and three of the ten test voices in turn."""

_LEXICAL_COLUMNS = ("id", "filename", "voice", "frequency", "word", "phones", "length", "correct")
_SYNTACTIC_COLUMNS = ("id", "filename", "voice", "type", "subtype", "transcription", "correct")
_LEVEL = {"speech_level_db": SPEECH_LEVEL_DB}


def _voices_of(index: int, voices: Sequence[str] | None) -> Sequence[str]:
    if voices is not None:
        return voices
    turn = [TEST_VOICES[(index * (VOICES_PER_PAIR - 1) + offset) % len(TEST_VOICES)] for offset in range(3)]
    return (VOICE, *turn)


def _code(*parts: object) -> str:
    """A name of eleven letters that tells nothing about what it names, like those of sLM21."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(letters[byte % len(letters)] for byte in digest[:11])


def _table(columns: Sequence[str], rows: Iterable[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _both_levelled(positive: Speech, negative: Speech):
    return limit_pair(to_speech_level(positive.waveform), to_speech_level(negative.waveform)), {}


def plan_swuggy(num_pairs: int, seed: int, voices: Sequence[str] | None) -> ReleasePlan:
    """Words of five frequency bands and their pseudo-words, spoken from phonemes."""
    items, rows = [], []
    words = sample_word_pairs(Random(f"swuggy-{seed}"))
    for index, pair in zip(range(num_pairs), words, strict=False):
        for voice in _voices_of(index, voices):
            names = [_code("swuggy", seed, index, voice, half) for half in range(2)]
            texts = (pair.word, pair.pseudo_word)
            phonemes = (pair.phonemes, pair.pseudo_word)
            documents = [
                plan_document((text,), voice, phonemes=(f"{spoken}.",), source="hibari-tts lexicon")
                for text, spoken in zip(texts, phonemes, strict=True)
            ]
            record = {"voice": voice, "word": pair.word, "pseudo_word": pair.pseudo_word, "band": pair.band}
            files = tuple(f"lexical/dev/{name}.wav" for name in names)
            items.append(ReleaseItem(f"{index}-{voice}", tuple(documents), _both_levelled, files, record))
            for half, (name, text, spoken) in enumerate(zip(names, texts, phonemes, strict=True)):
                phones = phonemes_to_phones(spoken)
                rows.append(
                    {
                        "id": index,
                        "filename": name,
                        "voice": voice,
                        "frequency": pair.frequency,
                        "word": text,
                        "phones": " ".join(phones),
                        "length": len(phones),
                        "correct": 1 - half,
                    }
                )
    settings = _LEVEL | {
        "frequency": f"occurrences in: {REFERENCE_TEXT}",
        "bands": {band: [low, None if end == float("inf") else end] for band, (low, end) in BANDS.items()},
        "pseudo_words": "Wuggy constituents, closest phone trigram log-probability (CMU dictionary)",
    }
    sources = (
        {"what": "word list", "name": "US lexicon of hibari-tts (misaki)", "licence": "Apache-2.0"},
        {"what": "word list", "name": "CMU pronouncing dictionary", "licence": "BSD-2-Clause"},
        {"what": "frequencies", "name": "Jane Austen, novels (r-cran-janeaustenr)", "licence": "public domain"},
    )
    tables = {"lexical/dev/gold.csv": _table(_LEXICAL_COLUMNS, rows)}
    return ReleasePlan("zerospeech_lexical", items, tables, settings, sources)


def _blimp_pairs(num_pairs: int, rng: Random) -> list[BlimpPair]:
    """Pairs of all phenomena in turn, no sentence twice."""
    pairs, seen = [], set()
    while len(pairs) < num_pairs:
        pair = sample_blimp_pair(rng, SUBTYPES[len(pairs) % len(SUBTYPES)], "test")
        if pair.grammatical not in seen:
            seen.add(pair.grammatical)
            pairs.append(pair)
    expect_unseen([pair.grammatical for pair in pairs])
    return pairs


def plan_sblimp(num_pairs: int, seed: int, voices: Sequence[str] | None) -> ReleasePlan:
    """Grammatical and ungrammatical sentences of twelve phenomena."""
    items, rows = [], []
    for index, pair in enumerate(_blimp_pairs(num_pairs, Random(f"sblimp-{seed}"))):
        sentences = (pair.grammatical, pair.ungrammatical)
        for voice in _voices_of(index, voices):
            names = [_code("sblimp", seed, index, voice, half) for half in range(2)]
            documents = tuple(plan_document((sentence,), voice) for sentence in sentences)
            record = {"voice": voice, "subtype": pair.subtype, "positive": sentences[0], "negative": sentences[1]}
            files = tuple(f"syntactic/dev/{name}.wav" for name in names)
            items.append(ReleaseItem(f"{index}-{voice}", documents, _both_levelled, files, record))
            for half, (name, sentence) in enumerate(zip(names, sentences, strict=True)):
                rows.append(
                    {
                        "id": index,
                        "filename": name,
                        "voice": voice,
                        "type": pair.field,
                        "subtype": pair.subtype,
                        "transcription": sentence,
                        "correct": 1 - half,
                    }
                )
    tables = {"syntactic/dev/gold.csv": _table(_SYNTACTIC_COLUMNS, rows)}
    return ReleasePlan("zerospeech_syntactic", items, tables, _LEVEL, (STORY_TEXT,))


def _things_in(text: str, topic: str) -> set[str]:
    things = next(found.things for found in TOPICS if found.name == topic)
    return {
        thing for thing in things if thing in text.rstrip(".").split() or f"{thing}." in text or f"{thing}," in text
    }


def _same_topic_story(rng: Random) -> tuple[tuple[str, ...], str, str]:
    """A context, its ending, and the ending of another story of the topic that tells of none of its things."""
    while True:
        story = sample_story(rng, "test")
        context, right = story.sentences[:-1], story.sentences[-1]
        known = _things_in(" ".join(context), story.topic)
        if not _things_in(right, story.topic) <= known:
            continue
        for _ in range(500):
            other = sample_story(rng, "test")
            wrong = other.sentences[-1]
            if other.topic == story.topic and (told := _things_in(wrong, story.topic)) and not told & known:
                return context, right, wrong


def _other_topic_story(rng: Random) -> tuple[tuple[str, ...], str, str]:
    pair = sample_story_pair(rng, "test")
    return pair.context, pair.right, pair.wrong


def _tell(context: Speech, right: Speech, wrong: Speech):
    """The context, a pause and one ending each; the context is the same in both, sample for sample."""
    start, *endings = (to_speech_level(speech.waveform) for speech in (context, right, wrong))
    pause = np.zeros(round(sum(PAUSE_SECONDS) / 2 * SAMPLING_RATE))
    stories = [np.concatenate([start, pause, ending]) for ending in endings]
    return limit_pair(*stories), {"switch_sample": len(start) + len(pause)}


_STORIES: dict[str, Callable] = {"sSC": _same_topic_story, "tSC": _other_topic_story}


def plan_storycloze(num_pairs: int, seed: int, voices: Sequence[str] | None) -> ReleasePlan:
    """Stories of four sentences with two endings: of the same topic (sSC) and of another one (tSC); one voice."""
    items, tables, speakers = [], {}, voices or (VOICE,)
    for part, sample in _STORIES.items():
        rng, seen = Random(f"{part}-{seed}"), set()
        while len(seen) < num_pairs:
            context, right, wrong = sample(rng)
            if context in seen:
                continue
            index, voice = len(seen), speakers[len(seen) % len(speakers)]
            seen.add(context)
            expect_unseen((*context, right, wrong))
            documents = tuple(plan_document(sentences, voice) for sentences in (context, (right,), (wrong,)))
            files = (f"{part}/{index}_correct.wav", f"{part}/{index}_incorrect.wav")
            record = {"voice": voice, "context": " ".join(context), "positive": right, "negative": wrong}
            items.append(ReleaseItem(f"{part}-{index}", documents, _tell, files, record))
            for file, ending in zip(files, (right, wrong), strict=True):
                tables[file.replace(".wav", ".txt")] = " ".join((*context, ending)) + "\n"
    settings = _LEVEL | {"pause_seconds_before_ending": round(sum(PAUSE_SECONDS) / 2, 3)}
    return ReleasePlan("storycloze", items, tables, settings, (STORY_TEXT,))


def plan_salmon(num_pairs: int, seed: int, voices: Sequence[str] | None) -> ReleasePlan:
    """The eight parts of SALMon; their voices are part of what is tested and cannot be chosen."""
    items = []
    for part in salmon_parts.PARTS:
        for index, pair in enumerate(salmon_parts.plan_part(part, num_pairs, seed)):
            files = tuple(f"{part}/sample_{index}_{half}.wav" for half in range(2))
            record = {"part": part, "text": pair.text, **pair.differs}
            documents = (pair.positive, pair.negative)
            items.append(ReleaseItem(f"{part}-{index}", documents, pair.render, files, record))
    sources = (
        STORY_TEXT,
        {"what": "text", "name": "tinywave.eval.acoustic_texts", "licence": "Apache-2.0"},
        {"what": "backgrounds", "name": "tinywave.eval.background_sounds", "licence": BACKGROUND_LICENCE},
        {"what": "rooms", "name": "simulated by pyroomacoustics", "licence": "MIT"},
    )
    return ReleasePlan("salmon", items, {}, salmon_parts.SETTINGS, sources)


SUITES: dict[str, Callable[[int, int, Sequence[str] | None], ReleasePlan]] = {
    "swuggy": plan_swuggy,
    "sblimp": plan_sblimp,
    "storycloze": plan_storycloze,
    "salmon": plan_salmon,
}
"""Suite -> function from a number of pairs, a seed and voices to its plan."""
