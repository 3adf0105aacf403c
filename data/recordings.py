"""Folders of recordings -> corpora, so that models can be trained on anyone's speech.

The rows have the columns of every corpus (`tinywave.data.corpus.SCHEMA`). What nobody knows of a recording, its words,
their times and its style, is left empty.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .audio_decoding import describe_source
from .audio_io import (
    AudioError,
    find_audio_files,
    load_audio,
    refuse_same_targets,
    report_left_out,
    waveform_to_flac_bytes,
)
from .corpus import SAMPLING_RATE, SPLITS, CorpusError, SkippedItem, write_corpus


@dataclass(frozen=True)
class RecordingFolder:
    """A folder of audio files; those in its subfolders belong to it too.

    `folder`: of files in any audio format. `split`: "train", "validation" or "test". `licence` and
    `source`: of the recordings, to be kept with them.

    Raises `ValueError` for another split and for what is no folder.
    """

    folder: str | Path
    split: str = "train"
    licence: str = ""
    source: str = ""

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"Found split {self.split!r} for {self.folder}; expected one of {', '.join(SPLITS)}.")
        if not Path(self.folder).is_dir():
            raise ValueError(f"Found no folder {self.folder}; expected a folder of recordings.")

    @property
    def name(self) -> str:
        """Last part of its path, with which the ids of its recordings begin."""
        return Path(self.folder).resolve().name


@dataclass(frozen=True)
class Recording:
    """One audio file.

    `id`: the name of its folder and the path in it, without suffix. `folder`: the name alone. `path`: in the folder.
    `num_bytes`: of the file. `split`, `licence`, `source`: of the folder. `voice`: who speaks.
    """

    id: str
    folder: str
    path: str
    num_bytes: int
    split: str
    voice: str
    licence: str
    source: str


def recordings_in(folder: RecordingFolder) -> list[Recording]:
    """All audio files of a folder, in the order of their paths.

    The voice of a file is the first subfolder on its way, as in `train-clean-100/SPEAKER/CHAPTER/1.flac` of
    LibriSpeech; of a file that lies in the folder itself, the name of the folder.

    Files are recognized by their content. What is not audio is listed on standard error; hidden files and folders,
    whose names begin with a dot, are not looked at. Links to folders are followed.

    Raises `CorpusError` when there is no recording, and for two files that differ in their suffix only.
    """
    root = Path(folder.folder)
    candidates, unread = _files_below(root)
    paths, passed_over = find_audio_files(candidates)
    report_left_out(unread | passed_over)
    if not paths:
        raise CorpusError(f"Found no recording in {root}; expected audio files.")
    try:
        refuse_same_targets(paths, lambda path: path.relative_to(root).with_suffix("").as_posix(), "the id")
    except ValueError as error:
        raise CorpusError(str(error)) from error
    recordings = []
    for path in paths:
        names = [describe_source(name) for name in path.relative_to(root).with_suffix("").parts]
        recordings.append(
            Recording(
                id="/".join((describe_source(folder.name), *names)),
                folder=folder.name,
                path=path.relative_to(root).as_posix(),
                num_bytes=path.stat().st_size,
                split=folder.split,
                voice=names[0] if len(names) > 1 else describe_source(folder.name),
                licence=folder.licence,
                source=folder.source,
            )
        )
    return recordings


def _files_below(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files of a folder and of those in it and linked from it, and which folders are not read and why."""
    files, unread, seen = [], {}, {root.resolve()}

    def refuse(error: OSError) -> None:
        unread[Path(error.filename)] = error.strerror

    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        files += [Path(folder, name) for name in names]
        for name in list(subfolders):
            path = Path(folder, name)
            target = path.resolve()
            if name.startswith("."):
                subfolders.remove(name)
            elif target in seen or (path.is_symlink() and target.is_relative_to(root.resolve())):
                subfolders.remove(name)
                unread[path] = "is a link to a folder that is read anyway"
            seen.add(target)
    return files, unread


def prepare_recordings(
    folders: Sequence[RecordingFolder],
    output_folder: str | Path,
    *,
    num_processes: int = 2,
    rows_per_shard: int = 200,
) -> Path:
    """Writes the recordings of folders into parquet shards, 16 kHz and one channel, and returns `output_folder`.

    Shards that a previous call finished are kept, wherever the folders are now. A file that cannot be decoded is left
    out and listed on standard error. Raises `CorpusError` for a folder without recordings, for two files that differ
    in their suffix only, and where [`write_corpus`] does.
    """
    return write_corpus(
        [recording for folder in folders for recording in recordings_in(folder)],
        functools.partial(_recording_to_row, {folder.name: Path(folder.folder) for folder in folders}),
        output_folder,
        source="recordings",
        description="Reading",
        num_processes=num_processes,
        rows_per_shard=rows_per_shard,
    )


def folders_of_recipe(recipe: Mapping) -> list[RecordingFolder]:
    """Folders of a corpus recipe: a list `recordings` of entries with `folder` and, as wanted, `split`, `licence` and
    `source`.

    Raises `ValueError` for other keys, and where [`RecordingFolder`] does.
    """
    entries = recipe["recordings"]
    for number, entry in enumerate(entries):
        unknown = set(entry) - {"folder", "split", "licence", "source"}
        if unknown or "folder" not in entry:
            raise ValueError(
                f"Entry {number} of `recordings` has the keys {sorted(entry)}; expected folder and, as wanted, split, "
                "licence and source."
            )
    return [RecordingFolder(**entry) for entry in entries]


def _recording_to_row(folders: Mapping[str, Path], recording: Recording) -> dict:
    try:
        waveform = load_audio(folders[recording.folder] / recording.path, SAMPLING_RATE)
    except AudioError as error:
        raise SkippedItem(str(error)) from error
    return {
        "id": recording.id,
        "split": recording.split,
        "domain": "recording",
        "text": "",
        "sentences": [],
        "audio": {"bytes": waveform_to_flac_bytes(waveform, SAMPLING_RATE), "path": f"{recording.id}.flac"},
        "sampling_rate": SAMPLING_RATE,
        "num_samples": len(waveform),
        "words": [],
        "phones": [],
        "voice": recording.voice,
        "style": "",
        "licence": recording.licence,
        "source": recording.source,
        "seed": 0,
    }
