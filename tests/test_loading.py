"""No model is used with weights that were not loaded: every kind of model, with every fault of its folder."""

import json
import re
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER, WHISPER_UNITS
from tinywave.codec_tinywave import load_vocoder
from tinywave.configuration_tinywave import HifiGanConfig, TinyWaveConfig
from tinywave.data.codec_loading import load_speech_encoder
from tinywave.eval.generative import load_judge
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.loading_tinywave import CheckpointError, commit_of, load_pretrained
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.speech_encoder_tinywave import QUANTIZER_FILE
from tinywave.style_encoder_tinywave import StyleEncoder

COMMIT = "0" * 40
LOADERS = {
    "language_model": lambda folder: load_pretrained(TinyWaveForCausalLM, folder),
    "language_model_8_bits": lambda folder: load_pretrained(TinyWaveForCausalLM, folder),
    "language_model_tied": lambda folder: load_pretrained(TinyWaveForCausalLM, folder),
    "language_model_in_shards": lambda folder: load_pretrained(TinyWaveForCausalLM, folder),
    "speech_encoder": load_speech_encoder,
    "pitch_encoder": lambda folder: load_pretrained(PitchEncoder, folder),
    "style_encoder": lambda folder: load_pretrained(StyleEncoder, folder),
    "vocoder": load_vocoder,
    "hifigan": load_vocoder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, expressive_codec):
    """A small model of every kind as `save_pretrained` writes it."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, options in (("language_model", {}), ("language_model_tied", {"tie_word_embeddings": True})):
        config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=2, hidden_size=96, **options)
        model = TinyWaveForCausalLM(config)
        model.save_pretrained(root / name)
    model.save_pretrained(root / "language_model_in_shards", max_shard_size="100KB")
    load_pretrained(TinyWaveForCausalLM, root / "language_model").quantize().save_pretrained(
        root / "language_model_8_bits"
    )
    for name in ("speech_encoder", "pitch_encoder", "style_encoder", "vocoder"):
        getattr(expressive_codec, name).save_pretrained(root / name)
    sizes = dict(upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]])
    HifiGanVocoder(HifiGanConfig(num_units=500, **sizes)).save_pretrained(root / "hifigan")
    return root


@pytest.fixture
def damaged(folders, tmp_path):
    """Return a function that copies the folder of a kind of model."""

    def copy(kind):
        shutil.copytree(folders / kind, tmp_path / kind)
        return tmp_path / kind

    return copy


def floating(tensors):
    """The name of the largest floating-point tensor."""
    return max((name for name in tensors if tensors[name].is_floating_point()), key=lambda name: tensors[name].numel())


def change_tensors(folder, change):
    """Apply `change` to the tensors of the first file of weights, and return what it returns."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    result = change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return result


def leave_out(tensors):
    name = floating(tensors)
    del tensors[name]
    return rf"lacks .*{re.escape(name)}"


def add(tensors):
    tensors["model.extra.weight"] = torch.zeros(2)
    return r"has unexpected 1 tensor: model\.extra\.weight"


def reshape(tensors):
    name = floating(tensors)
    tensors[name] = torch.zeros(3, 5)
    return rf"has misshapen .*{re.escape(name)} \(found \(3, 5\), expected "


def put_nan(tensors):
    name = floating(tensors)
    tensors[name].view(-1)[-1] = torch.nan
    return rf"has NaN or infinite values in .*{re.escape(name)}"


def put_infinity(tensors):
    name = floating(tensors)
    tensors[name].view(-1)[0] = -torch.inf
    return rf"has NaN or infinite values in .*{re.escape(name)}"


def store_as(dtype):
    def convert(tensors):
        name = floating(tensors)
        tensors[name] = tensors[name].to(dtype)
        return rf"stores another kind of number in .*{re.escape(name)} \(found [ILUBC]\w*, expected floating point\)"

    convert.__name__ = f"store as {dtype}"
    return convert


TENSOR_FAULTS = [
    leave_out,
    add,
    reshape,
    put_nan,
    put_infinity,
    *map(store_as, (torch.int32, torch.bool, torch.uint8, torch.complex64)),
]


@pytest.mark.parametrize("kind", LOADERS)
def test_an_intact_folder_is_loaded(kind, folders):
    model = LOADERS[kind](folders / kind)
    assert not model.training
    stored = {}
    for path in (folders / kind).glob("*.safetensors"):
        stored |= load_file(path)
    state = model.state_dict()
    assert stored.keys() <= state.keys() and all(state[name].equal(stored[name]) for name in stored)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("fault", TENSOR_FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("kind", LOADERS)
def test_tensors_that_do_not_fit_are_refused_by_name(kind, fault, damaged):
    folder = damaged(kind)
    message = change_tensors(folder, fault)
    with pytest.raises(CheckpointError, match=message) as caught:
        LOADERS[kind](folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"config\.json cannot be read"),
        (b"[]", r"config\.json contains list; expected a JSON object"),
        (b"[" * 100_000, r"config\.json cannot be read"),
        (b"\xff\xfe", r"config\.json cannot be read"),
        ({"model_type": "bert"}, r"contains a model of type 'bert'; expected"),
        ({"model_type": None}, r"contains a model of type None; expected"),
    ],
)
def test_a_config_of_something_else_is_refused(kind, content, message, damaged):
    folder = damaged(kind)
    path = folder / "config.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LOADERS[kind](folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_parallel_heads", "hidden_size", "num_units"])
