"""Log-likelihoods of speech under a causal language model: one forward pass, one definition for every score.

Notation: targets x_1..x_N are scored, L is the sum of log p(x_i | everything before it), in nats. `SequenceScore`
keeps (L, N); mean log-likelihood, pair credit, perplexity and bits per second derive from it.
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

# Up to this size the projections of a layer cost more than its attention.
_NODES_PER_TREE = 256
# Positions turned into float64 log-probabilities at once; bounds memory for large vocabularies.
_POSITIONS_PER_CHUNK = 1024


class ScoringError(ValueError):
    """A sequence that cannot be scored. Nothing is dropped silently: the message names the sequence."""


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
        """L / N in nats per token."""
        return self.log_likelihood / self.num_tokens

    def normalised(self, normalisation: str) -> float:
        """L / N for "mean", L for "sum"."""
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"Unknown normalisation {normalisation!r}; expected one of {NORMALISATIONS}.")
        return self.mean_log_likelihood if normalisation == "mean" else self.log_likelihood


def speech_to_sequences(speech: Mapping[str, Any], sequence_format: SequenceFormat) -> dict[str, list[int]]:
    """Ids of each utterance, by its name.

    Args:
        speech (`Mapping`): name -> what [`~SequenceFormat.speech_to_sequence`] takes.

    Raises:
        ScoringError: speech that the model cannot read; the message names it.
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
    """Puts every module in evaluation mode and restores each module's own mode afterwards."""
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
    """Scores sequences with one forward pass each, or less: where the architecture allows it, what several sequences
    begin with is read once.

    A score depends neither on the batch size nor on the other sequences, beyond the rounding of the forward pass. The
    same sequence may come several times, with other spans of targets, and is read once. Dropout is off during scoring
    and the model's mode is restored.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        sequences (`Sequence[Sequence[int]]`): ids, prefix included.
        scored_ids (`Collection[int]`): ids that count as targets, such as `SequenceFormat.scored_ids`. Other ids (BOS,
            markers, text) are conditioned on only.
        first_scored (`int` or one per sequence, defaults to 1): position of the first target; earlier positions are a
            prompt. Position 0 has no context and is never scored.
        last_scored (`int` or one per sequence, *optional*): position of the last target. Default, and where it lies
            beyond it: the end.
        vocabulary (`str`, defaults to `"full"`): "full" normalises over the model's vocabulary, "scored"
            renormalises over `scored_ids`.
        batch_size (`int`, defaults to 8): sequences per forward pass.
        names (`Sequence[str]`, *optional*): of the sequences, for the messages of errors. Default: "Sequence 0" ...
        progress (`str`, *optional*): label of a progress bar; no bar without it.

    Returns:
        `list[SequenceScore]` in the order of `sequences`.

    Raises:
        ScoringError: a sequence without targets or longer than the model's context, or a log-likelihood that is NaN
            or infinite.
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"Unknown vocabulary {vocabulary!r}; expected one of {VOCABULARIES}.")
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) is at least 1.")
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
    """Each sequence with the span of positions that may hold its targets."""
    count = len(sequences)
    firsts = [first_scored] * count if isinstance(first_scored, int) else list(first_scored)
    lasts = [last_scored] * count if isinstance(last_scored, int | None) else list(last_scored)
    if len(firsts) != count or len(lasts) != count:
        raise ValueError(
            f"Found {len(firsts)} first_scored and {len(lasts)} last_scored for {count} sequences; expected one each."
        )
    if min(firsts, default=1) < 1:
        raise ValueError(f"first_scored ({min(firsts)}) is at least 1: the first token has no context.")
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
            raise ScoringError(f"{name} has {len(sequence)} ids; the model reads at most {longest}.")


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
    """Scores of every span of the sequences in one batch."""
    # Nodes of the targets of each request: row of the batch, and node of the row.
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
    """log p of some nodes, given as (row, node), after their ancestors; float64 of shape `(nodes,)`."""
    # Integer parameters are the packed weights of a quantized model.
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    inputs = tree_inputs(trees, parameter.dtype, parameter.device)
    contexts = [(row, trees[row].parents[node]) for row, node in nodes]
    # Siblings share their context, and so one row of logits.
    index_of = {context: index for index, context in enumerate(dict.fromkeys(contexts))}
    logits = _logits_at(model, inputs, list(index_of))
    tokens = [trees[row].tokens[node] for row, node in nodes]
    return _log_probabilities(logits, [index_of[context] for context in contexts], tokens, restrict_to)


def _logits_at(model: nn.Module, inputs: dict[str, torch.Tensor], contexts: list[tuple[int, int]]) -> torch.Tensor:
    """Logits of shape `(contexts, vocabulary)` after some nodes, given as (row, node)."""
    rows, columns = torch.tensor(contexts, device=inputs["input_ids"].device).T
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return model(**inputs, use_cache=False).logits[rows, columns]
    positions, columns = columns.unique(return_inverse=True)
    return model(**inputs, use_cache=False, logits_to_keep=positions).logits[rows, columns]


def _log_probabilities(
    logits: torch.Tensor, contexts: list[int], tokens: list[int], restrict_to: list[int] | None
) -> np.ndarray:
    """log p of each token in float64: logits `(contexts, vocabulary)`, and for each token the row of its context.

    `restrict_to`: ids in ascending order, the vocabulary to normalise over; None for all of it.
    """
    index, token = torch.tensor([contexts, tokens], device=logits.device)
    if restrict_to is not None:
        restrict = torch.tensor(restrict_to, device=logits.device)
        logits, token = logits[:, restrict], torch.searchsorted(restrict, token)
    normalisers = torch.cat([piece.double().logsumexp(1) for piece in logits.split(_POSITIONS_PER_CHUNK)])
    return (logits[index, token].double() - normalisers[index]).cpu().numpy()


def pair_credit(positive: SequenceScore, negative: SequenceScore, normalisation: str = "mean") -> float:
    """1 if the positive half scores higher, 0.5 on a tie, 0 otherwise."""
    difference = positive.normalised(normalisation) - negative.normalised(normalisation)
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexities of a set of utterances under one model.

    Args:
        token_weighted (`float`): exp(sum NLL / sum N), the "normalised perplexity" of the tables: per scored token of
            speech. Models that read or score other streams cannot be compared by it.
        utterance_mean (`float`): mean over utterances of exp(NLL / N).
        bits_per_second (`float`): sum NLL / ln 2 / seconds of audio, which compares across tokenizers. De-duplicated
            sequences carry no durations, so theirs is the rate of what the tokens are, not of when they end.
        scores (`tuple[SequenceScore, ...]`): one per utterance, for paired tests.
    """

    token_weighted: float
    utterance_mean: float
    bits_per_second: float
    scores: tuple[SequenceScore, ...]

    @classmethod
    def from_scores(cls, scores: Sequence[SequenceScore], seconds: float):
        """Aggregates scores of utterances that last `seconds` in total."""
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
    """Perplexity of held-out utterances.

    Args:
        utterances: each as [`~SequenceFormat.speech_to_sequence`] takes it, such as the documents that
            `read_documents` returns; repeats kept, for the number of units gives the duration.
        sequence_format ([`SequenceFormat`]): of the model; its `unit_rate` is that of the units.
        vocabulary, batch_size, progress: as in [`score_sequences`].
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
