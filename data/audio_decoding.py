"""Decode audio files of any format, by their content and to the end.

libsndfile reads the formats that it reads whole; FFmpeg's libraries (PyAV) read the others: MP3, chained Ogg, joined
or piped FLAC, AAC and other containers. The length in a header is only compared with what was decoded.
"""

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

from ..waveform_tinywave import AudioError, check_num_channels, check_sampling_rate, report_audio

MAX_DECODED_SAMPLES = 2**29
"""Samples of all channels that a file may decode to: 2 GiB as float32, or 90 minutes of stereo at 48 kHz."""
EXPECTED = "expected an audio file such as WAV, FLAC, OGG, MP3 or M4A"
_BLOCK_FRAMES = 2**18
# FFmpeg's demuxers of audio and of containers that hold it. Others, playlists among them, may open further files.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,eac3,epaf,flac,flv,gsm,iff,ircam,loas,matroska,mov,mp3,mpeg,mpegts,"
    "nistsphere,ogg,pvf,sds,tta,voc,w64,wav,webm,wv"
)
# With a file object and no protocol, nothing in a file can make FFmpeg open another one.
_FFMPEG_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": ""}
# Chunks of which a file consists as a whole, and the order of the bytes of its size.
_WHOLE_FILE_CHUNKS = {b"RIFF": "little", b"FORM": "big"}
# libsndfile reads MP3 up to an estimated length, and of chained Ogg the first stream only.
_READ_BY_FFMPEG_FIRST = (b"OggS", b"ID3")
_LONGEST_PROMISE = 2**40
# What libsndfile's log says of a chunk that is longer than the file: `data : 95680 (should be 47818)`.
_SHORT_CHUNK = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_CHUNK_BYTES = 0x7FFFFF00


class Block(NamedTuple):
    """Decoded samples of shape `(frames, channels)` and their sampling rate in Hz."""

    samples: np.ndarray
    sampling_rate: int


class DecodedAudio(NamedTuple):
    """All blocks of a file, the frames that its header promises (0 where it does not), and what was damaged."""

    blocks: list[Block]
    promised_frames: int = 0
    damage: str = ""

    @property
    def num_frames(self) -> int:
        """Frames that were decoded."""
        return sum(len(block.samples) for block in self.blocks)

    @property
    def seconds(self) -> float:
        """Length of what was decoded, in seconds."""
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
    """Decode a file with one library, and with the other where the first gives nothing.

    Args:
        file: seekable binary file.
        name (`str`): what errors call it.
        max_seconds (`float`, *optional*): longer audio is refused, at the latest when as much has been decoded.

    Raises:
        AudioError: for what is not audio, is too long, or has an impossible sampling rate or number of channels.
    """
    attempts = [_decode_with_soundfile, _decode_with_ffmpeg]
    head = file.read(12)
    file.seek(0)
    if _is_ffmpeg_first(file, head):
        attempts.reverse()
    parts = _joined_files(file, head)
    if len(parts) > 1:
        decoded = [decode_audio(part, name, max_seconds) for part in parts]
        return DecodedAudio([block for part in decoded for block in part.blocks])
    reasons = []
    for attempt in attempts:
        file.seek(0)
        try:
            decoded = attempt(file, name, max_seconds)
        except (soundfile.SoundFileError, av.FFmpegError, RuntimeError, ValueError, EOFError, OSError) as error:
            if isinstance(error, AudioError):
                raise
            reasons.append(str(getattr(error, "error_string", None) or error))
            continue
        if decoded.num_frames:
            return decoded
        reasons.append(decoded.damage or "it holds no audio samples")
    raise AudioError(f"{name} is not audio that can be read ({reasons[0].rstrip('.')}); {EXPECTED}")


def _is_ffmpeg_first(file: BinaryIO, head: bytes) -> bool:
    is_mpeg_audio = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if head.startswith(_READ_BY_FFMPEG_FIRST) or is_mpeg_audio:
        return True
    return head.startswith(b"fLaC") and _occurs_again(file, b"fLaC")


