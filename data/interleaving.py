"""Word-aligned speech and text, interleaved at word boundaries and resampled every epoch.

The five patterns are those of TinyWave (arXiv 2506.23670): [Speech], [Text], [Speech][Text], [Text][Speech] and
[Speech][Text][Speech]; the span lengths those of SPIRIT-LM (arXiv 2402.05755, section 3): 10-30 words of text, 5-15
words of speech. A change of modality falls on the start of a word, rounded to a unit frame.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow.dataset import dataset
from transformers import PreTrainedTokenizerFast

from ..configuration_tinywave import PROSODY_STREAMS, TinyWaveConfig
from ..tokenization_tinywave import Segment, SpeechStreams, segments_to_ids
from .unit_extraction import ShardError

PATTERNS = {
    "speech": ("speech",),
    "text": ("text",),
    "speech_text": ("speech", "text"),
    "text_speech": ("text", "speech"),
    "speech_text_speech": ("speech", "text", "speech"),
}
SPEECH_ONLY = {"speech": 1.0}
# Speech alone, text alone and both together: one third each (SPIRIT-LM).
INTERLEAVED = {"speech": 3.0, "text": 3.0, "speech_text": 1.0, "text_speech": 1.0, "speech_text_speech": 1.0}


@dataclass(frozen=True)
class AlignedDocument:
    """A spoken document with the start of every word.

    `units`: raw units, one a frame, repeats kept. `words`: as written, punctuation included. `word_starts`: seconds.
    `unit_rate`: frames per second (Hz). `pitch`, `style`: None, or one value a frame at `pitch_rate` and `style_rate`
    (Hz), repeats kept. Raises `ValueError` where words and starts differ in number.
    """

    units: Sequence[int]
    words: Sequence[str]
    word_starts: Sequence[float]
    unit_rate: float = 25.0
    pitch: Sequence[int] | None = None
    style: Sequence[int] | None = None
    pitch_rate: float = 12.5
    style_rate: float = 1.0

    def __post_init__(self):
        if len(self.words) != len(self.word_starts):
            raise ValueError(
                f"Found {len(self.words)} words and {len(self.word_starts)} word times in "
                f"{' '.join(self.words)[:60]!r}; expected one start a word."
            )

    @classmethod
    def from_row(cls, row: Mapping, unit_rate: float = 25.0) -> "AlignedDocument":
        """Reads a row of the unit shards (`units`, `text`, `words`, and `pitch` and `style` where present)."""
        starts = [word["start"] for word in row["words"]]
        return cls(row["units"], row["text"].split(), starts, unit_rate, row.get("pitch"), row.get("style"))

    def boundary_frame(self, word: int) -> int:
        """Unit frame at which word number `word` starts; 0 before the first word, the end after the last."""
        if word <= 0:
            return 0
        if word >= len(self.words):
            return len(self.units)
        return min(len(self.units), round(self.word_starts[word] * self.unit_rate))

    def segment(self, modality: str, start_word: int, stop_word: int) -> Segment:
        """Words `start_word` to `stop_word` (exclusive) as a ("text", str) or ("speech", content) segment.

        The content is units, or [`SpeechStreams`] where the document has pitch or style.
        """
        if modality == "text":
            return "text", " ".join(self.words[start_word:stop_word])
        start, stop = self.boundary_frame(start_word), self.boundary_frame(stop_word)
        units = self.units[start:stop]
        if self.pitch is None and self.style is None:
            return "speech", units
        pitch = self._cut(self.pitch, self.pitch_rate, start, stop)
        return "speech", SpeechStreams(units, pitch, self._cut(self.style, self.style_rate, start, stop))

    def _cut(self, values: Sequence[int] | None, rate: float, start: int, stop: int) -> Sequence[int] | None:
        """Values at `rate` (Hz) of the unit frames `start` to `stop`.

        The clock of a segment begins at its first unit frame, so value `k` is the one in force in the document `k /
        rate` seconds later, and there are as many as begin before the segment ends.
        """
        if values is None or (start, stop) == (0, len(self.units)):
            return values
        first = math.floor(start * rate / self.unit_rate)
        return values[first : first + math.ceil((stop - start) * rate / self.unit_rate)]


def read_documents(
    units_folder: str | os.PathLike,
    split: str,
    domains: Collection[str] | None = None,
    unit_rate: float = 25.0,
    prosody: Collection[str] = (),
) -> list[AlignedDocument]:
    """Reads the documents of a split, and of some domains, from a folder of unit shards.

    `prosody` names the further streams to read: "pitch", "style" or both. Raises `ShardError` for a damaged shard, for
    one without these streams, and where no row fits.
    """
    is_wanted = pc.field("split") == split
    if domains is not None:
        is_wanted &= pc.field("domain").isin(list(domains))
    try:
        shards = dataset(str(units_folder), format="parquet")
        rows = shards.to_table(columns=["text", "words", "units", *prosody], filter=is_wanted).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{units_folder} cannot be read ({error}); extract the units again") from error
    if not rows:
        raise ShardError(f"{units_folder} holds no document of split {split!r} and domains {domains or 'any'}")
    return [AlignedDocument.from_row(row, unit_rate) for row in rows]


def read_encoder(units_folder: str | os.PathLike) -> str | None:
    """The fingerprint of the codec that made the units of a folder (`SpeechCodec.fingerprint`).

    `None` where no shard names one. Raises `ShardError` for a damaged shard and for units of several codecs.
    """
    try:
        shards = dataset(str(units_folder), format="parquet")
        named = [shard for shard in shards.get_fragments() if "encoder" in shard.physical_schema.names]
        rows = [name for shard in named for name in shard.to_table(columns=["encoder"])["encoder"].to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{units_folder} cannot be read ({error}); extract the units again") from error
    found = sorted(set(rows) - {None})
    if len(found) > 1:
        raise ShardError(f"{units_folder} holds units of {len(found)} codecs, {', '.join(found)}; expected one")
    return found[0] if found else None


def interleave(
    document: AlignedDocument,
    pattern: str,
    rng: Random,
    text_words: tuple[int, int] = (10, 30),
    speech_words: tuple[int, int] = (5, 15),
) -> list[Segment]:
    """Cuts a document into the segments of `pattern`, at random word boundaries.

    Every segment but the last has a length drawn from `text_words` or `speech_words` (inclusive); the last takes the
    rest. A document too short for the pattern loses its last segments, never words. Raises `ValueError` for an unknown
    pattern.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"Unknown pattern {pattern!r}; expected one of {tuple(PATTERNS)}.")
    segments, start = [], 0
    modalities = PATTERNS[pattern]
    for position, modality in enumerate(modalities):
        low, high = text_words if modality == "text" else speech_words
        is_last = position == len(modalities) - 1
        stop = len(document.words) if is_last else min(len(document.words), start + rng.randint(low, high))
        segments.append(document.segment(modality, start, stop))
        start = stop
        if start == len(document.words):
            break
    return [segment for segment in segments if len(segment[1])]


