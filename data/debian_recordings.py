"""Human speech that Debian carries: the prompts of telephone exchanges, each package read by one person.

apt brings the packages and checks their signatures; PyAV decodes what is in them, in whatever format of telephony.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from tqdm.auto import tqdm

from .audio_io import convert_waveform, report_left_out, write_audio
from .corpus import SAMPLING_RATE
from .pronunciation import MissingMaterialError, missing_material
from .recordings import RecordingFolder

SUFFIXES = (".g722", ".gsm", ".wav", ".ogg")
PAUSE_SECONDS = 0.25
LEAST_SECONDS = 10.0


def debian_recordings(packages: Sequence[Mapping[str, str]], folder: str | Path) -> list[RecordingFolder]:
    """Fetch packages and write what is recorded in them; returns a folder for each.

    Prompts are short, often one word. Those of a package are shuffled and joined, with pauses of 0.25 s, into
    recordings of 10 s or a little more.

    Args:
        packages: each with `name`, of the Debian package, `voice`, who speaks, and `licence`, of the recordings.
        folder: where the recordings are written, 16 kHz FLAC, a subfolder for each voice.

    Raises `MissingMaterialError` without apt, PyAV, or the package; `ValueError` for a package that lacks one of these
    keys or holds no recordings.
    """
    folders = []
    for package in tqdm(packages, desc="Fetching", unit="package"):
        if set(package) != {"name", "voice", "licence"}:
            raise ValueError(f"Found a package with {sorted(package)}; expected name, voice and licence.")
        voice_folder = Path(folder) / package["voice"]
        _write_recordings(package["name"], voice_folder)
        folders.append(RecordingFolder(voice_folder, licence=package["licence"], source=package["name"]))
    return folders


def _write_recordings(package: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as unpacked:
        _unpack(package, Path(unpacked))
        paths = sorted(path for path in Path(unpacked).rglob("*") if path.suffix in SUFFIXES and not path.is_symlink())
        paths = [path for path in paths if path.stat().st_size]  # an empty file stands for a word that is left out
        if not paths:
            raise ValueError(f"The package {package} holds no files that end in {', '.join(SUFFIXES)}.")
        Random(0).shuffle(paths)
        for index, waveform in enumerate(join_prompts(_decoded(paths))):
            write_audio(folder / f"{index:04d}.flac", waveform, SAMPLING_RATE)


def join_prompts(prompts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Join waveforms `(S,)` at 16 kHz with pauses, until each result is long enough; the last may be shorter."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLING_RATE), np.float32)
    parts: list[np.ndarray] = []
    for prompt in prompts:
        parts += [prompt, pause]
        if sum(map(len, parts)) >= LEAST_SECONDS * SAMPLING_RATE:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


def _unpack(package: str, folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingMaterialError(f"Found no {tool}; the package {package} is only for Debian and its relatives.")
    _run(["apt-get", "download", package], folder, f"apt brings no package {package}; try `apt-get update`")
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "--extract", archive.name, "."], folder, f"{package} cannot be unpacked")


def _run(command: Sequence[str], folder: Path, failure: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise MissingMaterialError(f"{failure}: {result.stderr.strip()[-500:]}")


def _decoded(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The prompts that can be decoded; the others are named on standard error."""
    for path in paths:
        try:
            yield _decode(path)
        except (OSError, ValueError, IndexError) as error:
            report_left_out({path.name: str(error)})


def _decode(path: Path) -> np.ndarray:
    """A waveform `(S,)` at 16 kHz of a file in any format that FFmpeg knows."""
    try:
        import av
    except ImportError as error:
        raise missing_material("av") from error
    resampler = av.AudioResampler(format="flt", layout="mono")
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    return convert_waveform(samples, rate, SAMPLING_RATE, path.name)
