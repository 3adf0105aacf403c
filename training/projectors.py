"""Linear maps from the student's width to its teacher's, one per aligned block: trained, resumed, never exported."""

import os

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from ..loading_tinywave import check_finite

PROJECTORS_NAME = "distill_projectors"
PROJECTORS_FILE = "distill_projectors.safetensors"


def add_projectors(student: PreTrainedModel, teacher_width: int, blocks: tuple[int, ...], seed: int) -> None:
    """Register one linear map per aligned student block, kept out of the student's saved weights.

    As a submodule of the student they are optimised, clipped, synchronised and zeroed with it: the training loop of
    transformers reads `model.parameters()`. They start at `N(0, 1 / width)`, which keeps the length of a vector.

    Args:
        student ([`~transformers.PreTrainedModel`]): changed in place.
        teacher_width (`int`): the teacher's hidden size.
        blocks (`tuple[int, ...]`): student blocks whose outputs are compared.
        seed (`int`): of the initial values.
    """
    width = student.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    projectors = nn.ModuleDict()
    for block in blocks:
        projector = nn.Linear(width, teacher_width, bias=False, dtype=student.dtype)
        nn.init.normal_(projector.weight, std=width**-0.5, generator=generator)
        projectors[str(block)] = projector
    student.add_module(PROJECTORS_NAME, projectors)
    student._keys_to_ignore_on_save = set(student._keys_to_ignore_on_save or ()) | {
        f"{PROJECTORS_NAME}.{name}" for name in projectors.state_dict()
    }


def save_projectors(student: PreTrainedModel, folder: str, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the projectors, if there are any, to `distill_projectors.safetensors` in `folder`.

    `state_dict` is the gathered state of the whole student where its parameters are sharded.
    """
    projectors = getattr(student, PROJECTORS_NAME, None)
    if projectors is None:
        return
    tensors = projectors.state_dict()
    if state_dict is not None:
        prefix = PROJECTORS_NAME + "."
        tensors = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    os.makedirs(folder, exist_ok=True)
    safetensors.torch.save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        os.path.join(folder, PROJECTORS_FILE),
    )


def load_projectors(student: PreTrainedModel, folder: str) -> None:
    """Read the projectors of a checkpoint; nothing happens where the student has none.

    Raises:
        FileNotFoundError: when the student has projectors and the checkpoint does not.
        ValueError: for a damaged file, and for projectors of other blocks or widths.
    """
    projectors = getattr(student, PROJECTORS_NAME, None)
    if projectors is None:
        return
    path = os.path.join(folder, PROJECTORS_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} is missing, so the trained projectors cannot be resumed. Resume from a checkpoint written "
            "by DistillationTrainer with the hidden term on."
        )
    try:
        projectors.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the student: {' '.join(str(error).split())}") from error
    check_finite(projectors, path)
