"""Where the shipped nano artefacts are."""

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("tinywave.assets").joinpath("")))
CODEC = ASSETS / "codec"
WHISPER_UNITS = ASSETS / "whisper_units"
TEACHER = ASSETS / "teacher"
SUITES = ASSETS / "suites"
EXPRESSIVE_SUITES = ASSETS / "expressive_suites"
AUDIO = ASSETS / "audio"


def has_prosody(streams: Collection[str]) -> bool:
    """Whether pitch or style is among some streams."""
    return bool({"pitch", "style"} & set(streams))


def speech_encoder_of(streams: Collection[str]) -> Path:
    """The encoder whose units the shipped models of these streams read.

    Models of units alone read those of Whisper, which hold for any voice; models with prosody those of the codec's own
    small encoder.
    """
    return CODEC / "speech_encoder" if has_prosody(streams) else WHISPER_UNITS


def suites_of(streams: Collection[str]) -> Path:
    """The test suites in these units."""
    return EXPRESSIVE_SUITES if has_prosody(streams) else SUITES
