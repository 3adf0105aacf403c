"""Fundamental frequency (F0) -> pitch tokens and back: a convolutional VQ-VAE with 64 codes at 12.5 Hz.

The architecture is that of Polyak et al. 2021 (arXiv 2104.00355, section 3.1), which follows Jukebox (Dhariwal et al.
2020, arXiv 2005.00341); SPIRIT-LM (Nguyen et al. 2024, arXiv 2402.05755) uses it on two channels, F0 relative to the
mean of the utterance in Hz and a flag that is 1 where the frame is voiced. How F0 is found in a waveform is no part of
this model.

Shapes: B batch, T F0 frames (200 Hz), N pitch tokens (12.5 Hz), C channels, D width of a code, K number of codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_tinywave import PitchEncoderConfig

NUM_CHANNELS = 2  # relative F0 in Hz, voiced flag

Contour = tuple[np.ndarray | torch.Tensor, np.ndarray | torch.Tensor]


@dataclass
class PitchEncoderOutput(ModelOutput):
    """Output of [`PitchEncoder`].

    Args:
        codes (`torch.LongTensor` of shape `(batch, codes)`): pitch tokens `0 .. num_codes - 1`, -1 where padded.
        lengths (`torch.LongTensor` of shape `(batch,)`): pitch tokens of each utterance.
        latents (`torch.FloatTensor` of shape `(batch, codes, code_size)`): what the encoder says, before quantization.
        quantized (`torch.FloatTensor` of shape `(batch, codes, code_size)`): code vectors; no gradient flows back.
        reconstruction (`torch.FloatTensor` of shape `(batch, frames_per_code * codes, 2)`): relative F0 (Hz) and
            voiced flag from the decoder, 0 where padded.
    """

    codes: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None


class ResidualLayer(nn.Module):
    """Dilated and pointwise convolution, each after a ReLU, added to the input; padding stays zero."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilated = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden `(B, C, T)`, mask `(B, 1, T)` -> `(B, C, T)`."""
        return (hidden + self.pointwise(self.dilated(hidden.relu()).relu())) * mask


def _residual_layers(config: PitchEncoderConfig) -> nn.ModuleList:
    dilations = [config.dilation_growth**index for index in range(config.num_residual_layers)]
    return nn.ModuleList(ResidualLayer(config.hidden_size, dilation) for dilation in dilations)


class EncoderStage(nn.Module):
    """Halves the frame rate, then refines."""

    def __init__(self, config: PitchEncoderConfig, in_channels: int):
        super().__init__()
        self.downsample = nn.Conv1d(in_channels, config.hidden_size, 4, stride=2, padding=1)
        self.layers = _residual_layers(config)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """hidden `(B, C, T)`, zero past the end; lengths `(B,)` after halving -> `(B, C, T // 2)`."""
        hidden = self.downsample(hidden)
        mask = _length_mask(lengths, hidden)
        hidden = hidden * mask
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


class DecoderStage(nn.Module):
    """Refines, then doubles the frame rate."""

    def __init__(self, config: PitchEncoderConfig, out_channels: int):
        super().__init__()
        self.layers = _residual_layers(config)
        self.upsample = nn.ConvTranspose1d(config.hidden_size, out_channels, 4, stride=2, padding=1)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """hidden `(B, C, T)`, zero past the end; lengths `(B,)` before doubling -> `(B, C, 2 T)`."""
        mask = _length_mask(lengths, hidden)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.upsample(hidden)
        return hidden * _length_mask(2 * lengths, hidden)


