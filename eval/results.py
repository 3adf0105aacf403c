"""The machine-readable results of a run, `report.json`."""

import os
from collections.abc import Mapping, Sequence

TEACHER, STUDENT = "teacher", "student"


def build_report(
    evaluation: Mapping,
    *,
    parameters: Mapping[str, int],
    resynthesis_wer: Mapping[str, float],
    samples: Sequence[str | os.PathLike],
    seconds: Mapping[str, float],
) -> dict:
    """Return the machine-readable results of a run, the content of `report.json`.

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
