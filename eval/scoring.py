"""Log-likelihoods of speech under a causal language model.

Notation: x_1..x_N are the scored targets, and L is the sum of log p(x_i | all preceding ids), in nats. `SequenceScore`
stores (L, N); mean log-likelihood, pair credit, perplexity and bits per second are all derived from it.
"""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..tokenization_tinywave import SpeechStreams
from .sequence_formats import SequenceFormat
from .shared_prefixes import PrefixTree, batch_trees, reads_trees, tree_inputs

VOCABULARIES = ("full", "scored")
NORMALISATIONS = ("mean", "sum")

# Maximum nodes of a prefix tree: up to this size the projections of a layer cost more than its attention.
_NODES_PER_TREE = 256
# Positions converted to float64 log-probabilities at once, which bounds memory for large vocabularies.
_POSITIONS_PER_CHUNK = 1024


class ScoringError(ValueError):
    """Raised for a sequence that cannot be scored; the message names it. No sequence is dropped silently."""


@dataclass(frozen=True)
class SequenceScore:
    """Score of one sequence.

    Args:
        log_likelihood (`float`): L, the summed log-probability of the scored targets, in nats.
        num_tokens (`int`): N, the number of scored targets.
    """

    log_likelihood: float
    num_tokens: int

    @property
    def mean_log_likelihood(self) -> float:
        """Mean log-likelihood L / N, in nats per token."""
        return self.log_likelihood / self.num_tokens

    def normalised(self, normalisation: str) -> float:
        """Return L / N for "mean" and L for "sum"."""
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"Unknown normalisation {normalisation!r}; expected one of {NORMALISATIONS}.")
        return self.mean_log_likelihood if normalisation == "mean" else self.log_likelihood


