"""Training of a language model on units and text: the nano teachers, and students without distillation."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from ..configuration_tinywave import TinyWaveConfig
from ..data.collators import CausalLanguageModelCollator
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .checkpoints import last_checkpoint
from .language_model_trainer import LanguageModelTrainer


def train_language_model(
    model: TinyWaveForCausalLM | TinyWaveConfig,
    train_dataset: Dataset,
    arguments: TrainingArguments,
    *,
    tokenizer: PreTrainedTokenizerFast,
    eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
) -> Trainer:
    """Train a language model with cross-entropy (nats per id), and save a complete model repository.

    If `arguments.output_dir` holds a checkpoint of an interrupted run, training resumes from it.

    Args:
        model ([`TinyWaveForCausalLM`] or [`TinyWaveConfig`]): the model to train, or a config, whose model is
            initialized with random weights drawn with `arguments.seed`.
        train_dataset (`torch.utils.data.Dataset`): training data.
        arguments ([`~transformers.TrainingArguments`]): `output_dir` receives the checkpoints and the repository.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): tokenizer to save next to the weights.
        eval_dataset (*optional*): evaluation data set, or several by name.

    Returns:
        [`~transformers.Trainer`]: the trainer, whose `state.log_history` holds the losses.
    """
    if isinstance(model, TinyWaveConfig):
        set_seed(arguments.seed)
        model = TinyWaveForCausalLM(model)
    trainer = LanguageModelTrainer(
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


@torch.no_grad()
def add_streams(model: TinyWaveForCausalLM, config: TinyWaveConfig) -> None:
    """Add the pitch and style tokens of another id layout to a model, without changing its existing weights.

    The rows of the new ids in the embedding and in the LM head are initialized with the mean of the unit rows, so that
    before training they are as likely as an average unit.

    Args:
        model ([`TinyWaveForCausalLM`]): the model, changed in place.
        config ([`TinyWaveConfig`]): config with the new layout; text, markers and units must have the same ids as in
            the model.

    Raises:
        ValueError: if a text, marker or unit id would change its meaning.
    """
    for name in ("text_offset", "text_vocab_size", "text_marker_id", "speech_marker_id", "unit_offset", "num_units"):
        if getattr(config, name) != getattr(model.config, name):
            raise ValueError(
                f"`{name}` is {getattr(model.config, name)} in the model, {getattr(config, name)} in the new layout; "
                "text, markers and units must keep their ids"
            )
    model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    ranges = config.stream_ranges()
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        units = weight[ranges["unit"].start : ranges["unit"].stop].mean(0)
        for name in ranges.keys() - {"text", "unit"}:
            weight[ranges[name].start : ranges[name].stop] = units
    for name in ("pitch_offset", "num_pitch_tokens", "style_offset", "num_style_tokens"):
        setattr(model.config, name, getattr(config, name))
