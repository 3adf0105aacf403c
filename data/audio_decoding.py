"""Decode audio files of any format, by their content and to the end.

libsndfile reads the formats that it reads whole; FFmpeg's libraries (PyAV) read the others: MP3, Ogg, AAC and other
containers. Joined files are decoded one by one. The length in a header is only compared with what was decoded.
"""

import contextlib
import ctypes
import io
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import soundfile
from av.audio.frame import format_dtypes

from ..waveform_tinywave import AudioError, check_num_channels, check_sampling_rate, report_audio
from .ogg_pages import ogg_pages, stated_ogg_length

MAX_DECODED_SAMPLES = 2**29
"""Samples of all channels that a file may decode to: 2 GiB as float32, or 90 minutes of stereo at 48 kHz."""
EXPECTED = "expected an audio file such as WAV, FLAC, OGG, MP3 or M4A"
_BLOCK_FRAMES = 2**18
# FFmpeg's demuxers of audio and of containers that hold it. Others, playlists among them, may open further files.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,eac3,epaf,flac,flv,gsm,iff,ircam,loas,matroska,mlp,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,nistsphere,nut,ogg,pvf,sds,sox,tak,truehd,tta,voc,w64,wav,webm,wv"
)
# With a file object and no protocol, nothing in a file can make FFmpeg open another one.
_FFMPEG_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": ""}
# libsndfile reads MP3 up to an estimated length, and takes the headers between the blocks of VOC for samples; some W64
# files of other programs it reads as noise.
_READ_BY_FFMPEG_FIRST = (b"OggS", b"riff\x2e\x91\xcf\x11", b"Creative Voice File")
# Chunks of which a file consists as a whole, and the order of the bytes of its size.
_WHOLE_FILE_CHUNKS = {b"RIFF": "little", b"FORM": "big"}
# Before STREAMINFO, which is 34 bytes long; and of a tag before MP3 its version, flags, and size of 7 bits a byte.
_FLAC_BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_ID3_BEGINNING = re.compile(rb"ID3[\x02-\x04]\x00[\x00\x10-\xf0][\x00-\x7f]{4}")
# FFmpeg's names of the containers that state a length exactly; others estimate it, or state that of another stream.
_PCM_CONTAINERS = ("wav", "aiff", "au", "w64")
_EXACT_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "mp3", "caf", "tta", "wv", "ape")
_EXACT_SUBTYPES = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_LONGEST_PROMISE = 2**40
# What libsndfile's log says of a chunk that is longer than the file: `data : 95680 (should be 47818)`.
_SHORT_CHUNK = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_CHUNK_BYTES = 0x7FFFFF00
# Encoders round a length up to whole packets, and some containers count those that only fill the decoder.
_MAX_PADDING_SECONDS = 0.2


class UnreadableAudioError(AudioError):
    """Content that no decoder can read."""


class Block(NamedTuple):
    """Decoded samples of shape `(frames, channels)` and their sampling rate in Hz."""

    samples: np.ndarray
    sampling_rate: int


class DecodedAudio(NamedTuple):
    """What a file decodes to: a block for each run of one sampling rate, number of channels and type of samples.

    `promised_seconds`: what its header states, 0 where it does not. `damage`: what could not be decoded, or "".
    """

    blocks: list[Block]
    promised_seconds: float = 0.0
    damage: str = ""

    @property
    def seconds(self) -> float:
        """Length of what was decoded."""
        return sum(len(block.samples) / block.sampling_rate for block in self.blocks)


# Opening


def describe_source(source: str | os.PathLike | bytes | BinaryIO) -> str:
    """Return what errors call a source."""
    if isinstance(source, (str, os.PathLike)):
        # A name that is not UTF-8 is shown with its bytes escaped, so that it can be printed anywhere.
        return os.fsencode(source).decode("utf-8", "backslashreplace")
    return str(getattr(source, "name", None) or "the audio data")


