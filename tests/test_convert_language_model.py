"""SPIRIT-LM and TinyWave language models: the published layout in, the same function out of our folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, AutoProcessor, LlamaConfig, LlamaForCausalLM

from tinywave.cli.main import main
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.convert.conversion import ConversionRun, ConvertOptions
from tinywave.convert.key_report import TensorSpec, match_keys
from tinywave.convert.language_model import LLAMA_KEYS, empty_model
from tinywave.convert.sentencepiece_model import read_sentencepiece_model
from tinywave.convert.spirit_lm_model import plan_spirit_lm, plan_tinywave
from tinywave.convert.weight_shards import PlannedTensor, plan_shards

TEXT_IDS = 400
TEXTS = ["The largest country in the world is", "  two  spaces", "caf\u00e9 \u2603 <s>", "a", "don't [stop]"]
BASE_TOKENS = ["[Text]", "[Speech]", *(f"[Hu{n}]" for n in range(501))]
EXPRESSIVE_TOKENS = [*BASE_TOKENS, *(f"[Pi{n}]" for n in range(64)), *(f"[St{n}]" for n in range(100))]
# As the config.json of a Llama-2 folder of that time has it, with the padding id of SPIRIT-LM.
LLAMA_SETTINGS = {
    "_name_or_path": "/somewhere/else",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pad_token_id": -1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
}


def piece_message(piece, kind):
    """A sentencepiece piece as protocol-buffer bytes; appended to a model file it becomes its last piece."""
    raw = piece.encode()
    body = b"\x0a" + bytes([len(raw)]) + raw + b"\x15\x00\x00\x00\x00" + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


def train_text_model(folder):
    """A sentencepiece model with Llama's settings: byte-pair encoding, byte fallback, nothing normalized."""
    prefix = folder / "text"
    sentencepiece.SentencePieceTrainer.train(
        input=str(Path(__file__).parents[1] / "LICENSE"),
        model_prefix=str(prefix),
        vocab_size=TEXT_IDS,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return train_text_model(tmp_path_factory.mktemp("text"))


def reference_model(num_tokens, vocab_size, dtype=torch.bfloat16, seed=0):
    torch.manual_seed(seed)
    settings = {name: value for name, value in LLAMA_SETTINGS.items() if name not in ("torch_dtype", "pad_token_id")}
    return LlamaForCausalLM(LlamaConfig(**settings | {"vocab_size": vocab_size})).to(dtype).eval()


def write_settings(folder, vocab_size, **changes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_SETTINGS | {"vocab_size": vocab_size} | changes))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1, "temperature": 0.8, "do_sample": True})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def write_tokenizer_settings(folder, **changes):
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": True} | changes))


def write_spirit_lm(folder, text_model, tokens=BASE_TOKENS, where="model", vocab_size=960):
    """The layout of `spiritlm_model/*`: one PyTorch file and a sentencepiece model, the tokens in it or beside it."""
    write_settings(folder, vocab_size)
    model = reference_model(len(tokens), vocab_size)
    state = dict(model.state_dict())
    for layer in range(2):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(state, folder / "pytorch_model.bin")
    content = text_model.read_bytes()
    ids = {token: TEXT_IDS + n for n, token in enumerate(tokens)}
    if where == "model":
        content += b"".join(piece_message(token, 4) for token in tokens)
    elif where == "added_tokens.json":
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    decoder = {str(index): {"content": token, "special": False} for token, index in ids.items()}
    write_tokenizer_settings(folder, **({"added_tokens_decoder": decoder} if where == "tokenizer_config.json" else {}))
    (folder / "tokenizer.model").write_bytes(content)
    return model


def write_tinywave(folder, text_model, tokens=EXPRESSIVE_TOKENS, vocab_size=1088):
    """The layout of the Hub's TinyWave repositories: float32 safetensors in two shards, and a tokenizer.json."""
    write_settings(folder, vocab_size, torch_dtype="float32", pad_token_id=0)
    model = reference_model(len(tokens), vocab_size, torch.float32)
    state = model.state_dict()
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in half}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer_settings(folder)
    published_tokenizer(text_model, tokens).save(str(folder / "tokenizer.json"))
    return model


