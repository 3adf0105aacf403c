"""What a visitor records or uploads -> a waveform that a model can be given, or an error that says what to do."""

import atexit
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cli.shipped import AUDIO
from ..data.audio_io import AudioWarning, load_audio
from ..data.corpus import iterate_corpus

SAMPLING_RATE = 16_000
MAX_PROMPT_SECONDS = 20.0
MAX_FILE_SECONDS = 900.0
MIN_SECONDS = 0.5
# Of the loudest sample, in [-1, 1]: -46 dB of full scale. Microphones that are muted give less, whispers give more.
SILENCE = 0.005
EXAMPLE_STORIES = {"test-01-story-00003": "A story, his voice", "test-01-story-00006": "A story, her voice"}
EXAMPLE_READING = "sense_and_sensibility_01_0880.flac"
EXAMPLE_WORDS = 16


@dataclass(frozen=True, eq=False)
class Recording:
    """Speech that can be used.

    Attributes:
        waveform (`np.ndarray` of shape `(samples,)`): mono float32 in [-1, 1] at 16,000 Hz.
        notice (`str`): what was left out of a long file, and what is wrong with a file that is used; else empty.
    """

    waveform: np.ndarray
    notice: str = ""


def load_recording(path: str | os.PathLike | None, keep: str = "end") -> Recording:
    """Read a recording for use as a prompt, at most `MAX_PROMPT_SECONDS` long.

    Args:
        path: an audio file of any rate and channel count, or None where nothing was recorded.
        keep (`str`, default "end"): "end" or "start", whichever part of a longer file is used.

    Raises `ValueError` for no recording, one under half a second, silence, a file over 15 minutes or one that is not
    audio.
    """
    if path is None:
        raise ValueError("There is no recording yet: press record and speak, choose a file, or take an example below.")
    waveform, notice = read_audio(path)
    seconds = len(waveform) / SAMPLING_RATE
    if seconds < MIN_SECONDS:
        raise ValueError(f"This recording lasts {seconds:.2f} s; please speak for at least {MIN_SECONDS:g} s.")
    num_kept = int(MAX_PROMPT_SECONDS * SAMPLING_RATE)
    if len(waveform) > num_kept:
        waveform = waveform[-num_kept:] if keep == "end" else waveform[:num_kept]
        which = "last" if keep == "end" else "first"
        notice += f"The recording lasts {seconds:.0f} s; its {which} {MAX_PROMPT_SECONDS:g} s are used."
    if np.abs(waveform).max() < SILENCE:
        raise ValueError("This recording is silent; check that the microphone is not muted, and speak louder.")
    return Recording(waveform, notice.strip())


def read_audio(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Read an audio file as mono float32 `(samples,)` at 16,000 Hz, with what there is to report about it.

    Raises [`AudioError`] with the name of the file, not its path on the server.
    """
    name = Path(path).name
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always", AudioWarning)
        waveform = load_audio(path, SAMPLING_RATE, max_seconds=MAX_FILE_SECONDS, name=name)
    messages = [str(warning.message) for warning in issued if issubclass(warning.category, AudioWarning)]
    return waveform, "".join(f"{message}. " for message in messages)


def provide_ffmpeg() -> None:
    """Put an ffmpeg on the PATH of this process where there is none: the one of the `imageio-ffmpeg` wheel.

    Raises `ModuleNotFoundError` where neither is installed.
    """
    if shutil.which("ffmpeg"):
        return
    from imageio_ffmpeg import get_ffmpeg_exe

    folder = tempfile.mkdtemp(prefix="tinywave-ffmpeg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(get_ffmpeg_exe(), Path(folder) / "ffmpeg")
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]


def example_recordings() -> dict[str, np.ndarray]:
    """Examples to speak with, by label: float32 `(samples,)` at 16,000 Hz.

    The nano models know the language of the two stories, read by voices they have never heard; the reading by a human
    shows what they make of anybody else.
    """
    stories = (row for row in iterate_corpus(AUDIO / "kokoro") if row["id"] in EXAMPLE_STORIES)
    examples = {EXAMPLE_STORIES[row["id"]]: _beginning_of_story(row) for row in stories}
    return examples | {"Sense and Sensibility": load_audio(AUDIO / "librivox" / EXAMPLE_READING, SAMPLING_RATE)}


def _beginning_of_story(row: dict) -> np.ndarray:
    waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE)
    return waveform[: int(row["words"][EXAMPLE_WORDS]["start"] * SAMPLING_RATE)]
