"""Read, convert, check and write audio. Everything downstream sees mono float32 in [-1, 1] at one sampling rate."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .storage import atomic_file

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""Files that are taken for recordings where a folder of them is read."""


class AudioError(ValueError):
    """Audio that cannot be used; the message says which, what was found and what is expected."""


def load_audio(
    source: str | os.PathLike | bytes | BinaryIO, sampling_rate: int = 16000, max_seconds: float | None = None
) -> np.ndarray:
    """Read audio of any rate, channel count and sample format that libsndfile knows.

    Args:
        source: path, encoded bytes (a whole WAV, FLAC, ... file), or a binary file object.
        sampling_rate (`int`, default 16000): of the result, in Hz.
        max_seconds (`float`, *optional*): longer audio is refused, before it is decoded.

    Returns:
        mono float32 waveform of shape `(samples,)` in [-1, 1]; channels are averaged.

    Raises [`AudioError`] when the file is missing, empty, not audio, too long, or holds NaN or infinite samples.
    """
    name = _describe(source)
    with _opened(source, name) as file:
        if file.frames == 0:
            raise AudioError(f"{name} holds no audio samples; expected speech")
        seconds = file.frames / file.samplerate
        if max_seconds is not None and seconds > max_seconds:
            raise AudioError(f"{name} lasts {seconds:.1f} s; at most {max_seconds:g} s are accepted, so cut it first")
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{name} is damaged audio ({error}); write the file again") from error
        source_rate = file.samplerate
    if len(samples) == 0:
        raise AudioError(f"{name} is damaged audio: its header promises {seconds:.1f} s but nothing can be read")
    return convert_waveform(samples, source_rate, sampling_rate, name)


def convert_waveform(
    samples: np.ndarray, source_rate: int, sampling_rate: int = 16000, name: str = "the waveform"
) -> np.ndarray:
    """Average channels, resample and check.

    Args:
        samples: floats of shape `(samples,)` or `(samples, channels)`, nominally in [-1, 1].
        source_rate, sampling_rate: of the input and of the result, in Hz.
        name: what error messages call the audio.

    Returns:
        mono float32 waveform in [-1, 1]. Overshoots of resampling are clipped.

    Raises [`AudioError`] when the audio is empty or holds NaN or infinite samples.
    """
    samples = np.asarray(samples)
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2):
        raise AudioError(f"{name} has type {samples.dtype} and shape {samples.shape}; expected floats, (samples,)")
    if len(samples) == 0:
        raise AudioError(f"{name} holds no audio samples; expected speech")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise AudioError(f"{name} holds {bad} NaN or infinite samples; expected finite samples in [-1, 1]")
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if source_rate != sampling_rate:
        mono = soxr.resample(mono, source_rate, sampling_rate)
    return np.clip(mono, -1.0, 1.0).astype(np.float32)


def waveform_to_flac_bytes(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Return a 16-bit FLAC file of a mono waveform in [-1, 1]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _checked_for_writing(waveform), sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_audio(path: str | os.PathLike, waveform: np.ndarray, sampling_rate: int) -> None:
    """Write a mono waveform in [-1, 1] as 16-bit audio; the suffix (.wav, .flac) chooses the format.

    The file appears complete or not at all. Raises [`AudioError`] for an unknown suffix or NaN samples.
    """
    path = Path(path)
    audio_format = path.suffix[1:].upper()
    if audio_format not in ("WAV", "FLAC"):
        raise AudioError(f"cannot write audio to {path}: its suffix is {path.suffix!r}; expected .wav or .flac")
    with atomic_file(path) as partial:
        soundfile.write(partial, _checked_for_writing(waveform), sampling_rate, format=audio_format, subtype="PCM_16")


def _checked_for_writing(waveform: np.ndarray) -> np.ndarray:
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise AudioError(f"cannot write audio of shape {waveform.shape}; expected mono, finite samples in [-1, 1]")
    return np.clip(waveform, -1.0, 1.0)


def _describe(source: str | os.PathLike | bytes | BinaryIO) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return getattr(source, "name", None) or "the audio data"


@contextmanager
def _opened(source: str | os.PathLike | bytes | BinaryIO, name: str) -> Iterator[soundfile.SoundFile]:
    """Open the source for reading; turn every reason why that fails into an [`AudioError`] that names it."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise AudioError(f"{name} {'is a folder' if path.is_dir() else 'does not exist'}; expected an audio file")
        if path.stat().st_size == 0:
            raise AudioError(f"{name} is an empty file; expected audio")
    elif isinstance(source, bytes):
        if not source:
            raise AudioError(f"{name} is empty; expected an encoded audio file")
        source = io.BytesIO(source)
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(f"{name} is not audio that can be read ({reason}); expected WAV, FLAC, OGG or MP3") from error
    with file:
        yield file
