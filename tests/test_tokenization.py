"""Rules about ids: units, segments, and the tokenizer that agrees with them."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.tokenization_tinywave import (
    build_tokenizer,
    deduplicate,
    ids_to_segments,
    ids_to_units,
    meaningful_ids,
    modality_of_ids,
    segments_to_ids,
    train_text_tokenizer,
    units_to_ids,
)

NANO = TinyWaveConfig.from_preset("nano-student")
EXPRESSIVE = TinyWaveConfig.from_preset("speech-expressive-2b")
TEXTS = [(Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")]
TEXT_TOKENIZER = train_text_tokenizer(TEXTS, NANO)
TOKENIZER = build_tokenizer(NANO, TEXT_TOKENIZER)

units = st.lists(st.integers(0, 499), min_size=1, max_size=200)
# A typed unit token is refused, so "[" is left to a test of its own.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1, max_size=60)
segments = st.lists(st.tuples(st.just("text"), texts) | st.tuples(st.just("speech"), units), min_size=1, max_size=6)


def published_text_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A stand-in with the ids of Llama-2's tokenizer: `<unk>`, `<s>`, `</s>`, then words."""
    words = ["<unk>", "<s>", "</s>"] + [f"w{index}" for index in range(3, size)]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@given(units)
def test_deduplicate_is_run_length_encoding(frames):
    found_units, durations = deduplicate(frames)
    runs = [(unit, len(list(run))) for unit, run in groupby(frames)]
    assert list(zip(found_units.tolist(), durations.tolist(), strict=True)) == runs
    assert np.repeat(found_units, durations).tolist() == frames


def test_deduplicate_reads_lists_arrays_and_tensors():
    for frames in ([7, 7, 1], np.array([7, 7, 1], dtype=np.int16), torch.tensor([7, 7, 1])):
        found_units, durations = deduplicate(frames)
        assert (found_units.tolist(), durations.tolist()) == ([7, 1], [2, 1])
    assert [part.tolist() for part in deduplicate([])] == [[], []]


@given(units)
def test_units_survive_ids(values):
    ids = units_to_ids(values, NANO)
    assert ids.min() >= 512 and ids.max() <= 1011
    assert ids_to_units(ids, NANO).tolist() == values


@pytest.mark.parametrize("value", [-1, 500])
def test_units_out_of_range(value):
    with pytest.raises(ValueError, match=f"unit {value} at position 1 is out of range; this model's units are 0..499"):
        units_to_ids([3, value], NANO)


@pytest.mark.parametrize("value", [0, 511, 1012])
def test_ids_that_are_no_units(value):
    with pytest.raises(ValueError, match=f"unit id {value} at position 0 .* 512..1011"):
        ids_to_units([value], NANO)


@pytest.mark.parametrize("wrong", [[0.5, 1.5], [[1, 2]], "12", ["[Hu3]"]])
def test_units_must_be_integers_in_one_dimension(wrong):
    with pytest.raises(ValueError, match="expected integers"):
        units_to_ids(wrong, NANO)


def test_modality_of_ids():
    ids = [0, 1, 2, 3, 4, 509, 510, 511, 512, 1011, 1012, 1023]
    assert modality_of_ids(ids, NANO).tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 2, 2, 0, 0]
    assert modality_of_ids([31999, 32502, 32503, 32566, 32567, 32666, 32667], EXPRESSIVE).tolist() == [
        1, 2, 2, 2, 2, 2, 0,
    ]  # fmt: skip


def test_meaningful_ids_are_all_but_filler():
    assert np.flatnonzero(~meaningful_ids(NANO)).tolist() == list(range(1012, 1024))
    assert np.flatnonzero(~meaningful_ids(EXPRESSIVE)).tolist() == list(range(32667, 32768))


def test_sequence_format():
    text_ids = TEXT_TOKENIZER.encode("The work", add_special_tokens=False)
    ids = segments_to_ids([("speech", [3, 3, 9]), ("text", "The work")], NANO, TOKENIZER, add_eos=True)
    assert ids == [1, 511, 515, 521, 510, *text_ids, 2]
    assert segments_to_ids([("speech", [3])], NANO, TOKENIZER, add_bos=False) == [511, 515]


