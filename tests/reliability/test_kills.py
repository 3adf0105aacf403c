"""A command that is killed at any moment and repeated writes what it writes without an interruption, byte for byte.

The default run kills a few commands at two moments; `make reliability` kills all of them at many.
"""

import random
import shutil
import signal

import pytest

from tinywave.tests.reliability.commands import COMMANDS, FAST, LongCommand, check_result
from tinywave.tests.reliability.processes import Kill, Outcome, run_command
from tinywave.tests.reliability.trees import is_inside_checkpoint

SEED = 0
NUM_OPERATIONS = 3
# What a command that was sent a signal ends with, unless it had ended before.
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def choose_kills(command: LongCommand, whole: Outcome) -> list[Kill]:
    """The moments at which a command is killed, the same for the same operations.

    Among the operations are one in which a finished file or folder gets its name, one of the last, and where there are
    checkpoints, one inside the last and one inside any of them.
    """
    draw = random.Random(f"{SEED} {command.name}")
    numbers = range(len(whole.operations))
    names = [f"{kind} {path}" for kind, path in whole.operations]
    in_checkpoints = [number for number in numbers[1:] if all(".checkpoint-" in names[number - i] for i in (0, 1))]
    groups = (
        [number for number in numbers if names[number].startswith("os.rename")],
        in_checkpoints,
        in_checkpoints[-6:],
        list(numbers)[-4:],
    )
    chosen = {draw.choice(group) for group in groups if group}
    remaining = [number for number in numbers if number not in chosen]
    chosen |= set(draw.sample(remaining, min(len(remaining), max(0, NUM_OPERATIONS - len(chosen)))))
    kills = [Kill(at_operation=number) for number in sorted(chosen)]
    files = sum(kind == "open" for kind, _ in whole.operations)
    kills.append(Kill(at_content_of=draw.randrange(max(1, files // 2))))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not in the first moments, in which the process is not yet in the command.
        kills.append(Kill(after_seconds=draw.uniform(0.2, 1) * whole.seconds, signal_number=number))
    return kills


def describe(kill: Kill, outcome: Outcome) -> str:
    if kill.at_operation is not None:
        ((kind, path),) = outcome.operations
        return f"before operation {kill.at_operation + 1}: {kind} {path}"
    if kill.at_content_of is not None:
        return f"as file {kill.at_content_of + 1} gets its first bytes"
    return f"after {kill.after_seconds:.2f} s"


def check_end(outcome: Outcome, kill: Kill) -> list[str]:
    """What is wrong with the end of a run that a signal has ended."""
    if "Traceback" in outcome.errors or "Exception ignored" in outcome.errors:
        return [f"traceback: {outcome.errors[-300:]}"]
    is_told = kill.signal_number == signal.SIGKILL or outcome.message.startswith("interrupted")
    if outcome.exit_code != EXIT_CODES[kill.signal_number] or not is_told:
        return [f"exit code {outcome.exit_code} and {outcome.message!r} after signal {kill.signal_number}"]
    return []


class KilledRun:
    """A command in a folder of its own, which is killed and repeated until it ends by itself.

    Attributes:
        problems (`list`): what was wrong with the runs that have ended.
    """

    def __init__(self, command: LongCommand, inputs, folder, expected, record):
        self.command, self.inputs, self.folder, self.expected, self.record = command, inputs, folder, expected, record
        self.problems: list[str] = []
        self._moments: list[str] = []
        self._bad_ends: list[str] = []

    def kill(self, kill: Kill) -> None:
        """Kill the run at a moment. One that ends before it is followed by a new one, killed in half the time."""
        outcome = self._run(kill)
        while outcome.exit_code == 0:
            self._check_result()
            kill = kill.earlier()
            outcome = self._run(kill)
        self._bad_ends += check_end(outcome, kill)
        self._moments.append(describe(kill, outcome))
        self.record(
            "kill",
            command=self.command.name,
            signal=signal.Signals(kill.signal_number).name,
            moment=self._moments[-1],
            is_inside_checkpoint=is_inside_checkpoint(self.folder),
        )

    def finish(self) -> None:
        """Repeat the command once more, and check what it has written."""
        outcome = self._run(None)
        if outcome.exit_code:
            self._bad_ends.append(f"the repeated command ends with {outcome.exit_code}: {outcome.message}")
        self._check_result()

    def _run(self, kill: Kill | None) -> Outcome:
        return run_command(self.command.command_line(self.inputs), self.folder, kill)

    def _check_result(self) -> None:
        """Compare the result with that of an uninterrupted run, and remove it."""
        problems = self._bad_ends + check_result(self.command, self.folder, self.expected)
        if self._moments:
            self.record("continued", command=self.command.name, moments=self._moments, problems=problems)
        self.problems += [f"{'; '.join(self._moments)}: {problem}" for problem in problems]
        self._moments, self._bad_ends = [], []
        shutil.rmtree(self.folder)


def check_command(command: LongCommand, kills: list[Kill], inputs, expected, folder, record) -> None:
    run = KilledRun(command, inputs, folder, expected, record)
    for kill in kills:
        run.kill(kill)
        if not command.chained:
            run.finish()
    if command.chained:
        run.finish()
    assert not run.problems, "\n".join(run.problems)


@pytest.mark.parametrize("command", [item for item in COMMANDS if item.name in FAST], ids=lambda item: item.name)
def test_a_killed_command_continues(command, inputs, uninterrupted, tmp_path, record):
    whole, expected = uninterrupted(command)
    kills = choose_kills(command, whole)
    # Those after a time depend on the load of the machine.
    check_command(command, [kills[1], kills[-3]], inputs, expected, tmp_path / "run", record)


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS, ids=lambda item: item.name)
def test_a_command_that_is_killed_anywhere_continues(command, inputs, uninterrupted, tmp_path, record):
    whole, expected = uninterrupted(command)
    check_command(command, choose_kills(command, whole), inputs, expected, tmp_path / "run", record)


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS, ids=lambda item: item.name)
def test_a_finished_command_repeated_changes_nothing(command, inputs, uninterrupted, tmp_path, record):
    _, whole = uninterrupted(command)
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    outcome = run_command(command.command_line(inputs), tmp_path / "run")
    assert outcome.exit_code == 0, outcome.errors
    problems = check_result(command, tmp_path / "run", whole)
    record("repeat", command=command.name, problems=problems)
    assert not problems, "\n".join(problems)
