"""The whole loop on a few documents: every step runs, the report is complete, and a second run continues."""

import json

import pytest
import soundfile
import torch
import yaml

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.stages.parsing import load_recipe
from tinywave.training.model_card import read_licence

MODELS = ("teacher", "student", "no_distillation")


def shorten(name: str, folder, **training) -> str:
    recipe = load_recipe(name)
    recipe["training"] |= {"save_steps": 2, "logging_steps": 1, **training}
    path = folder / f"{name.split('/')[-1]}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    counts = {("story", "train"): 6, ("book", "train"): 2, ("story", "test"): 2, ("book", "test"): 1}
    recipe = load_recipe("nano/quickstart") | {
        "corpus": {
            "seed": 3,
            "documents": [
                {"domain": domain, "split": split, "count": count, "voices": "hibari"}
                for (domain, split), count in counts.items()
            ],
        },
        "correction": shorten("nano/correction", folder, max_steps=2, per_device_train_batch_size=2),
        "distillation": shorten("nano/distillation", folder, max_steps=3, per_device_train_batch_size=2),
        "suites": ["lexical"],
        "num_resynthesis_clips": 1,
        "num_continuations": 1,
        "generation": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20},
    }
    path = folder / "quickstart.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def output(recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    assert main(["quickstart", "--recipe", str(recipe_file), "--output-dir", str(folder)]) == 0
    return folder


def test_the_report_has_every_part_of_the_schema(output):
    report = json.loads((output / "report.json").read_text())
    assert report["teacher"]["parameters"] == 5_288_256
    assert report["student"]["parameters"] == 1_746_240
    assert report["student"]["parameters"] / report["teacher"]["parameters"] <= 0.34
    for name in MODELS:
        score = report["suites"]["lexical"][name]
        assert score["n"] >= 200 and score["ci95"][0] <= score["accuracy"] <= score["ci95"][1]
        assert report["perplexity"][name] > 1
    assert {"raw_mean", "above_chance_mean"} <= set(report["retention"])
    assert set(report["resynthesis_wer"]) == {"hibari_held_out", "kokoro_unseen_voices", "librivox"}
    assert len(report["samples"]) == 4
    assert all(soundfile.info(path).frames > 0 for path in report["samples"])
    assert {"speak", "distill student", "score"} <= set(report["seconds"])


def test_training_moved_the_parameters_and_kept_complete_repositories(output):
    shipped, corrected = (TinyWaveForCausalLM.from_pretrained(folder) for folder in (TEACHER, output / "teacher"))
    assert not torch.equal(shipped.model.layers[0].mlp.up_proj.weight, corrected.model.layers[0].mlp.up_proj.weight)
    students = [TinyWaveForCausalLM.from_pretrained(output / name) for name in MODELS[1:]]
    assert not torch.equal(students[0].lm_head.weight, students[1].lm_head.weight)
    for name in MODELS:
        files = {path.name for path in (output / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_tinywave.py"} <= files
        assert read_licence(output / name) == read_licence(TEACHER) == {"license": "apache-2.0"}


def test_the_report_page_plays_every_recording(output):
    page = (output / "report.html").read_text()
    assert page.count("<audio") == 4


def test_a_second_run_keeps_what_is_done(output, recipe_file, capsys):
    files = {name: (output / name / "model.safetensors").stat().st_mtime_ns for name in MODELS}
    (output / "report.json").unlink()
    assert main(["quickstart", "--recipe", str(recipe_file), "--output-dir", str(output)]) == 0
    assert files == {name: (output / name / "model.safetensors").stat().st_mtime_ns for name in MODELS}
    assert (output / "report.json").is_file()
    assert "Report:" in capsys.readouterr().out


def test_a_missing_recipe_is_one_clear_line(tmp_path, capsys):
    assert main(["quickstart", "--recipe", "nowhere", "--output-dir", str(tmp_path)]) == 2
    assert "no recipe 'nowhere': expected a YAML file" in capsys.readouterr().err
