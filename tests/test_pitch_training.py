"""Training of the pitch encoder: the codebook by hand, and real F0 that comes back from its codes."""

import numpy as np
import pytest
import torch
import yaml

from tinywave.cli.main import main
from tinywave.configuration_tinywave import PitchEncoderConfig
from tinywave.data.corpus import TextItem, prepare_corpus
from tinywave.data.f0_extraction import load_f0, prepare_f0
from tinywave.pitch_encoder_tinywave import CodeQuantizer, PitchEncoder, contour_to_features
from tinywave.training.pitch_training import (
    PitchDataset,
    PitchTrainingArguments,
    collate_contours,
    f0_correlation,
    initialize_codebook,
    pitch_losses,
    train_pitch,
    update_codebook,
)

SMALL = {"hidden_size": 16, "num_residual_layers": 2, "code_size": 16, "num_codes": 32, "f0_extractor": "swift-f0"}
SENTENCES = ("The dog found a golden key.", "She sold the old boat.", "We ran home.", "He sees a tall tree.")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    styles = ("base", "happy", "sad", "happy")
    items = [
        TextItem(f"row-{number}", split, "story", (sentence,), "hibari", style, number, "none", "written here")
        for number, (sentence, style) in enumerate(zip(SENTENCES, styles, strict=True))
        for split in ["validation" if number == 3 else "train"]
    ]
    return prepare_corpus(items, tmp_path_factory.mktemp("corpus"), num_processes=1)


@pytest.fixture(scope="module")
def f0_folder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("f0")
    prepare_f0([corpus], folder)
    return folder


def arguments(folder, **changes):
    settings = {"max_steps": 12, "per_device_train_batch_size": 3, "learning_rate": 3e-3, "logging_steps": 4}
    settings |= {"report_to": "none", "save_strategy": "no", "seed": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"remove_unused_columns": False, "crop_frames": 160} | changes
    return PitchTrainingArguments(output_dir=str(folder), **settings)


def test_the_published_recipe_is_the_default(tmp_path):
    args = PitchTrainingArguments(output_dir=str(tmp_path))
    found = (args.learning_rate, args.adam_beta1, args.adam_beta2, args.commitment_weight, args.weight_decay)
    assert found == (2e-4, 0.8, 0.99, 0.02, 0.0)
    assert args.crop_frames / 200 * 16000 == 16640  # samples of the published segment


def test_codes_move_by_hand():
    """Code 0 is chosen twice, code 1 once and code 2 never, which restarts it."""
    quantizer = CodeQuantizer(3, 2)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    quantizer.code_counts.copy_(torch.tensor([4.0, 2.0, 1.0]))
    latents = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    alive = update_codebook(quantizer, latents, torch.tensor([0, 0, 1]), decay=0.5, restart_count=1.0)
    assert alive == 2
    assert quantizer.code_counts.tolist() == [3.0, 1.5, 0.5]
    # (0.5 * 4 * 1 + 0.5 * (2 + 4)) / 3 and (0.5 * 2 * 1 + 0.5 * 3) / 1.5
    torch.testing.assert_close(quantizer.codebook[0], torch.tensor([5 / 3, 0.0]))
    torch.testing.assert_close(quantizer.codebook[1], torch.tensor([0.0, 5 / 3]))
    assert quantizer.codebook[2].tolist() in latents.tolist()


def test_codes_end_at_the_means_of_their_latents():
    torch.manual_seed(0)
    quantizer = CodeQuantizer(2, 2)
    latents = torch.cat([torch.randn(50, 2) - 5, torch.randn(150, 2) + 5])
    initialize_codebook(quantizer, latents)
    assert all(code in latents.tolist() for code in quantizer.codebook.tolist())
    for _ in range(100):
        update_codebook(quantizer, latents, quantizer(latents), decay=0.8, restart_count=1.0)
    means = torch.stack([latents[:50].mean(0), latents[50:].mean(0)])
    torch.testing.assert_close(quantizer.codebook[quantizer.codebook[:, 0].argsort()], means, rtol=1e-3, atol=1e-3)
    assert sorted(quantizer.code_counts.round().tolist()) == [50, 150]


def test_a_code_restarts_even_from_few_latents():
    quantizer = CodeQuantizer(8, 2)
    latents = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    initialize_codebook(quantizer, latents)
    assert {tuple(code) for code in quantizer.codebook.tolist()} == {(1.0, 2.0), (3.0, 4.0)}


