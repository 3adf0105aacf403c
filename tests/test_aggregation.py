"""The published conventions, on credits small enough to work out by hand."""

import math

import pytest

from tinywave.eval.aggregation import (
    SALMON_PARTS,
    aggregate_salmon,
    aggregate_sblimp,
    aggregate_storycloze,
    aggregate_swuggy,
    average_over_voices,
    rows_to_accuracy,
)
from tinywave.eval.statistics import bootstrap_mean_interval


def row(id_, voice, part, credit, **further):
    return {"id": id_, "voice": voice, "group": id_, "part": part, "credit": credit} | further


# "a" has three voices, "b" one, "c" two of which one ties.
SWUGGY = [
    row("a", "A", "1-5", 1.0),
    row("a", "B", "1-5", 1.0),
    row("a", "C", "1-5", 1.0),
    row("b", "A", "6-20", 0.0),
    row("c", "A", "oov", 0.5),
    row("c", "B", "oov", 0.0),
    row("d", "A", "6-20", 1.0),
    row("e", "A", "6-20", 0.0),
]


def test_voices_are_averaged_before_the_pairs():
    result = aggregate_swuggy(SWUGGY)
    # Items 1, 0, 1/4, 1, 0: their mean is 0.45, that of the eight rows 4.5 / 8 = 0.5625.
    assert result["accuracy"] == pytest.approx(0.45) and result["n"] == 5
    assert rows_to_accuracy(SWUGGY)["accuracy"] == 0.5625
    variance = sum((credit - 0.45) ** 2 for credit in (1, 0, 0.25, 1, 0)) / 4
    assert result["standard_error"] == pytest.approx(math.sqrt(variance / 5))
    assert result["ci95"] == bootstrap_mean_interval([1, 0, 0.25, 1, 0])


def test_in_vocabulary_is_the_weighted_mean_of_the_bands_other_than_oov():
    result = aggregate_swuggy(SWUGGY)
    bands = {part: (record["accuracy"], record["n"]) for part, record in result["accuracy_by_part"].items()}
    assert bands == {"1-5": (1.0, 1), "6-20": (pytest.approx(1 / 3), 3), "oov": (0.25, 1)}
    # (1 * 1 + 3 * 1/3) / 4 = 1/2; the plain mean of the two bands would be 2/3.
    assert result["in_vocab"]["accuracy"] == 0.5 and result["in_vocab"]["n"] == 4
    assert aggregate_swuggy([SWUGGY[4]])["in_vocab"] is None


def test_order_of_the_rows_does_not_matter():
    forth, back = aggregate_swuggy(SWUGGY), aggregate_swuggy(SWUGGY[::-1])
    assert forth["accuracy"] == pytest.approx(back["accuracy"])
    assert forth["standard_error"] == pytest.approx(back["standard_error"])


def test_one_id_of_two_types_of_sblimp_is_two_items():
    rows = [
        row("1", "A", "agreement", 1.0, subtype="verb"),
        row("1", "B", "agreement", 0.0, subtype="verb"),
        row("1", "A", "agreement", 1.0, subtype="noun"),
        row("1", "A", "island", 0.0, subtype="verb"),
        row("2", "A", "island", 0.5, subtype="verb"),
    ]
    result = aggregate_sblimp(rows)
    # Items 1/2, 1, 0, 1/2.
    assert result["accuracy"] == 0.5 and result["n"] == 4
    by_type = result["accuracy_by_part"]
    assert by_type["agreement"]["accuracy"] == 0.75 and by_type["agreement"]["n"] == 2
    assert by_type["island"]["accuracy"] == 0.25 and by_type["island"]["n"] == 2


def test_salmon_weighs_its_parts_equally():
    rows = [row(str(index), "-", "rir_consistency", float(index < 3)) for index in range(4)]
    rows += [row(str(index), "-", "speaker_consistency", float(index < 1)) for index in range(2)]
    result = aggregate_salmon(rows)
    # 3/4 and 1/2; over the six pairs it would be 4/6.
    assert result["accuracy"] == 0.625 and result["n"] == 6
    # s^2 / n: (3/4 * 1/4) / 3 = 1/16 and (1/2 * 1/2) / 1 = 1/4; the mean of two has half the root of their sum.
    assert result["standard_error"] == pytest.approx(math.sqrt(1 / 16 + 1 / 4) / 2)
    assert result["accuracy_by_part"]["speaker_consistency"]["accuracy"] == 0.5
    assert len(result["missing_parts"]) == 6 and "rir_consistency" not in result["missing_parts"]
    low, high = result["ci95"]
    assert 0 < low < 0.625 < high <= 1


def test_salmon_of_one_part_is_that_part():
    rows = [row(str(index), "-", SALMON_PARTS[0], float(index % 3 == 0)) for index in range(30)]
    result = aggregate_salmon(rows)
    part = result["accuracy_by_part"][SALMON_PARTS[0]]
    assert {name: result[name] for name in ("accuracy", "n", "ci95")} == {
        name: part[name] for name in ("accuracy", "n", "ci95")
    }
    assert result["standard_error"] == pytest.approx(part["standard_error"])


def test_a_tie_counts_half_in_a_story():
    rows = [{"id": str(i), "group": str(i), "credit": credit} for i, credit in enumerate((1.0, 0.5, 0.0, 0.5))]
    result = aggregate_storycloze(rows)
    assert result["accuracy"] == 0.5 and result["n"] == 4 and "accuracy_by_part" not in result


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", "A", "oov", 1.0), row("a", "A", "oov", 0.0)], "Item a has voice 'A' twice"),
        ([row("a", "A", "oov", 1.0), row("a", "B", "1-5", 0.0)], r"Item a has the parts \['1-5', 'oov'\]"),
        ([row("a", "A", "oov", 1.0), row("a", "B", "oov", 0.0, group="b")], r"Item a has the groups \['a', 'b'\]"),
    ],
)
def test_voices_that_contradict_each_other_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        average_over_voices(rows)


def test_rows_that_have_no_accuracy_are_refused():
    with pytest.raises(ValueError, match="needs pairs; found none"):
        aggregate_storycloze([])
    with pytest.raises(ValueError, match="NaN"):
        aggregate_swuggy([row("a", "A", "oov", float("nan"))])
    with pytest.raises(ValueError, match="SALMon has no part 'echo'; expected"):
        aggregate_salmon([row("a", "-", "echo", 1.0)])
