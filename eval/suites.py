"""Suites of minimal pairs: the manifest file, its validation, and the accuracy of a model on it.

A manifest is a parquet file with one row per pair and the streams of both halves, so that scoring needs no audio:
units, and where the codec makes them pitch and style, in further columns. A model reads those of them that it has. Raw
streams (one value a frame, not de-duplicated) are stored; de-duplication belongs to the scoring convention.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from ..configuration_tinywave import PROSODY_STREAMS, STREAM_FIELDS
from ..data.storage import atomic_file, check_plain_name
from ..tokenization_tinywave import SpeechStreams
from .contrast import CONTRASTS, LOCAL_WINDOW, score_contrasts
from .scoring import NORMALISATIONS, SequenceScore, pair_credit, score_sequences, speech_to_sequences
from .sequence_formats import SequenceFormat, SpeechSequenceFormat
from .statistics import NUM_RESAMPLES, accuracy_interval, standard_error

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("suite", pa.string()),
        ("phenomenon", pa.string()),
        ("group", pa.string()),
        ("positive_units", pa.list_(pa.int16())),
        ("negative_units", pa.list_(pa.int16())),
        ("positive_text", pa.string()),
        ("negative_text", pa.string()),
        ("voice", pa.string()),
        ("encoder", pa.string()),
    ]
)
"""Columns of every manifest."""

HALVES = ("positive", "negative")
STORY_PARTS = ("context", *HALVES)
_PIECE = pa.struct([("text", pa.string()), *((name, pa.list_(pa.int16())) for name in STREAM_FIELDS.values())])
STORY_COLUMN = pa.field("story", pa.struct([(part, _PIECE) for part in STORY_PARTS]))
"""A further column, where the halves of every pair begin with the same context: it and the endings, apart."""

PROSODY_COLUMNS = tuple(f"{half}_{name}" for half in HALVES for name in PROSODY_STREAMS)
"""Further columns, lists of int16: those of pitch, of style, both or none."""


class SuiteError(ValueError):
    """A manifest that cannot be used; the message names the pair and the rule."""


@dataclass(frozen=True)
class Pair:
    """One minimal pair; field meanings as in the manifest.

    Args:
        id (`str`): unique within the suite.
        suite, phenomenon (`str`): suite name and part of it.
        group (`str`): what resampling keeps together, such as the word of a lexical pair.
        positive_units, negative_units (`tuple[int, ...]`): raw units of both halves, 25 Hz.
        positive_text, negative_text (`str`): what is spoken, or its phonemes.
        voice (`str`): voice and style.
        encoder (`str`): fingerprint of the codec that made the streams (`SpeechCodec.fingerprint`): one part a stream.
        positive_pitch, negative_pitch (`tuple[int, ...]`, *optional*): raw pitch tokens of both halves, 12.5 Hz.
        positive_style, negative_style (`tuple[int, ...]`, *optional*): style tokens of both halves, 1 Hz.
        story (`dict`, *optional*): where both halves are a "context" and a "positive" or "negative" ending, these
            three as dicts of "text" (empty where unknown) and of the lists "units", "pitch" and "style", each encoded
            by itself. The halves are whole stories nevertheless.
    """

    id: str
    suite: str
    phenomenon: str
    group: str
    positive_units: tuple[int, ...]
    negative_units: tuple[int, ...]
    positive_text: str
    negative_text: str
    voice: str
    encoder: str
    positive_pitch: tuple[int, ...] | None = None
    positive_style: tuple[int, ...] | None = None
    negative_pitch: tuple[int, ...] | None = None
    negative_style: tuple[int, ...] | None = None
    story: dict | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that it holds, of "unit", "pitch" and "style"."""
        return tuple(
            name for name, field in STREAM_FIELDS.items() if getattr(self, f"{HALVES[0]}_{field}") is not None
        )

    def half(self, name: str) -> SpeechStreams:
        """The speech of its half "positive" or "negative"."""
        return SpeechStreams(*(getattr(self, f"{name}_{field}") for field in STREAM_FIELDS.values()))


