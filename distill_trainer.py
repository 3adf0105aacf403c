"""`DistillationTrainer`: a `transformers.Trainer` that distills logits, hidden states and attention maps.

TRL has a class of the same name, which distills only logits, on generated completions. This one also aligns hidden
states and attention maps, and trains on a given data set.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from accelerate.utils import fsdp2_prepare_model
from transformers import PreTrainedModel

from .training.arguments import DistillationArguments
from .training.attention_tap import ActivationTap, TapRecord
from .training.callbacks import LossCurveCallback
from .training.decoder_pass import alignable_positions, call_inside, decoder_inputs, flat_indices, run_decoder, take
from .training.language_model_trainer import LanguageModelTrainer
from .training.layer_map import LayerMap
from .training.logits_losses import LogitsLosses, LogitsSettings, logits_losses
from .training.losses import IGNORED_LABEL, supervised_positions
from .training.model_checks import (
    check_head,
    check_id_layouts,
    check_not_empty,
    check_trainable,
    resolve_relation_heads,
)
from .training.projectors import PROJECTORS_NAME, add_projectors, load_projectors, save_projectors
from .training.step_log import StepLog, describe_non_finite_step
from .training.stream_weighting import StreamWeighting
from .training.teacher_targets import OnlineTeacher, TeacherSource, TeacherTargets
from .training.terms import TERMS, BlockPair, LossTerm, aligned_pairs
from .training.throughput import forward_flops_per_token

LOSS_NAMES = tuple(term.log_name for term in TERMS)
AGREEMENT_NAME = "teacher_agreement"
BLOCK_TERMS = tuple(term for term in TERMS if term.distance is not None)


class DistillationTrainer(LanguageModelTrainer):
    """Train a student on data and on its teacher's logits, hidden states and attention maps.

    The loss is `sum_i weight_i * term_i`, each term a sum over the supervised tokens divided by the number of such
    tokens in the whole optimizer step, so that accumulation and data parallelism are exact. Every enabled term is
    logged every `logging_steps` (`cross_entropy_loss`, `logits_loss`, `hidden_loss`, `attention_loss`) and in
    evaluation (`eval_*`, with `eval_teacher_agreement`, the share of positions at which both models predict the same
    most likely next token). If only the weight of the cross-entropy is above 0, the class is equal to `Trainer`.

    If the hidden sizes differ and the hidden term is enabled, one linear projector per mapped block is added to the
    student as a submodule, and is optimized, clipped, synchronized and resumed with it. Checkpoints store the
    projectors in `distill_projectors.safetensors`; the weight files of the model never contain them.

    A loss that is not finite stops the run before the optimizer step, with an error that names the term and the
    example. The weights and the last checkpoint remain valid.

    Args:
        model ([`~transformers.PreTrainedModel`]): the student, a causal LM with Llama's layout. Its attention is
            switched to a tapped SDPA if the attention term is enabled.
        teacher_model ([`~transformers.PreTrainedModel`], *optional*): the teacher. It is frozen, set to evaluation
            mode and never saved.
        layer_map ([`LayerMap`], *optional*): pairs of blocks to align. Default: every third teacher block, counted
            back from the last ([`LayerMap.every_third_ending_last`]).
        args ([`DistillationArguments`], *optional*): loss settings and the fields of `TrainingArguments`.
        teacher_source ([`~training.teacher_targets.TeacherSource`], *optional*): source of the teacher's targets in
            place of `teacher_model`, such as a [`CachedTeacher`]. One of the two is required, unless only the
            cross-entropy is enabled.
        trainer_arguments: further arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: if the two models cannot be compared (different vocabularies or id layouts, blocks out of range,
            reentrant activation checkpointing, or an architecture that cannot be tapped), or a data set is empty.
    """

    # The loss is divided by the tokens of the whole step already; the Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        teacher_model: PreTrainedModel | None = None,
        layer_map: LayerMap | None = None,
        args: DistillationArguments | None = None,
        teacher_source: TeacherSource | None = None,
        **trainer_arguments,
    ):
        args = DistillationArguments() if args is None else args
        check_not_empty(**{name: trainer_arguments.get(name) for name in ("train_dataset", "eval_dataset")})
        teacher = _one_teacher(teacher_model, teacher_source, args)
        teacher_config = getattr(teacher, "config", None)
        self.layer_map = _resolve_layer_map(model, teacher_config, layer_map, args)
        if args.needs_own_loss:
            self._check_models(model, teacher, args)
        compared = self._student_blocks(args, "block_outputs")
        if compared and model.config.hidden_size != teacher_config.hidden_size:
            add_projectors(model, teacher_config.hidden_size, compared, args.seed)
        super().__init__(model=model, args=args, **trainer_arguments)
        self._check_trainer()
        self._step_log = StepLog()
        self._eval_sums = None
        self.teacher = None
        if args.needs_own_loss:
            self._prepare_own_loss(teacher_model, teacher_source)
        if args.plot_loss_curve:
            self.add_callback(LossCurveCallback())

    def _student_blocks(self, args: DistillationArguments, reads: str) -> tuple[int, ...]:
        """Student blocks of which the enabled terms read the outputs, or the attention inputs."""
        return tuple(dict.fromkeys(block for _, block in aligned_pairs(args, self.layer_map, reads)))

    def _check_models(self, student, teacher, args) -> None:
        check_trainable(student)
        check_head(student)
        self._relation_heads = None
        if teacher is None:
            return
        check_id_layouts(student.config, teacher.config)
        if self._student_blocks(args, "attention_inputs"):
            self._relation_heads = resolve_relation_heads(student.config, teacher.config, args)
        if isinstance(teacher, PreTrainedModel):
            check_head(teacher)
        else:
            teacher.check(args, self.layer_map)

    def _check_trainer(self) -> None:
        if self.args.needs_own_loss and self.args.n_gpu > 1:
            raise ValueError(
                f"Found {self.args.n_gpu} GPUs in one process (DataParallel), which distillation does not support; "
                "start one process per GPU with torchrun or accelerate launch."
            )
        if self.args.needs_own_loss and self.compute_loss_func is not None:
            raise ValueError("`compute_loss_func` would replace the distillation loss; do not pass it.")
        if self.args.log_gradient_norms and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("`log_gradient_norms` needs whole parameters; leave it off under FSDP and DeepSpeed.")

    def _prepare_own_loss(self, teacher_model, teacher_source) -> None:
        args = self.args
        self._streams = StreamWeighting(
            self.model.config,
            weights=args.stream_weights,
            temperatures=args.stream_temperatures,
            temperature=args.temperature,
            restrict=args.restrict_logits_to_stream,
            device=args.device,
        )
        self._logits_settings = LogitsSettings(
            args.cross_entropy_weight, args.logits_weight, args.logits_loss, args.jsd_beta, args.logits_chunk_size
        )
        self._student_tap = ActivationTap(
            self.model,
            hidden_blocks=self._student_blocks(args, "block_outputs"),
            attention_blocks=self._student_blocks(args, "attention_inputs"),
        )
        if args.needs_teacher and teacher_source is None:
            teacher_source = OnlineTeacher(self._place_teacher(teacher_model), args, self.layer_map)
        self.teacher = teacher_source

    def _place_teacher(self, teacher_model: PreTrainedModel) -> PreTrainedModel:
        """Move the teacher to the device of this process, or shard it like the student under FSDP2."""
        teacher_model.requires_grad_(False)
        if self.accelerator.is_fsdp2:
            return fsdp2_prepare_model(self.accelerator, teacher_model)
        return self.accelerator.unwrap_model(self.accelerator.prepare_model(teacher_model, evaluation_mode=True))

    # ---- loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the weighted loss of one micro-batch, divided by the supervised tokens of the optimizer step."""
        if not self.args.needs_own_loss:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        if inputs.get("labels") is None:
            raise ValueError(f"Distillation needs `labels` in every batch; found {sorted(inputs)}.")
        num_tokens = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
        divisor = num_tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        student = self.accelerator.unwrap_model(model)
        loss, sums = call_inside(model, student, self._loss_and_sums, inputs)
        loss = loss / divisor
        if self.model.training:
            self._step_log.add(inputs, sums, divisor, self._training_flops_per_token(inputs))
        else:
            row = torch.cat([sums, num_tokens[None]])
            self._eval_sums = row if self._eval_sums is None else self._eval_sums + row
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Data parallelism averages gradients over the ranks while the divisor counts the tokens of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _plain_loss(self, model, inputs, return_outputs, num_items_in_batch):
        outputs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = outputs[0] if return_outputs else outputs
        if self.model.training:
            self._step_log.add(inputs, loss.detach()[None], 1, self._training_flops_per_token(inputs))
        if self.args.cross_entropy_weight != 1:
            loss = loss * self.args.cross_entropy_weight
        return (loss, outputs[1]) if return_outputs else loss

    def _loss_and_sums(self, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Run both models and return the weighted sum over tokens and the sums of the terms, detached."""
        student = self.accelerator.unwrap_model(self.model)
        positions = supervised_positions(inputs["labels"])
        next_tokens = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
        weights = self._streams.token_weights(next_tokens)
        # Data-dependent sizes are read before the models are queued on the device, so that the read does not wait.
        rows, model_inputs = flat_indices(positions), decoder_inputs(inputs)
        with self.accelerator.autocast():
            targets = TeacherTargets() if self.teacher is None else self.teacher.targets(inputs, positions)
            with self._student_tap.record() as record:
                student_hidden = run_decoder(student, model_inputs)

            def logits_term(settings: LogitsSettings) -> LogitsLosses:
                return self._logits_losses(
                    student, take(student_hidden, rows), take(next_tokens, rows), targets, settings
                )

            logits = logits_term(self._logits_settings)
            aligned = alignable_positions(positions, inputs)
            aligned = aligned if weights is None else aligned * weights
            outputs = self._projected_outputs(student, record)
        values = {"cross_entropy": logits.cross_entropy, "logits": logits.divergence}
        loss = logits.total
        for term in BLOCK_TERMS:
            values[term.name] = self._block_term(term, outputs, record, targets, aligned)
            loss = loss + term.weight(self.args) * values[term.name]
        if self._gradient_norms_are_due():
            self._step_log.measure_gradient_norms(self._weighted_terms(logits_term, values), student, positions.sum())
        return loss, torch.stack([*(values[term.name].detach() for term in TERMS), logits.agreement])

    def _logits_losses(self, student, hidden, next_tokens, targets: TeacherTargets, settings) -> LogitsLosses:
        head = student.get_output_embeddings()

        def inside_the_head(hidden: torch.Tensor) -> LogitsLosses:
            return logits_losses(
                hidden,
                head.weight,
                next_tokens,
                settings,
                teacher_logits=targets.logits,
                temperature=self._streams.temperatures(next_tokens),
                token_weights=self._streams.token_weights(next_tokens),
                allowed_ids=self._streams.allowed_ids(next_tokens),
            )

        # Sharded parameters are gathered only inside the forward pass of their own module.
        return call_inside(head, head, inside_the_head, hidden)

    def _projected_outputs(self, student, record: TapRecord) -> dict[int, torch.Tensor]:
        """Return the outputs of the student's blocks, projected to the teacher's width."""
        projectors = getattr(student, PROJECTORS_NAME, None)
        if projectors is None:
            return record.block_outputs
        return {block: projectors[str(block)](output) for block, output in record.block_outputs.items()}

    def _block_term(
        self, term: LossTerm, outputs: dict, record: TapRecord, targets: TeacherTargets, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean of a term over its pairs of blocks."""
        student, teacher = {
            "block_outputs": (outputs, targets.block_outputs),
            "attention_inputs": (record.attention_inputs, targets.attention_inputs),
        }[term.reads]
        pairs = term.pairs(self.args, self.layer_map)
        loss = torch.zeros((), device=weights.device)
        for teacher_block, student_block in pairs:
            pair = BlockPair(student[student_block], teacher[teacher_block], weights, self.args, self._relation_heads)
            loss = loss + term.distance(pair)
        return loss / max(1, len(pairs))

    def _weighted_terms(
        self, logits_term: Callable, values: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, weighted value) of the enabled terms, each with an autograd graph of its own."""
        for term in TERMS:
            if not (weight := term.weight(self.args)):
                continue
            if term.distance is None:
                others = {other.weight_field: 0.0 for other in TERMS if other.distance is None and other is not term}
                yield term.name, logits_term(self._logits_settings._replace(**others)).total
            else:
                yield term.name, weight * values[term.name]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate the distillation loss; no logits are gathered, since `[B, T, V]` of a speech model is large."""
        if not self.args.needs_own_loss:
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
        repeated = torch.arange(min(genuine, len(labels)), len(labels), device=labels.device)
        return labels.index_fill(0, repeated, IGNORED_LABEL)

    # ---- steps ----

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Train on one micro-batch; after the last one of an optimizer step, check that all losses are finite.

        Raises:
            FloatingPointError: if a loss is not finite. The message names the term, the micro-batch and the row; the
                optimizer has not stepped.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            batch = self._step_log.close_step()
            if batch is not None:
                raise FloatingPointError(self._describe_non_finite(*batch))
        return loss

    def _describe_non_finite(self, number: int, inputs: dict, sums: torch.Tensor) -> str:
        def sums_of(row: dict) -> torch.Tensor:
            if self.args.needs_own_loss:
                return self._loss_and_sums(row)[1]
            return super(DistillationTrainer, self).compute_loss(self.model, row)[None]

        # Gathering sharded parameters needs all ranks, and the error may have occurred on this rank only.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        with torch.no_grad():
            return describe_non_finite_step(
                dict(zip(LOSS_NAMES, sums.tolist(), strict=False)),
                inputs,
                None if sharded else sums_of,
                step=self.state.global_step + 1,
                micro_batch=number,
                output_dir=self.args.output_dir,
            )

    def _gradient_norms_are_due(self) -> bool:
        if not (self.args.log_gradient_norms and self.model.training and self.accelerator.sync_gradients):
            return False
        return (self.state.global_step + 1) % self.state.logging_steps == 0

    def _training_flops_per_token(self, inputs) -> float:
        """Return the FLOPs per token: both passes of the student, and the forward pass of an online teacher."""
        if self.args.peak_tflops is None:
            return 0.0
        length = inputs["input_ids"].shape[1]
        flops = 3 * forward_flops_per_token(self.model.config, length)
        if isinstance(self.teacher, OnlineTeacher):
            flops += forward_flops_per_token(self.teacher.config, length)
        return float(flops)

    # ---- logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every enabled term, tokens per second and the optional values to the training logs."""
        if "loss" in logs and self._step_log.num_steps:
            means, extras = self._step_log.summarize(self.accelerator, self.args.peak_tflops)
            if self.args.needs_own_loss:
                logs.update(self._enabled_terms(means))
            logs.update(extras)
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Run the evaluation and add the mean of every enabled term over its tokens to the metrics."""
        self._eval_sums = None
        with self._step_log.stopwatch.paused():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if self._eval_sums is not None:
            *sums, num_tokens = self.accelerator.reduce(self._eval_sums, "sum").tolist()
            terms = self._enabled_terms([value / max(1, num_tokens) for value in sums])
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
            if self.args.logits_weight:
                output.metrics[f"{metric_key_prefix}_{AGREEMENT_NAME}"] = sums[-1] / max(1, num_tokens)
        return output

    def _enabled_terms(self, values: list[float]) -> dict[str, float]:
        return {term.log_name: value for term, value in zip(TERMS, values, strict=False) if term.weight(self.args)}

    # ---- checkpoints ----

    def _save(self, output_dir=None, state_dict=None):
        # Before saving the model, which removes the projectors from the state gathered from all ranks.
        if self.args.should_save:
            student = self.accelerator.unwrap_model(self.model)
            save_projectors(student, output_dir or self.args.output_dir, state_dict)
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # A sharded checkpoint holds the projectors with the rest of the student.
        if not self.is_fsdp_enabled:
            load_projectors(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        load_projectors(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)


def _one_teacher(teacher_model, teacher_source, args: DistillationArguments):
    if not args.needs_teacher:
        return None
    if teacher_model is None and teacher_source is None:
        raise ValueError(
            "`teacher_model` is missing, but the logits, hidden or attention weight is above 0. "
            "Pass a teacher or set those weights to 0."
        )
    if teacher_model is not None and teacher_source is not None:
        raise ValueError("Found both `teacher_model` and `teacher_source`; pass only one of them.")
    return teacher_source if teacher_model is None else teacher_model


def _resolve_layer_map(student, teacher_config, layer_map, args: DistillationArguments) -> LayerMap | None:
    if not args.needs_layer_map:
        return None
    depths = teacher_config.num_hidden_layers, student.config.num_hidden_layers
    layer_map = LayerMap.every_third_ending_last(*depths) if layer_map is None else layer_map
    layer_map.check_depths(*depths)
    return layer_map
