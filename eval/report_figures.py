"""Pictures of the HTML report: spectrograms as PNG, training curves as SVG that follows the page's colours."""

import base64
import io
import re
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.008
DYNAMIC_RANGE_DB = 70.0
MAX_FREQUENCY_HZ = 8000.0

# matplotlib draws with these placeholder colours; in the SVG they become the page's own, so that a chart is readable
# in light and in dark mode.
_STYLE_OF_COLOUR = {
    "#010203": "var(--ink)",
    "#020304": "var(--muted)",
    "#030405": "var(--line)",
    "#040506": "var(--teacher)",
    "#050607": "var(--student)",
    "#060708": "var(--no_distillation)",
}
_COLOUR_OF_STYLE = {style: colour for colour, style in _STYLE_OF_COLOUR.items()}


@dataclass(frozen=True)
class Curve:
    """One line of a chart: `steps` and `values` of equal length, drawn in the colour of `model`."""

    model: str
    steps: list[float]
    values: list[float]


def png_data_uri(data: bytes) -> str:
    """Return PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def waveform_to_decibels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the power spectrogram in decibels below its own maximum.

    Args:
        waveform (`np.ndarray` of shape `(samples,)`): audio in [-1, 1].
        sampling_rate (`int`): in Hz.

    Returns:
        `np.ndarray` of shape `(frequencies, frames)`, lowest frequency first, up to 8 kHz, in
        [-`DYNAMIC_RANGE_DB`, 0]. Silence is `-DYNAMIC_RANGE_DB` throughout.
    """
    window_length = round(WINDOW_SECONDS * sampling_rate)
    hop_length = round(HOP_SECONDS * sampling_rate)
    padded = np.pad(np.asarray(waveform, dtype=np.float64), window_length // 2)
    if len(padded) < window_length:
        padded = np.pad(padded, (0, window_length - len(padded)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[::hop_length] * np.hanning(window_length)
    num_bins = int(min(MAX_FREQUENCY_HZ, sampling_rate / 2) * WINDOW_SECONDS) + 1
    power = np.abs(np.fft.rfft(frames, axis=1)[:, :num_bins].T) ** 2
    floor = 10 ** (-DYNAMIC_RANGE_DB / 10)
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), floor))


def waveform_to_spectrogram_png(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Return the spectrogram as PNG bytes: time to the right, frequency upwards, no axes."""
    buffer = io.BytesIO()
    decibels = waveform_to_decibels(waveform, sampling_rate)
    imsave(buffer, decibels, origin="lower", cmap="magma", vmin=-DYNAMIC_RANGE_DB, vmax=0, format="png")
    return buffer.getvalue()


def curves_to_svg(curves: list[Curve], y_label: str, description: str) -> str:
    """Return a small line chart over training steps as an inline SVG element that uses the page's colours.

    Args:
        curves (`list[Curve]`): the lines, drawn in this order.
        y_label (`str`): what the y axis shows, with its unit.
        description (`str`): the chart in one sentence, for screen readers.
    """
    ink, muted, line = (_COLOUR_OF_STYLE[f"var(--{name})"] for name in ("ink", "muted", "line"))
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": description,
        "font.size": 9.5,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "text.color": ink,
        "grid.color": line,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            axes.plot(
                curve.steps,
                curve.values,
                color=_COLOUR_OF_STYLE[f"var(--{curve.model})"],
                linewidth=1.8,
                linestyle=(0, (4, 2)) if curve.model == "no_distillation" else "-",
                marker="o" if len(curve.steps) == 1 else None,
                markersize=4,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.grid(axis="y", linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.margins(x=0.02)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline_svg(buffer.getvalue(), description)


def _inline_svg(document: str, description: str) -> str:
    """Strip an SVG document to its element, name it for screen readers and give it the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(width|height)="[\d.]+pt"', "", svg, count=2)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for colour, style in _STYLE_OF_COLOUR.items():
        svg = svg.replace(colour, style)
    return svg
