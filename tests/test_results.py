"""A whole evaluation of three real models, and the report made from it."""

import json
import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.interleaving import AlignedDocument
from tinywave.data.storage import write_json
from tinywave.eval.results import build_report
from tinywave.eval.results_table import report_to_markdown
from tinywave.eval.runner import evaluate_models
from tinywave.eval.suites import Pair

MODELS = ("teacher", "student", "no_distillation")


def make_suite(name, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Pair(f"{name}-{index}", name, "part", f"group-{index // 2}", *halves, "right", "wrong", "hibari/base", "abc")
        for index in range(12)
        if (halves := [tuple(torch.randint(500, (15,), generator=generator).tolist()) for _ in range(2)])
    ]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    models = {}
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        config = TinyWaveConfig.from_preset(
            "nano-student", num_hidden_layers=1, hidden_size=24, intermediate_size=32, initializer_range=0.3
        )
        models[name] = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(9)
    utterances = [torch.randint(500, (50,), generator=generator).tolist() for _ in range(6)]
    folder = tmp_path_factory.mktemp("rows")
    suites = {name: make_suite(name, seed) for seed, name in enumerate(("lexical", "story"))}
    evaluation = evaluate_models(models, suites, utterances, encoder="abc", progress=False)
    evaluation.write_rows(folder)
    return evaluation.to_record(), folder


@pytest.fixture
def report(evaluation):
    return build_report(
        evaluation[0],
        parameters={"teacher": 900, "student": 300, "no_distillation": 300},
        resynthesis_wer={"hibari": 0.08},
        samples=["samples/prompt.wav"],
        seconds={"distil": 12.5},
    )


def test_the_record_says_what_was_read_and_scored(evaluation):
    for record in evaluation[0]["perplexity"].values():
        assert record["num_utterances"] == 6 and record["vocabulary"] == "full"
        assert record["sequence"]["streams"] == record["sequence"]["scored_streams"] == ["unit"]


def test_models_of_different_streams_share_suites_and_documents():
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "initializer_range": 0.3}
    config = TinyWaveConfig.from_preset("nano-expressive-student", **small)
    expressive, base = LlamaForCausalLM(config), LlamaForCausalLM(config.with_streams(["unit"]))
    base.load_state_dict(expressive.state_dict())
    values = {"pitch": (7, 8, 8, 9, 9, 9, 7), "style": (2,)}
    prosody = {f"{half}_{name}": values[name] for half in ("positive", "negative") for name in values}
    suite = [replace(pair, **prosody, encoder="abc-d-e") for pair in make_suite("lexical", 0)]
    documents = [AlignedDocument([3, 3, 4, 5], ["a"], [0.0], pitch=[6, 6], style=[seed]) for seed in range(3)]
    models = {"teacher": expressive, "student": base}
    evaluation = evaluate_models(models, {"lexical": suite}, documents, encoder="abc-d-e", progress=False)
    evaluation = evaluation.to_record()
    perplexity = evaluation["perplexity"]
    # A document is one style token, one of pitch (its repeat is dropped) and three units.
    assert perplexity["teacher"]["num_tokens"] == 3 * 5 and perplexity["student"]["num_tokens"] == 3 * 3
    for record in perplexity.values():
        bits = record["num_tokens"] * math.log2(record["token_weighted"])
        assert record["bits_per_second"] == pytest.approx(bits / (3 * 4 / 25))
    comparison = evaluation["comparisons"]["teacher-student"]
    assert comparison["perplexity_difference"] is None and 0 <= comparison["mcnemar_p_value"]["lexical"] <= 1
    units_alone = evaluate_models({"teacher": expressive}, {}, documents, scored_streams=("unit",), progress=False)
    assert units_alone.to_record()["perplexity"]["teacher"]["num_tokens"] == 3 * 3


def test_report_holds_what_its_readers_expect(report):
    assert report["teacher"]["parameters"] == 900 and report["student"]["parameters"] == 300
    for suite in ("lexical", "story"):
        for model in MODELS:
            result = report["suites"][suite][model]
            assert 0 <= result["ci95"][0] <= result["accuracy"] <= result["ci95"][1] <= 1 and result["n"] == 12
    assert set(report["perplexity"]) == set(MODELS) and all(value > 1 for value in report["perplexity"].values())
    assert report["resynthesis_wer"] == {"hibari": 0.08} and report["samples"] == ["samples/prompt.wav"]
    assert report["seconds"] == {"distil": 12.5}


def test_retention_is_the_ratio_of_mean_accuracies(report):
    mean = {name: sum(suite[name]["accuracy"] for suite in report["suites"].values()) / 2 for name in MODELS}
    retention = report["retention"]
    assert retention["raw_mean"] == pytest.approx(mean["student"] / mean["teacher"])
    assert retention["no_distillation"]["raw_mean"] == pytest.approx(mean["no_distillation"] / mean["teacher"])
    expected = None
    if mean["teacher"] > 0.5:
        expected = pytest.approx((mean["student"] - 0.5) / (mean["teacher"] - 0.5))
    assert retention["above_chance_mean"] == expected


def test_models_are_compared_pairwise(report):
    assert set(report["comparisons"]) == {"teacher-student", "teacher-no_distillation", "student-no_distillation"}
    comparison = report["comparisons"]["student-no_distillation"]
    difference = report["perplexity"]["student"] - report["perplexity"]["no_distillation"]
    assert comparison["perplexity_difference"]["difference"] == pytest.approx(difference)
    raw, corrected = comparison["mcnemar_p_value"], comparison["mcnemar_p_value_holm"]
    assert set(raw) == set(corrected) == {"lexical", "story"}
    # Holm's method for two tests: the smaller p-value is doubled, the larger is at least that.
    smaller, larger = sorted(raw, key=raw.get)
    assert corrected[smaller] == pytest.approx(min(1, 2 * raw[smaller]))
    assert corrected[larger] == pytest.approx(max(raw[larger], corrected[smaller]))
    accuracy = {name: report["suites"]["story"][name]["accuracy"] for name in MODELS}
    difference = comparison["accuracy_difference"]["story"]
    assert difference["difference"] == pytest.approx(accuracy["student"] - accuracy["no_distillation"])
    assert difference["ci95"][0] <= difference["difference"] <= difference["ci95"][1]


def test_rows_agree_with_the_accuracy(evaluation, report):
    rows = pq.read_table(evaluation[1] / "story_student.parquet").to_pylist()
    accuracy = sum(row["positive_log_likelihood"] > row["negative_log_likelihood"] for row in rows) / len(rows)
    assert report["suites"]["story"]["student"]["accuracy_by_normalisation"]["sum"] == pytest.approx(accuracy)


def test_report_is_json_and_makes_the_table(report, tmp_path):
    path = write_json(report, tmp_path / "run" / "report.json")
    assert json.loads(path.read_text(encoding="utf-8")) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    assert "Lexical (n = 12)" in report_to_markdown(report)


def test_broken_record_leaves_the_old_file(tmp_path):
    path = write_json({"a": 1}, tmp_path / "report.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_report_without_a_model_raises(evaluation):
    with pytest.raises(ValueError, match=r"parameter counts of \['student'\]"):
        build_report(evaluation[0], parameters={"teacher": 9}, resynthesis_wer={}, samples=[], seconds={})
