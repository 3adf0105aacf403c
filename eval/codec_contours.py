"""The melody of one recording and of its resynthesis with and without pitch tokens, as numbers and as a picture."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..codec_tinywave import SpeechCodec
from ..data.storage import atomic_file
from ..f0_tinywave import F0_RATE, F0Extractor
from .codec_material import HeldOutUtterance
from .codec_resynthesis import BASE, EXPRESSIVE, ORIGINAL, WITHOUT_PITCH, speak_variant, spoken_variants

SHOWN_SECONDS = 6.0
MAX_CANDIDATES = 12
_LABELS = {
    ORIGINAL: "recording",
    EXPRESSIVE: "spoken with pitch tokens",
    WITHOUT_PITCH: "spoken without pitch tokens",
    BASE: "spoken from units alone",
}
# Readable on white and on black, and apart from each other for every kind of colour vision.
_COLOURS = {ORIGINAL: "#888888", EXPRESSIVE: "#0072b2", WITHOUT_PITCH: "#d55e00", BASE: "#d55e00"}
_WIDTHS = {ORIGINAL: 5.0, EXPRESSIVE: 1.8, WITHOUT_PITCH: 1.8, BASE: 1.8}


def trace_contours(utterances: Sequence[HeldOutUtterance], codec: SpeechCodec, extract_f0: F0Extractor) -> dict:
    """Trace the F0 of the liveliest of the first recordings, and of what the codec speaks from it.

    Args:
        utterances: the one among the first twelve whose F0 varies most is chosen.
        codec: speaks with and without pitch, as far as it can.
        extract_f0: waveform at 16 kHz -> F0 and voiced flag at 200 Hz.

    Returns:
        {"id", "text", "rate": Hz, "contours": {variant: F0 in Hz, None where unvoiced}} of the first six seconds. Of
        the ways to speak without pitch only one is traced: with style where that is possible, else from units alone.
    """
    candidates = utterances[:MAX_CANDIDATES]
    shown = max(candidates, key=lambda utterance: _f0_variation(extract_f0(utterance.waveform)))
    streams = codec.encode([shown.waveform])[0]
    variants = spoken_variants(codec)
    if WITHOUT_PITCH in variants:
        variants.pop(BASE, None)
    waveforms = {ORIGINAL: shown.waveform}
    waveforms |= {name: speak_variant(codec, streams, given) for name, given in variants.items()}
    count = round(SHOWN_SECONDS * F0_RATE)
    contours = {}
    for name, waveform in waveforms.items():
        f0, voiced = extract_f0(waveform)
        contours[name] = [
            round(float(value), 1) if is_voiced else None
            for value, is_voiced in zip(f0[:count], voiced[:count], strict=True)
        ]
    return {"id": shown.id, "text": shown.text, "rate": F0_RATE, "contours": contours}


def _f0_variation(contour: tuple[np.ndarray, np.ndarray]) -> float:
    """Standard deviation of the voiced frames over their mean; 0 without voiced frames."""
    f0, voiced = contour
    return float(f0[voiced].std() / f0[voiced].mean()) if voiced.any() else 0.0


def draw_contours(trace: Mapping, path: str | os.PathLike) -> None:
    """Draw what [`trace_contours`] returned as an SVG picture, complete or not at all."""
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    for name, values in trace["contours"].items():
        f0 = np.array([np.nan if value is None else value for value in values])
        times = np.arange(len(f0)) / trace["rate"]
        axes.plot(times, f0, color=_COLOURS[name], linewidth=_WIDTHS[name], label=_LABELS[name])
    axes.set_xlabel("seconds")
    axes.set_ylabel("F0 (Hz)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_LABELS))
    figure.tight_layout()
    with atomic_file(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
