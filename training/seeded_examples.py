"""Random crops and noise that a resumed run draws as the uninterrupted one."""

import numpy as np
import torch
from torch.utils.data import Dataset


class SeededExamples(Dataset):
    """A data set whose random draws depend on a seed, the epoch and the index alone.

    Data loaders fetch ahead of the optimizer, and a resumed run skips batches, so that the state of torch's global
    generator at the time of a draw is not the one of the uninterrupted run.

    Args:
        dataset (`torch.utils.data.Dataset`): draws from torch's global generator on the CPU, in `__getitem__`.
        seed (`int`): of the draws.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the draws of an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        (seed,) = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would set the generators of all devices.
            torch.default_generator.manual_seed(int(seed))
            return self.dataset[index]
