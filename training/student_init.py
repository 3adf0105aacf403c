"""A student made of its teacher: some of its blocks, and where it is narrower the parts of them that do most.

Depth pruning follows arXiv 2506.23670 (section on initialisation), width pruning Minitron (arXiv 2407.14679).
"""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .activation_importance import measure_importance
from .layer_map import LayerMap
from .width_pruning import WidthCut, head_size

_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
# What a student computes in the same way as its teacher; only sizes can be cut.
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
    """Make a smaller model of the teacher's class out of the teacher's weights.

    Without `config` the student has the teacher's widths: its embeddings, final norm, LM head and mapped blocks are
    copied. A narrower `config` keeps the hidden channels, FFN units, attention heads and value channels that are most
    active on the calibration set ([`WidthCut`] says how). Whatever is cut away leaves the logits as they were if it
    was zero for every input.

    Args:
        teacher ([`~transformers.PreTrainedModel`]):
            A causal LM of Llama's layout (`model.layers`). It is not changed.
        layer_map ([`LayerMap`]):
            Gives every student block `0 ... n-1` its teacher block; its length is the depth of the student.
        config ([`~transformers.PreTrainedConfig`], *optional*):
            The student's, of the teacher's class, with any smaller `hidden_size`, `intermediate_size`,
            `num_attention_heads`, `num_key_value_heads` and `head_dim`. Where the hidden size differs the student's
            `rms_norm_eps` is the teacher's times teacher width / student width, whatever `config` says, so that the
            norms keep their meaning. Default: the teacher's with `num_hidden_layers` of the map.
        calibration (`Iterable[Mapping]`, *optional*):
            Batches with `input_ids` and optionally `attention_mask`, of the data the student is for; needed for
            another width. A thousand examples are enough.

    Returns:
        [`~transformers.PreTrainedModel`]: a student with storage of its own, in the teacher's dtype and on its device,
        trainable and in training mode.

    Raises:
        ValueError: when the map leaves out a student block or names a block the teacher does not have, when the config
            is larger than the teacher or differs in more than sizes, or when a narrower one comes without calibration.
    """
    num_student_layers = len(layer_map.pairs)
    if layer_map.student_blocks != tuple(range(num_student_layers)):
        raise ValueError(
            f"To initialise a student the layer map must name its blocks 0 to {num_student_layers - 1} without a "
            f"gap; found student blocks {list(layer_map.student_blocks)}."
        )
    layer_map.check_depths(teacher.config.num_hidden_layers, num_student_layers)
    config = _checked_config(teacher.config, config, num_student_layers)
    cut = None
    if _is_narrower(config, teacher.config):
        if calibration is None:
            raise ValueError(
                "A student narrower than its teacher keeps what is most active on a calibration set: pass "
                "`calibration`, batches with `input_ids` of the data the student is for."
            )
        blocks = sorted(set(layer_map.teacher_blocks))
        cut = WidthCut(teacher, config, measure_importance(teacher, calibration, blocks))
    # Built without storage: initialising billions of weights that are overwritten next takes minutes and memory.
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
    """The teacher's config with the depth of a layer map and, where `sizes` names them, other sizes.

    Args:
        teacher ([`~transformers.PreTrainedConfig`]): of Llama's layout; unchanged.
        layer_map ([`LayerMap`]): its length is the depth.
        sizes (`Mapping[str, int]`, *optional*): `hidden_size`, `intermediate_size`, `num_attention_heads`,
            `num_key_value_heads` and `head_dim`; the teacher's where they are left out, `head_dim` too.

    Raises:
        ValueError: for a name that is no size, or a config that is impossible.
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
    """The student's config in an object of its own, checked against the teacher's."""
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
    """Give every parameter of the meta-device `student` a copy of the teacher's, or the part that `cut` keeps."""
    sources = dict(teacher.named_parameters(remove_duplicate=False))
    for name in [name for name, _ in student.named_parameters(remove_duplicate=False)]:
        teacher_name = _teacher_name(name, teacher_block_of)
        source = sources[teacher_name].detach()
        module, attribute = _owner(student, name)
        copied = source.clone() if cut is None else cut(teacher_name, source).contiguous()
        setattr(module, attribute, torch.nn.Parameter(copied))


def _copy_buffers(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Copy the rotary frequencies, or compute them where another head size has others."""
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
