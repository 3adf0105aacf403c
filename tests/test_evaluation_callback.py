"""Speech metrics inside a training run: they choose the best model and stop it, and change nothing else."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.distill_trainer import DistillationTrainer
from tinywave.eval.evaluation_callback import SuiteEvaluationCallback
from tinywave.eval.scoring import ScoringError, score_perplexity
from tinywave.eval.sequence_formats import SpeechSequenceFormat
from tinywave.eval.suites import Pair, SuiteError, evaluate_suite
from tinywave.training.arguments import DistillationArguments

TINY = {"hidden_size": 24, "intermediate_size": 32, "initializer_range": 0.4, "attention_dropout": 0.3}


def make_model(layers=1, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(TinyWaveConfig.from_preset("nano-student", num_hidden_layers=layers, **TINY))


def make_pairs(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randint(500, (count, 2, 9), generator=generator).tolist()
    return [
        Pair(
            f"{i}", "story", "topic", f"{i // 2}", tuple(positive), tuple(negative), "right", "wrong", "voice", "codec"
        )
        for i, (positive, negative) in enumerate(halves)
    ]


PAIRS = make_pairs()
UTTERANCES = [pair.positive_units for pair in make_pairs(5, seed=1)]


def make_rows(model, count=8):
    sequence_format = SpeechSequenceFormat(model.config)
    sequences = [sequence_format.speech_to_sequence(pair.negative_units) for pair in make_pairs(count, seed=2)]
    return [{"input_ids": ids, "labels": ids} for ids in sequences]


def collate(rows):
    return {name: torch.tensor([row[name][:8] for row in rows]) for name in ("input_ids", "labels")}


def make_trainer(folder, kind=Trainer, eval_dataset=None, **settings):
    model = make_model()
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "max_steps": 6, "learning_rate": 0.02,
                "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "logging_steps": 1,
                "per_device_train_batch_size": 4} | settings  # fmt: skip
    callbacks, rows = settings.pop("callbacks", None), make_rows(model)
    further = {"eval_dataset": eval_dataset or rows, "callbacks": callbacks, "data_collator": collate}
    if kind is DistillationTrainer:
        further |= {"teacher_model": make_model(2, seed=1)}
        settings |= {"hidden_weight": 0.0, "attention_weight": 0.0}
    arguments = TrainingArguments if kind is Trainer else DistillationArguments
    return kind(model=model, args=arguments(output_dir=str(folder), **settings), train_dataset=rows, **further)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("kind", [Trainer, DistillationTrainer])
def test_training_is_bitwise_the_same_with_and_without(tmp_path, kind):
    finished = []
    for is_scored in (False, True):
        trainer = make_trainer(tmp_path, kind)
        if is_scored:
            SuiteEvaluationCallback({"story": PAIRS}, UTTERANCES).attach(trainer)
        trainer.train()
        finished.append((trainer, trainer.model.state_dict(), torch.get_rng_state()))
    (plain, weights, random_state), (scored, scored_weights, scored_random_state) = finished
    assert all(torch.equal(tensor, scored_weights[name]) for name, tensor in weights.items())
    assert torch.equal(random_state, scored_random_state)
    start = make_model().state_dict()
    assert not all(torch.equal(tensor, start[name]) for name, tensor in weights.items())
    assert logged(plain, "eval_loss") == logged(scored, "eval_loss")
    assert len(logged(scored, "eval_story_accuracy")) == 3 and not logged(plain, "eval_story_accuracy")


def test_metrics_are_those_of_the_suite_and_of_the_held_out_speech(tmp_path):
    trainer = make_trainer(tmp_path)
    SuiteEvaluationCallback({"story": PAIRS}, UTTERANCES, normalisation="sum", batch_size=4).attach(trainer)
    metrics = trainer.evaluate()
    result = evaluate_suite(trainer.model, PAIRS, normalisation="sum", batch_size=4)
    perplexity = score_perplexity(
        trainer.model, UTTERANCES, sequence_format=SpeechSequenceFormat(trainer.model.config), batch_size=4
    )
    expected = {
        "eval_story_accuracy": result.accuracy,
        "eval_story_standard_error": result.standard_error,
        "eval_story_ci95_low": result.ci95[0],
        "eval_story_ci95_high": result.ci95[1],
        "eval_perplexity": perplexity.token_weighted,
        "eval_bits_per_second": perplexity.bits_per_second,
    }
    assert expected.items() <= metrics.items()
    assert expected.items() <= trainer.state.log_history[-1].items()


def test_modes_gradients_and_random_state_stay(tmp_path):
    trainer = make_trainer(tmp_path)
    callback = SuiteEvaluationCallback({"story": PAIRS}, UTTERANCES)
    callback.attach(trainer)
    model = trainer.model.train()
    model.model.norm.eval()
    model(**collate(make_rows(model))).loss.backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    metrics = {}
    callback.on_evaluate(trainer.args, trainer.state, trainer.control, metrics=metrics, model=model)
    assert "eval_story_accuracy" in metrics
    assert [module.training for module in model.modules()] == modes and {True, False} <= set(modes)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_best_model_by_accuracy_is_loaded(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=2, load_best_model_at_end=True,
                           metric_for_best_model="eval_story_accuracy")  # fmt: skip
    SuiteEvaluationCallback({"story": PAIRS}).attach(trainer)
    trainer.train()
    accuracies = logged(trainer, "eval_story_accuracy")
    assert trainer.state.best_metric == max(accuracies) > accuracies[-1]
    # The weights are others than at the last step, so nothing scored there may be repeated.
    assert trainer.evaluate()["eval_story_accuracy"] == max(accuracies)
    assert evaluate_suite(trainer.model, PAIRS).accuracy == max(accuracies)


class Watch(TrainerCallback):
    """Keeps what a callback of the trainer's own list sees."""

    def __init__(self):
        self.seen, self.logged = [], []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.seen.append(dict(metrics))

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(dict(logs))


