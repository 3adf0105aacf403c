"""Suites of stories read across modalities: context and endings as speech or as text, in four directions.

| direction | context -> ending | what it needs of a manifest |
|---|---|---|
| speech-speech | S->S | nothing: the halves of any suite, whole stories encoded in one piece |
| text-text | T->T | the texts of the halves |
| speech-text, text-speech | S->T, T->S | context and endings apart, with their texts |
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..configuration_tinywave import STREAM_FIELDS
from .scoring import NORMALISATIONS
from .sequence_formats import SpeechSequenceFormat
from .statistics import NUM_RESAMPLES
from .story_sequences import score_story_halves
from .suite_encoding import NOT_STATED
from .suites import (
    HALVES,
    STORY_PARTS,
    Pair,
    SuiteError,
    SuiteResult,
    check_streams,
    pair_row,
    summarise_rows,
    validate_pairs,
)

SPEECH_TO_SPEECH = "speech-speech"
DIRECTIONS = {SPEECH_TO_SPEECH: "S->S", "text-text": "T->T", "speech-text": "S->T", "text-speech": "T->S"}
"""Name of a direction -> how papers write it."""

_NAMED = 20
_NOTHING = {"text": "", **dict.fromkeys(STREAM_FIELDS.values()), "units": []}


@dataclass(frozen=True)
class StorySuite:
    """Pairs of a manifest in a direction other than speech to speech, and the tokenizer of the models that read them.

    Raises [`SuiteError`] for an unknown direction, and naming the pairs that do not have what it needs.
    """

    pairs: Sequence[Pair]
    direction: str
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self):
        validate_pairs(self.pairs)
        if self.direction not in DIRECTIONS or self.direction == SPEECH_TO_SPEECH:
            known = [name for name in DIRECTIONS if name != SPEECH_TO_SPEECH]
            raise SuiteError(f"Found the direction {self.direction!r}; expected one of {known}.")
        if self.pairs[0].story is None and self.direction != "text-text":
            raise SuiteError(
                f"Suite {self.pairs[0].suite!r} holds whole stories, of which {self.direction} cannot tell context "
                "and ending apart; expected a release with <i>_mutual files, or a manifest with a column context."
            )
        if silent := [pair.id for pair in self.pairs if not all(map(_has_text, _texts(pair, self.direction)))]:
            more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
            raise SuiteError(
                f"{len(silent)} pairs of suite {self.pairs[0].suite!r} have no text, which {self.direction} reads: "
                f"{', '.join(silent[:_NAMED])}{more}. A release has it in a .txt file beside each recording, a "
                "manifest in the columns context_text, positive_text and negative_text."
            )

    @property
    def name(self) -> str:
        """Of the suite, with its direction."""
        return f"{self.pairs[0].suite}_{self.direction}"

    def evaluate(
        self,
        model: nn.Module,
        *,
        sequence_format: SpeechSequenceFormat,
        normalisation: str = "mean",
        vocabulary: str = "full",
        batch_size: int = 8,
        encoder: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> SuiteResult:
        """Score both halves of every story, context and ending, as [`evaluate_suite`] does those of speech alone.

        Raises `ValueError` for a `normalisation` other than "mean" and "sum", and what [`score_story_halves`] raises.
        """
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"Stories with text are compared by {NORMALISATIONS}; found {normalisation!r}.")
        if self.direction != "text-text":
            check_streams(self.pairs[0], sequence_format.streams, encoder)
        scores, convention = score_story_halves(
            model,
            [_to_story(pair, self.direction) for pair in self.pairs],
            sequence_format=sequence_format,
            tokenizer=self.tokenizer,
            vocabulary=vocabulary,
            batch_size=batch_size,
            progress=self.name if progress else None,
        )
        rows = [
            pair_row(pair, scores[index : index + 2], (), normalisation)
            for index, pair in zip(range(0, len(scores), 2), self.pairs, strict=True)
        ]
        convention |= {
            "direction": DIRECTIONS[self.direction],
            "normalisation": normalisation,
            "tie": 0.5,
            "grouping": "group",
            "num_resamples": NUM_RESAMPLES,
            "seed": seed,
            "encoder": self.pairs[0].encoder,
        }
        return summarise_rows(self.name, rows, normalisation, convention, seed)


def _has_text(text: str) -> bool:
    return bool(text.strip()) and text != NOT_STATED


def _texts(pair: Pair, direction: str) -> list[str]:
    """The texts that a direction reads."""
    if pair.story is None:
        return [pair.positive_text, pair.negative_text]
    context, ending = direction.split("-")
    parts = [*STORY_PARTS[:1] * (context == "text"), *HALVES * (ending == "text")]
    return [pair.story[part]["text"] for part in parts]


def _to_story(pair: Pair, direction: str) -> dict:
    """What [`score_story_halves`] reads; a whole story has an empty context."""
    if pair.story is None:
        texts = {half: _NOTHING | {"text": getattr(pair, f"{half}_text"), "units": None} for half in HALVES}
        return {"id": pair.id, "context": _NOTHING, **texts}
    modalities = dict(zip(STORY_PARTS, (direction.split("-")[0], *[direction.split("-")[1]] * 2), strict=True))
    return {"id": pair.id} | {part: _in_modality(pair.story[part], name) for part, name in modalities.items()}


def _in_modality(piece: dict, modality: str) -> dict:
    return piece | (dict.fromkeys(STREAM_FIELDS.values()) if modality == "text" else {"text": ""})
