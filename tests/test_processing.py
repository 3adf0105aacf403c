"""Conversations to prompts and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import build_tokenizer, segments_to_ids, train_text_tokenizer

CONFIG = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, max_position_embeddings=128)
LICENCE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
TOKENIZER = build_tokenizer(CONFIG, train_text_tokenizer([LICENCE], CONFIG))
PROCESSOR = TinyWaveProcessor.from_config(CONFIG, TOKENIZER)
FEW_SHOT = [
    ("speech", [3, 3, 9]),
    ("text", "one"),
    ("speech", [4, 8]),
    ("text", "two"),
    ("speech", np.array([5, 7, 7], dtype=np.int16)),
]


def test_few_shot_prompt():
    inputs = PROCESSOR(FEW_SHOT)
    assert inputs["input_ids"].tolist() == [segments_to_ids(FEW_SHOT, CONFIG, TOKENIZER)]
    assert inputs["attention_mask"].tolist() == [[1] * inputs["input_ids"].shape[1]]
    expected = [(modality, content) for modality, content in FEW_SHOT[:-1]] + [("speech", [5, 7])]
    expected[0] = ("speech", [3, 9])
    assert PROCESSOR.ids_to_segments(inputs["input_ids"][0]) == expected


def test_batch_is_padded_left():
    inputs = PROCESSOR([FEW_SHOT, [("speech", torch.tensor([5]))]])
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.int64
    assert inputs["input_ids"][1, -3:].tolist() == [1, 511, 517]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [inputs["input_ids"].shape[1], 3]
    assert (inputs["input_ids"][1, :-3] == CONFIG.pad_token_id).all()
    lists = PROCESSOR([FEW_SHOT, [("speech", [5])]], return_tensors=None)
    assert lists["input_ids"][1] == [1, 511, 517] and lists["attention_mask"][1] == [1, 1, 1]


@pytest.mark.parametrize(
    ("segment", "output_modality", "ends_with"),
    [
        (("speech", [5]), "free", [1, 511, 517]),
        (("speech", [5]), "speech", [1, 511, 517]),
        (("speech", [5]), "text", [1, 511, 517, 510]),
    ],
)
def test_prompt_ends_inside_the_output_modality(segment, output_modality, ends_with):
    assert PROCESSOR([segment], output_modality=output_modality)["input_ids"].tolist() == [ends_with]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 499), min_size=1, max_size=50), min_size=1, max_size=5))
def test_padding_hides_nothing(rows):
    inputs = PROCESSOR([[("speech", row)] for row in rows])
    for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        alone = PROCESSOR([("speech", row)])["input_ids"][0]
        assert torch.equal(ids[mask.bool()], alone)
        assert PROCESSOR.ids_to_segments(ids) == PROCESSOR.ids_to_segments(alone)


@pytest.mark.parametrize("output_modality", ["free", "text", "speech"])
def test_prompt_to_model_to_segments(output_modality):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(CONFIG).eval()
    inputs = PROCESSOR([FEW_SHOT, [("text", "a dog")]], output_modality=output_modality)
    output = model.generate(**inputs, output_modality=output_modality, max_new_tokens=12, do_sample=True)
    for row in output[:, inputs["input_ids"].shape[1] :]:
        for modality, content in PROCESSOR.ids_to_segments(row):
            assert modality == output_modality or output_modality == "free"
            assert isinstance(content, str) if modality == "text" else set(content) <= set(range(500))


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "the prompt is empty"),
        ([[]], "a prompt is empty"),
        ([FEW_SHOT, []], "a prompt is empty"),
        ([("text", "")], "text segment 0 is empty"),
        ([("speech", [500])], "unit 500 at position 0 is out of range"),
        ([("text", "say [Hu3]")], r"contains the token '\[Hu3\]' at character 4; pass speech as a segment"),
        ([("text", "[Speech]")], r"contains the token '\[Speech\]'"),
        ([("song", [3])], "modality 'song'"),
        ([("speech", list(range(126)))], "the prompt has 128 tokens, which fills the context of 128"),
        ("hello", "segment 0 is 'h'"),
        ([("speech", np.zeros((2, 2), dtype=int))], "expected integers in one dimension"),
    ],
)
def test_wrong_conversations_are_refused(conversations, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(conversations)


def test_unknown_output_modality():
    with pytest.raises(ValueError, match="unknown modality 'audio'"):
        PROCESSOR([("speech", [3])], output_modality="audio")


def test_save_and_load(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    code = {"processing_tinywave.py", "tokenization_tinywave.py", "configuration_tinywave.py"}
    assert code | {"tokenizer.json", "processor_config.json"} <= saved
    loaded = TinyWaveProcessor.from_pretrained(tmp_path)
    assert loaded.id_layout == PROCESSOR.id_layout
    expected = PROCESSOR([FEW_SHOT, [("text", "a dog")]])
    found = loaded([FEW_SHOT, [("text", "a dog")]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
