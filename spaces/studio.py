"""What the Space does, without a page: models and codecs, loaded once, and what is asked of them."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..cli import shipped
from ..cli.encode import streams_to_record
from ..cli.loading import load_language_model
from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_NAMES, TinyWaveConfig
from ..data.codec_loading import load_codec
from ..data.hibari_voice import HibariDecoder
from ..eval.results import STUDENT, TEACHER
from ..eval.runner import evaluate_models
from ..eval.suites import SuiteResult, read_suite
from ..loudness_tinywave import apply_gain
from ..pipeline_tinywave import GeneratedSegment, TinyWavePipeline
from ..processing_tinywave import TinyWaveProcessor
from ..prompt_cache_tinywave import PromptCache
from ..tokenization_tinywave import Segment, SpeechStreams, deduplicate, units_to_ids
from ..vocoder_tinywave import Vocoder

PLAIN, EXPRESSIVE = "plain", "expressive"
AS_RECORDED = "as recorded"
NO_DISTILLATION = "no_distillation"
QUICKSTART = Path("outputs/quickstart")
# Tokens that make a second of speech: units without repeats, and with pitch and style among them.
TOKENS_PER_SECOND = {PLAIN: 18, EXPRESSIVE: 28}
# 0.8 s of speech in a piece. A browser starts on the first piece that is long enough, and waits for more after a short
# one: with pieces of 0.4 s the first sound comes later, not sooner.
CHUNK_UNITS = 20
LEAST_TOKENS = 20
MAX_SECONDS = 20.0
MAX_PAIRS = 100
# Of earlier prompts, whose keys and values a model keeps for the turns that follow: four full contexts of the shipped
# models, 140 MB of the teacher.
PROMPT_CACHE_TOKENS = 8192
OFF, VERIFIED, UNVERIFIED = "off", "verified", "unverified"
PARALLEL_HEADS_OPTIONS = {
    OFF: {},
    VERIFIED: {"parallel_heads": True},
    UNVERIFIED: {"parallel_heads": True, "verify_drafts": False},
}


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Args:
        seed (`int`, default 0): the same seed and prompt give the same answer.
        temperature (`float`, default 0.7): 0 takes the likeliest token, up to 2.
        top_p (`float`, default 0.9): draw from the likeliest tokens that together have this probability.
        seconds (`float`, default 6): length of the speech, about, up to 20.
        style (`str`, default "as recorded"): speaking style, for a model with style tokens.
        parallel_heads (`str`, default "off"): "verified" or "unverified" drafts, for a model with parallel heads.
        match_loudness (`bool`, default True): make the answer as loud as the recording that it follows.

    Raises `ValueError` for a value out of range.
    """

    seed: int = 0
    temperature: float = 0.7
    top_p: float = 0.9
    seconds: float = 6.0
    style: str = AS_RECORDED
    parallel_heads: str = OFF
    match_loudness: bool = True

    def __post_init__(self):
        # The comparisons are so that NaN is out of range as well.
        ranges = {"seed": (0, 2**32 - 1), "temperature": (0, 2), "top_p": (0.05, 1), "seconds": (0.5, MAX_SECONDS)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"Found {name} {value}; expected a number from {least:g} to {most:g}.")
        object.__setattr__(self, "seed", int(self.seed))
        if not isinstance(self.match_loudness, bool):
            raise ValueError(f"Found match_loudness {self.match_loudness!r}; expected true or false.")
        if self.parallel_heads not in PARALLEL_HEADS_OPTIONS:
            known = ", ".join(PARALLEL_HEADS_OPTIONS)
            raise ValueError(f"Found parallel_heads {self.parallel_heads!r}; expected one of {known}.")


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished answer.

    Attributes:
        prompt (`list` of segments): what was asked; speech as timed streams.
        segments (`list` of [`GeneratedSegment`]): what came, whole, with streams and durations.
        tokens (`str`): prompt and answer as the model reads and writes them.
        seconds, first_sound_seconds (`float`): until the end, and until the first piece of speech (None without).
    """

    prompt: list[Segment]
    segments: list[GeneratedSegment]
    tokens: str
    seconds: float
    first_sound_seconds: float | None

    @property
    def waveform(self) -> np.ndarray:
        """All new speech in a row, float32 `(samples,)`."""
        spoken = [segment.waveform.cpu().numpy() for segment in self.segments if segment.modality == "speech"]
        return np.concatenate(spoken) if spoken else np.zeros(0, dtype=np.float32)


class IdRecorder(StoppingCriteria):
    """Stops nothing; keeps the new ids of the one row that is generated."""

    def __init__(self):
        self.ids: list[int] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.ids.append(int(input_ids[0, -1]))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(eq=False)
class Studio:
    """The models of a Space.

    One answer is generated at a time: the seed sets torch's one random state, and two at once would read from it in
    turns.

    Args:
        model (*optional*): folder of a language model, or folder or Hub repository that
            `TinyWavePipeline.save_pretrained` wrote. Default: the shipped nano teacher, on units alone ("plain") and
            with pitch and style ("expressive").
        student, no_distillation (*optional*): folders of the models beside it. Default: those of `make quickstart`
            where it has run.
        revision (*optional*): branch, tag or commit of `model`, where that is the name of a repository.

    Attributes:
        variants (`tuple[str, ...]`): of the model, "plain", "expressive" or both.
        has_parallel_heads (`bool`): whether the model can draft several tokens for each forward pass.
    """

    model: str | None = None
    student: str | None = None
    no_distillation: str | None = None
    revision: str | None = None
    _pipelines: dict[str, TinyWavePipeline] = field(default_factory=dict, init=False, repr=False)
    _codecs: dict[str, SpeechCodec] = field(default_factory=dict, init=False, repr=False)
    _loading: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self):
        for name in (STUDENT, NO_DISTILLATION):
            if getattr(self, name) is None and (QUICKSTART / name / "model.safetensors").is_file():
                setattr(self, name, str(QUICKSTART / name))
        name = shipped.TEACHER if self.model is None else self.model
        config = TinyWaveConfig.from_pretrained(name, revision=self.revision)
        self.variants: tuple[str, ...] = (PLAIN, EXPRESSIVE) if self.model is None else (variant_of(config),)
        self.has_parallel_heads: bool = config.num_parallel_heads > 0

    @property
    def others(self) -> dict[str, str]:
        """Folders of the models beside the teacher, as far as there are any, by name."""
        return {name: getattr(self, name) for name in (STUDENT, NO_DISTILLATION) if getattr(self, name) is not None}

    @property
    def styles(self) -> list[str]:
        """Speaking styles that can be asked for; empty for a model without style tokens."""
        if EXPRESSIVE not in self.variants:
            return []
        encoder = self.pipeline(EXPRESSIVE).codec.style_encoder
        return (
            [] if encoder is None else list(encoder.config.style_names or map(str, range(encoder.config.num_styles)))
        )

    def load(self) -> None:
        """Load the models and let each say a little, so that the first visitor does not wait for either."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        for variant in self.variants:
            for _ in self.continue_speech(noise, variant, Sampling(seconds=1)):
                pass

    def pipeline(self, variant: str) -> TinyWavePipeline:
        """The model as "plain" or "expressive", or another one, "student" or "no_distillation".

        Raises `ValueError` for a name that is not one of these.
        """
        if variant not in (*self.variants, *self.others):
            raise ValueError(f"Found the variant {variant!r}; expected one of {', '.join(self.variants)}.")
        with self._loading:
            if variant not in self._pipelines:
                folder = self.others.get(variant, self.model)
                pipeline = self._open_shipped(variant) if folder is None else self._open(folder)
                pipeline.prompt_cache = PromptCache(PROMPT_CACHE_TOKENS)
                self._pipelines[variant] = pipeline
            return self._pipelines[variant]

    def continue_speech(
        self, waveform: np.ndarray, variant: str = PLAIN, sampling: Sampling = Sampling()
    ) -> Iterator[GeneratedSegment | Answer]:
        """Speech `(samples,)` at 16,000 Hz -> pieces of what follows as they are spoken, and last the [`Answer`].

        Closing the iterator stops the generation. Raises what the pipeline raises.
        """
        return self.interleaved([("speech", waveform)], "speech", variant, sampling)

    def interleaved(
        self,
        conversation: list[Segment],
        output_modality: str = "free",
        variant: str = PLAIN,
        sampling: Sampling = Sampling(),
    ) -> Iterator[GeneratedSegment | Answer]:
        """Text and speech in any order -> pieces of what follows, text or speech, and last the [`Answer`]."""
        pipeline = self.pipeline(variant)
        options = generation_options(pipeline, output_modality, sampling)
        recorder = IdRecorder()
        options["stopping_criteria"] = StoppingCriteriaList([recorder])
        with self._turn:
            start, first_sound, spoken = time.perf_counter(), None, []
            prompt = self.encode_conversation(conversation, variant, sampling.style)
            gain = self._gain(conversation, prompt, variant) if sampling.match_loudness else 1.0
            torch.manual_seed(sampling.seed)
            with closing(pipeline.stream(prompt, output_modality, chunk_units=CHUNK_UNITS, **options)) as pieces:
                for piece in pieces:
                    if piece.modality == "speech":
                        piece = replace(piece, waveform=apply_gain(piece.waveform, gain))
                        first_sound = first_sound or time.perf_counter() - start
                        spoken.append(piece.waveform)
                    yield piece
            seconds = time.perf_counter() - start
        segments = whole_segments(pipeline, prompt, recorder.ids, torch.cat(spoken) if spoken else torch.zeros(0))
        tokens = conversation_to_tokens(pipeline, prompt, output_modality, recorder.ids)
        yield Answer(prompt, segments, tokens, seconds, first_sound)

    def _gain(self, conversation: list[Segment], prompt: list[Segment], variant: str) -> float:
        """The gain of the last recording of a conversation; 1 where nobody spoke."""
        recorded = [number for number, (_, content) in enumerate(conversation) if isinstance(content, np.ndarray)]
        if not recorded:
            return 1.0
        return self.pipeline(variant).loudness_gain(conversation[recorded[-1]][1], prompt[recorded[-1]][1])

    def encode_conversation(
        self, conversation: list[Segment], variant: str, style: str = AS_RECORDED
    ) -> list[Segment]:
        """Waveforms -> streams; text and streams stay as they are.

        A style that is asked for is given to what was recorded as well: a model goes on as it was spoken to.
        """
        pipeline = self.pipeline(variant)
        segments = []
        for modality, content in conversation:
            if isinstance(content, np.ndarray):
                content = pipeline.codec.encode([content])[0]
                if style != AS_RECORDED:
                    content = replace(content, style=np.full_like(content.style, style_number(pipeline, style)))
            segments.append((modality, content))
        return segments

    def compare(self, waveform: np.ndarray, sampling: Sampling = Sampling()) -> Iterator[tuple[str, int, Answer]]:
        """The same prompt through teacher, student and the student without teacher -> (name, parameters, answer)."""
        for name in (TEACHER, *self.others):
            variant = self.variants[0] if name == TEACHER else name
            *_, answer = self.continue_speech(waveform, variant, sampling)
            yield name, self.pipeline(variant).model.num_parameters(), answer

    def encode(self, waveform: np.ndarray, variant: str = PLAIN) -> tuple[SpeechStreams, dict, np.ndarray]:
        """Speech through the codec -> its streams, their JSON record, and what the vocoder makes of them.

        The record is that of `tinywave encode --json`; the waveform has the vocoder's sampling rate.
        """
        codec = self.pipeline(variant).codec
        with self._turn:
            streams = codec.encode([waveform])[0]
            spoken = codec.decode(streams).cpu().numpy()
        return streams, streams_to_record(streams, codec, len(waveform) / codec.input_sampling_rate), spoken

    def evaluate(self, num_pairs: int) -> Iterator[dict[str, dict[str, SuiteResult]]]:
        """Some pairs of each shipped suite through every model -> {suite: {model: result}}, growing by a suite.

        The pairs are spread evenly over a suite, so that each of its parts is met.

        Raises `ValueError` for another number than 2 to 100, and for a model of other units than the suites'.
        """
        if not 2 <= num_pairs <= MAX_PAIRS:
            raise ValueError(f"Found {num_pairs} pairs; expected 2 to {MAX_PAIRS}.")
        pipelines = {TEACHER: self.pipeline(self.variants[0])}
        pipelines |= {name: self.pipeline(name) for name in self.others}
        streams = {variant_of(pipeline.model.config) for pipeline in pipelines.values()}
        if len(streams) > 1:
            raise ValueError("The teacher and the models beside it read different streams; give models of the same.")
        codec = pipelines[TEACHER].codec
        results: dict[str, dict[str, SuiteResult]] = {}
        for manifest in sorted(shipped.SUITES.glob("*.parquet")):
            pairs = read_suite(manifest)
            places = np.linspace(0, len(pairs), min(int(num_pairs), len(pairs)), endpoint=False).astype(int)
            evaluation = evaluate_models(
                {name: pipeline.model for name, pipeline in pipelines.items()},
                {manifest.stem: [pairs[place] for place in places]},
                encoder=codec.fingerprint(),
                progress=False,
            )
            results = results | evaluation.suites
            yield results

    def _open_shipped(self, variant: str) -> TinyWavePipeline:
        model, processor = load_language_model(shipped.TEACHER)
        if variant == PLAIN:
            model.config = model.config.with_streams(["unit"])
            processor = TinyWaveProcessor.from_config(model.config, processor.tokenizer)
        return TinyWavePipeline(to_device(model), processor, self._shipped_codec(variant))

    def _open(self, name: str) -> TinyWavePipeline:
        """A language model alone reads the shipped units; a folder or repository with a codec brings its own."""
        if Path(name).is_dir() and not (Path(name) / "speech_encoder").is_dir():
            model, processor = load_language_model(name)
            return TinyWavePipeline(to_device(model), processor, self._shipped_codec(variant_of(model.config)))
        pipeline = TinyWavePipeline.from_pretrained(name, revision=self.revision)
        to_device(pipeline.model)
        if isinstance(pipeline.codec.vocoder, Vocoder):
            pipeline.codec.decoder = HibariDecoder().decode
        return pipeline

    def _shipped_codec(self, variant: str) -> SpeechCodec:
        if variant not in self._codecs:
            streams = ["unit"] if variant == PLAIN else STREAM_NAMES
            self._codecs[variant] = load_codec(shipped.CODEC, streams)
        return self._codecs[variant]


