"""SPIRIT-LM's phonetic encoder (`speech_tokenizer/hubert_25hz`) -> `SpeechEncoder`.

Two PyTorch files. `mhubert_base_25hz.pt` holds a fairseq HuBERT (Hsu et al. 2021, arXiv 2106.07447) with an eighth
convolution: a dict of `model_cfg` and `task_cfg` (fairseq's settings), `model_weight` (the tensors) and
`dictionaries_symbols`. `L11_quantizer_500.pt` holds the quantizer of its layer 11: a dict of `model_cfg`
(`vocab_size`, `dim`, `upstream_dim`) and `model_weight`, three linear layers with the names `0`, `2`, `4`. Their sizes
are dim, dim - m // 4, dim - m // 2 and vocab_size + 1 with m = upstream_dim - vocab_size - 1; the last output is the
blank.
"""

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_tinywave import SpeechEncoderConfig
from ..speech_encoder_tinywave import SpeechEncoder
from .checkpoint_files import Checkpoint, load_torch_file
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .licences import SPIRIT_LM

HUBERT_FILE = "mhubert_base_25hz.pt"
QUANTIZER_FILE = "L11_quantizer_500.pt"
LAYER = 11
_MOST_CONV_LAYERS = 100
USAGE = """
import torch
from transformers import AutoModel

encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
units = encoder.encode([torch.zeros(16000)])  # mono waveforms at 16 kHz
"""
_RENAMES = (
    (r"^(\d)\.(weight|bias)$", r"quantizer.layers.\1.\2"),
    (r"^mask_emb$", "backbone.masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"backbone.feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"backbone.feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "backbone.feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "backbone.feature_projection.projection."),
    (r"^encoder\.", "backbone.encoder."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
_WEIGHT_NORM = (
    (r"\.pos_conv\.0\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"\.pos_conv\.0\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
)
_BATCH_NORM = (
    (r"\.pos_conv\.0\.", ".pos_conv_embed.batch_norm."),
    (r"\.pos_conv\.1\.", ".pos_conv_embed.conv."),
)
_PRETRAINING_HEAD = "a head of pretraining"
_IGNORED = (
    (r"final_proj\.(weight|bias)", _PRETRAINING_HEAD),
    (r"label_embs_concat", _PRETRAINING_HEAD),
)


def recognises(source: Path) -> bool:
    """Whether a folder holds both files."""
    return (source / HUBERT_FILE).is_file() and (source / QUANTIZER_FILE).is_file()


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion. Raises `FileNotFoundError` and `ValueError` for what the two files do not hold."""
    hubert = _read_parts(source / HUBERT_FILE, ("model_cfg", "task_cfg", "model_weight"))
    quantizer = _read_parts(source / QUANTIZER_FILE, ("model_cfg", "model_weight"))
    settings = hubert["model_cfg"]
    if hubert["task_cfg"].get("normalize"):
        raise ValueError(f"{source / HUBERT_FILE} expects normalized waveforms; the speech encoder does not normalize")
    backbone_config = fairseq_to_hubert_config(settings, source / HUBERT_FILE)
    rate = hubert["task_cfg"].get("sample_rate", 16000)
    config = SpeechEncoderConfig(
        backbone_config=backbone_config,
        layer=LAYER,
        pooling=1,
        sampling_rate=rate,
        backbone_frame_rate=rate / math.prod(backbone_config["conv_stride"]),
        **_quantizer_sizes(quantizer["model_cfg"], source / QUANTIZER_FILE),
    )
    with torch.device("meta"):
        model = SpeechEncoder(config)
    files = {HUBERT_FILE: hubert, QUANTIZER_FILE: quantizer}
    parts = [Checkpoint.from_state_dict(part["model_weight"], source / name) for name, part in files.items()]
    return [
        Conversion(
            format="spirit-lm-hubert",
            source=source,
            title="SPIRIT-LM's phonetic encoder: HuBERT at 25 Hz, layer 11, linear quantizer",
            model=model,
            checkpoint=Checkpoint.joined(parts),
            key_map=_key_map(backbone_config),
            licence=SPIRIT_LM,
            usage=USAGE,
        )
    ]


def _read_parts(path: Path, names: tuple[str, ...]) -> dict[str, dict]:
    """Return the dict in a file. Raises `ValueError` where one of its parts is not there."""
    content = load_torch_file(path)
    for name in names:
        if not isinstance(content, Mapping) or not isinstance(content.get(name), Mapping):
            raise ValueError(f"{path} has no {name!r}; expected a dict of {', '.join(names)}")
    return content


def _key_map(backbone_config: Mapping[str, Any]) -> KeyMap:
    """Return the names that differ, for the positional convolution and the layers that the settings describe."""
    convolution = _BATCH_NORM if backbone_config["conv_pos_batch_norm"] else _WEIGHT_NORM
    above = rf"encoder\.layers\.({'|'.join(map(str, range(LAYER, backbone_config['num_hidden_layers'])))})\..*"
    reason = f"above layer {LAYER}, whose output is quantized"
    return KeyMap(renames=_RENAMES + convolution, ignored=(*_IGNORED, (above, reason)))


def fairseq_to_hubert_config(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return transformers' HuBERT settings for fairseq's; what is left out has fairseq's default.

    Raises `ValueError` where fairseq's model is one that transformers does not have.
    """
    for name, expected in (("layer_type", "transformer"), ("pos_conv_depth", 1)):
        if settings.get(name, expected) != expected:
            raise ValueError(f"{path} has {name} {settings[name]!r}; expected {expected!r}")
    layers = parse_conv_layers(settings.get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"))
    dim, kernel, stride = (list(values) for values in zip(*layers, strict=True))
    return {
        "model_type": "hubert",
        "hidden_size": settings.get("encoder_embed_dim", 768),
        "num_hidden_layers": settings.get("encoder_layers", 12),
        "num_attention_heads": settings.get("encoder_attention_heads", 12),
        "intermediate_size": settings.get("encoder_ffn_embed_dim", 3072),
        "hidden_act": str(settings.get("activation_fn", "gelu")),
        "feat_extract_norm": "layer" if settings.get("extractor_mode", "default") == "layer_norm" else "group",
        "conv_dim": dim,
        "conv_kernel": kernel,
        "conv_stride": stride,
        "conv_bias": settings.get("conv_bias", False),
        "num_conv_pos_embeddings": settings.get("conv_pos", 128),
        "num_conv_pos_embedding_groups": settings.get("conv_pos_groups", 16),
        "conv_pos_batch_norm": settings.get("conv_pos_batch_norm", False),
        "do_stable_layer_norm": settings.get("layer_norm_first", False),
    }


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Return the (channels, kernel, stride) of each convolution from fairseq's expression.

    fairseq calls `eval` on it; here only lists, tuples and numbers joined by `+` and `*` are understood.

    Raises `ValueError` for anything else.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= 1 << 16:
            return node.value
        if isinstance(node, ast.List):
            return [value(item) for item in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(value(item) for item in node.elts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            left, right = value(node.left), value(node.right)
            if not isinstance(left, list) or not isinstance(right, int) or len(left) * right > _MOST_CONV_LAYERS:
                raise ValueError(f"expected a list repeated to at most {_MOST_CONV_LAYERS} layers")
            return left * right
        raise ValueError(f"{ast.dump(node)} is not a list, tuple, number, + or *")

    try:
        layers = value(ast.parse(text, mode="eval").body)
        if not isinstance(layers, list) or not layers:
            raise ValueError("expected a list")
        if not all(isinstance(layer, tuple) and [type(item) for item in layer] == [int] * 3 for layer in layers):
            raise ValueError("expected (channels, kernel, stride) of each layer")
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"conv_feature_layers {text!r} cannot be read: {error}") from error
    return layers


def _quantizer_sizes(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of our configuration for the quantizer's settings."""
    try:
        num_units, width, upstream = (settings[name] for name in ("vocab_size", "dim", "upstream_dim"))
    except KeyError as error:
        raise ValueError(f"model_cfg of {path} has no {error}; expected vocab_size, dim and upstream_dim") from error
    between = upstream - (num_units + 1)
    sizes = [width - between // 4, width - between // 2]
    return {"quantizer": "linear", "num_units": num_units, "quantizer_hidden_sizes": sizes}
