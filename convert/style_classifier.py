"""SPIRIT-LM's style classifier (`speech_tokenizer/style_encoder_w2v2`) -> `StyleEncoder`.

A transformers folder (config.json, pytorch_model.bin) of Wav2Vec2ForSequenceClassification (Baevski et al. 2020, arXiv
2006.11477). SPIRIT-LM normalizes each waveform, projects the last layer and averages windows of 50 frames; a learnt
weighting of layers, where the folder has one, is not used.
"""

from pathlib import Path

import torch

from ..configuration_tinywave import StyleEncoderConfig
from ..data.storage import read_json
from ..style_encoder_tinywave import StyleEncoder
from .checkpoint_files import open_weights, read_settings
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .licences import SPIRIT_LM

_PARAMETRIZED = "pos_conv_embed.conv.parametrizations.weight.original"
_KEYS = KeyMap(
    renames=(
        (r"^wav2vec2\.", "backbone."),
        (r"pos_conv_embed\.conv\.weight_g$", f"{_PARAMETRIZED}0"),
        (r"pos_conv_embed\.conv\.weight_v$", f"{_PARAMETRIZED}1"),
    ),
    ignored=(
        (r"layer_weights", "SPIRIT-LM reads the last layer alone"),
        (r"_float_tensor", "holds no weight: it tells SPIRIT-LM the device"),
    ),
)
_USAGE = """
import torch
from transformers import AutoModel

encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
styles = encoder.encode([torch.zeros(16000)])  # mono waveforms at 16 kHz
"""


def recognises(source: Path) -> bool:
    """Whether a folder is a wav2vec 2.0 classifier of transformers."""
    path = source / "config.json"
    if not path.is_file():
        return False
    settings = read_json(path)
    architectures = settings.get("architectures") or ["StyleEncoder"]
    return settings.get("model_type") == "wav2vec2" and architectures[0].endswith(("Classification", "StyleEncoder"))


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion. Raises `FileNotFoundError` and `ValueError` for what the folder does not hold."""
    settings = read_settings(source)
    checkpoint = open_weights(source)
    classifier = checkpoint.specs.get("classifier.weight")
    if classifier is None or len(classifier.shape) != 2:
        raise ValueError(f"{source} has no classifier.weight; expected a classifier of styles on wav2vec 2.0")
    labels = settings.pop("id2label", None) or {}
    settings.pop("label2id", None)
    names = [labels[key] for key in sorted(labels, key=int)]
    is_named = len(set(names)) == classifier.shape[0] and not names[0].startswith("LABEL_")
    config = StyleEncoderConfig(
        backbone_config=settings,
        num_styles=classifier.shape[0],
        style_names=names if is_named else None,
        projector_size=classifier.shape[1],
    )
    with torch.device("meta"):
        model = StyleEncoder(config)
    return [
        Conversion(
            format="spirit-lm-style",
            source=source,
            title=f"SPIRIT-LM's style encoder: {config.num_styles} styles at 1 Hz",
            model=model,
            checkpoint=checkpoint,
            key_map=_KEYS,
            licence=SPIRIT_LM,
            usage=_USAGE,
        )
    ]
