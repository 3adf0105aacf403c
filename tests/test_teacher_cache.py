"""A cached teacher against the one that runs: the same loss, the same gradients, and nothing silently missing."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.cli import main as command_line
from tinywave.cli.shipped import TEACHER
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.distill_trainer import DistillationTrainer
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.training.arguments import DistillationArguments
from tinywave.training.cached_teacher import CachedTeacher
from tinywave.training.layer_map import LayerMap
from tinywave.training.losses import supervised_positions
from tinywave.training.partial_targets import completed_logits, known_probabilities, partial_kl
from tinywave.training.student_init import student_from_teacher
from tinywave.training.teacher_cache import CacheSettings, TeacherCacheWriter, example_key, shard_files

LAYER_MAP = LayerMap.from_pairs([(1, 0), (3, 1)])
VOCABULARY = 40


def make_teacher(seed=0):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                    num_attention_heads=4, pad_token_id=0)
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


def make_examples(number=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 20, (number,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def collate(rows, side="right"):
    longest = max(map(len, rows))
    columns = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids in rows:
        padding = longest - len(ids)
        for name, row, pad in (("input_ids", ids, 0), ("attention_mask", [1] * len(ids), 0), ("labels", ids, -100)):
            columns[name].append(row + [pad] * padding if side == "right" else [pad] * padding + row)
    return {name: torch.tensor(values) for name, values in columns.items()}


def write(folder, settings, teacher=None, examples=None, **options):
    writer = TeacherCacheWriter(make_teacher() if teacher is None else teacher, folder, settings)
    assert sum(writer.write(make_examples() if examples is None else examples, **options)) >= 0
    return CachedTeacher(folder)


def make_trainer(folder, teacher=None, source=None, **settings):
    defaults = dict(
        use_cpu=True, disable_tqdm=True, report_to="none", max_steps=4, learning_rate=1e-2, logging_steps=1,
        save_strategy="no", per_device_train_batch_size=4, attention_weight=0.0,
    )  # fmt: skip
    return DistillationTrainer(
        model=student_from_teacher(make_teacher(), LAYER_MAP),
        teacher_model=teacher,
        teacher_source=source,
        layer_map=LAYER_MAP,
        args=DistillationArguments(output_dir=str(folder), **(defaults | settings)),
        train_dataset=[{"input_ids": ids} for ids in make_examples()],
        data_collator=lambda items: collate([item["input_ids"] for item in items]),
    )


def reference_partial_kl(student_logits, teacher_logits, ids, temperature):
    """Row by row in float64, with the tail as one minus the rest."""
    values = []
    for student, teacher, row in zip(student_logits, teacher_logits, ids, strict=True):
        q, p = (np.exp(scores / temperature) / np.exp(scores / temperature).sum() for scores in (student, teacher))
        value = sum(p[index] * np.log(p[index] / q[index]) for index in row)
        p_tail, q_tail = 1 - p[row].sum(), 1 - q[row].sum()
        values.append(temperature**2 * (value + p_tail * np.log(p_tail / q_tail)))
    return np.array(values)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_partial_kl_is_the_formula(temperature):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(6, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = teacher.topk(5).indices
    known = known_probabilities(teacher, ids, temperature)
    expected = torch.from_numpy(reference_partial_kl(student.numpy(), teacher.numpy(), ids.numpy(), temperature))
    torch.testing.assert_close(partial_kl(student, known, temperature), expected, rtol=1e-10, atol=0)
    single = known_probabilities(teacher.float(), ids, temperature)
    assert partial_kl(student.float(), single, temperature).sum().item() == pytest.approx(
        expected.sum().item(), rel=1e-6
    )
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: partial_kl(logits, known, temperature), student)


def test_partial_kl_survives_a_teacher_that_is_sure():
    teacher = torch.zeros(1, 8)
    teacher[0, 2] = 60.0
    student = torch.zeros(1, 8, requires_grad=True)
    value = partial_kl(student, known_probabilities(teacher, torch.tensor([[2]]), 1.0), 1.0)
    value.sum().backward()
    assert value.item() == pytest.approx(np.log(8), rel=1e-6)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_tail_spread_as_the_students_gives_the_partial_kl_and_its_gradient(temperature):
    generator = torch.Generator().manual_seed(4)
    student, teacher = (2 * torch.randn(6, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    known = known_probabilities(teacher, teacher.topk(4).indices, temperature)
    student.requires_grad_()
    (expected,) = torch.autograd.grad(partial_kl(student, known, temperature).sum(), student)
    completed = completed_logits(student.detach(), known, temperature)
    log_teacher, log_student = ((scores / temperature).log_softmax(-1) for scores in (completed, student))
    kl = temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    torch.testing.assert_close(kl, partial_kl(student, known, temperature))
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), student)[0], expected)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
def test_all_ids_give_the_loss_of_the_teacher_that_runs(tmp_path, side, hidden_weight):
    """Another order, another padding and another temperature than when the cache was written."""
    cache = write(tmp_path / "cache", CacheSettings("all", hidden_blocks=(1, 3)), batch_size=3)
    losses, gradients = [], []
    rows = make_examples()[6:2:-1]
    for teacher, source in ((make_teacher(), None), (None, cache)):
        trainer = make_trainer(tmp_path, teacher, source, hidden_weight=hidden_weight, temperature=2.0)
        batch = collate(rows, side)
        if side == "left":
            batch["labels"][:, 1:][batch["attention_mask"][:, :-1] == 0] = -100
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(trainer.model.lm_head.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_training_from_the_cache_takes_the_steps_of_the_teacher_that_runs(tmp_path):
    cache = write(tmp_path / "cache", CacheSettings("all", hidden_blocks=(1, 3)))
    online, offline = make_trainer(tmp_path, make_teacher()), make_trainer(tmp_path, source=cache)
    for trainer in (online, offline):
        trainer.train()
    expected = online.model.state_dict()
    for name, tensor in offline.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    losses = [[entry["logits_loss"] for entry in trainer.state.log_history if "logits_loss" in entry]
              for trainer in (online, offline)]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 4


def test_top_k_gives_the_partial_kl_and_more_ids_come_closer(tmp_path):
    teacher, rows = make_teacher(), make_examples()[:4]
    batch, values = collate(rows), {}
    positions = supervised_positions(batch["labels"])
    for top_k in (2, 8, 32):
        folder = tmp_path / str(top_k)
        cache = write(folder, CacheSettings("top_k", top_k=top_k, temperature=2.0), teacher)
        trainer = make_trainer(tmp_path, source=cache, hidden_weight=0.0, cross_entropy_weight=0.0, temperature=2.0)
        values[top_k] = trainer.compute_loss(trainer.model, batch).item()
        with torch.no_grad():
            logits, teacher_logits = (
                model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[positions]
                for model in (trainer.model, teacher)
            )
        expected = reference_partial_kl(
            logits.double().numpy(), teacher_logits.double().numpy(), teacher_logits.topk(top_k).indices.numpy(), 2.0
        )
        assert values[top_k] == pytest.approx(expected.mean(), rel=1e-5)
        whole, kept = TeacherCacheWriter(teacher, folder, cache.settings).compare(trainer.model, rows)
        assert kept == pytest.approx(expected.mean(), rel=1e-5)
        assert whole > kept
    online = make_trainer(tmp_path, teacher, hidden_weight=0.0, cross_entropy_weight=0.0, temperature=2.0)
    exact = online.compute_loss(online.model, batch).item()
    assert values[2] < values[8] < values[32] < exact
    assert whole == pytest.approx(exact, rel=1e-5)


def test_all_ids_leave_no_error(tmp_path):
    teacher = make_teacher()
    cache = write(tmp_path, CacheSettings("all"), teacher)
    whole, kept = TeacherCacheWriter(teacher, tmp_path, cache.settings).compare(make_teacher(1), make_examples())
    assert whole == kept > 0
    assert cache.mean_tail_mass() == 0


def test_the_mean_tail_mass_is_that_of_the_teacher(tmp_path):
    teacher, rows = make_teacher(), make_examples()
    cache = write(tmp_path, CacheSettings("top_k", top_k=3), teacher, rows)
    with torch.no_grad():
        tails = [1 - teacher(torch.tensor([ids])).logits[0, :-1].softmax(-1).topk(3).values.sum(-1) for ids in rows]
    assert cache.mean_tail_mass() == pytest.approx(torch.cat(tails).mean().item(), rel=1e-4)


def test_speech_ids_restricted_to_their_stream_are_exact(tmp_path):
    config = TinyWaveConfig.from_preset("nano-expressive-student", hidden_size=48, intermediate_size=64)
    torch.manual_seed(0)
    teacher = TinyWaveForCausalLM(config).eval()
    units, pitch = config.stream_ranges()["unit"], config.stream_ranges()["pitch"]
    rows = [[units[3], units[9], pitch[2], units[77]], [pitch[1], units[5], units[6], units[8], pitch[5]]]
    cache = write(tmp_path / "cache", CacheSettings("speech", temperature=2.0), teacher, rows)
    losses = []
    for settings in (dict(teacher_model=teacher), dict(teacher_source=cache)):
        torch.manual_seed(1)
        trainer = DistillationTrainer(
            model=TinyWaveForCausalLM(config), **settings, train_dataset=[{"input_ids": ids} for ids in rows],
            args=DistillationArguments(
                output_dir=str(tmp_path), use_cpu=True, report_to="none", hidden_weight=0.0, attention_weight=0.0,
                cross_entropy_weight=0.0, restrict_logits_to_stream=True,
            ),
        )  # fmt: skip
        losses.append(trainer.compute_loss(trainer.model, collate(rows)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] > 0
    with pytest.raises(ValueError, match="An example has text"):
        write(tmp_path / "text", CacheSettings("speech"), teacher, [[config.text_offset, units[0]]])


def test_packed_documents_are_found_one_by_one(tmp_path):
    rows = make_examples()[:3]
    cache = write(tmp_path, CacheSettings("all"), examples=rows)
    packed = {
        "input_ids": torch.tensor([sum(rows, [])]),
        "position_ids": torch.cat([torch.arange(len(ids)) for ids in rows])[None],
    }
    alone = collate(rows)
    values = []
    for batch in (packed, alone):
        labels = batch["input_ids"].clone()
        if batch is packed:
            labels[batch["position_ids"] == 0] = -100
        else:
            labels[batch["attention_mask"] == 0] = -100
        positions = supervised_positions(labels)
        values.append(cache.targets(batch, positions).logits(slice(None), torch.zeros(positions.sum(), VOCABULARY)))
    assert values[0].equal(values[1])


def test_an_interrupted_cache_continues(tmp_path):
    teacher, rows = make_teacher(), make_examples(12)
    settings = CacheSettings("top_k", top_k=4, hidden_blocks=(3,))
    whole = write(tmp_path / "whole", settings, teacher, rows, batch_size=2, shard_bytes=1)
    running = TeacherCacheWriter(teacher, tmp_path / "parts", settings).write(rows, batch_size=2, shard_bytes=1)
    next(running), next(running)
    running.close()
    finished = len(shard_files(tmp_path / "parts"))
    assert finished == 1
    writer = TeacherCacheWriter(teacher, tmp_path / "parts", settings)
    num_examples, num_rows, num_bytes = writer.estimate(rows)
    assert (num_examples, num_rows) == (10, sum(len(ids) - 1 for ids in rows[2:]))
    assert sum(writer.write(rows, batch_size=2, shard_bytes=1)) == 10
    parts = CachedTeacher(tmp_path / "parts")
    batch = collate(rows)
    positions = supervised_positions(batch["labels"])
    student_logits = torch.randn(int(positions.sum()), VOCABULARY)
    expected, found = (cache.targets(batch, positions) for cache in (whole, parts))
    assert found.logits(slice(None), student_logits).equal(expected.logits(slice(None), student_logits))
    assert found.block_outputs[3].equal(expected.block_outputs[3])
    assert TeacherCacheWriter(teacher, tmp_path / "parts", settings).estimate(rows) == (0, 0, 0)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_shard_that_was_taken_away_is_made_again_beside_the_others(tmp_path):
    rows = make_examples(6)
    write(tmp_path, CacheSettings("all"), examples=rows, batch_size=2, shard_bytes=1)
    shard_files(tmp_path)[0].unlink()
    assert len(CachedTeacher(tmp_path)) == 4
    assert len(write(tmp_path, CacheSettings("all"), examples=rows)) == 6


def test_the_estimate_is_what_is_written(tmp_path):
    rows = make_examples(200)
    for settings in (CacheSettings("all", hidden_blocks=(1,)), CacheSettings("top_k", top_k=6)):
        folder = tmp_path / settings.known_ids
        writer = TeacherCacheWriter(make_teacher(), folder, settings)
        _, _, expected = writer.estimate(rows)
        list(writer.write(rows))
        written = sum(path.stat().st_size for path in shard_files(folder))
        assert written == pytest.approx(expected, rel=0.02)


def test_repeated_and_single_id_examples_are_not_written_twice_or_at_all(tmp_path):
    rows = make_examples(3)
    cache = write(tmp_path, CacheSettings("all"), examples=[*rows, rows[0], [5]])
    assert len(cache) == 3


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    writer = TeacherCacheWriter(make_teacher(), tmp_path, CacheSettings("all"))
    with pytest.raises(ValueError, match="needs 5,000 bytes .* 1,000 are available"):
        writer.check_free_disk(5000)


def test_keys_depend_on_ids_teacher_and_settings(tmp_path):
    assert example_key("a", [1, 2]) != example_key("a", [1, 3])
    assert example_key("a", [1, 2]) != example_key("b", [1, 2])
    settings = CacheSettings("all")
    descriptions = [TeacherCacheWriter(make_teacher(seed), tmp_path, settings).cache_id for seed in (0, 1)]
    assert descriptions[0] != descriptions[1]


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (1, CacheSettings("all"), "cache with another `teacher`"),
        (0, CacheSettings("all", temperature=2.0), "cache with another `temperature`: 1.0, in place of 2.0"),
        (0, CacheSettings("top_k"), "cache with another `id_ranges`"),
    ],
)
def test_a_folder_of_another_teacher_or_other_settings_is_refused(tmp_path, teacher, settings, message):
    write(tmp_path, CacheSettings("all"))
    with pytest.raises(ValueError, match=message):
        TeacherCacheWriter(make_teacher(teacher), tmp_path, CacheSettings(**vars(settings) | {"top_k": 4}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_weight=1.0), "holds no attention maps; set attention_weight to 0"),
        (dict(hidden_weight=1.0), r"holds the hidden states of blocks \[1\], and the hidden term needs \[3\]"),
        (dict(temperature=3.0), "holds probabilities at temperature 2.0"),
    ],
)
def test_losses_the_cache_cannot_give_are_refused_at_construction(tmp_path, changes, message):
    cache = write(tmp_path, CacheSettings("top_k", top_k=4, temperature=2.0, hidden_blocks=(1,)))
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, source=cache, **{"hidden_weight": 0.0, "temperature": 2.0, **changes})


def test_an_example_that_is_not_cached_is_refused(tmp_path):
    cache = write(tmp_path / "cache", CacheSettings("all"), examples=make_examples(10)[:9])
    trainer = make_trainer(tmp_path, source=cache, hidden_weight=0.0)
    with pytest.raises(ValueError, match="holds 9 examples, but not one of this batch"):
        trainer.train()


def test_a_student_of_another_vocabulary_is_refused_naming_both(tmp_path):
    cache = write(tmp_path, CacheSettings("all"))
    student = LlamaForCausalLM(LlamaConfig(vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                           num_attention_heads=4))  # fmt: skip
    with pytest.raises(ValueError, match="`vocab_size` is 41 in the student and 40 in the teacher"):
        DistillationTrainer(model=student, teacher_source=cache, layer_map=LAYER_MAP,
                            args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True, attention_weight=0.0,
                                                       hidden_weight=0.0))  # fmt: skip


def test_damaged_and_missing_caches_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no teacher cache"):
        CachedTeacher(tmp_path)
    write(tmp_path, CacheSettings("all"))
    shard = shard_files(tmp_path)[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(ValueError, match="shard-00000.safetensors is damaged"):
        CachedTeacher(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="holds no examples yet"):
        CachedTeacher(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "contains NoneType; expected"),
        ("[1]", "contains list; expected"),
        ("{}", "contains .*; expected .*'id_ranges'"),
        ("[" * 100_000, "is not JSON"),
        ({"id_ranges": 3}, "has a wrong setting"),
        ({"id_ranges": [[5, 2]]}, "has a wrong setting: the ranges of ids are"),
        ({"top_k": "many"}, "has a wrong setting"),
        ({"known_ids": "some"}, "has a wrong setting: `known_ids` must be one of"),
        ({"more": 1}, "expected"),
    ],
)
def test_a_description_that_is_wrong_is_refused_by_its_file(tmp_path, text, message):
    write(tmp_path, CacheSettings("top_k", top_k=4))
    path = tmp_path / "cache.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"cache.json .*{message}"):
        CachedTeacher(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_starts": torch.tensor([0, 3])}, "has `row_starts` that do not divide"),
        ({"keys": None}, "is no shard of a teacher cache"),
        ({"log_probabilities": torch.nan}, "has NaN in 'log_probabilities'"),
    ],
)
def test_a_shard_with_wrong_content_is_refused(tmp_path, changes, message):
    write(tmp_path / "cache", CacheSettings("all"))
    [shard] = shard_files(tmp_path / "cache")
    tensors = load_file(shard)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        elif value is torch.nan:
            tensors[name][:] = value
        else:
            tensors[name] = value
    save_file(tensors, shard)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, source=CachedTeacher(tmp_path / "cache"), hidden_weight=0.0).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(known_ids="some"), "`known_ids` must be one of"),
        (dict(known_ids="top_k", top_k=0), "`top_k` must be at least 1"),
        (dict(known_ids="top_k", top_k=40), "`top_k` is 40, and the teacher has 40 ids"),
        (dict(known_ids="all", temperature=0.0), "`temperature` must be a positive number"),
        (dict(known_ids="all", hidden_blocks=(4,)), r"blocks \[4\] are to be kept; the teacher has the blocks 0 to 3"),
        (dict(known_ids="speech"), "LlamaConfig does not say which ids are speech"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        TeacherCacheWriter(make_teacher(), tmp_path, CacheSettings(**settings))


@pytest.fixture(scope="module")
def units_folder(tmp_path_factory):
    """Four documents of eight words and random units, in the layout of `tinywave extract-units`."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("units")
    words = "the old farmer walked to the big market".split()
    config = TinyWaveConfig.from_pretrained(TEACHER)
    rows = []
    for number in range(4):
        row = {"split": "train", "domain": "story", "text": " ".join(words),
               "words": [{"start": 0.3 * index} for index in range(len(words))],
               "units": generator.integers(0, config.num_units, 70).tolist()}  # fmt: skip
        row |= {"pitch": generator.integers(0, 5, 35).tolist(), "style": generator.integers(0, 5, 3).tolist()}
        rows.append(row | {"id": str(number)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
    return folder


def write_recipe(path, **changes):
    recipe = {
        "layer_map": [[0, 0], [5, 1], [10, 2]], "mixture": "speech", "max_length": 64, "seed": 2,
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "attention_weight": 0.0, "temperature": 2.0},
    } | changes  # fmt: skip
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def test_the_verb_says_what_it_costs_writes_it_and_continues(tmp_path, units_folder, capsys):
    command = ["cache-teacher", write_recipe(tmp_path / "r.yaml"), "--units", str(units_folder), "--output-dir",
               str(tmp_path / "cache"), "--top-k", "16", "--hidden-states"]  # fmt: skip
    assert command_line.main(command) == 0
    output = capsys.readouterr().out
    assert "0 examples are cached; 4 with" in output and "bytes in" in output
    assert "approximation error" in output and "drawn anew" not in output
    cache = CachedTeacher(tmp_path / "cache")
    assert (len(cache), cache.settings.hidden_blocks, cache.settings.temperature) == (4, (0, 5, 10), 2.0)
    assert command_line.main(command) == 0
    assert "4 examples are cached; 0 with 0 ids" in capsys.readouterr().out
    assert command_line.main([*command[:-1], "--known-ids", "all"]) == 2
    assert "is a cache with another `id_ranges`" in capsys.readouterr().err


def test_interleaved_data_is_cached_epoch_by_epoch(tmp_path, units_folder, capsys):
    recipe = write_recipe(
        tmp_path / "r.yaml", mixture="interleaved", training={"max_steps": 4, "attention_weight": 0.0}
    )
    command = ["cache-teacher", recipe, "--units", str(units_folder), "--output-dir", str(tmp_path / "cache")]
    assert command_line.main(command) == 0
    assert "drawn anew for every epoch: 1 of the 8.0 epochs" in capsys.readouterr().out
    few = len(CachedTeacher(tmp_path / "cache"))
    assert command_line.main([*command, "--epochs", "3"]) == 0
    assert len(CachedTeacher(tmp_path / "cache")) > few
    description = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert description["known_ids"] == "top_k" and len(description["teacher"]) == 64


def test_the_student_is_distilled_from_the_cache(tmp_path, units_folder):
    recipe = write_recipe(tmp_path / "r.yaml")
    command = [recipe, "--units", str(units_folder), "--output-dir"]
    assert command_line.main(["cache-teacher", *command, str(tmp_path / "cache"), "--known-ids", "all",
                              "--hidden-states"]) == 0  # fmt: skip
    logs = {}
    for name, options in (("online", []), ("offline", ["--teacher-cache", str(tmp_path / "cache")])):
        assert command_line.main(["distill", *command, str(tmp_path / name), *options]) == 0
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        logs[name] = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert logs["online"]
    assert logs["offline"] == pytest.approx(logs["online"], rel=1e-4)


def test_a_student_of_other_sizes_is_distilled_and_goes_on(tmp_path, units_folder):
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3, "num_key_value_heads": 3}
    recipe = write_recipe(tmp_path / "r.yaml", student=sizes)
    command = ["distill", recipe, "--units", str(units_folder), "--output-dir"]
    assert command_line.main([*command, str(tmp_path / "first")]) == 0
    first = TinyWaveForCausalLM.from_pretrained(tmp_path / "first")
    assert (first.config.hidden_size, first.config.num_attention_heads, first.config.head_dim) == (96, 3, 32)
    assert command_line.main([*command, str(tmp_path / "second"), "--init-from", str(tmp_path / "first")]) == 0
    second = TinyWaveForCausalLM.from_pretrained(tmp_path / "second")
    assert second.config.hidden_size == 96
    assert not second.lm_head.weight.equal(first.lm_head.weight)
    assert (second.lm_head.weight - first.lm_head.weight).abs().max() < 0.01
