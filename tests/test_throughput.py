"""FLOPs against a profile of a real model, and a stopwatch that leaves out what it is told to."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.throughput import Stopwatch, forward_flops_per_token, num_input_tokens


@pytest.mark.parametrize("shape", [{}, dict(num_key_value_heads=1, head_dim=12)])
def test_flops_are_those_of_a_forward_pass(shape):
    settings = dict(vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=4, attn_implementation="eager") | shape  # fmt: skip
    config = LlamaConfig(**settings)
    model, length = LlamaForCausalLM(config), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(2, length, dtype=torch.long))
    # The rotary embedding is counted by the profiler and belongs to no weight: one product of (D / 2, 1) and (1, T).
    rotary = 2 * config.head_dim // 2 * length
    assert counter.get_total_flops() == pytest.approx(
        2 * length * forward_flops_per_token(config, length), abs=2 * rotary
    )


def test_the_stopwatch_leaves_out_pauses_and_begins_again_when_read(monkeypatch):
    clock = iter([5.0, 7.0, 10.0, 20.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    stopwatch.start()
    stopwatch.start()
    with stopwatch.paused():
        pass
    assert stopwatch.read() == (20 - 5) - (10 - 7)
    assert stopwatch.read() == 2


def test_padding_is_not_counted():
    ids = torch.ones(2, 5, dtype=torch.long)
    assert num_input_tokens({"input_ids": ids}) == 10
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    assert num_input_tokens({"input_ids": ids, "attention_mask": mask}) == 7
    assert num_input_tokens({"input_ids": ids, "attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.bool)}) == 10
