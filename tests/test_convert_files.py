"""What a conversion does with damaged and dangerous files, a full disk, and an interruption."""

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from tinywave.cli.main import main
from tinywave.convert.checkpoint_files import load_torch_file, open_file, open_weights
from tinywave.convert.conversion import ConversionRun, ConvertOptions
from tinywave.convert.key_report import KeyMap, TensorSpec, match_keys
from tinywave.convert.licences import stated_licence
from tinywave.convert.style_classifier import plan
from tinywave.convert.weight_shards import PlannedTensor, ShardWriter, plan_shards, write_safetensors
from tinywave.data.storage import read_json


@pytest.fixture
def source(tmp_path):
    """A small classifier folder as transformers writes it; every format goes through the same reading and writing."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=12, num_labels=6,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    settings = config.to_dict() | {"architectures": ["Wav2Vec2ForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def run_of(source, destination, **options):
    return ConversionRun(plan(source, ConvertOptions()), destination, ConvertOptions(), **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Trap:
    """Unpickled by the standard library, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "one pickle"])
def test_a_pickle_with_code_is_refused_naming_what_it_asks_for(source, tmp_path, zipped, capsys):
    trap = tmp_path / "trap"
    content = {"classifier.weight": torch.zeros(2, 2), "extra": Trap(trap)}
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(source), str(tmp_path / "converted")]) == 2
    message = capsys.readouterr().err
    assert "asks for posix.mkdir: reading it would call code" in message and "torch.save({name: tensor" in message
    assert not trap.exists() and not (tmp_path / "converted").exists()
    (source / "plain.pt").write_bytes(pickle.dumps({"a": Trap(trap)}))
    with pytest.warns(UserWarning, match="pickle protocol"), pytest.raises(ValueError, match="asks for posix.mkdir"):
        load_torch_file(source / "plain.pt")
    assert not trap.exists()


def test_files_of_before_pytorch_1_6_are_read(source, tmp_path):
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    run_of(source, tmp_path / "converted").run()
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert torch.equal(converted["classifier.weight"], state["classifier.weight"])


def test_a_truncated_file_is_refused_at_every_length(source):
    path = source / "pytorch_model.bin"
    content = path.read_bytes()
    for size in (0, 10, len(content) // 3, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="pytorch_model.bin is damaged"):
            load_torch_file(path)


def test_a_changed_byte_in_the_weights_is_found_by_its_checksum(source):
    path = source / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda item: item.file_size)
    place = content.index(record.filename.encode()) + len(record.filename) + record.file_size // 2
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged: the checksum of its record {record.filename} is wrong"):
        load_torch_file(path)


def test_damaged_safetensors_and_json_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:7], b"\xff" * 30):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or is not a safetensors file"):
            open_weights(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="contains list; expected a JSON object"):
        read_json(tmp_path / "config.json")


def test_files_that_hold_no_tensors_are_refused(tmp_path):
    for number, (content, message) in enumerate(
        [([1], "holds list; expected tensors by name"), ({"epoch": 3}, "'epoch' holds int; expected a tensor")]
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ValueError, match=message):
            open_file(tmp_path / f"{number}.pt")
    with pytest.raises(FileNotFoundError, match="holds no weights; expected model.safetensors, pytorch_model.bin"):
        open_weights(tmp_path)
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "secret.safetensors")
    with pytest.raises(FileNotFoundError, match="names the shard secret.safetensors, which is not beside it"):
        open_weights(tmp_path)


def test_every_key_is_accounted_for_in_one_of_seven_ways():
    def specs(**shapes):
        return {name: TensorSpec(shape, torch.float32) for name, shape in shapes.items()}

    source = specs(same=(2,), old_name=(3,), head=(4,), alien=(5,), wide=(6,))
    target = specs(same=(2,), new_name=(3,), wide=(7,), absent=(8,), zeros=(9,))
    key_map = KeyMap(
        renames=(("^old_", "new_"),), ignored=(("head", "a head"),), computed=(("zeros", "zeros, unused"),)
    )
    report = match_keys(source, target, key_map)
    assert report.as_dict() == {
        "converted": ["same"],
        "renamed": {"old_name": "new_name"},
        "computed": {"zeros": "zeros, unused"},
        "ignored": {"head": "a head"},
        "missing": ["absent"],
        "unexpected": ["alien"],
        "misshapen": {"wide": "found [6], expected [7]"},
    }
    assert report.as_text().splitlines()[1:3] == ["converted  same", "renamed    old_name -> new_name"]
    with pytest.raises(ValueError, match="missing: absent; unexpected: alien; of another shape: wide .*nothing"):
        report.check("the source")
    many = match_keys(specs(**{f"n{number}": (1,) for number in range(10)}), {}, KeyMap())
    with pytest.raises(ValueError, match="n7 and 2 more"):
        many.check("the source")


def test_a_disk_without_room_is_refused_before_anything_is_written(source, tmp_path, monkeypatch, capsys):
    # The size of a disk is the one thing here that a test cannot make.
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(["convert", str(source), str(tmp_path / "converted")]) == 2
    message = capsys.readouterr().err
    assert "the conversion needs 16," in message and "bytes in" in message and "1,000,000 are available" in message
    assert not (tmp_path / "converted").exists()


