"""The `tokenizer.model` file of sentencepiece, as far as a Llama tokenizer needs it.

The file is a protocol buffer (https://github.com/google/sentencepiece, `sentencepiece_model.proto`): field 1 repeats
the pieces (1 text, 2 score, 3 type), field 2 is the trainer's settings (3 model type), field 3 the normalizer's
(1 name, 3 whether a space is put in front, 4 whether repeated spaces are removed). Reading it needs no package.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """A byte-pair encoding of sentencepiece.

    Args:
        pieces (`list[str]`): by id.
        scores (`list[float]`): by id; of two possible merges the one with the higher score comes first.
        types (`list[int]`): by id; `NORMAL`, `UNKNOWN`, `CONTROL`, `USER_DEFINED`, `UNUSED` or `BYTE`.
        add_dummy_prefix (`bool`): a space is put in front of a text.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    add_dummy_prefix: bool

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges in order: every pair of pieces that joins to a piece, the highest score first."""
        mergeable = {
            piece: score
            for piece, score, kind in zip(self.pieces, self.scores, self.types, strict=True)
            if kind == NORMAL
        }
        pairs = [
            (-score, index, left, right)
            for index, (piece, score) in enumerate(mergeable.items())
            for cut in range(1, len(piece))
            if (left := piece[:cut]) in mergeable and (right := piece[cut:]) in mergeable
        ]
        return [(left, right) for _, _, left, right in sorted(pairs)]


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises `ValueError` where the file is damaged, is not byte-pair encoding, or normalizes its text.
    """
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append(piece.get(1, b"").decode("utf-8"))
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                types.append(piece.get(3, NORMAL))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (IndexError, struct.error, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged or is not a sentencepiece model; download it again ({error})") from error
    if not pieces or trainer.get(3, 1) != _BPE:
        raise ValueError(f"{path} is not a byte-pair encoding of sentencepiece; a Llama tokenizer is one")
    name = normalizer.get(1, b"").decode("utf-8", "replace")
    if name != "identity" or normalizer.get(4, 1):
        raise ValueError(
            f"{path} normalizes its text ({name or 'no name'}, removes extra spaces: {bool(normalizer.get(4, 1))}); "
            "a Llama tokenizer leaves it as it is (identity, no)"
        )
    return SentencePieceModel(pieces, scores, types, bool(normalizer.get(3, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) for every field of a protocol-buffer message; fixed-width values stay bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
        else:
            if kind == _BYTES:
                size, position = _varint(data, position)
            elif kind in (_FIXED32, _FIXED64):
                size = 4 if kind == _FIXED32 else 8
            else:
                raise IndexError(f"field of unknown kind {kind} at byte {position}")
            if position + size > len(data):
                raise IndexError(f"a field at byte {position} needs {size} bytes, {len(data) - position} are left")
            value, position = data[position : position + size], position + size
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the variable-length integer at `position` and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
