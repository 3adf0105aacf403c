"""The trainer against naive formulas, the plain Trainer, itself under accumulation, and itself on two ranks."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tinywave.distill_trainer import LOSS_NAMES, DistillationTrainer
from tinywave.training.arguments import DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.projectors import PROJECTORS_FILE, load_projectors
from tinywave.training.student_init import student_from_teacher

VOCABULARY = 40
LAYER_MAP = LayerMap.from_pairs([(1, 0), (4, 1)])
CROSS_ENTROPY_ONLY = dict(logits_weight=0.0, hidden_weight=0.0, attention_weight=0.0)


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=5,
                    num_attention_heads=4, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform attention and from uniform predictions
    return model


def make_student(width=32):
    return make_model(seed=1, num_hidden_layers=2, hidden_size=width)


def make_data(number=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 20, (number,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()} for n in lengths]


def collate(items, side="right"):
    longest = max(len(item["input_ids"]) for item in items)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for item in items:
        ids, padding = item["input_ids"], longest - len(item["input_ids"])
        for name, row, pad in (("input_ids", ids, 0), ("attention_mask", [1] * len(ids), 0), ("labels", ids, -100)):
            rows[name].append(row + [pad] * padding if side == "right" else [pad] * padding + row)
    return {name: torch.tensor(values) for name, values in rows.items()}


def make_trainer(folder, student=None, teacher=None, layer_map=LAYER_MAP, callbacks=None, **settings):
    settings = dict(use_cpu=True, disable_tqdm=True, report_to="none", max_steps=4, learning_rate=1e-2,
                    logging_steps=1, save_strategy="no", per_device_train_batch_size=4) | settings  # fmt: skip
    return DistillationTrainer(
        model=make_student() if student is None else student,
        teacher_model=make_model() if teacher is None else teacher,
        layer_map=layer_map,
        args=DistillationArguments(output_dir=str(folder), **settings),
        train_dataset=make_data(),
        eval_dataset=make_data(10, seed=1),
        data_collator=collate,
        callbacks=callbacks,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def naive_losses(student, teacher, batch, temperature=2.0, projectors=None):
    """All four terms from eager attention maps, hidden states and full logits, as means over the targets."""
    outputs = []
    for model in (student, teacher):
        model.set_attn_implementation("eager")
        before_norm = []
        handle = model.model.norm.register_forward_pre_hook(lambda _, inputs, seen=before_norm: seen.append(inputs[0]))
        output = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True,
                       output_attentions=True)  # fmt: skip
        handle.remove()
        outputs.append((output, (*output.hidden_states[1:-1], before_norm[0])))
    (student_output, student_blocks), (teacher_output, teacher_blocks) = outputs
    positions = F.pad(batch["labels"][:, 1:] != -100, (0, 1), value=False)
    targets = batch["labels"].roll(-1, 1)[positions]
    logits, teacher_logits = student_output.logits[positions], teacher_output.logits[positions]
    student_p, teacher_p = ((values / temperature).softmax(-1) for values in (logits, teacher_logits))
    hidden, attention = [], []
    for teacher_block, student_block in LAYER_MAP.pairs:
        states = student_blocks[student_block]
        if projectors is not None:
            states = projectors[str(student_block)](states)
        cosine = F.cosine_similarity(states, teacher_blocks[teacher_block], dim=-1)
        hidden.append((1 - cosine)[positions].mean())
        maps = teacher_output.attentions[teacher_block], student_output.attentions[student_block]
        rows = (maps[0] * ((maps[0] + 1e-30).log() - (maps[1] + 1e-30).log())).sum(-1).mean(1)
        attention.append(rows[positions].mean())
    return {
        "cross_entropy_loss": F.cross_entropy(logits, targets),
        "logits_loss": temperature**2 * (teacher_p * (teacher_p / student_p).log()).sum(-1).mean(),
        "hidden_loss": sum(hidden) / 2,
        "attention_loss": sum(attention) / 2,
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [32, 24])
def test_loss_and_gradients_match_the_naive_formulas(tmp_path, side, width):
    weights = dict(cross_entropy_weight=0.5, logits_weight=0.7, hidden_weight=1.1, attention_weight=1.3)
    student, teacher = make_student(width), make_model()
    trainer = make_trainer(tmp_path, student, teacher, **weights)
    batch = collate(make_data(5), side)
    if side == "left":
        # The eager and the SDPA kernel differ on padding, so nothing may be predicted from it.
        batch["labels"][:, 1:][batch["attention_mask"][:, :-1] == 0] = -100
    loss = trainer.compute_loss(student, batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    projectors = getattr(student, "distill_projectors", None)
    assert (projectors is None) == (width == 32)
    terms = naive_losses(student, teacher, batch, projectors=projectors)
    expected = sum(weights[name.replace("_loss", "_weight")] * value for name, value in terms.items())
    expected.backward()
    assert all(value > 0.01 for value in terms.values())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_target_after_padding_aligns_nothing(tmp_path):
    """The last padding token of a left-padded row predicts a word, but its states and attention are noise."""
    trainer = make_trainer(tmp_path)
    batch = collate(make_data(5), "left")
    after_padding = batch["attention_mask"][:, :-1] == 0
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
        batch["labels"][:, 1:][after_padding] = -100
        first, trainer._eval_sums = trainer._eval_sums, None
        trainer.compute_loss(trainer.model, batch)
    second = trainer._eval_sums
    assert first[0] > second[0]
    assert first[2:4].equal(second[2:4])


def test_training_moves_the_student_and_not_the_teacher(tmp_path):
    student, teacher = make_student(24), make_model()
    student_before, teacher_before = weights_of(student), weights_of(teacher)
    trainer = make_trainer(tmp_path, student, teacher, max_steps=12)
    projectors_before = weights_of(student.distill_projectors)
    trainer.train()
    assert all(not tensor.equal(student_before[name]) for name, tensor in student.state_dict().items()
               if name in student_before)  # fmt: skip
    assert all(not tensor.equal(projectors_before[name]) for name, tensor in
               student.distill_projectors.state_dict().items())  # fmt: skip
    assert all(tensor.equal(teacher_before[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    for name in LOSS_NAMES:
        values = logged(trainer, name)
        assert len(values) == 12
        assert values[0] > 0.01
        assert values[-1] < values[0]


def test_logged_terms_add_up_to_the_logged_loss(tmp_path):
    weights = dict(cross_entropy_weight=0.5, logits_weight=2.0, hidden_weight=3.0, attention_weight=0.25)
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, logging_steps=2, **weights)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        total = sum(weights[name.replace("_loss", "_weight")] * entry[name] for name in LOSS_NAMES)
        assert total == pytest.approx(entry["loss"], rel=1e-5)


def test_a_copy_of_the_teacher_has_nothing_to_learn_from_it(tmp_path):
    teacher = make_model()
    layer_map = LayerMap.last(5, 5)
    trainer = make_trainer(tmp_path, student_from_teacher(teacher, layer_map), teacher, layer_map)
    metrics = trainer.evaluate()
    for name in LOSS_NAMES[1:]:
        assert metrics[f"eval_{name}"] == pytest.approx(0, abs=1e-6)
    assert metrics["eval_teacher_agreement"] == 1
    assert metrics["eval_cross_entropy_loss"] > 1


def test_evaluation_reports_means_over_all_tokens(tmp_path):
    student, teacher = make_student(), make_model()
    metrics = make_trainer(tmp_path, student, teacher, per_device_eval_batch_size=3).evaluate()
    with torch.no_grad():
        expected = naive_losses(student.eval(), teacher, collate(make_data(10, seed=1)))
    for name in LOSS_NAMES:
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name].item(), rel=1e-4)
    assert 0 < metrics["eval_teacher_agreement"] < 1


@pytest.mark.parametrize("with_teacher", [True, False])
def test_cross_entropy_alone_is_the_plain_trainer(tmp_path, with_teacher):
    settings = dict(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=4,
                    learning_rate=1e-2, logging_steps=1, save_strategy="no", per_device_train_batch_size=2,
                    gradient_accumulation_steps=2)  # fmt: skip
    common = dict(train_dataset=make_data(), eval_dataset=make_data(10, seed=1), data_collator=collate)
    plain = Trainer(make_student(), TrainingArguments(**settings), **common)
    arguments = DistillationArguments(**settings, **CROSS_ENTROPY_ONLY)
    teacher = make_model() if with_teacher else None
    distilled = DistillationTrainer(make_student(), teacher, args=arguments, **common)
    plain.train(), distilled.train()
    assert logged(distilled, "loss") == logged(plain, "loss")
    assert logged(distilled, "grad_norm") == logged(plain, "grad_norm")
    expected = plain.model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in distilled.model.state_dict().items())
    assert distilled.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_cross_entropy_beside_other_terms_is_the_plain_trainers_loss(tmp_path):
    batch = collate(make_data(5))
    trainer = make_trainer(tmp_path, **CROSS_ENTROPY_ONLY | {"attention_weight": 1.0})
    with torch.no_grad():
        trainer.compute_loss(trainer.model.eval(), batch)
        cross_entropy = trainer._eval_sums[0] / trainer._eval_sums[-1]
        torch.testing.assert_close(cross_entropy, make_student()(**batch).loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_a_term_of_weight_zero_is_absent(tmp_path, name):
    trainer = make_trainer(tmp_path, max_steps=1, **{name.replace("_loss", "_weight"): 0.0})
    trainer.train()
    for other in LOSS_NAMES:
        assert (other in trainer.state.log_history[0]) == (other != name)


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    # SGD: Adam divides by the size of the gradient and turns rounding into steps wherever that is nearly zero.
    settings = dict(optim="sgd", learning_rate=0.1)
    one = make_trainer(tmp_path, make_student(24), per_device_train_batch_size=8, **settings)
    eight = make_trainer(tmp_path, make_student(24), per_device_train_batch_size=1, gradient_accumulation_steps=8,
                         **settings)  # fmt: skip
    one.train(), eight.train()
    for name in ("loss", *LOSS_NAMES):
        assert logged(eight, name) == pytest.approx(logged(one, name), rel=1e-5)
    expected = one.model.state_dict()
    for name, tensor in eight.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_resuming_equals_never_stopping_and_checkpoints_are_plain_models(tmp_path):
    settings = dict(max_steps=6, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2, warmup_steps=2,
                    lr_scheduler_type="cosine", per_device_train_batch_size=2)  # fmt: skip
    whole = make_trainer(tmp_path, make_student(24), **settings)
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    resumed = make_trainer(tmp_path / "resumed", make_student(24), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected = whole.model.state_dict()
    assert any(name.startswith("distill_projectors") for name in expected)
    assert all(tensor.equal(expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert logged(resumed, "hidden_loss") == logged(whole, "hidden_loss")

    saved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert set(saved) == set(make_student(24).state_dict())
    assert set(safetensors.torch.load_file(checkpoint / PROJECTORS_FILE)) == {"0.weight", "1.weight"}
    _, report = LlamaForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values())


def test_the_best_checkpoint_brings_its_projectors_back(tmp_path):
    trainer = make_trainer(tmp_path, make_student(24), max_steps=4, save_strategy="steps", save_steps=2,
                           eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
                           metric_for_best_model="eval_cross_entropy_loss", greater_is_better=True)  # fmt: skip
    trainer.train()
    best = safetensors.torch.load_file(os.path.join(trainer.state.best_model_checkpoint, PROJECTORS_FILE))
    assert all(tensor.equal(best[name]) for name, tensor in trainer.model.distill_projectors.state_dict().items())


def test_resuming_without_projectors_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=4, **CROSS_ENTROPY_ONLY).train()
    with pytest.raises(FileNotFoundError, match="projectors cannot be resumed"):
        trainer = make_trainer(tmp_path, make_student(24))
        load_projectors(trainer.model, str(tmp_path / "checkpoint-4"))


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain = make_trainer(tmp_path, max_steps=2)
    checkpointed = make_trainer(tmp_path, max_steps=2, activation_checkpointing=True)
    plain.train(), checkpointed.train()
    expected = plain.model.state_dict()
    for name, tensor in checkpointed.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_bf16_follows_fp32(tmp_path):
    full = make_trainer(tmp_path, make_student(24), learning_rate=1e-3)
    mixed = make_trainer(tmp_path, make_student(24), learning_rate=1e-3, bf16=True)
    full.train(), mixed.train()
    assert mixed.model.dtype == torch.float32
    for name in LOSS_NAMES:
        assert logged(mixed, name) == pytest.approx(logged(full, name), rel=0.05)
        assert logged(mixed, name) != logged(full, name)


def test_a_bf16_teacher_teaches_an_fp32_student(tmp_path):
    full = make_trainer(tmp_path, max_steps=1)
    mixed = make_trainer(tmp_path, teacher=make_model().to(torch.bfloat16), max_steps=1)
    full.train(), mixed.train()
    for name in LOSS_NAMES:
        assert logged(mixed, name) == pytest.approx(logged(full, name), rel=0.05)


REFUSALS = [
    (dict(vocab_size=41), {}, "`vocab_size` is 40 in the student and 41 in the teacher"),
    (dict(eos_token_id=7), {}, "`eos_token_id` is 2 in the student and 7 in the teacher"),
    (dict(num_attention_heads=8), dict(attention_loss="rows"), "the student has 4 heads and the teacher 8"),
    (dict(num_hidden_layers=4), {}, "teacher block 4, but the teacher has 4 blocks"),
]


@pytest.mark.parametrize(("teacher_changes", "settings", "message"), REFUSALS)
def test_models_that_cannot_be_compared_are_refused(tmp_path, teacher_changes, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, teacher=make_model(**teacher_changes), **settings)


def test_other_head_counts_are_fine_without_the_attention_term(tmp_path):
    make_trainer(tmp_path, teacher=make_model(num_attention_heads=8), attention_weight=0.0, max_steps=1).train()


def test_an_id_layout_that_differs_is_refused(tmp_path):
    student, teacher = make_student(), make_model()
    student.config.unit_offset, teacher.config.unit_offset = 10, 12
    with pytest.raises(ValueError, match="`unit_offset` is 10 in the student and 12 in the teacher"):
        make_trainer(tmp_path, student, teacher)


def test_a_missing_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`teacher_model` is missing"):
        DistillationTrainer(make_student(), args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True))


def test_a_student_with_reentrant_checkpointing_is_refused(tmp_path):
    student = make_student()
    student.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="reentrant"):
        make_trainer(tmp_path, student)


def test_a_batch_without_labels_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="needs `labels`"):
        trainer.compute_loss(trainer.model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=0.0), "`temperature` must be a positive number; found 0.0"),
        (dict(hidden_weight=-1.0), "`hidden_weight` must be a finite number >= 0; found -1.0"),
        (dict(cross_entropy_weight=0.0, **CROSS_ENTROPY_ONLY), "At least one of"),
        (dict(hidden_loss="l1"), "`hidden_loss` must be one of"),
        (dict(logits_chunk_size=0), "at least 1 token"),
        (dict(label_smoothing_factor=0.1), "`label_smoothing_factor` is 0.1; set it to 0"),
        (dict(torch_compile=True), "`torch_compile` does not support"),
        (
            dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}),
            "Reentrant activation checkpointing",
        ),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def train_on_ranks(folder, batch_size):
    """Train with projectors and every term; the global batch is the same for one rank of 4 and two of 2."""
    trainer = make_trainer(folder, make_student(24), max_steps=3, per_device_train_batch_size=batch_size,
                           per_device_eval_batch_size=4, optim="sgd", learning_rate=0.1,
                           log_gradient_norms=True)  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    terms = {name: torch.tensor(logged(trainer, name)) for name in ("loss", *LOSS_NAMES)}
    terms |= {f"eval_{name}": torch.tensor(metrics[f"eval_{name}"]) for name in LOSS_NAMES}
    if trainer.is_world_process_zero():
        tensors = weights_of(trainer.model) | terms
        safetensors.torch.save_file(tensors, os.path.join(folder, "result.safetensors"))
    trainer.end()


def test_two_ranks_equal_one(tmp_path):
    # Both ranks are on this machine: gloo need not ask what the host is called.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    found = safetensors.torch.load_file(tmp_path / "result.safetensors")
    train_on_ranks(tmp_path, batch_size=4)
    expected = safetensors.torch.load_file(tmp_path / "result.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


if __name__ == "__main__":
    train_on_ranks(sys.argv[1], batch_size=2)
