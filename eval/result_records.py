"""Machine-readable results of `tinywave evaluate`: results.json, pairs.parquet, and results for a model card.

A result is one number of one suite or of one part of it:

- `suite`, `part`: names; the part "all" is the whole suite, "in_vocab" of sWUGGY all but words out of vocabulary;
- `score`: how a half is scored, "mean" (log-likelihood per token), "sum", "local" or "pmi";
- `n`: number of items that the accuracy is the mean of: pairs; in sWUGGY and sBLIMP after averaging their voices;
- `accuracy`: share of pairs whose positive half scores higher; a tie counts half;
- `standard_error`: of the accuracy, robust to correlation within groups; null for a single group;
- `ci95`: `[low, high]`, percentile bootstrap over groups;
- `raw_ratio`, `above_chance_ratio`, where a teacher was scored too: accuracy / the teacher's, and the same after 0.5
  is taken off both; the second is null where the teacher is at or below chance.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from ..data.storage import atomic_file
from .aggregation import AGGREGATIONS, accuracy_by_part, rows_to_accuracy
from .statistics import retention
from .suites import SuiteResult

WHOLE_SUITE = "all"
PAIRS_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("id", pa.string()),
        ("part", pa.string()),
        ("group", pa.string()),
        ("voice", pa.string()),
        ("positive_sum", pa.float64()),
        ("positive_count", pa.int64()),
        ("negative_sum", pa.float64()),
        ("negative_count", pa.int64()),
        ("credit", pa.float64()),
    ]
)
"""Columns of pairs.parquet: L in nats and N in tokens of both halves, and the credit (1, 0.5 or 0)."""

_STATISTICS = ("n", "accuracy", "standard_error", "ci95")
_SPOKEN_BY_SEVERAL = ("swuggy", "sblimp")
_COLUMN_OF_ROW = {
    "part": "phenomenon",
    "positive_sum": "positive_log_likelihood",
    "positive_count": "positive_num_tokens",
    "negative_sum": "negative_log_likelihood",
    "negative_count": "negative_num_tokens",
}


def suite_to_results(result: SuiteResult, teacher: SuiteResult | None = None) -> list[dict]:
    """Results of a whole suite and, where it has several, of each of its parts.

    Args:
        result: of the model.
        teacher (*optional*): of its teacher on the same pairs; adds what the model keeps of it.
    """
    accuracies, theirs = _accuracies(result), _accuracies(teacher) if teacher else {}
    results = []
    for part, accuracy in accuracies.items():
        record = {"suite": result.suite, "part": part, "score": result.convention["normalisation"], **accuracy}
        if teacher is not None:
            kept = retention(record["accuracy"], theirs[part]["accuracy"])
            record |= {"raw_ratio": kept.raw, "above_chance_ratio": kept.above_chance}
        results.append(record)
    return results


def _accuracies(result: SuiteResult) -> dict[str, dict]:
    """Part -> n, accuracy, standard error and interval, by the suite's published convention where it has one."""
    rows = [
        # The release names an item by its group and speaks it in several voices.
        {**row, "id": row["group"] if result.suite in _SPOKEN_BY_SEVERAL else row["id"], "part": row["phenomenon"]}
        | {"subtype": ""}
        for row in result.rows
    ]
    aggregate, seed = AGGREGATIONS.get(result.suite, _plain_mean), result.convention["seed"]
    whole = aggregate(rows, seed)
    parts = whole.get("accuracy_by_part", {})
    named = {WHOLE_SUITE: whole, **({"in_vocab": whole["in_vocab"]} if whole.get("in_vocab") else {})}
    named |= parts if len(parts) > 1 else {}
    return {part: {name: record[name] for name in _STATISTICS} for part, record in named.items()}


def _plain_mean(rows: Sequence[dict], seed: int) -> dict:
    return rows_to_accuracy(rows, seed) | {"accuracy_by_part": accuracy_by_part(rows, seed)}


def write_pairs(results: Iterable[SuiteResult], path: str | os.PathLike) -> Path:
    """Write every pair of some suites as one parquet file of `PAIRS_SCHEMA`."""
    rows = [
        {"suite": result.suite} | {name: row[_COLUMN_OF_ROW.get(name, name)] for name in PAIRS_SCHEMA.names[1:]}
        for result in results
        for row in result.rows
    ]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), partial)
    return Path(path)


def results_to_model_index(results: Sequence[dict], model_name: str) -> dict:
    """The `model-index` of a model card's front matter, one accuracy for each result.

    Args:
        results: from [`suite_to_results`].
        model_name: as the card calls the model.
    """
    entries = [
        EvalResult(
            task_type="speech-minimal-pairs",
            task_name="Minimal pairs of speech",
            dataset_type=result["suite"],
            dataset_name=result["suite"],
            dataset_config=result["part"],
            metric_type="accuracy",
            metric_name=f"accuracy ({result['score']}, n = {result['n']}, 95 % interval {_interval(result)})",
            metric_value=result["accuracy"],
        )
        for result in results
    ]
    return {"model-index": ModelCardData(model_name=model_name, eval_results=entries).to_dict()["model-index"]}


def write_hub_results(results: Sequence[dict], dataset_id: str, folder: str | os.PathLike) -> Path:
    """Write `.eval_results/<dataset>.yaml`, which the Hub shows on a model's page and on the data set's leaderboard.

    Args:
        results: from [`suite_to_results`], of one data set.
        dataset_id: of the suites on the Hub, such as "slprl/SALMon".
        folder: of the model repository.
    """
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=result["suite"] if result["part"] == WHOLE_SUITE else f"{result['suite']}_{result['part']}",
            value=round(100 * result["accuracy"], 2),
            notes=f"score {result['score']}, n = {result['n']}, 95 % interval {_interval(result)}",
        )
        for result in results
    ]
    path = Path(folder) / ".eval_results" / f"{dataset_id.replace('/', '_')}.yaml"
    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    return path


def _interval(result: dict) -> str:
    low, high = result["ci95"]
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