def test_neighbours_of_one_modality_share_a_marker():
    joined = segments_to_ids([("speech", [3, 5, 7]), ("text", "The work")], NANO, TOKENIZER)
    parts = [("speech", [3, 5]), ("speech", (5, 7)), ("text", "The "), ("text", "work")]
    assert segments_to_ids(parts, NANO, TOKENIZER) == joined


@settings(deadline=None)
@given(segments)
def test_segments_survive_ids(original):
    expected = []
    for modality, run in groupby(original, key=lambda segment: segment[0]):
        contents = [content for _, content in run]
        if modality == "text":
            expected.append(("text", "".join(contents)))
        else:
            expected.append(("speech", [unit for unit, _ in groupby(sum(contents, []))]))
    ids = segments_to_ids(original, NANO, TOKENIZER, add_eos=True)
    assert ids[0] == 1 and ids[-1] == 2
    assert ids_to_segments(ids, NANO, TOKENIZER) == expected
    assert ids_to_segments(ids[2:], NANO, TOKENIZER) == expected, "without BOS and the first marker"


@settings(deadline=None)
@given(st.text(st.sampled_from("[]HuPiStTextSpeech019 <>s/"), max_size=30))
def test_any_text_is_kept_or_refused(text):
    try:
        ids = segments_to_ids([("text", f"a{text}")], NANO, TOKENIZER)
    except ValueError as error:
        assert "contains the token" in str(error)
    else:
        assert set(modality_of_ids(ids[2:], NANO)) == {1}
        assert ids_to_segments(ids, NANO, TOKENIZER) == [("text", f"a{text}")]


@pytest.mark.parametrize("token", ["[Hu3]", "[Hu12345]", "[Speech]", "[Text]", "[Pi0]", "[St99]"])
def test_typed_tokens_are_refused(token):
    message = rf"contains the token '\[{token[1:-1]}\]' at character 4; pass speech as a segment"
    with pytest.raises(ValueError, match=message):
        segments_to_ids([("text", f"say {token}")], NANO, TOKENIZER)
    with pytest.raises(ValueError, match="contains the token"):
        segments_to_ids([("text", f"say {token[:2]}"), ("text", token[2:])], NANO, TOKENIZER)


def test_typed_special_tokens_are_text():
    ids = segments_to_ids([("text", "a</s><s><pad>")], NANO, TOKENIZER)
    assert min(ids[2:]) >= 4
    assert ids_to_segments(ids, NANO, TOKENIZER) == [("text", "a</s><s><pad>")]


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (("text", ""), "text segment 1 is empty"),
        (("speech", []), "speech segment 1 is empty"),
        (("speech", "hello"), "speech segment 1: found a str, expected integers"),
        (("text", [1, 2]), "text segment 1 holds list"),
        (("audio", [1, 2]), "segment 1 has modality 'audio'"),
        ("hello", "segment 1 is 'hello'"),
    ],
)
def test_wrong_segments(segment, message):
    with pytest.raises(ValueError, match=message):
        segments_to_ids([("text", "hi"), segment], NANO, TOKENIZER)


@pytest.mark.parametrize(("index", "message"), [(1015, "id 1015 is filler"), (1024, "id 1024 .* out of range")])
def test_ids_without_meaning(index, message):
    with pytest.raises(ValueError, match=message):
        ids_to_segments([1, 511, index], NANO, TOKENIZER)


def test_no_ids_are_no_segments():
    assert ids_to_segments([], NANO, TOKENIZER) == []
    assert ids_to_segments([1, 511, 2, 0], NANO, TOKENIZER) == []


def test_trained_tokenizer_fills_the_layout():
    vocabulary = TEXT_TOKENIZER.get_vocab()
    assert sorted(vocabulary.values()) == list(range(510))
    assert [vocabulary[token] for token in ("<pad>", "<s>", "</s>", "<unk>")] == [0, 1, 2, 3]
    alphabet = sorted(token for token, index in vocabulary.items() if 4 <= index < 260)
    assert alphabet == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert train_text_tokenizer(TEXTS, NANO).get_vocab() == vocabulary, "training is deterministic"


