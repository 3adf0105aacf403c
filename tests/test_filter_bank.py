"""The filters that convolutions on waveforms begin with."""

import torch
from torch import nn

from tinywave.training.filter_bank import initialize_filter_bank


def test_the_first_convolution_begins_as_a_mel_filter_bank():
    convolution = nn.Conv1d(1, 64, 320, 80)
    initialize_filter_bank(convolution, 16_000)
    filters = convolution.weight.detach()[:, 0]
    peaks = torch.fft.rfft(filters, 4096).abs().argmax(-1).float() * 16_000 / 4096
    mel = 2595 * torch.log10(1 + peaks / 700)
    spacing = mel.view(16, 4).mean(1).diff()
    assert (mel.view(16, 4).std(1) < 12).all(), "four phases of one frequency"
    assert spacing.min() > 0.7 * spacing.median() and spacing.max() < 1.3 * spacing.median()
    # Opposite phases are each other's negative.
    torch.testing.assert_close(filters[0::4], -filters[2::4], rtol=0, atol=1e-5)


def test_a_kernel_too_short_for_filters_stays_as_it_is():
    convolution = nn.Conv1d(1, 8, 10, 5)
    before = convolution.weight.clone()
    initialize_filter_bank(convolution, 16_000)
    assert torch.equal(convolution.weight, before)
