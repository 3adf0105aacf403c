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

from ..configuration_tinywave import TinyWaveConfig
from ..tokenization_tinywave import SpeechStreams, streams_to_ids, units_to_ids

VOCABULARIES = ("full", "scored")
NORMALISATIONS = ("mean", "sum")
STREAM_FIELDS = {"unit": "units", "pitch": "pitch", "style": "style"}
"""Name of a stream in `TinyWaveConfig.stream_ranges` -> its field in `SpeechStreams`."""

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
class SpeechSequenceFormat:
    """How speech becomes the ids that a model reads, and which of them are scored.

    A model without pitch and style reads units; one with them reads units, pitch and style merged in order of time
    (`streams_to_ids`). The prefix, BOS and speech marker, is conditioned on and never scored.

    Args:
        config (`TinyWaveConfig`): of the model; its id layout says which streams it has.
        bos, marker (`bool`, default True): whether the sequence begins with BOS, and with the speech marker. With
            neither, the first token has no context and is not scored.
        deduplicate (`bool`, default True): merge runs of equal units, and of equal pitch tokens, into one token. Style
            is never merged. Without pitch and style it can be switched off.
        scored_streams (`tuple[str, ...]`, *optional*): streams whose tokens are targets, of "unit", "pitch" and
            "style". Default: all that the model has, as SPIRIT-LM does (arXiv 2402.05755).

    Raises `ValueError` for a stream to score that the model does not have, and for merged streams with repeats.
    """

    config: TinyWaveConfig
    bos: bool = True
    marker: bool = True
    deduplicate: bool = True
    scored_streams: tuple[str, ...] | None = None

    def __post_init__(self):
        scored = self.streams if self.scored_streams is None else tuple(self.scored_streams)
        if not scored or set(scored) - set(self.streams):
            raise ValueError(f"Found scored_streams {scored}; this model has {self.streams}, expected some of them.")
        if not self.deduplicate and len(self.streams) > 1:
            raise ValueError("A model with pitch or style reads merged streams without repeats; set deduplicate=True.")
        object.__setattr__(self, "scored_streams", tuple(name for name in self.streams if name in scored))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are read: "unit", and "pitch" and "style" where the model has them."""
        return tuple(name for name in STREAM_FIELDS if name in self.config.stream_ranges())

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids before the first token of speech."""
        prefix = (self.config.bos_token_id,) * self.bos + (self.config.speech_marker_id,) * self.marker
        # In a model of speech alone BOS may be the marker itself.
        return tuple(dict.fromkeys(prefix))

    @property
    def scored_ids(self) -> list[int]:
        """The ids that count as targets, in ascending order."""
        ranges = self.config.stream_ranges()
        return sorted(index for name in self.scored_streams for index in ranges[name])

    def speech_to_sequence(self, speech: SpeechStreams | Sequence[int]) -> list[int]:
        """Ids of one utterance.

        Args:
            speech: timed [`SpeechStreams`], or anything else with `units`, `pitch` and `style`, such as
                `AlignedDocument`; or raw units alone. Repeats are kept; streams that the model does not have are left
                out.

        Raises:
            ValueError: a missing stream, a value out of range, streams of different duration, or parsed streams.
        """
        if getattr(speech, "ids", None) is not None:
            raise ValueError("found streams parsed from ids, which know no time; expected timed streams")
        fields = {STREAM_FIELDS[name]: getattr(speech, STREAM_FIELDS[name], None) for name in self.streams}
        streams = SpeechStreams(**{**fields, "units": getattr(speech, "units", speech)})
        convert = streams_to_ids if self.deduplicate else _units_with_repeats_to_ids
        return [*self.prefix_ids, *convert(streams, self.config).tolist()]

    def to_record(self) -> dict:
        """The format as a JSON-ready dict; "scored_ids" holds the first and the last id of each scored stream."""
        ranges = self.config.stream_ranges()
        return {
            "streams": list(self.streams),
            "scored_streams": list(self.scored_streams),
            "scored_ids": {name: [ranges[name].start, ranges[name].stop - 1] for name in self.scored_streams},
            "deduplicated_streams": [name for name in self.streams if self.deduplicate and name != "style"],
            "prefix_ids": list(self.prefix_ids),
            "bos": self.bos,
            "marker": self.marker,
        }


def _units_with_repeats_to_ids(streams: SpeechStreams, config: TinyWaveConfig) -> np.ndarray:
    return units_to_ids(streams.units, config)


