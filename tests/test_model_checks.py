"""What may be compared: ids, heads, relation heads and data sets, refused with both values."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.arguments import DistillationArguments
from tinywave.training.model_checks import (
    check_head,
    check_id_layouts,
    check_not_empty,
    resolve_relation_heads,
)


def shape(heads, key_heads, head_dim=8):
    return LlamaConfig(hidden_size=heads * head_dim, num_attention_heads=heads, num_key_value_heads=key_heads,
                       head_dim=head_dim)  # fmt: skip


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "expected"),
    [
        ((4, 4), (4, 4), {}, None),
        ((4, 1), (4, 4), {}, None),
        ((6, 3), (8, 8), {}, (2, 1)),
        ((8, 2), (32, 8), {}, (8, 2)),
        ((4, 4), (4, 4), dict(attention_loss="relations"), (4, 4)),
        ((4, 4), (8, 8), dict(num_relation_heads=16), (16, 16)),
        ((4, 2), (4, 4), dict(attention_loss="rows"), None),
    ],
)
def test_relation_heads_are_used_where_rows_cannot_be(tmp_path, student, teacher, settings, expected):
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert resolve_relation_heads(shape(*student), shape(*teacher), arguments) == expected


def test_relation_heads_that_divide_one_side_only_are_refused(tmp_path):
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, num_relation_heads=32)
    with pytest.raises(ValueError, match="`num_relation_heads` is 32, .* the 16 numbers of the keys of the teacher"):
        resolve_relation_heads(shape(4, 4), shape(8, 2), arguments)


@pytest.mark.parametrize("name", ["vocab_size", "eos_token_id", "bos_token_id"])
def test_ids_that_mean_other_things_are_refused(name):
    check_id_layouts(LlamaConfig(), LlamaConfig())
    with pytest.raises(ValueError, match=f"`{name}` is .* in the student and 31 in the teacher"):
        check_id_layouts(LlamaConfig(), LlamaConfig(**{name: 31}))


def test_heads_that_do_more_than_one_product_are_refused():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1))  # fmt: skip
    check_head(model)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="found Linear and final_logit_softcapping"):
        check_head(model)
    del model.config.final_logit_softcapping
    model.lm_head = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match="plain linear layer without bias"):
        check_head(model)


def test_only_data_sets_known_to_be_empty_are_refused():
    check_not_empty(train_dataset=[1], eval_dataset=None, other=iter([]))
    with pytest.raises(ValueError, match="`eval_dataset` is empty"):
        check_not_empty(train_dataset=[1], eval_dataset=[])
