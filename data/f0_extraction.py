"""Waveform -> fundamental frequency (F0) at 200 Hz, by one of two estimators behind one interface, and F0 of a corpus.

An extractor is a callable from a waveform (float32, `(S,)`, 16 kHz) to two arrays of `S // 80 + 1` frames: F0 in Hz
and whether the frame is voiced. Frame i stands at 5 i ms. Unvoiced frames carry F0 interpolated between their voiced
neighbours, and before the first and after the last voiced frame the value there. Speech without a voiced frame
(whisper, silence) is no error: F0 is 0 throughout.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..f0_tinywave import F0_RANGE, SAMPLING_RATE, F0Extractor, SwiftF0Extractor, checked_waveform, num_f0_frames
from .audio_io import load_audio
from .corpus import iterate_corpus
from .fcpe_pitch import HOP_LENGTH as FCPE_HOP_LENGTH
from .fcpe_pitch import load_fcpe, log_mel_spectrogram
from .storage import atomic_file

MAX_CHUNK_SECONDS = 100.0


def load_f0_extractor(name: str = "swift-f0") -> F0Extractor:
    """Return the extractor of a name.

    Args:
        name (`str`, default "swift-f0"): "swift-f0" (PyPI swift-f0, 0.1 MB, nine times faster), or "fcpe", which the
            published codes were learnt from (PyPI torchfcpe, 43 MB).

    Raises `ValueError` for an unknown name, `ModuleNotFoundError` when its package is not installed.
    """
    extractors = {"swift-f0": SwiftF0Extractor, "fcpe": FcpeExtractor}
    if name not in extractors:
        raise ValueError(f"unknown F0 extractor {name!r}; expected one of {', '.join(extractors)}")
    return extractors[name]()


class FcpeExtractor:
    """FCPE as the published system runs it: one frame every 10 ms, unvoiced below 50 Hz, each frame written twice.

    Audio longer than 100 s is cut into equal chunks.

    Args:
        weights_path (*optional*): as in [`load_fcpe`].

    Raises `ModuleNotFoundError` when torchfcpe is not installed, `ValueError` when its weights are not those expected.
    """

    def __init__(self, weights_path: str | os.PathLike | None = None):
        self._network = load_fcpe(weights_path)

    def __call__(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return F0 (Hz) and voicing at 200 Hz; `ValueError` for audio that is short, not mono or not finite."""
        waveform = torch.from_numpy(checked_waveform(waveform))
        num_mel_bins = self._network.input[0].in_channels
        *firsts, last = (
            self._network(log_mel_spectrogram(chunk, num_mel_bins)[None])[0] for chunk in _chunks(waveform)
        )
        # The frame at the end of a chunk is the first of the next.
        f0 = torch.cat([*(piece[:-1] for piece in firsts), last]).numpy()
        voiced = f0 >= F0_RANGE[0]
        if voiced.any():
            frames = np.arange(len(f0))
            f0 = np.where(voiced, f0, np.interp(frames, frames[voiced], f0[voiced]))
        else:
            f0 = np.zeros_like(f0)
        count = num_f0_frames(len(waveform))
        nearest = np.arange(count) * len(f0) // count
        return np.minimum(f0[nearest], F0_RANGE[1]).astype(np.float32), voiced[nearest]


