"""`tinywave encode recording.wav --output units.json`"""

import json

from ..data.audio_io import load_audio
from ..data.unit_extraction import load_speech_encoder
from ..eval.results import write_json
from ..tokenization_tinywave import deduplicate
from .shipped import SPEECH_ENCODER


def add_arguments(parser):
    parser.add_argument("recording", help="audio file; any sampling rate and number of channels")
    parser.add_argument("--speech-encoder", default=str(SPEECH_ENCODER), help="folder of the speech encoder")
    parser.add_argument("--output", metavar="JSON", help="file for the units; printed where it is left out")


def run(arguments) -> int:
    """Write {"units", "durations", "unit_rate", "num_units", "seconds", "speech_encoder"} as JSON.

    `units` are de-duplicated; `durations` counts the frames of each, `unit_rate` of them a second.
    """
    waveform = load_audio(arguments.recording)
    encoder = load_speech_encoder(arguments.speech_encoder)
    units, durations = deduplicate(encoder.encode([waveform])[0].tolist())
    record = {
        "units": units.tolist(),
        "durations": durations.tolist(),
        "unit_rate": encoder.frame_rate,
        "num_units": encoder.num_units,
        "seconds": len(waveform) / encoder.sampling_rate,
        "speech_encoder": encoder.fingerprint(),
    }
    if arguments.output:
        print(write_json(record, arguments.output))
    else:
        print(json.dumps(record))
    return 0
