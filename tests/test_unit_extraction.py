"""Corpora become units: nothing lost, nothing done twice, and every bad shard named."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import PitchEncoderConfig, SpeechEncoderConfig, StyleEncoderConfig
from tinywave.data.audio_io import load_audio, waveform_to_flac_bytes
from tinywave.data.codec_loading import load_speech_encoder
from tinywave.data.corpus import MANIFEST
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.unit_extraction import (
    ShardError,
    extract_units,
    fit_kmeans,
    load_unit_utterances,
    sample_features,
)
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.style_encoder_tinywave import StyleEncoder

BACKBONE = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": 1500,
}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=BACKBONE, layer=2, num_units=16)).eval()
    encoder.quantizer.centroids = torch.randn(16, 32)
    return encoder


@pytest.fixture
def codec(encoder):
    return SpeechCodec(encoder)


@pytest.fixture
def expressive(encoder):
    """A codec of units, pitch and style; without a vocoder, which extraction does not need."""
    torch.manual_seed(1)
    sizes = {"num_codes": 8, "hidden_size": 4, "code_size": 4, "f0_extractor": "swift-f0"}
    pitch_encoder = PitchEncoder(PitchEncoderConfig(**sizes)).eval()
    pitch_encoder.quantizer.codebook.normal_()
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    style_encoder = StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=3, projector_size=8)).eval()
    prosody = {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": load_f0_extractor()}
    return SpeechCodec(encoder, **prosody)


def waveform_of(number):
    return np.random.default_rng(number).uniform(-0.5, 0.5, 3200 + 777 * number).astype(np.float32)


def heard(number):
    """What the corpus holds of a waveform: FLAC keeps 16 bits."""
    return load_audio(waveform_to_flac_bytes(waveform_of(number), 16000))


def row_of(number):
    waveform = waveform_of(number)
    return {
        "id": f"row-{number}",
        "split": "train" if number % 3 else "test",
        "text": f"text {number}",
        "audio": {"bytes": waveform_to_flac_bytes(waveform, 16000), "path": None},
        "sampling_rate": 16000,
        "num_samples": len(waveform),
        "words": [{"word": "text", "start": 0.0, "end": 0.1}],
    }


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(3):
        rows = [row_of(4 * shard + index) for index in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"shard-{shard:05d}.parquet")
    return folder


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_two_processes_write_the_units_of_every_row_and_continue_after_a_bad_shard(corpus, codec, tmp_path):
    good = (corpus / "shard-00001.parquet").read_bytes()
    damage_footer(corpus / "shard-00001.parquet")
    with pytest.raises(ShardError, match="shard-00001.parquet is a damaged shard"):
        extract_units(corpus, codec, tmp_path / "units", num_processes=2)
    (corpus / "shard-00001.parquet").write_bytes(good)
    finished = files_of(tmp_path / "units")
    extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    check_units(tmp_path / "units", codec.speech_encoder)
    assert finished.items() <= files_of(tmp_path / "units").items()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_rows_that_cannot_be_encoded_are_left_out_and_printed(corpus, codec, tmp_path, num_processes, capsys):
    add_voices(corpus)
    spoil_row(corpus / "shard-00001.parquet")
    shorten_row(corpus / "shard-00002.parquet")
    units = tmp_path / "units"
    for _ in range(2):
        extract_units(corpus, codec, units, num_processes)
        assert pq.read_table(units)["id"].to_pylist() == [f"row-{n}" for n in range(12) if n not in (6, 10)]
        printed = capsys.readouterr().err
        assert re.search(r"left out: shard-00001.parquet, row 'row-6': is not audio", printed)
        assert re.search(r"left out: shard-00002.parquet, row 'row-10': .*lasts 50 ms", printed)
        assert "2 of 12 recordings are left out" in printed
        finished = files_of(units)
    assert files_of(units) == finished
    utterances = load_unit_utterances([corpus], [units], "train")
    assert [item.num_samples for item in utterances] == [len(waveform_of(n)) for n in (1, 2, 4, 5, 7, 8, 11)]


def test_a_corpus_of_which_no_row_can_be_encoded_is_refused(tmp_path, codec):
    rows = [row_of(0) | {"audio": {"bytes": None, "path": "a.wav"}}, row_of(1) | {"audio": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard-00000.parquet")
    with pytest.raises(ShardError, match="none of the 2 rows .*row-0.* is empty"):
        extract_units(tmp_path, codec, tmp_path / "units", num_processes=1)


def add_voices(corpus):
    for path in corpus.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("voice", pa.array(["reader"] * table.num_rows)), path)


def check_units(folder, encoder):
    table = pq.read_table(folder)
    assert table.column_names == ["id", "split", "text", "sampling_rate", "num_samples", "words", "units", "encoder"]
    assert table.schema.field("units").type == pa.list_(pa.int16())
    assert table.num_rows == 12
    for number, row in enumerate(table.to_pylist()):
        expected = row_of(number)
        assert row["units"] == encoder.encode([heard(number)])[0].tolist()
        assert {name: row[name] for name in ("id", "text", "words")} == {
            name: expected[name] for name in ("id", "text", "words")
        }
        assert row["encoder"] == encoder.fingerprint()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_pitch_and_style_stand_beside_the_units(corpus, expressive, tmp_path, num_processes):
    extract_units(corpus, expressive, tmp_path / "streams", num_processes)
    table = pq.read_table(tmp_path / "streams")
    assert table.column_names[-4:] == ["units", "pitch", "style", "encoder"]
    for name in ("units", "pitch", "style"):
        assert table.schema.field(name).type == pa.list_(pa.int16())
    assert set(table["encoder"].to_pylist()) == {expressive.fingerprint()}
    for number, row in enumerate(table.to_pylist()):
        (streams,) = expressive.encode([heard(number)])
        for name in ("units", "pitch", "style"):
            assert row[name] == getattr(streams, name).tolist(), (number, name)


def test_a_column_with_the_name_of_a_stream_is_kept(corpus, expressive, tmp_path):
    """A corpus names the style of a sentence, an extraction hears one."""
    for path in corpus.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("style", pa.array(["happy"] * table.num_rows)), path)
    extract_units(corpus, expressive, tmp_path / "streams", num_processes=1)
    table = pq.read_table(tmp_path / "streams")
    assert table["style_name"].to_pylist() == ["happy"] * 12
    assert table.schema.field("style").type == pa.list_(pa.int16())
    units = SpeechCodec(expressive.speech_encoder)
    extract_units(corpus, units, tmp_path / "units", num_processes=1)
    assert pq.read_table(tmp_path / "units")["style"].to_pylist() == ["happy"] * 12


def test_streams_of_another_pitch_or_style_encoder_are_not_mixed_in(corpus, expressive, tmp_path):
    assert expressive.fingerprint().startswith(f"{expressive.speech_encoder.fingerprint()}-")
    extract_units(corpus, expressive, tmp_path / "streams", num_processes=1)
    with pytest.raises(ShardError, match="another output folder"):
        extract_units(corpus, SpeechCodec(expressive.speech_encoder), tmp_path / "streams", num_processes=1)
    expressive.style_encoder.classifier.bias.data += 1
    with pytest.raises(ShardError, match="another output folder"):
        extract_units(corpus, expressive, tmp_path / "streams", num_processes=1)


def test_a_codec_without_centroids_is_refused(corpus, encoder, tmp_path):
    encoder.quantizer.centroids.zero_()
    with pytest.raises(ValueError, match="no centroids"):
        extract_units(corpus, SpeechCodec(encoder), tmp_path / "units")


def test_finished_shards_are_kept_and_missing_or_damaged_ones_made_again(corpus, codec, tmp_path):
    units = tmp_path / "units"
    extract_units(corpus, codec, units, num_processes=1)
    before, expected = files_of(units), pq.read_table(units)
    (units / "shard-00001.parquet").unlink()
    damaged = units / "shard-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    extract_units(corpus, codec, units, num_processes=1)
    after = files_of(units)
    assert after["shard-00000.parquet"] == before["shard-00000.parquet"]
    assert pq.read_table(units).equals(expected)


def test_a_changed_shard_is_encoded_again(corpus, codec, tmp_path):
    extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    pq.write_table(pa.Table.from_pylist([row_of(50)]), corpus / "shard-00001.parquet")
    extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    assert pq.read_table(tmp_path / "units" / "shard-00001.parquet")["id"].to_pylist() == ["row-50"]


def test_units_of_another_encoder_are_not_mixed_in(corpus, encoder, codec, tmp_path):
    extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    encoder.quantizer.centroids += 1
    with pytest.raises(ShardError, match="shard-00000.parquet holds units of the encoder .* another output folder"):
        extract_units(corpus, codec, tmp_path / "units", num_processes=1)


def damage_footer(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_page(path):
    rows = pq.read_table(path)
    pq.write_table(rows, path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = data.find(b"fLaC") + 200
    data[start : start + 50] = bytes(50)
    path.write_bytes(data)


def drop_audio(path):
    pq.write_table(pq.read_table(path).drop_columns(["audio"]), path)


def flatten_audio(path):
    table = pq.read_table(path)
    audio = pa.array([audio["bytes"] for audio in table["audio"].to_pylist()])
    pq.write_table(table.drop_columns(["audio"]).append_column("audio", audio), path)


def spoil_row(path):
    rows = pq.read_table(path).to_pylist()
    rows[2]["audio"]["bytes"] = b"no audio"
    pq.write_table(pa.Table.from_pylist(rows), path)


def shorten_row(path):
    rows = pq.read_table(path).to_pylist()
    rows[2]["audio"]["bytes"] = waveform_to_flac_bytes(np.zeros(800, np.float32), 16000)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_footer, "is a damaged shard"),
        (damage_page, "is a damaged shard"),
        (drop_audio, r"lacks the columns \['audio'\]"),
        (flatten_audio, "has a column audio of the type binary; expected a struct"),
    ],
)
def test_a_bad_shard_is_named(corpus, codec, tmp_path, damage, reason):
    damage(corpus / "shard-00001.parquet")
    with pytest.raises(ShardError, match=f"shard-00001.parquet.*{reason}"):
        extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    assert not list((tmp_path / "units").glob(".*")), "no half-written file is left"


def test_an_empty_folder_is_refused(codec, tmp_path):
    with pytest.raises(ShardError, match="holds no parquet shards"):
        extract_units(tmp_path, codec, tmp_path / "units")


def test_a_full_disk_is_named_and_the_next_run_continues(corpus, codec, tmp_path):
    codec.encode([waveform_of(0)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses writes beyond the limit the way it does on a full disk; Python ignores the signal.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*shard-00000.parquet.* make room on the disk"):
            extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not files_of(tmp_path / "units")
    extract_units(corpus, codec, tmp_path / "units", num_processes=1)
    assert len(files_of(tmp_path / "units")) == 3


INTERRUPTED = """
import signal
import sys

