"""Runs that are killed, repeated or fed bad data: which checkpoints count, which steps are taken, what is saved."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from tinywave.distill_trainer import DistillationTrainer
from tinywave.training.arguments import CorrectionArguments, DistillationArguments
from tinywave.training.checkpoints import CHECKPOINT_MARKER, is_complete, last_checkpoint
from tinywave.training.language_model_trainer import LanguageModelTrainer
from tinywave.training.layer_map import LayerMap
from tinywave.training.teacher_correction import correct_teacher

NUM_STEPS = 4


def make_model(seed=0, num_hidden_layers=2):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=num_hidden_layers,
                    num_attention_heads=2, max_position_embeddings=32, pad_token_id=0)
    )  # fmt: skip


def make_data(number=16):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(1, 40, (8,), generator=generator).tolist()} for _ in range(number)]


def collate(items):
    ids = torch.tensor([item["input_ids"] for item in items])
    labels = torch.tensor([item.get("labels", item["input_ids"]) for item in items])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def make_trainer(kind, folder, data=None, callbacks=None, **settings):
    settings = dict(
        use_cpu=True, disable_tqdm=True, report_to="none", max_steps=NUM_STEPS, logging_steps=1, seed=3,
        learning_rate=1e-2, per_device_train_batch_size=2, save_strategy="steps", save_steps=1,
    ) | settings  # fmt: skip
    shared = dict(train_dataset=make_data() if data is None else data, data_collator=collate, callbacks=callbacks)
    if settings.get("eval_strategy"):
        shared["eval_dataset"] = make_data(2)
    if kind == "distill":
        arguments = DistillationArguments(output_dir=str(folder), **settings)
        return DistillationTrainer(make_model(1), make_model(0, 3), LayerMap.from_pairs([(0, 0), (2, 1)]), arguments,
                                   **shared)  # fmt: skip
    return LanguageModelTrainer(make_model(1), TrainingArguments(output_dir=str(folder), **settings), **shared)


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


class KilledWhileSaving(TrainerCallback):
    """Ends the process as soon as the weights of the third checkpoint are on the disk, before the rest of it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            original = torch.save
            torch.save = lambda *arguments, **options: (  # the optimizer's file follows the weights
                original(*arguments, **options),
                os.kill(os.getpid(), signal.SIGKILL),
            )


