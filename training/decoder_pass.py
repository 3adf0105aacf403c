"""Running the decoder of a causal LM without its head, as both models are run on one batch."""

from collections.abc import Callable

import torch
from torch import nn

_DECODER_INPUTS = ("input_ids", "attention_mask", "position_ids")


def decoder_inputs(inputs: dict) -> dict:
    """The inputs both decoders read, without a padding mask that changes nothing.

    With padding on the right a causal model never looks at it from a real token. Without a mask SDPA can use its
    causal kernel, which skips the upper half of the map, and transformers reads from `position_ids` that start again
    where one packed document ends: beside a mask it would let documents look at each other.
    """
    selected = {name: inputs[name] for name in _DECODER_INPUTS if inputs.get(name) is not None}
    mask = selected.get("attention_mask")
    if mask is not None and mask.dim() == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()):
        del selected["attention_mask"]
    return selected


def run_decoder(model: nn.Module, inputs: dict) -> torch.Tensor:
    """Final hidden states of shape `(B, T, hidden)`, after the norm; the LM head is applied in the chunked loss."""
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


def alignable_positions(positions: torch.Tensor, inputs: dict) -> torch.Tensor:
    """The supervised `positions` of shape `(B, T)` whose own states mean something.

    With padding on the left a target may follow a padding token, which looks nowhere.
    """
    mask = inputs.get("attention_mask")
    return positions if mask is None or mask.dim() != 2 else positions & mask.bool()


def flat_indices(positions: torch.Tensor) -> torch.Tensor:
    """Indices of the true `positions`, of shape `(B, T)`, counted row by row; their number is read from the device."""
    return positions.flatten().nonzero().squeeze(1)


def take(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`(B, T, ...)` -> `(N, ...)` at the [`flat_indices`], without a read from the device."""
    return values.flatten(0, 1).index_select(0, indices)


def call_inside(wrapper: nn.Module, model: nn.Module, function: Callable, *inputs):
    """Call `function(*inputs)` in place of `model.forward`, through the wrapper and the hooks that are around it.

    Data parallelism sets up gradient synchronisation in the wrapper's forward: calling parts of the unwrapped model
    outside of it would train every rank on its own gradients. Sharded parameters are gathered in the hooks of the
    module that owns them; `wrapper` and `model` are then the same.
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
