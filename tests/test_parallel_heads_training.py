"""Heads learn what comes later; the model under them stays to the bit; the loss is the one written out by hand."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.training.parallel_heads_training import ParallelHeadsArguments, ParallelHeadsTrainer

SIZES = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


class Cycles(Dataset):
    """Units that go round in a circle, so that everything to come is known from the last."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = torch.tensor([512 + (index + step) % 7 for step in range(20)])
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def make_model(seed, num_parallel_heads=0):
    torch.manual_seed(seed)
    config = TinyWaveConfig.from_preset(
        "nano-student", **SIZES, num_key_value_heads=2, initializer_range=0.2, num_parallel_heads=num_parallel_heads
    )
    return TinyWaveForCausalLM(config)


def make_trainer(folder, model, teacher, **options):
    settings = {"max_steps": 60, "learning_rate": 0.01, "per_device_train_batch_size": 8, "logging_steps": 20}
    arguments = ParallelHeadsArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, **{**settings, **options},
    )  # fmt: skip
    return ParallelHeadsTrainer(model, teacher, arguments, train_dataset=Cycles())


def test_heads_learn_and_the_model_stays(tmp_path):
    model, teacher = make_model(0, num_parallel_heads=2), make_model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(tmp_path, model, teacher, logits_weight=0.0, cross_entropy_weight=1.0, max_steps=200)
    trainer.train()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("parallel_heads.") for name in moved)
    losses = [row["head_2_loss"] for row in trainer.state.log_history if "head_2_loss" in row]
    assert losses[-1] < 0.7 * losses[0], "two steps ahead is known from the last unit"


def test_the_loss_is_the_written_out_one(tmp_path):
    model, teacher = make_model(0, num_parallel_heads=2), make_model(1).eval()
    trainer = make_trainer(tmp_path, model, teacher, temperature=2.0, cross_entropy_weight=0.3, logits_weight=0.7)
    batch = {name: torch.stack([Cycles()[index][name] for index in (0, 3)]) for name in Cycles()[0]}
    batch["labels"][1, :6] = -100
    found = trainer.compute_loss(model, dict(batch))
    ids, labels = batch["input_ids"], batch["labels"]
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        states = model.parallel_heads(hidden, model.get_input_embeddings()(ids))
        taught, total = teacher(ids).logits.double(), 0.0
        for distance, state in enumerate(states, start=1):
            said = model.lm_head(state).double()
            for row in range(2):
                for position in range(ids.shape[1] - distance - 1):
                    target = int(labels[row, position + distance + 1])
                    if target == -100:
                        continue
                    p, q = (
                        F.log_softmax(logits / 2.0, -1)
                        for logits in (taught[row, position + distance], said[row, position])
                    )
                    divergence = (p.exp() * (p - q)).sum() * 2.0**2
                    total += 0.7 * divergence - 0.3 * F.log_softmax(said[row, position], -1)[target]
    num_tokens = int((labels[:, 1:] != -100).sum())
    assert float(found) == pytest.approx(float(total) / num_tokens / 2, rel=1e-5)


def test_a_model_without_heads_and_weights_of_zero_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Found a model without parallel heads"):
        make_trainer(tmp_path, make_model(0), make_model(1))
    with pytest.raises(ValueError, match="expected weights of 0 or more, not both 0"):
        ParallelHeadsArguments(output_dir=str(tmp_path), cross_entropy_weight=0.0, logits_weight=0.0)
