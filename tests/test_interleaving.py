"""Interleaved speech and text: boundaries on word starts, nothing lost, a new draw every epoch."""

import math
from fractions import Fraction
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.collators import CausalLanguageModelCollator
from tinywave.data.interleaving import (
    INTERLEAVED,
    PATTERNS,
    AlignedDocument,
    InterleavedDataset,
    interleave,
    read_documents,
    read_encoder,
)
from tinywave.data.unit_extraction import ShardError
from tinywave.tokenization_tinywave import (
    SpeechStreams,
    build_tokenizer,
    ids_to_segments,
    ids_to_streams,
    segments_to_ids,
    streams_to_ids,
    train_text_tokenizer,
)

WORDS = tuple(f"word{number}" for number in range(48))


@pytest.fixture(scope="module")
def document():
    starts = [0.3 + 0.31 * number for number in range(len(WORDS))]
    num_units = round(25 * (starts[-1] + 0.5))
    return AlignedDocument([(7 * frame) % 500 for frame in range(num_units)], WORDS, starts)


@pytest.fixture(scope="module")
def expressive_document(document):
    """Its pitch and style count their frames, so that a value tells when it was heard."""
    num_units = len(document.units)
    pitch, style = list(range(math.ceil(num_units / 2))), list(range(math.ceil(num_units / 25)))
    return AlignedDocument(document.units, WORDS, document.word_starts, pitch=pitch, style=style)


@pytest.fixture(scope="module")
def expressive_config():
    # A style token for every second and a pitch token for every frame of the document.
    layout = {"vocab_size": 1536, "num_pitch_tokens": 200, "style_offset": 1212, "num_style_tokens": 20}
    return TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1, **layout)


@pytest.fixture(scope="module")
def config():
    return TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer(config):
    texts = [f"{first}{second}{third} word1" for first in "abcdefgh" for second in "ijklmnop" for third in "qrstuvw"]
    return build_tokenizer(config, train_text_tokenizer(texts, config))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_segments_follow_the_pattern_and_lose_nothing(document, pattern):
    for seed in range(30):
        segments = interleave(document, pattern, Random(seed))
        assert tuple(modality for modality, _ in segments) == PATTERNS[pattern][: len(segments)]
        num_words = sum(len(content.split()) for modality, content in segments if modality == "text")
        num_units = sum(len(content) for modality, content in segments if modality == "speech")
        if pattern == "speech":
            assert num_units == len(document.units)
        elif pattern == "text":
            assert num_words == len(WORDS)
        else:
            assert 0 < num_words < len(WORDS) and 0 < num_units < len(document.units)


def test_boundaries_are_within_one_unit_frame_of_the_word_times(document):
    for seed in range(50):
        (_, units), (_, text) = interleave(document, "speech_text", Random(seed))
        first_text_word = WORDS.index(text.split()[0])
        assert 5 <= first_text_word <= 15
        assert abs(len(units) / 25 - document.word_starts[first_text_word]) <= 1 / 25


def test_span_lengths_are_those_of_the_paper(document):
    lengths = {
        len(text.split()) for seed in range(300) for text in [interleave(document, "text_speech", Random(seed))[0][1]]
    }
    assert lengths == set(range(10, 31))


def test_a_document_too_short_for_the_pattern_keeps_its_words():
    short = AlignedDocument([1, 2, 3, 4], ("one", "two"), (0.0, 0.08))
    assert interleave(short, "speech_text", Random(0)) == [("speech", [1, 2, 3, 4])]


def test_words_and_times_must_agree():
    with pytest.raises(ValueError, match="2 words and 1 word times"):
        AlignedDocument([1], ("one", "two"), (0.0,))


def test_unknown_patterns_are_refused(document, config):
    with pytest.raises(ValueError, match="Unknown pattern 'song'"):
        interleave(document, "song", Random(0))
    with pytest.raises(ValueError, match=r"Unknown patterns \['song'\]"):
        InterleavedDataset([document], config, mixture={"song": 1.0})


def test_expressive_segments_are_cut_at_the_words(expressive_document):
    for seed in range(50):
        segments = interleave(expressive_document, "speech_text_speech", Random(seed))
        start = 0
        for modality, content in segments:
            if modality == "text":
                last_word = WORDS.index(content.split()[-1])
                start = expressive_document.boundary_frame(last_word + 1)
                continue
            assert isinstance(content, SpeechStreams)
            units = expressive_document.units[start : start + len(content)]
            assert content.units.tolist() == list(units)
            for values, rate in ((content.pitch, Fraction("12.5")), (content.style, Fraction(1))):
                # One value for every 1 / rate seconds begun, each the one of the document at that moment.
                moments = [index / rate for index in range(1000) if index / rate < Fraction(len(content), 25)]
                assert values.tolist() == [math.floor((Fraction(start, 25) + moment) * rate) for moment in moments]
            start += len(content)
        (_, speech), (_, text), _ = segments
        first_text_word = WORDS.index(text.split()[0])
        assert abs(len(speech) / 25 - expressive_document.word_starts[first_text_word]) <= 1 / 25


