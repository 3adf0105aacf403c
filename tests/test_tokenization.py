"""Rules about ids: units, segments, and the tokenizer that agrees with them."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.tokenization_tinywave import (
    SpeechStreams,
    build_tokenizer,
    deduplicate,
    ids_to_segments,
    ids_to_streams,
    ids_to_tokens,
    ids_to_units,
    meaningful_ids,
    modality_of_ids,
    segments_to_ids,
    streams_to_ids,
    tokens_to_ids,
    train_text_tokenizer,
    units_to_ids,
)

NANO = TinyWaveConfig.from_preset("nano-student")
EXPRESSIVE = TinyWaveConfig.from_preset("speech-expressive-2b")
NANO_EXPRESSIVE = TinyWaveConfig.from_preset("nano-expressive-student")
PITCH_ONLY = TinyWaveConfig.from_preset("nano-expressive-student", style_offset=-1, num_style_tokens=0)
TEXTS = [(Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")]
TEXT_TOKENIZER = train_text_tokenizer(TEXTS, NANO)
TOKENIZER = build_tokenizer(NANO, TEXT_TOKENIZER)
EXPRESSIVE_TOKENIZER = build_tokenizer(NANO_EXPRESSIVE, TEXT_TOKENIZER)

units = st.lists(st.integers(0, 499), min_size=1, max_size=200)
# A typed unit token is refused, so "[" is left to a test of its own.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1, max_size=60)
segments = st.lists(st.tuples(st.just("text"), texts) | st.tuples(st.just("speech"), units), min_size=1, max_size=6)
# A generated piece of speech may hold units, pitch and style in any order and number.
speech_ids = st.lists(st.sampled_from([512, 513, 1011, 1012, 1013, 1075, 1076, 1080]), min_size=1, max_size=60)


@st.composite
def timed_streams(draw, config=NANO_EXPRESSIVE, max_frames=130):
    """Streams as encoders make them: the last frame of pitch and of style may be missing."""
    num_units = draw(st.integers(1, max_frames))
    lengths = {
        "units": num_units,
        "pitch": (num_units + draw(st.integers(0, 1))) // 2,
        "style": (num_units + draw(st.integers(0, 24))) // 25,
    }
    highest = {"units": 499, "pitch": 63, "style": 4}
    # Few different values make runs; the highest shows that nothing overflows into the next stream.
    streams = {
        name: draw(st.lists(st.sampled_from([0, 1, highest[name]]), min_size=length, max_size=length))
        for name, length in lengths.items()
    }
    return SpeechStreams(streams["units"], streams["pitch"], streams["style"] if config.num_style_tokens else None)


def merged_frame_by_frame(streams: SpeechStreams, config: TinyWaveConfig) -> list[int]:
    """The rule of the merged stream, read off one frame at a time."""
    timeline = []
    for index, value in enumerate([] if streams.style is None else streams.style.tolist()):
        timeline.append((index / 1, "1 style", config.style_offset + value))
    for index, value in enumerate(streams.pitch.tolist()):
        if index == 0 or streams.pitch[index - 1] != value:
            timeline.append((index / 12.5, "2 pitch", config.pitch_offset + value))
    for index, value in enumerate(streams.units.tolist()):
        if index == 0 or streams.units[index - 1] != value:
            timeline.append((index / 24.99, "3 unit", config.unit_offset + value))
    return [token for _, _, token in sorted(timeline)]


def parsed_token_by_token(ids: list[int]) -> tuple[list, list | None, list | None]:
    """Units, and the pitch and style at each of them, of ids of the nano expressive layout."""
    pitch, style, rows = None, None, []
    for token in ids:
        if token >= 1076:
            style = token - 1076
        elif token >= 1012:
            pitch = token - 1012
        else:
            rows.append([token - 512, pitch, style])
    for column, first in ((1, 1012), (2, 1076)):
        values = [token - first for token in ids if first <= token < (1076 if column == 1 else 1081)]
        for row in rows:
            if row[column] is None and values:
                row[column] = values[0]
    has_pitch = any(1012 <= token < 1076 for token in ids)
    has_style = any(token >= 1076 for token in ids)
    found_units, at_pitch, at_style = ([row[column] for row in rows] for column in range(3))
    return found_units, at_pitch if has_pitch else None, at_style if has_style else None


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
    with pytest.raises(ValueError, match=f"unit {value} at position 1 is out of range; this model has 0..499"):
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


@given(st.lists(st.integers(510, 1080), max_size=60))
def test_names_of_speech_tokens_survive_ids(ids):
    """Markers, units, pitch and style, as the tokenizer of the layout names them."""
    tokens = ids_to_tokens(ids, NANO_EXPRESSIVE)
    assert tokens == EXPRESSIVE_TOKENIZER.convert_ids_to_tokens(ids)
    found = tokens_to_ids(tokens, NANO_EXPRESSIVE)
    assert found.tolist() == ids and found.dtype == np.int64


def test_names_follow_the_layout():
    streams = SpeechStreams([78, 78, 42], [13, 14], [81])
    tokens = ids_to_tokens(streams_to_ids(streams, EXPRESSIVE), EXPRESSIVE)
    assert tokens == ["[St81]", "[Pi13]", "[Hu78]", "[Pi14]", "[Hu42]"]
    assert tokens_to_ids(tokens, EXPRESSIVE).tolist() == [32567 + 81, 32503 + 13, 32002 + 78, 32503 + 14, 32002 + 42]


@pytest.mark.parametrize("index", [-1, 0, 1, 509, 1081, 5000])
def test_ids_without_a_name_of_speech(index):
    with pytest.raises(ValueError, match=f"id {index} is not speech; expected a unit, pitch or style token, or a mar"):
        ids_to_tokens([512, index], NANO_EXPRESSIVE)


@pytest.mark.parametrize("token", ["[Hu500]", "[Pi0]", "Hu1", "[hu1]", "", "<s>", "[Hu01]"])
def test_names_that_a_layout_does_not_have(token):
    with pytest.raises(ValueError, match=r"at position 1 is unknown; this layout has 506 text, 500 unit tokens"):
        tokens_to_ids(["[Hu1]", token], NANO)


def test_published_layout_takes_a_given_tokenizer():
    tokenizer = build_tokenizer(EXPRESSIVE, published_text_tokenizer(32000))
    names = ["[Text]", "[Speech]", "[Hu0]", "[Hu500]", "[Pi0]", "[Pi63]", "[St0]", "[St99]"]
    expected = [32000, 32001, 32002, 32502, 32503, 32566, 32567, 32666]
    assert tokenizer.convert_tokens_to_ids(names) == expected
    assert tokenizer.pad_token_id == 0
    segments = [("text", "w5 w7"), ("speech", SpeechStreams([500, 0], [63], [99]))]
    expected = [1, 32000, 5, 7, 32001, 32666, 32566, 32502, 32002]
    assert segments_to_ids(segments, EXPRESSIVE, tokenizer) == expected


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


def test_second_one_reads_style_unit_pitch_unit():
    """Style 81 stands at 1 s, unit 78 at 25 / 24.99 s, pitch 13 at 13 / 12.5 s, unit 42 at 26 / 24.99 s."""
    streams = SpeechStreams([5] * 25 + [78, 42, 42], [9] * 13 + [13], [7, 81])
    tokenizer = build_tokenizer(EXPRESSIVE, published_text_tokenizer(32000))
    written = tokenizer.convert_ids_to_tokens(streams_to_ids(streams, EXPRESSIVE).tolist())
    assert "".join(written) == "[St7][Pi9][Hu5][St81][Hu78][Pi13][Hu42]"


def test_equal_times_are_written_style_pitch_unit():
    """With units at exactly 25 Hz all three streams change at 0 s and at 2 s."""
    config = TinyWaveConfig.from_preset("nano-expressive-student", unit_clock_rate=25.0)
    streams = SpeechStreams([0] * 50 + [1], [0] * 25 + [1], [0, 0, 1])
    expected = [1076, 1012, 512, 1076, 1077, 1013, 513]
    assert streams_to_ids(streams, config).tolist() == expected
    assert streams_to_ids(streams, NANO_EXPRESSIVE).tolist() == expected


def test_units_keep_time_by_a_clock_of_24_99_hz():
    """Unit 2,749 stands at 110.004 s, so a pitch at 110 s comes before it; at 25 Hz it would come after."""
    streams = SpeechStreams([0, 1] * 1500, [0] * 1375 + [1] * 125, [0] * 120)
    at_25_hz = TinyWaveConfig.from_preset("nano-expressive-student", unit_clock_rate=25.0)
    for config, expected in ((NANO_EXPRESSIVE, 2749), (at_25_hz, 2750)):
        ids = streams_to_ids(streams, config)
        before = ids[: np.flatnonzero(ids == 1013)[0]]
        assert (before < 1012).sum() == expected


def test_counts_of_the_reference_clip():
    """146,160 samples: 228 units in 167 runs, 114 pitch frames in 82 runs and 10 seconds of style are 259 tokens."""
    generator = np.random.default_rng(0)

    def runs(frames: int, count: int, num_values: int) -> np.ndarray:
        starts = np.sort(generator.choice(np.arange(1, frames), count - 1, replace=False))
        return np.isin(np.arange(frames), starts).cumsum() % num_values

    streams = SpeechStreams(runs(228, 167, 501), runs(114, 82, 64), [71] * 9 + [83])
    ids, durations = streams_to_ids(streams, EXPRESSIVE, return_durations=True)
    is_unit, is_pitch, is_style = ids < 32503, (ids >= 32503) & (ids < 32567), ids >= 32567
    assert len(ids) == 259
    assert [mask.sum() for mask in (is_unit, is_pitch, is_style)] == [167, 82, 10]
    assert [durations[mask].sum() for mask in (is_unit, is_pitch, is_style)] == [228, 114, 10]
    assert ids.tolist() == merged_frame_by_frame(streams, EXPRESSIVE)


@given(timed_streams())
def test_merge_is_the_rule_and_durations_undo_it(streams):
    ids, durations = streams_to_ids(streams, NANO_EXPRESSIVE, return_durations=True)
    assert ids.dtype == durations.dtype == np.int64
    assert ids.tolist() == merged_frame_by_frame(streams, NANO_EXPRESSIVE)
    assert ids_to_streams(ids, NANO_EXPRESSIVE, durations) == streams
    assert (durations[ids >= 1076] == 1).all() and (ids >= 1076).sum() == len(streams.style)
    assert streams_to_ids(streams, NANO_EXPRESSIVE).tolist() == ids.tolist()


@given(timed_streams(PITCH_ONLY))
def test_a_model_without_style(streams):
    ids, durations = streams_to_ids(streams, PITCH_ONLY, return_durations=True)
    assert ids.tolist() == merged_frame_by_frame(streams, PITCH_ONLY)
    assert ids_to_streams(ids, PITCH_ONLY, durations) == streams


@given(units)
def test_a_model_of_units_alone(frames):
    ids, durations = streams_to_ids(SpeechStreams(frames), NANO, return_durations=True)
    assert ids.tolist() == [512 + unit for unit, _ in groupby(frames)]
    assert ids_to_streams(ids, NANO, durations) == SpeechStreams(frames)


def test_long_streams_merge_as_short_ones():
    """An hour, beyond the times at which the clocks meet again."""
    generator = np.random.default_rng(0)
    streams = SpeechStreams(*(generator.integers(0, 5, length) for length in (89_964, 45_000, 3_600)))
    ids, durations = streams_to_ids(streams, NANO_EXPRESSIVE, return_durations=True)
    assert ids.tolist() == merged_frame_by_frame(streams, NANO_EXPRESSIVE)
    assert ids_to_streams(ids, NANO_EXPRESSIVE, durations) == streams


@given(speech_ids)
def test_parse_gives_each_unit_the_latest_pitch_and_style(ids):
    streams = ids_to_streams(ids, NANO_EXPRESSIVE)
    found_units, at_pitch, at_style = parsed_token_by_token(ids)
    assert streams.units.tolist() == found_units
    for found, expected in ((streams.pitch, at_pitch), (streams.style, at_style)):
        assert (found is None and expected is None) or found.tolist() == expected
    assert streams_to_ids(streams, NANO_EXPRESSIVE).tolist() == ids, "parsed streams keep their ids"


def test_parse_by_hand():
    # [Hu3][St1][Hu4][Pi7][Hu4][Pi8][Pi9][St2][Hu5][Pi10]
    ids = [515, 1077, 516, 1019, 516, 1020, 1021, 1078, 517, 1022]
    streams = ids_to_streams(ids, NANO_EXPRESSIVE)
    assert streams.units.tolist() == [3, 4, 4, 5]
    assert streams.pitch.tolist() == [7, 7, 7, 9], "the first value reaches back to the beginning"
    assert streams.style.tolist() == [1, 1, 1, 2]
    assert (len(streams), streams.ids.tolist()) == (4, ids)
    only_units = ids_to_streams([515], NANO_EXPRESSIVE)
    assert (only_units.units.tolist(), only_units.pitch, only_units.style) == ([3], None, None)
    no_units = ids_to_streams([1077, 1019], NANO_EXPRESSIVE)
    assert [part.tolist() for part in (no_units.units, no_units.pitch, no_units.style)] == [[], [], []]


@given(timed_streams().filter(lambda streams: len(streams.pitch) and len(streams.style)))
def test_parsed_units_of_a_merge_carry_the_prosody_of_their_time(streams):
    """A vocoder that repeats parsed streams by the true durations has the pitch and style that began last."""
    ids, durations = streams_to_ids(streams, NANO_EXPRESSIVE, return_durations=True)
    parsed = ids_to_streams(ids, NANO_EXPRESSIVE)
    run_units, run_durations = deduplicate(streams.units)
    assert parsed.units.tolist() == run_units.tolist()
    assert durations[ids < 1012].tolist() == run_durations.tolist()
    starts = np.cumsum(run_durations) - run_durations
    for values, rate, found in ((streams.pitch, 12.5, parsed.pitch), (streams.style, 1, parsed.style)):
        begun = [max(index for index in range(len(values)) if index / rate <= start / 24.99) for start in starts]
        assert found.tolist() == values[begun].tolist()


@given(st.lists(st.tuples(st.just("text"), texts) | st.tuples(st.just("speech"), timed_streams(max_frames=60)),
                min_size=1, max_size=5))  # fmt: skip
def test_expressive_segments_survive_ids(original):
    ids = segments_to_ids(original, NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER, add_eos=True)
    expected = []
    for modality, run in groupby(original, key=lambda segment: segment[0]):
        pieces = [content for _, content in run]
        if modality == "text":
            expected.append((modality, "".join(pieces)))
            continue
        tokens = []
        for token in sum((merged_frame_by_frame(piece, NANO_EXPRESSIVE) for piece in pieces), []):
            last = [other for other in tokens if (other >= 1012) == (token >= 1012) and other < 1076][-1:]
            if token >= 1076 or last != [token]:
                tokens.append(token)
        expected.append((modality, ids_to_streams(tokens, NANO_EXPRESSIVE)))
    found = ids_to_segments(ids, NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER)
    assert found == expected
    assert segments_to_ids(found, NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER, add_eos=True) == ids


def test_neighbours_of_speech_share_a_marker_and_no_repeat():
    first, second = SpeechStreams([3, 4], [7], [1]), SpeechStreams([4, 5], [7], [1])
    ids = segments_to_ids([("speech", first), ("speech", second)], NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER)
    assert ids == [1, 511, 1077, 1019, 515, 516, 1077, 517]


def test_stock_tokenizer_agrees_with_expressive_segments():
    segments = [("speech", SpeechStreams([3, 7, 7], [63, 2], [4])), ("text", "The work.")]
    written = "[Speech][St4][Pi63][Hu3][Hu7][Pi2][Text]The work."
    ids = segments_to_ids(segments, NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER)
    assert EXPRESSIVE_TOKENIZER(written).input_ids == ids
    assert EXPRESSIVE_TOKENIZER.decode(ids[1:]) == written
    names = ["[Pi0]", "[Pi63]", "[St0]", "[St4]"]
    assert EXPRESSIVE_TOKENIZER.convert_tokens_to_ids(names) == [1012, 1075, 1076, 1080]
    assert len(EXPRESSIVE_TOKENIZER) == 1081


def test_streams_read_lists_arrays_and_tensors_and_compare():
    streams = SpeechStreams([1, 2], torch.tensor([3]), np.array([4], dtype=np.int8))
    assert all(part.dtype == np.int64 for part in (streams.units, streams.pitch, streams.style))
    assert streams == SpeechStreams((1, 2), [3], [4])
    assert streams != SpeechStreams([1, 2], [3]) and streams != SpeechStreams([1, 2], [3], [5])
    assert streams != "streams" and len(streams) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([3, 4], "speech segment 1: the speech has no style, but this model has 5 style tokens; give SpeechStreams"),
        (SpeechStreams([3], style=[1]), "the speech has no pitch, but this model has 64 pitch tokens"),
        (SpeechStreams([3, 500], [1], [1]), "unit 500 at position 1 is out of range; this model has 0..499"),
        (SpeechStreams([3], [64], [1]), "pitch 64 at position 0 is out of range; this model has 0..63"),
        (SpeechStreams([3, 4], [1], [-1]), "style -1 at position 0 is out of range"),
        (SpeechStreams([3] * 50, [1] * 50, [1, 1]), "2.00 s of style, 4.00 s of pitch, 2.00 s of unit; expected one"),
        (SpeechStreams([3] * 100, [1] * 50, [1]), "1.00 s of style, 4.00 s of pitch"),
        (SpeechStreams([], [], []), "speech segment 1 is empty"),
        (ids_to_streams([32002, 32503], EXPRESSIVE), "speech segment 1: id 32002 at position 0 is not speech"),
    ],
)
def test_wrong_expressive_segments(content, message):
    with pytest.raises(ValueError, match=message):
        segments_to_ids([("text", "hi"), ("speech", content)], NANO_EXPRESSIVE, EXPRESSIVE_TOKENIZER)


def test_streams_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="the speech has pitch, but this model has no pitch tokens; leave pitch out"):
        segments_to_ids([("speech", SpeechStreams([3], [1]))], NANO, TOKENIZER)
    assert segments_to_ids([("speech", SpeechStreams([3, 3]))], NANO, TOKENIZER) == [1, 511, 515]


@pytest.mark.parametrize("wrong", ["12", [0.5], [[1]], None])
def test_streams_must_be_integers_in_one_dimension(wrong):
    with pytest.raises(ValueError, match="units: found .* expected integers"):
        SpeechStreams(wrong)
    if wrong is not None:
        with pytest.raises(ValueError, match="pitch: found .* expected integers"):
            SpeechStreams([1], wrong)


def test_wrong_ids_and_durations():
    with pytest.raises(ValueError, match="id 511 at position 1 is not speech; this model has unit 512..1011, pitch"):
        ids_to_streams([512, 511], NANO_EXPRESSIVE)
    with pytest.raises(ValueError, match="id 1012 at position 0 is not speech; this model has unit 512..1011$"):
        ids_to_streams([1012], NANO)
    with pytest.raises(ValueError, match="found 1 durations, the shortest 1, for 2 ids"):
        ids_to_streams([512, 513], NANO_EXPRESSIVE, [1])
    with pytest.raises(ValueError, match="found 2 durations, the shortest 0, for 2 ids; expected one of at least 1"):
        ids_to_streams([512, 513], NANO_EXPRESSIVE, [1, 0])
    with pytest.raises(ValueError, match="were parsed from ids and have no durations"):
        streams_to_ids(ids_to_streams([512], NANO_EXPRESSIVE), NANO_EXPRESSIVE, return_durations=True)
    with pytest.raises(ValueError, match="found 1 values of pitch for 2 parsed units"):
        SpeechStreams([1, 2], [1], ids=[512, 513])


def test_the_last_style_and_pitch_may_be_a_token_apart():
    """1.03 s of sound: 25 units, 12 pitch tokens (0.96 s) and a second style token that has hardly begun."""
    streams = SpeechStreams(np.arange(25), np.arange(12), np.array([1, 2]))
    assert len(streams_to_ids(streams, NANO_EXPRESSIVE)) == 25 + 12 + 2
    with pytest.raises(ValueError, match="span different times: 3.00 s of style"):
        streams_to_ids(SpeechStreams(np.arange(25), np.arange(12), np.array([1, 2, 3])), NANO_EXPRESSIVE)
