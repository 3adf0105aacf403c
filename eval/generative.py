"""Evaluation of generated speech: continuations of short prompts, transcribed and measured.

A prompt is the first 3 s of a recording. The model generates a spoken continuation, which is transcribed. The measures
are the perplexity of the transcript under a text language model (generative perplexity) and its repetition
(auto-BLEU), both as in Lakhotia et al. 2021 (arXiv 2102.01192), the repetition of the units, the speaker similarity to
the prompt, and a predicted mean opinion score of naturalness.

    recordings = read_recordings("assets/audio/librivox")
    record = evaluate_generation(pipeline, recordings, judge=load_judge(folder), transcribe=WhisperTranscriber())

A continuation whose transcript is empty has neither perplexity nor auto-BLEU. The number of such continuations is
reported next to these measures, which would otherwise favor a model that generates no speech.
"""

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..codec_tinywave import SpeechCodec
from ..loading_tinywave import load_pretrained
from ..pipeline_tinywave import TinyWavePipeline
from ..tokenization_tinywave import Segment, deduplicate
from .codec_measures import is_measured, measured_ratio, not_measured
from .codec_table import format_number, format_share
from .resynthesis import ENCODER_SAMPLING_RATE, SpokenText, evaluate_resynthesis, normalize_words
from .scoring import SequenceScore, score_sequences
from .speaker_similarity import SpeakerEncoder, speaker_similarity
from .speech_quality import DistillMos
from .statistics import NUM_RESAMPLES, ratio_interval

REPETITION_LENGTH = 4
CONVENTION = {
    "perplexity": "exp(mean over utterances of mean NLL); transcript as heard, after BOS where the judge has one",
    "auto_bleu_2": "geometric mean of the shares of words and of word pairs said again, mean over utterances; words "
    "normalised as for the word error rate",
    "unit_repetition": f"1 - distinct / all {REPETITION_LENGTH}-grams of units without repeats, mean over utterances",
    "empty": "without words: in neither perplexity nor auto_bleu_2, counted in num_empty_transcripts",
    "interval": "95 %, percentile bootstrap over utterances",
    "num_resamples": NUM_RESAMPLES,
}

_SOUND_MEASURES = {
    "unit_repetition": "nothing was said",
    "seconds": "nothing was said",
    "speaker_similarity": "no speaker encoder was given, or nothing was said",
    "mean_opinion_score": "no opinion score was given, or nothing was said",
}
"""Measures of each single continuation, and the reason that is recorded if one is missing."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of prompts and sampling; the defaults are those commonly used for generative perplexity.

    Args:
        prompt_seconds (`float`, defaults to 3.0): duration of the prompt that is cut from each recording, in seconds.
        max_new_tokens (`int`, defaults to 150): maximum number of new tokens, all streams together.
        temperature (`float`, defaults to 0.8): sampling temperature.
        top_k (`int`, defaults to 25): number of most likely tokens to sample from.
        seed (`int`, defaults to 0): prompt `i` is continued with the seed `seed + i` in a batch of its own, so that
            its continuation does not depend on the other prompts.

    Raises:
        ValueError: if a setting is out of range.
    """

    prompt_seconds: float = 3.0
    max_new_tokens: int = 150
    temperature: float = 0.8
    top_k: int = 25
    seed: int = 0

    def __post_init__(self):
        # Written as `not (... >= ...)`, so that NaN is rejected as well.
        if not (self.prompt_seconds >= 0.08 and self.temperature > 0 and self.max_new_tokens >= 1 and self.top_k >= 1):
            raise ValueError(
                f"Found {self}; expected prompts of at least 0.08 s, a temperature above 0, and at least 1 new token "
                "and top-k of 1."
            )

    @property
    def generation_options(self) -> dict:
        """Keyword arguments of [`TinyWaveForCausalLM.generate`]."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt.

    Attributes:
        id (`str`): unique identifier.
        content (`tuple`): ("speech", waveform at 16 kHz) or ("text", str).
    """

    id: str
    content: Segment


