"""The loader of every model of this package: no model is used with weights that were not loaded.

`from_pretrained` of transformers initializes a missing tensor at random and warns. [`load_pretrained`] refuses it, and
checks the kind of the model and the values of its weights.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

Model = TypeVar("Model", bound=PreTrainedModel)
_NUM_SHOWN = 3
_SPEECH_FIELD = "num_units"
# What transformers raises for a folder whose files do not fit each other, or the installed packages.
_LOADING_ERRORS = (
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    ImportError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
)


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the file, what was found and what is expected."""


def load_pretrained(
    model_class: type[Model],
    name_or_path: str | os.PathLike,
    *,
    may_be_missing: Sequence[str] = (),
    **options: Any,
) -> Model:
    """Load a model for use, and check that all of it was loaded.

    Args:
        model_class: a class of this package, or an `AutoModel` class.
        name_or_path: a folder with config.json and safetensors weights, or the name of a repository of the Hub.
        may_be_missing (*optional*): beginnings of the names of tensors that the checkpoint does not need to have, such
            as parallel heads that are trained next.
        options: of `from_pretrained`, such as `dtype` and `revision`.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: for a model of another kind, a damaged file, a config with impossible values, and missing,
            unexpected, misshapen or non-finite tensors, or such of another kind of number, by name.
        FileNotFoundError: for a folder without a model.
    """
    has_safetensors, is_folder = "gguf_file" not in options, Path(name_or_path).is_dir()
    if is_folder and has_safetensors:
        check_model_type(name_or_path, model_class)
        _check_num_layers(Path(name_or_path), read_config(name_or_path))
        generation_config = Path(name_or_path) / GENERATION_CONFIG_NAME
        if generation_config.is_file():  # transformers takes defaults in place of one that it cannot read.
            _read_object(generation_config)
    try:
        # A tensor of another shape is left out and reported with both shapes, and refused below.
        with _no_load_report():
            model, report = model_class.from_pretrained(
                name_or_path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=has_safetensors,
                **options,
            )
    except CheckpointError:
        raise
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and not is_folder:
            raise FileNotFoundError(f"{name_or_path} is no folder with a model, nor a repository: {reason}") from error
        raise CheckpointError(f"{name_or_path} cannot be loaded as {model_class.__name__}: {reason}") from error
    missing = [name for name in report["missing_keys"] if not name.startswith(tuple(may_be_missing) or "\0")]
    _refuse(name_or_path, "lacks", missing)
    _refuse(name_or_path, "has unexpected", report["unexpected_keys"])
    shapes = [
        f"{name} (found {tuple(found)}, expected {tuple(expected)})"
        for name, found, expected in report["mismatched_keys"]
    ]
    _refuse(name_or_path, "has misshapen", shapes)
    if has_safetensors and (folder := _folder_of(name_or_path, options)):
        check_stored_types(weight_files(folder), model, name_or_path)
    check_finite(model, name_or_path, may_be_missing)
    return model.eval()


