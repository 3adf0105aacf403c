"""The language model is Llama: same names, same numbers, same sizes, and at home in tools that know Llama."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM, TinyWaveModel

CONFIG = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=2, hidden_size=48, intermediate_size=96)
MODEL_CODE = {
    "configuration_tinywave.py",
    "generation_tinywave.py",
    "modeling_tinywave.py",
    "tokenization_tinywave.py",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyWaveForCausalLM(CONFIG).eval()


@pytest.fixture(scope="module")
def inputs():
    input_ids = torch.randint(4, 1012, (3, 17), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    input_ids[1, :5] = CONFIG.pad_token_id
    attention_mask[1, :5] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def llama_config() -> LlamaConfig:
    """The same architecture, written down without TinyWave."""
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        head_dim=CONFIG.head_dim,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_loss_equal_llama(model, inputs, attention):
    llama = LlamaForCausalLM(llama_config()).eval()
    llama.load_state_dict(model.state_dict(), strict=True)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    outputs = []
    for candidate in (copy.deepcopy(model), llama):
        candidate.set_attn_implementation(attention)
        with torch.no_grad():
            outputs.append(candidate(**inputs, labels=labels, output_hidden_states=True))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert all(map(torch.equal, outputs[0].hidden_states, outputs[1].hidden_states))


def test_initialisation_equals_llama():
    torch.manual_seed(3)
    tinywave = TinyWaveForCausalLM(CONFIG)
    torch.manual_seed(3)
    llama = LlamaForCausalLM(llama_config())
    assert tinywave.state_dict().keys() == llama.state_dict().keys()
    assert all(torch.equal(value, llama.state_dict()[name]) for name, value in tinywave.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("speech-base-2b", 2_290_176_000, 93),
        ("speech-expressive-2b", 2_292_273_152, 93),
        ("interleaved-expressive-2b", 2_292_273_152, 93),
        ("spirit-lm-7b", 6_742_609_920, 291),
    ],
)
def test_parameter_counts_of_the_family(preset, parameters, tensors):
    with torch.device("meta"):
        model = TinyWaveForCausalLM(TinyWaveConfig.from_preset(preset))
    assert model.num_parameters() == parameters
    assert len(model.state_dict()) == tensors


def test_nano_student_has_a_third_of_the_teacher():
    with torch.device("meta"):
        teacher, student = (
            TinyWaveForCausalLM(TinyWaveConfig.from_preset(name)) for name in ("nano-teacher", "nano-student")
        )
    embeddings, block = 2 * 1024 * 192, 4 * 192 * 192 + 3 * 192 * 512 + 2 * 192
    assert teacher.num_parameters() == embeddings + 11 * block + 192
    assert student.num_parameters() <= 0.34 * teacher.num_parameters()


def test_save_and_load(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path).eval()
    plain = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, logits)
        assert torch.equal(plain(**inputs).logits, logits)
    assert loaded.config.unit_offset == CONFIG.unit_offset


def test_plain_llama_checkpoint_loads(inputs, tmp_path):
    torch.manual_seed(5)
    llama = LlamaForCausalLM(llama_config()).eval()
    llama.save_pretrained(tmp_path)
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path, config=CONFIG).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, llama(**inputs).logits)


def test_every_way_to_save_writes_code_and_the_whole_auto_map(model, inputs, tmp_path):
    lora = get_peft_model(TinyWaveForCausalLM(CONFIG), LoraConfig(r=2, init_lora_weights=False))
    merged = lora.merge_and_unload()
    for name, candidate in (("causal", model), ("base", model.model), ("merged", merged)):
        candidate.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
        assert MODEL_CODE <= {path.name for path in (tmp_path / name).iterdir()}
    loaded = TinyWaveModel.from_pretrained(tmp_path / "base").eval()
    plain = LlamaModel.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state
        assert torch.equal(loaded(**inputs).last_hidden_state, expected)
        assert torch.equal(plain(**inputs).last_hidden_state, expected)


def test_peft_default_targets_train_only_the_adapter(inputs):
    lora = get_peft_model(TinyWaveForCausalLM(CONFIG), LoraConfig(r=2, task_type="CAUSAL_LM"))
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == {"q_proj", "v_proj"}
    lora(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for name, parameter in lora.named_parameters() if name in trained)
    generated = lora.generate(input_ids=inputs["input_ids"][:1], output_modality="speech", max_new_tokens=3)
    assert generated.shape == (1, 20) and generated[0, -3:].min() >= 2


def test_training_lowers_the_loss(inputs):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
