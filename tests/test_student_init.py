import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher

TINY = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2, pad_token_id=0
)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY))


def test_mapped_blocks_and_shared_tensors_are_copied(teacher):
    student = student_from_teacher(teacher, LayerMap.from_pairs([(1, 0), (4, 1)]))
    weights = student.state_dict()
    assert student.config.num_hidden_layers == 2
    assert len(student.model.layers) == 2
    for name, tensor in teacher.state_dict().items():
        if ".layers." not in name:
            assert tensor.equal(weights.pop(name)), name
        elif name.split(".")[2] in ("1", "4"):
            student_name = name.replace("layers.1.", "layers.0.").replace("layers.4.", "layers.1.")
            assert tensor.equal(weights.pop(student_name)), name
    assert not weights


def test_the_student_has_storage_of_its_own(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = student_from_teacher(teacher, LayerMap.last(5, 2))
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.add_(1.0)
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == 5


def test_all_blocks_make_the_same_function(teacher):
    student = student_from_teacher(teacher, LayerMap.last(5, 5)).eval()
    ids = torch.randint(64, (2, 7))
    assert student(ids).logits.equal(teacher.eval()(ids).logits)


def test_a_frozen_teacher_gives_a_trainable_student(teacher):
    student = student_from_teacher(teacher.eval().requires_grad_(False), LayerMap.last(5, 2))
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    student(torch.randint(64, (1, 5)), labels=torch.randint(64, (1, 5))).loss.backward()
    assert student.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_tied_embeddings_stay_tied_and_dtype_is_kept():
    teacher = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)).to(torch.bfloat16)
    student = student_from_teacher(teacher, LayerMap.last(5, 2))
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.dtype == torch.bfloat16


def test_the_class_and_id_layout_are_kept(tmp_path):
    config = TinyWaveConfig.from_preset("nano-teacher", hidden_size=48, intermediate_size=64)
    student = student_from_teacher(TinyWaveForCausalLM(config), LayerMap.every_third_ending_last(11, 3))
    assert type(student) is TinyWaveForCausalLM
    assert student.config.unit_offset == config.unit_offset
    student.save_pretrained(tmp_path)
    reloaded = TinyWaveForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(1024, (1, 6))
    assert reloaded(ids).logits.equal(student.eval()(ids).logits)


def test_a_map_with_gaps_is_refused(teacher):
    with pytest.raises(ValueError, match=r"found student blocks \[0, 2\] in the layer map; .* without a gap"):
        student_from_teacher(teacher, LayerMap.from_pairs([(1, 0), (4, 2)]))


def test_blocks_the_teacher_lacks_are_refused(teacher):
    with pytest.raises(ValueError, match="teacher block 7, but the teacher has 5 blocks"):
        student_from_teacher(teacher, LayerMap.from_pairs([(7, 0)]))
