"""One self-contained HTML page of an evaluation: accuracies with intervals, what is kept of a teacher, worst pairs."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..tokenization_tinywave import SpeechStreams
from .pages import audio_data_uri, write_page
from .report import HOW_PAIRS_ARE_SCORED, flatten
from .result_records import WHOLE_SUITE, suite_to_results
from .results import STUDENT, TEACHER
from .results_table import format_percent, suite_to_label
from .runner import Evaluation
from .statistics import CHANCE
from .suites import HALVES, Pair, SuiteResult

NUM_WORST_PAIRS = 3
# The page's colours and marks are named after the models of a distillation.
_COLOUR_OF_HALF = {"positive": "student", "negative": "no_distillation"}
_LABEL_OF_HALF = {"positive": "Right", "negative": "Wrong, and preferred"}


def write_evaluation_page(
    evaluation: Evaluation,
    model_name: str,
    path: str | os.PathLike,
    *,
    pairs: Mapping[str, Sequence[Pair]],
    speak: Callable[[SpeechStreams], tuple[np.ndarray, int]] | None = None,
) -> Path:
    """Write the page of a model that was evaluated as "student", beside its "teacher" where there was one.

    Args:
        evaluation ([`Evaluation`]): of the models "student" and, optionally, "teacher".
        model_name: as the page calls the model.
        path: of the HTML file.
        pairs: suite -> the pairs that were scored, for their texts.
        speak (*optional*): speech tokens -> waveform and its sampling rate in Hz; adds players to the worst pairs.
    """
    record = evaluation.to_record()
    models = {
        name: label for name, label in ((STUDENT, model_name), (TEACHER, "teacher")) if name in evaluation.sequences
    }
    results = {
        name: {suite: suite_to_results(by_model[name]) for suite, by_model in evaluation.suites.items()}
        for name in models
    }
    axis = Axis(
        min((row["ci95"][0] for by_suite in results.values() for rows in by_suite.values() for row in rows), default=0)
    )
    values = {
        "headline": _headline(model_name, results[STUDENT]),
        "how_pairs_are_scored": HOW_PAIRS_ARE_SCORED,
        "models": models,
        "suites": [_suite_to_marks(suite, models, results, axis) for suite in evaluation.suites],
        "chance": axis.position(CHANCE),
        "ticks": axis.ticks,
        "comparison": _comparison_rows(evaluation, record) if TEACHER in models else [],
        "perplexity": [_perplexity_row(models[name], value) for name, value in record["perplexity"].items()],
        "worst": [
            card
            for suite, by_model in evaluation.suites.items()
            for card in _worst_pairs(by_model[STUDENT], pairs[suite], speak)
        ],
        "speaks": speak is not None,
        "conventions": {
            suite_to_label(suite): flatten(by_model[STUDENT].convention)
            for suite, by_model in evaluation.suites.items()
        },
    }
    return write_page("evaluation.html.j2", values, path)


class Axis:
    """An axis of accuracies from 40 %, or less where an interval asks for it, to 100 %; positions in % of it."""

    def __init__(self, lowest: float):
        self.start = min(0.4, math.floor(10 * lowest) / 10)

    def position(self, accuracy: float) -> float:
        return 100 * (accuracy - self.start) / (1 - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(self.position(tick / 10), f"{10 * tick} %") for tick in range(round(10 * self.start), 11)]


def _headline(model_name: str, results: Mapping[str, Sequence[dict]]) -> str:
    if not results:
        return model_name
    mean = sum(rows[0]["accuracy"] for rows in results.values()) / len(results)
    return (
        f"{model_name}: {format_percent(mean)} of pairs right, mean of {len(results)} suite{'s' * (len(results) > 1)}"
    )


def _suite_to_marks(suite: str, models: Mapping[str, str], results: Mapping, axis: Axis) -> dict:
    """Every model on the whole suite, then on each part."""
    rows_of_models = zip(*(results[name][suite] for name in models), strict=True)
    marks = [
        {
            "model": name,
            "label": models[name] if row["part"] == WHOLE_SUITE else row["part"].replace("_", " "),
            "dot": axis.position(row["accuracy"]),
            "left": axis.position(row["ci95"][0]),
            "width": axis.position(row["ci95"][1]) - axis.position(row["ci95"][0]),
            "accuracy": format_percent(row["accuracy"]),
            "interval": f"{100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f}",
        }
        for rows in rows_of_models
        for name, row in zip(models, rows, strict=True)
    ]
    return {"label": suite_to_label(suite), "num_pairs": results[STUDENT][suite][0]["n"], "marks": marks}


def _comparison_rows(evaluation: Evaluation, record: dict) -> list[list[str]]:
    tests = record["comparisons"][f"{STUDENT}-{TEACHER}"]
    rows = []
    for suite, by_model in evaluation.suites.items():
        kept = suite_to_results(by_model[STUDENT], by_model[TEACHER])[0]
        difference = tests["accuracy_difference"][suite]
        low, high = difference["ci95"]
        rows.append(
            [
                suite_to_label(suite),
                *(
                    "undefined" if kept[name] is None else format_percent(kept[name])
                    for name in ("raw_ratio", "above_chance_ratio")
                ),
                f"{100 * difference['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{tests['mcnemar_p_value_holm'][suite]:.3g}",
            ]
        )
    return rows


def _perplexity_row(label: str, record: dict) -> list[str]:
    values = [f"{record[name]:.3f}" for name in ("token_weighted", "utterance_mean")]
    return [label, *values, f"{record['bits_per_second']:.1f}", f"{record['num_tokens']:,}"]


def _worst_pairs(result: SuiteResult, pairs: Sequence[Pair], speak: Callable | None) -> list[dict]:
    """The pairs that are wrong by most."""
    margins = [
        row["positive_log_likelihood"] / row["positive_num_tokens"]
        - row["negative_log_likelihood"] / row["negative_num_tokens"]
        for row in result.rows
    ]
    order = sorted(range(len(margins)), key=margins.__getitem__)[:NUM_WORST_PAIRS]
    return [
        {
            "label": f"{suite_to_label(result.suite)}: {pairs[index].id}",
            "margin": f"{margins[index]:+.3f} nats per token",
            "halves": [_half_to_player(pairs[index], half, speak) for half in HALVES],
        }
        for index in order
        if margins[index] < 0
    ]


def _half_to_player(pair: Pair, half: str, speak: Callable | None) -> dict:
    return {
        "model": _COLOUR_OF_HALF[half],
        "label": _LABEL_OF_HALF[half],
        "text": getattr(pair, f"{half}_text"),
        "audio": audio_data_uri(*speak(pair.half(half))) if speak else "",
    }
