"""Measures of units, each against numbers computed by hand or by an obvious slow way."""

import itertools
import math

import numpy as np
import pytest

from tinywave.eval.codec_quality import (
    NO_PHONE,
    count_equal_frames,
    frame_accuracy,
    timed_phones_to_frames,
    unit_edit_distance,
    unit_purity,
)


def test_frame_accuracy_counts_frames_of_all_utterances_and_drops_a_missing_last_one():
    assert frame_accuracy([[1, 2, 3], [5]], [[1, 9, 3, 4], [5]]) == pytest.approx(3 / 4)
    assert count_equal_frames([[1, 2, 3], [5]], [[1, 9, 3, 4], [5]]) == [(2, 3), (1, 1)]
    assert frame_accuracy([[7, 7]], [[7, 7]]) == 1.0


def test_utterances_that_do_not_correspond_are_refused():
    with pytest.raises(ValueError, match="units of 1 utterances and reference units of 2"):
        frame_accuracy([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="utterance 1 has 1 units and 4 reference units"):
        frame_accuracy([[1], [1]], [[1], [1, 2, 3, 4]])
    with pytest.raises(ValueError, match="no frame"):
        frame_accuracy([[]], [[1]])
    with pytest.raises(ValueError, match="utterance 0 has 5 units and 1 phone labels"):
        unit_purity([[1] * 5], [["a"]])


def test_frames_take_the_phone_of_their_middle():
    phones = [
        {"phone": "h", "start": 0.10, "end": 0.16},
        {"phone": "i", "start": 0.16, "end": 0.20},
        {"phone": "t", "start": 0.26, "end": 0.40},
    ]
    # Middles at 0.02, 0.06, ... seconds.
    expected = [NO_PHONE] * 2 + ["h", "h", "i", NO_PHONE, "t", "t", "t", "t", NO_PHONE]
    assert timed_phones_to_frames(phones, 11, lead_seconds=0.0) == expected
    assert timed_phones_to_frames(phones, 10, lead_seconds=0.04) == expected[1:]
    assert timed_phones_to_frames([], 2) == [NO_PHONE] * 2


def test_units_that_determine_the_phone_have_pnmi_1_and_constant_ones_0():
    phones = [["a", "a", "b", "c"]]
    purity = unit_purity([[4, 9, 2, 3]], phones)
    assert (purity.pnmi, purity.phone_purity, purity.num_frames) == (pytest.approx(1.0), 1.0, 4)
    purity = unit_purity([[7, 7, 7, 7]], phones)
    assert (purity.pnmi, purity.phone_purity, purity.unit_purity) == (pytest.approx(0.0), 0.5, 1.0)


def test_purity_by_hand():
    # Unit 0: a a b, unit 1: b; of the phones, a is always unit 0 and b half the time.
    purity = unit_purity([[0, 0], [0, 1]], [["a", "a"], ["b", "b"]])
    information = 1 / 2 * math.log((1 / 2) / (1 / 2 * 3 / 4))
    information += 1 / 4 * math.log((1 / 4) / (1 / 2 * 3 / 4)) + 1 / 4 * math.log((1 / 4) / (1 / 2 * 1 / 4))
    assert purity.pnmi == pytest.approx(information / math.log(2))
    assert purity.phone_purity == pytest.approx(3 / 4)
    assert purity.unit_purity == pytest.approx(3 / 4)


def test_purity_does_not_depend_on_the_names_of_units():
    rng = np.random.default_rng(0)
    units, names = rng.integers(0, 20, 300), rng.permutation(500)
    phones = [str(unit // 3 + rng.integers(2)) for unit in units]
    purity, renamed = unit_purity([units], [phones]), unit_purity([names[units]], [phones])
    assert purity.pnmi == pytest.approx(renamed.pnmi)
    assert (purity.phone_purity, purity.unit_purity) == (renamed.phone_purity, renamed.unit_purity)


def test_one_phone_alone_has_no_purity():
    with pytest.raises(ValueError, match="at least two"):
        unit_purity([[1, 2]], [["a", "a"]])


def edits(first, second):
    """The definition of Levenshtein, without memory."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        edits(first[1:], second) + 1,
        edits(first, second[1:]) + 1,
        edits(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_edit_distance_is_levenshtein_over_the_longer_sequence():
    sequences = [list(units) for length in (1, 2, 4) for units in itertools.permutations(range(4), length)]
    for first, second in itertools.product(sequences[::3], sequences[1::5]):
        expected = edits(first, second) / max(len(first), len(second))
        assert unit_edit_distance(first, second) == pytest.approx(expected)


def test_edit_distance_ignores_durations():
    assert unit_edit_distance([1, 1, 2, 3, 3], [1, 2, 2, 2, 3]) == 0.0
    assert unit_edit_distance([1, 1, 2, 2], [1, 3, 2]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="without units"):
        unit_edit_distance([], [1])
