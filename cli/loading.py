"""Loading the models that a verb was pointed at."""

from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_NAMES
from ..data.codec_loading import load_codec
from ..engines.onnx_model import OnnxForCausalLM, is_onnx_folder
from ..loading_tinywave import CheckpointError, check_model_type, load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .shipped import CODEC


def load_language_model(folder: str | Path) -> tuple[TinyWaveForCausalLM | OnnxForCausalLM, TinyWaveProcessor]:
    """Load a language model for use, and its processor.

    Raises [`~loading_tinywave.CheckpointError`] for a folder without a language model, or with a damaged one.
    """
    model = load_for_scoring(folder, dtype="auto")
    return model, load_processor(folder)


def load_processor(folder: str | Path) -> TinyWaveProcessor:
    """Load the processor of a language model; `CheckpointError` for a folder without a readable tokenizer."""
    return _load_tokens(TinyWaveProcessor, folder)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a language model; `CheckpointError` for a folder without a readable one."""
    return _load_tokens(PreTrainedTokenizerFast, folder)


def _load_tokens(kind: type, folder: str | Path):
    try:
        return kind.from_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # The tokenizers library raises plain exceptions for damaged files.
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer of {folder} cannot be read: {reason}") from error


def load_for_scoring(folder: str | Path, dtype: str = "float32") -> TinyWaveForCausalLM | OnnxForCausalLM:
    """Load a language model that is given ids; in PyTorch, or in ONNX, which is in float32 always.

    Only a local folder is read: one that does not exist would be taken for the name of a Hub repository.
    Raises [`~loading_tinywave.CheckpointError`] for a folder without a language model, or with a damaged one.
    """
    check_model_type(folder, TinyWaveForCausalLM)
    logging.disable_progress_bar()
    if is_onnx_folder(folder):
        return OnnxForCausalLM.from_pretrained(folder)
    return load_pretrained(TinyWaveForCausalLM, folder, dtype=dtype)


def load_for_training(
    folder: str | Path, streams: Collection[str] | None = None, dtype: str = "float32"
) -> tuple[TinyWaveForCausalLM, PreTrainedTokenizerFast]:
    """Load a language model to train or distil it, and its tokenizer. Weights that are trained need float32.

    With `streams`, such as ["unit"], it knows only these of its streams of speech (`TinyWaveConfig.with_streams`).
    """
    model = load_pretrained(TinyWaveForCausalLM, folder, dtype=dtype)
    if streams is not None:
        model.config = model.config.with_streams(streams)
    return model, load_tokenizer(folder)


def add_codec_arguments(parser, speaks: bool = True) -> None:
    """Declare what [`open_codec`] reads; `speaks` where the verb makes sound."""
    parser.add_argument("--codec", default=str(CODEC), help="folder of the encoders and the vocoder")
    parser.add_argument("--speech-encoder", help="folder of another speech encoder, in place of the codec's own")
    if speaks:
        parser.add_argument("--vocoder", help="folder of another vocoder, in place of the codec's own")
        parser.add_argument(
            "--griffin-lim", action="store_true", help="use the metallic fallback, not the neural decoder"
        )


def add_streams_argument(parser) -> None:
    """Declare the streams of speech that a verb makes."""
    parser.add_argument(
        "--streams", nargs="+", choices=STREAM_NAMES, default=["unit"], help="what to make; units always"
    )


def open_codec(arguments, streams: Collection[str] | None = None) -> SpeechCodec:
    """The codec that the arguments name, with the encoders of `streams` (default: all it has)."""
    logging.disable_progress_bar()
    return load_codec(
        arguments.codec,
        streams,
        speech_encoder=arguments.speech_encoder,
        vocoder=getattr(arguments, "vocoder", None),
        griffin_lim=getattr(arguments, "griffin_lim", True),
    )
