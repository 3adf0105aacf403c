"""The benchmark of scoring: both ways decide alike, and the record adds up."""

import json

import pytest

from tinywave.benchmarks import scoring
from tinywave.benchmarks.scoring import BATCHED, ONE_BY_ONE, main


def test_both_ways_decide_alike_and_the_record_adds_up(tmp_path, capsys):
    main(
        ["--suites", "lexical", "speaker", "--num-pairs", "12", "--repeats", "1", "--output", str(tmp_path / "s.json")]
    )
    result = json.loads((tmp_path / "s.json").read_text())
    assert list(result["suites"]) == ["lexical", "speaker"]
    for record in result["suites"].values():
        assert record["num_pairs"] == 12 and record["batch_size"] == 16
        assert record["num_different_decisions"] == 0
        for clock in ("cpu", "wall"):
            plain, batched = (record[way][f"{clock}_seconds"] for way in (ONE_BY_ONE, BATCHED))
            assert record[f"{clock}_ratio"] == pytest.approx(plain / batched)
        assert record[BATCHED]["pairs_per_second"] == pytest.approx(12 / record[BATCHED]["wall_seconds"])
    assert capsys.readouterr().out.count("0 of 12 decisions differ") == 2


def test_medians_over_repeats():
    costs = {ONE_BY_ONE: [(6.0, 8.0), (9.0, 9.0), (8.0, 40.0)], BATCHED: [(2.0, 4.0), (3.0, 3.0), (4.0, 4.0)]}
    assert scoring._ratio(costs, 0) == 3.0 and scoring._ratio(costs, 1) == 3.0
    assert scoring._summarise(costs[ONE_BY_ONE], 18) == {
        "cpu_seconds": 8.0, "wall_seconds": 9.0, "pairs_per_second": 2.0,
    }  # fmt: skip
