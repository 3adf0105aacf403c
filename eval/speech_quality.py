"""How natural speech sounds to a network that was trained on listeners' opinions: DistillMOS.

DistillMOS (Stahl & Gamper 2025, arXiv 2502.05356) predicts the mean opinion score of a recording, 1 (bad) to 5
(excellent). It is published as the PyPI package distillmos (MIT), which carries its weights. Installing the package
with its dependencies brings torchaudio; here only the weights are read.

Shapes: B batch, S samples, T frames (50 Hz), D channels.
"""

import os
import pickle

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data.installed_weights import find_installed_weights

SAMPLING_RATE = 16_000
NUM_SAMPLES = 122_880
"""Samples that are judged: the first 7.68 s; shorter recordings are followed by silence."""

WEIGHTS_FILE = "weights/distill_mos_v7.pt"
WEIGHTS_SHA256 = "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40"
_HOP, _WINDOW = 160, 320
_CHANNELS = (2, 64, 64, 128, 256, 256, 256)
_NUM_HEADS = 8


class DistillMos(nn.Module):
    """Waveform -> predicted mean opinion score.

    Args:
        state: the published state dict (names of distillmos 0.9.1); its shapes give the sizes behind the convolutions.

    Raises `ValueError` when the tensors are not those of DistillMOS.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(_CHANNELS[:-1], _CHANNELS[1:], strict=True)):
            # Frequency is halved by all layers but the first, time by the last alone.
            stride = (1 if index == 0 else 2, 2 if index == len(_CHANNELS) - 2 else 1)
            layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=(0, 1)), nn.LeakyReLU(0.1)]
        try:
            positions = state["transformer_pool_attn.transformer.position_encoding.pe"]
            width, num_features = state["transformer_pool_attn.transformer.linear_proj.weight"].shape
            num_layers = sum(name.endswith("self_attn.in_proj_weight") for name in state)
            self.convolutions = nn.Sequential(*layers)
            self.input_norms = nn.Sequential(nn.BatchNorm1d(num_features), nn.BatchNorm1d(num_features))
            self.projection = nn.Linear(num_features, width)
            self.register_buffer("positions", torch.empty_like(positions))
            layer = nn.TransformerEncoderLayer(width, _NUM_HEADS, 2 * width, dropout=0.0, batch_first=True)
            self.transformer = nn.TransformerEncoder(layer, num_layers)
            self.output_norm = nn.BatchNorm1d(width)
            self.attention = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))
            self.score = nn.Linear(width, 1)
            self.load_state_dict(_renamed(state))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the weights are not those of DistillMOS 0.9.1 ({error}); reinstall distillmos"
            ) from error

    @torch.inference_mode()
    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """waveforms `(B, 122880)` at 16 kHz -> scores `(B,)`, 1 to 5; the level of a waveform does not matter."""
        waveforms = waveforms / (waveforms.abs().amax(dim=1, keepdim=True) + 1e-8)
        hidden = self.convolutions(_compressed_spectrum(waveforms)).flatten(1, 2)
        hidden = self.projection(self.input_norms(hidden).transpose(1, 2))
        hidden = self.transformer(hidden + self.positions)
        hidden = self.output_norm(hidden.transpose(1, 2)).transpose(1, 2)
        pooled = (self.attention(hidden).softmax(1) * hidden).sum(1)
        return 1 + 4 * self.score(pooled).squeeze(-1).sigmoid()

    def judge(self, waveform: np.ndarray) -> float:
        """Score of the first 7.68 s of a waveform `(S,)` at 16 kHz; `ValueError` for an empty one."""
        if not len(waveform):
            raise ValueError("found an empty waveform; expected speech")
        samples = torch.from_numpy(np.array(waveform[:NUM_SAMPLES], dtype=np.float32))
        return float(self(F.pad(samples, (0, NUM_SAMPLES - len(samples)))[None]))


def _compressed_spectrum(waveforms: torch.Tensor) -> torch.Tensor:
    """waveforms `(B, S)` -> real and imaginary part of `|X|^0.3 X / |X|`, `(B, 2, 161, S // 160)`."""
    padding = (_WINDOW - _HOP) // 2
    padded = F.pad(waveforms, (padding, padding), mode="reflect")
    window = torch.hann_window(_WINDOW, device=waveforms.device)
    spectrum = torch.stft(padded, _WINDOW, _HOP, window=window, center=False, return_complex=True)
    magnitude = spectrum.abs().clamp(min=1e-12)
    return torch.view_as_real(spectrum * magnitude ** (0.3 - 1)).permute(0, 3, 1, 2)


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names -> names of [`DistillMos`]."""
    prefixes = {
        "cnn.cnn.": "convolutions.",
        "transformer_pool_attn.norm_input.": "input_norms.0.",
        "transformer_pool_attn.transformer.norm.": "input_norms.1.",
        "transformer_pool_attn.transformer.linear_proj.": "projection.",
        "transformer_pool_attn.transformer.position_encoding.pe": "positions",
        "transformer_pool_attn.transformer.transformer_encoder.": "transformer.",
        "transformer_pool_attn.norm_trans.": "output_norm.",
        "transformer_pool_attn.pool.linear1.": "attention.0.",
        "transformer_pool_attn.pool.linear2.": "attention.2.",
        "transformer_pool_attn.pool.linear3.": "score.",
    }
    renamed = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


def load_distill_mos(path: str | os.PathLike | None = None) -> DistillMos:
    """Return DistillMOS with its published weights.

    Args:
        path (*optional*): the weight file. Default: the one of the installed package distillmos, whose sha256 must be
            that of version 0.9.1.

    Raises `ModuleNotFoundError` when distillmos is not installed, `ValueError` for other weights.
    """
    if path is None:
        path = find_installed_weights("distillmos", "0.9.1", WEIGHTS_FILE, WEIGHTS_SHA256, "the opinion score")
    try:
        return DistillMos(torch.load(path, map_location="cpu", weights_only=True)["model"]).eval()
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as DistillMOS weights ({error}); reinstall distillmos") from error
