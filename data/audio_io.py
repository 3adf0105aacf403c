"""Read, list and write audio files. Everything downstream sees mono float32 in [-1, 1] at one sampling rate.

`tinywave.data.audio_decoding` describes which formats are read, and how.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from ..waveform_tinywave import AudioError, AudioWarning, convert_waveform
from .audio_decoding import (
    decode_audio,
    describe_source,
    has_audio,
    header_seconds,
    open_source,
    report_early_end,
)
from .storage import atomic_file

__all__ = [
    "AudioError",
    "AudioWarning",
    "audio_seconds",
    "convert_waveform",
    "find_audio_files",
    "is_named_like_audio",
    "load_audio",
    "refuse_same_targets",
    "report_left_out",
    "waveform_to_flac_bytes",
    "write_audio",
]

_AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au", ".caf")


def load_audio(
    source: str | os.PathLike | bytes | BinaryIO,
    sampling_rate: int = 16000,
    max_seconds: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Read an audio file of any format, sampling rate, number of channels and sample format.

    Args:
        source: path, encoded bytes (a whole WAV, FLAC, ... file), or a binary file object.
        sampling_rate (`int`, default 16000): of the result, in Hz.
        max_seconds (`float`, *optional*): longer audio is refused without being decoded further.
        name (`str`, *optional*): what errors and warnings call the audio; by default its path.

    Returns:
        `np.ndarray` of shape `(samples,)`: mono float32 in [-1, 1]. [`~waveform_tinywave.mix_channels`] describes how
        channels are mixed. Streams that follow each other in one file are joined.

    Raises:
        AudioError: when the file is missing, empty, not audio, too long, or cannot be used
            ([`~waveform_tinywave.convert_waveform`]). All its channels together may decode to 2**29 samples, such as
            90 minutes of stereo at 48 kHz, which takes 3.4 GiB of memory; of mono at 16 kHz as many take 4.1 GiB.

    Warns:
        AudioWarning: for a file that ends early, with both lengths where it states one, and where `convert_waveform`
            does. What ends between two packets is not noticed where a format states no length, as MP3 without a Xing
            header and raw AAC.
    """
    name = describe_source(source) if name is None else name
    content = open_source(source, name)
    try:
        decoded = decode_audio(content, name, max_seconds)
    finally:
        if content is not source:
            content.close()
    report_early_end(decoded, name)
    names = [name] if len(decoded.blocks) == 1 else [f"{name}, part {n}" for n in range(1, len(decoded.blocks) + 1)]
    pieces = [
        convert_waveform(block.samples, block.sampling_rate, sampling_rate, part)
        for block, part in zip(decoded.blocks, names, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def audio_seconds(source: str | os.PathLike | bytes | BinaryIO) -> float:
    """Return the length of an audio file in seconds: by its header where that is reliable, else by decoding it.

    Raises:
        AudioError: for what is not audio.
    """
    name = describe_source(source)
    content = open_source(source, name)
    try:
        return header_seconds(content) or decode_audio(content, name).seconds
    finally:
        if content is not source:
            content.close()


def find_audio_files(paths: Iterable[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Select the audio files among paths by their content.

    Args:
        paths: files and folders, in any order.

    Returns:
        The audio files in the order of their names, and for every other file why it is passed over. Folders and files
        that are hidden by a dot at the beginning of their name are in neither.
    """
    found, passed_over = [], {}
    for path in sorted(paths):
        if path.name.startswith(".") or path.is_dir():
            continue
        reason = _why_not_audio(path)
        if reason is None:
            found.append(path)
        else:
            passed_over[path] = reason
    return found, passed_over


def is_named_like_audio(path: Path) -> bool:
    """Return whether a file has the suffix of audio, so that it is damaged, not of another kind, if it is none."""
    return path.suffix.lower() in _AUDIO_SUFFIXES


def refuse_same_targets(paths: Iterable[Path], target: Callable[[Path], object], what: str) -> None:
    """Raise `ValueError` naming two files that would share one target, such as `a.wav` and `a.mp3` one `a.wav`."""
    seen: dict[object, Path] = {}
    for path in paths:
        other = seen.setdefault(target(path), path)
        if other is not path:
            raise ValueError(f"{other} and {path} would get {what} {target(path)}; rename or remove one of them")


def report_left_out(reasons: Mapping[object, str], num_items: int | None = None, num_shown: int = 20) -> None:
    """Print which files or rows are left out and why, the first of them by name, on standard error.

    Args:
        reasons: of what is left out; a key is its path or its name.
        num_items (`int`, *optional*): how many there are in all, to be printed beside how many are left out.
        num_shown (`int`, default 20): how many are named.
    """
    for item, reason in list(reasons.items())[:num_shown]:
        name = describe_source(item) if isinstance(item, Path) else item
        print(f"left out: {name}: {reason.removeprefix(str(name)).strip(' :')}", file=sys.stderr)
    if len(reasons) > num_shown:
        print(f"left out: {len(reasons) - num_shown} more", file=sys.stderr)
    if reasons and num_items is not None:
        print(f"{len(reasons)} of {num_items} recordings are left out", file=sys.stderr)


def waveform_to_flac_bytes(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Return a 16-bit FLAC file of a mono waveform in [-1, 1]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _checked_for_writing(waveform), sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_audio(path: str | os.PathLike, waveform: np.ndarray, sampling_rate: int) -> None:
    """Write a mono waveform in [-1, 1] as 16-bit audio; the suffix (.wav, .flac) chooses the format.

    Raises:
        AudioError: for another suffix, or samples that are not finite.
    """
    path = Path(path)
    check_writable_format(path)
    # soundfile itself opens no file whose name is not UTF-8.
    with atomic_file(path) as partial, open(partial, "wb") as file:
        soundfile.write(
            file,
            _checked_for_writing(waveform),
            sampling_rate,
            format=path.suffix[1:].upper(),
            subtype="PCM_16",
        )


def check_writable_format(path: str | os.PathLike) -> None:
    """Raise [`AudioError`] for a path whose suffix is not that of a format that is written."""
    suffix = Path(path).suffix
    if suffix.lower() not in (".wav", ".flac"):
        raise AudioError(f"cannot write audio to {path}: its suffix is {suffix!r}; expected .wav or .flac")


def _checked_for_writing(waveform: np.ndarray) -> np.ndarray:
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise AudioError(f"cannot write audio of shape {waveform.shape}; expected mono, finite samples in [-1, 1]")
    return np.clip(waveform, -1.0, 1.0)


# Folders


def _why_not_audio(path: Path) -> str | None:
    """Why a file is passed over where recordings are listed; None for audio."""
    name = describe_source(path)
    try:
        with open_source(path, name) as file:
            return None if has_audio(file) else "not audio"
    except AudioError as error:
        return str(error).removeprefix(name).strip()
    except OSError as error:
        return error.strerror or str(error)
