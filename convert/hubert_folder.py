"""`slprl/mhubert-base-25hz`, or another HuBERT folder of transformers, with k-means centroids -> `SpeechEncoder`.

The folder holds transformers' HubertModel (config.json, weights). TWIST (Hassid et al. 2023, arXiv 2305.13009) and
slamkit quantize its layer 11 by the nearest of 500 centroids. Those are published as a pickle of scikit-learn, which
runs code when it is read; here they come as an array of shape `(units, width)` in a .npy or .safetensors file.
"""

import math
from pathlib import Path

import numpy as np
import torch

from ..configuration_tinywave import SpeechEncoderConfig
from ..data.storage import read_json
from ..speech_encoder_tinywave import SpeechEncoder
from .checkpoint_files import Checkpoint, open_file, open_weights, read_settings
from .conversion import Conversion, ConvertOptions
from .hubert_checkpoint import LAYER, USAGE
from .key_report import KeyMap, TensorSpec
from .licences import MHUBERT

_CENTROID_SUFFIXES = (".npy", ".safetensors")
_EXPORT = (
    'where the pickle is trusted and joblib and scikit-learn are installed, run: python -c "import joblib, numpy; '
    "numpy.save('kmeans.npy', joblib.load('THE_FILE').cluster_centers_)\" and give the result with --kmeans kmeans.npy"
)
_PARAMETRIZED = ".pos_conv_embed.conv.parametrizations.weight.original"
_RENAMES = (
    (r"^(?!centroids$)(hubert\.)?", "backbone."),
    (r"\.pos_conv_embed\.conv\.weight_g$", f"{_PARAMETRIZED}0"),
    (r"\.pos_conv_embed\.conv\.weight_v$", f"{_PARAMETRIZED}1"),
    (r"^centroids$", "quantizer.centroids"),
)


def recognises(source: Path) -> bool:
    """Whether a folder is a HuBERT of transformers."""
    path = source / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "hubert"


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion. Raises `FileNotFoundError` and `ValueError`, also for centroids that are a pickle."""
    file = options.kmeans or _find_centroids(source)
    centroids = read_centroids(file)
    backbone_config = read_settings(source)
    try:
        rate = 16000 / math.prod(backbone_config["conv_stride"])
        num_layers = backbone_config["num_hidden_layers"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source / 'config.json'} has no usable {error}; expected a HuBERT's settings") from error
    config = SpeechEncoderConfig(
        backbone_config=backbone_config,
        layer=LAYER,
        pooling=1,
        num_units=len(centroids),
        backbone_frame_rate=rate,
        quantizer="centroids",
    )
    with torch.device("meta"):
        model = SpeechEncoder(config)
    centroid_part = Checkpoint({"centroids": TensorSpec.of(centroids)}, lambda name: centroids, [file])
    above = rf"(hubert\.)?encoder\.layers\.({'|'.join(map(str, range(LAYER, num_layers)))})\..*"
    return [
        Conversion(
            format="hubert",
            source=source,
            title=f"{source.resolve().name}: layer {LAYER}, {len(centroids)} k-means units at {rate:g} Hz",
            model=model,
            checkpoint=Checkpoint.joined([open_weights(source), centroid_part]),
            key_map=KeyMap(
                renames=_RENAMES,
                ignored=((above, f"above layer {LAYER}, whose output is quantized"),),
                computed=(
                    (r"quantizer\.mean", "zeros: k-means compares the features as they are"),
                    (r"quantizer\.standard_deviation", "ones: k-means compares the features as they are"),
                ),
            ),
            licence=MHUBERT,
            usage=USAGE,
            compute={
                "quantizer.mean": lambda: torch.zeros(centroids.shape[1]),
                "quantizer.standard_deviation": lambda: torch.ones(centroids.shape[1]),
            },
            notes=["slamkit pads each waveform by 40 samples on both sides before HuBERT; this encoder does not."],
        )
    ]


def _find_centroids(source: Path) -> Path:
    """Return the one file of centroids in a folder. Raises `ValueError` where there is none or there are several."""
    found = [path for path in sorted(source.iterdir()) if path.suffix == ".npy" or path.name == "kmeans.safetensors"]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{source} holds {', '.join(path.name for path in found)}; say which with --kmeans")
    raise ValueError(f"{source} holds no k-means centroids (.npy or kmeans.safetensors). To make them, {_EXPORT}")


def read_centroids(path: Path) -> torch.Tensor:
    """Return k-means centroids, float32 of shape `(units, width)`.

    Raises `FileNotFoundError`, and `ValueError` for a pickle, for several arrays, and for another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name the file of k-means centroids")
    if path.suffix not in _CENTROID_SUFFIXES:
        raise ValueError(
            f"{path} is not an array: k-means published by joblib or PyTorch is a pickle, and reading it would call "
            f"code that the file chooses, so it is refused; {_EXPORT}"
        )
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged or holds Python objects ({error}); {_EXPORT}") from error
        centroids = torch.from_numpy(np.asarray(array))
    else:
        file = open_file(path)
        if len(file.specs) != 1:
            raise ValueError(f"{path} holds {len(file.specs)} tensors; expected the centroids alone")
        centroids = file.read(next(iter(file.specs)))
    if centroids.ndim != 2 or not centroids.is_floating_point():
        raise ValueError(f"{path}: {centroids.dtype} of shape {list(centroids.shape)}; expected floats (units, width)")
    return centroids.float()
