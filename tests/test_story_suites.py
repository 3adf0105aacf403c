"""Stories across modalities, from the folders of a release and from a manifest, in all four directions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import PreTrainedTokenizerFast

from tinywave.cli.main import main
from tinywave.cli.shipped import CODEC, TEACHER
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.eval.readers import read_audio_suite
from tinywave.eval.sequence_formats import SpeechSequenceFormat
from tinywave.eval.story_suites import DIRECTIONS, StorySuite
from tinywave.eval.suite_encoding import encode_audio_suite
from tinywave.eval.suites import SuiteError, read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.tokenization_tinywave import SpeechStreams, segments_to_ids

LIBRIVOX = TEACHER.parent / "audio" / "librivox"
PARTS = ("mutual", "correct", "incorrect")
# Sentences of one reader: a context, what follows it in the book, and what does not.
STORIES = [("0870", "0880", "0930"), ("0880", "0890", "0920"), ("0920", "0930", "0880")]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder as slamkit's cross-modal metric reads it: a folder of a voice, a transcript beside each recording."""
    folder = tmp_path_factory.mktemp("release") / "cross_ms_tSC"
    (folder / "reader").mkdir(parents=True)
    transcripts = json.loads((LIBRIVOX / "transcripts.json").read_text())
    for number, story in enumerate(STORIES):
        for part, sentence in zip(PARTS, story, strict=True):
            source = LIBRIVOX / f"sense_and_sensibility_01_{sentence}.flac"
            waveform, rate = soundfile.read(source, dtype="int16", stop=2 * 16_000)
            soundfile.write(folder / "reader" / f"{number}_{part}.wav", waveform, rate)
            (folder / "reader" / f"{number}_{part}.txt").write_text(transcripts[source.name].capitalize() + ".\n")
    return folder


def evaluate(suite, output, *options):
    command = ["evaluate", "--model", str(TEACHER), "--suite", str(suite), "--output-dir", str(output), *options]
    return main(command)


