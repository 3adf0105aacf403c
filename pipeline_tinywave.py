"""Text and speech in, text and speech out: waveforms -> streams -> language model -> streams -> waveforms."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, repeat, tee
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME

from .batching_tinywave import Name, Prompt, continue_many
from .codec_tinywave import SpeechCodec
from .configuration_tinywave import PROSODY_STREAMS
from .f0_tinywave import F0Extractor
from .generation_tinywave import stream_ids
from .loading_tinywave import commit_of, load_pretrained
from .loudness_tinywave import apply_gain, matching_gain
from .modeling_tinywave import TinyWaveForCausalLM
from .processing_tinywave import TinyWaveProcessor
from .prompt_cache_tinywave import PromptCache
from .speech_inputs_tinywave import as_batch, check_count, is_rate_and_samples, to_waveform
from .tokenization_tinywave import (
    NO_MODALITY,
    TEXT_MODALITY,
    Segment,
    SpeechStreams,
    deduplicate,
    ids_to_streams,
    modality_of_ids,
    units_to_ids,
)
from .vocoder_inputs_tinywave import with_predicted_durations

# What `transformers.pipeline` makes of a folder that holds a codec too: task -> class of a file saved next to it.
HUB_PIPELINES = {"text-to-audio": "TextToSpeechPipeline", "speech-continuation": "SpeechContinuationPipeline"}
HUB_PIPELINES_MODULE = "hub_pipelines_tinywave"

# Options of `generate` whose results are no tokens.
_NOT_TOKENS = (
    "return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
)  # fmt: skip

Row = tuple[int, int | None, int | None]  # a unit, and the pitch and the style that are in force there


@dataclass(frozen=True, eq=False)
class GeneratedSegment:
    """A piece of what a model says or writes.

    Attributes:
        modality (`str`): "text" or "speech".
        start, end (`float`): seconds since the beginning of the generated speech; text takes no time.
        text (`str` or None): of a text segment.
        waveform (`torch.FloatTensor` of shape `(samples,)` or None): of a speech segment, at `sampling_rate`.
        sampling_rate (`int`): of the waveform, Hz.
        streams ([`SpeechStreams`] or None): of a whole speech segment, as generated: one entry a unit.
        durations (`np.ndarray` of shape `(units,)` or None): frames of each unit of a whole segment.
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
        prompt_cache ([`PromptCache`], *optional*): keeps what the model has computed for earlier turns, so that one
            conversation that goes on is read only from where it is new. Off by default: it takes memory, and has to be
            cleared when the weights change, as they do in training. Also an attribute.

    Raises `ValueError` where the codec does not make exactly the streams of the model.

    Example:

        pipeline = TinyWavePipeline(model, processor, SpeechCodec(speech_encoder, vocoder, HibariDecoder().decode))
        segments = pipeline([("speech", waveform)], max_new_tokens=100, do_sample=True, temperature=0.8)
    """

    def __init__(
        self,
        model: TinyWaveForCausalLM,
        processor: TinyWaveProcessor,
        codec: SpeechCodec,
        prompt_cache: PromptCache | None = None,
    ):
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
        self.model, self.processor, self.codec, self.prompt_cache = model, processor, codec, prompt_cache

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        decoder: Callable | None = None,
        f0_extractor: F0Extractor | None = None,
        revision: str | None = None,
    ) -> "TinyWavePipeline":
        """Load what [`~TinyWavePipeline.save_pretrained`] wrote, or a Hub repository that holds it.

        Args:
            name_or_path: a folder, or the name of a repository.
            decoder, f0_extractor (*optional*): as of [`SpeechCodec.from_pretrained`].
            revision (*optional*): branch, tag or commit of the repository; all parts come from one commit.

        Raises `ValueError` for a folder without codec, `OSError` for one without language model.
        """
        model = load_pretrained(TinyWaveForCausalLM, name_or_path, revision=revision)
        revision = commit_of(name_or_path, revision)
        codec = SpeechCodec.from_pretrained(
            name_or_path, decoder=decoder, f0_extractor=f0_extractor, revision=revision
        )
        return cls(model, TinyWaveProcessor.from_pretrained(name_or_path, revision=revision), codec)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write one folder, or repository, for all: the language model at its root, the codec in folders of its own.

        `transformers.pipeline("text-to-audio", model=folder, trust_remote_code=True)` and "speech-continuation" load
        it where this package is not installed; the language model alone still loads as Llama. A neural decoder and an
        F0 extractor are functions and are not saved.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.codec.save_pretrained(folder)
        code = Path(__file__).with_name(f"{HUB_PIPELINES_MODULE}.py")
        for source in (code, *get_relative_import_files(code)):
            shutil.copy(source, folder)
        # Only a folder with a codec can offer them, so the configuration never carries them elsewhere by itself.
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config["custom_pipelines"] = {
            task: {
                "impl": f"{HUB_PIPELINES_MODULE}.{name}",
                "pt": ["AutoModelForCausalLM"],
                "default": {"model": None},
                "type": "audio",
            }
            for task, name in HUB_PIPELINES.items()
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        conversations: Sequence[Segment] | Sequence[Sequence[Segment]],
        output_modality: str = "speech",
        sampling_rate: int | None = None,
        match_loudness: bool = False,
        **generation_options: Any,
    ) -> list[GeneratedSegment] | list[list[GeneratedSegment]]:
        """Continue one conversation, or a batch of them.

        Where a conversation ends in speech and the model goes on in speech, both are vocoded together, so that the
        voice runs through, and the new part is cut off where the units of the prompt end. Prompt units keep their true
        durations; those of new units are predicted.

        Args:
            conversations: a segment, a list of segments, or a list of such lists. A segment is `("text", str)` or
                `("speech", audio)`: a waveform in [-1, 1], or another form of
                [`~speech_inputs_tinywave.to_waveform`]. Integers of shape `(units,)` are taken for units.
            output_modality (`str`, default "speech"): "speech", "text", or "free" for both.
            sampling_rate (`int`, *optional*): of waveforms that do not state their own, in Hz; they are resampled to
                that of the speech encoder, which is the default.
            match_loudness (`bool`, default False): make the new speech as loud as the speech before it. The gain is
                that between the last speech of the prompt and its resynthesis (ITU-R BS.1770).
            generation_options: of [`TinyWaveForCausalLM.generate`], such as `max_new_tokens` or `do_sample`.

        Returns:
            The new segments, a list for each conversation of a batch; empty where the model ends at once. With
            `num_return_sequences` above 1, a list of so many continuations for each conversation.

        Raises:
            ValueError: for audio under 80 ms or that cannot be used, a prompt that is empty or fills the context, an
                unknown modality, and options that ask for more than tokens, such as `output_scores`.
        """
        self._check_request(output_modality, generation_options)
        conversations, is_single = as_batch(conversations)
        prompts, gains = zip(
            *(self._prepare(item, sampling_rate, match_loudness) for item in conversations), strict=True
        )
        inputs = self.processor(list(prompts), output_modality=output_modality).to(self.model.device)
        options = {**inputs, "output_modality": output_modality, **generation_options}
        number = self._num_return_sequences(generation_options)
        if self.prompt_cache is None:
            ids = self.model.generate(**options)
        else:
            ids = self.prompt_cache.generate(self.model, **options)
        new_ids = ids[:, inputs["input_ids"].shape[1] :].cpu()
        results = [
            self._ids_to_segments(row, prompts[index // number], gains[index // number])
            for index, row in enumerate(new_ids)
        ]
        if number > 1:
            results = [results[start : start + number] for start in range(0, len(results), number)]
        return results[0] if is_single else results

    def stream(
        self,
        conversation: Sequence[Segment],
        output_modality: str = "speech",
        sampling_rate: int | None = None,
        chunk_units: int = 25,
        match_loudness: bool = False,
        **generation_options: Any,
    ) -> Iterator[GeneratedSegment]:
        """Continue one conversation and yield what is said and written while the model goes on generating.

        The ids are those of [`~TinyWavePipeline.__call__`] with the same seed, and so is the sound, as far as the
        vocoder's own streaming is exact: it is for a [`HifiGanVocoder`], while a [`Vocoder`] gives as many samples, of
        other phases. A piece of speech is spoken as soon as the vocoder has heard enough of what follows it.
        Closing the iterator stops the generation; an error of the model is raised here.

        Args:
            conversation, output_modality, sampling_rate, match_loudness, generation_options: as in
                [`~TinyWavePipeline.__call__`], for one conversation. The gain is known before the first piece, and the
                same for all.
            chunk_units (`int`, default 25): frames of 40 ms in a piece of speech.

        Yields:
            [`GeneratedSegment`]: pieces of a segment, with their own times and without `streams` and `durations`; text
            by whole characters.

        Raises `ValueError` as [`~TinyWavePipeline.__call__`] does, and for more than one conversation.
        """
        self._check_request(output_modality, generation_options)
        conversations, is_single = as_batch(conversation)
        if not is_single or self._num_return_sequences(generation_options) > 1:
            raise ValueError("found a batch of conversations; a stream continues one, a list of segments, once")
        prompt, gain = self._prepare(conversations[0], sampling_rate, match_loudness)
        inputs = self.processor([prompt], output_modality=output_modality).to(self.model.device)
        stream = stream_ids if self.prompt_cache is None else self.prompt_cache.stream_ids
        ids = stream(self.model, **inputs, output_modality=output_modality, **generation_options)
        return self._stream_segments(ids, prompt, chunk_units, gain)

    def continue_many(
        self,
        conversations: Iterable[tuple[Name, Sequence[Segment]]],
        output_modality: str = "speech",
        sampling_rate: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
        match_loudness: bool = False,
        **generation_options: Any,
    ) -> Iterator[tuple[Name, list[GeneratedSegment]]]:
        """Continue any number of conversations, several at once, and yield each as soon as it has ended.

        Where one ends, the next is taken and encoded while the others go on, so that none waits for the longest. What
        is sampled depends on the seed and on the name of a conversation, not on the others nor on `batch_size`.

        Args:
            conversations (iterable of `(name, segments)`): `enumerate` gives names where there are none. Each is taken
                only when there is room for it.
            output_modality, sampling_rate, match_loudness, generation_options: as in
                [`~TinyWavePipeline.__call__`].
            batch_size (`int`, default 8): conversations that are continued at once.
            seed (`int`, default 0): of all conversations; that of torch is neither read nor set.

        Yields:
            The name and the new segments of a conversation, in the order in which they end.

        Raises `ValueError` as [`~TinyWavePipeline.__call__`] and `batching_tinywave.continue_many` do; what has ended
        before has been yielded.
        """
        self._check_request(output_modality, generation_options)
        if self._num_return_sequences(generation_options) > 1:
            raise ValueError("found num_return_sequences; give a conversation several names instead")
        options = {"batch_size": batch_size, "seed": seed, **generation_options}
        return self._continue_many(conversations, output_modality, options, sampling_rate, match_loudness)

    @torch.no_grad()
    def _continue_many(
        self,
        conversations: Iterable[tuple[Name, Sequence[Segment]]],
        output_modality: str,
        options: dict[str, Any],
        sampling_rate: int | None,
        match_loudness: bool,
    ) -> Iterator[tuple[Name, list[GeneratedSegment]]]:
        encoded = {}

        def prompts() -> Iterator[Prompt]:
            for name, conversation in conversations:
                (segments,), _ = as_batch(conversation)
                prompt, gain = self._prepare(segments, sampling_rate, match_loudness)
                inputs = self.processor([prompt], output_modality=output_modality)
                encoded[name] = prompt, gain
                yield Prompt(name, inputs["input_ids"])

        for name, ids in continue_many(self.model, prompts(), output_modality=output_modality, **options):
            yield name, self._ids_to_segments(ids.cpu(), *encoded.pop(name))

    def _check_request(self, output_modality: str, options: dict[str, Any]) -> None:
        if output_modality != "text" and self.codec.vocoder is None:
            raise ValueError("This codec has no vocoder, so it cannot speak; ask for text, or make it with one.")
        if unsupported := [name for name in _NOT_TOKENS if options.get(name)]:
            raise ValueError(
                f"found {', '.join(unsupported)}; a pipeline returns segments alone. Call model.generate(**processor("
                "...)) for the rest"
            )

    def _num_return_sequences(self, options: dict[str, Any]) -> int:
        config = options.get("generation_config") or self.model.generation_config
        number = options.get("num_return_sequences")
        number = getattr(config, "num_return_sequences", None) or 1 if number is None else number
        check_count("num_return_sequences", number)
        return number

    def _prepare(
        self, conversation: Sequence[Segment], sampling_rate: int | None, match_loudness: bool
    ) -> tuple[list[Segment], float]:
        """Audio becomes streams, and everything else is left to the processor; and the gain of the new speech."""
        segments, gain = [], 1.0
        for modality, content in conversation:
            if modality == "speech" and not self._is_streams(content):
                waveform = to_waveform(content, sampling_rate, self.codec.input_sampling_rate)
                content = self.codec.encode([waveform])[0]
                if match_loudness and self.codec.vocoder is not None:
                    gain = self.loudness_gain(waveform, content)
            segments.append((modality, content))
        return segments, gain

    def loudness_gain(self, waveform: np.ndarray, streams: Any) -> float:
        """Return the factor that makes the resynthesis of speech, and so what follows it, as loud as the speech.

        Args:
            waveform: shape `(samples,)`, at the sampling rate of the speech encoder.
            streams: what the codec encoded it to.
        """
        rendition = self.codec.decode(streams).cpu().numpy()
        return matching_gain(waveform, self.codec.input_sampling_rate, rendition, self.codec.output_sampling_rate)

    def _is_streams(self, content: Any) -> bool:
        """Whether speech is given as units or streams, not as audio."""
        if hasattr(content, "units"):
            return True
        if is_rate_and_samples(content) or not isinstance(content, (np.ndarray, torch.Tensor, list, tuple)):
            return False
        values = torch.as_tensor(np.asarray(content) if not isinstance(content, torch.Tensor) else content)
        if values.is_floating_point() or values.ndim != 1:
            return False
        num_units = self.codec.speech_encoder.config.num_units
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= num_units:
            raise ValueError(
                f"found integers from {int(values.min())} to {int(values.max())} as speech, and units are 0 to "
                f"{num_units - 1}; pass samples as floats in [-1, 1] or as (sampling_rate, samples)"
            )
        return True

    def _ids_to_segments(
        self, ids: torch.LongTensor, prompt: list[Segment], gain: float = 1.0
    ) -> list[GeneratedSegment]:
        """New ids `(length,)` -> the segments they say, spoken and timed."""
        generated, seconds = [], 0.0
        for position, (modality, content) in enumerate(self.processor.ids_to_segments(ids)):
            if modality == "text":
                generated.append(GeneratedSegment("text", seconds, seconds, text=content))
                continue
            # A model without pitch and style writes plain units, one a token.
            if hasattr(content, "units"):
                streams = content
            else:
                streams = SpeechStreams(content, ids=units_to_ids(content, self.model.config))
            if len(streams) == 0:
                continue
            goes_on = position == 0 and len(prompt) > 0 and prompt[-1][0] == "speech"
            waveform, durations = self._speak(streams, prompt[-1][1] if goes_on else None)
            waveform = apply_gain(waveform, gain)
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

    def _speech_to_runs(self, speech: Any) -> tuple[SpeechStreams, np.ndarray]:
        """Timed streams, or units -> an entry for each run of units, with the pitch and style at its start; and the
        durations."""
        if not hasattr(speech, "units"):
            speech = SpeechStreams(speech)
        frames = self.codec.timed_to_frames(speech)
        units, durations = deduplicate(frames.units)
        starts = np.cumsum(durations) - durations
        pitch, style = (None if values is None else values[starts] for values in (frames.pitch, frames.style))
        return SpeechStreams(units, pitch, style, ids=units), durations

    def _carry(self, before: SpeechStreams, after: SpeechStreams) -> SpeechStreams:
        """Parsed streams after others: the pitch and style before go on until the first new pitch and style."""
        ids = self._ids_in_force(before)
        return ids_to_streams([*ids, *after.ids], self.model.config) if ids else after

    def _ids_in_force(self, streams: SpeechStreams) -> list[int]:
        """Ids of the last style and the last pitch."""
        ranges = self.model.config.stream_ranges()
        last = ((name, getattr(streams, name)) for name in reversed(PROSODY_STREAMS))
        return [ranges[name].start + int(values[-1]) for name, values in last if values is not None]

    def _predict_durations(self, units: np.ndarray) -> np.ndarray:
        vocoder = self.codec.vocoder
        return vocoder.predict_durations(torch.as_tensor(units, device=vocoder.device)[None])[0].cpu().numpy()

    def _stream_segments(
        self, ids: Iterator[int], prompt: list[Segment], chunk_units: int, gain: float = 1.0
    ) -> Iterator[GeneratedSegment]:
        """New ids as they come -> pieces of the segments they say, timed; at the end the generation is closed."""
        modality_of_id = modality_of_ids(np.arange(self.model.config.vocab_size), self.model.config)
        seconds, num_samples = 0.0, 0
        with closing(ids):
            known = (index for index in ids if modality_of_id[index] != NO_MODALITY)
            for position, (modality, run) in enumerate(groupby(known, key=modality_of_id.__getitem__)):
                if modality == TEXT_MODALITY:
                    for text in self._stream_text(run):
                        yield GeneratedSegment("text", seconds, seconds, text=text)
                    continue
                goes_on = position == 0 and prompt[-1][0] == "speech"
                rate = self.codec.output_sampling_rate
                for waveform in self._stream_speech(run, prompt[-1][1] if goes_on else None, chunk_units):
                    start, num_samples = seconds, num_samples + len(waveform)
                    seconds = num_samples / rate
                    yield GeneratedSegment("speech", start, seconds, None, apply_gain(waveform, gain), rate)

    def _stream_text(self, ids: Iterable[int]) -> Iterator[str]:
        """Ids of one text as they come -> its pieces."""
        known, written, text = [], 0, ""
        for index in ids:
            known.append(index)
            ((_, text),) = self.processor.ids_to_segments(known)
            # The bytes of one character may be several tokens; until the last one they read as U+FFFD.
            if len(text) > written and not text.endswith("\ufffd"):
                yield text[written:]
                written = len(text)
        if len(text) > written:
            yield text[written:]

    def _stream_speech(self, ids: Iterable[int], before: Any | None, chunk_units: int) -> Iterator[torch.FloatTensor]:
        """Ids of one piece of speech as they come -> its sound after that of the speech `before` it."""
        vocoder = self.codec.vocoder
        old, old_durations, in_force = [], [], []
        if before is not None:
            runs, old_durations = self._speech_to_runs(before)
            old, in_force = _streams_to_rows(runs), self._ids_in_force(runs)
        new = with_predicted_durations(
            self._ids_to_rows(ids, in_force), vocoder.predict_durations, vocoder.device, old
        )
        first = next(new, None)
        if first is None:
            return
        # Twice what a sample depends on, so that a neural decoder, too, comes to the new part warm.
        edge = getattr(vocoder, "units_per_edge", 1)
        context = last_frames(old, old_durations, 2 * vocoder.receptive_field, edge)
        rows = ((*row, duration) for row, duration in chain(context, [first], new))
        units, pitch, style, durations = (map(itemgetter(index), copy) for index, copy in enumerate(tee(rows, 4)))
        _, first_pitch, first_style = first[0]
        pitch, style = None if first_pitch is None else pitch, None if first_style is None else style
        num_old = vocoder.samples_per_unit * sum(duration for _, duration in context)
        for waveform in self.codec.stream(units, durations, pitch, style, chunk_units):
            if num_old < len(waveform):
                yield waveform[num_old:]
            num_old = max(0, num_old - len(waveform))

    def _ids_to_rows(self, ids: Iterable[int], in_force: list[int]) -> Iterator[Row]:
        """Ids of one piece of speech as they come, after the ids `in_force` before -> rows, as the whole would give.

        Units wait for the first pitch and style that the vocoder hears, because these reach back to them.
        """
        config = self.model.config
        units = config.stream_ranges()["unit"]
        awaited = self.codec.heard_streams & self.codec.stream_names
        pending = list(in_force)
        for index in ids:
            pending.append(index)
            if index in units:
                streams = ids_to_streams(pending, config)
                if all(getattr(streams, name) is not None for name in awaited):
                    yield from _streams_to_rows(streams)
                    pending = self._ids_in_force(streams)
        yield from _streams_to_rows(ids_to_streams(pending, config))


def _streams_to_rows(streams: SpeechStreams) -> list[Row]:
    """Streams with one pitch and one style a unit, or without them -> a row for each unit."""
    units, *codes = (
        None if values is None else values.tolist() for values in (streams.units, streams.pitch, streams.style)
    )
    return list(zip(units, *(repeat(None) if values is None else values for values in codes), strict=False))


def last_frames(
    rows: Sequence[Row], durations: Sequence[int], num_frames: int, edge: int = 1
) -> list[tuple[Row, int]]:
    """Rows and their durations in frames -> those of the last `num_frames` frames, each with what is left of it.

    Up to `edge - 1` frames more are kept, so that a multiple of `edge` frames is left out.
    """
    num_dropped = max(0, int(sum(durations)) - num_frames) // edge * edge
    kept = []
    for row, duration in zip(rows, durations, strict=True):
        passed = min(num_dropped, int(duration))
        num_dropped -= passed
        if passed < duration:
            kept.append((row, int(duration) - passed))
    return kept
