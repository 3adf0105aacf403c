"""Frames -> units: the quantizers of the speech encoder.

Shapes: U frames, D width of the frames, K number of units.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_tinywave import SpeechEncoderConfig


class CentroidQuantizer(nn.Module):
    """Nearest centroid, by Euclidean distance after each dimension is shifted and scaled.

    Whisper's residual stream has a few dimensions of very large variance; without the scaling they alone would decide.

    Args:
        num_units (`int`): number of centroids K.
        hidden_size (`int`): width of the features D.

    Buffers, all float32: `mean` and `standard_deviation` of shape `(D,)`, `centroids` of shape `(K, D)` in the
    normalized space. All-zero centroids mean "not fitted yet".
    """

    def __init__(self, num_units: int, hidden_size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("standard_deviation", torch.ones(hidden_size))
        self.register_buffer("centroids", torch.zeros(num_units, hidden_size))

    @property
    def is_fitted(self) -> bool:
        """Whether the centroids have been fitted or loaded."""
        return bool(self.centroids.any())

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Shift and scale features of shape `(..., D)` to zero mean and unit variance per dimension."""
        return (features.float() - self.mean) / self.standard_deviation

    def forward(self, features: torch.Tensor) -> torch.LongTensor:
        """Return the index of the nearest centroid, shape `(...)`, for features of shape `(..., D)`."""
        similarity = self.normalize(features) @ self.centroids.T
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid.
        return (similarity - self.centroids.square().sum(-1) / 2).argmax(-1)


class LinearQuantizer(nn.Module):
    """A small network on the features; the largest output is the unit (Nguyen et al. 2024, arXiv 2402.05755).

    Args:
        num_units (`int`): number of units K; output K is the blank.
        hidden_size (`int`): width of the features D.
        hidden_sizes (`Sequence[int]`): of the layers between, each followed by a leaky ReLU.
    """

    is_fitted = True  # trained weights cannot be told from random ones

    def __init__(self, num_units: int, hidden_size: int, hidden_sizes: Sequence[int] = ()):
        super().__init__()
        sizes = [hidden_size, *hidden_sizes, num_units + 1]
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for size, next_size in zip(sizes[1:-1], sizes[2:], strict=True):
            layers += [nn.LeakyReLU(), nn.Linear(size, next_size)]
        self.layers = nn.Sequential(*layers)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return unnormalized scores of shape `(..., K + 1)` for features of shape `(..., D)`."""
        return self.layers(features)

    def forward(self, features: torch.Tensor) -> torch.LongTensor:
        """Return the index of the largest score, shape `(...)`; K stands for the blank."""
        return self.logits(features).argmax(-1)


def replace_blanks(units: torch.LongTensor, blank: int, previous: int | None = None) -> torch.LongTensor:
    """Replace every blank by the unit on its left.

    Args:
        units (`torch.LongTensor` of shape `(..., U)`): each row is one utterance.
        blank (`int`): the id that stands for no unit.
        previous (`int`, *optional*): the unit before the first. Default: blanks at the beginning take the first unit
            of their row.

    Raises `ValueError` when a row is all blank and `previous` is not given.
    """
    is_unit = units != blank
    if previous is None and not is_unit.any(-1).all():
        raise ValueError(
            f"all {units.shape[-1]} frames are blank, so the audio has no units; expected speech, check that the "
            "recording is not silent"
        )
    position = torch.arange(units.shape[-1], device=units.device).expand_as(units)
    source = position.masked_fill(~is_unit, -1).cummax(-1).values
    leading = source < 0
    first = is_unit.int().argmax(-1, keepdim=True)
    filled = units.gather(-1, torch.where(leading, first, source))
    return filled if previous is None else filled.masked_fill(leading, previous)


def build_quantizer(config: SpeechEncoderConfig, hidden_size: int) -> CentroidQuantizer | LinearQuantizer:
    """Return the quantizer that `config.quantizer` names, for features of width `hidden_size`."""
    if config.quantizer == "linear":
        return LinearQuantizer(config.num_units, hidden_size, config.quantizer_hidden_sizes or ())
    return CentroidQuantizer(config.num_units, hidden_size)