def variant_of(config: TinyWaveConfig) -> str:
    """Whether a model reads units alone or pitch and style as well."""
    return EXPRESSIVE if config.prosody_streams else PLAIN


def to_device(model):
    """A language model moves to the GPU where there is one; a codec is fast enough without."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def generation_options(pipeline: TinyWavePipeline, output_modality: str, sampling: Sampling) -> dict:
    """The options of `generate`. Raises `ValueError` for a style that the model does not have."""
    config = pipeline.model.config
    most = max(1, round(sampling.seconds * TOKENS_PER_SECOND[variant_of(config)]))
    options = {"max_new_tokens": most} | PARALLEL_HEADS_OPTIONS[sampling.parallel_heads]
    if output_modality == "speech":
        options["min_new_tokens"] = min(LEAST_TOKENS, most)
    if sampling.temperature:
        options |= {"do_sample": True, "temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
    else:
        options["do_sample"] = False
    if sampling.style != AS_RECORDED:
        options["suppress_tokens"] = other_style_ids(pipeline, sampling.style)
    return options


def other_style_ids(pipeline: TinyWavePipeline, style: str) -> list[int]:
    """Ids of all styles but one. Raises `ValueError` where the model does not have that one."""
    number = style_number(pipeline, style)
    ids = pipeline.model.config.stream_ranges()["style"]
    return [index for index in ids if index != ids[number]]


def style_number(pipeline: TinyWavePipeline, style: str) -> int:
    """Name of a style -> its token's number. Raises `ValueError` where the model does not have it."""
    encoder = pipeline.codec.style_encoder
    names = [] if encoder is None else list(encoder.config.style_names or [])
    if style not in names:
        known = ", ".join([AS_RECORDED, *names])
        raise ValueError(f"Found the style {style!r}; this model knows: {known}.")
    return names.index(style)