def test_trained_tokenizer_needs_enough_text_and_room():
    with pytest.raises(ValueError, match="the texts gave .* tokens, the configuration expects 510"):
        train_text_tokenizer(["a b"], NANO)
    with pytest.raises(ValueError, match="needs at least 260 ids"):
        train_text_tokenizer(TEXTS, TinyWaveConfig.from_preset("nano-student", text_vocab_size=100))
    with pytest.raises(ValueError, match=r"at \(0, 1, 2, 3\)"):
        train_text_tokenizer(TEXTS, EXPRESSIVE)


def test_added_tokens_have_the_ids_of_the_layout(tmp_path):
    assert TOKENIZER.convert_tokens_to_ids(["[Text]", "[Speech]", "[Hu0]", "[Hu499]"]) == [510, 511, 512, 1011]
    assert len(TOKENIZER) == 1012, "filler ids stay unassigned"
    assert len(TEXT_TOKENIZER) == 510, "the text tokenizer is left as it was"
    assert not set(TOKENIZER.all_special_tokens) & {"[Text]", "[Speech]", "[Hu0]"}
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.padding_side, loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == ("left", 0, 1, 2)


def test_stock_tokenizer_agrees_with_segments():
    ids = segments_to_ids([("text", "The work."), ("speech", [3, 7]), ("text", " End")], NANO, TOKENIZER)
    written = "[Text]The work.[Speech][Hu3][Hu7][Text] End"
    assert TOKENIZER(written).input_ids == ids
    assert TOKENIZER.decode(ids[1:]) == written


def test_published_layout_takes_a_given_tokenizer():
    tokenizer = build_tokenizer(EXPRESSIVE, published_text_tokenizer(32000))
    names = ["[Text]", "[Speech]", "[Hu0]", "[Hu500]", "[Pi0]", "[Pi63]", "[St0]", "[St99]"]
    expected = [32000, 32001, 32002, 32502, 32503, 32566, 32567, 32666]
    assert tokenizer.convert_tokens_to_ids(names) == expected
    assert tokenizer.pad_token_id == 0
    segments = [("text", "w5 w7"), ("speech", [500, 0])]
    assert segments_to_ids(segments, EXPRESSIVE, tokenizer) == [1, 32000, 5, 7, 32001, 32502, 32002]


def test_pitch_ids_are_not_units():
    tokenizer = build_tokenizer(EXPRESSIVE, published_text_tokenizer(32000))
    with pytest.raises(ValueError, match="unit id 32503"):
        ids_to_segments([1, 32001, 32002, 32503], EXPRESSIVE, tokenizer)


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match="has 510 ids, the configuration expects 32000"):
        build_tokenizer(EXPRESSIVE, TEXT_TOKENIZER)
    with pytest.raises(ValueError, match="has 31999 ids, the configuration expects 32000"):
        build_tokenizer(EXPRESSIVE, published_text_tokenizer(31999))
    swapped = TinyWaveConfig.from_preset("nano-student", bos_token_id=2, eos_token_id=1)
    with pytest.raises(ValueError, match="bos_token_id is 1, the configuration expects 2"):
        build_tokenizer(swapped, TEXT_TOKENIZER)


def test_layouts_with_a_gap_are_refused():
    config = TinyWaveConfig.from_preset("nano-student", unit_offset=515)
    with pytest.raises(ValueError, match=r"\[Hu0\] has id 512 in the tokenizer, the configuration expects 515"):
        build_tokenizer(config, TEXT_TOKENIZER)


def test_long_speech():
    frames = np.random.default_rng(0).integers(0, 500, 200_000)
    ids = segments_to_ids([("speech", frames)], NANO, TOKENIZER)
    kept = frames[np.append(True, frames[1:] != frames[:-1])]
    assert ids[2:] == (kept + 512).tolist()
