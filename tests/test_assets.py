"""The shipped artefacts load, belong together and stay small."""

from pathlib import Path

import pytest
import torch

from tinywave.cli.shipped import (
    ASSETS,
    AUDIO,
    CODEC,
    SUITES,
    TEACHER,
    WHISPER_UNITS,
)
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.data.corpus import iterate_corpus, verify_splits
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.eval.recordings import read_corpus_recordings, read_recordings
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor

ROOT = Path(__file__).parents[1]
SUITE_NAMES = ("lexical", "syntactic", "story", "speaker")


PARTS = ("speech_encoder", "pitch_encoder", "style_encoder", "vocoder")


@pytest.fixture(scope="module")
def codec():
    return load_codec(CODEC)


def test_weights_stay_within_25_megabytes():
    weights = sorted(ASSETS.rglob("*.safetensors"))
    folders = [TEACHER, WHISPER_UNITS, *(CODEC / name for name in PARTS)]
    assert [path.parent for path in weights] == sorted(folders)
    assert sum(path.stat().st_size for path in weights) <= 25e6


def test_no_code_is_copied_beside_the_weights():
    assert [path.name for path in ASSETS.rglob("*.py")] == ["__init__.py"]


def test_the_teacher_reads_the_streams_of_the_codec(codec):
    model, processor = TinyWaveForCausalLM.from_pretrained(TEACHER), TinyWaveProcessor.from_pretrained(TEACHER)
    assert model.num_parameters() == 5_288_256
    counts = (codec.speech_encoder.num_units, codec.pitch_encoder.num_codes, codec.style_encoder.num_styles)
    for config in (model.config, processor.config):
        assert (config.num_units, config.num_pitch_tokens, config.num_style_tokens) == counts
    vocoder = codec.vocoder.config
    assert (vocoder.num_units, vocoder.num_pitch_tokens, vocoder.num_style_tokens) == counts
    streams = codec.encode([load_audio(next((AUDIO / "librivox").glob("*.flac")))])[0]
    with torch.no_grad():
        assert torch.isfinite(model(**processor([("speech", streams)])).logits).all()


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_suites_were_made_with_the_shipped_codec(name, codec):
    pairs = read_suite(SUITES / f"{name}.parquet")
    assert len(pairs) >= 200
    assert {pair.encoder for pair in pairs} == {codec.fingerprint()}


def test_unseen_voices_are_the_test_voices():
    assert {row["voice"] for row in iterate_corpus(AUDIO / "kokoro", ["voice"])} == set(TEST_VOICES)
    assert verify_splits(AUDIO / "kokoro")["test"] == len(read_corpus_recordings(AUDIO / "kokoro"))


def test_librivox_clips_have_transcripts():
    recordings = read_recordings(AUDIO / "librivox")
    assert len(recordings) == 5
    assert all(len(recording.waveform) > 16_000 and recording.text for recording in recordings)
    with pytest.raises(FileNotFoundError, match="transcripts.json"):
        read_recordings(ASSETS)


def test_whispers_licence_lies_beside_what_was_made_of_it():
    for folder in (WHISPER_UNITS, CODEC / "speech_encoder"):
        assert "(c) 2022 OpenAI" in (folder / "LICENSE").read_text(), folder


def test_every_folder_has_a_card():
    folders = [CODEC, CODEC / "speech_encoder", WHISPER_UNITS, TEACHER, SUITES]
    folders += [AUDIO / "kokoro", AUDIO / "librivox", ASSETS / "text"]
    assert all((folder / "README.md").is_file() for folder in folders)
