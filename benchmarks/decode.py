"""How fast a model speaks: tokens a second, time to the first, memory, and what share of the machine's limit that is.

    python -m tinywave.benchmarks.decode --preset speech-base-2b --output benchmarks/results/decode.json

Speed does not depend on what a model has learned, so a preset is given random weights. Every engine runs in a process
of its own, which makes its peak of memory its own. Quote the ratios of one run, and of CPU time; on a machine that
others use too, wall-clock times say little.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import DynamicCache

from ..configuration_tinywave import TinyWaveConfig
from ..data.storage import write_json
from ..engines.onnx_model import OnnxForCausalLM, is_onnx_folder, read_record
from ..loading_tinywave import load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from ..quantization_tinywave import INT8, Int8Linear
from .machine import measure_limits, medians

TORCH_ENGINES = ("torch-float32", "torch-bfloat16", "torch-int8")
# The type of the weights follows the name.
LLAMA_CPP, ONNX = "llama.cpp-", "onnx-"
ENGINES = (*TORCH_ENGINES, f"{LLAMA_CPP}q8_0", f"{LLAMA_CPP}q4_0", f"{ONNX}int8", f"{ONNX}int4")
REFERENCE = "torch-bfloat16"
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 128, 16
# De-duplicated units alone, and merged with pitch and style.
TOKENS_PER_SECOND_OF_SPEECH = {"units": 18.0, "units, pitch and style": 28.0}
_MEMORY_BESIDE_WEIGHTS = 0.8e9
_BYTES_OF_ENGINE = {
    "torch-float32": 4,
    "torch-bfloat16": 2,
    "torch-int8": 1,
    f"{LLAMA_CPP}q8_0": 34 / 32,
    f"{LLAMA_CPP}q4_0": 18 / 32,
    # The embedding is in 16 bits; scales and zero points come on top.
    f"{ONNX}int8": 1.1,
    f"{ONNX}int4": 0.7,
}
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
        product_gflops (`dict`): of the machine, type -> billions of operations a second of a matrix product.
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
    product_gflops: dict[str, float]
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
    measure = _measure_llama_cpp if engine.startswith(LLAMA_CPP) else _measure_model
    config, costs = measure(model_name, engine, num_prompt_tokens, num_new_tokens)
    limits = measure_limits()
    speech_rate = TOKENS_PER_SECOND_OF_SPEECH["units, pitch and style" if config.prosody_streams else "units"]
    return DecodeRow(
        engine=engine,
        model=model_name,
        num_parameters=costs.num_parameters,
        num_threads=limits.num_threads,
        tokens_per_second=1 / costs.seconds_per_token,
        cpu_seconds_per_token=costs.cpu_seconds_per_token,
        first_token_seconds=costs.first_token_seconds,
        peak_mb=costs.peak / 1e6,
        weights_mb=costs.weights / 1e6,
        bandwidth_gbs=limits.bandwidth_gbs,
        product_gflops=limits.product_gflops,
        efficiency=costs.weights / costs.seconds_per_token / (limits.bandwidth_gbs * 1e9),
        real_time_factor=speech_rate * costs.seconds_per_token,
    )


@dataclass(frozen=True)
class _Costs:
    """What an engine takes: seconds, and bytes of memory and of the weights that a token reads."""

    num_parameters: int
    seconds_per_token: float
    cpu_seconds_per_token: float
    first_token_seconds: float
    peak: int
    weights: int


def _measure_model(
    model_name: str, engine: str, num_prompt_tokens: int, num_new_tokens: int
) -> tuple[TinyWaveConfig, _Costs]:
    model = load_engine(model_name, engine) if engine in TORCH_ENGINES else load_onnx(model_name, engine)
    ids = random_prompt(model.config, num_prompt_tokens + 1)
    with torch.inference_mode():
        first_token_seconds, _ = medians(lambda: prefill(model, ids[:, :-1]), repeats=1)
        cache = prefill(model, ids[:, :-1])
        wall, cpu = medians(next_token(model, ids[:, -1:], cache), repeats=num_new_tokens)
    return model.config, _Costs(
        count_weights(model), wall, cpu, first_token_seconds, peak_bytes(), weight_bytes(model)
    )


def load_onnx(model_name: str, engine: str) -> OnnxForCausalLM:
    """A model in ONNX: of a folder that was exported so, or exported now, from a folder or a preset.

    Raises `ValueError` for a folder of other weights than the engine's.
    """
    if is_onnx_folder(model_name):
        if (found := read_record(model_name)["engine"]) != engine:
            raise ValueError(f"{model_name} is an export; its engine is {found}, not {engine}")
        return OnnxForCausalLM.from_pretrained(model_name)
    check_memory(count_in_config(read_config(model_name))[0] * _BYTES_OF_ENGINE[engine])
    with tempfile.TemporaryDirectory() as folder:
        _write_in_own_process(write_onnx, model_name, Path(folder) / "model", engine.removeprefix(ONNX))
        # The weights are in memory, or mapped, when the folder goes.
        return OnnxForCausalLM.from_pretrained(Path(folder) / "model")


def write_onnx(model_name: str, folder: str | os.PathLike, weights: str) -> None:
    """Write a folder's model, or a preset with random weights, as ONNX."""
    from ..engines.onnx_export import export_onnx  # the package onnx is optional

    export_onnx(load_engine(model_name, "torch-bfloat16"), None, folder, weights)


