"""Pipelines of transformers for a folder that [`TinyWavePipeline.save_pretrained`] wrote.

    pipe = transformers.pipeline("text-to-audio", model=folder, trust_remote_code=True)
    pipe("A dog barks.", do_sample=True)  # {"audio": ..., "sampling_rate": ...}

Both tasks are thin: [`TinyWavePipeline`] does the work, and `pipe.tinywave` is one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, PreTrainedModel, ProcessorMixin

from .codec_tinywave import SpeechCodec
from .f0_tinywave import F0Extractor
from .pipeline_tinywave import GeneratedSegment, TinyWavePipeline
from .tokenization_tinywave import Segment
from .vocoder_tinywave import NeuralDecoder

DEFAULT_MAX_NEW_TOKENS = 256  # of the text-to-audio pipeline of transformers


class SpeechContinuationPipeline(Pipeline):
    """Continues speech, text, or both: the task "speech-continuation".

    Inputs of a call:

    - a waveform, 1-D, mono, in [-1, 1], at the `sampling_rate` that is given (default: the speech encoder's),
    - or a dictionary of "array" (or "raw") and "sampling_rate", as audio data sets have it,
    - or a tuple of segments, `("text", str)` and `("speech", waveform)`,
    - or a list of these, which are continued one after the other.

    Options of a call: `output_modality` ("speech" by default, "text", or "free" for both), `sampling_rate` (Hz), and
    those of `generate`, which adds at most 256 tokens if nothing else is asked for.

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
        revision = getattr(model.config, "_commit_hash", None)
        options = {"decoder": decoder, "f0_extractor": f0_extractor, "revision": revision}
        self.tinywave = TinyWavePipeline(model, processor, SpeechCodec.from_pretrained(model.name_or_path, **options))

    def stream(self, inputs: Any, **options: Any) -> Iterator[GeneratedSegment]:
        """Yield pieces while the model generates, see [`TinyWavePipeline.stream`]; inputs and options as of a call."""
        preprocess_options, generation_options, _ = self._sanitize_parameters(**options)
        model_inputs = self.preprocess(inputs, **preprocess_options)
        return self.tinywave.stream(**model_inputs, **self._with_default_length(generation_options))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the whole folder again, codec and code included."""
        self.tinywave.save_pretrained(save_directory)

    def _sanitize_parameters(
        self, sampling_rate: int | None = None, **generation_options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {} if sampling_rate is None else {"sampling_rate": sampling_rate}, generation_options, {}

    def preprocess(self, inputs: Any, sampling_rate: int | None = None) -> dict[str, Any]:
        """Return the conversation and its sampling rate; `ValueError` for inputs of another kind."""
        if isinstance(inputs, dict):
            sampling_rate = inputs.get("sampling_rate", sampling_rate)
            inputs = inputs.get("array", inputs.get("raw"))
        if isinstance(inputs, (np.ndarray, torch.Tensor)):
            inputs = (("speech", inputs),)
        if not isinstance(inputs, tuple):
            raise ValueError(
                f"found {type(inputs).__name__}; expected a waveform, a dictionary of 'array' and 'sampling_rate', "
                "or a tuple of segments, ('text', str) or ('speech', waveform)"
            )
        return self._conversation(inputs, sampling_rate)

    def _conversation(self, segments: Sequence[Segment], sampling_rate: int | None) -> dict[str, Any]:
        expected = self.tinywave.codec.input_sampling_rate
        # Tensors would follow the language model to its device; the codec stays where it is.
        contents = [
            (modality, np.asarray(content) if modality == "speech" else content) for modality, content in segments
        ]
        return {"conversation": contents, "sampling_rate": expected if sampling_rate is None else sampling_rate}

    def _forward(self, model_inputs: dict[str, Any], **generation_options: Any) -> list[GeneratedSegment]:
        return self.tinywave(
            [model_inputs["conversation"]],
            sampling_rate=model_inputs["sampling_rate"],
            **self._with_default_length(generation_options),
        )[0]

    def _with_default_length(self, options: dict[str, Any]) -> dict[str, Any]:
        is_given = {"max_new_tokens", "max_length", "generation_config"} & options.keys()
        if is_given or self.model.generation_config.max_new_tokens is not None:
            return options
        return options | {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS}

    def postprocess(self, model_outputs: list[GeneratedSegment]) -> dict[str, Any]:
        """Join the segments."""
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
        return self._conversation([("text", text)], None)

    def postprocess(self, model_outputs: list[GeneratedSegment]) -> dict[str, Any]:
        """Join the speech."""
        return self._audio(model_outputs)
