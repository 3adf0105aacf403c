"""8-bit linear layers: rounding by hand, products against float64, saved == loaded, and a model that still speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.quantization_tinywave import Int8Linear, quantize_weight

TEACHER = Path(__file__).parents[1] / "assets" / "teacher"
NUM_LINEARS = 11 * 7 + 1


@pytest.fixture(scope="module")
def teacher():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()


@pytest.fixture(scope="module")
def quantized():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").quantize()


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(512, 1012, (2, 40), generator=torch.Generator().manual_seed(0))


def test_rounding_by_hand():
    rounded, scale = quantize_weight(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0], [-254.0, 1.0, 3.0]]))
    assert rounded.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 0, 2]]
    assert scale.tolist() == pytest.approx([0.01, torch.finfo(torch.float32).tiny, 2.0])
    with pytest.raises(ValueError, match="found NaN or infinity in a weight"):
        quantize_weight(torch.tensor([[float("nan"), 1.0]]))


@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_its_own_rounding_in_float64(shape, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    layer, inputs = Int8Linear.from_linear(linear), torch.randn(shape, dtype=dtype)
    output = layer(inputs)
    assert output.dtype == dtype and output.shape == (*shape[:-1], 48)
    # The activations of a token have as many steps to its largest one.
    values = inputs.double()
    step = values.abs().amax(-1, keepdim=True) / layer._largest
    weight = linear.weight.detach().double()
    of_weights = values.abs().sum(-1, keepdim=True) * layer.scale.double() / 2
    largest_error = (weight.abs().sum(1) * step / 2 + of_weights).max()
    exact = values @ weight.T
    rounding = 0.01 * float(exact.abs().max()) if dtype == torch.bfloat16 else 1e-4
    error = (output.double() - exact).abs().max()
    assert 0 < error < largest_error + rounding
    assert (output.double() - exact).norm() / exact.norm() < 0.02


def test_a_token_is_computed_as_if_it_were_alone():
    """Loud tokens beside it change nothing, to the bit; so a batch, or a draft, says what single tokens say."""
    torch.manual_seed(0)
    layer = Int8Linear.from_linear(nn.Linear(64, 48, bias=False))
    tokens = torch.randn(4, 64) * torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    together = layer(tokens)
    assert all(torch.equal(layer(token[None])[0], output) for token, output in zip(tokens, together, strict=True))
    assert not together[3].any(), "nothing gives nothing"


def test_a_layer_with_a_bias_and_another_device_are_refused():
    with pytest.raises(ValueError, match="found a linear layer with a bias"):
        Int8Linear.from_linear(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="8-bit weights run on the CPU; found meta"):
        Int8Linear(4, 4).to("meta")(torch.randn(1, 4))


def test_the_model_keeps_its_predictions(teacher, quantized, prompt):
    assert sum(isinstance(module, Int8Linear) for module in quantized.modules()) == NUM_LINEARS
    with torch.no_grad():
        exact, rounded = (model(prompt).logits.log_softmax(-1) for model in (teacher, quantized))
    assert 0 < (exact.exp() * (exact - rounded)).sum(-1).mean() < 0.05
    generated = quantized.generate(
        prompt, attention_mask=torch.ones_like(prompt), output_modality="speech", do_sample=False, max_new_tokens=8
    )
    assert generated.shape[1] > prompt.shape[1]


def test_saved_is_loaded_to_the_bit_and_a_quarter_as_large(quantized, prompt, tmp_path):
    with torch.no_grad():
        before = quantized(prompt).logits
    quantized.save_pretrained(tmp_path)
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(prompt).logits, before)
        assert torch.equal(quantized(prompt).logits, before), "saving leaves the packed weights in place"
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.dtype == torch.int8 for tensor in tensors.values()) == NUM_LINEARS
    in_linears = sum(tensor.numel() for tensor in tensors.values() if tensor.dtype == torch.int8)
    others = sum(4 * tensor.numel() for tensor in tensors.values() if tensor.dtype != torch.int8)
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(in_linears + others, rel=0.01)
    loaded.load_state_dict(quantized.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(prompt).logits, before), "weights can be loaded again after the first call"


def test_it_loads_by_remote_code_alone(quantized, prompt, tmp_path):
    quantized.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        torch.save(quantized(prompt).logits, tmp_path / "logits.pt")
    torch.save(prompt, tmp_path / "prompt.pt")
    code = (
        "import sys, torch\n"
        "from transformers import AutoModel, AutoModelForCausalLM\n"
        "folder = sys.argv[1]\n"
        "assert not any('tinywave' == name for name in sys.modules)\n"
        "prompt = torch.load(folder + '/prompt.pt', weights_only=True)\n"
        "expected = torch.load(folder + '/logits.pt', weights_only=True)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder + '/int8', trust_remote_code=True).eval()\n"
        "base = AutoModel.from_pretrained(folder + '/int8', trust_remote_code=True).eval()\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(prompt).logits, expected)\n"
        "    assert torch.equal(base(prompt).last_hidden_state, model.model(prompt).last_hidden_state)\n"
        "print('equal')\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0 and result.stdout.strip() == "equal", result.stderr


def test_a_plain_llama_finds_no_weights_rather_than_wrong_ones(quantized, tmp_path):
    quantized.save_pretrained(tmp_path)
    _, information = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert "lm_head.weight" in information["missing_keys"]


def test_a_format_that_does_not_exist_and_a_second_rounding_are_refused(quantized):
    with pytest.raises(Exception, match="weight_format is 'int3'; expected 'int8'"):
        TinyWaveConfig(weight_format="int3")
    with pytest.raises(ValueError, match="weight_format is 'int8' already"):
        quantized.quantize()
    assert json.loads(quantized.config.to_json_string())["weight_format"] == "int8"


def test_a_shared_head_stays_in_floating_point():
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, tie_word_embeddings=True)
    model = TinyWaveForCausalLM(config).quantize()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert isinstance(model.model.layers[0].mlp.down_proj, Int8Linear)
