"""Folders of recordings -> corpora, so that models can be trained on anyone's speech.

The rows have the columns of every corpus (`tinywave.data.corpus.SCHEMA`). What nobody knows of a recording, its words,
their times and its style, is left empty.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .audio_io import AUDIO_SUFFIXES, AudioError, load_audio, waveform_to_flac_bytes
from .corpus import SAMPLING_RATE, SPLITS, CorpusError, write_corpus


@dataclass(frozen=True)
class RecordingFolder:
    """A folder of audio files; those in its subfolders belong to it too.

    `folder`: of files that end in .wav, .flac, .ogg or .mp3. `split`: "train", "validation" or "test". `licence` and
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

    Raises `CorpusError` when there is none.
    """
    root = Path(folder.folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not paths:
        raise CorpusError(f"Found no recording in {root}; expected files that end in {', '.join(AUDIO_SUFFIXES)}.")
    recordings = []
    for path in paths:
        names = path.relative_to(root).with_suffix("").parts
        recordings.append(
            Recording(
                id="/".join((folder.name, *names)),
                folder=folder.name,
                path=path.relative_to(root).as_posix(),
                num_bytes=path.stat().st_size,
                split=folder.split,
                voice=names[0] if len(names) > 1 else folder.name,
                licence=folder.licence,
                source=folder.source,
            )
        )
    return recordings


def prepare_recordings(
    folders: Sequence[RecordingFolder],
    output_folder: str | Path,
    *,
    num_processes: int = 2,
    rows_per_shard: int = 200,
) -> Path:
    """Writes the recordings of folders into parquet shards, 16 kHz and one channel, and returns `output_folder`.

    Shards that a previous call finished are kept, wherever the folders lie now. Raises `CorpusError` for a folder
    without recordings, naming a file that cannot be read, for two files that differ in their suffix only, and where
    [`write_corpus`] does.
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
        raise CorpusError(f"Recording {recording.id!r} cannot be used: {error}. Mend it or take it away.") from error
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
