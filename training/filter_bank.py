"""Initialization of convolutions on waveforms."""

import math

import torch
from torch import nn

MEL_RANGE = (60.0, 7600.0)
"""Lowest and highest centre frequency of the filters, in Hz."""
MIN_SECONDS = 0.01
_PHASES = 4


@torch.no_grad()
def initialize_filter_bank(convolution: nn.Conv1d, sampling_rate: int) -> None:
    """Initialize the first convolution on a waveform as windowed cosines in four phases, evenly spaced in mel.

    Randomly initialized weights need about a thousand training steps to learn such filters. The filters are trained
    like all other weights. A kernel shorter than 10 ms is left unchanged, because the filters do not fit into it.

    Args:
        convolution (`nn.Conv1d`): weight of shape `(filters, 1, kernel)`, changed in place.
        sampling_rate (`int`): sampling rate of the waveform, in Hz.
    """
    num_filters, _, kernel_size = convolution.weight.shape
    if kernel_size < MIN_SECONDS * sampling_rate:
        return
    lowest, highest = (2595 * math.log10(1 + hertz / 700) for hertz in MEL_RANGE)
    mel_edges = torch.linspace(lowest, highest, num_filters // _PHASES + 2)
    edges = 700 * (10 ** (mel_edges / 2595) - 1)
    centre, bandwidth = edges[1:-1, None], (edges[2:] - edges[:-2])[:, None] / 2
    seconds = (torch.arange(kernel_size) - (kernel_size - 1) / 2) / sampling_rate
    # A narrow band needs a long window; none can be longer than the kernel.
    width = (2 / bandwidth).clamp(max=kernel_size / sampling_rate)
    window = (0.5 + 0.5 * torch.cos(2 * math.pi * seconds / width)) * (seconds.abs() < width / 2)
    # Speech has less energy the higher the frequency.
    window = window / window.square().sum(-1, keepdim=True).sqrt() * (centre / 1000 + 0.3).sqrt() * math.sqrt(2)
    phases = torch.arange(_PHASES)[:, None, None] / _PHASES
    filters = window * torch.cos(2 * math.pi * (centre * seconds + phases))
    convolution.weight[: filters.shape[0] * filters.shape[1], 0] = filters.transpose(0, 1).flatten(0, 1)
