"""Generative measures: numbers worked out by hand, an independent perplexity, and a tiny real model on real speech."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tinywave.cli.main import main
from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import SpeechEncoderConfig, TinyWaveConfig, VocoderConfig
from tinywave.eval.generative import (
    GenerationSettings,
    Judge,
    Prompt,
    auto_bleu,
    continue_each,
    evaluate_generation,
    generation_to_markdown,
    generative_perplexity,
    load_judge,
    sequence_repetition,
    take_prompts,
)
from tinywave.eval.recordings import read_recordings
from tinywave.eval.scoring import ScoringError
from tinywave.eval.speaker_similarity import SpeakerEncoder, speaker_similarity
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.tokenization_tinywave import build_tokenizer, deduplicate, train_text_tokenizer
from tinywave.vocoder_tinywave import Vocoder

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the dog saw a cat and ran home".split()


@pytest.mark.parametrize(
    ("text", "ones", "twos"),
    [
        ("a b c d", 0, 0),
        ("a a", 1, 0),  # the pair "a a" is there once
        ("no no no", 1, 1),
        ("a b a b", 1, 2 / 3),  # of "a b", "b a", "a b" the first and the last
        ("a b c a b d", 4 / 6, 2 / 5),
        ("a", 0, 0),
        ("", 0, 0),
    ],
)
def test_auto_bleu_by_hand(text, ones, twos):
    words = text.split()
    assert auto_bleu([words], n=1) == [pytest.approx(ones)]
    assert auto_bleu([words]) == [pytest.approx(math.sqrt(ones * twos))]


def test_auto_bleu_is_of_each_sequence_by_itself_and_takes_longer_ngrams():
    assert auto_bleu([["a", "b"], ["a", "b"]]) == [0, 0]
    # Units 1 2 3 1 2 3: six of six, four of five pairs (1 2 and 2 3 twice, 3 1 once), two of four triples.
    assert auto_bleu([[1, 2, 3, 1, 2, 3]], n=3) == [pytest.approx((1 * 4 / 5 * 2 / 4) ** (1 / 3))]
    with pytest.raises(ValueError, match="n = 0"):
        auto_bleu([["a"]], n=0)


def auto_bleu_of_the_published_code(words):
    """The loop of the paper's code, which looks left and right of every n-gram."""
    shares = []
    for length in (1, 2):
        ngrams = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
        found = 0
        for start, ngram in enumerate(ngrams):
            rest = [words[:start], words[start + length :]]
            others = [tuple(side[i : i + length]) for side in rest for i in range(len(side) - length + 1)]
            found += ngram in others
        shares.append(found / len(ngrams))
    return math.sqrt(shares[0] * shares[1])


def test_auto_bleu_is_that_of_the_published_code_unless_a_word_comes_three_times_in_a_row():
    generator = np.random.default_rng(0)
    texts = [list(generator.choice(WORDS, size=size)) for size in (2, 5, 9, 14, 20, 30) * 5]
    texts = [words for words in texts if not any(len(set(words[i : i + 3])) == 1 for i in range(len(words) - 2))]
    assert len(texts) > 20
    assert auto_bleu(texts) == pytest.approx([auto_bleu_of_the_published_code(words) for words in texts])
    assert auto_bleu_of_the_published_code(["no"] * 3) == 0


def test_repetition_of_units_by_hand():
    # 1 2 3 4 | 2 3 4 1 | 3 4 1 2 | 4 1 2 3 | 1 2 3 4: four of five are distinct.
    assert sequence_repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert sequence_repetition([7, 7, 7], n=1) == pytest.approx(2 / 3)
    assert sequence_repetition([1, 2, 3]) == 0


