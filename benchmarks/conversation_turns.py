"""How long a conversation's next turn takes to begin, with and without the keys and values of the turns before.

    python -m tinywave.benchmarks.conversation_turns [--output benchmarks/results/conversation_turns.json]

Recordings and answers of the shipped teacher take turns. For every turn: the tokens of its prompt, those that are
read, and the time of a first new token. CPU time is given beside wall-clock time, because other programs may use the
machine too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from ..cli.shipped import AUDIO
from ..data.audio_io import load_audio
from ..data.storage import write_json
from ..pipeline_tinywave import TinyWavePipeline
from ..prompt_cache_tinywave import PromptCache
from ..tokenization_tinywave import Segment
from .latency import SAMPLING, STREAMS, load_pipeline

NUM_TURNS, NUM_NEW_TOKENS, TURN_SECONDS = 8, 60, 4.0


def make_turns(pipeline: TinyWavePipeline) -> list[Segment]:
    """What is said to the model, a recording a turn, as streams."""
    recordings = [load_audio(path) for path in sorted((AUDIO / "librivox").glob("*.flac"))]
    starts = [recordings[turn % len(recordings)][: int(16_000 * TURN_SECONDS)] for turn in range(NUM_TURNS)]
    return [("speech", pipeline.codec.encode([start])[0]) for start in starts]


def hold_conversation(pipeline: TinyWavePipeline, turns: list[Segment]) -> list[dict]:
    """Answer every turn -> prompt tokens, tokens read, and `(cpu, wall)` seconds of a first token, in both ways."""
    model, conversation, record, read = pipeline.model, [], [], []
    cache = PromptCache(model.config.max_position_embeddings)
    handle = model.model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    for turn in turns:
        conversation.append(turn)
        ids = pipeline.processor(conversation, output_modality="speech")["input_ids"]
        options = {"input_ids": ids, "output_modality": "speech", **SAMPLING}
        without = _clock(lambda options=options: model.generate(**options, max_new_tokens=1))
        read.clear()
        cached = _clock(lambda options=options: cache.generate(model, **options, max_new_tokens=1))
        record.append(
            {"prompt_tokens": ids.shape[1], "tokens_read": read[0], "without_cache": without, "with_cache": cached}
        )
        answer = cache.generate(model, **options, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)
        conversation += pipeline.processor.ids_to_segments(answer[0, ids.shape[1] :])
    handle.remove()
    return record


def measure_turns(pipeline: TinyWavePipeline, repeats: int) -> list[dict]:
    """The same conversation several times; medians of the seconds."""
    turns, rounds = make_turns(pipeline), []
    for _ in range(repeats + 1):
        set_seed(0)
        rounds.append(hold_conversation(pipeline, turns))
    record = []
    # The first round makes what later ones reuse.
    for same_turn in zip(*rounds[1:], strict=True):
        row = {name: same_turn[0][name] for name in ("prompt_tokens", "tokens_read")}
        for way in ("without_cache", "with_cache"):
            cpu, wall = zip(*(turn[way] for turn in same_turn), strict=True)
            row[way] = {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}
        record.append(row)
    return record


def _clock(function: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure both kinds of streams; print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="conversations; medians are reported")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments = parser.parse_args()
    record: dict = {"num_threads": torch.get_num_threads(), "new_tokens": NUM_NEW_TOKENS, "turn_seconds": TURN_SECONDS}
    record |= {name: measure_turns(load_pipeline(streams), arguments.repeats) for name, streams in STREAMS.items()}
    if arguments.output:
        write_json(record, arguments.output)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
