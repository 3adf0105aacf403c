"""SPIRIT-LM's 7B language models (`spiritlm_model/spirit-lm-base-7b` and `-expressive-7b`) and the TinyWave repos.

Both are plain Llama folders (config.json, weights in safetensors or PyTorch files, whole or in shards) whose tokenizer
goes on after the text with `[Text]`, `[Speech]`, `[Hu0]`...`[Hu500]` and, for expressive models, `[Pi0]`...`[Pi63]`,
`[St0]`...`[St99]` (Nguyen et al. 2024, arXiv 2402.05755; the published folders hold a sentencepiece model and no
tokenizer.json). The 7B models have Llama-2's 291 tensors, the TinyWave students of ten layers 93.
"""

from pathlib import Path

from ..data.storage import read_json
from .checkpoint_files import open_weights, read_settings
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .language_model import LLAMA_KEYS, TIED_HEAD, USAGE, empty_model, llama_to_tinywave_config, save_companions
from .licences import SPIRIT_LM, TINYWAVE_REPOSITORY
from .text_tokenizer import read_tokenizer

SPIRIT_LM_NAMES = ("spirit-lm-base-7b", "spirit-lm-expressive-7b")


def recognises_spirit_lm(source: Path) -> bool:
    """Whether a folder is one of the two published 7B models, by its own name and its model type."""
    return source.resolve().name in SPIRIT_LM_NAMES and _is_llama(source)


def recognises_tinywave(source: Path) -> bool:
    """Whether a folder is another Llama folder with a tokenizer."""
    return not recognises_spirit_lm(source) and _is_llama(source)


def _is_llama(source: Path) -> bool:
    path = source / "config.json"
    has_tokenizer = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return path.is_file() and has_tokenizer and read_json(path).get("model_type") == "llama"


def plan_spirit_lm(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion of a 7B model. Raises `ValueError` and `FileNotFoundError` for what it does not hold."""
    return [_plan(source, "spirit-lm-model", SPIRIT_LM)]


def plan_tinywave(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion of a TinyWave repository. Raises as [`plan_spirit_lm`] does."""
    return [_plan(source, "tinywave", TINYWAVE_REPOSITORY)]


def _plan(source, source_format, licence) -> Conversion:
    text_tokenizer, layout = read_tokenizer(source)
    model = empty_model(llama_to_tinywave_config(read_settings(source), layout))
    tied = (TIED_HEAD,) if model.config.tie_word_embeddings else ()
    return Conversion(
        format=source_format,
        source=source,
        title=source.resolve().name,
        model=model,
        checkpoint=open_weights(source),
        key_map=KeyMap(ignored=LLAMA_KEYS.ignored + tied),
        licence=licence,
        usage=USAGE,
        finish=save_companions(source, model, text_tokenizer),
    )