@dataclass(frozen=True, eq=False)
class Continuation:
    """The continuation that a model generated after a prompt.

    Attributes:
        prompt ([`Prompt`]): the prompt.
        text (`str`): generated text; "" if there is none.
        waveform (`np.ndarray` of shape `(samples,)`): generated speech at `sampling_rate` (Hz); empty if none.
        units (`tuple[int, ...]`): units of the generated speech, without repeats.
    """

    prompt: Prompt
    text: str
    waveform: np.ndarray
    sampling_rate: int
    units: tuple[int, ...]

    def resampled(self) -> np.ndarray:
        """Return the waveform at 16 kHz."""
        return soxr.resample(self.waveform, self.sampling_rate, ENCODER_SAMPLING_RATE)


@dataclass(frozen=True, eq=False)
class Judge:
    """A causal text language model that scores transcripts, its tokenizer, and its name in records."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def to_record(self) -> dict:
        """Return {"name", "parameters", "bos"}; "bos" is whether texts begin with BOS."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"name": self.name, "parameters": parameters, "bos": self.tokenizer.bos_token_id is not None}


@dataclass(frozen=True)
class GenerativePerplexity:
    """Perplexity of texts under a judge.

    Args:
        value (`float` or None): exp(mean over texts of mean NLL); None if no text has a target.
        ci95 (`list[float]` or None): 95 % percentile bootstrap interval over texts; None for fewer than two texts.
        n (`int`): number of texts with a target.
        num_unscored (`int`): number of texts without a target: empty texts and, if the judge has no BOS, texts of a
            single token.
        scores (`tuple[SequenceScore | None, ...]`): score of each text; None if it has no target.
    """

    value: float | None
    ci95: list[float] | None
    n: int
    num_unscored: int
    scores: tuple[SequenceScore | None, ...]


def load_judge(path: str | os.PathLike) -> Judge:
    """Load a judge, the text language model that scores transcripts.

    Args:
        path: local folder of a causal language model with its tokenizer, or a GGUF file.

    Returns:
        [`Judge`].

    Raises:
        FileNotFoundError: if `path` is neither.
        ModuleNotFoundError: for a GGUF file, if the package gguf is not installed.
    """
    path = Path(path)
    is_gguf = path.suffix == ".gguf"
    if not (path if is_gguf else path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is not a language model; pass a folder with config.json and a tokenizer, or a .gguf file"
        )
    if is_gguf and importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"{path} needs the package gguf; run: pip install gguf")
    folder, options = (path.parent, {"gguf_file": path.name}) if is_gguf else (path, {})
    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32, **options)
    return Judge(path.stem if is_gguf else path.name, model, AutoTokenizer.from_pretrained(folder, **options))


