"""Recordings with transcripts, to listen to and to measure intelligibility on."""

import json
from collections import Counter
from pathlib import Path

from ..data.audio_io import load_audio
from ..data.corpus import SAMPLING_RATE, iterate_corpus
from .resynthesis import SpokenText


def read_recordings(folder: str | Path) -> list[SpokenText]:
    """Reads a folder of audio files with `transcripts.json`, a mapping from file name to text.

    Raises `FileNotFoundError` where the transcripts are missing, and `AudioError` for a file that is not audio.
    """
    folder = Path(folder)
    path = folder / "transcripts.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a mapping from file name to transcript.")
    transcripts = json.loads(path.read_text(encoding="utf-8"))
    return [
        SpokenText(Path(name).stem, load_audio(folder / name, SAMPLING_RATE), text)
        for name, text in sorted(transcripts.items())
    ]


def read_corpus_recordings(
    folder: str | Path, split: str = "test", max_per_domain: int | None = None
) -> list[SpokenText]:
    """Reads the documents of one split of a speech corpus, at most `max_per_domain` of each domain."""
    counts: Counter[str] = Counter()
    recordings = []
    for row in iterate_corpus(folder, ["id", "split", "domain", "text", "audio"]):
        if row["split"] == split and (max_per_domain is None or counts[row["domain"]] < max_per_domain):
            counts[row["domain"]] += 1
            waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=f"{folder}: {row['id']}")
            recordings.append(SpokenText(row["id"], waveform, row["text"]))
    return recordings
