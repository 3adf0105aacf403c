"""Speech units to waveform: a convolutional unit decoder with a duration predictor.

Letters in shapes: B batch, U units at `config.unit_rate` (25 Hz), T frames at `config.decoder_frame_rate` (40 Hz),
M mel bins. The network predicts the inputs of a neural decoder (features, f0, energy); the decoder itself is passed in
as a callable. Without one, Griffin-Lim makes a waveform of lower quality from the predicted log-mel spectrogram.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.audio_utils import mel_filter_bank
from transformers.utils import ModelOutput

from .configuration_tinywave import VocoderConfig

SUBFRAMES = 2  # f0, voicing, energy and mel have two values per decoder frame
MEL_WINDOW_HOPS = 4  # the analysis window covers four hops
MEL_FLOOR = 1e-5
F0_RANGE = (50.0, 1100.0)  # Hz, of voiced speech
GRIFFIN_LIM_STEPS = 48
GRIFFIN_LIM_MOMENTUM = 0.99

NeuralDecoder = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass
class VocoderOutput(ModelOutput):
    """What the unit decoder predicts; frames past `lengths` hold no meaning.

    features (`torch.Tensor` of shape `(B, T, decoder_channels)`): inputs of the neural decoder, denormalised.
    log_f0 (`(B, T, 2)`): natural log of the fundamental frequency in Hz, valid where voiced.
    voicing_logits (`(B, T, 2)`): above 0 means voiced.
    energy (`(B, T, 2)`): frame energy in the decoder's own unit.
    log_mel (`(B, 2 T, num_mel_bins)`): natural log of mel magnitudes, two spectra per decoder frame.
    lengths (`(B,)`): decoder frames of each row.
    """

    features: torch.Tensor | None = None
    log_f0: torch.Tensor | None = None
    voicing_logits: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    log_mel: torch.Tensor | None = None
    lengths: torch.Tensor | None = None


class ConvolutionLayer(nn.Module):
    """Residual convolution, layer norm and GELU; masked, so that padding never reaches a real frame."""

    def __init__(self, channels: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.convolution = nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation)
        self.norm = nn.LayerNorm(channels)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden `(B, T, channels)`, mask `(B, T, 1)` -> `(B, T, channels)`, zero where the mask is zero."""
        update = self.convolution((hidden * mask).transpose(1, 2)).transpose(1, 2)
        return (hidden + F.gelu(self.norm(update))) * mask


