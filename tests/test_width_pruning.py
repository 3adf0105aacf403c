"""Width pruning against what it must not change, what it must choose, and what it must be better than."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.cli.shipped import TEACHER
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.training.activation_importance import measure_importance
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher
from tinywave.training.width_pruning import choose_heads

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, pad_token_id=0, attention_bias=True, mlp_bias=True)  # fmt: skip
ALL_BLOCKS = LayerMap.last(3, 3)
IDS = torch.randint(1, 64, (4, 12), generator=torch.Generator().manual_seed(5))
CALIBRATION = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]


def make_teacher(**changes):
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(LlamaConfig(**(SIZES | changes)))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(std=0.3)
    return teacher.eval()


def smaller(teacher, **changes):
    config = copy.deepcopy(teacher.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def prune(teacher, layer_map=ALL_BLOCKS, calibration=CALIBRATION, **changes):
    return student_from_teacher(teacher, layer_map, smaller(teacher, **changes), calibration).eval()


def assert_same_function(student, teacher, rtol=2e-5):
    expected = teacher(IDS).logits
    torch.testing.assert_close(student(IDS).logits, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@torch.no_grad()
def silence(teacher, channels=(), units=(), rotary_pairs=()):
    """Make some parts of a teacher compute nothing."""
    size = teacher.config.head_dim
    for tensor in (teacher.model.embed_tokens.weight, teacher.lm_head.weight):
        tensor[:, list(channels)] = 0
    for block in teacher.model.layers:
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            layer.weight[list(channels)] = 0
            layer.bias[list(channels)] = 0
        block.mlp.up_proj.weight[list(units)] = 0
        block.mlp.up_proj.bias[list(units)] = 0
        for pair in rotary_pairs:
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj):
                for channel in (pair, pair + size // 2):
                    layer.weight[channel::size] = 0
                    layer.bias[channel::size] = 0


def test_the_same_shape_gives_identical_logits():
    teacher = make_teacher()
    assert prune(teacher)(IDS).logits.equal(teacher(IDS).logits)


def test_channels_that_are_zero_may_go_although_rmsnorm_averages_over_all_of_them():
    teacher = make_teacher()
    silence(teacher, channels=range(1, 32, 2))
    student = prune(teacher, hidden_size=16)
    assert student.model.embed_tokens.weight.shape == (64, 16)
    assert_same_function(student, teacher)


def test_tied_embeddings_are_cut_together():
    teacher = make_teacher(tie_word_embeddings=True)
    silence(teacher, channels=range(8))
    student = prune(teacher, hidden_size=24)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert_same_function(student, teacher)


def test_units_that_are_zero_may_go():
    teacher = make_teacher()
    silence(teacher, units=range(0, 40, 4))
    assert_same_function(prune(teacher, intermediate_size=30), teacher)


def test_a_group_of_heads_whose_values_are_zero_may_go():
    teacher = make_teacher()
    with torch.no_grad():
        for block in teacher.model.layers:
            block.self_attn.v_proj.weight[:8] = 0
            block.self_attn.v_proj.bias[:8] = 0
    assert_same_function(prune(teacher, num_attention_heads=2, num_key_value_heads=1), teacher)


def test_equal_key_value_heads_may_be_joined():
    teacher = make_teacher(num_key_value_heads=4)
    with torch.no_grad():
        for block in teacher.model.layers:
            for layer in (block.self_attn.k_proj, block.self_attn.v_proj):
                for tensor in (layer.weight, layer.bias):
                    heads = tensor.unflatten(0, (4, 8))
                    heads[1], heads[3] = heads[0], heads[2]
    student = prune(teacher, num_key_value_heads=2)
    assert student.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert_same_function(student, teacher)


def test_unequal_key_value_heads_become_their_mean():
    teacher = make_teacher(num_key_value_heads=4)
    student = prune(teacher, num_key_value_heads=1)
    mean = teacher.model.layers[1].self_attn.k_proj.weight.unflatten(0, (4, 8)).mean(0)
    torch.testing.assert_close(student.model.layers[1].self_attn.k_proj.weight, mean)


def test_half_the_head_size_keeps_every_second_rotary_pair_and_the_scale_of_the_scores():
    teacher = make_teacher()
    silence(teacher, rotary_pairs=(1, 3))
    with torch.no_grad():
        for block in teacher.model.layers:
            for channel in (0, 1, 2, 7):
                block.self_attn.v_proj.weight[channel::8] = 0
                block.self_attn.v_proj.bias[channel::8] = 0
    student = prune(teacher, head_dim=4)
    assert student.model.rotary_emb.inv_freq.shape == (2,)
    assert_same_function(student, teacher)


def test_everything_at_once_and_depth_too():
    teacher = make_teacher()
    shallow = student_from_teacher(teacher, LayerMap.from_pairs([(0, 0), (2, 1)])).eval()
    for model in (teacher, shallow):
        silence(model, channels=range(8), units=range(10))
    student = prune(teacher, LayerMap.from_pairs([(0, 0), (2, 1)]), num_hidden_layers=2, hidden_size=24,
                    intermediate_size=30)  # fmt: skip
    assert_same_function(student, shallow)


def test_a_narrow_student_trains_saves_and_keeps_the_teacher(tmp_path):
    teacher = make_teacher(attention_bias=False, mlp_bias=False)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = student_from_teacher(
        teacher, LayerMap.last(3, 1),
        smaller(teacher, num_hidden_layers=1, hidden_size=20, intermediate_size=7, num_attention_heads=1,
                num_key_value_heads=1), CALIBRATION,
    )  # fmt: skip
    assert student.training and not teacher.training
    student(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    student.save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits.equal(student.eval()(IDS).logits)


def test_padding_does_not_count():
    teacher = make_teacher()
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    padded = measure_importance(teacher, [{"input_ids": IDS[:2], "attention_mask": mask[:2]}], [1])
    rows = [{"input_ids": IDS[:1]}, {"input_ids": IDS[1:2, :7]}]
    apart = measure_importance(teacher, rows, [1])
    torch.testing.assert_close(padded.hidden_channels, apart.hidden_channels, rtol=1e-5, atol=0)
    torch.testing.assert_close(padded.norm_energy["norm"], apart.norm_energy["norm"], rtol=1e-5, atol=0)
    torch.testing.assert_close(padded.blocks[1].ffn_units, apart.blocks[1].ffn_units, rtol=1e-5, atol=0)
    torch.testing.assert_close(padded.blocks[1].heads, apart.blocks[1].heads, rtol=1e-5, atol=0)


def test_scores_are_those_of_the_paper():
    teacher = make_teacher()
    seen = []
    handle = teacher.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher(IDS)
    handle.remove()
    expected = seen[0].double().abs().mean(1).square().sum(0).sqrt()
    torch.testing.assert_close(measure_importance(teacher, CALIBRATION, [1]).blocks[1].ffn_units, expected)


def test_whole_groups_go_before_heads_inside_a_group():
    scores = torch.tensor([5.0, 0.0, 0.0, 3.0, 3.0, 3.0])
    query_heads, key_value_heads = choose_heads(scores, 2, 2, 1)
    assert (query_heads.tolist(), key_value_heads.tolist()) == ([3, 4], [[1]])
    query_heads, key_value_heads = choose_heads(scores, 2, 2, 2)
    assert (query_heads.tolist(), key_value_heads.tolist()) == ([0, 3], [[0], [1]])


def test_half_of_the_shipped_teacher_predicts_better_by_importance_than_by_position():
    """Perplexity of real structure: text of the shipped teacher's own sampling."""
    teacher = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()
    torch.manual_seed(0)
    prompt = torch.full((8, 1), teacher.config.bos_token_id)
    ids = teacher.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=64,
                           min_new_tokens=64)  # fmt: skip
    layer_map = LayerMap.last(11, 11)
    config = smaller(teacher, intermediate_size=256, num_attention_heads=3, num_key_value_heads=3)
    chosen = student_from_teacher(teacher, layer_map, config, [{"input_ids": ids[:4]}]).eval()
    by_position = student_from_teacher(teacher, layer_map).eval()
    for block in by_position.model.layers:
        block.mlp.down_proj.weight.data[:, 256:] = 0
        block.self_attn.o_proj.weight.data[:, 96:] = 0
    loss = {name: model(ids[4:], labels=ids[4:]).loss.item()
            for name, model in (("chosen", chosen), ("by position", by_position))}  # fmt: skip
    assert loss["chosen"] < loss["by position"] - 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_size=48), "`hidden_size` is 48, more than the teacher's 32"),
        (dict(head_dim=16), "`head_dim` is 16, more than the teacher's 8"),
        (dict(vocab_size=65), "shares its `vocab_size`; found 65 in the student's config and 64 in the teacher's"),
        (dict(hidden_act="gelu"), "shares its `hidden_act`; found gelu"),
        (dict(tie_word_embeddings=True), "shares its `tie_word_embeddings`"),
        (dict(num_attention_heads=3), "has 3 attention heads and 2 key-value heads, which cannot share them evenly"),
        (dict(num_hidden_layers=2), "makes a student of 3 blocks; its config has 2"),
    ],
)
def test_a_config_that_cannot_be_cut_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        prune(make_teacher(), **changes)


def test_a_narrower_student_needs_calibration():
    teacher = make_teacher()
    with pytest.raises(ValueError, match="but no `calibration`; pass batches"):
        student_from_teacher(teacher, ALL_BLOCKS, smaller(teacher, hidden_size=16))
    with pytest.raises(ValueError, match="found no token in it"):
        prune(teacher, calibration=[], hidden_size=16)


def test_a_broken_teacher_is_refused():
    teacher = make_teacher()
    teacher.model.layers[1].mlp.up_proj.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite on the calibration set"):
        prune(teacher, hidden_size=16)


def test_the_tinywave_layout_is_kept():
    teacher = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-teacher"))
    config = TinyWaveConfig.from_preset("nano-student", hidden_size=96, intermediate_size=256)
    ids = torch.randint(1024, (2, 9))
    student = student_from_teacher(teacher, LayerMap.every_third_ending_last(11, 3), config, [{"input_ids": ids}])
    assert type(student) is TinyWaveForCausalLM
    assert student.config.head_dim == 16 and student.config.unit_offset == 512
    assert student(ids).logits.shape == (2, 9, 1024)
