"""Resynthesis of recordings from tokens, and measures of words, intonation, style and naturalness.

Every recording is encoded once and resynthesized in up to three variants, which differ in the streams that the vocoder
is given. Units keep their true durations, so that the frames of the recording and of the resynthesis are aligned.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soxr
from tqdm import tqdm

from ..codec_tinywave import SpeechCodec
from ..data.storage import read_json, write_json
from ..f0_tinywave import F0Extractor
from ..pitch_encoder_tinywave import contour_to_features
from ..tokenization_tinywave import SpeechStreams
from .codec_material import HeldOutUtterance
from .codec_measures import (
    measured_agreement,
    measured_correlation,
    measured_ratio,
    not_measured,
    paired_moments,
    relative_f0_moments,
    style_accuracies,
)
from .resynthesis import ENCODER_SAMPLING_RATE, word_error_rate

ORIGINAL, BASE, WITHOUT_PITCH, EXPRESSIVE = "original", "base", "without_pitch", "expressive"
VARIANTS = (BASE, WITHOUT_PITCH, EXPRESSIVE)
PITCH_CODES = "pitch_codes"
TRANSCRIBED = (ORIGINAL, BASE, EXPRESSIVE)

Transcriber = Callable[[np.ndarray, int], str]
Judge = Callable[[np.ndarray], float]


def spoken_variants(codec: SpeechCodec) -> dict[str, frozenset[str]]:
    """Ways in which a codec can speak its own streams -> which of pitch and style the vocoder is given.

    "base": units alone. "expressive": all that the vocoder hears. "without_pitch": that without pitch, where something
    is left. A vocoder that cannot do without pitch or style speaks in one way only.
    """
    heard = frozenset(codec.heard_streams)
    variants = {BASE: frozenset()}
    if heard and heard <= codec.stream_names:
        variants[EXPRESSIVE] = heard
        if heard == {"pitch", "style"}:
            variants[WITHOUT_PITCH] = frozenset({"style"})
    is_free = getattr(codec.vocoder.config, "optional_prosody", False)
    return {name: streams for name, streams in variants.items() if is_free or streams == heard}


def speak_variant(codec: SpeechCodec, streams: SpeechStreams, given: frozenset[str]) -> np.ndarray:
    """Timed streams -> waveform `(S,)` at 16 kHz, spoken with units and the streams that are `given`."""
    chosen = SpeechStreams(
        streams.units, streams.pitch if "pitch" in given else None, streams.style if "style" in given else None
    )
    waveform = codec.decode(chosen).numpy()
    return soxr.resample(waveform, codec.output_sampling_rate, ENCODER_SAMPLING_RATE)


def resynthesis_row(
    utterance: HeldOutUtterance,
    codec: SpeechCodec,
    extract_f0: F0Extractor,
    transcribe: Transcriber,
    judge: Judge | None = None,
) -> dict:
    """Speak one recording again and return what was found, ready for JSON.

    Args:
        utterance: the recording.
        codec: encodes and speaks.
        extract_f0: waveform at 16 kHz -> F0 and voiced flag at 200 Hz.
        transcribe: waveform, sampling rate -> text.
        judge (*optional*): waveform at 16 kHz -> mean opinion score.

    Returns:
        {"id", "text", "voice", "style", and by variant: "heard" (text), "scores", "f0" (moments of the original with
        it), "styles" (names of the style tokens)}. "f0" also holds the original with what its pitch codes decode to.
    """
    streams = codec.encode([utterance.waveform])[0]
    variants = spoken_variants(codec)
    waveforms = {ORIGINAL: utterance.waveform}
    waveforms |= {name: speak_variant(codec, streams, given) for name, given in variants.items()}
    contours = {name: extract_f0(waveform) for name, waveform in waveforms.items()}
    moments = {name: relative_f0_moments(contours[ORIGINAL], contours[name]) for name in variants}
    if codec.pitch_encoder is not None:
        moments[PITCH_CODES] = _pitch_code_moments(codec, contours[ORIGINAL], streams)
    return {
        "id": utterance.id,
        "text": utterance.text,
        "voice": utterance.voice,
        "style": utterance.style,
        "heard": {
            name: transcribe(waveforms[name], ENCODER_SAMPLING_RATE) for name in TRANSCRIBED if name in waveforms
        },
        "scores": {name: judge(waveforms[name]) for name in TRANSCRIBED if judge and name in waveforms},
        "f0": moments,
        "styles": _named_styles(codec, waveforms),
    }


def _pitch_code_moments(codec: SpeechCodec, contour: tuple, streams: SpeechStreams) -> tuple:
    """Moments of the F0 of a recording with what its pitch codes decode to, over its voiced frames."""
    decoded = codec.pitch_encoder.codes_to_f0(streams.pitch).numpy()
    relative = contour_to_features(*contour)[: len(decoded), 0].numpy()
    voiced = np.asarray(contour[1][: len(decoded)], dtype=bool)
    return paired_moments(relative[voiced], decoded[voiced])


def _named_styles(codec: SpeechCodec, waveforms: dict[str, np.ndarray]) -> dict[str, list[str]]:
    if codec.style_encoder is None:
        return {}
    config = codec.style_encoder.config
    names = config.style_names or [str(index) for index in range(config.num_styles)]
    tokens = codec.style_encoder.encode(list(waveforms.values()))
    return {name: [names[token] for token in row.tolist()] for name, row in zip(waveforms, tokens, strict=True)}


def resynthesis_rows(
    utterances: Sequence[HeldOutUtterance],
    path: str | os.PathLike,
    key: str,
    make_row: Callable[[HeldOutUtterance], dict],
    name: str = "resynthesis",
) -> list[dict]:
    """Return the row of every utterance; rows that `path` holds under the same key are not made again.

    Args:
        utterances: in the order of the result.
        path: JSON file, written after every row.
        key: changes with everything that the rows depend on.
        make_row: as [`resynthesis_row`].
        name (`str`, default "resynthesis"): what the progress bar calls it.
    """
    path = Path(path)
    saved = read_json(path) if path.is_file() else {}
    rows = {row["id"]: row for row in saved["rows"]} if saved.get("key") == key else {}
    for utterance in tqdm(utterances, desc=name, unit="clip"):
        if utterance.id not in rows:
            rows[utterance.id] = make_row(utterance)
            write_json({"key": key, "rows": list(rows.values())}, path)
    return [rows[utterance.id] for utterance in utterances]


def summarize_resynthesis(rows: Sequence[dict], variants: Sequence[str], seed: int = 0) -> dict:
    """Rows of one set -> its records.

    Args:
        rows: of [`resynthesis_row`].
        variants: those that the codec can speak; what needs another is not measured.
        seed (`int`, default 0): of the bootstrap.

    Returns:
        {"word_error_rate": {"original", "base", "expressive"}, "mean_opinion_score": the same, "f0_correlation":
        {"base", "without_pitch", "expressive"}, "pitch_code_correlation", "style_accuracy": {"original" and each
        variant: {"window", "utterance"}}, "style_kept": {each variant}}.
    """
    unspoken = not_measured("this vocoder cannot speak with these streams")
    spoken = [name for name in VARIANTS if name in variants]
    missing = set(VARIANTS) - set(spoken)
    return {
        "word_error_rate": {
            name: unspoken if name in missing else _word_error_rate(rows, name) for name in TRANSCRIBED
        },
        "mean_opinion_score": {
            name: unspoken if name in missing else _opinion_score(rows, name, seed) for name in TRANSCRIBED
        },
        "f0_correlation": {
            name: unspoken if name in missing else measured_correlation([row["f0"][name] for row in rows], seed)
            for name in VARIANTS
        },
        "pitch_code_correlation": _pitch_code_correlation(rows, seed),
        "style_accuracy": _style_accuracy(rows, [ORIGINAL, *spoken], seed),
        "style_kept": _style_kept(rows, spoken, seed),
    }


def _word_error_rate(rows: Sequence[dict], variant: str) -> dict:
    return asdict(word_error_rate([row["text"] for row in rows], [row["heard"][variant] for row in rows]))


def _opinion_score(rows: Sequence[dict], variant: str, seed: int) -> dict:
    if not all(variant in row["scores"] for row in rows):
        return not_measured("the weights of distillmos are not installed")
    return measured_ratio([row["scores"][variant] for row in rows], seed=seed)


def _pitch_code_correlation(rows: Sequence[dict], seed: int) -> dict:
    if not all(PITCH_CODES in row["f0"] for row in rows):
        return not_measured("this codec has no pitch encoder")
    return measured_correlation([row["f0"][PITCH_CODES] for row in rows], seed)


def _style_accuracy(rows: Sequence[dict], names: Sequence[str], seed: int) -> dict:
    if not all(row["styles"] for row in rows):
        return not_measured("this codec has no style encoder")
    styles = [row["style"] for row in rows]
    if len(set(styles)) < 2 or "" in styles:
        return not_measured("the styles of this set are not known, or all the same")
    return {name: style_accuracies(styles, [row["styles"][name] for row in rows], seed) for name in names}


def _style_kept(rows: Sequence[dict], names: Sequence[str], seed: int) -> dict:
    if not all(row["styles"] for row in rows):
        return not_measured("this codec has no style encoder")
    pairs = {name: [(row["styles"][ORIGINAL], row["styles"][name]) for row in rows] for name in names}
    return {name: measured_agreement(rows_of_name, seed) for name, rows_of_name in pairs.items()}
