"""Running the decoder of a causal LM without its head, as both models are run on one batch."""

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
