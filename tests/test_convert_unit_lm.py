"""slamkit's UnitLM -> TinyWave: the logits of transformers' Llama and Qwen2, and the prompts that slamkit makes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tinywave.cli.main import main
from tinywave.convert.conversion import ConversionRun, ConvertOptions
from tinywave.convert.slamkit_unit_lm import backbone_to_llama, plan
from tinywave.eval.sequence_formats import SpeechSequenceFormat

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000,
}  # fmt: skip
# What transformers 4 wrote into every nested configuration.
LEGACY = {"max_length": 20, "temperature": 1.0, "do_sample": False, "torchscript": False, "use_bfloat16": False}


def reference_model(kind, vocab_size=502, tie=True):
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "opt":
        config = OPTConfig(
            vocab_size=vocab_size, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, **ids,
        )  # fmt: skip
        return OPTForCausalLM(config).eval()
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    config = classes[0](vocab_size=vocab_size, tie_word_embeddings=tie, **ids, **SIZES)
    model = classes[1](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def write_unit_lm(folder, model, name, **changes):
    """The files of a slamkit repository: the wrapper's configuration, and every tensor with `lm.` in front."""
    folder.mkdir(parents=True)
    state = {f"lm.{key}": tensor.clone() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm.lm_head.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = model.config.to_dict() | LEGACY | {"torch_dtype": "float32"}
    backbone |= SIZES if model.config.model_type != "opt" else {}
    backbone.pop("rope_parameters", None)
    settings = {
        "architectures": ["UnitLM"], "base_config": backbone, "base_model_name": name,
        "model_type": "speech_language_model", "tie_word_embeddings": model.config.tie_word_embeddings,
        "torch_dtype": "float32", "transformers_version": "4.48.3", "twist_init": True, "use_cache": False,
        "vocab_size": model.config.vocab_size,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings | changes))
    return model


def convert(source, destination):
    run = ConversionRun(plan(source, ConvertOptions()), destination, ConvertOptions())
    run.run()
    model = AutoModelForCausalLM.from_pretrained(destination, trust_remote_code=True).eval()
    return model, AutoProcessor.from_pretrained(destination, trust_remote_code=True), run


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_logits_are_those_of_the_backbone(kind, tie, tmp_path):
    reference = write_unit_lm(tmp_path / "slam", reference_model(kind, tie=tie), "Qwen/Qwen2.5-0.5B")
    model, _, run = convert(tmp_path / "slam", tmp_path / "converted")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "converted").eval()
    ids = torch.tensor([[1, 5, 77, 501, 2, 300]])
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert type(model).__name__ == "TinyWaveForCausalLM"
    biases = {f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(2)} if kind == "qwen2" else set()
    assert run.reports[0].computed.keys() == biases
    assert ("lm_head.weight" in load_file(tmp_path / "converted" / "model.safetensors")) is not tie


def test_prompts_of_a_model_of_speech_are_slamkits(tmp_path):
    write_unit_lm(tmp_path / "slam", reference_model("qwen2"), "Qwen/Qwen2.5-0.5B")
    model, processor, _ = convert(tmp_path / "slam", tmp_path / "converted")
    inputs = processor([("speech", [3, 3, 499])], output_modality="speech")
    assert inputs["input_ids"].tolist() == [[1, 2 + 3, 2 + 499]]  # <S> <Un3> <Un499>
    batch = processor([[("speech", [3, 499])], [("speech", [7])]], output_modality="speech")
    assert batch["input_ids"].tolist() == [[1, 5, 501], [0, 1, 9]]
    output = model.generate(**inputs, output_modality="speech", max_new_tokens=8, do_sample=True)[0, 3:]
    assert set(output.tolist()) <= {*range(1, 502)}
    free = model.generate(**inputs, max_new_tokens=8, do_sample=True, top_k=0)[0, 3:]
    assert set(free.tolist()) <= {*range(1, 502)}
    assert processor.ids_to_segments(inputs["input_ids"][0]) == [("speech", [3, 499])]
    with pytest.raises(ValueError, match="this model knows no text; give speech alone"):
        processor([("text", "hello")])
    assert SpeechSequenceFormat(model.config).speech_to_sequence([3, 3, 499]) == [1, 5, 501]