def speech_to_sequences(speech: Mapping[str, Any], sequence_format: SpeechSequenceFormat) -> dict[str, list[int]]:
    """Ids of each utterance, by its name.

    Args:
        speech (`Mapping`): name -> what [`~SpeechSequenceFormat.speech_to_sequence`] takes.

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
    first_scored: int = 1,
    vocabulary: str = "full",
    batch_size: int = 8,
    names: Sequence[str] | None = None,
    progress: str | None = None,
) -> list[SequenceScore]:
    """Scores sequences with one forward pass each.

    Sequences are batched by length and padded on the right under an attention mask, so a score depends neither on the
    batch size nor on the other sequences. Dropout is off during scoring and the model's mode is restored.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        sequences (`Sequence[Sequence[int]]`): ids, prefix included.
        scored_ids (`Collection[int]`): ids that count as targets, such as `SpeechSequenceFormat.scored_ids`. Other
            ids (BOS, markers, text) are conditioned on only.
        first_scored (`int`, defaults to 1): position of the first target; earlier positions are a prompt. Position 0
            has no context and is never scored.
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
    if first_scored < 1 or batch_size < 1:
        raise ValueError(f"first_scored ({first_scored}) and batch_size ({batch_size}) are at least 1.")
    names = names or [f"Sequence {index}" for index in range(len(sequences))]
    _check_sequences(names, sequences, frozenset(scored_ids), first_scored, getattr(model, "config", None))
    scored = torch.tensor(sorted(scored_ids), device=next(model.parameters()).device)
    keys = [tuple(sequence) for sequence in sequences]
    # Equal sequences are scored once: in two rows of a batch they would differ by rounding, and a tie would be lost.
    distinct = sorted(dict.fromkeys(keys), key=len, reverse=True)
    scores: dict[tuple[int, ...], SequenceScore] = {}
    with evaluation_mode(model), torch.no_grad(), tqdm(total=len(keys), desc=progress, disable=not progress) as bar:
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            scores.update(zip(batch, _score_batch(model, batch, scored, first_scored, vocabulary), strict=True))
            bar.update(len(batch))
        bar.update(len(keys) - len(distinct))
    ordered = [scores[key] for key in keys]
    _check_finite(names, ordered)
    return ordered


def _check_sequences(names, sequences, scored_ids: frozenset[int], first_scored: int, config) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    for name, sequence in zip(names, sequences, strict=True):
        if scored_ids.isdisjoint(sequence[first_scored:]):
            raise ScoringError(
                f"{name} of {len(sequence)} ids holds no target: expected one of the {len(scored_ids)} scored ids at "
                f"position {first_scored} or later. Remove the item from the suite, or check its units."
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


def _score_batch(model, batch: list[tuple[int, ...]], scored_ids: torch.Tensor, first_scored: int, vocabulary: str):
    device = next(model.parameters()).device
    length = max(map(len, batch))
    # The padding id is never attended to nor scored; any id of the vocabulary serves.
    ids = torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in batch], device=device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (length - len(sequence)) for sequence in batch], device=device)
    targets = ids[:, first_scored:]
    is_scored = torch.isin(targets, scored_ids) & mask[:, first_scored:].bool()
    logits = _logits_from(model, ids, mask, first_scored - 1)
    log_probabilities = torch.zeros(targets.shape, dtype=torch.float64, device=device)
    log_probabilities[is_scored] = _target_log_probabilities(
        logits[is_scored], targets[is_scored], scored_ids if vocabulary == "scored" else None
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


def _target_log_probabilities(
    logits: torch.Tensor, targets: torch.Tensor, restrict_to: torch.Tensor | None
) -> torch.Tensor:
    """log p of each target in float64: logits `(positions, vocabulary)`, targets `(positions,)`.

    `restrict_to`: `(ids,)` in ascending order, the vocabulary to normalise over; None for all of it.
    """
    if restrict_to is not None:
        logits, targets = logits[:, restrict_to], torch.searchsorted(restrict_to, targets)
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
    sequence_format: SpeechSequenceFormat,
    vocabulary: str = "full",
    batch_size: int = 8,
    progress: str | None = None,
) -> PerplexityResult:
    """Perplexity of held-out utterances.

    Args:
        utterances: each as [`~SpeechSequenceFormat.speech_to_sequence`] takes it, such as the documents that
            `read_documents` returns; repeats kept, for the number of units gives the duration.
        sequence_format ([`SpeechSequenceFormat`]): of the model; its `config.unit_rate` is that of the units.
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
    return PerplexityResult.from_scores(scores, num_frames / sequence_format.config.unit_rate)
