"""A language model as an ONNX graph with weights of 4 or 8 bits, for ONNX Runtime on a CPU.

The graph is Llama's, in the operators that ONNX Runtime has for it: the attention keeps keys and values in place, the
linear layers read packed weights. Names of inputs and outputs are those of ONNX Runtime GenAI.
"""

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from tqdm.auto import tqdm
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..configuration_tinywave import TinyWaveConfig
from ..data.storage import atomic_folder, file_sha256
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .onnx_model import DATA_FILE, FORMAT_VERSION, MODEL_FILE, RECORD_FILE

_CONTRIB = "com.microsoft"
_OPSETS = {"": 21, _CONTRIB: 1}
# Data are mapped into memory, whose pages are of this size.
_ALIGNMENT = 4096
# Weights that are rounded at once; bounds the memory of the export.
_WEIGHTS_PER_CHUNK = 1 << 22
# These depend on the length of the text, which a table of angles does not know.
_ROPE_OF_LENGTH = ("dynamic", "longrope")


class WeightFormat(NamedTuple):
    """Bits of the layers, bits of the language-model head, and inputs that share a scale and a zero point."""

    bits: int
    head_bits: int
    block_size: int


# The head in 8 bits costs little time, and in 4 it alone makes a third of what the shipped teacher loses.
WEIGHTS = {"int4": WeightFormat(4, 8, 128), "int8": WeightFormat(8, 8, 128)}


def export_onnx(
    model: TinyWaveForCausalLM,
    processor: TinyWaveProcessor | None,
    folder: str | os.PathLike,
    weights: str | WeightFormat = "int4",
    accuracy_level: int = 4,
) -> Path:
    """Write a folder that [`~tinywave.engines.onnx_model.OnnxForCausalLM`] loads; complete, or what it was before.

    Weights are rounded and written one after the other, so that the export takes little memory beside the model.
    Embeddings are written in float16, norms in float32; parallel heads are left out.

    Args:
        model: in floating point.
        processor: saved into the folder as well; None for a model that is given ids alone.
        folder: new, or of an earlier export, which is replaced.
        weights: a key of `WEIGHTS`, or bits and block size by themselves.
        accuracy_level (`int`, default 4): of the operator MatMulNBits: 4 rounds activations to 8 bits in blocks, which
            is the fastest; 1 computes them in float32.

    Raises `ValueError` for an unknown format, a folder that holds something else, and a model that is quantized
    already or has parts that the graph does not know.
    """
    if isinstance(weights, str) and weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    name, kind = (weights, WEIGHTS[weights]) if isinstance(weights, str) else (f"int{weights.bits}", weights)
    _check_model(model)
    with atomic_folder(_checked_folder(folder)) as partial:
        with open(partial / DATA_FILE, "wb") as data:
            graph = _Graph(data, kind, accuracy_level)
            _add_model(graph, model)
        onnx.save(graph.to_model(model.config), partial / MODEL_FILE)
        config = deepcopy(model.config)
        config.num_parallel_heads = 0
        config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        _write_json(_genai_config(config), partial / "genai_config.json")
        record = {"engine": f"onnx-{name}", "format_version": FORMAT_VERSION, "weights": name, **kind._asdict()}
        sizes = {"num_parameters": _count_parameters(model), "linear_bytes": graph.linear_bytes}
        sizes["sha256"] = {file: file_sha256(partial / file) for file in (MODEL_FILE, DATA_FILE)}
        _write_json(record | sizes, partial / RECORD_FILE)
    return Path(folder)


def _check_model(model: TinyWaveForCausalLM) -> None:
    config = model.config
    if not isinstance(model, TinyWaveForCausalLM) or config.weight_format is not None:
        raise ValueError("found a model that is quantized already; export it from its floating-point folder")
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        raise ValueError(
            f"found attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias} and "
            f"hidden_act={config.hidden_act!r}; the graph knows linear layers without bias, and 'silu'"
        )
    if config.head_dim % 16:
        raise ValueError(f"found head_dim={config.head_dim}; the attention of ONNX Runtime needs a multiple of 16")
    if (kind := config.rope_parameters["rope_type"]) in _ROPE_OF_LENGTH:
        raise ValueError(f"found rotary embeddings of type {kind!r}, which change with the length; the graph has none")


def _count_parameters(model: TinyWaveForCausalLM) -> int:
    head = 0 if model.config.tie_word_embeddings else model.lm_head.weight.numel()
    return head + sum(parameter.numel() for parameter in model.model.parameters())


def _checked_folder(folder: str | os.PathLike) -> Path:
    """Return the absolute path of a folder that an export may replace."""
    folder = Path(folder).resolve()
    if folder.exists() and not (folder / RECORD_FILE).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} contains files that are no export; choose an empty or new folder")
    return folder


