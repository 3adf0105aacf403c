"""The table of loss terms: everything else derives from it, so that a new term is a change of one file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinywave.training.arguments import DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.terms import TERMS, BlockPair, aligned_pairs, describe_terms, hidden_distance

ROOT = Path(__file__).parents[1]
LAYER_MAP = LayerMap.from_pairs([(1, 0), (4, 1), (6, 2)])
ONE_MORE_TERM = {
    "\n    temperature: float = field(": "\n    absolute_weight: float = 0.0\n    temperature: float = field(",
    "\nTERMS = (": """
def absolute_distance(pair: BlockPair) -> torch.Tensor:
    return ((pair.student - pair.teacher).abs().mean(dim=-1) * pair.weights).sum()


TERMS = (
    LossTerm("absolute", "absolute difference", True, "block_outputs", absolute_distance),""",
}
RUN = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from tinywave import DistillationArguments, DistillationTrainer, LayerMap
from tinywave.cli.distill import WITHOUT_TEACHER
from tinywave.training.terms import describe_terms

def model(layers):
    torch.manual_seed(layers)
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_attention_heads=2,
                                        num_hidden_layers=layers))

others = dict(cross_entropy_weight=0.0, logits_weight=0.0, hidden_weight=0.0, attention_weight=0.0)
ids = [3, 4, 5, 6, 7]
args = DistillationArguments(output_dir=sys.argv[1], absolute_weight=2.0, use_cpu=True, max_steps=1, report_to="none",
                             save_strategy="no", logging_steps=1, disable_tqdm=True, learning_rate=0.0, **others)
student, teacher = model(1), model(2)
trainer = DistillationTrainer(student, teacher, LayerMap.from_pairs([(1, 0)]), args,
                              train_dataset=[{"input_ids": ids, "labels": ids}])
trainer.train()
outputs = {}
for name, each, block in (("student", student, 0), ("teacher", teacher, 1)):
    each.eval().get_decoder().layers[block].register_forward_hook(
        lambda module, inputs, output, name=name: outputs.update({name: output})
    )
    each(torch.tensor([ids]))
difference = (outputs["student"] - outputs["teacher"])[0, :-1].abs().mean().item()
print(json.dumps([trainer.state.log_history[0], difference, describe_terms(args), WITHOUT_TEACHER]))
"""


def test_a_new_term_is_a_change_of_one_file(tmp_path):
    package = tmp_path / "tinywave"
    for folder in (".", "cli", "data", "engines", "stages", "training"):
        (package / folder).mkdir(parents=True, exist_ok=True)
        for path in (ROOT / folder).glob("*.py"):
            shutil.copyfile(path, package / folder / path.name)
    (package / "assets").mkdir()
    shutil.copyfile(ROOT / "assets" / "__init__.py", package / "assets" / "__init__.py")
    file = package / "training" / "terms.py"
    text = file.read_text(encoding="utf-8")
    for place, insertion in ONE_MORE_TERM.items():
        assert text.count(place) == 1
        text = text.replace(place, insertion)
    file.write_text(text, encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    log, difference, description, without_teacher = json.loads(finished.stdout.splitlines()[-1])
    assert log["absolute_loss"] == pytest.approx(difference, rel=1e-4) and difference > 0
    assert log["loss"] == pytest.approx(2 * difference, rel=1e-4)
    assert description == ["absolute difference, weight 2"]
    assert without_teacher["absolute_weight"] == 0.0 and without_teacher["cross_entropy_weight"] == 1.0


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_every_term_has_its_settings(term, tmp_path):
    off = {other.weight_field: 0.0 for other in TERMS}
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **(off | {term.weight_field: 0.25}))
    assert term.weight(arguments) == 0.25
    assert arguments.needs_teacher == term.needs_teacher
    assert arguments.needs_layer_map == (term.distance is not None)
    assert [line.rpartition(", ")[2] for line in describe_terms(arguments)] == ["weight 0.25"]
    assert term.pairs(arguments, LAYER_MAP) == (LAYER_MAP.pairs if term.distance else ())


def test_pairs_of_blocks_are_those_of_the_terms_that_read_them(tmp_path):
    arguments = DistillationArguments(
        output_dir=str(tmp_path), use_cpu=True, hidden_layers=[0], attention_layers=[1, 2], logits_weight=0.0
    )
    assert aligned_pairs(arguments, LAYER_MAP, "block_outputs") == ((1, 0),)
    assert aligned_pairs(arguments, LAYER_MAP, "attention_inputs") == ((4, 1), (6, 2))


def test_a_distance_takes_its_kind_from_the_settings(tmp_path):
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, hidden_loss="mse")
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    found = hidden_distance(BlockPair(student, teacher, weights, arguments, None))
    assert found == pytest.approx(((student - teacher).square().mean(-1) * weights).sum().item(), rel=1e-5)
