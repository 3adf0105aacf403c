"""What a release of an audio suite is made of, before it is spoken: its pairs, files and tables."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.corpus import TextItem
from ..data.story_language import TEXT_LICENCE, split_of
from .suites import SuiteError


@dataclass(frozen=True, eq=False)
class Speech:
    """A spoken document: `waveform` (float32, 16 kHz) and its `words` as (word, start, end) in seconds."""

    waveform: np.ndarray
    words: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class ReleaseItem:
    """One pair of files.

    Args:
        id (`str`): unique in its suite.
        documents (`tuple[TextItem, ...]`): what has to be spoken.
        render (callable): from the [`Speech`] of these documents to the waveforms of `files` and a record of what only
            the sound tells, such as the sample of a switch.
        files (`tuple[str, ...]`): paths inside of the release, the positive first.
        record (`Mapping`): what the files say and how they differ, for `suite.json`.
    """

    id: str
    documents: tuple[TextItem, ...]
    render: Callable[..., tuple[Sequence[np.ndarray], Mapping]]
    files: tuple[str, ...]
    record: Mapping


@dataclass(frozen=True)
class ReleasePlan:
    """A suite before it is spoken.

    Args:
        layout (`str`): the official release whose folders it has, as `read_audio_suite` names it.
        items (`list[ReleaseItem]`): all pairs.
        tables (`Mapping[str, str]`): further text files, by path.
        settings (`Mapping`): what all pairs share, such as sampling rate and signal levels.
        sources (`Sequence[Mapping]`): `what`, `name` and `licence` of material beside the voices.
    """

    layout: str
    items: list[ReleaseItem]
    tables: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping = field(default_factory=dict)
    sources: Sequence[Mapping[str, str]] = ()


STORY_TEXT = {"what": "text", "name": "tinywave.data.story_language", "licence": TEXT_LICENCE}


def plan_document(
    sentences: Sequence[str],
    voice: str,
    style: str = "base",
    phonemes: Sequence[str] | None = None,
    source: str = STORY_TEXT["name"],
    licence: str = TEXT_LICENCE,
) -> TextItem:
    """A document to be spoken; its identity and its seed follow from all that is heard."""
    key = hashlib.sha256(repr((tuple(sentences), voice, style, phonemes)).encode()).hexdigest()
    return TextItem(
        id=f"{key[:16]}-{voice}-{style}",
        split="test",
        domain="suite",
        sentences=tuple(sentences),
        voice=voice,
        style=style,
        seed=int(key[:7], 16),
        text_licence=licence,
        source=source,
        phonemes=None if phonemes is None else tuple(phonemes),
    )


def expect_unseen(sentences: Sequence[str]) -> None:
    """Raise `SuiteError` naming sentences that do not belong to the split "test"."""
    if seen := [sentence for sentence in sentences if split_of(sentence) != "test"]:
        raise SuiteError(f"Found sentences of other splits in a test suite: {seen[:5]}; draw them from split 'test'.")