class Interruption:
    """Progress that is interrupted, as by Ctrl-C, after some bytes."""

    def __init__(self, num_bytes):
        self.left = num_bytes

    def __call__(self, num_bytes):
        self.left -= num_bytes
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_conversion_continues_with_the_unfinished_shards(source, tmp_path):
    whole = run_of(source, tmp_path / "whole", max_shard_bytes=12_000)
    whole.run()
    total = sum(shard.num_bytes for shard in whole.writers[0].shards)
    assert len(whole.writers[0].shards) >= 4

    destination = tmp_path / "converted"
    with pytest.raises(KeyboardInterrupt):
        run_of(source, destination, max_shard_bytes=12_000).run(Interruption(total // 2))
    finished = {path.name: path.stat().st_mtime_ns for path in destination.glob("*.safetensors")}
    assert 0 < len(finished) < len(whole.writers[0].shards)
    assert not (destination / "config.json").exists()
    assert json.loads((destination / "convert_report.json").read_text())["complete"] is False
    # A process that is killed cannot clean up either.
    (destination / ".model-00009-of-00009.safetensors.1.partial").write_bytes(b"half a shard")

    second = run_of(source, destination, max_shard_bytes=12_000)
    assert second.num_bytes == total - sum(
        shard.num_bytes for shard in second.writers[0].shards if shard.file in finished
    )
    second.run()
    assert contents(destination) == contents(tmp_path / "whole")
    assert all((destination / name).stat().st_mtime_ns == time for name, time in finished.items())


def test_a_shard_that_was_changed_is_written_again(source, tmp_path):
    destination = tmp_path / "converted"
    run_of(source, destination, max_shard_bytes=12_000).run()
    expected = contents(destination)
    shard = sorted(destination.glob("*.safetensors"))[1]
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    again = run_of(source, destination, max_shard_bytes=12_000)
    assert [item.file for item in again.writers[0].unfinished] == [shard.name]
    again.run()
    assert contents(destination) == expected
    assert run_of(source, destination, max_shard_bytes=12_000).num_bytes == 0


def test_shards_of_another_source_or_dtype_are_not_kept(source, tmp_path):
    destination = tmp_path / "converted"
    run_of(source, destination).run()
    options = ConvertOptions(dtype=torch.bfloat16)
    assert ConversionRun(plan(source, options), destination, options).num_bytes > 0
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, source / "pytorch_model.bin")
    run = run_of(source, destination)
    assert run.num_bytes > 0
    run.run()
    converted = load_file(destination / "model.safetensors")
    assert torch.equal(converted["classifier.bias"], state["classifier.bias"] + 1)


def test_destinations_that_would_mix_files_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="is the source itself"):
        run_of(source, source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds thesis.txt and no conversion began there; choose an empty folder"):
        run_of(source, tmp_path / "full")
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        run_of(source, tmp_path / "full" / "thesis.txt")


def test_values_that_are_not_finite_are_refused(source, tmp_path):
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(state | {"classifier.bias": torch.full((6,), 1e30)}, source / "pytorch_model.bin")
    options = ConvertOptions(dtype=torch.float16)
    with pytest.raises(ValueError, match="classifier.bias has values too large for torch.float16; choose another"):
        ConversionRun(plan(source, options), tmp_path / "a", options).run()
    assert not list((tmp_path / "a").iterdir())
    torch.save(state | {"classifier.bias": torch.full((6,), torch.nan)}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="classifier.bias holds NaN or infinite values: the file is damaged"):
        run_of(source, tmp_path / "b").run()


def test_written_files_are_read_by_safetensors_itself(tmp_path):
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(2, 3).half(),
        "brain": torch.randn(5).bfloat16(),
        "transposed": torch.randn(4, 3).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "caf\u00e9": torch.ones(2, dtype=torch.bool),
    }
    planned = [PlannedTensor(name, TensorSpec.of(item), lambda item=item: item) for name, item in tensors.items()]
    digest = write_safetensors(tmp_path / "x.safetensors", planned)
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {name: t.dtype for name, t in tensors.items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_keep_the_order_and_the_limit():
    planned = [PlannedTensor(str(n), TensorSpec((n,), torch.uint8), lambda: None) for n in (3, 4, 5, 20, 1, 1)]
    shards = plan_shards(planned, max_shard_bytes=9)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [["3", "4"], ["5"], ["20"], ["1", "1"]]
    assert [shard.file for shard in shards] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert [shard.file for shard in plan_shards(planned)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\nText", "mit"),
        ("---\nlicense: other\nlicense_name: fair-nc\n---\n", "fair-nc"),
        ("---\ntags: [a]\n---\n", None),
        ("# No front matter\nlicense: mit\n", None),
        ("---\nlicense: [\n---\n", None),
    ],
)
def test_the_licence_that_a_card_states_is_read(card, licence, tmp_path):
    assert stated_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(card)
    assert stated_licence(tmp_path) == licence


def anonymous_megabytes():
    """Memory of this process that stands for no file."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) // 1024


def test_memory_is_bounded_by_a_tensor_not_by_the_file(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({f"layer{n}": torch.ones(10_000_000, dtype=torch.bfloat16) for n in range(6)}, path)
    before, after = anonymous_megabytes(), []
    checkpoint = open_file(path)
    planned = [
        PlannedTensor(name, spec, lambda name=name: checkpoint.read(name)) for name, spec in checkpoint.specs.items()
    ]
    writer = ShardWriter(tmp_path / "converted", plan_shards(planned, 50_000_000), "fingerprint")
    writer.write(lambda num_bytes: after.append(anonymous_megabytes()))
    assert max(after) - before < 60  # of 120 MB
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) == 3