def commit_of(name_or_path: str | os.PathLike, revision: str | None = None) -> str | None:
    """Return the commit of a repository of the Hub that a model was loaded from; None for a folder."""
    folder = None if Path(name_or_path).is_dir() else _folder_of(name_or_path, {"revision": revision})
    return None if folder is None else folder.name


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the content of config.json in a model folder.

    Raises:
        FileNotFoundError: where there is none.
        CheckpointError: for one that is not a JSON object.
    """
    try:
        return _read_object(Path(folder) / CONFIG_NAME)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} contains no model: {CONFIG_NAME} is missing") from error


def check_model_type(folder: str | os.PathLike, model_class: type[PreTrainedModel]) -> None:
    """Raise [`CheckpointError`] for a folder whose model is of another kind than a class of this package."""
    config_class = getattr(model_class, "config_class", None)
    config, expected = read_config(folder), getattr(config_class, "model_type", None)
    if expected is None:
        return
    found = config.get("model_type")
    if found != expected:
        raise CheckpointError(
            f"{folder} contains a model of type {found!r}; expected {expected!r} ({model_class.__name__})"
        )
    # A language model is stored as Llama, for programs that support no other type; its unit ids distinguish it.
    if hasattr(config_class, "stream_ranges") and _SPEECH_FIELD not in config:
        raise CheckpointError(
            f"{folder} contains a {found} model without {_SPEECH_FIELD!r} in {CONFIG_NAME}; expected a model of "
            f"speech units ({model_class.__name__})"
        )


def check_finite(model: torch.nn.Module, name: str | os.PathLike, may_be_missing: Sequence[str] = ()) -> None:
    """Raise [`CheckpointError`] naming the tensors of a model that hold NaN or infinite values."""
    bad = [
        key
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not key.startswith(tuple(may_be_missing) or "\0") and not _is_finite(tensor)
    ]
    _refuse(name, "has NaN or infinite values in", bad)


def check_stored_types(files: Sequence[Path], model: torch.nn.Module, name: str | os.PathLike) -> None:
    """Raise [`CheckpointError`] naming stored tensors of another kind of number than the model's.

    transformers converts them without a warning: floating-point weights that are stored as integers become zeros.
    """
    expected, wrong = model.state_dict(), []
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                stored = file.get_slice(key).get_dtype()
                is_floating = key not in expected or expected[key].is_floating_point()
                if stored.startswith(("F", "BF")) != is_floating:
                    wrong.append(f"{key} (found {stored}, expected {'floating point' if is_floating else 'integers'})")
    _refuse(name, "stores another kind of number in", wrong)


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """Return the safetensors files of a model folder, one or the shards of an index.

    Raises:
        CheckpointError: where there are none, and for an index that is damaged or names files outside the folder.
    """
    folder = Path(folder)
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise CheckpointError(
            f"{folder} contains no weights; expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {error!r}") from error
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}; expected names of .safetensors files in its folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{index} names {missing[0]}, which does not exist")
    return [folder / name for name in names]


def tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file; [`CheckpointError`] for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error


def _folder_of(name_or_path: str | os.PathLike, options: dict[str, Any]) -> Path | None:
    """The folder that a model was loaded from, its own or one of the cache of the Hub."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    revision, cache = options.get("revision"), options.get("cache_dir")
    config = try_to_load_from_cache(str(name_or_path), CONFIG_NAME, cache_dir=cache, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains {type(content).__name__}; expected a JSON object")
    return content


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Leave out the table in which transformers announces random weights: they are refused, or trained next."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _check_num_layers(folder: Path, config: dict[str, Any]) -> None:
    """Refuse more layers than there are tensors, before a module is built for each of them."""
    num_tensors = sum(len(tensor_names(path)) for path in weight_files(folder))
    for name, value in _numbers_of_layers(config):
        if not 0 <= value <= num_tensors:
            raise CheckpointError(
                f"{folder / CONFIG_NAME} states {name}={value:,}, and the weights consist of {num_tensors} tensors"
            )


def _numbers_of_layers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers_of_layers(value)
        elif (name.endswith("_layers") or name == "num_parallel_heads") and isinstance(value, int):
            yield name, value


def _is_finite(tensor: torch.Tensor) -> bool:
    # The sum of a finite tensor is finite unless it overflows; only then every element is looked at.
    return bool(tensor.float().sum().isfinite()) or bool(tensor.isfinite().all())


def _refuse(name: str | os.PathLike, problem: str, keys: Sequence[str]) -> None:
    if keys:
        shown = ", ".join(sorted(keys)[:_NUM_SHOWN]) + (", ..." if len(keys) > _NUM_SHOWN else "")
        raise CheckpointError(f"{name} {problem} {len(keys)} tensor{'s' if len(keys) > 1 else ''}: {shown}")
