"""How fast a run goes: the arithmetic of a model per token, and the time in which it is done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig


def forward_flops_per_token(config: PreTrainedConfig, length: int) -> int:
    """FLOPs of one token's forward pass in a row of `length` tokens (PaLM, arXiv 2204.02311, appendix B).

    Two per weight of every matrix product, LM head included and embedding not, and four per block, head channel and
    position looked at. The published convention counts all positions of the row, although a causal model needs half.

    Args:
        config ([`~transformers.PreTrainedConfig`]): of a model of Llama's layout.
        length (`int`): T, in tokens.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or width // heads
    attention = width * head_size * 2 * (heads + config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * width * config.intermediate_size)
    weights += width * config.vocab_size
    return 2 * weights + 4 * config.num_hidden_layers * heads * head_size * length


class Stopwatch:
    """Seconds of wall time since it was last read, without what was left out on purpose."""

    def __init__(self):
        self._start = None

    def start(self) -> None:
        """Begin to count, unless that has been done."""
        if self._start is None:
            self._start = time.perf_counter()

    def read(self) -> float:
        """Seconds since the start or the last reading; 0 where it was never started."""
        now = time.perf_counter()
        start, self._start = self._start, now
        return 0.0 if start is None else now - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._start is not None:
                self._start += time.perf_counter() - began


def num_input_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor | int:
    """Tokens of a batch without padding: on the device where the mask is."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None or mask.dim() != 2 else mask.sum()
