"""Packing: which documents share a row, that they do not see each other, and whole runs that pack."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER
from tinywave.cli.train import make_dataset, pack
from tinywave.data.collators import CausalLanguageModelCollator
from tinywave.data.interleaving import INTERLEAVED
from tinywave.data.packing import PackedDataset, pack_lengths
from tinywave.distill_trainer import DistillationTrainer
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.stages.parsing import load_recipe
from tinywave.training.arguments import DistillationArguments
from tinywave.training.cached_teacher import CachedTeacher
from tinywave.training.checkpoints import last_checkpoint
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher
from tinywave.training.teacher_cache import CacheSettings, TeacherCacheWriter

SUITES = TEACHER.parent / "suites"
LAYER_MAP = [[0, 0], [10, 1]]


class Redrawn(torch.utils.data.Dataset):
    """Documents whose lengths change with the epoch."""

    def __init__(self, lengths_by_epoch):
        self.lengths_by_epoch, self.epoch = lengths_by_epoch, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.lengths_by_epoch[0])

    def __getitem__(self, index):
        return {"input_ids": [index + 1] * self.lengths_by_epoch[self.epoch][index]}


@pytest.fixture(scope="module")
def teacher():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Shards of the units of spoken sentences, long and short."""
    folder = tmp_path_factory.mktemp("units")
    pairs = [*read_suite(SUITES / "syntactic.parquet")[:9], *read_suite(SUITES / "lexical.parquet")[:9]]
    rows = []
    for number, pair in enumerate(pairs):
        words = pair.positive_text.split()
        step = len(pair.positive_units) / 25 / len(words)
        rows.append(
            {
                "split": "validation" if number % 9 == 8 else "train",
                "domain": "story",
                "text": " ".join(words),
                "words": [{"word": word, "start": step * i, "end": step * (i + 1)} for i, word in enumerate(words)],
                "units": list(pair.positive_units),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet")
    return folder


def recipe_of(**changes):
    training = dict(max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True, logging_steps=1,
                    save_steps=2, report_to="none", disable_tqdm=True, lr_scheduler_type="constant")  # fmt: skip
    shared = {"layer_map": LAYER_MAP, "streams": ["unit"], "mixture": "speech", "max_length": 96, "seed": 2}
    return shared | {"packing": True} | changes | {"training": training | changes.get("training", {})}


def write_recipe(path, recipe):
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


# Rows


def test_the_longest_go_where_they_leave_the_least_room():
    assert pack_lengths([3, 6, 4, 7, 1], 10) == [[3, 0], [1, 2], [4]]
    assert pack_lengths([5, 5, 5], 10) == [[0, 1], [2]]
    assert pack_lengths([], 10) == []
    with pytest.raises(ValueError, match="Document 1 has 11 ids, and a row holds 10"):
        pack_lengths([3, 11], 10)


def test_rows_are_nearly_full_and_hold_everything_once():
    lengths = torch.randint(20, 900, (3000,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = pack_lengths(lengths, 2048)
    assert sorted(index for row in rows for index in row) == list(range(3000))
    assert all(sum(lengths[index] for index in row) <= 2048 for row in rows)
    assert sum(lengths) / (2048 * len(rows)) > 0.99


def test_every_epoch_has_as_many_rows_and_no_document_twice():
    lengths = [[4, 4, 4, 4], [9, 8, 7, 6], [2, 2, 2, 2]]
    packed = PackedDataset(Redrawn(lengths), 10)
    for epoch in (0, 1, 2, 1, 0):
        packed.set_epoch(epoch)
        rows = [packed[index]["input_ids"] for index in range(len(packed))]
        assert len(rows) == 2
        found = [document for row in rows for document in sorted(set(row))]
        assert len(set(found)) == len(found)
        assert all(row.count(document) == lengths[epoch][document - 1] for row in rows for document in set(row))
        # The two longest of the second epoch, all of the others.
        assert sorted(found) == ([1, 2] if epoch == 1 else [1, 2, 3, 4])


def test_a_batch_tells_documents_apart():
    packed = PackedDataset([{"input_ids": ids} for ids in ([5, 6, 7], [8, 9], [3])], 5)
    batch = CausalLanguageModelCollator(0)([packed[0], packed[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [3, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100] * 5]
    assert set(batch) == {"input_ids", "position_ids", "labels"}


# Losses


@pytest.fixture(scope="module")
def batches(units, teacher):
    """The same documents as padded rows and as packed ones, of which some have room left."""
    dataset = make_dataset(recipe_of(), units, "train", teacher.config, None)
    packed = pack(dataset, recipe_of())
    assert 1 < len(packed) < len(dataset)
    collate = CausalLanguageModelCollator(teacher.config.pad_token_id)
    padded, rows = ([data[index] for index in range(len(data))] for data in (dataset, packed))
    batch = collate(rows)
    assert (batch["position_ids"][:, -1] == 0).any() and len(rows[0]["input_ids"]) > 48
    return collate(padded), batch


def test_documents_of_a_row_do_not_see_each_other(batches, teacher):
    batch = {name: batches[1][name][:1] for name in ("input_ids", "position_ids")}
    start = int((batch["position_ids"][0] == 0).nonzero()[1])
    changed = batch["input_ids"].clone()
    units = teacher.config.stream_ranges()["unit"]
    changed[0, 2:start] = (changed[0, 2:start] - units.start + 7) % len(units) + units.start
    with torch.no_grad():
        before, after = (teacher(**batch | {"input_ids": ids}).logits for ids in (batch["input_ids"], changed))
        alone = teacher(batch["input_ids"][:, start : start + 8]).logits
    assert not torch.allclose(before[0, :start], after[0, :start], atol=0.1)
    torch.testing.assert_close(before[0, start:], after[0, start:], rtol=0, atol=0)
    torch.testing.assert_close(before[:, start : start + 8], alone, rtol=1e-4, atol=1e-4)


def test_the_plain_loss_is_that_of_padded_documents(batches, teacher):
    losses = []
    for batch in batches:
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            losses.append((teacher(**batch).loss.item(), count))
    assert losses[0][1] == losses[1][1] > 500
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6)


@pytest.mark.parametrize("source", ["teacher", "cache"])
def test_every_term_and_its_gradient_are_those_of_padded_documents(batches, teacher, units, source, tmp_path):
    """All terms with weights of streams; from a cache those that it holds."""
    cache = None
    if source == "cache":
        dataset = make_dataset(recipe_of(), units, "train", teacher.config, None)
        writer = TeacherCacheWriter(teacher, tmp_path / "cache", CacheSettings("all", hidden_blocks=(0, 10)))
        list(writer.write((dataset[index]["input_ids"] for index in range(len(dataset))), 4))
        cache = CachedTeacher(tmp_path / "cache")
    layer_map = LayerMap.from_pairs(LAYER_MAP)
    student = student_from_teacher(teacher, layer_map)
    trainer = DistillationTrainer(
        student, None if cache else teacher, layer_map, teacher_source=cache,
        args=DistillationArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", stream_weights={"unit": 0.5},
            attention_weight=float(cache is None),
        ),
    )  # fmt: skip
    found = []
    for batch in batches:
        student.zero_grad()
        loss, sums = trainer._loss_and_sums(batch)
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
        found.append((sums, gradients))
    assert found[0][0][:4][: 3 if cache else 4].min() > 1
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


# Runs


def distill(folder, units, recipe, name="run"):
    path = write_recipe(folder / f"{name}.yaml", recipe)
    command = ["distill", path, "--units", str(units), "--output-dir", str(folder / name)]
    assert main(command) == 0
    return folder / name


def state_of(folder):
    return TinyWaveForCausalLM.from_pretrained(folder).state_dict()


def losses_of(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_packed_distillation_runs_resumes_and_accumulates(units, tmp_path):
    whole = distill(tmp_path, units, recipe_of(training={"max_steps": 4}), "whole")
    assert len(losses_of(whole)) == 4
    # A second call with more steps continues from the checkpoint of the first.
    distill(tmp_path, units, recipe_of(training={"max_steps": 2}), "parts")
    assert last_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    parts = distill(tmp_path, units, recipe_of(), "parts")
    expected = state_of(whole)
    assert all(value.equal(expected[name]) for name, value in state_of(parts).items())
    # Two micro-batches of one row are one batch of two.
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 2}
    alone = distill(tmp_path, units, recipe_of(training=accumulated), "accumulated")
    assert losses_of(alone) == pytest.approx(losses_of(whole)[:2], rel=1e-5)


def test_a_packed_step_is_the_step_of_the_same_documents(units, tmp_path):
    """All documents are one batch, packed or not: one step gives the same loss and the same student."""
    one_step = {"max_steps": 1, "per_device_train_batch_size": 16, "save_strategy": "no"}
    folders = [
        distill(tmp_path, units, recipe_of(packing=packing, training=one_step), name)
        for packing, name in ((True, "packed"), (False, "padded"))
    ]
    (packed,), (padded,) = map(losses_of, folders)
    assert packed == pytest.approx(padded, rel=1e-5)


def test_a_packed_training_is_evaluated_on_whole_documents(units, tmp_path):
    """`tinywave train`: the rows of training change nothing in how held-out documents are judged."""
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    evaluations = []
    for packing in (True, False):
        recipe = recipe_of(packing=packing, preset="nano-teacher", training=settings, mixture=dict(INTERLEAVED))
        recipe = {name: value for name, value in recipe.items() if name != "layer_map"}
        output = tmp_path / str(packing)
        command = ["train", write_recipe(tmp_path / "train.yaml", recipe), "--units", str(units)]
        assert main([*command, "--init-from", str(TEACHER), "--output-dir", str(output)]) == 0
        log = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
        evaluations.append([entry["eval_loss"] for entry in log if "eval_loss" in entry])
    assert evaluations[0][0] == evaluations[1][0]
    assert evaluations[0][1] != evaluations[0][0]


def test_a_packed_correction_runs(units, tmp_path):
    recipe = recipe_of(training={"max_steps": 2, "lora_rank": 2, "save_strategy": "no"})
    path = write_recipe(tmp_path / "correction.yaml", {name: recipe[name] for name in recipe if name != "layer_map"})
    assert main(["correct", path, "--units", str(units), "--output-dir", str(tmp_path / "corrected")]) == 0
    before, after = state_of(TEACHER), state_of(tmp_path / "corrected")
    assert not after["model.layers.0.mlp.up_proj.weight"].equal(before["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    "name", ["7b_to_2b_base", "7b_to_2b_expressive", "7b_to_2b_interleaved", "7b_correction_base"]
)
def test_the_recipes_of_full_scale_pack(name):
    found = load_recipe(name)
    packed = pack([{"input_ids": [1] * 1024}] * 2, found)
    assert isinstance(packed, PackedDataset) and len(packed[0]["input_ids"]) == found["max_length"] == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "yes, please"}, "packing is 'yes, please': Input should be a valid boolean"),
        ({"datasets": [{"max_length": 200}], "max_length": 40}, "ids, and a row holds 40; cut documents to the row's"),
    ],
)
def test_what_cannot_be_packed_is_one_line(change, message, units, tmp_path, capsys):
    path = write_recipe(tmp_path / "wrong.yaml", recipe_of(**change))
    assert main(["distill", path, "--units", str(units), "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_recipe_of_several_datasets_says_how_long_its_rows_are():
    with pytest.raises(ValueError, match="needs `max_length`, the ids of a row, beside its `datasets`"):
        pack([], {"packing": True, "datasets": [{"max_length": 200}]})
