"""The folders in which suites of recorded pairs are released, and which recordings they hold.

| layout | pairs | positive |
|---|---|---|
| salmon | `<part>/sample_<i>_<j>.wav`, eight parts (arXiv 2409.07437) | `j` 0 |
| salmon_tables | the same as parquet, the recordings inside, as the Hub has it | column `positive_audio` |
| zerospeech_lexical | `gold.csv` and its wavs, by id and voice: sWUGGY of sLM21 (arXiv 2011.11588) | `correct` 1 |
| zerospeech_syntactic | the same by type, subtype, id and voice: sBLIMP | `correct` 1 |
| storycloze | `<i>_correct.wav`, `<i>_incorrect.wav`, of one voice or a folder each (arXiv 2305.13009) | `_correct` |
| storycloze | the endings so, and `<i>_mutual.wav` before both, as slamkit's cross-modal sets are | `_correct` |
| sorted_names | `<i>_*.wav` two by two as slamkit does, or folders or file lists of both halves | first name |
| manifest | parquet or JSON lines, a row a pair | column `positive` |

A layout lists recordings by the id of their pair; whether both halves are there and can be read is for
[`read_audio_suite`] to tell.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.audio_io import find_audio_files, is_named_like_audio
from ..data.storage import check_plain_name, parse_json
from .aggregation import OUT_OF_VOCABULARY, SALMON_PARTS
from .salmon_tables import AUDIO_COLUMNS, StoredRecording, read_labels, salmon_tables
from .suites import HALVES, SuiteError

POSITIVE, NEGATIVE = HALVES
CONTEXT = "context"
"""What both halves of a pair begin with, where it is a file of its own."""

MANIFEST_SUFFIXES = (".parquet", ".jsonl")
MANIFEST_COLUMNS = ("id", "positive", "negative", "voice", "group", "text")
"""Columns of a manifest of recordings; "suite", "part", "positive_text", "negative_text", and for halves that are
endings of a "context" this and "context_text" may come as well."""

FREQUENCY_BANDS = {OUT_OF_VOCABULARY: 1, "1-5": 5, "6-20": 20, "21-100": 100, ">100": float("inf")}
"""sWUGGY band -> count in LibriSpeech that it stays below. The ZeroSpeech scorer cuts so: a 5 is in 6-20."""

_LEXICAL_COLUMNS = ("id", "filename", "voice", "frequency", "correct")
_SYNTACTIC_COLUMNS = ("id", "filename", "voice", "type", "subtype", "correct")
_HALF_NAMES = (HALVES, ("correct", "incorrect"))


@dataclass(frozen=True)
class Problem:
    """Something of a suite that is left out: `name` of the file, row or pair, and the `reason`."""

    name: str
    reason: str


@dataclass(frozen=True)
class Recording:
    """One half of a pair.

    Args:
        id (`str`): of the pair.
        half (`str`): "positive", "negative", or "context" for what is heard before both.
        path (`Path` or [`StoredRecording`]): the file, whether or not it is there, or its place in a table.
        part, group (`str`): of the pair; those of the positive half count.
        voice, text (`str`): empty where unknown.
    """

    id: str
    half: str
    path: Path | StoredRecording
    part: str
    group: str
    voice: str = ""
    text: str = ""


@dataclass
class Listing:
    """What a layout finds: the name of the suite, its recordings in any order, and rows and files it cannot use.

    `has_contexts`: whether every pair has a context, of which its halves are the endings.
    """

    suite: str
    recordings: list[Recording] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    has_contexts: bool = False


@dataclass(frozen=True)
class Layout:
    """A layout: what it `expects` in words, whether a path `fits`, and how it is listed."""

    expects: str
    fits: Callable[[Path], bool]
    list_recordings: Callable[[Path], Listing]


def natural_key(name: str) -> list:
    """Sorting key under which `sample_10` follows `sample_9`."""
    return [int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"(\d+)", name))]


def audio_files(folder: Path) -> list[Path]:
    """Return the audio files of a folder in natural order of their names, without hidden ones as macOS writes them.

    A file that is named like audio and is none counts too, so that its pair is reported as damaged.
    """
    if not folder.is_dir():
        return []
    files, others = find_audio_files(folder.iterdir())
    files += [path for path in others if is_named_like_audio(path)]
    return sorted(files, key=lambda path: natural_key(path.name))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    folders = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(folders, key=lambda path: natural_key(path.name))


# SALMon


def _salmon_parts(path: Path) -> list[Path]:
    if path.name in SALMON_PARTS:
        return [path]
    return [folder for folder in _subfolders(path) if folder.name in SALMON_PARTS]


def _list_salmon(path: Path) -> Listing:
    listing, parts = Listing("salmon"), _salmon_parts(path)
    for folder in _subfolders(path):
        if folder not in parts and audio_files(folder):
            listing.problems.append(Problem(folder.name, f"is no part of SALMon; expected one of {SALMON_PARTS}"))
    for folder in parts:
        files = audio_files(folder)
        if not files:
            listing.problems.append(Problem(folder.name, "holds no audio; expected sample_<i>_<j>.wav"))
        for file in files:
            found = re.fullmatch(r"sample_(\d+)_([01])", file.stem)
            if found is None:
                reason = "has another name than sample_<i>_0 or sample_<i>_1"
                listing.problems.append(Problem(str(file.relative_to(path)), reason))
                continue
            id_, half = f"{folder.name}/{int(found[1])}", HALVES[int(found[2])]
            listing.recordings.append(Recording(id_, half, file, folder.name, id_))
    return listing


def _list_salmon_tables(path: Path) -> Listing:
    listing = Listing("salmon")
    for table in salmon_tables(path):
        name = str(table.relative_to(path)) if path.is_dir() else table.name
        try:
            rows = read_labels(table)
        except SuiteError as error:
            listing.problems.append(Problem(name, str(error)))
            continue
        for row, (part, number) in enumerate(rows):
            if part not in SALMON_PARTS or number is None:
                reason = f"found task {part!r} and ind {number}; expected one of {SALMON_PARTS} and a number"
                listing.problems.append(Problem(f"{name}, row {row + 1}", reason))
                continue
            id_ = f"{part}/{number}"
            for half, column in zip(HALVES, AUDIO_COLUMNS, strict=True):
                listing.recordings.append(Recording(id_, half, StoredRecording(table, row, column), part, id_))
    return listing


# ZeroSpeech


def _gold_files(path: Path, task: str) -> list[Path]:
    """Tables of a task in a folder of a split, of the task, or of the whole data set."""
    if path.is_file():
        return [path] if path.name == "gold.csv" else []
    folders = [path, *(path / split for split in ("dev", "test")), *(path / task / split for split in ("dev", "test"))]
    return [folder / "gold.csv" for folder in folders if (folder / "gold.csv").is_file()]


def _columns_of(table: Path) -> list[str]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


def _fits_gold(path: Path, task: str, column: str) -> bool:
    return any(column in _columns_of(table) for table in _gold_files(path, task))


def _read_gold(path: Path, task: str, columns: Sequence[str]) -> tuple[Path, list[dict]]:
    tables = _gold_files(path, task)
    if len(tables) != 1:
        found = ", ".join(map(str, tables)) or "none"
        raise SuiteError(f"Expected one gold.csv in {path}, found {found}; name the folder of one split.")
    if missing := [name for name in columns if name not in _columns_of(tables[0])]:
        raise SuiteError(f"{tables[0]} lacks the columns {missing}; expected {columns}.")
    with open(tables[0], encoding="utf-8-sig", newline="") as file:
        rows = [{name: row[name] or "" for name in row if name} for row in csv.DictReader(file)]
    return tables[0].parent, rows


def _list_gold(
    listing: Listing, folder: Path, rows: Iterable[Mapping[str, str]], labels_of: Callable[[Mapping, str], dict]
) -> Listing:
    """Add the recordings of a table; `labels_of` makes the fields of a [`Recording`] of a row and its half."""
    files = {file.name: file for file in audio_files(folder)}
    by_stem = {file.stem: file for file in reversed(files.values())}
    unnamed = set(files)
    for number, row in enumerate(rows, start=2):
        name = row["filename"]
        file = files.get(name) or by_stem.get(name) or folder / (name if Path(name).suffix else f"{name}.wav")
        unnamed.discard(file.name)
        try:
            if row["correct"] not in ("0", "1"):
                raise ValueError(f"found correct {row['correct']!r}; expected 1 or 0")
            if not name or not row["id"]:
                raise ValueError("has no filename or no id")
            half = POSITIVE if row["correct"] == "1" else NEGATIVE
            listing.recordings.append(Recording(half=half, path=file, voice=row["voice"], **labels_of(row, half)))
        except ValueError as error:
            listing.problems.append(Problem(f"gold.csv, line {number} ({name})", str(error)))
    listing.problems += [Problem(name, "is named by no row of gold.csv") for name in unnamed]
    return listing


def _band_of(frequency: str) -> str:
    try:
        count = float(frequency)
    except ValueError:
        count = -1.0
    if not 0 <= count < float("inf"):
        raise ValueError(f"found frequency {frequency!r}; expected how often LibriSpeech has the word")
    return next(band for band, end in FREQUENCY_BANDS.items() if count < end)


def _list_lexical(path: Path) -> Listing:
    folder, rows = _read_gold(path, "lexical", _LEXICAL_COLUMNS)

    def labels_of(row: Mapping[str, str], half: str) -> dict:
        part = _band_of(row["frequency"]) if half == POSITIVE else ""
        text = row.get("word") or row.get("phones", "")
        return {"id": f"{row['id']}/{row['voice']}", "part": part, "group": row["id"], "text": text}

    return _list_gold(Listing("swuggy"), folder, rows, labels_of)


def _list_syntactic(path: Path) -> Listing:
    folder, rows = _read_gold(path, "syntactic", _SYNTACTIC_COLUMNS)

    def labels_of(row: Mapping[str, str], half: str) -> dict:
        if not row["type"]:
            raise ValueError("has no type")
        group = f"{row['type']}/{row['subtype']}/{row['id']}"
        text = row.get("transcription", "")
        return {"id": f"{group}/{row['voice']}", "part": row["type"], "group": group, "text": text}

    return _list_gold(Listing("sblimp"), folder, rows, labels_of)


# SpokenStoryCloze


_STORY_HALVES = {"correct": POSITIVE, "incorrect": NEGATIVE, "mutual": CONTEXT}


def _story_half(file: Path) -> re.Match | None:
    return re.fullmatch(r"(.+)_(correct|incorrect|mutual)", file.stem)


def _story_folders(path: Path) -> list[Path]:
    return [folder for folder in (path, *_subfolders(path)) if any(map(_story_half, audio_files(folder)))]


def _story_suite(folder: Path) -> str | None:
    """ "sstorycloze" of `sSC`, `ms_sSC` and `sStoryCloze`, "tstorycloze" of `tSC` and the like."""
    found = re.search(r"(?:^|_)([st])(?:SC|StoryCloze)(?:_|$)", folder.name, re.IGNORECASE)
    return None if found is None else f"{found[1].lower()}storycloze"


def _list_stories(path: Path) -> Listing:
    folders = _story_folders(path)
    own = _story_suite(path) or path.name
    parts = {folder: own if folder == path else _story_suite(folder) or own for folder in folders}
    listing = Listing(own if len(set(parts.values())) != 1 else parts[folders[0]])
    for folder, part in parts.items():
        voice = folder.name if folder != path and _story_suite(folder) is None else ""
        for file in audio_files(folder):
            found = _story_half(file)
            if found is None:
                listing.problems.append(
                    Problem(str(file.relative_to(path)), "is no <i>_correct, <i>_incorrect or <i>_mutual")
                )
                continue
            group = found[1] if len(set(parts.values())) == 1 else f"{part}/{found[1]}"
            id_ = f"{group}/{voice}" if voice else group
            half, text = _STORY_HALVES[found[2]], _text_beside(file)
            listing.has_contexts |= half == CONTEXT
            listing.recordings.append(Recording(id_, half, file, part, group, voice, text))
    return listing


def _text_beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""


# Pairs by sorted name


def _leading_integer(file: Path) -> str | None:
    found = re.match(r"\d+", file.stem)
    return None if found is None else str(int(found[0]))


def _two_sides(path: Path) -> tuple[Path, Path] | None:
    """The folders, or the lists of files, of both halves."""
    for names in _HALF_NAMES:
        for suffix in ("", ".txt"):
            sides = [path / f"{name}{suffix}" for name in names]
            if all(side.is_file() if suffix else side.is_dir() for side in sides):
                return sides[0], sides[1]
    return None


def _numbered_folders(path: Path) -> list[Path]:
    return [folder for folder in (path, *_subfolders(path)) if any(map(_leading_integer, audio_files(folder)))]


def _list_sorted_names(path: Path) -> Listing:
    sides = _two_sides(path)
    return _list_numbered(path) if sides is None else _list_two_sides(path, *sides)


def _list_numbered(path: Path) -> Listing:
    """Two files a number, in order of their names, the positive first; a folder of its own is a part."""
    listing = Listing(path.name)
    for folder in _numbered_folders(path):
        halves_of: dict[str, list[Path]] = {}
        for file in audio_files(folder):
            if (number := _leading_integer(file)) is None:
                listing.problems.append(Problem(str(file.relative_to(path)), "does not begin with a number"))
            else:
                halves_of.setdefault(number, []).append(file)
        for number, files in halves_of.items():
            id_ = number if folder == path else f"{folder.name}/{number}"
            # A single file is not known to be the positive one, but it is reported either way.
            for index, file in enumerate(sorted(files, key=lambda file: file.name)):
                listing.recordings.append(Recording(id_, HALVES[min(index, 1)], file, folder.name, id_))
    return listing


def _list_two_sides(path: Path, *sides: Path) -> Listing:
    """Files of one name, or of one leading number, are a pair; where names tell nothing, their order does."""
    files = [_files_of_side(side) for side in sides]
    keys = [[file.stem for file in side] for side in files]
    if set(keys[0]).isdisjoint(keys[1]):
        numbers = [[_leading_integer(file) for file in side] for side in files]
        if all(None not in side and len(set(side)) == len(side) for side in numbers):
            keys = numbers
        elif len(files[0]) == len(files[1]):
            keys[1] = keys[0]
        else:
            raise SuiteError(
                f"{path} has {len(files[0])} positive and {len(files[1])} negative files of other names, so it cannot "
                "be told which are a pair; expected as many, or the same names."
            )
    recordings = [
        Recording(key, half, file, path.name, key)
        for half, side, names in zip(HALVES, files, keys, strict=True)
        for file, key in zip(side, names, strict=True)
    ]
    return Listing(path.name, recordings)


def _files_of_side(side: Path) -> list[Path]:
    if side.is_dir():
        return audio_files(side)
    lines = (line.strip() for line in side.read_text(encoding="utf-8-sig").split("\n"))
    return sorted((side.parent / line for line in lines if line), key=lambda path: natural_key(path.name))


# Manifests


def _manifest_file(path: Path) -> Path | None:
    """The manifest that a path is, or that a folder holds by the name `manifest`."""
    candidates = [path] if path.is_file() else [path / f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES]
    return next((file for file in candidates if file.is_file() and file.suffix.lower() in MANIFEST_SUFFIXES), None)


def _manifest_rows(file: Path, problems: list[Problem]) -> Iterator[tuple[int, dict]]:
    """Rows with their numbers, from 1; lines of JSON that hold no row become problems."""
    if file.suffix.lower() == ".parquet":
        try:
            yield from enumerate(pq.read_table(file).to_pylist(), start=1)
        except (pa.ArrowException, OSError) as error:
            raise SuiteError(f"{file} is not a readable parquet file ({error}); write it again.") from error
        return
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"found {type(row).__name__}")
            yield number, row
        except ValueError as error:
            problems.append(Problem(f"{file.name}, line {number}", f"is not a JSON object ({error})"))


def _list_manifest(path: Path) -> Listing:
    file = _manifest_file(path)
    if file is None:
        raise SuiteError(f"No manifest at {path}; expected one of {MANIFEST_SUFFIXES}, in a folder named `manifest`.")
    problems: list[Problem] = []
    rows = list(_manifest_rows(file, problems))
    if not rows:
        raise SuiteError(f"{file} holds no rows; expected one a pair.")
    columns = {name for _, row in rows for name in row}
    if missing := [name for name in MANIFEST_COLUMNS if name not in columns]:
        raise SuiteError(f"{file} lacks the columns {missing}; expected {MANIFEST_COLUMNS}.")
    suites = sorted({_cell(row, "suite") for _, row in rows})
    if len(suites) > 1:
        raise SuiteError(f"{file} holds the suites {suites}; expected one manifest a suite.")
    named = file.stem if file.stem.lower() != "manifest" else file.absolute().parent.name
    listing = Listing(_plain_suite_name(suites[0] or named, file), problems=problems)
    for number, row in rows:
        listing.recordings += _row_to_recordings(row, f"{file.name}, row {number}", file.parent, listing)
    return listing


def _plain_suite_name(name: str, file: Path) -> str:
    """The name of a suite, which becomes that of its files."""
    try:
        return check_plain_name(name, f"the suite of {file}")
    except ValueError as error:
        raise SuiteError(str(error)) from error


def _cell(row: Mapping, name: str) -> str:
    return "" if row.get(name) is None else str(row[name])


def _row_to_recordings(row: Mapping, name: str, folder: Path, listing: Listing) -> Iterator[Recording]:
    id_ = _cell(row, "id")
    if not id_ or not any(_cell(row, half) for half in HALVES):
        listing.problems.append(Problem(f"{name} ({id_})" if id_ else name, "has no id or names no file"))
        return
    part, group = _cell(row, "part") or listing.suite, _cell(row, "group") or id_
    for half in (CONTEXT, *HALVES):
        if path := _cell(row, half):
            listing.has_contexts |= half == CONTEXT
            text = _cell(row, f"{half}_text") or (_cell(row, "text") if half != CONTEXT else "")
            yield Recording(id_, half, folder / path, part, group, _cell(row, "voice"), text)


LAYOUTS: dict[str, Layout] = {
    "salmon": Layout(
        "folders named like the parts of SALMon, such as gender_consistency",
        lambda p: bool(_salmon_parts(p)) and not salmon_tables(p),
        _list_salmon,
    ),
    "salmon_tables": Layout(
        "parquet files with the columns task, ind, positive_audio and negative_audio",
        lambda p: bool(salmon_tables(p)),
        _list_salmon_tables,
    ),
    "zerospeech_lexical": Layout(
        "gold.csv with the column frequency", lambda p: _fits_gold(p, "lexical", "frequency"), _list_lexical
    ),
    "zerospeech_syntactic": Layout(
        "gold.csv with the column subtype", lambda p: _fits_gold(p, "syntactic", "subtype"), _list_syntactic
    ),
    "storycloze": Layout(
        "<i>_correct.wav and <i>_incorrect.wav",
        lambda p: bool(_story_folders(p)) and _two_sides(p) is None,
        _list_stories,
    ),
    "manifest": Layout(
        "a manifest, .parquet or .jsonl",
        lambda p: _manifest_file(p) is not None and not salmon_tables(p),
        _list_manifest,
    ),
    "sorted_names": Layout(
        "two folders or file lists (.txt) named positive and negative, or correct and incorrect; or files that begin "
        "with the number of their pair",
        lambda p: _two_sides(p) is not None or bool(_numbered_folders(p)),
        _list_sorted_names,
    ),
}  # fmt: skip
"""Name -> layout; the last fits many folders and counts only where no other does."""
