"""Reading a teacher cache as the targets of a distillation."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from .arguments import DistillationArguments
from .layer_map import LayerMap
from .partial_targets import KnownProbabilities, completed_logits
from .teacher_cache import (
    cache_id,
    example_key,
    open_shard,
    ranges_to_ids,
    read_description,
    read_index,
    read_settings,
    shard_files,
)
from .teacher_targets import TeacherTargets
from .terms import aligned_pairs

_NOWHERE = -1


class CachedTeacher:
    """A [`~teacher_targets.TeacherSource`] that reads what [`~teacher_cache.TeacherCacheWriter`] wrote.

    Give it to [`DistillationTrainer`] as `teacher_source`. With all ids known the loss is the one of the teacher that
    runs. Otherwise the unknown ids are one outcome together, which makes the logits term smaller by what the models
    differ in among them. Attention maps are not cached: they are as large as the square of the length.

    Looking an example up needs its ids on the CPU, so every step waits for the device once.

    Args:
        folder (`str` or `Path`): of the cache.

    Raises:
        FileNotFoundError: when the folder is no cache.
        ValueError: when it cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.settings, ranges = read_settings(self.folder)
        self.config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        self._cache_id = cache_id(read_description(self.folder))
        self._fixed_ids = ranges_to_ids(ranges) if ranges else None
        self._shards, self._places = [], {}
        for number, path in enumerate(shard_files(self.folder)):
            self._shards.append(open_shard(path))
            self._places.update((key, (number, start, stop)) for key, start, stop in read_index(path))
        if not self._places:
            raise ValueError(f"{self.folder} holds no examples yet; run tinywave cache-teacher to the end.")

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._places)

    def mean_tail_mass(self) -> float:
        """Mean probability of the unknown ids over all rows: 0 where all are known, 1 is the worst."""
        if self.settings.known_ids == "all":
            return 0.0
        tails = [shard.get_tensor("log_tail").double().exp() for shard in self._shards]
        return torch.cat(tails).mean().item()

    def check(self, arguments: DistillationArguments, layer_map: LayerMap | None) -> None:
        """Raise `ValueError` for a loss that cannot be computed from what was kept."""
        kept = self.settings
        if aligned_pairs(arguments, layer_map, "attention_inputs"):
            raise ValueError("A teacher cache holds no attention maps; set attention_weight to 0 or run the teacher.")
        needed = {teacher_block for teacher_block, _ in aligned_pairs(arguments, layer_map, "block_outputs")}
        if missing := sorted(needed - set(kept.hidden_blocks)):
            raise ValueError(
                f"{self.folder} holds the hidden states of blocks {list(kept.hidden_blocks)}, and the hidden term "
                f"needs {missing} too; make a cache with them, or set hidden_weight to 0."
            )
        if not arguments.logits_weight or kept.known_ids == "all":
            return
        if arguments.stream_temperatures or arguments.temperature != kept.temperature:
            raise ValueError(
                f"{self.folder} holds probabilities at temperature {kept.temperature}, from which another cannot be "
                f"computed; found temperature {arguments.temperature} and stream_temperatures "
                f"{arguments.stream_temperatures}. Keep all ids, or use one temperature."
            )
        if arguments.restrict_logits_to_stream and kept.known_ids == "top_k":
            raise ValueError(
                "`restrict_logits_to_stream` needs every id of a stream, and the cache holds the likeliest only; keep "
                "'speech' or 'all' ids."
            )

    def targets(self, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> TeacherTargets:
        """Look up the targets of a batch.

        Raises `ValueError` for an example that is not in the cache.
        """
        places = self._look_up(inputs)
        wanted = positions.cpu().numpy()
        hidden = {}
        for block in self.settings.hidden_blocks:
            rows = self._read(f"hidden.{block}", places[wanted])
            output = torch.zeros(*positions.shape, rows.shape[-1], dtype=rows.dtype, device=positions.device)
            output[positions] = rows.to(positions.device)
            hidden[block] = output
        return TeacherTargets(_CachedLogits(self, places[wanted]), hidden)

    def _look_up(self, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """(shard, row) of every position, of shape `(B, T, 2)`; -1 where there is none."""
        ids = inputs["input_ids"].cpu().numpy()
        places = np.full((*ids.shape, 2), _NOWHERE, dtype=np.int64)
        for row, start, stop in _documents(inputs):
            if stop - start < 2:
                continue
            place = self._places.get(example_key(self._cache_id, ids[row, start:stop]))
            if place is None:
                raise ValueError(
                    f"{self.folder} holds {len(self)} examples, but not one of this batch ({stop - start} ids, "
                    f"{ids[row, start : start + 8].tolist()} ...). Cache the same data with the same `max_length` and "
                    "`seed`; interleaved data is drawn anew for every epoch, so cache as many epochs as you train."
                )
            shard, first, last = place
            places[row, start : stop - 1, 0] = shard
            places[row, start : stop - 1, 1] = np.arange(first, last)
        return places

    def _read(self, name: str, places: np.ndarray) -> torch.Tensor:
        """The rows at `places`, of shape `(N, 2)`; zeros where there is none."""
        first = self._shards[0].get_slice(name)
        shape = [len(places), *first.get_shape()[1:]]
        rows = torch.zeros(shape, dtype=first[:1].dtype)
        for start, stop in _runs(places):
            shard, row = places[start]
            if shard != _NOWHERE:
                rows[start:stop] = self._shards[shard].get_slice(name)[row : row + stop - start]
        if rows.is_floating_point() and rows.isnan().any():
            raise ValueError(f"{self.folder} has NaN in {name!r}; make the cache again.")
        return rows

    def logits(self, places: np.ndarray, student_logits: torch.Tensor) -> torch.Tensor:
        """Teacher logits at `places`, of shape `(n, V)`; see [`~partial_targets.completed_logits`]."""
        device, temperature = student_logits.device, self.settings.temperature
        log_probabilities = self._read("log_probabilities", places).to(device)
        if self.settings.known_ids == "all":
            logits = log_probabilities.mul_(temperature)
        else:
            ids = self._read("ids", places).long() if self._fixed_ids is None else self._fixed_ids
            ids = ids.to(device).expand_as(log_probabilities)
            known = KnownProbabilities(ids, log_probabilities, self._read("log_tail", places).to(device))
            logits = completed_logits(student_logits, known, temperature)
        # A target after left padding has no teacher; there it agrees with the student.
        nowhere = places[:, 0] == _NOWHERE
        if nowhere.any():
            logits[torch.from_numpy(nowhere)] = student_logits[torch.from_numpy(nowhere)]
        return logits


class _CachedLogits:
    """[`~logits_losses.TeacherLogits`] read from disk when a chunk is asked for."""

    def __init__(self, cache: CachedTeacher, places: np.ndarray):
        self._cache, self._places = cache, places

    def __call__(self, rows: slice, student_logits: torch.Tensor) -> torch.Tensor:
        return self._cache.logits(self._places[rows], student_logits)


def _documents(inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, int, int]]:
    """(row, first position, last position + 1) of every document of a batch, without padding.

    A row holds one document, or several packed ones whose `position_ids` begin again.
    """
    ids = inputs["input_ids"]
    mask, position_ids = inputs.get("attention_mask"), inputs.get("position_ids")
    mask = np.ones(ids.shape, dtype=bool) if mask is None else mask.bool().cpu().numpy()
    for row, is_real in enumerate(mask):
        real = np.flatnonzero(is_real)
        if not len(real):
            continue
        start, stop = int(real[0]), int(real[-1]) + 1
        starts = [start]
        if position_ids is not None:
            begins = np.flatnonzero(position_ids[row, start:stop].cpu().numpy() == 0) + start
            starts = sorted({start, *begins.tolist()})
        yield from ((row, first, last) for first, last in zip(starts, [*starts[1:], stop], strict=True))


def _runs(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the stretches of `places` that lie one after the other in one shard."""
    steps = np.diff(places, axis=0)
    breaks = np.flatnonzero((steps[:, 0] != 0) | (steps[:, 1] != 1)) + 1
    bounds = [0, *breaks.tolist(), len(places)]
    yield from ((start, stop) for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start)
