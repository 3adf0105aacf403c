"""A language model as one GGUF file, which llama.cpp and what is built on it run.

The file holds Llama's architecture, the weights in a chosen type, and the tokenizer with the speech tokens as tokens
of their own, so that ids are the same everywhere. The encoders and the vocoder stay outside: a runtime is given ids.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from tqdm.auto import tqdm

from ..data.storage import atomic_file, read_json
from ..modeling_tinywave import TinyWaveForCausalLM

WEIGHT_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
_FILE_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}
# Quantized rows are cut into blocks of this many weights.
_BLOCK = 32
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def export_gguf(
    model: TinyWaveForCausalLM, tokenizer_file: str | os.PathLike | None, path: str | os.PathLike, weights: str
) -> Path:
    """Write a model as GGUF, so that `path` is complete or what it was before.

    Args:
        model ([`TinyWaveForCausalLM`]): in floating point.
        tokenizer_file: its tokenizer.json, a byte-level BPE; None for a model that is given ids alone.
        path: of the file.
        weights: a key of `WEIGHT_TYPES`; embeddings and matrices are stored so, norms in float32.

    Raises `ValueError` for a model that is quantized already, an unknown type, and widths that do not fill its blocks.
    """
    if weights not in WEIGHT_TYPES:
        raise ValueError(f"unknown weight type {weights!r}; expected one of {', '.join(WEIGHT_TYPES)}")
    if model.config.weight_format is not None:
        raise ValueError(f"found a model in {model.config.weight_format}; export it from its floating-point folder")
    config = model.config
    if weights.startswith("q") and (config.hidden_size % _BLOCK or config.intermediate_size % _BLOCK):
        raise ValueError(
            f"{weights} needs widths that are multiples of {_BLOCK}; found hidden_size {config.hidden_size} and "
            f"intermediate_size {config.intermediate_size}. Choose f16."
        )
    tensors = list(_named_tensors(model))
    with atomic_file(path) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_architecture(writer, config, weights)
        _add_tokenizer(writer, _read_tokenizer(tokenizer_file), config)
        for name, tensor in tensors:
            kind = _type_of(tensor, weights)
            size = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if tensor.ndim > 1 else (4 * len(tensor),)
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), int(np.prod(size)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tqdm(tensors, desc=f"Writing {weights}", unit="tensor"):
            writer.write_tensor_data(quants.quantize(tensor.float().numpy(), _type_of(tensor, weights)))
        writer.close()
    return Path(path)


def _type_of(tensor: torch.Tensor, weights: str) -> GGMLQuantizationType:
    return WEIGHT_TYPES[weights] if tensor.ndim > 1 else GGMLQuantizationType.F32


def _named_tensors(model: TinyWaveForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors under GGUF's names."""
    config = model.config
    yield "token_embd.weight", model.get_input_embeddings().weight.data
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in _NAMES.items():
            tensor = layer.get_submodule(ours).weight.data
            if theirs == "attn_q":
                tensor = interleave_halves(tensor, config.num_attention_heads)
            elif theirs == "attn_k":
                tensor = interleave_halves(tensor, config.num_key_value_heads)
            yield f"blk.{index}.{theirs}.weight", tensor
    yield "output_norm.weight", model.model.norm.weight.data
    if not config.tie_word_embeddings:
        yield "output.weight", model.lm_head.weight.data


def interleave_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding.

    Llama in transformers turns dimension i of a head together with i + half; llama.cpp turns 2i with 2i + 1.

    Args:
        weight (`torch.Tensor` of shape `(num_heads * head_dim, inputs)`).
    """
    outputs, inputs = weight.shape
    return weight.view(num_heads, 2, outputs // num_heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)


def _add_architecture(writer: gguf.GGUFWriter, config, weights: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(_FILE_TYPE[weights])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _read_tokenizer(path: str | os.PathLike | None) -> dict:
    """A tokenizer.json, or one without tokens; llama.cpp's server does not start without any."""
    if path is None:
        return {"model": {"vocab": {}}, "added_tokens": []}
    return read_json(path)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, config) -> None:
    """The vocabulary with a token for every id, so that ids keep their meaning; ids without a token are unused."""
    tokens = [f"[unused{index}]" for index in range(config.vocab_size)]
    types = [_CONTROL] * config.vocab_size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, _NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # llama.cpp refuses a vocabulary of this kind without a merge; this one merges nothing that is there.
    writer.add_token_merges(merges or ["Ġ Ġ"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_ids[0])
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)
