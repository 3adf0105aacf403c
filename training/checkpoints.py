"""Checkpoints of training runs: detection of complete checkpoints, atomic writing, and saving of finished models."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.trainer_utils import sort_checkpoints

from ..data.storage import read_json, replace_folder, write_json

CHECKPOINT_MARKER = "checkpoint_complete.json"
_PARTIAL = ".checkpoint-{}.partial"


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the newest complete checkpoint of a run, or None where it has none.

    A checkpoint is complete if it has its marker, which is written last, and every file has the size that the marker
    records. An incomplete checkpoint, for example after a full disk or an interrupted copy, is skipped with a warning.
    So is a checkpoint of the weights alone (`save_only_model`), from which a run cannot be resumed.
    """
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        if is_complete(checkpoint):
            return checkpoint
        warnings.warn(f"{checkpoint} is not a complete checkpoint and is ignored", stacklevel=2)
    return None


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Return whether a run can be resumed from a checkpoint.

    This requires the marker, every file that the marker names in the recorded size, and the states of the random
    number generators, which a checkpoint of the weights alone lacks.
    """
    try:
        sizes = read_json(Path(checkpoint) / CHECKPOINT_MARKER)["files"]
        has_states = any(name.startswith("rng_state") for name in sizes)
        return has_states and all((Path(checkpoint) / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def file_sizes(folder: str | os.PathLike) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its relative path."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def partial_checkpoints(output_dir: str | os.PathLike, writer: int | str) -> Path:
    """Return the hidden folder in which the process `writer` assembles checkpoints of a run."""
    return Path(output_dir) / _PARTIAL.format(writer)


def complete_checkpoint(partial: Path, checkpoint: Path) -> None:
    """Write the marker of an assembled checkpoint and move it to its final name."""
    write_json({"files": file_sizes(partial)}, partial / CHECKPOINT_MARKER)
    replace_folder(partial, checkpoint)
    shutil.rmtree(partial.parent, ignore_errors=True)


def remove_partial_checkpoints(output_dir: str | os.PathLike) -> None:
    """Remove checkpoints that a killed process was writing."""
    for leftover in Path(output_dir).glob(_PARTIAL.format("*")):
        shutil.rmtree(leftover, ignore_errors=True)


def save_in_bfloat16(model: PreTrainedModel, folder: str | Path) -> None:
    """Save a model with weights in bfloat16, at half the size of float32.

    The config keeps the dtype of the model, so that the weights are converted back on loading. Weights that are stored
    in 8 bits are saved in 8 bits.
    """
    state = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)


@contextmanager
def own_class(model: PreTrainedModel) -> Iterator[None]:
    """Let a model be of the class that it was made of, while it is saved.

    FSDP2 makes it one of a subclass that torch defines, and transformers would save torch's source as the code of the
    model, in place of its own.
    """
    found = type(model)
    if issubclass(found, FSDPModule):
        model.__class__ = found.__bases__[-1]
    try:
        yield
    finally:
        model.__class__ = found