def word_tokenizer(**special):
    vocabulary = {word: index for index, word in enumerate(["<s>", "?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def mean_loss_by_hand(model, ids):
    """One token at a time, without batch, padding or mask."""
    losses = []
    for position in range(1, len(ids)):
        with torch.no_grad():
            probabilities = model(torch.tensor([ids[:position]])).logits[0, -1].double().softmax(-1)
        losses.append(-math.log(probabilities[ids[position]]))
    return sum(losses) / len(losses)


TEXTS = ["the dog saw a cat", "ran home", "", "a", " the cat ran and the dog ran home "]


def test_perplexity_is_that_of_an_obvious_loop(language_model):
    result = generative_perplexity(TEXTS, language_model, word_tokenizer(bos_token="<s>"), batch_size=2)
    losses = [
        mean_loss_by_hand(language_model, [0, *(2 + WORDS.index(word) for word in text.split())])
        for text in TEXTS
        if text
    ]
    assert result.value == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    assert [None if score is None else score.num_tokens for score in result.scores] == [5, 2, None, 1, 8]
    assert (result.n, result.num_unscored) == (4, 1)
    assert math.exp(min(losses)) <= result.ci95[0] < result.value < result.ci95[1] <= math.exp(max(losses))


def test_without_bos_the_first_token_is_not_scored(language_model):
    result = generative_perplexity(TEXTS, language_model, word_tokenizer())
    assert [None if score is None else score.num_tokens for score in result.scores] == [4, 1, None, None, 7]
    assert (result.n, result.num_unscored) == (3, 2)
    ids = [2 + WORDS.index(word) for word in TEXTS[1].split()]
    assert -result.scores[1].mean_log_likelihood == pytest.approx(mean_loss_by_hand(language_model, ids), rel=1e-5)


def test_texts_that_have_no_perplexity(language_model):
    nothing = generative_perplexity(["", " "], language_model, word_tokenizer(bos_token="<s>"))
    assert (nothing.value, nothing.ci95, nothing.n, nothing.num_unscored) == (None, None, 0, 2)
    with pytest.raises(ScoringError, match="Text 1 has 71 ids; the model's context is at most 64"):
        generative_perplexity(["a cat", "a " * 70], language_model, word_tokenizer(bos_token="<s>"))


def test_a_judge_is_loaded_from_its_folder(language_model, tmp_path, monkeypatch):
    language_model.save_pretrained(tmp_path / "tiny")
    word_tokenizer(bos_token="<s>").save_pretrained(tmp_path / "tiny")
    judge = load_judge(tmp_path / "tiny")
    assert judge.to_record() == {"name": "tiny", "parameters": language_model.num_parameters(), "bos": True}
    loaded, given = (
        generative_perplexity(TEXTS, model, judge.tokenizer).value for model in (judge.model, language_model)
    )
    assert loaded == given
    with pytest.raises(FileNotFoundError, match="nowhere is not a language model"):
        load_judge(tmp_path / "nowhere")
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="small.gguf needs the package gguf; run: pip install gguf"):
        load_judge(tmp_path / "small.gguf")


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": math.nan}, {"top_k": 0}, {"max_new_tokens": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected prompts of at least"):
        GenerationSettings(**settings)


@pytest.fixture(scope="module")
def recordings():
    return read_recordings(ROOT / "assets" / "audio" / "librivox")


def hum(features, f0, energy, style):
    """Speaks every frame of 600 samples as a voice of 150 Hz."""
    times = np.arange(600 * len(features)) / 24_000
    return sum(0.1 * np.sin(2 * np.pi * 150 * harmonic * times) for harmonic in range(1, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 64, "num_mel_bins": 80}
    units = config.num_units
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=units)).eval()
    encoder.quantizer.centroids.normal_()
    vocoder = Vocoder(VocoderConfig(num_units=units, hidden_size=16, duration_hidden_size=16)).eval()
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(config, train_text_tokenizer([text], config))
    model = TinyWaveForCausalLM(config).eval()
    return TinyWavePipeline(
        model, TinyWaveProcessor.from_config(config, tokenizer), SpeechCodec(encoder, vocoder, hum)
    )


def test_prompts_are_the_first_seconds_and_short_recordings_are_named(recordings):
    prompts, too_short = take_prompts(recordings)
    assert too_short == ["sense_and_sensibility_01_0880"]  # 2.99 s
    assert len(prompts) == 4 and all(len(prompt.content[1]) == 48_000 for prompt in prompts)
    np.testing.assert_array_equal(prompts[0].content[1], recordings[0].waveform[:48_000])


def test_a_continuation_depends_on_its_own_prompt_and_seed_alone(pipeline, recordings):
    prompts, _ = take_prompts(recordings, 1.0)
    first = continue_each(pipeline, prompts[:2], GenerationSettings(max_new_tokens=12, seed=5))
    [again] = continue_each(pipeline, prompts[1:2], GenerationSettings(max_new_tokens=12, seed=6))
    assert first[1].units == again.units and len(again.units) > 0
    np.testing.assert_array_equal(first[1].waveform, again.waveform)
    [other] = continue_each(pipeline, prompts[1:2], GenerationSettings(max_new_tokens=12, seed=7))
    assert other.units != again.units
    assert again.units == tuple(deduplicate(again.units)[0].tolist())
    [written] = continue_each(
        pipeline, [Prompt("x", ("text", "The licence"))], GenerationSettings(max_new_tokens=12), "text"
    )
    assert written.text and not len(written.waveform) and not written.units


