"""Log-likelihoods of unit sequences under a causal language model: one forward pass, one definition for every score.

Notation: targets x_1..x_N are scored, L is the sum of log p(x_i | everything before it), in nats. `SequenceScore`
keeps (L, N); mean log-likelihood, pair credit, perplexity and bits per second derive from it.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from ..tokenization_tinywave import deduplicate, units_to_ids

VOCABULARIES = ("full", "units")
NORMALISATIONS = ("mean", "sum")
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


@dataclass(frozen=True)
class UnitSequenceFormat:
    """How raw units become the ids that a model reads; only the ids of units are ever scored.

    Args:
        unit_offset (`int`): id of unit 0.
        num_units (`int`): number of units; ids `unit_offset .. unit_offset + num_units - 1` are units.
        prefix_ids (`tuple[int, ...]`): ids before the first unit, such as BOS and the speech marker. Conditioned on,
            never scored. Without a prefix the first unit has no context, and N is the number of units minus one.
        bos (`bool`), marker (`bool`): what the prefix holds, for the record of a result.
        deduplicate (`bool`, defaults to `True`): merge runs of equal units into one.
    """

    unit_offset: int
    num_units: int
    prefix_ids: tuple[int, ...] = ()
    bos: bool = False
    marker: bool = False
    deduplicate: bool = True

    @classmethod
    def from_config(cls, config, *, bos: bool = True, marker: bool = True, deduplicate: bool = True):
        """The format that a TinyWave model is trained on: [BOS][Speech] unit unit ...

        Args:
            config (`TinyWaveConfig`): or any with `bos_token_id`, `speech_marker_id`, `unit_offset`, `num_units`.
        """
        prefix = ((config.bos_token_id,) if bos else ()) + ((config.speech_marker_id,) if marker else ())
        # In a model of speech alone BOS may be the marker itself.
        prefix = tuple(dict.fromkeys(prefix))
        return cls(config.unit_offset, config.num_units, prefix, bos, marker, deduplicate)

    @property
    def scored_ids(self) -> range:
        """The ids that count as targets."""
        return range(self.unit_offset, self.unit_offset + self.num_units)

    def units_to_sequence(self, units: Sequence[int]) -> list[int]:
        """Ids of one utterance.

        Args:
            units (`Sequence[int]`): raw units.

        Raises:
            ValueError: a unit outside `0 .. num_units - 1`.
        """
        if self.deduplicate:
            units = deduplicate(units)[0]
        # Of a configuration, `units_to_ids` reads the two fields that a format shares with it.
        return [*self.prefix_ids, *units_to_ids(units, self).tolist()]

    def to_record(self) -> dict:
        """The format as a JSON-ready dict."""
        return {**asdict(self), "prefix_ids": list(self.prefix_ids)}


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
    scored_ids: range,
    first_scored: int = 1,
    vocabulary: str = "full",
    batch_size: int = 8,
    progress: str | None = None,
) -> list[SequenceScore]:
    """Scores sequences with one forward pass each.

    Sequences are batched by length and padded on the right under an attention mask, so a score depends neither on the
    batch size nor on the other sequences. Dropout is off during scoring and the model's mode is restored.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        sequences (`Sequence[Sequence[int]]`): ids, prefix included.
        scored_ids (`range`): ids that count as targets, such as `UnitSequenceFormat.scored_ids`. Other ids (BOS,
            markers, text) are conditioned on only.
        first_scored (`int`, defaults to 1): position of the first target; earlier positions are a prompt. Position 0
            has no context and is never scored.
        vocabulary (`str`, defaults to `"full"`): "full" normalises over the model's vocabulary, "units" renormalises
            over `scored_ids`.
        batch_size (`int`, defaults to 8): sequences per forward pass.
        progress (`str`, *optional*): label of a progress bar; no bar without it.

    Returns:
        `list[SequenceScore]` in the order of `sequences`.

    Raises:
        ScoringError: a sequence without targets or longer than the model's context, or a log-likelihood that is NaN
            or infinite.
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"Unknown vocabulary {vocabulary!r}; expected one of {VOCABULARIES}.")
    if first_scored < 1 or batch_size < 1:
        raise ValueError(f"first_scored ({first_scored}) and batch_size ({batch_size}) are at least 1.")
    _check_sequences(sequences, scored_ids, first_scored, getattr(model, "config", None))
    keys = [tuple(sequence) for sequence in sequences]
    # Equal sequences are scored once: in two rows of a batch they would differ by rounding, and a tie would be lost.
    distinct = sorted(dict.fromkeys(keys), key=len, reverse=True)
    scores: dict[tuple[int, ...], SequenceScore] = {}
    with evaluation_mode(model), torch.no_grad(), tqdm(total=len(keys), desc=progress, disable=not progress) as bar:
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            scores.update(zip(batch, _score_batch(model, batch, scored_ids, first_scored, vocabulary), strict=True))
            bar.update(len(batch))
        bar.update(len(keys) - len(distinct))
    ordered = [scores[key] for key in keys]
    _check_finite(ordered)
    return ordered