def _write_json(record: dict, path: Path) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def quantize_blocks(weight: torch.Tensor, bits: int, block_size: int) -> tuple[torch.Tensor, ...]:
    """Round a matrix in blocks along its inputs, each from its least to its largest number, zero included.

    Args:
        weight (`torch.Tensor` of shape `(outputs, inputs)`): finite numbers.
        bits (`int`): 4 or 8.
        block_size (`int`): inputs of a block; the last one is filled with zeros.

    Returns:
        Values `(outputs, blocks, block_size)`, uint8 of `bits` bits; scales `(outputs, blocks)`, float32; zero points
        `(outputs, blocks)`, uint8. `(value - zero point) * scale` is the weight to within half a scale, at the ends
        of a block to within a whole one.

    Raises `ValueError` for NaN or infinity.
    """
    blocks = F.pad(weight.detach().float(), (0, -weight.shape[1] % block_size)).unflatten(1, (-1, block_size))
    least, largest = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    if not torch.isfinite(largest - least).all():
        raise ValueError("found NaN or infinity in a weight to quantize; check the checkpoint")
    top = 2**bits - 1
    scales = ((largest - least) / top).clamp(min=torch.finfo(torch.float32).tiny)
    zeros = (-least / scales).round()
    values = ((blocks / scales[..., None]).round() + zeros[..., None]).clamp(0, top)
    return values.to(torch.uint8), scales, zeros.to(torch.uint8)


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Uint8 `(..., n)` -> uint8 with as many values in a byte as fit, the first in the lowest bits; the rest is 0."""
    if bits == 8:
        return values
    pairs = F.pad(values, (0, values.shape[-1] % 2)).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


class _Graph:
    """The nodes so far; their weights go into a file at once.

    Args:
        data: the file, open for writing.
        kind, accuracy_level: of the linear layers.
    """

    def __init__(self, data, kind: WeightFormat, accuracy_level: int):
        self.data, self.kind, self.accuracy_level = data, kind, accuracy_level
        self.nodes, self.initializers, self.linear_bytes = [], [], 0
        self.inputs, self.outputs = [], []

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes):
        name = f"{outputs[0]}/{operator}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, domain=domain, **attributes))

    def constant(self, name: str, value: int | Sequence[int]) -> str:
        """A small tensor of integers, kept in the graph."""
        self.initializers.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), name))
        return name

    def tensor(self, name: str, values: torch.Tensor) -> str:
        """A tensor, kept in the file of data."""
        array = values.detach().contiguous().numpy()
        self.data.write(bytes(-self.data.tell() % _ALIGNMENT))
        proto = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": DATA_FILE, "offset": self.data.tell(), "length": array.nbytes}
        for key, value in place.items():
            proto.external_data.add(key=key, value=str(value))
        self.data.write(array.data)
        self.initializers.append(proto)
        return name

    def linear(self, name: str, hidden: str, weights: Sequence[torch.Tensor], bits: int) -> str:
        """Linear layers that read the same, side by side: `(..., inputs)` -> `(..., all outputs)`."""
        num_inputs, block_size = weights[0].shape[1], self.kind.block_size
        num_rows = max(1, _WEIGHTS_PER_CHUNK // num_inputs)
        chunks = []
        for chunk in (chunk for weight in weights for chunk in weight.split(num_rows)):
            values, scales, zeros = quantize_blocks(chunk, bits, block_size)
            chunks.append((pack_bits(values, bits), scales, pack_bits(zeros, bits)))
        parts = dict(zip(("weight", "scales", "zero_points"), map(torch.cat, zip(*chunks, strict=True)), strict=True))
        self.linear_bytes += sum(part.nbytes for part in parts.values())
        self.node(
            "MatMulNBits",
            [hidden, *(self.tensor(f"{name}.{part}", values) for part, values in parts.items())],
            [f"{name}/output"],
            _CONTRIB,
            K=num_inputs,
            N=len(parts["weight"]),
            bits=bits,
            block_size=block_size,
            accuracy_level=self.accuracy_level,
        )
        return f"{name}/output"

    def to_model(self, config: TinyWaveConfig) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "tinywave", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tinywave")


def _add_model(graph: _Graph, model: TinyWaveForCausalLM) -> None:
    """Token ids -> logits."""
    config = model.config
    _declare(graph, config)
    _add_lengths(graph)
    table = model.get_input_embeddings().weight.data.to(torch.float16)
    if not torch.isfinite(table).all():
        raise ValueError("found embeddings beyond the range of float16; check the checkpoint")
    graph.node("Gather", [graph.tensor("embed_tokens.weight", table), "input_ids"], ["embedding/half"])
    graph.node("Cast", ["embedding/half"], ["embedding"], to=TensorProto.FLOAT)
    angles = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(config.max_position_embeddings)[None])
    for name, values in zip(("cos_cache", "sin_cache"), angles, strict=True):
        graph.tensor(name, values[0, :, : config.head_dim // 2])
    layers = tqdm(model.model.layers, desc="Writing ONNX", unit="layer")
    residual, update = "embedding", None
    for index, layer in enumerate(layers):
        residual, hidden = _add_norm(graph, f"layers.{index}.input_norm", residual, update, layer.input_layernorm)
        update = _add_attention(graph, index, hidden, layer.self_attn, config)
        residual, hidden = _add_norm(
            graph, f"layers.{index}.post_attention_norm", residual, update, layer.post_attention_layernorm
        )
        update = _add_feed_forward(graph, f"layers.{index}.mlp", hidden, layer.mlp)
    _, hidden = _add_norm(graph, "norm", residual, update, model.model.norm)
    ends, axes = graph.constant("slice/ends", [np.iinfo(np.int64).max]), graph.constant("slice/axes", [1])
    graph.node("Slice", [hidden, "logits_start", ends, axes], ["last_hidden"])
    logits = graph.linear("lm_head", "last_hidden", [model.lm_head.weight], graph.kind.head_bits)
    graph.node("Identity", [logits], ["logits"])


def _declare(graph: _Graph, config: TinyWaveConfig) -> None:
    """Inputs and outputs, by the names of ONNX Runtime GenAI, and "logits_start", the first position with logits."""
    rows, heads, size = "batch_size", config.num_key_value_heads, config.head_dim
    value = helper.make_tensor_value_info
    graph.inputs.append(value("input_ids", TensorProto.INT64, [rows, "sequence_length"]))
    graph.inputs.append(value("attention_mask", TensorProto.INT64, [rows, "total_sequence_length"]))
    graph.outputs.append(value("logits", TensorProto.FLOAT, [rows, "logits_length", config.vocab_size]))
    for index in range(config.num_hidden_layers):
        for part in ("key", "value"):
            past, present = ([rows, heads, f"{state}_sequence_length", size] for state in ("past", "total"))
            graph.inputs.append(value(f"past_key_values.{index}.{part}", TensorProto.FLOAT, past))
            graph.outputs.append(value(f"present.{index}.{part}", TensorProto.FLOAT, present))
    # An input with a value need not be given: by default all positions have logits.
    graph.inputs.append(value("logits_start", TensorProto.INT64, [1]))
    graph.constant("logits_start", [0])


def _add_lengths(graph: _Graph) -> None:
    """What the attention asks of the mask: the last position of each row, and the length of the longest."""
    one = graph.constant("one", [1])
    graph.node("ReduceSum", ["attention_mask", one], ["lengths"], keepdims=0)
    graph.node("Sub", ["lengths", one], ["last_positions"])
    graph.node("Cast", ["last_positions"], ["seqlens_k"], to=TensorProto.INT32)
    graph.node("Shape", ["attention_mask"], ["mask_shape"])
    graph.node("Gather", ["mask_shape", graph.constant("column", 1)], ["longest"])
    graph.node("Cast", ["longest"], ["total_sequence_length"], to=TensorProto.INT32)


def _add_norm(graph: _Graph, name: str, residual: str, update: str | None, norm) -> tuple[str, str]:
    """Adds the update to the residual stream -> the stream, and its norm."""
    weight = graph.tensor(f"{name}.weight", norm.weight.data.float())
    if update is None:
        options = {"axis": -1, "stash_type": 1, "epsilon": norm.variance_epsilon}
        graph.node("SimplifiedLayerNormalization", [residual, weight], [f"{name}/output"], **options)
        return residual, f"{name}/output"
    outputs = [f"{name}/output", "", "", f"{name}/residual"]
    epsilon = norm.variance_epsilon
    graph.node("SkipSimplifiedLayerNormalization", [residual, update, weight], outputs, _CONTRIB, epsilon=epsilon)
    return f"{name}/residual", f"{name}/output"


def _add_attention(graph: _Graph, index: int, hidden: str, attention, config: TinyWaveConfig) -> str:
    name, bits = f"layers.{index}.attention", graph.kind.bits
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    packed = graph.linear(f"{name}.qkv", hidden, [projection.weight for projection in projections], bits)
    past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
    graph.node(
        "GroupQueryAttention",
        [packed, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
        [f"{name}/output", *(f"present.{index}.{part}" for part in ("key", "value"))],
        _CONTRIB,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        scale=config.head_dim**-0.5,
        do_rotary=1,
        rotary_interleaved=0,
    )
    return graph.linear(f"{name}.o_proj", f"{name}/output", [attention.o_proj.weight], bits)


def _add_feed_forward(graph: _Graph, name: str, hidden: str, mlp) -> str:
    bits = graph.kind.bits
    both = graph.linear(f"{name}.gate_up", hidden, [mlp.gate_proj.weight, mlp.up_proj.weight], bits)
    graph.node("Split", [both], [f"{name}/gate", f"{name}/up"], axis=-1, num_outputs=2)
    graph.node("QuickGelu", [f"{name}/gate"], [f"{name}/silu"], _CONTRIB, alpha=1.0)
    graph.node("Mul", [f"{name}/silu", f"{name}/up"], [f"{name}/product"])
    return graph.linear(f"{name}.down_proj", f"{name}/product", [mlp.down_proj.weight], bits)


def _genai_config(config: TinyWaveConfig) -> dict:
    """What ONNX Runtime GenAI reads beside the graph."""
    past, present = "past_key_values.%d", "present.%d"
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": f"{past}.key",
            "past_value_names": f"{past}.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": f"{present}.key",
            "present_value_names": f"{present}.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }
    model = {
        "type": "llama",
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "pad_token_id": config.pad_token_id,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    search = {"max_length": config.max_position_embeddings, "past_present_share_buffer": True}
    return {"model": model, "search": search}
