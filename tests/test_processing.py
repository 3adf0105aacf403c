"""Conversations to prompts and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import (
    SpeechStreams,
    build_tokenizer,
    ids_to_streams,
    segments_to_ids,
    streams_to_ids,
    train_text_tokenizer,
)

CONFIG = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, max_position_embeddings=128)
LICENCE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
TEXT_TOKENIZER = train_text_tokenizer([LICENCE], CONFIG)
TOKENIZER = build_tokenizer(CONFIG, TEXT_TOKENIZER)
PROCESSOR = TinyWaveProcessor.from_config(CONFIG, TOKENIZER)
EXPRESSIVE = TinyWaveConfig.from_preset(
    "nano-expressive-student", num_hidden_layers=1, max_position_embeddings=256, unit_clock_rate=24.5
)
EXPRESSIVE_PROCESSOR = TinyWaveProcessor.from_config(EXPRESSIVE, build_tokenizer(EXPRESSIVE, TEXT_TOKENIZER))
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


@settings(max_examples=30)
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


def random_streams(num_units: int, seed: int) -> SpeechStreams:
    generator = np.random.default_rng(seed)
    lengths = {3: num_units, 2: -(-num_units // 2), 1: -(-num_units // 25)}
    return SpeechStreams(*(generator.integers(0, high, length) for high, length in lengths.items()))


def test_expressive_prompt():
    streams = SpeechStreams(torch.tensor([3, 3, 9]), [7, 7], np.array([4]))
    inputs = EXPRESSIVE_PROCESSOR([("text", "one"), ("speech", streams)], output_modality="speech")
    text_ids = TEXT_TOKENIZER.encode("one", add_special_tokens=False)
    assert inputs["input_ids"].tolist() == [[1, 510, *text_ids, 511, 1080, 1019, 515, 521]]
    (_, text), (modality, speech) = EXPRESSIVE_PROCESSOR.ids_to_segments(inputs["input_ids"][0])
    assert (text, modality) == ("one", "speech")
    assert [part.tolist() for part in (speech.units, speech.pitch, speech.style)] == [[3, 9], [7, 7], [4, 4]]
    again = EXPRESSIVE_PROCESSOR([("text", text), ("speech", speech)])
    assert torch.equal(again["input_ids"], inputs["input_ids"]), "what was read can be said again"


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_expressive_batch_equals_single_prompts(lengths):
    rows = [random_streams(length, seed) for seed, length in enumerate(lengths)]
    inputs = EXPRESSIVE_PROCESSOR([[("speech", row)] for row in rows])
    for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        assert torch.equal(ids[mask.bool()], EXPRESSIVE_PROCESSOR([("speech", row)])["input_ids"][0])
        assert ids[mask.bool()][2:].tolist() == streams_to_ids(row, EXPRESSIVE).tolist()
        assert EXPRESSIVE_PROCESSOR.ids_to_segments(ids) == [
            ("speech", ids_to_streams(streams_to_ids(row, EXPRESSIVE), EXPRESSIVE))
        ]


@pytest.mark.parametrize("output_modality", ["free", "text", "speech"])
def test_expressive_prompt_to_model_to_segments(output_modality):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(EXPRESSIVE).eval()
    prompts = [[("speech", random_streams(30, 0))], [("text", "a dog")]]
    inputs = EXPRESSIVE_PROCESSOR(prompts, output_modality=output_modality)
    output = model.generate(
        **inputs, output_modality=output_modality, max_new_tokens=40, min_new_tokens=40, do_sample=True
    )
    for row in output[:, inputs["input_ids"].shape[1] :]:
        segments = EXPRESSIVE_PROCESSOR.ids_to_segments(row)
        assert segments
        for modality, content in segments:
            assert modality == output_modality or output_modality == "free"
            if modality == "speech":
                assert isinstance(content, SpeechStreams)
                for stream in (content.pitch, content.style):
                    assert stream is None or len(stream) == len(content.units)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (("speech", [3]), "speech segment 0: the speech has no style, but this model has 5 style tokens"),
        (("speech", SpeechStreams([3], [64], [0])), "pitch 64 at position 0 is out of range"),
        (("speech", random_streams(500, 0)), r"which fills the context of 256"),
    ],
)
def test_wrong_expressive_conversations_are_refused(segment, message):
    with pytest.raises(ValueError, match=message):
        EXPRESSIVE_PROCESSOR([segment])


def test_remote_code_keeps_the_clocks_and_takes_streams_of_the_package(tmp_path):
    """The classes of a folder's code are not those of the package; streams go from one to the other."""
    EXPRESSIVE_PROCESSOR.save_pretrained(tmp_path)
    remote = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote) is not TinyWaveProcessor and remote.config.unit_clock_rate == 24.5
    streams = random_streams(60, 3)
    expected = EXPRESSIVE_PROCESSOR([("speech", streams)])["input_ids"]
    assert torch.equal(remote([("speech", streams)])["input_ids"], expected)
    ((_, speech),) = remote.ids_to_segments(expected[0])
    assert not isinstance(speech, SpeechStreams)
    assert torch.equal(EXPRESSIVE_PROCESSOR([("speech", speech)])["input_ids"], expected)


def test_a_folder_from_before_the_clocks_still_loads():
    clocks = ("unit_clock_rate", "pitch_rate", "style_rate")
    older = {name: value for name, value in PROCESSOR.id_layout.items() if name not in clocks}
    assert TinyWaveProcessor(TOKENIZER, older)([("speech", [5])])["input_ids"].tolist() == [[1, 511, 517]]


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
