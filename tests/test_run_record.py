"""Repeated commands: a finished run is left alone, an unfinished one is completed, another one is refused."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER
from tinywave.eval.suites import read_suite
from tinywave.training.run_record import RUN_FILE, RunRecord


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Shards of the units of twelve spoken sentences."""
    folder = tmp_path_factory.mktemp("units")
    pairs = read_suite(TEACHER.parent / "suites" / "syntactic.parquet")[:12]
    rows = [
        {"split": split, "domain": "story", "text": "", "words": [], "units": list(pair.positive_units)}
        for pair, split in zip(pairs, ["train"] * 10 + ["validation"] * 2, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet")
    return folder


RECIPES = {
    "distill": {"layer_map": [[0, 0], [10, 1]], "streams": ["unit"]},
    "correct": {"streams": ["unit"]},
}


def run(verb, folder, units, output="run", **training):
    settings = dict(max_steps=2, per_device_train_batch_size=2, use_cpu=True, save_steps=1, report_to="none",
                    disable_tqdm=True, lr_scheduler_type="constant")  # fmt: skip
    recipe = RECIPES[verb] | {"mixture": "speech", "max_length": 64, "seed": 2, "training": settings | training}
    path = folder / f"{verb}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return main([verb, str(path), "--units", str(units), "--output-dir", str(folder / output)])


def artefacts(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("verb", RECIPES)
def test_a_repeated_command_changes_nothing_and_completes_what_is_missing(verb, units, tmp_path, capsys):
    assert run(verb, tmp_path, units) == 0
    expected = artefacts(tmp_path / "run")
    assert {"model.safetensors", "README.md", RUN_FILE} <= expected.keys()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(verb, tmp_path, units) == 0
    assert "contains the finished run of these settings" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == times
    # What a process leaves that is killed while it saves the final model: the checkpoints, and half a file.
    os.truncate(tmp_path / "run" / "model.safetensors", 1000)
    (tmp_path / "run" / "README.md").unlink()
    assert run(verb, tmp_path, units) == 0
    assert artefacts(tmp_path / "run") == expected


def test_another_run_in_the_folder_is_refused_by_the_name_of_the_difference(units, tmp_path, capsys):
    assert run("distill", tmp_path, units) == 0
    before = artefacts(tmp_path / "run")
    assert run("distill", tmp_path, units, learning_rate=0.5) == 2
    assert "another settings.recipe.training.learning_rate: nothing, not 0.5" in capsys.readouterr().err
    assert run("distill", tmp_path, units, max_steps=1) == 2
    assert "another settings.recipe.training.max_steps: 2, not 1" in capsys.readouterr().err
    assert run("correct", tmp_path, units) == 2
    assert "another stage: distill, not correct" in capsys.readouterr().err
    other = tmp_path / "other_units"
    other.mkdir()
    pq.write_table(pq.read_table(units / "shard-00000.parquet").slice(2), other / "shard-00000.parquet")
    assert run("distill", tmp_path, other) == 2
    assert "another inputs.units" in capsys.readouterr().err
    assert artefacts(tmp_path / "run") == before


def test_a_command_killed_before_its_first_step_is_completed(units, tmp_path):
    """Such a process leaves `run.json`."""
    assert run("distill", tmp_path, units) == 0
    expected = artefacts(tmp_path / "run")
    record = json.loads(expected[RUN_FILE])
    del record["files"]
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(record))
    assert run("distill", tmp_path, units) == 0
    assert artefacts(tmp_path / "run") == expected


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checkpoint-7"])
def test_a_folder_with_a_model_of_unknown_origin_is_refused(name, units, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"of somebody")
    assert run("distill", tmp_path, units) == 2
    assert f"contains {name} and no run.json" in capsys.readouterr().err
    assert artefacts(tmp_path / "run") == {name: b"of somebody"}


def test_a_finished_run_goes_on_with_more_steps(units, tmp_path):
    assert run("distill", tmp_path, units) == 0
    assert run("distill", tmp_path, units, max_steps=3) == 0
    assert run("distill", tmp_path, units, "whole", max_steps=3) == 0
    found, expected = artefacts(tmp_path / "run"), artefacts(tmp_path / "whole")
    assert found["model.safetensors"] == expected["model.safetensors"]


@pytest.mark.parametrize("content", ["", "[1]", '{"settings": '])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(ValueError, match=f"{RUN_FILE}.*choose another output folder"):
        RunRecord(tmp_path, "train", {}, {})


def test_a_missing_input_is_named_before_the_folder_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        RunRecord(tmp_path / "run", "train", {}, {"units": tmp_path / "nowhere"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", RECIPES)
def test_a_command_that_was_refused_can_be_corrected(verb, units, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "shard-00000.parquet").write_bytes(b"no parquet")
    assert run(verb, tmp_path, wrong) == 2
    assert "shard-00000.parquet" in capsys.readouterr().err.splitlines()[-1]
    assert run(verb, tmp_path, units) == 0
    assert run(verb, tmp_path, wrong) == 2
    assert "belongs to a run with another inputs.units" in capsys.readouterr().err.splitlines()[-1]


def test_a_record_that_is_nested_too_deeply_is_refused_by_name(tmp_path):
    (tmp_path / RUN_FILE).write_text("[" * 100_000)
    with pytest.raises(ValueError, match="run.json is not JSON: it is nested too deeply; choose another"):
        RunRecord(tmp_path, "train", {}, {})
