"""Tokens a second of many prompts: one at a time, in padded batches, and in rows that are given on as they end.

    python -m tinywave.benchmarks.batched_decoding [--output benchmarks/results/batched_decoding.json]

The prompts are real speech of different lengths, and each asks for a number of new tokens of its own. Only these
count; what a padded batch adds to a row that has enough, while it waits for the longest, does not. The ways take turns
on the same prompts. CPU time is given beside wall-clock time, because other programs may use the machine too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers.trainer_utils import set_seed

from ..batching_tinywave import Prompt, continue_many
from ..cli.loading import load_language_model
from ..cli.shipped import AUDIO, CODEC, TEACHER
from ..configuration_tinywave import TinyWaveConfig
from ..data.audio_io import load_audio
from ..data.codec_loading import load_codec
from ..data.storage import write_json
from ..generation_tinywave import check_prompt
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from .decode import with_random_weights

BATCH_SIZES = (1, 4, 16)
SAMPLING = {"output_modality": "speech", "do_sample": True, "temperature": 0.8, "top_k": 25}
# Of speech in a prompt, and of tokens that it asks for: 1 to 8 s of either.
PROMPT_SECONDS, NUM_NEW_TOKENS = (1, 8), (20, 160)


def load_models() -> dict[str, TinyWaveForCausalLM]:
    """The shipped teacher in float32 and in 8 bits, and a student of the smallest preset with random weights."""
    teacher, quantized = (load_language_model(TEACHER)[0].float() for _ in range(2))
    student = with_random_weights(TinyWaveConfig.from_preset("nano-student"), torch.float32)
    models = {"teacher": teacher, "teacher, 8 bits": quantized.quantize(), "nano-student": student.eval()}
    for model in models.values():
        model.config = model.config.with_streams(["unit"])
    return models


def make_prompts(count: int) -> list[Prompt]:
    """Beginnings of the shipped recordings, in units, and numbers of new tokens, both spread evenly and shuffled."""
    recordings = [load_audio(path) for path in sorted((AUDIO / "librivox").glob("*.flac"))]
    codec = load_codec(CODEC, ["unit"])
    processor = TinyWaveProcessor.from_pretrained(TEACHER)
    config = processor.config.with_streams(["unit"])
    processor = TinyWaveProcessor.from_config(config, processor.tokenizer)
    generator = torch.Generator().manual_seed(0)
    seconds, lengths = (
        torch.linspace(*span, count)[torch.randperm(count, generator=generator)].tolist()
        for span in (PROMPT_SECONDS, NUM_NEW_TOKENS)
    )
    prompts = []
    for name, (duration, length) in enumerate(zip(seconds, lengths, strict=True)):
        waveform = recordings[name % len(recordings)][: int(16_000 * duration)]
        inputs = processor([("speech", codec.encode([waveform])[0])], output_modality="speech")
        check_prompt(**inputs, config=config, max_new_tokens=NUM_NEW_TOKENS[1])
        options = {"min_new_tokens": int(length), "max_new_tokens": int(length)}
        prompts.append(Prompt(name, inputs["input_ids"][0], options))
    return prompts


def generate_alone(model: TinyWaveForCausalLM, prompts: Sequence[Prompt]) -> None:
    """`generate`, one prompt at a time."""
    for prompt in prompts:
        model.generate(input_ids=prompt.input_ids[None], **SAMPLING, **prompt.options)


def generate_padded(model: TinyWaveForCausalLM, prompts: Sequence[Prompt], batch_size: int) -> None:
    """`generate` on batches of prompts of similar length, padded left, each until its longest row has enough."""
    ordered = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        rows = [prompt.input_ids for prompt in batch]
        input_ids = pad_sequence(rows, True, model.config.pad_token_id, padding_side="left")
        length = max(prompt.options["max_new_tokens"] for prompt in batch)
        options = {"min_new_tokens": length, "max_new_tokens": length}
        model.generate(
            input_ids=input_ids, attention_mask=(input_ids != model.config.pad_token_id).long(), **SAMPLING, **options
        )


def generate_continuously(model: TinyWaveForCausalLM, prompts: Sequence[Prompt], batch_size: int) -> None:
    """`continue_many`."""
    for _ in continue_many(model, prompts, batch_size, **SAMPLING):
        pass


def ways_of(model: TinyWaveForCausalLM, prompts: Sequence[Prompt]) -> dict[str, Callable[[], None]]:
    """Name of a way and batch size -> what it does."""
    ways: dict[str, Callable[[], None]] = {"generate": lambda: generate_alone(model, prompts)}
    for size in BATCH_SIZES:
        ways[f"continuous, batch {size}"] = lambda size=size: generate_continuously(model, prompts, size)
        if size > 1:
            ways[f"padded, batch {size}"] = lambda size=size: generate_padded(model, prompts, size)
    return ways


def measure_ways(ways: Mapping[str, Callable[[], None]], num_tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Way -> tokens a second of CPU and of wall-clock time, medians over rounds in which each way runs once."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in tqdm(range(repeats), desc="Rounds"):
        for name, way in ways.items():
            set_seed(0)
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {name: [statistics.median(clock) for clock in zip(*pairs, strict=True)] for name, pairs in times.items()}
    return {
        name: {
            "tokens_per_cpu_second": num_tokens / cpu,
            "tokens_per_second": num_tokens / wall,
            "times_generate": medians["generate"][0] / cpu,
        }
        for name, (cpu, wall) in medians.items()
    }


def main() -> None:
    """Measure all models in all ways; print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=48, help="prompts to continue")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments = parser.parse_args()
    prompts = make_prompts(arguments.num_prompts)
    num_tokens = sum(prompt.options["max_new_tokens"] for prompt in prompts)
    record: dict = {
        "num_prompts": len(prompts),
        "num_prompt_tokens": sum(len(prompt.input_ids) for prompt in prompts),
        "num_new_tokens": num_tokens,
        "num_threads": torch.get_num_threads(),
    }
    for name, model in load_models().items():
        ways = ways_of(model, prompts)
        generate_continuously(model, prompts[:4], 4)
        record[name] = measure_ways(ways, num_tokens, arguments.repeats)
    if arguments.output:
        write_json(record, arguments.output)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
