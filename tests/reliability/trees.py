"""Compare what two runs of one command wrote, byte for byte."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

# The name that `tinywave.data.storage.partial_path` and the checkpoints give to what is not complete yet.
LEFTOVER = re.compile(r"(^|/)\.[^/]*\.(partial|old)(/|$)")


def read_tree(folder: Path, exempt: Mapping[str, str], exempt_keys: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return a digest of every file below a folder, by its relative path.

    Args:
        folder: what a command wrote.
        exempt (`Mapping`): patterns of paths that are not compared, and the reason for each.
        exempt_keys (`Mapping`): patterns of JSON files, and the keys at any depth that are not compared.
    """
    tree = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or LEFTOVER.search(name) or any(fnmatch.fnmatch(name, pattern) for pattern in exempt):
            continue
        keys = {key for pattern, names in exempt_keys.items() if fnmatch.fnmatch(name, pattern) for key in names}
        tree[name] = hashlib.sha256(_content(path, keys)).hexdigest()
    return tree


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files below a folder."""
    names = (path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*")))
    return [name for name in names if LEFTOVER.search(name)]


def is_inside_checkpoint(folder: Path) -> bool:
    """Return whether a run below a folder has begun a checkpoint that is not complete."""
    return any(Path(folder).rglob(".checkpoint-*.partial/*"))


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return a line for every file that is missing, not expected, or of other content."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"not expected: {name}" for name in found if name not in expected]
    return lines + [f"differs: {name}" for name in expected if name in found and found[name] != expected[name]]


def _content(path: Path, keys: set[str]) -> bytes:
    content = path.read_bytes()
    return json.dumps(_without(json.loads(content), keys), sort_keys=True).encode() if keys else content


def _without(value, keys: set[str]):
    if isinstance(value, dict):
        return {name: _without(item, keys) for name, item in value.items() if name not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value
