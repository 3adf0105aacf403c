"""Suites and held-out perplexity during training, for model selection and early stopping by a speech metric."""

import os
from collections.abc import Mapping, Sequence

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from ..tokenization_tinywave import SpeechStreams
from .scoring import score_perplexity
from .sequence_formats import SequenceFormat, SpeechSequenceFormat
from .suites import Pair, evaluate_suite, read_suite

LOWER_IS_BETTER = ("perplexity", "bits_per_second")
"""Suffixes of the names of metrics for which lower is better."""


class SuiteEvaluationCallback(TrainerCallback):
    """Callback that scores suites of minimal pairs and held-out speech at every evaluation of a `Trainer`.

    The metrics are added to those of the evaluation before any other callback runs, and are logged:
    `eval_<suite>_accuracy` with `_standard_error`, `_ci95_low` and `_ci95_high`, `eval_perplexity` (per scored token)
    and `eval_bits_per_second`. They can therefore be used with `metric_for_best_model="eval_story_accuracy"`,
    `load_best_model_at_end` and `EarlyStoppingCallback`. The numbers are those of [`evaluate_suite`] and
    [`score_perplexity`]. Scoring does not affect training: modes, gradients and random states are left unchanged.

    In data-parallel runs the main process scores and the others wait for its result, so that scoring has to finish
    within `ddp_timeout`. If several evaluation data sets are evaluated at one step, the suites are scored once.

    Args:
        suites (`Mapping`): name in the metrics -> path of a manifest, or its pairs.
        utterances (*optional*): held-out speech, see [`score_perplexity`]. Without it no perplexity is computed.
        sequence_format ([`SequenceFormat`], *optional*): by default that of the model's config.
        normalisation, vocabulary, batch_size, encoder, seed: as in [`evaluate_suite`].

    Raises:
        ValueError: if there are neither suites nor utterances.

    Example:

        trainer = Trainer(model, TrainingArguments(..., metric_for_best_model="eval_story_accuracy"), ...,
                          callbacks=[EarlyStoppingCallback(3)])
        SuiteEvaluationCallback({"story": "assets/suites/story.parquet"}).attach(trainer)
        trainer.train()
    """

    def __init__(
        self,
        suites: Mapping[str, str | os.PathLike | Sequence[Pair]],
        utterances: Sequence[SpeechStreams | Sequence[int]] | None = None,
        *,
        sequence_format: SequenceFormat | None = None,
        normalisation: str = "mean",
        vocabulary: str = "full",
        batch_size: int = 8,
        encoder: str | None = None,
        seed: int = 0,
    ):
        if not suites and not utterances:
            raise ValueError("found nothing to score; pass at least one suite, or held-out utterances.")
        self.suites = {
            name: read_suite(suite) if isinstance(suite, str | os.PathLike) else list(suite)
            for name, suite in suites.items()
        }
        self.utterances = list(utterances or ())
        self._sequence_format = sequence_format
        self._scoring = {"vocabulary": vocabulary, "batch_size": batch_size}
        self._suite_scoring = {"normalisation": normalisation, "encoder": encoder, "seed": seed}
        self._trainer: Trainer | None = None
        self._scored_step: int | None = None
        self._latest: dict[str, float] = {}

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to a trainer, before all its other callbacks.

        One pair of each suite and one utterance are scored immediately, so that input that does not fit the model
        raises an error here and not at the first evaluation.

        Args:
            trainer ([`~transformers.Trainer`]): the trainer, before `train`.

        Raises:
            ValueError: if the model is sharded (FSDP, DeepSpeed ZeRO 3), which one process cannot score; if the best
                model would be the one with the highest perplexity; or for input that [`evaluate_suite`] and
                [`score_perplexity`] reject.
        """
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "Found a model sharded by FSDP or DeepSpeed ZeRO 3, which the main process cannot score alone; score "
                "its checkpoints with `tinywave evaluate`."
            )
        best = trainer.args.metric_for_best_model
        if best is not None and best.endswith(LOWER_IS_BETTER) and trainer.args.greater_is_better:
            raise ValueError(f"found greater_is_better=True for {best}, which is better when lower; set it to False.")
        self._score(trainer.model, {name: pairs[:1] for name, pairs in self.suites.items()}, self.utterances[:1])
        self._trainer = trainer
        trainer.callback_handler.callbacks.insert(0, self)

    def on_init_end(self, args, state, control, **kwargs):
        """Raise an error if passed in `callbacks=`, because callbacks before it would not get its metrics."""
        raise ValueError("Leave SuiteEvaluationCallback out of `callbacks`; call its `attach(trainer)` instead.")

    def on_step_begin(self, args, state, control, **kwargs):
        """Discard the cached scores, because the weights change."""
        self._scored_step = None

    on_train_begin = on_train_end = on_step_begin

    def on_evaluate(self, args, state, control, metrics, model, **kwargs):
        """Add the metrics to those of this evaluation, and log them."""
        if self._scored_step != state.global_step:
            self._latest = self._score_once_for_all(model, state.is_world_process_zero)
            self._trainer.log(dict(self._latest))
            # Outside of training there is no event for a change of the weights, so nothing is cached.
            self._scored_step = state.global_step if self._trainer.is_in_train else None
        metrics.update(self._latest)

    def _score_once_for_all(self, model: nn.Module, is_main_process: bool) -> dict[str, float]:
        """Return the metrics on every process; an error in the main process is raised in the others as well."""
        outcome: list = [None, None]
        error = None
        if is_main_process:
            try:
                outcome[0] = self._score(model, self.suites, self.utterances)
            except Exception as caught:
                error, outcome[1] = caught, f"{type(caught).__name__}: {caught}"
        broadcast_object_list(outcome)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise RuntimeError(f"The main process could not score the suites. {outcome[1]}")
        return outcome[0]

    def _score(self, model: nn.Module, suites: Mapping[str, list[Pair]], utterances: list) -> dict[str, float]:
        metrics: dict[str, float] = {}
        sequence_format = self._sequence_format or SpeechSequenceFormat(model.config)
        scoring = {"sequence_format": sequence_format, **self._scoring}
        for name, pairs in suites.items():
            result = evaluate_suite(model, pairs, **scoring, **self._suite_scoring)
            metrics[f"eval_{name}_accuracy"] = result.accuracy
            if result.standard_error is not None:
                metrics[f"eval_{name}_standard_error"] = result.standard_error
            metrics[f"eval_{name}_ci95_low"], metrics[f"eval_{name}_ci95_high"] = result.ci95
        if utterances:
            perplexity = score_perplexity(model, utterances, **scoring)
            metrics["eval_perplexity"] = perplexity.token_weighted
            metrics["eval_bits_per_second"] = perplexity.bits_per_second
        return metrics
