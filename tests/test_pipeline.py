"""Text and speech continued by tiny real models, on real speech."""

import io
import threading
import warnings
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor

from tinywave.batching_tinywave import prompt_seed
from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import (
    HifiGanConfig,
    PitchEncoderConfig,
    SpeechEncoderConfig,
    StyleEncoderConfig,
    TinyWaveConfig,
    VocoderConfig,
)
from tinywave.data.audio_io import load_audio
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.hibari_voice import HibariVoice
from tinywave.generation_tinywave import stream_ids
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.loudness_tinywave import integrated_loudness
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline, last_frames
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.speech_inputs_tinywave import to_waveform
from tinywave.style_encoder_tinywave import StyleEncoder
from tinywave.tokenization_tinywave import build_tokenizer, deduplicate, train_text_tokenizer
from tinywave.vocoder_tinywave import Vocoder
from tinywave.waveform_tinywave import AudioError, AudioWarning

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


def _decoder(features, f0, energy, style):
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
    # What was said can be given back: the processor writes it into the next prompt as it was generated.
    assert result.streams.ids.tolist() == [config.unit_offset + int(choices.argmax())]
    row = pipeline.processor([[("speech", result.streams), ("text", "the")]], output_modality="speech")["input_ids"][0]
    assert row[:3].tolist() == [config.bos_token_id, config.speech_marker_id, *result.streams.ids]


def test_a_batch_says_what_each_conversation_says_alone(pipeline, speech):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    conversations = [[("speech", speech)], [("text", "A dog"), ("speech", speech[:16_000])], [("text", "Say it.")]]
    together = pipeline(conversations, **options)
    for conversation, (result,) in zip(conversations, together, strict=True):
        (alone,) = pipeline(conversation, **options)
        assert alone.streams == result.streams
        torch.testing.assert_close(alone.waveform, result.waveform, rtol=1e-4, atol=1e-5)


def test_conversations_are_continued_in_any_number_as_each_is_alone(pipeline, speech):
    named = {"speech": [("speech", speech)], "both": [("text", "A dog"), ("speech", speech[:16_000])]}
    named |= {"text": [("text", "Say it.")], 3: [("speech", speech[8_000:24_000])]}
    options = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": True}
    taken = []

    def conversations():
        for name, conversation in named.items():
            taken.append(name)
            yield name, conversation

    continued = pipeline.continue_many(conversations(), batch_size=2, seed=7, **options)
    assert taken == []
    first, *_ = next(continued)
    assert taken == ["speech", "both"] and first == "speech"
    together = dict(pipeline.continue_many(named.items(), batch_size=2, seed=7, **options))
    assert together.keys() == named.keys()
    for name, (result,) in together.items():
        torch.manual_seed(prompt_seed(7, name))
        (alone,) = pipeline(named[name], **options)
        assert alone.streams == result.streams
        torch.testing.assert_close(alone.waveform, result.waveform, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="found num_return_sequences"):
        pipeline.continue_many(named.items(), num_return_sequences=2)
    assert list(pipeline.continue_many([])) == []


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


@pytest.fixture(scope="module")
def expressive(parts) -> dict:
    """A model of units, pitch and style, and encoders and F0 for its codec."""
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1)
    model = TinyWaveForCausalLM(config).eval()
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([text], config)))
    pitch_encoder = PitchEncoder(PitchEncoderConfig()).eval()
    pitch_encoder.quantizer.codebook.normal_()
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    style_encoder = StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=5, projector_size=8)).eval()
    prosody = {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": load_f0_extractor()}
    return {"model": model, "processor": processor, "prosody": prosody}


def expressive_pipeline(parts, expressive, vocoder, decoder=None) -> TinyWavePipeline:
    codec = SpeechCodec(parts["speech_encoder"], vocoder, decoder, **expressive["prosody"])
    return TinyWavePipeline(expressive["model"], expressive["processor"], codec)


def expressive_vocoder(**options) -> Vocoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "duration_hidden_size": 16, "num_pitch_tokens": 64, "num_style_tokens": 5}
    return Vocoder(VocoderConfig(num_units=NUM_UNITS, **sizes, **options)).eval()


