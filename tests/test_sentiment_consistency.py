"""Sentiment of prompts and of their continuations: numbers worked out by hand, and tiny real models on real speech."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import StyleEncoderConfig, TinyWaveConfig
from tinywave.data.codec_loading import load_codec
from tinywave.eval.generative import GenerationSettings
from tinywave.eval.prosody import StyledPrompt
from tinywave.eval.recordings import read_recordings
from tinywave.eval.sentiment_consistency import (
    SENTIMENT_STYLES,
    SENTIMENTS,
    STYLE_TO_SENTIMENT,
    SentimentPrompt,
    SpeechSentiment,
    evaluate_sentiment,
    sentiment_transfer,
    styled_to_sentiment,
)
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.style_encoder_tinywave import StyleEncoder
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = GenerationSettings(max_new_tokens=40, seed=2)


def test_accuracy_and_confusion_by_hand():
    prompts = ["positive", "positive", "positive", "neutral", "negative", "negative"]
    continuations = ["positive", "negative", None, "neutral", "negative", "neutral"]
    record = sentiment_transfer(prompts, continuations)
    assert record["accuracy"] == pytest.approx(3 / 6)
    assert record["accuracy_by_label"] == {"positive": pytest.approx(1 / 3), "neutral": 1, "negative": 1 / 2}
    assert record["balanced_accuracy"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert record["confusion"] == {
        "positive": {"positive": 1, "neutral": 0, "negative": 1, "none": 1},
        "neutral": {"positive": 0, "neutral": 1, "negative": 0, "none": 0},
        "negative": {"positive": 0, "neutral": 1, "negative": 1, "none": 0},
    }
    assert (record["n"], record["num_unlabelled"], record["chance"]) == (6, 1, 1 / 3)
    # Standard deviation of three zeros and three ones, / sqrt(6).
    assert record["standard_error"] == pytest.approx(np.sqrt(6 * 0.25 / 5) / np.sqrt(6))
    assert 0 <= record["ci95"][0] < 0.5 < record["ci95"][1] <= 1
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_guesses_are_at_chance_within_the_interval_and_the_order_does_not_matter():
    generator = np.random.default_rng(0)
    prompts, guesses = (generator.choice(SENTIMENTS, size=600).tolist() for _ in range(2))
    record = sentiment_transfer(prompts, guesses)
    assert record["ci95"][0] < 1 / 3 < record["ci95"][1]
    order = generator.permutation(600)
    shuffled = sentiment_transfer([prompts[i] for i in order], [guesses[i] for i in order])
    assert shuffled["accuracy"] == record["accuracy"] and shuffled["confusion"] == record["confusion"]
    assert sentiment_transfer(["neutral"], [None])["accuracy"] == 0


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 labels of prompts and 2 of continuations"):
        sentiment_transfer(["neutral"], ["neutral", "positive"])
    with pytest.raises(ValueError, match="0 labels of prompts"):
        sentiment_transfer([], [])
    with pytest.raises(ValueError, match="the label 'happy'; expected one of"):
        sentiment_transfer(["neutral"], ["happy"])


def test_styles_are_sentiments():
    assert {STYLE_TO_SENTIMENT[style] for style in SENTIMENT_STYLES} == set(SENTIMENTS)
    waveform = np.zeros(16_000, np.float32)
    prompts = styled_to_sentiment([StyledPrompt("a", "sad", waveform), StyledPrompt("b", "breathy", waveform)])
    assert [(prompt.id, prompt.sentiment) for prompt in prompts] == [("a", "negative"), ("b", "neutral")]
    assert prompts[0].content[0] == "speech" and prompts[0].content[1] is waveform
    with pytest.raises(ValueError, match="prompts of the style 'bored'"):
        styled_to_sentiment([StyledPrompt("a", "bored", waveform)])


@pytest.fixture(scope="module")
def style_encoder():
    return StyleEncoder.from_pretrained(ROOT / "assets" / "codec" / "style_encoder").eval()


@pytest.fixture(scope="module")
def recordings():
    return [item.waveform for item in read_recordings(ROOT / "assets" / "audio" / "librivox")]


def test_a_recording_has_the_sentiment_of_most_of_its_seconds(style_encoder, recordings):
    classify = SpeechSentiment(style_encoder)
    for waveform in recordings[:3]:
        styles = style_encoder.encode([waveform])[0].tolist()
        counts = {}
        for style in styles:
            sentiment = STYLE_TO_SENTIMENT[style_encoder.config.style_names[style]]
            counts[sentiment] = counts.get(sentiment, 0) + 1
        assert classify(waveform, 16_000) in {name for name, n in counts.items() if n == max(counts.values())}
    assert classify(np.repeat(recordings[0], 3), 48_000) == classify(recordings[0], 16_000)
    assert classify(recordings[0][:1_000], 16_000) is None


def test_styles_that_have_no_sentiment_are_refused(style_encoder):
    for names in (None, ["base", "happy", "sad", "angry", "bored"]):
        config = StyleEncoderConfig.from_dict({**style_encoder.config.to_dict(), "style_names": names})
        with pytest.raises(ValueError, match="have no sentiment; expected names among"):
            SpeechSentiment(StyleEncoder(config))


def hum(features, f0, energy, style):
    """Speaks every frame of 600 samples as a voice of 150 Hz."""
    times = np.arange(600 * len(features)) / 24_000
    return sum(0.1 * np.sin(2 * np.pi * 150 * harmonic * times) for harmonic in range(1, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline():
    """A tiny model of units with text on the shipped speech encoder and vocoder."""
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    tokenizer = build_tokenizer(config, train_text_tokenizer([(ROOT / "LICENSE").read_text(encoding="utf-8")], config))
    shipped = load_codec(ROOT / "assets" / "codec", ["unit"], griffin_lim=True)
    codec = SpeechCodec(shipped.speech_encoder, shipped.vocoder, hum)
    processor = TinyWaveProcessor.from_config(config, tokenizer)
    return TinyWavePipeline(TinyWaveForCausalLM(config).eval(), processor, codec)


def test_spoken_prompts_are_classified_with_their_continuations(pipeline, style_encoder, recordings):
    prompts = [
        SentimentPrompt(sentiment, ("speech", waveform[:16_000]), sentiment)
        for sentiment, waveform in zip(SENTIMENTS, recordings, strict=False)
    ]
    classify = SpeechSentiment(style_encoder)
    record = evaluate_sentiment(pipeline, prompts, classify, settings=SETTINGS)
    torch.manual_seed(3)
    [segment] = pipeline([prompts[1].content], **SETTINGS.generation_options)
    assert record["rows"][1] == {
        "id": "neutral",
        "modality": "speech",
        "sentiment": "neutral",
        "prompt_classified": classify(prompts[1].content[1], 16_000),
        "continuation_classified": classify(segment.waveform.numpy(), 24_000),
    }
    heard = [row["continuation_classified"] for row in record["rows"]]
    assert record["accuracy"] == sum(label == name for label, name in zip(heard, SENTIMENTS, strict=True)) / 3
    read = [row["prompt_classified"] for row in record["rows"]]
    assert record["classifier"] == sentiment_transfer(SENTIMENTS, read, seed=2)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_text_goes_to_the_classifier_of_text(pipeline, style_encoder, recordings):
    prompts = [
        SentimentPrompt("a", ("text", "A good day"), "positive"),
        SentimentPrompt("b", ("speech", recordings[1][:16_000]), "negative"),
    ]
    read = []

    def classify_text(text):
        read.append(text)
        return "positive"

    classify = SpeechSentiment(style_encoder)
    record = evaluate_sentiment(
        pipeline, prompts, classify, classify_text=classify_text, output_modality="text", settings=SETTINGS
    )
    assert read[0] == "A good day" and len(read) == 3
    assert (record["accuracy"], record["output_modality"]) == (0.5, "text")
    assert record["rows"][1]["prompt_classified"] == classify(recordings[1][:16_000], 16_000)
    for options in ({"output_modality": "text"}, {}):
        with pytest.raises(ValueError, match="no classify_text"):
            evaluate_sentiment(pipeline, prompts, classify, settings=SETTINGS, **options)