def _write_in_own_process(write: Callable, *arguments) -> None:
    """What writing a file takes is no part of what running it takes."""
    writer = multiprocessing.get_context("spawn").Process(target=write, args=arguments)
    writer.start()
    writer.join()
    if writer.exitcode:
        raise ValueError(f"writing {arguments[0]} for another engine failed; see the lines above")


def _measure_llama_cpp(
    model_name: str, engine: str, num_prompt_tokens: int, num_new_tokens: int
) -> tuple[TinyWaveConfig, _Costs]:
    config, weights_type = read_config(model_name), engine.removeprefix(LLAMA_CPP)
    ids = random_prompt(config, num_prompt_tokens)[0].tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        _write_in_own_process(write_gguf, model_name, path, weights_type)
        short, long = complete_with_llama_cpp(path, ids, (1, 1 + num_new_tokens))
    num_parameters, in_linears = count_in_config(config)
    return config, _Costs(
        num_parameters=num_parameters,
        seconds_per_token=long.seconds / num_new_tokens,
        cpu_seconds_per_token=(long.cpu_seconds - short.cpu_seconds) / num_new_tokens,
        first_token_seconds=short.prompt_seconds,
        peak=peak_bytes(),
        weights=round(in_linears * _BYTES_OF_ENGINE[engine]),
    )


@dataclass(frozen=True)
class Completion:
    """What llama.cpp did with a prompt: ids, wall-clock seconds of the prompt and of the rest, CPU seconds of both."""

    ids: list[int]
    prompt_seconds: float
    seconds: float
    cpu_seconds: float


def complete_with_llama_cpp(path: str | os.PathLike, ids: list[int], lengths: tuple[int, ...]) -> list[Completion]:
    """Continue a prompt greedily, once for each number of new tokens, with as many threads as PyTorch uses.

    Raises `ModuleNotFoundError` without the package xllamacpp.
    """
    import xllamacpp  # an optional package, and a large one

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = len(ids) + max(lengths) + 8
    parameters.cpuparams.n_threads = torch.get_num_threads()
    server, completions = xllamacpp.Server(parameters), []
    for length in lengths:
        request = {"prompt": ids, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        start = time.process_time()
        reply = server.handle_completions({**request, "logprobs": 1})
        used = time.process_time() - start
        new_ids = [token["id"] for token in reply["choices"][0]["logprobs"]["content"]]
        timings = reply["timings"]
        completions.append(Completion(new_ids, timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3, used))
    return completions


def write_gguf(model_name: str, path: str | os.PathLike, weights: str) -> None:
    """Write a folder's model, or a preset with random weights, as GGUF."""
    from ..convert.gguf_export import export_gguf  # the package gguf is optional

    model = load_engine(model_name, "torch-bfloat16")
    folder = Path(model_name) if (Path(model_name) / "tokenizer.json").is_file() else None
    export_gguf(model, folder and folder / "tokenizer.json", path, weights)


def random_prompt(config: TinyWaveConfig, length: int) -> torch.Tensor:
    """Ids `(1, length)` of random units."""
    return torch.randint(config.unit_offset, config.unit_offset + config.num_units, (1, length))


def read_config(model_name: str) -> TinyWaveConfig:
    """The configuration of a folder or of a preset."""
    is_folder = (Path(model_name) / "config.json").is_file()
    return TinyWaveConfig.from_pretrained(model_name) if is_folder else TinyWaveConfig.from_preset(model_name)


def count_in_config(config: TinyWaveConfig) -> tuple[int, int]:
    """Weights of a model, and those of its linear layers, without making it."""
    with torch.device("meta"):
        model = TinyWaveForCausalLM(config)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear | Int8Linear)]
    return count_weights(model), sum(linear.in_features * linear.out_features for linear in linears)