@pytest.mark.parametrize("kind", ["distill", "train"])
def test_a_run_killed_inside_a_checkpoint_resumes_to_the_same_bytes(kind, tmp_path):
    command = [sys.executable, __file__, kind, str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    names = sorted(os.listdir(tmp_path / "killed"))
    assert [name for name in names if name.startswith("checkpoint-")] == ["checkpoint-1", "checkpoint-2"]
    assert any(name.startswith(".checkpoint-") for name in names)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, whole = (make_trainer(kind, tmp_path / name) for name in ("killed", "whole"))
        resumed.train(resume_from_checkpoint=True), whole.train()
    finally:
        torch.set_num_threads(threads)
    for trainer in (resumed, whole):
        trainer.save_model()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not [name for name in os.listdir(tmp_path / "killed") if name.startswith(".checkpoint-")]


@pytest.mark.parametrize("kind", ["distill", "train"])
@pytest.mark.parametrize("settings", [{}, {"max_steps": -1, "num_train_epochs": 1}, {"save_strategy": "epoch"}])
def test_resuming_a_finished_run_takes_no_step(kind, settings, tmp_path):
    first = make_trainer(kind, tmp_path, **settings)
    first.train()
    first.save_model()
    before, steps = weights(tmp_path), first.state.global_step
    again = make_trainer(kind, tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert again.state.global_step == steps
    assert weights(tmp_path) == before


@pytest.mark.parametrize("damage", ["no marker", "truncated weights", "missing optimizer", "marker of garbage"])
def test_an_incomplete_checkpoint_is_passed_over(damage, tmp_path):
    make_trainer("train", tmp_path).train()
    newest = tmp_path / f"checkpoint-{NUM_STEPS}"
    assert last_checkpoint(tmp_path) == str(newest)
    if damage == "no marker":
        (newest / CHECKPOINT_MARKER).unlink()
    elif damage == "truncated weights":
        os.truncate(newest / "model.safetensors", 100)
    elif damage == "missing optimizer":
        (newest / "optimizer.pt").unlink()
    else:
        (newest / CHECKPOINT_MARKER).write_text("[1, 2")
    with pytest.warns(UserWarning, match=f"checkpoint-{NUM_STEPS} is not a complete checkpoint"):
        assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{NUM_STEPS - 1}")


def test_checkpoints_are_rotated_by_step_and_the_best_one_is_kept(tmp_path):
    trainer = make_trainer("distill", tmp_path, save_total_limit=1, load_best_model_at_end=True, eval_strategy="steps",
                           eval_steps=1, metric_for_best_model="loss", callbacks=[OldestLooksNewest()])  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and is_complete(best)
    newest = tmp_path / f"checkpoint-{NUM_STEPS}"
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} <= {best.name, newest.name}


class OldestLooksNewest(TrainerCallback):
    """Sets the time of every checkpoint as a clock that goes back would."""

    def on_save(self, args, state, control, **kwargs):
        for path in Path(args.output_dir).glob("checkpoint-*"):
            time = 2_000_000_000 - 1000 * int(path.name.split("-")[1])
            os.utime(path, (time, time))


@pytest.mark.parametrize("kind", ["distill", "train"])
def test_a_step_without_supervised_tokens_is_refused_before_it_is_taken(kind, tmp_path):
    data = [{**item, "labels": [-100] * 8} for item in make_data()]
    trainer = make_trainer(kind, tmp_path, data)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="Step 1 has no supervised token"):
        trainer.train()
    assert all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("kind", ["distill", "train"])
def test_a_micro_batch_without_supervised_tokens_counts_as_nothing(kind, tmp_path):
    data = make_data(4)
    data[1] = {**data[1], "labels": [-100] * 8}
    trainer = make_trainer(kind, tmp_path, data, max_steps=1, per_device_train_batch_size=1,
                           gradient_accumulation_steps=4)  # fmt: skip
    trainer.train()
    assert all(bool(value.isfinite().all()) for value in trainer.model.state_dict().values())


class PoisonedGradient(TrainerCallback):
    def __init__(self, value):
        self.value = value

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            weight = model.model.norm.weight
            weight.register_hook(lambda gradient: torch.full_like(gradient, self.value))


@pytest.mark.parametrize("kind", ["distill", "train"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(kind, value, max_grad_norm, tmp_path):
    trainer = make_trainer(kind, tmp_path, callbacks=[PoisonedGradient(value)], max_grad_norm=max_grad_norm)
    with pytest.raises(
        FloatingPointError, match=r"Step 3: the norm of the gradient is (nan|inf).*step 2; .*checkpoint-2"
    ):
        trainer.train()
    saved = make_trainer(kind, tmp_path)
    saved._load_from_checkpoint(last_checkpoint(tmp_path))
    expected = saved.model.state_dict()
    assert all(value.equal(expected[name]) for name, value in trainer.model.state_dict().items())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer("train", tmp_path, learning_rate=3e38, weight_decay=1.0)
    with pytest.raises(FloatingPointError, match="After step 1 .* parameters are not finite"):
        trainer.train()
    assert not list(tmp_path.glob("**/model.safetensors"))


def test_a_finished_correction_that_lost_its_result_is_saved_again(tmp_path):
    def correct(folder, checkpoint=None):
        arguments = CorrectionArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=2, save_steps=1,
            per_device_train_batch_size=2, resume_from_checkpoint=checkpoint, lora_rank=2,
        )  # fmt: skip
        correct_teacher(make_model(), make_data(), collate, arguments)
        return weights(folder)

    expected = correct(tmp_path / "run")
    os.remove(tmp_path / "run" / "model.safetensors")
    assert correct(tmp_path / "run", last_checkpoint(tmp_path / "run")) == expected


@pytest.mark.parametrize("kind", ["distill", "train"])
@pytest.mark.parametrize(
    "settings",
    [
        {"logging_steps": 3, "save_steps": 2, "max_steps": 7},
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1, "max_steps": 7, "logging_steps": 4},
        {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"},
        {"save_strategy": "epoch", "max_steps": 12, "logging_steps": 5},
    ],
)
def test_every_file_of_a_resumed_run_is_that_of_the_whole_run(kind, settings, tmp_path):
    folder = tmp_path / "run"

    def train(resume):
        trainer = make_trainer(kind, folder, **settings)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        trainer.save_state()
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    expected = train(None)
    first, *later = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in [*later, *(path for path in folder.iterdir() if path.is_file())]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = train(True)
    assert found.keys() == expected.keys()
    assert [str(path) for path, content in found.items() if content != expected[path]] == []


def test_training_again_with_the_same_trainer_takes_no_step(tmp_path):
    trainer = make_trainer("distill", tmp_path)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(2):
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == NUM_STEPS
        assert all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())


