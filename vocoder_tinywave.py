"""Speech units to waveform: a convolutional unit decoder with a duration predictor, optionally heard pitch and style.

Letters in shapes: B batch, U units at `config.unit_rate` (25 Hz), T frames at `config.decoder_frame_rate` (40 Hz),
M mel bins. The network predicts the inputs of a neural decoder (features, f0, energy); the decoder itself is passed in
as a callable. Without one, Griffin-Lim makes a waveform of lower quality from the predicted log-mel spectrogram.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.audio_utils import mel_filter_bank
from transformers.utils import ModelOutput

from .configuration_tinywave import VocoderConfig
from .vocoder_inputs_tinywave import (
    check_durations,
    check_stream,
    check_units,
    codes_at_frames,
    length_mask,
    lengths_of,
    nearest_index,
    overlapping_windows,
    spoken_frames,
    window_to_tensors,
)

SUBFRAMES = 2  # f0, voicing, energy and mel have two values per decoder frame
MEL_WINDOW_HOPS = 4  # the analysis window covers four hops
MEL_FLOOR = 1e-5
F0_RANGE = (50.0, 1100.0)  # Hz, of voiced speech
GRIFFIN_LIM_STEPS = 48
GRIFFIN_LIM_MOMENTUM = 0.99
DECODER_MARGIN = 5  # units on each side that a streamed chunk is decoded with, so that its ends are warm
SEAM_SECONDS = 0.01  # over which one streamed chunk fades into the next
SEAM_SEARCH_SECONDS = 1 / 150  # either way, for the place where the two agree best: half a period of 75 Hz

NeuralDecoder = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


@dataclass
class VocoderOutput(ModelOutput):
    """What the unit decoder predicts; frames past `lengths` hold no meaning.

    features (`torch.Tensor` of shape `(B, T, decoder_channels)`): inputs of the neural decoder, denormalised.
    log_f0 (`(B, T, 2)`): natural log of the fundamental frequency in Hz, valid where voiced.
    voicing_logits (`(B, T, 2)`): above 0 means voiced.
    energy (`(B, T, 2)`): frame energy in the decoder's own unit.
    log_mel (`(B, 2 T, num_mel_bins)`): natural log of mel magnitudes, two spectra per decoder frame.
    lengths (`(B,)`): decoder frames of each row.
    style (`(B, T)`): the style that was asked for at each frame, -1 for none; None where no style was given.
    """

    features: torch.Tensor | None = None
    log_f0: torch.Tensor | None = None
    voicing_logits: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    log_mel: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    style: torch.Tensor | None = None


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
    """Units at 25 Hz, and where the configuration says so pitch and style -> decoder features at 40 Hz -> 24 kHz.

    Half of the layers run at the unit rate, half at the frame rate after linear interpolation in time; the embeddings
    of pitch and style are added in between, at the frame rate. One speaker. Rows of a batch come out as they do alone.
    What is predicted at a time depends on `receptive_field` units before and after it, and `stream_outputs` gives the
    same there as `forward`.
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
        self.pitch_embedding = self.style_embedding = None
        if config.num_pitch_tokens:
            self.pitch_embedding = nn.Embedding(config.num_pitch_tokens, config.hidden_size)
        if config.num_style_tokens:
            self.style_embedding = nn.Embedding(config.num_style_tokens, config.hidden_size)
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

    @property
    def receptive_field(self) -> int:
        """Units before and after a unit that its decoder frames depend on (20 with the default sizes: 0.8 s)."""
        radius = self.config.kernel_size // 2
        frames = sum(radius * layer.convolution.dilation[0] for layer in self.frame_layers)
        interpolation = 1
        return (
            radius * len(self.unit_layers)
            + interpolation
            + math.ceil(frames * self.config.unit_rate / self.config.decoder_frame_rate)
        )

    @property
    def units_per_edge(self) -> int:
        """Units after which a unit and a decoder frame begin together again (5: the time of 8 frames)."""
        unit_rate = round(self.config.unit_rate)
        return unit_rate // math.gcd(unit_rate, round(self.config.decoder_frame_rate))

    def unit_count_to_frame_count(self, count: torch.Tensor) -> torch.Tensor:
        """Units -> decoder frames that cover the same time, rounded to the nearest frame."""
        return torch.floor(count * (self.config.decoder_frame_rate / self.config.unit_rate) + 0.5).long()

    def forward(
        self,
        units: torch.LongTensor,
        lengths: torch.LongTensor | None = None,
        pitch: torch.LongTensor | None = None,
        style: torch.LongTensor | None = None,
    ) -> VocoderOutput:
        """Predict decoder inputs.

        Args:
            units (`torch.LongTensor` of shape `(B, U)`): units at 25 Hz, repeats kept, right padded with any valid id
                or -1.
            lengths (`(B,)`, default all that are not -1): real units of each row.
            pitch, style (`(B, U)`): the codes in force at each unit, as [`codes_at_frames`] gives them, padded alike;
                exactly those that the configuration counts. With `optional_prosody` either may be left out, for all
                units or, by -1, for some.

        Raises:
            ValueError: a missing code stream, or one that this vocoder does not have.
        """
        self._check_streams(pitch, style)
        lengths = lengths_of(units, lengths)
        mask = length_mask(lengths, units.shape[1])
        hidden = self.unit_embedding(units.clamp(min=0)) * mask
        for layer in self.unit_layers:
            hidden = layer(hidden, mask)
        frame_lengths = self.unit_count_to_frame_count(lengths)
        hidden = self._interpolate(hidden, lengths, int(frame_lengths.max()))
        pitch, style = (None if x is None else self._hold(x, lengths, hidden.shape[1]) for x in (pitch, style))
        for embedding, codes in ((self.pitch_embedding, pitch), (self.style_embedding, style)):
            if codes is not None:
                hidden = hidden + embedding(codes.clamp(min=0)) * (codes >= 0)[:, :, None]
        mask = length_mask(frame_lengths, hidden.shape[1])
        for layer in self.frame_layers:
            hidden = layer(hidden, mask)
        outputs = self.head(hidden).float() * self.output_std + self.output_mean
        features, log_f0, voicing_logits, energy, log_mel = outputs.split(self.output_sizes, dim=-1)
        log_mel = log_mel.reshape(len(units), -1, self.config.num_mel_bins)
        return VocoderOutput(features, log_f0, voicing_logits, energy, log_mel, frame_lengths, style)

    def predict_log_durations(
        self, units: torch.LongTensor, lengths: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """De-duplicated units `(B, U)` -> log(1 + frames at 25 Hz) of each, `(B, U)`."""
        mask = length_mask(lengths_of(units, lengths), units.shape[1])
        return self.duration_predictor(units.clamp(min=0), mask)

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
        pitch: Sequence[int] | torch.LongTensor | None = None,
        style: Sequence[int] | torch.LongTensor | int | None = None,
    ) -> torch.FloatTensor:
        """Speak one sequence of units.

        Args:
            units (`(U,)`): de-duplicated units (or raw ones together with durations of 1).
            durations (`(U,)`, default predicted): 25 Hz frames of each unit, 1 or more.
            decoder: `decoder(features (T, 128), f0 (2 T,) Hz with 0 = unvoiced, energy (2 T,), style (T,) with -1 =
                none, or None) -> waveform`, NumPy in and out, at `sampling_rate`. Default `None`: Griffin-Lim on the
                predicted log-mel spectrogram, a fallback that is intelligible but sounds metallic.
            pitch, style: exactly the streams that the configuration counts (at most these, with
                `optional_prosody`), each one code a unit (`(U,)`), a code at its own rate where all durations are 1
                (12.5 Hz and 1 Hz, `(P,)` and `(S,)`), or one code for all.

        Returns:
            `torch.FloatTensor` of shape `(samples,)` at `sampling_rate`, cut or zero-padded to exactly
            `samples_per_unit * durations.sum()` samples.

        Raises:
            ValueError: no units, units or codes out of range, durations or codes that do not fit the units, or a
                missing code stream.
        """
        units = check_units(units, self.config.num_units).to(self.device)
        if durations is None:
            durations = self.predict_durations(units[None])[0]
        durations = check_durations(durations, units)
        pitch, style = (
            codes_at_frames(name, codes, durations, count, rate / self.config.unit_rate, self.config.optional_prosody)
            for name, codes, count, rate in self._streams(pitch, style)
        )
        units = torch.repeat_interleave(units, durations)
        output = self(*(None if x is None else x[None] for x in (units, None, pitch, style)))
        waveform = self._output_to_waveform(output, decoder)
        num_samples = self.samples_per_unit * len(units)
        return F.pad(waveform, (0, max(0, num_samples - len(waveform))))[:num_samples]

    @torch.no_grad()
    def stream_outputs(
        self,
        units: Iterable[int],
        durations: Iterable[int] | None = None,
        pitch: Iterable[int] | int | None = None,
        style: Iterable[int] | int | None = None,
        chunk_units: int = 25,
    ) -> Iterator[VocoderOutput]:
        """Predict decoder inputs piece by piece while the units still arrive.

        A piece is predicted as soon as `receptive_field` more units than it needs are known (and two more where
        durations are predicted), and the pieces joined are the output of `forward` on the whole sequence.

        Args:
            units, durations, pitch, style: as in [`~Vocoder.units_to_waveform`], but read one at a time and in step,
                one duration and code a unit.
            chunk_units (`int`, default 25): 25 Hz frames of a piece, rounded up to a multiple of `units_per_edge`.

        Raises:
            ValueError: as [`~Vocoder.units_to_waveform`], when the offending unit is read.
        """
        frames = self._spoken_frames(units, durations, pitch, style)
        for output, start, stop, _ in self._stream_windows(frames, chunk_units, margin=0):
            yield slice_output(output, start, stop)

    @torch.no_grad()
    def stream_waveform(
        self,
        units: Iterable[int],
        durations: Iterable[int] | None = None,
        decoder: NeuralDecoder | None = None,
        pitch: Iterable[int] | int | None = None,
        style: Iterable[int] | int | None = None,
        chunk_units: int = 25,
    ) -> Iterator[torch.FloatTensor]:
        """Speak piece by piece while the units still arrive; arguments as in [`~Vocoder.stream_outputs`].

        The pieces have as many samples in all as [`~Vocoder.units_to_waveform`] gives. Their samples differ from its
        samples: a decoder starts each piece with a phase and noise of its own, so a piece is moved by up to 7 ms to
        where it agrees best with the one before, and faded in over 10 ms.
        """
        search, fade = (round(seconds * self.sampling_rate) for seconds in (SEAM_SEARCH_SECONDS, SEAM_SECONDS))
        samples_per_frame = self.sampling_rate / self.config.decoder_frame_rate
        tail = None
        frames = self._spoken_frames(units, durations, pitch, style)
        for output, start, stop, num_units in self._stream_windows(frames, chunk_units, margin=DECODER_MARGIN):
            first, last = max(0, start - self._margin_frames), stop + self._margin_frames
            waveform = self._output_to_waveform(slice_output(output, first, last), decoder)
            begin = round((start - first) * samples_per_frame)
            size = self.samples_per_unit * num_units
            waveform = F.pad(waveform, (0, max(0, begin + size + search + fade - len(waveform))))
            if tail is not None:
                begin += best_shift(tail, waveform[begin - search : begin + search + fade])
                rise = torch.linspace(0, 1, fade)
                waveform[begin : begin + fade] = tail + rise * (waveform[begin : begin + fade] - tail)
            tail = waveform[begin + size : begin + size + fade].clone()
            yield waveform[begin : begin + size].clone()

    @property
    def _margin_frames(self) -> int:
        return round(DECODER_MARGIN * self.config.decoder_frame_rate / self.config.unit_rate)

    def _stream_windows(
        self, frames: Iterator[list[int]], chunk_units: int, margin: int
    ) -> Iterator[tuple[VocoderOutput, int, int, int]]:
        """Yield (output of a window, first and last + 1 frame of its new piece, units of the piece)."""
        if chunk_units < 1:
            raise ValueError(f"Found chunk_units={chunk_units}; expected at least 1 unit (40 ms) in a piece.")
        edge = self.units_per_edge
        chunk, context = (math.ceil(size / edge) * edge for size in (chunk_units, self.receptive_field + margin))
        for window, begin, size in overlapping_windows(frames, chunk, context):
            units, pitch, style = window_to_tensors(window, self.device)
            counts = torch.tensor([begin, begin + size])
            start, stop = self.unit_count_to_frame_count(counts).tolist()
            yield self(units, None, pitch, style), start, stop, size

    def _spoken_frames(self, units, durations, pitch, style) -> Iterator[list[int]]:
        streams = [(name, codes, count) for name, codes, count, _ in self._streams(pitch, style)]
        config = self.config
        return spoken_frames(
            units, durations, streams, config.num_units, self.predict_durations, self.device, config.optional_prosody
        )

    def _streams(self, pitch, style) -> list[tuple]:
        """(name, codes, number of codes, rate) of pitch and style."""
        config = self.config
        return [
            ("pitch", pitch, config.num_pitch_tokens, config.pitch_rate),
            ("style", style, config.num_style_tokens, config.style_rate),
        ]

    def _check_streams(self, pitch, style) -> None:
        for name, codes, count, _ in self._streams(pitch, style):
            check_stream(name, codes, count, self.config.optional_prosody)

    def _output_to_waveform(self, output: VocoderOutput, decoder: NeuralDecoder | None) -> torch.FloatTensor:
        if decoder is None:
            return log_mel_to_waveform(output.log_mel[0].float().cpu(), self.config)
        return self._decode(output, decoder)

    def _decode(self, output: VocoderOutput, decoder: NeuralDecoder) -> torch.FloatTensor:
        f0 = torch.where(output.voicing_logits > 0, torch.exp(output.log_f0).clamp(*F0_RANGE), 0.0)
        energy = output.energy[0].reshape(-1)
        features, f0, energy = (x.cpu().numpy() for x in (output.features[0], f0[0].reshape(-1), energy))
        style = None if output.style is None else output.style[0].cpu().numpy()
        return torch.from_numpy(np.asarray(decoder(features, f0, energy, style), dtype=np.float32))

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

    def _hold(self, codes: torch.Tensor, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Code of the unit on which the centre of each decoder frame lies, `(B, U)` -> `(B, T)`."""
        index = nearest_index(num_frames, self.config.unit_rate / self.config.decoder_frame_rate, codes.device)
        return codes.gather(1, torch.minimum(index[None], lengths[:, None] - 1))


def best_shift(tail: torch.Tensor, waveform: torch.Tensor) -> int:
    """Shift at which `tail` correlates best with `waveform`, relative to its middle: `(F,)`, `(2 S + F,)` -> -S..S."""
    candidates = waveform.unfold(0, len(tail), 1)
    scores = candidates @ tail / (candidates.norm(dim=1) + 1e-6)
    return int(scores.argmax()) - (len(candidates) - 1) // 2


def slice_output(output: VocoderOutput, start: int, stop: int) -> VocoderOutput:
    """Decoder frames `start .. stop - 1` of an output of one row; `stop` may lie behind its end."""
    frames = slice(start, min(stop, int(output.lengths[0])))
    parts = [output.features, output.log_f0, output.voicing_logits, output.energy]
    log_mel = output.log_mel[:, frames.start * SUBFRAMES : frames.stop * SUBFRAMES]
    style = None if output.style is None else output.style[:, frames]
    length = output.lengths * 0 + frames.stop - start
    return VocoderOutput(*(part[:, frames] for part in parts), log_mel, length, style)


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
