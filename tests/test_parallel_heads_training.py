"""Heads learn what comes later; the model under them stays to the bit; the loss is the one written out by hand."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import Dataset

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.stages.parsing import load_recipe
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


def test_models_of_other_id_layouts_are_refused(tmp_path):
    other = TinyWaveForCausalLM(
        TinyWaveConfig.from_preset("nano-student", **SIZES, num_key_value_heads=2, num_units=400)
    )
    with pytest.raises(ValueError, match="`num_units` is 500 in the student and 400 in the teacher"):
        make_trainer(tmp_path, make_model(0, num_parallel_heads=2), other)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Folders of a small model, as student and teacher, and of unit shards; and a recipe of four steps."""
    folder = tmp_path_factory.mktemp("material")
    model = make_model(0)
    tokenizer = TinyWaveProcessor.from_pretrained(TEACHER).tokenizer
    model.save_pretrained(folder / "model")
    TinyWaveProcessor.from_config(model.config, tokenizer).save_pretrained(folder / "model")
    words = [{"word": "dog", "start": 0.0}]
    rows = [
        {"text": "dog", "words": words, "units": [(7 * index + frame) % 500 for frame in range(40)], "split": "train"}
        | {"domain": "story"}
        for index in range(8)
    ]
    (folder / "units").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "units" / "shard-00000.parquet")
    recipe = load_recipe("nano/parallel_heads")
    recipe["num_parallel_heads"] = 2
    recipe["training"] |= {"max_steps": 4, "warmup_steps": 0, "save_steps": 2, "save_total_limit": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def train_heads(material, output_dir) -> int:
    return main(
        ["train-heads", str(material / "recipe.yaml"), "--model", str(material / "model"), "--teacher",
         str(material / "model"), "--units", str(material / "units"), "--output-dir", str(output_dir)]
    )  # fmt: skip


def test_packed_documents_are_refused(material, tmp_path, capsys):
    recipe = yaml.safe_load((material / "recipe.yaml").read_text()) | {"packing": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folders = ["--model", str(material / "model"), "--units", str(material / "units"), "--output-dir", str(tmp_path)]
    assert main(["train-heads", str(tmp_path / "recipe.yaml"), *folders]) == 2
    assert "would foretell the next document" in capsys.readouterr().err


def test_the_verb_saves_a_model_with_heads_and_goes_on_where_it_was_cut(material, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_heads(material, whole) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(whole)
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    shutil.copy(whole / "run.json", cut)
    assert train_heads(material, cut) == 0
    before, once, twice = (load_file(folder / "model.safetensors") for folder in (material / "model", whole, cut))
    assert once.keys() == twice.keys() and once.keys() > before.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once), "the run that was cut ends where the other does"
    assert all(torch.equal(once[name], before[name]) for name in before), "the model under the heads stays"
    halfway = load_file(whole / "checkpoint-2" / "model.safetensors")
    assert not torch.equal(halfway["parallel_heads.0.proj.weight"], once["parallel_heads.0.proj.weight"])
    model, prompt = TinyWaveForCausalLM.from_pretrained(whole).eval(), torch.tensor([[1, 511, 600]])
    assert model.generate(prompt, parallel_heads=True, do_sample=False, max_new_tokens=5).shape[1] <= 8
