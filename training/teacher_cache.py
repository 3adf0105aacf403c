"""A teacher's predictions on disk, so that a student is distilled without running its teacher.

A cache is a folder: `cache.json` (settings), `config.json` (of the teacher) and safetensors shards. It answers by the
content of an example, never by its place in an epoch: every example is found by a hash of its ids, of the teacher's
weights and of the settings. Data that is drawn anew for every epoch (interleaved speech and text) therefore needs the
draw of every epoch that is trained on in the cache; an example that is not there is refused, not approximated.

The last id of an example has no successor, so that an example of n ids has n - 1 rows. A shard holds, of all its
examples one after the other:

- `keys` (examples, 32) and `row_starts` (examples + 1): hashes, and where the rows of each example begin and end;
- `log_probabilities` (rows, k), fp32: of the known ids in `softmax(logits / temperature)`, in nats;
- `ids` (rows, k), where the known ids are the k likeliest of each row;
- `log_tail` (rows), where not all ids are known: logarithm of the probability of all others;
- `hidden.<block>` (rows, hidden size), where asked for: the residual stream after a block, in the teacher's dtype.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from ..data.storage import write_bytes, write_json
from .attention_tap import ActivationTap
from .decoder_pass import run_decoder
from .losses import at_least_float32
from .partial_targets import KnownProbabilities, known_probabilities, partial_kl

KNOWN_IDS = ("top_k", "speech", "all")
SETTINGS_FILE = "cache.json"
_KEY_BYTES = 32
_SHARD_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """What is kept of a teacher.

    Args:
        known_ids (`str`): "top_k" for the likeliest ids of every row, "speech" for all units, pitch and style tokens,
            "all" for the whole vocabulary.
        top_k (`int`, defaults to 64): how many, for "top_k".
        temperature (`float`, defaults to 1.0): that the distribution is softened with; the one of the logits term,
            except for "all", which can be softened later.
        hidden_blocks (`tuple[int, ...]`): teacher blocks whose output is kept; none by default.

    Raises:
        ValueError: for a setting out of its range.
    """

    known_ids: str
    top_k: int = 64
    temperature: float = 1.0
    hidden_blocks: tuple[int, ...] = ()

    def __post_init__(self):
        if self.known_ids not in KNOWN_IDS:
            raise ValueError(f"`known_ids` must be one of {KNOWN_IDS}; found {self.known_ids!r}.")
        if self.known_ids != "top_k":
            # Two caches that differ in a number nobody reads are the same.
            object.__setattr__(self, "top_k", 0)
        elif self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1; found {self.top_k}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be a positive number; found {self.temperature}.")
        object.__setattr__(self, "hidden_blocks", tuple(sorted(set(self.hidden_blocks))))

    def check(self, config: PreTrainedConfig) -> None:
        """Raise `ValueError` where a teacher of this config has not what is to be kept."""
        if self.known_ids == "top_k" and self.top_k >= config.vocab_size:
            raise ValueError(
                f"`top_k` is {self.top_k}, and the teacher has {config.vocab_size} ids; keep fewer, or all of them."
            )
        if self.known_ids == "speech" and not hasattr(config, "stream_ranges"):
            raise ValueError(f"{type(config).__name__} does not say which ids are speech; keep 'top_k' or 'all'.")
        outside = [block for block in self.hidden_blocks if not 0 <= block < config.num_hidden_layers]
        if outside:
            raise ValueError(
                f"Hidden states of blocks {outside} are to be kept; the teacher has the blocks 0 to "
                f"{config.num_hidden_layers - 1}."
            )

    def id_ranges(self, config: PreTrainedConfig) -> list[list[int]]:
        """`[first, last + 1]` of the known ids where they are the same in every row; empty for "top_k"."""
        if self.known_ids == "top_k":
            return []
        if self.known_ids == "all":
            return [[0, config.vocab_size]]
        return [[ids.start, ids.stop] for name, ids in config.stream_ranges().items() if name != "text"]

    def bytes_per_row(self, config: PreTrainedConfig, dtype: torch.dtype) -> int:
        """Bytes of one row of a teacher with weights of `dtype`."""
        numbers = 2 * self.top_k if self.known_ids == "top_k" else len(ranges_to_ids(self.id_ranges(config)))
        numbers += self.known_ids != "all"
        return 4 * numbers + len(self.hidden_blocks) * config.hidden_size * dtype.itemsize


def ranges_to_ids(ranges: Sequence[Sequence[int]]) -> torch.Tensor:
    """The ids of some ranges one after the other, of shape `(k,)`."""
    return torch.cat([torch.arange(first, stop) for first, stop in ranges])


def teacher_fingerprint(model: PreTrainedModel) -> str:
    """A hash of the names, shapes and values of all weights, which are read once from beginning to end."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def example_key(cache_id: str, ids: Sequence[int] | np.ndarray) -> bytes:
    """The 32 bytes by which an example is found in the cache `cache_id`."""
    return hashlib.sha256(cache_id.encode() + np.asarray(ids, dtype="<i4").tobytes()).digest()


