"""What the layers around a model cost: `generate` and the stream of ids against a bare loop of forward passes.

    python -m tinywave.benchmarks.wrapper [--model FOLDER_OR_PRESET ...] [--output benchmarks/results/wrapper.json]

Four ways continue the same prompt by as many of the likeliest tokens, one thread and CPU time, taking turns: a loop
of `forward` and `argmax`; `generate` of transformers, without anything of ours; ours, in a modality; and its ids one
by one from a thread. A call of one token tells what comes before the first step from what every step costs.
"""

import argparse
import json
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import torch
from tqdm.auto import tqdm
from transformers import DynamicCache, GenerationMixin

from ..cli.shipped import TEACHER
from ..data.storage import write_json
from ..generation_tinywave import stream_ids
from ..modeling_tinywave import TinyWaveForCausalLM
from .decode import count_in_config, load_engine, random_prompt, read_config

LOOP, TRANSFORMERS, GENERATE, STREAM = WAYS = ("loop", "transformers", "generate", "stream")
MODELS = (str(TEACHER), "nano-student", "speech-base-2b")
# Above this many parameters a model is run in 8 bits, as it would be on a CPU, and in a fifth of the rounds.
LARGE = 1_000_000_000
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, NUM_ROUNDS = 32, 33, 25
_NUM_SEEDS = 20


@dataclass(frozen=True)
class WrapperCost:
    """One way to continue a prompt.

    Attributes:
        ms_per_token (`float`): CPU milliseconds of a step after the first, median over rounds.
        overhead_ms_per_token (`float`): of these, what the bare loop of the same round did not take; median.
        ratio (`float`): to the bare loop of the same round, median; 1.05 is 5 % more for each token.
        ratio_quartiles (`tuple[float, float]`): the middle half of the rounds' ratios.
        ratio_to_transformers (`float`): the same to `generate` of transformers: what this package adds to it.
        setup_ms (`float`): CPU milliseconds that a call takes once, above the loop's; median.
    """

    ms_per_token: float
    overhead_ms_per_token: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    ratio_to_transformers: float
    setup_ms: float


@torch.no_grad()
def bare_loop(model: TinyWaveForCausalLM, ids: torch.LongTensor, num_tokens: int) -> list[int]:
    """Ids `(1, T)` -> the likeliest tokens after them, with nothing around the forward passes."""
    cache, said = DynamicCache(config=model.config), []
    for _ in range(num_tokens):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        said.append(int(ids))
    return said


def ways_to_continue(model: TinyWaveForCausalLM, ids: torch.LongTensor) -> dict[str, Callable[[int], Sequence[int]]]:
    """By name: a function from a number of tokens to the new ids."""

    def generate(method: Callable, num_tokens: int, **options) -> list[int]:
        new = method(model, input_ids=ids, do_sample=False, max_new_tokens=num_tokens, **options)
        return new[0, ids.shape[1] :].tolist()

    return {
        LOOP: lambda num_tokens: bare_loop(model, ids, num_tokens),
        TRANSFORMERS: lambda num_tokens: generate(GenerationMixin.generate, num_tokens),
        GENERATE: lambda num_tokens: generate(type(model).generate, num_tokens, output_modality="speech"),
        STREAM: lambda num_tokens: list(
            stream_ids(model, input_ids=ids, output_modality="speech", do_sample=False, max_new_tokens=num_tokens)
        ),
    }


def endless_prompt(model: TinyWaveForCausalLM, num_tokens: int) -> torch.LongTensor:
    """Random units `(1, 32)` after which no way ends before so many tokens.

    Raises `ValueError` where none of 20 prompts is one.
    """
    for seed in range(_NUM_SEEDS):
        torch.manual_seed(seed)
        ids = random_prompt(model.config, NUM_PROMPT_TOKENS)
        ways = ways_to_continue(model, ids)
        if all(len(ways[name](num_tokens)) == num_tokens for name in (TRANSFORMERS, GENERATE)):
            return ids
    raise ValueError(f"found no prompt of {_NUM_SEEDS} that is continued by {num_tokens} tokens; ask for fewer")


