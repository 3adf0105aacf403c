"""Waveform <-> streams of units, pitch and style: the models that stand on both sides of a language model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from .tokenization_tinywave import SpeechStreams

# waveform (samples,) at 16 kHz -> F0 in Hz (frames,) and voiced (frames,), at 200 Hz
F0Extractor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class SpeechCodec:
    """Encodes speech into the streams a language model reads, and speaks the streams it writes.

    Args:
        speech_encoder ([`SpeechEncoder`]): waveform -> units.
        vocoder ([`Vocoder`] or [`HifiGanVocoder`]): units -> waveform.
        decoder (*optional*): neural decoder of a [`Vocoder`], see [`Vocoder.units_to_waveform`].
        pitch_encoder ([`PitchEncoder`], *optional*): F0 -> pitch codes; needs `f0_extractor`.
        style_encoder ([`StyleEncoder`], *optional*): waveform -> style.
        f0_extractor (`F0Extractor`, *optional*): waveform -> F0, such as `tinywave.data.f0_extraction` makes.

    Raises `ValueError` where encoder and vocoder count different units, and for a pitch encoder without extractor.
    """

    # Hz; those of SPIRIT-LM (arXiv 2402.05755, section 3.2), which the encoders keep whatever their size.
    pitch_rate = 12.5
    style_rate = 1.0

    def __init__(
        self,
        speech_encoder: PreTrainedModel,
        vocoder: PreTrainedModel,
        decoder: Callable | None = None,
        *,
        pitch_encoder: PreTrainedModel | None = None,
        style_encoder: PreTrainedModel | None = None,
        f0_extractor: F0Extractor | None = None,
    ):
        # A vocoder may know one unit more, the blank of the published quantizer, which no encoder emits.
        if not 0 <= vocoder.config.num_units - speech_encoder.config.num_units <= 1:
            raise ValueError(
                f"Found {speech_encoder.config.num_units} units in the speech encoder and {vocoder.config.num_units} "
                "in the vocoder; expected two parts made for the same units."
            )
        if pitch_encoder is not None and f0_extractor is None:
            raise ValueError("Found a pitch encoder without an F0 extractor; give f0_extractor as well.")
        self.speech_encoder, self.vocoder, self.decoder = speech_encoder, vocoder, decoder
        self.pitch_encoder, self.style_encoder, self.f0_extractor = pitch_encoder, style_encoder, f0_extractor

    @property
    def input_sampling_rate(self) -> int:
        """Of the waveforms that [`~SpeechCodec.encode`] takes, in Hz."""
        return self.speech_encoder.sampling_rate

    @property
    def output_sampling_rate(self) -> int:
        """Of the waveforms that [`~SpeechCodec.decode`] returns, in Hz."""
        return self.vocoder.sampling_rate

    @property
    def stream_names(self) -> set[str]:
        """The streams it makes, as `TinyWaveConfig.stream_ranges` names them: "unit", "pitch", "style"."""
        present = {"unit": True, "pitch": self.pitch_encoder is not None, "style": self.style_encoder is not None}
        return {name for name, is_present in present.items() if is_present}

    @torch.no_grad()
    def encode(self, waveforms: Sequence[np.ndarray | torch.Tensor], batch_size: int = 1) -> list[SpeechStreams]:
        """Waveforms, 1-D, mono, at `input_sampling_rate` -> timed streams of each.

        Raises `ValueError` for audio under 80 ms and for NaN samples.
        """
        units = self.speech_encoder.encode(waveforms, batch_size)
        pitch = style = [None] * len(units)
        if self.pitch_encoder is not None:
            contours = [self.f0_extractor(np.asarray(waveform, dtype=np.float32)) for waveform in waveforms]
            pitch = self.pitch_encoder.f0_to_codes(contours)
        if self.style_encoder is not None:
            style = self.style_encoder.encode(waveforms)
        return [SpeechStreams(*streams) for streams in zip(units, pitch, style, strict=True)]

    @torch.no_grad()
    def decode(self, streams: SpeechStreams, durations: Sequence[int] | None = None) -> torch.FloatTensor:
        """Speak timed or parsed streams -> `(samples,)` at `output_sampling_rate`.

        Args:
            streams ([`SpeechStreams`]): a stream that the vocoder does not know is not heard.
            durations (sequence of shape `(units,)`, *optional*): frames of each unit. Default: one for timed streams,
                predicted by the vocoder for parsed ones.
        """
        if streams.ids is None:
            streams = self.timed_to_frames(streams)
            durations = np.ones(len(streams), dtype=np.int64) if durations is None else durations
        options = {"decoder": self.decoder} if self.decoder is not None else {}
        for name, count in (("pitch", "num_pitch_tokens"), ("style", "num_style_tokens")):
            if getattr(self.vocoder.config, count, 0):
                options[name] = getattr(streams, name)
        return self.vocoder.units_to_waveform(streams.units, durations, **options)

    def timed_to_frames(self, streams: SpeechStreams) -> SpeechStreams:
        """Timed streams -> the same with the pitch and the style of every unit frame, all of shape `(units,)`."""
        return SpeechStreams(
            streams.units,
            self._hold(streams.pitch, len(streams), self.pitch_rate),
            self._hold(streams.style, len(streams), self.style_rate),
        )

    def _hold(self, values: np.ndarray | None, num_frames: int, rate: float) -> np.ndarray | None:
        """Values at `rate` -> the value that stands at the start of each unit frame; the last one is held."""
        if values is None or len(values) == num_frames:
            return values
        positions = (np.arange(num_frames) * (rate / self.speech_encoder.frame_rate)).astype(np.int64)
        return values[np.minimum(positions, len(values) - 1)]
