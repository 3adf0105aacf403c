"""Token ids of text and speech: every rule about ids is in this file.

A sequence is `[BOS] [Speech] u u u [Text] t t t ... [EOS]`: a marker stands only where the modality changes, repeats
of a unit are dropped, and text follows its marker with no separator. A model with pitch and style has their tokens
among the units, in order of time. Which id means what is read from a `TinyWaveConfig`, so that the same functions
serve every layout. Source of the format: SPIRIT-LM (arXiv 2402.05755).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .configuration_tinywave import PROSODY_STREAMS, SPEECH_STREAMS, TinyWaveConfig

# A segment is ("text", str) or ("speech", units); for a model with pitch or style, ("speech", SpeechStreams).
Segment = tuple[str, Any]

NO_MODALITY = 0  # special ids, markers and filler
TEXT_MODALITY = 1
SPEECH_MODALITY = 2

TEXT_MARKER = "[Text]"
SPEECH_MARKER = "[Speech]"
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_PREFIXES = "|".join(stream.prefix for stream in SPEECH_STREAMS)
# What Python makes of bytes that are not UTF-8, for instance on a command line.
_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPED_TOKEN = re.compile(rf"\[(?:(?:{_PREFIXES})\d+|Text|Speech)\]", re.ASCII)


@dataclass(frozen=True, eq=False)
class SpeechStreams:
    """Units, pitch and style of one piece of speech.

    *Timed* streams, as encoders make them from audio, hold one value a frame, each stream at its own rate, repeats
    kept. *Parsed* streams, as [`ids_to_streams`] makes them from token ids alone, know no time: units hold one value a
    unit token, pitch and style the value in force at each of these units, and `ids` the tokens themselves, so that
    they are written back as they came.

    Args:
        units (sequence of shape `(U,)`): phonetic units; timed at `unit_rate` (25 Hz).
        pitch (sequence of shape `(P,)`, *optional*): timed at `pitch_rate` (12.5 Hz); parsed, of shape `(U,)`.
        style (sequence of shape `(S,)`, *optional*): timed at `style_rate` (1 Hz); parsed, of shape `(U,)`.
        ids (sequence of shape `(tokens,)`, *optional*): the merged token ids of parsed streams; None for timed ones.

    Lists, arrays and tensors are read and kept as int64 arrays. `len` is the number of units. Raises `ValueError` for
    anything but integers in one dimension, and for parsed streams of different lengths.
    """

    units: np.ndarray
    pitch: np.ndarray | None = None
    style: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __post_init__(self):
        for name in _FIELDS:
            if name == "units" or getattr(self, name) is not None:
                object.__setattr__(self, name, _as_integers(getattr(self, name), name))
        for name in PROSODY_STREAMS:
            values = getattr(self, name)
            if self.ids is not None and values is not None and len(values) != len(self.units):
                raise ValueError(
                    f"found {len(values)} values of {name} for {len(self.units)} parsed units; expected one a unit"
                )

    def __len__(self) -> int:
        return len(self.units)

    def __eq__(self, other) -> bool:
        return isinstance(other, SpeechStreams) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _FIELDS
        )


_FIELDS = tuple(field.name for field in fields(SpeechStreams))


def deduplicate(units: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Drop consecutive repeats.

    Args:
        units (sequence, array or tensor of shape `(frames,)`): one unit per frame.

    Returns:
        `(runs,)` the unit of each run and `(runs,)` its duration in frames, both int64.
    """
    units = _as_integers(units, "units")
    starts = np.flatnonzero(np.diff(units, prepend=units[:1] - 1))
    return units[starts], np.diff(starts, append=len(units))


def units_to_ids(units: Sequence[int], config: TinyWaveConfig) -> np.ndarray:
    """Units `(length,)` -> token ids `(length,)`, int64. Raises `ValueError` for a unit outside `0..num_units - 1`."""
    units = _as_integers(units, "units")
    _check_range(units, range(config.num_units), "unit")
    return units + config.unit_offset


