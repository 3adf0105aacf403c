"""What is summed between two logs, and how a step that is not finite is told apart."""

import math

import pytest
import torch
from accelerate import Accelerator

from tinywave.training.step_log import StepLog, describe_non_finite_step


def batch(*lengths):
    ids = torch.arange(len(lengths) * max(lengths)).reshape(len(lengths), -1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def test_means_are_per_step_and_start_over():
    log, accelerator = StepLog(), Accelerator(cpu=True)
    for step in range(2):
        for sums in ([6.0, 1.0], [2.0, 3.0]):
            log.add(batch(4, 2), torch.tensor(sums) + step, divisor=4, flops_per_token=1e9)
        assert log.close_step() is None
    means, extras = log.summarize(accelerator, peak_tflops=1.0)
    assert means == [(8 + 10) / 8, (4 + 6) / 8]
    assert extras["model_flops_utilisation"] / extras["tokens_per_second"] == pytest.approx(1e9 / 1e12)
    assert log.num_steps == 0
    log.add(batch(4), torch.tensor([1.0, 1.0]), divisor=1, flops_per_token=0.0)
    log.close_step()
    means, extras = log.summarize(accelerator, peak_tflops=None)
    assert means == [1.0, 1.0]
    assert set(extras) == {"tokens_per_second"}


def test_the_first_micro_batch_that_is_not_finite_is_found():
    log = StepLog()
    batches = [batch(4), batch(3), batch(2)]
    for inputs, value in zip(batches, (1.0, math.inf, math.nan), strict=True):
        log.add(inputs, torch.tensor([1.0, value]), divisor=1, flops_per_token=0.0)
    number, inputs, sums = log.close_step()
    assert (number, inputs is batches[1], sums.tolist()) == (1, True, [1.0, math.inf])
    log.add(batches[0], torch.tensor([1.0, 1.0]), divisor=1, flops_per_token=0.0)
    assert log.close_step() is None


def test_gradient_norms_are_per_token():
    layer, log, accelerator = torch.nn.Linear(3, 1, bias=False), StepLog(), Accelerator(cpu=True)
    output = layer(torch.tensor([3.0, 0.0, 4.0])).sum()
    log.measure_gradient_norms([("hidden", 2 * output)], layer, torch.tensor(5))
    log.add(batch(5), torch.tensor([1.0]), divisor=1, flops_per_token=0.0)
    log.close_step()
    assert log.summarize(accelerator, None)[1]["hidden_gradient_norm"] == pytest.approx(2 * 5 / 5)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("can_compute", "example"),
    [(True, "row 1 (2 tokens: 4, 5) of micro-batch 3"), (False, "some row of micro-batch 3")],
)
def test_a_step_is_described(tmp_path, can_compute, example):
    def sums_of(row):
        return torch.tensor(math.nan if 4 in row["input_ids"] else 1.0)

    message = describe_non_finite_step(
        {"hidden_loss": math.nan, "logits_loss": 1.0, "attention_loss": math.inf},
        batch(4, 2),
        sums_of if can_compute else None,
        step=7,
        micro_batch=3,
        output_dir=str(tmp_path),
    )
    assert f"Step 7: hidden_loss (nan) and attention_loss (inf) is not finite in {example}." in message
    assert "the weights are still those of step 6; no checkpoint has been written yet." in message
