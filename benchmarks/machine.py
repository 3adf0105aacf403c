"""What a machine can do at best: memory bandwidth and matrix products. Everything else is measured against these."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Larger than any cache, so that every pass reads from memory.
_BANDWIDTH_BYTES = 512 * 2**20
_PRODUCT_SIZE = 2048
_REPEATS = 5


@dataclass(frozen=True)
class MachineLimits:
    """Best case of this machine with as many threads as PyTorch uses.

    Attributes:
        num_threads (`int`): of PyTorch.
        bandwidth_gbs (`float`): gigabytes read from memory in a second.
        product_gflops (`dict[str, float]`): type -> billions of operations a second of a square matrix product.
    """

    num_threads: int
    bandwidth_gbs: float
    product_gflops: dict[str, float]


def measure_limits() -> MachineLimits:
    """Measure bandwidth and products; a few seconds. The fastest of several tries counts: a load only takes away."""
    numbers = torch.ones(_BANDWIDTH_BYTES // 4)
    seconds = fastest(numbers.sum)
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE).to(dtype)
        operations = 2 * _PRODUCT_SIZE**3
        products[str(dtype).removeprefix("torch.")] = operations / fastest(lambda matrix=matrix: matrix @ matrix) / 1e9
    return MachineLimits(torch.get_num_threads(), _BANDWIDTH_BYTES / seconds / 1e9, products)


def fastest(function: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Least wall-clock seconds of several calls, after one that is not timed."""
    function()
    return min(_clocked(function)[0] for _ in range(repeats))


def medians(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall-clock and median CPU seconds of several calls, after one that is not timed.

    CPU time, of all threads of the process, says what a call costs on a machine that others use too.
    """
    function()
    wall, cpu = zip(*(_clocked(function) for _ in range(repeats)), strict=True)
    return statistics.median(wall), statistics.median(cpu)


def _clocked(function: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu
