"""Where the shipped nano artefacts are."""

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("tinywave.assets").joinpath("")))
SPEECH_ENCODER = ASSETS / "speech_encoder"
TEACHER = ASSETS / "teacher"
VOCODER = ASSETS / "vocoder"
SUITES = ASSETS / "suites"
AUDIO = ASSETS / "audio"
