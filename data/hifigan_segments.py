"""Training material of the HiFi-GAN: segments of real speech with the codes of every frame.

The audio comes from the parquet shards of a corpus, the units from the shards that `tinywave extract-units` made of
it, joined by the column `id`. Item `i` depends on (`seed`, `i`) only, so a resumed run sees the same segments.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch
from pyarrow.dataset import dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..configuration_tinywave import HifiGanConfig
from ..tokenization_tinywave import deduplicate
from ..vocoder_inputs_tinywave import codes_at_frames
from .unit_extraction import ShardError, shard_paths


@dataclass(frozen=True)
class HifiGanUtterance:
    """One utterance of T frames (25 Hz).

    Attributes:
        audio: the encoded file, mono.
        num_samples: of the audio.
        units: `(T,)` int64, repeats kept.
        pitch, style: `(T,)` int64, the code in force at each frame; None for a vocoder without it.
        constant_style, speaker: their numbers; 0 for a vocoder without them.
    """

    audio: bytes
    num_samples: int
    units: torch.LongTensor
    pitch: torch.LongTensor | None = None
    style: torch.LongTensor | None = None
    constant_style: int = 0
    speaker: int = 0

    def read_samples(self, start: int, count: int) -> torch.FloatTensor:
        """Samples `start .. start + count - 1`; nothing else is decoded."""
        with soundfile.SoundFile(io.BytesIO(self.audio)) as file:
            file.seek(start)
            return torch.from_numpy(file.read(count, dtype="float32"))


def read_voices(units_folder: str | os.PathLike, split: str = "train") -> list[str]:
    """Names of the voices in a split of the unit shards, sorted; `ShardError` where they cannot be read."""
    return sorted(set(_read_table(units_folder, ["voice"], split)["voice"].to_pylist()))


def read_hifigan_utterances(
    corpus_folder: str | os.PathLike, units_folder: str | os.PathLike, config: HifiGanConfig, split: str = "train"
) -> list[HifiGanUtterance]:
    """Read what a vocoder of this configuration is trained on; the audio stays encoded in memory.

    Args:
        corpus_folder: parquet shards with the columns `id`, `split`, `audio`, `num_samples` and `sampling_rate`.
        units_folder: parquet shards with `id`, `split` and `units`, and what the configuration counts: `pitch` (codes
            at `pitch_rate`), `style` (codes at `style_rate`, or the name of the style, one of `config.style_names`)
            and `voice` (one of `config.speaker_names`).
        split (`str`, default "train"): the only split that is read.

    Raises:
        ShardError: shards that cannot be read, lack a column, or hold no such row; a unit row without audio.
        ValueError: codes that the configuration does not know, or another sampling rate.
    """
    columns = ["id", "units"]
    columns += ["pitch"] if config.num_pitch_tokens else []
    columns += ["style"] if config.num_style_tokens or config.num_styles else []
    columns += ["voice"] if config.num_speakers else []
    rows = _read_table(units_folder, columns, split).to_pylist()
    recordings = _read_table(corpus_folder, ["id", "audio", "num_samples", "sampling_rate"], split).to_pylist()
    recordings = {row["id"]: row for row in recordings}
    utterances = []
    for row in rows:
        if row["id"] not in recordings:
            raise ShardError(f"{corpus_folder} has no {row['id']!r}, which {units_folder} has; extract its units anew")
        try:
            utterances.append(_row_to_utterance(row, recordings[row["id"]], config))
        except ValueError as error:
            raise ValueError(f"{units_folder}, row {row['id']!r}: {error}") from error
    return utterances


def _read_table(folder: str | os.PathLike, columns: Sequence[str], split: str) -> pa.Table:
    paths = shard_paths(folder)
    try:
        shards = dataset(list(map(str, paths)), format="parquet")
        if missing := set(columns) - set(shards.schema.names):
            raise ShardError(f"{folder} lacks the columns {sorted(missing)}, which this vocoder needs; extract them")
        table = shards.to_table(columns=columns, filter=pc.field("split") == split)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{folder} cannot be read ({error}); make it again") from error
    if not len(table):
        raise ShardError(f"{folder} holds no row of the split {split!r}")
    return table


def _row_to_utterance(row: Mapping, recording: Mapping, config: HifiGanConfig) -> HifiGanUtterance:
    if recording["sampling_rate"] != config.sampling_rate:
        raise ValueError(f"found audio of {recording['sampling_rate']} Hz; expected {config.sampling_rate} Hz")
    num_frames = min(len(row["units"]), recording["num_samples"] // config.samples_per_unit)
    units = torch.tensor(row["units"][:num_frames], dtype=torch.long)
    ones = torch.ones_like(units)
    codes_at_frames("unit", units, ones, config.num_units, 1.0)
    style, constant_style = row.get("style"), 0
    if isinstance(style, str):
        style = _number_of("style", style, config.style_names)
    if config.num_styles:
        style, constant_style = None, style
    ratio = config.pitch_rate / config.unit_rate
    pitch = codes_at_frames("pitch", row.get("pitch"), ones, config.num_pitch_tokens, ratio)
    ratio = config.style_rate / config.unit_rate
    style = codes_at_frames("style", style, ones, config.num_style_tokens, ratio)
    speaker = _number_of("voice", row["voice"], config.speaker_names) if config.num_speakers else 0
    samples = recording["audio"]["bytes"], recording["num_samples"]
    return HifiGanUtterance(*samples, units, pitch, style, constant_style, speaker)


def _number_of(kind: str, name: str, names: Sequence[str] | None) -> int:
    if name not in (names or ()):
        raise ValueError(f"found the {kind} {name!r}; the vocoder is made for {', '.join(names or ['none'])}")
    return names.index(name)


class HifiGanSegments(Dataset):
    """Random segments of utterances, every possible segment as likely as any other.

    Args:
        utterances: those shorter than a segment are left out.
        config: of the vocoder.
        segment_samples (`int`, default 17,920): samples of a segment, a multiple of those of a unit.
        num_segments: length of the data set: how many the whole training sees.
        seed (`int`, default 0): of the choice.

    Raises:
        ValueError: a segment that is not a whole number of units, or no utterance as long as a segment.
    """

    def __init__(
        self,
        utterances: Sequence[HifiGanUtterance],
        config: HifiGanConfig,
        segment_samples: int = 17_920,
        num_segments: int = 1,
        seed: int = 0,
    ):
        if segment_samples % config.samples_per_unit:
            raise ValueError(
                f"Found segments of {segment_samples} samples; expected a multiple of the {config.samples_per_unit} "
                "samples of a unit."
            )
        self.config = config
        self.num_frames = segment_samples // config.samples_per_unit
        self.num_segments = num_segments
        self.seed = seed
        self.utterances = [item for item in utterances if len(item.units) >= self.num_frames]
        if not self.utterances:
            raise ValueError(
                f"Found no utterance of {self.num_frames} units ({segment_samples / config.sampling_rate:.2f} s) in "
                f"{len(utterances)}; expected at least one as long as a segment."
            )
        # Possible segments of each utterance, and those of all before it.
        counts = [len(item.units) - self.num_frames + 1 for item in self.utterances]
        self._firsts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return self.num_segments

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        position = int(np.random.default_rng([self.seed, index]).integers(self._firsts[-1]))
        number = int(np.searchsorted(self._firsts, position, side="right")) - 1
        utterance = self.utterances[number]
        start = position - int(self._firsts[number])
        frames = slice(start, start + self.num_frames)
        size = self.config.samples_per_unit
        run_units, run_durations = deduplicate(utterance.units.numpy())
        segment = {
            "waveform": utterance.read_samples(start * size, self.num_frames * size),
            "units": utterance.units[frames],
            "run_units": torch.as_tensor(run_units),
            "run_durations": torch.as_tensor(run_durations),
        }
        if self.config.num_pitch_tokens:
            segment["pitch"] = utterance.pitch[frames]
        if self.config.num_style_tokens:
            segment["style"] = utterance.style[frames]
        if self.config.num_styles:
            segment["style"] = torch.tensor(utterance.constant_style)
        if self.config.num_speakers:
            segment["speaker"] = torch.tensor(utterance.speaker)
        return segment


def collate_hifigan_segments(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack segments to a batch; de-duplicated units and their durations, of whole utterances, are padded with -1."""
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        is_ragged = name.startswith("run_")
        batch[name] = pad_sequence(values, batch_first=True, padding_value=-1) if is_ragged else torch.stack(values)
    return batch
