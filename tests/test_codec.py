"""Streams from real speech and back, with tiny real models."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import (
    HifiGanConfig,
    PitchEncoderConfig,
    SpeechEncoderConfig,
    StyleEncoderConfig,
    VocoderConfig,
)
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec, save_encoders
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.f0_tinywave import SwiftF0Extractor
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.style_encoder_tinywave import StyleEncoder
from tinywave.tokenization_tinywave import SpeechStreams, deduplicate, ids_to_streams, streams_to_ids
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
    encoder = PitchEncoder(PitchEncoderConfig(f0_extractor="swift-f0")).eval()
    for buffer in encoder.quantizer.buffers():
        buffer.copy_(torch.randn(buffer.shape))
    return encoder


@pytest.fixture(scope="module")
def style_encoder() -> StyleEncoder:
    torch.manual_seed(0)
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    return StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=3, projector_size=8)).eval()


@pytest.fixture(scope="module")
def prosody(pitch_encoder, style_encoder) -> dict:
    return {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": SwiftF0Extractor()}


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


def test_a_vocoder_of_optional_prosody_speaks_any_streams(speech, encoder, prosody):
    vocoder = new_vocoder(num_pitch_tokens=64, num_style_tokens=3, optional_prosody=True)
    codec = SpeechCodec(encoder, vocoder, **prosody)
    assert codec.heard_streams == {"pitch", "style"}
    (streams,) = codec.encode([speech[0][:32_000]])
    spoken = [
        codec.decode(SpeechStreams(streams.units, pitch, style))
        for pitch in (streams.pitch, None)
        for style in (streams.style, None)
    ]
    assert {len(waveform) for waveform in spoken} == {960 * len(streams)}
    assert not any(torch.equal(spoken[0], other) for other in spoken[1:])
    units_alone = SpeechCodec(encoder, vocoder)
    torch.testing.assert_close(units_alone.decode(units_alone.encode([speech[0][:32_000]])[0]), spoken[3])


def test_streams_that_last_longer_than_the_units_are_refused(encoder):
    codec = SpeechCodec(encoder, new_vocoder())
    for pitch, seconds in ((range(39), "3.12"), ([], "0.00")):
        with pytest.raises(ValueError, match=f"found {seconds} s of pitch for 2.00 s of units; expected 12.5 values"):
            codec.timed_to_frames(SpeechStreams(range(50), pitch=pitch))
    # An hour of the published encoder, whose clock is slower than its rate.
    assert len(codec.timed_to_frames(SpeechStreams([0] * 89_964, style=[0] * 3600)).style) == 89_964


def test_a_codec_without_a_vocoder_encodes_and_says_that_it_cannot_speak(speech, encoder):
    codec = SpeechCodec(encoder)
    (streams,) = codec.encode(speech[:1])
    for speak in (codec.decode, lambda streams: codec.stream(streams.units, np.ones(len(streams)))):
        with pytest.raises(ValueError, match="has no vocoder, so it cannot speak"):
            speak(streams)


def test_the_layout_of_a_codec_holds_its_streams_and_nothing_else(speech, encoder, prosody):
    plain, expressive = SpeechCodec(encoder).token_layout(), SpeechCodec(encoder, **prosody).token_layout()
    ranges = {"text": range(3, 3), "unit": range(5, 55)}
    assert plain.stream_ranges() == ranges and plain.vocab_size == 55
    ranges |= {"pitch": range(55, 119), "style": range(119, 122)}
    assert expressive.stream_ranges() == ranges and expressive.vocab_size == 122
    (streams,) = SpeechCodec(encoder, **prosody).encode(speech[:1])
    ids, durations = streams_to_ids(streams, expressive, return_durations=True)
    assert ids_to_streams(ids, expressive, durations) == streams


def test_the_fingerprint_names_every_encoder(encoder, prosody, pitch_encoder):
    assert SpeechCodec(encoder).fingerprint() == encoder.fingerprint()
    before = SpeechCodec(encoder, new_vocoder(), **prosody).fingerprint()
    assert before == SpeechCodec(encoder, **prosody).fingerprint(), "how speech is spoken changes no token"
    assert [len(part) for part in before.split("-")] == [16, 16, 16]
    pitch_encoder.quantizer.codebook.add_(1)
    after = SpeechCodec(encoder, **prosody).fingerprint().split("-")
    pitch_encoder.quantizer.codebook.sub_(1)
    assert [old == new for old, new in zip(before.split("-"), after, strict=True)] == [True, False, True]


def test_saved_is_loaded_by_both_ways(speech, encoder, prosody, tmp_path):
    vocoder = new_vocoder(num_pitch_tokens=64, num_style_tokens=3)
    codec = SpeechCodec(encoder, vocoder, **prosody)
    codec.save_pretrained(tmp_path / "whole")
    save_encoders(codec, tmp_path / "encoders")
    (expected,) = codec.encode(speech[:1])
    for loaded in (
        SpeechCodec.from_pretrained(tmp_path / "whole"),
        load_codec(tmp_path / "whole", griffin_lim=True),
        load_codec(tmp_path / "encoders"),
    ):
        assert loaded.fingerprint() == codec.fingerprint()
        assert loaded.encode(speech[:1]) == [expected]
    assert loaded.vocoder is None
    units = load_codec(tmp_path / "encoders", ["unit", "text"])
    assert units.stream_names == {"unit"}
    short = SpeechStreams(expected.units[:25], expected.pitch[:12], expected.style[:1])
    assert torch.equal(SpeechCodec.from_pretrained(tmp_path / "whole").decode(short), codec.decode(short))


def test_folders_that_hold_no_codec_are_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="holds no codec: found no speech_encoder/config.json"):
        SpeechCodec.from_pretrained(tmp_path)
    SpeechCodec(encoder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no encoder for pitch and style; expected pitch_encoder in it"):
        load_codec(tmp_path, ["unit", "pitch", "style"])
    with pytest.raises(FileNotFoundError, match="nowhere contains no model"):
        load_codec(tmp_path, vocoder=tmp_path / "nowhere")
