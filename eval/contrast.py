"""Scores of the part in which the halves of a minimal pair differ.

The likelihood of whole sequences mixes what a pair is about with what its halves share and with how likely the other
tokens are by themselves. Two scores of "On the Fallacy of Global Token Perplexity in Spoken Language Model Evaluation"
(arXiv 2601.06329) look closer. Both concern the continuation, which begins at the first token in which the halves
differ:

| score | of a half |
|---|---|
| "local" | L / N over the first tokens of the continuation, given what comes before |
| "pmi" | log p(continuation given what comes before) - log p(continuation alone), summed over tokens |

Where one half is the beginning of the other, the continuation begins at its last token, so that both halves have one.
Where the halves differ from the first token of speech on, there is no context: every PMI is 0, and the pair is a tie.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from .scoring import SequenceScore, score_sequences
from .sequence_formats import SequenceFormat
from .shared_prefixes import num_shared_tokens

CONTRASTS = {"local": "mean", "pmi": "sum"}
"""Name of a score of the continuation -> how its tokens are summarised."""
LOCAL_WINDOW = 25
"""Tokens of the local score: one second of units at 25 Hz, more where repeats are dropped."""


def continuation_start(positive: Sequence[int], negative: Sequence[int]) -> int:
    """Position at which the continuations of two sequences begin, at least 1."""
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
    """Scores halves of pairs as a whole, and their continuations.

    Each half is read once for both; "pmi" reads the prefix and the continuation alone as well.

    Args:
        halves (`Mapping[str, Sequence[int]]`): name -> ids, prefix included; the positive half of the first pair, its
            negative half, the positive half of the second pair, and so on.
        contrast (`str`): a key of `CONTRASTS`.
        sequence_format ([`SequenceFormat`]): by which the ids were made.
        window (`int`, defaults to 25): tokens of the continuation that "local" scores, whatever stream they are of.
        scoring: `vocabulary`, `batch_size` and `progress` of [`score_sequences`].

    Returns:
        Two lists of [`SequenceScore`], one score a half: of the whole, and of the continuation. The log-likelihood of
        the latter is the PMI, in nats, where that is asked for.

    Raises:
        ValueError: an unknown contrast, a window of less than one token, or PMI without BOS and marker, where the
            first token of a continuation alone has no probability.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"Unknown contrast {contrast!r}; expected one of {tuple(CONTRASTS)}.")
    if window < 1:
        raise ValueError(f"window is {window} tokens; expected at least 1.")
    prefix = list(sequence_format.prefix_ids)
    if contrast == "pmi" and not prefix:
        raise ValueError("PMI needs a sequence format with BOS or a marker: a continuation alone begins with it.")
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