class TeacherCacheWriter:
    """Fills a cache folder; one that was interrupted continues where its last whole shard ends.

    Args:
        model ([`~transformers.PreTrainedModel`]): the teacher, a causal LM of Llama's layout. It is put in evaluation
            mode.
        folder (`str` or `Path`): made if needed.
        settings ([`CacheSettings`]): what is kept.

    Raises:
        ValueError: when the folder is the cache of another teacher or has other settings, or a shard in it is damaged.
    """

    def __init__(self, model: PreTrainedModel, folder: str | os.PathLike, settings: CacheSettings):
        settings.check(model.config)
        self.model, self.folder, self.settings = model.eval(), Path(folder), settings
        ranges = settings.id_ranges(model.config)
        self._fixed_ids = ranges_to_ids(ranges) if ranges else None
        self._tap = ActivationTap(model, hidden_blocks=settings.hidden_blocks, attention_blocks=())
        description = {"teacher": teacher_fingerprint(model), "id_ranges": ranges, **dataclasses.asdict(settings)}
        self.description = json.loads(json.dumps(description))
        self._check_folder()
        self.cache_id = cache_id(self.description)
        self._shards = shard_files(self.folder)
        self.finished = {key for shard in self._shards for key, _, _ in read_index(shard)}

    def _check_folder(self) -> None:
        path = self.folder / SETTINGS_FILE
        if not path.is_file():
            return
        existing = read_description(self.folder)
        for name, expected in self.description.items():
            if existing.get(name) != expected:
                raise ValueError(
                    f"{self.folder} is a cache with another `{name}`: {existing.get(name)}, in place of {expected}. "
                    "Choose a new folder."
                )

    def missing(self, examples: Iterable[Sequence[int]]) -> Iterator[tuple[bytes, Sequence[int]]]:
        """The (key, ids) of each example that is not in the cache yet, once; those of a single id have no row.

        Raises `ValueError` for text where only speech is kept.
        """
        seen = set(self.finished)
        text = self.model.config.stream_ranges()["text"] if self.settings.known_ids == "speech" else range(0)
        for ids in examples:
            key = example_key(self.cache_id, ids)
            if key in seen or len(ids) < 2:
                continue
            seen.add(key)
            if any(index in text for index in ids):
                raise ValueError(
                    "An example has text, of which a cache of speech ids knows nothing; keep 'top_k' or 'all' ids."
                )
            yield key, ids

    def estimate(self, examples: Iterable[Sequence[int]]) -> tuple[int, int, int]:
        """Examples, rows and bytes still to be written for these examples."""
        lengths = [len(ids) for _, ids in self.missing(examples)]
        num_rows = sum(lengths) - len(lengths)
        per_row = self.settings.bytes_per_row(self.model.config, self.model.dtype)
        return len(lengths), num_rows, num_rows * per_row + len(lengths) * (_KEY_BYTES + 8)

    def check_free_disk(self, num_bytes: int) -> None:
        """Raise `ValueError` naming both numbers where the disk has no room for `num_bytes`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        available = shutil.disk_usage(self.folder).free
        if num_bytes > available:
            raise ValueError(
                f"The cache needs {num_bytes:,} bytes in {self.folder}, and {available:,} are available; keep fewer "
                "ids, leave out hidden states, or choose a folder on another disk."
            )

    def write(
        self, examples: Iterable[Sequence[int]], batch_size: int = 8, shard_bytes: int = _SHARD_BYTES
    ) -> Iterator[int]:
        """Write what is missing, and yield the number of examples finished after every batch.

        Args:
            examples (`Iterable`): ids of each example.
            batch_size (`int`, defaults to 8): examples the teacher reads at once.
            shard_bytes (`int`, defaults to 256 MiB): a shard is closed when it is larger; what is not in a closed
                shard is lost when the run is interrupted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "config.json", self.model.config.to_json_string(use_diff=False).encode())
        write_json(self.description, self.folder / SETTINGS_FILE)
        shard, batch, size = [], [], 0
        per_row = self.settings.bytes_per_row(self.model.config, self.model.dtype)
        for example in self.missing(examples):
            batch.append(example)
            if len(batch) == batch_size:
                shard += self._predict(batch)
                size += per_row * sum(len(ids) - 1 for _, ids in batch)
                yield len(batch)
                batch = []
            if size >= shard_bytes:
                self._close(shard)
                shard, size = [], 0
        if batch:
            shard += self._predict(batch)
            yield len(batch)
        if shard:
            self._close(shard)

    @torch.no_grad()
    def compare(self, student: PreTrainedModel, examples: Iterable[Sequence[int]]) -> tuple[float, float]:
        """KL(teacher || student) over the whole vocabulary, and what is kept of it: the approximation error.

        Both are `temperature^2` times the mean over the rows of the examples, in nats.
        """
        whole, kept, num_rows = 0.0, 0.0, 0
        for ids in examples:
            ids = torch.as_tensor(ids, device=self.model.device)[None]
            teacher_logits, logits = (at_least_float32(model(ids).logits[0, :-1]) for model in (self.model, student))
            scale = self.settings.temperature
            log_teacher, log_student = ((scores / scale).log_softmax(-1) for scores in (teacher_logits, logits))
            kl = scale**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
            whole += kl.sum().item()
            is_whole = self.settings.known_ids == "all"
            kept += (kl if is_whole else partial_kl(logits, self._known(teacher_logits), scale)).sum().item()
            num_rows += len(kl)
        return whole / max(1, num_rows), kept / max(1, num_rows)

    @torch.no_grad()
    def _predict(self, batch: list[tuple[bytes, Sequence[int]]]) -> list[tuple[bytes, dict[str, torch.Tensor]]]:
        """The tensors of each example; rows are padded on the right, where a causal model does not look."""
        rows = [torch.as_tensor(ids, device=self.model.device) for _, ids in batch]
        with self._tap.record() as record:
            final = run_decoder(self.model, {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)})
        predictions = []
        for number, (key, ids) in enumerate(batch):
            tensors = self._keep(self.model.get_output_embeddings()(final[number, : len(ids) - 1]))
            for block, output in record.block_outputs.items():
                tensors[f"hidden.{block}"] = output[number, : len(ids) - 1].to(self.model.dtype)
            predictions.append((key, {name: tensor.cpu() for name, tensor in tensors.items()}))
        return predictions

    def _keep(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.settings.known_ids == "all":
            return {"log_probabilities": (at_least_float32(logits) / self.settings.temperature).log_softmax(-1)}
        known = self._known(logits)
        tensors = {"log_probabilities": known.log_probabilities, "log_tail": known.log_tail}
        return tensors | ({"ids": known.ids.int()} if self._fixed_ids is None else {})

    def _known(self, logits: torch.Tensor) -> KnownProbabilities:
        if self._fixed_ids is None:
            ids = logits.topk(self.settings.top_k).indices
        else:
            ids = self._fixed_ids.to(logits.device).expand(len(logits), -1)
        return known_probabilities(at_least_float32(logits), ids, self.settings.temperature)

    def _close(self, examples: list[tuple[bytes, dict[str, torch.Tensor]]]) -> None:
        """Write a whole shard under its own name."""
        tensors = {name: torch.cat([part[name] for _, part in examples]) for name in examples[0][1]}
        lengths = torch.tensor([0, *(len(part["log_probabilities"]) for _, part in examples)])
        keys = np.frombuffer(b"".join(key for key, _ in examples), dtype=np.uint8).reshape(-1, _KEY_BYTES)
        tensors |= {"keys": torch.from_numpy(keys.copy()), "row_starts": lengths.cumsum(0)}
        # Counted on from the last name, not by number: a damaged shard may have been taken away in between.
        number = int(self._shards[-1].stem.split("-")[1]) + 1 if self._shards else 0
        path = self.folder / f"shard-{number:05d}.safetensors"
        write_bytes(path, safetensors.torch.save(tensors))
        self._shards.append(path)
        self.finished.update(key for key, _ in examples)


def cache_id(description: Mapping) -> str:
    """What the keys of a cache depend on besides the ids: teacher and settings, in one line."""
    return json.dumps(description, sort_keys=True)


def read_description(folder: str | os.PathLike) -> dict:
    """Teacher and settings of a cache folder.

    Raises `FileNotFoundError` where there is none, `ValueError` where it cannot be read or lacks a setting.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no teacher cache (no {SETTINGS_FILE}); make one: tinywave cache-teacher"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); make the cache again.") from error
    expected = {"teacher", "id_ranges", *(field.name for field in dataclasses.fields(CacheSettings))}
    if not isinstance(description, dict) or set(description) != expected:
        found = sorted(description) if isinstance(description, dict) else type(description).__name__
        raise ValueError(f"{path} contains {found}; expected {sorted(expected)}. Make the cache again.")
    return description


def read_settings(folder: str | os.PathLike) -> tuple[CacheSettings, list[list[int]]]:
    """What is kept in a cache folder, and its ranges of known ids; errors as of [`read_description`]."""
    description = read_description(folder)
    settings = {field.name: description[field.name] for field in dataclasses.fields(CacheSettings)}
    ranges = description["id_ranges"]
    try:
        if any(not 0 <= first < stop for first, stop in ranges):
            raise ValueError(f"the ranges of ids are {ranges}")
        return CacheSettings(**settings), ranges
    except (TypeError, ValueError) as error:
        path = Path(folder) / SETTINGS_FILE
        raise ValueError(f"{path} has a wrong setting: {error}. Make the cache again.") from error


def shard_files(folder: Path) -> list[Path]:
    """The shards of a cache in order."""
    return sorted(folder.glob("shard-*.safetensors"))


def open_shard(path: Path):
    """Open a shard for reading parts of it. Raises `ValueError` naming a damaged file."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run tinywave cache-teacher again.") from error


def read_index(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """(key, first row, last row + 1) of every example of a shard."""
    shard = open_shard(path)
    try:
        starts, keys = shard.get_tensor("row_starts").tolist(), shard.get_tensor("keys").numpy()
        num_rows = shard.get_slice("log_probabilities").get_shape()[0]
    except SafetensorError as error:
        raise ValueError(f"{path} is no shard of a teacher cache ({error}); make the cache again.") from error
    if len(starts) != len(keys) + 1 or starts != sorted(starts) or starts[0] != 0 or starts[-1] != num_rows:
        raise ValueError(f"{path} has `row_starts` that do not divide its {num_rows} rows; make the cache again.")
    for key, start, stop in zip(keys, starts, starts[1:], strict=False):
        yield key.tobytes(), start, stop
