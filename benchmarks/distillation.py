"""What each term of distillation costs in time and memory, each measurement in a fresh process.

    python -m tinywave.benchmarks.distillation [--output benchmarks/results/distill.json]

A teacher of 278 M and a student of 85 M parameters with random weights take one step of 2,048 tokens in rows of 256,
1,024 and 2,048 tokens. Machines are shared, so read the ratios: the variants take turns (A B C, C B A, ...), on one
thread, and CPU time of the process is counted. Memory is what a step uses beyond the loaded models.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ..data.storage import write_json
from ..training.throughput import forward_flops_per_token
from .distillation_steps import (
    ATTENTION,
    CHUNKED_LOGIT_KD,
    EAGER_ATTENTION,
    FULL_LOGIT_KD,
    HIDDEN,
    LOGIT_KD_VARIANTS,
    LOGITS,
    SIZES,
    STEP_VARIANTS,
)

LABELS = {
    LOGITS: "logits only",
    HIDDEN: "+ hidden states",
    ATTENTION: "+ attention",
    EAGER_ATTENTION: "+ attention by output_attentions=True",
    FULL_LOGIT_KD: "logit KD, all logits at once",
    CHUNKED_LOGIT_KD: "logit KD in chunks",
}
# Dense bf16 peaks in TFLOP/s, of the data sheets of the SXM cards.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312}
NO_GPU = "no CUDA device"
# What glibc keeps of freed memory differs from run to run by a third of a step's; with these, tensors are given back.
_RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
# Where the targets are set, and where the growth of memory with T is read.
TARGET_LENGTH, LONGEST_LENGTH = 1024, 2048


def measure_variants(variants: Sequence[str], seq_len: int, size: str, num_pairs: int) -> dict[str, list[dict]]:
    """Measure variants in turns, each in a process of its own, the order turned round from one turn to the next.

    Args:
        variants (`Sequence[str]`): of `STEP_VARIANTS` and `LOGIT_KD_VARIANTS`.
        seq_len (`int`): T, in tokens.
        size (`str`): a key of `SIZES`.
        num_pairs (`int`): turns.

    Returns:
        `dict`: the records of each variant, see [`~distillation_steps.measure`], in the order of the turns. A variant
        for which the memory does not suffice has one record.
    """
    records: dict[str, list[dict]] = {variant: [] for variant in variants}
    for turn in range(num_pairs):
        for variant in variants if turn % 2 == 0 else reversed(variants):
            if not any("not_measured" in record for record in records[variant]):
                records[variant].append(_measure_in_process(variant, seq_len, size))
    return records


def _measure_in_process(variant: str, seq_len: int, size: str) -> dict:
    command = [sys.executable, "-m", f"{__package__}.distillation_steps", variant, str(seq_len), "--size", size]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | _RETURN_FREED_MEMORY)
    if process.returncode == -signal.SIGKILL:
        return {"not_measured": "out of memory"}
    if process.returncode:
        raise RuntimeError(f"{LABELS[variant]} at {seq_len} tokens failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def records_to_row(variant: str, seq_len: int, records: Sequence[Mapping]) -> dict:
    """One row of the results: medians of the records of a variant, and the records themselves as "samples"."""
    row = {"variant": variant, "seq_len": seq_len, "cpu_seconds": None, "peak_mb": None}
    reasons = [record["not_measured"] for record in records if "not_measured" in record]
    if reasons:
        return row | {"not_measured": reasons[0]}
    row["cpu_seconds"] = statistics.median(record["seconds"] for record in records)
    row["peak_mb"] = statistics.median(record["peak_mb"] for record in records)
    return row | {"samples": list(records)}


def measure_rows(size: str, num_pairs: int) -> Iterator[dict]:
    """Yield the rows of one size: every step at every length, and at the longest the logit KD alone."""
    for seq_len in SIZES[size].seq_lens:
        for variant, records in measure_variants(STEP_VARIANTS, seq_len, size, num_pairs).items():
            yield records_to_row(variant, seq_len, records)
    for variant, records in measure_variants(LOGIT_KD_VARIANTS, seq_len, size, num_pairs).items():
        yield records_to_row(variant, seq_len, records)


def measure_gpu_rows() -> list[dict]:
    """The published pair in bf16 on a GPU; rows that say "not_measured" where there is none.

    Each row has "step_seconds", "peak_mb", and for whole steps "tokens_per_second" and "model_flops_utilisation", the
    share of the card's dense peak (`None` for a card that is not known).
    """
    seq_len = SIZES["published"].seq_lens[-1]
    variants = (*STEP_VARIANTS, *LOGIT_KD_VARIANTS)
    if not torch.cuda.is_available():
        return [{"variant": variant, "seq_len": seq_len, "not_measured": NO_GPU} for variant in variants]
    return [_gpu_row(variant, seq_len, _measure_in_process(variant, seq_len, "published")) for variant in variants]


def _gpu_row(variant: str, seq_len: int, record: Mapping) -> dict:
    row = {"variant": variant, "seq_len": seq_len}
    if "not_measured" in record:
        return row | dict(record)
    row |= {"step_seconds": record["seconds"], "peak_mb": record["peak_mb"]}
    if variant in LOGIT_KD_VARIANTS:
        return row
    size = SIZES["published"]
    teacher, student = (forward_flops_per_token(config, seq_len) for config in size.configs())
    flops = (teacher + 3 * student) * size.num_tokens / record["seconds"]
    name = torch.cuda.get_device_name()
    peak = next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)
    return row | {
        "device": name,
        "tokens_per_second": size.num_tokens / record["seconds"],
        "model_flops_utilisation": None if peak is None else flops / (peak * 1e12),
    }


def time_ratio(first: Mapping, second: Mapping) -> float | None:
    """Median over the turns of first / second in CPU time; `None` where either was not measured."""
    if "samples" not in first or "samples" not in second:
        return None
    pairs = zip(first["samples"], second["samples"], strict=True)
    return statistics.median(one["seconds"] / other["seconds"] for one, other in pairs)


def memory_ratio(first: Mapping, second: Mapping, base: Mapping | None = None) -> float | None:
    """`first / second` in peak memory, each above that of `base` if there is one.

    `None` where a row was not measured, or where the second takes no more than the base.
    """
    peaks = [row["peak_mb"] for row in (first, second)]
    peaks.append(0.0 if base is None else base["peak_mb"])
    if None in peaks or peaks[1] <= peaks[2]:
        return None
    return (peaks[0] - peaks[2]) / (peaks[1] - peaks[2])


def compare_with_targets(rows: Sequence[Mapping]) -> list[dict]:
    """What the rows say about each target: {name, value, target, met}; value and met are `None` if not measured."""
    found = {(row["variant"], row["seq_len"]): row for row in rows}

    def at(variant: str, seq_len: int = TARGET_LENGTH) -> Mapping:
        return found.get((variant, seq_len), {"peak_mb": None})

    full, chunked = at(FULL_LOGIT_KD, LONGEST_LENGTH), at(CHUNKED_LOGIT_KD, LONGEST_LENGTH)
    return [
        _compare("time, all terms / logits only, T = 1024", time_ratio(at(ATTENTION), at(LOGITS)), at_most=1.05),
        _compare("memory, all terms / logits only, T = 1024", memory_ratio(at(ATTENTION), at(LOGITS)), at_most=1.1),
        _compare("time, eager maps / ours, T = 1024", time_ratio(at(EAGER_ATTENTION), at(ATTENTION)), at_least=1.4),
        _compare(
            "memory of the attention term, ours / eager maps, T = 1024",
            memory_ratio(at(ATTENTION), at(EAGER_ATTENTION), base=at(HIDDEN)),
            at_most=0.5,
        ),
        # At equal tokens a step, what is linear in T for one row stays the same, and what is quadratic doubles.
        _compare(
            "memory of all terms, T = 2048 / T = 1024, at equal tokens",
            memory_ratio(at(ATTENTION, LONGEST_LENGTH), at(ATTENTION)),
            at_most=1.1,
        ),
        _compare("memory of logit KD in chunks, MB", chunked["peak_mb"], at_most=200.0),
        _compare("time, logit KD in chunks / all at once", time_ratio(chunked, full), at_most=1.05),
    ]


def _compare(name: str, value: float | None, at_most: float | None = None, at_least: float | None = None) -> dict:
    target = f"at most {at_most:g}" if at_least is None else f"at least {at_least:g}"
    met = None
    if value is not None:
        met = value <= at_most if at_least is None else value >= at_least
    return {"name": name, "value": value, "target": target, "met": met}


def row_to_text(row: Mapping, base: Mapping) -> str:
    """One line for the terminal: medians, and how often the row takes what `base` takes.

    >>> base = {"variant": "logits", "seq_len": 256, "cpu_seconds": 2.0, "peak_mb": 50, "samples": [{"seconds": 2.0}]}
    >>> row_to_text({**base, "cpu_seconds": 3.0, "samples": [{"seconds": 3.0}]}, base)
    '  256  logits only                                3.00 s  1.50x       50 MB  1.00x'
    >>> row_to_text({"variant": "logits", "seq_len": 256, "not_measured": "out of memory"}, base)
    '  256  logits only                             not measured: out of memory'
    """
    head = f"{row['seq_len']:5d}  {LABELS[row['variant']]:38s}"
    if "not_measured" in row:
        return f"{head}  not measured: {row['not_measured']}"
    ratios = [_ratio_to_text(ratio) for ratio in (time_ratio(row, base), memory_ratio(row, base))]
    return f"{head} {row['cpu_seconds']:8.2f} s {ratios[0]} {row['peak_mb']:8.0f} MB {ratios[1]}"


def _ratio_to_text(ratio: float | None) -> str:
    return "     -" if ratio is None else f"{ratio:5.2f}x"


def measure(size: str, num_pairs: int) -> dict:
    """All rows, printed as they come, and what they say about the targets; JSON-ready."""
    rows, base = [], {}
    for row in measure_rows(size, num_pairs):
        if row["variant"] in (LOGITS, FULL_LOGIT_KD):
            base = row
        print(row_to_text(row, base), flush=True)
        rows.append(row)
    gpu_rows = measure_gpu_rows()
    targets = compare_with_targets(rows)
    for target in targets:
        value = "not measured" if target["value"] is None else f"{target['value']:.2f}"
        print(f"{target['name']:60s} {value:>12s}  ({target['target']})")
    return {
        "rows": rows,
        "gpu_rows": gpu_rows,
        "targets": targets,
        "size": size,
        "num_tokens": SIZES[size].num_tokens,
        "num_pairs": num_pairs,
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    """Print rows and targets; write them as JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure what each term of distillation costs.")
    parser.add_argument("--num-pairs", type=int, default=2, help="turns that every variant takes (default: 2)")
    parser.add_argument(
        "--size", choices=("full", "tiny"), default="full", help="tiny tries the command out (default: full)"
    )
    parser.add_argument("--output", type=Path, help="also write the result as JSON to this file")
    arguments = parser.parse_args(argv)
    result = measure(arguments.size, arguments.num_pairs)
    if arguments.output:
        write_json(result, arguments.output)


if __name__ == "__main__":
    main()
