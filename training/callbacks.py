"""Callbacks of the trainers of language models."""

import importlib.util
import math
import os

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..data.storage import atomic_file

LOSS_CURVE_FILE = "loss_curve.png"


class EpochCallback(TrainerCallback):
    """Calls `set_epoch` of the training data, where it has one, at the beginning of every epoch.

    The data loader of accelerate does so in a single process only: with several, it calls that of its sampler alone,
    and data that is drawn anew for every epoch would stay that of the first.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Select the epoch of the state, of which a resumed run may have seen a part."""
        set_epoch = getattr(train_dataloader.dataset, "set_epoch", None)
        if set_epoch is not None:
            # A whole number after an epoch, up to rounding.
            set_epoch(math.floor(state.epoch + 1e-6))


class LogBeforeSaving(TrainerCallback):
    """Logs at every step that a checkpoint follows.

    A logged loss is the mean since the last log. Without this, a run that is resumed between two logs would log the
    mean of fewer steps than the uninterrupted one.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a log where a checkpoint is asked for."""
        if control.should_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


class LossCurveCallback(TrainerCallback):
    """Draws every logged loss over the steps to `loss_curve.png` in the output folder when training ends.

    Raises:
        ModuleNotFoundError: at construction, when matplotlib is not installed.
    """

    def __init__(self):
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                "The loss curve is drawn by matplotlib, which is missing: pip install tinywave[report], or leave "
                "plot_loss_curve off."
            )

    def on_train_end(self, args, state, control, **kwargs):
        """Draw one line for each logged name that ends in `loss`; the axis is logarithmic."""
        if not state.is_world_process_zero:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        names = sorted(
            {name for entry in state.log_history for name in entry if name.endswith("loss")} - {"train_loss"}
        )
        for name in names:
            points = [(entry["step"], entry[name]) for entry in state.log_history if name in entry]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.5, marker="." if len(points) == 1 else None)
        axes.set(xlabel="step", ylabel="nats or distance per token", yscale="log")
        if names:
            axes.legend(frameon=False, fontsize=8)
        with atomic_file(os.path.join(args.output_dir, LOSS_CURVE_FILE)) as partial:
            figure.savefig(partial, dpi=150, format="png")
