"""Base class of all trainers: checks of every step, atomic checkpoints, and exact resumption."""

import dataclasses
import math
import os
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from ..data.storage import atomic_file
from .callbacks import EpochCallback, LogBeforeSaving
from .checkpoints import complete_checkpoint, last_checkpoint, partial_checkpoints, remove_partial_checkpoints

_NUM_NAMES_SHOWN = 3
# Suffixes of logged values that differ between two runs of the same steps: wall times, and means since resumption.
_VARYING_SUFFIXES = ("_runtime", "_per_second")
_VARYING_NAMES = ("train_loss", "model_flops_utilisation")


class ResumableTrainer(Trainer):
    """A `Trainer` whose runs can be killed at any moment and resumed with the same result as an uninterrupted run.

    - Checkpoints are written under a hidden name and renamed when they are complete (see
      [`~training.checkpoints.last_checkpoint`]).
    - An optimizer step is taken only with finite gradients and at least one supervised token. Weights that are not
      finite are not saved. Gradients that overflow in float16 are handled by the gradient scaler, which skips the
      step.
    - Resuming from the final checkpoint of a finished run takes no further step.
    - `set_epoch` of the training data set is called at the beginning of every epoch, in every process.
    - `trainer_state.json` contains no wall times and no throughput, and a log is written with every checkpoint, so
      that the file is equal to that of an uninterrupted run.

    Raises:
        FloatingPointError: if gradients or weights are not finite. The message names the step and the last checkpoint.
        ValueError: if an optimizer step has no supervised token.
    """

    # Folder into which a checkpoint is being written; None otherwise.
    _checkpoint_root: Path | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(EpochCallback())
        self.add_callback(LogBeforeSaving())

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train like `Trainer.train`; `resume_from_checkpoint=True` selects the newest complete checkpoint."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} contains no complete checkpoint to resume from; start the run without "
                    "`resume_from_checkpoint`."
                )
        if self.args.should_save:
            remove_partial_checkpoints(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- steps ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the micro-batches of the next step; none if the run has already reached its last step."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples, device):
        num_tokens = super()._get_num_items_in_batch(batch_samples, device)
        if num_tokens is None or float(torch.as_tensor(num_tokens).sum()) > 0:
            return num_tokens
        if self.args.world_size > 1 and not self.args.average_tokens_across_devices:
            return torch.as_tensor(num_tokens).clamp(min=1)  # Other processes may have tokens.
        raise ValueError(
            f"Step {self.state.global_step + 1} has no supervised token: all labels after the first of each row are "
            f"-100. {self._describe_recovery()} Remove examples without targets from the data, and train again."
        )

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is None or self.accelerator.scaler is not None:
            return grad_norm
        norm = float(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"Step {self.state.global_step + 1}: the norm of the gradient is {norm}. {self._describe_recovery()} "
                "Lower the learning rate or the weights of the loss, or raise the precision, and train again."
            )
        return grad_norm

    def _describe_recovery(self) -> str:
        return describe_recovery(self.state.global_step, self.args.output_dir)

    # ---- checkpoints ----

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model as `Trainer.save_model` does, unless a weight is not finite."""
        self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _check_weights(self) -> None:
        parameters = [item for item in self.model.named_parameters() if item[1].is_floating_point()]
        finite = [bool(_local(parameter).isfinite().all()) for _, parameter in parameters]
        is_bad = not all(finite)
        if any(hasattr(parameter, "to_local") for _, parameter in parameters):
            # Each process holds a part. Elsewhere all hold the same weights, and one may save them alone.
            bad = torch.tensor(float(is_bad), device=self.args.device)
            is_bad = float(self.accelerator.reduce(bad, "sum")) > 0
        if not is_bad:
            return
        names = [name for (name, _), is_finite in zip(parameters, finite, strict=True) if not is_finite]
        raise FloatingPointError(
            f"After step {self.state.global_step} {len(names)} parameters are not finite "
            f"({', '.join(names[:_NUM_NAMES_SHOWN])}), so they are not saved; "
            f"{_describe_checkpoint(self.args.output_dir)} Lower the learning rate, and train again."
        )

    def save_state(self):
        """Save the state as `Trainer.save_state` does, without wall times."""
        if self.is_world_process_zero():
            self._write_state(Path(self.args.output_dir))

    def _write_state(self, folder: Path) -> None:
        history = [
            {
                name: value
                for name, value in entry.items()
                if not name.endswith(_VARYING_SUFFIXES) and name not in _VARYING_NAMES
            }
            for entry in self.state.log_history
        ]
        with atomic_file(folder / TRAINER_STATE_NAME) as path:
            dataclasses.replace(self.state, log_history=history).save_to_json(str(path))

    def end(self) -> None:
        """End the run of a script: release the models, and leave the process group.

        The group is left last. Where the reducer of DDP is what keeps it alive, it is destroyed while Python's global
        lock is held, and waits for a thread of gloo that waits for this lock.
        """
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._checkpoint_root is None else str(self._checkpoint_root)

    def _save_checkpoint(self, model, trial):
        run_folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        (writer,) = broadcast_object_list([os.getpid()])
        self._checkpoint_root = partial_checkpoints(run_folder, writer)
        partial = self._checkpoint_root / name
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._checkpoint_root = None
        if self.state.best_model_checkpoint == str(partial):
            self.state.best_model_checkpoint = str(run_folder / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._write_state(partial)
            complete_checkpoint(partial, run_folder / name)
            # Sorted by step number, because file times are wrong if the clock has been set back.
            rotate_checkpoints(str(run_folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and partial.is_dir():
            complete_checkpoint(partial, run_folder / name)  # On a node with a disk of its own.


def describe_recovery(num_steps: int, output_dir: str | os.PathLike) -> str:
    """Return two sentences about the state of a run that stops before an optimizer step, for error messages.

    Args:
        num_steps (`int`): optimizer steps taken so far.
        output_dir: folder of the run's checkpoints.
    """
    return (
        f"The optimizer has not stepped, so the weights are still those of step {num_steps}; "
        f"{_describe_checkpoint(output_dir)}"
    )


def _describe_checkpoint(output_dir: str | os.PathLike) -> str:
    checkpoint = last_checkpoint(output_dir)
    return f"the last checkpoint is {checkpoint}." if checkpoint else "no checkpoint has been written yet."


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Return the shard of a parameter that is on this process."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
