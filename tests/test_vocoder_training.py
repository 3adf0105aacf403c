"""Vocoder material and training on real synthetic speech, with the units of a tiny encoder."""

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import soxr
import torch
from safetensors import safe_open

from tinywave.configuration_tinywave import PitchEncoderConfig, SpeechEncoderConfig, VocoderConfig
from tinywave.data.f0_extraction import load_f0_extractor
from tinywave.data.hibari_voice import HibariDecoder, HibariVoice
from tinywave.data.story_language import split_of
from tinywave.data.vocoder_features import (
    MEAN_F0,
    ProsodyReader,
    VocoderItem,
    VocoderSpeaker,
    follow_melody,
    load_vocoder_features,
    prepare_vocoder_features,
    sample_vocoder_items,
    sample_vocoder_texts,
    stretch_target,
    utterance_edges,
)
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.training.checkpoints import save_in_bfloat16
from tinywave.training.vocoder_training import (
    VocoderDataset,
    VocoderTrainer,
    VocoderTrainingArguments,
    collate_vocoder_examples,
    duration_loss,
    set_output_statistics,
    train_vocoder,
    vocoder_losses,
)
from tinywave.vocoder_tinywave import Vocoder

TEXTS = ["The dog found a golden key.", "She sold the old boat.", "We ran home.", "He sees a tall tree."]
ITEMS = [
    VocoderItem(TEXTS[0], "train"),
    VocoderItem(TEXTS[1], "train", style="sad", warp=1.1),
    VocoderItem(TEXTS[2], "train", style="happy"),
    VocoderItem(TEXTS[3], "test"),
]


@pytest.fixture(scope="module")
def voice() -> HibariVoice:
    return HibariVoice()


def _encoder(speaker: VocoderSpeaker, seed: int) -> SpeechEncoder:
    """A tiny untrained encoder: its units still depend on the sound."""
    torch.manual_seed(seed)
    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 64, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=100)).eval()
    speech = [soxr.resample(speaker.speak(item).waveform, 24_000, 16_000) for item in ITEMS]
    with torch.no_grad():
        features = torch.cat(encoder.extract_features(speech))
    encoder.quantizer.mean.copy_(features.mean(0))
    encoder.quantizer.standard_deviation.copy_(features.std(0))
    chosen = torch.randperm(len(features))[:100]
    encoder.quantizer.centroids.copy_(encoder.quantizer.normalize(features[chosen]))
    return encoder


@pytest.fixture(scope="module")
def speaker() -> VocoderSpeaker:
    return VocoderSpeaker()


@pytest.fixture(scope="module")
def encoder(speaker) -> SpeechEncoder:
    return _encoder(speaker, seed=0)


