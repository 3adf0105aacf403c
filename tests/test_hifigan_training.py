"""HiFi-GAN training on real synthetic speech: segments, losses by hand, both sides learning, exact resumption."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tinywave.cli import main as command_line
from tinywave.configuration_tinywave import HifiGanConfig
from tinywave.data.audio_io import load_audio
from tinywave.data.corpus import TextItem, iterate_corpus, prepare_corpus
from tinywave.data.hifigan_segments import (
    HifiGanSegments,
    collate_hifigan_segments,
    read_hifigan_utterances,
    read_voices,
)
from tinywave.data.unit_extraction import ShardError
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.stages.parsing import load_recipe
from tinywave.training.hifigan_discriminators import (
    HifiGanDiscriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from tinywave.training.hifigan_training import (
    HifiGanAdversary,
    HifiGanTrainingArguments,
    duration_loss,
    log_mel_spectrogram,
    train_hifigan,
)

TEXTS = ["The dog found a golden key.", "She sold the old boat.", "We ran home.", "He sees a tall tree."]
STYLES = ["base", "happy", "sad"]
SIZES = {"num_units": 30, "num_pitch_tokens": 8, "num_style_tokens": 3, "style_names": STYLES, "num_speakers": 1}
SIZES |= {"embedding_size": 8, "initial_channels": 32, "duration_hidden_size": 8}
SEGMENT = 2560
WEIGHTS = {"features": 2.0, "mel": 45.0}


def _codes_of(waveform: np.ndarray, hop: int, count: int) -> list[int]:
    """Codes that depend on the sound: the level of each frame, in steps of 2 dB."""
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-6)
    return np.clip((level + 60) // 2, 0, count - 1).astype(int).tolist()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    styles = ["base", "happy", "sad", "base"]
    splits = ["train", "train", "train", "test"]
    items = [
        TextItem(f"item-{index}", split, "story", (text,), "hibari", style, index, "CC0", "test")
        for index, (text, style, split) in enumerate(zip(TEXTS, styles, splits, strict=True))
    ]
    return prepare_corpus(items, tmp_path_factory.mktemp("corpus"), num_processes=1, rows_per_shard=2)


@pytest.fixture(scope="module")
def units(corpus, tmp_path_factory) -> Path:
    """Unit shards as `extract-units` writes them, with pitch."""
    folder = tmp_path_factory.mktemp("units")
    rows = []
    for row in iterate_corpus(corpus, ["id", "split", "voice", "style", "audio"]):
        waveform = load_audio(row.pop("audio")["bytes"], 16_000)
        rows.append(row | {"units": _codes_of(waveform, 640, 30), "pitch": _codes_of(waveform, 1280, 8)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def utterances(corpus, units):
    return read_hifigan_utterances(corpus, units, HifiGanConfig(**SIZES, speaker_names=["hibari"]))


def _config(**changes) -> HifiGanConfig:
    return HifiGanConfig(**SIZES | {"speaker_names": ["hibari"]} | changes)


def _adversary() -> HifiGanAdversary:
    torch.manual_seed(0)
    return HifiGanAdversary(HifiGanVocoder(_config()), 32, WEIGHTS)


def _batch(utterances, size: int = 2) -> dict[str, torch.Tensor]:
    segments = HifiGanSegments(utterances, _config(), SEGMENT, size)
    return collate_hifigan_segments([segments[index] for index in range(size)])


def _arguments(folder, **changes) -> HifiGanTrainingArguments:
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1}
    settings |= {"report_to": "none", "save_steps": 2, "seed": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"segment_samples": SEGMENT, "discriminator_channels": 32} | changes
    return HifiGanTrainingArguments(output_dir=str(folder), **settings)


def test_utterances_join_audio_units_and_codes(corpus, units, utterances):
    rows = {row["id"]: row for row in pq.read_table(units).to_pylist()}
    audio = {row["id"]: load_audio(row["audio"]["bytes"], 16_000) for row in iterate_corpus(corpus, ["id", "audio"])}
    assert len(utterances) == 3
    for index, utterance in enumerate(utterances):
        row, waveform = rows[f"item-{index}"], audio[f"item-{index}"]
        assert utterance.units.tolist() == row["units"]
        held = np.repeat([*row["pitch"], row["pitch"][-1]], 2)
        assert utterance.pitch.tolist() == held[: len(row["units"])].tolist()
        assert set(utterance.style.tolist()) == {STYLES.index(row["style"])}
        np.testing.assert_allclose(utterance.read_samples(700, 900).numpy(), waveform[700:1600], atol=1e-6)
    assert read_voices(units) == ["hibari"]


def test_style_may_come_as_codes_or_once_an_utterance(corpus, units, tmp_path):
    rows = [row | {"style": [2, 1, 0, 0][: 1 + len(row["units"]) // 25]} for row in pq.read_table(units).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard-00000.parquet")
    coded = read_hifigan_utterances(corpus, tmp_path, _config())[0]
    assert coded.style.tolist() == [[2, 1, 0, 0][t // 25] for t in range(len(coded.units))]
    config = _config(num_style_tokens=0, num_styles=3)
    constant = read_hifigan_utterances(corpus, units, config)
    assert [item.constant_style for item in constant] == [0, 1, 2]
    segment = HifiGanSegments(constant, config, SEGMENT, 1)[0]
    assert segment["style"].shape == () and "speaker" in segment


def test_segments_hold_the_audio_of_their_units(utterances):
    segments = HifiGanSegments(utterances, _config(), SEGMENT, 20, seed=3)
    for index in range(20):
        segment = segments[index]
        assert segment["units"].tolist() == _codes_of(segment["waveform"].numpy(), 640, 30)
        assert all(torch.equal(segments[index][name], value) for name, value in segment.items())
        assert int(segment["run_durations"].sum()) in {len(item.units) for item in utterances}


def test_every_segment_is_as_likely_as_any_other(utterances):
    """Units that count up tell where a segment begins."""
    short, long = (
        replace(item, units=torch.arange(first, first + size))
        for item, first, size in zip(utterances, (0, 1000), (8, 19), strict=False)
    )
    segments = HifiGanSegments([short, long], _config(), SEGMENT, 21 * 20)
    starts = [int(segments[index]["units"][0]) for index in range(len(segments))]
    counts = {start: starts.count(start) for start in set(starts)}
    assert set(counts) == {*range(5), *range(1000, 1016)}
    assert 6 <= min(counts.values()) and max(counts.values()) <= 40


def test_runs_are_padded_with_minus_one(utterances):
    batch = _batch(utterances, 4)
    assert batch["waveform"].shape == (4, SEGMENT) and batch["units"].shape == batch["pitch"].shape == (4, 4)
    assert ((batch["run_units"] == -1) == (batch["run_durations"] == -1)).all()
    assert batch["speaker"].tolist() == [0] * 4


def _judgement(scores, feature):
    return torch.tensor([scores]), [torch.tensor([feature]), torch.tensor([scores])]


def test_losses_by_hand():
    real = [_judgement([1.0, 0.5], [1.0, 2.0, 3.0]), _judgement([0.0], [4.0])]
    generated = [_judgement([0.5, 0.0], [1.0, 1.0, 1.0]), _judgement([1.0], [2.0])]
    assert float(discriminator_loss(real, generated)) == pytest.approx((0 + 0.25) / 2 + (0.25 + 0) / 2 + 1 + 1)
    assert float(adversarial_loss(generated)) == pytest.approx((0.25 + 1) / 2 + 0)
    assert float(feature_matching_loss(real, generated)) == pytest.approx(1.0 + 0.5 + 2.0 + 1.0)
    predicted = torch.log(torch.tensor([[3.0, 5.0], [4.0, 9.0]]))
    expected = (0.0 + math.log(5 / 3) ** 2 + 0.0) / 3
    assert float(duration_loss(predicted, torch.tensor([[2, 2], [3, -1]]))) == pytest.approx(expected, rel=1e-5)


def test_log_mel_is_that_of_numpy():
    times = np.arange(4096) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * times)
    log_mel = log_mel_spectrogram(torch.from_numpy(tone).float()[None], 16_000)[0].numpy()
    assert log_mel.shape == (80, 16)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    magnitude = np.abs(np.fft.rfft(np.pad(tone, 384, mode="reflect")[5 * 256 : 5 * 256 + 1024] * window))
    # The Slaney scale is linear below 1 kHz, 3 mel per 200 Hz, and filters have an area of 1.
    top = 15 + 27 * math.log(8) / math.log(6.4)
    mels = np.linspace(0, top, 82)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(513) * 16_000 / 1024
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(0) * 2 / (high - low)
    expected = np.log(np.maximum(triangles @ magnitude, 1e-5))
    np.testing.assert_allclose(log_mel[:, 5], expected, atol=0.02)


def test_published_discriminators():
    with torch.device("meta"):
        discriminators = HifiGanDiscriminators()
    periods, scales = (
        sum(parameter.numel() for parameter in part.parameters())
        for part in (discriminators.periods, discriminators.scales)
    )
    assert round(periods / 1e6, 1) == 41.1 and round(scales / 1e6, 1) == 29.6
    judgements = HifiGanDiscriminators(32)(torch.randn(2, 1000))
    assert len(judgements) == 8
    assert {len(features) for _, features in judgements[:5]} == {6}
    assert {len(features) for _, features in judgements[5:]} == {8}
    with pytest.raises(ValueError, match="multiple of 32"):
        HifiGanDiscriminators(40)


def test_each_side_learns_from_its_own_terms(utterances):
    adversary = _adversary()
    batch = _batch(utterances)
    sides = {"generator": adversary.generator, "discriminators": adversary.discriminators}

    def moved(name: str) -> set[str]:
        adversary.zero_grad()
        adversary(**batch)[name].backward()
        return {side for side, module in sides.items() if any(p.grad is not None for p in module.parameters())}

    assert moved("discriminator") == {"discriminators"}
    assert all(moved(name) == {"generator"} for name in ("adversarial", "features", "mel", "duration"))


def test_loss_is_the_weighted_sum_of_finite_terms(utterances):
    terms = _adversary()(**_batch(utterances))
    loss = terms.pop("loss")
    assert set(terms) == {"discriminator", "adversarial", "features", "mel", "duration"}
    assert all(torch.isfinite(value) for value in terms.values())
    torch.testing.assert_close(loss, sum(WEIGHTS.get(name, 1.0) * value for name, value in terms.items()))


def test_mel_loss_falls_on_a_repeated_batch(utterances):
    adversary, batch = _adversary(), _batch(utterances)
    optimizer = torch.optim.AdamW(adversary.parameters(), 2e-3, betas=(0.8, 0.99))
    losses = []
    for _ in range(25):
        terms = adversary(**batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["mel"].detach()))
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_training_moves_both_sides_and_resumes_exactly(corpus, units, tmp_path):
    whole = train_hifigan(corpus, units, _arguments(tmp_path / "whole"), _config())
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed_folder = tmp_path / "resumed"
    shutil.copytree(checkpoint, resumed_folder / "checkpoint-2")
    resumed = train_hifigan(corpus, units, _arguments(resumed_folder), _config(), str(resumed_folder / "checkpoint-2"))
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    last = json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"][-1]
    names = {f"{name}_loss" for name in ("discriminator", "adversarial", "features", "mel", "duration")}
    assert names <= last.keys() and all(math.isfinite(last[name]) for name in names)
    before, after = (load_file(tmp_path / "whole" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    still = [name for name in before if not name.endswith(("_u", "_v")) and torch.equal(before[name], after[name])]
    assert still == []
    assert whole.config.weight_norm is False


def test_bfloat16_training_stays_finite(corpus, units, tmp_path):
    vocoder = train_hifigan(corpus, units, _arguments(tmp_path, max_steps=2, bf16=True), _config())
    assert all(torch.isfinite(tensor).all() for tensor in vocoder.state_dict().values())


def test_the_verb_trains_and_saves_a_vocoder_for_use(corpus, units, tmp_path, capsys):
    model = {name: value for name, value in SIZES.items() if name != "num_speakers"}
    training = {"max_steps": 1, "per_device_train_batch_size": 1, "use_cpu": True, "report_to": "none"}
    training |= {"segment_samples": SEGMENT, "discriminator_channels": 32, "save_strategy": "no"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"seed": 0, "model": model, "training": training}))
    arguments = ["--corpus", corpus, "--units", units, "--output-dir", tmp_path / "hifigan"]
    assert command_line.main(["train-hifigan", str(recipe), *map(str, arguments)]) == 0
    vocoder = HifiGanVocoder.from_pretrained(tmp_path / "hifigan").eval()
    assert vocoder.config.speaker_names == ["hibari"] and not vocoder.config.weight_norm
    waveform = vocoder.units_to_waveform([1, 2, 3], None, [1, 2, 3], "happy", "hibari")
    assert len(waveform) and torch.isfinite(waveform).all()


def test_the_packaged_recipe_fits_the_verb(tmp_path):
    recipe = load_recipe("nano/hifigan")
    with torch.device("meta"):
        vocoder = HifiGanVocoder(HifiGanConfig(num_speakers=21, **recipe["model"], weight_norm=False))
    assert 2 * vocoder.num_parameters() < 10e6
    arguments = HifiGanTrainingArguments(output_dir=str(tmp_path), **recipe["training"] | {"bf16": False})
    assert (arguments.learning_rate, arguments.adam_beta1, arguments.adam_beta2) == (2e-4, 0.8, 0.99)
    assert arguments.segment_samples == 17_920


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_units": 5}, "row 'item-0': Found unit codes between"),
        ({"num_pitch_tokens": 2}, "Found pitch codes between"),
        ({"style_names": ["base", "x", "y"]}, "found the style 'happy'; the vocoder is made for base, x, y"),
        ({"speaker_names": ["anna"]}, "found the voice 'hibari'"),
        ({"sampling_rate": 24_000}, "found audio of 16000 Hz; expected 24000 Hz"),
    ],
)
def test_rows_that_do_not_fit_are_refused(corpus, units, changes, message):
    with pytest.raises(ValueError, match=message):
        read_hifigan_utterances(corpus, units, _config(**changes))


def test_shards_that_do_not_fit_are_refused(corpus, units, utterances, tmp_path):
    rows = pq.read_table(units)
    pq.write_table(rows.drop_columns(["pitch"]), tmp_path / "shard-00000.parquet")
    with pytest.raises(ShardError, match=r"lacks the columns \['pitch'\]"):
        read_hifigan_utterances(corpus, tmp_path, _config())
    with pytest.raises(ShardError, match="no row of the split 'validation'"):
        read_hifigan_utterances(corpus, units, _config(), split="validation")
    with pytest.raises(ShardError, match="holds no parquet shards"):
        read_voices(tmp_path / "nothing")
    strange = rows.set_column(0, "id", pa.array([f"other-{index}" for index in range(len(rows))]))
    pq.write_table(strange, tmp_path / "shard-00000.parquet")
    with pytest.raises(ShardError, match="has no 'other-0'"):
        read_hifigan_utterances(corpus, tmp_path, _config())
    (tmp_path / "shard-00000.parquet").write_bytes(b"cut off")
    with pytest.raises(ShardError, match="cannot be read"):
        read_voices(tmp_path)
    with pytest.raises(ValueError, match="Found no utterance of 400 units"):
        HifiGanSegments(utterances, _config(), 400 * 640)
    with pytest.raises(ValueError, match="multiple of the 640"):
        HifiGanSegments(utterances, _config(), 1000)


def test_unusable_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="max_steps=-1"):
        _arguments(tmp_path, max_steps=-1)
    with pytest.raises(ValueError, match="segment_samples=640"):
        _arguments(tmp_path, segment_samples=640)
