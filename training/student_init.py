"""Depth pruning: a student made of some of its teacher's blocks (arXiv 2506.23670, section on initialisation)."""

import copy

import torch
from transformers import PreTrainedModel

from .layer_map import LayerMap


def student_from_teacher(teacher: PreTrainedModel, layer_map: LayerMap) -> PreTrainedModel:
    """Copy a teacher's embeddings, final norm, LM head and mapped blocks into a shallower model of the same class.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A causal LM of Llama's layout (`model.layers`). It is not changed.
        layer_map ([`LayerMap`]):
            Gives every student block `0 ... n-1` its teacher block; its length is the depth of the student.

    Returns:
        [`~transformers.PreTrainedModel`]: a student with storage of its own, in the teacher's dtype and on its device,
        trainable and in training mode, whose config differs from the teacher's in `num_hidden_layers` only.

    Raises:
        ValueError: when the map leaves out a student block or names a block the teacher does not have.
    """
    num_student_layers = len(layer_map.pairs)
    if layer_map.student_blocks != tuple(range(num_student_layers)):
        raise ValueError(
            f"To initialise a student the layer map must name its blocks 0 to {num_student_layers - 1} without a "
            f"gap; found student blocks {list(layer_map.student_blocks)}."
        )
    layer_map.check_depths(teacher.config.num_hidden_layers, num_student_layers)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = num_student_layers
    # Built without storage: initialising billions of weights that are overwritten next takes minutes and memory.
    with torch.device("meta"):
        student = type(teacher)(config)
    _copy_tensors(teacher, student, dict((student_block, block) for block, student_block in layer_map.pairs))
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.train()


def _copy_tensors(teacher: PreTrainedModel, student: PreTrainedModel, teacher_block_of: dict[int, int]) -> None:
    """Give every parameter and buffer of the meta-device `student` a copy of the teacher's."""
    sources = dict(teacher.named_parameters(remove_duplicate=False)) | dict(teacher.named_buffers())
    for name in [name for name, _ in student.named_parameters(remove_duplicate=False)]:
        copied = sources[_teacher_name(name, teacher_block_of)].detach().clone()
        module, attribute = _owner(student, name)
        setattr(module, attribute, torch.nn.Parameter(copied))
    for name in [name for name, _ in student.named_buffers()]:
        module, attribute = _owner(student, name)
        module._buffers[attribute] = sources[_teacher_name(name, teacher_block_of)].detach().clone()


def _owner(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _teacher_name(name: str, teacher_block_of: dict[int, int]) -> str:
    """`model.layers.<student block>.x` -> `model.layers.<teacher block>.x`; other names are shared."""
    parts = name.split(".")
    if "layers" in parts:
        position = parts.index("layers") + 1
        parts[position] = str(teacher_block_of[int(parts[position])])
    return ".".join(parts)
