"""Speed and size of a codec, and the invariance of its tokens to batching, streaming, and saving and loading."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_FIELDS, TinyWaveConfig
from ..speech_encoder_tinywave import SpeechEncoder
from ..tokenization_tinywave import SpeechStreams, streams_to_ids
from ..vocoder_tinywave import Vocoder
from .codec_measures import not_measured

NUM_SPEED_RUNS = 5
STREAM_PIECE_SECONDS = 0.1
STREAM_CHUNK_SECONDS = 1.0

REFERENCE_SAMPLES = 146_160
"""Samples at 16 kHz of the clip of SPIRIT-LM's published test vector."""

REFERENCE_FRAMES = {"unit": 228, "pitch": 114, "style": 10}
REFERENCE_RUNS = {"unit": 167, "pitch": 90, "style": 10}
"""Frames of its streams, and what is left of them without repeats (style keeps them)."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_real_time_factors(
    actions: Mapping[str, Callable[[], object]], seconds: float, num_runs: int = NUM_SPEED_RUNS
) -> dict[str, dict]:
    """Measure CPU seconds of this process per second of audio, on one thread.

    Args:
        actions: each works on the same audio. They take turns, so that what else the machine does slows all alike, and
            run once before they are timed.
        seconds: duration of that audio.
        num_runs (`int`, default 5): of each.

    Returns:
        {name: {"value": the median, "lowest", "highest", "n": runs}}.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    with single_thread():
        for run in range(num_runs + 1):
            for name, action in actions.items():
                start = time.process_time()
                action()
                if run:
                    times[name].append((time.process_time() - start) / seconds)
    return {
        name: {"value": statistics.median(row), "lowest": min(row), "highest": max(row), "n": len(row)}
        for name, row in times.items()
    }


def measure_speed(waveforms: Sequence[np.ndarray], codec: SpeechCodec, teacher: SpeechEncoder) -> dict:
    """Measure the CPU real-time factors of both speech encoders, and of the codec's way in and way out.

    Returns:
        {"speech_encoder", "teacher", "encode": all streams, "decode": streams to waveform, "seconds": of audio}.
    """
    seconds = sum(map(len, waveforms)) / codec.input_sampling_rate
    streams = codec.encode(waveforms)
    actions = {
        "speech_encoder": lambda: codec.speech_encoder.encode(waveforms),
        "teacher": lambda: teacher.encode(waveforms),
        "encode": lambda: codec.encode(waveforms),
        "decode": lambda: [codec.decode(item) for item in streams],
    }
    return cpu_real_time_factors(actions, seconds) | {"seconds": round(seconds, 2)}


def measure_golden_vector(waveform: np.ndarray, codec: SpeechCodec) -> dict:
    """Compare lengths with the published test vector: a clip of 146,160 samples.

    Args:
        waveform: at least that many samples of speech at 16 kHz.

    Returns:
        {"num_samples", "frames": of each stream that this codec makes of the clip, "expected_frames", "num_tokens":
        of the clip, merged, "reference_tokens": of streams with as many frames and runs as the published ones have,
        "equal": whether all frames are as many as expected}. The published values themselves need the published
        weights.
    """
    streams = codec.encode([waveform[:REFERENCE_SAMPLES]])[0]
    fields = {name: getattr(streams, field) for name, field in STREAM_FIELDS.items()}
    frames = {name: len(values) for name, values in fields.items() if values is not None}
    reference = SpeechStreams(*(_runs(REFERENCE_FRAMES[name], REFERENCE_RUNS[name]) for name in REFERENCE_FRAMES))
    expressive = TinyWaveConfig.from_preset("speech-expressive-2b")
    return {
        "num_samples": len(waveform[:REFERENCE_SAMPLES]),
        "frames": frames,
        "expected_frames": REFERENCE_FRAMES,
        "num_tokens": len(streams_to_ids(streams, codec.token_layout())),
        "reference_tokens": len(streams_to_ids(reference, expressive)),
        "equal": all(REFERENCE_FRAMES[name] == count for name, count in frames.items()),
    }


def _runs(num_frames: int, num_runs: int) -> np.ndarray:
    """Two values in turn, in so many runs; `(num_frames,)`."""
    return np.arange(num_frames) * num_runs // num_frames % 2


def measure_invariances(waveforms: Sequence[np.ndarray], codec: SpeechCodec) -> dict:
    """Compare tokens that must be equal, on real audio.

    Args:
        waveforms: at 16 kHz, of different lengths; more than eight, so that batches are of several.

    Returns:
        Of tokens {"equal", "num_different", "num_tokens"}, of numbers {"max_difference", "scale": the largest of them
        (absolute)}:

        - "batch_1_equals_8": units, pitch and style of each waveform alone and in batches of eight;
        - "streamed_equals_whole": units of pieces of 0.1 s that arrive one by one, in chunks of 1 s;
        - "vocoder_streamed_equals_whole": what the vocoder predicts piece by piece and at once;
        - "saved_equals_loaded", "saved_waveform_equals_loaded": tokens and sound of the codec after a save and a load.
    """
    streams = codec.encode(waveforms)
    return {
        "batch_1_equals_8": _compare_tokens(_encoded(codec, waveforms, 1), _encoded(codec, waveforms, 8)),
        "streamed_equals_whole": _compare_stream(waveforms, codec.speech_encoder),
        "vocoder_streamed_equals_whole": _compare_vocoder_stream(streams[0], codec),
    } | _compare_saved(waveforms, streams, codec)


