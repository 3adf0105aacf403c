"""Run the command line in processes of its own that can be killed at a chosen moment.

Processes are forked from a server that has imported the package already, so that a run starts at once and the moments
are spread over its work, not over its imports.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinywave.cli.main import main

TIMEOUT_SECONDS = 300
_POLL_SECONDS = 0.0005
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.symlink": 2}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        exit_code (`int`): negative for the signal that ended the process, as in `subprocess`.
        output (`str`): what it printed on standard output.
        errors (`str`): what it printed on standard error.
        seconds (`float`): wall time.
        operations (`list`): changes to files below the working directory, in order: kind and relative path. Of a run
            that was killed at one of them only that one.
    """

    exit_code: int
    output: str
    errors: str
    seconds: float
    operations: list[tuple[str, str]] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The last line of the command on standard error; a progress bar may stand before and after it."""
        lines = self.errors.replace("\r", "\n").splitlines()
        return next((line[len("tinywave: ") :] for line in reversed(lines) if line.startswith("tinywave: ")), "")


@dataclass(frozen=True)
class Kill:
    """When and how a run is ended.

    Args:
        at_operation (`int`, *optional*): just before the process makes this change to a file, counted from 0.
        after_seconds (`float`, *optional*): after this time.
        at_content_of (`int`, *optional*): as soon as the n-th new file is seen with content in it, counted from 0.
        signal_number (`int`, defaults to SIGKILL): of the signal.
    """

    at_operation: int | None = None
    after_seconds: float | None = None
    at_content_of: int | None = None
    signal_number: int = signal.SIGKILL

    def earlier(self) -> "Kill":
        """The same in half the time, for a run that had ended before."""
        if self.after_seconds is not None:
            return replace(self, after_seconds=self.after_seconds / 2)
        if self.at_content_of:
            return replace(self, at_content_of=self.at_content_of // 2)
        return Kill(at_operation=(self.at_operation or 0) // 2)


def run_command(
    arguments: list[str],
    folder: Path,
    kill: Kill | None = None,
    *,
    clock_offset: float = 0.0,
    user_id: int | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Outcome:
    """Run `tinywave` with `folder` as its working directory.

    Args:
        arguments (`list`): of the command line.
        folder: working directory; created if needed.
        kill (*optional*): when to end it.
        clock_offset (`float`, defaults to 0): seconds that are added to the clock of the process.
        user_id (`int`, *optional*): user to run as.
        environment (`dict`, *optional*): variables to set.
        timeout (`float`): seconds after which the run counts as hanging.

    Raises:
        TimeoutError: for a run that does not end.
    """
    process = start_command(
        arguments, folder, kill, clock_offset=clock_offset, user_id=user_id, environment=environment
    )
    return process.wait(kill, timeout)


def start_command(
    arguments: list[str], folder: Path, kill: Kill | None = None, *, clock_offset=0.0, user_id=None, environment=None
) -> "RunningCommand":
    """Start `tinywave` and return at once; see [`run_command`]."""
    return RunningCommand(list(map(str, arguments)), Path(folder), kill, clock_offset, user_id, environment or {})


class RunningCommand:
    """A run of the command line that has been started."""

    def __init__(self, arguments, folder, kill, clock_offset, user_id, environment):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.logs = folder, folder.with_name(f".logs of {folder.name}")
        self.logs = self.logs / str(time.monotonic_ns())
        self.logs.mkdir(parents=True)
        self.logs.chmod(0o777)
        self.known_files = set(_files(folder))
        at_operation = None if kill is None else kill.at_operation
        self.process = _context().Process(
            target=_work,
            args=(arguments, str(folder), str(self.logs), at_operation, clock_offset, user_id, environment),
        )
        self.process.start()  # The first one starts the server, which imports everything.
        self.start = time.monotonic()

    def wait(self, kill: Kill | None = None, timeout: float = TIMEOUT_SECONDS) -> Outcome:
        """Wait for the end, or bring it about as `kill` says."""
        if kill is not None and kill.after_seconds is not None:
            self.process.join(kill.after_seconds)
            self._send(kill.signal_number)
        elif kill is not None and kill.at_content_of is not None:
            self._wait_for_content(kill.at_content_of)
            self._send(kill.signal_number)
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"no end after {timeout:.0f} s; standard error: {self._read('stderr')[-500:]}")
        operations = self._read("operations.json")
        return Outcome(
            self.process.exitcode,
            self._read("stdout"),
            self._read("stderr"),
            time.monotonic() - self.start,
            [tuple(item) for item in json.loads(operations)] if operations else [],
        )

    def _send(self, signal_number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal_number)

    def _wait_for_content(self, number: int) -> None:
        seen = set(self.known_files)
        while self.process.exitcode is None:
            for path in _files(self.folder):
                if path not in seen and _has_content(path):
                    seen.add(path)
                    if len(seen) - len(self.known_files) > number:
                        return
            time.sleep(_POLL_SECONDS)

    def _read(self, name: str) -> str:
        path = self.logs / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinywave.tests.reliability.preloaded"])
    return context


def _files(folder: Path) -> list[str]:
    return [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


def _work(arguments, folder, logs, at_operation, clock_offset, user_id, environment) -> None:
    """Run the command line in this process, and end the process with its exit code."""
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(logs, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.chdir(folder)
    if user_id is not None:
        os.setgid(user_id)
        os.setuid(user_id)
    if clock_offset:
        _shift_clock(clock_offset)
    operations = _observe(os.path.realpath(folder), os.path.join(logs, "operations.json"), at_operation)
    code = main(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # The command has ended, and only its record is to be written.
    _write_record(list(operations), os.path.join(logs, "operations.json"))
    sys.exit(code)


def _write_record(operations: list[tuple[str, str]], path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(operations, file)


def _shift_clock(seconds: float) -> None:
    clock, clock_ns = time.time, time.time_ns
    time.time = lambda: clock() + seconds
    time.time_ns = lambda: clock_ns() + int(seconds * 1e9)


def _observe(folder: str, record: str, at_operation: int | None) -> list[tuple[str, str]]:
    """Record every change to a file below `folder`, and kill this process just before one of them."""
    operations: list[tuple[str, str]] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            is_change = isinstance(arguments[0], str | bytes) and bool((arguments[2] or 0) & _WRITING)
            places = [_place(arguments[0])] if is_change else []
        else:
            # A path may be relative to an open folder, whose descriptor comes last.
            places = [_place(path, arguments[-1]) for path in arguments[: _CHANGES.get(event, 0)]]
        if not any(place.startswith(folder + os.sep) for place in places):
            return
        operation = (event, " -> ".join(os.path.relpath(place, folder) for place in places))
        if len(operations) == at_operation:
            _write_record([operation], record)
            os.kill(os.getpid(), signal.SIGKILL)
        operations.append(operation)

    sys.addaudithook(hook)
    return operations


def _place(path: str | bytes, folder_descriptor: int = -1) -> str:
    path = os.fsdecode(path)
    if not os.path.isabs(path) and folder_descriptor >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder_descriptor}"), path)
    return os.path.abspath(path)