def measure_wrapper(
    model: TinyWaveForCausalLM, num_tokens: int = NUM_NEW_TOKENS, num_rounds: int = NUM_ROUNDS
) -> dict[str, WrapperCost]:
    """Let the ways take turns, each round beginning with another, and compare them within rounds.

    Args:
        model: any that generates.
        num_tokens, num_rounds: length of a call and number of calls of each way, at least 2 of both.

    Raises `ValueError` for fewer, and for a model that ends too early after any prompt.
    """
    if min(num_tokens, num_rounds) < 2:
        raise ValueError(f"found {num_tokens} tokens and {num_rounds} rounds; at least 2 of both tell a cost")
    ways = ways_to_continue(model, endless_prompt(model, num_tokens))
    first: dict[str, list[float]] = {name: [] for name in WAYS}
    step: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in tqdm(range(num_rounds), unit="round", leave=False):
        for turn in range(len(WAYS)):
            name = WAYS[(number + turn) % len(WAYS)]
            first[name].append(_cpu_ms(ways[name], 1))
            step[name].append((_cpu_ms(ways[name], num_tokens) - first[name][-1]) / (num_tokens - 1))
    return compare_rounds(first, step)


def compare_rounds(first: dict[str, list[float]], step: dict[str, list[float]]) -> dict[str, WrapperCost]:
    """Milliseconds of the first token and of each further one, by way and round -> the cost of each way."""
    costs = {}
    for name in WAYS:
        ratios = _per_round(operator.truediv, step[name], step[LOOP])
        lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        costs[name] = WrapperCost(
            ms_per_token=statistics.median(step[name]),
            overhead_ms_per_token=statistics.median(_per_round(operator.sub, step[name], step[LOOP])),
            ratio=statistics.median(ratios),
            ratio_quartiles=(lower, upper),
            ratio_to_transformers=statistics.median(_per_round(operator.truediv, step[name], step[TRANSFORMERS])),
            setup_ms=statistics.median(_per_round(operator.sub, first[name], first[LOOP])),
        )
    return costs


def _per_round(operation: Callable[[float, float], float], ours: list[float], theirs: list[float]) -> list[float]:
    return list(map(operation, ours, theirs))


def _cpu_ms(continue_by: Callable[[int], object], num_tokens: int) -> float:
    """CPU milliseconds of the whole process."""
    start = process_time()
    continue_by(num_tokens)
    return 1e3 * (process_time() - start)


def measure_model(name: str, num_tokens: int, num_rounds: int) -> dict:
    """The row of a folder or preset; the latter has random weights, on which no cost depends."""
    num_parameters, _ = count_in_config(read_config(name))
    engine = "torch-float32"
    if num_parameters > LARGE:
        engine, num_rounds = "torch-int8", max(2, num_rounds // 5)
    costs = measure_wrapper(load_engine(name, engine), num_tokens, num_rounds)
    return {
        "model": "the shipped teacher" if name == str(TEACHER) else name,
        "num_parameters": num_parameters,
        "engine": engine,
        "num_threads": torch.get_num_threads(),
        "num_prompt_tokens": NUM_PROMPT_TOKENS,
        "num_new_tokens": num_tokens,
        "num_rounds": num_rounds,
        **{way: asdict(cost) for way, cost in costs.items()},
    }


def main() -> None:
    """Measure models one after the other with one thread; print or write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        default=MODELS,
        help="folders or presets; default: the shipped teacher, nano-student, speech-base-2b (4 GB)",
    )
    parser.add_argument("--tokens", type=int, default=NUM_NEW_TOKENS, help="new tokens of a call")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="calls of each way")
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure_model(name, arguments.tokens, arguments.rounds) for name in arguments.model]
    if arguments.output:
        write_json(rows, arguments.output)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
