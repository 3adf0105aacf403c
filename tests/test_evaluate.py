"""Suites and scores from the command line: a codec of three streams, and models that read all or one of them."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml

from tinywave.cli.main import main
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.codec_loading import save_encoders
from tinywave.data.corpus import TextItem, prepare_corpus
from tinywave.engines.onnx_export import export_onnx
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"


@pytest.fixture(scope="module")
def folder(expressive_codec, tmp_path_factory):
    """A codec, suites and unit shards made with it, and one set of weights under two configurations."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_encoders(expressive_codec, folder / "codec")
    (folder / "suites.yaml").write_text(yaml.safe_dump({"seed": 0, "suites": {"syntactic": 3}}))
    codec = ["--codec", str(folder / "codec"), "--num-processes", "1", "--streams", "unit", "pitch", "style"]
    assert main(["build-suites", str(folder / "suites.yaml"), *codec, "--output-dir", str(folder / "suites")]) == 0
    items = [
        TextItem(str(seed), "test", "story", ("The dog ran home.",), "hibari", "base", seed, "CC0", "test")
        for seed in range(2)
    ]
    prepare_corpus(items, folder / "corpus", num_processes=1)
    shards = ["--corpus", str(folder / "corpus"), "--output-dir", str(folder / "units")]
    assert main(["extract-units", *codec, *shards]) == 0
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "initializer_range": 0.3}
    model = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", **small))
    model.save_pretrained(folder / "expressive")
    model.config = model.config.with_streams(["unit"])
    model.save_pretrained(folder / "base")
    return folder


def evaluate(folder, name, *options):
    output = folder / "scores" / "-".join([name, *options])
    arguments = ["--suite", str(folder / "suites"), "--units", str(folder / "units"), "--output-dir", str(output)]
    assert main(["evaluate", "--model", str(folder / name), *arguments, *options]) == 0
    return json.loads((output / "evaluation.json").read_text()), output


def test_suites_hold_every_stream_of_the_codec(folder, expressive_codec):
    pairs = read_suite(folder / "suites" / "syntactic.parquet")
    assert len(pairs) == 3 and pairs[0].streams == ("unit", "pitch", "style")
    assert pairs[0].encoder == expressive_codec.fingerprint()


def test_each_model_reads_the_streams_that_it_has(folder, capsys):
    expressive, _ = evaluate(folder, "expressive")
    assert "a token of unit, pitch, style" in capsys.readouterr().out
    base, output = evaluate(folder, "base")
    assert "a token of unit  " in capsys.readouterr().out
    units_alone, _ = evaluate(folder, "expressive", "--scored-streams", "unit")
    num_tokens = {}
    for name, record in {"expressive": expressive, "base": base, "units": units_alone}.items():
        perplexity = next(iter(record["perplexity"].values()))
        convention = next(iter(record["suites"]["syntactic"].values()))["convention"]
        assert convention["sequence"] == perplexity["sequence"]
        num_tokens[name] = perplexity["num_tokens"]
    assert num_tokens["expressive"] > num_tokens["base"] == num_tokens["units"]
    rows = pq.read_table(output / "pairs.parquet").to_pylist()
    results = json.loads((output / "results.json").read_text())
    assert {(row["suite"], row["part"], row["n"]) for row in results if row["part"] == "all"} == {
        ("syntactic", "all", 3)
    }
    right = [row["positive_sum"] / row["positive_count"] > row["negative_sum"] / row["negative_count"] for row in rows]
    assert results[0]["accuracy"] == pytest.approx(sum(right) / 3)
    assert "evaluation.json" in (output / "evaluation.html").read_text()


def test_shards_without_the_streams_of_the_model_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "units", tmp_path / "units")
    for path in (tmp_path / "units").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["style"]), path)
    arguments = ["--suite", str(folder / "suites"), "--units", str(tmp_path / "units"), "--output-dir", str(tmp_path)]
    assert main(["evaluate", "--model", str(folder / "expressive"), *arguments]) == 2
    assert "style" in capsys.readouterr().err


def test_units_of_another_codec_than_the_suites_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "units", tmp_path / "units")
    for path in (tmp_path / "units").glob("*.parquet"):
        units = pq.read_table(path).drop_columns(["encoder"])
        pq.write_table(units.append_column("encoder", pa.array(["0123456789abcdef"] * len(units))), path)
    arguments = ["--suite", str(folder / "suites"), "--units", str(tmp_path / "units"), "--output-dir", str(tmp_path)]
    assert main(["evaluate", "--model", str(folder / "base"), *arguments]) == 2
    assert "the model was trained on speech of '0123456789abcdef'" in capsys.readouterr().err


