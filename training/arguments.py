"""The settings of teacher correction and distillation, on top of `transformers.TrainingArguments`."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

HIDDEN_LOSSES = ("cosine", "mse")


@dataclass
class DistillationArguments(TrainingArguments):
    """Settings of [`DistillationTrainer`]; every weight multiplies a mean over the supervised tokens.

    A term whose weight is 0 is not computed at all. The paper (arXiv 2506.23670) publishes neither the weights nor the
    temperature, so the defaults are equal weights and the temperature 2 of common practice.

    Raises:
        ValueError: for a setting out of its range, or one that would silently drop a loss term.
    """

    cross_entropy_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy on the data, in nats per token."}
    )
    logits_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of temperature^2 * KL(teacher || student) over the vocabulary, in nats per token."},
    )
    hidden_weight: float = field(
        default=1.0, metadata={"help": "Weight of the hidden-state distance, averaged over the mapped blocks."}
    )
    attention_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of KL(teacher || student) between attention rows, averaged over mapped blocks and heads."
        },
    )
    temperature: float = field(
        default=2.0, metadata={"help": "Temperature that softens both distributions of the logits term; > 0."}
    )
    hidden_loss: str = field(
        default="cosine",
        metadata={
            "help": "Distance between hidden states: 'cosine' (1 - cos, the paper's) or 'mse'.",
            "choices": list(HIDDEN_LOSSES),
        },
    )
    logits_chunk_size: int = field(
        default=2048,
        metadata={"help": "Tokens whose logits are held at once. Smaller saves memory, larger saves little time."},
    )

    def __post_init__(self):
        self._check_weights()
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be a positive number; found {self.temperature}.")
        if self.hidden_loss not in HIDDEN_LOSSES:
            raise ValueError(f"`hidden_loss` must be one of {HIDDEN_LOSSES}; found {self.hidden_loss!r}.")
        if self.logits_chunk_size < 1:
            raise ValueError(f"`logits_chunk_size` must be at least 1 token; found {self.logits_chunk_size}.")
        super().__post_init__()
        if self.needs_teacher:
            self._check_compatibility()

    @property
    def needs_teacher(self) -> bool:
        """Whether any enabled term compares the student with a teacher."""
        return self.logits_weight > 0 or self.hidden_weight > 0 or self.attention_weight > 0

    @property
    def needs_layer_map(self) -> bool:
        """Whether any enabled term compares blocks."""
        return self.hidden_weight > 0 or self.attention_weight > 0

    def _check_weights(self) -> None:
        names = ("cross_entropy_weight", "logits_weight", "hidden_weight", "attention_weight")
        for name in names:
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`{name}` must be a finite number >= 0; found {weight}.")
        if all(getattr(self, name) == 0 for name in names):
            raise ValueError(f"At least one of {', '.join(names)} must be above 0.")

    def _check_compatibility(self) -> None:
        checkpointing_kwargs = self.activation_checkpointing_kwargs or {}
        if self.activation_checkpointing and checkpointing_kwargs.get("use_reentrant"):
            raise ValueError(
                "Reentrant activation checkpointing silently drops the gradient of the attention term. "
                "Set activation_checkpointing_kwargs={'use_reentrant': False}."
            )
        if self.torch_compile:
            raise ValueError("`torch_compile` does not support the taps distillation reads; leave it off.")
        if self.label_smoothing_factor:
            raise ValueError("Distillation has soft targets already: `label_smoothing_factor` must be 0.")


@dataclass
class CorrectionArguments(TrainingArguments):
    """Settings of [`correct_teacher`]: a LoRA fine-tune of the teacher on the domain it is distilled on.

    The paper publishes no LoRA settings; the defaults are rank 16, scale 2 and all linear layers of the blocks.
    """

    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA update."})
    lora_alpha: float = field(
        default=32.0, metadata={"help": "LoRA scale numerator: the update is multiplied by lora_alpha / lora_rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA update."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        metadata={"help": "Names of the linear layers that are adapted: by default all of Llama's blocks."},
    )

    def __post_init__(self):
        if self.lora_rank < 1:
            raise ValueError(f"`lora_rank` must be at least 1; found {self.lora_rank}.")
        if not self.lora_target_modules:
            raise ValueError("`lora_target_modules` is empty: name at least one linear layer.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must be in [0, 1); found {self.lora_dropout}.")
        super().__post_init__()
