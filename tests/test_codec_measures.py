"""Records of a codec's measurements, each against numbers computed by hand or by a second way."""

from collections import Counter

import numpy as np
import pytest

from tinywave.eval.codec_measures import (
    is_measured,
    measured_agreement,
    measured_correlation,
    measured_ratio,
    paired_moments,
    relative_f0_moments,
    style_accuracies,
)


def test_a_ratio_is_that_of_the_sums():
    record = measured_ratio([3, 1], [4, 16])
    assert record["value"] == pytest.approx(4 / 20) and record["n"] == 2
    # Resamples hold one utterance twice or both: 6 / 8, 2 / 32, 4 / 20.
    assert record["ci95"] == pytest.approx([1 / 16, 3 / 4])
    assert measured_ratio([0.5, 0.7, 0.9])["value"] == pytest.approx(0.7)


def test_utterances_of_one_group_are_resampled_together():
    alone, together = measured_ratio([0, 1] * 8), measured_ratio([0, 1] * 8, groups=[*[0] * 8, *[1] * 8])
    assert alone["ci95"][0] < 0.5 < alone["ci95"][1]
    assert together["ci95"] == [0.5, 0.5], "both groups have the same mean"
    assert measured_ratio([0, 1] * 8, groups=[0] * 16)["ci95"] is None


def test_moments_are_around_the_own_mean():
    assert paired_moments(np.array([1.0, 3.0]), np.array([10.0, 14.0])) == (2, 2.0, 8.0, 4.0)
    assert paired_moments(np.zeros(0), np.zeros(0)) == (0, 0.0, 0.0, 0.0)


def test_relative_f0_counts_frames_voiced_in_both_and_no_register():
    rng = np.random.default_rng(0)
    f0, voiced, other_voiced = rng.uniform(80, 120, 50), rng.random(50) < 0.7, rng.random(50) < 0.7
    moments = relative_f0_moments((f0, voiced), (2.5 * f0, other_voiced))
    assert moments[0] == (voiced & other_voiced).sum()
    assert moments[1] == pytest.approx(moments[2]) == pytest.approx(moments[3])
    assert measured_correlation([moments])["value"] == pytest.approx(1.0)
    changed = np.where(voiced & other_voiced, f0, 1e6)
    assert relative_f0_moments((changed, voiced), (f0, other_voiced))[1] == pytest.approx(moments[1])
    assert relative_f0_moments((f0, voiced), (f0[:30], other_voiced[:30]))[0] == (voiced & other_voiced)[:30].sum()
    assert relative_f0_moments((f0, voiced), (f0, ~voiced)) == (0, 0.0, 0.0, 0.0)


def test_the_correlation_is_that_of_all_frames_without_the_means_of_utterances():
    rng = np.random.default_rng(1)
    first = [rng.normal(size=count) for count in (30, 50, 20)]
    second = [row + rng.normal(size=len(row)) for row in first]
    moments = [
        paired_moments(x + 7 * index, y - index) for index, (x, y) in enumerate(zip(first, second, strict=True))
    ]
    record = measured_correlation([*moments, (0, 0.0, 0.0, 0.0)])
    centred = [np.concatenate([row - row.mean() for row in side]) for side in (first, second)]
    assert record["value"] == pytest.approx(np.corrcoef(*centred)[0, 1])
    assert (record["n"], record["num_frames"]) == (3, 100)
    assert record["ci95"][0] < record["value"] < record["ci95"][1]


def test_what_never_changes_has_no_correlation():
    flat = paired_moments(np.ones(5), np.arange(5.0))
    for moments in ([], [flat], [(0, 0.0, 0.0, 0.0)]):
        assert not is_measured(measured_correlation(moments))


def test_style_accuracy_by_hand():
    styles = ["sad", "sad", "happy"]
    tokens = [["sad", "sad", "base"], ["base", "happy"], ["happy", "base"]]
    record = style_accuracies(styles, tokens)
    assert record["window"]["sad"]["value"] == pytest.approx(2 / 5)
    assert record["window"]["happy"]["value"] == pytest.approx(1 / 2)
    assert record["window"]["overall"]["value"] == pytest.approx((2 / 5 + 1 / 2) / 2)
    # Of equals the earliest counts: the third utterance is "happy".
    assert record["utterance"]["sad"]["value"] == pytest.approx(1 / 2)
    assert record["utterance"]["overall"] == {"value": pytest.approx(3 / 4), "ci95": [0.5, 1.0], "n": 3}
    assert [Counter(row).most_common(1)[0][0] for row in tokens] == ["sad", "base", "happy"]


def test_agreement_compares_what_both_have():
    record = measured_agreement([(["a", "b", "c"], ["a", "c"]), (["a"], ["a"])])
    assert record["value"] == pytest.approx(2 / 3)
