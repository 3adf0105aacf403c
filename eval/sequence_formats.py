"""Conversion of speech to the input ids of a language model, and the choice of the ids that are scored.

[`SpeechSequenceFormat`] is for models with a `TinyWaveConfig`, [`UnitSequenceFormat`] for any other causal language
model of units, whose ids the caller specifies. The format determines N, the number of targets of T speech tokens:

| format | N | used by |
|---|---|---|
| BOS or a marker, without EOS | T | SPIRIT-LM (arXiv 2402.05755), the default here |
| BOS and EOS | T + 1 | slamkit |
| neither | T - 1 | the baselines of SALMon (arXiv 2409.07437) |
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..configuration_tinywave import STREAM_FIELDS, TinyWaveConfig
from ..tokenization_tinywave import SpeechStreams, deduplicate, streams_to_ids, units_to_ids


class SequenceFormat(ABC):
    """Base class of sequence formats: `[BOS] [marker] speech [EOS]`, where each bracketed id is optional.

    The prefix serves as context and is never scored. EOS, if the format has it, is a target.
    """

    streams: tuple[str, ...]
    """Streams in the sequence: "unit", and "pitch" and "style" if the model has them."""
    prefix_ids: tuple[int, ...]
    """Ids before the first speech token."""
    closing_ids: tuple[int, ...]
    """A tuple of the EOS id, or an empty tuple."""
    unit_rate: float
    """Units per second (Hz) before repeats are dropped."""

    @property
    @abstractmethod
    def ids_of_scored_streams(self) -> dict[str, Sequence[int]]:
        """Ids of each scored stream, by its name."""

    @abstractmethod
    def streams_to_ids(self, streams: SpeechStreams) -> np.ndarray:
        """Return the ids of timed streams, without prefix and EOS.

        Raises:
            ValueError: if the model has no ids for the streams.
        """

    @property
    def scored_ids(self) -> list[int]:
        """Ids that count as targets, in ascending order."""
        return sorted({*self.closing_ids, *(index for ids in self.ids_of_scored_streams.values() for index in ids)})

    @property
    def targets(self) -> str:
        """Description of the scored tokens, for records."""
        return (
            "tokens of the scored streams and EOS; BOS and markers are not scored"
            if self.closing_ids
            else "tokens of the scored streams; BOS, markers and EOS are not scored"
        )

    def speech_to_sequence(self, speech: SpeechStreams | Sequence[int]) -> list[int]:
        """Return the ids of one utterance, with prefix and EOS.

        Args:
            speech: timed [`SpeechStreams`] or another object with `units`, `pitch` and `style`, such as
                `AlignedDocument`; or a sequence of raw units. Repeats must be included. Streams that the model does
                not have are ignored.

        Raises:
            ValueError: if a stream is missing, a value is out of range, streams differ in duration, or the streams
                were parsed from ids.
        """
        if getattr(speech, "ids", None) is not None:
            raise ValueError("found streams parsed from ids, which have no timing; expected timed streams")
        fields = {STREAM_FIELDS[name]: getattr(speech, STREAM_FIELDS[name], None) for name in self.streams}
        streams = SpeechStreams(**{**fields, "units": getattr(speech, "units", speech)})
        return [*self.prefix_ids, *self.streams_to_ids(streams).tolist(), *self.closing_ids]

    def to_record(self) -> dict:
        """Return the format as a JSON-serializable dict; "scored_ids" is the id range of each scored stream."""
        scored = self.ids_of_scored_streams
        return {
            "streams": list(self.streams),
            "scored_streams": list(scored),
            "scored_ids": {name: [min(ids), max(ids)] for name, ids in scored.items()},
            "deduplicated_streams": [name for name in self.streams if self.deduplicate and name != "style"],
            "prefix_ids": list(self.prefix_ids),
            "closing_ids": list(self.closing_ids),
            "bos": self.bos,
            "marker": self.marker,
            "eos": bool(self.closing_ids),
        }

    def _check_closing(self) -> None:
        if set(self.closing_ids) & set(self.prefix_ids[1:]):
            raise ValueError(
                f"Found id {self.closing_ids[0]} both as EOS and as marker, which would be scored; leave one out."
            )


@dataclass(frozen=True)
class SpeechSequenceFormat(SequenceFormat):
    """Sequence format of a model with a `TinyWaveConfig`.

    The speech of a model without pitch and style consists of units; that of a model with them consists of units, pitch
    and style tokens merged in time order (`streams_to_ids`).

    Args:
        config (`TinyWaveConfig`): config of the model; its id layout defines the streams.
        bos, marker (`bool`, defaults to True): whether the sequence begins with BOS, and with the speech marker. With
            neither, the first token has no context and is not scored.
        deduplicate (`bool`, defaults to True): merge each run of equal units, and of equal pitch tokens, into one
            token. Style tokens are never merged. It can be disabled only for models without pitch and style.
        scored_streams (`tuple[str, ...]`, *optional*): streams whose tokens are targets, out of "unit", "pitch" and
            "style". Default: all streams of the model, as in SPIRIT-LM (arXiv 2402.05755).
        eos (`bool`, defaults to False): whether the sequence ends with EOS, which is then a target.

    Raises:
        ValueError: if the config is of another class, a stream to score is not one of the model's, or `deduplicate` is
            False for a model with pitch or style.
    """

    config: TinyWaveConfig
    bos: bool = True
    marker: bool = True
    deduplicate: bool = True
    scored_streams: tuple[str, ...] | None = None
    eos: bool = False

    def __post_init__(self):
        if not hasattr(self.config, "stream_ranges"):
            raise ValueError(
                f"Found a {type(self.config).__name__}, which does not define the meaning of its ids; expected a "
                "TinyWaveConfig. For other models, pass a UnitSequenceFormat with the ids of the units."
            )
        scored = self.streams if self.scored_streams is None else tuple(self.scored_streams)
        if not scored or set(scored) - set(self.streams):
            raise ValueError(f"Found scored_streams {scored}; this model has {self.streams}, expected some of them.")
        if not self.deduplicate and len(self.streams) > 1:
            raise ValueError("found deduplicate=False for a model with pitch or style tokens; set deduplicate=True.")
        object.__setattr__(self, "scored_streams", tuple(name for name in self.streams if name in scored))
        self._check_closing()

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(name for name in STREAM_FIELDS if name in self.config.stream_ranges())

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        prefix = (self.config.bos_token_id,) * self.bos + (self.config.speech_marker_id,) * self.marker
        # In a model of speech alone BOS may be the marker itself.
        return tuple(dict.fromkeys(prefix))

    @property
    def closing_ids(self) -> tuple[int, ...]:
        return (self.config.eos_token_ids[0],) * self.eos

    @property
    def unit_rate(self) -> float:
        return self.config.unit_rate

    @property
    def ids_of_scored_streams(self) -> dict[str, Sequence[int]]:
        ranges = self.config.stream_ranges()
        return {name: ranges[name] for name in self.scored_streams}

    def streams_to_ids(self, streams: SpeechStreams) -> np.ndarray:
        return streams_to_ids(streams, self.config) if self.deduplicate else units_to_ids(streams.units, self.config)


@dataclass(frozen=True)
class UnitSequenceFormat(SequenceFormat):
    """Sequence format of any causal language model of units, with the ids given by the caller.

    | model | ids | arguments |
    |---|---|---|
    | slamkit's UnitLM | padding 0, BOS and EOS 1, units | `range(2, 502), bos_token_id=1, eos_token_id=1` |
    | SPIRIT-LM | text, `[Text]`, `[Speech]`, units | `range(32002, 32503), bos_token_id=1, marker_id=32001` |
    | TWIST, as SALMon scores it | units from `offset` on | `range(offset, offset + 500)` |

    Args:
        unit_ids (`Sequence[int]`): the id of each unit, such as `range(offset, offset + num_units)`, or a list.
        bos_token_id, marker_id (`int`, *optional*): ids at the beginning of the sequence. By default there are none;
            the first unit then has no context and is not scored.
        eos_token_id (`int`, *optional*): id at the end of the sequence, which is a target. By default there is none.
        deduplicate (`bool`, defaults to True): merge each run of equal units into one token.
        unit_rate (`float`, defaults to 25.0): units per second (Hz) before repeats are dropped.

    Raises:
        ValueError: if two units, or a unit and a special token, share an id.
    """

    unit_ids: Sequence[int]
    bos_token_id: int | None = None
    marker_id: int | None = None
    eos_token_id: int | None = None
    deduplicate: bool = True
    unit_rate: float = 25.0

    def __post_init__(self):
        special = {*self.prefix_ids, *self.closing_ids}
        if not len(self.unit_ids) or len(set(self.unit_ids)) < len(self.unit_ids) or special & set(self.unit_ids):
            raise ValueError(
                f"Found {len(self.unit_ids)} unit_ids, {len(set(self.unit_ids))} of them different, and the special "
                f"ids {sorted(special)}; expected an id of its own for each unit."
            )
        self._check_closing()

    @property
    def streams(self) -> tuple[str, ...]:
        return ("unit",)

    @property
    def bos(self) -> bool:
        return self.bos_token_id is not None

    @property
    def marker(self) -> bool:
        return self.marker_id is not None

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(index for index in (self.bos_token_id, self.marker_id) if index is not None))

    @property
    def closing_ids(self) -> tuple[int, ...]:
        return () if self.eos_token_id is None else (self.eos_token_id,)

    @property
    def ids_of_scored_streams(self) -> dict[str, Sequence[int]]:
        return {"unit": self.unit_ids}

    def streams_to_ids(self, streams: SpeechStreams) -> np.ndarray:
        units = deduplicate(streams.units)[0] if self.deduplicate else streams.units
        outside = units[(units < 0) | (units >= len(self.unit_ids))]
        if len(outside):
            raise ValueError(f"found unit {outside[0]}; this model has the units 0..{len(self.unit_ids) - 1}")
        return np.asarray(self.unit_ids)[units]

    def to_record(self) -> dict:
        """Return the format as a JSON-serializable dict; ids that are not consecutive are listed in "unit_ids"."""
        ids = list(self.unit_ids)
        listed = {} if ids == list(range(ids[0], ids[0] + len(ids))) else {"unit_ids": ids}
        return super().to_record() | listed