@pytest.fixture(scope="module")
def evaluated(release, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    assert evaluate(release, output, "--directions", *DIRECTIONS) == 0
    return output


def rows_of(output):
    rows = pq.read_table(output / "pairs.parquet").to_pylist()
    return {(row["suite"], row["id"]): row for row in rows}


@pytest.fixture(scope="module")
def teacher():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(TEACHER)


NAMES = {name: "tstorycloze" + (f"_{name}" if name != "speech-speech" else "") for name in DIRECTIONS}


def test_every_direction_is_a_suite_of_the_results(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert [(result["suite"], result["n"]) for result in results] == [(NAMES[name], 3) for name in DIRECTIONS]
    record = json.loads((evaluated / "evaluation.json").read_text())["suites"]
    for name, arrow in DIRECTIONS.items():
        convention = record[NAMES[name]]["student"]["convention"]
        assert name == "speech-speech" or convention["direction"] == arrow
        assert convention["targets"].startswith("text, ") == (name != "speech-speech")
    accuracies = {result["suite"]: result["accuracy"] for result in results}
    credits = [row["credit"] for row in rows_of(evaluated).values()]
    assert sum(credits) / 12 == pytest.approx(sum(accuracies.values()) / 4)
    assert "tstorycloze text-speech" in (evaluated / "evaluation.html").read_text().lower()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_scores_are_those_of_one_forward_pass_by_hand(direction, release, evaluated, teacher, tokenizer):
    """Text and speech of the files -> ids -> log-probabilities of all tokens of text and speech."""
    codec = load_codec(CODEC, ["unit", "pitch", "style"])
    config = teacher.config
    ranges = config.stream_ranges()
    targets = {index for ids in ranges.values() for index in ids}
    row = rows_of(evaluated)[NAMES[direction], "1/reader"]

    def piece(part, modality):
        file = release / "reader" / f"1_{part}"
        if modality == "text":
            return "text", file.with_suffix(".txt").read_text().strip()
        [speech] = codec.encode([load_audio(file.with_suffix(".wav"), 16_000)])
        return "speech", speech

    for half, ending in (("positive", "correct"), ("negative", "incorrect")):
        if direction == "speech-speech":
            wave = np.concatenate([load_audio(release / "reader" / f"1_{part}.wav") for part in ("mutual", ending)])
            segments = [("speech", codec.encode([wave])[0])]
        else:
            segments = [piece(part, name) for part, name in zip(("mutual", ending), direction.split("-"), strict=True)]
        if direction == "text-text":
            segments = [("text", " ".join(text for _, text in segments))]
        ids = torch.tensor([segments_to_ids(segments, config, tokenizer)])
        with torch.no_grad():
            log_probs = teacher(ids).logits[0, :-1].log_softmax(-1)
        scored = torch.tensor([index in targets for index in ids[0, 1:].tolist()])
        values = log_probs.gather(1, ids[0, 1:, None])[:, 0][scored]
        assert row[f"{half}_count"] == len(values) > 10
        assert row[f"{half}_sum"] == pytest.approx(values.sum().item(), rel=1e-4)


def test_a_manifest_with_text_gives_the_same_numbers(release, evaluated, tmp_path):
    rows = [
        {"id": f"{number}/reader", "suite": "tstorycloze", "voice": "reader", "group": str(number), "text": None}
        | {
            key: value
            for name, part in zip(("context", "positive", "negative"), PARTS, strict=True)
            for key, value in (
                (name, f"{release}/reader/{number}_{part}.wav"),
                (f"{name}_text", (release / "reader" / f"{number}_{part}.txt").read_text().strip()),
            )
        }
        for number in range(3)
    ]
    manifest = tmp_path / "stories.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    options = ["--allow-outside", "--directions", "text-text", "speech-text", "text-speech"]
    assert evaluate(manifest, tmp_path / "out", *options) == 0
    found, expected = rows_of(tmp_path / "out"), rows_of(evaluated)
    assert len(found) == 9
    for key, row in found.items():
        for column in ("positive_sum", "negative_sum"):
            assert row[column] == pytest.approx(expected[key][column], rel=1e-5)


@pytest.fixture
def whole_stories(tmp_path):
    """A release of whole stories, one of them without a transcript."""
    folder = tmp_path / "tSC"
    folder.mkdir()
    for half, sentence in (("correct", "0880"), ("incorrect", "0930")):
        for number in (0, 1):
            source = LIBRIVOX / f"sense_and_sensibility_01_{sentence}.flac"
            shutil.copy(source, folder / f"{number}_{half}.flac")
        (folder / f"0_{half}.txt").write_text(f"He was {half}.")
    return folder


@pytest.fixture
def encode(tmp_path):
    codec = load_codec(CODEC, ["unit"])
    return lambda folder: read_suite(
        encode_audio_suite(read_audio_suite(folder), codec, tmp_path / "suite.parquet", progress=False)
    )


def test_whole_stories_are_read_as_text_where_there_is_text(whole_stories, encode, teacher, tokenizer):
    pairs = encode(whole_stories)
    with pytest.raises(SuiteError, match=r"1 pairs of suite 'tstorycloze' have no text, which text-text reads: 1\. A"):
        StorySuite(pairs, "text-text", tokenizer)
    with pytest.raises(SuiteError, match="holds whole stories, of which speech-text cannot tell context and ending"):
        StorySuite(pairs, "speech-text", tokenizer)
    with pytest.raises(SuiteError, match="Found the direction 'S->T'; expected one of"):
        StorySuite(pairs, "S->T", tokenizer)
    suite = StorySuite(pairs[:1], "text-text", tokenizer)
    result = suite.evaluate(teacher, sequence_format=SpeechSequenceFormat(teacher.config))
    ids = segments_to_ids([("text", "He was correct.")], teacher.config, tokenizer)
    assert result.rows[0]["positive_num_tokens"] == len(ids) - 2  # BOS and the marker
    with pytest.raises(ValueError, match="compared by .*'mean', 'sum'.*; found 'pmi'"):
        suite.evaluate(teacher, sequence_format=SpeechSequenceFormat(teacher.config), normalisation="pmi")


def test_a_manifest_keeps_stories_apart_and_whole(release, encode, tmp_path):
    pairs = encode(release)
    codec = load_codec(CODEC, ["unit"])
    for pair, source in zip(pairs, read_audio_suite(release).pairs, strict=True):
        files = {"context": source.context, "positive": source.positive, "negative": source.negative}
        waves = {part: load_audio(file) for part, file in files.items()}
        for part, piece in pair.story.items():
            assert piece["units"] == codec.encode([waves[part]])[0].units.tolist()
            assert piece["text"] == files[part].with_suffix(".txt").read_text().strip()
            assert piece["pitch"] is piece["style"] is None
        [whole] = codec.encode([np.concatenate([waves["context"], waves["negative"]])])
        np.testing.assert_array_equal(SpeechStreams(pair.negative_units).units, whole.units)
        assert pair.positive_text == f"{source.context_text} {source.positive_text}"
    with pytest.raises(SuiteError, match="has a separate context; expected all or none"):
        StorySuite([pairs[0], replace(pairs[1], story=None)], "text-text", None)


def test_a_story_without_a_transcript_is_named_by_the_command(release, tmp_path, capsys):
    folder = shutil.copytree(release, tmp_path / "tSC")
    (folder / "reader" / "2_mutual.txt").unlink()
    assert evaluate(folder, tmp_path / "out", "--directions", "text-speech") == 2
    assert "1 pairs of suite 'tstorycloze' have no text, which text-speech reads: 2/reader." in capsys.readouterr().err
    # Its endings are known in text.
    assert evaluate(folder, tmp_path / "out", "--directions", "speech-text") == 0
    assert Path(tmp_path / "out" / "suites" / "tstorycloze.parquet").is_file()
