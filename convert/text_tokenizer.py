"""The tokenizer of a published language model -> its text part, and the ids of its markers, units, pitch and style.

A published tokenizer is a text tokenizer followed by the tokens of speech: `[Text]`, `[Speech]`, `[Hu0]`...,
`[Pi0]`..., `[St0]`... (SPIRIT-LM, arXiv 2402.05755). Where they stand is read from the files and becomes the id layout
of our configuration; `build_tokenizer` then puts them back behind the text. Tokens behind those of speech are filler.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from ..data.storage import read_json
from ..tokenization_tinywave import SPEECH_MARKER, TEXT_MARKER
from .sentencepiece_model import CONTROL, UNKNOWN, SentencePieceModel, read_sentencepiece_model

_SPACE = "\u2581"
_STREAMS = (
    ("Hu", "unit_offset", "num_units"),
    ("Pi", "pitch_offset", "num_pitch_tokens"),
    ("St", "style_offset", "num_style_tokens"),
)


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """Read `tokenizer.json`, or `tokenizer.model` with the added tokens beside it.

    Returns:
        The tokenizer of text alone, and the fields of `TinyWaveConfig` that say which id means what.

    Raises `FileNotFoundError` where neither file is there, `ValueError` where a marker is missing, a stream has gaps,
    or speech ids stand among those of text.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        ids = _ids_in_tokenizer_json(content, folder)
        special = {token["id"] for token in content.get("added_tokens", ()) if token["special"]}
        layout = id_layout(ids, special, folder)
        backend = _text_backend(content, layout["text_vocab_size"])
    elif (folder / "tokenizer.model").is_file():
        model = read_sentencepiece_model(folder / "tokenizer.model")
        ids = {piece: index for index, piece in enumerate(model.pieces)} | _added_ids(folder, settings)
        special = {index for index, kind in enumerate(model.types) if kind in (UNKNOWN, CONTROL)}
        layout = id_layout(ids, special, folder)
        # Only the older behaviour of transformers puts a space in front of a text that follows a token.
        backend = _sentencepiece_backend(model, layout["text_vocab_size"], settings.get("legacy") is not False)
    else:
        raise FileNotFoundError(f"{folder} holds no tokenizer; expected tokenizer.json or tokenizer.model")
    names = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
    known = backend.get_vocab()
    names = {name: content for name, content in names.items() if content in known}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names), layout


def id_layout(ids: dict[str, int], special: set[int], folder: Path) -> dict[str, int]:
    """Return the fields of `TinyWaveConfig` for a published tokenizer.

    Args:
        ids: token -> id.
        special: ids of the special tokens; those that come first are no text.
        folder: named in errors.

    Raises `ValueError` as [`read_tokenizer`] does.
    """
    layout = {}
    for field, marker in (("text_marker_id", TEXT_MARKER), ("speech_marker_id", SPEECH_MARKER)):
        if marker not in ids:
            raise ValueError(f"the tokenizer of {folder} has no {marker}; it is not that of a speech language model")
        layout[field] = ids[marker]
    owned = set(layout.values())
    for prefix, offset, count in _STREAMS:
        pattern = re.compile(rf"\[{prefix}(\d+)\]", re.ASCII)
        found = {int(match[1]): index for token, index in ids.items() if (match := pattern.fullmatch(token))}
        if found:
            start = found[min(found)]
            if found != {number: start + number for number in range(len(found))}:
                raise ValueError(f"the [{prefix}] tokens of {folder} have gaps or are out of order; expected a range")
            layout |= {offset: found[0], count: len(found)}
            owned |= set(found.values())
    if "num_units" not in layout:
        raise ValueError(f"the tokenizer of {folder} has no [Hu0]; it is not that of a speech language model")
    first = min(owned)
    between = {index for index in ids.values() if first <= index <= max(owned)} - owned
    if between:
        raise ValueError(
            f"id {min(between)} of the tokenizer of {folder} is no marker and in no stream, but stands among them; "
            "expected text first, then speech"
        )
    text_offset = next(index for index in range(first + 1) if index not in special)
    return layout | {"text_offset": text_offset, "text_vocab_size": first}


def _ids_in_tokenizer_json(content: dict[str, Any], folder: Path) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json. Raises `ValueError` where it is not byte-pair encoding."""
    try:
        model = content["model"]
        if model["type"] != "BPE":
            raise ValueError(f"{folder / 'tokenizer.json'} is a {model['type']} tokenizer; expected BPE, as Llama has")
        return dict(model["vocab"]) | {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'tokenizer.json'} is not a tokenizer of tokenizers ({error!r})") from error


def _text_backend(content: dict[str, Any], text_vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json without the ids from `text_vocab_size` on."""
    model = dict(content["model"])
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < text_vocab_size}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if "".join(merge if isinstance(merge, list) else merge.split(" ")) in model["vocab"]
    ]
    added = [token for token in content.get("added_tokens", ()) if token["id"] < text_vocab_size]
    pre_tokenizer = content.get("pre_tokenizer")
    # "first" puts a space in front of the whole prompt alone, and there stands a marker, never text.
    if pre_tokenizer and pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer = pre_tokenizer | {"prepend_scheme": "never"}
    text = content | {"model": model, "added_tokens": added, "pre_tokenizer": pre_tokenizer, "post_processor": None}
    return Tokenizer.from_str(json.dumps(text | {"truncation": None, "padding": None}))


def _sentencepiece_backend(model: SentencePieceModel, text_vocab_size: int, legacy: bool) -> Tokenizer:
    """Return the text ids of a sentencepiece model as a tokenizer that gives the same ids."""
    vocabulary = {piece: index for index, piece in enumerate(model.pieces[:text_vocab_size])}
    merges = [(left, right) for left, right in model.merges() if left + right in vocabulary]
    unknown = model.pieces[0]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(_SPACE)] if model.add_dummy_prefix and legacy else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if steps else [])
    )
    kinds = zip(model.pieces[:text_vocab_size], model.types[:text_vocab_size], strict=True)
    backend.add_special_tokens([unknown, *(piece for piece, kind in kinds if kind == CONTROL)])
    return backend


def _added_ids(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Return the ids that transformers adds to a sentencepiece model, from either of the files it keeps them in."""
    ids = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    decoder = settings.get("added_tokens_decoder") or {}
    return ids | {_content(token): int(index) for index, token in decoder.items()}


def _content(token: str | dict[str, Any] | None) -> str | None:
    """Return the text of a token that tokenizer_config.json gives as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token