def _compare_tokens(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> dict:
    lengths = [max(map(len, pair)) for pair in zip(first, second, strict=True)]
    equal = [sum(a == b for a, b in zip(*pair, strict=False)) for pair in zip(first, second, strict=True)]
    different = sum(lengths) - sum(equal)
    return {"equal": different == 0, "num_different": different, "num_tokens": sum(lengths)}


def _compare_numbers(first: torch.Tensor, second: torch.Tensor) -> dict:
    if first.shape != second.shape:
        return {"max_difference": None, "scale": None, "shapes": [list(first.shape), list(second.shape)]}
    return {"max_difference": float((first - second).abs().max()), "scale": float(second.abs().max())}


def _encoded(codec: SpeechCodec, waveforms: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
    """All tokens of all encoders, one row a waveform and encoder."""
    rows = codec.speech_encoder.encode(waveforms, batch_size)
    if codec.pitch_encoder is not None:
        rows += codec.pitch_encoder.f0_to_codes([codec.f0_extractor(item) for item in waveforms], batch_size)
    if codec.style_encoder is not None:
        rows += codec.style_encoder.encode(waveforms, batch_size)
    return [row.tolist() for row in rows]


def _compare_stream(waveforms: Sequence[np.ndarray], encoder: SpeechEncoder) -> dict:
    try:
        encoder.stream(STREAM_CHUNK_SECONDS)
    except ValueError as error:
        return not_measured(str(error))
    size = round(STREAM_PIECE_SECONDS * encoder.sampling_rate)
    streamed = []
    for waveform in waveforms:
        stream = encoder.stream(STREAM_CHUNK_SECONDS)
        pieces = [stream.push(waveform[start : start + size]) for start in range(0, len(waveform), size)]
        streamed.append(torch.cat([*pieces, stream.finish()]).tolist())
    return _compare_tokens(streamed, [row.tolist() for row in encoder.encode(waveforms)])


@torch.no_grad()
def _compare_vocoder_stream(streams: SpeechStreams, codec: SpeechCodec) -> dict:
    if not isinstance(codec.vocoder, Vocoder):
        return not_measured("only the convolutional vocoder predicts decoder inputs piece by piece")
    frames = codec.timed_to_frames(streams)
    codes = {name: getattr(frames, name) for name in codec.heard_streams & codec.stream_names}
    tensors = {name: torch.from_numpy(values)[None] for name, values in codes.items()}
    whole = codec.vocoder(torch.from_numpy(frames.units)[None], **tensors)
    durations = np.ones(len(frames), dtype=np.int64)
    pieces = list(codec.vocoder.stream_outputs(frames.units, durations, **codes))
    return _compare_numbers(torch.cat([piece.features for piece in pieces], dim=1), whole.features)


def _compare_saved(waveforms: Sequence[np.ndarray], streams: Sequence[SpeechStreams], codec: SpeechCodec) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        codec.save_pretrained(folder)
        loaded = SpeechCodec.from_pretrained(folder, decoder=codec.decoder, f0_extractor=codec.f0_extractor)
        found = loaded.encode(waveforms)
        waveform = loaded.decode(streams[0])
    fields = STREAM_FIELDS.values()
    first, second = (
        [getattr(item, name).tolist() for item in items for name in fields if getattr(item, name) is not None]
        for items in (streams, found)
    )
    return {
        "saved_equals_loaded": _compare_tokens(first, second),
        "saved_waveform_equals_loaded": _compare_numbers(waveform, codec.decode(streams[0])),
    }


def measure_sizes(codec: SpeechCodec, folders: Mapping[str, Path]) -> dict[str, dict]:
    """Count the numbers of each model and the bytes of its weight files.

    Args:
        codec: its models are counted.
        folders: folder of each of "speech_encoder", "pitch_encoder", "style_encoder" and "vocoder" that is there.

    Returns:
        {part: {"parameters": numbers in its state dict, "bytes": of its safetensors files}} and the "total" of both.
    """
    sizes = {}
    for name, folder in folders.items():
        model: nn.Module = getattr(codec, name)
        numbers = sum(tensor.numel() for tensor in model.state_dict().values())
        sizes[name] = {"parameters": numbers, "bytes": sum(path.stat().st_size for path in weight_files(folder))}
    total = {key: sum(size[key] for size in sizes.values()) for key in ("parameters", "bytes")}
    return sizes | {"total": total}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder, in order."""
    return sorted(Path(folder).glob("*.safetensors"))