@dataclass(frozen=True)
class SuiteResult:
    """Accuracy of one model on one suite.

    Args:
        suite (`str`): name.
        accuracy (`float`): mean credit under `convention["normalisation"]`.
        n (`int`): number of pairs.
        ci95 (`list[float]`): bootstrap interval over groups.
        standard_error (`float` or `None`): robust to correlation within groups; `None` for a single group.
        accuracy_by_normalisation (`dict[str, float]`): accuracy under "mean" and under "sum" log-likelihood, and under
            "local" or "pmi" where that decided the credit.
        accuracy_by_phenomenon (`dict[str, float]`): accuracy of each part.
        convention (`dict`): everything that the numbers depend on.
        rows (`list[dict]`): per pair L and N of both whole halves and the credit; under "local" and "pmi" L and N of
            their continuations too.
    """

    suite: str
    accuracy: float
    n: int
    ci95: list[float]
    standard_error: float | None
    accuracy_by_normalisation: dict[str, float]
    accuracy_by_phenomenon: dict[str, float]
    convention: dict
    rows: list[dict]

    @property
    def credits(self) -> list[float]:
        """Credit of each pair, in manifest order."""
        return [row["credit"] for row in self.rows]

    @property
    def groups(self) -> list[str]:
        """Group of each pair, in manifest order."""
        return [row["group"] for row in self.rows]

    def to_record(self) -> dict:
        """The result without its rows, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if key != "rows"}

    def write_rows(self, path: str | os.PathLike) -> Path:
        """Writes the per-pair rows as parquet."""
        with atomic_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(self.rows), partial)
        return Path(path)


def write_suite(pairs: Sequence[Pair], path: str | os.PathLike) -> Path:
    """Validates pairs and writes their manifest; pitch, style and stories get columns where the pairs have them."""
    validate_pairs(pairs)
    prosody = [name for name in PROSODY_COLUMNS if getattr(pairs[0], name) is not None]
    stories = [STORY_COLUMN] if pairs[0].story is not None else []
    schema = pa.schema([*MANIFEST_SCHEMA, *((name, pa.list_(pa.int16())) for name in prosody), *stories])
    rows = [{name: getattr(pair, name) for name in schema.names} for pair in pairs]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    return Path(path)


def is_manifest(path: str | os.PathLike) -> bool:
    """Whether a file is a manifest of this module, by its columns."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return set(MANIFEST_SCHEMA.names) <= set(names)


