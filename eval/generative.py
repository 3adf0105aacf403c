"""What a model says when it goes on by itself: continuations of short prompts, heard and judged.

A prompt is the first 3 s of a recording. Its continuation is spoken, transcribed, and measured: how likely its words
are to a language model of text (generative perplexity) and how often they repeat (auto-BLEU), both after Lakhotia et
al. 2021 (arXiv 2102.01192); how often the units repeat, whether the voice stays, and how natural it sounds.

    recordings = read_recordings("assets/audio/librivox")
    record = evaluate_generation(pipeline, recordings, judge=load_judge(folder), transcribe=WhisperTranscriber())

A continuation in which no word is heard has neither perplexity nor auto-BLEU. It is counted beside them, for a model
that says nothing would otherwise seem perfect.
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
"""Measures of every continuation by itself, and why there may be none."""


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are cut and continued; the defaults are the usual ones of generative perplexity.

    Args:
        prompt_seconds (`float`, default 3.0): of every recording.
        max_new_tokens (`int`, default 150): tokens of all streams together.
        temperature (`float`, default 0.8), top_k (`int`, default 25): of sampling.
        seed (`int`, default 0): prompt number i is continued with `seed + i`, alone, and so always alike.

    Raises `ValueError` for a setting out of range.
    """

    prompt_seconds: float = 3.0
    max_new_tokens: int = 150
    temperature: float = 0.8
    top_k: int = 25
    seed: int = 0

    def __post_init__(self):
        # The comparisons are so that NaN is out of range as well.
        if not (self.prompt_seconds >= 0.08 and self.temperature > 0 and self.max_new_tokens >= 1 and self.top_k >= 1):
            raise ValueError(
                f"Found {self}; expected prompts of at least 0.08 s, a temperature above 0, and at least 1 new token "
                "and top-k of 1."
            )

    @property
    def generation_options(self) -> dict:
        """What [`TinyWaveForCausalLM.generate`] takes."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be continued.

    `id`: unique. `content`: ("speech", waveform at 16 kHz) or ("text", str).
    """

    id: str
    content: Segment


@dataclass(frozen=True, eq=False)
class Continuation:
    """What a model said or wrote after a prompt.

    Attributes:
        prompt ([`Prompt`]): before it.
        text (`str`): written, "" for none.
        waveform (`np.ndarray` of shape `(samples,)`): spoken, at `sampling_rate` (Hz); empty for none.
        units (`tuple[int, ...]`): of what was spoken, without repeats.
    """

    prompt: Prompt
    text: str
    waveform: np.ndarray
    sampling_rate: int
    units: tuple[int, ...]

    def resampled(self) -> np.ndarray:
        """The waveform at 16 kHz."""
        return soxr.resample(self.waveform, self.sampling_rate, ENCODER_SAMPLING_RATE)


@dataclass(frozen=True, eq=False)
class Judge:
    """A causal language model of text, and the name under which a record mentions it."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def to_record(self) -> dict:
        """{"name", "parameters", "bos": whether texts begin with BOS}."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"name": self.name, "parameters": parameters, "bos": self.tokenizer.bos_token_id is not None}


@dataclass(frozen=True)
class GenerativePerplexity:
    """Perplexity of texts under a judge.

    Args:
        value (`float` or None): exp(mean over texts of mean NLL); None where no text has a target.
        ci95 (`list[float]` or None): percentile bootstrap over texts; None for fewer than two.
        n (`int`): texts with a target.
        num_unscored (`int`): texts without: empty ones, and where the judge has no BOS those of a single token.
        scores (`tuple[SequenceScore | None, ...]`): of every text; None where unscored.
    """

    value: float | None
    ci95: list[float] | None
    n: int
    num_unscored: int
    scores: tuple[SequenceScore | None, ...]


def load_judge(path: str | os.PathLike) -> Judge:
    """Load a judge from a local folder of a causal language model with its tokenizer, or from a GGUF file.

    Raises `FileNotFoundError` where there is neither, `ModuleNotFoundError` for a GGUF file without the package gguf.
    """
    path = Path(path)
    is_gguf = path.suffix == ".gguf"
    if not (path if is_gguf else path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is no language model; name a folder with config.json and a tokenizer, or a .gguf file"
        )
    if is_gguf and importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"{path} needs the package gguf; run: pip install gguf")
    folder, options = (path.parent, {"gguf_file": path.name}) if is_gguf else (path, {})
    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32, **options)
    return Judge(path.stem if is_gguf else path.name, model, AutoTokenizer.from_pretrained(folder, **options))


def auto_bleu(token_sequences: Sequence[Sequence[Hashable]], n: int = 2) -> list[float]:
    """How much each sequence repeats itself, 0 (nothing twice) to 1 (everything).

    auto-BLEU of Lakhotia et al. 2021 (arXiv 2102.01192): with NG_k(u) the bag of k-grams of u, AutoBLEU(u, k) is the
    share of s in NG_k(u) that are found again in NG_k(u) without s; the value is the geometric mean over k = 1 .. n.
    The published number is the mean over the sequences. A sequence of fewer than n tokens has no n-gram that could
    repeat, and 0.

    The code published with the paper does not count a k-gram as repeated by one that overlaps it, so that "no no no"
    has 0 there and 1 here; without a word said three times in a row the two agree.

    Args:
        token_sequences: words, or anything else that can be counted.
        n (`int`, default 2): longest k-grams.
    """
    if n < 1:
        raise ValueError(f"Found n = {n}; expected n-grams of at least one token.")
    return [
        math.prod(_repeated_share(_count_ngrams(tokens, length)) for length in range(1, n + 1)) ** (1 / n)
        for tokens in token_sequences
    ]


