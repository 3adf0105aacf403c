"""Pictures of the page: speech as wave, spectrogram and units, and accuracies with their intervals.

They are drawn on figures of their own, never on pyplot's, because several visitors are served by several threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..eval.report_figures import DYNAMIC_RANGE_DB, MAX_FREQUENCY_HZ, waveform_to_decibels
from ..eval.results_table import suite_to_label
from ..eval.statistics import CHANCE
from ..eval.suites import SuiteResult

INK, MUTED, ACCENT = "#1f2d3a", "#94a3b0", "#0f766e"
COLOUR_OF_MODEL = {"teacher": "#334e68", "student": ACCENT, "no_distillation": "#c2703d"}
FRAME_SECONDS = 0.04
# Narrower units have no room for their number.
LEAST_LABELLED_SHARE = 0.012


@dataclass(frozen=True)
class TimedUnit:
    """A unit as a stretch of time: `start` and `seconds`, and the pitch and style in force, where there are any."""

    unit: int
    start: float
    seconds: float
    pitch: int | None = None
    style: int | None = None


def time_units(
    units: Sequence[int],
    durations: Sequence[int],
    start: float = 0.0,
    pitch: Sequence[int] | None = None,
    style: Sequence[int] | None = None,
) -> list[TimedUnit]:
    """Units and their durations in frames of 40 ms -> stretches of time, the first at `start` seconds."""
    ends = np.cumsum(durations) * FRAME_SECONDS + start
    return [
        TimedUnit(
            int(unit),
            float(end - count * FRAME_SECONDS),
            float(count * FRAME_SECONDS),
            None if pitch is None else int(pitch[index]),
            None if style is None else int(style[index]),
        )
        for index, (unit, count, end) in enumerate(zip(units, durations, ends, strict=True))
    ]


def speech_picture(
    waveform: np.ndarray,
    sampling_rate: int,
    units: Sequence[TimedUnit],
    boundary: float | None = None,
    style_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw speech above its units, on one axis of time.

    Args:
        waveform (`np.ndarray` of shape `(samples,)`): in [-1, 1].
        sampling_rate (`int`): in Hz.
        units: as [`time_units`] makes them.
        boundary (`float`, *optional*): seconds at which the prompt ends and the continuation begins.
        style_names: names of the style tokens, by number.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8.
    """
    has_pitch = any(unit.pitch is not None for unit in units)
    seconds = max([len(waveform) / sampling_rate, *(unit.start + unit.seconds for unit in units)])
    figure = Figure(figsize=(9, 4.8 if has_pitch else 4.2), dpi=110, layout="constrained", facecolor="white")
    heights = [1.0, 1.6, 0.8] + [0.6] * has_pitch
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_wave(axes[0], waveform, sampling_rate, boundary)
    _draw_spectrogram(axes[1], waveform, sampling_rate)
    _draw_units(axes[2], units, seconds, boundary)
    if has_pitch:
        _draw_pitch(axes[3], units, style_names)
    for axis in axes:
        axis.set_xlim(0, seconds)
        axis.tick_params(labelsize=9, colors=INK, length=2)
        for side in axis.spines.values():
            side.set_visible(False)
        if boundary is not None:
            axis.axvline(boundary, color=ACCENT, linewidth=1.5, linestyle=(0, (4, 2)))
    axes[-1].set_xlabel("seconds", fontsize=10, color=INK)
    return _figure_to_image(figure)


def _draw_wave(axis, waveform: np.ndarray, sampling_rate: int, boundary: float | None) -> None:
    """The envelope, as lowest and highest sample of each column; the prompt grey, the continuation coloured."""
    num_columns = min(1200, len(waveform))
    columns = np.array_split(waveform, num_columns)
    times = (np.arange(num_columns) + 0.5) * len(waveform) / num_columns / sampling_rate
    low, high = (np.array([reduce(column) for column in columns]) for reduce in (np.min, np.max))
    is_new = times >= (0 if boundary is None else boundary)
    for chosen, colour in ((~is_new, MUTED), (is_new, ACCENT)):
        axis.fill_between(times[chosen], low[chosen], high[chosen], color=colour, linewidth=0.5)
    limit = max(0.05, float(np.abs(waveform).max()))
    axis.set_ylim(-limit, limit)
    axis.set_yticks([])
    if boundary is not None:
        for x, text, side, colour in ((boundary, "you ", "right", INK), (boundary, " the model", "left", ACCENT)):
            axis.text(x, limit, text, ha=side, va="top", fontsize=10, color=colour)


