"""Word error rates and the path audio -> units -> audio -> text."""

import pytest
import soxr
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import SpeechEncoderConfig, VocoderConfig
from tinywave.data.hibari_voice import HibariVoice
from tinywave.eval.resynthesis import (
    SpokenText,
    WhisperTranscriber,
    evaluate_resynthesis,
    normalize_words,
    word_error_rate,
)
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.vocoder_tinywave import Vocoder

TEXT = "She opened the window and looked at the garden."


@pytest.fixture(scope="module")
def recording() -> SpokenText:
    utterance = HibariVoice().synthesize(TEXT)
    waveform = soxr.resample(utterance.waveform, utterance.sampling_rate, 16_000)
    return SpokenText("one", waveform, TEXT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Don't WAIT -- go!", "do not wait go"),
        ("Three hundred and five dogs", "305 dogs"),
        ("Mr. Smith, it's late", "mister smith it is late"),
        ("Wait... what?", "wait what"),
    ],
)
def test_spellings_of_the_same_words_agree(first, second):
    assert normalize_words(first) == normalize_words(second)


def test_word_error_rate_counts_edits_over_all_words():
    references = ["one bright day came", "she sold the boat", "we ran home"]
    heard = ["one bright day came", "she saw a boat", "we ran right home"]
    rate = word_error_rate(references, heard)
    assert rate.value == pytest.approx(3 / 11)
    assert (rate.n, rate.num_words) == (3, 11)
    assert 0 <= rate.ci95[0] < rate.value < rate.ci95[1] <= 0.5


def test_silence_counts_every_word_as_deleted():
    assert word_error_rate(["four words stand here"], [""]).value == 1.0


@pytest.mark.parametrize(
    ("references", "heard", "message"),
    [([], [], "Found 0 references"), (["a b"], [], "1 references for 0"), (["..."], ["a"], "without words")],
)
def test_bad_transcripts_are_refused(references, heard, message):
    with pytest.raises(ValueError, match=message):
        word_error_rate(references, heard)


def test_clean_speech_is_heard_and_noise_of_an_untrained_vocoder_is_not(recording):
    torch.manual_seed(0)
    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    encoder = SpeechEncoder(
        SpeechEncoderConfig(backbone_config=backbone | {"encoder_ffn_dim": 64}, layer=1, num_units=10)
    ).eval()
    encoder.quantizer.centroids.normal_()
    vocoder = Vocoder(VocoderConfig(num_units=10, hidden_size=16, duration_hidden_size=16)).eval()
    result = evaluate_resynthesis([recording], SpeechCodec(encoder, vocoder), WhisperTranscriber())
    assert result.original.value == 0.0
    assert result.resynthesis.value >= 0.8
    assert result.rows[0]["text"] == TEXT
    assert set(result.to_dict()) == {"original", "resynthesis"}
    assert result.resynthesis.ci95 is None, "one recording shows no spread"
