"""Loss weights and temperatures per position, by the stream of the target: text, units, pitch or style."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig


class StreamWeighting:
    """Weight, temperature and range of compared ids of each position, looked up by its target.

    The streams and their ids are those of `config.stream_ranges()`. Targets outside every stream (BOS, EOS, markers)
    have weight 1, the default temperature and the whole vocabulary.

    Args:
        config ([`~transformers.PreTrainedConfig`]): config of the student. It must be a [`TinyWaveConfig`] if any
            stream setting is used.
        weights (`Mapping[str, float]`, *optional*): {stream: factor on every loss term at its positions}; 1 for
            streams that are not named.
        temperatures (`Mapping[str, float]`, *optional*): {stream: temperature of the logits term}; `temperature` for
            streams that are not named.
        temperature (`float`, defaults to 2.0): default temperature of the logits term.
        restrict (`bool`, defaults to `False`): whether the logits term compares only the ids of the target's stream.
        device (`torch.device`, defaults to the CPU): device of the targets.

    Raises:
        ValueError: if a stream setting is used and the config has no streams, or lacks one that is named.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        weights: Mapping[str, float] | None = None,
        temperatures: Mapping[str, float] | None = None,
        temperature: float = 2.0,
        restrict: bool = False,
        device: torch.device | str = "cpu",
    ):
        self._temperature = temperature
        self._weights = self._temperatures = self._first_ids = self._stop_ids = None
        if not (weights or temperatures or restrict):
            return
        ranges = _stream_ranges(config, {*(weights or {}), *(temperatures or {})})
        size = config.vocab_size

        def table(default: float, values: Mapping[str, float]) -> torch.Tensor:
            return _table(size, default, ranges, values).to(device)

        if weights:
            self._weights = table(1.0, weights)
        if temperatures:
            self._temperatures = table(temperature, temperatures)
        if restrict:
            self._first_ids = table(0, {name: ids.start for name, ids in ranges.items()})
            self._stop_ids = table(size, {name: ids.stop for name, ids in ranges.items()})

    def token_weights(self, targets: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of each target, in the shape of `targets`, or `None` if all weights are 1."""
        return None if self._weights is None else _look_up(self._weights, targets)

    def temperatures(self, targets: torch.Tensor) -> float | torch.Tensor:
        """Return the temperature of each target, in the shape of `targets`, or a `float` if all are equal."""
        return self._temperature if self._temperatures is None else _look_up(self._temperatures, targets)

    def allowed_ids(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the first id and one past the last id compared at each target; `None` for the whole vocabulary."""
        if self._first_ids is None:
            return None
        return _look_up(self._first_ids, targets), _look_up(self._stop_ids, targets)


def _stream_ranges(config: PreTrainedConfig, names: set[str]) -> dict[str, range]:
    if not hasattr(config, "stream_ranges"):
        raise ValueError(
            f"{type(config).__name__} names no streams, so stream settings cannot be applied; use a model with a "
            "TinyWaveConfig, or leave stream_weights, stream_temperatures and restrict_logits_to_stream out."
        )
    ranges = config.stream_ranges()
    unknown = sorted(names - set(ranges))
    if unknown:
        raise ValueError(f"The model has no streams {unknown}; its streams are {sorted(ranges)}.")
    return ranges


def _table(size: int, default: float, ranges: Mapping[str, range], values: Mapping[str, float]) -> torch.Tensor:
    """Return a value for every id of the vocabulary, so that the lookup by target needs no read from the device."""
    table = torch.full((size,), default)
    for name, value in values.items():
        table[ranges[name].start : ranges[name].stop] = value
    return table


def _look_up(table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Ignored labels are negative; their positions have no effect on the loss, so any value will do.
    return table[targets.clamp(min=0)]
