"""Anyone's recordings become a corpus: from folders, from recipes, and from Debian packages."""

import io
import json
import os
import shutil
import subprocess

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from tinywave.cli.main import main
from tinywave.cli.shipped import ASSETS, AUDIO
from tinywave.data.audio_io import load_audio, write_audio
from tinywave.data.corpus import CorpusError, iterate_corpus, left_out_items, verify_splits
from tinywave.data.debian_recordings import debian_recordings, join_prompts
from tinywave.data.pronunciation import MissingMaterialError
from tinywave.data.recordings import RecordingFolder, folders_of_recipe, prepare_recordings, recordings_in
from tinywave.data.unit_extraction import load_unit_utterances
from tinywave.eval.recordings import read_corpus_recordings, read_recordings


@pytest.fixture(scope="module")
def clips():
    return sorted((AUDIO / "librivox").glob("*.flac"))


@pytest.fixture
def folder(tmp_path, clips):
    """Two speakers as in LibriSpeech, one file beside them, in three formats and rates."""
    folder = tmp_path / "speech"
    (folder / "1089" / "134").mkdir(parents=True)
    (folder / "1188").mkdir()
    shutil.copy(clips[0], folder / "1089" / "134" / "0.flac")
    waveform = load_audio(clips[1], 44_100)
    soundfile.write(folder / "1188" / "0.WAV", np.stack([waveform, waveform], 1), 44_100)
    soundfile.write(folder / "loose.ogg", load_audio(clips[2]), 16_000)
    (folder / "1089" / "134" / "134.trans.txt").write_text("not audio")
    return folder


def test_rows_hold_the_audio_and_who_speaks(folder, clips, tmp_path):
    folders = [RecordingFolder(folder, "test", "public domain", "LibriVox")]
    corpus = prepare_recordings(folders, tmp_path / "corpus", num_processes=2, rows_per_shard=2)
    rows = list(iterate_corpus(corpus))
    assert [(row["id"], row["voice"]) for row in rows] == [
        ("speech/1089/134/0", "1089"),
        ("speech/1188/0", "1188"),
        ("speech/loose", "speech"),
    ]
    for row, clip in zip(rows, clips, strict=False):
        waveform = load_audio(row["audio"]["bytes"])
        assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).samplerate == row["sampling_rate"] == 16_000
        assert row["num_samples"] == len(waveform) == pytest.approx(len(load_audio(clip)), abs=1)
        assert np.corrcoef(waveform[:20_000], load_audio(clip)[:20_000])[0, 1] > 0.97
        assert (row["split"], row["licence"], row["source"]) == ("test", "public domain", "LibriVox")
        assert (row["text"], row["words"], row["phones"], row["style"]) == ("", [], [], "")
    assert verify_splits(corpus) == {"train": 0, "validation": 0, "test": 3}


def test_a_recipe_leads_to_units(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder / "1089", other)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"recordings": [{"folder": str(folder)}, {"folder": str(other), "split": "test"}]})
    )
    corpus, units = tmp_path / "corpus", tmp_path / "units"
    assert main(["prepare", str(recipe), "--output-dir", str(corpus), "--num-processes", "1"]) == 0
    arguments = ["--codec", str(ASSETS / "codec"), "--streams", "unit", "--num-processes", "1"]
    assert main(["extract-units", "--corpus", str(corpus), *arguments, "--output-dir", str(units)]) == 0
    utterances = load_unit_utterances([corpus], [units], "train")
    assert [item.voice for item in utterances] == ["1089", "1188", "speech"]
    assert [item.voice for item in load_unit_utterances([corpus], [units], "test")] == ["134"]
    assert all(len(item.units) == pytest.approx(item.num_samples / 640, abs=2) for item in utterances)


def test_changed_recordings_are_noticed_and_the_same_are_kept(folder, tmp_path):
    corpus = prepare_recordings([RecordingFolder(folder)], tmp_path / "corpus", num_processes=1)
    shard = next(corpus.glob("*.parquet"))
    before = shard.stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    folder = folder.rename(tmp_path / "elsewhere" / folder.name)
    prepare_recordings([RecordingFolder(folder)], corpus, num_processes=1)
    assert shard.stat().st_mtime_ns == before
    write_audio(folder / "1188" / "1.wav", np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(CorpusError, match="holds a corpus of 3 other items"):
        prepare_recordings([RecordingFolder(folder)], corpus, num_processes=1)


def test_what_cannot_be_used_is_named(folder, tmp_path):
    shutil.copy(folder / "1188" / "0.WAV", folder / "1188" / "0.flac")
    with pytest.raises(CorpusError, match="0.WAV and .*0.flac would get the id 1188/0; rename or remove one"):
        prepare_recordings([RecordingFolder(folder)], tmp_path / "corpus")
    (folder / "1188" / "0.flac").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="Found no recording in .*empty; expected audio files"):
        prepare_recordings([RecordingFolder(tmp_path / "empty")], tmp_path / "corpus")
    with pytest.raises(ValueError, match="Found no folder .*nowhere"):
        RecordingFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Found split 'dev' for .*; expected one of train, validation, test"):
        RecordingFolder(folder, "dev")
    with pytest.raises(ValueError, match=r"Entry 0 .* the keys \['folder', 'speaker'\]; expected folder and"):
        folders_of_recipe({"recordings": [{"folder": str(folder), "speaker": "me"}]})


