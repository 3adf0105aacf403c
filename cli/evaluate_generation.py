"""`tinywave evaluate-generation --model outputs/quickstart/student --judge outputs/judge --output-dir outputs/said`"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..data.audio_io import write_audio
from ..data.corpus import MANIFEST
from ..data.storage import write_json
from ..eval.codec_measures import not_measured
from ..eval.generative import (
    Continuation,
    GenerationSettings,
    evaluate_generation,
    generation_to_markdown,
    load_judge,
)
from ..eval.prosody import read_styled_prompts
from ..eval.recordings import read_corpus_recordings, read_recordings
from ..eval.results_table import format_accuracy, format_percent
from ..eval.resynthesis import SpokenText, WhisperTranscriber
from ..eval.sentiment_consistency import (
    SENTIMENT_STYLES,
    SentimentPrompt,
    SpeechSentiment,
    evaluate_sentiment,
    styled_to_sentiment,
)
from ..eval.speaker_similarity import load_speaker_encoder
from ..eval.speech_quality import load_distill_mos
from ..loading_tinywave import load_pretrained
from ..pipeline_tinywave import TinyWavePipeline
from ..style_encoder_tinywave import StyleEncoder
from .argument_types import COUNT, NUM_TOKENS, SECONDS, SEED, TEMPERATURE
from .loading import add_codec_arguments, load_language_model, open_codec
from .shipped import AUDIO, TEACHER

STYLED_PROMPTS = 50
"""Of each style at most."""
Listener = TypeVar("Listener")


def add_arguments(parser):
    parser.add_argument("--model", default=str(TEACHER), help="folder of the language model")
    add_codec_arguments(parser)
    parser.add_argument(
        "--recordings",
        default=str(AUDIO / "librivox"),
        help="what prompts are cut from: a folder with transcripts.json, or a speech corpus",
    )
    parser.add_argument("--split", default="test", help="of a speech corpus")
    parser.add_argument("--num-prompts", type=COUNT, default=1000, help="recordings at most")
    parser.add_argument("--judge", help="folder, or .gguf file, of the language model of text behind the perplexity")
    parser.add_argument("--styled-corpus", help="speech corpus with styles; adds the sentiment that is kept (STSP)")
    parser.add_argument("--prompt-seconds", type=SECONDS, default=3.0, help="length of a prompt")
    parser.add_argument("--max-new-tokens", type=NUM_TOKENS, default=150, help="most tokens of a continuation")
    parser.add_argument("--temperature", type=TEMPERATURE, default=0.8, help="of sampling")
    parser.add_argument("--top-k", type=NUM_TOKENS, default=25, help="sample from this many likeliest tokens")
    parser.add_argument("--seed", type=SEED, default=0, help="of sampling and of the bootstrap")
    parser.add_argument("--output-dir", required=True, help="folder of generation.json and of the continuations")


def run(arguments) -> int:
    """Continue prompts, measure what is heard, print the table, and write the numbers and the sound."""
    settings = GenerationSettings(
        arguments.prompt_seconds, arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.seed
    )
    recordings, styled = read_prompts(arguments), read_styled(arguments)
    judge = None if arguments.judge is None else load_judge(arguments.judge)
    model, processor = load_language_model(arguments.model)
    pipeline = TinyWavePipeline(model, processor, open_codec(arguments, model.config.stream_ranges()))
    folder = Path(arguments.output_dir)
    (folder / "continuations").mkdir(parents=True, exist_ok=True)

    def keep(item: Continuation) -> None:
        if len(item.waveform):
            write_audio(folder / "continuations" / f"{item.prompt.id}.flac", item.waveform, item.sampling_rate)

    record = evaluate_generation(
        pipeline,
        recordings,
        transcribe=WhisperTranscriber(),
        judge=judge,
        speaker_encoder=load_if_installed(load_speaker_encoder),
        opinion_score=load_if_installed(load_distill_mos),
        settings=settings,
        keep=keep,
    )
    record["model"] = Path(arguments.model).name
    record["sentiment"] = measure_sentiment(styled, arguments.codec, pipeline, settings)
    write_json(record, folder / "generation.json")
    print(generation_to_markdown(record))
    if styled:
        kept = record["sentiment"]
        print(f"\nSentiment kept: {format_accuracy(kept)} of {kept['n']}; chance {format_percent(kept['chance'])}")
    return 0


def read_prompts(arguments) -> list[SpokenText]:
    """The recordings that the arguments name. Raises `ValueError` where there are none."""
    if (Path(arguments.recordings) / MANIFEST).is_file():
        recordings = read_corpus_recordings(arguments.recordings, arguments.split)
    else:
        recordings = read_recordings(arguments.recordings)
    if arguments.num_prompts < 1 or not recordings:
        raise ValueError(
            f"found {len(recordings)} recordings in {arguments.recordings} and --num-prompts {arguments.num_prompts}; "
            "expected at least one of each; --split names the part of a corpus"
        )
    return recordings[: arguments.num_prompts]


def load_if_installed(load: Callable[[], Listener]) -> Listener | None:
    """The network that `load` returns, or None where the package of its weights is not installed."""
    try:
        return load()
    except ModuleNotFoundError:
        return None


def read_styled(arguments) -> list[SentimentPrompt]:
    """Spoken prompts of known sentiment, none where no corpus of styles is named."""
    if arguments.styled_corpus is None:
        return []
    styled = read_styled_prompts(arguments.styled_corpus, SENTIMENT_STYLES, STYLED_PROMPTS, split=arguments.split)
    return styled_to_sentiment(styled)


def measure_sentiment(
    prompts: Sequence[SentimentPrompt], codec: str, pipeline: TinyWavePipeline, settings: GenerationSettings
) -> dict:
    """The sentiment kept in speech; the style encoder in the folder `codec` judges."""
    if not prompts:
        return not_measured("no styled corpus was named")
    style_encoder = load_pretrained(StyleEncoder, Path(codec) / "style_encoder")
    return evaluate_sentiment(pipeline, prompts, SpeechSentiment(style_encoder), settings=settings)
