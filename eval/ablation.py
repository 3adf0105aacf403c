"""Scores of the runs of an ablation over several seeds: their records, means with intervals, and the page about them.

The same pairs and the same held-out speech are scored in every run, so runs are compared on equal terms. Intervals
come from a bootstrap that draws the groups of pairs (or the utterances) and the seeds independently of each other: the
pigeonhole bootstrap (Owen, Annals of Applied Statistics 1(2), 2007).
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from torch import nn

from ..data.storage import write_json
from ..tokenization_tinywave import SpeechStreams
from .results_table import check_markers, format_accuracy, suite_to_label, write_between_markers
from .scoring import score_perplexity
from .sequence_formats import SpeechSequenceFormat
from .statistics import bootstrap_sums, percentile_interval
from .suites import evaluate_suite

TEACHER = "teacher"


def score_run(
    model: nn.Module,
    suites: Mapping[str, str | PathLike | Sequence],
    held_out: Sequence[SpeechStreams | Sequence[int]],
    *,
    batch_size: int = 16,
) -> dict:
    """Score one model on suites and held-out speech, and keep what resampling needs.

    Args:
        model (`nn.Module`): a causal language model of speech, with a `TinyWaveConfig`.
        suites (`Mapping`): name -> manifest path or pairs.
        held_out (`Sequence`): utterances of the perplexity.
        batch_size (`int`, defaults to 16): sequences scored at once.

    Returns:
        `dict`, JSON-ready: "suites" {suite: {n, accuracy, ci95, credits, groups}} and "perplexity" {value (per scored
        token), log_likelihoods (nats, per utterance), num_tokens (per utterance)}.
    """
    scoring = {"sequence_format": SpeechSequenceFormat(model.config), "batch_size": batch_size}
    record: dict = {"suites": {}}
    for suite, manifest in suites.items():
        result = evaluate_suite(model, manifest, **scoring)
        names = ("n", "accuracy", "ci95", "credits", "groups")
        record["suites"][suite] = {name: getattr(result, name) for name in names}
    perplexity = score_perplexity(model, held_out, **scoring)
    record["perplexity"] = {
        "value": perplexity.token_weighted,
        "log_likelihoods": [score.log_likelihood for score in perplexity.scores],
        "num_tokens": [score.num_tokens for score in perplexity.scores],
    }
    return record


def mean_over_seeds(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean over seeds drawn with replacement, anew for every resample.

    Args:
        values (`np.ndarray` of shape `(seeds, resamples)`): a statistic of each seed on each resample of its items.
        seed (`int`, defaults to 0): of the draws; equal draws for equal shapes, which makes differences paired.

    Returns:
        `np.ndarray` of shape `(resamples,)`.
    """
    num_seeds, num_resamples = values.shape
    # A stream of its own: the draws of items start from the plain seed.
    drawn = np.random.default_rng([seed, 1]).integers(0, num_seeds, size=(num_resamples, num_seeds))
    return np.take_along_axis(values.T, drawn, axis=1).mean(axis=1)


def build_ablation(records: Mapping[str, Mapping[int, Mapping]], reference: str) -> dict:
    """Put the records of all runs together.

    Args:
        records (`Mapping`): run -> seed -> record of [`score_run`], all on the same suites and speech.
        reference (`str`): the run that the others are compared with.

    Returns:
        `dict`, JSON-ready: "rows", one {run, seed, suite, n, accuracy, ci95} of each; "perplexity", {run, seed,
        perplexity, num_tokens}; "summary", for each run its number of seeds and means over them: {run, num_seeds,
        suites {suite: {accuracy, ci95, n}}, mean_accuracy {accuracy, ci95}, perplexity {value, ci95}, difference
        {value, ci95} of the mean accuracy from that of the reference (`None` without the same seeds)}; "reference".

    Raises:
        ValueError: where there is no record of the reference, or runs were scored on different pairs.
    """
    if reference not in records:
        raise ValueError(f"The reference {reference!r} is none of the runs {', '.join(records)}.")
    scored = [(run, seed, record) for run, by_seed in records.items() for seed, record in by_seed.items()]
    _check_same_pairs(scored)
    accuracies = {run: _mean_accuracies(list(by_seed.values())) for run, by_seed in records.items()}
    summary = []
    for run, by_seed in records.items():
        line = {"run": run, "num_seeds": len(by_seed), **_summarize(list(by_seed.values()), accuracies[run])}
        paired = by_seed.keys() == records[reference].keys()
        line["difference"] = _difference(accuracies[run], accuracies[reference]) if paired else None
        summary.append(line)
    return {
        "rows": [
            {"run": run, "seed": seed, "suite": suite, **{name: scores[name] for name in ("n", "accuracy", "ci95")}}
            for run, seed, record in scored
            for suite, scores in record["suites"].items()
        ],
        "perplexity": [
            {
                "run": run,
                "seed": seed,
                "perplexity": record["perplexity"]["value"],
                "num_tokens": sum(record["perplexity"]["num_tokens"]),
            }
            for run, seed, record in scored
        ],
        "summary": summary,
        "reference": reference,
    }


