"""`tinywave encode recording.wav --json > tokens.json`"""

import json

from ..codec_tinywave import SpeechCodec
from ..data.audio_io import load_audio
from ..data.storage import write_json
from ..tokenization_tinywave import SpeechStreams, ids_to_tokens, streams_to_ids
from .loading import add_codec_arguments, open_codec


def add_arguments(parser):
    parser.add_argument("recording", help="audio file")
    add_codec_arguments(parser, speaks=False)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, not the tokens alone")
    parser.add_argument("--output", metavar="JSON", help="file for the JSON")


def run(arguments) -> int:
    """Print the tokens of a recording, or write all of [`streams_to_record`] as JSON."""
    waveform = load_audio(arguments.recording)
    codec = open_codec(arguments)
    record = streams_to_record(codec.encode([waveform])[0], codec, len(waveform) / codec.input_sampling_rate)
    if arguments.output:
        write_json(record, arguments.output)
    if arguments.json:
        print(json.dumps(record))
    else:
        print(arguments.output or "".join(record["tokens"]))
    return 0


def streams_to_record(streams: SpeechStreams, codec: SpeechCodec, seconds: float) -> dict:
    """Timed streams -> JSON-ready {"units", "pitch", "style", "tokens", "seconds", rates in Hz, "codec"}.

    `units`, `pitch` and `style` hold one value a frame, repeats kept, each at its own rate; pitch and style are None
    for a codec without them. `tokens` are their merged names as a language model reads them, repeats dropped.
    """
    return {
        "units": streams.units.tolist(),
        "pitch": None if streams.pitch is None else streams.pitch.tolist(),
        "style": None if streams.style is None else streams.style.tolist(),
        "tokens": ids_to_tokens(streams_to_ids(streams, codec.token_layout()), codec.token_layout()),
        "seconds": seconds,
        "unit_rate": codec.speech_encoder.frame_rate,
        "pitch_rate": codec.pitch_rate,
        "style_rate": codec.style_rate,
        "codec": codec.fingerprint(),
    }
