"""The house rules, proved from the syntax tree: who may import whom, what an uploaded file may contain, and that all
that is imported is asked for."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

UPLOADED = {
    "configuration_tinywave": 0,
    "tokenization_tinywave": 0,
    "waveform_tinywave": 1,
    "loading_tinywave": 1,
    "loudness_tinywave": 1,
    "speech_inputs_tinywave": 1,
    "generation_tinywave": 1,
    "batching_tinywave": 1,
    "prompt_cache_tinywave": 1,
    "quantization_tinywave": 1,
    "parallel_heads_tinywave": 1,
    "modeling_tinywave": 1,
    "speech_backbones_tinywave": 1,
    "speech_quantizers_tinywave": 1,
    "speech_encoder_tinywave": 1,
    "f0_tinywave": 1,
    "pitch_encoder_tinywave": 1,
    "style_encoder_tinywave": 1,
    "vocoder_inputs_tinywave": 1,
    "vocoder_tinywave": 1,
    "hifigan_tinywave": 1,
    "codec_tinywave": 1,
    "processing_tinywave": 1,
    "pipeline_tinywave": 1,
    "hub_pipelines_tinywave": 1,
}
FLOOR_OF_ROOT_MODULE = {**UPLOADED, "distill_trainer": 3}
FLOOR_OF_FOLDER = {
    "data": 2,
    "engines": 2,
    "training": 3,
    "eval": 4,
    "stages": 5,
    "cli": 5,
    "spaces": 5,
    "convert": 5,
    "recipes": 5,
    "benchmarks": 5,
    "publishing": 5,
}
# Packages that `pip install tinywave` always brings; an uploaded file needs nothing else.
ALWAYS_INSTALLED = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy"}
# Only the machines of a Space have it, and there it is.
PROVIDED = {"spaces"}


def source_files() -> list[Path]:
    """Every Python file that stands on a floor."""
    files = [ROOT / f"{module}.py" for module in FLOOR_OF_ROOT_MODULE if (ROOT / f"{module}.py").exists()]
    for folder in FLOOR_OF_FOLDER:
        files.extend((ROOT / folder).rglob("*.py"))
    return sorted(files)


def floor_of(module: str) -> int | None:
    """The floor of a module inside the package, e.g. `data.audio_io`; None for the package itself and outsiders."""
    first = module.split(".")[0]
    return FLOOR_OF_FOLDER.get(first, FLOOR_OF_ROOT_MODULE.get(first))


def own_imports(path: Path, root: Path = ROOT) -> list[tuple[int, str]]:
    """(line, module inside the package) of every import of our own code in `path`, wherever in the file it stands."""
    package = path.relative_to(root).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "tinywave"]
            found.extend((node.lineno, name.removeprefix("tinywave").lstrip(".")) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "tinywave"):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = (node.module or "") if node.level else node.module.removeprefix("tinywave").lstrip(".")
            prefix = ".".join([*base, *([module] if module else [])])
            names = [prefix] if prefix else [alias.name for alias in node.names]
            found.extend((node.lineno, name) for name in names)
    return found


def breaches(path: Path, root: Path = ROOT) -> list[str]:
    """The imports of `path` that reach up to a higher floor."""
    floor = floor_of(".".join(path.relative_to(root).with_suffix("").parts))
    reached = [(line, name, floor_of(name)) for line, name in own_imports(path, root)]
    return [
        f"{path.name}:{line} (floor {floor}) imports {name} (floor {other})"
        for line, name, other in reached
        if other is not None and other > floor
    ]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_a_higher_floor(path):
    assert breaches(path) == []


def test_a_breach_is_found_in_each_way_of_importing(tmp_path):
    (tmp_path / "data").mkdir()
    offender = tmp_path / "data" / "corpus.py"
    offender.write_text(
        "from ..training.losses import x\nfrom ..eval import scoring\nfrom .. import distill_trainer\n"
        "def later():\n    import tinywave.cli.main\n    from tinywave.training import losses\n"
        "from ..configuration_tinywave import TinyWaveConfig\nfrom .audio_io import load_audio\nimport evaluate\n"
    )
    assert sorted(int(re.search(r":(\d+)", breach)[1]) for breach in breaches(offender, tmp_path)) == [1, 2, 3, 5, 6]


def present_uploaded_files() -> list[Path]:
    return [ROOT / f"{module}.py" for module in UPLOADED if (ROOT / f"{module}.py").exists()]


@pytest.mark.parametrize("path", present_uploaded_files(), ids=lambda path: path.name)
def test_uploaded_files_import_only_flat_siblings_and_what_is_always_installed(path):
    """An optional package is imported in `try:`; there the Hub's check passes it over."""
    problems = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attempts = [statement for node in ast.walk(tree) if isinstance(node, ast.Try) for statement in node.body]
    optional = {id(node) for node in attempts if isinstance(node, (ast.Import, ast.ImportFrom))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level != 1 or node.module not in UPLOADED:
                problems.append(f"line {node.lineno}: from {'.' * node.level}{node.module or ''} import ...")
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in optional:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            outside = {name.split(".")[0] for name in names} - ALWAYS_INSTALLED - set(sys.stdlib_module_names)
            problems.extend(f"line {node.lineno}: {name}" for name in sorted(outside))
    assert problems == []


@pytest.mark.parametrize("path", present_uploaded_files(), ids=lambda path: path.name)
def test_no_text_in_an_uploaded_file_looks_like_a_relative_import(path):
    """The Hub's import scan is a regular expression over lines: it also reads docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    real = {node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))}
    looks_like = {
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if re.match(r"\s*(from|import)\s+\.?\w[\w.]*(\s+import\b|\s*$)", line)
    }
    assert looks_like <= real


def test_every_module_stands_on_a_floor():
    known = {*FLOOR_OF_ROOT_MODULE, "__init__", "setup"}
    assert {path.stem for path in ROOT.glob("*.py")} <= known


def test_every_third_party_import_is_a_declared_requirement(metadata):
    requirements = [*metadata.REQUIREMENTS, *metadata.EXTRAS["all"]]
    declared = {canonicalize_name(Requirement(text).name) for text in requirements}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for folder in ["", *metadata.FOLDERS, "tests"]:
        for path in (ROOT / folder).glob("*.py"):
            for name in third_party_imports(path):
                owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                if not owners & {*declared, *PROVIDED, "tinywave"}:
                    undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert undeclared == set()


def third_party_imports(path: Path) -> set[str]:
    """The top-level names of all absolute imports in a file, without the standard library."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def with_all_it_imports(path: Path) -> set[Path]:
    """A file of the package and, in turn, every file of it that they import."""
    reached, pending = set(), [path]
    while pending:
        path = pending.pop()
        if path not in reached:
            reached.add(path)
            named = [ROOT / name.replace(".", "/") for _, name in own_imports(path)]
            found = [place for name in named for place in (name.with_suffix(".py"), name / "__init__.py")]
            pending.extend(place for place in found if place.is_file())
    return reached


# What is installed for itself: a file that starts it, and the file that names what it needs.
INSTALLED_APART = [
    ("spaces/app.py", "spaces/requirements.txt"),
    *(
        (f"eval/metrics/{path.parent.name}/{path.parent.name}.py", f"eval/metrics/{path.parent.name}/requirements.txt")
        for path in sorted(ROOT.glob("eval/metrics/*/requirements.txt"))
    ),
]


@pytest.mark.parametrize(("start", "requirements"), INSTALLED_APART)
def test_what_is_installed_apart_asks_for_all_it_imports(metadata, start, requirements):
    asked = [Requirement(line) for line in (ROOT / requirements).read_text().splitlines() if not line.startswith("#")]
    extras = {extra for requirement in asked if requirement.name == "tinywave" for extra in requirement.extras}
    texts = [*metadata.REQUIREMENTS, *(text for extra in extras for text in metadata.EXTRAS[extra])]
    installed = {canonicalize_name(name) for name in (*(r.name for r in asked), *(Requirement(t).name for t in texts))}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in with_all_it_imports(ROOT / start)
        for name in third_party_imports(path) - PROVIDED
        if not {canonicalize_name(owner) for owner in distributions.get(name, [name])} & installed
    }
    assert missing == set()
