"""Initialize a student from its teacher by depth pruning and, if the student is narrower, width pruning.

Depth pruning follows arXiv 2506.23670 (section on initialization), width pruning Minitron (arXiv 2407.14679).
"""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .activation_importance import measure_importance
from .layer_map import LayerMap
from .width_pruning import WidthCut, head_size

_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
# Config fields that must be equal in student and teacher; pruning only changes sizes.
_SHARED_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_act",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def student_from_teacher(
    teacher: PreTrainedModel,
    layer_map: LayerMap,
    config: PreTrainedConfig | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> PreTrainedModel:
    """Return a smaller model of the teacher's class, initialized from the teacher's weights.

    Without `config` the student keeps the teacher's widths: the embeddings, final norm, LM head and mapped blocks are
    copied. With a narrower `config` it keeps the hidden channels, FFN units, attention heads and value channels with
    the largest activations on the calibration set (see [`WidthCut`]). Removing a part whose activations are zero for
    every input does not change the logits.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A causal LM with Llama's module layout (`model.layers`). It is not changed.
        layer_map ([`LayerMap`]):
            Assigns a teacher block to every student block `0 ... n-1`; its length is the depth of the student.
        config ([`~transformers.PreTrainedConfig`], *optional*):
            Config of the student, of the teacher's config class, with any smaller `hidden_size`, `intermediate_size`,
            `num_attention_heads`, `num_key_value_heads` and `head_dim`. If the hidden size differs, `rms_norm_eps` of
            the student is set to the teacher's value times teacher width / student width, whatever `config` contains,
            so that the norms stay equivalent. Default: the teacher's config with `num_hidden_layers` of the map.
        calibration (`Iterable[Mapping]`, *optional*):
            Batches with `input_ids` and optionally `attention_mask`, drawn from the student's training domain.
            Required if the student is narrower than the teacher. A thousand examples are enough.

    Returns:
        [`~transformers.PreTrainedModel`]: the student, which shares no storage with the teacher, in the teacher's
        dtype and on its device, trainable and in training mode.

    Raises:
        ValueError: if the map omits a student block or names a block that the teacher does not have, if the config is
            larger than the teacher's or differs in more than sizes, or if a narrower config comes without
            `calibration`.
    """
    num_student_layers = len(layer_map.pairs)
    if layer_map.student_blocks != tuple(range(num_student_layers)):
        raise ValueError(
            f"found student blocks {list(layer_map.student_blocks)} in the layer map; to initialize a student it must "
            f"name blocks 0 to {num_student_layers - 1} without a gap."
        )
    layer_map.check_depths(teacher.config.num_hidden_layers, num_student_layers)
    config = _checked_config(teacher.config, config, num_student_layers)
    cut = None
    if _is_narrower(config, teacher.config):
        if calibration is None:
            raise ValueError(
                "found a student narrower than its teacher but no `calibration`; pass batches with `input_ids` from "
                "the student's training domain to select the channels, units and heads that it keeps."
            )
        blocks = sorted(set(layer_map.teacher_blocks))
        cut = WidthCut(teacher, config, measure_importance(teacher, calibration, blocks))
    # The meta device allocates no storage: initializing billions of weights that are overwritten next takes minutes.
    with torch.device("meta"):
        student = type(teacher)(config)
    _copy_parameters(teacher, student, dict((student_block, block) for block, student_block in layer_map.pairs), cut)
    _copy_buffers(teacher, student)
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.train()


def student_config(
    teacher: PreTrainedConfig, layer_map: LayerMap, sizes: Mapping[str, int] | None = None
) -> PreTrainedConfig:
    """Return a copy of the teacher's config with the depth of a layer map and, optionally, other sizes.

    Args:
        teacher ([`~transformers.PreTrainedConfig`]): config of a model with Llama's layout. It is not changed.
        layer_map ([`LayerMap`]): its length is the number of hidden layers.
        sizes (`Mapping[str, int]`, *optional*): values of `hidden_size`, `intermediate_size`, `num_attention_heads`,
            `num_key_value_heads` and `head_dim`. Sizes that are left out, `head_dim` included, keep the teacher's
            value.

    Raises:
        ValueError: if `sizes` has another key, or the resulting config is invalid.
    """
    sizes = dict(sizes or {})
    unknown = sorted(set(sizes) - {*_WIDTHS, "head_dim"})
    if unknown:
        raise ValueError(
            f"A student cannot be given {', '.join(unknown)}; its sizes are {', '.join(_WIDTHS)}, head_dim."
        )
    return type(teacher)(**{**teacher.to_dict(), **sizes, "num_hidden_layers": len(layer_map.pairs)})


def _checked_config(
    teacher: PreTrainedConfig, config: PreTrainedConfig | None, num_student_layers: int
) -> PreTrainedConfig:
    """Return a copy of the student's config after checking it against the teacher's."""
    if config is None:
        config = copy.deepcopy(teacher)
        config.num_hidden_layers = num_student_layers
        return config
    if config.num_hidden_layers != num_student_layers:
        raise ValueError(
            f"The layer map makes a student of {num_student_layers} blocks; its config has "
            f"{config.num_hidden_layers}. Give both the same number."
        )
    for name in _SHARED_FIELDS:
        found, expected = getattr(config, name, None), getattr(teacher, name, None)
        if found != expected:
            raise ValueError(
                f"A student made of its teacher shares its `{name}`; found {found} in the student's config and "
                f"{expected} in the teacher's. Only sizes can be cut."
            )
    sizes = {name: (getattr(config, name), getattr(teacher, name)) for name in _WIDTHS}
    sizes["head_dim"] = head_size(config), head_size(teacher)
    for name, (found, largest) in sizes.items():
        if found > largest:
            raise ValueError(f"The student's `{name}` is {found}, more than the teacher's {largest}; it cannot grow.")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"The student has {config.num_attention_heads} attention heads and {config.num_key_value_heads} key-value "
            "heads, which cannot share them evenly; give num_key_value_heads as well, a divisor of the former."
        )
    config = copy.deepcopy(config)
    config.rms_norm_eps = teacher.rms_norm_eps * teacher.hidden_size / config.hidden_size
    return config


def _is_narrower(student: PreTrainedConfig, teacher: PreTrainedConfig) -> bool:
    return head_size(student) != head_size(teacher) or any(
        getattr(student, name) != getattr(teacher, name) for name in _WIDTHS
    )


def _copy_parameters(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    teacher_block_of: dict[int, int],
    cut: Callable[[str, torch.Tensor], torch.Tensor] | None,
) -> None:
    """Fill the meta-device `student` with copies of the teacher's parameters, or with the part that `cut` keeps."""
    sources = dict(teacher.named_parameters(remove_duplicate=False))
    for name in [name for name, _ in student.named_parameters(remove_duplicate=False)]:
        teacher_name = _teacher_name(name, teacher_block_of)
        source = sources[teacher_name].detach()
        module, attribute = _owner(student, name)
        copied = source.clone() if cut is None else cut(teacher_name, source).contiguous()
        setattr(module, attribute, torch.nn.Parameter(copied))


def _copy_buffers(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Copy the rotary frequencies, or recompute them if the head sizes differ."""
    if head_size(student.config) != head_size(teacher.config):
        rotary = student.get_decoder().rotary_emb
        student.get_decoder().rotary_emb = type(rotary)(student.config).to(teacher.device)
        return
    sources = dict(teacher.named_buffers())
    for name in [name for name, _ in student.named_buffers()]:
        module, attribute = _owner(student, name)
        module._buffers[attribute] = sources[name].detach().clone()


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
