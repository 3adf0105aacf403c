"""Speech corpora -> unit corpora: fit the centroids once, then encode every shard.

Both read the parquet shards of a corpus (columns `id`, `split`, `audio`, and any others) in worker processes of one
thread each, which is faster on a CPU than one process of many threads.
"""

import io
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_FIELDS
from ..speech_encoder_tinywave import SpeechEncoder
from ..speech_quantizers_tinywave import CentroidQuantizer
from .audio_io import load_audio, report_left_out
from .codec_loading import load_codec, save_encoders
from .corpus import MANIFEST, corpus_shards
from .storage import atomic_file
from .worker_processes import follow_parent

_ROWS_PER_READ = 16
_CORPUS_SAMPLING_RATE = 16_000
_LEFT_OUT = b"rows_left_out"


class ShardError(ValueError):
    """A shard that cannot be used; the message names the file, what was found and what to do."""


def fit_kmeans(features: np.ndarray, num_units: int = 500, seed: int = 0, num_inits: int = 3) -> CentroidQuantizer:
    """Fit centroids with mini-batch k-means (Sculley 2010), k-means++ start, on per-dimension normalized features.

    Args:
        features: `(frames, hidden_size)`, as [`sample_features`] returns them. Not changed.
        num_units (`int`, default 500): number of centroids.
        seed (`int`, default 0): of the starts and of the batches; the same seed gives the same centroids.
        num_inits (`int`, default 3): starts to choose the best of.

    Raises `ValueError` when there are fewer frames than units, `ModuleNotFoundError` without scikit-learn.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ModuleNotFoundError('fitting units needs scikit-learn; run: pip install "tinywave[material]"') from error
    if features.ndim != 2 or len(features) < num_units:
        raise ValueError(f"features have shape {features.shape}; expected (>= {num_units}, hidden_size)")
    quantizer = CentroidQuantizer(num_units, features.shape[1])
    quantizer.mean = torch.from_numpy(features.mean(0, dtype=np.float64)).float()
    quantizer.standard_deviation = torch.from_numpy(features.std(0, dtype=np.float64)).float().clamp(min=1e-5)
    kmeans = MiniBatchKMeans(
        num_units, batch_size=min(8192, len(features)), n_init=num_inits, random_state=seed, compute_labels=False
    )
    # One thread: the order of a parallel sum would change the centroids from run to run.
    with threadpool_limits(1):
        kmeans.fit(quantizer.normalize(torch.from_numpy(features)).numpy())
    quantizer.centroids = torch.from_numpy(kmeans.cluster_centers_).float()
    return quantizer


def sample_features(
    corpus_folder: str | os.PathLike,
    encoder: SpeechEncoder,
    max_frames: int = 300_000,
    split: str = "train",
    seed: int = 0,
    num_processes: int = 2,
) -> np.ndarray:
    """Return the features of randomly chosen utterances of a corpus.

    Args:
        corpus_folder: parquet shards with the columns `id`, `split` and `audio`.
        encoder: its quantizer need not be fitted.
        max_frames (`int`, default 300,000): frames to return at most (300,000 are 3.3 hours at 25 Hz).
        split (`str`, default "train"): the only split that is looked at.
        seed (`int`, default 0): of the choice.
        num_processes (`int`, default 2): worker processes; 1 works in this process.

    Returns:
        float32 array of shape `(frames, hidden_size)`; the same for any number of processes.

    Raises [`ShardError`] for a damaged shard and when the split is empty.
    """
    rows = _sample_rows(shard_paths(corpus_folder), encoder, max_frames, split, seed)
    jobs = [partial(_features_of_rows, path, numbers) for path, numbers in sorted(rows.items())]
    sizes = [len(numbers) for _, numbers in sorted(rows.items())]
    parts = dict(_run_jobs(jobs, sizes, SpeechCodec(encoder), num_processes, "features"))
    return np.concatenate([parts[index] for index in range(len(jobs))])[:max_frames]


def _sample_rows(
    shards: Sequence[Path], encoder: SpeechEncoder, max_frames: int, split: str, seed: int
) -> dict[Path, set[int]]:
    """Choose utterances at random until they hold `max_frames` units; return their row numbers per shard."""
    candidates = []
    for path in shards:
        table = _read_columns(path, ["split", "num_samples"])
        for number, row in enumerate(table.to_pylist()):
            if row["split"] == split:
                candidates.append((path, number, encoder.num_samples_to_num_units(row["num_samples"])))
    if not candidates:
        raise ShardError(f"no row of the split {split!r} in {shards[0].parent}; prepare the corpus with that split")
    chosen: dict[Path, set[int]] = {}
    num_frames = 0
    for index in np.random.default_rng(seed).permutation(len(candidates)):
        path, number, frames = candidates[index]
        chosen.setdefault(path, set()).add(number)
        num_frames += frames
        if num_frames >= max_frames:
            break
    return chosen


def _features_of_rows(path: Path, numbers: set[int], codec: SpeechCodec, check_stop: Callable[[], None]) -> np.ndarray:
    """Return the features of some rows of one shard, joined."""
    encoder, parts = codec.speech_encoder, []
    for _, name, audio in _iterate_audio(path, numbers):
        check_stop()
        try:
            parts += encoder.extract_features([load_audio(audio, encoder.sampling_rate, name=name)], batch_size=1)
        except ValueError as error:
            report_left_out({name: str(error)})
    return torch.cat(parts).numpy() if parts else np.empty((0, encoder.backbone.hidden_size), np.float32)


def extract_units(
    corpus_folder: str | os.PathLike,
    codec: SpeechCodec,
    output_folder: str | os.PathLike,
    num_processes: int = 2,
) -> None:
    """Encode a corpus: one output shard of the same name for each input shard.

    An output row holds the columns of its input row except `audio`; then, each a list of int16 with repeats kept,
    `units` and, where the codec makes them, `pitch` and `style`; then `encoder`, the fingerprint of the codec. A
    column of the input with the name of a stream, such as the name of a style, is kept as `<name>_name`. Finished
    shards are kept when this runs again, so an interrupted extraction continues; a shard appears complete or not at
    all. A row whose audio cannot be used is left out; it is named on standard error, and with the reason in the
    metadata of the shard.

    Args:
        corpus_folder: parquet shards with at least the columns `id` and `audio` (struct with encoded `bytes`).
        codec: its encoders; a vocoder is not needed. The quantizer must be fitted.
        output_folder: made if missing.
        num_processes (`int`, default 2): worker processes; 1 works in this process.

    Raises [`ShardError`] for a damaged shard or one without these columns, when no audio can be used, and when the
    output folder holds units of another codec; `OSError` when the disk is full.
    """
    if not codec.speech_encoder.quantizer.is_fitted:
        raise ValueError("the quantizer has no centroids; fit them with fit_kmeans or load a fitted encoder")
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    fingerprint = codec.fingerprint()
    jobs, sizes, rows = [], [], {}
    for path in shard_paths(corpus_folder):
        output = output_folder / path.name
        identifiers = rows[output] = _read_columns(path, ["id"])["id"].to_pylist()
        if not _is_finished(output, identifiers, fingerprint):
            jobs.append(partial(_extract_shard, path, output, fingerprint))
            sizes.append(len(identifiers))
    for _ in _run_jobs(jobs, sizes, codec, num_processes, "units"):
        pass
    _report_rows_left_out(rows, corpus_folder)


def _report_rows_left_out(rows: dict[Path, list[str]], corpus_folder: str | os.PathLike) -> None:
    """Print which rows of which shards have no units, and why; `ShardError` where none has."""
    left_out = {
        _row_name(output, identifiers[number]): reason
        for output, identifiers in rows.items()
        for number, reason in _rows_left_out(output).items()
    }
    num_rows = sum(map(len, rows.values()))
    report_left_out(left_out, num_rows)
    if left_out and len(left_out) == num_rows:
        name, reason = next(iter(left_out.items()))
        raise ShardError(f"none of the {num_rows} rows of {corpus_folder} can be encoded; {name}: {reason}")


def _rows_left_out(output: Path) -> dict[int, str]:
    """The numbers of the rows of a corpus shard that a shard of units lacks, and why."""
    with _opened_shard(output) as file:
        left_out = json.loads((file.schema_arrow.metadata or {}).get(_LEFT_OUT, b"{}"))
    return {int(number): reason for number, reason in left_out.items()}


@dataclass(frozen=True)
class UnitUtterance:
    """An utterance of a corpus with the units of it.

    `audio`: the encoded file, 16 kHz. `num_samples`: of the audio. `units`: int16 array, repeats kept. `voice`: who
    speaks.
    """

    audio: bytes
    num_samples: int
    units: np.ndarray
    voice: str = ""

    def read_samples(self, start: int, count: int) -> np.ndarray:
        """Return float32 samples from `start` on, at most `count`; only what is asked for is decoded."""
        with soundfile.SoundFile(io.BytesIO(self.audio)) as file:
            file.seek(min(start, file.frames))
            return file.read(count, dtype="float32")


def load_unit_utterances(
    corpus_folders: Sequence[str | os.PathLike], unit_folders: Sequence[str | os.PathLike], split: str
) -> list[UnitUtterance]:
    """Read the utterances of a split together with their units; the audio stays encoded in memory.

    Args:
        corpus_folders: parquet shards with `id`, `split`, `audio` (16 kHz), `num_samples` and `voice`.
        unit_folders: what [`extract_units`] made of each of these corpora, in the same order.
        split: "train", "validation" or "test".

    Raises [`ShardError`] for shards that are damaged, missing, of other rows or of two encoders, and when no corpus
    has the split; `ValueError` when there are not as many unit folders as corpora.
    """
    if len(corpus_folders) != len(unit_folders):
        found = f"{len(corpus_folders)} corpora and {len(unit_folders)} unit folders"
        raise ValueError(f"found {found}; expected one unit folder for each corpus")
    utterances, encoders = [], set()
    for corpus_folder, unit_folder in zip(corpus_folders, unit_folders, strict=True):
        for path in shard_paths(corpus_folder):
            unit_path = Path(unit_folder) / path.name
            if not unit_path.is_file():
                raise ShardError(f"{unit_path} is missing; run extract-units on {corpus_folder} again")
            table = _read_columns(unit_path, ["id", "units", "encoder"])
            encoders.update(table["encoder"].to_pylist())
            utterances += _utterances_of_shard(path, unit_path, table, split)
    if len(encoders) > 1:
        raise ShardError(f"the units are of {len(encoders)} encoders, {', '.join(sorted(encoders))}; expected one")
    if not utterances:
        raise ShardError(f"no row of the split {split!r} in {', '.join(map(str, corpus_folders))}")
    return utterances


def _utterances_of_shard(path: Path, unit_path: Path, units: pa.Table, split: str) -> list[UnitUtterance]:
    table = _read_columns(path, ["id", "split", "audio", "num_samples", "sampling_rate", "voice"])
    table = _without(table, _rows_left_out(unit_path))
    if table["id"].to_pylist() != units["id"].to_pylist():
        raise ShardError(f"{unit_path} is of other rows than {path}; run extract-units on that corpus again")
    found = set(table["sampling_rate"].to_pylist()) - {_CORPUS_SAMPLING_RATE}
    if found:
        raise ShardError(f"{path} has audio of {sorted(found)} Hz; expected {_CORPUS_SAMPLING_RATE} Hz")
    columns = zip(*(table[name].to_pylist() for name in ("split", "audio", "num_samples", "voice")), strict=True)
    return [
        UnitUtterance(audio["bytes"], num_samples, np.asarray(row, dtype=np.int16), voice)
        for (row_split, audio, num_samples, voice), row in zip(columns, units["units"].to_pylist(), strict=True)
        if row_split == split
    ]


def _is_finished(output: Path, identifiers: Sequence[str], fingerprint: str) -> bool:
    """Whether an output shard exists for exactly these rows; units of another encoder are refused."""
    try:
        table = _read_columns(output, ["id", "encoder"])
    except (ShardError, FileNotFoundError):
        return False
    found = set(table["encoder"].to_pylist())
    if found - {fingerprint}:
        raise ShardError(
            f"{output} holds units of the encoder {', '.join(sorted(found))}, but this encoder is {fingerprint}; "
            "units of two encoders cannot be mixed, so choose another output folder or delete the old units"
        )
    left_out = _rows_left_out(output)
    return table["id"].to_pylist() == [item for number, item in enumerate(identifiers) if number not in left_out]


def _without(table: pa.Table, numbers: Collection[int]) -> pa.Table:
    return table.filter(pa.array([number not in numbers for number in range(table.num_rows)], pa.bool_()))


def _extract_shard(
    path: Path, output: Path, fingerprint: str, codec: SpeechCodec, check_stop: Callable[[], None]
) -> None:
    """Encode one shard and write its output in one step."""
    streams, left_out = [], {}
    for number, name, audio in _iterate_audio(path):
        check_stop()
        try:
            streams += codec.encode([load_audio(audio, codec.input_sampling_rate, name=name)])
        except ValueError as error:
            left_out[number] = str(error)
    with _opened_shard(path) as file:
        table = file.read(columns=[name for name in file.schema_arrow.names if name != "audio"])
    table = _without(table, left_out)
    for name, field in STREAM_FIELDS.items():
        if name in codec.stream_names:
            table = table.rename_columns(
                [f"{field}_name" if column == field else column for column in table.schema.names]
            )
            values = [getattr(item, field).astype(np.int16) for item in streams]
            table = table.append_column(field, pa.array(values, pa.list_(pa.int16())))
    table = table.append_column("encoder", pa.array([fingerprint] * len(streams), pa.string()))
    # A corpus names there which of its items have no row.
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"left_out"}
    metadata |= {_LEFT_OUT: json.dumps(left_out)} if left_out else {}
    _write_table(table.replace_schema_metadata(metadata), output)


def _write_table(table: pa.Table, output: Path) -> None:
    try:
        with atomic_file(output) as partial:
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {output} ({error}); make room on the disk and run again, finished shards stay"
        ) from error


def shard_paths(folder: str | os.PathLike) -> list[Path]:
    """Return the shards of a corpus or of units; [`ShardError`] where there are none, or the corpus is unfinished."""
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise ShardError(f"{folder} holds no parquet shards; prepare the corpus first")
    if (Path(folder) / MANIFEST).exists():  # A corpus of other tools has none.
        for path, _ in corpus_shards(folder):
            if path not in paths:
                raise ShardError(f"{path} is missing, the corpus is unfinished; run its preparation again to resume")
    return paths


class _opened_shard:
    """Context of an open shard, in which every reading error becomes a [`ShardError`] that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> pq.ParquetFile:
        try:
            self.file = pq.ParquetFile(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            self._refuse(error)
        return self.file

    def __exit__(self, kind, error, traceback) -> None:
        self.file.close()
        if isinstance(error, (pa.ArrowException, OSError)):
            self._refuse(error)

    def _refuse(self, error: Exception):
        if isinstance(error, FileNotFoundError):
            raise error
        raise ShardError(f"{self.path} is a damaged shard ({error}); delete it and make it again") from error


def _read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    with _opened_shard(path) as file:
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise ShardError(f"{path} lacks the columns {missing}; found {file.schema_arrow.names}")
        return file.read(columns=list(columns))


def _iterate_audio(path: Path, numbers: set[int] | None = None) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, name and encoded audio of the rows of a shard (of those with these numbers)."""
    with _opened_shard(path) as file:
        schema = file.schema_arrow
        missing = sorted({"id", "audio"} - set(schema.names))
        if missing:
            raise ShardError(f"{path} lacks the columns {missing}; found {schema.names}")
        kind = schema.field("audio").type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ShardError(f"{path} has a column audio of the type {kind}; expected a struct with encoded bytes")
        number = -1
        for batch in file.iter_batches(batch_size=_ROWS_PER_READ, columns=["id", "audio"]):
            for row in batch.to_pylist():
                number += 1
                if numbers is None or number in numbers:
                    yield number, _row_name(path, row["id"]), (row["audio"] or {}).get("bytes") or b""


def _row_name(path: Path, identifier: str) -> str:
    return f"{path.name}, row {identifier!r}"


def _run_jobs(
    jobs: Sequence[Callable], sizes: Sequence[int], codec: SpeechCodec, num_processes: int, description: str
) -> Iterator[tuple[int, Any]]:
    """Run `job(codec, check_stop)` for each job; yield number and result as they finish, with a progress bar."""
    with tqdm(total=sum(sizes), desc=description, unit="utterance") as progress:
        for index, result in _results(jobs, codec, min(num_processes, len(jobs))):
            progress.update(sizes[index])
            yield index, result


def _results(jobs: Sequence[Callable], codec: SpeechCodec, num_processes: int) -> Iterator[tuple[int, Any]]:
    if num_processes <= 1:
        for index, job in enumerate(jobs):
            yield index, job(codec, lambda: None)
        return
    # A forked child may inherit locked OpenMP threads; a spawned one starts clean and reads the encoders from disk.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        save_encoders(codec, folder)
        with ProcessPoolExecutor(num_processes, context, _start_worker, (folder, stop)) as executor:
            try:
                numbers = {executor.submit(_run_in_worker, job): index for index, job in enumerate(jobs)}
                for future in as_completed(numbers):
                    yield numbers[future], future.result()
            except BaseException:
                # Ctrl-C included: workers leave their shard at the next utterance.
                stop.set()
                executor.shutdown(wait=True, cancel_futures=True)
                raise


_worker: dict[str, Any] = {}


def _start_worker(folder: str, stop) -> None:
    """Runs once in each worker process; Ctrl-C reaches it through the event that the parent sets."""
    follow_parent()
    torch.set_num_threads(1)
    # Its bars would be written across the one of the parent.
    disable_progress_bar()
    _worker["codec"] = load_codec(folder)
    _worker["stop"] = stop


def _run_in_worker(job: Callable) -> Any:
    return job(_worker["codec"], _check_stop)


def _check_stop() -> None:
    if _worker["stop"].is_set():
        raise InterruptedError("stopped by the main process")
