"""Atomic writing: a file or folder under its final name is always complete.

Everything that is written by this package and read again, by itself or by a user, goes through these functions.
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# File systems allow 255 bytes for a name, and a character takes up to four.
_NAME_CHARACTERS = 50
_MAX_NAME_BYTES = 200
_WHOLE_FILE_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**20
_NUM_BLOCKS = 16
# Processes are numbered by machine and by container; both have a host name of their own.
_HOST = re.sub(r"[^A-Za-z0-9]", "-", platform.node())[:16]


def check_plain_name(name: str, what: str) -> str:
    """Return a name that comes from a file and becomes the name of another one.

    Raises:
        ValueError: for a name that is not a string, is empty, begins with a dot, has a path separator, a colon or a
            control character, or more than 200 bytes.
    """
    is_plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\:")
    if not is_plain or name.startswith(".") or not name.strip() or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise ValueError(f"{what} is {str(name)[:80]!r}; expected a plain name without path separators")
    return name


def path_inside(folder: str | os.PathLike, name: str | os.PathLike) -> Path:
    """Return the path of a file that another file names, relative to `folder`.

    Raises:
        ValueError: where the path, symbolic links resolved, is not inside `folder`.
    """
    path = Path(folder) / name
    try:
        is_inside = path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):  # NUL in the name, a loop of links
        is_inside = False
    if not is_inside:
        raise ValueError(f"{str(name)!r} is not inside {folder}")
    return path


def partial_path(path: str | os.PathLike) -> Path:
    """Return the hidden name beside `path` under which this process writes it."""
    path = Path(path)
    return path.with_name(f"{_partial_prefix(path)}{os.getpid()}.partial")


def _partial_prefix(path: Path) -> str:
    return f".{path.name[:_NAME_CHARACTERS]}.{_HOST}-"


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove what killed processes of this machine left of `path`, and put back a folder that one was replacing."""
    path = Path(path)
    name = re.compile(re.escape(_partial_prefix(path)) + r"[0-9]+\.(partial|old)")
    for leftover in _leftovers(path.parent.absolute()):
        if not (match := name.fullmatch(leftover.name)):
            continue
        with suppress(OSError):  # A file of another user, or one that another process has just removed.
            if match[1] == "old" and not path.exists():
                os.replace(leftover, path)
            elif leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


@functools.cache
def _leftovers(folder: Path) -> list[Path]:
    """Return what killed processes of this machine left in a folder.

    The folder is read once for each process, as it may hold thousands of files.
    """
    name = re.compile(rf"\..*\.{_HOST}-([0-9]{{1,7}})\.(?:partial|old)", re.DOTALL)
    try:
        matches = [(path, name.fullmatch(path.name)) for path in folder.iterdir()]
    except OSError:  # It may be written and not read.
        return []
    return [path for path, match in matches if match and not _is_running(int(match[1]))]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on failure.

    Missing parent folders are created. The temporary name carries the process id, so two processes that write the same
    file do not mix their contents: the last one to finish wins.

    Raises:
        OSError: for a file that cannot be written, with the final path in the message.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno is None or str(path) in str(error).replace(str(partial), ""):
            raise
        raise OSError(error.errno, f"{path} cannot be written: {os.strerror(error.errno)}") from error
    finally:
        with suppress(OSError):  # The folder may be the file that is in the way.
            partial.unlink()


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `folder` on success and is removed on failure."""
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Rename the folder `new` to `folder`, in place of what is there.

    A process that is killed between the two renames leaves no `folder`; the next one that writes it puts the old one
    back first ([`remove_leftovers`]).
    """
    folder = Path(folder)
    remove_leftovers(folder)
    old = partial_path(folder).with_suffix(".old")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_json(record: Mapping | Sequence, path: str | os.PathLike) -> Path:
    """Write a record as JSON.

    Raises:
        ValueError: for NaN or infinity in the record, which JSON does not have.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def read_json(path: str | os.PathLike, may_be_list: bool = False) -> Any:
    """Read a JSON file that contains an object or, with `may_be_list`, a list.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is not JSON in UTF-8, is nested too deeply, or contains anything else.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) and not (may_be_list and isinstance(content, list)):
        expected = "a JSON object or list" if may_be_list else "a JSON object"
        raise ValueError(f"{path} contains {type(content).__name__}; expected {expected}")
    return content


def parse_json(text: str) -> Any:
    """Parse JSON; `ValueError` for any mistake in it, too deep a nesting among them."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write the content of a file."""
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def file_sha256(path: str | os.PathLike) -> str | None:
    """Return the SHA-256 of a file in hexadecimal digits, or None where it does not exist."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(files: Iterable[str | os.PathLike]) -> str:
    """Return a SHA-256 digest of the names and contents of some files, in the order of their names.

    Files above 16 MiB are sampled: their size and 16 evenly spaced blocks of 1 MiB enter the digest. That detects
    another model or another corpus at the cost of a few reads; it is no protection against forgery.
    """
    digest = hashlib.sha256()
    for file in sorted(map(Path, files), key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(os.fsencode(f"{file.name} {size}\n"))
        with open(file, "rb") as stream:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(stream.read())
                continue
            for number in range(_NUM_BLOCKS):
                stream.seek((size - _BLOCK_BYTES) * number // (_NUM_BLOCKS - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()
