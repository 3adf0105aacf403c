"""What a run was started with, and whether it is finished: `run.json` in its output folder.

A command that is repeated either continues the same run, finds it finished, or refuses to mix it with another one.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..data.storage import content_digest, read_json, write_json

RUN_FILE = "run.json"
# What a model, a corpus, a units folder or a teacher cache consists of.
_INPUT_SUFFIXES = (".safetensors", ".parquet", ".onnx")
_INPUT_NAMES = ("config.json", "cache.json", "tokenizer.json")
# What would be overwritten, or resumed from, without being of this run.
_MODEL_PATTERNS = ("*.safetensors", "config.json", "checkpoint-*")
_ANOTHER_FOLDER = "choose another output folder, or delete this one"
# A run may be continued with more of these. Unless its learning rate is constant, the result differs from that of a
# run that was planned with this length from the beginning.
_LENGTHS = ("max_steps", "num_train_epochs")


class RunRecord:
    """The run of one output folder.

    Args:
        output_dir: folder of the model and its checkpoints; created if needed.
        stage (`str`): name of the command.
        settings: everything that the command was given and the result depends on; must be representable in JSON.
        inputs: files and folders that the run reads, by name; `None` for one that is not used. Their contents enter
            the record, not their paths.

    Raises:
        ValueError: where the folder belongs to a run of other settings or inputs, naming the first difference, or
            contains a model or checkpoints of unknown origin.
        FileNotFoundError: for an input that does not exist.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        stage: str,
        settings: Mapping,
        inputs: Mapping[str, str | os.PathLike | Iterable[str | os.PathLike] | None],
    ):
        self.output_dir = Path(output_dir)
        digests = {name: input_digest(paths) for name, paths in inputs.items() if paths is not None}
        record = {"stage": stage, "settings": settings, "inputs": digests}
        self.record = json.loads(json.dumps(record))
        found = self._read()
        if found is None or self._is_only_file():
            self._check_no_model()
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.record, self._path)
            self.is_finished = False
            return
        sizes = found.pop("files", None)
        self._check_same(found)
        self.is_finished = found == self.record and self._is_complete(sizes)
        if found != self.record:
            write_json(self.record, self._path)

    @property
    def _path(self) -> Path:
        return self.output_dir / RUN_FILE

    def _read(self) -> dict | None:
        try:
            return read_json(self._path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{error}; {_ANOTHER_FOLDER}") from error

    def _is_only_file(self) -> bool:
        """Whether the run that the record describes has written nothing, as where its inputs could not be read."""
        return all(path == self._path for path in self.output_dir.iterdir())

    def _check_no_model(self) -> None:
        for pattern in _MODEL_PATTERNS:
            for path in self.output_dir.glob(pattern):
                raise ValueError(
                    f"{self.output_dir} contains {path.name} and no {RUN_FILE}, so it is not the folder of a run of "
                    f"this command; {_ANOTHER_FOLDER}"
                )

    def _check_same(self, found: dict) -> None:
        expected, found = dict(flatten(self.record)), dict(flatten(found))
        for name in expected | found:
            now, before = expected.get(name, "nothing"), found.get(name, "nothing")
            is_longer = name.rpartition(".")[2] in _LENGTHS and _is_more(now, before)
            if now != before and not is_longer:
                raise ValueError(
                    f"{self.output_dir} belongs to a run with another {name}: {before}, not {now}; {_ANOTHER_FOLDER}"
                )

    def _is_complete(self, sizes: Mapping | None) -> bool:
        if not isinstance(sizes, Mapping):
            return False
        paths = {name: self.output_dir / name for name in sizes}
        return all(path.is_file() and path.stat().st_size == sizes[name] for name, path in paths.items())

    def finish(self) -> None:
        """Record that the run is finished, with the files at the top of its folder."""
        files = (path for path in sorted(self.output_dir.iterdir()) if path.is_file() and path != self._path)
        write_json({**self.record, "files": {path.name: path.stat().st_size for path in files}}, self._path)

    def describe(self) -> str:
        """Return the line that a repeated command prints."""
        return f"{self.output_dir} contains the finished run of these settings; nothing is left to train"


def input_digest(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> str:
    """Return one digest of the contents of files and of the models, corpora and units in folders."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return content_digest(file for path in paths for file in _input_files(Path(path)))


def _input_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file() and (file.suffix in _INPUT_SUFFIXES or file.name in _INPUT_NAMES):
                yield file
    else:
        raise FileNotFoundError(f"{path} does not exist; expected a model, a corpus or units")


def _is_more(now: object, before: object) -> bool:
    return isinstance(now, (int, float)) and isinstance(before, (int, float)) and now > before


def flatten(record: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of every leaf of nested mappings.

    ```python
    >>> list(flatten({"training": {"max_steps": 2}, "seed": 0}))
    [('training.max_steps', 2), ('seed', 0)]

    ```
    """
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
