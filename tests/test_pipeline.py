"""Speech continuation with tiny real models on real speech."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from tinywave.configuration_tinywave import SpeechEncoderConfig, TinyWaveConfig, VocoderConfig
from tinywave.data.hibari_voice import HibariVoice
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import SpeechContinuationPipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer
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


def test_only_the_new_part_comes_back_cut_at_the_prompt_units(parts, speech):
    pipeline = SpeechContinuationPipeline(**parts, decoder=_decoder)
    result = pipeline(speech, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert len(result.units) == len(result.durations) == 12
    assert result.prompt_durations.sum() == len(speech) // 640
    assert result.waveform.shape == (960 * int(result.durations.sum()),)
    raw = torch.cat(
        [
            torch.repeat_interleave(result.prompt_units, result.prompt_durations),
            torch.repeat_interleave(result.units, result.durations),
        ]
    )
    with torch.no_grad():
        frames = parts["vocoder"](raw[None]).features[0, :, 0]
    # Sample i of the new part stands `i` samples after the prompt's last unit, in the frame that covers it.
    first = 960 * int(result.prompt_durations.sum())
    num_decoded = min(len(result.waveform), 600 * len(frames) - first)
    expected = frames[(first + torch.arange(num_decoded)) // 600]
    torch.testing.assert_close(result.waveform[:num_decoded], expected, rtol=1e-3, atol=1e-5)


def test_new_units_are_the_greedy_choice_of_the_model(parts, speech):
    pipeline = SpeechContinuationPipeline(**parts, decoder=_decoder)
    result = pipeline(speech, max_new_tokens=1, min_new_tokens=1, do_sample=False)
    config = parts["model"].config
    ids = [config.bos_token_id, config.speech_marker_id, *(result.prompt_units + config.unit_offset).tolist()]
    with torch.no_grad():
        logits = parts["model"](torch.tensor([ids])).logits[0, -1]
    choices = logits[config.unit_offset : config.unit_offset + NUM_UNITS]
    assert result.units.tolist() == [int(choices.argmax())]


def test_sampling_is_repeatable_and_speaks_without_a_decoder(parts, speech):
    pipeline = SpeechContinuationPipeline(**parts)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(pipeline(speech, max_new_tokens=5, min_new_tokens=5, do_sample=True))
    assert results[0].units.tolist() == results[1].units.tolist()
    assert len(results[0].waveform) == 960 * int(results[0].durations.sum())
    assert results[0].sampling_rate == 24_000


def test_prompt_at_another_rate_is_refused(parts, speech):
    with pytest.raises(ValueError, match="24000 Hz; expected 16000 Hz"):
        SpeechContinuationPipeline(**parts)(speech, sampling_rate=24_000)


def test_parts_made_for_other_units_are_refused(parts):
    vocoder = Vocoder(VocoderConfig(num_units=100, hidden_size=16, duration_hidden_size=16))
    with pytest.raises(ValueError, match="100 in the vocoder"):
        SpeechContinuationPipeline(**{**parts, "vocoder": vocoder})