def open_source(source: str | os.PathLike | bytes | BinaryIO, name: str) -> BinaryIO:
    """Return a seekable binary file of a source; [`AudioError`] naming it where there is none."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not source:
            raise AudioError(f"{name} is empty; {EXPECTED}")
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
            raise AudioError(f"found {type(source).__name__}; expected a path, the bytes of a file, or a binary file")
        is_seekable = hasattr(source, "seekable") and source.seekable()
        return source if is_seekable else open_source(source.read(), name)
    try:
        path = Path(source)
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            raise AudioError(f"{name} {kind}; {EXPECTED}")
        if path.stat().st_size == 0:
            raise AudioError(f"{name} is an empty file; {EXPECTED}")
        return open(path, "rb")
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # permissions, names with NUL or of more than 255 bytes
        raise AudioError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


# Decoding


def decode_audio(file: BinaryIO, name: str, max_seconds: float | None = None) -> DecodedAudio:
    """Decode a file, or the files that were joined to it, each with one library or, where that gives nothing, another.

    Args:
        file: seekable binary file.
        name (`str`): what errors call it.
        max_seconds (`float`, *optional*): longer audio is refused, at the latest when as much has been decoded.

    Raises:
        AudioError: for what is not audio, is too long, or has an impossible sampling rate or number of channels.
    """
    starts = _beginnings(file)
    if len(starts) == 1:
        return _decode_part(file, _Collector(name, max_seconds, []))
    ends = [*starts[1:], file.seek(0, os.SEEK_END)]
    blocks, promised, damage = [], 0.0, ""
    for start, end in zip(starts, ends, strict=True):
        file.seek(start)
        try:
            part = _decode_part(io.BytesIO(file.read(end - start)), _Collector(name, max_seconds, blocks))
        except UnreadableAudioError as error:
            damage = damage or str(error)
            continue
        promised += max(part.promised_seconds, part.seconds)
        damage = damage or part.damage
        blocks += part.blocks
    if not blocks:
        raise UnreadableAudioError(damage)
    return DecodedAudio(blocks, promised, damage)


def _decode_part(file: BinaryIO, collector: "_Collector") -> DecodedAudio:
    attempts = [_decode_with_soundfile, _decode_with_ffmpeg]
    file.seek(0)
    if _is_ffmpeg_first(file.read(32)):
        attempts.reverse()
    reasons = []
    for attempt in attempts:
        try:
            decoded = attempt(file, collector.restart())
        except AudioError:
            raise
        except (soundfile.SoundFileError, av.FFmpegError, RuntimeError, ValueError, EOFError, OSError) as error:
            reasons.append(_reason(error))
            continue
        if decoded.blocks:
            return decoded
        reasons.append(decoded.damage or "it holds no audio samples")
    raise UnreadableAudioError(
        f"{collector.name} is not audio that can be read ({reasons[0].rstrip('.')}); {EXPECTED}"
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)


def _is_ffmpeg_first(head: bytes) -> bool:
    # libsndfile prints what it finds wrong with MP3, also within WAV.
    is_mp3_in_wav = head[:4] == b"RIFF" and head[12:16] == b"fmt " and head[20:22] == b"\x55\x00"
    return is_mp3_in_wav or _is_mpeg_audio(head) or head.startswith(_READ_BY_FFMPEG_FIRST)


def _is_mpeg_audio(head: bytes) -> bool:
    return head.startswith(b"ID3") or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


# Joined files


def _beginnings(file: BinaryIO) -> list[int]:
    """Where the files begin that were written one after the other into one file, as `cat` and web radios do."""
    file.seek(0)
    head = file.read(12)
    if head[:4] in _WHOLE_FILE_CHUNKS:
        return _chunk_beginnings(file, head[:4])
    pattern = _FLAC_BEGINNING if head.startswith(b"fLaC") else _ID3_BEGINNING if _is_mpeg_audio(head) else None
    if pattern is not None:
        with _content_of(file) as content:
            return [0, *(found.start() for found in pattern.finditer(content) if found.start())]
    if head.startswith(b"OggS"):
        return [page.start for page in ogg_pages(file) if page.begins_file] or [0]
    return [0]


def _chunk_beginnings(file: BinaryIO, marker: bytes) -> list[int]:
    starts, position = [], 0
    while file.seek(position) == position and (head := file.read(8))[:4] == marker and len(head) == 8:
        starts.append(position)
        position += int.from_bytes(head[4:], _WHOLE_FILE_CHUNKS[marker]) + 8
    return starts


@contextlib.contextmanager
def _content_of(file: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """All bytes of a file, without reading it where that can be."""
    file.seek(0)
    try:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, AttributeError):
        content = contextlib.nullcontext(file.read())
    with content as readable:
        yield readable


class _GuardedFile:
    """A file for libsndfile, whose seeks to impossible places, which damaged headers ask for, leave it where it is.

    An exception in a callback of libsndfile cannot be raised; it is printed on stderr.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self._file.tell()


