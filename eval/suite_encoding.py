"""Encode recordings of minimal pairs into a manifest of token streams, the only input that scoring needs."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import STREAM_FIELDS
from ..data.audio_io import AudioError, load_audio
from ..data.storage import read_json, write_json
from ..tokenization_tinywave import SpeechStreams
from .readers import AudioPair, AudioSuite, Problem, refuse_problems
from .salmon_tables import StoredRecording
from .suites import HALVES, STORY_PARTS, Pair, read_suite, write_suite

MINIMUM_SHARED_SECONDS = 1.0
PAIRS_PER_SHARD = 200
NOT_STATED = "not stated"
"""Voice and text in the manifest if the release does not give them."""


@dataclass
class _Encoded:
    """Pairs in order, and what was left out of them."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def encode_audio_suite(
    suite: AudioSuite,
    codec: SpeechCodec,
    output: str | os.PathLike,
    *,
    batch_size: int = 8,
    share_beginnings: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> Path:
    """Encode a published suite into a manifest, or return the existing manifest if it was made from the same files.

    A JSON file with the name of the manifest records the layout, the counts, and the problems of reading and encoding.
    Finished shards are kept in a hidden folder until the manifest is complete, so that running an interrupted encoding
    again resumes it. Files whose path, size or modification time has changed are encoded again.

    Args:
        suite ([`AudioSuite`]): suite from [`read_audio_suite`], with files of any sampling rate and channel count.
        codec ([`SpeechCodec`]): codec; the manifest holds every stream that it has an encoder for.
        output (path): path of the manifest to write, `.parquet`.
        batch_size (`int`, defaults to 8): pairs in memory at once, and sequences per forward pass.
        share_beginnings (`bool`, defaults to False): encode a shared beginning once, see [`encode_pairs`]. Published
            results encode the halves whole.
        strict (`bool`, defaults to False): raise an error for a file that cannot be decoded or yields no unit, instead
            of reporting it and leaving its pair out.
        progress (`bool`, defaults to True): show a progress bar.

    Returns:
        `Path` of the manifest.

    Raises:
        SuiteError: if no pair is left, or if `strict` is set and a file cannot be used.
    """
    output = Path(output)
    shards, record_path = output.with_name(f".{output.name}.partial"), output.with_suffix(".json")
    rules = {"suite": suite.name, "layout": suite.layout}
    rules |= {"encoder": codec.fingerprint(), "share_beginnings": share_beginnings}
    header = rules | {"files": _digest(suite.pairs, rules)}
    encoded = _read_finished(output, record_path, header)
    if encoded is None:
        encode = partial(
            _encode_chunk,
            codec=codec,
            encoder=rules["encoder"],
            share_beginnings=share_beginnings,
            batch_size=batch_size,
        )
        with tqdm(total=len(suite.pairs), desc=f"Encoding {suite.name}", unit="pair", disable=not progress) as bar:
            encoded = _encode_shards(suite, shards, rules, encode, batch_size, strict, bar)
        if not encoded.pairs:
            refuse_problems(suite.name, encoded.problems)
        # So that an interruption never leaves the record of one manifest next to another manifest.
        record_path.unlink(missing_ok=True)
        write_suite(encoded.pairs, output)
    elif strict and encoded.problems:
        refuse_problems(suite.name, encoded.problems)
    write_json(header | _to_record(suite, encoded), record_path)
    shutil.rmtree(shards, ignore_errors=True)
    if num_problems := len(suite.problems) + len(encoded.problems):
        print(f"{output}: {len(encoded.pairs)} pairs, {num_problems} problems, listed in {record_path.name}")
    return output


def _digest(pairs: Sequence[AudioPair], rules: Mapping) -> str:
    """Return a hexadecimal digest of the pairs, the state of their files, and the encoding settings."""
    digest = hashlib.sha256(repr(sorted(rules.items())).encode())
    for pair in pairs:
        files = [(str(path.absolute()), _state_of(path)) for path in _files_of(pair)]
        labels = (pair.id, pair.part, pair.group, pair.voice, pair.positive_text, pair.negative_text)
        labels += (pair.context_text,) if pair.context is not None else ()
        digest.update(repr((labels, files)).encode())
    return digest.hexdigest()[:32]


def _state_of(path: Path | StoredRecording) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _to_record(suite: AudioSuite, encoded: _Encoded) -> dict:
    problems = [
        {"stage": stage, "name": problem.name, "reason": problem.reason}
        for stage, found in (("reading", suite.problems), ("encoding", encoded.problems))
        for problem in found
    ]
    return {
        "num_pairs": len(encoded.pairs),
        "num_pairs_by_part": dict(sorted(Counter(pair.phenomenon for pair in encoded.pairs).items())),
        "num_problems": len(problems),
        "problems": problems,
    }


def _read_finished(output: Path, record_path: Path, header: Mapping) -> _Encoded | None:
    try:
        record = read_json(record_path)
        if any(record.get(key) != value for key, value in header.items()):
            return None
        problems = [Problem(row["name"], row["reason"]) for row in record["problems"] if row["stage"] == "encoding"]
        return _Encoded(read_suite(output), problems)
    except (OSError, ValueError):
        return None


