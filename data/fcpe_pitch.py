"""FCPE, the pitch estimator of the published system: log-mel frames -> a distribution over 360 pitches every 10 ms.

FCPE (Luo et al. 2025, arXiv 2509.15140) is published as the PyPI package torchfcpe (MIT), which carries its weights.
Importing that package needs torchaudio; here only the weights are read, and the network is a stack of convolutions.

Shapes: B batch, M mel bins, T frames (100 Hz), C channels, P pitch classes.
"""

import os
import pickle

import torch
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from .installed_weights import find_installed_weights

WEIGHTS_FILE = "assets/fcpe_c_v001.pt"
WEIGHTS_SHA256 = "b9aeaeb673436eeda50ceafd632aa681aa63417e52eae4207503d180c9b10015"
HOP_LENGTH = 160
_WINDOW = 1024
_REFERENCE_FREQUENCY = 10.0  # Hz; pitch classes are in cents above it
_NEIGHBOURS = 4  # classes on each side of the best one that take part in the weighted mean
_CONFIDENCE = 0.05  # a frame whose best class is below is unvoiced


class ConvolutionBlock(nn.Module):
    """Gated pointwise and depthwise convolution with a residual path (the convolution module of a Conformer)."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Conv1d(channels, 4 * channels, 1)
        self.depthwise = nn.Conv1d(
            2 * channels, 2 * channels, kernel_size, padding=kernel_size // 2, groups=2 * channels
        )
        self.reduce = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden `(B, T, C)` -> `(B, T, C)`."""
        update = F.glu(self.expand(self.norm(hidden).transpose(1, 2)), dim=1)
        return hidden + self.reduce(F.silu(self.depthwise(update))).transpose(1, 2)


class FcpeNetwork(nn.Module):
    """Log-mel frames -> F0.

    Args:
        state: the published state dict (names of torchfcpe 0.0.4); its shapes give the sizes.

    Raises `ValueError` when the tensors are not those of a convolution-only FCPE.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        try:
            channels, num_mel_bins, _ = state["input_stack.0.weight"].shape
            num_layers = sum(name.endswith("conformer.net.4.conv.weight") for name in state)
            kernel_size = state["net.encoder_layers.0.conformer.net.4.conv.weight"].shape[-1]
            self.input = nn.Sequential(
                nn.Conv1d(num_mel_bins, channels, 3, padding=1),
                nn.GroupNorm(4, channels),
                nn.LeakyReLU(),
                nn.Conv1d(channels, channels, 3, padding=1),
            )
            self.layers = nn.ModuleList(ConvolutionBlock(channels, kernel_size) for _ in range(num_layers))
            self.norm = nn.LayerNorm(channels)
            self.output = nn.Linear(channels, len(state["cent_table"]))
            self.register_buffer("cents", state["cent_table"])
            self.load_state_dict(_renamed(state) | {"cents": state["cent_table"]})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the weights are not those of FCPE 0.0.4 ({error}); reinstall torchfcpe") from error

    @torch.inference_mode()
    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """log_mel `(B, T, M)` -> F0 `(B, T)` in Hz, 0 where unvoiced."""
        hidden = self.input(log_mel.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        confidence = self.output(self.norm(hidden)).sigmoid()
        highest, best = confidence.max(-1, keepdim=True)
        nearby = best + torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=best.device)
        nearby = nearby.clamp(0, len(self.cents) - 1)
        weights = confidence.gather(-1, nearby)
        cents = (self.cents[nearby] * weights).sum(-1) / weights.sum(-1)
        return torch.where(highest[..., 0] > _CONFIDENCE, _REFERENCE_FREQUENCY * 2 ** (cents / 1200), 0.0)


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names -> names of `FcpeNetwork`; the weight norm of the output is multiplied out."""
    parts = {"net.0": "norm", "net.2": "expand", "net.4.conv": "depthwise", "net.6": "reduce"}
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("net.encoder_layers.") and ".conformer." in name:
            _, _, index, _, part = module.split(".", 4)
            renamed[f"layers.{index}.{parts[part]}.{kind}"] = tensor
        elif module.startswith("input_stack."):
            renamed[f"input.{module.removeprefix('input_stack.')}.{kind}"] = tensor
        elif module == "norm":
            renamed[name] = tensor
    direction = state["output_proj.weight_v"]
    renamed["output.weight"] = direction * (state["output_proj.weight_g"] / direction.norm(dim=1, keepdim=True))
    renamed["output.bias"] = state["output_proj.bias"]
    return renamed


def load_fcpe(path: str | os.PathLike | None = None) -> FcpeNetwork:
    """Return FCPE with its published weights.

    Args:
        path (*optional*): the weight file. Default: the one of the installed package torchfcpe, whose sha256 must be
            that of version 0.0.4.

    Raises `ModuleNotFoundError` when torchfcpe is not installed, `ValueError` for other weights.
    """
    if path is None:
        path = find_installed_weights("torchfcpe", "0.0.4", WEIGHTS_FILE, WEIGHTS_SHA256, "the F0 extractor 'fcpe'")
    try:
        return FcpeNetwork(torch.load(path, map_location="cpu", weights_only=True)["model"]).eval()
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as FCPE weights ({error}); reinstall torchfcpe==0.0.4") from error


def log_mel_spectrogram(waveform: torch.Tensor, num_mel_bins: int, sampling_rate: int = 16000) -> torch.Tensor:
    """Return natural-log mel magnitudes, shape `(S // 160 + 1, num_mel_bins)`, of a waveform of shape `(S,)`.

    Frames are centred on their hops; the last is repeated where the audio ends before its window does.
    """
    pad = (_WINDOW - HOP_LENGTH) // 2
    right = max(pad, _WINDOW - len(waveform) - pad)
    mode = "reflect" if right < len(waveform) else "constant"
    padded = F.pad(waveform[None, None], (pad, right), mode=mode)[0, 0]
    window = torch.hann_window(_WINDOW, device=waveform.device)
    spectrum = torch.stft(padded, _WINDOW, HOP_LENGTH, window=window, center=False, return_complex=True)
    filters = mel_filter_bank(
        1 + _WINDOW // 2, num_mel_bins, 0.0, sampling_rate / 2, sampling_rate, norm="slaney", mel_scale="slaney"
    )
    magnitude = (spectrum.abs().square() + 1e-9).sqrt()
    log_mel = (torch.from_numpy(filters.T).to(magnitude) @ magnitude).clamp(min=1e-5).log().T
    missing = len(waveform) // HOP_LENGTH + 1 - len(log_mel)
    return torch.cat([log_mel, log_mel[-1:].expand(max(missing, 0), -1)])[: len(waveform) // HOP_LENGTH + 1]
