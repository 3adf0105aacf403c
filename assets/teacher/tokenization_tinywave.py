"""Token ids of text and speech: every rule about ids is in this file.

A sequence is `[BOS] [Speech] u u u [Text] t t t ... [EOS]`: a marker stands only where the modality changes, repeats
of a unit are dropped, and text follows its marker with no separator. Which id means what is read from a
`TinyWaveConfig`, so that the same functions serve every layout. Source of the format: SPIRIT-LM (arXiv 2402.05755).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .configuration_tinywave import TinyWaveConfig

# A segment is ("text", str) or ("speech", units).
Segment = tuple[str, Any]

NO_MODALITY = 0  # special ids, markers and filler
TEXT_MODALITY = 1
SPEECH_MODALITY = 2

TEXT_MARKER = "[Text]"
SPEECH_MARKER = "[Speech]"
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_TYPED_TOKEN = re.compile(r"\[(?:(?:Hu|Pi|St)\d+|Text|Speech)\]", re.ASCII)


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


def modality_of_ids(ids: Sequence[int], config: TinyWaveConfig) -> np.ndarray:
    """Token ids `(length,)` -> `(length,)` int8: `TEXT_MODALITY`, `SPEECH_MODALITY` or `NO_MODALITY`.

    Units, pitch and style tokens are speech. Special ids, markers and filler have no modality.
    """
    ids = _as_integers(ids, "ids")
    modality = np.zeros(len(ids), dtype=np.int8)
    for name, owned in config.stream_ranges().items():
        inside = (ids >= owned.start) & (ids < owned.stop)
        modality[inside] = TEXT_MODALITY if name == "text" else SPEECH_MODALITY
    return modality


def segments_to_ids(
    segments: Iterable[Segment],
    config: TinyWaveConfig,
    tokenizer: PreTrainedTokenizerFast,
    add_bos: bool = True,
    add_eos: bool = False,
) -> list[int]:
    """Text and speech segments -> token ids, with a marker wherever the modality changes.

    Neighbouring segments of one modality are joined first: they become one text, or one run of units.

    Args:
        segments: `("text", str)` or `("speech", units)` pairs in order; units of shape `(length,)`, with or without
            repeats (repeats are dropped).
        add_bos (`bool`, default True): begin with the configuration's BOS id.
        add_eos (`bool`, default False): end with the configuration's EOS id.

    Raises `ValueError` for an unknown modality, an empty segment, a unit out of range, or a unit token or marker typed
    in a text.
    """
    ids = [config.bos_token_id] if add_bos else []
    for modality, content in _join_neighbours(segments):
        if modality == "text":
            ids.append(config.text_marker_id)
            # Special tokens typed in a text ("</s>") are text, not commands.
            ids.extend(tokenizer.encode(content, add_special_tokens=False, split_special_tokens=True))
        else:
            ids.append(config.speech_marker_id)
            ids.extend(units_to_ids(deduplicate(content)[0], config).tolist())
    if add_eos:
        ids.append(config.eos_token_ids[0])
    return ids


def ids_to_segments(ids: Sequence[int], config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast) -> list[Segment]:
    """Token ids `(length,)` -> text and speech segments, the inverse of [`segments_to_ids`].

    Special ids are skipped, and a piece before the first marker takes the modality of its own ids, so that generated
    ids without their prompt are read as well. Units come back as a list, as they stand.

    Raises `ValueError` for an id outside the vocabulary, a filler id, or a pitch or style id (which are not units).
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
            segments.append(("speech", ids_to_units(ids[piece], config).tolist()))
    return segments


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
    """Raise `ValueError` where a unit token or a marker is typed in a text: it would become speech unnoticed."""
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


def _added_tokens(config: TinyWaveConfig) -> dict[int, str]:
    """Return the content of every added token by id, in the order of ids."""
    contents = {config.text_marker_id: TEXT_MARKER, config.speech_marker_id: SPEECH_MARKER}
    ranges = config.stream_ranges()
    for name, prefix in (("unit", "Hu"), ("pitch", "Pi"), ("style", "St")):
        contents.update({index: f"[{prefix}{n}]" for n, index in enumerate(ranges.get(name, ()))})
    return dict(sorted(contents.items()))


def _join_neighbours(segments: Iterable[Segment]) -> list[Segment]:
    """Check each segment and join neighbours of one modality."""
    joined: list[Segment] = []
    for position, segment in enumerate(segments):
        modality, content = _check_segment(segment, position)
        if joined and joined[-1][0] == modality:
            previous = joined.pop()[1]
            content = previous + content if modality == "text" else np.concatenate([previous, content])
        joined.append((modality, content))
    for modality, content in joined:
        if modality == "text":
            check_text(content)
    return joined


def _check_segment(segment: Segment, position: int) -> Segment:
    """Return one segment with its content checked: `str`, or int64 units `(length,)`."""
    if not isinstance(segment, (tuple, list)) or len(segment) != 2:
        raise ValueError(f"segment {position} is {segment!r}; a segment is ('text', str) or ('speech', units)")
    modality, content = segment
    if modality == "text":
        if not isinstance(content, str):
            raise ValueError(f"text segment {position} holds {type(content).__name__}; it must hold a str")
    elif modality == "speech":
        content = _as_integers(content, f"speech segment {position}")
    else:
        raise ValueError(f"segment {position} has modality {modality!r}; it must be 'text' or 'speech'")
    if len(content) == 0:
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
            f"{what} {values[outside[0]]} at position {outside[0]} is out of range; this model's {what}s are "
            f"{owned.start}..{owned.stop - 1}"
        )