def sequence_repetition(tokens: Sequence[Hashable], n: int = REPETITION_LENGTH) -> float:
    """1 - distinct / all n-grams: seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319); 0 for fewer than n tokens."""
    counts = _count_ngrams(tokens, n)
    return 1 - len(counts) / counts.total() if counts else 0.0


def _count_ngrams(tokens: Sequence[Hashable], length: int) -> Counter:
    return Counter(zip(*(tokens[start:] for start in range(length)), strict=False))


def _repeated_share(counts: Counter) -> float:
    return sum(count for count in counts.values() if count > 1) / counts.total() if counts else 0.0


def generative_perplexity(
    texts: Sequence[str], model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8, seed: int = 0
) -> GenerativePerplexity:
    """Perplexity of texts under a causal language model: exp(mean over texts of mean negative log-likelihood).

    Every text stands alone, after BOS where the tokenizer has one; without BOS its first token is not scored. No EOS.

    Args:
        texts: such as transcripts. One without a target is counted and left out of the mean.
        model, tokenizer: the judge.
        batch_size (`int`, default 8): texts per forward pass.
        seed (`int`, default 0): of the bootstrap.

    Raises `ScoringError` for a text longer than the judge's context, and where a likelihood is NaN.
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
    """The first seconds of recordings -> their prompts, and the ids of recordings that are too short for one."""
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
    """Continues every prompt by itself.

    Args:
        settings (default [`GenerationSettings`]): how.
        output_modality (`str`, default "speech"): "speech" or "text".
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
    """Continues the beginning of every recording in speech, and measures what is heard.

    Args:
        pipeline: of the model.
        recordings: texts are for the word error rate of resynthesis, and may be "".
        transcribe: waveform, sampling rate -> text, such as `WhisperTranscriber()`.
        judge, speaker_encoder, opinion_score (*optional*): what needs them is not measured without.
        settings (default [`GenerationSettings`]): how prompts are continued.
        keep (*optional*): is called with every continuation, to write it to disk.

    Returns:
        `dict`, JSON-ready. Measurements are {"value", "ci95", "n"} or {"not_measured": reason}:

        - "perplexity", "auto_bleu_2": of the transcripts;
        - "unit_repetition": of the units, see [`sequence_repetition`];
        - "speaker_similarity": cosine between prompt and continuation;
        - "mean_opinion_score": DistillMOS of the continuation;
        - "seconds": of a continuation;
        - "recordings": the same "perplexity" and "auto_bleu_2" of the whole recordings and of their resynthesis by the
          codec, and the "word_error_rate" of both, which the numbers above have to be read against;
        - "n" prompts, "too_short" (ids of recordings without prompt), "num_silent" (nothing was said),
          "num_empty_transcripts" (no word was heard), "settings", "judge", "convention";
        - "rows": of every prompt "id", "seed", "transcript", "log_likelihood", "num_tokens", "auto_bleu_2",
          "unit_repetition", "seconds", "speaker_similarity", "mean_opinion_score"; None where not measured.

    Raises `ValueError` where no recording is long enough for a prompt.
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
    """The row of one continuation, as far as it can be measured alone."""
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
    """Perplexity and auto-BLEU of texts, and the numbers of each text."""
    words = [normalize_words(text).split() for text in texts]
    bleu = [value if said else None for value, said in zip(auto_bleu(words), words, strict=True)]
    scores: Sequence[SequenceScore | None] = [None] * len(texts)
    perplexity = not_measured("no judge was given")
    if judge is not None:
        # Punctuation alone is no text; it would count here and not in auto-BLEU.
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
    """Mean of the values that there are; their number is n."""
    known = [value for value in values if value is not None]
    return measured_ratio(known, seed=seed) if known else not_measured(reason)


def _recordings_record(
    recordings: Sequence[SpokenText],
    codec: SpeechCodec,
    transcribe: Callable[[np.ndarray, int], str],
    judge: Judge | None,
    seed: int,
) -> dict:
    """The recordings themselves and their resynthesis, measured as the continuations are."""
    if not all(normalize_words(item.text) for item in recordings):
        return not_measured("the recordings have no transcripts")
    result = evaluate_resynthesis(recordings, codec, transcribe)
    return {
        name: _measure_texts([row[f"heard_{name}"] for row in result.rows], judge, seed)[0]
        | {"word_error_rate": asdict(getattr(result, name))}
        for name in ("original", "resynthesis")
    }


def generation_to_markdown(record: dict) -> str:
    """Return what [`evaluate_generation`] measured as a Markdown table, beside the recordings themselves."""
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
