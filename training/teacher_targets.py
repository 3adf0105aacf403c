"""What a teacher says about a batch, and who says it: a model that runs, or anything else of the same protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from .arguments import DistillationArguments
from .attention_tap import ActivationTap, AttentionInputs
from .decoder_pass import call_inside, decoder_inputs, flat_indices, run_decoder, take
from .layer_map import LayerMap
from .logits_losses import HeadLogits, TeacherLogits
from .terms import aligned_pairs


@dataclass(frozen=True)
class TeacherTargets:
    """The targets of one batch. Shapes: B batch, T positions, N supervised positions, d the teacher's hidden size.

    Attributes:
        logits ([`~logits_losses.TeacherLogits`] or `None`): logits of any chunk of the N supervised positions, which
            are counted row by row; `None` where the logits term is off. Log-probabilities are logits too. A teacher
            that knows some ids only fills in the rest from the student's logits it is given: with its tail mass
            spread as the student spreads its own, every divergence and its gradient are at temperature 1 those of the
            known ids and the tail as one outcome.
        block_outputs (`Mapping[int, torch.Tensor]`): by teacher block, the residual stream after it, `(B, T, d)`.
        attention_inputs (`Mapping[int, AttentionInputs]`): by teacher block, queries and keys after RoPE.
    """

    logits: TeacherLogits | None = None
    block_outputs: Mapping[int, torch.Tensor] = field(default_factory=dict)
    attention_inputs: Mapping[int, AttentionInputs] = field(default_factory=dict)


class TeacherSource(Protocol):
    """Where [`DistillationTrainer`] takes its targets from.

    Attributes:
        config ([`~transformers.PreTrainedConfig`]): of the teacher: its id layout, sizes and number of blocks.
    """

    config: PreTrainedConfig

    def check(self, arguments: DistillationArguments, layer_map: LayerMap | None) -> None:
        """Raise `ValueError` for an enabled term this source has no targets for, before any step is taken."""

    def targets(self, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> TeacherTargets:
        """Return the targets of one batch.

        Args:
            inputs (`dict[str, torch.Tensor]`): the whole batch as the data collator made it, on the student's device.
            positions (`torch.BoolTensor` of shape `(B, T)`): the supervised positions, see
                [`~losses.supervised_positions`].
        """


class OnlineTeacher:
    """A [`TeacherSource`] that runs the teacher on every batch, frozen and in evaluation mode.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal LM of Llama's layout, on the student's device.
        arguments ([`DistillationArguments`]): which terms are on.
        layer_map ([`LayerMap`], *optional*): needed where a term compares blocks.
    """

    def __init__(self, model: PreTrainedModel, arguments: DistillationArguments, layer_map: LayerMap | None):
        self.config = model.config
        self.model = model.eval().requires_grad_(False)
        self._with_logits = arguments.logits_weight > 0
        self._tap = ActivationTap(
            model,
            hidden_blocks=sorted({block for block, _ in aligned_pairs(arguments, layer_map, "block_outputs")}),
            attention_blocks=sorted({block for block, _ in aligned_pairs(arguments, layer_map, "attention_inputs")}),
        )

    def check(self, arguments: DistillationArguments, layer_map: LayerMap | None) -> None:
        """A model that runs has targets for every term."""

    @torch.no_grad()
    def targets(self, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> TeacherTargets:
        """Run the decoder; logits are computed later, chunk by chunk."""
        rows, model_inputs = flat_indices(positions), decoder_inputs(inputs)
        with self._tap.record() as record:
            hidden = call_inside(self.model, self.model, lambda batch: run_decoder(self.model, batch), model_inputs)
        logits = None
        if self._with_logits:
            logits = HeadLogits(take(hidden, rows), whole_weight(self.model.get_output_embeddings()))
        return TeacherTargets(logits, record.block_outputs, record.attention_inputs)


def whole_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a module, gathered from all ranks where it is sharded (FSDP2)."""
    return module.weight.full_tensor() if isinstance(module.weight, DTensor) else module.weight
