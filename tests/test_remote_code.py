"""A saved folder is complete: it loads where `tinywave` cannot be imported, and as plain Llama without trust."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer

CONVERSATIONS = [[("text", "a dog"), ("speech", [3, 3, 9])], [("speech", [5])]]

STRANGER = '''
import json, os, sys

class Hidden:
    """Make every import of the package fail."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
try:
    import tinywave
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tinywave is importable: this process proves nothing")

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

folder, resaved = sys.argv[1:]
conversations = [[("text", "a dog"), ("speech", [3, 3, 9])], [("speech", [5])]]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
plain = AutoModelForCausalLM.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(conversations, output_modality="speech")
with torch.no_grad():
    logits = model(**inputs).logits
    hidden_states = base(**inputs).last_hidden_state
    result = {
        "plain_equal": torch.equal(plain(**inputs).logits, logits),
        "base_equal": torch.equal(model.lm_head(hidden_states), logits),
    }
model.save_pretrained(resaved)
result.update(
    config=type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__,
    plain_config=type(AutoConfig.from_pretrained(folder)).__name__,
    model=type(model).__name__,
    base=type(base).__name__,
    plain=type(plain).__name__,
    processor=type(processor).__name__,
    unit_offset=model.config.unit_offset,
    tokens=AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["[Text]", "[Hu499]"]),
    logits=logits.flatten()[::997].tolist(),
    ids=model.generate(**inputs, output_modality="speech", max_new_tokens=6, do_sample=False).tolist(),
    prompt=processor.ids_to_segments(inputs["input_ids"][0]),
    resaved=sorted(name for name in os.listdir(resaved) if name.endswith(".py")),
    imported=sorted(name for name in sys.modules if name.split(".")[0] == "tinywave"),
)
print(json.dumps(result))
'''


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    model = TinyWaveForCausalLM(config).eval()
    licence = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([licence], config)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def stranger(saved, tmp_path_factory):
    """What a process without the package finds in the saved folder."""
    work = tmp_path_factory.mktemp("stranger")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", STRANGER, str(saved[0]), str(work / "resaved")],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_saved_folder_carries_the_code(saved):
    code = {path.name for path in saved[0].glob("*.py")}
    names = ("configuration", "generation", "modeling", "processing", "tokenization")
    assert code == {f"{name}_tinywave.py" for name in names}
    root = Path(__file__).parents[1]
    assert all((saved[0] / name).read_text() == (root / name).read_text() for name in code)


def test_auto_classes_with_trust(stranger):
    assert stranger["imported"] == []
    assert (stranger["config"], stranger["model"], stranger["base"], stranger["processor"]) == (
        "TinyWaveConfig",
        "TinyWaveForCausalLM",
        "TinyWaveModel",
        "TinyWaveProcessor",
    )
    assert stranger["unit_offset"] == 512
    assert stranger["base_equal"]


def test_auto_classes_without_trust_give_llama(stranger):
    assert (stranger["plain_config"], stranger["plain"]) == ("LlamaConfig", "LlamaForCausalLM")
    assert stranger["plain_equal"]
    assert stranger["tokens"] == [510, 1011]


def test_stranger_computes_what_the_package_computes(saved, stranger):
    _, model, processor = saved
    inputs = processor(CONVERSATIONS, output_modality="speech")
    with torch.no_grad():
        assert stranger["logits"] == model(**inputs).logits.flatten()[::997].tolist()
    generated = model.generate(**inputs, output_modality="speech", max_new_tokens=6, do_sample=False)
    assert stranger["ids"] == generated.tolist()
    assert [tuple(segment) for segment in stranger["prompt"]] == [("text", "a dog"), ("speech", [3, 9])]


def test_a_stranger_can_save_it_again(stranger):
    assert stranger["resaved"] == [
        "configuration_tinywave.py",
        "generation_tinywave.py",
        "modeling_tinywave.py",
        "tokenization_tinywave.py",
    ]
