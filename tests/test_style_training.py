"""Training of the style encoder on real synthetic speech: balanced crops, the loss by hand, and styles it can tell."""

from collections import Counter

import numpy as np
import pytest
import torch
import yaml

from tinywave.cli.main import main
from tinywave.configuration_tinywave import StyleEncoderConfig
from tinywave.data.audio_io import load_audio, waveform_to_flac_bytes
from tinywave.data.corpus import TextItem, iterate_corpus, prepare_corpus
from tinywave.style_encoder_tinywave import StyleEncoder, StyleEncoderOutput
from tinywave.training.style_training import (
    StyleDataset,
    StyleExample,
    StyleTrainingArguments,
    collate_style_examples,
    load_style_examples,
    style_accuracy,
    style_loss,
    train_style,
)

STYLES = ["sad", "angry"]
SENTENCES = ("The dog found a golden key.", "She sold the old boat.", "We ran home.", "He sees a tall tree.")
BACKBONE = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [40, 8, 8],
    "conv_stride": [20, 4, 4],
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
MODEL = {"backbone_config": BACKBONE, "num_styles": 2, "style_names": STYLES, "projector_size": 8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Each style says each sentence; the last is held out. One more sad sentence, and one of another style."""
    rows = [(text, style) for text in SENTENCES for style in STYLES]
    rows += [("They play.", "sad"), ("They sing.", "happy")]
    items = [
        TextItem(f"row-{number}", split, "story", (text,), "hibari", style, number, "none", "written here")
        for number, (text, style) in enumerate(rows)
        for split in ["validation" if text == SENTENCES[3] else "train"]
    ]
    return prepare_corpus(items, tmp_path_factory.mktemp("corpus"), num_processes=1)


@pytest.fixture(scope="module")
def examples(corpus):
    return load_style_examples([corpus], STYLES)


def arguments(folder, **changes):
    settings = {"max_steps": 60, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 20}
    settings |= {"report_to": "none", "save_strategy": "no", "seed": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"remove_unused_columns": False, "min_crop_seconds": 0.5, "max_crop_seconds": 1.0} | changes
    return StyleTrainingArguments(output_dir=str(folder), **settings)


def test_examples_are_the_rows_of_the_wanted_styles(corpus, examples):
    assert Counter(example.style for example in examples) == {0: 4, 1: 3}
    rows = [row for row in iterate_corpus(corpus) if row["split"] == "train" and row["style"] in STYLES]
    assert [example.audio for example in examples] == [row["audio"]["bytes"] for row in rows]
    assert [STYLES[example.style] for example in examples] == [row["style"] for row in rows]
    assert len(load_style_examples([corpus], STYLES, "validation")) == 2
    assert len(load_style_examples([corpus, corpus], STYLES)) == 14
    few = [load_style_examples([corpus], STYLES, hours_per_style=1e-6, seed=seed) for seed in range(5)]
    assert {len(chosen) for chosen in few} == {2} and len({chosen[0].audio for chosen in few}) > 1
    with pytest.raises(ValueError, match="no validation utterance of the style 'happy'"):
        load_style_examples([corpus], ["sad", "happy"], "validation")


def test_every_style_comes_equally_often(examples, tmp_path):
    dataset = StyleDataset(examples, arguments(tmp_path))
    rows = [dataset[index] for index in range(len(dataset))]
    assert Counter(int(row["label"]) for row in rows) == {0: 4, 1: 4}
    lengths = {len(row["input_values"]) for row in rows}
    assert 8000 <= min(lengths) < max(lengths) <= 16000 and len(lengths) > 4
    waveforms = {example.style: [] for example in examples}
    for example in examples:
        waveforms[example.style].append(load_audio(example.audio))
    for row in rows:
        crop = row["input_values"].numpy()
        assert any(contains(waveform, crop) for waveform in waveforms[int(row["label"])])


def contains(waveform, crop):
    starts = np.flatnonzero(waveform[: len(waveform) - len(crop) + 1] == crop[0])
    return any(np.array_equal(waveform[start : start + len(crop)], crop) for start in starts)


def test_a_short_utterance_is_a_crop_of_its_own(tmp_path):
    short = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)
    dataset = StyleDataset([StyleExample(waveform_to_flac_bytes(short, 16000), 0)], arguments(tmp_path))
    batch = collate_style_examples([dataset[0], {"input_values": torch.ones(5000), "label": torch.tensor(1)}])
    assert batch["input_values"].shape == (2, 5000)
    assert batch["attention_mask"].sum(1).tolist() == [4000, 5000] and batch["labels"].tolist() == [0, 1]


def test_loss_by_hand():
    """Two windows of style 1 and one of style 0; the padded window does not count."""
    shares = torch.tensor([[[0.5, 0.5], [0.75, 0.25]], [[0.9, 0.1], [0.0, 0.0]]])
    output = StyleEncoderOutput(logits=shares.clamp(1e-9).log(), styles=torch.tensor([[0, 0], [0, -1]]))
    loss = style_loss(output, torch.tensor([1, 0]))
    assert float(loss) == pytest.approx(-(np.log(0.5) + np.log(0.25) + np.log(0.9)) / 3, rel=1e-5)


def test_training_learns_to_tell_styles_of_unheard_text(corpus, examples, tmp_path):
    held_out = load_style_examples([corpus], STYLES, "validation")
    encoder = train_style(examples, arguments(tmp_path, max_steps=120), StyleEncoderConfig(**MODEL))
    assert style_accuracy(encoder, examples)["utterance"] == 1.0
    assert style_accuracy(encoder, held_out)["window"] >= 0.75
    louder = [StyleExample(waveform_to_flac_bytes(0.1 * load_audio(e.audio), 16000), e.style) for e in examples]
    assert style_accuracy(encoder, louder)["utterance"] == 1.0


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"dataloader_num_workers": 1}])
def test_a_run_resumed_within_an_epoch_draws_the_same_crops(options, examples, tmp_path):
    options = options | {"max_steps": 4, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    expected = train_style(examples, arguments(tmp_path, **options), StyleEncoderConfig(**MODEL)).state_dict()
    checkpoint = str(tmp_path / "checkpoint-1")
    resumed = train_style(examples, arguments(tmp_path, **options), StyleEncoderConfig(**MODEL), checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_accuracy_by_hand(examples):
    """Every window counts for windows, the majority for utterances, and every style alike."""
    torch.manual_seed(0)
    encoder = StyleEncoder(StyleEncoderConfig(**MODEL)).eval()
    sad, angry = (next(example for example in examples if example.style == style) for style in (0, 1))
    encoder.classifier.weight.data.zero_()
    encoder.classifier.bias.data = torch.tensor([1.0, 0.0])  # always sad
    assert style_accuracy(encoder, [sad, sad, sad, angry]) == {"window": 0.5, "utterance": 0.5}
    assert style_accuracy(encoder, [sad]) == {"window": 1.0, "utterance": 1.0}


def test_unusable_crops_are_refused(tmp_path):
    with pytest.raises(ValueError, match="crops of 2.0 to 1.0 s"):
        arguments(tmp_path, min_crop_seconds=2.0)
    with pytest.raises(ValueError, match="at least 0.1 s"):
        arguments(tmp_path, min_crop_seconds=0.01)


def test_the_verb_trains_resumes_and_saves_a_complete_folder(corpus, tmp_path, capsys):
    training = {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "save_steps": 2, "logging_steps": 2}
    training |= {"remove_unused_columns": False, "disable_tqdm": True, "report_to": "none", "max_crop_seconds": 1.0}
    recipe = {"seed": 0, "hours_per_style": 1.0, "model": MODEL, "training": training}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train-style", str(tmp_path / "recipe.yaml"), "--corpus", str(corpus)]
    command += ["--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "of utterances" in printed and printed.splitlines()[-1] == str(tmp_path / "out")
    encoder = StyleEncoder.from_pretrained(tmp_path / "out")
    assert encoder.config.style_names == STYLES
    assert (tmp_path / "out" / "style_encoder_tinywave.py").is_file()
    before = encoder.state_dict()
    assert main(command) == 0  # finished: nothing is trained again
    after = StyleEncoder.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
