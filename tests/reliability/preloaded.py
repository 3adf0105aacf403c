"""Import every verb, in the server that test processes are forked from."""

import importlib

from tinywave.cli.main import VERBS

for verb in VERBS:
    importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}")
