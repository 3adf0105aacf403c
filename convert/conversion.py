"""A conversion from its plan to the finished model folder.

A source format says what is to be written ([`Conversion`]); this file checks it, writes it and tells what was done.
The order matters: names and shapes are checked and the disk is measured before anything is written, weights come
before the configuration, and the report says "complete" last.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .. import __version__
from ..data.storage import atomic_file, write_json
from ..training.model_card import escape_markdown
from .checkpoint_files import Checkpoint
from .key_report import KeyMap, KeyReport, TensorSpec, match_keys
from .licences import LICENCE_FILES, Licence, stated_licence
from .weight_shards import MAX_SHARD_BYTES, REPORT_FILE, PlannedTensor, ShardWriter, check_free_disk, plan_shards

REPORT_TEXT_FILE = "convert_report.txt"


@dataclass(frozen=True)
class ConvertOptions:
    """What the user may choose.

    Args:
        dtype (`torch.dtype`, *optional*): of floating weights in the result. Default: as in the source.
        kmeans (`Path`, *optional*): file of k-means centroids, for sources that have none inside.
    """

    dtype: torch.dtype | None = None
    kmeans: Path | None = None


@dataclass
class Conversion:
    """One model folder to be made.

    Args:
        format (`str`): name of the source format.
        source (`Path`): folder the checkpoint lies in.
        title (`str`): heading of the card.
        model (`PreTrainedModel`): ours, on the meta device; its configuration and code are saved with the weights.
        checkpoint ([`Checkpoint`]): published tensors.
        key_map ([`KeyMap`]): the names that differ.
        licence ([`Licence`]): of the source.
        usage (`str`): Python lines for the card.
        compute: our name -> function that makes a tensor which `key_map.computed` lists.
        notes (`list[str]`): sentences for the card and the report.
        finish: writes what the folder holds beside the model; called with the folder.
        folder (`str`, default ""): folder of this model inside the destination.
    """

    format: str
    source: Path
    title: str
    model: PreTrainedModel
    checkpoint: Checkpoint
    key_map: KeyMap
    licence: Licence
    usage: str
    compute: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finish: Callable[[Path], None] = lambda folder: None
    folder: str = ""

    def target_specs(self) -> dict[str, TensorSpec]:
        """Return our name -> shape and dtype for every tensor of the model; a tied head is stored once."""
        tied = self.model.all_tied_weights_keys if getattr(self.model.config, "tie_word_embeddings", False) else ()
        state = self.model.state_dict()
        return {name: TensorSpec.of(tensor) for name, tensor in state.items() if name not in tied}

    def key_report(self) -> KeyReport:
        """Account for every tensor on both sides."""
        return match_keys(self.checkpoint.specs, self.target_specs(), self.key_map)

    def planned_tensors(self, report: KeyReport, dtype: torch.dtype | None) -> list[PlannedTensor]:
        """Return the tensors of the result in the order of our model."""
        source_of = report.source_of()
        planned = []
        for name, spec in self.target_specs().items():
            found = spec if name in report.computed else self.checkpoint.specs[source_of[name]]
            target_dtype = dtype if dtype is not None and found.dtype.is_floating_point else found.dtype
            read = self.compute[name] if name in report.computed else self._reader(source_of[name])
            planned.append(PlannedTensor(name, TensorSpec(spec.shape, target_dtype), read))
        return planned

    def _reader(self, name: str) -> Callable[[], torch.Tensor]:
        return lambda: self.checkpoint.read(name)

    def fingerprint(self, planned: Sequence[PlannedTensor]) -> str:
        """Return a digest that changes with the source files, the names, the shapes and the dtypes."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.checkpoint.files]
        tensors = [(tensor.name, tensor.spec.shape, str(tensor.spec.dtype)) for tensor in planned]
        return hashlib.sha256(json.dumps([self.format, files, tensors]).encode()).hexdigest()