def _draw_spectrogram(axis, waveform: np.ndarray, sampling_rate: int) -> None:
    highest = min(MAX_FREQUENCY_HZ, sampling_rate / 2) / 1000
    axis.imshow(
        waveform_to_decibels(waveform, sampling_rate),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-DYNAMIC_RANGE_DB,
        vmax=0,
        extent=(0, len(waveform) / sampling_rate, 0, highest),
    )
    axis.set_ylabel("kHz", fontsize=10, color=INK)


def _draw_units(axis, units: Sequence[TimedUnit], seconds: float, boundary: float | None) -> None:
    """A strip of blocks; a unit has the same colour wherever it stands, paler in the prompt."""
    is_new = np.array([boundary is None or unit.start >= boundary - 1e-6 for unit in units])
    # Multiples of the golden ratio keep the colours of neighbouring numbers apart.
    hues = np.array([unit.unit for unit in units]) * 0.618034 % 1
    colours = hsv_to_rgb(np.stack([hues, np.where(is_new, 0.42, 0.18), np.full(len(units), 0.95)], axis=1))
    stretches = [(unit.start, unit.seconds) for unit in units]
    axis.broken_barh(stretches, (-0.5, 1), facecolors=colours, edgecolor="white", linewidth=0.6)
    for unit in units:
        if unit.seconds > LEAST_LABELLED_SHARE * seconds:
            middle = unit.start + unit.seconds / 2
            axis.text(middle, 0, str(unit.unit), ha="center", va="center", fontsize=7, color=INK, rotation=90)
    axis.set_ylim(-0.5, 0.5)
    axis.set_yticks([])
    axis.set_ylabel("units", fontsize=10, color=INK)


def _draw_pitch(axis, units: Sequence[TimedUnit], style_names: Sequence[str]) -> None:
    """Pitch tokens as steps, and the style's name wherever it changes."""
    spoken = [unit for unit in units if unit.pitch is not None]
    axis.step([unit.start for unit in spoken], [unit.pitch for unit in spoken], where="post", color=INK, linewidth=1)
    axis.set_yticks([])
    axis.set_ylabel("pitch", fontsize=10, color=INK)
    top, last = axis.get_ylim()[1], None
    for unit in spoken:
        if unit.style is not None and unit.style != last:
            name = style_names[unit.style] if unit.style < len(style_names) else str(unit.style)
            axis.text(unit.start, top, f" {name}", ha="left", va="bottom", fontsize=8, color=ACCENT)
            last = unit.style


def accuracy_picture(results: Mapping[str, Mapping[str, SuiteResult]]) -> np.ndarray:
    """Accuracies of every model on every suite with their 95 % intervals, chance dashed -> `(height, width, 3)`."""
    models = list(next(iter(results.values())))
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(results) * (len(models) + 0.5)), dpi=110, layout="constrained")
    axis = figure.subplots()
    for row, by_model in enumerate(results.values()):
        for offset, name in enumerate(models):
            result = by_model[name]
            y = row * (len(models) + 0.8) + offset
            low, high = (100 * value for value in result.ci95)
            colour = COLOUR_OF_MODEL.get(name, INK)
            axis.plot([low, high], [y, y], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="round")
            axis.plot(100 * result.accuracy, y, "o", color=colour, markersize=8, label=None if row else name)
            axis.text(min(high + 1.5, 101), y, f"{100 * result.accuracy:.0f} %", va="center", fontsize=9, color=INK)
    centre = (len(models) - 1) / 2
    axis.set_yticks(
        [row * (len(models) + 0.8) + centre for row in range(len(results))],
        [f"{suite_to_label(suite)}\n{next(iter(by_model.values())).n} pairs" for suite, by_model in results.items()],
    )
    axis.axvline(100 * CHANCE, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    axis.set_xlim(0, 108)
    axis.invert_yaxis()
    axis.set_xlabel("pairs right, % (95 % interval; chance is 50 %)", fontsize=10, color=INK)
    axis.tick_params(labelsize=10, colors=INK, length=2)
    for side in axis.spines.values():
        side.set_visible(False)
    if len(models) > 1:
        figure.legend(
            [_legend_mark(name) for name in models], [name.replace("_", " ") for name in models],
            loc="outside upper center", ncols=len(models), frameon=False, fontsize=10,
        )  # fmt: skip
    return _figure_to_image(figure)


def _legend_mark(name: str) -> Line2D:
    return Line2D([], [], color=COLOUR_OF_MODEL.get(name, INK), marker="o", linewidth=2.5, markersize=7)


def _figure_to_image(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
