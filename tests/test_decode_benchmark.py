"""The benchmark of decoding measures real models, counts what it claims to count, and refuses what would not fit."""

import json
import re
from pathlib import Path

import pytest
import torch

from tinywave.benchmarks import decode
from tinywave.benchmarks.decode import (
    TinyWaveForCausalLM,
    check_memory,
    compare_engines,
    count_weights,
    load_engine,
    load_onnx,
    measure_decoding,
    next_token,
    prefill,
    weight_bytes,
)
from tinywave.cli.main import main

TEACHER = str(Path(__file__).parents[1] / "assets" / "teacher")
NUM_PARAMETERS = 5_288_256
IN_EMBEDDING, IN_NORMS = 1088 * 192, 23 * 192


def test_the_steps_are_those_of_generate():
    model = load_engine(TEACHER, "torch-float32")
    ids = torch.randint(512, 1012, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        step = next_token(model, ids[:, -1:], prefill(model, ids[:, :-1]))
        expected = [int(model(ids).logits[0, -1].argmax())]
        expected.append(int(model(torch.cat([ids, torch.tensor([expected])], dim=1)).logits[0, -1].argmax()))
    with torch.inference_mode():
        assert [step(), step()] == expected


@pytest.mark.parametrize(("engine", "size"), [("torch-float32", 4), ("torch-bfloat16", 2)])
def test_weights_are_counted(engine, size):
    model = load_engine(TEACHER, engine)
    assert count_weights(model) == NUM_PARAMETERS
    assert weight_bytes(model) == size * (NUM_PARAMETERS - IN_EMBEDDING - IN_NORMS)


def test_8_bits_count_the_same_weights_and_a_quarter_of_the_bytes():
    model = load_engine(TEACHER, "torch-int8")
    assert count_weights(model) == NUM_PARAMETERS
    num_outputs = 11 * (4 * 192 + 2 * 512 + 192) + 1088
    assert weight_bytes(model) == NUM_PARAMETERS - IN_EMBEDDING - IN_NORMS + 4 * num_outputs


@pytest.mark.parametrize("engine", [engine for engine in decode.ENGINES if not engine.startswith(decode.ONNX)])
def test_a_preset_gets_random_weights_that_compute(engine):
    model = load_engine("nano-student", engine)
    assert isinstance(model, TinyWaveForCausalLM) and count_weights(model) == 1_721_664
    ids = torch.randint(model.config.unit_offset, model.config.unit_offset + 500, (1, 12))
    with torch.inference_mode():
        logits = model(ids).logits.float()
    assert torch.isfinite(logits).all() and logits.std() > 0


def test_no_two_random_tensors_are_alike():
    for engine in ("torch-bfloat16", "torch-int8"):
        state = load_engine("nano-student", engine).state_dict()
        weights = [value for name, value in state.items() if name.endswith(("q_proj.weight", "q_proj.int8_weight"))]
        assert len(weights) == 3
        assert not any(torch.equal(weights[0], other) for other in weights[1:])


def test_a_row_follows_from_its_definitions():
    row = measure_decoding(TEACHER, "torch-int8", num_prompt_tokens=8, num_new_tokens=3)
    assert row.num_parameters == NUM_PARAMETERS and row.num_threads == torch.get_num_threads()
    share = row.tokens_per_second * row.weights_mb * 1e6 / (row.bandwidth_gbs * 1e9)
    assert row.efficiency == pytest.approx(share)
    assert row.real_time_factor == pytest.approx(28 / row.tokens_per_second), "units, pitch and style"
    assert row.cpu_seconds_per_token > 0 and row.peak_mb > row.weights_mb


@pytest.mark.parametrize(("engine", "bits", "block_size"), [("onnx-int4", 4, 128), ("onnx-int8", 8, 128)])
def test_onnx_counts_packed_weights_scales_and_zero_points(engine, bits, block_size):
    model = load_onnx(TEACHER, engine)
    assert count_weights(model) == NUM_PARAMETERS

    def size(outputs, inputs, bits):
        blocks = -(-inputs // block_size)
        return outputs * (blocks * block_size * bits // 8 + 4 * blocks + -(-blocks * bits // 8))

    layer = size(4 * 192 + 2 * 512, 192, bits) + size(192, 512, bits)
    assert weight_bytes(model) == 11 * layer + size(1088, 192, 8)


def test_an_exported_folder_has_one_engine(tmp_path):
    folder = str(tmp_path / "onnx")
    assert main(["export", TEACHER, folder, "--engine", "onnx", "--weights", "int8"]) == 0
    assert count_weights(load_onnx(folder, "onnx-int8")) == NUM_PARAMETERS
    for load, engine in ((load_onnx, "onnx-int4"), (load_engine, "torch-bfloat16")):
        with pytest.raises(ValueError, match=f"is an export; its engine is onnx-int8, not {engine}"):
            load(folder, engine)


def test_engines_are_compared_by_cpu_time(capsys):
    rows = compare_engines(TEACHER, ("torch-bfloat16", "torch-int8"))
    assert [row["engine"] for row in rows] == ["torch-bfloat16", "torch-int8"]
    assert rows[0]["vs_transformers_bf16"] == 1.0
    ratio = rows[0]["cpu_seconds_per_token"] / rows[1]["cpu_seconds_per_token"]
    assert rows[1]["vs_transformers_bf16"] == pytest.approx(ratio)
    missing = compare_engines("no-such-preset", ("torch-int8",))
    assert "unknown preset 'no-such-preset'" in missing[0]["not_measured"] and "tokens_per_second" not in missing[0]


def test_what_does_not_fit_is_refused_before_it_is_loaded(capsys):
    with pytest.raises(MemoryError, match=r"this engine needs about 1000000\.8 GB and [\d.]+ GB of memory are free"):
        check_memory(10**15)
    with pytest.raises(ValueError, match="unknown engine 'abacus'; expected one of torch-float32"):
        measure_decoding(TEACHER, "abacus")


def test_a_model_stored_in_8_bits_has_one_engine(tmp_path):
    load_engine(TEACHER, "torch-int8").save_pretrained(tmp_path)
    assert count_weights(load_engine(str(tmp_path), "torch-int8")) == NUM_PARAMETERS
    with pytest.raises(ValueError, match="is stored in 8 bits; its engine is torch-int8"):
        load_engine(str(tmp_path), "torch-bfloat16")


def test_the_verb_prints_json(capsys):
    arguments = ["--model", "nano-student", "--engine", "onnx-int4", "--prompt-tokens", "4", "--new-tokens", "2"]
    assert main(["bench", *arguments, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    expected = {"tokens_per_second", "cpu_seconds_per_token", "peak_mb", "bandwidth_gbs", "efficiency"}
    assert expected | {"product_gflops", "real_time_factor"} <= row.keys()


def test_several_engines_are_compared_in_a_table_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    picture = tmp_path / "speed.svg"
    lengths = ["--prompt-tokens", "4", "--new-tokens", "2", "--threads", "1"]
    engines = ["--engine", "torch-float32", "torch-int8"]
    (row,) = compare_engines("nano-student", ("torch-int8",), 4, 2, num_threads=1)
    assert row["num_threads"] == 1
    assert main(["bench", "--model", "nano-student", *engines, *lengths, "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["PyTorch float32", "PyTorch, 8 bits"]
    written = re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text(encoding="utf-8"))
    assert {"PyTorch float32", "PyTorch, 8 bits"} <= set(written)
    rates = [line.split("|")[4].strip() for line in lines[2:]]
    assert re.findall(r"([\d.]+) of [\d.]+", " ".join(written)) == rates
