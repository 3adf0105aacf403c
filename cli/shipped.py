"""Where the shipped nano artefacts are."""

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("tinywave.assets").joinpath("")))
CODEC = ASSETS / "codec"
WHISPER_UNITS = ASSETS / "whisper_units"
TEACHER = ASSETS / "teacher"
SUITES = ASSETS / "suites"
AUDIO = ASSETS / "audio"
