"""Speech corpora in parquet shards, and the synthetic ones: texts spoken by the hibari and Kokoro voices.

A row is one recording. Of a synthetic corpus it is one document: its sentences are spoken one by one, joined with
short pauses and resampled to 16 kHz, with the times of all words and phones. The bytes depend only on the items and
the package versions, not on the number of processes. Work is resumable: a finished shard is never made again, and an
interrupted one leaves nothing behind.
"""

import contextlib
import errno
import functools
import hashlib
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soxr
from tqdm.auto import tqdm

from . import hibari_voice
from .audio_io import report_left_out, waveform_to_flac_bytes
from .kokoro_voice import MIX, TEST_VOICES, TRAIN_VOICES, KokoroVoice
from .pronunciation import TimedLabel, hibari_assets
from .storage import atomic_file, read_json
from .worker_processes import follow_parent

SAMPLING_RATE = 16_000
SPLITS = ("train", "validation", "test")
PAUSE_SECONDS = (0.12, 0.30)
"""Shortest and longest pause between two sentences of a document."""

MANIFEST = "corpus.json"
_FORMAT = 1
_ROWS_PER_GROUP = 50
_LEFT_OUT = b"left_out"


def _timed(label: str) -> pa.DataType:
    return pa.list_(pa.struct([(label, pa.string()), ("start", pa.float32()), ("end", pa.float32())]))


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("text", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("sampling_rate", pa.int32()),
        ("num_samples", pa.int64()),
        ("words", _timed("word")),
        ("phones", _timed("phone")),
        ("voice", pa.string()),
        ("style", pa.string()),
        ("licence", pa.string()),
        ("source", pa.string()),
        ("seed", pa.int64()),
    ]
)


class CorpusError(ValueError):
    """A corpus folder is damaged, incomplete, of other items, or mixes its splits."""


