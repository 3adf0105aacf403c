"""How long it takes until a model is heard, stage by stage, and how much faster than real time the whole chain is.

    python -m tinywave.benchmarks.latency [--output benchmarks/results/latency.json]

The chain is that of `TinyWavePipeline.stream` on the shipped models: prompt -> tokens -> first new token -> first
piece of sound. Wall-clock times depend on the machine and its load; CPU times are given beside them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from ..cli.loading import load_language_model
from ..cli.shipped import AUDIO, CODEC, TEACHER
from ..configuration_tinywave import STREAM_NAMES
from ..data.audio_io import load_audio
from ..data.codec_loading import load_codec
from ..data.storage import write_json
from ..generation_tinywave import stream_ids
from ..pipeline_tinywave import TinyWavePipeline

STREAMS = {"units": ("unit",), "units, pitch and style": STREAM_NAMES}
PROMPT_SECONDS = 3.0
CHUNK_UNITS = 8
NUM_NEW_TOKENS = 100
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 25}


def load_pipeline(streams: Sequence[str]) -> TinyWavePipeline:
    """The shipped teacher on some of its streams, with the codec of these."""
    model, processor = load_language_model(TEACHER)
    model = model.float()
    model.config = model.config.with_streams(streams)
    processor = type(processor).from_config(model.config, processor.tokenizer)
    return TinyWavePipeline(model, processor, load_codec(CODEC, streams))


def measure_latency(pipeline: TinyWavePipeline, repeats: int = 5) -> dict:
    """Median seconds of each stage, and the real-time factor of a continuation.

    Returns:
        `dict` of "encode", "first_token", "first_audio" (each `{"wall", "cpu"}`, seconds from the stage's own
        beginning: a prompt of 3 s to tokens, tokens to the first new token, tokens to the first piece of sound),
        "first_audio_from_prompt" (encoding and first piece together), "real_time_factor" (seconds of computing for a
        second of new speech, from tokens to sound, wall and CPU) and "seconds_of_speech".
    """
    prompt = load_audio(sorted((AUDIO / "librivox").glob("*.flac"))[0])[: int(16_000 * PROMPT_SECONDS)]
    encoded = pipeline.codec.encode([prompt])[0]
    inputs = pipeline.processor([[("speech", encoded)]], output_modality="speech")
    options = {**SAMPLING, "min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS}

    def first_token() -> None:
        ids = stream_ids(pipeline.model, **inputs, output_modality="speech", **options)
        next(ids)
        ids.close()

    def first_audio() -> None:
        pieces = pipeline.stream([("speech", encoded)], chunk_units=CHUNK_UNITS, **options)
        next(pieces)
        pieces.close()

    stages = {
        "encode": lambda: pipeline.codec.encode([prompt]),
        "first_token": first_token,
        "first_audio": first_audio,
    }
    record: dict = {name: _medians(stage, repeats) for name, stage in stages.items()}
    record["first_audio_from_prompt"] = {
        clock: record["encode"][clock] + record["first_audio"][clock] for clock in ("wall", "cpu")
    }
    spoken: list[float] = []

    def whole() -> None:
        spoken.append(list(pipeline.stream([("speech", encoded)], chunk_units=CHUNK_UNITS, **options))[-1].end)

    seconds = _medians(whole, repeats)
    record["seconds_of_speech"] = statistics.median(spoken)
    record["real_time_factor"] = {clock: seconds[clock] / record["seconds_of_speech"] for clock in ("wall", "cpu")}
    return record


def _medians(stage: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median wall-clock and CPU seconds; every call samples the same ids."""
    times = []
    for _ in range(repeats + 1):
        set_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        stage()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    # The first call makes what later ones reuse.
    wall, cpu = zip(*times[1:], strict=True)
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}


def main() -> None:
    """Measure both kinds of streams and print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each stage")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments = parser.parse_args()
    record: dict = {
        "num_threads": torch.get_num_threads(),
        "prompt_seconds": PROMPT_SECONDS,
        "chunk_units": CHUNK_UNITS,
    }
    record |= {name: measure_latency(load_pipeline(streams), arguments.repeats) for name, streams in STREAMS.items()}
    if arguments.output:
        write_json(record, arguments.output)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
