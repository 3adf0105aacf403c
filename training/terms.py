"""The terms of the distillation loss: what each is called, what it compares, and how.

A new term on blocks is a change of this file alone: its weight in [`TermArguments`] and an entry of `TERMS`. It is a
distance between a student block and the teacher block that the layer map assigns to it, averaged over these pairs. The
terms on logits are computed together, chunk by chunk, in `logits_losses`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .attention_losses import attention_kl, relation_kl
from .attention_tap import AttentionInputs
from .layer_map import LayerMap
from .logits_losses import DIVERGENCES
from .losses import HIDDEN_LOSSES

ATTENTION_LOSSES = ("auto", "rows", "relations")

Pairs = tuple[tuple[int, int], ...]


@dataclass
class TermArguments:
    """Settings of the terms; every weight multiplies a mean over the supervised tokens, 0 leaves its term out.

    A field `<term>_layers`, where a term on blocks has one, restricts it to some student blocks of the layer map.
    """

    cross_entropy_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy on the data, in nats per token."}
    )
    logits_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of temperature^2 * divergence over the vocabulary, in nats per token."},
    )
    hidden_weight: float = field(
        default=1.0, metadata={"help": "Weight of the hidden-state distance, averaged over the aligned blocks."}
    )
    attention_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of KL(teacher || student) between attention rows, averaged over aligned blocks and heads."
        },
    )
    temperature: float = field(
        default=2.0, metadata={"help": "Temperature that softens both distributions of the logits term; > 0."}
    )
    logits_loss: str = field(
        default="forward_kl",
        metadata={
            "help": "Divergence of the logits term: 'forward_kl' (KL(teacher || student)), 'reverse_kl', or 'jsd' "
            "(generalized Jensen-Shannon).",
            "choices": list(DIVERGENCES),
        },
    )
    jsd_beta: float = field(
        default=0.5,
        metadata={
            "help": "Share of the teacher in the mixture of 'jsd': near 0 like forward KL, near 1 like reverse."
        },
    )
    logits_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens whose logits are held at once; smaller saves memory. By default as many as fit into 32 MB "
            "on a CPU and 256 MB on an accelerator, 2048 at most."
        },
    )
    hidden_loss: str = field(
        default="cosine",
        metadata={
            "help": "Distance between hidden states: 'cosine' (1 - cos, the paper's), 'mse', or 'normalized_mse' "
            "(in units of the teacher's energy).",
            "choices": list(HIDDEN_LOSSES),
        },
    )
    hidden_layers: list[int] | None = field(
        default=None, metadata={"help": "Student blocks whose hidden states are aligned; all of the layer map's."}
    )
    attention_loss: str = field(
        default="auto",
        metadata={
            "help": "'rows' compares attention distributions head to head, 'relations' query-query and key-key maps "
            "(MiniLMv2) of any head counts; 'auto' takes rows where both models have as many heads.",
            "choices": list(ATTENTION_LOSSES),
        },
    )
    attention_layers: list[int] | None = field(
        default=None, metadata={"help": "Student blocks whose attention is aligned; all of the layer map's."}
    )
    num_relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "Heads of the relation maps; by default the greatest common divisor of both models' head counts."
        },
    )


@dataclass(frozen=True)
class BlockPair:
    """What a term on blocks compares.

    Args:
        student, teacher: outputs of the two blocks, `torch.Tensor` of shape `(B, T, d)` with the student's projected
            to the teacher's width; or their [`AttentionInputs`].
        weights (`torch.Tensor` of shape `(B, T)`): weight of each position; 0 drops it.
        arguments ([`TermArguments`]): settings of the run.
        relation_heads (`tuple[int, int]`, *optional*): numbers of relation heads of queries and of keys; None where
            attention rows are compared head to head.
    """

    student: torch.Tensor | AttentionInputs
    teacher: torch.Tensor | AttentionInputs
    weights: torch.Tensor
    arguments: TermArguments
    relation_heads: tuple[int, int] | None


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss.

    Args:
        name (`str`): "hidden" is weighted by `hidden_weight` and logged as `hidden_loss`.
        label (`str`): its line in a model card, with the fields of the arguments in braces.
        needs_teacher (`bool`): whether it compares the student with a teacher.
        reads (`str`): what of the models it is computed from.
        distance (`Callable`, *optional*): weighted sum over the positions of a [`BlockPair`], a scalar; None for a
            term on logits.
    """

    name: str
    label: str
    needs_teacher: bool
    reads: Literal["logits", "block_outputs", "attention_inputs"]
    distance: Callable[[BlockPair], torch.Tensor] | None = None

    @property
    def weight_field(self) -> str:
        """Field of [`TermArguments`] with its weight."""
        return f"{self.name}_weight"

    @property
    def log_name(self) -> str:
        """Its name in logs and, after "eval_", in metrics."""
        return f"{self.name}_loss"

    def weight(self, arguments: TermArguments) -> float:
        """Return its weight; 0 where it is off."""
        return getattr(arguments, self.weight_field)

    def pairs(self, arguments: TermArguments, layer_map: LayerMap | None) -> Pairs:
        """Return the (teacher block, student block) pairs that it compares; none where it is off or on logits."""
        if self.distance is None or not self.weight(arguments):
            return ()
        return layer_map.restricted_to(getattr(arguments, f"{self.name}_layers", None)).pairs


