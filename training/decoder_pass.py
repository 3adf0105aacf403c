"""Run the decoder of a causal LM without its head, in the same way for student and teacher."""

from collections.abc import Callable

import torch
from torch import nn

_DECODER_INPUTS = ("input_ids", "attention_mask", "position_ids")


def decoder_inputs(inputs: dict) -> dict:
    """Return the inputs of both decoders, without a padding mask that has no effect.

    In a causal model real tokens never attend to padding on the right. Without a mask SDPA can use its causal kernel,
    which skips the upper half of the attention map. In addition, transformers detects packed documents by
    `position_ids` that restart at 0 only if there is no mask; with one, documents would attend to each other.
    """
    selected = {name: inputs[name] for name in _DECODER_INPUTS if inputs.get(name) is not None}
    mask = selected.get("attention_mask")
    if mask is not None and mask.dim() == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()):
        del selected["attention_mask"]
    return selected


def run_decoder(model: nn.Module, inputs: dict) -> torch.Tensor:
    """Return the final hidden states `(B, T, hidden)`, after the norm; the chunked loss applies the LM head."""
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


def alignable_positions(positions: torch.Tensor, inputs: dict) -> torch.Tensor:
    """Return the supervised `positions`, of shape `(B, T)`, that are not padding.

    With padding on the left a target may follow a padding token, whose hidden state is meaningless.
    """
    mask = inputs.get("attention_mask")
    return positions if mask is None or mask.dim() != 2 else positions & mask.bool()


def flat_indices(positions: torch.Tensor) -> torch.Tensor:
    """Return the row-major indices of the True `positions` `(B, T)`. This reads their number from the device."""
    return positions.flatten().nonzero().squeeze(1)


def take(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select `(N, ...)` of `(B, T, ...)` at the [`flat_indices`], without a read from the device."""
    return values.flatten(0, 1).index_select(0, indices)


def call_inside(wrapper: nn.Module, model: nn.Module, function: Callable, *inputs):
    """Call `function(*inputs)` in place of `model.forward`, through the forward pass and the hooks of the wrapper.

    Data parallelism sets up gradient synchronization in the forward pass of the wrapper: if parts of the unwrapped
    model were called outside of it, gradients would not be synchronized between ranks. Sharded parameters are gathered
    in the hooks of the module that owns them; `wrapper` and `model` are then the same.
    """
    own_forward = model.__dict__.get("forward")

    def restore():
        if own_forward is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = own_forward

    def redirected(*arguments):
        restore()
        return function(*arguments)

    model.forward = redirected
    try:
        return wrapper(*inputs)
    finally:
        restore()
