"""Training from nothing on interleaved speech and text: it learns, saves a complete repository, and resumes."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.interleaving import INTERLEAVED, AlignedDocument, InterleavedDataset, JoinedDataset
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.tokenization_tinywave import build_tokenizer, ids_to_segments, text_part, train_text_tokenizer
from tinywave.training.checkpoints import last_checkpoint, save_in_bfloat16
from tinywave.training.pretraining import add_streams, train_language_model

CONFIG = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def config():
    return TinyWaveConfig.from_preset("nano-student", num_key_value_heads=2, **CONFIG)


@pytest.fixture(scope="module")
def tokenizer(config):
    texts = [f"{first}{second}{third}" for first in "abcdefgh" for second in "ijklmnop" for third in "qrstuvw"]
    return build_tokenizer(config, train_text_tokenizer(texts, config))


@pytest.fixture(scope="module")
def dataset(config, tokenizer):
    words = tuple(f"word{number % 5}" for number in range(40))
    starts = [0.3 * number for number in range(40)]
    document = AlignedDocument([frame % 7 for frame in range(320)], words, starts)
    return InterleavedDataset([document] * 8, config, tokenizer, INTERLEAVED, max_length=200)


def arguments(folder, max_steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=max_steps, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=3,
        lr_scheduler_type="constant", logging_steps=1, use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        seed=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config, tokenizer, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = train_language_model(config, dataset, arguments(folder, 6), tokenizer=tokenizer)
    return folder, trainer


def test_the_loss_falls(trained):
    losses = [entry["loss"] for entry in trained[1].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_the_folder_is_a_complete_repository(trained):
    folder, trainer = trained
    loaded = TinyWaveForCausalLM.from_pretrained(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    assert TinyWaveProcessor.from_pretrained(folder)([("text", "word1")])["input_ids"].shape[0] == 1
    assert len(PreTrainedTokenizerFast.from_pretrained(folder)) == 1012


def test_a_run_cut_in_two_gives_the_same_weights(trained, config, tokenizer, dataset, tmp_path):
    train_language_model(config, dataset, arguments(tmp_path, 3), tokenizer=tokenizer)
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    resumed = train_language_model(config, dataset, arguments(tmp_path, 6), tokenizer=tokenizer)
    assert resumed.state.global_step == 6
    expected = trained[1].model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_bfloat16_halves_the_file_and_keeps_the_dtype(trained, tmp_path):
    model = trained[1].model
    save_in_bfloat16(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.55 * 4 * model.num_parameters()
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=2**-8, atol=0)


@pytest.fixture(scope="module")
def expressive_config():
    return TinyWaveConfig.from_preset("nano-expressive-student", num_key_value_heads=2, **CONFIG)


@pytest.fixture
def grown(config, expressive_config):
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(config).eval()
    ids = torch.tensor([[1, 511, 600, 700, 512, 510, 300]])
    with torch.no_grad():
        before = model(ids).logits
    add_streams(model, expressive_config)
    return model, ids, before


def test_new_streams_leave_what_a_model_knows(grown, config, expressive_config):
    model, ids, before = grown
    with torch.no_grad():
        after = model(ids).logits
    assert after.shape[-1] == expressive_config.vocab_size
    known = config.unit_offset + config.num_units
    assert torch.equal(after[..., :known], before[..., :known])
    assert model.config.stream_ranges() == expressive_config.stream_ranges()
    units = before[..., config.unit_offset : known].mean(-1)
    torch.testing.assert_close(after[..., expressive_config.pitch_offset], units)
    torch.testing.assert_close(after[..., expressive_config.style_offset + 4], units)


def test_new_streams_may_not_move_the_units(config):
    moved = TinyWaveConfig.from_preset("nano-expressive-student", num_units=499, **CONFIG, num_key_value_heads=2)
    with pytest.raises(ValueError, match="`num_units` is 500 in the model, 499 in the new layout"):
        add_streams(TinyWaveForCausalLM(config), moved)


def test_a_model_restricted_to_units_reads_pitch_as_filler(expressive_config, tokenizer):
    restricted = expressive_config.with_streams(["unit"])
    assert set(restricted.stream_ranges()) == {"text", "unit"}
    assert (restricted.pitch_offset, restricted.style_offset) == (-1, -1)
    assert set(expressive_config.stream_ranges()) == {"text", "unit", "pitch", "style"}
    with pytest.raises(ValueError, match="filler"):
        ids_to_segments([511, 600, expressive_config.pitch_offset], restricted, tokenizer)
    with pytest.raises(ValueError, match="has no stream 'style'; it has text, unit"):
        restricted.with_streams(["unit", "style"])


def test_the_tokenizer_of_a_wider_layout_writes_text_as_before(config, expressive_config, tokenizer):
    wider = build_tokenizer(expressive_config, text_part(tokenizer, config))
    assert wider.encode("fwx abc") == tokenizer.encode("fwx abc")
    assert wider.convert_tokens_to_ids(["[Hu0]", "[Pi63]", "[St4]"]) == [512, 1075, 1080]


def test_joined_datasets_mix_speech_with_and_without_prosody(expressive_config, tokenizer):
    words, starts = tuple(f"word{number % 5}" for number in range(40)), [0.3 * number for number in range(40)]
    plain = AlignedDocument([frame % 7 for frame in range(320)], words, starts)
    melodic = AlignedDocument(plain.units, words, starts, pitch=[1, 2] * 80, style=[3] * 13)
    units_only = expressive_config.with_streams(["unit"])
    joined = JoinedDataset(
        [
            InterleavedDataset([plain] * 2, units_only, tokenizer, INTERLEAVED),
            InterleavedDataset([melodic] * 2, expressive_config, tokenizer),
        ]
    )
    prosody = set(range(expressive_config.pitch_offset, expressive_config.vocab_size))
    assert not prosody & {index for row in (joined[0], joined[1]) for index in row["input_ids"]}
    assert prosody & set(joined[3]["input_ids"])
    draws = set()
    for epoch in range(8):
        joined.set_epoch(epoch)
        draws.add(tuple(joined[0]["input_ids"]))
    assert len(draws) > 1