# A test run in the background of a shell inherits a Ctrl-C that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tinywave.codec_tinywave import SpeechCodec
from tinywave.data.unit_extraction import extract_units

if __name__ == "__main__":
    extract_units(sys.argv[2], SpeechCodec.from_pretrained(sys.argv[1]), sys.argv[3], num_processes=2)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_an_interrupted_run_keeps_finished_shards_and_leaves_no_process(corpus, codec, tmp_path, how):
    slow = [row_of(600)] * 200
    for shard in (3, 4):
        pq.write_table(pa.Table.from_pylist(slow), corpus / f"shard-{shard:05d}.parquet")
    codec.save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(INTERRUPTED)
    units = tmp_path / "units"
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "model"), str(corpus), str(units)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        while len(list(units.glob("shard-0000[012].parquet"))) < 3 and process.poll() is None:
            time.sleep(0.05)
        if how == "ctrl-c":
            # A terminal sends it to the whole group.
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        _, stderr = process.communicate(timeout=120)
        assert process.returncode != 0 and ("KeyboardInterrupt" in stderr) == (how == "ctrl-c")
        assert sorted(path.name for path in units.glob("*.parquet")) == [f"shard-{n:05d}.parquet" for n in range(3)]
        # Multiprocessing's own resource tracker notices a moment later that its parent has gone.
        deadline = time.monotonic() + 60
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_features_are_those_of_the_split(corpus, encoder):
    features = sample_features(corpus, encoder, num_processes=1)
    assert features.dtype == np.float32
    expected = [encoder.extract_features([heard(number)])[0].numpy() for number in range(12) if number % 3]
    np.testing.assert_array_equal(features, np.concatenate(expected))
    assert sample_features(corpus, encoder, max_frames=20, num_processes=1).shape == (20, 32)
    with pytest.raises(ShardError, match="no row of the split 'validation'"):
        sample_features(corpus, encoder, split="validation", num_processes=1)


