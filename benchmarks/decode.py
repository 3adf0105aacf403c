"""How fast a model speaks: tokens a second, time to the first, memory, and what share of the machine's limit that is.

    python -m tinywave.benchmarks.decode --preset speech-base-2b --output benchmarks/results/decode.json

Speed does not depend on what a model has learned, so a preset is given random weights. Every engine runs in a process
of its own, which makes its peak of memory its own. Quote the ratios of one run, and of CPU time; on a machine that
others use too, wall-clock times say little.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import DynamicCache

from ..configuration_tinywave import TinyWaveConfig
from ..eval.results import write_json
from ..modeling_tinywave import TinyWaveForCausalLM
from ..quantization_tinywave import INT8, Int8Linear
from .machine import measure_limits, medians

ENGINES = ("torch-float32", "torch-bfloat16", "torch-int8")
REFERENCE = "torch-bfloat16"
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 128, 16
# De-duplicated units alone, and merged with pitch and style.
TOKENS_PER_SECOND_OF_SPEECH = {"units": 18.0, "units, pitch and style": 28.0}
_MEMORY_BESIDE_WEIGHTS = 0.8e9
_BYTES_OF_ENGINE = {"torch-float32": 4, "torch-bfloat16": 2, "torch-int8": 1}
_RANDOM_BLOCK = 1 << 20


@dataclass(frozen=True)
class DecodeRow:
    """One engine on one model.

    Attributes:
        engine, model (`str`): one of `ENGINES`; a preset or a folder.
        num_parameters (`int`): of the model.
        num_threads (`int`): of PyTorch.
        tokens_per_second (`float`): at batch 1 after the prompt, by the median wall-clock time of a token.
        cpu_seconds_per_token (`float`): median CPU time of a token, all threads together.
        first_token_seconds (`float`): wall-clock time of the prompt (128 tokens) and the first token.
        peak_mb (`float`): largest resident memory of the process, in 10^6 bytes.
        weights_mb (`float`): of the weights that a token reads, in 10^6 bytes; the embedding is looked up, not read.
        bandwidth_gbs (`float`): of the machine, gigabytes a second.
        efficiency (`float`): tokens_per_second x weights / bandwidth, 1 where reading the weights is all that happens.
        real_time_factor (`float`): seconds of computing for a second of speech of the model's own streams.
    """

    engine: str
    model: str
    num_parameters: int
    num_threads: int
    tokens_per_second: float
    cpu_seconds_per_token: float
    first_token_seconds: float
    peak_mb: float
    weights_mb: float
    bandwidth_gbs: float
    efficiency: float
    real_time_factor: float


def measure_decoding(
    model_name: str, engine: str, num_prompt_tokens: int = NUM_PROMPT_TOKENS, num_new_tokens: int = NUM_NEW_TOKENS
) -> DecodeRow:
    """Measure one engine in this process.

    Args:
        model_name: a preset of [`TinyWaveConfig`], or the folder of a model.
        engine: one of `ENGINES`.
        num_prompt_tokens, num_new_tokens: lengths; each new token is timed.

    Raises:
        ValueError: an unknown engine or model.
        MemoryError: where the weights would not fit; nothing is loaded then.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; expected one of {', '.join(ENGINES)}")
    model = load_engine(model_name, engine)
    config = model.config
    ids = torch.randint(config.unit_offset, config.unit_offset + config.num_units, (1, num_prompt_tokens + 1))
    with torch.inference_mode():
        first_token_seconds, _ = medians(lambda: prefill(model, ids[:, :-1]), repeats=1)
        cache = prefill(model, ids[:, :-1])
        wall, cpu = medians(next_token(model, ids[:, -1:], cache), repeats=num_new_tokens)
    weights, peak = weight_bytes(model), peak_bytes()
    limits = measure_limits()
    has_prosody = len(config.stream_ranges().keys() & {"pitch", "style"}) > 0
    speech_rate = TOKENS_PER_SECOND_OF_SPEECH["units, pitch and style" if has_prosody else "units"]
    return DecodeRow(
        engine=engine,
        model=model_name,
        num_parameters=count_weights(model),
        num_threads=limits.num_threads,
        tokens_per_second=1 / wall,
        cpu_seconds_per_token=cpu,
        first_token_seconds=first_token_seconds,
        peak_mb=peak / 1e6,
        weights_mb=weights / 1e6,
        bandwidth_gbs=limits.bandwidth_gbs,
        efficiency=weights / wall / (limits.bandwidth_gbs * 1e9),
        real_time_factor=speech_rate * wall,
    )


