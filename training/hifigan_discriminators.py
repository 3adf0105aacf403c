"""The discriminators of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646, section 2.3 and appendix A.2).

Shapes: B batch, S samples. Each discriminator returns its scores, `(B, N)` with 1 for real speech, and the features of
its layers. `channels` is the width of the last layers (1024 as published); the widths of the others follow from it.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

PERIODS = (2, 3, 5, 7, 11)
NUM_SCALES = 3
LEAKY_SLOPE = 0.1

Judgement = tuple[torch.Tensor, list[torch.Tensor]]


class PeriodDiscriminator(nn.Module):
    """Discriminator of every `period`-th sample: convolutions over the columns of the waveform folded into rows."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        sizes = [1, channels // 32, channels // 8, channels // 2, channels, channels]
        self.layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), padding=(2, 0)))
            for (before, after), stride in zip(pairwise(sizes), (3, 3, 3, 3, 1), strict=True)
        )
        self.score = parametrizations.weight_norm(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        """Waveform `(B, S)` -> scores and features."""
        remainder = -waveform.shape[-1] % self.period
        hidden = F.pad(waveform[:, None], (0, remainder), mode="reflect").unflatten(-1, (-1, self.period))
        return judge(hidden, self.layers, self.score)


class ScaleDiscriminator(nn.Module):
    """Discriminator of the waveform: grouped convolutions of increasing stride."""

    def __init__(self, channels: int, norm=parametrizations.weight_norm):
        super().__init__()
        sizes = [channels // 8, channels // 8, channels // 4, channels // 2, channels, channels]
        layers = [norm(nn.Conv1d(1, sizes[0], 15, padding=7))]
        strides, groupings = (2, 2, 4, 4, 1), (4, 16, 16, 16, 16)
        for (before, after), stride, groups in zip(pairwise(sizes), strides, groupings, strict=True):
            groups = math.gcd(groups, before, after)
            layers.append(norm(nn.Conv1d(before, after, 41, stride, groups=groups, padding=20)))
        layers.append(norm(nn.Conv1d(channels, channels, 5, padding=2)))
        self.layers = nn.ModuleList(layers)
        self.score = norm(nn.Conv1d(channels, 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        """Waveform `(B, S)` -> scores and features."""
        return judge(waveform[:, None], self.layers, self.score)


class HifiGanDiscriminators(nn.Module):
    """Five period discriminators, and three scale discriminators, each at half the sampling rate of the previous one.

    Args:
        channels (`int`, default 1024): width of the last layers, a multiple of 32.

    Raises:
        ValueError: for other widths.
    """

    def __init__(self, channels: int = 1024):
        super().__init__()
        if channels < 32 or channels % 32:
            raise ValueError(f"Found discriminators of {channels} channels; expected a multiple of 32.")
        self.periods = nn.ModuleList(PeriodDiscriminator(period, channels) for period in PERIODS)
        # The input of the first one is the raw waveform, for which spectral norm stabilizes training.
        norms = [parametrizations.spectral_norm] + [parametrizations.weight_norm] * (NUM_SCALES - 1)
        self.scales = nn.ModuleList(ScaleDiscriminator(channels, norm) for norm in norms)

    def forward(self, waveform: torch.Tensor) -> list[Judgement]:
        """Waveform `(B, S)` -> scores and features of every discriminator."""
        judgements = [discriminator(waveform) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            if index:
                waveform = F.avg_pool1d(waveform[:, None], 4, stride=2, padding=2)[:, 0]
            judgements.append(discriminator(waveform))
        return judgements


def judge(hidden: torch.Tensor, layers: nn.ModuleList, score: nn.Module) -> Judgement:
    """Run the layers; the scores are the last of the features."""
    features = []
    for layer in layers:
        hidden = F.leaky_relu(layer(hidden), LEAKY_SLOPE)
        features.append(hidden)
    scores = score(hidden)
    return scores.flatten(1), [*features, scores]


def discriminator_loss(real: list[Judgement], generated: list[Judgement]) -> torch.Tensor:
    """Least squares: real speech should score 1, generated speech 0 (equation 1), summed over the discriminators."""
    return sum(
        (scores.float() - 1).square().mean() + generated_scores.float().square().mean()
        for (scores, _), (generated_scores, _) in zip(real, generated, strict=True)
    )


def adversarial_loss(generated: list[Judgement]) -> torch.Tensor:
    """Least squares: generated speech should score 1 (equation 2), summed over the discriminators."""
    return sum((scores.float() - 1).square().mean() for scores, _ in generated)


def feature_matching_loss(real: list[Judgement], generated: list[Judgement]) -> torch.Tensor:
    """Mean absolute difference of the features of every layer (equation 4), summed; no gradient to the real side."""
    return sum(
        (feature.detach().float() - generated_feature.float()).abs().mean()
        for (_, features), (_, generated_features) in zip(real, generated, strict=True)
        for feature, generated_feature in zip(features, generated_features, strict=True)
    )
