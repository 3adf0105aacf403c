"""Train the parallel heads of a language model by distillation, with the rest of the model frozen.

Head k predicts the token k positions after the next one. Its targets are that token and the teacher's distribution
over it; the teacher is given all preceding tokens, the head the student's hidden state and the tokens since. The loss
of each head is that of logit distillation (Hinton et al. 2015, arXiv 1503.02531).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, TrainingArguments

from ..data.collators import CausalLanguageModelCollator
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .checkpoints import last_checkpoint
from .decoder_pass import call_inside, decoder_inputs, run_decoder
from .language_model_trainer import LanguageModelTrainer
from .logits_losses import HeadLogits, LogitsSettings, logits_losses
from .losses import IGNORED_LABEL
from .model_checks import check_head, check_id_layouts, check_not_empty


@dataclass
class ParallelHeadsArguments(TrainingArguments):
    """Training arguments of parallel heads: those of [`~transformers.TrainingArguments`] and the loss settings.

    Raises:
        ValueError: if a weight is negative, both weights are 0, or the temperature is not positive.
    """

    cross_entropy_weight: float = field(
        default=0.5, metadata={"help": "Weight of the cross-entropy on the data, in nats per token."}
    )
    logits_weight: float = field(
        default=1.0, metadata={"help": "Weight of temperature^2 * KL(teacher || head), in nats per token."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature that softens both distributions; > 0."})

    def __post_init__(self):
        super().__post_init__()
        weights = self.cross_entropy_weight, self.logits_weight
        if min(weights) < 0 or max(weights) == 0 or not self.temperature > 0:
            raise ValueError(
                f"Found cross_entropy_weight={weights[0]}, logits_weight={weights[1]} and temperature="
                f"{self.temperature}; expected weights of 0 or more, not both 0, and a positive temperature."
            )


class ParallelHeadsTrainer(LanguageModelTrainer):
    """`Trainer` of the parallel heads; the rest of the model is frozen.

    The loss is the mean over heads of `cross_entropy_weight * CE + logits_weight * temperature^2 * KL`, each a sum
    over tokens divided by the supervised tokens of the optimizer step. Each log also contains `head_<k>_loss`, or in
    evaluation `eval_head_<k>_loss`, of the last batch.

    Args:
        model ([`TinyWaveForCausalLM`]): the model, in floating point, with `config.num_parallel_heads` heads.
        teacher_model ([`TinyWaveForCausalLM`]): the teacher, which is frozen. It may be the model itself
            (self-distillation).
        args ([`ParallelHeadsArguments`]): loss settings and the fields of `TrainingArguments`.
        trainer_arguments: further arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: if the model has no parallel heads, the two models have different id layouts, or a data set is
            empty.
    """

    # The loss is divided by the tokens of the whole step already.
    loss_is_scaled_for_ga = True

    def __init__(self, model, teacher_model, args: ParallelHeadsArguments, **trainer_arguments):
        if not model.config.num_parallel_heads:
            raise ValueError(
                "Found a model without parallel heads; load it with, for example, num_parallel_heads=4: "
                "TinyWaveForCausalLM.from_pretrained(folder, num_parallel_heads=4)."
            )
        check_head(model), check_head(teacher_model)
        check_id_layouts(model.config, teacher_model.config)
        check_not_empty(**{name: trainer_arguments.get(name) for name in ("train_dataset", "eval_dataset")})
        model.requires_grad_(False)
        model.parallel_heads.requires_grad_(True)
        super().__init__(model=model, args=args, **trainer_arguments)
        self.teacher = teacher_model.to(args.device).requires_grad_(False).eval()
        self._settings = LogitsSettings(args.cross_entropy_weight, args.logits_weight)
        self._head_losses: dict[str, torch.Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean loss of the heads on one micro-batch, divided by the supervised tokens of the step."""
        student = self.accelerator.unwrap_model(model)
        divisor = num_items_in_batch
        if divisor is None:
            divisor = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum().clamp(min=1)
        losses = call_inside(model, student, self._losses, inputs) / divisor
        prefix = "" if self.model.training else "eval_"
        self._head_losses = {f"{prefix}head_{k}_loss": loss for k, loss in enumerate(losses.detach(), start=1)}
        loss = losses.mean()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Data parallelism averages gradients while the divisor counts the tokens of all processes.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _losses(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each head, summed over its tokens, of shape `(heads,)`."""
        student, labels = self.accelerator.unwrap_model(self.model), inputs["labels"]
        with self.accelerator.autocast():
            with torch.no_grad():
                hidden, taught = (run_decoder(model, decoder_inputs(inputs)) for model in (student, self.teacher))
                embeddings = student.get_input_embeddings()(inputs["input_ids"])
            states = student.parallel_heads(hidden, embeddings)
            return torch.stack([self._loss_of(k, state, taught, labels) for k, state in enumerate(states, start=1)])

    def _loss_of(self, distance: int, states, taught, labels) -> torch.Tensor:
        """Return the loss of head `distance`: states `(B, T - distance, d)` against the teacher at t + distance."""
        targets = labels[:, distance + 1 :]
        rows = targets != IGNORED_LABEL
        teacher_logits = HeadLogits(taught[:, distance:-1][rows], self.teacher.get_output_embeddings().weight)
        return logits_losses(
            states[:, :-1][rows],
            self.accelerator.unwrap_model(self.model).get_output_embeddings().weight,
            targets[rows],
            self._settings,
            teacher_logits=teacher_logits,
            temperature=self.args.temperature,
        ).total

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate the loss of the heads; no logits are gathered."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs, start_time=None):
        """Add the loss of each head on the last training or evaluation batch to the logs."""
        for name, loss in self._head_losses.items():
            if f"{'eval_' if name.startswith('eval_') else ''}loss" in logs:
                logs[name] = loss.item()
        super().log(logs, start_time)


def train_parallel_heads(
    model: TinyWaveForCausalLM,
    teacher: TinyWaveForCausalLM,
    train_dataset: Dataset,
    arguments: ParallelHeadsArguments,
    *,
    tokenizer: PreTrainedTokenizerFast,
) -> ParallelHeadsTrainer:
    """Train the parallel heads of a model and save the complete model repository in `arguments.output_dir`.

    If `arguments.output_dir` holds a checkpoint of an interrupted run, training resumes from it. The arguments are
    those of [`ParallelHeadsTrainer`], and `tokenizer`, which is saved next to the weights.

    Returns:
        [`ParallelHeadsTrainer`].
    """
    trainer = ParallelHeadsTrainer(
        model,
        teacher,
        arguments,
        train_dataset=train_dataset,
        data_collator=CausalLanguageModelCollator(model.config.pad_token_id),
        processing_class=TinyWaveProcessor.from_config(model.config, tokenizer),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(arguments.output_dir)))
    trainer.save_model()
    trainer.save_state()
    return trainer
