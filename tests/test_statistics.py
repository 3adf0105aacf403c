"""Intervals and tests against scipy and against numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from tinywave.eval.scoring import SequenceScore
from tinywave.eval.statistics import (
    accuracy_interval,
    bootstrap_mean_interval,
    bootstrap_sums,
    compare_accuracy,
    compare_perplexity,
    holm,
    mcnemar_exact,
    mean_retention,
    ratio_interval,
    retention,
    standard_error,
)


@pytest.fixture
def credits():
    return (np.random.default_rng(1).random(200) < 0.7).astype(float)


def test_interval_agrees_with_scipy(credits):
    ours = bootstrap_mean_interval(credits)
    reference = stats.bootstrap((credits,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    assert ours == pytest.approx(list(reference.confidence_interval), abs=0.006)


def test_interval_is_fixed_by_the_seed(credits):
    values = credits + np.random.default_rng(0).random(200)
    assert bootstrap_mean_interval(values, seed=3) == bootstrap_mean_interval(values, seed=3)
    assert bootstrap_mean_interval(values, seed=3) != bootstrap_mean_interval(values, seed=4)


def test_repeating_items_within_groups_adds_no_certainty(credits):
    repeated, groups = np.repeat(credits, 4), np.repeat(np.arange(200), 4)
    assert bootstrap_mean_interval(repeated, groups) == pytest.approx(bootstrap_mean_interval(credits))
    assert standard_error(repeated, groups) == pytest.approx(standard_error(credits))
    assert standard_error(repeated) == pytest.approx(standard_error(credits) / 2, rel=0.01)


def test_standard_error_agrees_with_scipy(credits):
    assert standard_error(credits) == pytest.approx(stats.sem(credits))


def test_standard_error_of_groups_by_hand():
    # Mean 0.5; residual sums of the groups 1.0 and -1.0; sqrt((1 + 1) * 2 / 1) / 4.
    assert standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert standard_error([1, 0], ["a", "a"]) is None


def test_rows_share_their_resamples():
    first, second = bootstrap_sums(np.array([[1.0, 2.0, 5.0], [10.0, 20.0, 50.0]]), num_resamples=50)
    assert np.allclose(second, 10 * first)
    assert len(set(first)) > 5


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_bad_values_raise(values):
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_mean_interval(values)


def test_wrong_number_of_groups_raises():
    with pytest.raises(ValueError, match="2 group labels for 3 items"):
        standard_error([1, 0, 1], ["a", "b"])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling: 0.03, 0.04, 0.04.
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_difference_of_accuracies_is_paired(credits):
    rng = np.random.default_rng(5)
    worse = np.where(rng.random(200) < 0.1, 0.0, credits)
    result = compare_accuracy(credits, worse)
    assert result.difference == pytest.approx((credits - worse).mean())
    reference = stats.bootstrap((credits - worse,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    assert result.ci95 == pytest.approx(list(reference.confidence_interval), abs=0.006)
    assert result.p_value < 0.01 and compare_accuracy(credits, credits).p_value == 1.0
    # Credits that move together say more than two independent samples would.
    independent = standard_error(credits) ** 2 + standard_error(worse) ** 2
    assert result.ci95[1] - result.ci95[0] < 0.7 * 2 * 1.96 * independent**0.5
    with pytest.raises(ValueError, match="Found 200 and 199 credits"):
        compare_accuracy(credits, worse[:-1])


def test_mcnemar_by_hand():
    # 5 wins and 1 loss: 2 * (1 + 6) / 2 ** 6. Agreements and ties of both say nothing.
    first = [1, 1, 1, 1, 0.5, 0, 1, 0, 0.5]
    second = [0, 0, 0, 0.5, 0, 1, 1, 0, 0.5]
    assert mcnemar_exact(first, second) == pytest.approx(14 / 64)
    assert mcnemar_exact(second, first) == pytest.approx(14 / 64)
    assert mcnemar_exact(first, first) == 1.0
    with pytest.raises(ValueError, match="9 and 8 credits"):
        mcnemar_exact(first, second[:-1])


def utterance_scores(losses, counts):
    return [SequenceScore(-loss * count, count) for loss, count in zip(losses, counts, strict=True)]


def test_paired_perplexity_difference():
    generator = np.random.default_rng(0)
    counts = generator.integers(50, 200, 100).tolist()
    # Utterances differ far more than the models do: only a paired test sees the difference.
    losses = generator.normal(2.0, 0.5, 100)
    better = utterance_scores(losses - 0.02 + generator.normal(0, 0.02, 100), counts)
    worse = utterance_scores(losses, counts)
    result = compare_perplexity(better, worse)
    expected = [math.exp(-sum(s.log_likelihood for s in scores) / sum(counts)) for scores in (better, worse)]
    assert result.difference == pytest.approx(expected[0] - expected[1])
    assert result.ci95[0] < result.difference < result.ci95[1] < 0
    assert result.p_value < 0.001
    unpaired = stats.ttest_ind([s.mean_log_likelihood for s in better], [s.mean_log_likelihood for s in worse])
    assert unpaired.pvalue > 0.05


def test_paired_perplexity_without_difference():
    generator = np.random.default_rng(0)
    first, second = (utterance_scores(generator.normal(2.0, 0.1, 60), [100] * 60) for _ in range(2))
    result = compare_perplexity(first, second)
    assert result.ci95[0] < 0 < result.ci95[1]
    assert 0.05 < result.p_value <= 1.0
    assert compare_perplexity(first, first).p_value == 1.0


def test_paired_perplexity_of_other_utterances_raises():
    with pytest.raises(ValueError, match="different targets"):
        compare_perplexity(utterance_scores([2.0], [10]), utterance_scores([2.0], [11]))


def test_retention_of_the_published_student():
    # arXiv 2506.23670, sStoryCloze and tStoryCloze: 55.3 of 60.3, 74.8 of 82.1.
    spoken, written = retention(0.553, 0.603), retention(0.748, 0.821)
    assert (spoken.raw, spoken.above_chance) == (pytest.approx(0.917, abs=5e-4), pytest.approx(0.515, abs=5e-4))
    assert (written.raw, written.above_chance) == (pytest.approx(0.911, abs=5e-4), pytest.approx(0.773, abs=5e-4))
    assert retention(0.48, 0.50).above_chance is None


def test_mean_retention_is_a_ratio_of_means():
    teacher = [([1, 1, 1, 0, 1] * 40, list(range(200))), ([1, 1, 0, 1, 0] * 40, list(range(200)))]
    student = [([1, 1, 1, 0, 0] * 40, list(range(200))), ([1, 1, 0, 1, 0] * 40, list(range(200)))]
    result = mean_retention(student, teacher)
    assert result.raw == pytest.approx(0.6 / 0.7)
    assert result.above_chance == pytest.approx(0.1 / 0.2)
    assert result.raw_ci95[0] < result.raw < result.raw_ci95[1]
    assert result.above_chance_ci95[0] < 0.5 < result.above_chance_ci95[1]
    identical = mean_retention(teacher, teacher)
    assert identical.raw_ci95 == [1.0, 1.0] and identical.above_chance_ci95 == [1.0, 1.0]


def test_mean_retention_of_other_pairs_raises():
    with pytest.raises(ValueError, match="different pairs"):
        mean_retention([([1, 0], ["a", "b"])], [([1, 0], ["a", "c"])])


@pytest.mark.parametrize("n", [1, 2, 5, 50])
@pytest.mark.parametrize("share", [0, 1])
def test_an_accuracy_without_variation_has_the_exact_interval(n, share):
    low, high = accuracy_interval([float(share)] * n)
    expected = binomtest(n * share, n).proportion_ci(confidence_level=0.95, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert high - low > 0.05


def test_items_of_one_group_are_one_trial():
    assert accuracy_interval([1.0] * 40, ["word"] * 40) == pytest.approx([0.025, 1.0])
    assert accuracy_interval([0.5]) == pytest.approx(accuracy_interval([0.5, 0.5], [0, 0]))
    low, high = accuracy_interval([0.5])
    assert low < 0.05 and high > 0.95


def test_an_accuracy_with_variation_keeps_the_bootstrap():
    credits = [1.0, 0.0, 1.0, 1.0, 0.5]
    assert accuracy_interval(credits, seed=3) == bootstrap_mean_interval(credits, seed=3)


def test_a_ratio_is_resampled_by_groups_and_one_group_has_no_interval():
    edits, words, groups = [0, 1, 4, 0, 2, 1], [5, 4, 9, 6, 3, 8], [0, 0, 1, 1, 2, 2]
    low, high = ratio_interval(edits, words, groups, seed=1)
    assert low < sum(edits) / sum(words) < high
    # scipy resamples the sums of groups, which are independent.
    sums = [np.bincount(groups, weights=values) for values in (edits, words)]
    expected = stats.bootstrap(
        sums, lambda above, below, axis: above.sum(axis) / below.sum(axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(expected, abs=0.03)
    assert ratio_interval([1], [3]) is None
    assert ratio_interval([1, 2], [3, 4], ["a", "a"]) is None
