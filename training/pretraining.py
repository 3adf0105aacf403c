"""Training of a language model on units and text: the nano teachers, and students without distillation."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from ..configuration_tinywave import TinyWaveConfig
from ..data.collators import CausalLanguageModelCollator
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .checkpoints import last_checkpoint


def train_language_model(
    model: TinyWaveForCausalLM | TinyWaveConfig,
    train_dataset: Dataset,
    arguments: TrainingArguments,
    *,
    tokenizer: PreTrainedTokenizerFast,
    eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
) -> Trainer:
    """Trains with plain cross-entropy (nats per id) and saves a complete model repository in `arguments.output_dir`.

    A configuration in place of a model starts from random weights drawn with `arguments.seed`. A run that was
    interrupted continues from its last checkpoint. Returns the trainer, whose `state.log_history` holds the losses.
    """
    if isinstance(model, TinyWaveConfig):
        set_seed(arguments.seed)
        model = TinyWaveForCausalLM(model)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=CausalLanguageModelCollator(model.config.pad_token_id),
        processing_class=TinyWaveProcessor.from_config(model.config, tokenizer),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(arguments.output_dir)))
    trainer.save_model()
    return trainer
