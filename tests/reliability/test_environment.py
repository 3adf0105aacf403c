"""Two runs in one folder, a full disk, a read-only folder, odd paths, a clock that goes back: nothing lost or mixed.

The default run tries a few commands; `make reliability` tries all of them. Disks are tmpfs, which root may mount.
"""

import os
import subprocess
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinywave.tests.reliability.commands import COMMANDS, OUTPUT, LongCommand, check_result
from tinywave.tests.reliability.processes import Kill, Outcome, run_command, start_command

LINK = "link"
ODD_NAMES = ("with  spaces", "häufig 語", "run.v1.2", "./-dash", "trailing/", "a/../b", LINK)
PAGE = 4096
# A card is titled by its folder, and torch keeps the path in the arguments of a run.
NAMED_BY_FOLDER = {"*README.md": "title", "*training_args.bin": "path"}
DAY = 86_400.0


# In the others an output folder is used as in one of these.
WRITERS = ("prepare", "extract-units", "distill", "evaluate", "export to 8 bits")


def of_commands(*default: str, others: Iterable[str] = tuple(item.name for item in COMMANDS)):
    """Parametrize with commands, of which only the first belong to the default run."""
    cases = [
        pytest.param(item, id=item.name, marks=() if item.name in default else pytest.mark.exhaustive)
        for item in COMMANDS
        if item.name in {*default, *others}
    ]
    return pytest.mark.parametrize("command", cases)


@contextmanager
def disk(folder: Path, options: str):
    """Mount a small disk in a folder; the test is skipped where the user may not."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs a user who may mount a disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@pytest.fixture
def check(record):
    """Return a function that records a case with its problems, and fails where there are any."""

    def conclude(case: str, command: LongCommand, problems: list[str]) -> None:
        record("environment", case=case, command=command.name, problems=problems)
        assert not problems, "\n".join(problems)

    return conclude


def check_refusal(outcome: Outcome, *words: str) -> list[str]:
    """What is wrong with a refusal in one line that holds some words."""
    missing = [word for word in words if word not in outcome.message]
    if outcome.exit_code != 2 or missing or "Traceback" in outcome.errors:
        return [f"exit code {outcome.exit_code}, without {missing}: {outcome.errors[-300:]}"]
    return []


@of_commands("prepare", "distill", "export to 8 bits")
def test_two_runs_in_one_folder(command, inputs, uninterrupted, tmp_path, check):
    _, expected = uninterrupted(command)
    folder, line = tmp_path / "run", command.command_line(inputs)
    outcomes = [run.wait() for run in [start_command(line, folder) for _ in range(2)]]
    problems = [] if any(outcome.exit_code == 0 for outcome in outcomes) else ["both failed"]
    for outcome in outcomes:
        problems += check_refusal(outcome, "another tinywave command", OUTPUT) if outcome.exit_code else []
    check("two runs in one folder", command, problems + check_result(command, folder, expected))


@pytest.mark.parametrize("share", (0.2, 0.8))
@of_commands("distill", others=WRITERS)
def test_full_disk(command, share, inputs, uninterrupted, tmp_path, check):
    """The run names what did not fit, what it leaves under final names is complete, and with room it goes on."""
    _, expected = uninterrupted(command)
    pages = sum(-(-path.stat().st_size // PAGE) for path in expected.rglob("*") if path.is_file())
    line = command.command_line(inputs)
    with disk(tmp_path / "disk", f"size={max(1, int(share * pages)) * PAGE}") as folder:
        outcome = run_command(line, folder)
        problems = check_refusal(outcome, "No space left on device") if outcome.exit_code else []
        incomplete = [item for item in check_result(command, folder, expected) if item.startswith("differs")]
        problems += [item for item in incomplete if not item.endswith("run.json")]  # It names no result yet.
        remount(folder, "size=1g")
        outcome = run_command(line, folder)
        problems += [f"with room: {outcome.message}"] if outcome.exit_code else []
        problems += check_result(command, folder, expected)
    check("full disk", command, problems)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda item: item.name)
def test_read_only_folder(command, inputs, tmp_path, check):
    with disk(tmp_path / "disk", "size=1m") as folder:
        remount(folder, "ro")
        outcome = run_command(command.command_line(inputs), folder)
    problems = check_refusal(outcome, "cannot be written", OUTPUT)
    if len(outcome.errors.splitlines()) > 1 or outcome.output:
        problems.append(f"works before it refuses: {outcome.output}{outcome.errors}")
    check("read-only folder", command, problems)


@pytest.mark.parametrize("name", ODD_NAMES)
@of_commands("prepare", others=WRITERS)
def test_odd_output_path(command, name, inputs, uninterrupted, tmp_path, check):
    _, expected = uninterrupted(command)
    folder, problems = tmp_path / "run", []
    for above in ("a", "elsewhere"):
        (folder / above).mkdir(parents=True)
    (folder / LINK).symlink_to("elsewhere")
    for _ in range(2):
        outcome = run_command(command.command_line(inputs, name), folder)
        problems += [outcome.message] if outcome.exit_code else []
    problems += check_result(command, folder / name, expected / OUTPUT, NAMED_BY_FOLDER)
    check("odd output path", command, [f"{name}: {problem}" for problem in problems])


@of_commands("distill", others=WRITERS)
def test_clock_that_goes_back(command, inputs, uninterrupted, tmp_path, check):
    """What is continued carries times of the future, the oldest file the newest."""
    whole, expected = uninterrupted(command)
    folder, line = tmp_path / "run", command.command_line(inputs)
    run_command(line, folder, Kill(at_operation=len(whole.operations) * 3 // 4), clock_offset=30 * DAY)
    paths = sorted(folder.rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    newest = paths[-1].stat().st_mtime + 30 * DAY
    for number, path in enumerate(paths):
        os.utime(path, (newest - number * DAY,) * 2)
    outcome = run_command(line, folder, clock_offset=-30 * DAY)
    problems = [outcome.message] if outcome.exit_code else []
    check("clock that goes back", command, problems + check_result(command, folder, expected))