def auto_bleu(token_sequences: Sequence[Sequence[Hashable]], n: int = 2) -> list[float]:
    """Compute auto-BLEU, the repetition within each sequence, from 0 (no repetition) to 1 (everything is repeated).

    The definition is that of Lakhotia et al. 2021 (arXiv 2102.01192): with NG_k(u) the bag of k-grams of u,
    AutoBLEU(u, k) is the share of s in NG_k(u) that also occur in NG_k(u) without s; the value is the geometric mean
    over k = 1 .. n. The published number is the mean over the sequences. A sequence of fewer than n tokens has no
    n-gram that could repeat, and a value of 0.

    The code published with the paper does not count a k-gram as repeated by one that overlaps it, so that "no no no"
    has 0 there and 1 here; the two agree for sequences in which no word occurs three times in a row.

    Args:
        token_sequences: sequences of words or other hashable tokens.
        n (`int`, defaults to 2): maximum length k of the k-grams.

    Returns:
        `list[float]`: the value of each sequence.

    Raises:
        ValueError: if `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"Found n = {n}; expected n-grams of at least one token.")
    return [
        math.prod(_repeated_share(_count_ngrams(tokens, length)) for length in range(1, n + 1)) ** (1 / n)
        for tokens in token_sequences
    ]


def sequence_repetition(tokens: Sequence[Hashable], n: int = REPETITION_LENGTH) -> float:
    """Return 1 - distinct / all n-grams, seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319).

    Args:
        tokens: a sequence of hashable tokens.
        n (`int`, *optional*): length of the n-grams. Default: `REPETITION_LENGTH`.

    Returns:
        `float` from 0 to 1; 0 for fewer than `n` tokens.
    """
    counts = _count_ngrams(tokens, n)
    return 1 - len(counts) / counts.total() if counts else 0.0


def _count_ngrams(tokens: Sequence[Hashable], length: int) -> Counter:
    return Counter(zip(*(tokens[start:] for start in range(length)), strict=False))


def _repeated_share(counts: Counter) -> float:
    return sum(count for count in counts.values() if count > 1) / counts.total() if counts else 0.0


def generative_perplexity(
    texts: Sequence[str], model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8, seed: int = 0
) -> GenerativePerplexity:
    """Compute the perplexity of texts under a language model: exp(mean over texts of mean negative log-likelihood).

    Each text is scored separately, after BOS if the tokenizer has one; without BOS its first token is not scored. EOS
    is neither added nor scored.

    Args:
        texts: texts, such as transcripts. A text without a target is counted and left out of the mean.
        model, tokenizer: the judge, a causal language model and its tokenizer.
        batch_size (`int`, defaults to 8): texts per forward pass.
        seed (`int`, defaults to 0): seed of the bootstrap.

    Returns:
        [`GenerativePerplexity`].

    Raises:
        ScoringError: if a text is longer than the judge's context, or a log-likelihood is NaN.
    """
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [prefix + tokenizer(text.strip(), add_special_tokens=False)["input_ids"] for text in texts]
    scored = [index for index, row in enumerate(rows) if len(row) > 1]
    scores: list[SequenceScore | None] = [None] * len(rows)
    found = score_sequences(
        model,
        [rows[index] for index in scored],
        scored_ids=range(model.config.get_text_config().vocab_size),
        batch_size=batch_size,
        names=[f"Text {index}" for index in scored],
    )
    for index, score in zip(scored, found, strict=True):
        scores[index] = score
    losses = [-score.mean_log_likelihood for score in found]
    if not losses:
        return GenerativePerplexity(None, None, 0, len(rows), tuple(scores))
    interval = ratio_interval(losses, np.ones(len(losses)), seed=seed)
    ci95 = None if interval is None else [math.exp(bound) for bound in interval]
    value = math.exp(sum(losses) / len(losses))
    return GenerativePerplexity(value, ci95, len(losses), len(rows) - len(losses), tuple(scores))


def take_prompts(recordings: Sequence[SpokenText], seconds: float = 3.0) -> tuple[list[Prompt], list[str]]:
    """Cut prompts of `seconds` from the beginning of recordings; return them and the ids of too short recordings."""
    length = round(seconds * ENCODER_SAMPLING_RATE)
    prompts = [
        Prompt(item.id, ("speech", item.waveform[:length])) for item in recordings if len(item.waveform) >= length
    ]
    return prompts, [item.id for item in recordings if len(item.waveform) < length]


def continue_each(
    pipeline: TinyWavePipeline,
    prompts: Sequence[Prompt],
    settings: GenerationSettings | None = None,
    output_modality: str = "speech",
) -> list[Continuation]:
    """Generate the continuation of every prompt, each in a batch of its own.

    Args:
        pipeline ([`TinyWavePipeline`]): pipeline of the model.
        prompts (`Sequence[Prompt]`): prompts.
        settings ([`GenerationSettings`], *optional*): sampling settings.
        output_modality (`str`, defaults to "speech"): "speech" or "text".

    Returns:
        `list[Continuation]` in the order of `prompts`.
    """
    settings = settings or GenerationSettings()
    continuations = []
    for index, prompt in enumerate(tqdm(prompts, desc="Continuing", unit="prompt")):
        torch.manual_seed(settings.seed + index)
        segments = pipeline([prompt.content], output_modality=output_modality, **settings.generation_options)
        spoken = [segment for segment in segments if segment.modality == "speech"]
        waveforms = [segment.waveform.numpy() for segment in spoken]
        units = [unit for segment in spoken for unit in deduplicate(segment.streams.units)[0].tolist()]
        continuations.append(
            Continuation(
                prompt,
                " ".join(segment.text for segment in segments if segment.modality == "text").strip(),
                np.concatenate(waveforms) if waveforms else np.zeros(0, np.float32),
                pipeline.codec.output_sampling_rate if spoken else ENCODER_SAMPLING_RATE,
                tuple(units),
            )
        )
    return continuations


def evaluate_generation(
    pipeline: TinyWavePipeline,
    recordings: Sequence[SpokenText],
    *,
    transcribe: Callable[[np.ndarray, int], str],
    judge: Judge | None = None,
    speaker_encoder: SpeakerEncoder | None = None,
    opinion_score: DistillMos | None = None,
    settings: GenerationSettings | None = None,
    keep: Callable[[Continuation], None] | None = None,
) -> dict:
    """Generate a spoken continuation of the beginning of every recording, and measure it.

    Args:
        pipeline ([`TinyWavePipeline`]): pipeline of the model.
        recordings (`Sequence[SpokenText]`): held-out recordings. Their texts are used for the word error rate of
            resynthesis and may be "".
        transcribe (`Callable`): (waveform, sampling rate) -> text, such as `WhisperTranscriber()`.
        judge, speaker_encoder, opinion_score (*optional*): models of the perplexity, the speaker similarity and the
            mean opinion score; a measure whose model is missing is not computed.
        settings ([`GenerationSettings`], *optional*): settings of prompts and sampling.
        keep (`Callable`, *optional*): called with every [`Continuation`], for example to write it to disk.

    Returns:
        `dict`, JSON-serializable. Measurements are {"value", "ci95", "n"} or {"not_measured": reason}:

        - "perplexity", "auto_bleu_2": of the transcripts;
        - "unit_repetition": of the units, see [`sequence_repetition`];
        - "speaker_similarity": cosine similarity of the speaker embeddings of prompt and continuation;
        - "mean_opinion_score": DistillMOS of the continuation;
        - "seconds": duration of a continuation;
        - "recordings": "perplexity" and "auto_bleu_2" of the whole recordings and of their resynthesis by the codec,
          and the "word_error_rate" of both: the reference values for the numbers above;
        - "n" (number of prompts), "too_short" (ids of recordings without prompt), "num_silent" (continuations without
          speech), "num_empty_transcripts" (continuations without a transcribed word), "settings", "judge",
          "convention";
        - "rows": for each prompt "id", "seed", "transcript", "log_likelihood", "num_tokens", "auto_bleu_2",
          "unit_repetition", "seconds", "speaker_similarity", "mean_opinion_score"; None if not measured.

    Raises:
        ValueError: if no recording is long enough for a prompt.
    """
    settings = settings or GenerationSettings()
    prompts, too_short = take_prompts(recordings, settings.prompt_seconds)
    if not prompts:
        raise ValueError(
            f"Found {len(recordings)} recordings, none of at least {settings.prompt_seconds} s; expected some to cut "
            "prompts from."
        )
    continuations = continue_each(pipeline, prompts, settings)
    rows = []
    for index, item in enumerate(tqdm(continuations, desc="Listening", unit="clip")):
        if keep is not None:
            keep(item)
        row = {"id": item.prompt.id, "seed": settings.seed + index}
        rows.append(row | _listen(item, transcribe, speaker_encoder, opinion_score))
    record, text_rows = _measure_texts([row["transcript"] for row in rows], judge, settings.seed)
    rows = [row | text_row for row, text_row in zip(rows, text_rows, strict=True)]
    for name, reason in _SOUND_MEASURES.items():
        record[name] = _mean_record([row[name] for row in rows], settings.seed, reason)
    kept = [item for item in recordings if item.id not in too_short]
    return record | {
        "n": len(rows),
        "too_short": too_short,
        "num_silent": sum(row["seconds"] == 0 for row in rows),
        "recordings": _recordings_record(kept, pipeline.codec, transcribe, judge, settings.seed),
        "settings": asdict(settings),
        "judge": None if judge is None else judge.to_record(),
        "convention": CONVENTION,
        "rows": rows,
    }


def _listen(
    item: Continuation,
    transcribe: Callable[[np.ndarray, int], str],
    speaker_encoder: SpeakerEncoder | None,
    opinion_score: DistillMos | None,
) -> dict:
    """Return the row of one continuation, without the measures that are computed for all together."""
    is_silent = not len(item.waveform)
    heard = item.resampled()
    has_voice = speaker_encoder is not None and np.any(heard)
    return {
        "transcript": "" if is_silent else transcribe(item.waveform, item.sampling_rate),
        "unit_repetition": None if is_silent else sequence_repetition(item.units),
        "seconds": len(item.waveform) / item.sampling_rate,
        "speaker_similarity": speaker_similarity(speaker_encoder, item.prompt.content[1], heard)
        if has_voice
        else None,
        "mean_opinion_score": None if opinion_score is None or is_silent else opinion_score.judge(heard),
    }


def _measure_texts(texts: Sequence[str], judge: Judge | None, seed: int) -> tuple[dict, list[dict]]:
    """Return perplexity and auto-BLEU of texts, and the numbers of each text."""
    words = [normalize_words(text).split() for text in texts]
    bleu = [value if said else None for value, said in zip(auto_bleu(words), words, strict=True)]
    scores: Sequence[SequenceScore | None] = [None] * len(texts)
    perplexity = not_measured("no judge was given")
    if judge is not None:
        # A transcript of punctuation alone counts as empty, as it does in auto-BLEU.
        said = [text if spoken else "" for text, spoken in zip(texts, words, strict=True)]
        result = generative_perplexity(said, judge.model, judge.tokenizer, seed=seed)
        scores = result.scores
        perplexity = {"value": result.value, "ci95": result.ci95, "n": result.n}
        if result.value is None:
            perplexity = not_measured("no word was heard")
    rows = [
        {
            "log_likelihood": None if score is None else score.log_likelihood,
            "num_tokens": None if score is None else score.num_tokens,
            "auto_bleu_2": value,
        }
        for score, value in zip(scores, bleu, strict=True)
    ]
    record = {
        "perplexity": perplexity,
        "auto_bleu_2": _mean_record(bleu, seed, "no word was heard"),
        "num_empty_transcripts": sum(not said for said in words),
    }
    return record, rows


def _mean_record(values: Sequence[float | None], seed: int, reason: str) -> dict:
    """Return the mean of the values that are not None; their number is "n"."""
    known = [value for value in values if value is not None]
    return measured_ratio(known, seed=seed) if known else not_measured(reason)


def _recordings_record(
    recordings: Sequence[SpokenText],
    codec: SpeechCodec,
    transcribe: Callable[[np.ndarray, int], str],
    judge: Judge | None,
    seed: int,
) -> dict:
    """Return the measures of the recordings and of their resynthesis, computed as for the continuations."""
    if not all(normalize_words(item.text) for item in recordings):
        return not_measured("the recordings have no transcripts")
    result = evaluate_resynthesis(recordings, codec, transcribe)
    return {
        name: _measure_texts([row[f"heard_{name}"] for row in result.rows], judge, seed)[0]
        | {"word_error_rate": asdict(getattr(result, name))}
        for name in ("original", "resynthesis")
    }


def generation_to_markdown(record: dict) -> str:
    """Return the record of [`evaluate_generation`] as a Markdown table of continuations and recordings."""
    others = record["recordings"]
    columns = [record, *(others[name] if is_measured(others) else {} for name in ("original", "resynthesis"))]
    measures = (
        ("perplexity", "Perplexity of the transcripts", format_number),
        ("auto_bleu_2", "auto-BLEU-2", format_share),
        ("word_error_rate", "Word error rate", format_share),
        ("unit_repetition", f"Repeated {REPETITION_LENGTH}-grams of units", format_share),
        ("speaker_similarity", "Speaker similarity to the prompt", format_number),
        ("mean_opinion_score", "DistillMOS (1 to 5)", format_number),
        ("seconds", "Seconds", format_number),
        ("num_empty_transcripts", "Transcripts without words", str),
        ("num_silent", "Continuations without sound", str),
    )
    lines = [f"| n = {record['n']} | continuations | recordings | their resynthesis |", "|---|---:|---:|---:|"]
    for name, label, write in measures:
        cells = [write(column[name]) if name in column else "-" for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