def test_a_teacher_gives_ratios_tests_and_a_page(folder, tmp_path):
    suite = folder / "suites" / "syntactic.parquet"
    arguments = ["--model", str(folder / "base"), "--teacher", str(folder / "expressive"), "--suite", str(suite)]
    options = ["--dataset-id", "someone/pairs", "--normalisation", "sum", "--output-dir", str(tmp_path)]
    assert main(["evaluate", *arguments, *options]) == 0
    whole = json.loads((tmp_path / "results.json").read_text())[0]
    record = json.loads((tmp_path / "evaluation.json").read_text())
    accuracy = {name: record["suites"]["syntactic"][name]["accuracy"] for name in ("student", "teacher")}
    assert whole["score"] == "sum" and whole["raw_ratio"] == pytest.approx(accuracy["student"] / accuracy["teacher"])
    assert record["comparisons"]["student-teacher"]["mcnemar_p_value_holm"]["syntactic"] <= 1
    assert "Against the teacher" in (tmp_path / "evaluation.html").read_text()
    entries = yaml.safe_load((tmp_path / ".eval_results" / "someone_pairs.yaml").read_text())
    assert entries[0]["value"] == pytest.approx(100 * whole["accuracy"], abs=0.006)


def test_a_model_in_onnx_is_scored_as_in_pytorch(folder, tmp_path):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(TinyWaveConfig.from_pretrained(folder / "base", head_dim=16))
    model.save_pretrained(tmp_path / "model")
    export_onnx(model, None, tmp_path / "exported", "int8")
    sums = {}
    for name, model in (("torch", tmp_path / "model"), ("onnx", tmp_path / "exported")):
        arguments = ["--model", str(model), "--suite", str(folder / "suites"), "--output-dir", str(tmp_path / name)]
        assert main(["evaluate", *arguments]) == 0
        sums[name] = pq.read_table(tmp_path / name / "pairs.parquet")["positive_sum"].to_numpy()
    assert sums["onnx"] == pytest.approx(sums["torch"], rel=5e-3) and (sums["onnx"] != sums["torch"]).all()


def test_the_worst_pairs_can_be_heard(folder, tmp_path):
    arguments = ["--model", str(folder / "base"), "--suite", str(folder / "suites"), "--output-dir", str(tmp_path)]
    vocoder = ["--vocoder", str(LIBRIVOX.parents[1] / "codec" / "vocoder"), "--griffin-lim", "--speak"]
    assert main(["evaluate", *arguments, "--codec", str(folder / "codec"), *vocoder]) == 0
    wrong = sum(row["credit"] == 0 for row in pq.read_table(tmp_path / "pairs.parquet").to_pylist())
    page = (tmp_path / "evaluation.html").read_text()
    margins = [float(margin) for margin in re.findall(r"(-\d+\.\d+) nats per token", page)]
    assert page.count("data:audio/flac") == 2 * wrong and len(margins) == wrong > 1
    assert margins == sorted(margins), "the worst come first"


def test_released_recordings_are_read_and_encoded(folder, tmp_path, capsys):
    parts = tmp_path / "salmon" / "gender_consistency"
    parts.mkdir(parents=True)
    clips = sorted(LIBRIVOX.glob("*.flac"))
    for index in range(2):
        for half in range(2):
            waveform, rate = soundfile.read(clips[index + 2 * half])
            soundfile.write(parts / f"sample_{index}_{half}.wav", waveform[: 2 * rate], rate)
    codec = ["--codec", str(folder / "codec")]
    arguments = ["--model", str(folder / "base"), "--suite", str(tmp_path / "salmon"), *codec]
    assert main(["evaluate", *arguments, "--output-dir", str(tmp_path / "scores")]) == 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results[0]["suite"] == "salmon" and results[0]["n"] == 2
    (parts / "sample_0_1.wav").unlink()
    assert main(["evaluate", *arguments, "--strict", "--output-dir", str(tmp_path / "strict")]) == 2
    assert "sample_0" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--output-dir", str(tmp_path / "lenient")]) == 0
    assert json.loads((tmp_path / "lenient" / "results.json").read_text())[0]["n"] == 1
    assert "sample_0" in capsys.readouterr().out
