"""`DistillationTrainer`: hidden states, attention maps, logits and data in one `transformers.Trainer`.

TRL has a class of the same name that distils logits on generated completions only; this one aligns blocks as well and
trains on a given data set.
"""

import os
from collections.abc import Callable

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from .training.arguments import DistillationArguments
from .training.attention_tap import ActivationTap
from .training.layer_map import LayerMap
from .training.losses import attention_kl, cosine_hidden_loss, logits_losses, mse_hidden_loss, supervised_positions

PROJECTORS_NAME = "distill_projectors"
PROJECTORS_FILE = "distill_projectors.safetensors"
LOSS_NAMES = ("cross_entropy_loss", "logits_loss", "hidden_loss", "attention_loss")
AGREEMENT_NAME = "teacher_agreement"

# Two models share their vocabulary only if every one of these that both configs have is equal.
_ID_LAYOUT_FIELDS = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "text_vocab_size",
    "text_marker_id",
    "speech_marker_id",
    "unit_offset",
    "num_units",
    "pitch_offset",
    "num_pitch_tokens",
    "style_offset",
    "num_style_tokens",
)
# Settings of other architectures that change logits after the LM head, which the chunked losses read directly.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
_HIDDEN_LOSSES = {"cosine": cosine_hidden_loss, "mse": mse_hidden_loss}


