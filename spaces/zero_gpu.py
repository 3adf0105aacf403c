"""Hugging Face's ZeroGPU lends a GPU for the length of a call; everywhere else the decorator changes nothing.

Import this module before torch. The package of that name is imported in full, so that this folder is not meant; where
the repository's root is on the path, `spaces` is this folder, which has no `GPU`.
"""

from collections.abc import Callable

LENT_SECONDS = 60

try:
    from spaces import GPU
except ImportError:
    GPU = None


def on_gpu(function: Callable) -> Callable:
    """Let a function or a generator function run on a lent GPU where there are any to lend."""
    return function if GPU is None else GPU(function, duration=LENT_SECONDS)
