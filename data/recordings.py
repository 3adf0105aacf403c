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
class Recording:
    """One audio file of a folder.

    `id`: its path in the folder, without suffix; `path`: with it. `num_bytes`: of the file. `split`: "train",
    "validation" or "test". `voice`: who speaks. `licence` and `source`: of the recording.
    """

    id: str
    path: str
    num_bytes: int
    split: str
    voice: str
    licence: str
    source: str


def recordings_in(folder: str | Path, split: str = "train", licence: str = "", source: str = "") -> list[Recording]:
    """All audio files in a folder and its subfolders, in the order of their paths.

    The voice of a file is the first folder on its way, as in `train-clean-100/SPEAKER/CHAPTER/1.flac` of LibriSpeech;
    of a file that lies in `folder` itself, the name of `folder`.

    Args:
        folder: of files that end in .wav, .flac, .ogg or .mp3.
        split (`str`, default "train"): of all of them.
        licence, source (`str`, default ""): of all of them, to be kept with them.

    Raises `CorpusError` when there is no such folder, no such file in it, or no such split.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise CorpusError(f"Found split {split!r}; expected one of {', '.join(SPLITS)}.")
    if not folder.is_dir():
        raise CorpusError(f"Found no folder {folder}; expected a folder of recordings.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not paths:
        raise CorpusError(f"Found no recording in {folder}; expected files that end in {', '.join(AUDIO_SUFFIXES)}.")
    recordings = []
    for path in paths:
        names = path.relative_to(folder).with_suffix("").parts
        recordings.append(
            Recording(
                id="/".join(names),
                path=path.relative_to(folder).as_posix(),
                num_bytes=path.stat().st_size,
                split=split,
                voice=names[0] if len(names) > 1 else folder.resolve().name,
                licence=licence,
                source=source,
            )
        )
    return recordings


def prepare_recordings(
    recordings: Sequence[Recording],
    folder: str | Path,
    output_folder: str | Path,
    *,
    num_processes: int = 2,
    rows_per_shard: int = 200,
) -> Path:
    """Writes recordings of `folder` into parquet shards, 16 kHz and one channel, and returns `output_folder`.

    Shards that a previous call finished are kept. Raises `CorpusError` naming a file that cannot be read, when two
    files differ in their suffix only, and where [`write_corpus`] does.
    """
    return write_corpus(
        recordings,
        functools.partial(_recording_to_row, Path(folder)),
        output_folder,
        source="recordings",
        description="Reading",
        num_processes=num_processes,
        rows_per_shard=rows_per_shard,
    )


def recordings_of_recipe(recipe: Mapping) -> list[Recording]:
    """Recordings of a corpus recipe with `recordings`, a folder, and, as wanted, `split`, `licence` and `source`.

    Raises `ValueError` for other keys, and where [`recordings_in`] does.
    """
    unknown = set(recipe) - {"recordings", "split", "licence", "source"}
    if unknown:
        raise ValueError(f"A recipe of recordings has the unknown keys {sorted(unknown)}.")
    return recordings_in(recipe["recordings"], **{name: recipe[name] for name in recipe if name != "recordings"})


def _recording_to_row(folder: Path, recording: Recording) -> dict:
    try:
        waveform = load_audio(folder / recording.path, SAMPLING_RATE)
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
