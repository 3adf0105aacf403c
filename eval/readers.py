"""Read published suites of recorded pairs in their original folder layouts, without decoding audio."""

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
    """A minimal pair of recordings; a speech language model should assign the positive one the higher likelihood.

    Args:
        id (`str`): identifier, unique within the suite.
        suite, part (`str`): name of the suite and of the part: the folder for SALMon, the frequency band for sWUGGY,
            the type of rule for sBLIMP; the name of the suite if there are no parts.
        group (`str`): label of the pairs that the bootstrap resamples together, such as all voices of a word.
        voice (`str`): name of the speaker; empty if the release does not name one.
        positive, negative (`Path` or [`StoredRecording`]): audio files, or their place in a table.
        positive_text, negative_text (`str`): transcripts; empty if the release has none.
        context, context_text (*optional*): recording and transcript of a context shared by both halves, if the release
            stores it in a file of its own. The halves are then the endings.
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
        name (`str`): "salmon", "swuggy", "sblimp", "sstorycloze" or "tstorycloze" if recognized, else the name of the
            folder.
        layout (`str`): one of `LAYOUTS`.
        pairs (`tuple[AudioPair, ...]`): sorted naturally by part and id, independently of the order of files on disk.
        problems (`tuple[Problem, ...]`): one entry for everything that is left out of `pairs`.
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
    """Return the pairs of a published suite. Only the headers of the audio files are read, for the durations.

    A pair is left out and reported in `problems` if a half is missing or appears twice, or if a file is missing,
    cannot be read or is too short. Files and rows that belong to no pair are reported as well.

    Args:
        path: folder of the release, or of a part or split of it, or a manifest.
        layout (`str`, *optional*): one of `LAYOUTS`. By default it is detected from the contents of the folder.
        strict (`bool`, defaults to False): raise an error if there are problems.
        min_seconds (`float`, defaults to 0.1): minimum duration of a recording, in seconds.
        allow_outside (`bool`, defaults to False): accept recordings outside the folder of the suite that a manifest, a
            list or a symbolic link points to. Off by default, so that a downloaded suite cannot make the reader open
            arbitrary files.

    Returns:
        [`AudioSuite`].

    Raises:
        SuiteError: if no layout or several layouts match, a table lacks columns, no pair is usable, or `strict` is set
            and there are problems.
    """
    path = Path(path)
    if not path.exists():
        raise SuiteError(f"No suite at {path}; expected a folder of recordings or a manifest.")
    # Not `resolve`: "." needs its real name, but the name of a symbolic link may identify the suite.
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
    """Raise `SuiteError` with the first problems of a suite."""
    lines = [f"{problem.name}: {problem.reason}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
    raise SuiteError(f"{path} has {len(problems)} problems; fix them:\n" + "\n".join(lines))


def _find_layout(path: Path) -> str:
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(path)]
    released = [name for name in fitting if name != _FALLBACK_LAYOUT]
    if len(released) > 1:
        raise SuiteError(f"{path} matches several layouts, {released}; pass a folder inside it, or the layout.")
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
        return [Problem(id_, f"is a duplicate id; expected one file per half, found {found}")]
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
