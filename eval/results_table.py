"""The results of a run as tables of Markdown, for the terminal and the README, and as rows for the HTML report.

`python -m tinywave.eval.results_table REPORT_JSON README` writes the table between the README's two markers.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..data.storage import atomic_file, read_json
from ..training.model_card import escape_markdown

MODELS = {"teacher": "teacher", "student": "student", "no_distillation": "no distillation"}
REQUIRED_KEYS = ("teacher", "student", "suites", "perplexity", "retention")
# The name of the markers around the results of a run.
RESULTS = "results"
START_MARKER, END_MARKER = f"<!-- {RESULTS}:start -->", f"<!-- {RESULTS}:end -->"


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, and its formatted values; of models, in the order of `MODELS`."""

    label: str
    values: tuple[str, ...]


def check_report(report: dict) -> None:
    """Raise `ValueError` naming every part that a table needs and `report` lacks."""
    missing = [key for key in REQUIRED_KEYS if key not in report]
    if missing:
        raise ValueError(
            f"The report has no {', '.join(missing)}; expected at least {', '.join(REQUIRED_KEYS)}. "
            "Run `tinywave quickstart` to the end to get a complete one."
        )
    scored = [report["perplexity"], *report["suites"].values()]
    absent = [model for model in MODELS if not all(model in scores for scores in scored)]
    if absent:
        raise ValueError(f"The report has no scores of {', '.join(absent)}; expected all of {', '.join(MODELS)}.")


def format_percent(fraction: float, decimals: int = 1) -> str:
    """Write a fraction as a percentage.

    >>> format_percent(0.7512)
    '75.1 %'
    """
    return f"{100 * fraction:.{decimals}f} %"


def format_count(count: int) -> str:
    """Write a number of parameters with its scale.

    >>> format_count(5_204_736), format_count(1_500), format_count(2_290_176_000)
    ('5.20 M', '1.50 k', '2.29 G')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {letter}"
    return str(count)


def format_accuracy(score: dict) -> str:
    """Write one suite's accuracy with its 95 % interval, both in percent.

    >>> format_accuracy({"accuracy": 0.75, "ci95": [0.69, 0.8049], "n": 240})
    '75.0 % [69.0, 80.5]'
    """
    low, high = score["ci95"]
    return f"{format_percent(score['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


def suite_to_label(suite: str) -> str:
    """Write a suite's name for people.

    >>> suite_to_label("speaker_change")
    'Speaker change'
    """
    return suite.replace("_", " ").capitalize()


def mean_accuracies(report: dict) -> dict[str, float]:
    """Each model's accuracy, averaged over the suites with equal weights."""
    suites = report["suites"].values()
    return {model: sum(suite[model]["accuracy"] for suite in suites) / len(suites) for model in MODELS}


def report_to_rows(report: dict) -> list[Row]:
    """Return the table's lines: size, accuracy per suite, their mean, perplexity, retention."""
    check_report(report)
    sizes = {model: report[model]["parameters"] for model in ("teacher", "student")}
    sizes["no_distillation"] = sizes["student"]
    retention = report["retention"]
    share = format_percent(sizes["student"] / sizes["teacher"], 0)
    rows = [
        Row(
            "Parameters",
            tuple(format_count(sizes[model]) + ("" if model == "teacher" else f" ({share})") for model in MODELS),
        )
    ]
    for suite, scores in report["suites"].items():
        num_pairs = max(scores[model]["n"] for model in MODELS)
        label = f"{suite_to_label(suite)} (n = {num_pairs})"
        rows.append(Row(label, tuple(format_accuracy(scores[model]) for model in MODELS)))
    means = mean_accuracies(report)
    rows.append(Row("Mean accuracy", tuple(format_percent(means[model]) for model in MODELS)))
    rows.append(Row("Held-out perplexity", tuple(f"{report['perplexity'][model]:.3f}" for model in MODELS)))
    baseline = retention.get("no_distillation", {})
    for label, key in (("raw", "raw_mean"), ("above chance", "above_chance_mean")):
        rows.append(
            Row(f"Retained accuracy, {label}", ("", format_retention(retention, key), format_retention(baseline, key)))
        )
    return rows


def format_retention(retention: dict, key: str) -> str:
    """Write one retention with its interval, if it has one; nothing where it was not measured.

    >>> format_retention({"raw_mean": 0.976, "raw_mean_ci95": [0.931, 1.02]}, "raw_mean")
    '97.6 % [93.1, 102.0]'
    >>> format_retention({"above_chance_mean": None}, "above_chance_mean")
    'undefined'
    """
    if key not in retention:
        return ""
    if retention[key] is None:
        return "undefined"
    interval = retention.get(f"{key}_ci95")
    brackets = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return format_percent(retention[key]) + brackets


