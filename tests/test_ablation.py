"""The ablation: its statistics by hand, and a small one from recipe to page on the shipped teacher."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tinywave.cli.ablate import RECIPE_KEYS, AblationRun
from tinywave.cli.main import VERBS, main
from tinywave.eval.ablation import ablation_to_markdown, build_ablation, mean_over_seeds, write_page
from tinywave.eval.results_table import END_MARKER, START_MARKER
from tinywave.eval.statistics import bootstrap_mean_interval
from tinywave.eval.suites import Pair, write_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.stages.parsing import load_recipe

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "assets" / "teacher"
PAGE = ROOT / "docs" / "ablation.md"


def record(credits, groups=None, log_likelihoods=(-20.0, -30.0), num_tokens=(10, 10)):
    groups = groups or [f"word-{index}" for index in range(len(credits))]
    accuracy = sum(credits) / len(credits)
    scores = {"n": len(credits), "accuracy": accuracy, "ci95": [0.0, 1.0], "credits": credits, "groups": groups}
    total = np.exp(-sum(log_likelihoods) / sum(num_tokens))
    perplexity = {"value": total, "log_likelihoods": list(log_likelihoods), "num_tokens": list(num_tokens)}
    return {"suites": {"lexical": scores}, "perplexity": perplexity}


def summary_of(ablation, run):
    return next(line for line in ablation["summary"] if line["run"] == run)


def test_means_are_over_seeds():
    runs = {"all": {0: record([1.0, 0.0]), 1: record([1.0, 1.0], log_likelihoods=(-10.0, -10.0))}}
    line = summary_of(build_ablation(runs, "all"), "all")
    assert line["suites"]["lexical"]["accuracy"] == line["mean_accuracy"]["accuracy"] == 0.75
    assert line["perplexity"]["value"] == pytest.approx((np.exp(2.5) + np.exp(1.0)) / 2)
    assert line["num_seeds"] == 2


def test_one_seed_gives_the_interval_of_the_suite():
    credits = np.random.default_rng(0).integers(0, 2, 40).astype(float).tolist()
    groups = [f"word-{index // 2}" for index in range(40)]
    line = summary_of(build_ablation({"all": {0: record(credits, groups)}}, "all"), "all")
    assert line["suites"]["lexical"]["ci95"] == bootstrap_mean_interval(credits, groups)


def test_seeds_that_differ_widen_the_interval():
    """Two seeds at 0 and 1 on every resample: half of the draws mix them, a quarter each take one alone."""
    values = np.stack([np.zeros(20_000), np.ones(20_000)])
    means, counts = np.unique(mean_over_seeds(values), return_counts=True)
    assert means.tolist() == [0.0, 0.5, 1.0]
    assert (counts / 20_000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_a_difference_is_paired():
    """Runs that differ on no pair but one: the spread of the pairs they share cancels."""
    credits = [1.0, 0.0] * 20
    better = [1.0, 1.0, *credits[2:]]
    runs = {"all": {seed: record(credits) for seed in range(3)}, "more": {seed: record(better) for seed in range(3)}}
    difference = summary_of(build_ablation(runs, "all"), "more")["difference"]
    assert difference["value"] == pytest.approx(1 / 40)
    assert difference["ci95"][0] == 0.0 and difference["ci95"][1] <= 0.1
    assert summary_of(build_ablation(runs, "all"), "all")["difference"] == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_runs_of_other_seeds_have_no_difference_and_other_pairs_are_refused():
    runs = {"all": {0: record([1.0])}, "teacher": {7: record([1.0])}}
    assert summary_of(build_ablation(runs, "all"), "teacher")["difference"] is None
    with pytest.raises(ValueError, match="'teacher' of seed 7 was scored on other suites"):
        build_ablation({**runs, "teacher": {7: record([1.0, 0.0])}}, "all")
    with pytest.raises(ValueError, match="'best' is none of the runs all, teacher"):
        build_ablation(runs, "best")


def test_a_page_without_markers_stays_as_it_was(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="results:start"):
        write_page(build_ablation({"all": {0: record([1.0])}}, "all"), page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


# ---- the verb ----


def random_units(generator, length):
    return generator.integers(0, 500, length).tolist()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Unit shards of random units and a suite of random pairs."""
    folder, generator = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    rows = [
        {
            "text": "the dog",
            "words": [{"word": word, "start": start} for word, start in (("the", 0.0), ("dog", 0.8))],
            "units": random_units(generator, 40),
            "split": split,
            "domain": "story",
        }
        for split in ["train"] * 6 + ["test"] * 3
    ]
    (folder / "units").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "units" / "shard-00000.parquet")
    pairs = [
        Pair(
            id=f"lexical-{index}",
            suite="lexical",
            phenomenon="swap",
            group=f"word-{index // 2}",
            positive_units=tuple(random_units(generator, 12)),
            negative_units=tuple(random_units(generator, 12)),
            positive_text="barn",
            negative_text="bˈɑɹl",
            voice="hibari/base",
            encoder="0123456789abcdef",
        )
        for index in range(6)
    ]
    (folder / "suites").mkdir()
    write_suite(pairs, folder / "suites" / "lexical.parquet")
    return folder


