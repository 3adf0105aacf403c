"""The benchmark of the layers around a model: its ways say the same, and its figures are those worked out by hand."""

import json
import sys

import pytest
import torch

from tinywave.benchmarks import wrapper
from tinywave.benchmarks.decode import load_engine
from tinywave.benchmarks.wrapper import (
    GENERATE,
    LOOP,
    STREAM,
    TRANSFORMERS,
    WAYS,
    compare_rounds,
    endless_prompt,
    measure_wrapper,
    ways_to_continue,
)
from tinywave.cli.shipped import TEACHER


@pytest.fixture(scope="module")
def teacher():
    return load_engine(str(TEACHER), "torch-float32")


def test_the_ways_say_the_same(teacher):
    ids = endless_prompt(teacher, 6)
    said = {name: continue_by(6) for name, continue_by in ways_to_continue(teacher, ids).items()}
    assert list(said) == list(WAYS)
    assert said[TRANSFORMERS] == said[LOOP] and len(said[LOOP]) == 6
    assert said[STREAM] == said[GENERATE] and len(said[GENERATE]) == 6
    ranges = teacher.config.stream_ranges()
    assert all(any(index in ranges[name] for name in ("unit", "pitch", "style")) for index in said[GENERATE])


def test_costs_are_compared_round_by_round():
    step = {LOOP: [1, 2, 4], TRANSFORMERS: [2, 4, 8], GENERATE: [3, 4, 20], STREAM: [2, 5, 8]}
    first = {LOOP: [10, 20, 30], TRANSFORMERS: [11, 22, 33], GENERATE: [10, 25, 34], STREAM: [16, 25, 37]}
    costs = compare_rounds(first, step)
    assert costs[LOOP].ratio == 1 and costs[LOOP].overhead_ms_per_token == 0 and costs[LOOP].setup_ms == 0
    cost = costs[GENERATE]
    assert (cost.ms_per_token, cost.overhead_ms_per_token) == (4, 2)
    assert (cost.ratio, cost.ratio_quartiles, cost.ratio_to_transformers) == (3, (2.5, 4), 1.5)
    assert cost.setup_ms == 4
    assert costs[TRANSFORMERS].ratio_to_transformers == 1


def test_a_model_that_ends_at_once_and_single_rounds_are_refused(teacher):
    with pytest.raises(ValueError, match="found 1 tokens and 5 rounds; at least 2 of both"):
        measure_wrapper(teacher, num_tokens=1, num_rounds=5)
    silent = load_engine("nano-student", "torch-float32")
    silent.lm_head.register_forward_hook(lambda _, __, logits: insist_on(silent.config.eos_token_id, logits))
    with pytest.raises(ValueError, match="no prompt of 20 that is continued by 3 tokens; ask for fewer"):
        endless_prompt(silent, 3)


def insist_on(token_id: int, logits: torch.Tensor) -> torch.Tensor:
    return logits.index_fill(-1, torch.tensor([token_id]), 1e4)


def test_rows_are_written(monkeypatch, tmp_path, capsys):
    output = tmp_path / "wrapper.json"
    arguments = ["--model", "nano-student", "--tokens", "3", "--rounds", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["wrapper", *arguments])
    threads = torch.get_num_threads()
    try:
        wrapper.main()
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads(output.read_text(encoding="utf-8"))
    assert row == json.loads(capsys.readouterr().out)[0]
    assert (row["model"], row["engine"], row["num_threads"]) == ("nano-student", "torch-float32", 1)
    assert row["num_parameters"] == 1_721_664
    assert all(row[way]["ms_per_token"] > 0 and len(row[way]["ratio_quartiles"]) == 2 for way in WAYS)