def _check_same_pairs(scored: Sequence[tuple[str, int, Mapping]]) -> None:
    def items(record: Mapping) -> list:
        return [record["perplexity"]["num_tokens"], *((name, s["groups"]) for name, s in record["suites"].items())]

    for run, seed, record in scored:
        if items(record) != items(scored[0][2]):
            raise ValueError(
                f"Run {run!r} of seed {seed} was scored on other suites or speech than {scored[0][0]!r} of seed "
                f"{scored[0][1]}; use one folder of suites and one of units for all, and score anew."
            )


def _suite_accuracies(records: Sequence[Mapping], suite: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of each seed, of shape `(seeds, 1)`, and on each resample of groups, `(seeds, resamples)`."""
    credits = np.array([record["suites"][suite]["credits"] for record in records])
    rows = np.concatenate([credits, np.ones((1, credits.shape[1]))])
    sums = bootstrap_sums(rows, records[0]["suites"][suite]["groups"], seed=seed)
    return credits.mean(axis=1, keepdims=True), sums[:-1] / sums[-1]


def _mean_accuracies(records: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """As [`_suite_accuracies`], averaged over the suites with equal weights."""
    by_suite = [_suite_accuracies(records, suite, seed) for seed, suite in enumerate(records[0]["suites"])]
    points, resamples = zip(*by_suite, strict=True)
    return np.mean(points, axis=0), np.mean(resamples, axis=0)


def _summarize(records: Sequence[Mapping], mean_accuracies: tuple[np.ndarray, np.ndarray]) -> dict:
    suites = {}
    for seed, suite in enumerate(records[0]["suites"]):
        n = records[0]["suites"][suite]["n"]
        suites[suite] = _mean_and_interval("accuracy", *_suite_accuracies(records, suite, seed)) | {"n": n}
    rows = np.array([record["perplexity"]["log_likelihoods"] for record in records])
    counts = np.array(records[0]["perplexity"]["num_tokens"], dtype=float)
    sums = bootstrap_sums(np.concatenate([-rows, counts[None]]))
    points = np.exp(-rows.sum(axis=1, keepdims=True) / counts.sum())
    return {
        "suites": suites,
        "mean_accuracy": _mean_and_interval("accuracy", *mean_accuracies),
        "perplexity": _mean_and_interval("value", points, np.exp(sums[:-1] / sums[-1])),
    }


def _difference(run: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> dict:
    points, resamples = (own - other for own, other in zip(run, reference, strict=True))
    return _mean_and_interval("value", points, resamples)


def _mean_and_interval(name: str, points: np.ndarray, resamples: np.ndarray) -> dict:
    return {name: float(points.mean()), "ci95": percentile_interval(mean_over_seeds(resamples))}


def ablation_to_markdown(ablation: Mapping) -> str:
    """The summary as a Markdown table, one line a run."""
    suites = list(ablation["summary"][0]["suites"])
    sizes = {suite: scores["n"] for suite, scores in ablation["summary"][0]["suites"].items()}
    head = ["Run", "seeds", *(f"{suite_to_label(suite)} (n = {sizes[suite]})" for suite in suites), "Mean accuracy"]
    head += [f"difference from `{ablation['reference']}`, points", "Perplexity"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for line in ablation["summary"]:
        cells = [f"`{line['run']}`", str(line["num_seeds"])]
        cells += [format_accuracy(line["suites"][suite]) for suite in suites]
        cells += [format_accuracy(line["mean_accuracy"]), format_difference(line["difference"])]
        cells.append(format_perplexity(line["perplexity"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_difference(difference: Mapping | None) -> str:
    """Write a difference of accuracies in percentage points; nothing where runs are not paired.

    >>> format_difference({"value": -0.0123, "ci95": [-0.031, 0.0058]})
    '-1.2 [-3.1, +0.6]'
    >>> format_difference(None)
    ''
    """
    if difference is None:
        return ""
    value, low, high = (100 * number for number in (difference["value"], *difference["ci95"]))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def format_perplexity(perplexity: Mapping) -> str:
    """Write a perplexity with its interval.

    >>> format_perplexity({"value": 5.4321, "ci95": [5.3, 5.551]})
    '5.432 [5.300, 5.551]'
    """
    low, high = perplexity["ci95"]
    return f"{perplexity['value']:.3f} [{low:.3f}, {high:.3f}]"


def write_page(ablation: Mapping, page: str | PathLike) -> None:
    """Put the table between the results markers of a Markdown page, and `ablation.json` beside the page.

    Raises:
        ValueError: for a page without markers.
    """
    page = Path(page)
    check_markers(page)
    write_json(ablation, page.with_name("ablation.json"))
    write_between_markers(ablation_to_markdown(ablation), page)