def published_tokenizer(text_model, tokens):
    """What transformers 4 wrote for a Llama tokenizer with added tokens, built from sentencepiece itself."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(text_model))
    pieces = {processor.id_to_piece(n): n for n in range(len(processor))}
    merges = sorted(
        (-processor.get_score(n), n, piece[:cut], piece[cut:])
        for piece, n in pieces.items()
        for cut in range(1, len(piece))
        if n > 258 and piece[:cut] in pieces and piece[cut:] in pieces
    )
    backend = Tokenizer(
        models.BPE(pieces, [merge[2:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return backend


def convert(plan, source, destination, **options):
    run = ConversionRun(plan(source, ConvertOptions()), destination, ConvertOptions(), **options)
    run.run()
    return run


@pytest.fixture(scope="module")
def spirit_lm(text_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("spirit")
    source, destination = root / "spirit-lm-base-7b", root / "converted"
    model = write_spirit_lm(source, text_model)
    assert main(["convert", str(source), str(destination)]) == 0
    return source, destination, model


@pytest.fixture(scope="module")
def tinywave_repository(text_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    source, destination = root / "speech-expressive-2b", root / "converted"
    model = write_tinywave(source, text_model)
    assert main(["convert", str(source), str(destination)]) == 0
    return source, destination, model


def test_spirit_lm_gives_the_published_logits_through_the_auto_classes(spirit_lm):
    _, destination, reference = spirit_lm
    model = AutoModelForCausalLM.from_pretrained(destination, trust_remote_code=True).eval()
    plain = AutoModelForCausalLM.from_pretrained(destination).eval()
    assert (type(model).__name__, type(plain).__name__) == ("TinyWaveForCausalLM", "LlamaForCausalLM")
    assert model.dtype == torch.bfloat16
    ids = torch.tensor([[1, 401, 402, 500, 903 - 1, 400, 300, 17]])
    with torch.no_grad():
        expected = reference(ids).logits
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(plain(ids).logits, expected)


def test_id_layout_is_read_from_the_tokenizer(spirit_lm, tinywave_repository):
    model = AutoModelForCausalLM.from_pretrained(spirit_lm[1], trust_remote_code=True)
    names = ("text_offset", "text_vocab_size", "text_marker_id", "speech_marker_id", "unit_offset", "num_units")
    assert [getattr(model.config, name) for name in names] == [3, 400, 400, 401, 402, 501]
    assert (model.config.num_pitch_tokens, model.config.pad_token_id) == (0, 0)
    assert model.config.rope_parameters["rope_theta"] == 100000.0
    assert model.generation_config.temperature == 0.8
    settings = json.loads((tinywave_repository[1] / "config.json").read_text())
    assert [settings[name] for name in ("pitch_offset", "num_pitch_tokens", "style_offset", "num_style_tokens")] == [
        903, 64, 967, 100
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["model", "added_tokens.json", "tokenizer_config.json"])
def test_tokenizer_gives_the_ids_of_sentencepiece(where, text_model, tmp_path):
    source = tmp_path / "spirit-lm-base-7b"
    write_spirit_lm(source, text_model, where=where)
    convert(plan_spirit_lm, source, tmp_path / "converted")
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(text_model))
    for text in TEXTS:
        ids = processor([("text", text), ("speech", [3, 3, 499])])["input_ids"][0].tolist()
        assert ids == [1, 400, *reference.encode(text), 401, 402 + 3, 402 + 499]
        assert processor.ids_to_segments(ids) == [("text", text), ("speech", [3, 499])]


def test_tokenizer_json_gives_the_ids_of_the_published_prompt(text_model, tinywave_repository):
    processor = AutoProcessor.from_pretrained(tinywave_repository[1], trust_remote_code=True)
    published = published_tokenizer(text_model, EXPRESSIVE_TOKENS)
    for text in TEXTS[:2]:
        prompt = f"[Text]{text}[Speech][St7][Pi3][Hu0]"
        ids = processor.tokenizer(prompt)["input_ids"]
        assert ids == [1, *published.encode(prompt, add_special_tokens=False).ids]
        assert ids[:-4] == processor([("text", text)])["input_ids"][0].tolist()


def test_a_tokenizer_that_spaces_only_the_beginning_puts_no_space_after_a_marker(text_model, tmp_path):
    source = tmp_path / "tinywave"
    write_tinywave(source, text_model)
    content = json.loads((source / "tokenizer.json").read_text())
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(content))
    published = Tokenizer.from_str(json.dumps(content))
    convert(plan_tinywave, source, tmp_path / "converted")
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    expected = published.encode("[Text]the world", add_special_tokens=False).ids
    assert processor([("text", "the world")])["input_ids"][0].tolist() == [1, *expected]


def test_tinywave_repository_keeps_every_value(tinywave_repository):
    _, destination, reference = tinywave_repository
    state = load_file(destination / "model.safetensors")
    expected = reference.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) and tensor.dtype == torch.float32 for name, tensor in expected.items())


def test_report_accounts_for_every_key(spirit_lm):
    _, destination, reference = spirit_lm
    report = json.loads((destination / "convert_report.json").read_text())
    keys = report["keys"]
    assert sorted(keys["converted"]) == sorted(reference.state_dict())
    assert set(keys["ignored"].values()) == {"computed from the configuration"} and len(keys["ignored"]) == 2
    assert not (keys["missing"] or keys["unexpected"] or keys["misshapen"])
    assert (report["complete"], report["dtype"], report["licence"]) == (
        True, "bfloat16", "FAIR Noncommercial Research License"
    )  # fmt: skip
    text = (destination / "convert_report.txt").read_text()
    assert "ignored    model.layers.0.self_attn.rotary_emb.inv_freq: computed from the configuration\n" in text
    assert all(f" {name}\n" in text for name in reference.state_dict())


def test_licence_is_printed_first_and_stands_in_the_card(text_model, tmp_path, capsys):
    source = tmp_path / "speech-base-2b"
    write_tinywave(source, text_model)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (source / "LICENSE").write_text("terms")
    assert main(["convert", str(source), str(tmp_path / "converted"), "--dtype", "float16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Licence of the weights: FAIR Noncommercial Research License. ")
    assert lines[2] == "The card of the source states: apache-2.0."
    weights = sum(2 * tensor.numel() for tensor in load_file(tmp_path / "converted" / "model.safetensors").values())
    assert f"{weights:,} bytes of weights to write into {tmp_path / 'converted'}" in lines
    card = (tmp_path / "converted" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: fair-noncommercial-research-license\n")
    assert "states: apache-2.0." in card and (tmp_path / "converted" / "LICENSE").read_text() == "terms"
    with safe_open(tmp_path / "converted" / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}


def llama_names(num_layers, hidden, intermediate, vocab):
    """Names and shapes of Llama-2's published tensors, from its paper's sizes."""
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(num_layers):
        for name in "qkvo":
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = (intermediate, hidden)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
        for name in ("input", "post_attention"):
            shapes[f"model.layers.{layer}.{name}_layernorm.weight"] = (hidden,)
    return shapes | {"lm_head.weight": (vocab, hidden)}


@pytest.mark.parametrize(
    ("preset", "num_layers", "vocab", "num_tensors", "parameters"),
    [
        ("spirit-lm-7b", 32, 32512, 291, 6_742_609_920),
        ("speech-base-2b", 10, 32512, 93, 2_290_176_000),
        ("speech-expressive-2b", 10, 32768, 93, 2_292_273_152),
    ],
)
def test_published_sizes_fit_name_by_name(preset, num_layers, vocab, num_tensors, parameters):
    shapes = llama_names(num_layers, 4096, 11008, vocab)
    specs = {name: TensorSpec(shape, torch.bfloat16) for name, shape in shapes.items()}
    model = empty_model(TinyWaveConfig.from_preset(preset))
    target = {name: TensorSpec.of(tensor) for name, tensor in model.state_dict().items()}
    report = match_keys(specs, target, LLAMA_KEYS)
    report.check("the published folder")
    assert len(report.converted) == num_tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    shards = plan_shards([PlannedTensor(name, spec, lambda: None) for name, spec in specs.items()])
    assert sum(shard.num_bytes for shard in shards) == 2 * parameters
    assert all(shard.num_bytes <= 4_000_000_000 for shard in shards)
    assert shards[-1].file == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda state: state.update(extra=torch.zeros(2)), "unexpected: extra"),
        (
            lambda state: state.update({"model.norm.weight": torch.zeros(33)}),
            r"of another shape: model.norm.weight \(found \[33\], expected \[32\]\)",
        ),
    ],
)
def test_a_missing_extra_or_misshapen_key_is_refused(damage, message, text_model, tmp_path):
    source = tmp_path / "spirit-lm-base-7b"
    model = write_spirit_lm(source, text_model)
    state = dict(model.state_dict())
    damage(state)
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert(plan_spirit_lm, source, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_shards_of_either_kind_are_read(text_model, tmp_path):
    source = tmp_path / "spirit-lm-base-7b"
    reference = write_spirit_lm(source, text_model)
    state = reference.state_dict()
    (source / "pytorch_model.bin").unlink()
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, source / file)
        weight_map |= dict.fromkeys(part, file)
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    convert(plan_spirit_lm, source, tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())

    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="names the shard pytorch_model-00002-of-00002.bin, which is not"):
        plan_spirit_lm(source, ConvertOptions())
    shutil.copyfile(source / "pytorch_model-00001-of-00002.bin", source / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ValueError, match="both .*00001.* and .*00002.* hold"):
        plan_spirit_lm(source, ConvertOptions())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["[Text]", *BASE_TOKENS[2:]], r"has no \[Speech\]"),
        (["[Text]", "[Speech]"], r"has no \[Hu0\]"),
        ([*BASE_TOKENS[:9], *BASE_TOKENS[10:]], r"the \[Hu\] tokens of .* have gaps"),
        (["[Text]", "other", *BASE_TOKENS[1:]], "id 401 of the tokenizer of .* stands among them"),
    ],
)
def test_a_tokenizer_of_another_layout_is_refused(tokens, message, text_model, tmp_path):
    source = tmp_path / "spirit-lm-base-7b"
    write_spirit_lm(source, text_model, tokens)
    with pytest.raises(ValueError, match=message):
        plan_spirit_lm(source, ConvertOptions())


def test_filler_behind_the_streams_is_left_out(text_model, tmp_path):
    source = tmp_path / "spirit-lm-base-7b"
    write_spirit_lm(source, text_model, [*BASE_TOKENS, "[Filler0]", "[Filler1]"])
    convert(plan_spirit_lm, source, tmp_path / "converted")
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    assert len(processor.tokenizer) == TEXT_IDS + len(BASE_TOKENS)


def test_sentencepiece_files_that_are_not_llamas_are_refused(text_model, tmp_path):
    content = text_model.read_bytes()
    damaged = tmp_path / "damaged.model"
    for size in (10, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:size])
        with pytest.raises(ValueError, match=re.escape(str(damaged))):
            read_sentencepiece_model(damaged)
    prefix = tmp_path / "unigram"
    sentencepiece.SentencePieceTrainer.train(
        input=str(Path(__file__).parents[1] / "LICENSE"), model_prefix=str(prefix), vocab_size=300, minloglevel=2
    )
    with pytest.raises(ValueError, match="not a byte-pair encoding"):
        read_sentencepiece_model(prefix.with_suffix(".model"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(Path(__file__).parents[1] / "LICENSE"),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="normalizes its text .nmt_nfkc"):
        read_sentencepiece_model(prefix.with_suffix(".model"))
