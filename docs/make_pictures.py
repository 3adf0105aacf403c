"""Draws the pictures of the documentation from the shipped recordings, codec, teacher and suites.

    python docs/make_pictures.py [FOLDER]

Every unit, token, word and score in a picture is computed here, none is made up. The recording is a clip of human
speech; the one with word times is synthetic, since these are known exactly there.
"""

import functools
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from tinywave import LayerMap, SpeechStreams, TinyWaveConfig, TinyWaveForCausalLM, load_audio, load_codec
from tinywave.benchmarks.decode_picture import draw_decoding
from tinywave.benchmarks.tables import RESULTS
from tinywave.cli.shipped import AUDIO, CODEC, SUITES, TEACHER
from tinywave.data.interleaving import AlignedDocument, interleave
from tinywave.data.storage import atomic_file
from tinywave.eval.sequence_formats import SpeechSequenceFormat
from tinywave.eval.suites import read_suite
from tinywave.loading_tinywave import load_pretrained
from tinywave.stages.parsing import load_recipe
from tinywave.tokenization_tinywave import deduplicate, ids_to_tokens, streams_to_ids

IMAGES = Path(__file__).resolve().parent / "images"
RECORDING = AUDIO / "librivox" / "sense_and_sensibility_01_0880.flac"
TIMED_SPEECH = AUDIO / "kokoro" / "shard-00000.parquet"
SAMPLING_RATE = 16_000
UNIT_SECONDS = 0.04
# A pair that the teacher gets right.
SHOWN_PAIR = "lexical-5-0163"

