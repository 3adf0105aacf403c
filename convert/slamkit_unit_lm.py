"""slamkit's unit language models (`slprl/slam`, `slprl/slam_scaled`, `slprl/SIMS-*`) -> TinyWave folders.

slamkit (Maimon et al. 2025, arXiv 2502.15814) saves a wrapper called UnitLM. Its config.json has `model_type`
"speech_language_model", `base_model_name` (the text model it began from), `base_config` (that model's own
configuration) and `vocab_size`; its tensors are those of the inner causal language model, each with `lm.` in front.

A model of speech alone has the ids 0 padding, 1 `<S>` (both BOS and EOS), 2.. the 500 units of mHuBERT at 25 Hz, and
a sequence `<S> units <S>`. Here `<S>` is `[Speech]`, BOS and EOS at once, and the padding's id, which is never
generated, stands for `[Text]`. An interleaved model (SIMS, arXiv 2504.02398) goes on after the ids of its text model
with the units, `<speech>` and `<text>`; the tokenizer of the text model is not in its folder and must be put there.

Llama backbones stay as they are. Qwen2 is Llama with biases in the query, key and value projections, and becomes one
whose output projection has a bias of zero. OPT and others are not Llamas and are refused.
"""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ..data.storage import read_json
from .checkpoint_files import open_weights, without_file_fields
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .language_model import TIED_HEAD, empty_model, llama_to_tinywave_config, save_companions
from .licences import SLAMKIT

MODEL_TYPE = "speech_language_model"
PADDING_ID, SEQUENCE_ID = 0, 1
# More ids than any set of units has, and fewer than any text model.
_MOST_UNITS = 10_000
_RENAMES = ((r"^lm\.", ""),)
_IGNORED = ((r"lm\.model(\.layers\.\d+\.self_attn)?\.rotary_emb\.inv_freq", "computed from the configuration"),)
_OUTPUT_BIAS = (r"model\.layers\.\d+\.self_attn\.o_proj\.bias", "zeros: Qwen2 has no such bias, Llama has")
_USAGE = """
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor([("speech", units)], output_modality="speech")
output = model.generate(**inputs, output_modality="speech", max_new_tokens=100)
"""


def recognises(source: Path) -> bool:
    """Whether a folder is a UnitLM."""
    path = source / "config.json"
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion. Raises `FileNotFoundError` and `ValueError`, also for a backbone that is not a Llama."""
    settings = read_json(source / "config.json")
    backbone = settings.get("base_config")
    vocab_size = settings.get("vocab_size")
    if not isinstance(backbone, dict) or not isinstance(vocab_size, int):
        raise ValueError(f"{source / 'config.json'} has no base_config and vocab_size; expected those of a UnitLM")
    name = settings.get("base_model_name", "unknown")
    backbone = backbone_to_llama(backbone, name)
    if vocab_size <= _MOST_UNITS:
        text_tokenizer, layout = _speech_layout(source, backbone, vocab_size)
    else:
        text_tokenizer, layout = _interleaved_layout(source, vocab_size, name)
    config = llama_to_tinywave_config(backbone | {"vocab_size": vocab_size}, layout)
    model = empty_model(config)
    names = [name for name in model.state_dict() if re.fullmatch(_OUTPUT_BIAS[0], name)]
    return [
        Conversion(
            format="slamkit",
            source=source,
            title=source.resolve().name,
            model=model,
            checkpoint=open_weights(source),
            key_map=KeyMap(
                renames=_RENAMES,
                ignored=_IGNORED + (((r"lm\." + TIED_HEAD[0], TIED_HEAD[1]),) if config.tie_word_embeddings else ()),
                computed=(_OUTPUT_BIAS,) if backbone["model_type"] == "qwen2" else (),
            ),
            licence=SLAMKIT,
            usage=_USAGE,
            compute={name: lambda: torch.zeros(config.hidden_size) for name in names},
            notes=[f"The text model it began from is {name}, whose licence holds as well."],
            finish=save_companions(source, model, text_tokenizer),
        )
    ]


def backbone_to_llama(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the configuration of a backbone as Llama's, with its own `model_type` left to tell it by.

    Raises `ValueError` saying what was found where the backbone is not a Llama, nor a Qwen2 that computes as one.
    """
    settings = without_file_fields(settings)
    model_type = settings.get("model_type")
    if model_type == "qwen2":
        sliding = set(settings.get("layer_types") or ()) - {"full_attention"}
        if settings.get("use_sliding_window") or sliding:
            raise ValueError(f"the backbone {name} is a Qwen2 with sliding-window attention, which Llama has not")
        # What Qwen2 and Llama leave out means different things.
        defaults = {"attention_bias": True, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
        dropped = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
        return defaults | {key: value for key, value in settings.items() if key not in dropped}
    if model_type != "llama":
        what = {"opt": "OPT has learnt positions, layer norms and biases everywhere"}.get(model_type, "it is no Llama")
        raise ValueError(
            f"found a UnitLM on {name}, a backbone of type {model_type!r}: {what}, so its weights do not fit a "
            "TinyWave model. Backbones of type 'llama' and 'qwen2' can be converted"
        )
    return settings


def _speech_layout(source: Path, backbone: dict[str, Any], vocab_size: int):
    """Return an empty text tokenizer and the id layout of a model of speech alone."""
    found = tuple(backbone.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id"))
    if found != (PADDING_ID, SEQUENCE_ID, SEQUENCE_ID):
        raise ValueError(
            f"{source} has padding, BOS and EOS at {found}; a UnitLM of speech alone has them at "
            f"{(PADDING_ID, SEQUENCE_ID, SEQUENCE_ID)}"
        )
    num_units = vocab_size - SEQUENCE_ID - 1
    path = source / "tokeniser_config.json"
    stated = read_json(path).get("num_units") if path.is_file() else num_units
    if stated is None or stated > num_units:
        raise ValueError(f"{path} states {stated} units, but the vocabulary of {vocab_size} has room for {num_units}")
    layout = {"text_offset": 0, "text_vocab_size": 0, "text_marker_id": PADDING_ID, "speech_marker_id": SEQUENCE_ID}
    layout |= {"unit_offset": SEQUENCE_ID + 1, "num_units": stated}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), layout


def _interleaved_layout(source: Path, vocab_size: int, name: str):
    """Return the tokenizer of the text model and the id layout of an interleaved model."""
    if not (source / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{source} is an interleaved model of {vocab_size} ids without the tokenizer of its text model; copy "
            f"tokenizer.json and tokenizer_config.json of {name} into it"
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    first, num_units = len(tokenizer), vocab_size - len(tokenizer) - 2
    prefix = tokenizer.encode("")
    if num_units < 1:
        raise ValueError(f"the tokenizer in {source} has {first} ids, which leaves no units among {vocab_size}")
    if len(prefix) != 1 or tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} begins a text with the ids {prefix}; a TinyWave model needs exactly one BOS "
            "there, and an EOS"
        )
    layout = {"text_offset": 0, "text_vocab_size": first, "unit_offset": first, "num_units": num_units}
    layout |= {"speech_marker_id": first + num_units, "text_marker_id": first + num_units + 1}
    # slamkit pads with id 0 whatever it means; padding that is EOS takes no id from the text.
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    return tokenizer, layout | {"bos_token_id": prefix[0]} | ends
