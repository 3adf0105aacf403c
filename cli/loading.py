"""Loading the models that a verb was pointed at."""

from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.hibari_voice import HibariDecoder
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from ..vocoder_tinywave import Vocoder


def load_vocoder(folder: str | Path) -> Vocoder:
    """Load a vocoder for use. Raises `FileNotFoundError` where the folder holds no model."""
    return _load(Vocoder, folder)


def load_language_model(folder: str | Path) -> tuple[TinyWaveForCausalLM, TinyWaveProcessor]:
    """Load a language model for use, and its processor. Raises `FileNotFoundError` where the folder holds none."""
    return _load(TinyWaveForCausalLM, folder), TinyWaveProcessor.from_pretrained(folder)


def neural_decoder(griffin_lim: bool):
    """The decoder that `Vocoder.units_to_waveform` takes: None for the Griffin-Lim fallback.

    Raises `ModuleNotFoundError` naming the pip extra where the neural decoder is not installed.
    """
    return None if griffin_lim else HibariDecoder().decode


def _load(model_class: type[PreTrainedModel], folder: str | Path) -> PreTrainedModel:
    """Load from a local folder only: a folder that does not exist would be taken for the name of a Hub repository."""
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no {model_class.__name__} (no config.json); name the folder of one, or make the shipped "
            "models with `tinywave rebuild`"
        )
    logging.disable_progress_bar()
    return model_class.from_pretrained(folder).eval()
