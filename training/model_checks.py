"""Checks of a student and its teacher, run at construction of the trainer so that errors appear before training."""

import math

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..processing_tinywave import ID_LAYOUT_FIELDS
from .arguments import DistillationArguments

# Two models share a vocabulary only if each of these fields that both configs have is equal. The fields define the
# meaning of ids; context length, stream rates and the padding id may differ.
_ID_LAYOUT_FIELDS = tuple(
    name
    for name in ID_LAYOUT_FIELDS
    if not name.endswith("_rate") and name not in ("pad_token_id", "max_position_embeddings")
)
# Settings of other architectures that transform logits after the LM head; the chunked losses would ignore them.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def check_id_layouts(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise `ValueError` with both values if student and teacher assign different meanings to the same ids."""
    for name in _ID_LAYOUT_FIELDS:
        values = [getattr(config, name, None) for config in (student, teacher)]
        if None not in values and values[0] != values[1]:
            raise ValueError(
                f"Student and teacher must share one vocabulary and id layout; `{name}` is {values[0]} in the student "
                f"and {values[1]} in the teacher."
            )


def check_trainable(student: PreTrainedModel) -> None:
    """Raise `ValueError` for a student whose activations cannot be recorded during training."""
    if hasattr(student, "_orig_mod") or getattr(student, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "The student was compiled with torch.compile, which does not support the taps distillation reads; pass "
            "the model itself."
        )
    for block in getattr(student.get_decoder(), "layers", ()):
        checkpointing = getattr(block, "_gradient_checkpointing_func", None)
        if getattr(block, "gradient_checkpointing", False) and checkpointing.keywords.get("use_reentrant"):
            raise ValueError(
                "The student uses reentrant activation checkpointing, which silently drops the gradient of the "
                "attention term. Enable it with use_reentrant=False."
            )


def check_head(model: PreTrainedModel) -> None:
    """Raise `ValueError` for a model whose logits are not just the product of hidden states and one matrix."""
    head = model.get_output_embeddings()
    transforms = [name for name in _LOGIT_TRANSFORMS if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if type(head) is not nn.Linear or head.bias is not None or transforms:
        raise ValueError(
            f"The LM head of {type(model).__name__} must be a plain linear layer without bias, adapter or scaling; "
            f"found {type(head).__name__}{' and ' + ', '.join(transforms) if transforms else ''}."
        )


def check_not_empty(**datasets) -> None:
    """Raise `ValueError` for a data set without examples; `None` and data sets without a length are accepted."""
    for name, dataset in datasets.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise ValueError(f"`{name}` is empty: there is nothing to distil on. Check the folder it was read from.")


def resolve_relation_heads(
    student: PreTrainedConfig, teacher: PreTrainedConfig, arguments: DistillationArguments
) -> tuple[int, int] | None:
    """Return the numbers of relation heads of queries and of keys, or `None` if attention rows are compared.

    Attention rows are compared head to head, without relation heads.

    Raises:
        ValueError: if attention rows are requested for models with different head counts, or the number of relation
            heads does not divide the concatenated queries or keys of both models.
    """
    heads = [
        (config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        for config in (student, teacher)
    ]
    same_heads = heads[0][0] == heads[1][0]
    if arguments.attention_loss == "rows" and not same_heads:
        raise ValueError(
            f"The attention term compares head to head: the student has {heads[0][0]} heads and the teacher "
            f"{heads[1][0]}. Use a student with as many heads, or set attention_loss='relations'."
        )
    if arguments.attention_loss == "rows" or (arguments.attention_loss == "auto" and same_heads):
        return None
    if arguments.num_relation_heads is None:
        return math.gcd(heads[0][0], heads[1][0]), math.gcd(heads[0][1], heads[1][1])
    for config, counts in zip((student, teacher), heads, strict=True):
        for kind, count in zip(("queries", "keys"), counts, strict=True):
            width = count * _head_size(config)
            if width % arguments.num_relation_heads:
                raise ValueError(
                    f"`num_relation_heads` is {arguments.num_relation_heads}, which does not divide the {width} "
                    f"numbers of the {kind} of the {'student' if config is student else 'teacher'}."
                )
    return arguments.num_relation_heads, arguments.num_relation_heads


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