def speech_to_sequences(speech: Mapping[str, Any], sequence_format: SequenceFormat) -> dict[str, list[int]]:
    """Convert each utterance to ids.

    Args:
        speech (`Mapping`): name -> speech in a form that [`~SequenceFormat.speech_to_sequence`] accepts.
        sequence_format ([`SequenceFormat`]): format of the model.

    Returns:
        `dict[str, list[int]]`: name -> ids.

    Raises:
        ScoringError: if speech cannot be converted; the message names it.
    """
    sequences = {}
    for name, utterance in speech.items():
        try:
            sequences[name] = sequence_format.speech_to_sequence(utterance)
        except ValueError as error:
            raise ScoringError(f"{name} cannot be read by this model: {error}") from error
    return sequences


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode, and restore each module's own mode on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def score_sequences(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    scored_ids: Collection[int],
    first_scored: int | Sequence[int] = 1,
    last_scored: int | Sequence[int] | None = None,
    vocabulary: str = "full",
    batch_size: int = 8,
    names: Sequence[str] | None = None,
    progress: str | None = None,
) -> list[SequenceScore]:
    """Compute the log-likelihood of the targets of each sequence.

    Each sequence needs at most one forward pass; if the architecture allows it, a prefix shared by several sequences
    is computed once. Scores depend neither on the batch size nor on the other sequences, beyond the rounding of the
    forward pass. A sequence may be passed several times with different spans of targets; it is computed once. Dropout
    is disabled during scoring, and the model's mode is restored.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        sequences (`Sequence[Sequence[int]]`): ids of each sequence, prefix included.
        scored_ids (`Collection[int]`): ids that count as targets, such as `SequenceFormat.scored_ids`. Other ids (BOS,
            markers, text) only serve as context.
        first_scored (`int` or one per sequence, defaults to 1): position of the first target; earlier positions are a
            prompt. Position 0 has no context and is never scored.
        last_scored (`int` or one per sequence, *optional*): position of the last target. By default, and if it lies
            beyond the end, the last position.
        vocabulary (`str`, defaults to `"full"`): "full" normalizes probabilities over the model's vocabulary, "scored"
            over `scored_ids`.
        batch_size (`int`, defaults to 8): sequences per forward pass.
        names (`Sequence[str]`, *optional*): names of the sequences in error messages. Default: "Sequence 0", ...
        progress (`str`, *optional*): label of a progress bar; without it no bar is shown.

    Returns:
        `list[SequenceScore]` in the order of `sequences`.

    Raises:
        ScoringError: if a sequence has no targets or is longer than the model's context, or if a log-likelihood is NaN
            or infinite.
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"Unknown vocabulary {vocabulary!r}; expected one of {VOCABULARIES}.")
    if batch_size < 1:
        raise ValueError(f"found batch_size={batch_size}; expected at least 1.")
    names = names or [f"Sequence {index}" for index in range(len(sequences))]
    requests = _to_requests(sequences, first_scored, last_scored)
    scored = frozenset(scored_ids)
    _check_requests(names, requests, scored, getattr(model, "config", None))
    spans: dict[tuple[int, ...], list[range]] = {}
    for sequence, span in dict.fromkeys(requests):
        spans.setdefault(sequence, []).append(span)
    batches = batch_trees(spans, batch_size, _NODES_PER_TREE if reads_trees(model) else 0)
    scores: dict[tuple[tuple[int, ...], range], SequenceScore] = {}
    with evaluation_mode(model), torch.no_grad(), tqdm(total=len(spans), desc=progress, disable=not progress) as bar:
        for trees in batches:
            scores |= _score_trees(model, trees, spans, scored, vocabulary)
            bar.update(sum(len(tree.paths) for tree in trees))
    ordered = [scores[request] for request in requests]
    _check_finite(names, ordered)
    return ordered


def _to_requests(sequences, first_scored, last_scored) -> list[tuple[tuple[int, ...], range]]:
    """Return each sequence with the span of positions that may hold its targets."""
    count = len(sequences)
    firsts = [first_scored] * count if isinstance(first_scored, int) else list(first_scored)
    lasts = [last_scored] * count if isinstance(last_scored, int | None) else list(last_scored)
    if len(firsts) != count or len(lasts) != count:
        raise ValueError(
            f"Found {len(firsts)} first_scored and {len(lasts)} last_scored for {count} sequences; expected one each."
        )
    if min(firsts, default=1) < 1:
        raise ValueError(f"found first_scored={min(firsts)}; expected at least 1, because position 0 has no context.")
    return [
        (tuple(sequence), range(first, len(sequence) if last is None else min(last + 1, len(sequence))))
        for sequence, first, last in zip(sequences, firsts, lasts, strict=True)
    ]


def _check_requests(names, requests, scored_ids: frozenset[int], config) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    for name, (sequence, span) in zip(names, requests, strict=True):
        if scored_ids.isdisjoint(sequence[span.start : span.stop]):
            raise ScoringError(
                f"{name} of {len(sequence)} ids holds no target: expected one of the {len(scored_ids)} scored ids at "
                f"positions {span.start} to {span.stop - 1}. Remove the item from the suite, or check its units."
            )
        if longest is not None and len(sequence) > longest:
            raise ScoringError(f"{name} has {len(sequence)} ids; the model's context is at most {longest} ids.")


def _check_finite(names: Sequence[str], scores: list[SequenceScore]) -> None:
    broken = [name for name, score in zip(names, scores, strict=True) if not math.isfinite(score.log_likelihood)]
    if broken:
        raise ScoringError(
            f"{len(broken)} of {len(scores)} log-likelihoods are NaN or infinite, the first: {broken[0]}. "
            "Check the model's weights and its precision."
        )


def _score_trees(
    model: nn.Module,
    trees: list[PrefixTree],
    spans: Mapping[tuple[int, ...], list[range]],
    scored_ids: frozenset[int],
    vocabulary: str,
) -> dict[tuple[tuple[int, ...], range], SequenceScore]:
    """Return the score of every span of the sequences in one batch."""
    # Nodes of the targets of each request, as (row of the batch, node of the row).
    targets = {
        (sequence, span): (row, [path[index] for index in span if sequence[index] in scored_ids])
        for row, tree in enumerate(trees)
        for sequence, path in tree.paths.items()
        for span in spans[sequence]
    }
    nodes = sorted({(row, node) for row, own in targets.values() for node in own})
    log_probabilities = np.zeros((len(trees), max(len(tree.tokens) for tree in trees)))
    rows, columns = np.array(nodes).T
    log_probabilities[rows, columns] = _node_log_probabilities(
        model, trees, nodes, sorted(scored_ids) if vocabulary == "scored" else None
    )
    return {
        request: SequenceScore(float(log_probabilities[row, own].sum()), len(own))
        for request, (row, own) in targets.items()
    }


def _node_log_probabilities(
    model: nn.Module, trees: list[PrefixTree], nodes: list[tuple[int, int]], restrict_to: list[int] | None
) -> np.ndarray:
    """Return log p of nodes (row, node) given their ancestors, in float64, of shape `(nodes,)`."""
    # Integer parameters are the packed weights of a quantized model.
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    inputs = tree_inputs(trees, parameter.dtype, parameter.device)
    contexts = [(row, trees[row].parents[node]) for row, node in nodes]
    # Siblings have the same context, so they share one row of logits.
    index_of = {context: index for index, context in enumerate(dict.fromkeys(contexts))}
    logits = _logits_at(model, inputs, list(index_of))
    tokens = [trees[row].tokens[node] for row, node in nodes]
    return _log_probabilities(logits, [index_of[context] for context in contexts], tokens, restrict_to)


def _logits_at(model: nn.Module, inputs: dict[str, torch.Tensor], contexts: list[tuple[int, int]]) -> torch.Tensor:
    """Return the logits of shape `(contexts, vocabulary)` that follow the nodes (row, node)."""
    rows, columns = torch.tensor(contexts, device=inputs["input_ids"].device).T
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return model(**inputs, use_cache=False).logits[rows, columns]
    positions, columns = columns.unique(return_inverse=True)
    return model(**inputs, use_cache=False, logits_to_keep=positions).logits[rows, columns]


def _log_probabilities(
    logits: torch.Tensor, contexts: list[int], tokens: list[int], restrict_to: list[int] | None
) -> np.ndarray:
    """Return log p of each token, in float64.

    Args:
        logits: of shape `(contexts, vocabulary)`.
        contexts: for each token, the row of its context in `logits`.
        tokens: ids.
        restrict_to: ids in ascending order to normalize over; None for the whole vocabulary.
    """
    index, token = torch.tensor([contexts, tokens], device=logits.device)
    if restrict_to is not None:
        restrict = torch.tensor(restrict_to, device=logits.device)
        logits, token = logits[:, restrict], torch.searchsorted(restrict, token)
    normalisers = torch.cat([piece.double().logsumexp(1) for piece in logits.split(_POSITIONS_PER_CHUNK)])
    return (logits[index, token].double() - normalisers[index]).cpu().numpy()


def pair_credit(positive: SequenceScore, negative: SequenceScore, normalisation: str = "mean") -> float:
    """Return the credit of a pair: 1 if the positive half scores higher, 0.5 for a tie, 0 otherwise."""
    difference = positive.normalised(normalisation) - negative.normalised(normalisation)
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexities of a set of utterances under one model.

    Args:
        token_weighted (`float`): exp(sum NLL / sum N), perplexity per scored speech token, the "normalised perplexity"
            of the result tables. It is not comparable between models with different input or scored streams.
        utterance_mean (`float`): mean over utterances of exp(NLL / N).
        bits_per_second (`float`): sum NLL / ln 2 / seconds of audio, comparable across tokenizers. De-duplicated
            sequences carry no durations, so for them it counts the bits of the token identities, not of their ends.
        scores (`tuple[SequenceScore, ...]`): score of each utterance, for paired tests.
    """

    token_weighted: float
    utterance_mean: float
    bits_per_second: float
    scores: tuple[SequenceScore, ...]

    @classmethod
    def from_scores(cls, scores: Sequence[SequenceScore], seconds: float):
        """Aggregate the scores of utterances whose total duration is `seconds`."""
        if not scores or seconds <= 0:
            raise ScoringError(f"Perplexity needs utterances and their duration; found {len(scores)} in {seconds} s.")
        total = -sum(score.log_likelihood for score in scores)
        return cls(
            token_weighted=math.exp(total / sum(score.num_tokens for score in scores)),
            utterance_mean=sum(math.exp(-score.mean_log_likelihood) for score in scores) / len(scores),
            bits_per_second=total / math.log(2) / seconds,
            scores=tuple(scores),
        )


