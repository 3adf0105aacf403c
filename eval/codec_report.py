"""Everything that is measured of a codec, part by part: a part that is finished is not measured again.

The folder of a report holds `parts`, a JSON file for each part with a key that changes with the weights, the material
and the package versions, and `codec.json`, the parts put together.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np

from ..codec_tinywave import SpeechCodec
from ..data.f0_extraction import load_f0_extractor
from ..data.storage import read_json, write_json
from ..speech_encoder_tinywave import SpeechEncoder
from .codec_checks import (
    REFERENCE_SAMPLES,
    measure_golden_vector,
    measure_invariances,
    measure_sizes,
    measure_speed,
    weight_files,
)
from .codec_contours import trace_contours
from .codec_material import HeldOutUtterance, describe_set
from .codec_resynthesis import (
    Transcriber,
    resynthesis_row,
    resynthesis_rows,
    spoken_variants,
    summarize_resynthesis,
)
from .codec_units import measure_units, measure_voice_distance
from .resynthesis import WhisperTranscriber
from .speech_quality import DistillMos, load_distill_mos
from .statistics import NUM_RESAMPLES

PACKAGES = (
    "torch", "transformers", "numpy", "scipy", "soxr", "swift-f0", "hibari-tts", "onnxruntime", "faster-whisper",
    "ctranslate2", "jiwer", "distillmos",
)  # fmt: skip
NUM_CHECKED_CLIPS = 16


@dataclass(frozen=True)
class CodecMaterial:
    """What a codec is measured on.

    Attributes:
        sets: name of each set -> its recordings, which no part of the codec was trained on.
        read_voices: returns the same sentences by several voices; called when they are needed.
        clips: name of the set of `sets` whose recordings are the longest to hand for speed, lengths and invariances.
        shown: name of the set whose liveliest recording is drawn.
    """

    sets: Mapping[str, Sequence[HeldOutUtterance]]
    read_voices: Callable[[], Sequence[HeldOutUtterance]]
    clips: str
    shown: str


class CodecReport:
    """Measures a codec into a folder.

    Args:
        codec ([`SpeechCodec`]): with a vocoder.
        folders: folder of each of its models, "speech_encoder", "vocoder" and so on.
        teacher ([`SpeechEncoder`]): the encoder whose units the codec's own learnt.
        material ([`CodecMaterial`]): recordings.
        output_folder: made if missing.
        transcribe (*optional*): waveform, sampling rate -> text. Default: Whisper base.
        seed (`int`, default 0): of the bootstrap.

    Raises `ValueError` for a codec without vocoder.
    """

    def __init__(
        self,
        codec: SpeechCodec,
        folders: Mapping[str, str | os.PathLike],
        teacher: SpeechEncoder,
        material: CodecMaterial,
        output_folder: str | os.PathLike,
        transcribe: Transcriber | None = None,
        seed: int = 0,
    ):
        if codec.vocoder is None:
            raise ValueError("this codec has no vocoder; a report needs one that speaks")
        self.codec, self.teacher, self.material, self.seed = codec, teacher, material, seed
        self.folders = {name: Path(folder) for name, folder in folders.items()}
        self.output_folder = Path(output_folder)
        self._transcribe = transcribe

    def measure(self) -> dict:
        """Measure what is not there yet, write `codec.json`, and return what it holds."""
        sets = self.material.sets
        record = {
            "codec": self.codec.fingerprint(),
            "teacher": self.teacher.fingerprint(),
            "seed": self.seed,
            "interval": f"95 %, percentile bootstrap over utterances, {NUM_RESAMPLES} resamples",
            "versions": self.versions,
            "sets": {name: describe_set(utterances) for name, utterances in sets.items()},
            "units": {name: self._part(f"units_{name}", self._measure_units, name) for name in sets},
            "voice_distance": self._part("voice_distance", self._measure_voices),
            "speed": self._part("speed", lambda: measure_speed(self._clips, self.codec, self.teacher)),
            "golden_vector": self._part("golden_vector", self._measure_golden_vector),
            "invariances": self._part("invariances", lambda: measure_invariances(self._checked, self.codec)),
            "sizes": self._part("sizes", lambda: measure_sizes(self.codec, self.folders)),
            "resynthesis": {name: self.measure_resynthesis(name) for name in sets},
        }
        write_json(record, self.output_folder / "codec.json")
        return record

    def trace(self) -> dict:
        """Return the F0 contours of one recording and of its resynthesis, see [`trace_contours`]."""
        utterances = self.material.sets[self.material.shown]
        return self._part("contours", lambda: trace_contours(utterances, self.codec, self._extract_f0))

    def measure_resynthesis(self, name: str) -> dict:
        """Return the records of one set, see [`summarize_resynthesis`]; what was found in a recording is kept at once.

        This is most of the work, so that an interrupted set goes on with the recording at which it stopped.
        """
        rows = resynthesis_rows(
            self.material.sets[name],
            self.output_folder / "parts" / f"resynthesis_{name}.json",
            self.key,
            lambda utterance: resynthesis_row(
                utterance, self.codec, self._extract_f0, self._transcriber, self._judge and self._judge.judge
            ),
            f"resynthesis of {name}",
        )
        return summarize_resynthesis(rows, spoken_variants(self.codec), self.seed)

    @cached_property
    def versions(self) -> dict[str, str | None]:
        """Of Python and of the packages that take part; None for one that is not installed."""
        return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}

    @cached_property
    def key(self) -> str:
        """Changes with the weights, the recordings, the seed and the package versions."""
        digest = hashlib.sha256()
        for name, folder in sorted(self.folders.items()):
            for path in [folder / "config.json", *weight_files(folder)]:
                digest.update(name.encode() + path.read_bytes())
        names = {name: [utterance.id for utterance in row] for name, row in self.material.sets.items()}
        about = [self.codec.fingerprint(), self.teacher.fingerprint(), names, self.seed, self.versions]
        digest.update(json.dumps(about, sort_keys=True).encode())
        return digest.hexdigest()[:32]

    def _part(self, name: str, measure: Callable[..., dict], *arguments) -> dict:
        """The record of a part, read where it was measured under the same key."""
        path = self.output_folder / "parts" / f"{name}.json"
        saved = read_json(path) if path.is_file() else {}
        if saved.get("key") != self.key:
            print(f"measuring {name.replace('_', ' ')}", file=sys.stderr, flush=True)
            saved = {"key": self.key, "record": measure(*arguments)}
            write_json(saved, path)
        return saved["record"]

    def _measure_units(self, name: str) -> dict:
        return measure_units(self.material.sets[name], self.codec.speech_encoder, self.teacher, self.seed)

    def _measure_voices(self) -> dict:
        utterances = self.material.read_voices()
        distances = measure_voice_distance(utterances, self.codec.speech_encoder, self.teacher, self.seed)
        return distances | {"set": describe_set(utterances)}

    def _measure_golden_vector(self) -> dict:
        waveform = np.concatenate(self._clips)
        repeats = -(-REFERENCE_SAMPLES // len(waveform))
        return measure_golden_vector(np.tile(waveform, repeats), self.codec)

    @property
    def _clips(self) -> list[np.ndarray]:
        return [utterance.waveform for utterance in self.material.sets[self.material.clips]]

    @property
    def _checked(self) -> list[np.ndarray]:
        """The clips, and as many of the other recordings as it takes to fill two batches."""
        others = [row for name, row in self.material.sets.items() if name != self.material.clips]
        waveforms = self._clips + [utterance.waveform for row in others for utterance in row]
        return waveforms[:NUM_CHECKED_CLIPS]

    @cached_property
    def _extract_f0(self):
        return self.codec.f0_extractor or load_f0_extractor()

    @cached_property
    def _transcriber(self) -> Transcriber:
        return self._transcribe or WhisperTranscriber()

    @cached_property
    def _judge(self) -> DistillMos | None:
        try:
            return load_distill_mos()
        except ModuleNotFoundError:
            return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
