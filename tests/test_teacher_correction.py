import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.arguments import CorrectionArguments
from tinywave.training.teacher_correction import correct_teacher

TOKENS = [1, 5, 6, 7, 8, 9, 10, 11]


def make_teacher():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)  # a frozen head of small weights could not be made confident from below
    return model


def collate(items):
    ids = torch.tensor([item["input_ids"] for item in items])
    return {"input_ids": ids, "labels": ids}


def settings(folder, **changes):
    defaults = dict(output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=20,
                    learning_rate=3e-2, save_strategy="no", lora_rank=4, lora_alpha=8)  # fmt: skip
    return CorrectionArguments(**(defaults | changes))


def test_the_corrected_teacher_fits_the_domain_and_is_a_plain_model(tmp_path):
    teacher, original = make_teacher(), make_teacher()
    batch = collate([{"input_ids": TOKENS}])
    corrected = correct_teacher(teacher, [{"input_ids": TOKENS}] * 8, collate, settings(tmp_path))
    assert type(corrected) is LlamaForCausalLM
    assert set(corrected.state_dict()) == set(original.state_dict())
    assert all(parameter.requires_grad for parameter in corrected.parameters())
    assert corrected(**batch).loss < 0.7 * original(**batch).loss
    before = original.state_dict()
    for name, tensor in corrected.state_dict().items():
        assert tensor.equal(before[name]) == (".layers." not in name or "norm" in name), name

    reloaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(reloaded(**batch).logits, corrected.eval()(**batch).logits)


def test_an_interrupted_correction_resumes(tmp_path):
    whole = correct_teacher(
        make_teacher(), [{"input_ids": TOKENS}] * 8, collate,
        settings(tmp_path, max_steps=4, save_strategy="steps", save_steps=2),
    )  # fmt: skip
    resumed = correct_teacher(
        make_teacher(), [{"input_ids": TOKENS}] * 8, collate,
        settings(tmp_path / "resumed", max_steps=4, resume_from_checkpoint=str(tmp_path / "checkpoint-2")),
    )  # fmt: skip
    expected = whole.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lora_rank=0), "`lora_rank` must be at least 1; found 0"),
        (dict(lora_dropout=1.0), r"`lora_dropout` must be in \[0, 1\); found 1.0"),
        (dict(lora_target_modules=[]), "`lora_target_modules` is empty"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_unknown_target_modules_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no_such_layer"):
        correct_teacher(make_teacher(), [], collate, settings(tmp_path, lora_target_modules=["no_such_layer"]))