def score_perplexity(
    model: nn.Module,
    utterances: Sequence[SpeechStreams | Sequence[int]],
    *,
    sequence_format: SequenceFormat,
    vocabulary: str = "full",
    batch_size: int = 8,
    progress: str | None = None,
) -> PerplexityResult:
    """Compute the perplexity of held-out utterances.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        utterances: speech in a form that [`~SequenceFormat.speech_to_sequence`] accepts, such as the documents that
            `read_documents` returns. Repeated units must be kept, because the number of units gives the duration.
        sequence_format ([`SequenceFormat`]): format of the model; its `unit_rate` is the rate of the units, in Hz.
        vocabulary, batch_size, progress: as in [`score_sequences`].

    Returns:
        [`PerplexityResult`].

    Raises:
        ScoringError: if there are no utterances, or one cannot be scored.
    """
    named = {f"Utterance {index}": utterance for index, utterance in enumerate(utterances)}
    sequences = speech_to_sequences(named, sequence_format)
    scores = score_sequences(
        model,
        list(sequences.values()),
        scored_ids=sequence_format.scored_ids,
        vocabulary=vocabulary,
        batch_size=batch_size,
        names=list(sequences),
        progress=progress,
    )
    num_frames = sum(len(getattr(utterance, "units", utterance)) for utterance in utterances)
    return PerplexityResult.from_scores(scores, num_frames / sequence_format.unit_rate)
