"""Waveform <-> streams of units, pitch and style: the models that stand on both sides of a language model."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from .configuration_tinywave import PROSODY_STREAMS, SPEECH_STREAMS, HifiGanConfig, TinyWaveConfig
from .f0_tinywave import DeferredF0Extractor, F0Extractor
from .hifigan_tinywave import HifiGanVocoder
from .loading_tinywave import load_pretrained, read_config
from .pitch_encoder_tinywave import PitchEncoder
from .speech_encoder_tinywave import SpeechEncoder
from .style_encoder_tinywave import StyleEncoder
from .tokenization_tinywave import SpeechStreams
from .vocoder_tinywave import Vocoder

CODEC_PARTS = ("speech_encoder", "pitch_encoder", "style_encoder", "vocoder")
_FIRST_UNIT_ID = 5  # after the three special ids and the two markers


class SpeechCodec:
    """Encodes speech into the streams a language model reads, and speaks the streams it writes.

    Args:
        speech_encoder ([`SpeechEncoder`]): waveform -> units.
        vocoder ([`Vocoder`] or [`HifiGanVocoder`], *optional*): units -> waveform. Without it nothing can be decoded.
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
        vocoder: PreTrainedModel | None = None,
        decoder: Callable | None = None,
        *,
        pitch_encoder: PreTrainedModel | None = None,
        style_encoder: PreTrainedModel | None = None,
        f0_extractor: F0Extractor | None = None,
    ):
        # A vocoder may know one unit more, the blank of the published quantizer, which no encoder emits.
        if vocoder is not None and not 0 <= vocoder.config.num_units - speech_encoder.config.num_units <= 1:
            raise ValueError(
                f"Found {speech_encoder.config.num_units} units in the speech encoder and {vocoder.config.num_units} "
                "in the vocoder; expected two parts made for the same units."
            )
        if pitch_encoder is not None and f0_extractor is None:
            raise ValueError("Found a pitch encoder without an F0 extractor; give f0_extractor as well.")
        self.speech_encoder, self.vocoder, self.decoder = speech_encoder, vocoder, decoder
        self.pitch_encoder, self.style_encoder, self.f0_extractor = pitch_encoder, style_encoder, f0_extractor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        decoder: Callable | None = None,
        f0_extractor: F0Extractor | None = None,
        **hub_options: Any,
    ) -> "SpeechCodec":
        """Load what [`~SpeechCodec.save_pretrained`] wrote, or a Hub repository that holds it.

        Args:
            name_or_path: a folder, or the name of a repository, with `speech_encoder` and, where they are there,
                `pitch_encoder`, `style_encoder` and `vocoder`.
            decoder (*optional*): as of the class. Default: none, so that a [`Vocoder`] speaks through Griffin-Lim.
            f0_extractor (*optional*): as of the class. Default: the one that the pitch codes were learnt from, where
                that is swift-f0; its package is needed when the first waveform is encoded.
            hub_options: of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

        Raises `ValueError` for a folder without speech encoder.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            patterns = [f"{part}/*" for part in CODEC_PARTS]
            folder = Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub_options))
        present = {part: folder / part for part in CODEC_PARTS if (folder / part / "config.json").is_file()}
        if "speech_encoder" not in present:
            raise ValueError(
                f"{name_or_path} holds no codec: found no speech_encoder/config.json; name a folder that "
                "TinyWavePipeline.save_pretrained or SpeechCodec.save_pretrained wrote"
            )
        prosody: dict[str, Any] = {}
        if "pitch_encoder" in present:
            pitch_encoder = load_pretrained(PitchEncoder, present["pitch_encoder"])
            f0_extractor = f0_extractor or DeferredF0Extractor(pitch_encoder.config.f0_extractor)
            prosody = {"pitch_encoder": pitch_encoder, "f0_extractor": f0_extractor}
        if "style_encoder" in present:
            prosody["style_encoder"] = load_pretrained(StyleEncoder, present["style_encoder"])
        vocoder = load_vocoder(present["vocoder"]) if "vocoder" in present else None
        speech_encoder = load_pretrained(SpeechEncoder, present["speech_encoder"])
        return cls(speech_encoder, vocoder, decoder, **prosody)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write each model, with its code, to a folder of its own in `folder`."""
        for part in CODEC_PARTS:
            if getattr(self, part) is not None:
                getattr(self, part).save_pretrained(Path(folder) / part)

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

    def token_layout(self) -> TinyWaveConfig:
        """Return the smallest id layout that has the codec's streams and no text, to merge streams without a model."""
        pitch_offset = _FIRST_UNIT_ID + self.speech_encoder.config.num_units
        num_pitch_tokens = 0 if self.pitch_encoder is None else self.pitch_encoder.config.num_codes
        style_offset = pitch_offset + num_pitch_tokens
        num_style_tokens = 0 if self.style_encoder is None else self.style_encoder.config.num_styles
        return TinyWaveConfig(
            vocab_size=style_offset + num_style_tokens,
            text_offset=3,
            text_vocab_size=3,
            text_marker_id=3,
            speech_marker_id=4,
            unit_offset=_FIRST_UNIT_ID,
            num_units=self.speech_encoder.config.num_units,
            pitch_offset=pitch_offset if num_pitch_tokens else -1,
            num_pitch_tokens=num_pitch_tokens,
            style_offset=style_offset if num_style_tokens else -1,
            num_style_tokens=num_style_tokens,
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for each encoder, joined by dashes: they change when an encoder changes.

        Streams of two codecs can be mixed only when their fingerprints agree. With units alone it is the fingerprint
        of the speech encoder.
        """
        parts = [self.speech_encoder.fingerprint()]
        for encoder in (self.pitch_encoder, self.style_encoder):
            if encoder is not None:
                parts.append(_digest_of_weights(encoder))
        return "-".join(parts)

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

        Raises `ValueError` for a codec without vocoder, and what the vocoder refuses.
        """
        if streams.ids is None:
            streams = self.timed_to_frames(streams)
            durations = np.ones(len(streams), dtype=np.int64) if durations is None else durations
        options = self._vocoder_options(streams.pitch, streams.style)
        return self.vocoder.units_to_waveform(streams.units, durations, **options)

    def stream(
        self,
        units: Iterable[int],
        durations: Iterable[int],
        pitch: Iterable[int] | None = None,
        style: Iterable[int] | None = None,
        chunk_units: int = 25,
    ) -> Iterator[torch.FloatTensor]:
        """Speak piece by piece while the units still arrive -> pieces `(samples,)` at `output_sampling_rate`.

        Args:
            units, durations, pitch, style: read one at a time and in step: for each unit its frames and the codes in
                force. A stream that the vocoder does not know is not read.
            chunk_units (`int`, default 25): frames of 40 ms in a piece.

        Raises `ValueError` for a codec without vocoder, and what the vocoder refuses, when it is read.
        """
        options = self._vocoder_options(pitch, style)
        return self.vocoder.stream_waveform(units, durations, chunk_units=chunk_units, **options)

    @property
    def heard_streams(self) -> set[str]:
        """Of "pitch" and "style" those that the vocoder speaks with."""
        config = getattr(self.vocoder, "config", None)
        return {
            stream.name
            for stream in SPEECH_STREAMS
            if stream.name in PROSODY_STREAMS and getattr(config, stream.size, 0)
        }

    def _vocoder_options(self, pitch: Iterable[int] | None, style: Iterable[int] | None) -> dict:
        if self.vocoder is None:
            raise ValueError("This codec has no vocoder, so it cannot speak; make it with one.")
        options = {"decoder": self.decoder} if self.decoder is not None else {}
        codes = {"pitch": pitch, "style": style}
        return options | {name: codes[name] for name in self.heard_streams}

    def timed_to_frames(self, streams: SpeechStreams) -> SpeechStreams:
        """Timed streams -> the same with the pitch and the style of every unit frame, all of shape `(units,)`.

        Raises `ValueError` for a stream that lasts more than a second shorter or longer than the units.
        """
        return SpeechStreams(
            streams.units,
            self._hold("pitch", streams.pitch, len(streams), self.pitch_rate),
            self._hold("style", streams.style, len(streams), self.style_rate),
        )

    def _hold(self, name: str, values: np.ndarray | None, num_frames: int, rate: float) -> np.ndarray | None:
        """Values at `rate` -> the value that stands at the start of each unit frame; the last one is held."""
        if values is None or len(values) == num_frames:
            return values
        seconds, expected = len(values) / rate, num_frames / self.speech_encoder.frame_rate
        # The last second of style may be almost empty where the last unit is missing, and clocks differ from true
        # rates by less than a thousandth.
        tolerance = 1 + 1 / self.speech_encoder.frame_rate + 1e-3 * expected
        if len(values) == 0 or abs(seconds - expected) > tolerance:
            raise ValueError(
                f"found {seconds:.2f} s of {name} for {expected:.2f} s of units; expected {rate:g} values a second, "
                "repeats kept"
            )
        positions = (np.arange(num_frames) * (rate / self.speech_encoder.frame_rate)).astype(np.int64)
        return values[np.minimum(positions, len(values) - 1)]


def load_vocoder(folder: str | os.PathLike) -> Vocoder | HifiGanVocoder:
    """Load a vocoder of either kind; [`~loading_tinywave.CheckpointError`] for a folder with another model."""
    is_hifigan = read_config(folder).get("model_type") == HifiGanConfig.model_type
    return load_pretrained(HifiGanVocoder if is_hifigan else Vocoder, folder)


def _digest_of_weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
