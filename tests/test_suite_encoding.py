"""Released recordings -> manifests: the same units as the codec gives, resumed, reused, and nothing lost unnamed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tinywave.codec_tinywave import SpeechCodec
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.eval import suite_encoding
from tinywave.eval.readers import read_audio_suite
from tinywave.eval.suite_encoding import NOT_STATED, encode_audio_suite, encode_pairs
from tinywave.eval.suites import SuiteError, read_suite

ASSETS = Path(__file__).parents[1] / "assets"
RATE = 16_000


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    return load_codec(ASSETS / "codec", ["unit"])


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return soundfile.read(ASSETS / "audio" / "librivox" / "sense_and_sensibility_01_0920.flac", dtype="int16")[0]


@pytest.fixture
def salmon(tmp_path, speech):
    """Two parts of three pairs, files of 0.4 to 0.5 s."""
    folder = tmp_path / "salmon"
    for number, part in enumerate(("rir_consistency", "sentiment_alignment")):
        (folder / part).mkdir(parents=True)
        for i in range(3):
            for j in range(2):
                start = 3_000 + 7_000 * (6 * number + 2 * i + j)
                piece = speech[start : start + 6_400 + 800 * j]
                soundfile.write(folder / part / f"sample_{i}_{j}.flac", piece, RATE)
    return folder


def damage(path):
    """Keeps header and length, so that only decoding finds out; returns the bytes that were there."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 4])
    return whole


def encode(folder, codec, output, **options):
    return encode_audio_suite(read_audio_suite(folder), codec, output, progress=False, **options)


def read_record(output):
    return json.loads(output.with_suffix(".json").read_text())


def test_manifest_holds_what_the_codec_gives(salmon, codec, tmp_path, capsys):
    output = encode(salmon, codec, tmp_path / "out" / "salmon.parquet", batch_size=4)
    pairs = read_suite(output)
    assert [pair.id for pair in pairs] == [
        f"{part}/{i}" for part in ("rir_consistency", "sentiment_alignment") for i in range(3)
    ]
    for pair, released in zip(pairs, read_audio_suite(salmon).pairs, strict=True):
        assert (pair.suite, pair.phenomenon, pair.group) == ("salmon", released.part, released.group)
        assert (pair.voice, pair.positive_text, pair.negative_text) == (NOT_STATED,) * 3
        assert pair.encoder == codec.fingerprint()
        for half in ("positive", "negative"):
            [direct] = codec.encode([load_audio(getattr(released, half), RATE)])
            assert np.array_equal(pair.half(half).units, direct.units) and len(direct.units) in (10, 11)
    assert len({pair.positive_units for pair in pairs}) > 1
    record = read_record(output)
    record.pop("files")
    assert record == {
        "suite": "salmon",
        "layout": "salmon",
        "encoder": codec.fingerprint(),
        "share_beginnings": False,
        "num_pairs": 6,
        "num_pairs_by_part": {"rir_consistency": 3, "sentiment_alignment": 3},
        "num_problems": 0,
        "problems": [],
    }
    assert sorted(path.name for path in output.parent.iterdir()) == ["salmon.json", "salmon.parquet"]
    assert capsys.readouterr().out == ""


def test_any_rate_channel_count_and_format(tmp_path, codec, speech):
    folder = tmp_path / "tSC"
    folder.mkdir()
    stereo = np.stack([speech[:8_000], speech[:8_000]], axis=1)
    soundfile.write(folder / "0_correct.wav", stereo, RATE)
    soundfile.write(folder / "0_incorrect.ogg", speech[:12_000] / 32768, 24_000)
    soundfile.write(folder / "1_correct.flac", speech[:4_000], 8_000)
    soundfile.write(folder / "1_incorrect.wav", speech[:8_000] / 32768, RATE, subtype="FLOAT")
    pairs = read_suite(encode(folder, codec, tmp_path / "tsc.parquet"))
    [mono] = codec.encode([speech[:8_000].astype(np.float32) / 32768])
    assert pairs[0].positive_units == pairs[1].negative_units == tuple(mono.units.tolist())
    assert [len(units) for units in (pairs[0].negative_units, pairs[1].positive_units)] == [len(mono.units)] * 2