def test_kmeans_finds_the_clusters_that_are_there():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(12, 8)) * 10
    # One dimension of huge variance must not hide the other seven.
    scale = np.array([1000.0] + [1.0] * 7)
    labels = rng.integers(0, 12, 3000)
    features = ((true[labels] + rng.normal(size=(3000, 8)) * 0.1) * scale).astype(np.float32)
    quantizer = fit_kmeans(features, num_units=12, seed=1)
    units = quantizer(torch.from_numpy(features)).numpy()
    assert len({(unit, label) for unit, label in zip(units, labels, strict=True)}) == 12
    again = fit_kmeans(features, num_units=12, seed=1)
    for name, tensor in quantizer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, again.get_buffer(name)), name
    with pytest.raises(ValueError, match=r"shape \(5, 8\); expected \(>= 12, hidden_size\)"):
        fit_kmeans(features[:5], num_units=12)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a speech encoder"):
        load_speech_encoder(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "problem"), [("", "is damaged"), ('{"format": 1, "rows": [1, 1]}', "shard-00001.parquet is missing")]
)
def test_an_unfinished_corpus_is_not_encoded_in_part(manifest, problem, codec, tmp_path):
    (tmp_path / "shard-00000.parquet").touch()
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match=problem):
        extract_units(tmp_path, codec, tmp_path / "units", num_processes=1)
