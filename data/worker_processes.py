"""What every worker process does first: leave interrupts to its parent, and end with it."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Make this worker process ignore the signals that its parent answers, and exit when the parent is killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