def text_tokenizer(bos):
    """A byte-level text tokenizer with its special tokens at the end, as Llama 3 has them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([(Path(__file__).parents[1] / "LICENSE").read_text()], trainer)
    filler = [f"<|reserved_{n}|>" for n in range(10_000)]
    backend.add_special_tokens(["<|begin|>", "<|end|>", *filler])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", backend.token_to_id("<|begin|>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")


def test_an_interleaved_llama_gives_slamkits_ids_for_text_and_speech(tmp_path):
    tokenizer = text_tokenizer(bos=True)
    first = len(tokenizer)
    source = tmp_path / "SIMS-Llama3.2-3B"
    reference = write_unit_lm(source, reference_model("llama", first + 502), "meta-llama/Llama-3.2-3B")
    with pytest.raises(FileNotFoundError, match="copy tokenizer.json and tokenizer_config.json of meta-llama"):
        plan(source, ConvertOptions())
    tokenizer.save_pretrained(source)
    model, processor, _ = convert(source, tmp_path / "converted")
    tokenizer.add_tokens([f"<Un{n}>" for n in range(500)] + ["<speech>", "<text>"])
    expected = tokenizer.encode("<text>free software<speech><Un3><Un499>")
    ids = processor([("text", "free software"), ("speech", [3, 499])])["input_ids"]
    assert ids[0].tolist() == expected
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)
    assert processor.ids_to_segments(ids[0]) == [("text", "free software"), ("speech", [3, 499])]
    assert (model.config.bos_token_id, model.config.eos_token_id) == (300, 301)


def test_a_text_model_without_bos_is_refused(tmp_path):
    tokenizer = text_tokenizer(bos=False)
    write_unit_lm(tmp_path / "SIMS-7B", reference_model("qwen2", len(tokenizer) + 502), "Qwen/Qwen2.5-7B")
    tokenizer.save_pretrained(tmp_path / "SIMS-7B")
    with pytest.raises(ValueError, match=r"Qwen/Qwen2.5-7B begins a text with the ids \[\]; a TinyWave model needs"):
        plan(tmp_path / "SIMS-7B", ConvertOptions())


def test_an_opt_backbone_is_refused_saying_what_was_found(tmp_path, capsys):
    write_unit_lm(tmp_path / "gslm", reference_model("opt"), "facebook/opt-125m")
    assert main(["convert", str(tmp_path / "gslm"), str(tmp_path / "converted")]) == 2
    captured = capsys.readouterr()
    assert "Licence of the weights: MIT. The cards of slamkit's models state MIT" in captured.out
    assert "found a UnitLM on facebook/opt-125m, a backbone of type 'opt': OPT has learnt positions" in captured.err
    assert not (tmp_path / "converted").exists()


def test_other_backbones_and_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="type 'gpt2': it is no Llama"):
        backbone_to_llama({"model_type": "gpt2"}, "gpt2")
    with pytest.raises(ValueError, match="sliding-window attention"):
        backbone_to_llama({"model_type": "qwen2", "use_sliding_window": True}, "Qwen")
    write_unit_lm(tmp_path / "a", reference_model("llama"), "x", base_config=SIZES | {"model_type": "llama"})
    with pytest.raises(ValueError, match=r"has padding, BOS and EOS at \(None, None, None\)"):
        plan(tmp_path / "a", ConvertOptions())
    write_unit_lm(tmp_path / "b", reference_model("llama"), "x", vocab_size="many")
    with pytest.raises(ValueError, match="has no base_config and vocab_size"):
        plan(tmp_path / "b", ConvertOptions())
    write_unit_lm(tmp_path / "c", reference_model("llama"), "x")
    (tmp_path / "c" / "tokeniser_config.json").write_text(json.dumps({"num_units": 2000, "dedup": True}))
    with pytest.raises(ValueError, match="states 2000 units, but the vocabulary of 502 has room for 500"):
        plan(tmp_path / "c", ConvertOptions())
