"""Confidence intervals, standard errors and paired tests for suite accuracies and perplexities.

Items that share a source (a word read in several styles, a pair of voices) form a group and are resampled together;
treating them as independent would make the intervals too narrow.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binomtest
from statsmodels.stats.multitest import multipletests

from .scoring import SequenceScore

CHANCE = 0.5
NUM_RESAMPLES = 10_000
_RESAMPLES_PER_CHUNK = 1_000


@dataclass(frozen=True)
class Retention:
    """Share of the teacher's accuracy that the student retains.

    Args:
        raw (`float` or `None`): student accuracy / teacher accuracy; `None` if the teacher's accuracy is 0. It is
            optimistic for two-way tasks, because guessing has an accuracy of 0.5.
        above_chance (`float` or `None`): (student - 0.5) / (teacher - 0.5); `None` if the teacher is at or below
            chance.
        raw_ci95, above_chance_ci95 (`list[float]`, *optional*): 95 % paired bootstrap intervals over groups.
    """

    raw: float | None
    above_chance: float | None
    raw_ci95: list[float] | None = None
    above_chance_ci95: list[float] | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Difference `first - second` on the same items, its 95 % interval and two-sided p-value."""

    difference: float
    ci95: list[float]
    p_value: float


def _group_sums(values: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Sum values `(rows, items)` within groups, to `(rows, groups)` in the order of first appearance."""
    if groups is None:
        return values
    if len(groups) != values.shape[1]:
        raise ValueError(f"Found {len(groups)} group labels for {values.shape[1]} items; expected one each.")
    index_of = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    indices = np.array([index_of[group] for group in groups])
    return np.stack([np.bincount(indices, weights=row, minlength=len(index_of)) for row in values])


def bootstrap_sums(
    values: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Resample groups with replacement and return the sum of each row of values over each resample.

    All rows use the same resamples, so that differences between rows are paired.

    Args:
        values (`np.ndarray` of shape `(rows, items)`): finite numbers.
        groups (`Sequence`, *optional*): group label of each item. Default: each item is a group of its own.
        num_resamples (`int`, *optional*): number of bootstrap resamples. Default: `NUM_RESAMPLES`.
        seed (`int`, defaults to 0): seed of the resampling.

    Returns:
        `np.ndarray` of shape `(rows, num_resamples)`.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values.shape[1] == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"Expected finite values of at least one item; found shape {values.shape} or NaN / inf in it."
        )
    sums = _group_sums(values, groups)
    generator = np.random.default_rng(seed)
    pieces = []
    for start in range(0, num_resamples, _RESAMPLES_PER_CHUNK):
        size = (min(_RESAMPLES_PER_CHUNK, num_resamples - start), sums.shape[1])
        indices = generator.integers(0, sums.shape[1], size=size)
        pieces.append(sums[:, indices].sum(axis=2))
    return np.concatenate(pieces, axis=1)


def percentile_interval(samples: np.ndarray, confidence: float = 0.95) -> list[float]:
    """Return the central interval `[low, high]` that holds the share `confidence` of bootstrap samples."""
    tail = 50.0 * (1.0 - confidence)
    return [float(bound) for bound in np.percentile(samples, [tail, 100.0 - tail])]


def bootstrap_mean_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[float]:
    """Return the percentile bootstrap interval `[low, high]` of the mean over items, resampling whole groups."""
    values = np.asarray(values, dtype=np.float64)
    rows = np.stack([values, np.ones_like(values)])
    totals, counts = bootstrap_sums(rows, groups, num_resamples=num_resamples, seed=seed)
    return percentile_interval(totals / counts, confidence)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> list[float] | None:
    """Return the percentile bootstrap interval `[low, high]` of a ratio of sums over groups.

    It is None for a single group, because all resamples of one group are equal and carry no information about the
    variation between groups.
    """
    if len(numerators) < 2 or (groups is not None and len(set(groups)) < 2):
        return None
    totals, counts = bootstrap_sums(np.array([numerators, denominators], dtype=np.float64), groups, seed=seed)
    return percentile_interval(totals / counts)


def accuracy_interval(
    credits: Sequence[float], groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95, seed: int = 0
) -> list[float]:
    """Return the interval `[low, high]` of an accuracy.

    It is the percentile bootstrap interval over groups. If every resample has the same accuracy, for example with one
    item or if all items are correct, the bootstrap interval has no width; the exact interval of a proportion (Clopper
    and Pearson 1934) is returned instead, with the number of groups as the number of independent trials.

    Args:
        credits: 1 for a correct item, 0 for a wrong one, 0.5 for a tie.
        groups (*optional*): group label of each item; items of one group are not independent. Default: all items are
            independent.
        confidence (`float`, defaults to 0.95): confidence level.
        seed (`int`, defaults to 0): seed of the bootstrap.
    """
    low, high = bootstrap_mean_interval(credits, groups, confidence=confidence, seed=seed)
    if low < high:
        return [low, high]
    trials = len(credits) if groups is None else len(set(groups))
    successes, tail = low * trials, (1 - confidence) / 2
    exact_low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    exact_high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return [exact_low, exact_high]


def standard_error(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> float | None:
    """Return the standard error of the mean, robust to correlation within groups.

    With one item per group it is the sample standard deviation / sqrt(n). For a single group it is `None`.
    """
    values = np.asarray(values, dtype=np.float64)
    residuals = _group_sums((values - values.mean())[None], groups)[0]
    if len(residuals) < 2:
        return None
    variance = (residuals**2).sum() * len(residuals) / (len(residuals) - 1)
    return float(np.sqrt(variance) / len(values))


def mcnemar_exact(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute the two-sided exact McNemar test of two models' credits on the same pairs (McNemar 1947).

    Pairs with different credits are discordant. Under the null hypothesis each model has the higher credit on a
    discordant pair with probability 1/2.

    Returns:
        `float`: p-value, 1.0 without discordant pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"Found {len(first)} and {len(second)} credits; a paired test needs the same pairs in both.")
    wins = sum(a > b for a, b in zip(first, second, strict=True))
    losses = sum(a < b for a, b in zip(first, second, strict=True))
    return float(binomtest(wins, wins + losses, CHANCE).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple tests, which control the family-wise error rate (Holm 1979, step-down).

    The order is that of `p_values`; the result of an empty sequence is empty.
    """
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def compare_accuracy(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compute the paired bootstrap of the difference of two models' accuracies, `first - second`, over groups.

    Args:
        first, second (`Sequence[float]`): credits of the two models on the same pairs, in the same order.
        groups (`Sequence`, *optional*): group label of each pair. Default: each pair is a group of its own.
        num_resamples (`int`, *optional*): number of bootstrap resamples. Default: `NUM_RESAMPLES`.
        seed (`int`, defaults to 0): seed of the resampling.

    Returns:
        [`PairedDifference`].

    Raises:
        ValueError: if the two models have different numbers of credits.
    """
    if len(first) != len(second):
        raise ValueError(f"Found {len(first)} and {len(second)} credits; a paired test needs the same pairs in both.")
    rows = np.array([first, second, np.ones(len(first))])
    resampled = bootstrap_sums(rows, groups, num_resamples=num_resamples, seed=seed)
    differences = (resampled[0] - resampled[1]) / resampled[2]
    difference = float((rows[0] - rows[1]).mean())
    return PairedDifference(difference, percentile_interval(differences), _two_sided_p_value(differences))


def compare_perplexity(
    first: Sequence[SequenceScore],
    second: Sequence[SequenceScore],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compute the paired bootstrap of the difference of token-weighted perplexities, `first - second`.

    Args:
        first, second (`Sequence[SequenceScore]`): scores of two models on the same utterances, in the same order.
        groups, num_resamples, seed: as in [`compare_accuracy`], for utterances in place of pairs.

    Returns:
        [`PairedDifference`].

    Raises:
        ValueError: if the two models scored different targets.
    """
    counts = [score.num_tokens for score in first]
    if counts != [score.num_tokens for score in second]:
        raise ValueError("The two models scored different targets; a paired test needs the same utterances in both.")
    rows = np.array([[-s.log_likelihood for s in first], [-s.log_likelihood for s in second], counts])
    resampled = bootstrap_sums(rows, groups, num_resamples=num_resamples, seed=seed)
    differences = np.exp(resampled[0] / resampled[2]) - np.exp(resampled[1] / resampled[2])
    totals = rows.sum(axis=1)
    difference = float(np.exp(totals[0] / totals[2]) - np.exp(totals[1] / totals[2]))
    return PairedDifference(difference, percentile_interval(differences), _two_sided_p_value(differences))


def _two_sided_p_value(differences: np.ndarray) -> float:
    """Return twice the smaller tail mass beyond 0; counts start at 1, so that a finite bootstrap never gives p = 0."""
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2.0 * (tail + 1) / (len(differences) + 1)))