def speaker_encoder():
    generator = torch.Generator().manual_seed(0)
    shapes = {"linear.weight": (16, 8), "linear.bias": (16,), "lstm.weight_ih_l0": (32, 40)}
    shapes |= {"lstm.weight_hh_l0": (32, 8), "lstm.bias_ih_l0": (32,), "lstm.bias_hh_l0": (32,)}
    return SpeakerEncoder({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def test_everything_is_measured_and_what_is_empty_is_counted(pipeline, recordings, language_model):
    """What is heard is decided here, so that every number can be worked out."""
    # Per recording the original and its resynthesis come after all continuations.
    heard = iter(["the dog saw the dog", "...", "a cat", *["the dog ran home", "the cat"] * 3])
    kept = []
    record = evaluate_generation(
        pipeline,
        [recordings[1], recordings[0], *recordings[2:4]],
        transcribe=lambda waveform, sampling_rate: next(heard),
        judge=Judge("toy", language_model, word_tokenizer(bos_token="<s>")),
        speaker_encoder=speaker_encoder(),
        settings=GenerationSettings(max_new_tokens=20, seed=3),
        keep=kept.append,
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["n"], record["too_short"]) == (3, ["sense_and_sensibility_01_0880"])
    assert (record["num_silent"], record["num_empty_transcripts"]) == (0, 1)
    losses = [mean_loss_by_hand(language_model, ids) for ids in ([0, 2, 3, 4, 2, 3], [0, 5, 6])]
    assert record["perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)
    # "the dog" twice: four of five words and two of four pairs.
    assert record["auto_bleu_2"]["value"] == pytest.approx(math.sqrt(4 / 5 * 2 / 4) / 2)
    assert record["perplexity"]["n"] == record["auto_bleu_2"]["n"] == 2
    assert record["mean_opinion_score"] == {"not_measured": "no opinion score was given, or nothing was said"}
    assert record["judge"]["name"] == "toy" and record["settings"]["seed"] == 3
    for row, item, seed in zip(record["rows"], kept, (3, 4, 5), strict=True):
        assert (row["id"], row["seed"]) == (item.prompt.id, seed)
        assert row["seconds"] == len(item.waveform) / 24_000 > 0
        assert row["unit_repetition"] == sequence_repetition(item.units)
        expected = speaker_similarity(speaker_encoder(), item.prompt.content[1], item.resampled())
        assert row["speaker_similarity"] == pytest.approx(expected, abs=1e-6)
    assert record["rows"][1]["log_likelihood"] is None and record["rows"][1]["auto_bleu_2"] is None
    original = record["recordings"]["original"]
    assert original["auto_bleu_2"]["value"] == 0 and original["word_error_rate"]["n"] == 3
    loss = mean_loss_by_hand(language_model, [0, 2, 3, 8, 9])
    assert original["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_model_that_ends_at_once_is_reported_as_silent(pipeline, recordings):
    model = pipeline.model
    bias = torch.full((model.config.vocab_size,), -1e4)
    bias[model.config.eos_token_id] = 0

    def end(module, inputs, output):
        return output + bias

    handle = model.lm_head.register_forward_hook(end)
    try:
        record = evaluate_generation(pipeline, recordings[:1], transcribe=lambda waveform, sampling_rate: "a cat")
    finally:
        handle.remove()
    assert (record["n"], record["num_silent"], record["num_empty_transcripts"]) == (1, 1, 1)
    assert record["auto_bleu_2"] == {"not_measured": "no word was heard"}
    assert record["seconds"]["value"] == 0 and record["rows"][0]["transcript"] == ""
    assert record["recordings"]["original"]["auto_bleu_2"]["n"] == 1


def test_recordings_without_a_prompt_are_refused(pipeline, recordings):
    with pytest.raises(ValueError, match="Found 1 recordings, none of at least 3.0 s"):
        evaluate_generation(pipeline, recordings[1:2], transcribe=lambda waveform, sampling_rate: "")


def test_the_verb_writes_numbers_and_sound(pipeline, language_model, tmp_path, capsys):
    pipeline.model.save_pretrained(tmp_path / "model")
    pipeline.processor.save_pretrained(tmp_path / "model")
    language_model.save_pretrained(tmp_path / "toy")
    word_tokenizer(bos_token="<s>", unk_token="?").save_pretrained(tmp_path / "toy")
    recordings, output = tmp_path / "recordings", tmp_path / "out"
    recordings.mkdir()
    name = "sense_and_sensibility_01_0890.flac"
    shutil.copy(ROOT / "assets" / "audio" / "librivox" / name, recordings)
    (recordings / "transcripts.json").write_text(json.dumps({name: "HE SURVIVED HIS UNCLE"}), encoding="utf-8")
    options = ["--model", tmp_path / "model", "--judge", tmp_path / "toy", "--recordings", recordings]
    options += ["--max-new-tokens", 20, "--seed", 4, "--griffin-lim", "--output-dir", output]
    command = ["evaluate-generation", *map(str, options)]
    assert main(command) == 0
    record = json.loads((output / "generation.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == generation_to_markdown(record) + "\n"
    [row] = record["rows"]
    assert (record["model"], record["judge"]["name"], row["seed"]) == ("model", "toy", 4)
    assert record["sentiment"] == {"not_measured": "no styled corpus was named"}
    assert row["seconds"] == pytest.approx(soundfile.info(output / "continuations" / name).duration)
    assert record["recordings"]["original"]["word_error_rate"]["num_words"] == 4
    assert main([*command, "--num-prompts", "0"]) == 2
    assert "argument --num-prompts: found '0'" in capsys.readouterr().err
    assert main([*command, "--styled-corpus", str(ROOT / "assets" / "audio" / "kokoro")]) == 2
    assert "no document of the style 'happy' in its split 'test'" in capsys.readouterr().err
