"""A command that is killed at any moment and repeated writes what it writes without an interruption, byte for byte.

The default run kills a few commands at two moments; `make reliability` kills all of them at many.
"""

import random
import signal

import pytest

from tinywave.tests.reliability.commands import COMMANDS, FAST, LongCommand
from tinywave.tests.reliability.processes import Kill, Outcome, run_command
from tinywave.tests.reliability.trees import differences, leftovers, read_tree

NUM_OPERATIONS, NUM_MOMENTS = 5, 3
# The signals of the kills after a random time; those at an operation are SIGKILL.
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SIGNAL_EXIT_CODES = {signal.SIGINT: (130,), signal.SIGTERM: (130, 143)}


def choose_kills(command: LongCommand, whole: Outcome) -> list[Kill]:
    """The moments at which a command is killed, the same for the same operations.

    Among the operations are one in which a finished file or folder gets its name, and where there are checkpoints, one
    inside the last and one inside another of them.
    """
    draw = random.Random(command.name)
    numbers = range(len(whole.operations))
    names = [f"{kind} {path}" for kind, path in whole.operations]
    groups = (
        [number for number in numbers if names[number].startswith("os.rename")],
        [number for number in numbers if "checkpoint" in names[number]],
        [number for number in numbers if "checkpoint" in names[number]][-8:],
        list(numbers)[-4:],
    )
    chosen = {draw.choice(group) for group in groups if group}
    remaining = [number for number in numbers if number not in chosen]
    chosen |= set(draw.sample(remaining, min(len(remaining), max(0, NUM_OPERATIONS - len(chosen)))))
    kills = [Kill(at_operation=number) for number in sorted(chosen)]
    files = sum(kind == "open" for kind, _ in whole.operations)
    kills.append(Kill(at_content_of=draw.randrange(max(1, files // 2))))
    for number in range(NUM_MOMENTS):
        share = draw.uniform(number / NUM_MOMENTS, (number + 1) / NUM_MOMENTS)
        kills.append(Kill(after_seconds=share * whole.seconds, signal_number=SIGNALS[number % len(SIGNALS)]))
    return kills


def describe(kill: Kill, whole: Outcome) -> str:
    if kill.at_operation is not None:
        kind, path = whole.operations[kill.at_operation]
        return f"before operation {kill.at_operation + 1} of {len(whole.operations)}: {kind} {path}"
    if kill.at_content_of is not None:
        return f"as file {kill.at_content_of + 1} gets its first bytes"
    return f"after {kill.after_seconds:.2f} of {whole.seconds:.2f} s"


def check_end(outcome: Outcome, kill: Kill) -> list[str]:
    """What is wrong with the end of a run that was sent a signal."""
    if "Traceback" in outcome.errors:
        return [f"traceback: {outcome.errors[-300:]}"]
    if kill.signal_number == signal.SIGKILL or outcome.exit_code == 0:
        return []
    if outcome.exit_code not in SIGNAL_EXIT_CODES[kill.signal_number] or "interrupted" not in outcome.last_line:
        return [f"exit code {outcome.exit_code} and {outcome.last_line!r} after signal {kill.signal_number}"]
    return []


def kill_and_continue(command, kills, inputs, folder, whole, expected, record) -> list[str]:
    """Kill one run at each of the moments in turn, finish it, and return what is wrong."""
    problems, ends = [], []
    for kill in kills:
        outcome = run_command(command.command_line(inputs), folder, kill)
        ends.append(outcome)
        problems += check_end(outcome, kill)
    finished = run_command(command.command_line(inputs), folder)
    if finished.exit_code:
        problems.append(f"the repeated command ends with {finished.exit_code}: {finished.last_line}")
    else:
        problems += differences(read_tree(folder, command.exempt, command.exempt_keys), expected)
    problems += [f"left behind: {name}" for name in leftovers(folder)]
    for kill, outcome in zip(kills, ends, strict=True):
        record(
            "kill",
            command=command.name,
            signal=signal.Signals(kill.signal_number).name,
            moment=describe(kill, whole),
            has_killed=outcome.has_killed,
            problems=problems,
        )
    moments = "; ".join(describe(kill, whole) for kill in kills)
    return [f"{command.name}, {moments}: {problem}" for problem in problems]


def check_command(command: LongCommand, kills_of, inputs, uninterrupted, tmp_path, record) -> None:
    whole, expected = uninterrupted(command)
    kills = kills_of(choose_kills(command, whole))
    runs = [kills] if command.chained else [[kill] for kill in kills]
    problems = [
        problem
        for number, run in enumerate(runs)
        for problem in kill_and_continue(command, run, inputs, tmp_path / str(number), whole, expected, record)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("command", [item for item in COMMANDS if item.name in FAST], ids=lambda item: item.name)
def test_a_killed_command_continues(command, inputs, uninterrupted, tmp_path, record):
    check_command(command, lambda kills: [kills[1], kills[-3]], inputs, uninterrupted, tmp_path, record)


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS, ids=lambda item: item.name)
def test_a_command_that_is_killed_anywhere_continues(command, inputs, uninterrupted, tmp_path, record):
    check_command(command, lambda kills: kills, inputs, uninterrupted, tmp_path, record)


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS, ids=lambda item: item.name)
def test_a_finished_command_repeated_changes_nothing(command, inputs, uninterrupted, tmp_path, record):
    _, expected = uninterrupted(command)
    for _ in range(2):
        outcome = run_command(command.command_line(inputs), tmp_path / "case")
        assert outcome.exit_code == 0, outcome.errors
        problems = differences(read_tree(tmp_path / "case", command.exempt, command.exempt_keys), expected)
        record("repeat", command=command.name, problems=problems)
        assert not problems, "\n".join(problems)
