"""Scores of the part in which the halves of a minimal pair differ.

The likelihood of a whole sequence also depends on the tokens that both halves share and on the unconditional
probability of the tokens that differ. Two scores of "On the Fallacy of Global Token Perplexity in Spoken Language
Model Evaluation" (arXiv 2601.06329) reduce these effects. Both score the continuation, which begins at the first token
in which the halves differ:

| score | of a half |
|---|---|
| "local" | L / N over the first tokens of the continuation, given what comes before |
| "pmi" | log p(continuation given what comes before) - log p(continuation alone), summed over tokens |

If one half is a prefix of the other, the continuation begins at the last token of the shorter half, so that both have
one. If the halves differ from the first speech token, there is no context: every PMI is 0 and the pair is a tie.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from .scoring import SequenceScore, score_sequences
from .sequence_formats import SequenceFormat
from .shared_prefixes import num_shared_tokens

CONTRASTS = {"local": "mean", "pmi": "sum"}
"""Name of a score of the continuation -> normalization of its log-likelihood, "mean" or "sum"."""
LOCAL_WINDOW = 25
"""Tokens of the local score: 1 s of units at 25 Hz, longer if repeats are dropped."""


def continuation_start(positive: Sequence[int], negative: Sequence[int]) -> int:
    """Return the position at which the continuations of two sequences begin, at least 1."""
    return max(1, min(num_shared_tokens(positive, negative), len(positive) - 1, len(negative) - 1))


def score_contrasts(
    model: nn.Module,
    halves: Mapping[str, Sequence[int]],
    contrast: str,
    *,
    sequence_format: SequenceFormat,
    window: int = LOCAL_WINDOW,
    **scoring,
) -> tuple[list[SequenceScore], list[SequenceScore]]:
    """Score the halves of minimal pairs as a whole, and their continuations.

    Each half is computed once for both scores; "pmi" also computes the continuation after the prefix alone.

    Args:
        model (`nn.Module`): a causal language model with the transformers interface.
        halves (`Mapping[str, Sequence[int]]`): name -> ids, prefix included, in the order positive half of the first
            pair, its negative half, positive half of the second pair, and so on.
        contrast (`str`): a key of `CONTRASTS`, "local" or "pmi".
        sequence_format ([`SequenceFormat`]): format with which the ids were made.
        window (`int`, defaults to 25): tokens of the continuation that "local" scores, whatever their stream.
        scoring: `vocabulary`, `batch_size` and `progress` of [`score_sequences`].

    Returns:
        `tuple`: two lists of [`SequenceScore`] with one entry per half, of the whole sequence and of the continuation.
        With "pmi" the log-likelihood of the latter is the PMI, in nats.

    Raises:
        ValueError: if the contrast is unknown, the window is less than one token, or "pmi" is used with a format that
            has neither BOS nor marker, so that the first token of a continuation alone has no probability.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"Unknown contrast {contrast!r}; expected one of {tuple(CONTRASTS)}.")
    if window < 1:
        raise ValueError(f"found window={window}; expected at least 1 token.")
    prefix = list(sequence_format.prefix_ids)
    if contrast == "pmi" and not prefix:
        raise ValueError(
            "found a sequence format without BOS and marker; PMI requires one of them, as the context of a "
            "continuation that is scored alone."
        )
    sequences, count = [list(sequence) for sequence in halves.values()], len(halves)
    pairs = zip(sequences[::2], sequences[1::2], strict=True)
    starts = [start for pair in pairs for start in [continuation_start(*pair)] * 2]
    ends = [len(sequence) - 1 for sequence in sequences]
    stops = ends if contrast == "pmi" else [start + window - 1 for start in starts]
    alone = [prefix + sequence[start:] for sequence, start in zip(sequences, starts, strict=True)]
    alone = alone if contrast == "pmi" else []
    scores = score_sequences(
        model,
        sequences + sequences + alone,
        scored_ids=sequence_format.scored_ids,
        first_scored=[1] * count + starts + [len(prefix)] * len(alone),
        last_scored=ends + stops + [len(sequence) - 1 for sequence in alone],
        names=[*halves, *halves, *(f"{name}, without its context," for name in halves)][: 2 * count + len(alone)],
        **scoring,
    )
    whole, continued, unconditional = scores[:count], scores[count : 2 * count], scores[2 * count :]
    return whole, [_subtract(*both) for both in zip(continued, unconditional, strict=True)] if alone else continued


def _subtract(conditional: SequenceScore, unconditional: SequenceScore) -> SequenceScore:
    difference = conditional.log_likelihood - unconditional.log_likelihood
    return SequenceScore(difference, conditional.num_tokens)
