"""Recordings with transcripts, to listen to and to measure intelligibility on."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..data.audio_io import AudioError, load_audio, refuse_same_targets, report_left_out
from ..data.corpus import SAMPLING_RATE, iterate_corpus
from ..data.storage import read_json
from .resynthesis import SpokenText


def read_recordings(folder: str | Path) -> list[SpokenText]:
    """Read a folder of audio files with `transcripts.json`, a mapping from file name to text.

    A file that cannot be read is left out and named on standard error.

    Raises `FileNotFoundError` where the transcripts are missing, `ValueError` where they are no such mapping and for
    two files of one stem, and `AudioError` where no file can be read.
    """
    folder = Path(folder)
    transcripts = _read_transcripts(folder / "transcripts.json")
    refuse_same_targets([folder / name for name in transcripts], lambda path: path.stem, "the id")
    recordings, left_out = [], {}
    for name, text in transcripts.items():
        try:
            recordings.append(SpokenText(Path(name).stem, load_audio(folder / name, SAMPLING_RATE), text))
        except AudioError as error:
            left_out[folder / name] = str(error)
    _report(left_out, len(transcripts), folder)
    return recordings


def _read_transcripts(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a mapping from file name to transcript.")
    try:
        transcripts = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; expected a mapping from file name to transcript") from error
    if not all(isinstance(text, str) for text in transcripts.values()):
        raise ValueError(f"{path} holds something else than a mapping from file name to transcript")
    return dict(sorted(transcripts.items()))


def read_corpus_recordings(
    folder: str | Path, split: str = "test", max_per_domain: int | None = None
) -> list[SpokenText]:
    """Read the documents of one split of a speech corpus, at most `max_per_domain` of each domain.

    A document whose audio cannot be read is left out and named on standard error; `AudioError` where none can be read.
    """
    counts: Counter[str] = Counter()
    recordings, left_out = [], {}
    for row in iterate_corpus(folder, ["id", "split", "domain", "text", "audio"]):
        if row["split"] == split and (max_per_domain is None or counts[row["domain"]] < max_per_domain):
            name = f"{folder}: {row['id']}"
            try:
                waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=name)
            except AudioError as error:
                left_out[name] = str(error)
                continue
            counts[row["domain"]] += 1
            recordings.append(SpokenText(row["id"], waveform, row["text"]))
    _report(left_out, len(left_out) + len(recordings), folder)
    return recordings


def _report(left_out: Mapping[object, str], num_items: int, folder: str | Path) -> None:
    report_left_out(left_out, num_items)
    if left_out and len(left_out) == num_items:
        raise AudioError(f"none of the {num_items} recordings of {folder} can be read")