def test_pitch_and_style_of_the_prompt_go_on_until_the_model_changes_them(parts, expressive, speech):
    config, vocoder = expressive["model"].config, expressive_vocoder()
    pipeline = expressive_pipeline(parts, expressive, vocoder, _decoder)
    codec = pipeline.codec
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


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Read by people, not synthesised."""
    folder = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
    return [load_audio(path)[:48_000] for path in sorted(folder.glob("*.flac"))[:2]]


def test_recordings_are_continued_with_prosody_alone_and_in_a_batch(parts, expressive, recordings):
    pipeline = expressive_pipeline(parts, expressive, expressive_vocoder(optional_prosody=True), _decoder)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    conversations = [[("speech", recordings[0])], [("text", "She said"), ("speech", recordings[1])], [("text", "No.")]]
    config = expressive["model"].config
    # One of the three has neither speech before it nor, this way, pitch and style of its own.
    suppressed = {"suppress_tokens": list(range(config.pitch_offset, config.style_offset + 5))}
    together = pipeline(conversations, **options, **suppressed)
    for conversation, (result,) in zip(conversations, together, strict=True):
        (alone,) = pipeline(conversation, **options, **suppressed)
        assert alone.streams == result.streams and len(result.streams) == 24
        assert len(result.waveform) == 960 * int(result.durations.sum())
        torch.testing.assert_close(alone.waveform, result.waveform, rtol=1e-4, atol=1e-5)
        pieces = list(pipeline.stream(conversation, **options, **suppressed))
        assert joined(pieces).shape == result.waveform.shape and pieces[-1].end == result.end
    # What the vocoder hears of the prompt is in the continuation: without prosody it sounds otherwise.
    muted = pipeline._ids_to_segments(torch.from_numpy(together[0][0].streams.ids), [("text", "No.")])[0]
    assert muted.waveform.shape != together[0][0].waveform.shape or not torch.allclose(
        muted.waveform, together[0][0].waveform, atol=1e-3
    )


def test_a_vocoder_that_needs_prosody_says_so(parts, expressive):
    pipeline = expressive_pipeline(parts, expressive, expressive_vocoder(), _decoder)
    config = expressive["model"].config
    options = {"suppress_tokens": list(range(config.pitch_offset, config.style_offset + 5)), "do_sample": False}
    for ask in (pipeline, lambda *prompt, **options: list(pipeline.stream(*prompt, **options))):
        with pytest.raises(ValueError, match="Found no pitch; this vocoder speaks with 64 pitch codes"):
            ask([("text", "No.")], max_new_tokens=8, min_new_tokens=8, **options)
    assert threads_that_generate() == []


@pytest.mark.parametrize("prompt", ["speech", "text"])
def test_a_stream_with_prosody_says_what_the_whole_says(parts, expressive, recordings, prompt):
    """From text, the first units wait for the first pitch and style, which reach back to them."""
    conversation = [("speech", recordings[0])] if prompt == "speech" else [("text", "She said")]
    vocoder = new_hifigan(num_pitch_tokens=64, num_style_tokens=5)
    pipeline = expressive_pipeline(parts, expressive, vocoder)
    config = expressive["model"].config
    # Style and pitch are few of a thousand ids to a model that has learnt nothing.
    bias = {(index,): 2.0 for index in range(config.pitch_offset, config.style_offset + 5)}
    options = {"max_new_tokens": 120, "min_new_tokens": 120, "do_sample": True, "top_k": 0, "sequence_bias": bias}
    torch.manual_seed(6)
    (whole,) = pipeline(conversation, **options)
    torch.manual_seed(6)
    pieces = list(pipeline.stream(conversation, **options))
    assert len(set(whole.streams.pitch.tolist())) > 3 and len(set(whole.streams.style.tolist())) > 1
    torch.testing.assert_close(joined(pieces), whole.waveform, rtol=1e-4, atol=1e-5)
    assert pieces[-1].end == whole.end


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


def new_hifigan(**counts) -> HifiGanVocoder:
    """A vocoder whose streaming is exact, loud enough for a tolerance to mean something."""
    torch.manual_seed(0)
    sizes = {"num_units": NUM_UNITS, "num_speakers": 0, "embedding_size": 8, "initial_channels": 32} | counts
    vocoder = HifiGanVocoder(HifiGanConfig(**sizes, duration_hidden_size=8, weight_norm=False)).eval()
    for name, parameter in vocoder.named_parameters():
        if name.startswith(("conv", "ups", "resblocks")) and name.endswith("weight"):
            parameter.data.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
    vocoder.dur_predictor.proj.bias.data.fill_(1.1)  # two or three frames a unit
    return vocoder


@pytest.fixture(scope="module")
def hifigan() -> HifiGanVocoder:
    return new_hifigan(num_pitch_tokens=0, num_style_tokens=0)


@pytest.fixture
def exact(parts, hifigan) -> TinyWavePipeline:
    return TinyWavePipeline(parts["model"], parts["processor"], SpeechCodec(parts["speech_encoder"], hifigan))


def joined(pieces) -> torch.Tensor:
    return torch.cat([piece.waveform for piece in pieces])


@pytest.mark.parametrize("prompt", ["speech", "short speech", "text"])
def test_a_stream_says_what_the_whole_says(exact, speech, prompt):
    prompts = {
        "speech": [("speech", speech)],
        "short speech": [("speech", speech[:4000])],
        "text": [("text", "A dog")],
    }
    options = {"max_new_tokens": 70, "min_new_tokens": 70, "do_sample": True, "temperature": 0.9}
    torch.manual_seed(5)
    (whole,) = exact(prompts[prompt], **options)
    torch.manual_seed(5)
    pieces = list(exact.stream(prompts[prompt], **options))
    assert len(pieces) > 3 and whole.waveform.std() > 0.05
    assert pieces[0].start == 0.0 and pieces[-1].end == whole.end
    assert all(piece.end == following.start for piece, following in zip(pieces, pieces[1:], strict=False))
    assert all(piece.end - piece.start == pytest.approx(len(piece.waveform) / 16_000) for piece in pieces)
    assert len(joined(pieces)) == 640 * int(whole.durations.sum())
    torch.testing.assert_close(joined(pieces), whole.waveform, rtol=1e-4, atol=1e-5)


def test_streamed_ids_are_those_of_generate(parts):
    model = parts["model"]
    inputs = parts["processor"]([("text", "A dog")], output_modality="speech")
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 5}):
        torch.manual_seed(3)
        whole = model.generate(**inputs, output_modality="speech", max_new_tokens=30, **options)
        torch.manual_seed(3)
        streamed = list(stream_ids(model, **inputs, output_modality="speech", max_new_tokens=30, **options))
        assert streamed == whole[0, inputs["input_ids"].shape[1] :].tolist()


class Gate(LogitsProcessor):
    """Holds the generation back at a step until it is opened."""

    def __init__(self, step: int):
        self.step, self.opened, self.calls = step, threading.Event(), 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == self.step and not self.opened.wait(timeout=60):
            raise TimeoutError("nothing was said before the generation went on")
        return scores


def threads_that_generate() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def test_the_first_piece_comes_while_ids_are_still_generated(exact, speech):
    """The last hundred ids are generated only after the first piece has been heard."""
    gate = Gate(step=100)
    pieces = exact.stream([("speech", speech)], max_new_tokens=200, min_new_tokens=200, logits_processor=[gate])
    first = next(pieces)
    assert len(first.waveform) > 0 and gate.calls <= 100
    gate.opened.set()
    rest = list(pieces)
    assert gate.calls == 200 and rest[-1].end > first.end
    assert threads_that_generate() == []


def test_a_stream_that_is_closed_early_stops_the_generation(exact, speech):
    gate = Gate(step=150)
    pieces = exact.stream([("speech", speech)], max_new_tokens=1500, min_new_tokens=1500, logits_processor=[gate])
    next(pieces)
    gate.opened.set()
    pieces.close()
    assert gate.calls < 1500
    assert threads_that_generate() == []
    unread = exact.stream([("speech", speech)], max_new_tokens=5)
    unread.close()
    assert threads_that_generate() == []


def test_an_error_of_the_model_reaches_the_reader(exact, speech):
    def fail(input_ids, scores):
        if input_ids.shape[1] > 60:
            raise RuntimeError("the model broke")
        return scores

    with pytest.raises(RuntimeError, match="the model broke"):
        list(exact.stream([("text", "A dog")], max_new_tokens=100, min_new_tokens=100, logits_processor=[fail]))
    with pytest.raises(ValueError, match="exceed the context"):
        list(exact.stream([("speech", speech)], max_new_tokens=5000))
    with pytest.raises(ValueError, match="found a batch of conversations; a stream continues one"):
        list(exact.stream([("speech", speech)], max_new_tokens=5, do_sample=True, num_return_sequences=2))
    assert threads_that_generate() == []


def test_an_error_of_the_vocoder_ends_the_generation(parts, speech):
    def broken(features, f0, energy, style):
        raise RuntimeError("the decoder broke")

    codec = SpeechCodec(parts["speech_encoder"], parts["vocoder"], broken)
    pieces = TinyWavePipeline(parts["model"], parts["processor"], codec).stream(
        [("speech", speech)], max_new_tokens=1500
    )
    with pytest.raises(RuntimeError, match="the decoder broke"):
        next(pieces)
    assert threads_that_generate() == []


def test_a_vocoder_with_seams_streams_every_sample(parts, speech):
    pipeline = TinyWavePipeline(
        parts["model"], parts["processor"], SpeechCodec(parts["speech_encoder"], parts["vocoder"], _decoder)
    )
    options = {"max_new_tokens": 60, "min_new_tokens": 60, "do_sample": False}
    (whole,) = pipeline([("speech", speech)], **options)
    pieces = list(pipeline.stream([("speech", speech)], chunk_units=10, **options))
    assert len(pieces) > 3 and joined(pieces).shape == whole.waveform.shape
    (piece, *_) = pipeline.stream([("speech", speech)], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.isfinite(piece.waveform).all()


def test_free_output_is_streamed_with_its_text(parts, exact):
    config = parts["model"].config
    options = {"sequence_bias": {(config.text_marker_id,): 4.0, (config.speech_marker_id,): 4.0}, "do_sample": True}
    options |= {"output_modality": "free", "max_new_tokens": 60}
    torch.manual_seed(2)
    whole = exact([("text", "A dog")], **options)
    torch.manual_seed(2)
    runs = [
        (modality, list(run))
        for modality, run in groupby(exact.stream([("text", "A dog")], **options), key=lambda piece: piece.modality)
    ]
    assert [modality for modality, _ in runs] == [segment.modality for segment in whole]
    assert {segment.modality for segment in whole} == {"text", "speech"}
    for segment, (_, pieces) in zip(whole, runs, strict=True):
        assert (pieces[0].start, pieces[-1].end) == pytest.approx((segment.start, segment.end))
        if segment.modality == "text":
            assert "".join(piece.text for piece in pieces) == segment.text
        else:
            torch.testing.assert_close(joined(pieces), segment.waveform, rtol=1e-4, atol=1e-5)


def test_a_character_of_several_tokens_is_written_at_once(parts, exact):
    text = "A dog, \u00e9t\u00e9, \U0001f415!"
    ids = parts["processor"].tokenizer.encode(text, add_special_tokens=False)
    pieces = list(exact._stream_text(iter(ids)))
    assert "".join(pieces) == text and len(pieces) < len(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    # Half a character at the end of a generation is not lost.
    assert "".join(exact._stream_text(iter(ids[:-3]))) == parts["processor"].tokenizer.decode(ids[:-3])


def test_a_stream_refuses_what_the_whole_refuses(exact, speech):
    with pytest.raises(ValueError, match="sampling rate of 24 Hz"):
        exact.stream([("speech", speech)], sampling_rate=24)
    with pytest.raises(ValueError, match="found a batch of conversations"):
        exact.stream([[("speech", speech)], [("speech", speech)]])
    with pytest.raises(ValueError, match="the prompt is empty|a prompt is empty"):
        exact.stream([])
    with pytest.raises(ValueError, match="chunk_units=0"):
        list(exact.stream([("speech", speech)], chunk_units=0, max_new_tokens=5))


def test_a_codec_without_a_vocoder_answers_in_text_alone(parts, speech):
    pipeline = TinyWavePipeline(parts["model"], parts["processor"], SpeechCodec(parts["speech_encoder"]))
    options = {"output_modality": "text", "max_new_tokens": 6, "do_sample": False}
    (whole,) = pipeline([("speech", speech)], **options)
    assert "".join(piece.text for piece in pipeline.stream([("speech", speech)], **options)) == whole.text
    for ask in (pipeline, pipeline.stream):
        with pytest.raises(ValueError, match="has no vocoder, so it cannot speak; ask for text"):
            ask([("speech", speech)])


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(0, 60), st.integers(1, 7))
def test_the_last_frames_are_what_is_left_of_their_units(durations, num_frames, edge):
    rows = [(unit, None, None) for unit in range(len(durations))]
    frames = [row for row, duration in zip(rows, durations, strict=True) for _ in range(duration)]
    kept = [row for row, duration in last_frames(rows, durations, num_frames, edge) for _ in range(duration)]
    assert kept == frames[len(frames) - len(kept) :]
    assert (len(frames) - len(kept)) % edge == 0
    assert len(kept) == len(frames) or num_frames <= len(kept) < num_frames + edge


def test_bad_prompts_are_refused(pipeline, speech):
    with pytest.raises(ValueError, match="sampling rate of 24 Hz"):
        pipeline([("speech", speech)], sampling_rate=24)
    with pytest.raises(ValueError, match="found integers from -.* as speech, and units are 0 to 499"):
        pipeline([("speech", (speech * 32767).astype(np.int16))])
    for wrong in ("A dog", [speech], speech, [[]], [("song", speech)], {"array": speech}):
        with pytest.raises(ValueError, match="expected a conversation, a list of segments"):
            pipeline(wrong)
    for option in ("return_dict_in_generate", "output_scores", "output_attentions"):
        with pytest.raises(ValueError, match=f"found {option}; a pipeline returns segments alone"):
            pipeline([("speech", speech)], **{option: True})
    with pytest.raises(ValueError, match="the prompt is empty"):
        pipeline([])
    with pytest.raises(ValueError, match="lasts 50 ms"):
        pipeline([("speech", speech[:800])])


class Decoder:
    """The interface of the audio decoders of `datasets`: channels first."""

    def __init__(self, samples, sample_rate):
        self.data, self.sample_rate = samples, sample_rate

    def get_all_samples(self):
        return self


def forms_of(speech, tmp_path):
    """The same second of speech in every form that is accepted, with the largest difference that its format makes."""
    pcm = np.clip(np.round(speech * 32768), -32768, 32767).astype(np.int16)
    path = tmp_path / "speech.wav"
    soundfile.write(path, pcm, 16_000)
    content = path.read_bytes()
    return {
        "float32": speech, "float64": speech.astype(np.float64), "tensor": torch.from_numpy(speech),
        "list": ("speech", speech.tolist()), "column": speech[:, None], "row": torch.from_numpy(speech)[None],
        "stereo": np.stack([speech, speech], 1), "gradio": (16_000, pcm),
        "array": {"array": speech, "sampling_rate": 16_000},
        "raw": {"raw": speech, "sampling_rate": 16_000}, "bytes": content, "path": path,
        "path and bytes": {"path": None, "bytes": content}, "path alone": {"path": str(path), "bytes": None},
        "decoder": Decoder(torch.from_numpy(speech)[None], 16_000),
    }  # fmt: skip


def test_audio_in_every_form_is_the_same_prompt(pipeline, speech, tmp_path):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    second = np.ascontiguousarray(speech[:16_000], dtype=np.float32)
    (expected,) = pipeline([("speech", second)], **options)
    for name, audio in forms_of(second, tmp_path).items():
        segment = audio if name == "list" else ("speech", audio)
        for conversation in (segment, [segment]):
            (found,) = pipeline(conversation, **options)
            assert found.streams == expected.streams, name


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF"])
def test_encoded_files_are_read_whole_or_refused(speech, tmp_path, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, speech[:16_000], 16_000, format=kind)
    content, path = buffer.getvalue(), tmp_path / "recording"
    assert len(to_waveform(content, None, 16_000)) == 16_000
    path.write_bytes(content * 2)
    for audio in (path, content * 2, {"path": str(path)}):
        with pytest.raises(AudioError, match="consists of several files, one after the other; decode it first"):
            to_waveform(audio, None, 16_000)
    if kind != "FLAC":  # A FLAC file that is cut is an error of libsndfile.
        with pytest.warns(AudioWarning, match="ends before the end that its header states"):
            assert 7_000 < len(to_waveform(content[: len(content) // 2], None, 16_000)) < 8_100
        # A program that writes to a pipe knows no length, and states the largest.
        order, marker = ("little", b"data") if kind == "WAV" else ("big", b"SSND")
        place = content.index(marker) + 4
        piped = content[:place] + 0x7FFFFFF0.to_bytes(4, order) + content[place + 4 :]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(to_waveform(piped, None, 16_000)) == 16_000


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_audio_at_another_rate_is_resampled(pipeline, speech, rate):
    other = soxr.resample(speech, 16_000, rate)
    expected = pipeline.codec.encode([soxr.resample(other, rate, 16_000).clip(-1, 1).astype(np.float32)])[0].units
    forms = [({"array": other, "sampling_rate": rate}, None), ((rate, other), None), (other, rate)]
    for audio, sampling_rate in forms:
        prompt, _ = pipeline._prepare([("speech", audio)], sampling_rate, False)
        np.testing.assert_array_equal(prompt[0][1].units, expected)


def test_several_continuations_of_each_prompt(pipeline, speech):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    single = pipeline([("speech", speech)], **options)
    assert len(single) == 3 and all(len(segments) == 1 for segments in single)
    assert len({tuple(segments[0].streams.units) for segments in single}) > 1
    batch = pipeline([[("speech", speech)], [("text", "A dog")]], **options)
    assert [len(continuations) for continuations in batch] == [3, 3]


def loud(pipeline, waveform):
    return integrated_loudness(waveform, pipeline.codec.output_sampling_rate)


def test_the_gain_is_that_between_the_prompt_and_its_resynthesis(parts, speech):
    codec = SpeechCodec(parts["speech_encoder"], parts["vocoder"])
    pipeline = TinyWavePipeline(parts["model"], parts["processor"], codec)
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    for level in (1.0, 0.25):
        prompt = [("speech", level * speech)]
        (plain,), (matched,) = pipeline(prompt, **options), pipeline(prompt, match_loudness=True, **options)
        resynthesis = codec.decode(codec.encode([level * speech])[0]).numpy()
        expected = integrated_loudness(level * speech, 16_000) - loud(pipeline, resynthesis)
        found = loud(pipeline, matched.waveform.numpy()) - loud(pipeline, plain.waveform.numpy())
        assert found == pytest.approx(np.clip(expected, -20, 20), abs=0.3)
        assert matched.waveform.abs().max() < 1
        assert matched.streams == plain.streams


def test_a_stream_has_the_gain_of_the_whole(exact, speech):
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "match_loudness": True}
    (whole,) = exact([("speech", 0.3 * speech)], **options)
    pieces = list(exact.stream([("speech", 0.3 * speech)], chunk_units=5, **options))
    torch.testing.assert_close(torch.cat([piece.waveform for piece in pieces]), whole.waveform, rtol=0, atol=1e-5)


def test_parts_made_for_other_units_are_refused(parts):
    vocoder = Vocoder(VocoderConfig(num_units=100, hidden_size=16, duration_hidden_size=16))
    with pytest.raises(ValueError, match="100 in the vocoder"):
        SpeechCodec(parts["speech_encoder"], vocoder)
    expressive = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"codec of \['unit'\] and a language model of \['pitch', 'style', 'unit'\]"):
        TinyWavePipeline(expressive, parts["processor"], SpeechCodec(parts["speech_encoder"], parts["vocoder"]))
