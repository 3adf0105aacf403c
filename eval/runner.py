"""Evaluate several models on the same suites and the same held-out speech, and compare them pairwise."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from torch import nn

from ..tokenization_tinywave import SpeechStreams
from .results import STUDENT, TEACHER
from .scoring import PerplexityResult, score_perplexity
from .sequence_formats import SpeechSequenceFormat
from .statistics import compare_accuracy, compare_perplexity, holm, mcnemar_exact, mean_retention, retention
from .story_suites import StorySuite
from .suites import SuiteResult, evaluate_suite


@dataclass(frozen=True)
class Evaluation:
    """Results of several models on the same suites and the same held-out speech.

    Args:
        suites (`dict`): {suite name: {model name: [`SuiteResult`]}}.
        perplexities (`dict`): {model name: [`PerplexityResult`]}; empty if no speech was given.
        sequences (`dict`): {model name: record of the [`SpeechSequenceFormat`] that converts speech to its ids}.
        seed (`int`): seed of the bootstrap.
    """

    suites: dict[str, dict[str, SuiteResult]]
    perplexities: dict[str, PerplexityResult]
    sequences: dict[str, dict]
    seed: int

    def to_record(self) -> dict:
        """Return the results as a JSON-serializable dict, without the rows of every pair.

        Returns:
            `dict`: "suites" {suite: {model: record}}, "perplexity" {model: record}, "comparisons" {"first-second":
            tests} for every pair of models in the given order, and "retention" if "teacher" and "student" are among
            the models. "perplexity_difference" is None for two models that score different tokens, because there is
            no paired test for them.
        """
        record = {
            "suites": {
                suite: {name: result.to_record() for name, result in by_model.items()}
                for suite, by_model in self.suites.items()
            },
            "perplexity": {
                name: _perplexity_record(result, self.sequences[name]) for name, result in self.perplexities.items()
            },
            "comparisons": {
                f"{first}-{second}": self._compare(first, second) for first, second in combinations(self.sequences, 2)
            },
        }
        if self.suites and {TEACHER, STUDENT} <= set(self.sequences):
            record["retention"] = _retention_record(self.suites, self.seed)
        return record

    def write_rows(self, folder: str | os.PathLike) -> None:
        """Write the rows of every pair to `folder` as `<suite>_<model>.parquet`."""
        for suite, by_model in self.suites.items():
            for name, result in by_model.items():
                result.write_rows(Path(folder) / f"{suite}_{name}.parquet")

    def _compare(self, first: str, second: str) -> dict:
        """Run the paired tests on each suite, with McNemar p-values also corrected for the number of suites."""
        pairs = {suite: (by_model[first], by_model[second]) for suite, by_model in self.suites.items()}
        p_values = {suite: mcnemar_exact(a.credits, b.credits) for suite, (a, b) in pairs.items()}
        return {
            "accuracy_difference": {
                suite: asdict(compare_accuracy(a.credits, b.credits, a.groups, seed=self.seed))
                for suite, (a, b) in pairs.items()
            },
            "mcnemar_p_value": p_values,
            "mcnemar_p_value_holm": dict(zip(p_values, holm(list(p_values.values())), strict=True)),
            "perplexity_difference": self._perplexity_difference(first, second),
        }

    def _perplexity_difference(self, first: str, second: str) -> dict | None:
        if not self.perplexities or self.sequences[first] != self.sequences[second]:
            return None
        scores = (self.perplexities[name].scores for name in (first, second))
        return asdict(compare_perplexity(*scores, seed=self.seed))


def evaluate_models(
    models: Mapping[str, nn.Module],
    suites: Mapping[str, str | os.PathLike | Sequence | StorySuite],
    perplexity_utterances: Sequence[SpeechStreams | Sequence[int]] = (),
    *,
    scored_streams: Collection[str] | None = None,
    batch_size: int = 8,
    encoder: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **scoring,
) -> Evaluation:
    """Score every model on every suite and on held-out speech, each model on the streams that its config defines.

    Args:
        models (`Mapping[str, nn.Module]`): name -> model. The names "teacher" and "student" enable "retention";
            "no_distillation" is the baseline; other names are allowed.
        suites (`Mapping`): name -> manifest path, pairs, or a [`StorySuite`] in a direction other than speech to
            speech.
        perplexity_utterances (*optional*): held-out speech, for example the documents returned by `read_documents`,
            with the pitch and style of the models in `prosody=`. Sequences of raw units are enough for models without
            pitch and style.
        scored_streams (*optional*): streams whose tokens are targets, out of "unit", "pitch" and "style". Default: all
            streams of the model.
        batch_size (`int`, defaults to 8): sequences per forward pass.
        encoder (`str`, *optional*): fingerprint of the codec of the models' training streams, see [`evaluate_suite`].
        seed (`int`, defaults to 0): seed of the bootstrap.
        progress (`bool`, defaults to True): show progress bars.
        scoring: further arguments of [`evaluate_suite`], such as `normalisation`.

    Returns:
        [`Evaluation`].
    """
    results: dict[str, dict[str, SuiteResult]] = {suite: {} for suite in suites}
    perplexities: dict[str, PerplexityResult] = {}
    sequences: dict[str, dict] = {}
    for name, model in models.items():
        reading = {
            "sequence_format": SpeechSequenceFormat(model.config, scored_streams=scored_streams),
            "batch_size": batch_size,
        }
        sequences[name] = reading["sequence_format"].to_record()
        for suite, manifest in suites.items():
            options = {"encoder": encoder, "seed": seed, "progress": progress, **reading, **scoring}
            results[suite][name] = (
                manifest.evaluate(model, **options)
                if isinstance(manifest, StorySuite)
                else evaluate_suite(model, manifest, **options)
            )
        if perplexity_utterances:
            label = f"{name} perplexity" if progress else None
            perplexities[name] = score_perplexity(model, perplexity_utterances, progress=label, **reading)
    return Evaluation(results, perplexities, sequences, seed)


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


def _retention_record(results: dict[str, dict[str, SuiteResult]], seed: int) -> dict:
    """Return retention on the mean over suites: the student's at the top level, other models' under their name."""

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
