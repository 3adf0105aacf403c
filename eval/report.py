"""Report of a distillation run, as a single self-contained HTML file with results, charts and audio players."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..data.audio_io import load_audio
from .pages import audio_data_uri, write_page
from .report_figures import Curve, curves_to_svg, png_data_uri, waveform_to_spectrogram_png
from .results_table import (
    MODELS,
    check_report,
    format_count,
    format_percent,
    mean_accuracies,
    prosody_to_rows,
    report_to_rows,
    resynthesis_to_rows,
    suite_to_label,
)

AUDIO_SAMPLING_RATE = 24_000
MEANING_OF_SUITE = {
    "lexical": "Which is a word? A real word against a pseudo-word made of the same kind of sounds.",
    "syntactic": "Which is grammatical? A well-formed sentence against the same sentence with one rule broken.",
    "story": "Which ending fits? A story's own last sentence against one from a story about something else.",
    "speaker": "Who is speaking? One voice throughout against a voice that changes after the first sentence.",
}
HOW_PAIRS_ARE_SCORED = (
    "The model hears both of a pair and is right if it gives the first the higher mean log-likelihood per token; "
    "a tie counts half and chance is 50 %. Whiskers and brackets are 95 % intervals from resampling the pairs."
)
# What `DistillationTrainer` logs beside the total loss; without distillation the total is the cross-entropy.
CROSS_ENTROPY = "cross_entropy_loss"
LABEL_OF_LOSS = {
    "logits_loss": ("Logits: divergence from the teacher", "temperature² KL, nats"),
    "hidden_loss": ("Hidden states: distance from the teacher", "1 - cosine"),
    "attention_loss": ("Attention maps: divergence from the teacher", "KL, nats per row"),
}


@dataclass(frozen=True)
class Player:
    """One recording: who speaks, the audio and its spectrogram as `data:` addresses, and its length in seconds."""

    model: str
    label: str
    audio: str
    spectrogram: str
    seconds: float
    transcript: str


def write_report(report: dict, output_folder: str | os.PathLike) -> Path:
    """Write `report.html` into `output_folder` and return its path.

    The file needs nothing beside itself: audio, spectrograms and charts are inside.

    Args:
        report (`dict`): the content of report.json - `teacher` and `student` with `parameters`, `suites`,
            `perplexity`, `retention`; optional are `seconds` (of each step of the run),
            `resynthesis` (of each test set the measurements "original" and "resynthesis" of `evaluate_resynthesis`),
            `curves` ({"student": [...], "no_distillation": [...]}, each a log of {"step", "loss" and the losses that
            `DistillationTrainer` logs}),
            `continuations` ([{"title", "text", "prompt", "teacher", "student", "no_distillation"}], paths of
            recordings, and optionally "transcripts": {"teacher": heard words, ...}),
            `prosody` ({model: record of `measure_prosody`}, of all three models),
            `comparisons` (as `evaluate_models` makes them; shown is the perplexity of student minus no distillation),
            `speed`, `environment` and `configuration` (any names and values).
        output_folder (path): made if it does not exist. Relative paths of recordings are looked up in it.

    Raises:
        ValueError: if the report lacks a required part, or a recording is not audio.
    """
    check_report(report)
    folder = Path(output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return write_page("report.html.j2", report_to_page(report, folder), folder / "report.html")


def report_to_page(report: dict, folder: Path) -> dict:
    """Return everything the template shows, formatted."""
    return {
        "models": MODELS,
        "headline": headline(report),
        "tiles": headline_tiles(report),
        "continuations": [continuation_to_card(item, folder) for item in report.get("continuations", [])],
        "forest": suites_to_forest(report["suites"]),
        "how_pairs_are_scored": HOW_PAIRS_ARE_SCORED,
        "rows": report_to_rows(report),
        "perplexity": perplexity_to_dots(report["perplexity"]),
        "perplexity_sentence": perplexity_sentence(report),
        "resynthesis": resynthesis_to_rows(report),
        "prosody": prosody_to_rows(report),
        "charts": curves_to_charts(report.get("curves", {})),
        "durations": bars({suite_to_label(step): value for step, value in report.get("seconds", {}).items()}),
        "details": {
            name: flatten(report[name]) for name in ("speed", "environment", "configuration") if report.get(name)
        },
    }


def headline(report: dict) -> str:
    """The result in one sentence."""
    share = report["student"]["parameters"] / report["teacher"]["parameters"]
    kept = report["retention"]["raw_mean"]
    return f"{format_percent(share, 0)} of the teacher's parameters, {format_percent(kept, 0)} of its accuracy"


def headline_tiles(report: dict) -> list[tuple[str, str, str]]:
    """(value, name, explanation) of the figures that come first."""
    retention, perplexity = report["retention"], report["perplexity"]
    means = mean_accuracies(report)
    above_chance = retention["above_chance_mean"]
    tiles = [
        (
            format_count(report["student"]["parameters"]),
            "student parameters",
            f"teacher: {format_count(report['teacher']['parameters'])}",
        ),
        (
            format_percent(retention["raw_mean"]),
            "accuracy kept",
            f"{format_percent(means['student'])} of pairs right, teacher {format_percent(means['teacher'])}",
        ),
        (
            "undefined" if above_chance is None else format_percent(above_chance),
            "kept above chance",
            "the same ratio after taking off the 50 % that guessing gives",
        ),
        (
            f"{perplexity['student'] - perplexity['teacher']:+.3f}",
            "perplexity against the teacher",
            f"without distillation {perplexity['no_distillation'] - perplexity['teacher']:+.3f}",
        ),
    ]
    if report.get("seconds"):
        tiles.append((format_duration(sum(report["seconds"].values())), "for the whole run", "all steps together"))
    return tiles


def format_duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours.

    >>> format_duration(8.25), format_duration(75), format_duration(7260)
    ('8.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def continuation_to_card(item: dict, folder: Path) -> dict:
    """Return one prompt and its continuations as players on a common time axis."""
    transcripts = item.get("transcripts", {})
    labels = {"prompt": "Prompt", **{model: label.capitalize() for model, label in MODELS.items()}}
    players = [
        recording_to_player(folder / item[model], model, label, transcripts.get(model, ""))
        for model, label in labels.items()
        if item.get(model)
    ]
    return {
        "title": item["title"],
        "text": item.get("text") or "",
        "players": players,
        "max_seconds": max(player.seconds for player in players),
    }


def recording_to_player(path: Path, model: str, label: str, transcript: str) -> Player:
    """Read a recording and return it as a player. Raises `AudioError` (a `ValueError`) if it is not audio."""
    waveform = load_audio(path, sampling_rate=AUDIO_SAMPLING_RATE)
    return Player(
        model=model,
        label=label,
        audio=audio_data_uri(waveform, AUDIO_SAMPLING_RATE),
        spectrogram=png_data_uri(waveform_to_spectrogram_png(waveform, AUDIO_SAMPLING_RATE)),
        seconds=len(waveform) / AUDIO_SAMPLING_RATE,
        transcript=transcript,
    )


def suites_to_forest(suites: dict) -> dict:
    """Return accuracies and intervals as positions (in percent of the width) on one common axis."""
    lowest = min(scores[model]["ci95"][0] for scores in suites.values() for model in MODELS)
    start = min(0.4, math.floor(10 * lowest) / 10)

    def position(accuracy: float) -> float:
        return 100 * (accuracy - start) / (1 - start)

    def mark(score: dict, model: str) -> dict:
        low, high = score["ci95"]
        return {
            "model": model,
            "label": MODELS[model],
            "dot": position(score["accuracy"]),
            "left": position(low),
            "width": position(high) - position(low),
            "accuracy": format_percent(score["accuracy"]),
            "interval": f"{100 * low:.1f} to {100 * high:.1f}",
        }

    return {
        "chance": position(0.5),
        "ticks": [(position(tick / 10), f"{10 * tick} %") for tick in range(round(10 * start), 11)],
        "suites": [
            {
                "label": suite_to_label(name),
                "meaning": MEANING_OF_SUITE.get(name, ""),
                "num_pairs": max(scores[model]["n"] for model in MODELS),
                "marks": [mark(scores[model], model) for model in MODELS],
            }
            for name, scores in suites.items()
        ],
    }


def perplexity_to_dots(perplexity: dict) -> dict:
    """Return perplexities as positions on an axis that begins at 1, the perplexity of a model that is always right."""
    end = 1 + 1.08 * (max(perplexity[model] for model in MODELS) - 1)
    span = max(end - 1, 1e-9)
    dots = [
        {"model": model, "label": label, "value": f"{value:.3f}", "dot": 100 * (value - 1) / span}
        for model, label in MODELS.items()
        for value in [perplexity[model]]
    ]
    return {"dots": dots, "ticks": [(position, f"{1 + position / 100 * span:.2f}") for position in (0, 50, 100)]}


def perplexity_sentence(report: dict) -> str:
    """Say how the student compares with the same student trained without a teacher."""
    perplexity = report["perplexity"]
    gap = perplexity["no_distillation"] - perplexity["teacher"]
    parts = []
    if gap > 0:
        closed = (perplexity["no_distillation"] - perplexity["student"]) / gap
        parts.append(f"Distillation closes {format_percent(closed, 0)} of the gap to the teacher.")
    comparison = report.get("comparisons", {}).get("student-no_distillation", {}).get("perplexity_difference")
    if comparison:
        low, high = comparison["ci95"]
        parts.append(
            f"Student minus no distillation: {comparison['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} "
            "(paired bootstrap over the same recordings)."
        )
    return " ".join(parts)


def curves_to_charts(curves: dict) -> list[dict]:
    """Return one chart for the cross-entropy of both students and one for each distillation loss of the student."""
    logs = {model: curves[model] for model in ("no_distillation", "student") if curves.get(model)}
    if not logs:
        return []
    charts = [
        (
            "Cross-entropy",
            "nats per token",
            [
                log_to_curve(model, log, CROSS_ENTROPY if any(CROSS_ENTROPY in row for row in log) else "loss")
                for model, log in logs.items()
            ],
        )
    ]
    for key, (title, unit) in LABEL_OF_LOSS.items():
        charts.append((title, unit, [log_to_curve("student", logs.get("student", []), key)]))
    return [
        {"title": title, "svg": curves_to_svg(drawn, unit, f"{title} ({unit}) over training steps")}
        for title, unit, lines in charts
        if (drawn := [line for line in lines if line.steps])
    ]


def log_to_curve(model: str, log: list[dict], key: str) -> Curve:
    """Return the finite numbers a log holds under `key` as a curve over its steps."""
    points = [(row["step"], row[key]) for row in log if isinstance(row.get(key), (int, float)) and "step" in row]
    finite = [point for point in points if math.isfinite(point[1])]
    return Curve(model, [step for step, _ in finite], [value for _, value in finite])


def bars(values: dict[str, float]) -> list[dict]:
    """Return durations in seconds as bars in percent of the longest."""
    longest = max(values.values(), default=0.0)
    return [
        {"label": label, "value": format_duration(value), "width": 100 * value / longest if longest else 0.0}
        for label, value in values.items()
    ]


def flatten(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text) lines.

    >>> flatten({"teacher": {"steps": 10}, "ratio": 1.23456})
    [('teacher.steps', '10'), ('ratio', '1.235')]
    """
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines.extend(flatten(value, f"{prefix}{name}."))
        else:
            lines.append((f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return lines
