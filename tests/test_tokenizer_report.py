"""The report of tokenizers: rates and entropies worked out by hand, and real codecs on real speech."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tinywave.cli.main import main
from tinywave.codec_tinywave import SpeechCodec
from tinywave.data.codec_loading import load_codec
from tinywave.eval.codec_material import HeldOutUtterance, read_corpus_utterances
from tinywave.eval.codec_quality import timed_phones_to_frames, unit_purity
from tinywave.eval.tokenizer_report import (
    measure_stream,
    measure_tokenizer,
    report_tokenizers,
    tokenizers_to_markdown,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def test_rates_and_bits_by_hand():
    # Ten frames in half a second; 0 0 1 | 1 1 1 1 | 2 0 0 reads as 0 1 | 1 | 2 0.
    record = measure_stream([[0, 0, 1], [1, 1, 1, 1], [2, 0, 0]], [0.1, 0.2, 0.2], 4)
    assert record["tokens_per_second"]["value"] == pytest.approx(5 / 0.5)
    assert record["run_length"]["value"] == pytest.approx(10 / 5)
    assert record["run_length"]["ci95"][0] == pytest.approx(3 / 2) and record["run_length"]["n"] == 3
    assert record["active_codes"] == {"value": 3 / 4, "num_active": 3, "n": 3}
    bits = record["bits_per_second"]
    assert (bits["frames"], bits["tokens"]) == (pytest.approx(20 * 2), pytest.approx(10 * 2))
    frame_entropy = -(0.4 * math.log2(0.4) + 0.5 * math.log2(0.5) + 0.1 * math.log2(0.1))
    assert bits["frame_entropy"] == pytest.approx(20 * frame_entropy)
    assert bits["token_entropy"] == pytest.approx(10 * -(0.8 * math.log2(0.4) + 0.2 * math.log2(0.2)))


def test_a_stream_whose_repeats_are_read_keeps_them():
    record = measure_stream([[3, 3, 3, 1]], [4.0], 5, repeats=False)
    assert record["tokens_per_second"]["value"] == 1 and record["run_length"]["value"] == 1
    bits = record["bits_per_second"]
    assert bits["tokens"] == bits["frames"] == pytest.approx(math.log2(5))
    assert bits["token_entropy"] == bits["frame_entropy"] == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)


def test_a_constant_stream_says_nothing_and_an_even_one_all_it_can():
    assert measure_stream([[2, 2, 2]], [1.0], 4)["bits_per_second"]["token_entropy"] == 0
    even = measure_stream([list(range(16)) * 2], [1.0], 16)["bits_per_second"]
    assert even["token_entropy"] == pytest.approx(even["tokens"]) == pytest.approx(32 * 4)


@pytest.mark.parametrize("tokens", [[], [[]], [[0, 4]], [[-1]]])
def test_tokens_that_cannot_be_are_refused(tokens):
    with pytest.raises(ValueError, match="expected some, all from 0 to 3"):
        measure_stream(tokens, [1.0] * len(tokens), 4)


@pytest.fixture(scope="module")
def utterances():
    return read_corpus_utterances(ASSETS / "audio" / "kokoro", "test", 2)


@pytest.fixture(scope="module")
def unit_codec():
    """The shipped speech encoder, which cannot speak."""
    return SpeechCodec(load_codec(ASSETS / "codec", ["unit"], griffin_lim=True).speech_encoder)


def test_codecs_stand_side_by_side(utterances, unit_codec, expressive_codec):
    record = report_tokenizers({"own": unit_codec, "tiny": expressive_codec}, utterances)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["set"] == {"n": 2, "seconds": round(sum(item.seconds for item in utterances), 1), "voices": 2}
    own, tiny = record["tokenizers"].values()
    units = [streams.units.tolist() for streams in unit_codec.encode([item.waveform for item in utterances])]
    labels = [timed_phones_to_frames(item.phones, len(row)) for item, row in zip(utterances, units, strict=True)]
    purity = unit_purity(units, labels)
    assert own["pnmi"] == {"value": purity.pnmi, "n": 2, "num_frames": purity.num_frames}
    assert own["streams"]["unit"]["active_codes"]["num_active"] == len({unit for row in units for unit in row})
    # Units of a trained encoder know phones; those of the tiny one, fitted to one sentence, hardly.
    assert own["phone_purity"]["value"] > tiny["phone_purity"]["value"] + 0.1
    assert set(own["streams"]) == {"unit"} and set(tiny["streams"]) == {"unit", "pitch", "style"}
    assert tiny["streams"]["style"]["tokens_per_second"]["value"] == pytest.approx(1, abs=0.1)
    for item in (own, tiny):
        bits = [stream["bits_per_second"]["token_entropy"] for stream in item["streams"].values()]
        assert item["bits_per_second"] == pytest.approx(sum(bits))
    assert own["word_error_rate"] == {"not_measured": "the codec has no vocoder"}
    assert tiny["word_error_rate"] == {"not_measured": "no recogniser was given"}
    table = tokenizers_to_markdown(record).splitlines()
    assert table[0] == f"| 2 recordings, {record['set']['seconds']:.0f} s | own | tiny |"
    assert len({line.count("|") for line in table}) == 1
    assert f"| PNMI | {own['pnmi']['value']:.3f} | {tiny['pnmi']['value']:.3f} |" in table
    assert any(line.startswith("| Pitch: tokens per second | - | ") for line in table)


def test_what_is_heard_counts_and_unknown_phones_are_said_to_be(expressive_codec, utterances):
    first = utterances[0]
    untimed = HeldOutUtterance(first.id, first.waveform, "the dog ran home")
    heard = iter(["the dog ran home", "the duck ran"])
    record = measure_tokenizer(expressive_codec, [untimed], lambda waveform, sampling_rate: next(heard))
    assert record["word_error_rate"]["original"]["value"] == 0
    assert record["word_error_rate"]["resynthesis"]["value"] == 2 / 4
    assert record["pnmi"] == record["unit_purity"] == {"not_measured": "the phones of this set are not timed"}
    with pytest.raises(ValueError, match="Found 0 codecs and 1 utterances"):
        report_tokenizers({}, [untimed])


def test_the_verb_writes_the_table_and_the_numbers(tmp_path, capsys):
    arguments = ["--corpus", str(ASSETS / "audio" / "kokoro"), "--output-dir", str(tmp_path / "out")]
    whisper = str(ASSETS / "whisper_units")
    assert main(["report-tokenizer", whisper, "--max-documents", "1", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "tokenizers.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "out" / "tokenizers.json").read_text(encoding="utf-8"))
    found = record["tokenizers"]["whisper_units"]
    # Words of a voice that the vocoder was not trained on are still heard.
    assert found["word_error_rate"]["resynthesis"]["value"] < 0.6
    assert np.isclose(found["streams"]["unit"]["bits_per_second"]["frames"], 25 * math.log2(500), rtol=0.02)
    assert found["pnmi"]["value"] > 0.6
    assert main(["report-tokenizer", whisper, whisper, *arguments]) == 2
    assert "of which two have the same name" in capsys.readouterr().err
