"""Manifests and suite accuracies: files, validation, and answers worked out by hand."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.eval.scoring import ScoringError, UnitSequenceFormat, pair_credit, score_sequences
from tinywave.eval.statistics import bootstrap_mean_interval, standard_error
from tinywave.eval.suites import Pair, SuiteError, evaluate_suite, read_suite, write_suite


def make_pair(index, positive, negative, phenomenon="swap", group=None):
    return Pair(
        id=f"lexical-{index}",
        suite="lexical",
        phenomenon=phenomenon,
        group=group or f"word-{index}",
        positive_units=tuple(positive),
        negative_units=tuple(negative),
        positive_text="barn",
        negative_text="bˈɑɹl",
        voice="hibari/base",
        encoder="0123456789abcdef",
    )


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    return [
        make_pair(
            index,
            torch.randint(500, (10 + index,), generator=generator).tolist(),
            torch.randint(500, (14,), generator=generator).tolist(),
            phenomenon="swap" if index % 3 else "deletion",
            group=f"word-{index // 2}",
        )
        for index in range(20)
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset(
        "nano-student", num_hidden_layers=1, hidden_size=24, intermediate_size=32, initializer_range=0.4
    )
    return LlamaForCausalLM(config)


def test_round_trip(pairs, tmp_path):
    path = write_suite(pairs, tmp_path / "folder" / "lexical.parquet")
    assert read_suite(path) == pairs
    assert [file.name for file in path.parent.iterdir()] == ["lexical.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "lexical-1"}, r"Duplicate id 'lexical-1' \(2 times\)"),
        ({"negative_units": ()}, r"Pair 'lexical-0' has no negative half"),
        ({"positive_units": (3, -1)}, r"Pair 'lexical-0' has unit -1 in its positive half"),
        ({"voice": ""}, r"Pair 'lexical-0' has an empty voice"),
        ({"group": None}, r"Pair 'lexical-0' has an empty group"),
        ({"suite": "story"}, r"one suite; found \['lexical', 'story'\]"),
        ({"encoder": "other"}, r"one encoder; found \['0123456789abcdef', 'other'\]"),
    ],
)
def test_invalid_pairs_are_named(pairs, tmp_path, change, message):
    with pytest.raises(SuiteError, match=message):
        write_suite([replace(pairs[0], **change), *pairs[1:]], tmp_path / "suite.parquet")
    assert list(tmp_path.iterdir()) == []


def test_empty_suite_raises(tmp_path):
    with pytest.raises(SuiteError, match="no pairs"):
        write_suite([], tmp_path / "suite.parquet")


def test_missing_half_in_a_file_is_named(pairs, tmp_path):
    path = write_suite(pairs, tmp_path / "suite.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[4]["positive_units"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(SuiteError, match="Pair 'lexical-4' has no positive half"):
        read_suite(path)


def test_unreadable_files_raise(pairs, tmp_path):
    with pytest.raises(SuiteError, match="No suite manifest"):
        read_suite(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(SuiteError, match="not a readable parquet file"):
        read_suite(tmp_path / "text.parquet")
    path = write_suite(pairs, tmp_path / "suite.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["group", "voice"]), path)
    with pytest.raises(SuiteError, match=r"lacks the columns \['group', 'voice'\]"):
        read_suite(path)


def test_result_equals_scores_of_the_halves(model, pairs, tmp_path):
    result = evaluate_suite(model, write_suite(pairs, tmp_path / "suite.parquet"), batch_size=8)
    form = UnitSequenceFormat.from_config(model.config)
    credits = []
    for pair, row in zip(pairs, result.rows, strict=True):
        halves = [form.units_to_sequence(units) for units in (pair.positive_units, pair.negative_units)]
        positive, negative = (score_sequences(model, [half], scored_ids=form.scored_ids)[0] for half in halves)
        assert row["positive_log_likelihood"] == pytest.approx(positive.log_likelihood, abs=1e-4)
        assert row["negative_num_tokens"] == negative.num_tokens == len(halves[1]) - 2
        credits.append(pair_credit(positive, negative))
    groups = [pair.group for pair in pairs]
    assert result.credits == credits and 0 < sum(credits) < len(credits)
    assert result.accuracy == pytest.approx(sum(credits) / 20) and result.n == 20
    assert result.ci95 == bootstrap_mean_interval(credits, groups)
    assert result.standard_error == standard_error(credits, groups)
    deletions = [credit for pair, credit in zip(pairs, credits, strict=True) if pair.phenomenon == "deletion"]
    assert result.accuracy_by_phenomenon["deletion"] == pytest.approx(sum(deletions) / len(deletions))


def test_mean_and_sum_are_both_recorded(model):
    # The longer half has the better mean here and always the worse sum of nearly uniform probabilities.
    generator = torch.Generator().manual_seed(1)
    pairs = [
        make_pair(
            index,
            torch.randint(500, (40,), generator=generator).tolist(),
            torch.randint(500, (4,), generator=generator).tolist(),
        )
        for index in range(10)
    ]
    by_mean, by_sum = (evaluate_suite(model, pairs, normalisation=name) for name in ("mean", "sum"))
    assert by_mean.accuracy_by_normalisation == by_sum.accuracy_by_normalisation
    assert by_mean.accuracy == by_mean.accuracy_by_normalisation["mean"] > 0
    assert by_sum.accuracy == by_mean.accuracy_by_normalisation["sum"] == 0


def test_equal_halves_tie(model):
    result = evaluate_suite(model, [make_pair(0, [1, 2, 3], [1, 1, 2, 3, 3])])
    assert result.accuracy == 0.5
    raw = UnitSequenceFormat.from_config(model.config, deduplicate=False)
    assert evaluate_suite(model, [make_pair(0, [1, 2, 3], [1, 1, 2, 3, 3])], sequence_format=raw).accuracy != 0.5


def test_convention_is_recorded(model, pairs):
    convention = evaluate_suite(model, pairs, vocabulary="units", seed=5).convention
    assert convention["vocabulary"] == "units" and convention["seed"] == 5 and convention["tie"] == 0.5
    assert convention["sequence"]["bos"] and convention["sequence"]["marker"] and convention["sequence"]["deduplicate"]
    assert convention["sequence"]["prefix_ids"] == [1, 511]
    assert convention["normalisation"] == "mean" and convention["encoder"] == "0123456789abcdef"


def test_rows_are_written(model, pairs, tmp_path):
    result = evaluate_suite(model, pairs)
    assert pq.read_table(result.write_rows(tmp_path / "rows.parquet")).to_pylist() == result.rows
    assert "rows" not in result.to_record()


def test_units_of_another_encoder_raise(model, pairs):
    with pytest.raises(
        SuiteError, match="units of encoder '0123456789abcdef', the model was trained on units of 'feed'"
    ):
        evaluate_suite(model, pairs, encoder="feed")


def test_a_pair_that_cannot_be_scored_raises(model, pairs):
    # Without a prefix the first unit has no context: one unit leaves no target.
    form = UnitSequenceFormat.from_config(model.config, bos=False, marker=False)
    with pytest.raises(ScoringError, match="Sequence 41 of 1 ids holds no target"):
        evaluate_suite(model, [*pairs, make_pair(99, [1, 2], [3])], sequence_format=form)
