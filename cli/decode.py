"""`tinywave decode tokens.json recording.wav`"""

from pathlib import Path

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_FIELDS
from ..data.audio_io import check_writable_format, write_audio
from ..data.storage import read_json
from ..tokenization_tinywave import SpeechStreams, ids_to_streams, tokens_to_ids
from .loading import add_codec_arguments, open_codec


def add_arguments(parser):
    parser.add_argument(
        "record", help="JSON of `tinywave encode`; tokens alone are enough, durations are then predicted"
    )
    parser.add_argument("output", help="audio file to write, .wav or .flac")
    add_codec_arguments(parser)


def run(arguments) -> int:
    """Speak streams or tokens and print the path of the recording."""
    check_writable_format(arguments.output)
    record = read_record(Path(arguments.record))
    codec = open_codec(arguments)
    waveform = codec.decode(record_to_streams(record, codec))
    write_audio(arguments.output, waveform.numpy(), codec.output_sampling_rate)
    print(arguments.output)
    return 0


def read_record(path: Path) -> dict:
    """Read {"units", optionally "pitch" and "style"} (lists of whole numbers) or {"tokens"} (list of names).

    Raises `ValueError` naming the file when it holds anything else, `OSError` when it cannot be read.
    """
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; make it with `tinywave encode`") from error
    if record.get("units") is None and record.get("tokens") is None:
        raise ValueError(f'{path} has neither "units" nor "tokens"; expected the output of `tinywave encode`')
    for name, kind, words in (
        *((name, int, "whole numbers") for name in STREAM_FIELDS.values()),
        ("tokens", str, "names"),
    ):
        values = record.get(name)
        if values is not None and not (isinstance(values, list) and all(type(value) is kind for value in values)):
            raise ValueError(f'"{name}" in {path} must be a list of {words}')
    return record


def record_to_streams(record: dict, codec: SpeechCodec) -> SpeechStreams:
    """Timed streams of a record with units, parsed ones (without durations) of a record with tokens alone.

    Raises `ValueError` for a record of another codec, as far as it names one, and for tokens that are unknown.
    """
    if record.get("codec") not in (None, codec.fingerprint()):
        raise ValueError(
            f"the record is of the codec {record['codec']}, this one is {codec.fingerprint()}; decode with the "
            "--codec and --speech-encoder that it was encoded with"
        )
    rates = {"unit": codec.speech_encoder.frame_rate, "pitch": codec.pitch_rate, "style": codec.style_rate}
    for stream, expected in rates.items():
        found = record.get(f"{stream}_rate")
        if found is not None and expected is not None and found != expected:
            raise ValueError(
                f"the record has a {stream}_rate of {found!r} Hz, and the codec decodes {expected:g} Hz; decode with "
                "the codec that it was encoded with"
            )
    if record.get("units") is not None:
        return SpeechStreams(*(record.get(name) for name in STREAM_FIELDS.values()))
    layout = codec.token_layout()
    return ids_to_streams(tokens_to_ids(record["tokens"], layout), layout)
