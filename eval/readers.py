"""Reads released suites of recorded pairs, in the folders in which they are published, without decoding any audio."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ..data.audio_io import AudioError, audio_seconds
from ..data.storage import path_inside
from .release_layouts import CONTEXT, LAYOUTS, NEGATIVE, POSITIVE, Listing, Problem, Recording, natural_key
from .salmon_tables import StoredRecording
from .suites import HALVES, SuiteError

__all__ = ["LAYOUTS", "AudioPair", "AudioSuite", "Problem", "read_audio_suite"]

PROBLEMS_SHOWN = 20
_FALLBACK_LAYOUT = "sorted_names"


@dataclass(frozen=True)
class AudioPair:
    """Two recordings of which a model of speech should prefer the first.

    Args:
        id (`str`): unique within the suite.
        suite, part (`str`): its name and the part of it: of SALMon the folder, of sWUGGY the frequency band, of sBLIMP
            the type of rule; the name of the suite where there are no parts.
        group (`str`): what resampling keeps together, such as the voices of a word.
        voice (`str`): who speaks; empty where the release does not tell.
        positive, negative (`Path` or [`StoredRecording`]): the files, or where they are in a table.
        positive_text, negative_text (`str`): what is spoken; empty where the release does not tell.
        context, context_text (*optional*): what both halves, then endings, begin with, where it is a file of its own.
    """

    id: str
    suite: str
    part: str
    group: str
    voice: str
    positive: Path | StoredRecording
    negative: Path | StoredRecording
    positive_text: str
    negative_text: str
    context: Path | StoredRecording | None = None
    context_text: str = ""


@dataclass(frozen=True)
class AudioSuite:
    """A suite of recorded pairs.

    Args:
        name (`str`): "salmon", "swuggy", "sblimp", "sstorycloze", "tstorycloze" where known, else the folder's.
        layout (`str`): one of `LAYOUTS`.
        pairs (`tuple[AudioPair, ...]`): in natural order of part and id, whatever the order of files on disk.
        problems (`tuple[Problem, ...]`): everything that is left out of `pairs`, by name.
    """

    name: str
    layout: str
    pairs: tuple[AudioPair, ...]
    problems: tuple[Problem, ...]


def read_audio_suite(
    path: str | os.PathLike,
    layout: str | None = None,
    *,
    strict: bool = False,
    min_seconds: float = 0.1,
    allow_outside: bool = False,
) -> AudioSuite:
    """Lists the pairs of a released suite; durations come from the headers of the files.

    A pair is left out, and what is wrong with it reported by name, where a half is missing or there twice, and where a
    file is not there, cannot be read or is too short. Files and rows that belong to no pair are reported as well.

    Args:
        path: folder of the release, of a part or split of it, or a manifest.
        layout (`str`, *optional*): one of `LAYOUTS`. Default: what the folder looks like.
        strict (`bool`, defaults to False): refuse a suite with problems.
        min_seconds (`float`, defaults to 0.1): shortest recording that is accepted.
        allow_outside (`bool`, defaults to False): accept recordings that a manifest, a list or a symbolic link names
            outside the folder of the suite. A file from elsewhere should not decide which other files are read.

    Raises:
        SuiteError: no or several layouts fit, a table lacks columns, no pair can be used, or problems where `strict`.
    """
    path = Path(path)
    if not path.exists():
        raise SuiteError(f"No suite at {path}; expected a folder of recordings or a manifest.")
    # "." has no name of its own. Links are kept: what they are called may tell the suite.
    root = Path(os.path.abspath(path))
    layout = _find_layout(root) if layout is None else layout
    if layout not in LAYOUTS:
        raise SuiteError(f"Unknown layout {layout!r}; expected one of {tuple(LAYOUTS)}.")
    listing = LAYOUTS[layout].list_recordings(root)
    folder = root if root.is_dir() else root.parent
    if not allow_outside:
        _refuse_outside(listing, folder)
    pairs, problems = _pair_up(listing, folder, min_seconds)
    problems = sorted({*listing.problems, *problems}, key=lambda problem: (natural_key(problem.name), problem.reason))
    if problems and (strict or not pairs):
        refuse_problems(path, problems)
    if not pairs:
        raise SuiteError(f"{path} holds no pairs of the layout {layout!r}; expected {LAYOUTS[layout].expects}.")
    pairs.sort(key=lambda pair: (natural_key(pair.part), natural_key(pair.id)))
    return AudioSuite(listing.suite, layout, tuple(pairs), tuple(problems))


def _refuse_outside(listing: Listing, folder: Path) -> None:
    for recording in listing.recordings:
        file = recording.path.table if isinstance(recording.path, StoredRecording) else recording.path
        try:
            path_inside(folder, file)
        except ValueError as error:
            raise SuiteError(
                f"the pair {recording.id!r} names a recording outside the suite: {error}; move the recordings into "
                "the folder, or allow it with --allow-outside"
            ) from error


def refuse_problems(path: str | os.PathLike, problems: Sequence[Problem]) -> NoReturn:
    """Raises `SuiteError` with the first problems of a suite."""
    lines = [f"{problem.name}: {problem.reason}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
    raise SuiteError(f"{path} has {len(problems)} problems; mend them:\n" + "\n".join(lines))


def _find_layout(path: Path) -> str:
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(path)]
    released = [name for name in fitting if name != _FALLBACK_LAYOUT]
    if len(released) > 1:
        raise SuiteError(f"{path} fits the layouts {released}; name a folder inside of it, or give the layout.")
    if not fitting:
        expected = "\n".join(f"{name}: {layout.expects}" for name, layout in LAYOUTS.items())
        raise SuiteError(f"{path} has no known layout; looked for\n{expected}")
    return (released or fitting)[0]


def _pair_up(listing: Listing, root: Path, min_seconds: float) -> tuple[list[AudioPair], list[Problem]]:
    recordings_of: dict[str, list[Recording]] = {}
    for recording in listing.recordings:
        recordings_of.setdefault(recording.id, []).append(recording)
    pairs, problems = [], []
    expected = (CONTEXT, *HALVES) if listing.has_contexts else HALVES
    defects: dict[Path | StoredRecording, str | None] = {}
    for id_, recordings in recordings_of.items():
        found = _defects_of_pair(id_, recordings, root, expected)
        for path in sorted({recording.path for recording in recordings}):
            if path not in defects:
                defects[path] = _defect_of_file(path, min_seconds)
            if defects[path]:
                found.append(Problem(_name_of(path, root), f"{defects[path]} (pair {id_})"))
        problems += found
        if not found:
            halves = {recording.half: recording for recording in recordings}
            pairs.append(_to_pair(listing.suite, halves[POSITIVE], halves[NEGATIVE], halves.get(CONTEXT)))
    return pairs, problems


def _to_pair(suite: str, positive: Recording, negative: Recording, context: Recording | None) -> AudioPair:
    return AudioPair(
        id=positive.id,
        suite=suite,
        part=positive.part,
        group=positive.group,
        voice=positive.voice,
        positive=positive.path,
        negative=negative.path,
        positive_text=positive.text,
        negative_text=negative.text,
        context=None if context is None else context.path,
        context_text="" if context is None else context.text,
    )


def _defects_of_pair(id_: str, recordings: Sequence[Recording], root: Path, expected: Sequence[str]) -> list[Problem]:
    names = {
        half: sorted(_name_of(recording.path, root) for recording in recordings if recording.half == half)
        for half in expected
    }
    if any(len(files) > 1 for files in names.values()):
        found = "; ".join(f"{half} {' and '.join(files) or 'none'}" for half, files in names.items())
        return [Problem(id_, f"is a duplicate id; expected one file a half, found {found}")]
    missing = [half for half, files in names.items() if not files]
    found = " and ".join(file for files in names.values() for file in files)
    return [Problem(id_, f"has no {half}{'' if half == CONTEXT else ' half'}; found only {found}") for half in missing]


def _defect_of_file(path: Path | StoredRecording, min_seconds: float) -> str | None:
    stored = isinstance(path, StoredRecording)
    if not stored and not path.is_file():
        return "does not exist"
    try:
        seconds = audio_seconds(path.open() if stored else path)
    except AudioError as error:
        return str(error).removeprefix(str(path)).strip()
    return None if seconds >= min_seconds else f"lasts {seconds:.3g} s; expected at least {min_seconds:g} s"


def _name_of(path: Path | StoredRecording, root: Path) -> str:
    if isinstance(path, StoredRecording):
        return str(replace(path, table=Path(_name_of(path.table, root))))
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