class SkippedItem(ValueError):
    """An item of a corpus that has no row, such as a recording that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class TextItem:
    """One document to be spoken.

    `id`: unique in its corpus. `split`: "train", "validation" or "test". `domain`: kind of text, such as "story".
    `sentences`: spoken one by one. `voice`: "hibari", a Kokoro voice or a mix of them; a test voice speaks, and is
    mixed, in "test" only.
    `style`: a key of `hibari_voice.STYLES`; Kokoro voices have "base" only. `seed`: of the noise and the pauses.
    `text_licence` and `source`: of the text. `phonemes`: one string a sentence, spoken in place of the spelling.

    Raises `ValueError` where these rules are broken.
    """

    id: str
    split: str
    domain: str
    sentences: tuple[str, ...]
    voice: str
    style: str
    seed: int
    text_licence: str
    source: str
    phonemes: tuple[str, ...] | None = None

    def __post_init__(self):
        _expect(self.split in SPLITS, self.id, f"split {self.split!r}", f"one of {SPLITS}")
        _expect(bool(self.sentences), self.id, "no sentences", "at least one")
        _expect(not isinstance(self.sentences, str), self.id, "sentences as one string", "a tuple of strings")
        _expect(self.seed >= 0, self.id, f"seed {self.seed}", "0 or above")
        voices = (hibari_voice.VOICE, *TRAIN_VOICES, *TEST_VOICES)
        speakers = self.voice.split(MIX)
        is_known = self.voice in voices or set(speakers) <= {*TRAIN_VOICES, *TEST_VOICES}
        _expect(is_known, self.id, f"voice {self.voice!r}", f"one of {voices}, or Kokoro voices joined by {MIX!r}")
        styles = tuple(hibari_voice.STYLES) if self.voice == hibari_voice.VOICE else ("base",)
        _expect(self.style in styles, self.id, f"style {self.style!r} of voice {self.voice}", f"one of {styles}")
        if set(speakers) & set(TEST_VOICES):
            _expect(self.split == "test", self.id, f"test voice {self.voice} in split {self.split!r}", "split 'test'")
        if self.phonemes is not None:
            found, expected = len(self.phonemes), len(self.sentences)
            _expect(found == expected, self.id, f"{found} phoneme strings", f"{expected}, one a sentence")


def _expect(condition: bool, identifier: str, found: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"Item {identifier!r}: found {found}; expected {expected}.")


class CorpusItem(Protocol):
    """What a row of a corpus is made from: a dataclass whose `id` is unique in the corpus."""

    id: str


def prepare_corpus(
    items: Sequence[TextItem], output_folder: str | Path, *, num_processes: int = 2, rows_per_shard: int = 200
) -> Path:
    """Speaks `items` into parquet shards of `SCHEMA` and returns `output_folder`.

    Shards that a previous call finished are kept, damaged ones are made again. Raises `CorpusError` if the folder
    holds other items, an item cannot be spoken, the disk is full or a worker process dies; finished shards stay valid.
    """
    hibari_assets()
    return write_corpus(
        items,
        _make_row,
        output_folder,
        source=metadata.version("hibari-tts"),
        description="Speaking",
        num_processes=num_processes,
        rows_per_shard=rows_per_shard,
    )


def write_corpus(
    items: Sequence[CorpusItem],
    make_row: Callable[[CorpusItem], dict],
    output_folder: str | Path,
    *,
    source: str,
    description: str,
    num_processes: int = 2,
    rows_per_shard: int = 200,
) -> Path:
    """Writes the row of every item into parquet shards of `SCHEMA`, and a manifest of them; returns `output_folder`.

    Args:
        items: what the rows are made from.
        make_row: a function of a module, since worker processes call it.
        output_folder: finished shards in it are kept, damaged ones are made again.
        source: changes when the same items would make other rows, as the version of a voice does.
        description: of the progress bar.
        num_processes (`int`, default 2): worker processes; 1 works in this process.
        rows_per_shard (`int`, default 200): rows of a file.

    An item for which `make_row` raises [`SkippedItem`] has no row; its reason is kept in the metadata of the shard and
    printed on standard error at the end.

    Raises `CorpusError` if the folder holds other items, no item has a row, the disk is full or a worker process dies,
    and what else `make_row` raises; finished shards stay valid.
    """
    folder = Path(output_folder)
    shards = [items[start : start + rows_per_shard] for start in range(0, len(items), rows_per_shard)]
    _check_unique_ids(items)
    _open_manifest(folder, items, [len(shard) for shard in shards], source)
    missing = [index for index, shard in enumerate(shards) if not _is_valid_shard(folder / _name(index), len(shard))]
    pending = [item for index in missing for item in shards[index]]
    done = len(items) - len(pending)
    with (
        _workers(functools.partial(_row_or_reason, make_row), min(num_processes, len(pending))) as make_rows,
        tqdm(total=len(items), initial=done, unit="recording", desc=description) as progress,
    ):
        rows = make_rows(pending)
        for index in missing:
            finished, left_out = [], {}
            for item in shards[index]:
                row = next(rows)
                if isinstance(row, SkippedItem):
                    left_out[item.id] = str(row)
                else:
                    finished.append(row)
                progress.update()
            _write_shard(finished, folder / _name(index), left_out)
    _report_left_out(folder, len(items))
    return folder


def _row_or_reason(make_row: Callable[[CorpusItem], dict], item: CorpusItem) -> "dict | SkippedItem":
    try:
        return make_row(item)
    except SkippedItem as reason:
        return reason


def _report_left_out(folder: Path, num_items: int) -> None:
    left_out = left_out_items(folder)
    report_left_out(left_out, num_items)
    if len(left_out) == num_items:
        raise CorpusError(f"None of the {num_items} recordings of {folder} can be used.")


def left_out_items(folder: str | Path) -> dict[str, str]:
    """Return the ids of the items of a corpus that have no row, each with the reason."""
    return {
        identifier: reason
        for path, _ in corpus_shards(folder)
        for identifier, reason in _left_out(pq.read_metadata(path)).items()
    }


def _left_out(shard: pq.FileMetaData) -> dict[str, str]:
    return json.loads((shard.metadata or {}).get(_LEFT_OUT, b"{}"))


@contextlib.contextmanager
def _workers(make_row: Callable[[CorpusItem], dict], num_processes: int):
    """Yields a function from items to an iterator of their rows, in order."""
    if num_processes <= 1:
        yield functools.partial(map, make_row)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=follow_parent)
    try:
        yield functools.partial(pool.map, make_row, chunksize=4)
    except BrokenProcessPool as error:
        raise CorpusError("A worker process died, often for lack of memory; run again to resume.") from error
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _voice(name: str):
    return hibari_voice.HibariVoice() if name == hibari_voice.VOICE else KokoroVoice()


def _speak(item: TextItem, index: int, seed: int):
    phonemes = None if item.phonemes is None else item.phonemes[index]
    if item.voice == hibari_voice.VOICE:
        return _voice(item.voice).synthesize(item.sentences[index], phonemes, style=item.style, seed=seed)
    return _voice("kokoro").synthesize(item.sentences[index], phonemes, voice=item.voice)


def _make_row(item: TextItem) -> dict:
    try:
        return _item_to_row(item)
    except ValueError as error:
        raise CorpusError(f"Item {item.id!r} cannot be spoken. {error}") from error


def _item_to_row(item: TextItem) -> dict:
    rng = np.random.default_rng(item.seed)
    seeds = rng.integers(2**31, size=len(item.sentences)).tolist()
    pauses = rng.uniform(*PAUSE_SECONDS, size=len(item.sentences))
    utterances = [_speak(item, index, seed) for index, seed in enumerate(seeds)]
    rate = utterances[0].sampling_rate
    pieces, words, phones, start = [], [], [], 0.0
    for utterance, pause in zip(utterances, pauses, strict=True):
        words += _shifted(utterance.words, "word", start)
        phones += _shifted(utterance.phones, "phone", start)
        pieces += [utterance.waveform, np.zeros(round(pause * rate), np.float32)]
        start += (len(pieces[-2]) + len(pieces[-1])) / rate
    # The document ends with its last sentence, not with a pause.
    pieces.pop()
    waveform = soxr.resample(np.concatenate(pieces), rate, SAMPLING_RATE, quality="HQ")
    return {
        "id": item.id,
        "split": item.split,
        "domain": item.domain,
        "text": " ".join(item.sentences),
        "sentences": list(item.sentences),
        "audio": {"bytes": waveform_to_flac_bytes(waveform, SAMPLING_RATE), "path": f"{item.id}.flac"},
        "sampling_rate": SAMPLING_RATE,
        "num_samples": len(waveform),
        "words": words,
        "phones": phones,
        "voice": item.voice,
        "style": item.style,
        "licence": f"Apache-2.0 ({_voice_name(item.voice)}); text: {item.text_licence}",
        "source": item.source,
        "seed": item.seed,
    }


def _shifted(times: Sequence[TimedLabel], name: str, start: float) -> list[dict]:
    return [{name: label, "start": start + begin, "end": start + end} for label, begin, end in times]


def _voice_name(voice: str) -> str:
    return "hibari-tts 0.2.1 voice" if voice == hibari_voice.VOICE else f"Kokoro-82M voice {voice}"


def iterate_corpus(folder: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """Yields the rows of a corpus in order, as dictionaries with `columns` (default: all of `SCHEMA`).

    Raises `CorpusError` naming the file if the corpus is missing, unfinished or damaged, and `ValueError` for columns
    that it does not have.
    """
    if unknown := set(columns or ()) - set(SCHEMA.names):
        raise ValueError(f"Found columns {sorted(unknown)}; expected some of {', '.join(SCHEMA.names)}.")
    for path, num_rows in corpus_shards(folder):
        if not path.exists():
            raise CorpusError(f"The corpus is unfinished, {path} is missing; run its preparation again to resume.")
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                found = file.metadata.num_rows + len(_left_out(file.metadata))
                if found != num_rows:
                    raise pa.ArrowInvalid(f"{found} rows, expected {num_rows}")
                for batch in file.iter_batches(batch_size=_ROWS_PER_GROUP, columns=columns):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{path} is damaged ({error}); delete it and run the preparation again.") from error


def corpus_shards(folder: str | Path) -> list[tuple[Path, int]]:
    """Shard files of a corpus with their numbers of rows, read from its manifest; `CorpusError` without one."""
    manifest = _read_manifest(Path(folder))
    return [(Path(folder) / _name(index), rows) for index, rows in enumerate(manifest["rows"])]


def sentence_key(sentence: str) -> str:
    """The letters and digits of a sentence, without case: what two sentences share that count as the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in sentence.casefold()).split())


