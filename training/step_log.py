"""Sums of the loss terms since the last log, kept on the device, and the description of a non-finite step."""

import math
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from .resumable_trainer import describe_recovery
from .throughput import Stopwatch, num_input_tokens

_NUM_TOKENS_SHOWN = 16


class StepLog:
    """Running sums of the loss terms, kept on the device; a single value is read back per optimizer step.

    Attributes:
        num_steps (`int`): optimizer steps since the last summary.
        stopwatch ([`~throughput.Stopwatch`]): wall time since the last summary.
    """

    def __init__(self):
        self.stopwatch = Stopwatch()
        self.num_steps = 0
        self._means = self._counts = None
        self._gradient_norms = {}
        self._open_step = []

    def add(self, inputs: dict, sums: torch.Tensor, divisor: torch.Tensor | int, flops_per_token: float) -> None:
        """Add one micro-batch.

        Args:
            inputs (`dict[str, torch.Tensor]`): tensors of the micro-batch, kept until the step is closed.
            sums (`torch.Tensor` of shape `(terms,)`): sum of each term over the tokens of the micro-batch.
            divisor: number of supervised tokens of the whole optimizer step.
            flops_per_token (`float`): FLOPs per token of the micro-batch.
        """
        self.stopwatch.start()
        self._open_step.append((inputs, sums))
        num_tokens = num_input_tokens(inputs)
        counts = torch.stack([torch.as_tensor(num_tokens, device=sums.device).float()] * 2)
        counts[1] *= flops_per_token
        means = sums / divisor
        self._means = means if self._means is None else self._means + means
        self._counts = counts if self._counts is None else self._counts + counts

    def close_step(self) -> tuple[int, dict, torch.Tensor] | None:
        """End an optimizer step; return (number, inputs, sums) of its first micro-batch with a non-finite term."""
        step, self._open_step = self._open_step, []
        self.num_steps += 1
        if bool(torch.stack([sums for _, sums in step]).isfinite().all()):
            return None
        return next((number, *batch) for number, batch in enumerate(step) if not bool(batch[1].isfinite().all()))

    def measure_gradient_norms(
        self, terms: Iterable[tuple[str, torch.Tensor]], model: nn.Module, num_tokens: torch.Tensor
    ) -> None:
        """Store the gradient norm of each term on this rank's micro-batch, per supervised token."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for name, term in terms:
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            found = [gradient for gradient in gradients if gradient is not None]
            norm = nn.utils.get_total_norm(found).float()
            self._gradient_norms[f"{name}_gradient_norm"] = norm / num_tokens.clamp(min=1)

    def summarize(self, accelerator: Accelerator, peak_tflops: float | None) -> tuple[list[float], dict[str, float]]:
        """Return the mean of each term and the other logged values since the last call, and reset the log.

        Args:
            accelerator ([`~accelerate.Accelerator`]): reduces values over all ranks.
            peak_tflops (`float`, *optional*): peak of one device, in TFLOPS.

        Returns:
            `tuple`: the mean of each term per step over all ranks, and a dict with `tokens_per_second` of all ranks
            (input tokens without padding), `{term}_gradient_norm` (mean over the ranks) if measured, and
            `model_flops_utilisation` if `peak_tflops` is given.
        """
        means = (accelerator.reduce(self._means, "sum") / self.num_steps).tolist()
        num_tokens, flops = accelerator.reduce(self._counts, "sum").tolist()
        extras = {}
        if self._gradient_norms:
            norms = accelerator.reduce(torch.stack(list(self._gradient_norms.values())), "mean").tolist()
            extras.update(zip(self._gradient_norms, norms, strict=True))
        seconds = self.stopwatch.read()
        extras["tokens_per_second"] = num_tokens / seconds
        if peak_tflops is not None:
            extras["model_flops_utilisation"] = flops / (seconds * peak_tflops * 1e12 * accelerator.num_processes)
        self.num_steps = 0
        self._means = self._counts = None
        self._gradient_norms = {}
        return means, extras


def describe_non_finite_step(
    terms: dict[str, float],
    inputs: dict,
    sums_of: Callable[[dict], torch.Tensor] | None,
    *,
    step: int,
    micro_batch: int,
    output_dir: str,
) -> str:
    """Return an error message that names the non-finite term, its example, and the last checkpoint.

    Args:
        terms (`dict[str, float]`): sum of each term over the micro-batch.
        inputs (`dict[str, torch.Tensor]`): the micro-batch.
        sums_of (`Callable`, *optional*): recomputes the terms of a batch of one row, to find the example.
        step, micro_batch (`int`): number of the optimizer step, counted from 1, and of its micro-batch, from 0.
        output_dir (`str`): folder of the run's checkpoints.
    """
    names = [f"{name} ({value})" for name, value in terms.items() if not math.isfinite(value)]
    return (
        f"Step {step}: {' and '.join(names)} is not finite in {_find_example(inputs, sums_of)} of micro-batch "
        f"{micro_batch}. {describe_recovery(step - 1, output_dir)} Check that example, lower the learning rate, or "
        "raise the precision, and train again."
    )


def _find_example(inputs: dict, sums_of: Callable[[dict], torch.Tensor] | None) -> str:
    ids = inputs["input_ids"]
    for row in range(len(ids)) if sums_of is not None else ():
        example = {
            name: value[row : row + 1]
            if isinstance(value, torch.Tensor) and value.shape[:1] == ids.shape[:1]
            else value
            for name, value in inputs.items()
        }
        if not bool(sums_of(example).isfinite().all()):
            tokens = ids[row][inputs["attention_mask"][row].bool()] if _has_flat_mask(inputs) else ids[row]
            shown = ", ".join(map(str, tokens[:_NUM_TOKENS_SHOWN].tolist()))
            more = ", ..." if len(tokens) > _NUM_TOKENS_SHOWN else ""
            return f"row {row} ({len(tokens)} tokens: {shown}{more})"
    return "some row"


def _has_flat_mask(inputs: dict) -> bool:
    return inputs.get("attention_mask") is not None and inputs["attention_mask"].dim() == 2
