"""Prosody consistency: measure whether a continuation has the style and the pitch of its prompt.

Prompts of known style are continued, and two quantities are measured: the style tokens that the model generates, and
the F0 of the generated speech. SPIRIT-LM (arXiv 2402.05755) measures the same for the sentiment of whole utterances,
with a classifier.

    prompts = read_styled_prompts(folder / "corpus", ("happy", "sad"), max_per_style=20)
    continuations = continue_prompts(TinyWavePipeline(model, processor, codec), prompts, max_new_tokens=200)
    record = measure_prosody(continuations)
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import soxr
import torch
from tqdm import tqdm

from ..data.audio_io import load_audio
from ..data.corpus import SAMPLING_RATE, CorpusError, iterate_corpus
from ..data.f0_extraction import load_f0_extractor
from ..f0_tinywave import MIN_SECONDS, F0Extractor
from ..pipeline_tinywave import GeneratedSegment, TinyWavePipeline
from .statistics import NUM_RESAMPLES, bootstrap_sums, percentile_interval, ratio_interval


@dataclass(frozen=True, eq=False)
class StyledPrompt:
    """The beginning of a recording whose style is known.

    `id`: of the recording. `style`: its name. `waveform`: float32 mono at 16 kHz.
    """

    id: str
    style: str
    waveform: np.ndarray


@dataclass(frozen=True)
class StyledContinuation:
    """The continuation of a prompt of known style.

    Args:
        prompt_id, prompt_style (`str`): of the prompt.
        styles (`tuple[str, ...]`): names of the style tokens generated, in their order; it may be none.
        mean_f0 (`float` or None): over the voiced frames of the continuation, Hz; None without a voiced frame.
    """

    prompt_id: str
    prompt_style: str
    styles: tuple[str, ...]
    mean_f0: float | None


def read_styled_prompts(
    corpus_folder: str | os.PathLike,
    styles: Collection[str],
    max_per_style: int,
    *,
    split: str = "test",
    num_sentences: int = 1,
) -> list[StyledPrompt]:
    """Read the first sentences of documents of a corpus, of those that go on after them, style by style.

    Args:
        corpus_folder: what `prepare_corpus` wrote.
        styles: names of styles, such as ("happy", "sad").
        max_per_style (`int`): documents of each style at most, in the order of the corpus.
        split (`str`, default "test"): of the corpus.
        num_sentences (`int`, default 1): length of a prompt.

    Raises `CorpusError` for a damaged corpus and where a style has no such document.
    """
    counts: Counter[str] = Counter()
    prompts = []
    for row in iterate_corpus(corpus_folder, ["id", "split", "sentences", "words", "style", "audio"]):
        is_wanted = row["split"] == split and row["style"] in styles and len(row["sentences"]) > num_sentences
        if is_wanted and counts[row["style"]] < max_per_style:
            counts[row["style"]] += 1
            num_words = sum(len(sentence.split()) for sentence in row["sentences"][:num_sentences])
            waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=f"{corpus_folder}: {row['id']}")
            waveform = waveform[: int(row["words"][num_words]["start"] * SAMPLING_RATE)]
            prompts.append(StyledPrompt(row["id"], row["style"], waveform))
    if missing := [style for style in styles if not counts[style]]:
        raise CorpusError(
            f"{corpus_folder} has no document of the style {missing[0]!r} in its split {split!r} that goes on after "
            f"{num_sentences} sentences; prepare a corpus with some."
        )
    order = list(styles)
    return sorted(prompts, key=lambda prompt: order.index(prompt.style))


def continue_prompts(
    pipeline: TinyWavePipeline,
    prompts: Sequence[StyledPrompt],
    *,
    f0_extractor: F0Extractor | None = None,
    seed: int = 0,
    **generation_options: Any,
) -> list[StyledContinuation]:
    """Generate a spoken continuation of every prompt, one at a time, and record its style and its pitch.

    Args:
        pipeline ([`TinyWavePipeline`]): of a model with style tokens.
        prompts: their styles are named as those of the pipeline's style encoder.
        f0_extractor (*optional*): waveform at 16 kHz -> F0 and voicing. Default: [`load_f0_extractor`].
        seed (`int`, default 0): of the sampling; prompt number i is continued with `seed + i`.
        generation_options: of [`TinyWaveForCausalLM.generate`], such as `max_new_tokens` or `do_sample`.

    Raises `ValueError` for a pipeline whose styles have no names, and for a prompt of a style that is not among them.
    """
    encoder = pipeline.codec.style_encoder
    names = (encoder.config.style_names if encoder is not None else None) or []
    if unknown := sorted({prompt.style for prompt in prompts} - set(names)):
        raise ValueError(f"Found prompts of style {unknown[0]!r}; the pipeline's style tokens are named {names}.")
    f0_extractor = f0_extractor or load_f0_extractor()
    owned = pipeline.model.config.stream_ranges()["style"]
    continuations = []
    for index, prompt in enumerate(tqdm(prompts, desc="Continuing", unit="prompt")):
        torch.manual_seed(seed + index)
        segments = pipeline([("speech", prompt.waveform)], **generation_options)
        ids = [int(token) for segment in segments for token in segment.streams.ids]
        styles = tuple(names[token - owned.start] for token in ids if token in owned)
        mean_f0 = _mean_f0(segments, f0_extractor)
        continuations.append(StyledContinuation(prompt.id, prompt.style, styles, mean_f0))
    return continuations


def _mean_f0(segments: Sequence[GeneratedSegment], f0_extractor: F0Extractor) -> float | None:
    """Mean F0 of the voiced frames of generated speech, Hz; None where nothing is voiced."""
    if not segments:
        return None
    waveform = np.concatenate([np.asarray(segment.waveform) for segment in segments])
    waveform = soxr.resample(waveform, segments[0].sampling_rate, SAMPLING_RATE)
    if len(waveform) < MIN_SECONDS * SAMPLING_RATE:
        return None
    f0, voiced = f0_extractor(waveform)
    return float(f0[voiced].mean()) if voiced.any() else None


def measure_prosody(continuations: Sequence[StyledContinuation], *, seed: int = 0) -> dict:
    """Measure how consistent the prosody of continuations is with that of their prompts.

    Args:
        continuations: of prompts of at least two styles.
        seed (`int`, default 0): of the bootstrap over prompts.

    Returns:
        `dict`, JSON-ready. Every measurement is {"value", "ci95", "n"}, with n prompts; of a difference, n of both.

        - "style": {style of the prompt: {"own_share": of its own style among the style tokens generated after it,
          "share_after_others": of the same style after prompts of all other styles, "difference": the first minus the
          second, "num_style_tokens": generated after it}};
        - "mean_f0": {style of the prompt: mean over prompts of the mean F0 of the continuation, Hz};
        - "mean_f0_difference": {"happy-sad": that of one style minus that of another, Hz}, for all pairs of styles in
          the order of the prompts;
        - "num_prompts"; "num_without_style_tokens" and "num_unvoiced", the continuations that the first two leave out;
          "convention".

        A measurement of no prompts is None.

    Raises `ValueError` for prompts of fewer than two styles.
    """
    prompt_styles = list(dict.fromkeys(item.prompt_style for item in continuations))
    if len(prompt_styles) < 2:
        raise ValueError(f"Found prompts of the styles {prompt_styles}; a comparison needs at least two.")
    f0 = {style: _f0_rows([item for item in continuations if item.prompt_style == style]) for style in prompt_styles}
    return {
        "style": {style: _style_record(continuations, style, seed) for style in prompt_styles},
        "mean_f0": {style: _measure(rows, seed) for style, rows in f0.items()},
        "mean_f0_difference": {
            f"{first}-{second}": _measure_difference(f0[first], f0[second], seed)
            for first, second in combinations(prompt_styles, 2)
        },
        "num_prompts": len(continuations),
        "num_without_style_tokens": sum(not item.styles for item in continuations),
        "num_unvoiced": sum(item.mean_f0 is None for item in continuations),
        "convention": {
            "share": "style tokens of all prompts together",
            "mean_f0": "mean over prompts of the mean over voiced frames, Hz",
            "interval": "95 %, percentile bootstrap over prompts, those of each style by themselves",
            "num_resamples": NUM_RESAMPLES,
            "seed": seed,
        },
    }


def _style_record(continuations: Sequence[StyledContinuation], style: str, seed: int) -> dict:
    """How often `style` is generated after prompts of it, and after all others."""
    own, others = (
        _share_rows([item for item in continuations if (item.prompt_style == style) == is_own], style)
        for is_own in (True, False)
    )
    return {
        "own_share": _measure(own, seed),
        "share_after_others": _measure(others, seed),
        "difference": _measure_difference(own, others, seed),
        "num_style_tokens": int(own[1].sum()),
    }


def _share_rows(continuations: Sequence[StyledContinuation], style: str) -> np.ndarray:
    """`(2, prompts)`: style tokens that are `style`, and all style tokens, of each continuation that has any."""
    counts = [(item.styles.count(style), len(item.styles)) for item in continuations if item.styles]
    return np.array(counts, dtype=np.float64).reshape(-1, 2).T


def _f0_rows(continuations: Sequence[StyledContinuation]) -> np.ndarray:
    """`(2, prompts)`: mean F0 and 1 of each continuation that is voiced."""
    values = [(item.mean_f0, 1.0) for item in continuations if item.mean_f0 is not None]
    return np.array(values, dtype=np.float64).reshape(-1, 2).T


def _measure(rows: np.ndarray, seed: int) -> dict | None:
    """Sum of the first row / sum of the second, with its interval; None without prompts."""
    if rows.shape[1] == 0:
        return None
    numerator, denominator = rows.sum(axis=1)
    ci95 = ratio_interval(*rows, seed=seed)
    return {"value": float(numerator / denominator), "ci95": ci95, "n": rows.shape[1]}


def _measure_difference(first: np.ndarray, second: np.ndarray, seed: int) -> dict | None:
    """Difference of two such ratios over different prompts, which are resampled independently."""
    if first.shape[1] == 0 or second.shape[1] == 0:
        return None
    ratios = [rows[0].sum() / rows[1].sum() for rows in (first, second)]
    is_resampled = min(first.shape[1], second.shape[1]) > 1
    ci95 = percentile_interval(_resample(first, seed) - _resample(second, seed + 1)) if is_resampled else None
    return {"value": float(ratios[0] - ratios[1]), "ci95": ci95, "n": [first.shape[1], second.shape[1]]}


def _resample(rows: np.ndarray, seed: int) -> np.ndarray:
    """The ratio of the sums of two rows in every resample of prompts, `(NUM_RESAMPLES,)`."""
    numerators, denominators = bootstrap_sums(rows, seed=seed)
    return numerators / denominators
