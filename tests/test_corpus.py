"""Corpora are reproducible, resumable, checked on reading, and keep their splits apart."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tinywave.data import corpus
from tinywave.data.audio_io import load_audio
from tinywave.data.corpus import CorpusError, TextItem, iterate_corpus, prepare_corpus, verify_splits
from tinywave.data.hibari_voice import HibariVoice
from tinywave.data.storage import partial_path

WORDS = ("barn", "cow", "hay", "ship", "sail", "wave", "bread", "oven")


def make_items(count: int = 5, split: str = "train") -> list[TextItem]:
    return [
        TextItem(
            id=f"{split}-{number}",
            split=split,
            domain="test",
            sentences=(f"The {split} {WORDS[number]}.", f"A {WORDS[number]} {split}."),
            voice="hibari",
            style="happy" if number % 2 else "base",
            seed=number,
            text_licence="CC0-1.0",
            source="this test",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_corpus(make_items(), tmp_path_factory.mktemp("corpus"), num_processes=1, rows_per_shard=2)


@pytest.fixture
def copy(folder, tmp_path):
    """A corpus to damage."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def content_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_say_what_is_heard(folder):
    rows = list(iterate_corpus(folder))
    assert [row["id"] for row in rows] == [item.id for item in make_items()]
    row = rows[1]
    waveform = load_audio(row["audio"]["bytes"])
    assert len(waveform) == row["num_samples"]
    assert row["sampling_rate"] == 16_000
    assert row["text"] == "The train cow. A cow train."
    assert [word["word"] for word in row["words"]] == ["The", "train", "cow", "A", "cow", "train"]
    assert row["licence"] == "Apache-2.0 (hibari-tts 0.2.1 voice); text: CC0-1.0"
    starts = [phone["start"] for phone in row["phones"]]
    assert starts == sorted(starts)
    assert row["words"][-1]["end"] <= len(waveform) / 16_000


def test_times_of_the_second_sentence_are_shifted(folder):
    row = next(iterate_corpus(folder))
    waveform = load_audio(row["audio"]["bytes"])
    last, following = (round(time * 16_000) for time in (row["words"][2]["end"], row["words"][3]["start"]))
    assert np.abs(waveform[last + 800 : following - 800]).max() < 0.01
    assert np.abs(waveform[following : following + 1600]).max() > 0.05
    first = HibariVoice().synthesize("The train barn.")
    shift = row["words"][3]["start"] - HibariVoice().synthesize("A barn train.").words[0].start
    assert 0.12 <= shift - len(first.waveform) / 24_000 <= 0.30


def test_bytes_do_not_depend_on_the_number_of_processes(folder, tmp_path):
    prepare_corpus(make_items(), tmp_path / "parallel", num_processes=2, rows_per_shard=2)
    assert content_of(tmp_path / "parallel") == content_of(folder)


def test_resuming_makes_only_what_is_missing_or_damaged(folder, copy):
    kept, truncated, missing = (copy / f"shard-0000{number}.parquet" for number in range(3))
    truncated.write_bytes(truncated.read_bytes()[:-100])
    missing.unlink()
    before = kept.stat().st_mtime_ns
    prepare_corpus(make_items(), copy, num_processes=1, rows_per_shard=2)
    assert kept.stat().st_mtime_ns == before
    assert content_of(copy) == content_of(folder)


def test_other_items_are_refused(copy):
    with pytest.raises(CorpusError, match="holds a corpus of 5 other items"):
        prepare_corpus(make_items(4), copy, num_processes=1, rows_per_shard=2)
    changed = [*make_items(4), replace(make_items()[4], seed=99)]
    with pytest.raises(CorpusError, match="choose another folder"):
        prepare_corpus(changed, copy, num_processes=1, rows_per_shard=2)


def test_flipped_bytes_are_noticed_on_reading(copy):
    path = copy / "shard-00001.parquet"
    content = bytearray(path.read_bytes())
    position = pq.read_metadata(path).row_group(0).column(5).data_page_offset + 200
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="shard-00001.parquet is damaged .* delete it and run"):
        list(iterate_corpus(copy))


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1")])
def test_missing_and_broken_shards_are_named(copy, damage):
    damage(copy / "shard-00002.parquet")
    with pytest.raises(CorpusError, match="shard-00002.parquet"):
        list(iterate_corpus(copy))


def test_manifest_is_checked(copy):
    with pytest.raises(CorpusError, match="Found no corpus in"):
        list(iterate_corpus(copy / "nowhere"))
    (copy / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match="corpus.json is damaged"):
        list(iterate_corpus(copy))


