"""The examples in docstrings run, and the README names things that exist."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

from tinywave.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["", "data", "training", "eval", "cli", "benchmarks"]


def modules_with_examples() -> list[str]:
    """Dotted names of the package's modules whose text holds a doctest."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py") if path.name != "setup.py"]
    with_examples = [path for path in files if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(("tinywave", *path.relative_to(ROOT).with_suffix("").parts)) for path in with_examples)


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_code_is_valid_python(readme):
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_readme_links_lead_to_files(readme):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_commands_exist(readme):
    assert set(re.findall(r"^tinywave ([a-z-]+)", readme, flags=re.MULTILINE)) <= set(VERBS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z]+)", readme, flags=re.MULTILINE)
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
