"""Text and speech in, text and speech out: waveforms -> streams -> language model -> streams -> waveforms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .codec_tinywave import SpeechCodec
from .modeling_tinywave import TinyWaveForCausalLM
from .processing_tinywave import TinyWaveProcessor
from .tokenization_tinywave import Segment, SpeechStreams, deduplicate, ids_to_streams


@dataclass(frozen=True, eq=False)
class GeneratedSegment:
    """A piece of what a model says or writes.

    Attributes:
        modality (`str`): "text" or "speech".
        start, end (`float`): seconds since the beginning of the generated speech; text takes no time.
        text (`str` or None): of a text segment.
        waveform (`torch.FloatTensor` of shape `(samples,)` or None): of a speech segment, at `sampling_rate`.
        sampling_rate (`int`): of the waveform, Hz.
        streams ([`SpeechStreams`] or None): of a speech segment, as generated: one entry a unit.
        durations (`np.ndarray` of shape `(units,)` or None): frames of each unit.
    """

    modality: str
    start: float
    end: float
    text: str | None = None
    waveform: torch.FloatTensor | None = None
    sampling_rate: int = 0
    streams: SpeechStreams | None = None
    durations: np.ndarray | None = None


class TinyWavePipeline:
    """Continues text and speech, in any order, with text and speech.

    Args:
        model, processor: a language model and its processor.
        codec ([`SpeechCodec`]): encoders and vocoder of the streams that the model reads and writes.

    Raises `ValueError` where the codec does not make exactly the streams of the model.

    Example:

        pipeline = TinyWavePipeline(model, processor, SpeechCodec(speech_encoder, vocoder, HibariDecoder().decode))
        segments = pipeline([("speech", waveform)], max_new_tokens=100, do_sample=True, temperature=0.8)
    """

    def __init__(self, model: TinyWaveForCausalLM, processor: TinyWaveProcessor, codec: SpeechCodec):
        expected = model.config.stream_ranges().keys() - {"text"}
        if codec.stream_names != expected:
            raise ValueError(
                f"Found a codec of {sorted(codec.stream_names)} and a language model of {sorted(expected)}; give the "
                "codec the encoders of exactly the model's streams."
            )
        # The published models have the quantizer's blank among their units; no encoder emits it.
        if not 0 <= model.config.num_units - codec.speech_encoder.config.num_units <= 1:
            raise ValueError(
                f"Found {model.config.num_units} units in the language model and "
                f"{codec.speech_encoder.config.num_units} in the speech encoder; expected two parts made for the same "
                "units."
            )
        self.model, self.processor, self.codec = model, processor, codec

    @torch.no_grad()
    def __call__(
        self,
        conversations: Sequence[Segment] | Sequence[Sequence[Segment]],
        output_modality: str = "speech",
        sampling_rate: int = 16_000,
        **generation_options: Any,
    ) -> list[GeneratedSegment] | list[list[GeneratedSegment]]:
        """Continue one conversation, or a batch of them.

        Where a conversation ends in speech and the model goes on in speech, both are vocoded together, so that the
        voice runs through, and the new part is cut off where the units of the prompt end. Prompt units keep their true
        durations; those of new units are predicted.

        Args:
            conversations: a list of segments, or a list of such lists. A segment is `("text", str)` or
                `("speech", waveform)`, the waveform 1-D, mono, in [-1, 1]; integers are taken for units.
            output_modality (`str`, default "speech"): "speech", "text", or "free" for both.
            sampling_rate (`int`, default 16,000 Hz): of the waveforms; must be the speech encoder's.
            generation_options: of [`TinyWaveForCausalLM.generate`], such as `max_new_tokens` or `do_sample`.

        Returns:
            The new segments, a list for each conversation of a batch; empty where the model ends at once.

        Raises:
            ValueError: another sampling rate, audio under 80 ms, NaN samples, a prompt that is empty or fills the
                context, an unknown modality.
        """
        self._check_sampling_rate(sampling_rate)
        is_single = len(conversations) > 0 and len(conversations[0]) > 0 and isinstance(conversations[0][0], str)
        prompts = [self._encode_prompt(prompt) for prompt in ([conversations] if is_single else conversations)]
        inputs = self.processor(prompts, output_modality=output_modality).to(self.model.device)
        ids = self.model.generate(**inputs, output_modality=output_modality, **generation_options)
        new_ids = ids[:, inputs["input_ids"].shape[1] :].cpu()
        results = [self._ids_to_segments(row, prompt) for row, prompt in zip(new_ids, prompts, strict=True)]
        return results[0] if is_single else results

    def _check_sampling_rate(self, sampling_rate: int) -> None:
        expected = self.codec.input_sampling_rate
        if sampling_rate != expected:
            raise ValueError(
                f"Found audio at {sampling_rate} Hz; expected {expected} Hz. Resample it first, for instance with "
                "soxr or tinywave.data.audio_io.load_audio."
            )

    def _encode_prompt(self, conversation: Sequence[Segment]) -> list[Segment]:
        """Waveforms become streams; everything else is left to the processor."""
        segments = []
        for modality, content in conversation:
            if modality == "speech" and torch.is_floating_point(torch.as_tensor(getattr(content, "units", content))):
                content = self.codec.encode([content])[0]
            segments.append((modality, content))
        return segments

    def _ids_to_segments(self, ids: torch.LongTensor, prompt: list[Segment]) -> list[GeneratedSegment]:
        """New ids `(length,)` -> the segments they say, spoken and timed."""
        generated, seconds = [], 0.0
        for position, (modality, content) in enumerate(self.processor.ids_to_segments(ids)):
            if modality == "text":
                generated.append(GeneratedSegment("text", seconds, seconds, text=content))
                continue
            # A model without pitch and style writes plain units, one a token.
            streams = content if hasattr(content, "units") else SpeechStreams(content, ids=content)
            if len(streams) == 0:
                continue
            goes_on = position == 0 and len(prompt) > 0 and prompt[-1][0] == "speech"
            waveform, durations = self._speak(streams, prompt[-1][1] if goes_on else None)
            end = seconds + len(waveform) / self.codec.output_sampling_rate
            rate = self.codec.output_sampling_rate
            generated.append(GeneratedSegment("speech", seconds, end, None, waveform, rate, streams, durations))
            seconds = end
        return generated

    def _speak(self, streams: SpeechStreams, before: Any | None) -> tuple[torch.FloatTensor, np.ndarray]:
        """Parsed streams -> their waveform, after the sound of the speech `before` them, and their durations."""
        if before is None:
            durations = self._predict_durations(streams.units)
            return self.codec.decode(streams, durations), durations
        if not hasattr(before, "units"):
            before = SpeechStreams(before)
        context, context_durations = self._speech_to_runs(before)
        units = np.concatenate([context.units, streams.units])
        durations = self._predict_durations(units)[len(context) :]
        carried = self._carry(context, streams)
        pitch, style = (
            None if old is None else np.concatenate([old, new])
            for old, new in ((context.pitch, carried.pitch), (context.style, carried.style))
        )
        joined = SpeechStreams(units, pitch, style, ids=units)
        spoken = self.codec.decode(joined, np.concatenate([context_durations, durations]))
        start = self.codec.vocoder.samples_per_unit * int(context_durations.sum())
        return spoken[start:], durations

    def _speech_to_runs(self, speech: SpeechStreams) -> tuple[SpeechStreams, np.ndarray]:
        """Timed streams -> one entry a run of units, with the pitch and style at its start; and the durations."""
        frames = self.codec.timed_to_frames(speech)
        units, durations = deduplicate(frames.units)
        starts = np.cumsum(durations) - durations
        pitch, style = (None if values is None else values[starts] for values in (frames.pitch, frames.style))
        return SpeechStreams(units, pitch, style, ids=units), durations

    def _carry(self, before: SpeechStreams, after: SpeechStreams) -> SpeechStreams:
        """Parsed streams after others: the pitch and style before go on until the first new pitch and style."""
        ranges = self.model.config.stream_ranges()
        last = ((name, getattr(before, name)) for name in ("style", "pitch"))
        ids = [ranges[name].start + values[-1] for name, values in last if values is not None]
        return ids_to_streams([*ids, *after.ids], self.model.config) if ids else after

    def _predict_durations(self, units: np.ndarray) -> np.ndarray:
        vocoder = self.codec.vocoder
        return vocoder.predict_durations(torch.as_tensor(units, device=vocoder.device)[None])[0].cpu().numpy()
