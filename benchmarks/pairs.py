"""Timing two things against each other on a machine that other programs use too."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedTiming:
    """How much longer `second` takes than `first`.

    Attributes:
        first_seconds, second_seconds (`float`): medians of each, in seconds; they depend on the machine and its load.
        ratio (`float`): median over pairs of second / first; above 1 means that `second` is slower.
        ratio_quartiles (`tuple[float, float]`): the middle half of the pairs' ratios.
        num_pairs (`int`): pairs timed.
    """

    first_seconds: float
    second_seconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    num_pairs: int


def time_pairs(first: Callable[[], object], second: Callable[[], object], num_pairs: int = 10) -> PairedTiming:
    """Time two functions in alternation, A B, B A, A B, ..., after one untimed call of each.

    The two members of a pair run within moments of each other, so that a load that comes and goes hits both, and the
    order alternates, so that neither profits from going second.
    """
    if num_pairs < 2:
        raise ValueError(f"`num_pairs` must be at least 2 to tell a spread; found {num_pairs}.")
    first(), second()
    times = []
    for index in range(num_pairs):
        forward = index % 2 == 0
        earlier, later = (first, second) if forward else (second, first)
        pair = (_seconds(earlier), _seconds(later))
        times.append(pair if forward else pair[::-1])
    ratios = sorted(slow / fast for fast, slow in times)
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    first_times, second_times = zip(*times, strict=True)
    return PairedTiming(
        statistics.median(first_times),
        statistics.median(second_times),
        statistics.median(ratios),
        (lower, upper),
        num_pairs,
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
