"""Text and speech continued by tiny real models, on real speech."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import (
    PitchEncoderConfig,
    SpeechEncoderConfig,
    StyleEncoderConfig,
    TinyWaveConfig,
    VocoderConfig,
)
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.hibari_voice import HibariVoice
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.style_encoder_tinywave import StyleEncoder
from tinywave.tokenization_tinywave import build_tokenizer, deduplicate, train_text_tokenizer
from tinywave.vocoder_tinywave import Vocoder

NUM_UNITS = 500


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    utterance = HibariVoice().synthesize("The dog found a golden key.")
    return soxr.resample(utterance.waveform, utterance.sampling_rate, 16_000)


@pytest.fixture(scope="module")
def parts(speech) -> dict:
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    model = TinyWaveForCausalLM(config).eval()
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([text], config)))
    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 64, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=NUM_UNITS)).eval()
    features = encoder.extract_features([speech])[0].detach()
    spread = features[torch.randint(len(features), (NUM_UNITS,))]
    encoder.quantizer.centroids.copy_(spread + 0.01 * torch.randn_like(spread))
    vocoder = Vocoder(VocoderConfig(num_units=NUM_UNITS, hidden_size=16, duration_hidden_size=16)).eval()
    return {"model": model, "processor": processor, "speech_encoder": encoder, "vocoder": vocoder}


def _decoder(features, f0, energy):
    """Holds the first feature of every frame: each sample says which frame it came from."""
    return np.repeat(features[:, 0], 600)


@pytest.fixture
def pipeline(parts) -> TinyWavePipeline:
    codec = SpeechCodec(parts["speech_encoder"], parts["vocoder"], _decoder)
    return TinyWavePipeline(parts["model"], parts["processor"], codec)


def test_only_the_new_part_comes_back_cut_at_the_prompt_units(parts, pipeline, speech):
    (result,) = pipeline([("speech", speech)], max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert result.modality == "speech" and len(result.streams) == len(result.durations) == 12
    prompt = parts["speech_encoder"].encode([speech])[0]
    raw = torch.cat([prompt, torch.from_numpy(result.streams.units.repeat(result.durations))])
    assert result.waveform.shape == (960 * int(result.durations.sum()),)
    assert (result.start, result.end) == (0.0, len(result.waveform) / 24_000)
    with torch.no_grad():
        frames = parts["vocoder"](raw[None]).features[0, :, 0]
    # Sample i of the new part stands `i` samples after the prompt's last unit, in the frame that covers it.
    first = 960 * len(prompt)
    num_decoded = min(len(result.waveform), 600 * len(frames) - first)
    expected = frames[(first + torch.arange(num_decoded)) // 600]
    torch.testing.assert_close(result.waveform[:num_decoded], expected, rtol=1e-3, atol=1e-5)


def test_new_units_are_the_greedy_choice_of_the_model(parts, pipeline, speech):
    (result,) = pipeline([("speech", speech)], max_new_tokens=1, min_new_tokens=1, do_sample=False)
    config = parts["model"].config
    prompt = deduplicate(parts["speech_encoder"].encode([speech])[0])[0] + config.unit_offset
    with torch.no_grad():
        logits = parts["model"](torch.tensor([[config.bos_token_id, config.speech_marker_id, *prompt]])).logits[0, -1]
    choices = logits[config.unit_offset : config.unit_offset + NUM_UNITS]
    assert result.streams.units.tolist() == [int(choices.argmax())]


def test_a_batch_says_what_each_conversation_says_alone(pipeline, speech):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    conversations = [[("speech", speech)], [("text", "A dog"), ("speech", speech[:16_000])], [("text", "Say it.")]]
    together = pipeline(conversations, **options)
    for conversation, (result,) in zip(conversations, together, strict=True):
        (alone,) = pipeline(conversation, **options)
        assert alone.streams == result.streams
        torch.testing.assert_close(alone.waveform, result.waveform, rtol=1e-4, atol=1e-5)


def test_text_is_answered_in_text(parts, pipeline, speech):
    (result,) = pipeline([("speech", speech)], output_modality="text", max_new_tokens=6, do_sample=False)
    assert result.modality == "text" and result.waveform is None and result.start == result.end == 0.0
    inputs = parts["processor"]([("speech", parts["speech_encoder"].encode([speech])[0])], output_modality="text")
    ids = parts["model"].generate(**inputs, output_modality="text", max_new_tokens=6, do_sample=False)
    assert [("text", result.text)] == parts["processor"].ids_to_segments(ids[0, inputs["input_ids"].shape[1] :])


def test_free_output_is_timed_segment_by_segment(parts, pipeline):
    torch.manual_seed(2)
    config = parts["model"].config
    # Markers are two ids of a thousand to a model that has learnt nothing.
    options = {"sequence_bias": {(config.text_marker_id,): 4.0, (config.speech_marker_id,): 4.0}, "do_sample": True}
    results = pipeline([("text", "A dog")], output_modality="free", max_new_tokens=60, **options)
    assert {segment.modality for segment in results} == {"text", "speech"}
    seconds = 0.0
    for segment in results:
        length = 0 if segment.modality == "text" else len(segment.waveform)
        assert segment.start == pytest.approx(seconds)
        assert segment.end == pytest.approx(seconds + length / 24_000)
        seconds = segment.end


def test_pitch_and_style_of_the_prompt_go_on_until_the_model_changes_them(parts, speech):
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1)
    model = TinyWaveForCausalLM(config).eval()
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([text], config)))
    options = {"hidden_size": 16, "duration_hidden_size": 16, "num_pitch_tokens": 64, "num_style_tokens": 5}
    vocoder = Vocoder(VocoderConfig(num_units=NUM_UNITS, **options)).eval()
    pitch_encoder = PitchEncoder(PitchEncoderConfig()).eval()
    pitch_encoder.quantizer.codebook.normal_()
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    style_encoder = StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=5, projector_size=8)).eval()
    prosody = {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": load_f0_extractor()}
    codec = SpeechCodec(parts["speech_encoder"], vocoder, _decoder, **prosody)
    pipeline = TinyWavePipeline(model, processor, codec)
    (prompt,) = codec.encode([speech])
    new = [config.unit_offset + 7, config.unit_offset + 8, config.pitch_offset + 3, config.unit_offset + 9]
    (result,) = pipeline._ids_to_segments(torch.tensor(new), [("speech", prompt)])
    frames = codec.timed_to_frames(prompt)
    starts = _starts_of_runs(frames.units)
    new_pitch = np.repeat([frames.pitch[starts][-1]] * 2 + [3], result.durations)
    units = np.concatenate([frames.units, np.repeat([7, 8, 9], result.durations)])
    expected = vocoder.units_to_waveform(
        units,
        np.ones(len(units), dtype=int),
        _decoder,
        pitch=np.concatenate([frames.pitch[starts], new_pitch]),
        style=np.append(frames.style[starts], [frames.style[starts][-1]] * sum(result.durations)),
    )
    torch.testing.assert_close(result.waveform, expected[-len(result.waveform) :], rtol=1e-3, atol=1e-5)


def _starts_of_runs(units: np.ndarray) -> np.ndarray:
    """For each frame the first frame of its run of equal units."""
    _, durations = deduplicate(units)
    return np.repeat(np.cumsum(durations) - durations, durations)


def test_sampling_is_repeatable_and_speaks_without_a_decoder(parts, speech):
    codec = SpeechCodec(parts["speech_encoder"], parts["vocoder"])
    pipeline = TinyWavePipeline(parts["model"], parts["processor"], codec)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results += pipeline([("speech", speech)], max_new_tokens=5, min_new_tokens=5, do_sample=True)
    assert results[0].streams == results[1].streams
    assert len(results[0].waveform) == 960 * int(results[0].durations.sum())
    assert results[0].sampling_rate == 24_000


def test_bad_prompts_are_refused(pipeline, speech):
    with pytest.raises(ValueError, match="24000 Hz; expected 16000 Hz"):
        pipeline([("speech", speech)], sampling_rate=24_000)
    with pytest.raises(ValueError, match="the prompt is empty"):
        pipeline([])
    with pytest.raises(ValueError, match="lasts 50 ms"):
        pipeline([("speech", speech[:800])])


def test_parts_made_for_other_units_are_refused(parts):
    vocoder = Vocoder(VocoderConfig(num_units=100, hidden_size=16, duration_hidden_size=16))
    with pytest.raises(ValueError, match="100 in the vocoder"):
        SpeechCodec(parts["speech_encoder"], vocoder)
    expressive = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"codec of \['unit'\] and a language model of \['pitch', 'style', 'unit'\]"):
        TinyWavePipeline(expressive, parts["processor"], SpeechCodec(parts["speech_encoder"], parts["vocoder"]))
