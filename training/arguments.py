"""Training arguments of teacher correction and distillation, on top of `transformers.TrainingArguments`."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from .terms import TERMS, TermArguments, check_terms


@dataclass
class DistillationArguments(TermArguments, TrainingArguments):
    """Training arguments of [`DistillationTrainer`].

    Every weight multiplies the mean of its loss term over the supervised tokens; a term of weight 0 is not computed.
    The paper (arXiv 2506.23670) publishes neither the weights nor the temperature. The defaults are equal weights and
    the common temperature of 2.

    Raises:
        ValueError: if a setting is out of range, or would silently disable a loss term.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "stream_weights", "stream_temperatures"]

    stream_weights: dict | str | None = field(
        default=None,
        metadata={
            "help": "Factor on every loss term per stream of the target: text, unit, pitch or style; 1 if absent."
        },
    )
    stream_temperatures: dict | str | None = field(
        default=None,
        metadata={"help": "Temperature of the logits term per stream of the target; `temperature` if absent."},
    )
    restrict_logits_to_stream: bool = field(
        default=False,
        metadata={"help": "Compare logits over the ids of the target's stream only, instead of the whole vocabulary."},
    )
    log_gradient_norms: bool = field(
        default=False,
        metadata={
            "help": "Log the gradient norm of each weighted term on the last micro-batch before a log, at the cost of "
            "one additional backward pass per term."
        },
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={
            "help": "Dense peak of one device in TFLOP/s; if given, the share of it that the models use is logged."
        },
    )
    plot_loss_curve: bool = field(
        default=False, metadata={"help": "Plot every logged loss to loss_curve.png in the output folder at the end."}
    )
    # The filter of transformers reads the loss back from the device at every micro-batch, and hides non-finite losses
    # from the logs; here they stop the run.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops the run."})

    def __post_init__(self):
        check_terms(self)
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ValueError(f"`peak_tflops` must be a positive number of TFLOP/s; found {self.peak_tflops}.")
        super().__post_init__()
        self._check_streams()
        if self.needs_own_loss:
            self._check_compatibility()

    @property
    def needs_teacher(self) -> bool:
        """Whether any enabled term compares the student with a teacher."""
        return any(term.needs_teacher and term.weight(self) for term in TERMS)

    @property
    def needs_own_loss(self) -> bool:
        """Whether the loss is more than the plain cross-entropy of transformers."""
        return self.needs_teacher or bool(self.stream_weights)

    @property
    def needs_layer_map(self) -> bool:
        """Whether any enabled term compares blocks."""
        return any(term.distance is not None and term.weight(self) for term in TERMS)

    def _check_streams(self) -> None:
        for name, bound in (("stream_weights", "at least 0"), ("stream_temperatures", "above 0")):
            for stream, value in (getattr(self, name) or {}).items():
                if not math.isfinite(value) or value < 0 or (value == 0 and bound == "above 0"):
                    raise ValueError(f"`{name}` of {stream!r} must be finite and {bound}; found {value}.")

    def _check_compatibility(self) -> None:
        checkpointing_kwargs = self.activation_checkpointing_kwargs or {}
        if self.activation_checkpointing and checkpointing_kwargs.get("use_reentrant"):
            raise ValueError(
                "Reentrant activation checkpointing silently drops the gradient of the attention term. "
                "Set activation_checkpointing_kwargs={'use_reentrant': False}."
            )
        if self.torch_compile:
            raise ValueError("`torch_compile` does not support the recording of activations; set it to False.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}; set it to 0, because distillation "
                "already has soft targets."
            )


@dataclass
class CorrectionArguments(TrainingArguments):
    """Training arguments of [`correct_teacher`], which fine-tunes the teacher with LoRA on the distillation domain.

    The paper publishes no LoRA settings. The defaults are rank 16, scale 2 (`lora_alpha / lora_rank`) and all linear
    layers of the blocks.

    Raises:
        ValueError: if a setting is out of range.
    """

    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA update."})
    lora_alpha: float = field(
        default=32.0, metadata={"help": "LoRA scale numerator: the update is multiplied by lora_alpha / lora_rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA update."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        metadata={"help": "Names of the linear layers to adapt; by default all those of Llama's blocks."},
    )
    trainable_token_indices: list[int] | None = field(
        default=None,
        metadata={
            "help": "Token ids whose rows of the embedding and of the LM head are trained in full, such as those of "
            "new speech tokens; none by default."
        },
    )

    def __post_init__(self):
        if self.lora_rank < 1:
            raise ValueError(f"`lora_rank` must be at least 1; found {self.lora_rank}.")
        if not self.lora_target_modules:
            raise ValueError("`lora_target_modules` is empty: name at least one linear layer.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must be in [0, 1); found {self.lora_dropout}.")
        if self.trainable_token_indices is not None and not self.trainable_token_indices:
            raise ValueError("`trainable_token_indices` is empty: name at least one id, or leave it out.")
        super().__post_init__()
