"""The loss curve: drawn from the logs, by the first process only."""

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tinywave.training.callbacks import LOSS_CURVE_FILE, LossCurveCallback

HISTORY = [
    {"step": 1, "loss": 3.0, "hidden_loss": 1.0, "grad_norm": 2.0},
    {"step": 2, "loss": 2.0, "hidden_loss": 0.5},
    {"step": 2, "eval_loss": 2.5},
    {"step": 2, "train_loss": 2.5},
]


@pytest.mark.parametrize(("is_first", "history"), [(True, HISTORY), (True, []), (False, HISTORY)])
def test_the_first_process_draws(tmp_path, is_first, history):
    state = TrainerState(log_history=history, is_world_process_zero=is_first)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    LossCurveCallback().on_train_end(arguments, state, TrainerControl())
    path = Path(tmp_path) / LOSS_CURVE_FILE
    assert path.exists() == is_first
    if is_first:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_it_is_refused_at_construction(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install tinywave\[report\]"):
        LossCurveCallback()