def _encode_shards(
    suite: AudioSuite, folder: Path, rules: Mapping, encode: Callable, batch_size: int, strict: bool, bar: tqdm
) -> _Encoded:
    """Encode all pairs: read the finished shards from the folder, and write each new shard when it is complete."""
    encoded = _Encoded()
    for start in range(0, len(suite.pairs), PAIRS_PER_SHARD):
        pairs = suite.pairs[start : start + PAIRS_PER_SHARD]
        path = folder / f"{_digest(pairs, rules)}.parquet"
        shard = _read_shard(path)
        if shard is not None:
            bar.update(len(pairs))
        else:
            shard = _Encoded()
            for first in range(0, len(pairs), batch_size):
                chunk = encode(pairs[first : first + batch_size])
                if strict and chunk.problems:
                    refuse_problems(suite.name, chunk.problems)
                _append(shard, chunk)
                bar.update(len(pairs[first : first + batch_size]))
            _write_shard(shard, path)
        if strict and shard.problems:
            refuse_problems(suite.name, shard.problems)
        _append(encoded, shard)
    return encoded


def _append(encoded: _Encoded, more: _Encoded) -> None:
    encoded.pairs += more.pairs
    encoded.problems += more.problems


def _write_shard(shard: _Encoded, path: Path) -> None:
    """Write the pairs and then the list of problems, whose presence marks the shard as complete."""
    if shard.pairs:
        write_suite(shard.pairs, path)
    problems = [[problem.name, problem.reason] for problem in shard.problems]
    write_json({"num_pairs": len(shard.pairs), "problems": problems}, path.with_suffix(".json"))


def _read_shard(path: Path) -> _Encoded | None:
    try:
        record = read_json(path.with_suffix(".json"))
        problems = [Problem(*row) for row in record["problems"]]
        return _Encoded(read_suite(path) if record["num_pairs"] else [], problems)
    except (OSError, ValueError):
        return None


def _encode_chunk(
    pairs: Sequence[AudioPair], *, codec: SpeechCodec, encoder: str, share_beginnings: bool, batch_size: int
) -> _Encoded:
    problems: list[Problem] = []
    usable: dict[AudioPair, list[np.ndarray]] = {}
    for pair in pairs:
        try:
            usable[pair] = [_load(path, codec) for path in _files_of(pair)]
        except AudioError as error:
            problems.append(Problem(pair.id, str(error)))
    encode = partial(_encode_files, codec=codec, share_beginnings=share_beginnings, batch_size=batch_size)
    try:
        speech = encode(list(usable.values()))
    except ValueError:
        # The codec rejects one of the pairs; the others of the chunk are encoded without it.
        for pair in list(usable):
            if reason := _refusal(pair, usable[pair], codec):
                problems.append(Problem(pair.id, reason))
                del usable[pair]
        speech = encode(list(usable.values()))
    encoded = _Encoded(problems=problems)
    for pair, (halves, pieces) in zip(usable, speech, strict=True):
        of_files = pieces or halves
        empty = [str(path) for path, part in zip(_files_of(pair), of_files, strict=True) if not len(part.units)]
        if empty:
            problems.append(Problem(pair.id, f"{' and '.join(empty)}: no unit comes out; expected speech"))
        else:
            encoded.pairs.append(_to_manifest_pair(pair, halves, pieces, encoder))
    return encoded


def _files_of(pair: AudioPair) -> tuple[Path | StoredRecording, ...]:
    """Return the files of a pair: the context, if there is one, and both halves."""
    return (pair.positive, pair.negative) if pair.context is None else (pair.context, pair.positive, pair.negative)


def _encode_files(
    files: Sequence[Sequence[np.ndarray]], *, codec: SpeechCodec, share_beginnings: bool, batch_size: int
) -> list[tuple[tuple[SpeechStreams, SpeechStreams], list[SpeechStreams]]]:
    """Encode both halves of every pair and, for a context with two endings, each of these three separately.

    In the latter case a half is encoded from the concatenated waveforms of the context and its ending, as in slamkit.
    """
    joined = [
        (waveforms[0], waveforms[1]) if len(waveforms) == 2
        else tuple(np.concatenate([waveforms[0], ending]) for ending in waveforms[1:])
        for waveforms in files
    ]  # fmt: skip
    halves = encode_pairs(joined, codec, share_beginnings=share_beginnings, batch_size=batch_size)
    apart = [waveform for waveforms in files if len(waveforms) == 3 for waveform in waveforms]
    pieces = iter(codec.encode(apart, batch_size) if apart else ())
    return [
        (pair, [next(pieces) for _ in waveforms] if len(waveforms) == 3 else [])
        for pair, waveforms in zip(halves, files, strict=True)
    ]


def _load(recording: Path | StoredRecording, codec: SpeechCodec) -> np.ndarray:
    source = recording.open() if isinstance(recording, StoredRecording) else recording
    return load_audio(source, codec.input_sampling_rate)


