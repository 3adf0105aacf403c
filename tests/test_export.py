"""Exported models are read back by others: transformers reads the GGUF file, llama.cpp runs it, both say the same."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tinywave.benchmarks.decode import complete_with_llama_cpp, count_in_config
from tinywave.cli.main import main
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.convert.gguf_export import export_gguf, interleave_halves
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor

TEACHER = Path(__file__).parents[1] / "assets" / "teacher"


@pytest.fixture(scope="module")
def teacher():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(512, 1012, (1, 32), generator=torch.Generator().manual_seed(0))


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(("weights", "tolerance"), [("f32", 0.0), ("f16", 1e-5), ("q8_0", 0.02), ("q4_0", 0.2)])
def test_transformers_reads_the_same_model_from_the_file(teacher, prompt, tmp_path, weights, tolerance):
    assert main(["export", str(TEACHER), str(tmp_path / "m.gguf"), "--engine", "gguf", "--weights", weights]) == 0
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    expected, found = logits_of(teacher, prompt), logits_of(loaded, prompt)
    assert (found - expected).norm() <= tolerance * expected.norm()
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"], "no partial file is left"


def test_llama_cpp_generates_the_same_ids(teacher, prompt, tmp_path):
    path = export_gguf(teacher, TEACHER / "tokenizer.json", tmp_path / "model.gguf", "f32")
    ids = prompt
    for _ in range(8):
        ids = torch.cat([ids, logits_of(teacher, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    short, long = complete_with_llama_cpp(path, prompt[0].tolist(), (2, 8))
    assert long.ids == ids[0, 32:].tolist() and short.ids == long.ids[:2]


def test_a_model_without_tokenizer_is_given_ids(tmp_path):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-student", initializer_range=0.2)).eval()
    path = export_gguf(model, None, tmp_path / "model.gguf", "f32")
    ids = torch.randint(512, 1012, (1, 10))
    (completion,) = complete_with_llama_cpp(path, ids[0].tolist(), (1,))
    assert completion.ids == [int(logits_of(model, ids)[0, -1].argmax())]


def test_grouped_query_heads_and_shared_embeddings_are_written(tmp_path):
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset(
        "nano-student", num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2
    )
    model = TinyWaveForCausalLM(config).eval()
    export_gguf(model, None, tmp_path / "model.gguf", "f32")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.randint(0, config.vocab_size, (2, 20))
    assert torch.allclose(logits_of(model, ids), logits_of(loaded, ids), atol=1e-5)


def test_rotary_halves_are_interleaved():
    rows = torch.arange(8.0)[:, None]
    assert interleave_halves(rows, num_heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_8_bit_folder_is_complete_and_loads_by_itself(prompt, tmp_path, capsys):
    assert main(["export", str(TEACHER), str(tmp_path / "int8")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "int8")
    model = TinyWaveForCausalLM.from_pretrained(tmp_path / "int8").eval()
    assert model.config.weight_format == "int8" and torch.isfinite(logits_of(model, prompt)).all()
    processor = TinyWaveProcessor.from_pretrained(tmp_path / "int8")
    assert processor.ids_to_segments(torch.tensor([511, 515]))[0][0] == "speech"
    assert count_in_config(model.config)[0] == 5_288_256


def test_what_cannot_be_exported_is_refused(teacher, tmp_path, capsys):
    assert main(["export", str(TEACHER), str(tmp_path / "int8")]) == 0
    assert main(["export", str(tmp_path / "int8"), str(tmp_path / "m.gguf"), "--engine", "gguf"]) == 2
    assert "export it from its floating-point folder" in capsys.readouterr().err
    assert main(["export", str(TEACHER), str(TEACHER)]) == 2
    assert "holds another model; choose a folder of its own" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown weight type 'q2'"):
        export_gguf(teacher, None, tmp_path / "x.gguf", "q2")
    narrow = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, hidden_size=24, intermediate_size=40)
    with pytest.raises(ValueError, match="multiples of 32; found hidden_size 24 and intermediate_size 40. Choose f16"):
        export_gguf(TinyWaveForCausalLM(narrow), None, tmp_path / "x.gguf", "q8_0")
    assert not (tmp_path / "x.gguf").exists()
