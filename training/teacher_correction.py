"""Teacher correction: fit the teacher to the domain before it teaches (arXiv 2506.23670).

A LoRA fine-tune on the target corpus, merged back into the weights, so that the corrected teacher is an ordinary model
of its class.
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
        teacher ([`~transformers.PreTrainedModel`]): a causal LM. It is changed in place: the merged model is this
            object, so that a model of billions of weights is not held twice.
        train_dataset (`torch.utils.data.Dataset`): items `{"input_ids": list[int]}` of the target domain.
        data_collator (`Callable`): turns items into `input_ids`, `attention_mask` and `labels`.
        arguments ([`CorrectionArguments`]): LoRA settings and everything of `TrainingArguments`;
            `resume_from_checkpoint` continues an interrupted correction.
        processing_class (*optional*): tokenizer or processor saved beside the weights.

    Returns:
        [`~transformers.PreTrainedModel`]: the corrected teacher, of the class that was passed, trainable again.

    Raises:
        ImportError: when `peft` is not installed.
        ValueError: when no layer has one of the names in `arguments.lora_target_modules`, or an id to train is not in
            the teacher's vocabulary.
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
    """The rows to train by the name of the layer: of the embedding and, unless both are one, of the LM head."""
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