def whole_segments(
    pipeline: TinyWavePipeline, prompt: list[Segment], ids: list[int], spoken: torch.FloatTensor
) -> list[GeneratedSegment]:
    """New ids and all sound that was streamed for them -> whole segments, timed, with streams and durations."""
    codec, segments, start = pipeline.codec, [], 0
    for position, (modality, content) in enumerate(pipeline.processor.ids_to_segments(ids)):
        seconds = start / codec.output_sampling_rate
        if modality == "text":
            segments.append(GeneratedSegment("text", seconds, seconds, text=content))
            continue
        if not isinstance(content, SpeechStreams):  # a model of units alone writes plain units
            content = SpeechStreams(content, ids=units_to_ids(content, pipeline.model.config))
        if len(content) == 0:
            continue
        goes_on = position == 0 and prompt[-1][0] == "speech"
        durations = predict_durations(codec, content.units, prompt[-1][1] if goes_on else None)
        stop = start + codec.vocoder.samples_per_unit * int(durations.sum())
        rate = codec.output_sampling_rate
        segments.append(
            GeneratedSegment("speech", seconds, stop / rate, None, spoken[start:stop], rate, content, durations)
        )
        start = stop
    return segments


def predict_durations(codec: SpeechCodec, units: np.ndarray, before: SpeechStreams | None) -> np.ndarray:
    """Units `(units,)` -> frames of each, as the vocoder hears them after the speech `before` them."""
    context = [] if before is None else deduplicate(codec.timed_to_frames(before).units)[0]
    joined = torch.as_tensor(np.concatenate([context, units]).astype(np.int64), device=codec.vocoder.device)
    return codec.vocoder.predict_durations(joined[None])[0, len(context) :].cpu().numpy()


def conversation_to_tokens(
    pipeline: TinyWavePipeline, prompt: list[Segment], output_modality: str, new_ids: list[int]
) -> str:
    """Prompt and answer as the model reads and writes them, such as "<s>[Speech][Hu78][Hu4]..."."""
    row = pipeline.processor([prompt], output_modality=output_modality)["input_ids"][0].tolist()
    return pipeline.processor.tokenizer.decode([*row, *new_ids], skip_special_tokens=False)


def describe_models(folders: Mapping[str, str]) -> str:
    """One sentence about which models stand beside the teacher, or how to make them."""
    missing = [name for name in (STUDENT, NO_DISTILLATION) if name not in folders]
    if not missing:
        return ""
    return (
        "There is no distilled student yet, so only the teacher answers. `make quickstart` makes a student, and the "
        "same student trained without a teacher, in about eighteen minutes; then start this page again."
        if STUDENT in missing
        else "There is no undistilled student; `make quickstart` makes one."
    )