@pytest.fixture(scope="module")
def features_folder(encoder, speaker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    prepare_vocoder_features(ITEMS, encoder, speaker, folder, items_per_shard=2)
    return folder


def _f0_to_codes(contours) -> list[torch.Tensor]:
    """16 codes at 12.5 Hz: F0 over its mean, averaged over 80 ms, in steps of 8 %."""
    codes = []
    for f0, voiced in contours:
        ratio = f0[: len(f0) // 16 * 16].reshape(-1, 16).mean(1) / f0[voiced].mean()
        codes.append(torch.from_numpy(np.clip(np.round(ratio / 0.08) - 5, 0, 15).astype(int)))
    return codes


@pytest.fixture(scope="module")
def prosody() -> ProsodyReader:
    return ProsodyReader(load_f0_extractor("swift-f0"), _f0_to_codes, 16, "steps of 8 %", follows_style=True)


@pytest.fixture(scope="module")
def melodic_folder(encoder, speaker, prosody, tmp_path_factory):
    folder = tmp_path_factory.mktemp("melodic")
    prepare_vocoder_features(ITEMS, encoder, speaker, folder, items_per_shard=2, prosody=prosody)
    return folder


def _envelope(waveform: np.ndarray) -> np.ndarray:
    size = len(waveform) // 1200 * 1200
    return np.log(np.abs(waveform[:size]).reshape(-1, 1200).mean(1) + 1e-3)


def _arguments(folder, **changes) -> VocoderTrainingArguments:
    settings = {"max_steps": 60, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "logging_steps": 20}
    settings |= {"report_to": "none", "save_strategy": "no", "seed": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"remove_unused_columns": False, "crop_units": 40} | changes
    return VocoderTrainingArguments(output_dir=str(folder), **settings)


SMALL = {"num_units": 100, "hidden_size": 48, "num_layers": 4, "duration_hidden_size": 16}


def test_target_on_its_own_times_is_unchanged_and_decodes_to_the_same_speech(voice):
    target = voice.synthesize(TEXTS[0], return_features=True)
    features, f0, energy, log_mel = stretch_target(
        target, utterance_edges(target), len(target.decoder_features), VocoderConfig()
    )
    np.testing.assert_allclose(features, target.decoder_features, atol=1e-5)
    np.testing.assert_allclose(energy, target.energy, atol=1e-5)
    assert len(log_mel) == len(f0) == 2 * len(features)
    waveform = HibariDecoder().decode(features, f0, energy)
    assert np.corrcoef(_envelope(waveform), _envelope(target.waveform))[0, 1] > 0.98


def test_stretched_target_is_loud_where_the_slow_input_is_loud(voice):
    target = voice.synthesize(TEXTS[1], return_features=True)
    slow = voice.synthesize(TEXTS[1], style="sad")
    num_frames = len(slow.waveform) // 600
    features, f0, energy, _ = stretch_target(target, utterance_edges(slow), num_frames, VocoderConfig())
    spoken = HibariDecoder().decode(features, f0, energy)
    assert num_frames > 1.15 * len(target.decoder_features)
    assert np.corrcoef(_envelope(spoken), _envelope(slow.waveform))[0, 1] > 0.85


def test_different_phones_are_refused(voice):
    target = voice.synthesize(TEXTS[0], return_features=True)
    with pytest.raises(ValueError, match="same phonemes"):
        stretch_target(target, np.array([0.0, 0.1]), 10, VocoderConfig())


def test_second_run_keeps_finished_shards_and_repairs_others(encoder, speaker, tmp_path):
    def shards_made(items=ITEMS, encoder=encoder):
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        prepare_vocoder_features(items, encoder, speaker, tmp_path, items_per_shard=2)
        paths = sorted(tmp_path.iterdir())
        return [path.name[6:11] for path in paths if before.get(path.name) != path.stat().st_mtime_ns]

    assert shards_made() == ["00000", "00001"]
    assert shards_made() == []
    (tmp_path / "shard-00000.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="prepare the features again"):
        load_vocoder_features(tmp_path)
    assert shards_made() == ["00000"]
    assert shards_made([*ITEMS[:3], replace(ITEMS[3], seed=5)]) == ["00001"]
    assert shards_made(encoder=_encoder(speaker, seed=1)) == ["00000", "00001"]


def test_noise_is_pink_and_as_loud_as_asked(speaker):
    clean = speaker.speak(ITEMS[0])
    noisy = speaker.speak(replace(ITEMS[0], noise_ratio=20.0))
    noise = noisy.waveform - clean.waveform
    assert noisy.phones == clean.phones
    assert 10 * np.log10(np.mean(clean.waveform**2) / np.mean(noise**2)) == pytest.approx(20, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[size : 2 * size].sum() for size in (500, 1_000, 2_000, 4_000)]
    assert max(octaves) < 1.3 * min(octaves)


def test_kokoro_items_need_kokoro(speaker):
    with pytest.raises(ValueError, match="give VocoderSpeaker a KokoroVoice"):
        speaker.speak(VocoderItem(TEXTS[0], "train", voice="af_heart"))


def test_loaded_examples_fit_together(features_folder):
    examples = load_vocoder_features(features_folder, split="train")
    assert [example.text for example in examples] == TEXTS[:3]
    for example in examples:
        assert len(example.features) == round(len(example.units) * 1.6)
        assert len(example.f0) == len(example.energy) == len(example.log_mel) == 2 * len(example.features)
    with pytest.raises(ValueError, match="no validation utterance"):
        load_vocoder_features(features_folder, split="validation")


def test_crops_keep_units_and_frames_together(features_folder):
    examples = load_vocoder_features(features_folder)
    dataset = VocoderDataset(examples, VocoderConfig(), crop_units=20)
    torch.manual_seed(0)
    for _ in range(5):
        crop = dataset[0]
        assert len(crop["units"]) == 20 and len(crop["features"]) == 32 and len(crop["log_mel"]) == 64
        starts = [
            start
            for start in range(0, len(examples[0].units), 5)
            if torch.equal(examples[0].units[start : start + 20].long(), crop["units"])
        ]
        frames = [examples[0].features[start * 8 // 5 : start * 8 // 5 + 32].float() for start in starts]
        assert any(torch.equal(frame, crop["features"]) for frame in frames)


def test_padding_does_not_change_the_losses(features_folder):
    vocoder = Vocoder(VocoderConfig(**SMALL)).eval()
    examples = load_vocoder_features(features_folder, split="train")
    set_output_statistics(vocoder, examples)
    rows = [VocoderDataset([example], vocoder.config, 1000)[0] for example in examples]
    losses, counts = [], []
    for row in rows:
        batch = collate_vocoder_examples([row])
        output = vocoder(batch["units"], batch["lengths"])
        losses.append(vocoder_losses(output, batch, vocoder.output_std, vocoder.output_sizes)["features"])
        counts.append(len(row["features"]))
    batch = collate_vocoder_examples(rows)
    output = vocoder(batch["units"], batch["lengths"])
    together = vocoder_losses(output, batch, vocoder.output_std, vocoder.output_sizes)["features"]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_statistics_make_targets_standard(features_folder):
    vocoder = Vocoder(VocoderConfig(**SMALL))
    examples = load_vocoder_features(features_folder, split="train")
    set_output_statistics(vocoder, examples)
    features = torch.cat([example.features.float() for example in examples])
    standard = (features - vocoder.output_mean[:128]) / vocoder.output_std[:128]
    torch.testing.assert_close(standard.mean(0), torch.zeros(128), rtol=0, atol=1e-3)
    torch.testing.assert_close(standard.std(0), torch.ones(128), rtol=1e-3, atol=0)


def test_duration_loss_by_hand():
    predicted = torch.log(torch.tensor([[3.0, 5.0], [2.0, 9.0]]))
    loss = duration_loss(predicted, torch.tensor([[2, 4], [3, 1]]), torch.tensor([2, 1]))
    assert float(loss) == pytest.approx(np.log(2) / 3, rel=1e-5)


def test_training_learns_the_material_and_saves_it_in_half_the_bytes(features_folder, tmp_path):
    torch.manual_seed(0)
    vocoder = train_vocoder(features_folder, _arguments(tmp_path, max_steps=150), VocoderConfig(**SMALL))
    untrained = Vocoder(VocoderConfig(**SMALL)).eval()
    examples = load_vocoder_features(features_folder, split="train")
    set_output_statistics(untrained, examples)
    batch = collate_vocoder_examples([VocoderDataset(examples, vocoder.config, 1000)[index] for index in range(3)])

    def losses(model):
        with torch.no_grad():
            output = model(batch["units"], batch["lengths"])
            durations = model.predict_log_durations(batch["run_units"], batch["run_lengths"])
        terms = vocoder_losses(output, batch, model.output_std, model.output_sizes)
        return terms | {"duration": duration_loss(durations, batch["run_durations"], batch["run_lengths"])}

    before, after = losses(untrained), losses(vocoder)
    for name in before:
        assert after[name] < 0.8 * before[name], name

    save_in_bfloat16(vocoder, tmp_path / "saved")
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size < 2.1 * sum(tensor.numel() for tensor in vocoder.state_dict().values()) + 10_000
    loaded = Vocoder.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == torch.float32
    assert losses(loaded)["features"] == pytest.approx(float(after["features"]), rel=0.02)


def test_unusable_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="crop_units=2"):
        _arguments(tmp_path, crop_units=2)
    with pytest.raises(ValueError, match="unit_noise=1.5"):
        _arguments(tmp_path, unit_noise=1.5)


def test_sampled_texts_are_training_sentences_of_books_and_stories():
    texts = sample_vocoder_texts(num_story_sentences=50, seed=1)
    assert texts == sample_vocoder_texts(num_story_sentences=50, seed=1)
    assert len(set(texts)) == len(texts) > 2_000
    assert {split for _, split in texts} == {"train"}
    assert all(split_of(text) == "train" for text, _ in texts)


def test_sampled_items_are_reproducible_and_varied():
    texts = [(text, "train") for text in TEXTS * 50]
    items = sample_vocoder_items(texts, ["af_heart"], kokoro_share=0.2, seed=3)
    assert items == sample_vocoder_items(texts, ["af_heart"], kokoro_share=0.2, seed=3)
    kokoro = sum(item.voice == "af_heart" for item in items)
    plain = sum(item.voice == "hibari" and item.style == "base" and item.warp == 1.0 for item in items)
    assert 20 <= kokoro <= 60 and 55 <= plain <= 105


def test_melody_by_hand():
    """Heard: 100 Hz, then 300 Hz, unvoiced between; the target at 80 Hz has the same shape around 200 Hz."""
    heard = np.concatenate([np.full(40, 100.0), np.full(20, 7.0), np.full(40, 300.0)])
    voiced = np.concatenate([np.ones(40), np.zeros(20), np.ones(40)]).astype(bool)
    target = np.full(40, 150.0, np.float32)
    target[10:12] = 0
    melody = follow_melody(target, 80.0, (heard, voiced), mean_f0=200.0)
    assert melody.dtype == np.float32
    assert (melody[10:12] == 0).all()
    np.testing.assert_allclose(melody[:10], 100.0)
    np.testing.assert_allclose(melody[24:], 300.0)
    times = (np.arange(40) + 0.5) / 80
    between = (times > 39 / 200) & (times < 60 / 200)
    np.testing.assert_allclose(melody[between], 100 + 200 * (times[between] - 39 / 200) / (21 / 200), rtol=1e-5)
    silent = follow_melody(target, 80.0, (np.zeros(100), np.zeros(100, bool)), 200.0)
    assert (silent == target).all()


def test_target_with_prosody_has_the_melody_of_the_input(melodic_folder, features_folder, speaker):
    extract_f0 = load_f0_extractor("swift-f0")
    for item, example, plain in zip(
        ITEMS, load_vocoder_features(melodic_folder), load_vocoder_features(features_folder), strict=True
    ):
        f0, voiced = extract_f0(soxr.resample(speaker.speak(item).waveform, 24_000, 16_000))
        times = (np.arange(len(example.f0)) + 0.5) / 80
        nearest = np.minimum(np.round(times * 200).astype(int), len(f0) - 1)
        both = (example.f0.numpy() > 0) & voiced[nearest]
        target, heard = example.f0.numpy()[both], f0[nearest][both]
        assert both.sum() > 30
        assert np.corrcoef(target, heard)[0, 1] > 0.99
        height = {"base": 1.0, "sad": 0.88, "happy": 1.2}[item.style]
        assert target.mean() == pytest.approx(height * MEAN_F0, rel=0.04)
        assert torch.equal(example.features, plain.features) and torch.equal(example.energy, plain.energy)
        assert torch.equal(example.f0 > 0, plain.f0 > 0)
        assert len(example.log_mel) == len(plain.log_mel) and not torch.equal(example.log_mel, plain.log_mel)
        assert abs(len(example.pitch) - len(example.units) / 2) <= 1
        assert (example.style, plain.style, plain.pitch) == (item.style, "", None)


def test_features_with_other_codes_are_made_anew_and_those_without_keep_their_key(encoder, speaker, prosody, tmp_path):
    def made(prosody) -> bool:
        before = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
        prepare_vocoder_features(ITEMS[:1], encoder, speaker, tmp_path, prosody=prosody)
        return before != [path.stat().st_mtime_ns for path in tmp_path.iterdir()]

    assert [made(None), made(None)] == [True, False]
    content = json.dumps([encoder.fingerprint(), [asdict(ITEMS[0])]])
    with safe_open(tmp_path / "shard-00000.safetensors", framework="pt") as shard:
        assert shard.metadata()["key"] == hashlib.sha256(content.encode()).hexdigest()
    assert [made(prosody), made(prosody), made(replace(prosody, fingerprint="other"))] == [True, False, True]
    assert made(replace(prosody, fingerprint="other", follows_style=False))


def test_crops_carry_the_codes_of_their_units(melodic_folder):
    examples = load_vocoder_features(melodic_folder, split="train")
    config = VocoderConfig(num_units=100, num_pitch_tokens=16, num_style_tokens=3)
    example = replace(examples[1], units=torch.arange(len(examples[1].units)))
    dataset = VocoderDataset([example], config, crop_units=20, style_names=["base", "happy", "sad"])
    for _ in range(5):
        crop = dataset[0]
        pitch = [int(example.pitch[min(unit // 2, len(example.pitch) - 1)]) for unit in crop["units"].tolist()]
        assert crop["pitch"].tolist() == pitch
        assert crop["style"].tolist() == [2] * 20
    batch = collate_vocoder_examples([crop, crop])
    assert batch["pitch"].shape == batch["style"].shape == (2, 20)


def test_vocoder_learns_to_sing_from_pitch_and_style_alone(melodic_folder, tmp_path):
    """All units are made equal, so that only the codes can tell F0."""
    examples = load_vocoder_features(melodic_folder, split="train")
    examples = [replace(example, units=torch.zeros_like(example.units)) for example in examples]
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(**SMALL, num_pitch_tokens=16, num_style_tokens=3))
    set_output_statistics(vocoder, examples)
    dataset = VocoderDataset(examples, vocoder.config, 40, ["base", "happy", "sad"])
    arguments = _arguments(tmp_path, max_steps=120)
    trainer = VocoderTrainer(
        model=vocoder, args=arguments, train_dataset=dataset, data_collator=collate_vocoder_examples
    )
    trainer.train()
    dataset = VocoderDataset(examples, vocoder.config, 1000, ["base", "happy", "sad"])
    for index, example in enumerate(examples):
        row = {name: dataset[index][name][None] for name in ("units", "pitch", "style")}
        flat = row | {"pitch": torch.full_like(row["pitch"], 7)}
        voiced = example.f0 > 0
        with torch.no_grad():
            sung, monotone = (
                vocoder.eval()(arguments["units"], None, arguments["pitch"], arguments["style"])
                .log_f0.exp()
                .flatten()[: len(voiced)][voiced]
                for arguments in (row, flat)
            )
        target = example.f0[voiced]
        assert np.corrcoef(sung, target)[0, 1] > 0.7
        assert float(monotone.std()) < 0.5 * float(target.std())
    units, pitch = row["units"], row["pitch"]
    with torch.no_grad():
        sad, happy = (
            vocoder(units, None, pitch, torch.full_like(units, style)).log_f0.exp().mean() for style in (2, 1)
        )
    assert happy > 1.1 * sad


def test_a_run_resumed_within_an_epoch_draws_the_same_crops(features_folder, tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"crop_units": 10, "unit_noise": 0.3}
    expected = train_vocoder(features_folder, _arguments(tmp_path, **options), VocoderConfig(**SMALL)).state_dict()
    checkpoint = str(tmp_path / "checkpoint-1")
    resumed = train_vocoder(features_folder, _arguments(tmp_path, **options), VocoderConfig(**SMALL), checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_a_vocoder_learns_to_speak_with_and_without_prosody(melodic_folder, tmp_path):
    config = VocoderConfig(**SMALL, num_pitch_tokens=16, num_style_tokens=3, optional_prosody=True)
    styles = ["base", "happy", "sad"]
    arguments = _arguments(tmp_path, max_steps=100, prosody_dropout=0.5)
    vocoder = train_vocoder(melodic_folder, arguments, config, style_names=styles)
    examples = load_vocoder_features(melodic_folder, split="train")
    untrained = Vocoder(config).eval()
    set_output_statistics(untrained, examples)
    dataset = VocoderDataset(examples, config, 1000, styles)
    batch = collate_vocoder_examples([dataset[index] for index in range(3)])

    def loss(model, *prosody):
        with torch.no_grad():
            output = model(batch["units"], batch["lengths"], *prosody)
        return float(vocoder_losses(output, batch, model.output_std, model.output_sizes)["log_f0"])

    whole, nothing = (batch["pitch"], batch["style"]), (None, None)
    assert loss(vocoder, *whole) < 0.8 * loss(untrained, *whole)
    assert loss(vocoder, *nothing) < 0.8 * loss(untrained, *nothing)
    # It listens where there is something to hear.
    assert loss(vocoder, *whole) < loss(vocoder, *nothing)


def test_rows_lose_their_prosody_independently(melodic_folder, tmp_path):
    trainer = VocoderTrainer(
        model=Vocoder(VocoderConfig(**SMALL, optional_prosody=True, num_pitch_tokens=16)),
        args=_arguments(tmp_path, prosody_dropout=0.3),
    )
    torch.manual_seed(0)
    dropped = trainer._drop_rows(torch.ones(4000, 3, dtype=torch.long))
    assert set(map(tuple, dropped.tolist())) == {(1, 1, 1), (-1, -1, -1)}
    assert float((dropped[:, 0] < 0).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_optional_prosody_and_its_dropout_belong_together(melodic_folder, tmp_path):
    config = VocoderConfig(**SMALL, num_pitch_tokens=16, num_style_tokens=3)
    with pytest.raises(ValueError, match="prosody_dropout=0.3 and optional_prosody=False.*set both or neither"):
        train_vocoder(melodic_folder, _arguments(tmp_path, prosody_dropout=0.3), config)
    with pytest.raises(ValueError, match="prosody_dropout=0.0 and optional_prosody=True"):
        train_vocoder(melodic_folder, _arguments(tmp_path), VocoderConfig(**SMALL, optional_prosody=True))
    with pytest.raises(ValueError, match="prosody_dropout=1.0; expected a share"):
        _arguments(tmp_path, prosody_dropout=1.0)


def test_codes_that_are_not_there_are_refused(features_folder, melodic_folder):
    config = VocoderConfig(num_units=100, num_pitch_tokens=16, num_style_tokens=3)
    with pytest.raises(ValueError, match="Found the style ''; expected one of base"):
        VocoderDataset(load_vocoder_features(features_folder), config, 20, ["base", "happy", "sad"])
    with pytest.raises(ValueError, match="Found no pitch"):
        VocoderDataset(load_vocoder_features(features_folder), VocoderConfig(num_pitch_tokens=16), 20)
    with pytest.raises(ValueError, match="knows 0 to 2"):
        VocoderDataset(load_vocoder_features(melodic_folder), VocoderConfig(num_pitch_tokens=3), 20)


def test_a_pitch_encoder_reads_prosody(speaker):
    torch.manual_seed(0)
    encoder = PitchEncoder(PitchEncoderConfig(num_codes=5, hidden_size=8, code_size=4, f0_extractor="swift-f0")).eval()
    encoder.quantizer.codebook.normal_()
    reader = ProsodyReader.from_encoder(encoder, follows_style=True)
    assert reader.follows_style and not ProsodyReader.from_encoder(encoder).follows_style
    assert reader.num_codes == 5
    contour = reader.extract_f0(soxr.resample(speaker.speak(ITEMS[0]).waveform, 24_000, 16_000))
    assert reader.f0_to_codes([contour])[0].tolist() == encoder.f0_to_codes([contour])[0].tolist()
    encoder.quantizer.codebook.add_(1)
    assert ProsodyReader.from_encoder(encoder).fingerprint != reader.fingerprint