class InterleavedDataset(torch.utils.data.Dataset):
    """Token ids of documents, with patterns and spans drawn anew for every epoch.

    Item `i` of epoch `e` depends on (`seed`, `e`, `i`) only, so that a resumed run sees the same data. The Trainer
    calls `set_epoch`. A document longer than `max_length` ids is cut there.

    Args:
        documents: the aligned documents.
        config ([`TinyWaveConfig`]): the id layout.
        tokenizer: of the text; may be None where `mixture` has no text.
        mixture: weight of each pattern; default speech only.
        max_length (`int`, default 512): in ids.
        seed (`int`, default 0): of patterns and spans.
    """

    def __init__(
        self,
        documents: Sequence[AlignedDocument],
        config: TinyWaveConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        mixture: Mapping[str, float] = SPEECH_ONLY,
        max_length: int = 512,
        seed: int = 0,
    ):
        unknown = set(mixture) - set(PATTERNS)
        if unknown:
            raise ValueError(f"Unknown patterns {sorted(unknown)}; expected some of {tuple(PATTERNS)}.")
        if not math.isclose(config.unit_rate, documents[0].unit_rate):
            raise ValueError(
                f"The model expects units at {config.unit_rate} Hz, the documents have {documents[0].unit_rate} Hz."
            )
        for name in PROSODY_STREAMS:
            if (getattr(documents[0], name) is not None) != (name in config.stream_ranges()):
                raise ValueError(
                    f"The model's streams are {', '.join(config.stream_ranges())}, which does not agree with the "
                    f"{name} of the documents; read them with prosody= naming exactly the model's pitch and style."
                )
        self.documents, self.config, self.tokenizer = documents, config, tokenizer
        self.mixture, self.max_length, self.seed, self.epoch = dict(mixture), max_length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the draw of patterns and spans; the same epoch gives the same items."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        rng = Random(f"{self.seed}/{self.epoch}/{index}")
        pattern = rng.choices(tuple(self.mixture), tuple(self.mixture.values()))[0]
        segments = interleave(self.documents[index], pattern, rng)
        ids = segments_to_ids(segments, self.config, self.tokenizer, add_eos=True)
        return {"input_ids": ids[: self.max_length]}


class JoinedDataset(torch.utils.data.ConcatDataset):
    """Several [`InterleavedDataset`]s one after the other, drawn anew together for every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Selects the draw of all of them."""
        for part in self.datasets:
            part.set_epoch(epoch)