@pytest.mark.parametrize("value", ["four", -1, 10**6, None, [2], 1.5])
def test_impossible_values_of_a_config_are_refused(key, value, damaged):
    folder = damaged("language_model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        LOADERS["language_model"](folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused_by_their_file(kind, share, damaged):
    folder = damaged(kind)
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is not a complete safetensors file"):
        LOADERS[kind](folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", "model.bin", 3, None])
def test_an_index_names_files_of_its_folder_only(name, damaged):
    folder = damaged("language_model_in_shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} (names|is not an index)"):
        LOADERS["language_model"](folder)


def test_a_missing_shard_and_missing_weights_are_named(damaged):
    folder = damaged("language_model_in_shards")
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"index.json names {shard.name}, which does not exist"):
        LOADERS["language_model"](folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="contains no weights; expected model.safetensors"):
        LOADERS["language_model"](folder)


def test_weights_in_pickle_are_not_read(damaged):
    folder = damaged("language_model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="contains no weights; expected model.safetensors"):
        LOADERS["language_model"](folder)


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if not kind.startswith("language")])
def test_a_folder_of_another_kind_is_refused(kind, folders):
    with pytest.raises(ValueError, match="contains a model of type 'llama'"):
        LOADERS[kind](folders / "language_model")
    with pytest.raises(ValueError, match="contains a model of type"):
        LOADERS["language_model"](folders / kind)


def test_a_language_model_of_text_is_no_language_model_of_speech(damaged):
    folder = damaged("language_model")
    config = json.loads((folder / "config.json").read_text())
    del config["num_units"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="contains a llama model without 'num_units'"):
        LOADERS["language_model"](folder)
    assert isinstance(load_pretrained(LlamaForCausalLM, folder), LlamaForCausalLM)


def test_centroids_alone_are_checked(tmp_path):
    shutil.copytree(WHISPER_UNITS, tmp_path / "units")
    path = tmp_path / "units" / QUANTIZER_FILE
    good = load_file(path)
    for dtype, value, message in (
        (torch.int32, 0, "stores another kind of number in"),
        (None, torch.nan, "has NaN or infinite values in"),
    ):
        tensors = {name: torch.full_like(tensor, value, dtype=dtype) for name, tensor in good.items()}
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=rf"{QUANTIZER_FILE} {message}"):
            load_speech_encoder(tmp_path / "units")


@pytest.fixture
def cached_repository(folders, tmp_path, monkeypatch):
    """Return the folder of a repository as the cache of the Hub holds it after a download."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    shutil.copytree(folders / "language_model", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_repository_is_checked_as_a_folder_is(cached_repository, revision):
    model = load_pretrained(TinyWaveForCausalLM, "someone/model", revision=revision)
    assert not model.training and commit_of("someone/model", revision) == COMMIT
    message = change_tensors(cached_repository, store_as(torch.int32))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(TinyWaveForCausalLM, "someone/model", revision=revision)


def test_a_repository_and_a_revision_that_do_not_exist_are_named(cached_repository):
    for name, revision in (("someone/other", None), ("someone/model", "v2")):
        with pytest.raises(FileNotFoundError, match=f"{name} is no folder with a model, nor a repository") as caught:
            load_pretrained(TinyWaveForCausalLM, name, revision=revision)
        assert "\n" not in str(caught.value)


def test_a_judge_is_read_from_a_gguf_file(tmp_path):
    assert main(["export", str(TEACHER), str(tmp_path / "judge.gguf"), "--engine", "gguf", "--weights", "f32"]) == 0
    judge = load_judge(tmp_path / "judge.gguf")
    expected = load_pretrained(TinyWaveForCausalLM, TEACHER, dtype="float32")
    ids = torch.arange(600, 632)[None]
    torch.testing.assert_close(judge.model(ids).logits, expected(ids).logits, rtol=0, atol=1e-5)
    (tmp_path / "judge.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_judge(tmp_path / "judge.gguf")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{"])
def test_a_generation_config_that_cannot_be_read_is_refused(content, damaged):
    folder = damaged("language_model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="generation_config.json (cannot be read|contains list)"):
        LOADERS["language_model"](folder)


def test_a_refusal_is_not_preceded_by_the_announcement_of_random_weights(damaged, capsys, caplog):
    folder = damaged("language_model")
    change_tensors(folder, leave_out)
    with pytest.raises(CheckpointError, match="lacks"):
        LOADERS["language_model"](folder)
    assert "LOAD REPORT" not in capsys.readouterr().err + caplog.text