def resynthesis_to_rows(report: dict) -> list[Row]:
    """Return, for each test set, the word error rate of its recordings and of what units and vocoder keep of them.

    `report["resynthesis"]` holds two measurements of each set, "original" and "resynthesis". How far the first is from
    zero is the recogniser's own doing.
    """
    return [
        Row(
            f"{suite_to_label(name)} (n = {measured['original']['n']})",
            tuple(format_measurement(measured[kind], 100, " %") for kind in ("original", "resynthesis")),
        )
        for name, measured in report.get("resynthesis", {}).items()
    ]


def prosody_to_rows(report: dict) -> list[Row]:
    """Return what each model keeps of the prosody of a prompt; nothing where it was not measured.

    `report["prosody"]` holds the record of `measure_prosody` of each model.
    """
    records = [report.get("prosody", {}).get(model) for model in MODELS]
    if not all(records):
        return []
    rows = []
    for style in records[0]["style"]:
        for label, key in ((style, "own_share"), ("other", "share_after_others")):
            values = tuple(format_measurement(record["style"][style][key], 100, " %") for record in records)
            rows.append(Row(f"{suite_to_label(style)} style tokens after {label} prompts", values))
    for pair in records[0]["mean_f0_difference"]:
        first, second = pair.split("-")
        values = tuple(format_measurement(record["mean_f0_difference"][pair], 1, " Hz") for record in records)
        rows.append(Row(f"F0 after {first} minus after {second} prompts", values))
    return rows


def format_measurement(measurement: dict | None, factor: float, unit: str) -> str:
    """Write a value with its 95 % interval, if it has one; "undefined" where there was nothing to measure.

    >>> format_measurement({"value": 0.75, "ci95": [0.6, 0.9049]}, 100, " %")
    '75.0 % [60.0, 90.5]'
    """
    if measurement is None:
        return "undefined"
    value = f"{factor * measurement['value']:.1f}{unit}"
    if measurement["ci95"] is None:
        return value
    low, high = (factor * number for number in measurement["ci95"])
    return f"{value} [{low:.1f}, {high:.1f}]"


def report_to_markdown(report: dict) -> str:
    """Return the results as Markdown tables: the models and, where they were measured, the continuation of prosody and
    the word error rate after resynthesis."""
    lines = ["| | " + " | ".join(MODELS.values()) + " |", "|---|" + "---:|" * len(MODELS)]
    lines.extend(
        f"| {escape_markdown(row.label)} | " + " | ".join(row.values) + " |" for row in report_to_rows(report)
    )
    prosody = prosody_to_rows(report)
    if prosody:
        lines.extend(["", "| prosody continuation | " + " | ".join(MODELS.values()) + " |"])
        lines.append("|---|" + "---:|" * len(MODELS))
        lines.extend(f"| {escape_markdown(row.label)} | " + " | ".join(row.values) + " |" for row in prosody)
    resynthesis = resynthesis_to_rows(report)
    if resynthesis:
        lines.extend(["", "| word error rate | recording | resynthesis |", "|---|---:|---:|"])
        lines.extend(f"| {escape_markdown(row.label)} | " + " | ".join(row.values) + " |" for row in resynthesis)
    return "\n".join(lines)


def check_markers(page: str | Path) -> None:
    """Raise `ValueError` for a page without the two results markers, before work is done for it."""
    _text_around(Path(page), RESULTS)


def write_between_markers(markdown: str, page: str | Path, name: str = RESULTS) -> None:
    """Replace the text between the two markers of a name in a page; the page is complete or what it was before.

    Raises `ValueError` for a page without markers.
    """
    page = Path(page)
    before, after = _text_around(page, name)
    with atomic_file(page) as partial:
        partial.write_text(f"{before}\n{markdown}\n{after}", encoding="utf-8")


def _text_around(page: Path, name: str) -> tuple[str, str]:
    """The text of a page up to the end of the first marker of a name, and from the second on."""
    text = page.read_text(encoding="utf-8")
    markers = [f"<!-- {name}:{place} -->" for place in ("start", "end")]
    start, end = map(text.find, markers)
    if not 0 <= start < end:
        raise ValueError(f"{page} has no {markers[0]} followed by {markers[1]}; add both where the table belongs.")
    return text[: start + len(markers[0])], text[end:]


def main(argv: list[str] | None = None) -> None:
    """Write the table of a finished run into a README."""
    parser = argparse.ArgumentParser(description="Write the results table of a finished run into a README.")
    parser.add_argument("report", help="report.json of `tinywave quickstart`")
    parser.add_argument("readme", help="README.md that holds the two results markers")
    arguments = parser.parse_args(argv)
    report = read_json(arguments.report)
    write_between_markers(report_to_markdown(report), arguments.readme)


if __name__ == "__main__":
    main()
