"""Llama folders with speech tokens -> TinyWave folders: what SPIRIT-LM, the TinyWave repos and slamkit share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from ..configuration_tinywave import TinyWaveConfig
from ..data.storage import read_json
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from ..tokenization_tinywave import build_tokenizer
from .checkpoint_files import without_file_fields
from .key_report import KeyMap

LLAMA_KEYS = KeyMap(
    ignored=(
        (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the configuration"),
        (r"model\.rotary_emb\.inv_freq", "computed from the configuration"),
    )
)
TIED_HEAD = (r"lm_head\.weight", "the head is tied to the embeddings")
USAGE = """
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor([("text", "The largest country in the world is")], output_modality="text")
output = model.generate(**inputs, output_modality="text", max_new_tokens=50)
processor.ids_to_segments(output[0, inputs["input_ids"].shape[1] :])
"""
# Kept from the source's generation settings; the rest belongs to ids and lengths, which are ours.
_SAMPLING_FIELDS = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


def llama_to_tinywave_config(settings: dict[str, Any], layout: dict[str, int]) -> TinyWaveConfig:
    """Return our configuration of a published Llama folder.

    Args:
        settings (`dict`): of `read_settings`; what it leaves out means Llama's own default, what Llama does not know
            (older versions of transformers kept generation settings there) is left out.
        layout (`dict`): the fields that say which id means what.
    """
    known = {field.name for field in dataclasses.fields(LlamaConfig)} | {"rope_theta", "rope_scaling"}
    fields = LlamaConfig(**{name: value for name, value in settings.items() if name in known}).to_dict()
    return TinyWaveConfig(**without_file_fields(fields) | layout)


def empty_model(config: TinyWaveConfig) -> TinyWaveForCausalLM:
    """Return our model without memory for its weights, on the meta device."""
    with torch.device("meta"):
        return TinyWaveForCausalLM(config)


def save_companions(
    source: Path, model: TinyWaveForCausalLM, text_tokenizer: PreTrainedTokenizerFast
) -> Callable[[Path], None]:
    """Return the function that writes processor, tokenizer and generation settings into a folder.

    The tokenizer is built at once, so that a layout that does not fit is refused before anything is written.
    """
    processor = TinyWaveProcessor.from_config(model.config, build_tokenizer(model.config, text_tokenizer))
    generation_config = GenerationConfig.from_model_config(model.config)
    path = source / "generation_config.json"
    published = read_json(path) if path.is_file() else {}
    generation_config.update(**{name: published[name] for name in _SAMPLING_FIELDS if name in published})
    generation_config.validate()

    def finish(folder: Path) -> None:
        processor.save_pretrained(folder)
        generation_config.save_pretrained(folder)

    return finish
