"""The eight parts of SALMon (arXiv 2409.07437), planned from a seed and rendered from speech.

| part | positive | negative |
|---|---|---|
| speaker_consistency | one voice | another voice from the middle on |
| gender_consistency | one voice | a voice of the other gender from the middle on |
| sentiment_consistency | one style of one voice | another style from the middle on |
| bg_domain_consistency | one background | another recording of the same domain from the middle on ("in-domain") |
| bg_all_consistency | one background | a background of another domain from the middle on ("random") |
| rir_consistency | one room | another room from the middle on |
| bg_alignment | words and background of one domain | a background of another domain |
| sentiment_alignment | words and style of one mood | a style of another mood |

The middle is the boundary after the word `(n - 1) // 2`, counted from 0, as in the authors' code. Both halves are the
same up to it, sample for sample. Pairs come in twos with the roles exchanged, so that what is easy to predict in
itself - a voice, a room, a steady background - helps as often as it hurts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from ..data.corpus import SAMPLING_RATE, TextItem
from ..data.hibari_voice import VOICE
from ..data.kokoro_voice import TEST_VOICES
from ..data.story_language import sample_story
from .acoustic_scenes import (
    CROSSFADE_SECONDS,
    ROOMS,
    SPEECH_LEVEL_DB,
    Room,
    impulse_response,
    limit_pair,
    match_power,
    measured_t60,
    reverberate,
    scale_to_snr,
    switch,
    to_speech_level,
)
from .acoustic_texts import MOOD_TEMPLATES, SCENE_TEMPLATES, sample_telling_sentence
from .background_sounds import DOMAINS, make_background
from .release_plan import Speech, expect_unseen, plan_document
from .suites import SuiteError

SENTIMENTS = ("happy", "sad", "angry")
SNR_DB = (0.0, 10.0)
"""Lowest and highest ratio of active speech to background, drawn evenly for each pair."""

MINIMUM_WORDS = 8
SETTINGS = {
    "speech_level_db": SPEECH_LEVEL_DB,
    "crossfade_seconds": CROSSFADE_SECONDS,
    "snr_db_range": list(SNR_DB),
    "rooms": [{"name": room.name, "size_m": list(room.size), "t60_s": room.t60} for room in ROOMS],
    "backgrounds": list(DOMAINS),
    "sentiments": list(SENTIMENTS),
}


@dataclass(frozen=True)
class AcousticPair:
    """One pair before it is spoken.

    Args:
        part (`str`): a key of `PARTS`.
        text (`str`): the sentence of both halves.
        positive, negative (`TextItem`): who says it; the same document where only the scene differs.
        render (callable): from the speech of both to the two waveforms and a record of what was measured.
        differs (`Mapping`): JSON-ready: what the halves differ in.
    """

    part: str
    text: str
    positive: TextItem
    negative: TextItem
    render: Callable[[Speech, Speech], tuple[tuple[np.ndarray, np.ndarray], Mapping]]
    differs: Mapping


def plan_part(part: str, num_pairs: int, seed: int) -> list[AcousticPair]:
    """The first pairs of a part, fixed by the seed.

    Raises:
        SuiteError: an unknown part.
        ValueError: more pairs than there are sentences.
    """
    if part not in PARTS:
        raise SuiteError(f"Unknown part {part!r} of SALMon; expected one of {tuple(PARTS)}.")
    twins = PARTS[part](Random(f"{part}-{seed}"))
    pairs: list[AcousticPair] = []
    while len(pairs) < num_pairs:
        pairs += next(twins)
    expect_unseen([pair.text for pair in pairs])
    return pairs[:num_pairs]


def middle_boundary(words: Sequence[tuple[str, float, float]]) -> int:
    """Sample between the two words in the middle; `ValueError` for fewer than two words."""
    if len(words) < 2:
        raise ValueError(f"Found {len(words)} words; a switch in the middle needs at least two.")
    last = (len(words) - 1) // 2
    return round((words[last][2] + words[last + 1][1]) / 2 * SAMPLING_RATE)


def _story_sentences(rng: Random) -> Iterator[str]:
    """Held-out sentences of at least eight words, no one twice."""
    seen: set[str] = set()
    while True:
        sentence = rng.choice(sample_story(rng, "test").sentences)
        if len(sentence.split()) >= MINIMUM_WORDS and sentence not in seen:
            seen.add(sentence)
            yield sentence


def _switch_speech(first: Speech, second: Speech):
    leave, enter = middle_boundary(first.words), middle_boundary(second.words)
    positive = to_speech_level(first.waveform)
    negative = switch(positive, to_speech_level(second.waveform), leave, enter)
    return limit_pair(positive, negative), {"switch_sample": leave}


def _keep_speech(first: Speech, second: Speech):
    return limit_pair(to_speech_level(first.waveform), to_speech_level(second.waveform)), {}


@dataclass(frozen=True)
class _Backgrounds:
    """Puts speech into two recorded backgrounds, given as (domain, seed)."""

    first: tuple[str, int]
    second: tuple[str, int]
    snr_db: float
    switches: bool

    def __call__(self, speech: Speech, _: Speech):
        clean = to_speech_level(speech.waveform)
        first, second = (
            scale_to_snr(make_background(domain, seed, len(clean)), clean, self.snr_db)
            for domain, seed in (self.first, self.second)
        )
        if not self.switches:
            return limit_pair(clean + first, clean + second), {}
        middle = middle_boundary(speech.words)
        changed = switch(first, match_power(second, first, middle), middle)
        return limit_pair(clean + first, clean + changed), {"switch_sample": middle}

    def to_record(self) -> dict:
        names = ("positive_background", "negative_background")
        sounds = {
            name: {"domain": domain, "recording": seed}
            for name, (domain, seed) in zip(names, (self.first, self.second), strict=True)
        }
        return {"snr_db": self.snr_db, **sounds}


@dataclass(frozen=True)
class _Rooms:
    """Puts speech into two rooms, given with the seeds of the places in them."""

    first: tuple[Room, int]
    second: tuple[Room, int]

    def __call__(self, speech: Speech, _: Speech):
        clean, middle = to_speech_level(speech.waveform), middle_boundary(speech.words)
        responses = [impulse_response(room, seed) for room, seed in (self.first, self.second)]
        first, second = (reverberate(clean, response) for response in responses)
        measured = {"switch_sample": middle, "measured_t60_s": [round(measured_t60(h), 3) for h in responses]}
        return limit_pair(first, switch(first, second, middle)), measured

    def to_record(self) -> dict:
        names = ("positive_room", "negative_room")
        return {
            name: {"name": room.name, "t60_s": room.t60, "places": seed}
            for name, (room, seed) in zip(names, (self.first, self.second), strict=True)
        }


def _voice_twins(part: str, rng: Random, pairs_of_voices: list[tuple[str, str]]):
    sentences = _story_sentences(rng)
    while True:
        rng.shuffle(pairs_of_voices)
        for voices in pairs_of_voices:
            text = next(sentences)
            yield [
                AcousticPair(
                    part,
                    text,
                    plan_document((text,), one),
                    plan_document((text,), other),
                    _switch_speech,
                    {"positive_voice": one, "negative_voice_after_switch": other},
                )
                for one, other in (voices, voices[::-1])
            ]


def _plan_speaker(rng: Random):
    pairs = [(one, other) for index, one in enumerate(TEST_VOICES) for other in TEST_VOICES[index + 1 :]]
    return _voice_twins("speaker_consistency", rng, pairs)


def gender_of(voice: str) -> str:
    """ "female" or "male": the second letter of a Kokoro voice."""
    return {"f": "female", "m": "male"}[voice[1]]


def _plan_gender(rng: Random):
    women, men = ([voice for voice in TEST_VOICES if gender_of(voice) == gender] for gender in ("female", "male"))
    return _voice_twins("gender_consistency", rng, [(woman, man) for woman in women for man in men])


def _style_pair(part: str, text: str, one: str, other: str, render, source: str) -> AcousticPair:
    documents = [plan_document((text,), VOICE, style, source=source) for style in (one, other)]
    return AcousticPair(part, text, *documents, render, {"positive_style": one, "negative_style": other})


def _plan_sentiment(rng: Random):
    sentences = _story_sentences(rng)
    while True:
        styles, text = rng.sample(SENTIMENTS, 2), next(sentences)
        yield [
            _style_pair("sentiment_consistency", text, one, other, _switch_speech, "tinywave.data.story_language")
            for one, other in (styles, styles[::-1])
        ]


def _plan_sentiment_alignment(rng: Random):
    used: set[str] = set()
    while True:
        moods = rng.sample(SENTIMENTS, 2)
        yield [
            _style_pair(
                "sentiment_alignment",
                sample_telling_sentence(MOOD_TEMPLATES[one], rng, used),
                one,
                other,
                _keep_speech,
                "tinywave.eval.acoustic_texts",
            )
            for one, other in (moods, moods[::-1])
        ]


def _scene_pair(part: str, text: str, scene: _Backgrounds | _Rooms) -> AcousticPair:
    document = plan_document((text,), VOICE)
    return AcousticPair(part, text, document, document, scene, scene.to_record())


def _background_twins(part: str, rng: Random, num_domains: int):
    sentences = _story_sentences(rng)
    while True:
        domains = rng.sample(list(DOMAINS), num_domains)
        recordings = [(domain, rng.randrange(2**31)) for domain in (domains * 2)[:2]]
        text, snr_db = next(sentences), round(rng.uniform(*SNR_DB), 1)
        yield [
            _scene_pair(part, text, _Backgrounds(one, other, snr_db, switches=True))
            for one, other in (recordings, recordings[::-1])
        ]


def _plan_rooms(rng: Random):
    sentences = _story_sentences(rng)
    while True:
        rooms = [(room, rng.randrange(2**31)) for room in rng.sample(ROOMS, 2)]
        text = next(sentences)
        yield [_scene_pair("rir_consistency", text, _Rooms(one, other)) for one, other in (rooms, rooms[::-1])]


def _plan_background_alignment(rng: Random):
    used: set[str] = set()
    while True:
        recordings = [(domain, rng.randrange(2**31)) for domain in rng.sample(list(DOMAINS), 2)]
        snr_db = round(rng.uniform(*SNR_DB), 1)
        yield [
            _scene_pair(
                "bg_alignment",
                sample_telling_sentence(SCENE_TEMPLATES[one[0]], rng, used),
                _Backgrounds(one, other, snr_db, switches=False),
            )
            for one, other in (recordings, recordings[::-1])
        ]


PARTS: dict[str, Callable[[Random], Iterator[list[AcousticPair]]]] = {
    "bg_alignment": _plan_background_alignment,
    "bg_all_consistency": lambda rng: _background_twins("bg_all_consistency", rng, 2),
    "bg_domain_consistency": lambda rng: _background_twins("bg_domain_consistency", rng, 1),
    "gender_consistency": _plan_gender,
    "rir_consistency": _plan_rooms,
    "sentiment_alignment": _plan_sentiment_alignment,
    "sentiment_consistency": _plan_sentiment,
    "speaker_consistency": _plan_speaker,
}
"""Part -> function from a generator to pairs in twos, in the order of the authors' code."""
