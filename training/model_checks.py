"""What must hold between a student and its teacher before they are compared: refused at construction, not later."""

import math

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..processing_tinywave import ID_LAYOUT_FIELDS
from .arguments import DistillationArguments

# Two models share their vocabulary only if every one of these that both configs have is equal: what an id means, but
# not how much context there is, how fast the streams are, or what rows are padded with.
_ID_LAYOUT_FIELDS = tuple(
    name
    for name in ID_LAYOUT_FIELDS
    if not name.endswith("_rate") and name not in ("pad_token_id", "max_position_embeddings")
)
# Settings of other architectures that change logits after the LM head, which the chunked losses read directly.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def check_id_layouts(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise `ValueError` naming both values where one id means different things to the two models."""
    for name in _ID_LAYOUT_FIELDS:
        values = [getattr(config, name, None) for config in (student, teacher)]
        if None not in values and values[0] != values[1]:
            raise ValueError(
                f"Student and teacher must share one vocabulary and id layout; `{name}` is {values[0]} in the student "
                f"and {values[1]} in the teacher."
            )


def check_trainable(student: PreTrainedModel) -> None:
    """Raise `ValueError` for a student whose blocks cannot be read while it trains."""
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
    """Raise `ValueError` for a model whose logits are more than hidden states times one matrix."""
    head = model.get_output_embeddings()
    transforms = [name for name in _LOGIT_TRANSFORMS if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if type(head) is not nn.Linear or head.bias is not None or transforms:
        raise ValueError(
            f"The LM head of {type(model).__name__} must be a plain linear layer without bias, adapter or scaling; "
            f"found {type(head).__name__}{' and ' + ', '.join(transforms) if transforms else ''}."
        )


def check_not_empty(**datasets) -> None:
    """Raise `ValueError` naming a data set that has no examples; `None` and data sets without a length pass."""
    for name, dataset in datasets.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise ValueError(f"`{name}` is empty: there is nothing to distil on. Check the folder it was read from.")


def resolve_relation_heads(
    student: PreTrainedConfig, teacher: PreTrainedConfig, arguments: DistillationArguments
) -> tuple[int, int] | None:
    """Numbers of relation heads of queries and of keys; `None` where attention rows are compared head to head.

    Raises:
        ValueError: when rows are asked of models with other head counts, or a number of relation heads does not
            divide the joined queries or keys of both.
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
