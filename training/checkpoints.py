"""Where an interrupted training run continues, and how a finished model is shipped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(output_dir: Path) -> str | None:
    """Newest checkpoint of a run, or None where it has none yet."""
    return get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None


def save_in_bfloat16(model: PreTrainedModel, folder: str | Path) -> None:
    """Save with weights in bfloat16 and the dtype kept in the config: half the bytes, full precision on loading.

    What is stored in 8 bits stays so.
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