def test_files_of_every_kind_are_found_by_content_and_the_rest_is_listed(folder, clips, tmp_path, capsys):
    waveform = load_audio(clips[3])
    for name in ("named.opus", "b.oga"):
        soundfile.write(folder / name, waveform, 16_000, format="OGG", subtype="OPUS")
    for name, kind in (
        ("a.aiff", "AIFF"),
        ("a2.au", "AU"),
        ("a3.caf", "CAF"),
        ("a4.w64", "W64"),
        ("no suffix", "WAV"),
    ):
        soundfile.write(folder / name, waveform, 16_000, format=kind, subtype="PCM_16")
    write_encoded(folder / "a5.m4a", waveform, "aac", 16_000)
    shutil.copy(clips[3], os.fsencode(folder) + b"/latin\xe9.flac")
    (folder / "a folder.wav").mkdir()
    (folder / "._0.wav").write_bytes(b"resource fork")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.wav").symlink_to(tmp_path / "nowhere")
    (folder / "notes.txt").write_text("not audio")
    (folder / "empty.wav").touch()
    (folder / "cut.flac").write_bytes(clips[0].read_bytes()[:60])
    (folder / "noise.mp3").write_bytes(b"fLaC nothing")
    corpus = prepare_recordings([RecordingFolder(folder)], tmp_path / "corpus", num_processes=1, rows_per_shard=4)
    identifiers = {row["id"].removeprefix("speech/") for row in iterate_corpus(corpus)}
    assert identifiers == {
        "1089/134/0", "1188/0", "loose", "named", "b", "a", "a2", "a3", "a4", "a5", "no suffix", "latin\\xe9",
    }  # fmt: skip
    assert set(left_out_items(corpus)) == {"speech/cut", "speech/noise"}
    printed = capsys.readouterr().err
    for expected in ("notes.txt: not audio", "empty.wav: is an empty file", "broken.wav: does not exist",
                     "speech/cut: ", "2 of 14 recordings are left out"):  # fmt: skip
        assert expected in printed
    assert "._0.wav" not in printed and "a folder.wav" not in printed


def test_a_corpus_without_a_usable_recording_is_an_error(clips, tmp_path):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "cut.flac").write_bytes(clips[0].read_bytes()[:60])
    with pytest.raises(CorpusError, match="None of the 1 recordings"):
        prepare_recordings([RecordingFolder(tmp_path / "speech")], tmp_path / "corpus", num_processes=1)


def test_prompts_are_joined_until_they_are_long_enough():
    prompts = [np.full(round(seconds * 16_000), value, np.float32) for value, seconds in ((1, 6), (2, 4), (3, 1))]
    first, last = join_prompts(iter(prompts))
    pause = 4000
    assert len(first) == 10 * 16_000 + 2 * pause and len(last) == 16_000 + pause
    assert (first[96_000 : 96_000 + pause] == 0).all() and (first[96_000 + pause : -pause] == 2).all()


def write_encoded(path, waveform: np.ndarray, codec: str, rate: int) -> None:
    """Write a waveform at 16 kHz in a format of telephony."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((waveform * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


@pytest.fixture
def archive(tmp_path, clips, monkeypatch):
    """A package as apt would bring it, with a program in its place that does so."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    tree = tmp_path / "tree"
    sounds = tree / "usr" / "share" / "sounds"
    sounds.mkdir(parents=True)
    for index, clip in enumerate(clips):
        write_encoded(sounds / f"{index}.g722", load_audio(clip), "g722", 16_000)
    (sounds / "nothing.g722").write_bytes(b"")
    (sounds / "damaged.wav").write_bytes(b"RIFF and nothing more")
    (sounds / "again.g722").symlink_to("0.g722")
    (sounds / "readme.txt").write_text("not audio")
    (tree / "DEBIAN").mkdir()
    fields = ["Package: prompts", "Version: 1", "Architecture: all", "Maintainer: Me <me@here>", "Description: x", ""]
    (tree / "DEBIAN" / "control").write_text("\n".join(fields))
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "prompts_1_all.deb")], check=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    script = f'#!/bin/sh\n[ "$1 $2" = "download prompts" ] && exec cp {tmp_path}/prompts_1_all.deb .\n'
    (programs / "apt-get").write_text(script + "echo 'E: Unable to locate package' >&2\nexit 100\n")
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")


