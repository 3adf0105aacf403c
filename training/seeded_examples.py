"""Random crops and noise that are reproduced when a run is resumed."""

import numpy as np
import torch
from torch.utils.data import Dataset


class SeededExamples(Dataset):
    """A data set whose random draws depend only on a seed, the epoch and the index.

    Data loaders fetch ahead of the optimizer, and a resumed run skips batches, so that the state of torch's global
    generator at the time of a draw would differ from that of the uninterrupted run.

    Args:
        dataset (`torch.utils.data.Dataset`): data set that draws from torch's global CPU generator in `__getitem__`.
        seed (`int`): seed of the draws.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        (seed,) = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also set the generators of all devices.
            torch.default_generator.manual_seed(int(seed))
            return self.dataset[index]