def load_engine(model_name: str, engine: str) -> TinyWaveForCausalLM:
    """A model ready to generate: of a folder, or of a preset with random weights.

    Raises `MemoryError` before anything is loaded where the weights would not fit into the memory that is free.
    """
    is_folder = (Path(model_name) / "config.json").is_file()
    config = TinyWaveConfig.from_pretrained(model_name) if is_folder else TinyWaveConfig.from_preset(model_name)
    if config.weight_format == INT8 and engine != "torch-int8":
        raise ValueError(f"{model_name} is stored in 8 bits; its engine is torch-int8, not {engine}")
    with torch.device("meta"):
        num_parameters = count_weights(TinyWaveForCausalLM(config))
    check_memory(num_parameters * _BYTES_OF_ENGINE[engine])
    dtype = torch.float32 if engine == "torch-float32" else torch.bfloat16
    if not is_folder:
        config.weight_format = INT8 if engine == "torch-int8" else None
        return with_random_weights(config, dtype)
    model = TinyWaveForCausalLM.from_pretrained(model_name, dtype=dtype).eval()
    return model.quantize() if engine == "torch-int8" and config.weight_format is None else model


def check_memory(weights: int) -> None:
    """Raise `MemoryError` where weights of so many bytes, and what surrounds them, are more than is free."""
    needed, free = weights + _MEMORY_BESIDE_WEIGHTS, available_bytes()
    if needed > free:
        raise MemoryError(
            f"this engine needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; choose an "
            "engine of fewer bits or a smaller model"
        )


def available_bytes() -> int:
    """Memory that a new process can have without swapping, as Linux tells it; elsewhere no limit is known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def with_random_weights(config: TinyWaveConfig, dtype: torch.dtype) -> TinyWaveForCausalLM:
    """A model whose weights are one block of random numbers over and over, made in the time of writing them."""
    with torch.device("meta"):
        model = TinyWaveForCausalLM(config).to(dtype)
    model = model.to_empty(device="cpu").eval()
    block = 0.02 * torch.randn(_RANDOM_BLOCK)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            fill(module.int8_weight, (block * 2000).round().clamp(-127, 127).to(torch.int8))
            module.scale.fill_(1e-5)
    for parameter in model.parameters():
        fill(parameter.data, block.to(dtype))
    # What a model computes from its configuration has no weights to load, and is made anew.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def fill(tensor: torch.Tensor, block: torch.Tensor) -> None:
    """Write a block over and over into a tensor."""
    flat = tensor.view(-1)
    for start in range(0, len(flat), len(block)):
        flat[start : start + len(block)] = block[: len(flat) - start]


def prefill(model: nn.Module, ids: torch.Tensor) -> DynamicCache:
    """The cache of a prompt, ids `(1, T)`."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def next_token(model: nn.Module, ids: torch.Tensor, cache: DynamicCache) -> Callable[[], int]:
    """A function that generates one more token, the likeliest."""
    state = [ids]

    def step() -> int:
        logits = model(input_ids=state[0], past_key_values=cache, use_cache=True).logits
        state[0] = logits[:, -1].argmax(-1, keepdim=True)
        return int(state[0])

    return step


def count_weights(model: nn.Module) -> int:
    """Weights of a model, whatever they are stored in."""
    quantized = [module for module in model.modules() if isinstance(module, Int8Linear)]
    in_linears = sum(module.in_features * module.out_features for module in quantized)
    return sum(parameter.numel() for parameter in model.parameters()) + in_linears


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers, which every token reads."""
    total = 0
    for module in model.modules():
        if isinstance(module, Int8Linear):
            total += module.in_features * module.out_features + 4 * module.out_features
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() * module.weight.element_size()
    return total


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def compare_engines(model_name: str, engines: tuple[str, ...] = ENGINES) -> list[dict]:
    """A row for each engine, with its speed over that of transformers in bfloat16, by CPU time.

    An engine that does not fit into memory has a row that says so.
    """
    rows = [_measure_in_own_process(model_name, engine) for engine in tqdm(engines, unit="engine", desc="Decoding")]
    cost = {row["engine"]: row["cpu_seconds_per_token"] for row in rows if "cpu_seconds_per_token" in row}
    for row in rows:
        if {REFERENCE, row["engine"]} <= cost.keys():
            row["vs_transformers_bf16"] = cost[REFERENCE] / cost[row["engine"]]
    return rows


def _measure_in_own_process(model_name: str, engine: str) -> dict:
    command = [sys.executable, "-m", "tinywave.cli.main", "bench", "--model", model_name, "--engine", engine, "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return {"engine": engine, "model": model_name, "not_measured": result.stderr.strip().splitlines()[-1]}
    return json.loads(result.stdout)


def main() -> None:
    """Measure all engines and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="speech-base-2b", help="preset, or folder of a model")
    parser.add_argument("--output", help="JSON file of the rows")
    arguments = parser.parse_args()
    rows = compare_engines(arguments.preset)
    if arguments.output:
        write_json(rows, arguments.output)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
