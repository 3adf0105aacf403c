"""Types of command-line arguments: numbers with a range, checked before any work."""

import argparse
import math
from collections.abc import Callable


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a type for whole numbers from `low` to `high`."""
    return _number(int, low, high, f"a whole number from {low:,} to {high:,}")


def decimal_number(low: float, high: float) -> Callable[[str], float]:
    """Return a type for finite numbers from `low` to `high`."""
    return _number(float, low, high, f"a number from {low:g} to {high:g}")


def _number(kind: type, low: float, high: float, expected: str) -> Callable:
    def convert(text: str):
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected {expected}")
        return value

    return convert


SEED = whole_number(0, 2**32 - 1)
COUNT = whole_number(1, 1_000_000)
NUM_PAIRS = whole_number(1, 100_000)
NUM_PROCESSES = whole_number(1, 256)
NUM_TOKENS = whole_number(1, 100_000)
MIN_TOKENS = whole_number(0, 100_000)
BATCH_SIZE = whole_number(1, 4096)
PORT = whole_number(1, 65_535)
TEMPERATURE = decimal_number(0, 100)
SECONDS = decimal_number(0.1, 3600)