def _check_sequences(sequences: Sequence[Sequence[int]], scored_ids: range, first_scored: int, config) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    for index, sequence in enumerate(sequences):
        if not any(token in scored_ids for token in sequence[first_scored:]):
            raise ScoringError(
                f"Sequence {index} of {len(sequence)} ids holds no target: expected an id of {scored_ids} "
                f"at position {first_scored} or later. Remove the item from the suite, or check its units."
            )
        if longest is not None and len(sequence) > longest:
            raise ScoringError(f"Sequence {index} has {len(sequence)} ids; the model reads at most {longest}.")


def _check_finite(scores: list[SequenceScore]) -> None:
    broken = [index for index, score in enumerate(scores) if not math.isfinite(score.log_likelihood)]
    if broken:
        raise ScoringError(
            f"{len(broken)} of {len(scores)} log-likelihoods are NaN or infinite, the first at sequence {broken[0]}. "
            "Check the model's weights and its precision."
        )


def _score_batch(model, batch: list[tuple[int, ...]], scored_ids: range, first_scored: int, vocabulary: str):
    device = next(model.parameters()).device
    length = max(map(len, batch))
    # The padding id is never attended to nor scored; any id of the vocabulary serves.
    ids = torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in batch], device=device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (length - len(sequence)) for sequence in batch], device=device)
    targets = ids[:, first_scored:]
    is_scored = (targets >= scored_ids.start) & (targets < scored_ids.stop) & mask[:, first_scored:].bool()
    logits = _logits_from(model, ids, mask, first_scored - 1)
    log_probabilities = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    log_probabilities[is_scored] = _target_log_probabilities(
        logits[is_scored], targets[is_scored], scored_ids if vocabulary == "units" else None
    )
    sums, counts = log_probabilities.sum(1).tolist(), is_scored.sum(1).tolist()
    return [SequenceScore(total, count) for total, count in zip(sums, counts, strict=True)]


def _logits_from(model, ids: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
    """Logits that predict positions `first + 1 ..`; shape `(batch, length - first - 1, vocabulary)`."""
    arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        positions = torch.arange(first, ids.shape[1] - 1, device=ids.device)
        return model(**arguments, logits_to_keep=positions).logits
    return model(**arguments).logits[:, first:-1]


def _target_log_probabilities(logits: torch.Tensor, targets: torch.Tensor, restrict_to: range | None) -> torch.Tensor:
    """log p of each target in float64: logits `(positions, vocabulary)`, targets `(positions,)`."""
    if restrict_to is not None:
        logits, targets = logits[:, restrict_to.start : restrict_to.stop], targets - restrict_to.start
    chunks = zip(logits.split(_POSITIONS_PER_CHUNK), targets.split(_POSITIONS_PER_CHUNK), strict=True)
    return torch.cat([_gather_log_softmax(piece.double(), target) for piece, target in chunks])


def _gather_log_softmax(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


def pair_credit(positive: SequenceScore, negative: SequenceScore, normalisation: str = "mean") -> float:
    """1 if the positive half scores higher, 0.5 on a tie, 0 otherwise."""
    difference = positive.normalised(normalisation) - negative.normalised(normalisation)
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexities of a set of utterances under one model.

    Args:
        token_weighted (`float`): exp(sum NLL / sum N), the "normalised perplexity" of the tables.
        utterance_mean (`float`): mean over utterances of exp(NLL / N).
        bits_per_second (`float`): sum NLL / ln 2 / seconds of audio, which compares across tokenizers. De-duplicated
            sequences carry no durations, so theirs is the rate of the unit identities only.
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
    utterances: Sequence[Sequence[int]],
    *,
    sequence_format: UnitSequenceFormat,
    unit_rate: float = 25.0,
    vocabulary: str = "full",
    batch_size: int = 8,
    progress: str | None = None,
) -> PerplexityResult:
    """Perplexity of held-out utterances.

    Args:
        utterances (`Sequence[Sequence[int]]`): raw units, not de-duplicated; their number gives the duration.
        unit_rate (`float`, defaults to 25.0): raw units per second (Hz).
    """
    scores = score_sequences(
        model,
        [sequence_format.units_to_sequence(units) for units in utterances],
        scored_ids=sequence_format.scored_ids,
        vocabulary=vocabulary,
        batch_size=batch_size,
        progress=progress,
    )
    return PerplexityResult.from_scores(scores, sum(map(len, utterances)) / unit_rate)
