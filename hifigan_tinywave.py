"""Speech units, pitch, style and speaker to a waveform: code HiFi-GAN with a duration predictor.

The generator is HiFi-GAN (Kong et al. 2020, arXiv 2010.05646); in place of a spectrogram it reads embeddings of the
codes, side by side (Polyak et al. 2021, arXiv 2104.00355; SPIRIT-LM, arXiv 2402.05755).

Letters in shapes: B batch, U units, T frames at the rate of the units (25 Hz), S samples (640 a frame), C channels.

Parameters have the names of the published `generator.pt` (its key "generator"): `dict`, `f0_dict`, `style_dict`,
`spkr` and `style` embed unit, pitch, style that changes in time, speaker and constant style; then come `dur_predictor`
(`conv1.0`, `ln1`, `conv2.0`, `ln2`, `proj`), `conv_pre`, `ups.I`, `resblocks.N.convs1.M`, `resblocks.N.convs2.M` and
`conv_post`, where N counts the kernels of one stage before the next stage. So its keys need no renaming. `weight_g`
and `weight_v` are `parametrizations.weight.original0` and `original1` here, which `load_state_dict` and
`from_pretrained` both know. The `f0_quant_embed` of older checkpoints is `f0_dict`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput

from .configuration_tinywave import HifiGanConfig
from .vocoder_inputs_tinywave import (
    check_durations,
    check_stream,
    check_units,
    codes_at_frames,
    length_mask,
    lengths_of,
    overlapping_windows,
    spoken_frames,
    window_to_tensors,
)

LEAKY_SLOPE = 0.1
LAST_LEAKY_SLOPE = 0.01  # before the last convolution, as published
OUTER_KERNEL_SIZE = 7  # of the first and the last convolution
INITIAL_STD = 0.01


@dataclass
class HifiGanOutput(ModelOutput):
    """What the vocoder speaks.

    waveform (`torch.FloatTensor` of shape `(B, S)`): in [-1, 1] at `sampling_rate`, 0 behind the end of a row.
    lengths (`torch.LongTensor` of shape `(B,)`): samples of each row.
    """

    waveform: torch.FloatTensor | None = None
    lengths: torch.LongTensor | None = None


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input (HiFi-GAN, appendix A)."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]):
        super().__init__()

        def convolution(dilation: int) -> nn.Conv1d:
            padding = dilation * (kernel_size - 1) // 2
            return nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=padding)

        self.convs1 = nn.ModuleList(convolution(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(convolution(1) for _ in dilations)
        # Samples on each side that an output depends on.
        self.radius = sum((dilation + 1) * (kernel_size - 1) // 2 for dilation in dilations)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden `(B, C, L)`, mask `(B, 1, L)` or None -> `(B, C, L)`."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            update = dilated(masked(F.leaky_relu(hidden, LEAKY_SLOPE), mask))
            update = plain(masked(F.leaky_relu(update, LEAKY_SLOPE), mask))
            hidden = hidden + update
        return hidden


class HifiGanDurationPredictor(nn.Module):
    """Predicts log(1 + duration) of de-duplicated units from their embeddings (arXiv 2104.00355, section 3)."""

    def __init__(self, config: HifiGanConfig):
        super().__init__()
        size, kernel_size = config.duration_hidden_size, config.duration_kernel_size
        padding = kernel_size // 2
        self.conv1 = nn.Sequential(nn.Conv1d(config.embedding_size, size, kernel_size, padding=padding), nn.ReLU())
        self.ln1 = nn.LayerNorm(size)
        self.conv2 = nn.Sequential(nn.Conv1d(size, size, kernel_size, padding=padding), nn.ReLU())
        self.ln2 = nn.LayerNorm(size)
        self.proj = nn.Linear(size, 1)
        self.dropout = nn.Dropout(config.duration_dropout)

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """embeddings `(B, U, C)`, mask `(B, U, 1)` -> `(B, U)`."""
        hidden = embeddings
        for convolution, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            hidden = convolution(masked(hidden, mask).transpose(1, 2)).transpose(1, 2)
            hidden = self.dropout(norm(hidden))
        return self.proj(hidden).squeeze(-1)


class HifiGanVocoder(PreTrainedModel):
    """Units at 25 Hz, and what else the configuration names -> waveform at 16 kHz.

    Rows of a batch come out as they do alone. A sample depends on `receptive_field` frames before and after its own,
    and `stream_waveform` gives the same samples as the whole. For use, call `remove_weight_norm` first: the output
    stays, and each call saves the computation of the weights.
    """

    config_class = HifiGanConfig
    base_model_prefix = "hifigan"
    main_input_name = "units"

    def __init__(self, config: HifiGanConfig):
        super().__init__(config)
        size = config.embedding_size
        self.dict = nn.Embedding(config.num_units, size)
        self.f0_dict = nn.Embedding(config.num_pitch_tokens, size) if config.num_pitch_tokens else None
        self.style_dict = nn.Embedding(config.num_style_tokens, size) if config.num_style_tokens else None
        self.spkr = nn.Embedding(config.num_speakers, size) if config.num_speakers else None
        self.style = nn.Embedding(config.num_styles, size) if config.num_styles else None
        self.dur_predictor = HifiGanDurationPredictor(config) if config.duration_hidden_size else None
        embeddings = (self.dict, self.f0_dict, self.style_dict, self.spkr, self.style)
        num_inputs = sum(embedding is not None for embedding in embeddings)
        channels, padding = config.initial_channels, OUTER_KERNEL_SIZE // 2
        self.conv_pre = nn.Conv1d(num_inputs * size, channels, OUTER_KERNEL_SIZE, padding=padding)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            padding = (kernel_size - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel_size, rate, padding=padding))
            channels //= 2
            for size in config.resblock_kernel_sizes:
                self.resblocks.append(ResidualBlock(channels, size, config.resblock_dilations))
        self.conv_post = nn.Conv1d(channels, 1, OUTER_KERNEL_SIZE, padding=OUTER_KERNEL_SIZE // 2)
        if config.weight_norm:
            for convolution in self._convolutions():
                parametrizations.weight_norm(convolution)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            initialization.normal_(module.weight)
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and parametrize.is_parametrized(module):
            weight = module.parametrizations.weight
            initialization.normal_(weight.original1, std=INITIAL_STD)
            initialization.copy_(weight.original0, torch.norm_except_dim(weight.original1, 2, 0))
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            initialization.normal_(module.weight, std=INITIAL_STD)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveform, Hz."""
        return self.config.sampling_rate

    @property
    def samples_per_unit(self) -> int:
        """Waveform samples that one unit of duration 1 covers (640)."""
        return self.config.samples_per_unit

    @property
    def receptive_field(self) -> int:
        """Frames before and after its own that a sample depends on (20 with the published sizes: 0.8 s)."""
        outer = OUTER_KERNEL_SIZE // 2
        first, last = -outer, self.samples_per_unit - 1 + outer  # samples that the last convolution reads for frame 0
        num_kernels = len(self.config.resblock_kernel_sizes)
        for stage in reversed(range(len(self.ups))):
            radius = max(block.radius for block in self.resblocks[stage * num_kernels : (stage + 1) * num_kernels])
            up = self.ups[stage]
            (rate,), (kernel_size,), (padding,) = up.stride, up.kernel_size, up.padding
            # Output n of a transposed convolution reads the inputs i with 0 <= n + padding - i * rate < kernel_size.
            first = math.ceil((first - radius + padding - kernel_size + 1) / rate)
            last = (last + radius + padding) // rate
        return max(-first, last) + outer

    def remove_weight_norm(self) -> None:
        """Compute each weight once and for all, for use and for small files; the output stays the same up to 1e-5."""
        if self.config.weight_norm:
            for convolution in self._convolutions():
                parametrize.remove_parametrizations(convolution, "weight")
            self.config.weight_norm = False

    def forward(
        self,
        units: torch.LongTensor,
        lengths: torch.LongTensor | None = None,
        pitch: torch.LongTensor | None = None,
        style: torch.LongTensor | None = None,
        speaker: torch.LongTensor | None = None,
    ) -> HifiGanOutput:
        """Speak a batch.

        Args:
            units (`torch.LongTensor` of shape `(B, T)`): units at 25 Hz, repeats kept, right padded with any valid id
                or -1.
            lengths (`(B,)`, default all that are not -1): real units of each row.
            pitch (`(B, T)`): the code in force at each unit, as [`codes_at_frames`] gives it, padded alike; exactly
                where the configuration counts pitch codes.
            style (`(B, T)`, or `(B,)` where an utterance has one style): alike; one style defaults to 0.
            speaker (`(B,)`, default 0): where the configuration counts speakers.

        Raises:
            ValueError: missing codes, or codes that this vocoder has no input for.
        """
        lengths = lengths_of(units, lengths)
        hidden = self.embed(units, pitch, style, speaker)
        has_padding = bool((lengths < units.shape[1]).any())
        waveform = self.generate_waveform(hidden, lengths if has_padding else None)
        return HifiGanOutput(waveform, lengths * self.samples_per_unit)

    def embed(self, units, pitch=None, style=None, speaker=None) -> torch.Tensor:
        """Embeddings of the codes that `forward` takes, side by side, `(B, C, T)`."""
        config = self.config
        check_stream("pitch", pitch, config.num_pitch_tokens)
        check_stream("speaker", 0 if config.num_speakers and speaker is None else speaker, config.num_speakers)
        check_stream("style", 0 if config.num_styles and style is None else style, self._num_styles)
        batch_size, num_frames = units.shape
        parts = [self.dict(units.clamp(min=0))]
        for embedding, codes in ((self.f0_dict, pitch), (self.style_dict, style)):
            if embedding is not None:
                parts.append(embedding(codes.clamp(min=0)))
        for embedding, codes in ((self.spkr, speaker), (self.style, style)):
            if embedding is not None:
                codes = units.new_zeros(batch_size) if codes is None else codes
                parts.append(embedding(codes)[:, None].expand(-1, num_frames, -1))
        return torch.cat(parts, dim=-1).transpose(1, 2)

    def generate_waveform(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.FloatTensor:
        """Embeddings `(B, C, T)` -> `(B, S)`; `lengths` `(B,)` in frames where rows are padded."""
        num_kernels = len(self.config.resblock_kernel_sizes)
        mask = frame_mask(lengths, hidden.shape[-1])
        hidden = self.conv_pre(masked(hidden, mask))
        for stage, up in enumerate(self.ups):
            hidden = up(masked(F.leaky_relu(hidden, LEAKY_SLOPE), mask))
            mask = None if mask is None else mask.repeat_interleave(up.stride[0], dim=-1)
            blocks = self.resblocks[stage * num_kernels : (stage + 1) * num_kernels]
            hidden = sum(block(hidden, mask) for block in blocks) / num_kernels
        hidden = self.conv_post(masked(F.leaky_relu(hidden, LAST_LEAKY_SLOPE), mask))
        return masked(torch.tanh(hidden.float()), mask).squeeze(1)

    def predict_log_durations(
        self, units: torch.LongTensor, lengths: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """De-duplicated units `(B, U)` -> log(1 + frames at 25 Hz) of each, `(B, U)`.

        Raises:
            ValueError: this vocoder was made without a duration predictor.
        """
        if self.dur_predictor is None:
            raise ValueError("Found no durations, and this vocoder has no duration predictor; give it durations.")
        mask = length_mask(lengths_of(units, lengths), units.shape[1])
        return self.dur_predictor(self.dict(units.clamp(min=0)), mask)

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
        pitch: Sequence[int] | torch.LongTensor | None = None,
        style: Sequence[int] | torch.LongTensor | int | str | None = None,
        speaker: int | str = 0,
    ) -> torch.FloatTensor:
        """Speak one sequence of units.

        Args:
            units (`(U,)`): de-duplicated units (or raw ones together with durations of 1).
            durations (`(U,)`, default predicted): 25 Hz frames of each unit, 1 or more.
            pitch: exactly where the configuration counts pitch codes: one code a unit (`(U,)`), or codes at 12.5 Hz
                (`(P,)`) where all durations are 1.
            style: alike (at 1 Hz, `(S,)`), or one style, by number or name; a vocoder of constant styles takes only
                one, by default 0.
            speaker (default 0): number or name; ignored by a vocoder of one speaker.

        Returns:
            `torch.FloatTensor` of shape `(samples_per_unit * durations.sum(),)` at `sampling_rate`, on the CPU.

        Raises:
            ValueError: no units, units, codes or a speaker out of range, durations or codes that do not fit the units,
                missing codes, or an unknown name.
        """
        config = self.config
        units = check_units(units, config.num_units).to(self.device)
        durations = self.predict_durations(units[None])[0] if durations is None else durations
        durations = check_durations(durations, units)
        ratio = config.pitch_rate / config.unit_rate
        pitch = codes_at_frames("pitch", pitch, durations, config.num_pitch_tokens, ratio)
        style, constant_style = self._split_style(style)
        ratio = config.style_rate / config.unit_rate
        style = codes_at_frames("style", style, durations, config.num_style_tokens, ratio)
        frames = [None if codes is None else codes[None] for codes in (pitch, style)]
        units = torch.repeat_interleave(units, durations)[None]
        style = frames[1] if constant_style is None else constant_style
        return self(units, None, frames[0], style, self._speaker(speaker)).waveform[0].cpu()

    @torch.no_grad()
    def stream_waveform(
        self,
        units: Iterable[int],
        durations: Iterable[int] | None = None,
        pitch: Iterable[int] | int | None = None,
        style: Iterable[int] | int | str | None = None,
        speaker: int | str = 0,
        chunk_units: int = 25,
    ) -> Iterator[torch.FloatTensor]:
        """Speak piece by piece while the units still arrive; the pieces joined are what `units_to_waveform` gives.

        A piece is spoken as soon as `receptive_field` more frames than it has are known (and two more units where
        durations are predicted).

        Args:
            units, durations, pitch, style: as in [`~HifiGanVocoder.units_to_waveform`], but read one at a time and in
                step, one duration and code a unit.
            speaker (default 0): number or name.
            chunk_units (`int`, default 25): 25 Hz frames of a piece.

        Raises:
            ValueError: as [`~HifiGanVocoder.units_to_waveform`], when the offending unit is read.
        """
        if chunk_units < 1:
            raise ValueError(f"Found chunk_units={chunk_units}; expected at least 1 unit (40 ms) in a piece.")
        config, speaker = self.config, self._speaker(speaker)
        style, constant_style = self._split_style(style)
        streams = [("pitch", pitch, config.num_pitch_tokens), ("style", style, config.num_style_tokens)]
        frames = spoken_frames(units, durations, streams, config.num_units, self.predict_durations, self.device)
        for window, begin, size in overlapping_windows(frames, chunk_units, self.receptive_field):
            codes, pitch, style = window_to_tensors(window, self.device)
            style = style if constant_style is None else constant_style
            waveform = self(codes, None, pitch, style, speaker).waveform[0].cpu()
            yield waveform[begin * self.samples_per_unit : (begin + size) * self.samples_per_unit]

    @property
    def _num_styles(self) -> int:
        return self.config.num_styles or self.config.num_style_tokens

    def _convolutions(self) -> Iterator[nn.Module]:
        """Every convolution of the generator; those of the duration predictor never have weight norm."""
        yield from (self.conv_pre, *self.ups, self.conv_post)
        for block in self.resblocks:
            yield from (*block.convs1, *block.convs2)

    def _speaker(self, speaker: int | str) -> torch.LongTensor | None:
        if not self.config.num_speakers:
            return None
        number = number_of(speaker, "speaker", self.config.speaker_names, self.config.num_speakers)
        return torch.tensor([number], device=self.device)

    def _split_style(self, style) -> tuple:
        """Return (style in time, constant style `(1,)`), at least one of them None; names become numbers."""
        if isinstance(style, str) or (self.config.num_styles and isinstance(style, Integral)):
            style = number_of(style, "style", self.config.style_names, self._num_styles)
        if not self.config.num_styles:
            return style, None
        if style is not None and not isinstance(style, Integral):
            raise ValueError("Found styles that change in time; this vocoder gives an utterance one style, a number.")
        return None, torch.tensor([style or 0], device=self.device)


def masked(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero what is behind the end of a row, as a convolution that pads finds it behind the end of a whole."""
    return hidden if mask is None else hidden * mask.to(hidden.dtype)


def frame_mask(lengths: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """Lengths `(B,)` -> mask `(B, 1, size)`; None -> None."""
    return None if lengths is None else length_mask(lengths, size).transpose(1, 2)


def number_of(value: int | str, kind: str, names: Sequence[str] | None, count: int) -> int:
    """Return the number of a speaker or style; `ValueError` for an unknown name and a number out of range."""
    if isinstance(value, str):
        if value not in (names or ()):
            raise ValueError(f"Found {kind} {value!r}; expected one of {', '.join(names or ())}, or a number.")
        return names.index(value)
    if not 0 <= value < count:
        raise ValueError(f"Found {kind} {value}; this vocoder knows 0 to {count - 1}.")
    return value


# Saving the vocoder copies this file and the siblings it imports next to the weights.
HifiGanVocoder.register_for_auto_class("AutoModel")