def test_a_checkpoint_of_weights_alone_is_not_resumed(tmp_path):
    make_trainer("train", tmp_path, save_only_model=True).train()
    with pytest.warns(UserWarning, match="is not a complete checkpoint"):
        assert last_checkpoint(tmp_path) is None


def test_nothing_to_resume_from_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="contains no complete checkpoint"):
        make_trainer("train", tmp_path).train(resume_from_checkpoint=True)


def run_two_processes(case, folder):
    """Run this file as a program in two processes (DDP on gloo)."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    return subprocess.run(
        [*launch, case, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_two_processes_killed_inside_a_checkpoint_resume_to_the_same_bytes(tmp_path):
    folder = tmp_path / "run"
    finished = run_two_processes("whole", folder)
    assert finished.returncode == 0, finished.stderr
    expected = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {Path(f"checkpoint-{NUM_STEPS}/rng_state_{rank}.pth") for rank in (0, 1)} <= expected.keys()
    shutil.rmtree(folder)
    assert run_two_processes("killed", folder).returncode != 0
    assert Path(last_checkpoint(folder)).name == "checkpoint-2"
    assert [path for path in folder.iterdir() if path.name.startswith(".checkpoint-")]
    finished = run_two_processes("resumed", folder)
    assert finished.returncode == 0, finished.stderr
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found.keys() == expected.keys()
    assert [str(path) for path, content in found.items() if content != expected[path]] == []


def test_a_process_without_supervised_tokens_takes_part_in_the_step_of_the_others(tmp_path):
    finished = run_two_processes("one", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert is_complete(tmp_path / f"checkpoint-{NUM_STEPS}")
    finished = run_two_processes("none", tmp_path / "none")
    assert finished.returncode != 0
    assert "Step 1 has no supervised token" in finished.stderr
    assert last_checkpoint(tmp_path / "none") is None


def run_case(case, folder):
    """What one process does; the kinds of trainers are killed inside their third checkpoint."""
    data = make_data()
    if case in ("one", "none"):
        # Without shuffling, the batches of two go to the processes by turns.
        unlabelled = [number for number in range(len(data)) if case == "none" or number % 4 >= 2]
        data = [{**item, "labels": [-100] * 8} if i in unlabelled else item for i, item in enumerate(data)]
    callbacks = [] if case in ("whole", "resumed", "one", "none") else [KilledWhileSaving()]
    kind = "train" if case == "train" else "distill"
    options = {"train_sampling_strategy": "sequential"} if case == "one" else {}
    trainer = make_trainer(kind, folder, data, callbacks, **options)
    trainer.train(resume_from_checkpoint=case == "resumed" or None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_model()  # alone, as scripts do
    trainer.save_state()
    trainer.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_case(sys.argv[1], sys.argv[2])