def test_a_stopped_run_goes_on(salmon, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(suite_encoding, "PAIRS_PER_SHARD", 2)
    expected = read_suite(encode(salmon, codec, tmp_path / "whole.parquet"))
    output = tmp_path / "salmon.parquet"
    broken = salmon / "sentiment_alignment" / "sample_0_1.flac"
    whole = damage(broken)
    with pytest.raises(SuiteError, match=r"salmon has 1 problems; fix them:\nsentiment_alignment/0: .*0_1.flac"):
        encode(salmon, codec, output, strict=True)
    assert not output.exists() and not output.with_suffix(".json").exists()
    [finished] = (tmp_path / ".salmon.parquet.partial").glob("*.parquet")
    # The finished shard is told from a new one by units that no encoder gave.
    marked = [replace(pair, positive_units=(1, 2, 3)) for pair in read_suite(finished)]
    suite_encoding.write_suite(marked, finished)
    broken.write_bytes(whole)
    pairs = read_suite(encode(salmon, codec, output, strict=True))
    assert pairs == [*marked, *expected[2:]]
    assert not (tmp_path / ".salmon.parquet.partial").exists()


def test_a_shard_of_changed_files_or_half_written_is_encoded_again(salmon, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(suite_encoding, "PAIRS_PER_SHARD", 2)
    output = tmp_path / "salmon.parquet"
    broken = salmon / "sentiment_alignment" / "sample_2_0.flac"
    whole = damage(broken)
    with pytest.raises(SuiteError, match="sentiment_alignment/2"):
        encode(salmon, codec, output, strict=True)
    first, second = sorted((tmp_path / ".salmon.parquet.partial").glob("*.parquet"), key=lambda p: read_suite(p)[0].id)
    first.write_bytes(first.read_bytes()[:100])
    suite_encoding.write_suite([replace(pair, positive_units=(1, 2, 3)) for pair in read_suite(second)], second)
    changed = salmon / "sentiment_alignment" / "sample_0_0.flac"
    changed.write_bytes((salmon / "rir_consistency" / "sample_0_0.flac").read_bytes())
    broken.write_bytes(whole)
    pairs = read_suite(encode(salmon, codec, output, strict=True))
    assert len(pairs) == 6 and all(pair.positive_units != (1, 2, 3) for pair in pairs)
    assert pairs[3].positive_units == pairs[0].positive_units


def test_a_finished_manifest_is_used_again(salmon, codec, tmp_path):
    output = encode(salmon, codec, tmp_path / "salmon.parquet")
    expected = read_suite(output)
    marked = [replace(pair, positive_units=(1, 2, 3)) for pair in expected]
    suite_encoding.write_suite(marked, output)
    assert read_suite(encode(salmon, codec, output)) == marked
    # Another rule, another encoder, another file: each makes it anew.
    assert read_suite(encode(salmon, codec, output, share_beginnings=True)) == expected
    assert read_record(output)["share_beginnings"] is True
    other = load_codec(ASSETS / "codec", ["unit"])
    other.speech_encoder.quantizer.layers[-1].bias.data[expected[0].positive_units[0]] = -1e9
    changed = read_suite(encode(salmon, other, output))
    assert changed[0].encoder == other.fingerprint() != codec.fingerprint()
    assert changed[0].positive_units[0] != expected[0].positive_units[0]
    (salmon / "rir_consistency" / "sample_0_0.flac").unlink()
    assert read_suite(encode(salmon, codec, output)) == expected[1:]
    record = read_record(output)
    assert record["num_pairs"] == 5 and record["num_problems"] == 1
    assert record["problems"][0]["stage"] == "reading" and record["problems"][0]["name"] == "rir_consistency/0"
    output.write_bytes(b"PAR1")
    assert read_suite(encode(salmon, codec, output)) == expected[1:]


def test_what_cannot_be_encoded_is_reported_and_left_out(salmon, codec, tmp_path, speech, capsys):
    expected = read_suite(encode(salmon, codec, tmp_path / "whole.parquet"))
    damage(salmon / "rir_consistency" / "sample_1_0.flac")
    soundfile.write(salmon / "sentiment_alignment" / "sample_0_1.flac", speech[3_000:3_800], RATE)
    suite = read_audio_suite(salmon, min_seconds=0.01)
    output = tmp_path / "salmon.parquet"
    encode_audio_suite(suite, codec, output, progress=False)
    assert read_suite(output) == [
        pair for pair in expected if pair.id not in ("rir_consistency/1", "sentiment_alignment/0")
    ]
    record = read_record(output)
    assert (record["num_pairs"], record["num_problems"]) == (4, 2)
    assert [(row["stage"], row["name"]) for row in record["problems"]] == [
        ("encoding", "rir_consistency/1"),
        ("encoding", "sentiment_alignment/0"),
    ]
    assert "sample_1_0.flac is not audio that can be read" in record["problems"][0]["reason"]
    assert "sample_0_1.flac: " in record["problems"][1]["reason"] and "50 ms" in record["problems"][1]["reason"]
    assert f"{output}: 4 pairs, 2 problems, listed in salmon.json" in capsys.readouterr().out
    # What was left out stays so when the manifest is used again, and is refused by a strict run.
    encode_audio_suite(suite, codec, output, progress=False)
    assert read_record(output) == record
    with pytest.raises(SuiteError, match="has 2 problems"):
        encode_audio_suite(suite, codec, output, strict=True, progress=False)


def test_a_suite_of_which_nothing_is_left_raises(salmon, codec, tmp_path):
    for file in salmon.rglob("*_0.flac"):
        damage(file)
    with pytest.raises(SuiteError, match="salmon has 6 problems"):
        encode(salmon, codec, tmp_path / "salmon.parquet")
    assert not (tmp_path / "salmon.parquet").exists()


def test_shared_beginnings_are_encoded_by_themselves(codec, speech):
    waveform = speech.astype(np.float32) / 32768
    contexts = [waveform[:num_samples] for num_samples in (17_000, 20_000, 23_300)]
    endings = waveform[30_000:40_000], waveform[50_000:62_000]
    pairs = [tuple(np.concatenate([context, ending]) for ending in endings) for context in contexts]
    # A beginning of half a second is not shared.
    pairs.append((waveform[:16_000], np.concatenate([waveform[:8_000], waveform[40_000:48_000]])))
    whole = encode_pairs(pairs, codec, share_beginnings=False)
    shared = encode_pairs(pairs, codec, share_beginnings=True, batch_size=3)
    assert [half.units.tolist() for pair in whole for half in pair] == [
        codec.encode([half])[0].units.tolist() for pair in pairs for half in pair
    ]
    assert [half.units.tolist() for half in shared[3]] == [half.units.tolist() for half in whole[3]]
    for context, shared_halves, whole_halves in zip(contexts, shared[:3], whole[:3], strict=True):
        [beginning] = codec.encode([context])
        inside = len(beginning.units)
        for shared_half, whole_half in zip(shared_halves, whole_halves, strict=True):
            assert np.array_equal(shared_half.units[:inside], beginning.units)
            assert np.array_equal(shared_half.units[inside:], whole_half.units[inside:])
    # The encoder looks ahead, so that whole halves begin in other units.
    assert any(
        shared_pair[0].units.tolist() != pair[0].units.tolist()
        for shared_pair, pair in zip(shared, whole, strict=True)
    )
