"""The published conventions of suites of minimal pairs: from the credit of every pair to accuracies with intervals.

| suite | what the accuracy is the mean of | also |
|---|---|---|
| sWUGGY | word / pseudo-word pairs, voices averaged first | by frequency band, and in the vocabulary |
| sBLIMP | (type, subtype, id), voices averaged first | by type |
| SALMon | parts, each of them the mean of its pairs | by part |
| sStoryCloze, tStoryCloze | stories | - |

sWUGGY and sBLIMP are those of the ZeroSpeech 2021 challenge (arXiv 2011.11588), SALMon is arXiv 2409.07437, the
stories are arXiv 2305.13009.

A row is a dict with "credit" (1, 0.5 or 0), "id", "voice", "group" (what resampling keeps together) and "part"
(frequency band, type of grammatical rule, part of SALMon); a row of sBLIMP has "subtype" as well. An accuracy is a
dict with "accuracy", "n" (items that the mean is over), "standard_error" (robust to correlation within groups, None
for a single group) and "ci95" (`[low, high]`, percentile bootstrap over groups).
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .statistics import accuracy_interval, bootstrap_sums, percentile_interval, standard_error

OUT_OF_VOCABULARY = "oov"
"""Part of the sWUGGY pairs whose word does not occur in LibriSpeech; the other parts are bands of its frequency."""

SALMON_PARTS = (
    "bg_alignment",
    "bg_all_consistency",
    "bg_domain_consistency",
    "gender_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "sentiment_consistency",
    "speaker_consistency",
)
"""Folders of the SALMon release."""


def rows_to_accuracy(rows: Sequence[dict], seed: int = 0) -> dict:
    """The mean credit of some rows.

    Raises:
        ValueError: no rows, or a credit that is NaN or infinite.
    """
    if not rows:
        raise ValueError("An accuracy needs pairs; found none.")
    credits, groups = [row["credit"] for row in rows], [row["group"] for row in rows]
    return {
        "accuracy": sum(credits) / len(credits),
        "n": len(credits),
        "standard_error": standard_error(credits, groups),
        "ci95": accuracy_interval(credits, groups, seed=seed),
    }


def average_over_voices(rows: Iterable[dict], key: Sequence[str] = ("id",)) -> list[dict]:
    """One row an item, its credit the mean over the voices that speak it.

    Args:
        key (defaults to `("id",)`): the columns that name an item.

    Returns:
        The first row of each item with the mean credit and without "voice", in order of first appearance.

    Raises:
        ValueError: an item in two groups or two parts, or twice in one voice.
    """
    voices_of: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        item = tuple(row[name] for name in key)
        voices = voices_of.setdefault(item, {})
        if row["voice"] in voices:
            raise ValueError(f"Item {'/'.join(item)} has voice {row['voice']!r} twice; expected each voice once.")
        voices[row["voice"]] = row
    averaged = []
    for item, voices in voices_of.items():
        first, *others = voices.values()
        for name in ("group", "part"):
            if any(row[name] != first[name] for row in others):
                found = sorted({row[name] for row in voices.values()})
                raise ValueError(f"Item {'/'.join(item)} has the {name}s {found} in its voices; expected one.")
        credit = sum(row["credit"] for row in voices.values()) / len(voices)
        averaged.append({name: value for name, value in first.items() if name != "voice"} | {"credit": credit})
    return averaged


def accuracy_by_part(rows: Iterable[dict], seed: int = 0) -> dict[str, dict]:
    """Part -> accuracy of its rows, parts in alphabetical order."""
    rows_of: dict[str, list[dict]] = {}
    for row in rows:
        rows_of.setdefault(row["part"], []).append(row)
    return {part: rows_to_accuracy(rows_of[part], seed) for part in sorted(rows_of)}


def aggregate_swuggy(rows: Sequence[dict], seed: int = 0) -> dict:
    """Accuracy over word / pseudo-word pairs, voices of an id averaged first.

    Returns:
        `dict`: an accuracy with "accuracy_by_part" (frequency band), "in_vocab", the accuracy over all pairs outside
        the part "oov", which is the mean over the other bands weighted by their n (None without such pairs), and
        "grouping".
    """
    items = average_over_voices(rows)
    in_vocab = [item for item in items if item["part"] != OUT_OF_VOCABULARY]
    return {
        **rows_to_accuracy(items, seed),
        "accuracy_by_part": accuracy_by_part(items, seed),
        "in_vocab": rows_to_accuracy(in_vocab, seed) if in_vocab else None,
        "grouping": "voices of an id averaged, then the mean over ids",
    }


def aggregate_sblimp(rows: Sequence[dict], seed: int = 0) -> dict:
    """Accuracy over sentence pairs, voices of a (type, subtype, id) averaged first; the part is the type.

    Returns:
        `dict`: an accuracy with "accuracy_by_part" (type) and "grouping".
    """
    items = average_over_voices(rows, key=("part", "subtype", "id"))
    return {
        **rows_to_accuracy(items, seed),
        "accuracy_by_part": accuracy_by_part(items, seed),
        "grouping": "voices of a (type, subtype, id) averaged, then the mean over these",
    }


def aggregate_salmon(rows: Sequence[dict], seed: int = 0) -> dict:
    """Mean over the parts of SALMon of the accuracy over their pairs.

    Parts are resampled independently of each other. The mean is over the parts that have rows.

    Returns:
        `dict`: an accuracy with n the number of all pairs, "accuracy_by_part", "missing_parts" and "grouping".

    Raises:
        ValueError: a part that SALMon does not have.
    """
    if unknown := sorted({row["part"] for row in rows} - set(SALMON_PARTS)):
        raise ValueError(f"SALMon has no part {unknown[0]!r}; expected {SALMON_PARTS}.")
    parts = accuracy_by_part(rows, seed)
    errors = [record["standard_error"] for record in parts.values()]
    return {
        "accuracy": sum(record["accuracy"] for record in parts.values()) / len(parts),
        "n": len(rows),
        "standard_error": None if None in errors else math.hypot(*errors) / len(errors),
        "ci95": _mean_of_parts_interval(rows, list(parts), seed),
        "accuracy_by_part": parts,
        "missing_parts": [part for part in SALMON_PARTS if part not in parts],
        "grouping": "mean over the pairs of a part, then over parts",
    }


def _mean_of_parts_interval(rows: Sequence[dict], parts: Sequence[str], seed: int) -> list[float]:
    means = []
    for index, part in enumerate(parts):
        own = [row for row in rows if row["part"] == part]
        values = np.array([[row["credit"] for row in own], np.ones(len(own))])
        totals, counts = bootstrap_sums(values, [row["group"] for row in own], seed=seed + index)
        means.append(totals / counts)
    return percentile_interval(np.mean(means, axis=0))


def aggregate_storycloze(rows: Sequence[dict], seed: int = 0) -> dict:
    """Accuracy over stories, with "grouping"."""
    return {**rows_to_accuracy(rows, seed), "grouping": "mean over stories"}


AGGREGATIONS: dict[str, Callable[..., dict]] = {
    "swuggy": aggregate_swuggy,
    "sblimp": aggregate_sblimp,
    "salmon": aggregate_salmon,
    "storycloze": aggregate_storycloze,
}
"""Suite -> its convention."""
