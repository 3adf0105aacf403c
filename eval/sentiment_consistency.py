"""Sentiment kept between a prompt and its continuation: the speech-text sentiment preservation (STSP) of SPIRIT-LM.

A prompt of known sentiment, spoken or written, is continued in speech or in text, and a classifier names the sentiment
of the continuation (Nguyen et al. 2024, arXiv 2402.05755, section 5). SPIRIT-LM's classifier of speech is not
published. Ours is the codec's own style encoder, its styles read as sentiments by [`STYLE_TO_SENTIMENT`], and so these
numbers compare models that share a codec, and no others. The classifier of text is the caller's.

    prompts = styled_to_sentiment(read_styled_prompts(folder, SENTIMENT_STYLES, max_per_style=50))
    record = evaluate_sentiment(pipeline, prompts, SpeechSentiment(style_encoder))
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import soxr

from ..pipeline_tinywave import TinyWavePipeline
from ..style_encoder_tinywave import MIN_SECONDS, StyleEncoder
from .generative import GenerationSettings, Prompt, continue_each
from .prosody import StyledPrompt
from .statistics import NUM_RESAMPLES, accuracy_interval, standard_error

SENTIMENTS = ("positive", "neutral", "negative")
CHANCE = 1 / len(SENTIMENTS)
STYLE_TO_SENTIMENT = {
    "happy": "positive",
    "sad": "negative",
    "angry": "negative",
    "base": "neutral",
    "breathy": "neutral",
}
"""Style of a voice -> sentiment. The mapping is ours."""
SENTIMENT_STYLES = ("happy", "base", "sad")
"""One style of each sentiment, so that prompts of them are balanced and chance is 1/3 for every way of guessing."""

CONVENTION = {
    "credit": "1 where the continuation's sentiment is the prompt's, else 0; a continuation without sentiment has 0",
    "interval": "95 %, percentile bootstrap over prompts",
    "num_resamples": NUM_RESAMPLES,
}


@dataclass(frozen=True, eq=False)
class SentimentPrompt(Prompt):
    """A prompt whose `sentiment` is known: "positive", "neutral" or "negative"."""

    sentiment: str


class SpeechSentiment:
    """Classifier of speech: the sentiment of most seconds of a recording, of equals the one that comes first.

    Args:
        style_encoder ([`StyleEncoder`]): with names of its styles.

    Raises `ValueError` for styles without names, and for a name that has no sentiment.
    """

    def __init__(self, style_encoder: StyleEncoder):
        names = style_encoder.config.style_names or []
        if unknown := [name for name in names if name not in STYLE_TO_SENTIMENT] or not names:
            raise ValueError(
                f"Found a style encoder of the styles {names}, of which {unknown} have no sentiment; expected names "
                f"among {sorted(STYLE_TO_SENTIMENT)}."
            )
        self.style_encoder = style_encoder
        self._sentiments = [STYLE_TO_SENTIMENT[name] for name in names]

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str | None:
        """Waveform `(samples,)` at any rate -> sentiment; None for less than 80 ms."""
        if sampling_rate != self.style_encoder.sampling_rate:
            waveform = soxr.resample(waveform, sampling_rate, self.style_encoder.sampling_rate)
        if len(waveform) < MIN_SECONDS * self.style_encoder.sampling_rate:
            return None
        sentiments = [self._sentiments[style] for style in self.style_encoder.encode([waveform])[0].tolist()]
        return max(sentiments, key=sentiments.count)


def styled_to_sentiment(prompts: Sequence[StyledPrompt]) -> list[SentimentPrompt]:
    """Spoken prompts of known style -> prompts of known sentiment. `ValueError` for a style without sentiment."""
    if unknown := sorted({prompt.style for prompt in prompts} - set(STYLE_TO_SENTIMENT)):
        raise ValueError(f"Found prompts of the style {unknown[0]!r}; expected one of {sorted(STYLE_TO_SENTIMENT)}.")
    return [
        SentimentPrompt(prompt.id, ("speech", prompt.waveform), STYLE_TO_SENTIMENT[prompt.style]) for prompt in prompts
    ]


def sentiment_transfer(
    prompt_labels: Sequence[str], continuation_labels: Sequence[str | None], *, seed: int = 0
) -> dict:
    """How often the sentiment of a prompt is that of its continuation.

    Args:
        prompt_labels: "positive", "neutral" or "negative".
        continuation_labels: the same of every continuation; None where there is nothing to classify, which counts as
            a sentiment that was not kept.
        seed (`int`, default 0): of the bootstrap over prompts.

    Returns:
        `dict`, JSON-ready: "accuracy", "n", "standard_error" (None for one prompt), "ci95", "chance" (1/3),
        "accuracy_by_label" (of the prompts of each label that there is), "balanced_accuracy" (the mean of these, which
        for prompts of unequal numbers is the one to compare with chance), "confusion" {label of the prompt: {label of
        the continuation, or "none": number}} and "num_unlabelled".

    Raises `ValueError` for different numbers of labels, none, or an unknown one.
    """
    numbers = len(prompt_labels), len(continuation_labels)
    if numbers[0] != numbers[1] or not prompt_labels:
        raise ValueError("Found {} labels of prompts and {} of continuations; expected one each.".format(*numbers))
    labels = {*prompt_labels, *(label for label in continuation_labels if label is not None)}
    if unknown := sorted(labels.difference(SENTIMENTS), key=str):
        raise ValueError(f"Found the label {unknown[0]!r}; expected one of {SENTIMENTS}.")
    pairs = list(zip(prompt_labels, continuation_labels, strict=True))
    credits = [float(prompt == continuation) for prompt, continuation in pairs]
    counts = Counter(pairs)
    by_label = {
        label: counts[label, label] / prompt_labels.count(label) for label in SENTIMENTS if label in prompt_labels
    }
    return {
        "accuracy": sum(credits) / len(credits),
        "n": len(credits),
        "standard_error": standard_error(credits),
        "ci95": accuracy_interval(credits, seed=seed),
        "chance": CHANCE,
        "accuracy_by_label": by_label,
        "balanced_accuracy": sum(by_label.values()) / len(by_label),
        "confusion": {
            label: {column or "none": counts[label, column] for column in (*SENTIMENTS, None)} for label in by_label
        },
        "num_unlabelled": continuation_labels.count(None),
    }


def evaluate_sentiment(
    pipeline: TinyWavePipeline,
    prompts: Sequence[SentimentPrompt],
    classify_speech: Callable[[np.ndarray, int], str | None],
    *,
    classify_text: Callable[[str], str | None] | None = None,
    output_modality: str = "speech",
    settings: GenerationSettings | None = None,
) -> dict:
    """Continue prompts of known sentiment, and measure how often the sentiment is kept.

    Args:
        pipeline: of the model.
        prompts: all spoken or all written, or mixed; how many of each is recorded.
        classify_speech: waveform, sampling rate -> sentiment, such as [`SpeechSentiment`].
        classify_text (*optional*): text -> sentiment; text continuations and written prompts need it.
        output_modality (`str`, default "speech"): of the continuations, "speech" or "text".
        settings (default [`GenerationSettings`]): how prompts are continued; each is read whole.

    Returns:
        What [`sentiment_transfer`] returns, and "classifier" (the same of the prompts themselves as the classifier
        hears or reads them: the most that can be expected), "output_modality", "settings", "convention", and "rows":
        of every prompt "id", "modality", "sentiment", "prompt_classified" and "continuation_classified".

    Raises `ValueError` for text without a classifier of it.
    """
    settings = settings or GenerationSettings()
    has_text = output_modality == "text" or any(prompt.content[0] == "text" for prompt in prompts)
    if has_text and classify_text is None:
        raise ValueError("Found text to classify and no classify_text; give a classifier of text.")

    def classify(modality: str, content: str | np.ndarray, sampling_rate: int = pipeline.codec.input_sampling_rate):
        if not len(content):
            return None
        return classify_text(content) if modality == "text" else classify_speech(content, sampling_rate)

    rows = []
    for item in continue_each(pipeline, prompts, settings, output_modality):
        new = item.text if output_modality == "text" else item.waveform
        rows.append(
            {
                "id": item.prompt.id,
                "modality": item.prompt.content[0],
                "sentiment": item.prompt.sentiment,
                "prompt_classified": classify(*item.prompt.content),
                "continuation_classified": classify(output_modality, new, item.sampling_rate),
            }
        )
    known = [row["sentiment"] for row in rows]
    kept, classifier = (
        sentiment_transfer(known, [row[name] for row in rows], seed=settings.seed)
        for name in ("continuation_classified", "prompt_classified")
    )
    return kept | {
        "classifier": classifier,
        "output_modality": output_modality,
        "settings": asdict(settings),
        "convention": CONVENTION,
        "rows": rows,
    }
