"""Published checkpoint files, read without running anything they contain.

PyTorch files are pickles. They are read with `weights_only=True`, which builds tensors and plain containers and
nothing else, and memory-mapped, so that a file of 13 GB costs no memory before its tensors are used. The checksums
that the files carry are compared first.
"""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..data.storage import read_json
from .key_report import TensorSpec

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What a saved configuration says about its own file, and nothing about the model.
_FILE_FIELDS = {"architectures", "auto_map", "transformers_version", "_name_or_path", "torch_dtype", "dtype"}
_READING_ERRORS = (RuntimeError, EOFError, OSError, AttributeError, IndexError, KeyError, TypeError, ValueError)
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


class Checkpoint:
    """Named tensors of one or several files, read one at a time.

    Args:
        specs: name -> shape and dtype.
        read: returns the tensor of a name.
        files: the files the tensors come from.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], read: Callable[[str], torch.Tensor], files: list[Path]):
        self.specs = dict(specs)
        self.read = read
        self.files = files

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], path: Path) -> "Checkpoint":
        """Wrap a state dict that was read from `path`. Raises `ValueError` where a value is not a tensor."""
        wrong = next((name for name, value in state.items() if not isinstance(value, torch.Tensor)), None)
        if wrong is not None:
            raise ValueError(f"{path}: {wrong!r} holds {type(state[wrong]).__name__}; expected a tensor")
        return cls({name: TensorSpec.of(tensor) for name, tensor in state.items()}, state.__getitem__, [path])

    @classmethod
    def joined(cls, parts: list["Checkpoint"]) -> "Checkpoint":
        """Join the tensors of several files. Raises `ValueError` where two files hold the same name."""
        owner: dict[str, Checkpoint] = {}
        for part in parts:
            for name in part.specs:
                if name in owner:
                    raise ValueError(f"both {owner[name].files[0]} and {part.files[0]} hold {name}; expected one")
                owner[name] = part
        specs = {name: part.specs[name] for name, part in owner.items()}
        return cls(specs, lambda name: owner[name].read(name), [path for part in parts for path in part.files])


def open_weights(folder: Path) -> Checkpoint:
    """Open the weights of a transformers folder: one file or shards, safetensors or PyTorch.

    Raises `FileNotFoundError` where there are none or a shard of the index is not there, `ValueError` where a file
    is damaged or needs code to be read.
    """
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    raise FileNotFoundError(
        f"{folder} holds no weights; expected {', '.join(_WEIGHT_NAMES)}, or the index of their shards"
    )


def _open_shards(index: Path) -> Checkpoint:
    """Open every shard that the index of a transformers folder names, and compare their tensors with it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f'{index} has no "weight_map"; expected tensor name -> file name')
    paths = [index.parent / name for name in dict.fromkeys(weight_map.values())]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise FileNotFoundError(f"{index} names the shard {path.name}, which is not beside it; download it again")
    checkpoint = Checkpoint.joined([open_file(path) for path in paths])
    absent = sorted(weight_map.keys() - checkpoint.specs.keys())
    if absent:
        raise ValueError(f"{weight_map[absent[0]]} does not hold {absent[0]}, which {index} places there")
    return checkpoint


def open_file(path: Path) -> Checkpoint:
    """Open a safetensors file, or a PyTorch file that holds a state dict and nothing else."""
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    state = load_torch_file(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds {type(state).__name__}; expected tensors by name")
    return Checkpoint.from_state_dict(state, path)


def _open_safetensors(path: Path) -> Checkpoint:
    """Open a safetensors file; its header alone is read."""
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}
        specs = {
            name: TensorSpec(tuple(item.get_shape()), _SAFETENSORS_DTYPES[item.get_dtype()])
            for name, item in slices.items()
        }
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file ({error}); download it again") from error
    except KeyError as error:
        raise ValueError(f"{path} holds a tensor of type {error}; expected {list(_SAFETENSORS_DTYPES)}") from error
    return Checkpoint(specs, file.get_tensor, [path])


def load_torch_file(path: Path) -> Any:
    """Return what a PyTorch file holds: tensors in plain containers. Tensors stay on disk until they are used.

    Raises `FileNotFoundError`, and `ValueError` where the file is damaged, or where reading it would call code: the
    error names what the file asks for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    try:
        # Files older than PyTorch 1.6 are one pickle, which cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        # The message of PyTorch recommends to read the file with its code; it is not repeated.
        wanted = _unsafe_globals(path, str(error))
        if wanted:
            raise ValueError(_refusal(path, wanted)) from error
        raise ValueError(f"{path} is damaged or is not a PyTorch file; download it again") from error
    except _READING_ERRORS as error:
        raise ValueError(f"{path} is damaged or is not a PyTorch file; download it again ({error})") from error


def _check_archive(path: Path) -> None:
    """Compare the checksums of the records of a PyTorch file. Raises `ValueError` naming the first wrong record."""
    with zipfile.ZipFile(path) as archive:
        try:
            wrong = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged; download it again ({error})") from error
    if wrong is not None:
        raise ValueError(f"{path} is damaged: the checksum of its record {wrong} is wrong; download it again")


def _unsafe_globals(path: Path, message: str) -> list[str]:
    """Return the functions and classes that a file asks for beyond what tensors need; found without loading any.

    Args:
        message: of PyTorch's refusal, which names one of them.
    """
    with suppress(ValueError, RuntimeError, pickle.UnpicklingError):
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if wanted:
            return sorted(wanted)
    named = re.findall(r"GLOBAL (\S+) (?:was not|whose)", message)
    return named or _pickle_globals(path)


def _pickle_globals(path: Path) -> list[str]:
    """Return what a bare pickle asks for, read from its instructions."""
    names, strings = [], []
    with suppress(ValueError, OSError), open(path, "rb") as file:
        for instruction, argument, _ in pickletools.genops(file):
            if isinstance(argument, str):
                strings.append(argument)
            if instruction.name == "GLOBAL":
                names.append(argument.replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
    return sorted(set(names))


def _refusal(path: Path, wanted: list[str]) -> str:
    """Return why a file is not read, and what its owner can do."""
    return (
        f"{path} is a pickle that asks for {', '.join(wanted)}: reading it would call code that the file chooses, so "
        "it is refused. If you trust the file, load it where the package it came from is installed, and save the "
        "tensors alone in the same nesting: torch.save({name: tensor, ...}, path)"
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what the config.json of a transformers folder says about the model."""
    return without_file_fields(read_json(folder / "config.json"))


def without_file_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what it says about its own file: architectures, versions, dtype."""
    return {name: value for name, value in settings.items() if name not in _FILE_FIELDS}