def _chunks(waveform: torch.Tensor) -> list[torch.Tensor]:
    """Cut at frame edges into the fewest chunks of about 100 s, all of nearly the same length."""
    num_hops = len(waveform) // FCPE_HOP_LENGTH
    num_chunks = math.ceil(len(waveform) / (MAX_CHUNK_SECONDS * SAMPLING_RATE))
    edges = [num_hops * chunk // num_chunks * FCPE_HOP_LENGTH for chunk in range(num_chunks)] + [len(waveform)]
    return [waveform[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]


@dataclass(frozen=True)
class F0Contour:
    """F0 of one utterance.

    Attributes:
        id, split, style, voice: of the corpus row.
        f0: `(T,)` float32, Hz, 200 frames a second, interpolated where unvoiced.
        voiced: `(T,)` bool.
    """

    id: str
    split: str
    style: str
    voice: str
    f0: np.ndarray
    voiced: np.ndarray


def prepare_f0(
    corpus_folders: Sequence[str | os.PathLike],
    output_folder: str | os.PathLike,
    extractor_name: str = "swift-f0",
    hours: dict[str, float] | None = None,
    seed: int = 0,
    rows_per_shard: int = 50,
) -> None:
    """Extract F0 of randomly chosen utterances into parquet shards; finished shards are kept when it runs again.

    Args:
        corpus_folders: folders that `tinywave prepare` wrote.
        output_folder: made if missing.
        extractor_name (`str`, default "swift-f0"): as in [`load_f0_extractor`].
        hours (*optional*): hours of speech to take of each split, such as {"train": 2.0}. Default: everything.
        seed (`int`, default 0): of the choice.

    Raises `CorpusError` for a damaged corpus, `ValueError` when a wanted split has no speech.
    """
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    chosen = _choose_rows(corpus_folders, hours, seed)
    shards = [chosen[start : start + rows_per_shard] for start in range(0, len(chosen), rows_per_shard)]
    paths = [output_folder / f"shard-{index:05d}.parquet" for index in range(len(shards))]
    keys = [_shard_key(extractor_name, shard) for shard in shards]
    for path in set(output_folder.glob("shard-*.parquet")) - set(paths):
        path.unlink()  # of an earlier, larger choice
    missing = {
        row: index
        for index, (path, key, shard) in enumerate(zip(paths, keys, shards, strict=True))
        if _found_key(path) != key
        for row in shard
    }
    if not missing:
        return
    extractor = load_f0_extractor(extractor_name)
    contours: dict[int, list[F0Contour]] = {}
    with tqdm(total=len(chosen), initial=len(chosen) - len(missing), desc="F0", unit="utterance") as progress:
        for row, content in _iterate_rows(corpus_folders, missing):
            index = missing[row]
            contours.setdefault(index, []).append(_row_to_contour(content, extractor))
            if len(contours[index]) == len(shards[index]):
                _write_shard(paths[index], contours.pop(index), keys[index])
            progress.update()


def load_f0(folder: str | os.PathLike, split: str | None = None) -> list[F0Contour]:
    """Read the shards that [`prepare_f0`] wrote, or one split of them; `ValueError` when there is none."""
    contours = []
    for path in sorted(Path(folder).glob("shard-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if split in (None, row["split"]):
                row |= {"f0": np.array(row["f0"], np.float32), "voiced": np.array(row["voiced"], bool)}
                contours.append(F0Contour(**row))
    if not contours:
        raise ValueError(f"found no {split or ''} utterance in {folder}; run prepare_f0 first")
    return contours


_Row = tuple[int, str]


def _choose_rows(corpus_folders: Sequence[str | os.PathLike], hours: dict[str, float] | None, seed: int) -> list[_Row]:
    """Return (number of the corpus, id) of the chosen utterances, in the order of the corpora."""
    seconds: dict[_Row, tuple[str, float]] = {}
    for number, folder in enumerate(corpus_folders):
        for row in iterate_corpus(folder, columns=("id", "split", "num_samples", "sampling_rate")):
            seconds[number, row["id"]] = row["split"], row["num_samples"] / row["sampling_rate"]
    if hours is None:
        return list(seconds)
    chosen = set()
    for split, wanted in hours.items():
        rows = [row for row, (name, _) in seconds.items() if name == split]
        if not rows:
            raise ValueError(f"found no speech of the split {split!r} in {', '.join(map(str, corpus_folders))}")
        total = 0.0
        for index in np.random.default_rng(seed).permutation(len(rows)):
            if total >= 3600 * wanted:
                break
            chosen.add(rows[index])
            total += seconds[rows[index]][1]
    return [row for row in seconds if row in chosen]


def _iterate_rows(corpus_folders: Sequence[str | os.PathLike], wanted: dict[_Row, int]) -> Iterator[tuple[_Row, dict]]:
    for number, folder in enumerate(corpus_folders):
        for row in iterate_corpus(folder, columns=("id", "split", "style", "voice", "audio")):
            if (number, row["id"]) in wanted:
                yield (number, row["id"]), row


def _row_to_contour(row: dict, extractor: F0Extractor) -> F0Contour:
    audio = row.pop("audio")
    f0, voiced = extractor(load_audio(audio["bytes"], SAMPLING_RATE, name=str(row["id"])))
    return F0Contour(**row, f0=f0, voiced=voiced)


def _shard_key(extractor_name: str, rows: Sequence[_Row]) -> str:
    return hashlib.sha256(json.dumps([extractor_name, list(rows)]).encode()).hexdigest()


def _found_key(path: Path) -> str | None:
    """Return what the shard was made from; None for a missing or damaged one."""
    try:
        return (pq.read_schema(path).metadata or {}).get(b"key", b"").decode()
    except (pa.ArrowException, OSError):
        return None


def _write_shard(path: Path, contours: Sequence[F0Contour], key: str) -> None:
    columns = {name: [getattr(item, name) for item in contours] for name in F0Contour.__dataclass_fields__}
    with atomic_file(path) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata({"key": key}), partial, compression="zstd")
