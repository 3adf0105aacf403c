"""Teacher targets of a batch, and their sources: a teacher that runs online, or another [`TeacherSource`]."""

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
            are counted row by row; `None` if the logits term is disabled. Log-probabilities are valid logits. A source
            that stores only some ids fills in the others from the student's logits: if the tail probability is
            distributed as in the student, every divergence and its gradient are, at temperature 1, those of the stored
            ids and the tail as a single outcome.
        block_outputs (`Mapping[int, torch.Tensor]`): {teacher block: residual stream after it, of shape `(B, T, d)`}.
        attention_inputs (`Mapping[int, AttentionInputs]`): {teacher block: queries and keys after RoPE}.
    """

    logits: TeacherLogits | None = None
    block_outputs: Mapping[int, torch.Tensor] = field(default_factory=dict)
    attention_inputs: Mapping[int, AttentionInputs] = field(default_factory=dict)


class TeacherSource(Protocol):
    """Protocol of the sources of teacher targets for [`DistillationTrainer`].

    Attributes:
        config ([`~transformers.PreTrainedConfig`]): config of the teacher, with its id layout, sizes and number of
            blocks.
    """

    config: PreTrainedConfig

    def check(self, arguments: DistillationArguments, layer_map: LayerMap | None) -> None:
        """Raise `ValueError` if this source has no targets for an enabled term. It is called before training."""

    def targets(self, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> TeacherTargets:
        """Return the targets of one batch.

        Args:
            inputs (`dict[str, torch.Tensor]`): the whole batch from the data collator, on the student's device.
            positions (`torch.BoolTensor` of shape `(B, T)`): the supervised positions, see
                [`~losses.supervised_positions`].
        """


class OnlineTeacher:
    """A [`TeacherSource`] that runs the teacher on every batch, frozen and in evaluation mode.

    Args:
        model ([`~transformers.PreTrainedModel`]): the teacher, a causal LM with Llama's layout, on the student's
            device.
        arguments ([`DistillationArguments`]): settings of the run, with the enabled terms.
        layer_map ([`LayerMap`], *optional*): required if a term compares blocks.
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
        """Accept every term, because a teacher that runs has targets for all of them."""

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
    """Return the weight of a module, gathered from all ranks if it is sharded (FSDP2)."""
    return module.weight.full_tensor() if isinstance(module.weight, DTensor) else module.weight
