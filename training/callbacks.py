"""Callbacks of the distillation trainer."""

import importlib.util
import os

from transformers import TrainerCallback

LOSS_CURVE_FILE = "loss_curve.png"


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
        figure.savefig(os.path.join(args.output_dir, LOSS_CURVE_FILE), dpi=150)
