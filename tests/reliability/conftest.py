"""Inputs that all processes of a test run share, and the record of what was tried."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from tinywave.tests.reliability.commands import COMMANDS, LongCommand, make_inputs
from tinywave.tests.reliability.processes import Outcome, run_command


def pytest_addoption(parser):
    parser.addoption("--records", type=Path, help="folder that gets a JSON line for each thing that was tried")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums over several threads differ in the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that every process of the test run sees."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reliability"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def inputs(shared_folder, one_thread) -> Path:
    """Inputs of all long commands; see [`make_inputs`]."""
    folder = shared_folder / "inputs"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            make_inputs(folder)
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def uninterrupted(inputs, shared_folder):
    """Return a function from a command to the outcome of its uninterrupted run, and the folder that it wrote into."""

    def run(command: LongCommand) -> tuple[Outcome, Path]:
        name = f"whole {COMMANDS.index(command)}"
        with FileLock(shared_folder / f"{name}.lock"):
            record = shared_folder / f"{name}.json"
            folder = shared_folder / name
            if not record.exists():
                outcome = run_command(command.command_line(inputs), folder)
                assert outcome.exit_code == 0, outcome.errors
                record.write_text(json.dumps([outcome.seconds, outcome.operations]))
            seconds, operations = json.loads(record.read_text())
        return Outcome(0, "", "", seconds, [tuple(item) for item in operations]), folder

    return run


@pytest.fixture
def record(request):
    """Return a function that notes something that was tried, for the report."""
    folder = request.config.getoption("--records", None)

    def write(kind: str, **values) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n")

    return write