def retention(student_accuracy: float, teacher_accuracy: float) -> Retention:
    """Return the raw and the chance-corrected ratio of a student's accuracy to its teacher's, without intervals.

    Args:
        student_accuracy, teacher_accuracy (`float`): accuracies from 0 to 1 on the same pairs; chance is 0.5.

    Returns:
        [`Retention`].
    """
    margin = teacher_accuracy - CHANCE
    above_chance = (student_accuracy - CHANCE) / margin if margin > 0 else None
    return Retention(student_accuracy / teacher_accuracy if teacher_accuracy else None, above_chance)


def mean_retention(
    student: Sequence[tuple[Sequence[float], Sequence[Hashable]]],
    teacher: Sequence[tuple[Sequence[float], Sequence[Hashable]]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Retention:
    """Return the retention of the mean accuracy over suites (a ratio of means), with paired bootstrap intervals.

    A ratio of means weights suites equally and stays defined if the teacher is near chance on one of them.

    Args:
        student, teacher (`Sequence` of `(credits, groups)`): one entry per suite, with the same pairs in the same
            order.
        num_resamples (`int`, *optional*): number of bootstrap resamples. Default: `NUM_RESAMPLES`.
        seed (`int`, defaults to 0): seed of the resampling.

    Returns:
        [`Retention`].

    Raises:
        ValueError: if student and teacher were scored on different pairs.
    """
    means, samples = [], []
    for (student_credits, groups), (teacher_credits, teacher_groups) in zip(student, teacher, strict=True):
        if list(groups) != list(teacher_groups):
            raise ValueError("Student and teacher were scored on different pairs; retention needs the same manifest.")
        rows = np.array([student_credits, teacher_credits, np.ones(len(student_credits))])
        resampled = bootstrap_sums(rows, groups, num_resamples=num_resamples, seed=seed + len(samples))
        samples.append(resampled[:2] / resampled[2])
        means.append(rows[:2].mean(axis=1))
    point = retention(*(float(mean) for mean in np.mean(means, axis=0)))
    student_means, teacher_means = np.mean(samples, axis=0)
    # Resamples in which the teacher is at chance, or has an accuracy of 0, have no ratio. They are rare
    # unless the point estimate has no ratio either.
    defined, is_right = teacher_means > CHANCE, teacher_means > 0
    raw_ci95 = None if point.raw is None else percentile_interval(student_means[is_right] / teacher_means[is_right])
    above_chance_ci95 = None
    if point.above_chance is not None and defined.any():
        ratios = (student_means[defined] - CHANCE) / (teacher_means[defined] - CHANCE)
        above_chance_ci95 = percentile_interval(ratios)
    return Retention(point.raw, point.above_chance, raw_ci95, above_chance_ci95)
