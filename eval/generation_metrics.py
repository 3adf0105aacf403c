"""Computation of the `evaluate` modules of generated speech from transcripts and labels."""

import os
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from .codec_measures import measured_ratio, not_measured
from .generative import CONVENTION, Judge, auto_bleu, generative_perplexity, load_judge
from .resynthesis import normalize_words
from .sentiment_consistency import CONVENTION as SENTIMENT_CONVENTION
from .sentiment_consistency import sentiment_transfer

NO_SENTIMENT = "none"
"""Label of a continuation without words to classify."""

_CONVENTION_OF_TEXTS = ("perplexity", "auto_bleu_2", "empty", "interval", "num_resamples")


def compute_generative_perplexity(
    predictions: Sequence[str],
    *,
    model: nn.Module | str | os.PathLike | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict:
    """Compute the result of the `evaluate` module `generative_perplexity`, equal to that of `evaluate_generation`.

    Args:
        predictions: transcripts of continuations. A transcript without words counts as empty.
        model (*optional*): the judge, a causal text language model or its folder (or GGUF file). Without it the
            perplexity is not measured.
        tokenizer (*optional*): tokenizer of the judge; required if `model` is not a folder or file.
        batch_size (`int`, defaults to 8): texts per forward pass.
        seed (`int`, defaults to 0): seed of the bootstrap.

    Returns:
        `dict`, JSON-serializable: "perplexity" and "auto_bleu_2" as {"value", "ci95", "n"} or {"not_measured":
        reason}, "n", "num_empty_transcripts", "judge" and "convention".

    Raises:
        ValueError: if a model comes without its tokenizer. [`load_judge`] and [`generative_perplexity`] raise further
            errors.
    """
    judge = _to_judge(model, tokenizer)
    words = [normalize_words(text).split() for text in predictions]
    said = [text if spoken else "" for text, spoken in zip(predictions, words, strict=True)]
    perplexity = not_measured("no judge was given")
    if judge is not None:
        found = generative_perplexity(said, judge.model, judge.tokenizer, batch_size=batch_size, seed=seed)
        perplexity = {"value": found.value, "ci95": found.ci95, "n": found.n}
        if found.value is None:
            perplexity = not_measured("no word was heard")
    bleu = auto_bleu([spoken for spoken in words if spoken])
    return {
        "perplexity": perplexity,
        "auto_bleu_2": measured_ratio(bleu, seed=seed) if bleu else not_measured("no word was heard"),
        "n": len(words),
        "num_empty_transcripts": sum(not spoken for spoken in words),
        "judge": None if judge is None else judge.to_record(),
        "convention": {name: CONVENTION[name] for name in _CONVENTION_OF_TEXTS} | {"seed": seed},
    }


def _to_judge(model, tokenizer: PreTrainedTokenizerBase | None) -> Judge | None:
    if model is None:
        return None
    if isinstance(model, str | os.PathLike):
        return load_judge(model)
    if tokenizer is None:
        raise ValueError("found a model but no tokenizer; pass both, or the folder of the judge.")
    return Judge(model.config.name_or_path or type(model).__name__, model, tokenizer)


def compute_sentiment_transfer(predictions: Sequence[str], references: Sequence[str], *, seed: int = 0) -> dict:
    """Compute the result of the `evaluate` module `stsp`: that of [`sentiment_transfer`], with its "convention".

    Args:
        predictions: sentiment of each continuation; "none" if it has no words to classify.
        references: sentiment of each prompt.
        seed (`int`, defaults to 0): seed of the bootstrap.
    """
    labels = [None if label == NO_SENTIMENT else label for label in predictions]
    return sentiment_transfer(list(references), labels, seed=seed) | {"convention": SENTIMENT_CONVENTION}