def test_columns_are_chosen_and_checked(folder):
    assert next(iterate_corpus(folder, ["id", "voice"])) == {"id": "train-0", "voice": "hibari"}
    with pytest.raises(ValueError, match=r"columns \['speaker'\]; expected some of id, split"):
        next(iterate_corpus(folder, ["speaker"]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_explained_and_damages_nothing(folder, copy):
    (copy / "shard-00000.parquet").unlink()
    partial_path(copy / "shard-00000.parquet").symlink_to("/dev/full")
    with pytest.raises(CorpusError, match="The disk is full at .* run again to resume"):
        prepare_corpus(make_items(), copy, num_processes=1, rows_per_shard=2)
    prepare_corpus(make_items(), copy, num_processes=1, rows_per_shard=2)
    assert content_of(copy) == content_of(folder)


def test_unspeakable_items_are_named(tmp_path):
    items = [replace(make_items()[0], sentences=("...",))]
    with pytest.raises(CorpusError, match="'train-0' cannot be spoken. Found no words to pronounce in '...'"):
        prepare_corpus(items, tmp_path, num_processes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "'train-0': found split 'dev'"),
        ({"sentences": ()}, "found no sentences"),
        ({"sentences": "A cow."}, "sentences as one string"),
        ({"voice": "am_nobody"}, "found voice 'am_nobody'"),
        ({"voice": "af_heart", "style": "sad"}, "found style 'sad' of voice af_heart"),
        ({"voice": "af_bella"}, "found test voice af_bella in split 'train'; expected split 'test'"),
        ({"voice": "af_heart+hibari"}, r"found voice 'af_heart\+hibari'; expected .* or Kokoro voices joined by '\+'"),
        ({"voice": "af_heart+af_bella"}, r"found test voice af_heart\+af_bella in split 'train'"),
        ({"seed": -1}, "found seed -1"),
        ({"phonemes": ("blˈɪk",)}, "found 1 phoneme strings; expected 2"),
    ],
)
def test_items_are_checked_at_construction(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_items(1)[0], **change)


def test_ids_are_unique(tmp_path):
    with pytest.raises(CorpusError, match="two items with the id 'train-0'"):
        prepare_corpus(make_items(1) * 2, tmp_path)
    with pytest.raises(CorpusError, match="no items"):
        prepare_corpus([], tmp_path)


def test_pseudo_words_are_spoken_from_phonemes(tmp_path):
    item = replace(make_items(1)[0], sentences=("blick",), phonemes=("blˈɪk",))
    row = next(iterate_corpus(prepare_corpus([item], tmp_path, num_processes=1)))
    assert [phone["phone"] for phone in row["phones"]] == list("blɪk")
    assert row["words"][0]["word"] == "blick"


def test_splits_are_proved_disjoint(tmp_path):
    items = make_items(1) + make_items(1, "test")
    assert verify_splits(prepare_corpus(items, tmp_path / "apart", num_processes=1)) == {
        "train": 1,
        "validation": 0,
        "test": 1,
    }
    items.append(replace(items[0], id="leak", split="test", sentences=("the TRAIN barn!",)))
    mixed = prepare_corpus(items, tmp_path / "mixed", num_processes=1)
    with pytest.raises(CorpusError, match="1 offenders:\n'the train barn' in test and train"):
        verify_splits(mixed)


@pytest.mark.parametrize("voice", ["af_bella", "af_heart+af_bella"])
def test_test_voices_outside_of_the_test_split_are_found(folder, copy, voice):
    path = copy / "shard-00000.parquet"
    table = pq.read_table(path)
    voices = table.column("voice").to_pylist()
    voices[1] = voice
    position = table.schema.get_field_index("voice")
    corpus.pq.write_table(table.set_column(position, table.schema.field(position), [voices]), path)
    with pytest.raises(CorpusError, match=re.escape(f"test voice {voice} in train (train-1)")):
        verify_splits(copy)


INTERRUPTED = """
import sys
from tinywave.data.corpus import prepare_corpus, TextItem
if __name__ == "__main__":
    items = [TextItem(f"{n}", "train", "test", ("The barn.",) * 5, "hibari", "base", n, "CC0-1.0", "x")
             for n in range(400)]
    prepare_corpus(items, sys.argv[1], num_processes=2, rows_per_shard=2)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_a_stopped_run_leaves_no_process_and_keeps_finished_shards(tmp_path, how):
    script, folder = tmp_path / "script.py", tmp_path / "corpus"
    script.write_text(INTERRUPTED)
    command = [sys.executable, str(script), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and not (folder / "shard-00001.parquet").exists():
        time.sleep(0.05)
    if how == "ctrl-c":
        # A terminal sends it to the whole group.
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    # The pipes close when the last process that holds them is gone.
    _, messages = process.communicate(timeout=60)
    assert (b"KeyboardInterrupt" in messages) == (how == "ctrl-c")
    assert process.returncode != 0
    assert how == "kill" or not list(folder.glob(".*"))
    assert [len(pq.read_table(path)) for path in folder.glob("*.parquet")] == [2] * len(list(folder.glob("*.parquet")))
