"""Teacher correction: fine-tune the teacher on the target domain before distillation (arXiv 2506.23670).

The teacher is fine-tuned with LoRA on the target corpus and the update is merged into its weights, so that the
corrected teacher is an ordinary model of its class.
"""

from collections.abc import Callable, Sequence

from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .arguments import CorrectionArguments
from .language_model_trainer import LanguageModelTrainer


def correct_teacher(
    teacher: PreTrainedModel,
    train_dataset: Dataset,
    data_collator: Callable,
    arguments: CorrectionArguments,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
) -> PreTrainedModel:
    """Fine-tune `teacher` with LoRA, merge the update into its weights and save it to `arguments.output_dir`.

    Args:
        teacher ([`~transformers.PreTrainedModel`]): a causal LM. It is modified in place and returned, so that only
            one copy of the model is in memory.
        train_dataset (`torch.utils.data.Dataset`): items `{"input_ids": list[int]}` of the target domain.
        data_collator (`Callable`): collates items into a batch of `input_ids`, `attention_mask` and `labels`.
        arguments ([`CorrectionArguments`]): LoRA settings and the fields of `TrainingArguments`. Set
            `resume_from_checkpoint` to resume an interrupted correction.
        processing_class (*optional*): tokenizer or processor to save next to the weights.

    Returns:
        [`~transformers.PreTrainedModel`]: the corrected teacher: the object that was passed, with all parameters
        trainable.

    Raises:
        ImportError: if `peft` is not installed.
        ValueError: if no layer has one of the names in `arguments.lora_target_modules`, or a token id to train is
            outside the teacher's vocabulary.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("Teacher correction needs peft: pip install tinywave[train].") from error
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=list(arguments.lora_target_modules),
        trainable_token_indices=_trainable_rows(teacher, arguments.trainable_token_indices),
    )
    trainer = LanguageModelTrainer(
        model=get_peft_model(teacher, lora),
        args=arguments,
        train_dataset=train_dataset,
        data_collator=data_collator,
        processing_class=processing_class,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    corrected = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    corrected.requires_grad_(True)
    if arguments.should_save:
        corrected.save_pretrained(arguments.output_dir)
        if processing_class is not None:
            processing_class.save_pretrained(arguments.output_dir)
    return corrected


def _trainable_rows(teacher: PreTrainedModel, ids: Sequence[int] | None) -> dict[str, list[int]] | None:
    """Return the rows to train, by layer name: of the embedding and, unless they are tied, of the LM head."""
    if ids is None:
        return None
    ids, vocab_size = sorted(set(ids)), teacher.config.vocab_size
    outside = [index for index in ids if not 0 <= index < vocab_size]
    if outside:
        raise ValueError(
            f"`trainable_token_indices` has {outside[:5]}, and the teacher's ids are 0 to {vocab_size - 1}."
        )
    layers = {id(layer.weight): layer for layer in (teacher.get_output_embeddings(), teacher.get_input_embeddings())}
    names = {id(module): name.rpartition(".")[2] for name, module in teacher.named_modules()}
    return {names[id(layer)]: ids for layer in layers.values()}