def verify_splits(folder: str | Path) -> dict[str, int]:
    """Proves that no sentence is in two splits and no test voice outside "test"; returns the rows of each split.

    Sentences are compared by their letters and digits, without case. Raises `CorpusError` listing offenders.
    """
    rows_of_split = dict.fromkeys(SPLITS, 0)
    splits_of_sentence = defaultdict(set)
    offenders = []
    for row in iterate_corpus(folder, columns=("id", "split", "sentences", "voice")):
        rows_of_split[row["split"]] += 1
        for sentence in row["sentences"]:
            splits_of_sentence[sentence_key(sentence)].add(row["split"])
        if set(row["voice"].split(MIX)) & set(TEST_VOICES) and row["split"] != "test":
            offenders.append(f"test voice {row['voice']} in {row['split']} ({row['id']})")
    offenders += [
        f"{sentence!r} in {' and '.join(sorted(splits))}"
        for sentence, splits in splits_of_sentence.items()
        if len(splits) > 1
    ]
    if offenders:
        shown = "\n".join(offenders[:20])
        raise CorpusError(f"The splits of {folder} are not disjoint, {len(offenders)} offenders:\n{shown}")
    return rows_of_split


def _check_unique_ids(items: Sequence[CorpusItem]) -> None:
    if not items:
        raise CorpusError("Found no items for the corpus; give at least one.")
    seen = set()
    for item in items:
        if item.id in seen:
            raise CorpusError(f"Found two items with the id {item.id!r}; give every item its own.")
        seen.add(item.id)


