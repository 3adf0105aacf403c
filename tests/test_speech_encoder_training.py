"""A small speech encoder learns the units of another on real speech, resumes, and is saved complete."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from tinywave.cli import main as command_line
from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import SpeechEncoderConfig
from tinywave.data.audio_io import load_audio, waveform_to_flac_bytes
from tinywave.data.codec_loading import load_speech_encoder
from tinywave.data.unit_extraction import ShardError, UnitUtterance, extract_units, load_unit_utterances
from tinywave.eval.codec_quality import frame_accuracy
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.training.speech_encoder_training import (
    IGNORED,
    SpeechEncoderDataset,
    SpeechEncoderForDistillation,
    SpeechEncoderTrainer,
    SpeechEncoderTrainingArguments,
    add_room,
    balance_voices,
    tilt_spectrum,
    train_speech_encoder,
    untrained_speech_encoder,
)

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
NUM_UNITS = 12
BACKBONE = {
    "model_type": "hubert",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "conv_dim": [64, 32, 48, 48],
    "conv_kernel": [320, 2, 2, 2],
    "conv_stride": [80, 2, 2, 2],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}
CONFIG = {
    "backbone_config": BACKBONE,
    "layer": 2,
    "pooling": 1,
    "backbone_frame_rate": 25.0,
    "num_units": NUM_UNITS,
    "quantizer": "linear",
    "quantizer_hidden_sizes": [32],
    "attention_window": 8,
}
TRAINING = {
    "max_steps": 100,
    "per_device_train_batch_size": 5,
    "learning_rate": 0.003,
    "crop_units": 60,
    "logging_steps": 20,
    "save_steps": 50,
    "save_total_limit": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "remove_unused_columns": False,
}
TEACHER_BACKBONE = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}


@pytest.fixture(scope="module")
def teacher():
    """A tiny untrained Whisper whose units still depend on the sound."""
    torch.manual_seed(0)
    backbone = {"model_type": "whisper", **TEACHER_BACKBONE}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=NUM_UNITS)).eval()
    features = torch.cat(encoder.extract_features([load_audio(path) for path in LIBRIVOX.glob("*.flac")]))
    encoder.quantizer.mean, encoder.quantizer.standard_deviation = features.mean(0), features.std(0)
    chosen = torch.randperm(len(features))[:NUM_UNITS]
    encoder.quantizer.centroids = encoder.quantizer.normalize(features[chosen])
    return encoder


def untrained_encoder(**changes):
    return untrained_speech_encoder(SpeechEncoderConfig(**{**CONFIG, **changes}), seed=0)


def write_corpus(folder, paths, split="train"):
    folder.mkdir(parents=True)
    rows = []
    for path in paths:
        waveform = load_audio(path)
        audio = {"bytes": waveform_to_flac_bytes(waveform, 16_000), "path": None}
        row = {"id": path.stem, "split": split, "audio": audio, "sampling_rate": 16_000, "num_samples": len(waveform)}
        row["voice"] = "reader"
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet")


@pytest.fixture(scope="module")
def folders(teacher, tmp_path_factory):
    """Two corpora and their units."""
    folder = tmp_path_factory.mktemp("speech")
    paths = sorted(LIBRIVOX.glob("*.flac"))
    for name, part in (("a", paths[:2]), ("b", paths[2:])):
        write_corpus(folder / f"corpus-{name}", part)
        extract_units(folder / f"corpus-{name}", SpeechCodec(teacher), folder / f"units-{name}", num_processes=1)
    return [folder / "corpus-a", folder / "corpus-b"], [folder / "units-a", folder / "units-b"]


@pytest.fixture(scope="module")
def utterances(folders):
    return load_unit_utterances(*folders, split="train")


def arguments(folder, **changes):
    settings = TRAINING | {"save_strategy": "no", "crop_units": 30} | changes
    return SpeechEncoderTrainingArguments(output_dir=str(folder), **settings)


def test_utterances_of_several_corpora_keep_audio_and_units_together(folders, utterances, teacher):
    assert len(utterances) == 5
    for utterance, path in zip(utterances, sorted(LIBRIVOX.glob("*.flac")), strict=True):
        waveform = load_audio(path)
        assert utterance.num_samples == len(waveform)
        np.testing.assert_allclose(utterance.read_samples(1000, 500), waveform[1000:1500], atol=1e-4)
        assert len(utterance.read_samples(len(waveform) - 10, 500)) == 10
        assert utterance.units.tolist() == teacher.encode([utterance.read_samples(0, len(waveform))])[0].tolist()


def test_corpora_and_units_that_do_not_belong_together_are_refused(folders, teacher, tmp_path):
    corpora, units = folders
    with pytest.raises(ValueError, match="2 corpora and 1 unit folders"):
        load_unit_utterances(corpora, units[:1], split="train")
    with pytest.raises(ShardError, match="no row of the split 'test'"):
        load_unit_utterances(corpora, units, split="test")
    with pytest.raises(ShardError, match="is of other rows than"):
        load_unit_utterances(corpora, units[::-1], split="train")
    with pytest.raises(ShardError, match="shard-00000.parquet is missing; run extract-units"):
        load_unit_utterances(corpora[:1], [tmp_path], split="train")
    table = pq.read_table(units[1])
    other = table.set_column(table.column_names.index("encoder"), "encoder", pa.array(["another"] * len(table)))
    (tmp_path / "units").mkdir()
    pq.write_table(other, tmp_path / "units" / "shard-00000.parquet")
    with pytest.raises(ShardError, match="units are of 2 encoders, .*another"):
        load_unit_utterances(corpora, [units[0], tmp_path / "units"], split="train")


def test_a_crop_holds_the_samples_of_its_units(utterances, tmp_path):
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    plain = {"max_gain": 0.0, "noise_share": 0.0}
    dataset = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, **plain))
    whole = utterances[0].read_samples(0, utterances[0].num_samples)
    starts = set()
    for _ in range(5):
        crop = dataset[0]
        matches = [
            start
            for start in range(0, len(whole), 640)
            if np.array_equal(whole[start : start + 29 * 640 + 880], crop["input_values"])
        ]
        (start,) = matches
        starts.add(start)
        assert crop["labels"].tolist() == utterances[0].units[start // 640 : start // 640 + 30].tolist()
    assert len(starts) > 1
    longer = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, crop_units=500, **plain))[0]
    num_units = len(utterances[0].units)
    assert longer["labels"].tolist() == utterances[0].units.tolist() + [IGNORED] * (500 - num_units)
    assert longer["input_values"].shape == (499 * 640 + 880,)
    assert not longer["input_values"][len(whole) :].any()


def test_a_crop_at_another_speed_keeps_the_units_of_its_sounds(utterances, tmp_path):
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    settings = {"max_gain": 0.0, "noise_share": 0.0, "max_speed_change": 0.2, "crop_units": 500}
    dataset = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, **settings))
    whole, units = utterances[0].read_samples(0, utterances[0].num_samples), utterances[0].units
    counts = set()
    for _ in range(4):
        crop = dataset[0]
        num_samples = int(crop["input_values"].nonzero().max()) + 1
        speed = len(whole) / num_samples
        played = crop["labels"][crop["labels"] != IGNORED].tolist()
        expected = [units[int((frame + 0.5) * speed)] for frame in range(len(played) - 1)]
        assert np.mean(np.equal(played[:-1], expected)) > 0.95
        assert len(played) == pytest.approx(len(units) / speed, abs=1)
        # A loud moment is where the speed puts it.
        envelope, original = (
            np.abs(part[: len(part) // 640 * 640]).reshape(-1, 640).max(1)
            for part in (crop["input_values"][:num_samples].numpy(), whole)
        )
        assert int(envelope.argmax() * speed) == pytest.approx(int(original.argmax()), abs=2)
        counts.add(len(played))
    assert len(counts) > 1


def test_augmentation_changes_loudness_and_adds_noise_of_the_ratio(utterances, tmp_path):
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    torch.manual_seed(0)
    loud = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, noise_share=0.0))
    samples = torch.from_numpy(utterances[0].read_samples(0, 40_000))
    gains = [float((loud._augment(samples) / samples)[samples != 0].median()) for _ in range(200)]
    decibels = 20 * np.log10(gains)
    assert -12.01 < decibels.min() < -10 and 10 < decibels.max() < 12.01
    ratio = {"min_noise_ratio": 20.0, "max_noise_ratio": 20.0}
    noisy = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, max_gain=0.0, noise_share=1.0, **ratio))
    difference = noisy._augment(samples) - samples
    found = 10 * torch.log10(samples.square().mean() / difference.square().mean())
    assert float(found) == pytest.approx(20.0, abs=0.2)


def test_masking_hides_the_share_that_was_asked_for_and_only_in_training(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    heard = []
    encoder.backbone.convolved_to_frames = lambda convolved: (
        heard.append(convolved) or [torch.zeros(len(item), 48) for item in convolved]
    )
    model = SpeechEncoderForDistillation(encoder, arguments(tmp_path, mask_share=0.3))
    crops, labels = torch.randn(200, 29 * 640 + 880), torch.zeros(200, 30, dtype=torch.long)
    with torch.no_grad():
        model.train()(crops, labels)
        model.eval()(crops, labels)
    hidden, unmasked = (torch.stack(frames).abs().sum(-1) == 0 for frames in heard)
    assert float(hidden.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not unmasked.any()
    inside = hidden[:, 1:-1] & ~hidden[:, :-2]
    assert inside.any(), "spans also begin inside"


def test_losses_are_those_of_the_labelled_frames(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    model = SpeechEncoderForDistillation(encoder, arguments(tmp_path)).eval()
    crops = 0.1 * torch.randn(2, 9 * 640 + 880)
    labels = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 0, 0] + [IGNORED] * 7])
    with torch.no_grad():
        output = model(crops, labels)
        features = encoder.extract_features(list(crops))
        scores = [encoder.quantizer.logits(item) for item in features]
    pairs = [(row, frame) for row in range(2) for frame in range(10) if labels[row, frame] != IGNORED]
    expected = [-float(scores[row][frame].log_softmax(-1)[labels[row, frame]]) for row, frame in pairs]
    assert len(pairs) == 13 and float(output.loss) == pytest.approx(np.mean(expected), rel=1e-4)
    hits = [int(scores[row][frame].argmax()) == int(labels[row, frame]) for row, frame in pairs]
    assert float(output.accuracy) == pytest.approx(np.mean(hits))


def test_features_are_compared_with_the_teachers_own_of_the_clean_crop(teacher, utterances, tmp_path):
    args = arguments(tmp_path, feature_weight=0.5, max_steps=1, logging_steps=1, per_device_train_batch_size=2)
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG))
    model = SpeechEncoderForDistillation(encoder, args, teacher.quantizer).eval()
    trainer = SpeechEncoderTrainer(model=model, args=args, teacher=teacher)
    dataset = SpeechEncoderDataset(utterances, encoder, args)
    crops = [dataset[0], dataset[1]]
    batch = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
    assert not torch.allclose(batch["input_values"], batch["clean_values"])
    with torch.no_grad():
        loss, output = trainer.compute_loss(model, dict(batch), return_outputs=True)
        terms = []
        for noisy, clean in zip(batch["input_values"], batch["clean_values"], strict=True):
            predicted = model.projector(encoder.extract_features([noisy])[0])
            target = teacher.extract_features([clean])[0][:30]
            target = (target - teacher.quantizer.mean) / teacher.quantizer.standard_deviation
            norms = predicted.norm(dim=-1) * target.norm(dim=-1)
            cosine = (predicted * target).sum(-1) / norms
            terms.append((predicted - target).abs().mean() + torch.log1p(torch.exp(-cosine)).mean())
    assert float(output.feature_loss) == pytest.approx(float(sum(terms)) / 2, rel=1e-3)
    assert float(loss) == pytest.approx(float(output.unit_loss + 0.5 * output.feature_loss), rel=1e-5)


def test_the_teacher_is_neither_trained_nor_saved(teacher, utterances, tmp_path):
    before = teacher.fingerprint()
    args = arguments(tmp_path, feature_weight=1.0, max_steps=2, save_strategy="steps", save_steps=2)
    encoder = train_speech_encoder(untrained_encoder(), utterances, args, teacher)
    assert teacher.fingerprint() == before
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"encoder", "projector"}
    assert not any("projector" in name for name in encoder.state_dict())


def test_a_room_keeps_the_direct_sound_and_decays():
    torch.manual_seed(0)
    impulse = F.pad(torch.ones(1), (1_000, 15_999))
    echoes = torch.stack([add_room(impulse, 16_000) for _ in range(40)])
    assert echoes[:, :1_000].abs().max() < 1e-5, "nothing is heard before the sound"
    assert torch.allclose(echoes[:, 1_000], torch.ones(40), atol=1e-4)
    ratio = -10 * torch.log10(echoes[:, 1_001:].square().sum(1))
    assert -0.1 < ratio.min() < 3 and 12 < ratio.max() < 15.1
    early, late = (echoes[:, start : start + 320].square().sum(1) for start in (1_001, 1_801))
    seconds = 60 * 800 / 16_000 / (10 * torch.log10(early / late))
    assert 0.09 < seconds.min() < 0.15 and 0.5 < seconds.max() < 0.7, "60 dB down after 0.1 to 0.6 s"


def test_a_tilt_changes_the_octaves_around_one_kilohertz():
    times = torch.arange(16_000) / 16_000
    for frequency, octaves in ((500, -1), (1000, 0), (4000, 2)):
        tone = torch.sin(2 * torch.pi * frequency * times)
        tilted = tilt_spectrum(tone, 3.0, 16_000)
        assert 20 * float(torch.log10(tilted.norm() / tone.norm())) == pytest.approx(3.0 * octaves, abs=1e-3)


def test_crops_are_augmented_only_as_asked(utterances, tmp_path):
    encoder, plain = untrained_encoder(), {"noise_share": 0.0, "max_gain": 0.0, "feature_weight": 1.0}
    crop = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, **plain))[0]
    assert torch.equal(crop["input_values"], crop["clean_values"])
    for change in ({"room_share": 1.0}, {"max_tilt": 6.0}):
        crop = SpeechEncoderDataset(utterances, encoder, arguments(tmp_path, **plain, **change))[0]
        correlation = F.cosine_similarity(crop["input_values"], crop["clean_values"], dim=0)
        assert 0.2 < correlation < 0.9999, change
    with pytest.raises(ValueError, match="Found room_share=1.5; expected a share from 0 to 1"):
        arguments(tmp_path, room_share=1.5)


def test_other_voices_are_repeated_until_they_have_their_share():
    def spoken_by(voice, count):
        return [UnitUtterance(b"", 0, np.zeros(0, np.int16), voice) for _ in range(count)]

    utterances = [*spoken_by("hibari", 90), *spoken_by("af_sky", 6), *spoken_by("am_adam", 4)]
    balanced = Counter(utterance.voice for utterance in balance_voices(utterances, 0.3))
    assert balanced == {"hibari": 90, "af_sky": 24, "am_adam": 16}
    assert balance_voices(utterances, 0.0) == utterances
    assert balance_voices(utterances[:90], 0.5) == utterances[:90]


def accuracy_of(encoder, utterances):
    waveforms = [utterance.read_samples(0, utterance.num_samples) for utterance in utterances]
    return frame_accuracy(encoder.encode(waveforms), [utterance.units for utterance in utterances])


def test_the_command_learns_resumes_goes_on_and_saves_a_complete_folder(folders, utterances, tmp_path, capsys):
    output, recipe, training = tmp_path / "encoder", tmp_path / "recipe.yaml", dict(TRAINING)
    recipe.write_text(yaml.safe_dump({"encoder": CONFIG, "seed": 0, "training": training}))
    corpora, units = (list(map(str, part)) for part in folders)
    command = ["train-speech-encoder", str(recipe), "--corpus", *corpora, "--units", *units]
    assert command_line.main([*command, "--output-dir", str(output)]) == 0
    encoder = load_speech_encoder(output)
    counts = np.bincount(np.concatenate([utterance.units for utterance in utterances]))
    assert accuracy_of(encoder, utterances) > counts.max() / counts.sum() + 0.2
    assert (output / "speech_encoder_tinywave.py").is_file() and (output / "speech_backbones_tinywave.py").is_file()
    num_parameters = sum(tensor.numel() for tensor in encoder.state_dict().values())
    assert (output / "model.safetensors").stat().st_size < 2.1 * num_parameters + 20_000

    training["max_steps"] += 10
    recipe.write_text(yaml.safe_dump({"encoder": CONFIG, "seed": 0, "training": training}))
    assert command_line.main([*command, "--output-dir", str(output)]) == 0
    state = json.loads((output / f"checkpoint-{training['max_steps']}" / "trainer_state.json").read_text())
    assert state["log_history"][0]["step"] == training["logging_steps"], "the first run's history is continued"
    assert load_speech_encoder(output).fingerprint() != encoder.fingerprint()
    first = encoder.fingerprint()
    recipe.write_text(yaml.safe_dump({"seed": 0, "training": training | {"learning_rate": 1e-9, "max_steps": 1}}))
    assert command_line.main([*command, "--output-dir", str(tmp_path / "unborn")]) == 2
    assert "give its folder as --init-from" in capsys.readouterr().err
    assert command_line.main([*command, "--init-from", str(output), "--output-dir", str(tmp_path / "next")]) == 0
    continued = load_speech_encoder(tmp_path / "next")
    before = load_speech_encoder(output)
    assert before.fingerprint() != first
    for name, tensor in continued.state_dict().items():
        assert torch.allclose(tensor, before.state_dict()[name], rtol=0.01, atol=1e-7), "a step of 1e-9 moves nothing"
    stream = load_speech_encoder(output).stream()
    waveform = utterances[0].read_samples(0, utterances[0].num_samples)
    streamed = torch.cat([stream.push(waveform), stream.finish()])
    assert streamed.tolist() == load_speech_encoder(output).encode([waveform])[0].tolist()


def test_a_run_resumed_within_an_epoch_draws_the_same_crops(utterances, tmp_path):
    changes = {"max_steps": 4, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    changes |= {"save_total_limit": None, "crop_units": 20, "mask_share": 0.2}
    expected = train_speech_encoder(untrained_encoder(), utterances, arguments(tmp_path / "a", **changes)).state_dict()
    shutil.copytree(tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-1")
    resumed = train_speech_encoder(untrained_encoder(), utterances, arguments(tmp_path / "b", **changes))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_a_cut_of_the_teacher_learns_to_do_what_all_of_it_did(teacher, folders, utterances, tmp_path, capsys):
    backbone = {"model_type": "whisper", **TEACHER_BACKBONE, "encoder_ffn_dim": 16, "max_source_positions": 80}
    config = {"backbone_config": backbone, "layer": 1, "num_units": NUM_UNITS, "quantizer": "linear"}
    recipe, settings = tmp_path / "recipe.yaml", {"feature_weight": 1.0, "unit_weight": 0.1, "crop_units": 40}
    settings |= {"max_steps": 1, "learning_rate": 1e-9}

    def train(name, **changes):
        training = TRAINING | settings | changes
        contents = {"encoder": config | {"block_units": 30, "block_context": 5}, "seed": 0, "training": training}
        recipe.write_text(yaml.safe_dump(contents | {"pruning_utterances": 4, "weight_bits": 8}))
        corpora, units = (list(map(str, part)) for part in folders)
        command = ["train-speech-encoder", str(recipe), "--corpus", *corpora, "--units", *units]
        if (code := command_line.main([*command, *teacher_words, "--output-dir", str(tmp_path / name)])) == 0:
            return load_speech_encoder(tmp_path / name)
        return code

    def feature_error(encoder):
        waveforms = [utterance.read_samples(0, 30 * 640) for utterance in utterances]
        pairs = zip(encoder.extract_features(waveforms), teacher.extract_features(waveforms), strict=True)
        normalize = teacher.quantizer.normalize
        return float(torch.cat([(normalize(own) - normalize(its)).square().mean(1) for own, its in pairs]).mean())

    teacher_words = []
    assert train("alone") == 2
    assert "give its folder as --teacher" in capsys.readouterr().err
    teacher.save_pretrained(tmp_path / "teacher")
    teacher_words = ["--teacher", str(tmp_path / "teacher")]
    cut = train("cut")
    trained = train("trained", max_steps=80, learning_rate=0.002, noise_share=0.0, max_gain=0.0)
    assert feature_error(trained) < 0.8 * feature_error(cut) < 0.8
    fc1 = trained.backbone.layers[0].fc1.parametrizations.weight
    assert trained.config.weight_bits == 8 and fc1.original0.dtype == torch.int8
    stream = trained.stream()
    waveform = utterances[0].read_samples(0, utterances[0].num_samples)
    assert torch.cat([stream.push(waveform), stream.finish()]).tolist() == trained.encode([waveform])[0].tolist()
    teacher_words += ["--init-from", str(tmp_path / "trained")]
    continued = train("continued", max_steps=5, learning_rate=0.001)
    assert continued.config.weight_bits == 8 and continued.fingerprint() != trained.fingerprint()


def test_units_beyond_the_configuration_are_refused(utterances, tmp_path):
    with pytest.raises(ValueError, match="found unit 1[01], but num_units is 5"):
        train_speech_encoder(untrained_encoder(num_units=5), utterances, arguments(tmp_path))


def test_comparing_features_needs_a_teacher(utterances, tmp_path):
    with pytest.raises(ValueError, match="feature_weight=1.0 but no teacher with centroids"):
        train_speech_encoder(untrained_encoder(), utterances, arguments(tmp_path, feature_weight=1.0))


def test_an_encoder_that_cannot_be_distilled_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="only encoders with a linear quantizer can be distilled"):
        SpeechEncoderForDistillation(teacher, arguments(tmp_path))
    with pytest.raises(ValueError, match="found weights of 8 bits, which do not learn"):
        SpeechEncoderForDistillation(SpeechEncoder(SpeechEncoderConfig(**CONFIG, weight_bits=8)), arguments(tmp_path))


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_an_utterance_shorter_than_its_crop_ends_where_it_ends(name, utterances, tmp_path):
    whisper = {"model_type": "whisper", **TEACHER_BACKBONE}
    changes = {"backbone_config": whisper, "layer": 1, "pooling": 2, "backbone_frame_rate": 50.0}
    changes = {} if name == "hubert" else changes | {"attention_window": None}
    encoder = SpeechEncoder(SpeechEncoderConfig(**CONFIG | changes)).eval()
    num_samples = 11 * encoder.samples_per_unit + encoder.samples_per_window
    samples = torch.from_numpy(utterances[0].read_samples(4000, num_samples))
    values = torch.stack([F.pad(samples, (0, 12 * 640)), F.pad(samples, (0, 12 * 640), value=0.5)])
    labels = torch.tensor([[*range(12), *[IGNORED] * 12]] * 2)
    model = SpeechEncoderForDistillation(encoder, arguments(tmp_path)).eval()
    with torch.no_grad():
        loss = model(values, labels).unit_loss
        logits = encoder.quantizer.logits(encoder.extract_features([samples])[0])
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, labels[0, :12])), rel=1e-4)


def test_unusable_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="crop_units=2"):
        arguments(tmp_path, crop_units=2)
    with pytest.raises(ValueError, match="max_speed_change=1.0"):
        arguments(tmp_path, max_speed_change=1.0)
    with pytest.raises(ValueError, match="noise_share=1.5"):
        arguments(tmp_path, noise_share=1.5)