class DistillationTrainer(Trainer):
    """Train a student on data and on its teacher's logits, hidden states and attention maps.

    The loss is `sum_i weight_i * term_i`, each term a sum over the supervised tokens divided by the number of such
    tokens in the whole optimizer step, so that accumulation and data parallelism are exact. Every enabled term is
    logged each `logging_steps` (`cross_entropy_loss`, `logits_loss`, `hidden_loss`, `attention_loss`) and in
    evaluation (`eval_*`, with `eval_teacher_agreement`, the share of tokens whose likeliest successor both models
    agree on). With every weight but the cross-entropy's at 0 this is the plain `Trainer`.

    Where the hidden sizes differ and the hidden term is on, a linear projector per mapped block becomes a submodule of
    the student: it is optimised, clipped, synchronised and resumed with it. Checkpoints keep the projectors in
    `distill_projectors.safetensors`; the model's own weight files never contain them.

    Args:
        model ([`~transformers.PreTrainedModel`]): the student, a causal LM of Llama's layout. Its attention is
            switched to a tapped SDPA when the attention term is on.
        teacher_model ([`~transformers.PreTrainedModel`], *optional*): frozen, put in evaluation mode and never saved.
            Needed unless only the cross-entropy is on.
        layer_map ([`LayerMap`], *optional*): the blocks to align; by default one teacher block in three, ending on
            the last.
        args ([`DistillationArguments`]): weights, temperature and everything of `TrainingArguments`.
        trainer_arguments: the remaining arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: when the two models cannot be compared: other vocabularies or id layouts, head counts, blocks out
            of range, reentrant activation checkpointing, or an architecture that cannot be tapped.
    """

    # The loss is divided by the tokens of the whole step already; the Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        teacher_model: PreTrainedModel | None = None,
        layer_map: LayerMap | None = None,
        args: DistillationArguments | None = None,
        **trainer_arguments,
    ):
        args = DistillationArguments() if args is None else args
        if args.needs_teacher:
            if teacher_model is None:
                raise ValueError(
                    "`teacher_model` is missing, but the logits, hidden or attention weight is above 0. "
                    "Pass a teacher or set those weights to 0."
                )
            _check_models(model, teacher_model, args)
        self.layer_map = _resolve_layer_map(model, teacher_model, layer_map, args)
        if args.hidden_weight and model.config.hidden_size != teacher_model.config.hidden_size:
            _add_projectors(model, teacher_model, self.layer_map, args.seed)
        super().__init__(model=model, args=args, **trainer_arguments)
        self._check_trainer()
        self._sums = {"train": None, "eval": None}
        self._num_sums = 0
        self.teacher = None
        if args.needs_teacher:
            self._prepare_teacher(teacher_model)

    def _check_trainer(self) -> None:
        if self.args.needs_teacher and self.args.n_gpu > 1:
            raise ValueError(
                f"Found {self.args.n_gpu} GPUs in one process (DataParallel), which distillation does not support; "
                "start one process per GPU with torchrun or accelerate launch."
            )
        if self.args.needs_teacher and self.compute_loss_func is not None:
            raise ValueError("`compute_loss_func` would replace the distillation loss; leave it out.")

    def _prepare_teacher(self, teacher_model: PreTrainedModel) -> None:
        teacher_model.eval().requires_grad_(False)
        self._teacher_tap = self._tap(teacher_model, "teacher_blocks")
        self._student_tap = self._tap(self.model, "student_blocks")
        self.teacher = self.accelerator.prepare_model(teacher_model, evaluation_mode=True)

    def _tap(self, model: PreTrainedModel, side: str) -> ActivationTap:
        blocks = getattr(self.layer_map, side, ())
        return ActivationTap(
            model,
            hidden_blocks=blocks if self.args.hidden_weight else (),
            attention_blocks=blocks if self.args.attention_weight else (),
        )

    # ---- loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the weighted loss of one micro-batch, divided by the supervised tokens of the optimizer step."""
        if not self.args.needs_teacher:
            outputs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return self._weigh_plain_loss(outputs, return_outputs)
        if inputs.get("labels") is None:
            raise ValueError(f"Distillation needs `labels` in every batch; found {sorted(inputs)}.")
        num_tokens = (inputs["labels"][:, 1:] != -100).sum()
        divisor = num_tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        student = self.accelerator.unwrap_model(model)
        loss, sums = _call_inside_wrapper(model, student, self._loss_and_sums, inputs)
        loss = loss / divisor
        self._remember(sums, divisor, num_tokens)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Data parallelism averages gradients over the ranks while the divisor counts the tokens of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _loss_and_sums(self, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Run both models and return the weighted sum over tokens and the sums of the terms, detached."""
        student = self.accelerator.unwrap_model(self.model)
        positions = supervised_positions(inputs["labels"])
        model_inputs = _decoder_inputs(inputs)
        with self.accelerator.autocast():
            with torch.no_grad(), self._teacher_tap.record() as teacher_record:
                teacher_hidden = _run_decoder(self.teacher, model_inputs)
            with self._student_tap.record() as student_record:
                student_hidden = _run_decoder(student, model_inputs)
            logits = self._logits_losses(student, student_hidden, teacher_hidden, inputs["labels"], positions)
            if model_inputs.get("attention_mask") is not None:
                # With padding on the left a target may follow a padding token, whose own states mean nothing.
                positions = positions & model_inputs["attention_mask"].bool()
            hidden = self._hidden_loss(student, student_record, teacher_record, positions)
        attention = self._attention_loss(student_record, teacher_record, positions)
        loss = logits.total + self.args.hidden_weight * hidden + self.args.attention_weight * attention
        sums = (logits.cross_entropy, logits.kl, hidden.detach(), attention.detach(), logits.agreement)
        return loss, torch.stack(sums)

    def _logits_losses(self, student, student_hidden, teacher_hidden, labels, positions):
        teacher = self.accelerator.unwrap_model(self.teacher)
        return logits_losses(
            student_hidden[positions],
            student.get_output_embeddings().weight,
            labels[:, 1:][positions[:, :-1]],
            cross_entropy_weight=self.args.cross_entropy_weight,
            logits_weight=self.args.logits_weight,
            teacher_hidden=teacher_hidden[positions],
            teacher_head=teacher.get_output_embeddings().weight,
            temperature=self.args.temperature,
            chunk_size=self.args.logits_chunk_size,
        )

    def _hidden_loss(self, student, student_record, teacher_record, positions) -> torch.Tensor:
        loss = torch.zeros((), device=positions.device)
        if not self.args.hidden_weight:
            return loss
        distance = _HIDDEN_LOSSES[self.args.hidden_loss]
        projectors = getattr(student, PROJECTORS_NAME, None)
        for teacher_block, student_block in self.layer_map.pairs:
            output = student_record.block_outputs[student_block]
            if projectors is not None:
                output = projectors[str(student_block)](output)
            loss = loss + distance(output, teacher_record.block_outputs[teacher_block], positions)
        return loss / len(self.layer_map.pairs)

    def _attention_loss(self, student_record, teacher_record, positions) -> torch.Tensor:
        loss = torch.zeros((), device=positions.device)
        if not self.args.attention_weight:
            return loss
        for teacher_block, student_block in self.layer_map.pairs:
            student = student_record.attention_inputs[student_block]
            teacher = teacher_record.attention_inputs[teacher_block]
            loss = loss + attention_kl(
                student.query,
                student.key,
                teacher.query,
                teacher.key,
                positions,
                student_scaling=student.scaling,
                teacher_scaling=teacher.scaling,
                mask=student.mask,
            )
        return loss / len(self.layer_map.pairs)

    def _weigh_plain_loss(self, outputs, return_outputs):
        weight = self.args.cross_entropy_weight
        if weight == 1:
            return outputs
        return (outputs[0] * weight, outputs[1]) if return_outputs else outputs * weight

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate the distillation loss; no logits are gathered, since `[B, T, V]` of a speech model is large."""
        if not self.args.needs_teacher:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        if inputs.get("labels") is not None:
            inputs["labels"] = self._without_repeated_rows(inputs["labels"])
        with torch.no_grad():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def _without_repeated_rows(self, labels: torch.Tensor) -> torch.Tensor:
        """Ignore the rows that data parallelism repeats to fill the last batch, so that every token counts once."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        genuine = max(0, state.remainder - self.accelerator.process_index * len(labels))
        return labels.index_fill(0, torch.arange(min(genuine, len(labels)), len(labels), device=labels.device), -100)

    # ---- logging ----

    def _remember(self, sums, divisor, num_tokens) -> None:
        """Add a micro-batch to the running sums on the device; nothing is read back until they are logged."""
        training = self.model.training
        row = sums / divisor if training else torch.cat([sums, num_tokens[None]])
        mode = "train" if training else "eval"
        self._sums[mode] = row if self._sums[mode] is None else self._sums[mode] + row
        if training and self.accelerator.sync_gradients:
            self._num_sums += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every enabled term since the last log to the training logs."""
        if "loss" in logs and self._sums["train"] is not None:
            means = self.accelerator.reduce(self._sums["train"], "sum") / max(1, self._num_sums)
            logs.update(self._enabled_terms(means.tolist()))
            self._sums["train"], self._num_sums = None, 0
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Run the evaluation and add the mean of every enabled term over its tokens to the metrics."""
        self._sums["eval"] = None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._sums["eval"] is not None:
            *sums, num_tokens = self.accelerator.reduce(self._sums["eval"], "sum").tolist()
            terms = self._enabled_terms([value / max(1, num_tokens) for value in sums])
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
            if self.args.logits_weight:
                output.metrics[f"{metric_key_prefix}_{AGREEMENT_NAME}"] = sums[-1] / max(1, num_tokens)
        return output

    def _enabled_terms(self, values: list[float]) -> dict[str, float]:
        weights = (
            self.args.cross_entropy_weight,
            self.args.logits_weight,
            self.args.hidden_weight,
            self.args.attention_weight,
        )
        return {name: value for name, value, weight in zip(LOSS_NAMES, values[:4], weights, strict=True) if weight}

    # ---- checkpoints ----

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        projectors = getattr(self.accelerator.unwrap_model(self.model), PROJECTORS_NAME, None)
        if projectors is None or not self.args.should_save:
            return
        tensors = projectors.state_dict()
        if state_dict is not None:
            prefix = PROJECTORS_NAME + "."
            tensors = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            os.path.join(output_dir or self.args.output_dir, PROJECTORS_FILE),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_projectors(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_projectors(self.state.best_model_checkpoint)

    def _load_projectors(self, checkpoint: str) -> None:
        projectors = getattr(self.accelerator.unwrap_model(self.model), PROJECTORS_NAME, None)
        if projectors is None:
            return
        path = os.path.join(checkpoint, PROJECTORS_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path} is missing, so the trained projectors cannot be resumed. Resume from a checkpoint written "
                "by DistillationTrainer with the hidden term on."
            )
        projectors.load_state_dict(safetensors.torch.load_file(path))


def _check_models(student: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments) -> None:
    for name in _ID_LAYOUT_FIELDS:
        values = [getattr(model.config, name, None) for model in (student, teacher)]
        if None not in values and values[0] != values[1]:
            raise ValueError(
                f"Student and teacher must share one vocabulary and id layout; `{name}` is {values[0]} in the student "
                f"and {values[1]} in the teacher."
            )
    heads = [model.config.num_attention_heads for model in (student, teacher)]
    if args.attention_weight and heads[0] != heads[1]:
        raise ValueError(
            f"The attention term compares head to head: the student has {heads[0]} heads and the teacher {heads[1]}. "
            "Use a student with as many heads or set attention_weight to 0."
        )
    for model in (student, teacher):
        _check_head(model)
    for block in getattr(student.get_decoder(), "layers", ()):
        checkpointing = getattr(block, "_gradient_checkpointing_func", None)
        if getattr(block, "gradient_checkpointing", False) and checkpointing.keywords.get("use_reentrant"):
            raise ValueError(
                "The student uses reentrant activation checkpointing, which silently drops the gradient of the "
                "attention term. Enable it with use_reentrant=False."
            )


def _check_head(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    transforms = [name for name in _LOGIT_TRANSFORMS if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if type(head) is not nn.Linear or head.bias is not None or transforms:
        raise ValueError(
            f"The LM head of {type(model).__name__} must be a plain linear layer without bias, adapter or scaling; "
            f"found {type(head).__name__}{' and ' + ', '.join(transforms) if transforms else ''}."
        )


def _resolve_layer_map(student, teacher, layer_map: LayerMap | None, args: DistillationArguments) -> LayerMap | None:
    if not args.needs_layer_map:
        return None
    depths = teacher.config.num_hidden_layers, student.config.num_hidden_layers
    layer_map = LayerMap.every_third_ending_last(*depths) if layer_map is None else layer_map
    layer_map.check_depths(*depths)
    return layer_map


def _add_projectors(student: PreTrainedModel, teacher: PreTrainedModel, layer_map: LayerMap, seed: int) -> None:
    """Register one linear map per aligned block on the student, kept out of its saved weights."""
    width, teacher_width = student.config.hidden_size, teacher.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    projectors = nn.ModuleDict()
    for block in layer_map.student_blocks:
        projector = nn.Linear(width, teacher_width, bias=False, dtype=student.dtype)
        nn.init.normal_(projector.weight, std=width**-0.5, generator=generator)
        projectors[str(block)] = projector
    student.add_module(PROJECTORS_NAME, projectors)
    student._keys_to_ignore_on_save = set(student._keys_to_ignore_on_save or ()) | {
        f"{PROJECTORS_NAME}.{name}" for name in projectors.state_dict()
    }


def _call_inside_wrapper(wrapper: nn.Module, model: nn.Module, function: Callable, *inputs):
    """Call `function(*inputs)` in place of `model.forward`, through the wrapper that data parallelism put around it.

    Gradient synchronisation is set up by the wrapper's forward. Calling parts of the unwrapped model outside of it
    would train every rank on its own gradients.
    """
    own_forward = model.__dict__.get("forward")

    def restore():
        if own_forward is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = own_forward

    def redirected(*arguments):
        restore()
        return function(*arguments)

    model.forward = redirected
    try:
        return wrapper(*inputs)
    finally:
        restore()


def _decoder_inputs(inputs: dict) -> dict:
    """The inputs both decoders read, without a padding mask that changes nothing.

    With padding on the right a causal model never looks at it from a real token, and without a mask SDPA can use its
    causal kernel, which skips the upper half of the map.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    decoder_inputs = {name: inputs[name] for name in names if inputs.get(name) is not None}
    mask = decoder_inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and "position_ids" not in decoder_inputs:
        if bool((mask[:, 1:] <= mask[:, :-1]).all()):
            del decoder_inputs["attention_mask"]
    return decoder_inputs


def _run_decoder(model: nn.Module, decoder_inputs: dict) -> torch.Tensor:
    """Final hidden states of shape `(B, T, hidden)`, after the norm; the LM head is applied in the chunked loss."""
    return model.get_decoder()(**decoder_inputs, use_cache=False).last_hidden_state
