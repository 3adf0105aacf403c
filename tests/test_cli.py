"""The command line as a user meets it: fast help, one clear line for bad input, exit codes."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinywave.cli import main as command_line

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cli"


def run(*arguments, **options):
    """Run `tinywave` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tinywave.cli.main", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_help_names_every_verb_and_imports_no_library():
    code = (
        "import sys\nfrom tinywave.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'soundfile', 'pyarrow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert all(f"    {verb}" in output for verb in command_line.VERBS)


def test_every_verb_has_a_file_and_every_file_a_verb():
    files = {path.stem.replace("_", "-") for path in FOLDER.glob("*.py")} - {"--init--", "main"}
    assert files == set(command_line.VERBS)


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_declares_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main([verb, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tinywave {verb} ")
    assert callable(importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}").run)


def test_without_a_verb_the_help_is_shown():
    result = run()
    assert result.returncode == 2
    assert "quickstart" in result.stdout


def test_an_unknown_verb_is_refused():
    result = run("quickstrat")
    assert result.returncode == 2
    assert "quickstrat" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_one_line(tmp_path):
    result = run("encode", tmp_path / "nothing.wav")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "nothing.wav" in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "encode", tmp_path / "nothing.wav")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tinywave: ")


def test_a_full_disk_says_what_to_do():
    line = command_line.describe_error(OSError(28, "No space left on device", "units.json"))
    assert "No space left on device" in line
    assert "free some space" in line


def test_a_full_disk_while_writing_is_one_line(tmp_path):
    """/dev/full refuses every write with ENOSPC."""
    units = tmp_path / "units.json"
    units.write_text(json.dumps({"units": [1, 2, 3], "unit_rate": 25.0}))
    result = run("decode", units, "--output", "/dev/full")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_control_c_leaves_one_line_and_130(tmp_path):
    fifo = tmp_path / "endless.wav"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tinywave.cli.main", "encode", str(fifo)], stderr=subprocess.PIPE, text=True
    )
    # The process blocks on the pipe until a writer comes; by the time `open` returns it is inside the verb.
    with open(fifo, "wb"):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("tinywave: interrupted")
    assert "Traceback" not in errors
