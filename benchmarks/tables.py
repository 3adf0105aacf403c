"""The records of the benchmarks as tables, on the page about speed.

    python -m tinywave.benchmarks.tables

Every table stands between two markers of its name, `<!-- decode:start -->` and `<!-- decode:end -->`, and is made from
`benchmarks/results/<name>.json`. What was not measured has no record, and its table says so.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..eval.results_table import write_between_markers
from .distillation import LABELS as STEP_LABELS
from .distillation import memory_ratio, time_ratio
from .distillation_steps import FULL_LOGIT_KD, LOGIT_KD_VARIANTS, LOGITS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "performance.md",)
ENGINE_LABELS = {
    "torch-float32": "PyTorch float32",
    "torch-bfloat16": "PyTorch bfloat16",
    "torch-int8": "PyTorch, 8 bits",
    "onnx-int8": "ONNX Runtime, 8 bits",
    "onnx-int4": "ONNX Runtime, 4 bits",
    "llama.cpp-q8_0": "llama.cpp Q8_0",
    "llama.cpp-q4_0": "llama.cpp Q4_0",
}
NOT_MEASURED = "not measured"


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds names, and the others numbers.

    >>> print(to_markdown(["engine", "speed"], [["fast", "2x"]]))
    | engine | speed |
    |---|---:|
    | fast | 2x |
    """
    lines = [head, *rows]
    return "\n".join(
        [f"| {' | '.join(lines[0])} |", "|---|" + "---:|" * (len(head) - 1)]
        + [f"| {' | '.join(line)} |" for line in lines[1:]]
    )


def decode_table(rows: Sequence[Mapping]) -> str:
    """The rows of `benchmarks.decode`."""
    head = ["engine", "CPU seconds per token", "speed-up over transformers bfloat16", "tokens per second"]
    head += ["share of the bandwidth limit", "peak memory"]
    lines = []
    for row in rows:
        label = ENGINE_LABELS[row["engine"]]
        if "not_measured" in row:
            lines.append([label, NOT_MEASURED, *[""] * 4])
            continue
        lines.append(
            [
                label,
                f"{row['cpu_seconds_per_token']:.3f}",
                f"{row['vs_transformers_bf16']:.1f}x" if "vs_transformers_bf16" in row else "",
                f"{row['tokens_per_second']:.1f}",
                f"{100 * row['efficiency']:.0f} %",
                f"{row['peak_mb'] / 1e3:.1f} GB",
            ]
        )
    return to_markdown(head, lines)


def distillation_table(record: Mapping) -> str:
    """The rows of `benchmarks.distillation`, each against the logits alone, or all logits at once, at its length."""
    bases = {
        (row["variant"] in LOGIT_KD_VARIANTS, row["seq_len"]): row
        for row in record["rows"]
        if row["variant"] in (LOGITS, FULL_LOGIT_KD)
    }
    lines = []
    for row in record["rows"]:
        cells = [NOT_MEASURED, "", "", ""]
        if "not_measured" not in row:
            base = bases[row["variant"] in LOGIT_KD_VARIANTS, row["seq_len"]]
            cells = [f"{row['cpu_seconds']:.1f}", f"{time_ratio(row, base):.2f}x"]
            cells += [f"{row['peak_mb']:,.0f}", f"{memory_ratio(row, base):.2f}x"]
        lines.append([f"{STEP_LABELS[row['variant']]}, T = {row['seq_len']:,}", *cells])
    return to_markdown(["one step of 2,048 tokens", "CPU seconds", "", "memory, MB", ""], lines)


def scoring_table(record: Mapping) -> str:
    """The suites of `benchmarks.scoring`."""
    lines = [
        [
            suite,
            f"{scores['num_pairs']:,}",
            f"{scores['cpu_ratio']:.1f}x",
            f"{scores['num_different_decisions']} of {scores['num_pairs']:,}",
        ]
        for suite, scores in record["suites"].items()
    ]
    return to_markdown(["suite", "pairs", "CPU time, one at a time / batched", "decisions that differ"], lines)


def batched_decoding_table(record: Mapping) -> str:
    """Each way of `benchmarks.batched_decoding`, with its gain over `generate`, for each model."""
    models = [name for name, value in record.items() if isinstance(value, Mapping)]
    lines = []
    for way in record[models[0]]:
        rates = [(record[name][way]["tokens_per_cpu_second"], record[name][way]["times_generate"]) for name in models]
        lines.append([way, *(f"{rate:.0f} ({times:.2f}x)" for rate, times in rates)])
    return to_markdown(["tokens per CPU second", *models], lines)


def conversation_turns_table(record: Mapping) -> str:
    """The first and every second further turn of `benchmarks.conversation_turns`."""
    lines = []
    for streams, turns in record.items():
        if isinstance(turns, Sequence):
            for number, turn in list(enumerate(turns, start=1))[1::2]:
                milliseconds = [f"{1e3 * turn[way]['cpu']:.0f} ms" for way in ("without_cache", "with_cache")]
                lines.append([f"{streams}, turn {number}", f"{turn['prompt_tokens']:,}", f"{turn['tokens_read']:,}"])
                lines[-1] += milliseconds
    head = ["conversation", "tokens of the prompt", "computed with the cache"]
    head += ["first token without the cache", "first token with the cache"]
    return to_markdown(head, lines)


def latency_table(record: Mapping) -> str:
    """Both kinds of streams of `benchmarks.latency`."""
    stages = ("encode", "first_token", "first_audio")
    lines = [
        [
            streams,
            *(f"{1e3 * stage['wall']:.0f} ms" for stage in map(measured.get, stages)),
            f"{measured['real_time_factor']['wall']:.2f}",
        ]
        for streams, measured in record.items()
        if isinstance(measured, Mapping)
    ]
    head = ["streams", "encode the prompt", "first token", "first audio after encoding"]
    return to_markdown([*head, "seconds of computation per second of speech"], lines)


def wrapper_table(record: Sequence[Mapping]) -> str:
    """The models of `benchmarks.wrapper`: what a token costs in a bare loop, and how often that it costs otherwise."""
    ways = ("transformers", "generate", "stream")
    lines = [
        [row["model"], f"{row['loop']['ms_per_token']:.1f} ms", *(f"{row[way]['ratio']:.2f}x" for way in ways)]
        for row in record
    ]
    head = ["model", "bare loop, per token", "transformers' `generate`", "TinyWave's `generate`", "streamed"]
    return to_markdown(head, lines)


TABLES: dict[str, Callable[..., str]] = {
    "decode": decode_table,
    "distill": distillation_table,
    "scoring": scoring_table,
    "batched_decoding": batched_decoding_table,
    "conversation_turns": conversation_turns_table,
    "latency": latency_table,
    "wrapper": wrapper_table,
}


def write_tables(pages: Sequence[Path] = PAGES, results: Path = RESULTS) -> None:
    """Write every table into the pages that have a place for it.

    Raises `ValueError` for a marker of no table.
    """
    for page in pages:
        for name in re.findall(r"<!-- (\w+):start -->", page.read_text(encoding="utf-8")):
            if name == "results":
                continue
            if name not in TABLES:
                raise ValueError(f"{page} has a place for {name!r}; expected one of {', '.join(TABLES)}")
            path = results / f"{name}.json"
            table = f"*({NOT_MEASURED})*"
            if path.is_file():
                table = TABLES[name](json.loads(path.read_text(encoding="utf-8")))
            write_between_markers(table, page, name)


if __name__ == "__main__":
    write_tables()
