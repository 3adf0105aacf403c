"""Projectors: part of the trained student, absent from what it saves, and brought back from their own file."""

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.projectors import (
    PROJECTORS_FILE,
    PROJECTORS_NAME,
    add_projectors,
    load_projectors,
    save_projectors,
)


def make_student():
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=3,
                                        num_attention_heads=2))  # fmt: skip


def with_projectors(seed=0):
    student = make_student()
    add_projectors(student, teacher_width=24, blocks=(0, 2), seed=seed)
    return student


def test_one_projector_a_block_that_keeps_lengths():
    student = with_projectors()
    projectors = getattr(student, PROJECTORS_NAME)
    assert {name: tuple(tensor.shape) for name, tensor in projectors.state_dict().items()} == {
        "0.weight": (24, 16),
        "2.weight": (24, 16),
    }
    assert {id(parameter) for parameter in projectors.parameters()} <= {id(p) for p in student.parameters()}
    vectors = torch.randn(500, 16)
    ratio = projectors["0"](vectors).norm(dim=-1).mean() / vectors.norm(dim=-1).mean()
    assert 0.8 < ratio / (24 / 16) ** 0.5 < 1.2
    assert getattr(with_projectors(), PROJECTORS_NAME)["0"].weight.equal(projectors["0"].weight)
    assert not getattr(with_projectors(seed=1), PROJECTORS_NAME)["0"].weight.equal(projectors["0"].weight)


@pytest.mark.parametrize("gathered", [False, True])
def test_projectors_are_saved_beside_the_model_only(tmp_path, gathered):
    student, other = with_projectors(), with_projectors(seed=1)
    save_projectors(student, tmp_path / "new", student.state_dict() if gathered else None)
    student.save_pretrained(tmp_path / "new")
    saved = safetensors.torch.load_file(tmp_path / "new" / "model.safetensors")
    assert set(saved) == set(make_student().state_dict())
    load_projectors(other, tmp_path / "new")
    for name, tensor in getattr(student, PROJECTORS_NAME).state_dict().items():
        assert getattr(other, PROJECTORS_NAME).state_dict()[name].equal(tensor)


def test_a_student_without_projectors_needs_none(tmp_path):
    save_projectors(make_student(), tmp_path)
    assert not (tmp_path / PROJECTORS_FILE).exists()
    load_projectors(make_student(), tmp_path)


def test_a_checkpoint_without_projectors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="projectors cannot be resumed"):
        load_projectors(with_projectors(), tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight": torch.zeros(2, 2)}, "does not fit the student: .* size mismatch for 0.weight"),
        ({}, "does not fit the student: .* Missing key"),
        ({"0.weight": None}, "has NaN or infinite values in 1 tensor: 0.weight"),
        (b"{}", "does not fit the student"),
    ],
)
def test_projectors_that_do_not_fit_are_refused(tmp_path, tensors, message):
    student, path = with_projectors(), tmp_path / PROJECTORS_FILE
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        good = getattr(student, PROJECTORS_NAME).state_dict()
        kept = good if None in tensors.values() else {}
        nan = {name: torch.full_like(good[name], torch.nan) for name, value in tensors.items() if value is None}
        safetensors.torch.save_file(kept | {k: v for k, v in tensors.items() if v is not None} | nan, path)
    with pytest.raises(ValueError, match=f"{PROJECTORS_FILE} {message}"):
        load_projectors(student, tmp_path)