def test_a_whole_expressive_document_keeps_every_frame(document):
    # Encoders may hear one frame of pitch or style more, or fewer, than the units cover.
    num_units = len(document.units)
    for num_pitch, num_style in ((num_units // 2, num_units // 25), (num_units // 2 + 1, num_units // 25 + 2)):
        whole = AlignedDocument(document.units, WORDS, document.word_starts, pitch=[1] * num_pitch,
                                style=[2] * num_style)  # fmt: skip
        assert whole.segment("speech", 0, len(WORDS)) == (
            "speech", SpeechStreams(document.units, [1] * num_pitch, [2] * num_style),
        )  # fmt: skip


def test_a_document_may_have_pitch_alone(document, expressive_document):
    pitch_only = AlignedDocument(document.units, WORDS, document.word_starts, pitch=expressive_document.pitch)
    (_, streams), _ = interleave(pitch_only, "speech_text", Random(0))
    assert streams.style is None and len(streams.pitch) == math.ceil(len(streams) / 2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressive_items_parse_back(expressive_document, expressive_config, tokenizer, pattern):
    config = expressive_config
    dataset = InterleavedDataset([expressive_document], config, tokenizer, {pattern: 1.0}, max_length=2000)
    rng = Random("0/0/0")
    rng.choices([pattern], [1.0])
    expected = interleave(expressive_document, pattern, rng)
    ids = dataset[0]["input_ids"]
    assert ids == segments_to_ids(expected, config, tokenizer, add_eos=True)
    found = ids_to_segments(ids, config, tokenizer)
    assert [modality for modality, _ in found] == list(PATTERNS[pattern])
    for (modality, content), (_, original) in zip(found, expected, strict=True):
        parsed = ids_to_streams(streams_to_ids(original, config), config) if modality == "speech" else original
        assert content == parsed


def test_documents_must_hold_the_streams_of_the_model(document, expressive_document, config, expressive_config):
    with pytest.raises(ValueError, match="streams are text, unit, pitch, style, which does not agree with the pitch"):
        InterleavedDataset([document], expressive_config)
    with pytest.raises(ValueError, match="streams are text, unit, which does not agree with the pitch .* prosody="):
        InterleavedDataset([expressive_document], config)


def test_spans_are_drawn_anew_each_epoch_and_repeat_with_the_epoch(document, config, tokenizer):
    dataset = InterleavedDataset([document] * 4, config, tokenizer, INTERLEAVED, seed=3)
    first = [dataset[index] for index in range(4)]
    dataset.set_epoch(1)
    second = [dataset[index] for index in range(4)]
    dataset.set_epoch(0)
    assert [dataset[index] for index in range(4)] == first
    assert first != second


def test_items_are_sequences_that_parse_back(document, config, tokenizer):
    dataset = InterleavedDataset([document], config, tokenizer, {"speech_text_speech": 1.0}, max_length=2000)
    ids = dataset[0]["input_ids"]
    assert ids[0] == config.bos_token_id and ids[-1] == config.eos_token_id
    assert [modality for modality, _ in ids_to_segments(ids, config, tokenizer)] == ["speech", "text", "speech"]
    assert len(InterleavedDataset([document], config, max_length=40)[0]["input_ids"]) == 40


def test_another_unit_rate_is_refused(document, config):
    with pytest.raises(ValueError, match="expects units at 25.0 Hz, the documents have 50.0 Hz"):
        InterleavedDataset([AlignedDocument(document.units, WORDS, document.word_starts, 50.0)], config)


def test_read_documents_selects_split_and_domain(tmp_path):
    rows = [
        {"split": split, "domain": domain, "text": "A b.", "units": [1, 2, 3],
         "words": [{"word": "A", "start": 0.0, "end": 0.04}, {"word": "b", "start": 0.04, "end": 0.12}]}
        for split, domain in (("train", "story"), ("train", "book"), ("test", "story"))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard-00000.parquet")
    assert len(read_documents(tmp_path, "train")) == 2
    (book,) = read_documents(tmp_path, "train", ["book"])
    assert book.words == ["A", "b."] and book.boundary_frame(1) == 1
    with pytest.raises(ShardError, match="no document of split 'validation'"):
        read_documents(tmp_path, "validation")
    with pytest.raises(ShardError, match="pitch"):
        read_documents(tmp_path, "train", prosody=["pitch"])


def test_read_documents_takes_the_prosody_that_is_asked_for(tmp_path):
    row = {"split": "train", "text": "A b.", "units": [1, 2, 3], "pitch": [4, 5], "style": [6],
           "words": [{"word": "A", "start": 0.0, "end": 0.04}, {"word": "b", "start": 0.04, "end": 0.12}]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "shard-00000.parquet")
    (expressive,) = read_documents(tmp_path, "train", prosody=["pitch", "style"])
    assert (expressive.units, expressive.pitch, expressive.style) == ([1, 2, 3], [4, 5], [6])
    assert expressive.segment("speech", 1, 2) == ("speech", SpeechStreams([2, 3], [4], [6]))
    (plain,) = read_documents(tmp_path, "train")
    assert plain.segment("speech", 0, 2) == ("speech", [1, 2, 3])


def test_a_corrupt_unit_shard_is_named(tmp_path):
    (tmp_path / "shard-00000.parquet").write_bytes(b"PAR1 not a shard")
    for read in (lambda: read_documents(tmp_path, "train"), lambda: read_encoder(tmp_path)):
        with pytest.raises(ShardError, match="shard-00000.parquet"):
            read()


def test_the_codec_of_a_folder_is_read_and_two_are_refused(tmp_path):
    def write(number, **columns):
        pq.write_table(pa.table({"split": ["train"] * 2, **columns}), tmp_path / f"shard-0000{number}.parquet")

    write(0)
    assert read_encoder(tmp_path) is None
    write(0, encoder=["aa-bb-cc"] * 2)
    write(1)
    assert read_encoder(tmp_path) == "aa-bb-cc"
    write(0)
    write(1, encoder=["aa-bb-cc"] * 2)
    assert read_encoder(tmp_path) == "aa-bb-cc"
    write(1, encoder=["aa-bb-cc", "dd"])
    with pytest.raises(ShardError, match="units of 2 codecs, aa-bb-cc, dd; expected one"):
        read_encoder(tmp_path)


def test_collator_pads_right_and_masks_padding():
    batch = CausalLanguageModelCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["labels"].dtype == torch.long
