"""Results of a suite whose credits are set by hand, and the files that other programs read."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCardData

from tinywave.data.storage import write_json
from tinywave.eval.result_records import (
    PAIRS_SCHEMA,
    results_to_model_index,
    suite_to_results,
    write_hub_results,
    write_pairs,
)
from tinywave.eval.statistics import bootstrap_mean_interval
from tinywave.eval.suites import SuiteResult


def result_of(credits, suite="lexical", parts="aabb"):
    rows = [
        {
            "id": f"{suite}-{index}",
            "phenomenon": part,
            "group": f"word-{index // 2}",
            "voice": ("one", "two")[index % 2],
            "positive_log_likelihood": -3.0,
            "positive_num_tokens": 2,
            "negative_log_likelihood": -3.0 - (2 * credit - 1),
            "negative_num_tokens": 2,
            "credit": credit,
        }
        for index, (credit, part) in enumerate(zip(credits, parts, strict=True))
    ]
    convention = {"normalisation": "mean", "seed": 0}
    return SuiteResult(suite, sum(credits) / len(credits), len(credits), [0, 1], None, {}, {}, convention, rows)


def test_a_suite_and_its_parts_by_hand():
    results = suite_to_results(result_of([1, 1, 0.5, 0]), teacher=result_of([1, 0.5, 1, 1]))
    assert [(result["part"], result["n"], result["accuracy"]) for result in results] == [
        ("all", 4, 0.625),
        ("a", 2, 1.0),
        ("b", 2, 0.25),
    ]
    assert results[0]["raw_ratio"] == pytest.approx(0.625 / 0.875)
    assert results[0]["above_chance_ratio"] == pytest.approx(0.125 / 0.375)
    assert results[2]["raw_ratio"] == 0.25 and results[2]["above_chance_ratio"] == -0.5
    # Two groups with residual sums 0.75 and -0.75: sqrt((0.75^2 + 0.75^2) * 2 / 1) / 4.
    assert results[0]["standard_error"] == pytest.approx(0.375)
    assert results[1]["standard_error"] is None, "one word is no sample of words"
    assert results[0]["ci95"] == bootstrap_mean_interval([1, 1, 0.5, 0], ["0", "0", "1", "1"])


def test_a_teacher_at_chance_leaves_no_ratio_above_it():
    result = suite_to_results(result_of([1, 0, 1, 1], parts="aaaa"), teacher=result_of([1, 0, 1, 0], parts="aaaa"))[0]
    assert result["raw_ratio"] == 1.5 and result["above_chance_ratio"] is None
    never_right = suite_to_results(result_of([1, 0, 1, 1], parts="aaaa"), teacher=result_of([0] * 4, parts="aaaa"))[0]
    assert never_right["raw_ratio"] is None and never_right["above_chance_ratio"] is None
    assert "raw_ratio" not in suite_to_results(result_of([1, 0, 1, 1]))[0]


def test_voices_are_averaged_where_the_published_suite_has_several():
    results = {
        row["part"]: row
        for row in suite_to_results(result_of([1, 0, 1, 1], suite="swuggy", parts=["1-5"] * 2 + ["oov"] * 2))
    }
    assert results["all"]["n"] == 2 and results["all"]["accuracy"] == 0.75
    assert results["in_vocab"]["n"] == 1 and results["in_vocab"]["accuracy"] == 0.5
    assert results["oov"]["accuracy"] == 1.0
    # The plain mean is over four pairs; a word in two voices counts once here.
    assert suite_to_results(result_of([1, 0, 1, 1]))[0]["n"] == 4


def test_salmon_is_the_mean_of_its_parts():
    parts = ["speaker_consistency"] * 3 + ["rir_consistency"]
    whole = suite_to_results(result_of([1, 1, 1, 0], suite="salmon", parts=parts))[0]
    assert whole["accuracy"] == 0.5 and whole["n"] == 4


def test_pairs_of_all_suites_stand_in_one_file(tmp_path):
    results = [result_of([1, 0, 1, 0.5]), result_of([0, 0, 1, 1], suite="sblimp")]
    path = write_pairs(results, tmp_path / "pairs.parquet")
    table = pq.read_table(path)
    assert table.schema.equals(PAIRS_SCHEMA)
    rows = table.to_pylist()
    assert [row["suite"] for row in rows] == ["lexical"] * 4 + ["sblimp"] * 4
    for row in rows:
        difference = row["positive_sum"] / row["positive_count"] - row["negative_sum"] / row["negative_count"]
        assert row["credit"] == (0.5 if difference == 0 else float(difference > 0))


def test_the_hub_reads_what_is_written(tmp_path):
    results = suite_to_results(result_of([1, 1, 0.5, 0]))
    assert json.loads(write_json(results, tmp_path / "results.json").read_text()) == results
    card = ModelCardData(**results_to_model_index(results, "student"), model_name="student")
    metrics = {entry.dataset_config: entry.metric_value for entry in card.eval_results}
    assert metrics == {"all": 0.625, "a": 1.0, "b": 0.25}
    path = write_hub_results(results, "zerospeech/swuggy", tmp_path)
    assert path == tmp_path / ".eval_results" / "zerospeech_swuggy.yaml"
    entries = yaml.safe_load(path.read_text())
    assert entries[0]["dataset"] == {"id": "zerospeech/swuggy", "task_id": "lexical"} and entries[0]["value"] == 62.5
    assert entries[2]["dataset"]["task_id"] == "lexical_b" and "n = 2" in entries[2]["notes"]