def test_a_speech_metric_stops_training_early(tmp_path):
    watch = Watch()
    trainer = make_trainer(tmp_path, max_steps=20, learning_rate=0.0, metric_for_best_model="eval_story_accuracy",
                           callbacks=[watch, EarlyStoppingCallback(2)])  # fmt: skip
    SuiteEvaluationCallback({"story": PAIRS}).attach(trainer)
    trainer.train()
    # Nothing improves after the first evaluation; the second and the third exhaust the patience.
    assert trainer.state.global_step == 6
    assert len(watch.seen) == 3 and all("eval_story_accuracy" in metrics for metrics in watch.seen)
    assert len([logs for logs in watch.logged if "eval_story_accuracy" in logs]) == 3


def test_several_data_sets_are_scored_once_a_step(tmp_path):
    rows = make_rows(make_model(), 4)
    trainer = make_trainer(
        tmp_path, eval_dataset={"first": rows[:2], "second": rows[2:]}, callbacks=[watch := Watch()]
    )
    SuiteEvaluationCallback({"story": PAIRS}).attach(trainer)
    trainer.train()
    assert len(logged(trainer, "eval_story_accuracy")) == 3 == len(watch.seen) // 2
    assert all("eval_story_accuracy" in metrics for metrics in watch.seen)


def test_what_cannot_be_scored_is_refused_before_training(tmp_path):
    too_high = [replace(PAIRS[0], negative_units=(999,))]
    with pytest.raises(ScoringError, match="The negative half of pair '0' cannot be read by this model"):
        SuiteEvaluationCallback({"story": too_high}).attach(make_trainer(tmp_path))
    with pytest.raises(SuiteError, match="the model was trained on speech of 'other'"):
        SuiteEvaluationCallback({"story": PAIRS}, encoder="other").attach(make_trainer(tmp_path))
    with pytest.raises(ValueError, match="nothing to score"):
        SuiteEvaluationCallback({})
    with pytest.raises(SuiteError, match="No suite manifest at"):
        SuiteEvaluationCallback({"story": tmp_path / "story.parquet"})
    with pytest.raises(ValueError, match=r"call its `attach\(trainer\)` instead"):
        make_trainer(tmp_path, callbacks=[SuiteEvaluationCallback({"story": PAIRS})])


def test_the_greatest_perplexity_is_not_the_best(tmp_path):
    settings = {"metric_for_best_model": "eval_perplexity"}
    callback = SuiteEvaluationCallback({}, UTTERANCES)
    with pytest.raises(ValueError, match="greater_is_better=True for eval_perplexity"):
        callback.attach(make_trainer(tmp_path, **settings))
    trainer = make_trainer(tmp_path, max_steps=4, greater_is_better=False, **settings)
    callback.attach(trainer)
    trainer.train()
    assert trainer.state.best_metric == min(logged(trainer, "eval_perplexity"))


def evaluate_on_ranks(folder):
    """Writes what this process got, how many forward passes the callback took, and how it ended on broken weights."""
    trainer = make_trainer(folder)
    callback = SuiteEvaluationCallback({"story": PAIRS}, UTTERANCES)
    callback.attach(trainer)
    passes = []
    trainer.model.register_forward_hook(lambda *_: passes.append(1))
    event = {"args": trainer.args, "state": trainer.state, "control": trainer.control, "model": trainer.model}
    metrics = {}
    callback.on_evaluate(**event, metrics=metrics)
    record = {"metrics": metrics, "passes": len(passes)}
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    try:
        callback.on_evaluate(**event, metrics={})
    except (ScoringError, RuntimeError) as error:
        record["error"] = f"{type(error).__name__}: {error}"
    (Path(folder) / f"rank_{trainer.args.process_index}.json").write_text(json.dumps(record))
    # A process that leaves while the other still talks to it would end that one with an error.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_the_main_process_scores_for_all(tmp_path):
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
    main, other = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert main["metrics"] == other["metrics"]
    assert main["metrics"]["eval_story_accuracy"] == evaluate_suite(make_model(), PAIRS).accuracy
    assert main["passes"] > 0 == other["passes"]
    assert main["error"].startswith("ScoringError") and "NaN or infinite" in main["error"]
    assert other["error"].startswith("RuntimeError: The main process could not score the suites. ScoringError")


if __name__ == "__main__":
    evaluate_on_ranks(sys.argv[1])