def test_a_package_becomes_recordings_of_its_voice(archive, clips, tmp_path, capsys):
    packages = [{"name": "prompts", "voice": "reader", "licence": "CC-BY-SA-3.0"}]
    folders = debian_recordings(packages, tmp_path / "unpacked")
    assert "left out: damaged.wav: " in capsys.readouterr().err
    rows = list(iterate_corpus(prepare_recordings(folders, tmp_path / "corpus", num_processes=1)))
    assert {(row["voice"], row["licence"], row["source"]) for row in rows} == {("reader", "CC-BY-SA-3.0", "prompts")}
    assert [row["id"] for row in rows] == ["reader/0000", "reader/0001"]
    waveforms = [load_audio(row["audio"]["bytes"]) for row in rows]
    total = sum(len(load_audio(clip)) for clip in clips) + len(clips) * 4000
    assert sum(map(len, waveforms)) == pytest.approx(total, abs=2000) and len(waveforms[0]) >= 160_000
    # Every clip is in one of them, as far as the format of telephony keeps it.
    joined = np.concatenate(waveforms)
    for clip in map(load_audio, clips):
        size = 1 << 20
        product = np.fft.irfft(np.fft.rfft(joined, size) * np.conj(np.fft.rfft(clip, size)), size)
        place = int(product[: len(joined)].argmax())
        assert np.corrcoef(joined[place : place + len(clip)], clip[: len(joined) - place])[0, 1] > 0.9


def test_packages_that_cannot_be_had_are_explained(archive, tmp_path, monkeypatch):
    package = {"name": "prompts", "voice": "reader", "licence": "CC-BY-SA-3.0"}
    with pytest.raises(MissingMaterialError, match="apt brings no package songs; try `apt-get update`: E: Unable"):
        debian_recordings([package | {"name": "songs"}], tmp_path / "a")
    with pytest.raises(ValueError, match=r"Found a package with \['name'\]; expected name, voice and licence"):
        debian_recordings([{"name": "prompts"}], tmp_path / "b")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingMaterialError, match="Found no apt-get; the package prompts is only for Debian"):
        debian_recordings([package], tmp_path / "c")


def test_bad_files_beside_transcripts_are_left_out_and_two_of_one_stem_refused(tmp_path, capsys):
    write_audio(tmp_path / "a.wav", np.sin(np.arange(16000) / 10) / 2, 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio at all, only text")
    transcripts = tmp_path / "transcripts.json"
    transcripts.write_text(json.dumps({"a.wav": "one", "b.wav": "two"}))
    assert [item.text for item in read_recordings(tmp_path)] == ["one"]
    printed = capsys.readouterr().err
    assert f"left out: {tmp_path / 'b.wav'}: is not audio" in printed and "1 of 2 recordings are left out" in printed
    refused = {
        '{"b.wav": "two"}': "none of the 1",
        '["a.wav"]': "mapping",
        '{"a.wav": 1}': "mapping",
        "{": "is not JSON",
    }
    refused['{"a.wav": "one", "a.mp3": "two"}'] = "a.mp3 and .*a.wav would get the id a"
    for text, reason in refused.items():
        transcripts.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_recordings(tmp_path)


def test_bad_rows_of_a_corpus_are_left_out_and_counted(tmp_path, capsys):
    for name in ("a", "b"):
        write_audio(tmp_path / "clips" / f"{name}.wav", np.sin(np.arange(16000) / 10) / 2, 16000)
    corpus = prepare_recordings([RecordingFolder(tmp_path / "clips", split="test")], tmp_path / "corpus")
    shard = corpus / "shard-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["audio"]["bytes"] = b"no audio at all, only text"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    assert [item.id for item in read_corpus_recordings(corpus)] == ["clips/b"]
    printed = capsys.readouterr().err
    assert f"left out: {corpus}: clips/a: is not audio" in printed and "1 of 2 recordings are left out" in printed


def test_linked_folders_are_read_once_and_circles_left_out(tmp_path, capsys):
    for name in ("corpus/a.wav", "elsewhere/b.wav"):
        write_audio(tmp_path / name, np.sin(np.arange(16000) / 10) / 2, 16000)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "circle").symlink_to(tmp_path / "corpus")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    found = recordings_in(RecordingFolder(tmp_path / "corpus"))
    assert sorted(item.id for item in found) == ["corpus/a", "corpus/linked/b"]
    assert f"left out: {tmp_path}/corpus/circle: is a link to a folder" in capsys.readouterr().err
