"""Interleaved speech and text: boundaries on word starts, nothing lost, a new draw every epoch."""

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
)
from tinywave.data.unit_extraction import ShardError
from tinywave.tokenization_tinywave import build_tokenizer, ids_to_segments, train_text_tokenizer

WORDS = tuple(f"word{number}" for number in range(48))


@pytest.fixture(scope="module")
def document():
    starts = [0.3 + 0.31 * number for number in range(len(WORDS))]
    num_units = round(25 * (starts[-1] + 0.5))
    return AlignedDocument([(7 * frame) % 500 for frame in range(num_units)], WORDS, starts)


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


def test_a_corrupt_unit_shard_is_named(tmp_path):
    (tmp_path / "shard-00000.parquet").write_bytes(b"PAR1 not a shard")
    with pytest.raises(ShardError, match="shard-00000.parquet"):
        read_documents(tmp_path, "train")


def test_collator_pads_right_and_masks_padding():
    batch = CausalLanguageModelCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["labels"].dtype == torch.long
