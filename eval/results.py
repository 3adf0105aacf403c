"""The machine-readable end state of a run: what `report.json` holds, and how it is written."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TEACHER, STUDENT = "teacher", "student"


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` on success and is removed on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(record: Mapping | Sequence, path: str | os.PathLike) -> Path:
    """Writes JSON so that `path` is complete or what it was before.

    Raises:
        ValueError: NaN or infinity in the record; JSON has neither.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def build_report(
    evaluation: Mapping,
    *,
    parameters: Mapping[str, int],
    resynthesis_wer: Mapping[str, float],
    samples: Sequence[str | os.PathLike],
    seconds: Mapping[str, float],
) -> dict:
    """Assembles the machine-readable end state of a run.

    Args:
        evaluation (`Mapping`): from `evaluate_models`, with the models "teacher", "student" and optionally
            "no_distillation".
        parameters (`Mapping[str, int]`): parameter count of each model.
        resynthesis_wer (`Mapping[str, float]`): word error rate of unit resynthesis for each set, as a fraction.
        samples (`Sequence[path]`): audio files.
        seconds (`Mapping[str, float]`): duration of each step.

    Returns:
        `dict` with the keys teacher, student, suites, perplexity, retention, resynthesis_wer, samples, seconds, and
        beside them perplexity_details, comparisons and, where it ran, no_distillation.
    """
    if missing := [name for name in (TEACHER, STUDENT) if name not in parameters]:
        raise ValueError(f"The report needs the parameter counts of {missing}; found {sorted(parameters)}.")
    report: dict = {name: {"parameters": int(count)} for name, count in parameters.items()}
    report["student"]["parameter_ratio"] = parameters[STUDENT] / parameters[TEACHER]
    return report | {
        "suites": evaluation["suites"],
        "perplexity": {name: details["token_weighted"] for name, details in evaluation["perplexity"].items()},
        "perplexity_details": evaluation["perplexity"],
        "retention": evaluation["retention"],
        "comparisons": evaluation["comparisons"],
        "resynthesis_wer": dict(resynthesis_wer),
        "samples": [str(path) for path in samples],
        "seconds": dict(seconds),
    }
