"""Stories whose context and ending are speech or text: four directions, and the ending alone or the whole item.

A context or ending is a dict of "text" and of the lists "units", "pitch" and "style"; a text has None for units, and
an empty context neither text nor units. Text and streams become the sequence of `segments_to_ids`, with BOS and
without EOS: a marker stands where the modality begins or changes. Text after text is joined by a space.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..tokenization_tinywave import TEXT_MODALITY, Segment, SpeechStreams, modality_of_ids, segments_to_ids
from .scoring import ScoringError, SequenceScore, pair_credit, score_sequences
from .sequence_formats import SequenceFormat, SpeechSequenceFormat
from .suites import HALVES

SCORED = ("item", "ending")


def story_direction(stories: Sequence[Mapping]) -> str:
    """Modality of the contexts and of the endings of stories: "S->S", "T->T", "S->T" or "T->S".

    Raises:
        ValueError: both halves, or two stories, are of different modalities.
    """
    directions = set()
    for story in stories:
        endings = [_modality(story[half]) for half in HALVES]
        # An empty context has the modality of what follows.
        contexts = [_modality(story["context"])] if _is_given(story["context"]) else endings
        directions.update(f"{context}->{ending}" for context in contexts for ending in endings)
    if len(directions) > 1:
        raise ValueError(f"Found stories of the directions {sorted(directions)}; expected one. Score each by itself.")
    return directions.pop()


def _modality(part: Mapping) -> str:
    return "T" if part["units"] is None else "S"


def _is_given(part: Mapping) -> bool:
    return bool(part["text"] or part["units"])


def _is_units_alone(part: Mapping) -> bool:
    return part["units"] is not None and part["pitch"] is None and part["style"] is None


def is_speech_alone(story: Mapping) -> bool:
    """Whether the items of a story can be joined to pieces of speech: units alone, or one piece without a context."""
    if not _is_given(story["context"]):
        return all(_modality(story[half]) == "S" for half in HALVES)
    return all(_is_units_alone(story[name]) for name in ("context", *HALVES))


def join_speech(context: Mapping, ending: Mapping) -> dict:
    """Speech after speech, of a story that [`is_speech_alone`]."""
    return dict(ending) | {"units": [*(context["units"] or ()), *ending["units"]]}


def score_stories(
    model: nn.Module, stories: Sequence[Mapping], normalisation: str, **options
) -> tuple[list[float], dict]:
    """Credits of stories by their "mean" or "sum" log-likelihood, and what they depend on.

    The `options` and what is raised are those of [`score_story_halves`].
    """
    scores, convention = score_story_halves(model, stories, **options)
    return [pair_credit(*both, normalisation) for both in zip(scores[::2], scores[1::2], strict=True)], convention


def score_story_halves(
    model: nn.Module,
    stories: Sequence[Mapping],
    *,
    sequence_format: SequenceFormat,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scored: str = "item",
    vocabulary: str = "full",
    batch_size: int = 8,
    progress: str | None = None,
) -> tuple[list[SequenceScore], dict]:
    """Return the scores of the positive and negative halves of all stories in turn, and their settings.

    Args:
        stories: "id", "context", "positive" and "negative", all of one direction. The context may be empty where the
            whole item is scored.
        sequence_format: of the model. Text and streams need that of TinyWave: [`SpeechSequenceFormat`] with its
            defaults.
        tokenizer (*optional*): of the model; text needs it.
        scored (`str`, defaults to `"item"`): "item" scores context and ending, as published, "ending" only the tokens
            in which the item differs from its context alone, given that context. Tokens of text and of speech are
            targets; BOS and markers are not.
        vocabulary, batch_size, progress: as in [`score_sequences`].

    Raises:
        ValueError: text without a tokenizer, another format than it needs, an unknown `scored`.
        ScoringError: an item that cannot be read or scored; the message names it.
    """
    if scored not in SCORED:
        raise ValueError(f"Unknown scored {scored!r}; expected one of {SCORED}.")
    has_text = any(_modality(story[name]) == "T" for story in stories for name in ("context", *HALVES))
    if has_text and tokenizer is None:
        raise ValueError("Found text in the stories and no tokenizer; give the `tokenizer` of the model.")
    if not all(_is_units_alone(story[name]) for story in stories for name in ("context", *HALVES)):
        _check_format(sequence_format)
    items, first_scored = {}, []
    for story in stories:
        for half in HALVES:
            name = f"The {half} half of story {story['id']!r}"
            items[name] = _to_ids(name, (story["context"], story[half]), sequence_format, tokenizer)
            context = _to_ids(name, (story["context"],), sequence_format, tokenizer) if scored == "ending" else []
            first_scored.append(max(1, _shared_length(context, items[name])))
    scores = score_sequences(
        model,
        list(items.values()),
        scored_ids=[*sequence_format.scored_ids, *(_text_ids(sequence_format) if has_text else ())],
        first_scored=first_scored,
        vocabulary=vocabulary,
        batch_size=batch_size,
        names=list(items),
        progress=progress,
    )
    targets = f"text, {sequence_format.targets}" if has_text else sequence_format.targets
    return scores, {"sequence": sequence_format.to_record(), "targets": targets, "vocabulary": vocabulary}


def _check_format(sequence_format: SequenceFormat) -> None:
    """Raise `ValueError` for another format than the one of `segments_to_ids`."""
    if not isinstance(sequence_format, SpeechSequenceFormat) or not (
        sequence_format.bos and sequence_format.marker and sequence_format.deduplicate and not sequence_format.eos
    ):
        raise ValueError(
            f"Found text or streams in the stories and the format {sequence_format.to_record()}; they are read with "
            "BOS and markers, without repeats and without EOS: leave `sequence_format` and `deduplicate` out."
        )


def _to_ids(name: str, parts: Sequence[Mapping], sequence_format: SequenceFormat, tokenizer) -> list[int]:
    """Ids of the parts that are not empty, one after the other."""
    parts = [part for part in parts if _is_given(part)]
    try:
        if all(map(_is_units_alone, parts)):
            return sequence_format.speech_to_sequence([unit for part in parts for unit in part["units"]])
        return segments_to_ids(_parts_to_segments(parts), sequence_format.config, tokenizer)
    except ValueError as error:
        raise ScoringError(f"{name} cannot be read by this model: {error}") from error


def _parts_to_segments(parts: Sequence[Mapping]) -> list[Segment]:
    segments: list[Segment] = []
    for part in parts:
        if part["units"] is not None:
            segments.append(("speech", SpeechStreams(part["units"], part["pitch"], part["style"])))
        else:
            space = " " if segments and segments[-1][0] == "text" else ""
            segments.append(("text", space + part["text"].strip()))
    return segments


def _text_ids(sequence_format: SpeechSequenceFormat) -> list[int]:
    """All ids of text, without special ids."""
    ids = np.arange(sequence_format.config.vocab_size)
    return np.flatnonzero(modality_of_ids(ids, sequence_format.config) == TEXT_MODALITY).tolist()


def _shared_length(context: list[int], item: list[int]) -> int:
    """How many ids both begin with: a tokenizer may merge the end of a text with what follows."""
    differing = (index for index, pair in enumerate(zip(context, item, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(context), len(item)))