def _refusal(pair: AudioPair, waveforms: Sequence[np.ndarray], codec: SpeechCodec) -> str | None:
    """Return which file the codec rejects and why, or None if it accepts all."""
    for path, waveform in zip(_files_of(pair), waveforms, strict=True):
        try:
            codec.encode([waveform])
        except ValueError as error:
            return f"{path}: {error}"
    return None


def _to_manifest_pair(
    pair: AudioPair, halves: tuple[SpeechStreams, SpeechStreams], pieces: Sequence[SpeechStreams], encoder: str
) -> Pair:
    texts = [pair.positive_text, pair.negative_text]
    story = None
    if pieces:
        spoken = zip((pair.context_text, *texts), pieces, strict=True)
        story = dict(zip(STORY_PARTS, (_to_piece(text, speech) for text, speech in spoken), strict=True))
        texts = [f"{pair.context_text} {text}" if pair.context_text and text else "" for text in texts]
    return Pair(
        id=pair.id,
        suite=pair.suite,
        phenomenon=pair.part,
        group=pair.group,
        positive_text=texts[0] or NOT_STATED,
        negative_text=texts[1] or NOT_STATED,
        voice=pair.voice or NOT_STATED,
        encoder=encoder,
        story=story,
        **halves_to_columns(*halves),
    )


def _to_piece(text: str, speech: SpeechStreams) -> dict:
    streams = {name: getattr(speech, name) for name in STREAM_FIELDS.values()}
    return {"text": text} | {name: None if values is None else values.tolist() for name, values in streams.items()}


def halves_to_columns(positive: SpeechStreams, negative: SpeechStreams) -> dict[str, tuple[int, ...]]:
    """Return the streams of both halves as fields of a [`Pair`], such as `positive_units`."""
    return {
        f"{half}_{name}": tuple(values.tolist())
        for half, speech in zip(HALVES, (positive, negative), strict=True)
        for name in STREAM_FIELDS.values()
        if (values := getattr(speech, name)) is not None
    }


def encode_pairs(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    codec: SpeechCodec,
    *,
    share_beginnings: bool,
    batch_size: int = 1,
) -> list[tuple[SpeechStreams, SpeechStreams]]:
    """Encode both halves of every pair.

    Args:
        pairs: waveforms of shape `(samples,)` at `codec.input_sampling_rate`, the positive half first.
        codec ([`SpeechCodec`]): codec that produces the streams.
        share_beginnings (`bool`): encode the beginning that both waveforms share once and separately, if it lasts 1 s
            or more. The encoders use future context, so that otherwise the context of a story has slightly different
            tokens before its correct ending than before its wrong one, which adds noise to the comparison.
        batch_size (`int`, defaults to 1): batch size of the speech encoder.

    Returns:
        `list` of pairs of [`SpeechStreams`], positive half first, in the order of `pairs`.

    Raises:
        ValueError: if the codec rejects a waveform.
    """
    if not pairs:
        return []
    shared = [_shared_start(*pair, codec.input_sampling_rate) if share_beginnings else None for pair in pairs]
    waveforms = [waveform for pair in pairs for waveform in pair]
    encoded = codec.encode(waveforms + [waveform for waveform in shared if waveform is not None], batch_size)
    beginnings = iter(encoded[len(waveforms) :])
    speech = []
    for index, waveform in enumerate(shared):
        positive, negative = encoded[2 * index : 2 * index + 2]
        if waveform is not None:
            beginning = next(beginnings)
            positive, negative = (_begin_with(beginning, len(waveform), half, codec) for half in (positive, negative))
        speech.append((positive, negative))
    return speech


def _begin_with(beginning: SpeechStreams, num_samples: int, half: SpeechStreams, codec: SpeechCodec) -> SpeechStreams:
    """Return the streams of a half whose first `num_samples` samples are replaced by the streams `beginning`.

    Every unit frame (0.04 s), pitch frame (0.08 s) and style window (1 s) that lies inside the first `num_samples` is
    taken from `beginning`, which was encoded separately; frames that straddle the boundary and all later ones are
    kept. Pitch is relative to the mean F0 of what is encoded together: the mean of the beginning inside it, and the
    mean of the whole half after it.
    """
    rates = {"units": codec.speech_encoder.frame_rate, "pitch": codec.pitch_rate, "style": codec.style_rate}

    def joined(field: str) -> np.ndarray | None:
        first, whole = getattr(beginning, field), getattr(half, field)
        if whole is None:
            return None
        inside = min(int(num_samples * rates[field] / codec.input_sampling_rate), len(first))
        return np.concatenate([first[:inside], whole[inside:]])

    return SpeechStreams(*map(joined, STREAM_FIELDS.values()))


def _shared_start(first: np.ndarray, second: np.ndarray, sampling_rate: int) -> np.ndarray | None:
    """Return the beginning that two waveforms share, or None if it is too short to encode separately."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    num_samples = int(differing[0]) if len(differing) else length
    return first[:num_samples] if num_samples >= MINIMUM_SHARED_SECONDS * sampling_rate else None