def hidden_distance(pair: BlockPair) -> torch.Tensor:
    """Compute the distance of two block outputs that `hidden_loss` names."""
    return HIDDEN_LOSSES[pair.arguments.hidden_loss](pair.student, pair.teacher, pair.weights)


def attention_distance(pair: BlockPair) -> torch.Tensor:
    """Compute the distance of attention rows, or the mean of those of query and key relations."""
    student, teacher = pair.student, pair.teacher
    if pair.relation_heads is None:
        return attention_kl(
            student.query,
            student.key,
            teacher.query,
            teacher.key,
            pair.weights,
            student_scaling=student.scaling,
            teacher_scaling=teacher.scaling,
            mask=student.mask,
        )
    queries, keys = (
        relation_kl(own, taught, pair.weights, num_relation_heads=heads, mask=student.mask)
        for own, taught, heads in zip(
            (student.query, student.key), (teacher.query, teacher.key), pair.relation_heads, strict=True
        )
    )
    return (queries + keys) / 2


TERMS = (
    LossTerm("cross_entropy", "cross-entropy on the data", False, "logits"),
    LossTerm("logits", "logits: {logits_loss} at temperature {temperature:g}", True, "logits"),
    LossTerm("hidden", "hidden states: {hidden_loss}", True, "block_outputs", hidden_distance),
    LossTerm("attention", "attention: {attention_loss}", True, "attention_inputs", attention_distance),
)


def aligned_pairs(arguments: TermArguments, layer_map: LayerMap | None, reads: str) -> Pairs:
    """Return the pairs of blocks that the enabled terms compare by what they read, "block_outputs" for example."""
    pairs = (pair for term in TERMS if term.reads == reads for pair in term.pairs(arguments, layer_map))
    return tuple(dict.fromkeys(pairs))


def describe_terms(arguments: TermArguments) -> list[str]:
    """Return one line for each enabled term, with its weight.

    ```python
    >>> describe_terms(TermArguments(hidden_weight=0, logits_weight=0, attention_weight=0.5))
    ['cross-entropy on the data, weight 1', 'attention: auto, weight 0.5']

    ```
    """
    settings: dict[str, Any] = vars(arguments)
    return [
        f"{term.label.format(**settings)}, weight {weight:g}" for term in TERMS if (weight := term.weight(arguments))
    ]


def check_terms(arguments: TermArguments) -> None:
    """Raise `ValueError` for a setting of a term out of its range, and where no term is on."""
    names = [term.weight_field for term in TERMS]
    for name in names:
        weight = getattr(arguments, name)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"`{name}` must be a finite number >= 0; found {weight}.")
    if not any(term.weight(arguments) for term in TERMS):
        raise ValueError(f"At least one of {', '.join(names)} must be above 0.")
    for name, choices in (
        ("logits_loss", tuple(DIVERGENCES)),
        ("hidden_loss", tuple(HIDDEN_LOSSES)),
        ("attention_loss", ATTENTION_LOSSES),
    ):
        if getattr(arguments, name) not in choices:
            raise ValueError(f"`{name}` must be one of {choices}; found {getattr(arguments, name)!r}.")
    if not (math.isfinite(arguments.temperature) and arguments.temperature > 0):
        raise ValueError(f"`temperature` must be a positive number; found {arguments.temperature}.")
    if not 0 < arguments.jsd_beta < 1:
        raise ValueError(
            f"`jsd_beta` must lie between 0 and 1; found {arguments.jsd_beta}. At the ends the divergence is 0: "
            "choose logits_loss='forward_kl' or 'reverse_kl'."
        )
    if arguments.logits_chunk_size is not None and arguments.logits_chunk_size < 1:
        raise ValueError(f"`logits_chunk_size` must be at least 1 token; found {arguments.logits_chunk_size}.")
    if arguments.num_relation_heads is not None and arguments.num_relation_heads < 1:
        raise ValueError(f"`num_relation_heads` must be at least 1; found {arguments.num_relation_heads}.")