def read_suite(path: str | os.PathLike) -> list[Pair]:
    """Reads and validates a manifest.

    Raises:
        SuiteError: not a parquet file, columns missing, or an invalid pair.
    """
    if not Path(path).is_file():
        raise SuiteError(f"No suite manifest at {path}; build it with `build_suite`.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SuiteError(f"{path} is not a readable parquet file ({error}); delete it and build it again.") from error
    if missing := [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]:
        raise SuiteError(f"{path} lacks the columns {missing}; expected {MANIFEST_SCHEMA.names}.")
    present = [name for name in (*PROSODY_COLUMNS, STORY_COLUMN.name) if name in table.column_names]
    pairs = [_row_to_pair(row) for row in table.select([*MANIFEST_SCHEMA.names, *present]).to_pylist()]
    validate_pairs(pairs)
    return pairs


def _row_to_pair(row: dict) -> Pair:
    return Pair(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


def validate_pairs(pairs: Sequence[Pair]) -> None:
    """Raises `SuiteError` unless the pairs form one suite of unique ids, two halves each, one encoder, one set of
    streams."""
    if not pairs:
        raise SuiteError("The suite holds no pairs.")
    for name in ("suite", "encoder"):
        if len(values := sorted({str(getattr(pair, name)) for pair in pairs})) > 1:
            raise SuiteError(f"One manifest holds one {name}; found {values}.")
    try:
        check_plain_name(pairs[0].suite, "the name of the suite")
    except ValueError as error:
        raise SuiteError(str(error)) from error
    id_, count = Counter(pair.id for pair in pairs).most_common(1)[0]
    if count > 1:
        raise SuiteError(f"Duplicate id {id_!r} ({count} times); expected unique ids.")
    has_prosody = [getattr(pairs[0], name) is not None for name in PROSODY_COLUMNS]
    for pair in pairs:
        _validate_pair(pair)
        if (pair.story is None) != (pairs[0].story is None):
            raise SuiteError(
                f"Only one of the pairs {pair.id!r} and {pairs[0].id!r} has a context apart; expected all."
            )
        if [getattr(pair, name) is not None for name in PROSODY_COLUMNS] != has_prosody:
            raise SuiteError(f"Pair {pair.id!r} has other streams than {pairs[0].id!r}; expected the same in all.")


def _validate_pair(pair: Pair) -> None:
    for half in HALVES:
        for stream, field in STREAM_FIELDS.items():
            values = getattr(pair, f"{half}_{field}")
            if values is None and stream != "unit":
                if getattr(pair, f"{HALVES[0]}_{field}") != getattr(pair, f"{HALVES[1]}_{field}"):
                    raise SuiteError(
                        f"Pair {pair.id!r} has no {stream} in its {half} half; expected it in both or none."
                    )
            elif not values:
                raise SuiteError(f"Pair {pair.id!r} has no {half} half: its {field} are empty or missing.")
            elif min(values) < 0:
                raise SuiteError(f"Pair {pair.id!r} has {stream} {min(values)} in its {half} half; it starts at 0.")
    for name in ("id", "suite", "phenomenon", "group", "positive_text", "negative_text", "voice", "encoder"):
        if not getattr(pair, name):
            raise SuiteError(f"Pair {pair.id!r} has an empty {name}.")


def evaluate_suite(
    model: nn.Module,
    suite: str | os.PathLike | Sequence[Pair],
    *,
    sequence_format: SequenceFormat | None = None,
    normalisation: str = "mean",
    window: int = LOCAL_WINDOW,
    vocabulary: str = "full",
    batch_size: int = 8,
    encoder: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SuiteResult:
    """Scores both halves of every pair and reports the accuracy.

    A model with pitch and style reads them merged with the units; one without reads the units of the same manifest
    alone. By default every token of speech is scored, as SPIRIT-LM does (arXiv 2402.05755); what was read and scored
    stands in `convention["sequence"]`.

    Args:
        model (`nn.Module`): a causal language model of speech.
        suite: path of a manifest, or its pairs.
        sequence_format ([`SequenceFormat`], *optional*): by default that of `model.config`, which has to be a
            `TinyWaveConfig`; a [`UnitSequenceFormat`] serves other models. To score the units alone of a model with
            pitch and style: `SpeechSequenceFormat(model.config, scored_streams=("unit",))`.
        normalisation (`str`, defaults to `"mean"`): "mean" or "sum" log-likelihood decides the credit; the accuracy
            under both is recorded. "local" and "pmi" compare the continuations from the first differing token on, see
            [`score_contrasts`].
        window (`int`, defaults to 25): tokens that "local" scores.
        vocabulary (`str`, defaults to `"full"`): see `score_sequences`.
        encoder (`str`, *optional*): fingerprint of the codec that the model's training streams come from. The parts of
            the streams that the model reads have to agree: a model of units needs the same speech encoder only.
        seed (`int`, defaults to 0): of the bootstrap.

    Raises:
        SuiteError: an invalid manifest, one without a stream that the model reads, or streams of another encoder.
        ScoringError: a half that cannot be scored; no pair ever leaves the denominator.
    """
    if normalisation not in (*NORMALISATIONS, *CONTRASTS):
        raise ValueError(f"Unknown normalisation {normalisation!r}; expected one of {(*NORMALISATIONS, *CONTRASTS)}.")
    pairs = read_suite(suite) if isinstance(suite, str | os.PathLike) else list(suite)
    validate_pairs(pairs)
    sequence_format = sequence_format or SpeechSequenceFormat(model.config)
    check_streams(pairs[0], sequence_format.streams, encoder)
    scoring = {"vocabulary": vocabulary, "batch_size": batch_size, "progress": pairs[0].suite if progress else None}
    rows = _score_pairs(model, pairs, sequence_format, normalisation, window, scoring)
    convention = {
        "sequence": sequence_format.to_record(),
        "targets": sequence_format.targets,
        "normalisation": normalisation,
        **({"window": window} if normalisation == "local" else {}),
        "vocabulary": vocabulary,
        "tie": 0.5,
        "grouping": "group",
        "num_resamples": NUM_RESAMPLES,
        "seed": seed,
        "encoder": _encoder_of_read_streams(pairs[0], sequence_format.streams),
    }
    return summarise_rows(pairs[0].suite, rows, normalisation, convention, seed)


def check_streams(pair: Pair, streams: Iterable[str], encoder: str | None) -> None:
    """Raises `SuiteError` where the suite of `pair` lacks a stream to read, or has it from another encoder."""
    if missing := [name for name in streams if name not in pair.streams]:
        raise SuiteError(
            f"Suite {pair.suite!r} has no {' and '.join(missing)}, which the model reads. Build the suite with a "
            "codec that makes them."
        )
    if encoder is None:
        return
    found, expected = _encoder_of_stream(pair.encoder, pair.streams), _encoder_of_stream(encoder, streams)
    if any(found.get(name) != expected.get(name) for name in streams):
        raise SuiteError(
            f"Suite {pair.suite!r} holds {', '.join(streams)} of encoder {pair.encoder!r}, the model's speech is "
            f"of {encoder!r}. Build the suite with the model's encoder, and extract units with it."
        )


def _encoder_of_stream(fingerprint: str, streams: Iterable[str]) -> dict[str, str]:
    """A codec's fingerprint -> its part for each stream; with fewer parts than there are streams, for `streams`."""
    parts = fingerprint.split("-")
    return dict(zip(STREAM_FIELDS if len(parts) == len(STREAM_FIELDS) else streams, parts, strict=False))


def _encoder_of_read_streams(pair: Pair, streams: Iterable[str]) -> str:
    """The part of the suite's fingerprint that is of some streams: that of a codec that makes only these."""
    parts = pair.encoder.split("-")
    if len(parts) != len(pair.streams):
        return pair.encoder
    return "-".join(part for name, part in zip(pair.streams, parts, strict=True) if name in streams)


def _score_pairs(model, pairs, sequence_format, normalisation, window, scoring) -> list[dict]:
    speech = {f"The {name} half of pair {pair.id!r}": pair.half(name) for pair in pairs for name in HALVES}
    halves = speech_to_sequences(speech, sequence_format)
    continued = []
    if normalisation in CONTRASTS:
        options = {"sequence_format": sequence_format, "window": window, **scoring}
        whole, continued = score_contrasts(model, halves, normalisation, **options)
    else:
        options = {"scored_ids": sequence_format.scored_ids, "names": list(halves), **scoring}
        whole = score_sequences(model, list(halves.values()), **options)
    return [
        pair_row(pair, whole[index : index + 2], continued[index : index + 2], normalisation)
        for index, pair in zip(range(0, len(whole), 2), pairs, strict=True)
    ]


def pair_row(
    pair: Pair, whole: Sequence[SequenceScore], continued: Sequence[SequenceScore], normalisation: str
) -> dict:
    """The row of one pair from the scores of its two halves, and of their continuations where those decide."""
    credit = {name: pair_credit(*whole, name) for name in NORMALISATIONS}
    columns = _score_columns(whole, "")
    if continued:
        credit[normalisation] = pair_credit(*continued, CONTRASTS[normalisation])
        columns |= _score_columns(continued, f"{normalisation}_")
    return {
        "id": pair.id,
        "phenomenon": pair.phenomenon,
        "group": pair.group,
        "voice": pair.voice,
        **columns,
        "credit": credit[normalisation],
        **{f"credit_{name}": value for name, value in credit.items()},
    }


def _score_columns(halves: Sequence[SequenceScore], part: str) -> dict:
    return {
        f"{half}_{part}{field}": getattr(score, field)
        for half, score in zip(HALVES, halves, strict=True)
        for field in ("log_likelihood", "num_tokens")
    }


def summarise_rows(suite: str, rows: list[dict], normalisation: str, convention: dict, seed: int) -> SuiteResult:
    """The result of a suite from the rows of its pairs."""

    def accuracy(selected: list[dict], name: str) -> float:
        return sum(row[f"credit_{name}"] for row in selected) / len(selected)

    phenomena = sorted({row["phenomenon"] for row in rows})
    credits, groups = [row["credit"] for row in rows], [row["group"] for row in rows]
    return SuiteResult(
        suite=suite,
        accuracy=accuracy(rows, normalisation),
        n=len(rows),
        ci95=accuracy_interval(credits, groups, seed=seed),
        standard_error=standard_error(credits, groups),
        accuracy_by_normalisation={
            name: accuracy(rows, name) for name in dict.fromkeys((*NORMALISATIONS, normalisation))
        },
        accuracy_by_phenomenon={
            name: accuracy([row for row in rows if row["phenomenon"] == name], normalisation) for name in phenomena
        },
        convention=convention,
        rows=rows,
    )
