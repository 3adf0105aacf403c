"""Writing the weights of a model folder: tensor by tensor, shard by shard, continued after an interruption.

A shard appears under its own name only when it is complete. The report beside the shards holds their sha256, so that
the next run skips those that are still what was written. At no time is more than one tensor in memory.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.storage import atomic_file, file_sha256, read_json, write_json
from .key_report import TensorSpec

MAX_SHARD_BYTES = 4_000_000_000
REPORT_FILE = "convert_report.json"
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Configuration, code, tokenizer, card and report.
_SMALL_FILES_BYTES = 16_000_000
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the result.

    Args:
        name (`str`): in the result.
        spec ([`TensorSpec`]): shape and dtype in the result.
        read: returns the tensor; called once, when it is written.
    """

    name: str
    spec: TensorSpec
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shard:
    """A file of weights and the tensors in it."""

    file: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors, without the header of the file."""
        return sum(tensor.spec.num_bytes for tensor in self.tensors)


def plan_shards(tensors: Iterable[PlannedTensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Distribute tensors, in their order, over the fewest files of at most `max_shard_bytes`.

    A tensor larger than that gets a file of its own. One file is called `model.safetensors`.
    """
    groups: list[list[PlannedTensor]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(item.spec.num_bytes for item in [*groups[-1], tensor]) > max_shard_bytes:
            groups.append([])
        groups[-1].append(tensor)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return [Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def existing_parent(folder: Path) -> Path:
    """Return the folder itself, or the nearest folder above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_free_disk(folder: Path, num_bytes: int) -> None:
    """Raise `ValueError` naming the bytes needed and available where `folder` has no room for `num_bytes` of weights.

    The small files of a model folder are added to the need.
    """
    needed = num_bytes + _SMALL_FILES_BYTES
    available = shutil.disk_usage(existing_parent(folder)).free
    if needed > available:
        raise ValueError(
            f"the conversion needs {needed:,} bytes in {folder}, and {available:,} are available; free "
            f"{needed - available:,} bytes or choose a destination on another disk"
        )


class ShardWriter:
    """Writes the shards of one model folder and remembers which of them are finished.

    Args:
        folder: where the shards are written; made if needed.
        shards: of [`plan_shards`].
        fingerprint: identifies the source and the options; finished shards of another fingerprint are not kept.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], fingerprint: str):
        self.folder = folder
        self.shards = shards
        self.fingerprint = fingerprint
        self.digests = self._finished_digests()

    def _finished_digests(self) -> dict[str, str]:
        """Return file -> sha256 of the shards that a run with the same fingerprint finished and that are unchanged."""
        path = self.folder / REPORT_FILE
        if not path.is_file():
            return {}
        try:
            report = read_json(path)
            recorded = dict(report["sha256"]) if report["fingerprint"] == self.fingerprint else {}
        except (KeyError, TypeError, ValueError):
            return {}
        return {
            shard.file: recorded[shard.file]
            for shard in self.shards
            if recorded.get(shard.file) and recorded[shard.file] == file_sha256(self.folder / shard.file)
        }

    @property
    def unfinished(self) -> list[Shard]:
        """The shards that [`~ShardWriter.write`] will write."""
        return [shard for shard in self.shards if shard.file not in self.digests]

    def record(self) -> dict[str, str | dict[str, str]]:
        """Return what the next run needs to recognise the finished shards."""
        return {"fingerprint": self.fingerprint, "sha256": dict(sorted(self.digests.items()))}

    def write(self, progress: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Write every unfinished shard, then the index where there is more than one.

        Args:
            progress: called after each tensor with its bytes.

        Raises `ValueError` where a tensor is not finite in its dtype.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed leaves the shard it was writing.
        for leftover in self.folder.glob(".model*.partial"):
            leftover.unlink()
        for shard in self.unfinished:
            self.digests[shard.file] = write_safetensors(self.folder / shard.file, shard.tensors, progress)
            write_json(self.record() | {"complete": False}, self.folder / REPORT_FILE)
        if len(self.shards) > 1:
            index = {
                "metadata": {"total_size": sum(shard.num_bytes for shard in self.shards)},
                "weight_map": {tensor.name: shard.file for shard in self.shards for tensor in shard.tensors},
            }
            write_json(index, self.folder / "model.safetensors.index.json")


def write_safetensors(
    path: Path, tensors: Sequence[PlannedTensor], progress: Callable[[int], object] = lambda num_bytes: None
) -> str:
    """Write a safetensors file, one tensor in memory at a time, and return its sha256.

    The format: 8 bytes little-endian with the length of a JSON header (name -> dtype, shape, byte range), the header,
    the values (https://github.com/huggingface/safetensors).

    Raises `ValueError` where a floating tensor holds a value that is not finite.
    """
    # Wide types first: every tensor then begins at a multiple of its own item size.
    ordered = sorted(tensors, key=lambda tensor: (-tensor.spec.dtype.itemsize, tensor.name))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in ordered:
        end = position + tensor.spec.num_bytes
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.spec.dtype],
            "shape": list(tensor.spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with atomic_file(path) as partial, open(partial, "wb") as file:
        for block in (len(encoded).to_bytes(8, "little"), encoded):
            digest.update(block)
            file.write(block)
        for tensor in ordered:
            values = _values(tensor)
            digest.update(values)
            file.write(values)
            progress(len(values))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _values(planned: PlannedTensor) -> memoryview:
    """Return the bytes of a tensor in its planned dtype."""
    found = planned.read()
    tensor = found.detach().to(planned.spec.dtype).contiguous()
    if tensor.shape != planned.spec.shape:
        raise ValueError(f"{planned.name} has shape {list(tensor.shape)}; expected {list(planned.spec.shape)}")
    if not _is_finite(tensor):
        if _is_finite(found):
            raise ValueError(f"{planned.name} has values too large for {tensor.dtype}; choose another --dtype")
        raise ValueError(f"{planned.name} holds NaN or infinite values: the file is damaged; download it again")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; looked at in pieces, which keeps the memory small."""
    pieces = tensor.reshape(-1).split(_READ_BYTES) if tensor.is_floating_point() else ()
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)
