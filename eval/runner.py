"""Evaluates several models on the same suites and the same held-out speech, and compares them pairwise."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from torch import nn

from ..tokenization_tinywave import SpeechStreams
from .results import STUDENT, TEACHER
from .scoring import PerplexityResult, SpeechSequenceFormat, score_perplexity
from .statistics import compare_perplexity, mcnemar_exact, mean_retention, retention
from .suites import SuiteResult, evaluate_suite


def evaluate_models(
    models: Mapping[str, nn.Module],
    suites: Mapping[str, str | os.PathLike | Sequence],
    perplexity_utterances: Sequence[SpeechStreams | Sequence[int]],
    *,
    scored_streams: Collection[str] | None = None,
    batch_size: int = 8,
    encoder: str | None = None,
    rows_folder: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Scores every model on everything, each on the streams that its configuration has.

    Args:
        models (`Mapping[str, nn.Module]`): "teacher" and "student", "no_distillation" for the baseline, or any names.
        suites (`Mapping`): name -> manifest path or pairs.
        perplexity_utterances: held-out speech, such as the documents that `read_documents` returns with `prosody=` the
            pitch and style of the models; raw units serve models of units.
        scored_streams (*optional*): streams whose tokens are targets, of "unit", "pitch" and "style". Default: all
            that a model has.
        encoder (`str`, *optional*): fingerprint of the codec of the models' training streams, see [`evaluate_suite`].
        rows_folder (path, *optional*): where per-pair rows go, as `<suite>_<model>.parquet`.

    Returns:
        `dict`, JSON-ready: "suites" {suite: {model: record}}, "perplexity" {model: record}, "comparisons"
        {"first-second": tests} of every pair of models in the order given, and "retention" when "teacher" and
        "student" are among the models. The perplexities of two models that score different tokens have no paired test:
        its "perplexity_difference" is None.
    """
    results: dict[str, dict[str, SuiteResult]] = {suite: {} for suite in suites}
    perplexities: dict[str, PerplexityResult] = {}
    sequences: dict[str, dict] = {}
    for name, model in models.items():
        scoring = {
            "sequence_format": SpeechSequenceFormat(model.config, scored_streams=scored_streams),
            "batch_size": batch_size,
        }
        for suite, manifest in suites.items():
            result = evaluate_suite(model, manifest, encoder=encoder, seed=seed, progress=progress, **scoring)
            results[suite][name] = result
            if rows_folder is not None:
                result.write_rows(Path(rows_folder) / f"{suite}_{name}.parquet")
        label = f"{name} perplexity" if progress else None
        perplexities[name] = score_perplexity(model, perplexity_utterances, progress=label, **scoring)
        sequences[name] = scoring["sequence_format"].to_record()
    evaluation = {
        "suites": {
            suite: {name: result.to_record() for name, result in by_model.items()}
            for suite, by_model in results.items()
        },
        "perplexity": {name: _perplexity_record(result, sequences[name]) for name, result in perplexities.items()},
        "comparisons": _compare(results, perplexities, sequences, seed),
    }
    if {TEACHER, STUDENT} <= set(models):
        evaluation["retention"] = _retention_record(results, seed)
    return evaluation


def _perplexity_record(result: PerplexityResult, sequence: dict) -> dict:
    return {
        "token_weighted": result.token_weighted,
        "utterance_mean": result.utterance_mean,
        "bits_per_second": result.bits_per_second,
        "num_utterances": len(result.scores),
        "num_tokens": sum(score.num_tokens for score in result.scores),
        "sequence": sequence,
        "vocabulary": "full",
    }


def _compare(results, perplexities, sequences: dict[str, dict], seed: int) -> dict:
    """Paired tests of each model against each later one."""

    def perplexity_difference(first: str, second: str) -> dict | None:
        if sequences[first] != sequences[second]:
            return None
        return asdict(compare_perplexity(perplexities[first].scores, perplexities[second].scores, seed=seed))

    return {
        f"{first}-{second}": {
            "perplexity_difference": perplexity_difference(first, second),
            "mcnemar_p_value": {
                suite: mcnemar_exact(by_model[first].credits, by_model[second].credits)
                for suite, by_model in results.items()
            },
        }
        for first, second in combinations(sequences, 2)
    }


def _retention_record(results: dict[str, dict[str, SuiteResult]], seed: int) -> dict:
    """Retention on the mean of the suites: the student's values flat, every other model's under its name."""

    def credits(name: str) -> list:
        return [(by_model[name].credits, by_model[name].groups) for by_model in results.values()]

    record: dict = {"suites": _retention_by_suite(results)}
    for name in next(iter(results.values())).keys() - {TEACHER}:
        mean = mean_retention(credits(name), credits(TEACHER), seed=seed)
        values = {
            "raw_mean": mean.raw,
            "raw_mean_ci95": mean.raw_ci95,
            "above_chance_mean": mean.above_chance,
            "above_chance_mean_ci95": mean.above_chance_ci95,
        }
        record |= values if name == STUDENT else {name: values}
    return record


def _retention_by_suite(results: dict[str, dict[str, SuiteResult]]) -> dict:
    pairs = {suite: (by_model[STUDENT].accuracy, by_model[TEACHER].accuracy) for suite, by_model in results.items()}
    kept = {suite: retention(*accuracies) for suite, accuracies in pairs.items()}
    return {suite: {"raw": value.raw, "above_chance": value.above_chance} for suite, value in kept.items()}
