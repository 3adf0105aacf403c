"""Callbacks of the trainers of language models."""

import importlib.util
import math
import os

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..data.storage import atomic_file

LOSS_CURVE_FILE = "loss_curve.png"


class EpochCallback(TrainerCallback):
    """Call `set_epoch` of the training data set, if it has one, at the beginning of every epoch.

    The data loader of accelerate does so only in single-process runs. With several processes it calls only `set_epoch`
    of its sampler, so that data that is redrawn for every epoch would remain that of the first epoch.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Set the current epoch, which a resumed run may continue in the middle."""
        set_epoch = getattr(train_dataloader.dataset, "set_epoch", None)
        if set_epoch is not None:
            # `state.epoch` is a whole number after an epoch, up to rounding.
            set_epoch(math.floor(state.epoch + 1e-6))


class LogBeforeSaving(TrainerCallback):
    """Log at every step at which a checkpoint is saved.

    A logged loss is the mean over the steps since the last log. Without this callback, a run that is resumed between
    two logs would log the mean over fewer steps than the uninterrupted run.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Request a log if a checkpoint is requested."""
        if control.should_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


class LossCurveCallback(TrainerCallback):
    """Plot every logged loss over the steps to `loss_curve.png` in the output folder when training ends.

    Raises:
        ModuleNotFoundError: at construction, when matplotlib is not installed.
    """

    def __init__(self):
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                "The loss curve requires matplotlib, which is not installed: pip install tinywave[report], or set "
                "plot_loss_curve to False."
            )

    def on_train_end(self, args, state, control, **kwargs):
        """Plot one line for each logged name that ends in `loss`, on a logarithmic axis."""
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
