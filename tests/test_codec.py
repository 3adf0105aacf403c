"""Streams from real speech and back, with tiny real models."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import HifiGanConfig, PitchEncoderConfig, SpeechEncoderConfig, VocoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.tokenization_tinywave import SpeechStreams, deduplicate
from tinywave.vocoder_tinywave import Vocoder

CLIPS = sorted((Path(__file__).parents[1] / "assets" / "audio" / "librivox").glob("*.flac"))


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return [load_audio(path) for path in CLIPS[:2]]


@pytest.fixture(scope="module")
def encoder(speech) -> SpeechEncoder:
    torch.manual_seed(0)
    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 64, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=50)).eval()
    features = encoder.extract_features(speech[:1])[0].detach()
    encoder.quantizer.centroids.copy_(features[torch.randperm(len(features))[:50]])
    return encoder


@pytest.fixture(scope="module")
def pitch_encoder() -> PitchEncoder:
    torch.manual_seed(0)
    encoder = PitchEncoder(PitchEncoderConfig()).eval()
    for buffer in encoder.quantizer.buffers():
        buffer.copy_(torch.randn(buffer.shape))
    return encoder


def new_vocoder(**options) -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(VocoderConfig(num_units=50, hidden_size=16, duration_hidden_size=16, **options)).eval()


def test_the_streams_are_those_of_the_encoders(speech, encoder, pitch_encoder):
    extractor = load_f0_extractor()
    codec = SpeechCodec(encoder, new_vocoder(), pitch_encoder=pitch_encoder, f0_extractor=extractor)
    assert codec.stream_names == {"unit", "pitch"}
    for waveform, streams in zip(speech, codec.encode(speech), strict=True):
        assert np.array_equal(streams.units, encoder.encode([waveform])[0])
        assert np.array_equal(streams.pitch, pitch_encoder.f0_to_codes([extractor(waveform)])[0])
        assert streams.style is None and streams.ids is None
        assert abs(len(streams.units) - 2 * len(streams.pitch)) <= 2


def test_timed_and_parsed_streams_are_spoken_alike(speech, encoder):
    codec = SpeechCodec(encoder, new_vocoder())
    (streams,) = codec.encode(speech[:1])
    spoken = codec.decode(streams)
    assert len(spoken) == 960 * len(streams)
    units, durations = deduplicate(streams.units)
    torch.testing.assert_close(codec.decode(SpeechStreams(units, ids=units), durations), spoken)
    predicted = codec.decode(SpeechStreams(units, ids=units))
    assert len(predicted) == 960 * int(codec.vocoder.predict_durations(torch.from_numpy(units)[None]).sum())


def test_pitch_and_style_are_held_over_the_frames_of_their_units(encoder):
    codec = SpeechCodec(encoder, new_vocoder())
    frames = codec.timed_to_frames(SpeechStreams(range(50), pitch=range(25), style=[3, 4]))
    assert frames.pitch.tolist() == [frame // 2 for frame in range(50)]
    assert frames.style.tolist() == [3] * 25 + [4] * 25
    # The last code goes on where a stream is a frame short.
    assert codec.timed_to_frames(SpeechStreams(range(27), style=[3])).style.tolist() == [3] * 27


def test_a_vocoder_hears_the_prosody_that_it_knows(speech, encoder, pitch_encoder):
    prosody = {"pitch_encoder": pitch_encoder, "f0_extractor": load_f0_extractor()}
    codec = SpeechCodec(encoder, new_vocoder(num_pitch_tokens=64), **prosody)
    (streams,) = codec.encode(speech[:1])
    other = SpeechStreams(streams.units, (streams.pitch + 1) % 64)
    assert not torch.equal(codec.decode(streams), codec.decode(other))
    # HiFi-GANs that hear style only as one for an utterance, and not pitch, get neither.
    torch.manual_seed(0)
    small = {"num_units": 50, "num_pitch_tokens": 0, "num_style_tokens": 0, "num_styles": 2, "embedding_size": 8}
    hifigan = HifiGanVocoder(HifiGanConfig(**small, initial_channels=32, duration_hidden_size=8)).eval()
    codec = SpeechCodec(encoder, hifigan, **prosody)
    torch.testing.assert_close(codec.decode(streams), codec.decode(other))


def test_parts_that_do_not_fit_are_refused(encoder, pitch_encoder):
    with pytest.raises(ValueError, match="50 units in the speech encoder and 60 in the vocoder"):
        SpeechCodec(encoder, Vocoder(VocoderConfig(num_units=60, hidden_size=16, duration_hidden_size=16)))
    with pytest.raises(ValueError, match="pitch encoder without an F0 extractor"):
        SpeechCodec(encoder, new_vocoder(), pitch_encoder=pitch_encoder)
