"""setup.py against the tree, the pins, and the promise that nothing heavy or foreign is needed."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tinywave

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    split = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in split}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel. The sources are copied first: setuptools leaves a build folder beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_root_modules_are_listed(metadata):
    assert set(metadata.ROOT_MODULES) == {path.stem for path in ROOT.glob("*.py")} - {"setup"}


def test_folders_are_listed(metadata):
    with_code = {path.parent for path in ROOT.glob("*/**/*.py") if not path.parts[len(ROOT.parts)].startswith(".")}
    folders = {".".join(path.relative_to(ROOT).parts) for path in with_code}
    # The model folders under assets carry copies of model code.
    left_out = {"tests", "build", "outputs", "assets", "docs"}
    assert {folder for folder in folders if folder.split(".")[0] not in left_out} <= set(metadata.FOLDERS)
    assert all((ROOT / folder.replace(".", "/")).is_dir() for folder in metadata.FOLDERS)


def test_the_wheel_holds_every_module_asset_and_recipe(metadata, wheel):
    inside = set(wheel.namelist())
    expected = {f"tinywave/{module}.py" for module in metadata.ROOT_MODULES}
    for folder in metadata.FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"tinywave/{path.relative_to(ROOT)}")
    assert expected - inside == set()


def test_the_wheel_holds_no_tests_and_no_build_files(wheel):
    outside = [name for name in wheel.namelist() if not re.match(r"tinywave(-[^/]*\.dist-info)?/", name)]
    assert outside == []
    assert not [name for name in wheel.namelist() if name.startswith(("tinywave/tests", "tinywave/setup"))]


def test_every_public_name_exists():
    for name in tinywave.__all__:
        assert getattr(tinywave, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TinyWhale'.*public names"):
        tinywave.TinyWhale  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tinywave; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_every_requirement_is_pinned_within_its_bounds(metadata, pins):
    for text in [*metadata.REQUIREMENTS, *metadata.EXTRAS["all"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_installed_versions_are_the_pinned_ones(metadata, pins):
    for text in [*metadata.REQUIREMENTS, *metadata.EXTRAS["all"]]:
        name = canonicalize_name(Requirement(text).name)
        assert importlib.metadata.version(name).split("+")[0] == pins[name]


def test_constraints_begin_with_torch_and_name_no_place(pins):
    assert next(iter(pins)) == "torch"
    assert not re.search(r"://|@|^-|/", "".join(f"{name}{version}\n" for name, version in pins.items()))


def test_packages_that_break_the_stack_are_nowhere(metadata, pins):
    names = {*pins, *(Requirement(text).name for text in [*metadata.REQUIREMENTS, *metadata.EXTRAS["all"]])}
    assert names & {"torchaudio", "torchcodec", "torchvision", "piper-tts", "praat-parselmouth"} == set()


def test_no_test_is_skipped_for_lack_of_a_package():
    word = "importor" + "skip"
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if word in path.read_text(encoding="utf-8")] == []