def _occurs_again(file: BinaryIO, marker: bytes) -> bool:
    """Whether a file holds a marker after its beginning."""
    if isinstance(file, io.BytesIO):
        with file.getbuffer() as buffer:
            return bytes(buffer).find(marker, len(marker)) >= 0
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(marker, len(marker)) >= 0
    except (OSError, ValueError, AttributeError):
        content = file.read()
        file.seek(0)
        return content.find(marker, len(marker)) >= 0


def _joined_files(file: BinaryIO, head: bytes) -> list[BinaryIO]:
    """The WAV or AIFF files that were written one after the other into one file, as `cat` does."""
    order = _WHOLE_FILE_CHUNKS.get(head[:4])
    if order is None:
        return [file]
    size = int.from_bytes(head[4:8], order) + 8
    end = file.seek(0, os.SEEK_END)
    file.seek(min(size, end))
    is_joined = file.read(4) == head[:4]
    file.seek(0)
    if not is_joined:
        return [file]
    first, rest = io.BytesIO(file.read(size)), io.BytesIO(file.read())
    return [first, *_joined_files(rest, rest.getvalue()[:12])]


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


class _Limit:
    """Counts what is decoded, and refuses what is too long before more of it is kept."""

    def __init__(self, name: str, max_seconds: float | None):
        self.name, self.max_seconds = name, max_seconds
        self.seconds, self.num_samples = 0.0, 0

    def check_promise(self, num_frames: int, sampling_rate: int) -> None:
        """Refuse a file whose header promises more than the limit."""
        if self.max_seconds is not None and num_frames > self.max_seconds * sampling_rate:
            raise AudioError(self._message(f"{num_frames / sampling_rate:.1f} s"))

    def add(self, block: Block) -> Block:
        check_sampling_rate(block.sampling_rate, self.name)
        check_num_channels(block.samples.shape[1], self.name)
        self.seconds += len(block.samples) / block.sampling_rate
        self.num_samples += block.samples.size
        if self.max_seconds is not None and self.seconds > self.max_seconds:
            raise AudioError(self._message(f"more than {self.max_seconds:g} s"))
        if self.num_samples > MAX_DECODED_SAMPLES:
            raise AudioError(f"{self.name} decodes to more than {MAX_DECODED_SAMPLES:,} samples; cut it into parts")
        return block

    def _message(self, length: str) -> str:
        return f"{self.name} lasts {length}; at most {self.max_seconds:g} s are accepted, so cut it first"


def _decode_with_soundfile(file: BinaryIO, name: str, max_seconds: float | None) -> DecodedAudio:
    limit = _Limit(name, max_seconds)
    with soundfile.SoundFile(_GuardedFile(file)) as opened:
        check_sampling_rate(opened.samplerate, name)
        check_num_channels(opened.channels, name)
        promised = _promised_frames(opened)
        limit.check_promise(min(promised, opened.frames), opened.samplerate)
        blocks, damage = [], ""
        block_frames = max(1, _BLOCK_FRAMES // opened.channels)
        try:
            while len(samples := opened.read(block_frames, dtype="float32", always_2d=True)):
                blocks.append(limit.add(Block(samples, opened.samplerate)))
        except (soundfile.LibsndfileError, RuntimeError) as error:
            damage = str(getattr(error, "error_string", None) or error)
        if damage or opened.frames >= _LONGEST_PROMISE:
            # What libsndfile stops at, FFmpeg may pass.
            file.seek(0)
            other = _decode_with_ffmpeg(file, name, max_seconds)
            if other.num_frames >= sum(len(block.samples) for block in blocks):
                return other._replace(promised_frames=promised)
    return DecodedAudio(blocks, promised, damage)


def _promised_frames(opened: soundfile.SoundFile) -> int:
    """The frames that the header promises, where they can be more than those in the file."""
    if opened.frames >= _LONGEST_PROMISE:
        return 0
    found = _SHORT_CHUNK.search(opened.extra_info)
    if found is None or int(found[1]) >= _UNKNOWN_CHUNK_BYTES or int(found[2]) <= 0:
        return opened.frames
    return round(opened.frames * int(found[1]) / int(found[2]))


def _decode_with_ffmpeg(file: BinaryIO, name: str, max_seconds: float | None) -> DecodedAudio:
    limit = _Limit(name, max_seconds)
    promised = _promised_by_ogg(file)
    has_length = _has_length(file)
    file.seek(0)
    with av.open(file, options=_FFMPEG_OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise AudioError(f"{name} has no audio stream; {EXPECTED}")
        stream = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
        if stream is None:
            raise ValueError("FFmpeg has no decoder for its audio stream")
        if stream.rate:
            check_sampling_rate(stream.rate, name)
        if has_length and stream.rate:
            promised = max(promised, _promised_by_stream(stream))
            limit.check_promise(promised, stream.rate)
        blocks, damage = [], ""
        for frames in _decoded_packets(container, stream):
            if isinstance(frames, str):
                damage = frames
            else:
                blocks += [limit.add(_to_block(frame)) for frame in frames]
    return DecodedAudio(blocks, promised, damage)


def _promised_by_stream(stream) -> int:
    """The frames that a container states: by their number in uncompressed audio, else by the duration."""
    num_frames = stream.frames if stream.codec_context.name.startswith("pcm") else 0
    duration = float(stream.duration * stream.time_base) * stream.rate if stream.duration else 0
    return max(num_frames, round(duration))


def _decoded_packets(container, stream) -> Iterator[list | str]:
    """The frames of every packet, or the reason why it cannot be decoded; decoding goes on after it."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            yield packet.decode()
        except StopIteration:
            return
        except av.InvalidDataError as error:
            yield str(error.strerror or error)
        except (av.FFmpegError, OSError) as error:
            yield str(error)
            return


def _to_block(frame) -> Block:
    """A frame of FFmpeg as floats: planar `(channels, frames)`, or packed `(1, frames * channels)`."""
    num_channels = frame.layout.nb_channels
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, num_channels)
    return Block(samples, frame.sample_rate)


# Files that end early


def _has_length(file: BinaryIO) -> bool:
    """Whether a header states a length that is no estimate: not so in MP3 without a Xing frame, in AAC and in Ogg."""
    file.seek(0)
    head = file.read(10)
    if head.startswith(b"ID3"):
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
        file.seek(size + 10)
        head = file.read(10)
    is_mpeg_audio = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if is_mpeg_audio:
        frame = head + file.read(200)
        return b"Xing" in frame or b"Info" in frame
    return not head.startswith((b"OggS", b"fLaC"))


def _promised_by_ogg(file: BinaryIO) -> int:
    """Frames up to the last page of an Ogg file where that page is cut off, else 0."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return 0
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 2**17))
    tail = file.read()
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27:
        return 0
    num_segments = page[26]
    length = 27 + num_segments + sum(page[27 : 27 + num_segments])
    granule = int.from_bytes(page[6:14], "little", signed=True)
    return granule if length > len(page) and granule > 0 else 0


def report_early_end(decoded: DecodedAudio, name: str) -> None:
    """Warn of a file that ends before its header says, with both lengths, or that is damaged."""
    rate = decoded.blocks[0].sampling_rate
    seconds, promised = decoded.num_frames / rate, decoded.promised_frames / rate
    # Encoders round a length up to whole packets.
    if promised > seconds + 0.1:
        report_audio(f"{name} ends early: {seconds:.2f} s of the {promised:.2f} s that its header states can be read")
    elif decoded.damage:
        report_audio(f"{name} is damaged ({decoded.damage}); {seconds:.2f} s can be read")


# Recognition


def header_seconds(file: BinaryIO) -> float | None:
    """Return the length in seconds that the header of uncompressed audio or FLAC states; None for other files."""
    head = file.read(12)
    file.seek(0)
    if not _is_audio_head(head) or _is_ffmpeg_first(file, head):
        return None
    try:
        information = soundfile.info(_GuardedFile(file))
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        return None
    finally:
        file.seek(0)
    return information.duration if 0 < information.frames < _LONGEST_PROMISE else None


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
