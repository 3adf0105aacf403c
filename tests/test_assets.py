"""The shipped artefacts load, belong together and stay small."""

from pathlib import Path

import pytest
import torch

from tinywave.cli.shipped import ASSETS, AUDIO, SPEECH_ENCODER, SUITES, TEACHER, VOCODER
from tinywave.data.corpus import iterate_corpus, verify_splits
from tinywave.data.kokoro_voice import TEST_VOICES
from tinywave.data.unit_extraction import load_speech_encoder
from tinywave.eval.recordings import read_corpus_recordings, read_recordings
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.vocoder_tinywave import Vocoder

ROOT = Path(__file__).parents[1]
SUITE_NAMES = ("lexical", "syntactic", "story", "speaker")


def test_weights_stay_within_25_megabytes():
    weights = [path for folder in (SPEECH_ENCODER, TEACHER, VOCODER) for path in folder.rglob("*.safetensors")]
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 25e6


def test_the_code_beside_the_weights_is_the_code_of_this_repository():
    copies = [*TEACHER.glob("*.py"), *VOCODER.glob("*.py")]
    assert {path.name for path in copies} >= {"modeling_tinywave.py", "processing_tinywave.py", "vocoder_tinywave.py"}
    for path in copies:
        assert path.read_text() == (ROOT / path.name).read_text(), f"{path} is stale; save the model again"


def test_teacher_processor_and_vocoder_agree_on_the_units():
    model, vocoder = TinyWaveForCausalLM.from_pretrained(TEACHER), Vocoder.from_pretrained(VOCODER)
    processor = TinyWaveProcessor.from_pretrained(TEACHER)
    assert model.num_parameters() == 5_263_680
    assert model.config.num_units == vocoder.config.num_units == processor.config.num_units == 500
    inputs = processor([("speech", [3, 4, 5])])
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_suites_were_made_with_the_shipped_encoder(name):
    pairs = read_suite(SUITES / f"{name}.parquet")
    assert len(pairs) >= 200
    assert {pair.encoder for pair in pairs} == {load_speech_encoder(SPEECH_ENCODER).fingerprint()}


def test_unseen_voices_are_the_test_voices():
    assert {row["voice"] for row in iterate_corpus(AUDIO / "kokoro", ["voice"])} == set(TEST_VOICES)
    assert verify_splits(AUDIO / "kokoro")["test"] == len(read_corpus_recordings(AUDIO / "kokoro"))


def test_librivox_clips_have_transcripts():
    recordings = read_recordings(AUDIO / "librivox")
    assert len(recordings) == 5
    assert all(len(recording.waveform) > 16_000 and recording.text for recording in recordings)
    with pytest.raises(FileNotFoundError, match="transcripts.json"):
        read_recordings(ASSETS)


def test_every_folder_has_a_card():
    folders = [SPEECH_ENCODER, TEACHER, VOCODER, SUITES, AUDIO / "kokoro", AUDIO / "librivox", ASSETS / "text"]
    assert all((folder / "README.md").is_file() for folder in folders)
