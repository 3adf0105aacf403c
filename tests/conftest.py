"""The environment of every test: offline, quiet, and without traces in the user's own caches."""

import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Remote-code modules are cached by content; a fresh folder keeps one run's modules out of the next.
_modules_cache = tempfile.TemporaryDirectory(prefix="tinywave-modules-")
os.environ["HF_MODULES_CACHE"] = _modules_cache.name

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so the processes they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