def load_engine(model_name: str, engine: str) -> TinyWaveForCausalLM:
    """A model ready to generate: of a folder, or of a preset with random weights.

    Raises `MemoryError` before anything is loaded where the weights would not fit into the memory that is free.
    """
    is_folder, config = (Path(model_name) / "config.json").is_file(), read_config(model_name)
    if is_onnx_folder(model_name):
        raise ValueError(f"{model_name} is an export; its engine is {read_record(model_name)['engine']}, not {engine}")
    if config.weight_format == INT8 and engine != "torch-int8":
        raise ValueError(f"{model_name} is stored in 8 bits; its engine is torch-int8, not {engine}")
    check_memory(count_in_config(config)[0] * _BYTES_OF_ENGINE[engine])
    dtype = torch.float32 if engine == "torch-float32" else torch.bfloat16
    if not is_folder:
        config.weight_format = INT8 if engine == "torch-int8" else None
        return with_random_weights(config, dtype)
    model = load_pretrained(TinyWaveForCausalLM, model_name, dtype=dtype)
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
    """A model whose weights are one block of random numbers over and over, made in the time of writing them.

    No two tensors are alike: ONNX Runtime keeps equal ones once, and would show less memory than a real model takes.
    """
    with torch.device("meta"):
        model = TinyWaveForCausalLM(config).to(dtype)
    model = model.to_empty(device="cpu").eval()
    block = 0.02 * torch.randn(_RANDOM_BLOCK)
    for index, module in enumerate(model.modules()):
        if isinstance(module, Int8Linear):
            fill(module.int8_weight, (block.roll(index) * 2000).round().clamp(-127, 127).to(torch.int8))
            module.scale.fill_(1e-5)
    for index, parameter in enumerate(model.parameters()):
        fill(parameter.data, block.roll(index).to(dtype))
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
    if isinstance(model, OnnxForCausalLM):
        return model.num_parameters()
    quantized = [module for module in model.modules() if isinstance(module, Int8Linear)]
    in_linears = sum(module.in_features * module.out_features for module in quantized)
    return sum(parameter.numel() for parameter in model.parameters()) + in_linears


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers, which every token reads."""
    if isinstance(model, OnnxForCausalLM):
        return model.record["linear_bytes"]
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


def compare_engines(
    model_name: str,
    engines: tuple[str, ...] = ENGINES,
    num_prompt_tokens: int = NUM_PROMPT_TOKENS,
    num_new_tokens: int = NUM_NEW_TOKENS,
    *,
    num_threads: int | None = None,
) -> list[dict]:
    """A row for each engine, with its speed over that of transformers in bfloat16, by CPU time.

    Each is measured in a process of its own, with `num_threads` threads (default: PyTorch's choice). An engine that
    does not fit into memory has a row that says so.
    """
    options = ["--prompt-tokens", str(num_prompt_tokens), "--new-tokens", str(num_new_tokens)]
    options += ["--threads", str(num_threads)] if num_threads else []
    rows = [
        _measure_in_own_process(model_name, engine, options)
        for engine in tqdm(engines, unit="engine", desc="Decoding")
    ]
    cost = {row["engine"]: row["cpu_seconds_per_token"] for row in rows if "cpu_seconds_per_token" in row}
    for row in rows:
        if {REFERENCE, row["engine"]} <= cost.keys():
            row["vs_transformers_bf16"] = cost[REFERENCE] / cost[row["engine"]]
    return rows


def _measure_in_own_process(model_name: str, engine: str, options: list[str]) -> dict:
    command = [sys.executable, "-m", "tinywave.cli.main", "bench", "--model", model_name, "--engine", engine, "--json"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
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
