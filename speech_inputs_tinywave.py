"""The inputs of the pipelines: conversations, and audio in every form that users of transformers pass."""

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .waveform_tinywave import AudioError, convert_waveform, report_audio

try:
    import soundfile
except ImportError:  # Only for encoded files; arrays need no package.
    soundfile = None

_MODALITIES = ("text", "speech")
EXPECTED = (
    'expected a waveform, {"array": waveform, "sampling_rate": Hz}, {"bytes": ...} or {"path": ...}, '
    "(sampling_rate, waveform), an audio decoder of `datasets`, or the path or the bytes of a WAV or FLAC file"
)
# libsndfile reads these whole. Of others it may read a part only.
_READABLE_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU")
_FLAC_BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
# What libsndfile's log says of a chunk that is longer than the file; a program that writes to a pipe states none.
_SHORT_CHUNK = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be [1-9]", re.MULTILINE)
_UNKNOWN_CHUNK_BYTES = 0x7FFFFF00


def is_audio(value: Any) -> bool:
    """Return whether a value is audio in one of the forms of [`to_waveform`]; a string is not, it may be text."""
    if isinstance(value, (np.ndarray, torch.Tensor, bytes, bytearray, os.PathLike)):
        return True
    is_encoded = isinstance(value, Mapping) and bool({"array", "raw", "bytes", "path"} & value.keys())
    return is_encoded or hasattr(value, "get_all_samples") or is_rate_and_samples(value)


def is_rate_and_samples(value: Any) -> bool:
    """Return whether a value is `(sampling_rate, samples)`, as Gradio gives audio."""
    is_pair = isinstance(value, tuple) and len(value) == 2
    return (
        is_pair and isinstance(value[0], (int, np.integer)) and isinstance(value[1], (np.ndarray, torch.Tensor, list))
    )


def to_waveform(audio: Any, sampling_rate: int | None, expected_rate: int) -> np.ndarray:
    """Convert audio to mono float32 in [-1, 1] at `expected_rate`.

    Args:
        audio: see `EXPECTED`. Integers are samples in the range of their type; channels are the last dimension of an
            array. A path or bytes need the package soundfile.
        sampling_rate (`int`, *optional*): of audio that does not state its own, in Hz. Default: `expected_rate`.
        expected_rate (`int`): of the result, in Hz.

    Raises:
        AudioError: for audio of another form, and where
            [`~waveform_tinywave.convert_waveform`] does.
    """
    samples, stated_rate = _samples_and_rate(audio)
    rate = next(rate for rate in (stated_rate, sampling_rate, expected_rate) if rate is not None)
    return convert_waveform(samples, rate, expected_rate, "the audio")


def _samples_and_rate(audio: Any) -> tuple[np.ndarray, int | None]:
    if isinstance(audio, Mapping):
        samples = audio.get("array", audio.get("raw"))
        if samples is not None:
            return _to_array(samples), audio.get("sampling_rate")
        return _samples_and_rate(audio.get("bytes") or audio.get("path"))
    if hasattr(audio, "get_all_samples"):
        decoded = audio.get_all_samples()
        return _to_array(decoded.data).T, int(decoded.sample_rate)
    if is_rate_and_samples(audio):
        return _to_array(audio[1]), int(audio[0])
    if isinstance(audio, (str, os.PathLike, bytes, bytearray)):
        return _read_encoded(audio)
    if isinstance(audio, (np.ndarray, torch.Tensor, list)):
        return _to_array(audio), None
    raise AudioError(f"found {type(audio).__name__}; {EXPECTED}")


def _to_array(samples: Any) -> np.ndarray:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.dtype in (torch.bfloat16, torch.float16) else samples).numpy()
    array = np.asarray(samples)
    # One channel in the first dimension, as torchaudio has it.
    return array[0] if array.ndim == 2 and len(array) == 1 else array


def _read_encoded(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    name = "the audio file" if isinstance(source, (bytes, bytearray)) else os.fspath(source)
    advice = "decode it first, for instance with tinywave.load_audio, and pass the waveform"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise AudioError(f"{name} is an address; download the file first, and pass its path or bytes")
    if soundfile is None:
        raise AudioError(f"{name} is an encoded file, which needs the package soundfile; install it, or {advice}")
    try:
        content = source if isinstance(source, (bytes, bytearray)) else Path(source).read_bytes()
        if _is_joined(content):
            raise AudioError(f"{name} consists of several files, one after the other; {advice}")
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in _READABLE_FORMATS or file.frames > 2**40:
                raise AudioError(f"{name} is a {file.format} file; {advice}")
            short = _SHORT_CHUNK.search(file.extra_info)
            if short and int(short[1]) < _UNKNOWN_CHUNK_BYTES:
                report_audio(f"{name} ends before the end that its header states")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise AudioError(f"{name} cannot be read ({reason}); {advice}") from error


def _is_joined(content: bytes) -> bool:
    """Whether a WAV, AIFF or FLAC file is followed by another one, of which libsndfile reads nothing."""
    order = {b"RIFF": "little", b"FORM": "big"}.get(content[:4])
    if order is None:
        return _FLAC_BEGINNING.search(content, 4) is not None
    end = int.from_bytes(content[4:8], order) + 8
    return content[end : end + 4] == content[:4]


def check_count(name: str, value: Any) -> None:
    """Raise `ValueError` for a number of things that is no whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def as_batch(conversations: Any) -> tuple[list, bool]:
    """Return the conversations of a call as a list, and whether there was one that was not in a list.

    Args:
        conversations: a segment, a conversation (a list of segments), or a list of these.

    Raises:
        ValueError: for anything else.
    """
    if is_segment(conversations):
        return [[conversations]], True
    if isinstance(conversations, (list, tuple)) and not conversations:
        raise ValueError("the prompt is empty; expected at least one segment")
    is_sequence = isinstance(conversations, (list, tuple)) and len(conversations) > 0
    if is_sequence and all(map(is_segment, conversations)):
        return [conversations], True
    batch = [[item] if is_segment(item) else item for item in conversations] if is_sequence else []
    if not batch or not all(isinstance(item, (list, tuple)) and item and all(map(is_segment, item)) for item in batch):
        raise ValueError(
            f"found {_describe(conversations)}; expected a conversation, a list of segments such as "
            '[("speech", waveform), ("text", "A dog barks.")], or a list of conversations'
        )
    return batch, False


def is_segment(value: Any) -> bool:
    """Return whether a value is a segment of a conversation, `("text", ...)` or `("speech", ...)`."""
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str) and value[0] in _MODALITIES
    )


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:3]) or 'nothing'}"
    return f"{type(value).__name__} {value[:40]!r}" if isinstance(value, str) else type(value).__name__
