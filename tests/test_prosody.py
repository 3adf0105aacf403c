"""Prosody of prompts and of their continuations: numbers worked out by hand, and tiny real models on real speech."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.corpus import CorpusError, TextItem, prepare_corpus
from tinywave.data.hibari_voice import STYLES
from tinywave.eval.prosody import (
    StyledContinuation,
    StyledPrompt,
    continue_prompts,
    measure_prosody,
    read_styled_prompts,
)
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer

CONTINUATIONS = [
    StyledContinuation("a", "happy", ("happy", "happy", "sad"), 200.0),
    StyledContinuation("d", "sad", ("sad", "sad"), 150.0),
    StyledContinuation("b", "happy", ("happy",), 240.0),
    StyledContinuation("c", "happy", (), None),
    StyledContinuation("e", "sad", ("happy", "sad", "sad", "sad"), 170.0),
]


def test_shares_of_a_style_are_counted_over_all_prompts():
    style = measure_prosody(CONTINUATIONS)["style"]
    # After happy prompts 3 of 4 style tokens are happy, after sad ones 1 of 6; 5 of 6 and 1 of 4 are sad.
    assert style["happy"]["own_share"]["value"] == pytest.approx(3 / 4)
    assert style["happy"]["share_after_others"]["value"] == pytest.approx(1 / 6)
    assert style["happy"]["difference"]["value"] == pytest.approx(3 / 4 - 1 / 6)
    assert style["sad"]["difference"]["value"] == pytest.approx(5 / 6 - 1 / 4)
    assert style["happy"]["own_share"]["n"] == 2 and style["happy"]["difference"]["n"] == [2, 2]
    assert (style["happy"]["num_style_tokens"], style["sad"]["num_style_tokens"]) == (4, 6)
    # Two prompts are drawn as both, one twice or the other twice: 3/4, 2/3 or 1 of the tokens are happy.
    assert style["happy"]["own_share"]["ci95"] == pytest.approx([2 / 3, 1.0])


def test_mean_f0_is_compared_between_styles():
    record = measure_prosody(CONTINUATIONS)
    assert record["mean_f0"]["happy"] == {"value": 220.0, "ci95": [200.0, 240.0], "n": 2}
    assert record["mean_f0"]["sad"]["value"] == 160.0
    # One resample in 16 has the lowest happy and the highest sad prompt twice, more than the 2.5 % of a tail.
    assert record["mean_f0_difference"] == {"happy-sad": {"value": 60.0, "ci95": [30.0, 90.0], "n": [2, 2]}}


def test_what_is_left_out_is_counted():
    record = measure_prosody(CONTINUATIONS)
    assert (record["num_prompts"], record["num_without_style_tokens"], record["num_unvoiced"]) == (5, 1, 1)
    silent = measure_prosody([*CONTINUATIONS[:1], StyledContinuation("f", "sad", (), None)])
    assert silent["style"]["sad"]["own_share"] is None and silent["style"]["happy"]["difference"] is None
    assert silent["mean_f0_difference"]["happy-sad"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_three_styles_are_compared_with_each_other():
    record = measure_prosody([*CONTINUATIONS, StyledContinuation("g", "base", ("happy", "base"), 190.0)])
    assert set(record["mean_f0_difference"]) == {"happy-sad", "happy-base", "sad-base"}
    # 1 of 6 after sad prompts and 1 of 2 after base ones.
    assert record["style"]["happy"]["share_after_others"]["value"] == pytest.approx(2 / 8)
    assert record["style"]["happy"]["share_after_others"]["n"] == 3


def test_one_style_is_no_comparison():
    with pytest.raises(ValueError, match=r"styles \['happy'\]; a comparison needs at least two"):
        measure_prosody(CONTINUATIONS[:1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    sentences = ("The dog ran home.", "It found a key.")
    items = [
        TextItem(
            f"{style}-{number}", "test", "story", sentences[: 2 - (number == 2)], "hibari", style, 0, "CC0", "test"
        )
        for style in ("sad", "happy")
        for number in range(3)
    ]
    return prepare_corpus(items, tmp_path_factory.mktemp("corpus"), num_processes=1)


def hum(features, f0, energy, style):
    """Speaks every frame of 600 samples as a voice of 150 Hz."""
    times = np.arange(600 * len(features)) / 24_000
    return sum(0.1 * np.sin(2 * np.pi * 150 * harmonic * times) for harmonic in range(1, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline(expressive_codec):
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1)
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(config, train_text_tokenizer([text], config))
    encoders = {name: getattr(expressive_codec, name) for name in ("pitch_encoder", "style_encoder", "f0_extractor")}
    codec = SpeechCodec(expressive_codec.speech_encoder, expressive_codec.vocoder, hum, **encoders)
    model = TinyWaveForCausalLM(config).eval()
    return TinyWavePipeline(model, TinyWaveProcessor.from_config(config, tokenizer), codec)


def test_prompts_are_the_first_sentences_of_documents_that_go_on(corpus, expressive_codec):
    prompts = read_styled_prompts(corpus, ("happy", "sad"), max_per_style=5)
    assert [(prompt.id, prompt.style) for prompt in prompts] == [
        ("happy-0", "happy"), ("happy-1", "happy"), ("sad-0", "sad"), ("sad-1", "sad"),
    ]  # fmt: skip
    assert len(read_styled_prompts(corpus, ("sad",), max_per_style=1)) == 1
    assert all(0.8 < len(prompt.waveform) / 16_000 < 3 for prompt in prompts)
    heights = [f0[voiced].mean() for f0, voiced in (expressive_codec.f0_extractor(item.waveform) for item in prompts)]
    assert min(heights[:2]) > max(heights[2:]) + 20
    with pytest.raises(CorpusError, match="no document of the style 'angry' in its split 'test'"):
        read_styled_prompts(corpus, ("angry", "sad"), max_per_style=1)


def test_style_and_pitch_are_those_of_the_continuation(corpus, pipeline):
    prompts = read_styled_prompts(corpus, ("happy", "sad"), max_per_style=1)
    options = {"do_sample": True, "min_new_tokens": 200, "max_new_tokens": 200}
    first, second = continue_prompts(pipeline, prompts, seed=3, **options)
    assert (first.prompt_id, first.prompt_style, second.prompt_id) == ("happy-0", "happy", "sad-0")
    torch.manual_seed(4)
    [segment] = pipeline([("speech", prompts[1].waveform)], **options)
    style = pipeline.model.config.stream_ranges()["style"]
    names = list(STYLES)
    expected = [names[token - style.start] for token in segment.streams.ids.tolist() if token in style]
    assert list(second.styles) == expected and len(expected) > 0
    assert second.mean_f0 == pytest.approx(150, abs=2)
    assert measure_prosody([first, second])["num_prompts"] == 2


def test_a_model_that_says_nothing_has_no_style_and_no_pitch(corpus, pipeline):
    prompts = read_styled_prompts(corpus, ("sad",), max_per_style=1)
    eos = pipeline.model.config.eos_token_id
    [nothing] = continue_prompts(
        pipeline, prompts, max_new_tokens=1, suppress_tokens=[*range(eos), *range(eos + 1, 1088)]
    )
    assert nothing == StyledContinuation("sad-0", "sad", (), None)


def test_prompts_of_an_unnamed_style_are_refused(pipeline):
    prompt = StyledPrompt("x", "bored", np.zeros(16_000, np.float32))
    with pytest.raises(ValueError, match="style 'bored'; the pipeline's style tokens are named .*'happy'"):
        continue_prompts(pipeline, [prompt])
