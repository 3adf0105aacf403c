"""What every worker process does first: leave interrupts to its parent, and end with it."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Makes this worker process ignore Ctrl-C, which the parent answers, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
