"""Pairs scored per second, against the plain loop that the toolkits of spoken language models run.

    python -m tinywave.benchmarks.scoring --output benchmarks/results/scoring.json

Both score the same pairs with the same model: `evaluate_suite` in batches, and one forward pass a half with the
log-softmax of all logits, as SALMon's and slamkit's code does at its default batch size of 1. They take turns, and the
time of the process is taken as well as that of the clock, because other programs use the machine too.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..data.storage import write_json
from ..eval.sequence_formats import SpeechSequenceFormat
from ..eval.suites import HALVES, Pair, evaluate_suite, read_suite
from ..loading_tinywave import load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM

ASSETS = Path(__file__).resolve().parent.parent / "assets"
ONE_BY_ONE, BATCHED = "one_by_one", "evaluate_suite"
SUITES = ("lexical", "syntactic", "story", "speaker")


@torch.no_grad()
def score_one_by_one(model: TinyWaveForCausalLM, pairs: Sequence[Pair]) -> list[float]:
    """Credits of pairs by mean log-likelihood: a forward pass a half, float32, all logits."""
    sequence_format = SpeechSequenceFormat(model.config)
    num_prefix_ids = len(sequence_format.prefix_ids)
    credits = []
    for pair in pairs:
        means = []
        for half in HALVES:
            ids = torch.tensor([sequence_format.speech_to_sequence(pair.half(half))])
            log_probabilities = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            scores = log_probabilities.gather(1, ids[0, 1:, None])[num_prefix_ids - 1 :]
            means.append(scores.mean().item())
        positive, negative = means
        credits.append(1.0 if positive > negative else 0.5 if positive == negative else 0.0)
    return credits


def measure_suite(model: TinyWaveForCausalLM, pairs: Sequence[Pair], batch_size: int, repeats: int) -> dict:
    """Cost of both ways on the same pairs, JSON-ready.

    Returns:
        `dict`: for each way the medians "cpu_seconds", "wall_seconds" and the "pairs_per_second" of the clock;
        "cpu_ratio" and "wall_ratio", the medians over repeats of plain / batched, above 1 where batches are faster;
        and how many decisions differ.
    """
    ways = {
        ONE_BY_ONE: lambda: score_one_by_one(model, pairs),
        BATCHED: lambda: evaluate_suite(model, pairs, batch_size=batch_size).credits,
    }
    score_one_by_one(model, pairs[:batch_size]), evaluate_suite(model, pairs[:batch_size], batch_size=batch_size)
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    credits = {}
    for index in range(repeats):
        # The order alternates, so that neither profits from going second.
        for name in list(ways)[:: 1 if index % 2 == 0 else -1]:
            cost, credits[name] = _measure(ways[name])
            costs[name].append(cost)
    both = zip(credits[ONE_BY_ONE], credits[BATCHED], strict=True)
    return {
        "num_pairs": len(pairs),
        "batch_size": batch_size,
        "repeats": repeats,
        **{name: _summarise(costs[name], len(pairs)) for name in ways},
        "cpu_ratio": _ratio(costs, 0),
        "wall_ratio": _ratio(costs, 1),
        "num_different_decisions": sum(plain != batched for plain, batched in both),
    }


def _measure(function: Callable[[], list[float]]) -> tuple[tuple[float, float], list[float]]:
    """Seconds of the process and of the clock, and what the function returns."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return (time.process_time() - cpu, time.perf_counter() - wall), result


def _summarise(costs: list[tuple[float, float]], num_pairs: int) -> dict:
    cpu, wall = (statistics.median(seconds) for seconds in zip(*costs, strict=True))
    return {"cpu_seconds": cpu, "wall_seconds": wall, "pairs_per_second": num_pairs / wall}


def _ratio(costs: dict[str, list[tuple[float, float]]], clock: int) -> float:
    repeats = zip(costs[ONE_BY_ONE], costs[BATCHED], strict=True)
    return statistics.median(plain[clock] / batched[clock] for plain, batched in repeats)


def measure(
    suites: Sequence[str] = ("lexical",), num_pairs: int | None = None, batch_size: int = 16, repeats: int = 3
) -> dict:
    """Costs on the first `num_pairs` (default: all) of each shipped suite, by the shipped teacher reading units."""
    model = load_pretrained(TinyWaveForCausalLM, ASSETS / "teacher", dtype=torch.float32)
    model.config = model.config.with_streams(["unit"])
    return {
        "suites": {
            name: measure_suite(
                model, read_suite(ASSETS / "suites" / f"{name}.parquet")[:num_pairs], batch_size, repeats
            )
            for name in suites
        },
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    """Print the ratios; write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure pairs scored per second, batched against one by one.")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=["lexical"], help="default: lexical")
    parser.add_argument("--num-pairs", type=int, help="only the first pairs of each suite (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences per forward pass (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the result as JSON to this file")
    arguments = parser.parse_args(argv)
    result = measure(arguments.suites, arguments.num_pairs, arguments.batch_size, arguments.repeats)
    for name, record in result["suites"].items():
        rates = " against ".join(f"{record[way]['pairs_per_second']:.1f}" for way in (BATCHED, ONE_BY_ONE))
        ratios = f"{record['wall_ratio']:.2f}x (process time {record['cpu_ratio']:.2f}x)"
        decisions = f"{record['num_different_decisions']} of {record['num_pairs']} decisions differ"
        print(f"{name:10s} {rates} pairs a second, {ratios}, {decisions}")
    if arguments.output:
        write_json(result, arguments.output)


if __name__ == "__main__":
    main()
