"""Atomic writing: the final name holds the old content or the new one, whatever happens in between."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tinywave.data import storage
from tinywave.data.storage import atomic_file, atomic_folder, content_digest, partial_path, read_json, write_json


@pytest.mark.parametrize(
    "name", ["plain.json", "with space.json", ".hidden", "-dash", "größe.json", "a" * 255, "ä" * 127]
)
def test_a_file_is_replaced_or_left_as_it_was(name, tmp_path):
    path = tmp_path / "made" / name
    with atomic_file(path) as partial:
        assert str(os.getpid()) in partial.name
        partial.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [name]


def run_and_kill(program, *arguments):
    """Run a program that kills itself, in a process of its own."""
    program = f"import os, signal, sys\nfrom tinywave.data import storage\n{program}"
    finished = subprocess.run([sys.executable, "-c", program, *map(str, arguments)])
    assert finished.returncode == -signal.SIGKILL


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    write_json({"value": 1}, path)
    run_and_kill(
        "with storage.atomic_file(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n",
        path,
    )
    assert path.read_text() == '{\n  "value": 1\n}\n'
    [left] = tmp_path.glob(".*.partial")
    process = re.search(r"([0-9]+)\.partial", left.name)[1]
    others = [
        left.with_name(left.name.replace(process, str(os.getppid()))),  # a process that runs
        left.with_name(left.name.replace("record", "other")),  # of another file
        left.with_name(left.name.replace(storage._HOST, "elsewhere")),  # of another machine
        left.with_name(f".record.json.{process}.partial"),  # of another program
        left.with_name(left.name.replace(process, "²")),
        left.with_name(left.name.replace(process, "9" * 23)),
    ]
    for other in others:
        other.touch()
    storage._leftovers.cache_clear()
    write_json({"value": 2}, path)
    assert path.read_text() == '{\n  "value": 2\n}\n'
    assert set(tmp_path.iterdir()) == {path, *others}, "of what is hidden only the partial of the killed one goes"


@pytest.mark.parametrize("kills_at", [1, 2])
def test_a_folder_whose_replacement_is_killed_is_the_old_one_or_the_new_one(kills_at, tmp_path):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as partial:
        (partial / "old").write_text("old")
    run_and_kill(
        "replace, calls = os.replace, []\n"
        "def counted(*paths):\n"
        "    replace(*paths); calls.append(paths)\n"
        f"    len(calls) == {kills_at} and os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = counted\n"
        "with storage.atomic_folder(sys.argv[1]) as partial:\n"
        "    (partial / 'new').write_text('new')\n",
        folder,
    )
    storage._leftovers.cache_clear()
    storage.remove_leftovers(folder)
    assert os.listdir(folder) == [["old"], ["new"]][kills_at - 1]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_replaced_whole_or_left_as_it_was(tmp_path):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as partial:
        (partial / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(folder) as partial:
        (partial / "new").write_text("new")
        raise RuntimeError
    assert os.listdir(folder) == ["old"]
    with atomic_folder(folder) as partial:
        (partial / "new").write_text("new")
    assert os.listdir(folder) == ["new"] and os.listdir(tmp_path) == ["folder"]


def test_an_error_names_the_final_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="record.json cannot be written"):
        write_json({}, tmp_path / "file" / "record.json")


def test_a_digest_follows_names_and_contents_of_large_files_too(tmp_path):
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(20 * 2**20))
    before = content_digest([large])
    with open(large, "r+b") as file:
        file.seek(20 * 2**20 - 1)
        file.write(b"1")
    assert content_digest([large]) != before
    assert content_digest([large]) == content_digest([large])
    renamed = large.rename(tmp_path / "renamed.bin")
    assert content_digest([renamed]) != before


def test_temporary_names_of_processes_differ(tmp_path, monkeypatch):
    first = partial_path(tmp_path / "x")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert partial_path(tmp_path / "x") != first


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "contains list; expected a JSON object"),
    ],
)
def test_files_that_are_no_json_object_are_refused_by_name(content, problem, tmp_path):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"record\.json .*{problem}"):
        read_json(tmp_path / "record.json")