class DurationPredictor(nn.Module):
    """Predicts log(1 + duration) of every de-duplicated unit from its neighbours (Polyak et al. 2021, section 3)."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_units, config.duration_hidden_size)
        self.layers = nn.ModuleList(ConvolutionLayer(config.duration_hidden_size, 3) for _ in range(2))
        self.projection = nn.Linear(config.duration_hidden_size, 1)

    def forward(self, units: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(units) * mask
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.projection(hidden).squeeze(-1)


class Vocoder(PreTrainedModel):
    """Units at 25 Hz -> decoder features at 40 Hz -> waveform at 24 kHz.

    Half of the layers run at the unit rate, half at the frame rate after linear interpolation in time. One speaker.
    Rows of a batch come out as they do alone. Streaming is not supported: convolutions look 0.8 s ahead.
    """

    config_class = VocoderConfig
    base_model_prefix = "vocoder"
    main_input_name = "units"

    def __init__(self, config: VocoderConfig):
        super().__init__(config)
        num_unit_layers = config.num_layers // 2
        self.unit_embedding = nn.Embedding(config.num_units, config.hidden_size)
        self.unit_layers = nn.ModuleList(
            ConvolutionLayer(config.hidden_size, config.kernel_size) for _ in range(num_unit_layers)
        )
        self.frame_layers = nn.ModuleList(
            ConvolutionLayer(config.hidden_size, config.kernel_size, dilation=2 if index else 1)
            for index in range(config.num_layers - num_unit_layers)
        )
        self.output_sizes = [config.decoder_channels] + [SUBFRAMES] * 3 + [SUBFRAMES * config.num_mel_bins]
        self.head = nn.Linear(config.hidden_size, sum(self.output_sizes))
        self.duration_predictor = DurationPredictor(config)
        self.register_buffer("output_mean", torch.zeros(sum(self.output_sizes)))
        self.register_buffer("output_std", torch.ones(sum(self.output_sizes)))
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):  # N(0, 0.02) would leave the residual branches silent at the start
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if isinstance(module, Vocoder):
            nn.init.zeros_(module.output_mean)
            nn.init.ones_(module.output_std)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveform, Hz."""
        return self.config.sampling_rate

    @property
    def samples_per_unit(self) -> int:
        """Waveform samples that one unit of duration 1 covers (960 at 24 kHz and 25 Hz)."""
        return round(self.config.sampling_rate / self.config.unit_rate)

    def unit_count_to_frame_count(self, count: torch.Tensor) -> torch.Tensor:
        """Units -> decoder frames that cover the same time, rounded to the nearest frame."""
        return torch.floor(count * (self.config.decoder_frame_rate / self.config.unit_rate) + 0.5).long()

    def forward(self, units: torch.LongTensor, lengths: torch.LongTensor | None = None) -> VocoderOutput:
        """Predict decoder inputs.

        Args:
            units (`torch.LongTensor` of shape `(B, U)`): units at 25 Hz, repeats kept, right padded with any valid id.
            lengths (`(B,)`, default all U): real units of each row.
        """
        lengths = self._lengths(units, lengths)
        mask = length_mask(lengths, units.shape[1])
        hidden = self.unit_embedding(units) * mask
        for layer in self.unit_layers:
            hidden = layer(hidden, mask)
        frame_lengths = self.unit_count_to_frame_count(lengths)
        hidden = self._interpolate(hidden, lengths, int(frame_lengths.max()))
        mask = length_mask(frame_lengths, hidden.shape[1])
        for layer in self.frame_layers:
            hidden = layer(hidden, mask)
        outputs = self.head(hidden).float() * self.output_std + self.output_mean
        features, log_f0, voicing_logits, energy, log_mel = outputs.split(self.output_sizes, dim=-1)
        log_mel = log_mel.reshape(len(units), -1, self.config.num_mel_bins)
        return VocoderOutput(features, log_f0, voicing_logits, energy, log_mel, frame_lengths)

    def predict_log_durations(
        self, units: torch.LongTensor, lengths: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """De-duplicated units `(B, U)` -> log(1 + frames at 25 Hz) of each, `(B, U)`."""
        mask = length_mask(self._lengths(units, lengths), units.shape[1])
        return self.duration_predictor(units, mask)

    @torch.no_grad()
    def predict_durations(self, units: torch.LongTensor, lengths: torch.LongTensor | None = None) -> torch.LongTensor:
        """De-duplicated units `(B, U)` -> frames at 25 Hz of each, `max(1, round(exp(p) - 1))`, `(B, U)`."""
        log_durations = self.predict_log_durations(units, lengths)
        return torch.round(torch.exp(log_durations.float()) - 1).clamp(min=1).long()

    @torch.no_grad()
    def units_to_waveform(
        self,
        units: Sequence[int] | torch.LongTensor,
        durations: Sequence[int] | torch.LongTensor | None = None,
        decoder: NeuralDecoder | None = None,
    ) -> torch.FloatTensor:
        """Speak one sequence of units.

        Args:
            units (`(U,)`): de-duplicated units (or raw ones together with durations of 1).
            durations (`(U,)`, default predicted): 25 Hz frames of each unit, 1 or more.
            decoder: `decoder(features (T, 128), f0 (2 T,) Hz with 0 = unvoiced, energy (2 T,)) -> waveform`, NumPy in
                and out, at `sampling_rate`. Default `None`: Griffin-Lim on the predicted log-mel spectrogram, a
                fallback that is intelligible but sounds metallic.

        Returns:
            `torch.FloatTensor` of shape `(samples,)` at `sampling_rate`, cut or zero-padded to exactly
            `samples_per_unit * durations.sum()` samples.

        Raises:
            ValueError: no units, units outside 0..num_units-1, or durations that do not fit the units.
        """
        units = self._check_units(units)
        if durations is None:
            durations = self.predict_durations(units[None])[0]
        durations = self._check_durations(durations, units)
        output = self(torch.repeat_interleave(units, durations)[None])
        waveform = self._griffin_lim(output) if decoder is None else self._decode(output, decoder)
        num_samples = self.samples_per_unit * int(durations.sum())
        return F.pad(waveform, (0, max(0, num_samples - len(waveform))))[:num_samples]

    def _decode(self, output: VocoderOutput, decoder: NeuralDecoder) -> torch.FloatTensor:
        f0 = torch.where(output.voicing_logits > 0, torch.exp(output.log_f0).clamp(*F0_RANGE), 0.0)
        energy = output.energy[0].reshape(-1)
        features, f0, energy = (x.cpu().numpy() for x in (output.features[0], f0[0].reshape(-1), energy))
        return torch.from_numpy(np.asarray(decoder(features, f0, energy), dtype=np.float32))

    def _griffin_lim(self, output: VocoderOutput) -> torch.FloatTensor:
        return log_mel_to_waveform(output.log_mel[0].float().cpu(), self.config)

    def _interpolate(self, hidden: torch.Tensor, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Linear interpolation in time between unit centres, `(B, U, C)` -> `(B, T, C)`; the last unit is held."""
        ratio = self.config.unit_rate / self.config.decoder_frame_rate
        position = (torch.arange(num_frames, device=hidden.device) + 0.5) * ratio - 0.5
        last = (lengths - 1)[:, None]
        left = position.floor()
        weight = (position - left)[None, :, None].to(hidden.dtype)
        left_index, right_index = ((left + shift).long()[None].clamp(min=0) for shift in (0, 1))
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        left_hidden = hidden[rows, torch.minimum(left_index, last)]
        right_hidden = hidden[rows, torch.minimum(right_index, last)]
        return left_hidden + weight * (right_hidden - left_hidden)

    def _lengths(self, units: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        return units.new_full((len(units),), units.shape[1]) if lengths is None else lengths

    def _check_units(self, units) -> torch.LongTensor:
        units = torch.as_tensor(units, dtype=torch.long, device=self.device)
        if units.dim() != 1 or not len(units):
            raise ValueError(f"Found units of shape {tuple(units.shape)}; expected one sequence of at least one unit.")
        low, high = int(units.min()), int(units.max())
        if low < 0 or high >= self.config.num_units:
            raise ValueError(
                f"Found units between {low} and {high}; this vocoder knows 0 to {self.config.num_units - 1}. "
                "Convert token ids to units first (subtract the unit offset of the language model)."
            )
        return units

    def _check_durations(self, durations, units: torch.Tensor) -> torch.LongTensor:
        durations = torch.as_tensor(durations, dtype=torch.long, device=units.device)
        if durations.shape != units.shape or int(durations.min()) < 1:
            raise ValueError(
                f"Found durations of shape {tuple(durations.shape)} for {len(units)} units; expected one duration of "
                "at least 1 frame for each unit."
            )
        return durations


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Lengths `(B,)` -> float mask `(B, size, 1)`, 1 on real positions."""
    return (torch.arange(size, device=lengths.device)[None] < lengths[:, None]).unsqueeze(-1).float()


def waveform_to_log_mel(waveform: torch.Tensor, config: VocoderConfig) -> torch.FloatTensor:
    """Waveform `(samples,)` at `config.sampling_rate` -> natural log-mel magnitudes `(samples // hop, num_mel_bins)`.

    The hop is half a decoder frame; spectrum i is centred on the middle of hop i.
    """
    hop = mel_hop(config)
    window_size = MEL_WINDOW_HOPS * hop
    padded = F.pad(waveform.float(), ((window_size - hop) // 2,) * 2)
    window = torch.hann_window(window_size)
    spectrum = torch.stft(padded, window_size, hop, window=window, center=False, return_complex=True).abs()
    return torch.log((mel_filters(config).T @ spectrum).clamp(min=MEL_FLOOR)).T


def log_mel_to_waveform(log_mel: torch.Tensor, config: VocoderConfig) -> torch.FloatTensor:
    """Fast Griffin-Lim (Perraudin et al. 2013): `(frames, num_mel_bins)` -> `(frames * hop,)`; the phase is seeded."""
    hop = mel_hop(config)
    window_size = MEL_WINDOW_HOPS * hop
    window = torch.hann_window(window_size)
    magnitude = (torch.linalg.pinv(mel_filters(config).T) @ torch.exp(log_mel).T).clamp(min=0.0)
    # The centred transform puts sample 0 on the middle of spectrum 0, half a hop after the waveform begins.
    num_samples = len(log_mel) * hop - hop // 2
    generator = torch.Generator().manual_seed(0)
    angles = torch.exp(2j * math.pi * torch.rand(magnitude.shape, generator=generator))
    previous = torch.zeros_like(angles)
    for _ in range(GRIFFIN_LIM_STEPS):
        waveform = torch.istft(magnitude * angles, window_size, hop, window=window, length=num_samples)
        rebuilt = torch.stft(waveform, window_size, hop, window=window, pad_mode="constant", return_complex=True)
        rebuilt = rebuilt[:, : magnitude.shape[1]]
        angles = rebuilt - GRIFFIN_LIM_MOMENTUM / (1 + GRIFFIN_LIM_MOMENTUM) * previous
        angles = angles / angles.abs().clamp(min=1e-12)
        previous = rebuilt
    waveform = torch.istft(magnitude * angles, window_size, hop, window=window, length=num_samples)
    return F.pad(waveform, (hop // 2, 0))


def mel_hop(config: VocoderConfig) -> int:
    """Samples between two spectra: half a decoder frame."""
    return round(config.sampling_rate / config.decoder_frame_rate / SUBFRAMES)


def mel_filters(config: VocoderConfig) -> torch.FloatTensor:
    """Triangular filters on the Slaney mel scale up to half the sampling rate, `(bins, num_mel_bins)`."""
    filters = mel_filter_bank(
        num_frequency_bins=MEL_WINDOW_HOPS * mel_hop(config) // 2 + 1,
        num_mel_filters=config.num_mel_bins,
        min_frequency=0.0,
        max_frequency=config.sampling_rate / 2,
        sampling_rate=config.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


# Saving the vocoder copies this file and the siblings it imports next to the weights.
Vocoder.register_for_auto_class("AutoModel")