class _Collector:
    """Joins decoded frames, and refuses what is too long before more of it is kept.

    `earlier`: blocks of the same file, which count towards the limits.
    """

    def __init__(self, name: str, max_seconds: float | None, earlier: list[Block]):
        self.name, self.max_seconds, self._earlier = name, max_seconds, earlier
        self.restart()

    def restart(self) -> "_Collector":
        """Forget what was added."""
        self._seconds = sum(len(block.samples) / block.sampling_rate for block in self._earlier)
        self._num_samples = sum(block.samples.size for block in self._earlier)
        self._blocks, self._lengths = [], []
        return self

    def check_promise(self, seconds: float) -> None:
        """Refuse a file whose header promises more than the limit."""
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise AudioError(self._message(f"{seconds:.1f} s"))

    def add(self, samples: np.ndarray, sampling_rate: int) -> None:
        check_sampling_rate(sampling_rate, self.name)
        check_num_channels(samples.shape[1], self.name)
        self._seconds += len(samples) / sampling_rate
        self._num_samples += samples.size
        if self.max_seconds is not None and self._seconds > self.max_seconds:
            raise AudioError(self._message(f"more than {self.max_seconds:g} s"))
        if self._num_samples > MAX_DECODED_SAMPLES:
            raise AudioError(f"{self.name} decodes to more than {MAX_DECODED_SAMPLES:,} samples; cut it into parts")
        if len(samples):
            self._append(samples, sampling_rate)

    def _append(self, samples: np.ndarray, sampling_rate: int) -> None:
        last = self._blocks[-1] if self._blocks else None
        kind = (sampling_rate, samples.shape[1], samples.dtype)
        if last is None or kind != (last.sampling_rate, last.samples.shape[1], last.samples.dtype):
            self._finish_last()
            last = Block(np.empty(samples.shape, samples.dtype), sampling_rate)
            self._blocks.append(last)
            self._lengths.append(0)
        start, end = self._lengths[-1], self._lengths[-1] + len(samples)
        if end > len(last.samples):
            # The system moves a large array without copying it, so that no second one is held.
            last.samples.resize((max(end, len(last.samples) * 5 // 4), samples.shape[1]), refcheck=False)
        last.samples[start:end] = samples
        self._lengths[-1] = end

    def _finish_last(self) -> None:
        if self._blocks:
            samples = self._blocks[-1].samples
            samples.resize((self._lengths[-1], samples.shape[1]), refcheck=False)

    def blocks(self) -> list[Block]:
        """Return what was added."""
        self._finish_last()
        return self._blocks

    def _message(self, length: str) -> str:
        return f"{self.name} lasts {length}; at most {self.max_seconds:g} s are accepted, so cut it first"


def _decode_with_soundfile(file: BinaryIO, collector: _Collector) -> DecodedAudio:
    file.seek(0)
    damage = ""
    with soundfile.SoundFile(_GuardedFile(file)) as opened:
        check_sampling_rate(opened.samplerate, collector.name)
        check_num_channels(opened.channels, collector.name)
        promised = _promised_frames(opened) / opened.samplerate
        collector.check_promise(min(promised, opened.frames / opened.samplerate))
        block_frames = max(1, _BLOCK_FRAMES // opened.channels)
        try:
            while len(samples := opened.read(block_frames, dtype="float32", always_2d=True)):
                collector.add(samples, opened.samplerate)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            damage = _reason(error)
        is_endless = opened.frames >= _LONGEST_PROMISE
    decoded = DecodedAudio(collector.blocks(), promised, damage)
    if damage or is_endless:
        # What libsndfile stops at, FFmpeg may pass.
        with contextlib.suppress(UnreadableAudioError, av.FFmpegError, OSError, ValueError):
            other = _decode_with_ffmpeg(file, collector.restart())
            if other.seconds >= decoded.seconds:
                return other._replace(promised_seconds=promised)
    return decoded


def _promised_frames(opened: soundfile.SoundFile) -> int:
    """The frames that the header promises, where they can be more than those in the file."""
    if opened.frames >= _LONGEST_PROMISE:
        return 0
    found = _SHORT_CHUNK.search(opened.extra_info)
    if found is None or int(found[1]) >= _UNKNOWN_CHUNK_BYTES or int(found[2]) <= 0:
        return opened.frames
    return round(opened.frames * int(found[1]) / int(found[2]))


def _decode_with_ffmpeg(file: BinaryIO, collector: _Collector) -> DecodedAudio:
    promised, damage = stated_ogg_length(file)
    has_xing = _has_xing(file)
    file.seek(0)
    with av.open(file, options=_FFMPEG_OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise UnreadableAudioError(f"{collector.name} has no audio stream; {EXPECTED}")
        stream = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
        if stream is None:
            raise ValueError("FFmpeg has no decoder for its audio stream")
        if stream.rate:
            check_sampling_rate(stream.rate, collector.name)
            promised = promised / stream.rate
        if has_xing or container.format.name != "mp3":
            promised = max(promised, _promised_by_container(container, stream))
            collector.check_promise(promised)
        for frames in _decoded_packets(container, stream):
            if isinstance(frames, str):
                damage = damage or frames
            else:
                for frame in filter(lambda frame: frame.samples, frames):
                    collector.add(_to_samples(frame), frame.sample_rate)
    return DecodedAudio(collector.blocks(), promised, damage)


def _promised_by_container(container, stream) -> float:
    """The seconds that a container states where that is no estimate, else 0."""
    name = container.format.name
    if name in _EXACT_CONTAINERS or (name in _PCM_CONTAINERS and stream.codec_context.name.startswith("pcm")):
        return float(stream.duration * stream.time_base) if stream.duration else 0.0
    # Matroska counts what an encoder of MP3 puts before and after the sound.
    if name == "matroska,webm" and len(container.streams) == 1 and not stream.codec_context.name.startswith("mp3"):
        return (container.duration or 0) / av.time_base
    return 0.0


def _decoded_packets(container, stream) -> Iterator[list | str]:
    """The frames of every packet, or the reason why it cannot be decoded; decoding goes on after it."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets).decode()
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            yield _reason(error)


def _to_samples(frame) -> np.ndarray:
    """The samples of a frame of FFmpeg, `(frames, channels)`."""
    layout = frame.layout
    if " channels (" in layout.name:
        # PyAV frees the channel map of such a layout with the frame and again with this object, which must not end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    if not frame.format.is_planar:
        return frame.to_ndarray().reshape(-1, layout.nb_channels)
    # `to_ndarray` reads beyond the planes where there are eight or more.
    planes = frame.planes[: layout.nb_channels]
    kind = np.dtype(format_dtypes[frame.format.name])
    return np.stack([np.frombuffer(plane, kind, frame.samples) for plane in planes], axis=1)


# Files that end early


def _has_xing(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 file states the number of frames."""
    file.seek(0)
    head = file.read(10)
    if head.startswith(b"ID3"):
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
        file.seek(size + 10)
        head = file.read(10)
    frame = head + file.read(200)
    return b"Xing" in frame or b"Info" in frame


def report_early_end(decoded: DecodedAudio, name: str) -> None:
    """Warn of a file that ends before its header says, with both lengths, or that is damaged."""
    seconds, promised = decoded.seconds, decoded.promised_seconds
    if promised > seconds + _MAX_PADDING_SECONDS:
        report_audio(f"{name} ends early: {seconds:.2f} s of the {promised:.2f} s that its header states can be read")
    elif decoded.damage:
        report_audio(f"{name} is damaged ({decoded.damage.removeprefix(name).strip()}); {seconds:.2f} s can be read")


# Recognition


def header_seconds(file: BinaryIO) -> float | None:
    """Return the length in seconds that the header of uncompressed audio or FLAC states; None for other files."""
    head = file.read(32)
    file.seek(0)
    if not _is_audio_head(head) or _is_ffmpeg_first(head) or len(_beginnings(file)) > 1:
        return None
    file.seek(0)
    try:
        information = soundfile.info(_GuardedFile(file))
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        return None
    finally:
        file.seek(0)
    is_exact = information.format == "FLAC" or information.subtype.startswith(_EXACT_SUBTYPES)
    return information.duration if is_exact and 0 < information.frames < _LONGEST_PROMISE else None


def has_audio(file: BinaryIO) -> bool:
    """Return whether a file is audio, or a container with an audio stream, by its first bytes or by opening it."""
    head = file.read(12)
    file.seek(0)
    if _is_audio_head(head):
        return True
    try:
        with av.open(file, options=_FFMPEG_OPTIONS, metadata_errors="ignore") as container:
            return any(stream.codec_context and stream.rate for stream in container.streams.audio)
    except (av.FFmpegError, OSError, ValueError):
        file.seek(0)
    try:
        with soundfile.SoundFile(_GuardedFile(file)):
            return True
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return False


def _is_audio_head(head: bytes) -> bool:
    is_riff = head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE"
    is_aiff = head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")
    return is_riff or is_aiff or head.startswith((b"fLaC", b".snd", b"caff"))