def _name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def _open_manifest(folder: Path, items: Sequence[CorpusItem], rows: list[int], source: str) -> None:
    """Writes the manifest of a new corpus, or checks that the folder's own is of the same items."""
    digest = hashlib.sha256(f"{_FORMAT} {source}".encode())
    for item in items:
        digest.update(json.dumps(asdict(item), ensure_ascii=True).encode())
    manifest = {"format": _FORMAT, "fingerprint": digest.hexdigest(), "num_items": len(items), "rows": rows}
    if (folder / MANIFEST).exists():
        found = _read_manifest(folder)
        if found != manifest:
            raise CorpusError(
                f"{folder} holds a corpus of {found['num_items']} other items or another shard size; "
                "choose another folder, or delete it to make this corpus in its place."
            )
        return
    with _written_file(folder / MANIFEST) as path:
        path.write_text(json.dumps(manifest), encoding="utf-8")


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["format"] != _FORMAT:
            raise CorpusError(f"{path} has format {manifest['format']}, expected {_FORMAT}; make the corpus again.")
        return manifest
    except FileNotFoundError as error:
        raise CorpusError(f"Found no corpus in {folder}, {MANIFEST} is missing; prepare it first.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} is damaged ({error}); delete {folder} and prepare it again.") from error


def _is_valid_shard(path: Path, num_rows: int) -> bool:
    try:
        metadata_of_shard = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    num_found = metadata_of_shard.num_rows + len(_left_out(metadata_of_shard))
    return num_found == num_rows and metadata_of_shard.schema.to_arrow_schema().equals(SCHEMA)


def _write_shard(rows: list[dict], path: Path, left_out: dict[str, str]) -> None:
    with _written_file(path) as temporary:
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        if left_out:
            table = table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out)})
        options = {"compression": "zstd", "row_group_size": _ROWS_PER_GROUP, "write_page_checksum": True}
        pq.write_table(table, temporary, **options)


@contextlib.contextmanager
def _written_file(path: Path) -> Iterator[Path]:
    """Yield the temporary path of a file of the corpus; a full disk is a `CorpusError`."""
    try:
        with atomic_file(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CorpusError(f"The disk is full at {path.parent}; free some space, run again to resume.") from error
        raise
