import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer
from tinywave.training.arguments import CorrectionArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.model_checks import check_id_layouts
from tinywave.training.student_init import student_from_teacher
from tinywave.training.teacher_correction import correct_teacher

TEXTS = ["the old farmer walked to the market with his goat and sold some bread to a friend who talked"] * 9
TOKENS = [1, 5, 6, 7, 8, 9, 10, 11]


def make_teacher(**changes):
    torch.manual_seed(0)
    sizes = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
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


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_some_ids_are_trained_and_merged(tmp_path, tied):
    """With blocks that are hardly adapted, the new ids are learnt by their own rows, and no other row moves."""
    original = make_teacher(tie_word_embeddings=tied)
    chosen, others = [6, 9], [index for index in range(20) if index not in (6, 9)]
    corrected = correct_teacher(
        make_teacher(tie_word_embeddings=tied), [{"input_ids": TOKENS}] * 8, collate,
        settings(tmp_path, trainable_token_indices=[9, 6, 6], lora_rank=1),
    )  # fmt: skip
    assert type(corrected) is LlamaForCausalLM
    assert set(corrected.state_dict()) == set(original.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = original.state_dict()[name], corrected.state_dict()[name]
        assert after[others].equal(before[others]), name
        assert (after[chosen] - before[chosen]).abs().amax(-1).min() > 1e-3, name
    assert (corrected.lm_head.weight is corrected.model.embed_tokens.weight) == tied
    assert all(parameter.requires_grad for parameter in corrected.parameters())

    reloaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    batch = collate([{"input_ids": TOKENS}])
    torch.testing.assert_close(reloaded(**batch).logits, corrected.eval()(**batch).logits)


def test_ids_the_teacher_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has \[20\], and the teacher's ids are 0 to 19"):
        correct_teacher(make_teacher(), [], collate, settings(tmp_path, trainable_token_indices=[3, 20]))


def test_the_corrected_teacher_is_a_complete_repository(tmp_path):
    """Weights, code, tokenizer and processor: a model that anybody can load, and that may teach a student."""
    config = TinyWaveConfig(
        text_vocab_size=300, text_offset=4, text_marker_id=300, speech_marker_id=301, unit_offset=302, num_units=20,
        vocab_size=322, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    tokenizer = build_tokenizer(config, train_text_tokenizer(TEXTS, config))
    teacher = TinyWaveForCausalLM(config)
    corrected = correct_teacher(
        teacher, [{"input_ids": TOKENS}] * 4, collate,
        settings(tmp_path, max_steps=1, trainable_token_indices=list(range(302, 305))),
        TinyWaveProcessor.from_config(config, tokenizer),
    )  # fmt: skip
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_tinywave.py"} <= files
    assert not [name for name in files if name.startswith("adapter")]
    reloaded = TinyWaveForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([TOKENS])
    torch.testing.assert_close(reloaded(ids).logits, corrected.eval()(ids).logits)
    assert TinyWaveProcessor.from_pretrained(tmp_path).tokenizer.vocab_size == tokenizer.vocab_size
    check_id_layouts(student_from_teacher(reloaded, LayerMap.last(2, 1)).config, reloaded.config)


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
        (dict(trainable_token_indices=[]), "`trainable_token_indices` is empty"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_unknown_target_modules_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no_such_layer"):
        correct_teacher(make_teacher(), [], collate, settings(tmp_path, lora_target_modules=["no_such_layer"]))
