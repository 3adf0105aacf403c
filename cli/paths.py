"""Checks of the paths that a command was given, before it loads or computes anything."""

import contextlib
import hashlib
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# What the arguments of these names, of every command, stand for.
_INPUT_FOLDERS = ("corpus", "units", "codec", "speech_encoder", "vocoder", "init_from", "teacher_cache", "input_dir")
_INPUT_FOLDERS += ("suites", "other_voices", "styled_corpus", "unseen_by")
_INPUT_FILES = ("recording", "record", "kmeans")
_OUTPUT_FOLDERS = ("output_dir", "destination")
_OUTPUT_FILES = ("output", "page", "plot")


def check_paths(arguments: Namespace) -> None:
    """Check the inputs and outputs among the arguments of a command.

    Raises:
        ValueError: for an input that does not exist or is of another kind, an output that cannot be written, and an
            output that would replace an input.
    """
    inputs = []
    for names, is_kind, kind in ((_INPUT_FOLDERS, os.path.isdir, "folder"), (_INPUT_FILES, _is_readable, "file")):
        for name in names:
            for path in _paths_of(arguments, name):
                _check_input(path, is_kind(path), kind, name)
                inputs.append(path)
    for name in _OUTPUT_FOLDERS:
        for path in _paths_of(arguments, name):
            check_output_folder(path)
    for name in _OUTPUT_FILES:
        for path in _paths_of(arguments, name):
            check_output_file(path, may_be_folder=hasattr(arguments, "engine"))
            if any(os.path.exists(path) and os.path.samefile(path, other) for other in inputs):
                raise ValueError(f"{path} is an input and the output; choose another output file")


def _is_readable(path: str) -> bool:
    """Whether a path is a file or a pipe."""
    return os.path.exists(path) and not os.path.isdir(path)


def _paths_of(arguments: Namespace, name: str) -> list[str]:
    value = getattr(arguments, name, None)
    values = value if isinstance(value, list) else [value]
    return [os.fspath(path) for path in values if path is not None]


def _check_input(path: str, is_right: bool, kind: str, name: str) -> None:
    if "\0" in path:
        raise ValueError(f"{name} {path!r} is not a path")
    if not is_right:
        found = "is not a " + kind if os.path.exists(path) else "does not exist"
        raise ValueError(f"{name} {path} {found}; expected a {kind}")


def check_output_folder(path: str | os.PathLike) -> None:
    """Raise `ValueError` for a path at which no folder can be made or written into."""
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise ValueError(f"the output folder {os.fspath(path)!r} is not a path")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ValueError(f"the output folder {path} is a file; choose another folder")
    _check_writable(Path(path), path)


def check_output_file(path: str, may_be_folder: bool = False) -> None:
    """Raise `ValueError` for a path at which no file can be written."""
    if "\0" in path or not path:
        raise ValueError(f"the output {path!r} is not a path")
    if os.path.isdir(path) and not may_be_folder:
        raise ValueError(f"the output {path} is a folder; expected the name of a file")
    _check_writable(Path(path).parent, path)


def _check_writable(folder: Path, output: str | os.PathLike) -> None:
    """Refuse an output in a folder that cannot be made or written into, by the nearest folder above that exists."""
    existing = Path(os.path.abspath(folder))
    try:
        while not os.path.lexists(existing):
            existing = existing.parent
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}") from error
    if not existing.is_dir():
        raise ValueError(f"{output} cannot be made: {existing} is a file")
    if any(len(os.fsencode(part)) > os.pathconf(existing, "PC_NAME_MAX") for part in folder.parts):
        raise ValueError(f"{output} cannot be made: the name is too long")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{output} cannot be written: {existing} is read-only for this user")


@contextlib.contextmanager
def sole_writer(arguments: Namespace) -> Iterator[None]:
    """Hold the output folder of a command, so that a second command does not write into it at the same time.

    Of the processes of one distributed run the first holds it. The lock is one of this machine.

    Raises:
        ValueError: where another process holds the folder, naming it.
    """
    folders = [path for name in _OUTPUT_FOLDERS for path in _paths_of(arguments, name)]
    if not folders or os.environ.get("RANK", "0") != "0":
        yield
        return
    locks = Path(tempfile.gettempdir()) / f"tinywave-locks-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(os.fsencode(os.path.realpath(folders[0]))).hexdigest()[:32]
    owner = locks / f"{name}.pid"
    try:
        with FileLock(locks / f"{name}.lock", timeout=0):
            owner.write_text(str(os.getpid()))
            yield
    except Timeout as error:
        process = owner.read_text() if owner.is_file() else "unknown"
        raise ValueError(
            f"another tinywave command (process {process}) writes into {folders[0]}; wait for it, or choose another "
            "folder"
        ) from error
