"""Suites and scores from the command line: a codec of three streams, and models that read all or one of them."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tinywave.cli.main import main
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.codec_loading import save_encoders
from tinywave.data.corpus import TextItem, prepare_corpus
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM


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
    arguments = ["--suites", str(folder / "suites"), "--units", str(folder / "units"), "--output-dir", str(output)]
    assert main(["evaluate", str(folder / name), *arguments, *options]) == 0
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
    assert pq.read_table(output / "pairs" / "syntactic_base.parquet").num_rows == 3


def test_shards_without_the_streams_of_the_model_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "units", tmp_path / "units")
    for path in (tmp_path / "units").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["style"]), path)
    arguments = ["--suites", str(folder / "suites"), "--units", str(tmp_path / "units"), "--output-dir", str(tmp_path)]
    assert main(["evaluate", str(folder / "expressive"), *arguments]) == 2
    assert "style" in capsys.readouterr().err