class ConversionRun:
    """Conversions with everything checked that can be known before weights are read.

    Args:
        conversions: one for each model folder.
        destination: made if needed; what an interrupted run left there is continued.
        options: the user's choices.
        max_shard_bytes (`int`, default 4 GB): of one file of weights.

    Raises `ValueError` where names or shapes differ, the disk is too small, or the destination holds something else.
    """

    def __init__(
        self,
        conversions: Sequence[Conversion],
        destination: Path,
        options: ConvertOptions,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ):
        self.conversions = conversions
        self.destination = destination
        self.reports: list[KeyReport] = []
        self.writers: list[ShardWriter] = []
        for conversion in conversions:
            folder = destination / conversion.folder
            _check_destination(folder, conversion)
            report = conversion.key_report()
            report.check(f"{conversion.source} ({conversion.format})")
            planned = conversion.planned_tensors(report, options.dtype)
            shards = plan_shards(planned, max_shard_bytes)
            self.reports.append(report)
            self.writers.append(ShardWriter(folder, shards, conversion.fingerprint(planned)))
            conversion.model.config.dtype = _main_dtype(planned)
        check_free_disk(destination, self.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that are still to be written."""
        return sum(shard.num_bytes for writer in self.writers for shard in writer.unfinished)

    def run(self, progress: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Write every model folder.

        Args:
            progress: called after each tensor with its bytes.
        """
        for conversion, report, writer in zip(self.conversions, self.reports, self.writers, strict=True):
            writer.write(progress)
            _finish_folder(conversion, report, writer)


def _check_destination(folder: Path, conversion: Conversion) -> None:
    """Refuse a destination that is the source, or that holds files which no conversion put there."""
    if folder.resolve() == conversion.source.resolve():
        raise ValueError(f"{folder} is the source itself; choose another destination")
    if folder.is_file():
        raise ValueError(f"{folder} is a file; choose a folder as the destination")
    if folder.is_dir() and not (folder / REPORT_FILE).is_file():
        held = next((path.name for path in folder.iterdir() if not path.name.startswith(".")), None)
        if held:
            raise ValueError(f"{folder} holds {held} and no conversion began there; choose an empty folder")


def _main_dtype(planned: Sequence[PlannedTensor]) -> torch.dtype:
    """Return the floating dtype with the most bytes, which `from_pretrained` will load in."""
    sizes: dict[torch.dtype, int] = {torch.float32: 0}
    for tensor in planned:
        if tensor.spec.dtype.is_floating_point:
            sizes[tensor.spec.dtype] = sizes.get(tensor.spec.dtype, 0) + tensor.spec.num_bytes
    return max(sizes, key=sizes.get)


def _finish_folder(conversion: Conversion, report: KeyReport, writer: ShardWriter) -> None:
    """Write what stands beside the weights: configuration, code, extras, licence, card and, last, the report."""
    folder = writer.folder
    conversion.finish(folder)
    conversion.model.config.save_pretrained(folder)
    custom_object_save(conversion.model, folder)
    for name in LICENCE_FILES:
        if (conversion.source / name).is_file():
            shutil.copyfile(conversion.source / name, folder / name)
    with atomic_file(folder / "README.md") as partial:
        partial.write_text(_card(conversion, report), encoding="utf-8")
    with atomic_file(folder / REPORT_TEXT_FILE) as partial:
        partial.write_text(report.as_text(), encoding="utf-8")
    record = {
        "format": conversion.format,
        "source": {path.name: path.stat().st_size for path in conversion.checkpoint.files},
        "licence": conversion.licence.name,
        "tinywave": __version__,
        "dtype": str(conversion.model.config.dtype).removeprefix("torch."),
        "num_bytes": sum(shard.num_bytes for shard in writer.shards),
        "notes": conversion.notes,
        "keys": report.as_dict(),
        **writer.record(),
        "complete": True,
    }
    write_json(record, folder / REPORT_FILE)


def _card(conversion: Conversion, report: KeyReport) -> str:
    """Return the README of a converted folder."""
    licence = conversion.licence
    stated = stated_licence(conversion.source)
    lines = ["---", f"license: {licence.tag}"]
    if licence.tag == "other":
        lines.append(f"license_name: {licence.name.split(':')[0].lower().replace(' ', '-')}")
    lines += [
        "library_name: transformers",
        "tags:",
        "- speech",
        "- tinywave",
        "---",
        "",
        f"# {escape_markdown(conversion.title)}",
        "",
    ]
    lines += [f"Converted by tinywave {__version__} from the source format `{conversion.format}`.", ""]
    lines += ["## Licence", "", licence.as_text(), ""]
    if stated:
        lines += [f"The card of the source states: {escape_markdown(stated)}.", ""]
    lines += ["## Use", "", "```python", conversion.usage.strip(), "```", ""]
    lines += ["## Conversion", "", f"Tensors: {report.summary()}. Key by key: `{REPORT_TEXT_FILE}`.", ""]
    lines += [f"- {note}" for note in conversion.notes] + [""] * bool(conversion.notes)
    lines += ["| source file | bytes |", "|---|---|"]
    lines += [f"| {escape_markdown(path.name)} | {path.stat().st_size:,} |" for path in conversion.checkpoint.files]
    return "\n".join(lines) + "\n"
