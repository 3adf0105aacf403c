"""Pipelines of transformers for a folder that [`TinyWavePipeline.save_pretrained`] wrote.

    pipe = transformers.pipeline("text-to-audio", model=folder, trust_remote_code=True)
    pipe("A dog barks.", do_sample=True)  # {"audio": ..., "sampling_rate": ...}

Both tasks are thin: [`TinyWavePipeline`] does the work, and `pipe.tinywave` is one.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, PreTrainedModel, ProcessorMixin

from .codec_tinywave import SpeechCodec
from .f0_tinywave import F0Extractor
from .pipeline_tinywave import GeneratedSegment, TinyWavePipeline
from .speech_inputs_tinywave import EXPECTED, check_count, is_audio, is_segment, to_waveform
from .vocoder_tinywave import NeuralDecoder

DEFAULT_MAX_NEW_TOKENS = 256  # of the text-to-audio pipeline of transformers


class SpeechContinuationPipeline(Pipeline):
    """Continues speech, text, or both: the task "speech-continuation".

    Inputs of a call:

    - audio, in a form of `speech_inputs_tinywave.to_waveform`: a waveform (floats in [-1, 1] or integers of PCM), a
      dictionary of "array" (or "raw") and "sampling_rate", of "bytes" or "path", `(sampling_rate, samples)`, an audio
      decoder of `datasets`, or the path or the bytes of a WAV or FLAC file,
    - or a segment, `("text", str)` or `("speech", audio)`, or a tuple of segments, a conversation,
    - or a list, a generator or a `KeyDataset` of these, which are continued `batch_size` at a time.

    Options of a call: `output_modality` ("speech" by default, "text", or "free" for both), `sampling_rate` (Hz) of
    waveforms that do not state their own, `match_loudness`, and those of `generate`, by name or in `generate_kwargs`,
    which adds at most 256 tokens if nothing else is asked for.

    A call returns "audio" (`np.ndarray` of shape `(samples,)`, all speech in a row), "sampling_rate" (Hz), "text" (all
    text) and "segments" (list of [`GeneratedSegment`], with times in seconds).

    Args:
        model, processor: of the folder.
        decoder (`NeuralDecoder`, *optional*): of a [`Vocoder`]. Default: none, it speaks through Griffin-Lim.
        f0_extractor (`F0Extractor`, *optional*): of a codec with pitch. Default: swift-f0, if it is installed and the
            codec was trained with it.

    Raises `ValueError` for a folder without codec and for what [`TinyWavePipeline`] refuses.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        decoder: NeuralDecoder | None = None,
        f0_extractor: F0Extractor | None = None,
        **kwargs: Any,
    ):
        super().__init__(model=model, processor=processor, **kwargs)
        options = {"decoder": decoder, "f0_extractor": f0_extractor, "revision": _commit_of_code(model)}
        self.tinywave = TinyWavePipeline(model, processor, SpeechCodec.from_pretrained(model.name_or_path, **options))

    def stream(self, inputs: Any, **options: Any) -> Iterator[GeneratedSegment]:
        """Yield pieces while the model generates, see [`TinyWavePipeline.stream`]; inputs and options as of a call."""
        preprocess_options, generation_options, _ = self._sanitize_parameters(**options)
        model_inputs = self.preprocess(inputs, **preprocess_options)
        conversation = model_inputs["conversation"]
        return self.tinywave.stream(conversation, **self._with_default_length(generation_options))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the whole folder again, codec and code included."""
        self.tinywave.save_pretrained(save_directory)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Continue one input, or every input of a list, a generator or a data set; see the class."""
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, tuple):
            # A tuple is one input here, be it (sampling_rate, samples), a segment or a conversation.
            return super().__call__([inputs], **options)[0]
        return super().__call__(inputs, **options)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Yield the output of every input; `batch_size` of them are continued at once. Workers are not used."""
        check_count("batch_size", batch_size)
        indexed = (inputs[index] for index in range(len(inputs))) if hasattr(inputs, "__getitem__") else inputs
        prepared = (self.preprocess(item, **preprocess_params) for item in indexed)
        while batch := list(islice(prepared, batch_size)):
            conversations = [item["conversation"] for item in batch]
            options = {key: value for key, value in batch[0].items() if key != "conversation"}
            with self.device_placement(), torch.no_grad():
                outputs = self._continue(conversations, options, forward_params)
            yield from (self.postprocess(output, **postprocess_params) for output in outputs)

    def _sanitize_parameters(
        self, sampling_rate: int | None = None, generate_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        rate = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        return rate, {**options, **(generate_kwargs or {})}, {}

    def preprocess(self, inputs: Any, sampling_rate: int | None = None) -> dict[str, Any]:
        """Return the conversation and the sampling rate; `ValueError` for inputs of another kind."""
        if is_segment(inputs):
            conversation = [inputs]
        elif isinstance(inputs, (list, tuple)) and inputs and all(map(is_segment, inputs)):
            conversation = list(inputs)
        elif is_audio(inputs) or isinstance(inputs, str):
            conversation = [("speech", inputs)]
        else:
            raise ValueError(f"found {type(inputs).__name__}; {EXPECTED}, or segments, ('text', str)")
        expected = self.tinywave.codec.input_sampling_rate
        # Tensors would follow the language model to its device; the codec stays where it is.
        ready = [
            (modality, to_waveform(content, sampling_rate, expected) if modality == "speech" else content)
            for modality, content in conversation
        ]
        return {"conversation": ready}

    def _forward(self, model_inputs: dict[str, Any], **generation_options: Any) -> list[GeneratedSegment]:
        (output,) = self._continue([model_inputs["conversation"]], {}, generation_options)
        return output

    def _continue(self, conversations: list, options: dict[str, Any], generation_options: dict[str, Any]) -> list:
        """New segments of every conversation, or with `num_return_sequences` above 1 a list of so many."""
        return self.tinywave(conversations, **options, **self._with_default_length(generation_options))

    def _with_default_length(self, options: dict[str, Any]) -> dict[str, Any]:
        is_given = {"max_new_tokens", "max_length", "generation_config"} & options.keys()
        if is_given or self.model.generation_config.max_new_tokens is not None:
            return options
        return options | {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS}

    def postprocess(self, model_outputs: list) -> dict[str, Any] | list[dict[str, Any]]:
        """Join the segments of a continuation; several continuations of one input give a list."""
        if model_outputs and isinstance(model_outputs[0], list):
            return [self.postprocess(output) for output in model_outputs]
        return self._audio(model_outputs) | {
            "text": "".join(segment.text for segment in model_outputs if segment.modality == "text"),
            "segments": model_outputs,
        }

    def _audio(self, segments: list[GeneratedSegment]) -> dict[str, Any]:
        spoken = [segment.waveform.numpy() for segment in segments if segment.modality == "speech"]
        audio = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
        return {"audio": audio, "sampling_rate": self.tinywave.codec.output_sampling_rate}


class TextToSpeechPipeline(SpeechContinuationPipeline):
    """Goes on in speech after a text: the task "text-to-audio", with its inputs and outputs.

    A model of text and speech says what may follow the text; it is no reader of the text itself, unless it was trained
    to be one. A call takes a `str` or a list of them, and options of `generate`, by name or in `generate_kwargs`. It
    returns "audio" (`np.ndarray` of shape `(samples,)`) and "sampling_rate" (Hz), or a list of these.
    """

    def _sanitize_parameters(
        self,
        forward_params: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **generation_options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {**generation_options, **(forward_params or {}), **(generate_kwargs or {})}, {}

    def preprocess(self, text: str) -> dict[str, Any]:
        """Return the conversation; `ValueError` for anything but text."""
        if not isinstance(text, str):
            raise ValueError(
                f"found {type(text).__name__}; text-to-audio takes a str, speech-continuation takes speech"
            )
        return {"conversation": [("text", text)]}

    def postprocess(self, model_outputs: list) -> dict[str, Any] | list[dict[str, Any]]:
        """Join the speech of a continuation; several continuations of one input give a list."""
        if model_outputs and isinstance(model_outputs[0], list):
            return [self.postprocess(output) for output in model_outputs]
        return self._audio(model_outputs)


def _commit_of_code(model: PreTrainedModel) -> str | None:
    """The commit of the Hub repository that the code of a model comes from; None where it comes from a folder.

    transformers does not keep the `revision` of a model, but gives the module of its code the commit as a name.
    """
    commit = type(model).__module__.split(".")[-2]
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None
