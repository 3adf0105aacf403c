"""Record the activations that the alignment losses need: block outputs, and queries and keys after RoPE.

`output_attentions=True` requires eager attention, which builds a T x T map for every head of every layer, and returns
nothing under SDPA. The tap keeps the fast SDPA kernel and records only the queries and keys of the mapped blocks, from
which `attention_losses.attention_kl` recomputes the attention rows, block by block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TAPPED_ATTENTION = "tinywave_tapped_sdpa"
_RECORD_ATTRIBUTE = "_tinywave_tap_record"


@dataclass
class AttentionInputs:
    """Inputs of one attention layer. Shapes: B batch, H heads, K key/value heads, T positions, D head size.

    Attributes:
        query (`torch.Tensor` of shape `(B, H, T, D)`): queries after RoPE.
        key (`torch.Tensor` of shape `(B, K, T, D)`): keys after RoPE.
        mask (`torch.BoolTensor` of shape `(B, 1, T, T)` or `None`): True where a query may attend to a key; `None` is
            causal.
        scaling (`float`): factor on the attention scores, usually `D ** -0.5`.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float


@dataclass
class TapRecord:
    """Activations of one forward pass: for each tapped block, its output and the inputs of its attention.

    `block_outputs[k]` is the residual stream after block `k`, of shape `(B, T, hidden)`. It is equal to transformers'
    `hidden_states[k + 1]` except for the last block: transformers returns it after the final norm, the tap records it
    before that norm, so that any two blocks can be compared.
    """

    block_outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    attention_inputs: dict[int, AttentionInputs] = field(default_factory=dict)


class ActivationTap:
    """Record activations of selected blocks of one model inside the context [`ActivationTap.record`].

    The record is stored on the tapped modules, so that the taps of two models do not interfere, and a layer that runs
    again (activation checkpointing recomputes it in the backward pass) is not recorded twice.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal LM with Llama's layout.
        hidden_blocks (`Sequence[int]`): blocks whose output is recorded.
        attention_blocks (`Sequence[int]`): blocks whose queries and keys are recorded. If there are any, the model is
            switched to the tapped SDPA attention, which is plain SDPA outside the context.

    Raises:
        ValueError: if the model does not use the attention interface of transformers, or lacks one of the blocks.
    """

    def __init__(
        self, model: PreTrainedModel, hidden_blocks: Sequence[int] = (), attention_blocks: Sequence[int] = ()
    ):
        self._blocks = _decoder_blocks(model)
        self.hidden_blocks = tuple(hidden_blocks)
        self.attention_blocks = tuple(attention_blocks)
        missing = [block for block in (*hidden_blocks, *attention_blocks) if block >= len(self._blocks)]
        if missing:
            raise ValueError(
                f"Cannot tap blocks {missing} of {type(model).__name__}, which has {len(self._blocks)} blocks."
            )
        for block in self.hidden_blocks:
            self._blocks[block].register_forward_hook(_record_block_output)
        if self.attention_blocks:
            _switch_to_tapped_attention(model)
            self._check_attention_modules(model)

    @contextmanager
    def record(self) -> Iterator[TapRecord]:
        """Record one forward pass; on exit, check that every tapped block was recorded.

        Raises:
            RuntimeError: if a block was not recorded, or its record carries no gradient. Without these checks the
                loss on the record would silently be 0 or have no effect.
        """
        record = TapRecord()
        modules = [self._blocks[block] for block in self.hidden_blocks]
        modules += [self._blocks[block].self_attn for block in self.attention_blocks]
        for module, block in zip(modules, (*self.hidden_blocks, *self.attention_blocks), strict=True):
            setattr(module, _RECORD_ATTRIBUTE, (record, block))
        try:
            yield record
        finally:
            for module in modules:
                delattr(module, _RECORD_ATTRIBUTE)
        self._check_complete(record)

    def _check_complete(self, record: TapRecord) -> None:
        for what, wanted, found in (
            ("output", self.hidden_blocks, record.block_outputs),
            ("queries and keys", self.attention_blocks, record.attention_inputs),
        ):
            missing = sorted(set(wanted) - set(found))
            if missing:
                raise RuntimeError(
                    f"The forward pass recorded no {what} of blocks {missing}. Do not change the attention "
                    "implementation after the tap is set, and use no model that skips blocks."
                )
        detached = [block for block, inputs in record.attention_inputs.items() if not inputs.query.requires_grad]
        if torch.is_grad_enabled() and detached:
            raise RuntimeError(
                f"The queries and keys of blocks {detached} carry no gradient. Freeze no layers below them, and use "
                "activation checkpointing with use_reentrant=False only."
            )

    def _check_attention_modules(self, model: PreTrainedModel) -> None:
        for block in self.attention_blocks:
            if not hasattr(self._blocks[block], "self_attn"):
                raise ValueError(
                    f"Block {block} of {type(model).__name__} has no `self_attn`, so its attention cannot be tapped. "
                    "Set attention_weight to 0."
                )


def _decoder_blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no list of blocks `layers` in its decoder; only models of Llama's layout "
            "can be tapped."
        )
    return blocks


def _switch_to_tapped_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation(TAPPED_ATTENTION)
    if model.get_decoder().config._attn_implementation != TAPPED_ATTENTION:
        raise ValueError(
            f"{type(model).__name__} does not use the attention interface of transformers, so its attention cannot "
            "be tapped and the attention term would silently be 0. Set attention_weight to 0."
        )


def _record_block_output(module: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
    record, block = getattr(module, _RECORD_ATTRIBUTE, (None, None))
    if record is not None:
        record.block_outputs[block] = output[0] if isinstance(output, tuple) else output


def _tapped_sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Compute SDPA attention, and store its inputs in the record of a tapped module."""
    record, block = getattr(module, _RECORD_ATTRIBUTE, (None, None))
    if record is not None:
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            raise ValueError(
                f"The attention mask must be boolean, or of shape (batch, length), to align attention; found "
                f"{attention_mask.dtype} of shape {tuple(attention_mask.shape)}. Pass True where a query may attend."
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        record.attention_inputs[block] = AttentionInputs(query, key, attention_mask, scale)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


# Without a mask function of the same name transformers passes no mask, and padding would be attended to.
AttentionInterface.register(TAPPED_ATTENTION, _tapped_sdpa_attention)
AttentionMaskInterface.register(TAPPED_ATTENTION, sdpa_mask)
