"""Measurements of a codec as records: a value, its interval, and how many utterances it is of.

A record is {"value", "ci95", "n"}: the interval is a 95 % percentile bootstrap over utterances. What was not measured
is {"not_measured": reason}.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ..pitch_encoder_tinywave import Contour
from .statistics import bootstrap_sums, percentile_interval, ratio_interval

Moments = tuple[int, float, float, float]
"""Frames, and the sums of x^2, y^2 and x y over them, x and y without their means."""


def not_measured(reason: str) -> dict:
    """Return the record of something that was not measured."""
    return {"not_measured": reason}


def measured_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict:
    """Return the sum of the numerators over that of the denominators, with its interval, None for one group.

    Args:
        numerators: one an utterance.
        denominators (*optional*): one an utterance. Default: 1 each, which makes the value a mean.
        groups (*optional*): utterances of one group are resampled together. Default: each by itself.
        seed (`int`, default 0): of the bootstrap.
    """
    if denominators is None:
        denominators = np.ones(len(numerators))
    return {
        "value": float(np.sum(numerators) / np.sum(denominators)),
        "ci95": ratio_interval(numerators, denominators, groups, seed=seed),
        "n": len(numerators),
    }


def paired_moments(first: np.ndarray, second: np.ndarray) -> Moments:
    """Two series `(T,)` of one utterance -> their moments around their own means; zeros for empty ones."""
    if not len(first):
        return 0, 0.0, 0.0, 0.0
    first, second = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (first, second))
    return len(first), float(first @ first), float(second @ second), float(first @ second)


def relative_f0_moments(first: Contour, second: Contour) -> Moments:
    """F0 contours of one utterance -> moments of F0 / mean F0 over the frames that are voiced in both.

    Args:
        first, second: (F0 in Hz, voiced flag) at 200 Hz of the same utterance; the longer one is cut.
    """
    count = min(len(first[0]), len(second[0]))
    both = np.asarray(first[1][:count], dtype=bool) & np.asarray(second[1][:count], dtype=bool)
    relative = [np.asarray(f0[:count], dtype=np.float64)[both] for f0, _ in (first, second)]
    return paired_moments(*(f0 / f0.mean() if len(f0) else f0 for f0 in relative))


def measured_correlation(moments: Sequence[Moments], seed: int = 0) -> dict:
    """Return Pearson's correlation over the frames of all utterances, with its interval and "num_frames".

    Utterances without a common frame are left out of n; without any variation there is nothing to correlate.
    """
    moments = [row for row in moments if row[0]]
    sums = np.array(moments, dtype=np.float64).reshape(-1, 4).T[1:]
    if not sums.shape[1] or not sums.sum(axis=1)[:2].all():
        return not_measured("no frame is voiced in both, or F0 never changes")
    frames = sum(row[0] for row in moments)
    record = {"value": _correlation(sums.sum(axis=1)), "ci95": None, "n": len(moments), "num_frames": frames}
    resampled = bootstrap_sums(sums, seed=seed)
    if len(moments) > 1 and resampled[:2].all():
        record["ci95"] = percentile_interval(_correlation(resampled))
    return record


def _correlation(sums: np.ndarray) -> np.ndarray | float:
    """Return the correlation for the sums of x^2, y^2 and x y, `(3, ...)`."""
    value = sums[2] / np.sqrt(sums[0] * sums[1])
    return float(value) if np.ndim(value) == 0 else value


def style_accuracies(styles: Sequence[str], tokens: Sequence[Sequence[str]], seed: int = 0) -> dict:
    """How often the style of an utterance is named rightly, window by window and utterance by utterance.

    Args:
        styles: the true style of each utterance.
        tokens: the styles that were named in each, one a second.

    Returns:
        {"window": ..., "utterance": ...}, each {"overall": the mean over styles, name of a style: its own accuracy}.
        An utterance has the style of most of its windows, the earliest of equals.
    """
    windows = [(row.count(style), len(row)) for style, row in zip(styles, map(list, tokens), strict=True)]
    utterances = [(int(_most_frequent(row) == style), 1) for style, row in zip(styles, tokens, strict=True)]
    return {"window": _by_style(styles, windows, seed), "utterance": _by_style(styles, utterances, seed)}


def _most_frequent(tokens: Sequence[str]) -> str:
    return max(tokens, key=list(tokens).count)


def _by_style(styles: Sequence[str], counts: Sequence[tuple[int, int]], seed: int) -> dict[str, dict]:
    """Accuracy of each style from (right, all) of every utterance, and their mean."""
    names = sorted(set(styles))
    own = {name: [row for style, row in zip(styles, counts, strict=True) if style == name] for name in names}
    each = {name: measured_ratio(*zip(*rows, strict=True), seed=seed) for name, rows in own.items()}
    # Every style is resampled by itself, so that no resample lacks one.
    resampled = [bootstrap_sums(np.array(own[name]).T, seed=seed + index) for index, name in enumerate(names)]
    ci95 = percentile_interval(np.mean([right / total for right, total in resampled], axis=0))
    mean = float(np.mean([record["value"] for record in each.values()]))
    return {"overall": {"value": mean, "ci95": ci95, "n": len(styles)}} | each


def measured_agreement(pairs: Sequence[tuple[Sequence, Sequence]], seed: int = 0) -> dict:
    """Return the share of positions at which two sequences of an utterance agree; the longer one is cut."""
    lengths = [min(map(len, pair)) for pair in pairs]
    equal = [sum(a == b for a, b in zip(*pair, strict=False)) for pair in pairs]
    return measured_ratio(equal, lengths, seed=seed)


def is_measured(record: Mapping) -> bool:
    """Whether a record holds a value."""
    return "not_measured" not in record