def write_recipe(path, **changes):
    steps = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 2}
    correction = load_recipe("nano/correction")
    correction["training"] |= steps
    path.with_name("correction.yaml").write_text(yaml.safe_dump(correction))
    recipe = load_recipe("ablation") | {
        "correction": str(path.with_name("correction.yaml")),
        "suites": ["lexical"],
        "seeds": [0, 1],
        "runs": {
            "scratch": {**load_recipe("ablation")["runs"]["scratch"]},
            "all": {},
            "uncorrected_teacher": {"corrected": False, "layer_map": [[9, 0], [10, 1]]},
        },
        **changes,
    }
    recipe["training"] = {**recipe["training"], **steps}
    path.write_text(yaml.safe_dump(recipe))
    return path


def ablate(material, recipe, output, *options):
    arguments = ["--units", str(material / "units"), "--suites", str(material / "suites")]
    return main(["ablate", str(recipe), *arguments, "--output-dir", str(output), *options])


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    recipe = write_recipe(folder / "recipe.yaml")
    shutil.copy(PAGE, folder / "page.md")
    assert ablate(material, recipe, folder / "out", "--page", str(folder / "page.md")) == 0
    return folder


def test_every_run_of_every_seed_has_a_row(finished):
    ablation = json.loads((finished / "out" / "ablation.json").read_text())
    seeds = {
        (run, seed) for run in ("scratch", "all", "uncorrected_teacher") for seed in (0, 1)
    } | {("teacher", 1)}  # fmt: skip
    assert {(row["run"], row["seed"]) for row in ablation["rows"]} == seeds
    assert {(row["run"], row["seed"]) for row in ablation["perplexity"]} == seeds
    assert {row["n"] for row in ablation["rows"]} == {6}
    assert set(ablation["rows"][0]) == {"run", "seed", "suite", "n", "accuracy", "ci95"}
    perplexities = [row["perplexity"] for row in ablation["perplexity"]]
    assert len(set(perplexities)) == len(perplexities), "every run and seed makes a model of its own"


def test_runs_do_what_their_names_say(finished):
    runs = finished / "out" / "runs"
    untrained, tokens = (
        TinyWaveForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (runs / "scratch" / "seed_0" / "untrained", finished / "out" / "corrected_teacher")
    )
    assert untrained.shape == tokens.shape and not np.allclose(untrained.detach(), tokens.detach(), atol=1e-2)
    depths = {
        run: TinyWaveForCausalLM.from_pretrained(runs / run / "seed_0").config.num_hidden_layers
        for run in ("scratch", "all", "uncorrected_teacher")
    }
    assert depths == {"scratch": 3, "all": 3, "uncorrected_teacher": 2}


