"""How speech becomes the ids that a language model reads, and which of them are scored.

[`SpeechSequenceFormat`] follows a `TinyWaveConfig`; [`UnitSequenceFormat`] serves any other causal language model of
units, whose ids the caller states. N, the number of targets of T tokens of speech, follows from the format:

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
    """What every format offers: `[BOS] [marker] speech [EOS]`, each bracket where the format has it.

    The prefix is conditioned on and never scored. EOS, where the format has it, is a target.
    """

    streams: tuple[str, ...]
    """The streams that are read: "unit", and "pitch" and "style" where the model has them."""
    prefix_ids: tuple[int, ...]
    """The ids before the first token of speech."""
    closing_ids: tuple[int, ...]
    """EOS as a tuple of one id, or nothing."""
    unit_rate: float
    """Units per second (Hz) before repeats are dropped."""

    @property
    @abstractmethod
    def ids_of_scored_streams(self) -> dict[str, Sequence[int]]:
        """Name of each scored stream -> its ids."""

    @abstractmethod
    def streams_to_ids(self, streams: SpeechStreams) -> np.ndarray:
        """Ids of timed streams, without prefix and EOS. Raises `ValueError` for what the model cannot read."""

    @property
    def scored_ids(self) -> list[int]:
        """The ids that count as targets, in ascending order."""
        return sorted({*self.closing_ids, *(index for ids in self.ids_of_scored_streams.values() for index in ids)})

    @property
    def targets(self) -> str:
        """In words, which tokens are scored."""
        return (
            "tokens of the scored streams and EOS; BOS and markers are not scored"
            if self.closing_ids
            else "tokens of the scored streams; BOS, markers and EOS are not scored"
        )

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
        return [*self.prefix_ids, *self.streams_to_ids(streams).tolist(), *self.closing_ids]

    def to_record(self) -> dict:
        """The format as a JSON-ready dict; "scored_ids" holds the lowest and the highest id of each scored stream."""
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
    """The format of a model with a `TinyWaveConfig`.

    A model without pitch and style reads units; one with them reads units, pitch and style merged in order of time
    (`streams_to_ids`).

    Args:
        config (`TinyWaveConfig`): of the model; its id layout says which streams it has.
        bos, marker (`bool`, default True): whether the sequence begins with BOS, and with the speech marker. With
            neither, the first token has no context and is not scored.
        deduplicate (`bool`, default True): merge runs of equal units, and of equal pitch tokens, into one token. Style
            is never merged. Without pitch and style it can be switched off.
        scored_streams (`tuple[str, ...]`, *optional*): streams whose tokens are targets, of "unit", "pitch" and
            "style". Default: all that the model has, as SPIRIT-LM does (arXiv 2402.05755).
        eos (`bool`, default False): whether the sequence ends with EOS, which then is a target.

    Raises `ValueError` for another configuration, for a stream to score that the model does not have, and for merged
    streams with repeats.
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
                f"Found a {type(self.config).__name__}, which does not say what its ids mean; expected a "
                "TinyWaveConfig. State the ids of the model's units in a UnitSequenceFormat."
            )
        scored = self.streams if self.scored_streams is None else tuple(self.scored_streams)
        if not scored or set(scored) - set(self.streams):
            raise ValueError(f"Found scored_streams {scored}; this model has {self.streams}, expected some of them.")
        if not self.deduplicate and len(self.streams) > 1:
            raise ValueError("A model with pitch or style reads merged streams without repeats; set deduplicate=True.")
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
    """The format of any causal language model of units: the caller states which id means what.

    | model | ids | arguments |
    |---|---|---|
    | slamkit's UnitLM | padding 0, BOS and EOS 1, units | `range(2, 502), bos_token_id=1, eos_token_id=1` |
    | SPIRIT-LM | text, `[Text]`, `[Speech]`, units | `range(32002, 32503), bos_token_id=1, marker_id=32001` |
    | TWIST, as SALMon scores it | units from `offset` on | `range(offset, offset + 500)` |

    Args:
        unit_ids (`Sequence[int]`): the id of each unit, such as `range(offset, offset + num_units)`, or a list.
        bos_token_id, marker_id (`int`, *optional*): what the sequence begins with; by default nothing, and then the
            first unit has no context and is not scored.
        eos_token_id (`int`, *optional*): what it ends with, as a target; by default nothing.
        deduplicate (`bool`, default True): merge runs of equal units into one token.
        unit_rate (`float`, default 25.0): units per second (Hz) before repeats are dropped.

    Raises `ValueError` where two units, or a unit and a special token, share an id.
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
        """As of every format; ids that do not follow each other are listed one by one as "unit_ids"."""
        ids = list(self.unit_ids)
        listed = {} if ids == list(range(ids[0], ids[0] + len(ids))) else {"unit_ids": ids}
        return super().to_record() | listed