def test_losses_by_hand_and_without_padding(f0_folder):
    torch.manual_seed(0)
    encoder = PitchEncoder(PitchEncoderConfig(**SMALL))
    sizes = zip(load_f0(f0_folder), (100, 47, 160, 64), strict=True)
    rows = [contour_to_features(item.f0, item.voiced)[:size] for item, size in sizes]
    initialize_codebook(encoder.quantizer, torch.randn(32, 16))
    batch = collate_contours(rows)
    batch["features"][1, 47:] = 99.0  # what is padded is not looked at
    with torch.no_grad():
        together = pitch_losses(encoder(**batch), batch["features"])
        squares, distances = [], []
        for row in rows:
            output = encoder(row[None])
            squares.append((output.reconstruction[0] - row[: len(row) // 16 * 16]).square().flatten())
            codes = encoder.quantizer.codebook[output.codes[0]]
            distances.append((output.latents[0] - codes).square().flatten())
    torch.testing.assert_close(together["reconstruction"], torch.cat(squares).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(together["commitment"], torch.cat(distances).mean(), rtol=1e-4, atol=0)


def test_crops_are_of_the_utterance_whose_whole_mean_is_removed(f0_folder):
    contours = load_f0(f0_folder)[:1]
    whole = contour_to_features(contours[0].f0, contours[0].voiced)
    dataset = PitchDataset(contours, crop_frames=48)
    torch.manual_seed(0)
    starts = set()
    for _ in range(4):
        crop = dataset[0]
        starts |= {start for start in range(len(whole) - 47) if torch.equal(whole[start : start + 48], crop)}
    assert len(starts) > 1
    assert torch.equal(PitchDataset(contours, crop_frames=10_000)[0], whole)


def test_training_brings_f0_back_and_an_interrupted_one_continues(f0_folder, tmp_path):
    config = PitchEncoderConfig(**SMALL)
    options = {"max_steps": 150, "save_strategy": "steps", "save_steps": 100}
    encoder = train_pitch(f0_folder, arguments(tmp_path, **options), config)
    contours = load_f0(f0_folder)
    assert f0_correlation(encoder, contours[:3]) > 0.9
    assert (encoder.quantizer.code_counts != 1).all()
    resumed = train_pitch(f0_folder, arguments(tmp_path, **options), config, str(tmp_path / "checkpoint-100"))
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_resumed_within_an_epoch_draws_the_same_crops(step, f0_folder, tmp_path):
    options = {"max_steps": 5, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    expected = train_pitch(f0_folder, arguments(tmp_path, **options), PitchEncoderConfig(**SMALL)).state_dict()
    checkpoint = str(tmp_path / f"checkpoint-{step}")
    resumed = train_pitch(f0_folder, arguments(tmp_path, **options), PitchEncoderConfig(**SMALL), checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_the_correlation_is_of_voiced_frames_relative_to_each_mean(f0_folder):
    """Recomputed from the codes of one utterance at a time."""
    torch.manual_seed(0)
    encoder = PitchEncoder(PitchEncoderConfig(**SMALL)).eval()
    contours = load_f0(f0_folder)
    with torch.no_grad():
        initialize_codebook(encoder.quantizer, encoder(PitchDataset(contours, 480)[0][None]).latents.flatten(0, 1))
    original, decoded = [], []
    for item in contours:
        f0 = encoder.codes_to_f0(encoder.f0_to_codes([(item.f0, item.voiced)])[0]).numpy()
        voiced = item.voiced[: len(f0)]
        original += (item.f0[: len(f0)] - item.f0[item.voiced].mean())[voiced].tolist()
        decoded += f0[voiced].tolist()
    assert f0_correlation(encoder, contours) == pytest.approx(np.corrcoef(original, decoded)[0, 1], abs=1e-6)


def test_unusable_arguments_are_refused(f0_folder, tmp_path):
    with pytest.raises(ValueError, match="crop_frames=0"):
        arguments(tmp_path, crop_frames=0)
    with pytest.raises(ValueError, match="codebook_decay=1.0"):
        arguments(tmp_path, codebook_decay=1.0)
    with pytest.raises(ValueError, match="crop_frames=8; expected the 16 of a code"):
        train_pitch(f0_folder, arguments(tmp_path, crop_frames=8), PitchEncoderConfig(**SMALL))


def test_the_verb_trains_and_saves_a_complete_folder(corpus, tmp_path, capsys):
    training = {"max_steps": 4, "per_device_train_batch_size": 3, "use_cpu": True, "save_steps": 2, "logging_steps": 2}
    training |= {"remove_unused_columns": False, "disable_tqdm": True, "report_to": "none"}
    recipe = {"seed": 0, "hours": {"train": 1.0, "validation": 1.0}, "model": SMALL, "training": training}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train-pitch", str(tmp_path / "recipe.yaml"), "--corpus", str(corpus)]
    assert main([*command, "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "correlation" in printed and printed.splitlines()[-1] == str(tmp_path / "out")
    encoder = PitchEncoder.from_pretrained(tmp_path / "out")
    assert encoder.quantizer.is_fitted and encoder.config.f0_extractor == "swift-f0"
    assert (tmp_path / "out" / "pitch_encoder_tinywave.py").is_file()
