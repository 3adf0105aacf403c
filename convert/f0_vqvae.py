"""SPIRIT-LM's pitch quantizer (`speech_tokenizer/vqvae_f0_quantizer`) -> `PitchEncoder`.

`config.yaml` holds `encoder_params`, `decoder_params` and `vq_params` in Jukebox's terms (Dhariwal et al. 2020, arXiv
2005.00341) and `features`, the two input channels; `model.pt` holds a dict with the tensors under `model`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..configuration_tinywave import PitchEncoderConfig
from ..pitch_encoder_tinywave import PitchEncoder
from .checkpoint_files import Checkpoint, load_torch_file
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .licences import SPIRIT_LM

_LEVEL = r"level_blocks\.0\.model"
_FEATURES = "norm_f0_interp,vuv"
# What has one value in the published models; `PitchEncoder` has it built in.
_FIXED = {"levels": 1, "strides_t": [2], "m_conv": 1.0, "input_emb_width": 2}
_USAGE = """
from transformers import AutoModel

encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
codes = encoder.f0_to_codes([(f0, voiced)])  # F0 in Hz and voiced flags at 200 Hz
"""


def recognises(source: Path) -> bool:
    """Whether a folder holds the two files, and the settings of a pitch VQ-VAE."""
    if not (source / "config.yaml").is_file() or not (source / "model.pt").is_file():
        return False
    return {"encoder_params", "vq_params"} <= _read_yaml(source / "config.yaml").keys()


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion. Raises `FileNotFoundError` and `ValueError` for what the two files do not hold."""
    config = vqvae_to_pitch_config(_read_yaml(source / "config.yaml"), source / "config.yaml")
    content = load_torch_file(source / "model.pt")
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ValueError(f"{source / 'model.pt'} has no 'model'; expected a dict with the tensors under it")
    with torch.device("meta"):
        model = PitchEncoder(config)
    return [
        Conversion(
            format="spirit-lm-pitch",
            source=source,
            title="SPIRIT-LM's pitch encoder: VQ-VAE of F0",
            model=model,
            checkpoint=Checkpoint.from_state_dict(content["model"], source / "model.pt"),
            key_map=_key_map(config.num_stages),
            licence=SPIRIT_LM,
            usage=_USAGE,
            compute={"quantizer.code_counts": lambda: torch.ones(config.num_codes)},
        )
    ]


def _key_map(num_stages: int) -> KeyMap:
    """Return the names that differ; the decoder's stages count from 1, after its projection."""
    renames = [(rf"^encoder\.{_LEVEL}\.{num_stages}\.", "encoder.projection.")]
    renames += [(rf"^encoder\.{_LEVEL}\.(\d+)\.0\.", r"encoder.stages.\1.downsample.")]
    renames += [(rf"^encoder\.{_LEVEL}\.(\d+)\.1\.model\.(\d+)\.model\.", r"encoder.stages.\1.layers.\2.")]
    renames += [(rf"^decoder\.{_LEVEL}\.0\.", "decoder.projection.")]
    for stage in range(num_stages):
        published = rf"^decoder\.{_LEVEL}\.{stage + 1}"
        renames += [(rf"{published}\.0\.model\.(\d+)\.model\.", rf"decoder.stages.{stage}.layers.\1.")]
        renames += [(rf"{published}\.1\.", f"decoder.stages.{stage}.upsample.")]
    renames += [(r"\.(layers\.\d+)\.1\.", r".\1.dilated."), (r"\.(layers\.\d+)\.3\.", r".\1.pointwise.")]
    renames += [(r"^decoder\.out\.", "decoder.output."), (r"^vq\.level_blocks\.0\.k$", "quantizer.codebook")]
    computed = (r"quantizer\.code_counts", "ones: only training reads them")
    return KeyMap(renames=tuple(renames), computed=(computed,))


def vqvae_to_pitch_config(settings: Mapping[str, Any], path: Path) -> PitchEncoderConfig:
    """Return our configuration for the published settings.

    Raises `ValueError` where one is missing, or has a value that `PitchEncoder` does not have.
    """
    features = settings.get("features", _FEATURES)
    if features != _FEATURES:
        raise ValueError(f"{path} has features {features!r}; expected {_FEATURES!r}: F0 minus its mean, voiced flag")
    try:
        encoder, codes = settings["encoder_params"], settings["vq_params"]
        for name, expected in _FIXED.items():
            found = encoder.get(name, expected)
            if list(found) != expected if isinstance(expected, list) else found != expected:
                raise ValueError(f"{path} has encoder_params.{name} {found!r}; expected {expected!r}")
        (num_stages,) = encoder["downs_t"]
        return PitchEncoderConfig(
            num_codes=codes["l_bins"],
            hidden_size=encoder["width"],
            num_stages=num_stages,
            num_residual_layers=encoder["depth"],
            dilation_growth=encoder.get("dilation_growth_rate", 1),
            code_size=codes["emb_width"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the configuration of a pitch VQ-VAE ({error!r})") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; plain data only."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not plain YAML ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected a YAML mapping")
    return content
