"""`tinywave decode units.json recording.wav`"""

import json
from pathlib import Path

from ..data.audio_io import write_audio
from .loading import load_vocoder, neural_decoder
from .shipped import VOCODER


def add_arguments(parser):
    parser.add_argument("units", help="JSON of `tinywave encode`; where it has no durations, they are predicted")
    parser.add_argument("output", help="audio file to write, .wav or .flac")
    parser.add_argument("--vocoder", default=str(VOCODER), help="folder of the vocoder")
    parser.add_argument("--griffin-lim", action="store_true", help="use the metallic fallback, not the neural decoder")


def run(arguments) -> int:
    """Speak units and print the path of the recording."""
    record = read_units(Path(arguments.units))
    vocoder = load_vocoder(arguments.vocoder)
    decoder = neural_decoder(arguments.griffin_lim)
    waveform = vocoder.units_to_waveform(record["units"], record.get("durations"), decoder)
    write_audio(arguments.output, waveform.numpy(), vocoder.sampling_rate)
    print(arguments.output)
    return 0


def read_units(path: Path) -> dict:
    """Read {"units", optionally "durations"}: lists of whole numbers.

    Raises `ValueError` naming the file when it holds anything else, `OSError` when it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected the output of `tinywave encode`") from error
    if not isinstance(record, dict) or "units" not in record:
        raise ValueError(f'{path} has no "units"; expected the output of `tinywave encode`')
    for name in ("units", "durations"):
        values = record.get(name, [])
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise ValueError(f'"{name}" in {path} must be a list of whole numbers')
    return record