def test_the_page_and_its_json_are_written(finished):
    shown = (finished / "page.md").read_text().split(START_MARKER)[1].split(END_MARKER)[0].strip()
    ablation = json.loads((finished / "ablation.json").read_text())
    assert shown == ablation_to_markdown(ablation)
    assert len(shown.splitlines()) == 2 + 4
    assert "| `all` | 2 | " in shown and "+0.0 [+0.0, +0.0]" in shown


def test_only_what_is_missing_runs_again_and_gives_the_same(finished, material, tmp_path):
    shutil.copytree(finished / "out", tmp_path / "out")
    scores = {path: path.read_text() for path in (tmp_path / "out" / "runs").rglob("seed_*.json")}
    assert len(scores) == 7
    missing = tmp_path / "out" / "runs" / "all" / "seed_1.json"
    missing.unlink()
    before = {path: path.stat().st_mtime_ns for path in scores if path != missing}
    assert ablate(material, finished / "recipe.yaml", tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert missing.read_text() == scores[missing]


def test_scores_of_other_settings_are_not_mixed_in(finished, material, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", runs={"all": {"training": {"temperature": 3.0}}})
    assert ablate(material, recipe, finished / "out") == 2
    message = capsys.readouterr().err
    assert "is of other settings" in message


def test_scores_of_another_teacher_are_not_mixed_in(finished, material, tmp_path, capsys):
    model = TinyWaveForCausalLM.from_pretrained(TEACHER)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    shutil.copytree(TEACHER, tmp_path / "teacher")
    model.save_pretrained(tmp_path / "teacher")
    options = ["--teacher", str(tmp_path / "teacher")]
    assert ablate(material, finished / "recipe.yaml", finished / "out", *options) == 2
    assert "of another teacher" in capsys.readouterr().err


def test_suites_of_another_codec_than_the_units_are_refused(material, tmp_path, capsys):
    units = pq.read_table(material / "units" / "shard-00000.parquet")
    units = units.append_column("encoder", pa.array(["fedcba9876543210"] * len(units)))
    (tmp_path / "units").mkdir()
    pq.write_table(units, tmp_path / "units" / "shard-00000.parquet")
    (tmp_path / "suites").symlink_to(material / "suites")
    assert ablate(tmp_path, write_recipe(tmp_path / "recipe.yaml"), tmp_path / "out") == 2
    assert "of encoder '0123456789abcdef'; the model was trained on speech of 'fed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": {"all": {"steps": 3}}}, "runs.all.steps is unknown"),
        ({"runs": {"all": {"training": {"temprature": 2.0}}}}, "trains with temprature"),
        ({"runs": {"all": {"training": {"temperature": -1.0}}}}, "`temperature` must be a positive number"),
        ({"runs": {"all": {"layer_map": [[0, 0], [1, 0]]}}}, "appear more than once"),
        ({"reference": "best"}, "found the reference 'best'"),
        ({"suites": ["missing"]}, "suites.0 is 'missing'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_trained(material, tmp_path, capsys, changes, message):
    recipe = write_recipe(tmp_path / "recipe.yaml", **changes)
    assert ablate(material, recipe, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- the packaged recipe and the page ----


def test_the_packaged_recipe_is_complete():
    recipe = load_recipe("ablation")
    assert set(recipe) == set(RECIPE_KEYS)
    assert recipe["reference"] in recipe["runs"] and len(recipe["seeds"]) == 3
    section = PAGE.read_text(encoding="utf-8").split("## The runs")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_]+)`", section))
    assert named == {*recipe["runs"], "teacher"}
    assert all(AblationRun.from_recipe(name, settings) for name, settings in recipe["runs"].items())


def test_the_page_shows_its_results_and_names_things_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split(START_MARKER)[1].split(END_MARKER)[0].strip()
    results = PAGE.with_name("ablation.json")
    expected = ablation_to_markdown(json.loads(results.read_text())) if results.is_file() else "*(not measured yet)*"
    assert shown == expected
    assert set(re.findall(r"tinywave ([a-z]+(?:-[a-z]+)*)", text)) <= set(VERBS)
    targets = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []
