"""Released layouts, built as the releases are from pieces of real recordings, and every defect that they can have."""

import csv
import io
import json
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tinywave.data.codec_loading import load_codec
from tinywave.eval.aggregation import SALMON_PARTS
from tinywave.eval.readers import LAYOUTS, AudioPair, read_audio_suite
from tinywave.eval.salmon_tables import StoredRecording
from tinywave.eval.suite_encoding import encode_audio_suite
from tinywave.eval.suites import SuiteError, read_suite

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
LEXICAL_COLUMNS = ("id", "filename", "voice", "frequency", "word", "phones", "length", "correct")
SYNTACTIC_COLUMNS = ("id", "filename", "voice", "type", "subtype", "transcription", "correct")


@pytest.fixture(scope="module")
def speech():
    """Waveform and sampling rate of seven seconds of a LibriVox reader."""
    return soundfile.read(LIBRIVOX / "sense_and_sensibility_01_0870.flac", dtype="int16")


@pytest.fixture
def write(speech):
    """Writes `files` -> seconds, in a random order, as pieces of the recording that all differ."""
    waveform, rate = speech

    def write(folder, files, seed=0):
        names = sorted(files)
        Random(seed).shuffle(names)
        for name in names:
            start = 977 * sorted(files).index(name) % (len(waveform) - rate)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, waveform[start : start + round(files[name] * rate)], rate)
        return folder

    return write


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def reasons(suite):
    return {problem.name: problem.reason for problem in suite.problems}


# SALMon


@pytest.fixture
def salmon(tmp_path, write):
    files = {f"{part}/sample_{i}_{j}.wav": 0.3 for part in SALMON_PARTS for i in (0, 2, 10) for j in (0, 1)}
    return write(tmp_path / "salmon_benchmark", files)


def test_salmon_release(salmon):
    suite = read_audio_suite(salmon)
    assert (suite.name, suite.layout, suite.problems) == ("salmon", "salmon", ())
    assert [pair.id for pair in suite.pairs] == [f"{part}/{i}" for part in SALMON_PARTS for i in (0, 2, 10)]
    assert suite.pairs[4] == AudioPair(
        id="bg_all_consistency/2",
        suite="salmon",
        part="bg_all_consistency",
        group="bg_all_consistency/2",
        voice="",
        positive=salmon / "bg_all_consistency" / "sample_2_0.wav",
        negative=salmon / "bg_all_consistency" / "sample_2_1.wav",
        positive_text="",
        negative_text="",
    )
    part = read_audio_suite(salmon / "rir_consistency")
    assert (part.name, part.layout) == ("salmon", "salmon")
    assert part.pairs == tuple(pair for pair in suite.pairs if pair.part == "rir_consistency")


def test_order_of_creation_changes_nothing(tmp_path, write):
    files = {f"rir_consistency/sample_{i}_{j}.wav": 0.2 for i in range(12) for j in (0, 1)}
    first, second = (write(tmp_path / str(seed), files, seed) for seed in (1, 2))
    (first / "rir_consistency" / "sample_3_1.wav").unlink()
    (second / "rir_consistency" / "sample_3_1.wav").unlink()
    suites = [read_audio_suite(folder) for folder in (first, second)]
    relative = [
        [(pair.id, pair.positive.relative_to(folder), pair.negative.relative_to(folder)) for pair in suite.pairs]
        for folder, suite in zip((first, second), suites, strict=True)
    ]
    assert relative[0] == relative[1] and len(relative[0]) == 11
    assert suites[0].problems == suites[1].problems


def test_every_defect_of_salmon_is_named(salmon, write, speech):
    part = salmon / "gender_consistency"
    (part / "sample_2_1.wav").unlink()
    (part / "sample_10_0.wav").write_bytes(b"no sound")
    write(salmon, {"rir_consistency/sample_0_1.wav": 0.05, "rir_consistency/sample_02_1.flac": 0.3})
    write(salmon, {"rir_consistency/sample_4_2.wav": 0.3, "extra/sample_0_0.wav": 0.3})
    (salmon / "bg_alignment" / "._sample_0_0.wav").write_bytes(b"left by an archive of macOS")
    for file in (salmon / "speaker_consistency").iterdir():
        file.unlink()
    suite = read_audio_suite(salmon)
    left_out = {"gender_consistency/2", "gender_consistency/10", "rir_consistency/0", "rir_consistency/2"}
    every = {f"{part}/{i}" for part in SALMON_PARTS[:-1] for i in (0, 2, 10)}
    assert {pair.id for pair in suite.pairs} == every - left_out
    found = reasons(suite)
    assert found.pop("gender_consistency/sample_10_0.wav").startswith("is not audio that can be read (")
    assert found == {
        "gender_consistency/2": "has no negative half; found only gender_consistency/sample_2_0.wav",
        "rir_consistency/sample_0_1.wav": "lasts 0.05 s; expected at least 0.1 s (pair rir_consistency/0)",
        "rir_consistency/2": "is a duplicate id; expected one file per half, found positive "
        "rir_consistency/sample_2_0.wav; negative rir_consistency/sample_02_1.flac and rir_consistency/sample_2_1.wav",
        "rir_consistency/sample_4_2.wav": "has another name than sample_<i>_0 or sample_<i>_1",
        "extra": f"is no part of SALMon; expected one of {SALMON_PARTS}",
        "speaker_consistency": "holds no audio; expected sample_<i>_<j>.wav",
    }
    with pytest.raises(SuiteError, match=r"has 7 problems; fix them:\n(.*\n)*gender_consistency/2: has no negative"):
        read_audio_suite(salmon, strict=True)
    assert len(read_audio_suite(salmon, min_seconds=0.04).pairs) == len(suite.pairs) + 1


def test_strict_shows_the_first_twenty(salmon):
    for file in salmon.rglob("*_1.wav"):
        file.unlink()
    with pytest.raises(SuiteError, match="has 24 problems") as error:
        read_audio_suite(salmon)
    lines = str(error.value).splitlines()
    assert len(lines) == 22 and lines[1].startswith("bg_alignment/0: ") and lines[-1] == "and 4 more"


def salmon_rows(speech, part, numbers, seconds=0.3):
    """Rows as the Hub has them: whole WAV files in structs."""
    waveform, rate = speech
    rows = []
    for number in numbers:
        row = {"task": part, "ind": number}
        for half, start in (("positive", 977 * number), ("negative", 977 * number + 400)):
            file = io.BytesIO()
            soundfile.write(file, waveform[start : start + round(seconds * rate)], rate, format="WAV")
            row[f"{half}_audio"] = {"bytes": file.getvalue(), "path": f"sample_{number}_{int(half == 'negative')}.wav"}
        rows.append(row)
    return rows


def write_tables(folder, rows_by_file, row_group_size=2):
    for name, rows in rows_by_file.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=row_group_size)
    return folder


@pytest.fixture
def salmon_of_the_hub(tmp_path, speech):
    tables = {f"{part}/train-00000-of-00001.parquet": salmon_rows(speech, part, (7, 0, 12)) for part in SALMON_PARTS}
    return write_tables(tmp_path / "SALMon", tables)


def test_salmon_of_the_hub(salmon_of_the_hub, speech, tmp_path):
    suite = read_audio_suite(salmon_of_the_hub, strict=True)
    assert (suite.name, suite.layout, suite.problems) == ("salmon", "salmon_tables", ())
    assert [pair.id for pair in suite.pairs] == [f"{part}/{i}" for part in SALMON_PARTS for i in (0, 7, 12)]
    pair = suite.pairs[5]
    table = salmon_of_the_hub / SALMON_PARTS[1] / "train-00000-of-00001.parquet"
    assert (pair.part, pair.group) == (SALMON_PARTS[1], pair.id)
    assert (pair.positive, pair.negative) == tuple(
        StoredRecording(table, 2, f"{half}_audio") for half in ("positive", "negative")
    )
    # The sound is that of the row, beyond the first row group too.
    for recording, start in ((pair.positive, 977 * 12), (pair.negative, 977 * 12 + 400)):
        found, rate = soundfile.read(recording.open(), dtype="int16")
        np.testing.assert_array_equal(found, speech[0][start : start + round(0.3 * rate)])
    part = read_audio_suite(salmon_of_the_hub / "rir_consistency")
    assert part.pairs == tuple(pair for pair in suite.pairs if pair.part == "rir_consistency")
    assert read_audio_suite(salmon_of_the_hub / "rir_consistency" / table.name).pairs == part.pairs


def test_the_converted_branch_holds_every_pair_once(tmp_path, speech):
    rows = salmon_rows(speech, "rir_consistency", (0, 1))
    branch = write_tables(
        tmp_path,
        {
            "rir_consistency/train/0000.parquet": rows,
            "all/train/0000.parquet": rows,
            "all_consistency/train/0000.parquet": rows,
        },
    )
    assert [pair.id for pair in read_audio_suite(branch, strict=True).pairs] == [
        "rir_consistency/0",
        "rir_consistency/1",
    ]
    joined = read_audio_suite(branch / "all", strict=True)
    assert [(pair.id, pair.part) for pair in joined.pairs] == [
        (f"rir_consistency/{i}", "rir_consistency") for i in (0, 1)
    ]


def test_every_defect_of_a_salmon_table_is_named(salmon_of_the_hub, speech):
    rows = salmon_rows(speech, "gender_consistency", (0, 1, 2, 2, 3, 4, 5))
    rows[0]["negative_audio"]["bytes"] = b"no sound"
    rows[1]["positive_audio"] = {"bytes": None, "path": "sample_1_0.wav"}
    rows[4]["task"] = "whisper_consistency"
    rows[5]["ind"] = None
    rows[6] |= {"positive_audio": salmon_rows(speech, "", (5,), 0.05)[0]["positive_audio"]}
    name = "train-00000-of-00001.parquet"
    write_tables(salmon_of_the_hub / "gender_consistency", {name: rows})
    without = [{key: row[key] for key in row if key != "ind"} for row in salmon_rows(speech, "bg_alignment", (0,))]
    write_tables(salmon_of_the_hub / "bg_alignment", {name: without})
    names = [{"task": "rir_consistency", "ind": 0, "positive_audio": "a.wav", "negative_audio": "b.wav"}]
    write_tables(salmon_of_the_hub / "rir_consistency", {name: names})
    (salmon_of_the_hub / "sentiment_alignment" / name).write_bytes(b"PAR1 and no more")
    suite = read_audio_suite(salmon_of_the_hub)
    parts = ("bg_all_consistency", "bg_domain_consistency", "sentiment_consistency", "speaker_consistency")
    assert {pair.part for pair in suite.pairs} == set(parts) and len(suite.pairs) == 12
    found, table = reasons(suite), f"gender_consistency/{name}"
    for row, half in ((1, "negative"), (2, "positive")):
        assert found.pop(f"{table}, row {row} ({half}_audio)").startswith("is not audio that can be read (")
    assert found.pop(f"sentiment_alignment/{name}").startswith("is not a readable parquet file (")
    assert found.pop(f"{table}, row 5").startswith("found task 'whisper_consistency' and ind 3; expected one of (")
    assert found.pop(f"{table}, row 6").startswith("found task 'gender_consistency' and ind None; expected")
    assert found == {
        "gender_consistency/2": "is a duplicate id; expected one file per half, found positive "
        f"{table}, row 3 (positive_audio) and {table}, row 4 (positive_audio); negative "
        f"{table}, row 3 (negative_audio) and {table}, row 4 (negative_audio)",
        f"{table}, row 7 (positive_audio)": "lasts 0.05 s; expected at least 0.1 s (pair gender_consistency/5)",
        f"bg_alignment/{name}": "lacks the columns ['ind']; expected "
        "['task', 'ind', 'positive_audio', 'negative_audio']",
        f"rir_consistency/{name}": "has positive_audio of type string; expected the bytes of an audio file and its "
        "path",
    }
    with pytest.raises(SuiteError, match="has 9 problems"):
        read_audio_suite(salmon_of_the_hub, strict=True)
    with pytest.raises(SuiteError, match=r"lacks the columns \['ind'\]"):
        read_audio_suite(salmon_of_the_hub / "bg_alignment")


def test_a_salmon_table_is_encoded_like_its_files(tmp_path, speech, write):
    """The codec makes the same units of a folder of files and of a table of the same files."""
    codec = load_codec(LIBRIVOX.parents[1] / "codec", ["unit"])
    folder = write(tmp_path / "files", {f"rir_consistency/sample_{i}_{j}.wav": 0.4 for i in (0, 1) for j in (0, 1)})
    rows = [
        {"task": "rir_consistency", "ind": i}
        | {
            f"{half}_audio": {"bytes": (folder / f"rir_consistency/sample_{i}_{j}.wav").read_bytes(), "path": None}
            for j, half in enumerate(("positive", "negative"))
        }
        for i in (0, 1)
    ]
    tables = write_tables(tmp_path / "tables", {"rir_consistency/train-00000-of-00001.parquet": rows})
    found, expected = (
        read_suite(
            encode_audio_suite(read_audio_suite(path), codec, tmp_path / f"{path.name}.parquet", progress=False)
        )
        for path in (tables, folder)
    )
    assert found == expected and len(found) == 2


# ZeroSpeech


LEXICAL_ROWS = [
    # Frequency is that of the word; pseudo-words have none. The scorer's bands begin at 1, 5, 20 and 100.
    *[(7, f"w7{v}", v, 0, "zumbier", "z", 5, 1) for v in "AB"],
    *[(7, f"n7{v}", v, "", "", "z u", 5, 0) for v in "AB"],
    (12, "w12A", "A", 1, "barn", "b", 4, 1),
    (12, "n12A", "A", "", "barl", "b", 4, 0),
    (3, "w3A", "A", 5, "dog", "d", 3, 1),
    (3, "n3A", "A", 0, "dag", "d", 3, 0),
    (4, "w4A", "A", "19.0", "cat", "k", 3, 1),
    (4, "n4A", "A", 0, "cet", "k", 3, 0),
    (5, "w5A", "A", 99, "key", "k", 2, 1),
    (5, "n5A", "A", 0, "kay", "k", 2, 0),
    (6, "w6A", "A", 100, "the", "D", 2, 1),
    (6, "n6A", "A", 0, "thi", "D", 2, 0),
]


@pytest.fixture
def lexical(tmp_path, write):
    folder = tmp_path / "sLM21-dataset" / "lexical" / "dev"
    write(folder, {f"{row[1]}.wav": 0.2 for row in LEXICAL_ROWS})
    rows = list(LEXICAL_ROWS)
    Random(3).shuffle(rows)
    write_table(folder / "gold.csv", LEXICAL_COLUMNS, rows)
    return folder


def test_lexical_release(lexical):
    suite = read_audio_suite(lexical)
    assert (suite.name, suite.layout, suite.problems) == ("swuggy", "zerospeech_lexical", ())
    assert [(pair.id, pair.part, pair.group, pair.voice) for pair in suite.pairs] == [
        ("12/A", "1-5", "12", "A"),
        ("3/A", "6-20", "3", "A"),
        ("4/A", "6-20", "4", "A"),
        ("5/A", "21-100", "5", "A"),
        ("6/A", ">100", "6", "A"),
        ("7/A", "oov", "7", "A"),
        ("7/B", "oov", "7", "B"),
    ]
    pair = suite.pairs[-1]
    assert (pair.positive, pair.negative) == (lexical / "w7B.wav", lexical / "n7B.wav")
    assert (pair.positive_text, pair.negative_text) == ("zumbier", "z u")
    for path in (lexical.parent, lexical.parents[1], lexical / "gold.csv"):
        assert read_audio_suite(path).pairs == suite.pairs


def test_every_defect_of_a_gold_table_is_named(lexical, write):
    rows = [
        *(row for row in LEXICAL_ROWS if row[1] != "n5A"),
        (3, "w3A", "A", 5, "dog", "d", 3, 1),
        (8, "w8A", "A", "often", "eye", "a", 1, 1),
        (9, "w9A", "A", 4, "ear", "i", 1, "yes"),
        (10, "w10A", "A", 4, "arm", "a", 1, 1),
        (10, "n10A", "A", 4, "orm", "o", 1, 0),
    ]
    write(lexical, {"w8A.wav": 0.2, "w9A.wav": 0.2, "w10A.wav": 0.2})
    write_table(lexical / "gold.csv", LEXICAL_COLUMNS, rows)
    suite = read_audio_suite(lexical)
    assert [pair.id for pair in suite.pairs] == ["12/A", "4/A", "6/A", "7/A", "7/B"]
    assert reasons(suite) == {
        "3/A": "is a duplicate id; expected one file per half, found positive w3A.wav and w3A.wav; negative n3A.wav",
        "5/A": "has no negative half; found only w5A.wav",
        "gold.csv, line 16 (w8A)": "found frequency 'often'; expected how often LibriSpeech has the word",
        "gold.csv, line 17 (w9A)": "found correct 'yes'; expected 1 or 0",
        "n10A.wav": "does not exist (pair 10/A)",
        "n5A.wav": "is named by no row of gold.csv",
    }


@pytest.fixture
def syntactic(tmp_path, write):
    # The ids of two subtypes are the same numbers, so that id and voice alone would mix them up.
    rows = [
        (i, f"{t[0]}{s[0]}{i}{v}{'xo'[c]}", v, t, s, f"{s} {i} {c}", c)
        for t, s in (("agreement", "verb"), ("agreement", "noun"), ("islands", "wh"))
        for i in (0, 1)
        for v in ("en-A", "en-B")
        for c in (0, 1)
    ]
    folder = tmp_path / "sLM21-dataset" / "syntactic" / "dev"
    write(folder, {f"{row[1]}.wav": 0.2 for row in rows})
    Random(5).shuffle(rows)
    write_table(folder / "gold.csv", SYNTACTIC_COLUMNS, rows)
    return folder


def test_syntactic_release(syntactic):
    suite = read_audio_suite(syntactic)
    assert (suite.name, suite.layout, suite.problems) == ("sblimp", "zerospeech_syntactic", ())
    assert [pair.id for pair in suite.pairs] == [
        f"{kind}/{i}/{voice}"
        for kind in ("agreement/noun", "agreement/verb", "islands/wh")
        for i in (0, 1)
        for voice in ("en-A", "en-B")
    ]
    pair = suite.pairs[6]
    assert (pair.part, pair.group, pair.voice) == ("agreement", "agreement/verb/1", "en-A")
    assert (pair.positive.name, pair.negative.name) == ("av1en-Ao.wav", "av1en-Ax.wav")
    assert (pair.positive_text, pair.negative_text) == ("verb 1 1", "verb 1 0")


def test_the_data_set_of_both_tasks_needs_a_layout(lexical, syntactic):
    root = lexical.parents[1]
    with pytest.raises(SuiteError, match=r"matches several layouts, \['zerospeech_lexical', 'zerospeech_syntactic'\]"):
        read_audio_suite(root)
    assert read_audio_suite(root, "zerospeech_lexical").name == "swuggy"
    assert read_audio_suite(root, "zerospeech_syntactic").name == "sblimp"
    write_table(lexical.parent / "test" / "gold.csv", LEXICAL_COLUMNS, [])
    with pytest.raises(SuiteError, match=r"Expected one gold.csv in .*dev/gold.csv, .*test/gold.csv"):
        read_audio_suite(lexical.parent)
    write_table(syntactic / "gold.csv", ("id", "filename", "subtype", "correct"), [])
    with pytest.raises(SuiteError, match=r"gold.csv lacks the columns \['voice', 'type'\]"):
        read_audio_suite(syntactic)


# SpokenStoryCloze


def stories(folder, indices):
    return {f"{folder}{i}_{half}.wav": 0.2 for i in indices for half in ("correct", "incorrect")}


def test_story_release(tmp_path, write):
    folder = write(tmp_path / "tSC", stories("", (1, 0, 11)))
    (folder / "1_correct.txt").write_text("Ann swam.\n")
    suite = read_audio_suite(folder)
    assert (suite.name, suite.layout, suite.problems) == ("tstorycloze", "storycloze", ())
    assert [(pair.id, pair.part, pair.group) for pair in suite.pairs] == [
        (i, "tstorycloze", i) for i in ("0", "1", "11")
    ]
    assert suite.pairs[1].positive == folder / "1_correct.wav"
    assert suite.pairs[1].negative == folder / "1_incorrect.wav"
    assert (suite.pairs[1].positive_text, suite.pairs[1].negative_text) == ("Ann swam.", "")
    assert read_audio_suite(write(tmp_path / "sStoryCloze", stories("", (0,)))).name == "sstorycloze"
    assert read_audio_suite(write(tmp_path / "tales", stories("", (0,)))).name == "tales"


def test_stories_of_several_voices_and_of_both_kinds(tmp_path, write):
    voices = read_audio_suite(write(tmp_path / "ms_sSC", stories("ann/", (0, 1)) | stories("bob/", (1,))))
    assert voices.name == "sstorycloze"
    assert [(pair.id, pair.part, pair.group, pair.voice) for pair in voices.pairs] == [
        ("0/ann", "sstorycloze", "0", "ann"),
        ("1/ann", "sstorycloze", "1", "ann"),
        ("1/bob", "sstorycloze", "1", "bob"),
    ]
    both = read_audio_suite(write(tmp_path / "cloze", stories("sSC/", (0,)) | stories("tSC/", (0,))))
    assert both.name == "cloze"
    assert [(pair.id, pair.part, pair.voice) for pair in both.pairs] == [
        ("sstorycloze/0", "sstorycloze", ""),
        ("tstorycloze/0", "tstorycloze", ""),
    ]


def test_defects_of_stories(tmp_path, write):
    folder = write(tmp_path / "sSC", stories("", range(3)) | {"notes.wav": 0.2})
    (folder / "1_incorrect.wav").unlink()
    suite = read_audio_suite(folder)
    assert [pair.id for pair in suite.pairs] == ["0", "2"]
    assert reasons(suite) == {
        "1": "has no negative half; found only 1_correct.wav",
        "notes.wav": "is no <i>_correct, <i>_incorrect or <i>_mutual",
    }


def test_stories_whose_beginning_is_a_file_of_its_own(tmp_path, write):
    """The sets that slamkit's cross-modal StoryCloze reads: folders of voices, a transcript beside each recording."""
    files = {f"{voice}/{i}_{part}.wav": 0.2 for voice in ("ann", "bob") for i in (0, 1)
             for part in ("mutual", "correct", "incorrect")}  # fmt: skip
    folder = write(tmp_path / "cross_ms_tSC", files)
    for part in ("mutual", "correct", "incorrect"):
        (folder / "ann" / f"0_{part}.txt").write_text(f"The {part} one.\n")
    suite = read_audio_suite(folder, strict=True)
    assert (suite.name, suite.layout) == ("tstorycloze", "storycloze")
    assert [(pair.id, pair.voice) for pair in suite.pairs] == [
        (f"{i}/{voice}", voice) for i in (0, 1) for voice in ("ann", "bob")
    ]
    pair = suite.pairs[0]
    assert pair.context == folder / "ann" / "0_mutual.wav" and pair.positive == folder / "ann" / "0_correct.wav"
    texts = (pair.context_text, pair.positive_text, pair.negative_text)
    assert texts == ("The mutual one.", "The correct one.", "The incorrect one.")
    assert suite.pairs[1].context_text == ""
    (folder / "bob" / "0_mutual.wav").unlink()
    (folder / "bob" / "1_incorrect.wav").unlink()
    (folder / "ann" / "1_mutual.wav").write_bytes(b"no sound")
    write(folder, {"bob/2_mutual.wav": 0.05, "bob/2_correct.wav": 0.2, "bob/2_incorrect.wav": 0.2})
    suite = read_audio_suite(folder)
    assert [pair.id for pair in suite.pairs] == ["0/ann"]
    found = reasons(suite)
    assert found.pop("ann/1_mutual.wav").startswith("is not audio that can be read (")
    assert found == {
        "0/bob": "has no context; found only bob/0_correct.wav and bob/0_incorrect.wav",
        "1/bob": "has no negative half; found only bob/1_mutual.wav and bob/1_correct.wav",
        "bob/2_mutual.wav": "lasts 0.05 s; expected at least 0.1 s (pair 2/bob)",
    }


# Pairs by sorted name


def test_numbered_files_are_paired_in_order_of_names(tmp_path, write):
    files = {f"{i}+{half}.wav": 0.2 for i in (2, 10, 1) for half in ("a", "b")}
    suite = read_audio_suite(write(tmp_path / "pairs", files | {"3+a.wav": 0.2, "x.wav": 0.2}))
    assert (suite.name, suite.layout) == ("pairs", "sorted_names")
    assert [(pair.id, pair.positive.name, pair.negative.name) for pair in suite.pairs] == [
        ("1", "1+a.wav", "1+b.wav"),
        ("2", "2+a.wav", "2+b.wav"),
        ("10", "10+a.wav", "10+b.wav"),
    ]
    assert reasons(suite) == {
        "3": "has no negative half; found only 3+a.wav",
        "x.wav": "does not begin with a number",
    }
    grouped = {f"{voice}/{i}_{half}.flac": 0.2 for voice in "AB" for i in (0, 1) for half in "pq"}
    suite = read_audio_suite(write(tmp_path / "grouped", grouped))
    assert [(pair.id, pair.part) for pair in suite.pairs] == [("A/0", "A"), ("A/1", "A"), ("B/0", "B"), ("B/1", "B")]
    write(tmp_path / "pairs", {"2+c.wav": 0.2})
    assert "negative 2+b.wav and 2+c.wav" in reasons(read_audio_suite(tmp_path / "pairs"))["2"]


def test_two_folders_are_paired_by_name_and_not_by_rank(tmp_path, write):
    files = {f"{half}/{name}.wav": 0.2 for half in ("positive", "negative") for name in "abc"}
    folder = write(tmp_path / "pairs", files)
    assert [pair.id for pair in read_audio_suite(folder).pairs] == ["a", "b", "c"]
    # By rank, b would be compared with c.
    (folder / "negative" / "b.wav").unlink()
    (folder / "positive" / "c.wav").unlink()
    suite = read_audio_suite(folder)
    assert [(pair.positive.stem, pair.negative.stem) for pair in suite.pairs] == [("a", "a")]
    assert reasons(suite) == {
        "b": "has no negative half; found only positive/b.wav",
        "c": "has no positive half; found only negative/c.wav",
    }


def test_two_folders_of_other_names(tmp_path, write):
    folder = write(tmp_path / "pairs", {f"{h}/{i}_{h}.wav": 0.2 for h in ("correct", "incorrect") for i in (1, 2, 10)})
    (folder / "incorrect" / "2_incorrect.wav").unlink()
    suite = read_audio_suite(folder)
    assert [(pair.id, pair.negative.name) for pair in suite.pairs] == [
        ("1", "1_incorrect.wav"),
        ("10", "10_incorrect.wav"),
    ]
    assert set(reasons(suite)) == {"2"}
    ranked = write(tmp_path / "ranked", {"positive/x.wav": 0.2, "positive/y.wav": 0.2, "negative/m.wav": 0.2})
    with pytest.raises(SuiteError, match="2 positive and 1 negative files of other names"):
        read_audio_suite(ranked)
    write(ranked, {"negative/n.wav": 0.2})
    pairs = read_audio_suite(ranked).pairs
    assert [(pair.positive.stem, pair.negative.stem) for pair in pairs] == [("x", "m"), ("y", "n")]


def test_two_file_lists(tmp_path, write):
    folder = write(tmp_path / "pairs", {f"sound/{name}.wav": 0.2 for name in ("r1", "r2", "w1", "w2")})
    (folder / "positive.txt").write_text("sound/r2.wav\nsound/r1.wav\n\n")
    (folder / "negative.txt").write_text(f"{folder}/sound/w1.wav\nsound/w2.wav\n")
    suite = read_audio_suite(folder)
    assert suite.layout == "sorted_names" and not suite.problems
    assert [(pair.positive.stem, pair.negative.stem) for pair in suite.pairs] == [("r1", "w1"), ("r2", "w2")]


# Manifests


MANIFEST_ROWS = [
    {"id": "b", "positive": "wavs/b0.wav", "negative": "wavs/b1.wav", "voice": "ann", "group": "g", "text": "hello"},
    {"id": "a", "positive": "wavs/a0.wav", "negative": "wavs/a1.wav", "voice": None, "group": "", "text": None},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_manifest(tmp_path, write, suffix):
    folder = write(tmp_path / "mine", {f"wavs/{name}.wav": 0.2 for name in ("a0", "a1", "b0", "b1")})
    path = folder / f"manifest{suffix}"

    def write_rows(rows):
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(map(json.dumps, rows)))

    write_rows(MANIFEST_ROWS)
    suite = read_audio_suite(folder)
    assert (suite.name, suite.layout, suite.problems) == ("mine", "manifest", ())
    positive, negative = folder / "wavs" / "b0.wav", folder / "wavs" / "b1.wav"
    assert suite.pairs[1] == AudioPair("b", "mine", "mine", "g", "ann", positive, negative, "hello", "hello")
    assert (suite.pairs[0].group, suite.pairs[0].voice, suite.pairs[0].positive_text) == ("a", "", "")
    named = {"suite": "birds", "part": "owls", "positive_text": "hoo", "negative_text": "coo"}
    write_rows([row | named for row in MANIFEST_ROWS])
    suite = read_audio_suite(path)
    assert suite.name == "birds" and suite.pairs[1].part == "owls"
    assert (suite.pairs[1].positive_text, suite.pairs[1].negative_text) == ("hoo", "coo")
    extra = {"voice": "", "group": "", "text": "", "positive": "wavs/a0.wav", "negative": "wavs/a1.wav"}
    write_rows(
        [
            *MANIFEST_ROWS,
            extra | {"id": "b"},
            extra | {"id": "c", "negative": "wavs/none.wav"},
            extra | {"id": "d", "negative": None},
            extra | {"id": "e", "positive": None, "negative": None},
        ]
    )
    suite = read_audio_suite(folder)
    assert [pair.id for pair in suite.pairs] == ["a"]
    found = reasons(suite)
    assert found.pop("b").endswith("positive wavs/a0.wav and wavs/b0.wav; negative wavs/a1.wav and wavs/b1.wav")
    assert found == {
        f"manifest{suffix}, row 6 (e)": "has no id or names no file",
        "d": "has no negative half; found only wavs/a0.wav",
        "wavs/none.wav": "does not exist (pair c)",
    }
    write_rows([MANIFEST_ROWS[0] | {"suite": "x"}, MANIFEST_ROWS[1] | {"suite": "y"}])
    with pytest.raises(SuiteError, match=r"holds the suites \['x', 'y'\]; expected one manifest a suite"):
        read_audio_suite(folder)
    write_rows([{"id": "a", "positive": "x", "negative": "y", "text": ""}])
    with pytest.raises(SuiteError, match=r"lacks the columns \['voice', 'group'\]"):
        read_audio_suite(folder)


def test_a_manifest_of_contexts_and_endings(tmp_path, write):
    folder = write(tmp_path / "mine", {f"{name}.wav": 0.2 for name in ("c", "p", "n")})
    row = {"id": "a", "voice": "", "group": "", "text": "unused", "context": "c.wav", "context_text": "Once."}
    row |= {"positive": "p.wav", "positive_text": "Then.", "negative": "n.wav", "negative_text": "Not."}
    rows = [row, row | {"id": "b", "context": None}, row | {"id": "c", "context": "none.wav", "context_text": None}]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suite = read_audio_suite(folder)
    assert [(pair.id, pair.context, pair.context_text, pair.positive_text) for pair in suite.pairs] == [
        ("a", folder / "c.wav", "Once.", "Then.")
    ]
    assert reasons(suite) == {
        "b": "has no context; found only p.wav and n.wav",
        "none.wav": "does not exist (pair c)",
    }


def test_lines_that_are_no_json(tmp_path, write):
    folder = write(tmp_path / "mine", {f"wavs/{name}.wav": 0.2 for name in ("a0", "a1")})
    (folder / "owls.jsonl").write_text(f'{json.dumps(MANIFEST_ROWS[1])}\n{{"id": \n[1]\n')
    suite = read_audio_suite(folder / "owls.jsonl")
    assert suite.name == "owls" and len(suite.pairs) == 1
    assert [problem.name for problem in suite.problems] == ["owls.jsonl, line 2", "owls.jsonl, line 3"]
    with pytest.raises(SuiteError, match="line 3: is not a JSON object"):
        read_audio_suite(folder / "owls.jsonl", strict=True)
    (folder / "owls.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SuiteError, match="owls.parquet is not a readable parquet file"):
        read_audio_suite(folder / "owls.parquet")


# What is none of these


def test_unknown_paths_and_layouts(tmp_path, write):
    with pytest.raises(SuiteError, match="No suite at"):
        read_audio_suite(tmp_path / "none")
    folder = write(tmp_path / "songs", {"blue.wav": 0.2, "red.wav": 0.2})
    with pytest.raises(SuiteError, match="has no known layout") as error:
        read_audio_suite(folder)
    assert all(f"\n{name}: {layout.expects}" in str(error.value) for name, layout in LAYOUTS.items())
    with pytest.raises(SuiteError, match="Unknown layout 'tsv'"):
        read_audio_suite(folder, "tsv")
    for layout in set(LAYOUTS) - {"manifest", "zerospeech_lexical", "zerospeech_syntactic", "sorted_names"}:
        with pytest.raises(SuiteError, match=f"holds no pairs of the layout '{layout}'"):
            read_audio_suite(folder, layout)
    with pytest.raises(SuiteError, match="Expected one gold.csv in .*, found none"):
        read_audio_suite(folder, "zerospeech_lexical")
