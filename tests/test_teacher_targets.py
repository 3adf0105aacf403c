"""A teacher that runs gives what the model itself computes, and only for the terms that are on."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.arguments import DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.losses import supervised_positions
from tinywave.training.teacher_targets import OnlineTeacher

LAYER_MAP = LayerMap.from_pairs([(2, 0), (2, 1), (3, 2)])


def make_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
                                        num_attention_heads=2, attention_dropout=0.5))  # fmt: skip


def make_teacher(folder, **weights):
    arguments = DistillationArguments(output_dir=str(folder), use_cpu=True, **weights)
    return OnlineTeacher(make_model().train(), arguments, LAYER_MAP)


@pytest.fixture
def inputs():
    ids = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.masked_fill(torch.rand(2, 9) < 0.3, -100)}


def test_targets_are_those_of_the_frozen_model(tmp_path, inputs):
    teacher, positions = make_teacher(tmp_path), supervised_positions(inputs["labels"])
    targets = teacher.targets(inputs, positions)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with torch.no_grad():
        expected = make_model().eval()(inputs["input_ids"], output_hidden_states=True)
    logits = expected.logits[positions]
    for rows in (slice(0, 3), slice(3, len(logits))):
        torch.testing.assert_close(targets.logits(rows, torch.empty(0)), logits[rows])
    assert sorted(targets.block_outputs) == sorted(targets.attention_inputs) == [2, 3]
    torch.testing.assert_close(targets.block_outputs[2], expected.hidden_states[3])
    assert not targets.block_outputs[2].requires_grad
    assert targets.attention_inputs[3].query.shape == (2, 2, 9, 8)


@pytest.mark.parametrize("term", ["logits_weight", "hidden_weight", "attention_weight"])
def test_a_term_that_is_off_has_no_targets(tmp_path, inputs, term):
    targets = make_teacher(tmp_path, **{term: 0.0}).targets(inputs, supervised_positions(inputs["labels"]))
    assert (targets.logits is None) == (term == "logits_weight")
    assert (targets.block_outputs == {}) == (term == "hidden_weight")
    assert (targets.attention_inputs == {}) == (term == "attention_weight")