def ids_to_units(ids: Sequence[int], config: TinyWaveConfig) -> np.ndarray:
    """Token ids `(length,)` -> units `(length,)`, int64. Raises `ValueError` for an id that is not a unit's."""
    ids = _as_integers(ids, "ids")
    _check_range(ids, config.stream_ranges()["unit"], "unit id")
    return ids - config.unit_offset


def streams_to_ids(
    streams: SpeechStreams, config: TinyWaveConfig, return_durations: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Merge units, pitch and style into one sequence of token ids, in order of time (SPIRIT-LM, arXiv 2402.05755).

    Consecutive repeats of units and of pitch are dropped and a run stands at the time of its first frame; style is
    never dropped. Frame i stands at i / rate seconds, with the rates `unit_clock_rate`, `pitch_rate` and `style_rate`;
    at equal times style comes before pitch, and pitch before units. Parsed streams give back their own ids.

    Args:
        streams ([`SpeechStreams`]): with exactly the streams that the model has.
        return_durations (`bool`, default False): also return how long each token lasts.

    Returns:
        `(tokens,)` ids, int64, without marker; with `return_durations` also `(tokens,)` durations, int64, each in
        frames of the token's own stream (1 for style), from which [`ids_to_streams`] restores the streams exactly.

    Raises `ValueError` for a missing stream or one that the model does not have, a value out of range, streams that
    span different times (more than one second apart), and where durations of parsed streams are asked for.
    """
    if streams.ids is not None:
        if return_durations:
            raise ValueError("these streams were parsed from ids and have no durations; a vocoder predicts them")
        _masks_of_streams(streams.ids, config)
        return streams.ids
    _check_streams(streams, config)
    ids, times, durations = [], [], []
    for stream in reversed(SPEECH_STREAMS):
        if stream.name in config.stream_ranges():
            values = getattr(streams, stream.field)
            values, frames = deduplicate(values) if stream.merge_repeats else (values, np.ones_like(values))
            ids.append(values + getattr(config, stream.offset))
            times.append((np.cumsum(frames) - frames) / getattr(config, stream.clock))
            durations.append(frames)
    order = np.argsort(np.concatenate(times), kind="stable")
    ids, durations = np.concatenate(ids)[order], np.concatenate(durations)[order]
    return (ids, durations) if return_durations else ids


def ids_to_streams(
    ids: Sequence[int], config: TinyWaveConfig, durations: Sequence[int] | None = None
) -> SpeechStreams:
    """Split the ids of one piece of speech into its streams, the inverse of [`streams_to_ids`].

    Args:
        ids (sequence of shape `(tokens,)`): units, pitch and style in any order, without markers and special ids.
        durations (sequence of shape `(tokens,)`, *optional*): frames of each token in its own stream, as
            [`streams_to_ids`] returns them.

    Returns:
        [`SpeechStreams`]. With `durations`, timed: each stream at its own rate, exactly as it was before the merge.
        Without, parsed: one value a unit token, with the latest pitch and style before it, so that a vocoder repeats
        all three by the durations that it predicts for the units. Units before the first pitch (or style) take that
        first value; pitch (or style) is None where no id belongs to it, also without units.

    Raises `ValueError` for an id that belongs to no stream of speech, and for durations that are not positive or not
    as many as the ids.
    """
    ids = _as_integers(ids, "ids")
    masks = _masks_of_streams(ids, config)
    values = {name: ids[own] - config.stream_ranges()[name].start for name, own in masks.items()}
    if durations is not None:
        durations = _as_integers(durations, "durations")
        if len(durations) != len(ids) or (durations < 1).any():
            raise ValueError(
                f"found {len(durations)} durations, the shortest {durations.min(initial=1)}, for {len(ids)} ids; "
                "expected one of at least 1 frame an id"
            )
        frames = {name: np.repeat(values[name], durations[own]) for name, own in masks.items()}
        return SpeechStreams(frames["unit"], frames.get("pitch"), frames.get("style"))
    # How many tokens of a stream stand before a unit; before the first of them, its value is in force already.
    seen = {name: np.maximum(np.cumsum(own)[masks["unit"]], 1) for name, own in masks.items() if own.any()}
    at_units = {name: values[name][count - 1] for name, count in seen.items()}
    return SpeechStreams(values["unit"], at_units.get("pitch"), at_units.get("style"), ids)


def modality_of_ids(ids: Sequence[int], config: TinyWaveConfig) -> np.ndarray:
    """Token ids `(length,)` -> `(length,)` int8: `TEXT_MODALITY`, `SPEECH_MODALITY` or `NO_MODALITY`.

    Units, pitch and style tokens are speech. Special ids, markers and filler have no modality.
    """
    ids = _as_integers(ids, "ids")
    modality = np.zeros(len(ids), dtype=np.int8)
    for name, owned in config.stream_ranges().items():
        inside = (ids >= owned.start) & (ids < owned.stop)
        modality[inside] = TEXT_MODALITY if name == "text" else SPEECH_MODALITY
    # Llama 3 has its special ids behind those of text, inside the range.
    modality[np.isin(ids, (config.pad_token_id, config.bos_token_id, *config.eos_token_ids))] = NO_MODALITY
    return modality


def segments_to_ids(
    segments: Iterable[Segment],
    config: TinyWaveConfig,
    tokenizer: PreTrainedTokenizerFast,
    add_bos: bool = True,
    add_eos: bool = False,
) -> list[int]:
    """Text and speech segments -> token ids, with a marker wherever the modality changes.

    Neighbouring segments of one modality are joined: they become one text, or one piece of speech. Repeats of a unit
    or of a pitch token are dropped, across the joint as well.

    Args:
        segments: `("text", str)` or `("speech", content)` pairs in order. The content is units of shape `(length,)`,
            with or without repeats; for a model with pitch or style it is [`SpeechStreams`].
        add_bos (`bool`, default True): begin with the configuration's BOS id.
        add_eos (`bool`, default False): end with the configuration's EOS id.

    Raises `ValueError` for an unknown modality, an empty segment, a unit out of range, a unit token or marker typed in
    a text, text for a model without text ids, and what [`streams_to_ids`] refuses.
    """
    ids = [config.bos_token_id] if add_bos else []
    for modality, content in _join_neighbours(segments, config):
        if modality == "text":
            if not config.stream_ranges()["text"]:
                raise ValueError("found a text segment, but this model knows no text; give speech alone")
            ids.append(config.text_marker_id)
            # Special tokens typed in a text ("</s>") are text, not commands.
            ids.extend(tokenizer.encode(content, add_special_tokens=False, split_special_tokens=True))
        else:
            # The BOS of a model of speech alone may be the marker itself, and stands there once.
            if ids[-1:] != [config.speech_marker_id]:
                ids.append(config.speech_marker_id)
            ids.extend(_drop_repeats(content, config).tolist())
    if add_eos:
        ids.append(config.eos_token_ids[0])
    return ids


def ids_to_segments(ids: Sequence[int], config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast) -> list[Segment]:
    """Token ids `(length,)` -> text and speech segments, the inverse of [`segments_to_ids`].

    Special ids are skipped, and a piece before the first marker takes the modality of its own ids, so that generated
    ids without their prompt are read as well. Units come back as a list, as they stand; the speech of a model with
    pitch or style comes back as parsed [`SpeechStreams`].

    Raises `ValueError` for an id outside the vocabulary and for a filler id.
    """
    ids = _as_integers(ids, "ids")
    _check_range(ids, range(config.vocab_size), "id")
    modality = modality_of_ids(ids, config)
    filler = ids[~meaningful_ids(config)[ids]]
    if len(filler):
        raise ValueError(f"id {filler[0]} is filler: it belongs to no stream of this model and has no meaning")
    spoken_or_written = modality != NO_MODALITY
    ids, modality = ids[spoken_or_written], modality[spoken_or_written]
    segments: list[Segment] = []
    for piece in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(modality)) + 1) if len(ids) else ():
        if modality[piece[0]] == TEXT_MODALITY:
            segments.append(("text", tokenizer.decode(ids[piece].tolist(), clean_up_tokenization_spaces=False)))
        else:
            speech = ids_to_streams(ids[piece], config)
            segments.append(("speech", speech if config.prosody_streams else speech.units.tolist()))
    return segments


def ids_to_tokens(ids: Sequence[int], config: TinyWaveConfig) -> list[str]:
    """Token ids of speech `(length,)` -> their names, such as "[Hu78]", "[Pi13]" and "[St1]".

    Raises `ValueError` for an id that is no marker and belongs to no stream of speech.
    """
    names = _added_tokens(config)
    unknown = [index for index in ids if int(index) not in names]
    if unknown:
        raise ValueError(f"id {unknown[0]} is not speech; expected a unit, pitch or style token, or a marker")
    return [names[int(index)] for index in ids]


def tokens_to_ids(tokens: Sequence[str], config: TinyWaveConfig) -> np.ndarray:
    """Names of speech tokens -> ids `(length,)`, int64: the inverse of [`ids_to_tokens`].

    Raises `ValueError` for a name that is not one of the model's.
    """
    ids = {name: index for index, name in _added_tokens(config).items()}
    for position, token in enumerate(tokens):
        if token not in ids:
            streams = ", ".join(f"{len(owned)} {name}" for name, owned in config.stream_ranges().items() if len(owned))
            raise ValueError(f"token {token!r} at position {position} is unknown; this layout has {streams} tokens")
    return np.array([ids[token] for token in tokens], dtype=np.int64)


def marker_of_modality(modality: str, config: TinyWaveConfig) -> int:
    """ "text" or "speech" -> the id of its marker. Raises `ValueError` for anything else."""
    markers = {"text": config.text_marker_id, "speech": config.speech_marker_id}
    if modality not in markers:
        raise ValueError(f"unknown modality {modality!r}; a segment is ('text', str) or ('speech', units)")
    return markers[modality]


def meaningful_ids(config: TinyWaveConfig) -> np.ndarray:
    """Return `(vocab_size,)` bool: False where an id is filler, True for specials, markers and streams."""
    meaningful = modality_of_ids(np.arange(config.vocab_size), config) != NO_MODALITY
    meaningful[: config.text_offset] = True
    special = (config.pad_token_id, config.bos_token_id, *config.eos_token_ids)
    meaningful[[config.text_marker_id, config.speech_marker_id, *special]] = True
    return meaningful


def check_text(text: str) -> None:
    """Raise `ValueError` for a text that is not Unicode, and where a unit token or a marker is typed in it.

    A typed token would become speech unnoticed.
    """
    if broken := _SURROGATE.search(text):
        raise ValueError(
            f"the text is not valid Unicode at character {broken.start()} ({broken.group()!r}); pass text that was "
            "decoded as UTF-8"
        )
    found = _TYPED_TOKEN.search(text)
    if found:
        raise ValueError(
            f"the text contains the token {found.group()!r} at character {found.start()}; pass speech as a segment of "
            "its own, ('speech', units), and leave markers to the processor"
        )


def train_text_tokenizer(texts: Iterable[str], config: TinyWaveConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that fills the configuration's text ids exactly.

    The ids are `<pad>`, `<s>`, `</s>`, `<unk>` at 0..3, the 256 bytes, then merges. Any text survives a round trip.

    Raises `ValueError` when the configuration asks for other special ids or for fewer ids than there are bytes, or
    when the texts are too few to learn every merge.
    """
    special_ids = (config.pad_token_id, config.bos_token_id, config.eos_token_ids[0], config.text_offset)
    if special_ids != (0, 1, 2, 4):
        raise ValueError(
            f"the configuration has pad, BOS, EOS and text_offset at {special_ids}; a trained text tokenizer has them "
            "at (0, 1, 2, 4)"
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if config.text_vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
        raise ValueError(
            f"text_vocab_size is {config.text_vocab_size}; a byte-level tokenizer needs at least "
            f"{len(SPECIAL_TOKENS) + len(alphabet)} ids"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.text_vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != config.text_vocab_size:
        raise ValueError(
            f"the texts gave {backend.get_vocab_size()} tokens, the configuration expects {config.text_vocab_size}; "
            "train on more text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True)),
    )


def build_tokenizer(config: TinyWaveConfig, text_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add markers, units, pitch and style tokens to a text tokenizer, at exactly the configuration's ids.

    The result is a stock tokenizer (no remote code) that pads left and adds BOS but no EOS. Filler ids stay
    unassigned, and the text tokenizer itself is not changed.

    Raises `ValueError` when the text tokenizer's size or its BOS or EOS id is not the configuration's, or when the
    layout leaves a gap (a tokenizer numbers added tokens without gaps).
    """
    if len(text_tokenizer) != config.text_vocab_size:
        raise ValueError(
            f"the text tokenizer has {len(text_tokenizer)} ids, the configuration expects {config.text_vocab_size}; "
            "use the tokenizer the model was made for, or a configuration with its text_vocab_size"
        )
    eos_id = config.eos_token_ids[0]
    for name, expected in (("bos_token_id", config.bos_token_id), ("eos_token_id", eos_id)):
        found = getattr(text_tokenizer, name)
        if found is not None and found != expected:
            raise ValueError(f"the text tokenizer's {name} is {found}, the configuration expects {expected}")
    backend = Tokenizer.from_str(text_tokenizer.backend_tokenizer.to_str())
    contents = _added_tokens(config)
    backend.add_tokens([AddedToken(content, special=False, normalized=False) for content in contents.values()])
    for expected, content in contents.items():
        found = backend.token_to_id(content)
        if found != expected:
            raise ValueError(
                f"{content} has id {found} in the tokenizer, the configuration expects {expected}; the ids of "
                f"markers, units, pitch and style must follow the {config.text_vocab_size} text ids without a gap"
            )
    bos, eos, pad = (backend.id_to_token(index) for index in (config.bos_token_id, eos_id, config.pad_token_id))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, config.bos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=text_tokenizer.unk_token,
        padding_side="left",
        model_max_length=config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
    )


def text_part(tokenizer: PreTrainedTokenizerFast, config: TinyWaveConfig) -> PreTrainedTokenizerFast:
    """Return the text tokenizer inside one that [`build_tokenizer`] made, to build one of another layout from it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < config.text_vocab_size]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token", "unk_token")},
    )


def _added_tokens(config: TinyWaveConfig) -> dict[int, str]:
    """Return the content of every added token by id, in the order of ids."""
    contents = {config.text_marker_id: TEXT_MARKER, config.speech_marker_id: SPEECH_MARKER}
    ranges = config.stream_ranges()
    for stream in SPEECH_STREAMS:
        contents.update({index: f"[{stream.prefix}{n}]" for n, index in enumerate(ranges.get(stream.name, ()))})
    return dict(sorted(contents.items()))


def _masks_of_streams(ids: np.ndarray, config: TinyWaveConfig) -> dict[str, np.ndarray]:
    """Ids `(tokens,)` -> for each stream of speech `(tokens,)` bool; an id of no such stream is refused."""
    ranges = {name: owned for name, owned in config.stream_ranges().items() if name != "text"}
    masks = {name: (ids >= owned.start) & (ids < owned.stop) for name, owned in ranges.items()}
    outside = np.flatnonzero(~np.logical_or.reduce(list(masks.values())))
    if len(outside):
        expected = ", ".join(f"{name} {owned.start}..{owned.stop - 1}" for name, owned in ranges.items())
        raise ValueError(f"id {ids[outside[0]]} at position {outside[0]} is not speech; this model has {expected}")
    return masks


def _check_streams(streams: SpeechStreams, config: TinyWaveConfig) -> None:
    """Raise `ValueError` where timed streams are not those of the model, out of range, or of different duration."""
    ranges = config.stream_ranges()
    spans = {}
    for stream in reversed(SPEECH_STREAMS):
        name, clock = stream.name, getattr(config, stream.clock)
        values = getattr(streams, stream.field)
        if values is None and name in ranges:
            raise ValueError(
                f"the speech has no {name}, but this model has {len(ranges[name])} {name} tokens; give SpeechStreams "
                f"with {name} at {clock} Hz"
            )
        if values is not None and name not in ranges:
            raise ValueError(f"the speech has {name}, but this model has no {name} tokens; leave {name} out")
        if values is not None:
            _check_range(values, range(len(ranges[name])), name)
            spans[name] = len(values) / clock
    shortest, longest = min(spans, key=spans.get), max(spans, key=spans.get)
    # The last second of style may be almost empty where the last token of pitch is missing, and clocks differ from
    # true rates by less than a thousandth.
    if spans[longest] - spans[shortest] > 1 / config.style_rate + 1 / config.pitch_rate + 1e-3 * spans[longest]:
        found = ", ".join(f"{span:.2f} s of {name}" for name, span in spans.items())
        raise ValueError(
            f"the streams span different times: {found}; expected one value a frame, repeats kept, each stream at its "
            "own rate"
        )


def _drop_repeats(ids: np.ndarray, config: TinyWaveConfig) -> np.ndarray:
    """Ids of one piece of speech `(tokens,)` -> without units and pitch that repeat the last of their stream."""
    kept = np.ones(len(ids), dtype=bool)
    masks = _masks_of_streams(ids, config)
    for name in (stream.name for stream in SPEECH_STREAMS if stream.merge_repeats and stream.name in masks):
        positions = np.flatnonzero(masks[name])
        kept[positions[1:]] = ids[positions[1:]] != ids[positions[:-1]]
    return ids[kept]


def _join_neighbours(segments: Iterable[Segment], config: TinyWaveConfig) -> list[Segment]:
    """Check each segment and join neighbours of one modality; speech becomes ids."""
    joined: list[Segment] = []
    for position, segment in enumerate(segments):
        modality, content = _check_segment(segment, position)
        if modality == "speech":
            try:
                content = streams_to_ids(content, config)
            except ValueError as error:
                raise ValueError(f"speech segment {position}: {error}") from error
        if joined and joined[-1][0] == modality:
            previous = joined.pop()[1]
            content = previous + content if modality == "text" else np.concatenate([previous, content])
        joined.append((modality, content))
    for modality, content in joined:
        if modality == "text":
            check_text(content)
    return joined


def _check_segment(segment: Segment, position: int) -> Segment:
    """Return one segment with its content checked: `str`, or [`SpeechStreams`]."""
    if not isinstance(segment, (tuple, list)) or len(segment) != 2:
        raise ValueError(f"segment {position} is {segment!r}; a segment is ('text', str) or ('speech', units)")
    modality, content = segment
    if modality == "text":
        if not isinstance(content, str):
            raise ValueError(f"text segment {position} holds {type(content).__name__}; it must hold a str")
    elif modality == "speech":
        # The class of a folder's remote code is another one than that of the package, so no isinstance.
        if hasattr(content, "units"):
            content = SpeechStreams(content.units, content.pitch, content.style, content.ids)
        else:
            content = SpeechStreams(_as_integers(content, f"speech segment {position}"))
    else:
        raise ValueError(f"segment {position} has modality {modality!r}; it must be 'text' or 'speech'")
    if len(content if modality == "text" or content.ids is None else content.ids) == 0:
        raise ValueError(f"{modality} segment {position} is empty; leave the segment out")
    return modality, content


def _as_integers(values: Sequence[int], what: str) -> np.ndarray:
    """Sequence, array or tensor `(length,)` -> int64 array; anything but integers in one dimension is refused."""
    if isinstance(values, str):
        raise ValueError(f"{what}: found a str, expected integers")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{what}: found shape {array.shape} and dtype {array.dtype}, expected integers in one dimension"
        )
    return array.astype(np.int64)


def _check_range(values: np.ndarray, owned: range, what: str) -> None:
    """Raise `ValueError` naming the first value outside `owned`."""
    outside = np.flatnonzero((values < owned.start) | (values >= owned.stop))
    if len(outside):
        raise ValueError(
            f"{what} {values[outside[0]]} at position {outside[0]} is out of range; this model has "
            f"{owned.start}..{owned.stop - 1}"
        )
