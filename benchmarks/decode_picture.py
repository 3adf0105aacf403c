"""The rows of the benchmark of decoding as a picture: tokens a second of every engine, and what the memory allows."""

import os
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from ..data.storage import atomic_file
from .tables import ENGINE_LABELS

_INK, _FAINT, _BAR, _LIMIT = "#22313a", "#9aa7ae", "#0f766e", "#d7dee2"


def draw_decoding(rows: Sequence[Mapping]) -> Figure:
    """A bar for each engine that was measured, in front of the rate at which its weights can be read."""
    measured = [row for row in rows if "not_measured" not in row]
    figure = Figure(figsize=(8, 0.6 + 0.42 * len(measured)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(measured):
        rate, limit = row["tokens_per_second"], row["tokens_per_second"] / row["efficiency"]
        axes.barh(place, limit, color=_LIMIT, height=0.62)
        axes.barh(place, rate, color=_BAR, height=0.36)
        axes.text(max(rate, limit), place, f"  {rate:.1f} of {limit:.1f}", va="center", color=_INK, fontsize=9)
    axes.set_yticks(range(len(measured)), [ENGINE_LABELS[row["engine"]] for row in measured])
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel("tokens per second; behind each bar, the limit of the memory bandwidth")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    return figure


def write_picture(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Write the picture as SVG, complete or not at all."""
    with atomic_file(path) as partial, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tinywave"}):
        draw_decoding(rows).savefig(partial, format="svg", metadata={"Date": None})