INK, FAINT = "#22313a", "#9aa7ae"
UNIT, PITCH, STYLE, TEXT = "#0f766e", "#b45309", "#7c3aed", "#475569"
COLOURS = {"Hu": UNIT, "Pi": PITCH, "St": STYLE}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinywave",
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def draw_pictures(folder: Path) -> list[Path]:
    """Draw every picture into `folder` and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(SETTINGS):
        for name, draw in PICTURES.items():
            figure = draw()
            path = folder / f"{name}.svg"
            with atomic_file(path) as partial:
                figure.savefig(partial, format="svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
            paths.append(path)
    return paths


def draw_units() -> plt.Figure:
    """Waveform -> frames -> one unit a frame -> units without repeats."""
    waveform, streams = _encode_recording()
    first, count = 12, 26
    units = streams.units[first : first + count]
    start, seconds = first * UNIT_SECONDS, count * UNIT_SECONDS
    figure, rows = plt.subplots(4, 1, figsize=(9, 4.6), height_ratios=[1.3, 1.5, 0.7, 0.7], sharex=True)
    _draw_waveform(rows[0], waveform, start, seconds)
    _draw_spectrogram(rows[1], waveform, start, seconds)
    for frame in range(count + 1):
        rows[1].axvline(start + frame * UNIT_SECONDS, color="white", linewidth=0.6)
    for frame, unit in enumerate(units):
        _cell(rows[2], start + frame * UNIT_SECONDS, UNIT_SECONDS, str(unit), _unit_colour(unit))
    runs, durations = deduplicate(units)
    position = start
    for unit, duration in zip(runs, durations, strict=True):
        _cell(rows[3], position, duration * UNIT_SECONDS, str(unit), _unit_colour(unit))
        position += duration * UNIT_SECONDS
    labels = ("waveform", "frames of 40 ms", f"{count} units", f"{len(runs)} without repeats")
    for row, label in zip(rows, labels, strict=True):
        row.set_ylabel(label, rotation=0, ha="right", va="center")
        row.set_yticks([])
        row.spines[:].set_visible(False)
        row.tick_params(bottom=row is rows[-1])
    rows[-1].set_xlim(start, start + seconds)
    rows[-1].set_xlabel("seconds")
    return figure


def draw_streams() -> plt.Figure:
    """Units, pitch and style, each at its own rate, and the one sequence that they are merged into."""
    _, streams = _encode_recording()
    layout = _codec().token_layout()
    seconds = 1.04
    begun = SpeechStreams(streams.units[:26], streams.pitch[:13], streams.style[:1])
    figure, axes = plt.subplots(4, 1, figsize=(9, 3.6), height_ratios=[1, 1, 1, 2.6])
    _draw_codes(axes[0], "style, 1 Hz", [str(code) for code in begun.style], 1.0, STYLE)
    _draw_codes(axes[1], "pitch, 12.5 Hz", _blank_repeats(begun.pitch), 0.08, PITCH)
    _draw_codes(axes[2], "units, 25 Hz", _blank_repeats(begun.units), UNIT_SECONDS, UNIT)
    for axis in axes[:3]:
        axis.set_xlim(0, seconds)
    _draw_tokens(axes[3], ["[Speech]", *ids_to_tokens(streams_to_ids(begun, layout), layout)])
    axes[3].set_ylabel("what the\nmodel reads", rotation=0, ha="right", va="center")
    _hide(axes)
    return figure


def draw_prosody() -> plt.Figure:
    """The fundamental frequency of a recording, the pitch tokens that keep its shape, and the style of each second."""
    waveform, streams = _encode_recording()
    codec = _codec()
    f0, voiced = codec.f0_extractor(waveform)
    seconds = len(waveform) / SAMPLING_RATE
    figure, rows = plt.subplots(3, 1, figsize=(9, 3.6), height_ratios=[3, 0.6, 0.6], sharex=True)
    # Pitch tokens hold F0 relative to the mean of the utterance.
    decoded = codec.pitch_encoder.codes_to_f0(streams.pitch).numpy() + f0[voiced].mean()
    for values, colour, width, label in (
        (f0, "#d5dade", 5, "recording"),
        (decoded, PITCH, 1.5, "what the pitch tokens hold"),
    ):
        count = min(len(values), len(voiced))
        shown = np.where(voiced[:count], values[:count], np.nan)
        rows[0].plot(np.arange(count) / codec.pitch_encoder.f0_rate, shown, color=colour, linewidth=width, label=label)
    rows[0].set_ylabel("F0 in Hz", rotation=0, ha="right", va="center")
    rows[0].legend(frameon=False, loc="upper left")
    _draw_codes(rows[1], "pitch, 12.5 Hz", [str(code) for code in streams.pitch], 0.08, PITCH)
    names = codec.style_encoder.config.style_names
    _draw_codes(rows[2], "style, 1 Hz", [names[style] for style in streams.style], 1.0, STYLE)
    rows[2].set_xlim(0, seconds)
    rows[2].set_xlabel("seconds")
    for row in rows[1:]:
        row.tick_params(bottom=row is rows[2])
        row.set_yticks([])
        row.spines[:].set_visible(False)
    return figure


def draw_interleaving() -> plt.Figure:
    """One document in the five patterns; a change of modality falls on the start of a word."""
    row = pq.read_table(TIMED_SPEECH).slice(10, 1).to_pylist()[0]
    waveform = load_audio(row["audio"]["bytes"])
    words = row["text"].split()
    starts = [word["start"] for word in row["words"]]
    document = AlignedDocument(_codec().speech_encoder.encode([waveform])[0], words, starts)
    shown = 12
    seconds = starts[shown]
    figure, axes = plt.subplots(4, 1, figsize=(9, 4.4), height_ratios=[1.2, 1, 1, 1])
    _draw_waveform(axes[0], waveform, 0.0, seconds)
    for start, word in zip(starts[:shown], words, strict=False):
        axes[0].axvline(start, color=FAINT, linewidth=0.8)
        axes[0].text(start, 1.03, word, fontsize=7.5, rotation=35, transform=axes[0].get_xaxis_transform())
    axes[0].set_ylabel("speech with\nword times", rotation=0, ha="right", va="center")
    patterns = ("text_speech", "speech_text", "speech_text_speech")
    for axis, pattern in zip(axes[1:], patterns, strict=True):
        label = "".join(f"[{part.title()}]" for part in pattern.split("_"))
        segments = interleave(document, pattern, Random(3), text_words=(4, 6), speech_words=(4, 6))
        _draw_segments(axis, segments, document, shown)
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    for axis in axes:
        axis.set_xlim(0, seconds)
    _hide(axes)
    return figure


def draw_losses() -> plt.Figure:
    """Blocks of the nano teacher and student, who answers to whom, and where each loss compares them."""
    layer_map = LayerMap.from_pairs(load_recipe("nano/distillation")["layer_map"])
    num_layers = TinyWaveConfig.from_pretrained(TEACHER).num_hidden_layers
    heights = {teacher: 1.0 + teacher for teacher in range(num_layers)}
    figure, axis = plt.subplots(figsize=(9, 6))
    top = num_layers + 1.0
    _model_column(axis, 0.0, heights, set(layer_map.teacher_blocks), "teacher, frozen", top)
    students = {block: heights[teacher] for teacher, block in layer_map.pairs}
    _model_column(axis, 6.5, students, set(students), "student, trained", top)
    for number, (teacher, block) in enumerate(layer_map.pairs):
        _arrow(axis, 6.4, students[block] + 0.52, 2.6, heights[teacher] + 0.52, UNIT)
        _arrow(axis, 6.4, students[block] + 0.22, 2.6, heights[teacher] + 0.22, PITCH)
        if number == len(layer_map.pairs) - 1:
            axis.text(4.5, heights[teacher] + 0.6, "hidden states: 1 - cosine", color=UNIT, ha="center")
            axis.text(4.5, heights[teacher] - 0.16, "attention maps: KL, row by row", color=PITCH, ha="center")
    _arrow(axis, 6.4, top + 0.35, 2.6, top + 0.35, STYLE)
    axis.text(4.5, top + 0.5, "logits: KL at a temperature", color=STYLE, ha="center")
    axis.text(7.75, top + 1.75, "cross-entropy on the data", color=TEXT, ha="center")
    _arrow(axis, 7.75, top + 1.65, 7.75, top + 0.75, TEXT)
    axis.set_xlim(-0.2, 9.4)
    axis.set_ylim(-0.3, top + 2.2)
    axis.axis("off")
    return figure


def draw_measure() -> plt.Figure:
    """A minimal pair: how likely the shipped teacher finds each unit of a word and of a pseudo-word."""
    pair = next(pair for pair in read_suite(SUITES / "lexical.parquet") if pair.id == SHOWN_PAIR)
    model = load_pretrained(TinyWaveForCausalLM, TEACHER, dtype="float32")
    model.config = model.config.with_streams(["unit"])
    figure, axes = plt.subplots(2, 1, figsize=(9, 2.6), sharex=True)
    scale = plt.get_cmap("YlGnBu")
    for axis, half, text in zip(axes, ("positive", "negative"), (pair.positive_text, pair.negative_text), strict=True):
        units, scores = _log_probabilities(model, pair.half(half))
        for index, (unit, score) in enumerate(zip(units, scores, strict=True)):
            _cell(axis, index, 1.0, str(unit), scale(0.15 + 0.6 * np.exp(score)), text=INK, size=7.5)
            axis.text(index + 0.5, -0.32, f"{score:.1f}", ha="center", va="center", fontsize=7, color=TEXT)
        axis.set_ylabel(f"{text}\n{half}", rotation=0, ha="right", va="center")
        axis.text(len(units) + 0.3, 0.5, f"mean {scores.mean():.2f}", va="center", fontsize=10, weight="bold")
        axis.set_ylim(-0.6, 1)
    axes[0].set_xlim(0, 28)
    _hide(axes)
    return figure


def draw_engines() -> Figure:
    """How fast every engine decodes with the published shape: the rows of the benchmark."""
    return draw_decoding(json.loads((RESULTS / "decode.json").read_text(encoding="utf-8")))


PICTURES: dict[str, Callable[[], Figure]] = {
    "units": draw_units,
    "streams": draw_streams,
    "prosody": draw_prosody,
    "interleaving": draw_interleaving,
    "losses": draw_losses,
    "minimal_pair": draw_measure,
    "decode": draw_engines,
}


@functools.cache
def _codec():
    return load_codec(CODEC)


@functools.cache
def _encode_recording() -> tuple[np.ndarray, SpeechStreams]:
    waveform = load_audio(RECORDING)
    return waveform, _codec().encode([waveform])[0]


def _log_probabilities(model: TinyWaveForCausalLM, speech: SpeechStreams) -> tuple[list[int], np.ndarray]:
    """Units without repeats, and log p of each given all before it, in nats."""
    ids = torch.tensor(SpeechSequenceFormat(model.config).speech_to_sequence(speech))
    with torch.no_grad():
        scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    units = deduplicate(speech.units)[0].tolist()
    first = len(ids) - len(units)
    return units, scores[torch.arange(first - 1, len(ids) - 1), ids[first:]].numpy()


def _draw_waveform(axis, waveform: np.ndarray, start: float, seconds: float) -> None:
    """The smallest and largest sample of every piece of a stretch, as a filled band."""
    samples = waveform[int(start * SAMPLING_RATE) : int((start + seconds) * SAMPLING_RATE)]
    pieces = np.array_split(samples, 500)
    times = start + np.arange(len(pieces)) * seconds / len(pieces)
    axis.fill_between(times, [piece.min() for piece in pieces], [piece.max() for piece in pieces], color=INK, lw=0)
    axis.set_xlim(start, start + seconds)


def _draw_spectrogram(axis, waveform: np.ndarray, start: float, seconds: float) -> None:
    samples = waveform[int(start * SAMPLING_RATE) : int((start + seconds) * SAMPLING_RATE)]
    window = np.hanning(400)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 200), 400)[::80] * window
    power = np.log10(np.abs(np.fft.rfft(frames))[:, :140] ** 2 + 1e-6).T
    axis.imshow(power, origin="lower", aspect="auto", cmap="GnBu", extent=(start, start + seconds, 0, 1))


def _draw_codes(axis, label: str, names: list[str], period: float, colour: str) -> None:
    """A row of codes that last `period` seconds each; a repeat is an empty, pale cell."""
    for index, name in enumerate(names):
        _cell(axis, index * period, period, name, colour if name else "#e5e7eb")
    axis.set_ylabel(label, rotation=0, ha="right", va="center")


def _blank_repeats(values: np.ndarray) -> list[str]:
    return ["" if index and value == values[index - 1] else str(value) for index, value in enumerate(values.tolist())]


def _draw_tokens(axis, tokens: list[str], per_row: int = 11) -> None:
    """Tokens in reading order, in the colours of their streams."""
    for index, token in enumerate(tokens):
        row, column = divmod(index, per_row)
        _cell(axis, column, 0.96, token, COLOURS.get(token[1:3], TEXT), bottom=-row, size=8)
    axis.set_xlim(0, per_row)
    axis.set_ylim(-((len(tokens) - 1) // per_row) - 0.1, 1)


def _draw_segments(axis, segments, document: AlignedDocument, shown: int) -> None:
    """Segments of a document on its own clock: a box of words for text, a box of units for speech."""
    word, frame = 0, 0
    for modality, content in segments:
        if modality == "text":
            stop = word + len(content.split())
            label, colour = " ".join(content.split()[: max(0, shown - word)]), TEXT
        else:
            stop = _word_at(document, frame + len(content))
            frames = min(document.boundary_frame(shown), frame + len(content)) - frame
            label, colour = f"{len(deduplicate(content[:frames])[0])} units", UNIT
        begin, end = document.word_starts[word], document.word_starts[min(stop, shown)]
        _cell(axis, begin, end - begin, label, colour, size=7.5)
        word, frame = stop, document.boundary_frame(stop)
        if word >= shown:
            return


def _word_at(document: AlignedDocument, frame: int) -> int:
    """The word that starts at a unit frame; one past the last at the end."""
    return next(word for word in range(len(document.words) + 1) if document.boundary_frame(word) == frame)


def _cell(axis, left, width, label, colour, *, bottom=0.0, text="white", size=7.5) -> None:
    axis.add_patch(Rectangle((left, bottom + 0.06), width, 0.86, facecolor=colour, edgecolor="white", linewidth=0.8))
    axis.text(left + width / 2, bottom + 0.48, label, ha="center", va="center", color=text, fontsize=size)


def _unit_colour(unit: int):
    """The same colour for the same unit; dark enough for white letters."""
    return plt.get_cmap("viridis")(0.05 + 0.6 * ((unit * 0.618034) % 1.0))


def _model_column(axis, left: float, heights: dict[int, float], mapped: set[int], title: str, top: float) -> None:
    """A stack of blocks between the embedding and the LM head."""
    width = 2.5
    for block, height in heights.items():
        colour = UNIT if block in mapped else "#cfd8dc"
        _box(axis, left, height, width, 0.74, f"block {block}", colour, "white" if block in mapped else INK)
    _box(axis, left, 0.0, width, 0.74, "embedding", "#cfd8dc", INK)
    _box(axis, left, top, width, 0.74, "norm and LM head", STYLE, "white")
    for low, high in pairwise([0.0, *sorted(heights.values()), top]):
        axis.plot([left + width / 2] * 2, [low + 0.74, high], color=FAINT, linewidth=1.2, zorder=0)
    axis.text(left + width / 2, -0.25, title, ha="center", va="top", weight="bold")


def _box(axis, left, bottom, width, height, label, colour, text) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=colour, linewidth=0))
    axis.text(left + width / 2, bottom + height / 2, label, ha="center", va="center", color=text, fontsize=9)


def _arrow(axis, from_x, from_y, to_x, to_y, colour) -> None:
    axis.add_patch(
        FancyArrowPatch(
            (from_x, from_y), (to_x, to_y), arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.4
        )
    )


def _hide(axes) -> None:
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)


if __name__ == "__main__":
    for picture in draw_pictures(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES):
        print(picture)
