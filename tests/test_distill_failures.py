"""What goes wrong in a run and what is left of it: a killed process, a loss that is not finite, and bad input."""

import os
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

from tinywave.distill_trainer import DistillationTrainer
from tinywave.training.arguments import DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.projectors import PROJECTORS_FILE

CROSS_ENTROPY_ONLY = dict(logits_weight=0.0, hidden_weight=0.0, attention_weight=0.0)
POISON = 39
NUM_STEPS, KILLED_AT = 8, 5


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=5,
                    num_attention_heads=4, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def make_student(**changes):
    return make_model(1, num_hidden_layers=2, hidden_size=24, num_attention_heads=2, attention_dropout=0.1, **changes)


def make_data(number=48):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (number,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, POISON, (n,), generator=generator).tolist()} for n in lengths]


def collate(items):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(item["input_ids"]) for item in items], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def make_trainer(folder, student=None, teacher=None, data=None, callbacks=None, **settings):
    settings = dict(use_cpu=True, disable_tqdm=True, report_to="none", max_steps=NUM_STEPS, logging_steps=4,
                    learning_rate=1e-2, warmup_steps=2, lr_scheduler_type="cosine", gradient_accumulation_steps=2,
                    per_device_train_batch_size=2, save_strategy="steps", save_steps=2, seed=3) | settings  # fmt: skip
    return DistillationTrainer(
        make_student() if student is None else student,
        make_model() if teacher is None else teacher,
        LayerMap.from_pairs([(1, 0), (4, 1)]),
        DistillationArguments(output_dir=str(folder), **settings),
        train_dataset=make_data() if data is None else data,
        data_collator=collate,
        callbacks=callbacks,
    )


class Kill(TrainerCallback):
    """Ends the process in the middle of a step, as the machine would."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_that_resumes_is_bitwise_the_run_that_was_not(tmp_path):
    finished = subprocess.run(
        [sys.executable, __file__, tmp_path / "killed"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert {"checkpoint-2", "checkpoint-4"} <= set(os.listdir(tmp_path / "killed"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = make_trainer(tmp_path / "killed")
        resumed.train(resume_from_checkpoint=True)
        whole = make_trainer(tmp_path / "whole")
        whole.train()
    finally:
        torch.set_num_threads(threads)
    assert resumed.state.global_step == whole.state.global_step == NUM_STEPS
    for name in ("model.safetensors", PROJECTORS_FILE):
        found, expected = (
            safetensors.torch.load_file(tmp_path / run / f"checkpoint-{NUM_STEPS}" / name)
            for run in ("killed", "whole")
        )
        assert found.keys() == expected.keys()
        assert all(tensor.equal(expected[key]) for key, tensor in found.items())
    terms = [{name: value for name, value in trainer.state.log_history[1].items() if name.endswith("_loss")}
             for trainer in (resumed, whole)]  # fmt: skip
    assert len(terms[0]) == 4
    assert terms[0] == terms[1]


STRANGER = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert type(model) is LlamaForCausalLM, type(model)
assert not any(report.values()), report
assert "tinywave" not in sys.modules
torch.save(model(torch.arange(1, 9)[None]).logits, sys.argv[2])
"""


def test_the_exported_student_is_a_llama_that_needs_nothing_of_ours(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    saved = safetensors.torch.load_file(tmp_path / "student" / "model.safetensors")
    assert set(saved) == set(make_student().state_dict())
    logits = tmp_path / "logits.pt"
    finished = subprocess.run([sys.executable, "-c", STRANGER, tmp_path / "student", logits], cwd=tmp_path,
                              capture_output=True, text=True, timeout=600)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    with torch.no_grad():
        expected = trainer.model.eval()(torch.arange(1, 9)[None]).logits
    torch.testing.assert_close(torch.load(logits, weights_only=True), expected, rtol=1e-5, atol=1e-6)


def poisoned_data():
    """Example 20 holds the id whose embedding the teacher has lost."""
    data = make_data()
    data[20]["input_ids"][2] = POISON
    return data


def poisoned_teacher():
    teacher = make_model()
    with torch.no_grad():
        teacher.model.embed_tokens.weight[POISON] = float("nan")
    return teacher


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_example(tmp_path, accumulation):
    data = poisoned_data()
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    trainer = make_trainer(tmp_path, teacher=poisoned_teacher(), data=data, callbacks=[Watch()], max_steps=48,
                           gradient_accumulation_steps=accumulation, train_sampling_strategy="sequential")  # fmt: skip
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    batch = 20 // 2
    step, micro_batch = batch // accumulation + 1, batch % accumulation
    tokens = data[20]["input_ids"]
    more = ", ..." if len(tokens) > 16 else ""
    message = str(error.value)
    assert f"Step {step}: logits_loss (nan) and hidden_loss (nan) and attention_loss (nan) is not finite in" in message
    assert f"row 0 ({len(tokens)} tokens: {', '.join(map(str, tokens[:16]))}{more})" in message
    assert f"of micro-batch {micro_batch}." in message
    last = tmp_path / f"checkpoint-{(step - 1) // 2 * 2}"
    assert f"the last checkpoint is {last}." in message
    assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(last / "model.safetensors").values())
    # The optimizer has not stepped: the student is the one of the step before.
    assert len(seen) == step - 1
    assert all(tensor.equal(seen[-1][name]) for name, tensor in trainer.model.state_dict().items())


def test_plain_fine_tuning_stops_too(tmp_path):
    student = make_student()
    with torch.no_grad():
        student.model.embed_tokens.weight[POISON] = float("inf")
    trainer = make_trainer(tmp_path, student, data=poisoned_data(), save_strategy="no",
                           train_sampling_strategy="sequential", **CROSS_ENTROPY_ONLY)  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"Step 6: cross_entropy_loss \(nan\) .* row 0 .* no checkpoint has"):
        trainer.train()


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_an_empty_data_set_is_refused(tmp_path, name):
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **CROSS_ENTROPY_ONLY)
    with pytest.raises(ValueError, match=f"`{name}` is empty"):
        DistillationTrainer(make_student(), args=arguments, **{name: []})


def test_attention_that_cannot_be_read_is_refused(tmp_path):
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    )
    with pytest.raises(ValueError, match="Llama's layout"):
        make_trainer(tmp_path, gpt2, hidden_weight=0.0)


def test_an_attention_term_that_would_silently_be_zero_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"no queries and keys of blocks \[0, 1\]"):
        trainer.train()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_student_is_refused(tmp_path, in_place):
    student = make_student()
    if in_place:
        student.compile()
    else:
        student = torch.compile(student)
    with pytest.raises(ValueError, match="compiled with torch.compile"):
        make_trainer(tmp_path, student)


def test_an_additive_mask_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = collate(make_data(2))
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.full((2, 1, length, length), -1e9).triu(1)
    with pytest.raises(ValueError, match="boolean"):
        trainer.compute_loss(trainer.model, batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_trainer(sys.argv[1], callbacks=[Kill()]).train()