class ContourEncoder(nn.Module):
    """Relative F0 and voiced flag -> latents."""

    def __init__(self, config: PitchEncoderConfig):
        super().__init__()
        channels = [NUM_CHANNELS] + [config.hidden_size] * (config.num_stages - 1)
        self.stages = nn.ModuleList(EncoderStage(config, in_channels) for in_channels in channels)
        self.projection = nn.Conv1d(config.hidden_size, config.code_size, 3, padding=1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """features `(B, 2, T)`, lengths `(B,)` -> latents `(B, N, D)`, meaningless past the end."""
        hidden = features * _length_mask(lengths, features)
        for stage in self.stages:
            lengths = lengths // 2
            hidden = stage(hidden, lengths)
        return self.projection(hidden).transpose(1, 2)


class ContourDecoder(nn.Module):
    """Code vectors -> relative F0 and voiced flag."""

    def __init__(self, config: PitchEncoderConfig):
        super().__init__()
        channels = [config.hidden_size] * (config.num_stages - 1) + [config.code_size]
        self.projection = nn.Conv1d(config.code_size, config.hidden_size, 3, padding=1)
        self.stages = nn.ModuleList(DecoderStage(config, out_channels) for out_channels in channels)
        self.output = nn.Conv1d(config.code_size, NUM_CHANNELS, 3, padding=1)

    def forward(self, vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """vectors `(B, N, D)`, lengths `(B,)` -> `(B, frames_per_code * N, 2)`, zero past the end."""
        hidden = vectors.transpose(1, 2)
        hidden = self.projection(hidden * _length_mask(lengths, hidden))
        hidden = hidden * _length_mask(lengths, hidden)
        for stage in self.stages:
            hidden = stage(hidden, lengths)
            lengths = 2 * lengths
        return (self.output(hidden) * _length_mask(lengths, hidden)).transpose(1, 2)


class CodeQuantizer(nn.Module):
    """Nearest code vector by Euclidean distance.

    Buffers: `codebook` `(K, D)`, all zero before training; `code_counts` `(K,)`, how many latents of a training batch
    choose each code on average over time, which only training reads.
    """

    def __init__(self, num_codes: int, code_size: int):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(num_codes, code_size))
        self.register_buffer("code_counts", torch.ones(num_codes))

    @property
    def is_fitted(self) -> bool:
        """Whether the codebook has been learnt or loaded."""
        return bool(self.codebook.any())

    def forward(self, latents: torch.Tensor) -> torch.LongTensor:
        """latents `(..., D)` -> codes `(...)`."""
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every code.
        return (latents @ self.codebook.T - self.codebook.square().sum(-1) / 2).argmax(-1)


class PitchEncoder(PreTrainedModel):
    """F0 at 200 Hz -> pitch tokens at 12.5 Hz, and back.

    Token i stands for the F0 frames `16 i .. 16 i + 15`; frames after the last whole token get none, so an utterance
    of S samples at 16 kHz, which has `S // 80 + 1` F0 frames, has `(S // 80 + 1) // 16` tokens. Repeats are kept. The
    mean of the utterance is removed and not stored: tokens hold the melody, not the register. Speech without a voiced
    frame (whisper, silence) is F0 0 and flag 0 throughout; it has tokens like any other, and they decode to nearly
    0 Hz.

    Names of the published `vqvae_f0_quantizer/model.pt` (key "model") and of this model; i is a stage, j a residual
    layer, and both files end in `.weight` and `.bias`:

    | published | here |
    |---|---|
    | `encoder.level_blocks.0.model.{i}.0` | `encoder.stages.{i}.downsample` |
    | `encoder.level_blocks.0.model.{i}.1.model.{j}.model.1` | `encoder.stages.{i}.layers.{j}.dilated` |
    | `encoder.level_blocks.0.model.{i}.1.model.{j}.model.3` | `encoder.stages.{i}.layers.{j}.pointwise` |
    | `encoder.level_blocks.0.model.{num_stages}` | `encoder.projection` |
    | `vq.level_blocks.0.k` | `quantizer.codebook` |
    | (none, all ones) | `quantizer.code_counts` |
    | `decoder.level_blocks.0.model.0` | `decoder.projection` |
    | `decoder.level_blocks.0.model.{i + 1}.0.model.{j}.model.1` | `decoder.stages.{i}.layers.{j}.dilated` |
    | `decoder.level_blocks.0.model.{i + 1}.0.model.{j}.model.3` | `decoder.stages.{i}.layers.{j}.pointwise` |
    | `decoder.level_blocks.0.model.{i + 1}.1` | `decoder.stages.{i}.upsample` |
    | `decoder.out` | `decoder.output` |

    Args:
        config ([`PitchEncoderConfig`]): sizes.
    """

    config_class = PitchEncoderConfig
    base_model_prefix = "pitch_encoder"
    main_input_name = "features"

    def __init__(self, config: PitchEncoderConfig):
        super().__init__(config)
        self.encoder = ContourEncoder(config)
        self.quantizer = CodeQuantizer(config.num_codes, config.code_size)
        self.decoder = ContourDecoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):  # N(0, 0.02) would leave the residual branches silent
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if isinstance(module, CodeQuantizer):
            nn.init.zeros_(module.codebook)
            nn.init.ones_(module.code_counts)

    @property
    def sampling_rate(self) -> int:
        """Of the waveform that F0 is extracted from, in Hz."""
        return self.config.sampling_rate

    @property
    def f0_rate(self) -> float:
        """F0 frames per second (Hz)."""
        return self.config.f0_rate

    @property
    def code_rate(self) -> float:
        """Pitch tokens per second (Hz)."""
        return self.config.code_rate

    @property
    def num_codes(self) -> int:
        """Number of distinct pitch tokens."""
        return self.config.num_codes

    def forward(self, features: torch.Tensor, lengths: torch.LongTensor | None = None, **kwargs) -> PitchEncoderOutput:
        """Encode, quantize and decode a padded batch.

        In training, the gradient of the reconstruction passes the quantizer unchanged to the encoder
        (straight-through, van den Oord et al. 2017, arXiv 1711.00937, section 3.2).

        Args:
            features (`torch.FloatTensor` of shape `(batch, frames, 2)`): relative F0 (Hz) and voiced flag, as
                [`contour_to_features`] returns them, padded on the right.
            lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): frames of each row. Default: all.

        Returns:
            [`PitchEncoderOutput`].
        """
        if lengths is None:
            lengths = torch.full(features.shape[:1], features.shape[1], device=features.device)
        latents = self.encoder(features.to(self.dtype).transpose(1, 2), lengths)
        lengths = lengths // self.config.frames_per_code
        codes = self.quantizer(latents)
        quantized = self.quantizer.codebook[codes]
        reconstruction = self.decoder(latents + (quantized - latents).detach(), lengths)
        return PitchEncoderOutput(
            codes=codes.masked_fill(_length_mask(lengths, latents.mT)[:, 0] == 0, -1),
            lengths=lengths,
            latents=latents,
            quantized=quantized,
            reconstruction=reconstruction,
        )

    @torch.inference_mode()
    def f0_to_codes(self, contours: Sequence[Contour], batch_size: int = 8) -> list[torch.LongTensor]:
        """Return the pitch tokens of each utterance, repeats kept, on the CPU.

        Args:
            contours: (f0, voiced) of each utterance, two arrays of shape `(T,)` at 200 Hz: F0 in Hz, 0 where it is
                unknown, and whether the frame is voiced.
            batch_size (`int`, default 8): utterances that run together; the tokens do not depend on it.

        Raises `ValueError` for contours shorter than one token (80 ms), for NaN, for a voiced frame without F0, and
        when the codebook has not been learnt.
        """
        self._check_fitted()
        features = [contour_to_features(f0, voiced) for f0, voiced in contours]
        for index, item in enumerate(features):
            if len(item) < self.config.frames_per_code:
                raise ValueError(
                    f"contour {index} has {len(item)} F0 frames ({1000 * len(item) / self.f0_rate:.0f} ms); a pitch "
                    f"token needs {self.config.frames_per_code} ({1000 / self.code_rate:.0f} ms)"
                )
        codes = []
        for start in range(0, len(features), batch_size):
            batch = features[start : start + batch_size]
            lengths = torch.tensor([len(item) for item in batch], device=self.device)
            padded = nn.utils.rnn.pad_sequence(batch, batch_first=True).to(self.device, self.dtype)
            rows = self.quantizer(self.encoder(padded.transpose(1, 2), lengths)).cpu()
            counts = (lengths // self.config.frames_per_code).tolist()
            codes += [row[:count] for row, count in zip(rows, counts, strict=True)]
        return codes

    @torch.inference_mode()
    def codes_to_f0(self, codes: torch.LongTensor | Sequence[int]) -> torch.FloatTensor:
        """Return F0 at 200 Hz relative to the mean of the utterance, in Hz, shape `(16 * codes,)`, on the CPU.

        Every frame has a value, also where the speech was unvoiced. Add the mean F0 of a speaker to hear it.

        Args:
            codes: pitch tokens of one utterance at 12.5 Hz, repeats kept.

        Raises `ValueError` for tokens out of range and when the codebook has not been learnt.
        """
        self._check_fitted()
        codes = torch.as_tensor(codes, dtype=torch.long, device=self.device)
        if codes.dim() != 1:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; expected one utterance, one dimension")
        if len(codes) == 0:
            return torch.zeros(0)
        if codes.min() < 0 or codes.max() >= self.num_codes:
            raise ValueError(f"codes are {codes.min()}..{codes.max()}; expected 0..{self.num_codes - 1}")
        lengths = torch.tensor([len(codes)], device=self.device)
        return self.decoder(self.quantizer.codebook[codes][None], lengths)[0, :, 0].float().cpu()

    def _check_fitted(self) -> None:
        if not self.quantizer.is_fitted:
            raise ValueError("the pitch encoder has no codebook; train it with train_pitch or load a trained one")


def contour_to_features(f0: np.ndarray | torch.Tensor, voiced: np.ndarray | torch.Tensor) -> torch.FloatTensor:
    """Return what the pitch encoder reads of one utterance: relative F0 (Hz) and voiced flag, shape `(T, 2)`.

    Frames whose F0 is unknown (0) get it by linear interpolation between their neighbours, and beyond the first and
    the last known frame by the value there. Then the mean over the voiced frames is removed. Without a voiced frame
    there is no mean, and the relative F0 is 0 throughout.

    Args:
        f0: `(T,)`, Hz, 0 where it is unknown.
        voiced: `(T,)`, true where the frame is voiced.

    Raises `ValueError` for arrays of different or other shapes, for NaN or negative F0, and for a voiced frame whose
    F0 is unknown.
    """
    f0, voiced = np.asarray(f0, dtype=np.float32), np.asarray(voiced).astype(bool)
    if f0.ndim != 1 or f0.shape != voiced.shape:
        raise ValueError(f"f0 has shape {f0.shape} and voiced {voiced.shape}; expected (frames,) for both")
    if not (np.isfinite(f0) & (f0 >= 0)).all():
        raise ValueError("f0 holds NaN, infinite or negative values; expected Hz, and 0 where F0 is unknown")
    if (unknown := int((f0[voiced] == 0).sum())) > 0:
        raise ValueError(f"{unknown} voiced frames have F0 0; expected the F0 of every voiced frame in Hz")
    relative = np.zeros_like(f0)
    if voiced.any():
        frames = np.arange(len(f0))
        known = f0 > 0
        relative = np.where(known, f0, np.interp(frames, frames[known], f0[known])) - f0[voiced].mean()
    return torch.from_numpy(np.stack([relative, voiced], axis=-1).astype(np.float32))


def _length_mask(lengths: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return a mask `(B, 1, L)` that is 1 before the end of each row of `frames`, shape `(B, C, L)`, in its dtype."""
    positions = torch.arange(frames.shape[-1], device=frames.device)
    return (positions < lengths[:, None])[:, None].to(frames.dtype)


# `save_pretrained` then copies this file and the configuration next to the weights.
PitchEncoder.register_for_auto_class("AutoModel")
