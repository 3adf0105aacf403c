"""What became of every tensor of a checkpoint: converted, renamed, computed, ignored, missing or unexpected.

A conversion is trusted only when each name on either side is accounted for. Names that are left out are listed with
their reason; any other difference is an error, found from the shapes alone, before a weight is read.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch

_SHOWN_IN_ERRORS = 8


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that need not be in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """Describe a tensor, on any device."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class KeyMap:
    """How the names of a published checkpoint become ours.

    Args:
        renames: `(pattern, replacement)` pairs for `re.sub`, all applied to each name in their order.
        ignored: `(pattern, reason)` pairs; a published tensor whose whole name matches is left out.
        computed: `(pattern, how)` pairs; a tensor of ours whose whole name matches is not in the checkpoint and is
            made from nothing, or from several published tensors at once.
    """

    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    computed: tuple[tuple[str, str], ...] = ()

    def target_name(self, name: str) -> str:
        """Return our name of a published tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass
class KeyReport:
    """The keys of a checkpoint on both sides.

    Args:
        converted (`list[str]`): names that stay as they are.
        renamed (`dict[str, str]`): published name -> our name.
        computed (`dict[str, str]`): our name -> how the tensor was made.
        ignored (`dict[str, str]`): published name -> the reason why it is left out.
        missing (`list[str]`): our names that nothing provides.
        unexpected (`list[str]`): published names that nothing takes.
        misshapen (`dict[str, str]`): our name -> the shapes found and expected.
    """

    converted: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, str] = field(default_factory=dict)

    def source_of(self) -> dict[str, str]:
        """Return our name -> published name for every tensor that is copied."""
        return {name: name for name in self.converted} | {ours: theirs for theirs, ours in self.renamed.items()}

    def summary(self) -> str:
        """Return the counts in one line."""
        return ", ".join(f"{len(keys)} {name}" for name, keys in asdict(self).items())

    def as_text(self) -> str:
        """Return one line a key, in the order of the summary that comes first."""
        lines = [self.summary()]
        for name, keys in asdict(self).items():
            arrow = " -> " if name == "renamed" else ": "
            lines += [f"{name:<10} {key}" + (f"{arrow}{keys[key]}" if isinstance(keys, dict) else "") for key in keys]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, list[str] | dict[str, str]]:
        """Return the report for `convert_report.json`."""
        return asdict(self)

    def check(self, source: str) -> None:
        """Raise `ValueError` where a key is missing, unexpected or of another shape."""
        problems = []
        if self.missing:
            problems.append(f"missing: {_some(self.missing)}")
        if self.unexpected:
            problems.append(f"unexpected: {_some(self.unexpected)}")
        if self.misshapen:
            problems.append(f"of another shape: {_some([f'{k} ({v})' for k, v in self.misshapen.items()])}")
        if problems:
            raise ValueError(
                f"{source} does not hold the tensors that its configuration describes; {'; '.join(problems)}. Compare "
                "the files with the published ones, and the configuration beside them; nothing was written"
            )


def match_keys(source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec], key_map: KeyMap) -> KeyReport:
    """Account for every tensor of a checkpoint and of our model, by name and shape.

    Args:
        source: published name -> spec.
        target: our name -> spec, as the model that the configuration describes has it.
        key_map: the names that differ.

    Returns:
        [`KeyReport`]; call its `check` before anything is written.
    """
    report = KeyReport()
    taken = set()
    for name, spec in source.items():
        reason = _first_match(key_map.ignored, name)
        ours = key_map.target_name(name)
        if reason is not None:
            report.ignored[name] = reason
        elif ours not in target or ours in taken:
            report.unexpected.append(name)
        else:
            taken.add(ours)
            if spec.shape != target[ours].shape:
                report.misshapen[ours] = f"found {list(spec.shape)}, expected {list(target[ours].shape)}"
            elif ours == name:
                report.converted.append(name)
            else:
                report.renamed[name] = ours
    for name in target:
        how = _first_match(key_map.computed, name)
        if name not in taken and how is not None:
            report.computed[name] = how
        elif name not in taken:
            report.missing.append(name)
    return report


def _first_match(rules: tuple[tuple[str, str], ...], name: str) -> str | None:
    """Return the text of the first rule whose pattern is the whole name, or None."""
    return next((text for pattern, text in rules if re.fullmatch(pattern, name)), None)


def _some(names: list[str]) -> str:
    """Join the first names, and say how many more there are."""
    more = len(names) - _SHOWN_IN_ERRORS
    return ", ".join(names[:_SHOWN_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
