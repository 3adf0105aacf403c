"""The notebooks of the documentation run from the first cell to the last, on the nano models, and hold no output."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {
    "distil_in_ten_minutes": {
        "NUM_STORIES": 3,
        "NUM_TEST_STORIES": 1,
        "NUM_STEPS": 2,
        "BATCH_SIZE": 2,
        "NUM_PAIRS": 6,
        "NUM_PROCESSES": 1,
    },
    "evaluate_any_speech_model": {"NUM_PAIRS": 3, "NUM_PROCESSES": 1},
}
SECONDS_PER_CELL = 600
MODELS = ("teacher", "student", "no_distillation")


def read(path):
    return nbformat.read(path, as_version=4)


def with_settings(notebook, settings):
    """The notebook with other numbers in its cell of parameters."""
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in settings.items():
        cell.source, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.MULTILINE)
        assert count == 1, f"{name} is not set once in the cell of parameters"
    return notebook


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def displayed(notebook, mime_type):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data for output in outputs if mime_type in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count is not None] == []


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request, tmp_path_factory):
    """Name, executed notebook, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = with_settings(read(request.param), SMALL[request.param.stem])
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client = NotebookClient(notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return request.param.stem, notebook, folder


def test_runs_and_leaves_what_it_says(executed):
    name, notebook, folder = executed
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    output, text = folder / "outputs" / name, printed(notebook)
    if name == "distil_in_ten_minutes":
        assert (output / "student" / "model.safetensors").is_file()
        assert (output / "no_distillation" / "model.safetensors").is_file()
        before, after = (
            int(count.replace(",", "")) for count in re.search(r"([\d,]+) parameters -> ([\d,]+)", text).groups()
        )
        assert 3 * after < 1.1 * before
        assert all(re.search(rf"^ +{model}( +\d+\.\d%){{3}} +\d+\.\d\d$", text, re.MULTILINE) for model in MODELS)
        assert len(displayed(notebook, "image/png")) == 2
        assert len(displayed(notebook, "text/html")) == 5  # the story, its beginning, three continuations
    else:
        rows = re.findall(r"^ *(TinyWave|plain Llama|bigram) +3 +(\d+\.\d%)", text, re.MULTILINE)
        assert [row[0] for row in rows] == ["TinyWave", "plain Llama", "bigram"]
        assert rows[0][1] == rows[1][1]
        assert "McNemar's exact test: p =" in text
        assert (output / "tSC.parquet").is_file()
        assert len(displayed(notebook, "text/html")) == 2
