"""Throughput of a training run: FLOPs per token of a model, and wall time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig


def forward_flops_per_token(config: PreTrainedConfig, length: int) -> int:
    """Return the FLOPs of the forward pass per token, in a sequence of `length` tokens.

    The convention is that of PaLM (arXiv 2204.02311, appendix B): 2 FLOPs per weight of every matrix product, with the
    LM head and without the embedding, and 4 per block, head channel and attended position. It counts all positions of
    the sequence, although causal attention needs half of them.

    Args:
        config ([`~transformers.PreTrainedConfig`]): config of a model with Llama's layout.
        length (`int`): length of the sequence, in tokens.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or width // heads
    attention = width * head_size * 2 * (heads + config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * width * config.intermediate_size)
    weights += width * config.vocab_size
    return 2 * weights + 4 * config.num_hidden_layers * heads * head_size * length


class Stopwatch:
    """Stopwatch of the wall time since the last reading, without paused intervals."""

    def __init__(self):
        self._start = None

    def start(self) -> None:
        """Start the stopwatch, unless it is running."""
        if self._start is None:
            self._start = time.perf_counter()

    def read(self) -> float:
        """Return the seconds since the start or the last reading; 0 if it was never started."""
        now = time.perf_counter()
        start, self._start = self._start, now
        return 0.0 if start is None else now - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in the context."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._start is not None:
                self._start += time.perf_counter() - began


def num_input_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor | int:
    """Return the number of tokens of a batch without padding, on the device of the mask."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None or mask.dim() != 2 else mask.sum()
