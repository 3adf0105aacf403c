"""Linear projectors from the student's width to the teacher's, one per aligned block.

They are trained and stored in checkpoints, but never part of the exported model.
"""

import os

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from ..loading_tinywave import check_finite

PROJECTORS_NAME = "distill_projectors"
PROJECTORS_FILE = "distill_projectors.safetensors"


def add_projectors(student: PreTrainedModel, teacher_width: int, blocks: tuple[int, ...], seed: int) -> None:
    """Register one linear projector per aligned student block, excluded from the student's saved weights.

    The projectors are a submodule of the student, because the training loop of transformers optimizes, clips,
    synchronizes and zeroes the gradients of `model.parameters()`. The initial values are drawn from `N(0, 1 / width)`,
    which preserves the expected norm of a vector.

    Args:
        student ([`~transformers.PreTrainedModel`]): the student, changed in place.
        teacher_width (`int`): hidden size of the teacher.
        blocks (`tuple[int, ...]`): student blocks whose outputs are compared.
        seed (`int`): seed of the initial values.
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
    """Load the projectors of a checkpoint into the student; do nothing if the student has none.

    Raises:
        FileNotFoundError: if the student has projectors and the checkpoint does not.
        ValueError: if the file is damaged, or its projectors are of other blocks or widths.
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
