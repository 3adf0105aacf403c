"""Suites of minimal pairs: the manifest file, its validation, and the accuracy of a model on it.

A manifest is a parquet file with one row per minimal pair and the token streams of both halves, so that scoring needs
no audio. It holds units and, if the codec produces them, pitch and style in further columns; a model is scored on the
streams that it has. The streams are stored raw (one value per frame, not de-duplicated), because de-duplication is
part of the scoring convention.
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
"""Optional column, present if both halves of every pair begin with the same context: context and endings apart."""

PROSODY_COLUMNS = tuple(f"{half}_{name}" for half in HALVES for name in PROSODY_STREAMS)
"""Optional columns, lists of int16: those of pitch, of style, of both or of none."""


class SuiteError(ValueError):
    """Raised for a manifest that cannot be used; the message names the pair and the rule that it violates."""


@dataclass(frozen=True)
class Pair:
    """One minimal pair. The fields are the columns of the manifest.

    Args:
        id (`str`): identifier, unique within the suite.
        suite, phenomenon (`str`): name of the suite and of the part of it.
        group (`str`): label of the pairs that the bootstrap resamples together, such as the word of a lexical pair.
        positive_units, negative_units (`tuple[int, ...]`): raw units of both halves, 25 Hz.
        positive_text, negative_text (`str`): spoken text of both halves, or their phonemes.
        voice (`str`): voice and style of the recordings.
        encoder (`str`): fingerprint of the codec that produced the streams (`SpeechCodec.fingerprint`), with one part
            per stream.
        positive_pitch, negative_pitch (`tuple[int, ...]`, *optional*): raw pitch tokens of both halves, 12.5 Hz.
        positive_style, negative_style (`tuple[int, ...]`, *optional*): style tokens of both halves, 1 Hz.
        story (`dict`, *optional*): for halves that consist of a shared context and an ending: "context", "positive"
            and "negative", each a dict of "text" (empty if unknown) and of the lists "units", "pitch" and "style",
            encoded separately. The fields of the two halves still hold the whole stories.
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
        """Names of the streams that the pair has, out of "unit", "pitch" and "style"."""
        return tuple(
            name for name, field in STREAM_FIELDS.items() if getattr(self, f"{HALVES[0]}_{field}") is not None
        )

    def half(self, name: str) -> SpeechStreams:
        """Return the streams of the half `name`, "positive" or "negative"."""
        return SpeechStreams(*(getattr(self, f"{name}_{field}") for field in STREAM_FIELDS.values()))


@dataclass(frozen=True)
class SuiteResult:
    """Accuracy of one model on one suite.

    Args:
        suite (`str`): name.
        accuracy (`float`): mean credit under `convention["normalisation"]`.
        n (`int`): number of pairs.
        ci95 (`list[float]`): 95 % bootstrap interval `[low, high]` over groups.
        standard_error (`float` or `None`): standard error of the accuracy, robust to correlation within groups; `None`
            for a single group.
        accuracy_by_normalisation (`dict[str, float]`): accuracy under "mean" and under "sum" log-likelihood, and under
            "local" or "pmi" if that is the normalization of the credit.
        accuracy_by_phenomenon (`dict[str, float]`): accuracy of each part of the suite.
        convention (`dict`): all settings that the numbers depend on.
        rows (`list[dict]`): for each pair, the credit and the summed log-likelihood L and token count N of both whole
            halves; under "local" and "pmi" also L and N of the continuations.
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
        """Return the result without its rows, as a JSON-serializable dict."""
        return {key: value for key, value in asdict(self).items() if key != "rows"}

    def write_rows(self, path: str | os.PathLike) -> Path:
        """Write the per-pair rows to a parquet file."""
        with atomic_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(self.rows), partial)
        return Path(path)


def write_suite(pairs: Sequence[Pair], path: str | os.PathLike) -> Path:
    """Validate pairs and write their manifest, with columns for pitch, style and stories if the pairs have them."""
    validate_pairs(pairs)
    prosody = [name for name in PROSODY_COLUMNS if getattr(pairs[0], name) is not None]
    stories = [STORY_COLUMN] if pairs[0].story is not None else []
    schema = pa.schema([*MANIFEST_SCHEMA, *((name, pa.list_(pa.int16())) for name in prosody), *stories])
    rows = [{name: getattr(pair, name) for name in schema.names} for pair in pairs]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    return Path(path)


def is_manifest(path: str | os.PathLike) -> bool:
    """Return whether a file is a suite manifest, judged by its columns."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return set(MANIFEST_SCHEMA.names) <= set(names)


def read_suite(path: str | os.PathLike) -> list[Pair]:
    """Read and validate a manifest.

    Args:
        path: parquet file, as written by [`write_suite`] or `tinywave` commands that build suites.

    Returns:
        `list[Pair]` in the order of the file.

    Raises:
        SuiteError: if the file is missing or is not parquet, lacks columns, or holds an invalid pair.
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
    """Check that the pairs form one suite: unique ids, two halves each, one encoder and one set of streams.

    Raises:
        SuiteError: if they do not.
    """
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
                f"Only one of the pairs {pair.id!r} and {pairs[0].id!r} has a separate context; expected all or none."
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
    """Score both halves of every pair and return the accuracy: the share of pairs whose positive half scores higher.

    For a model with pitch and style, the sequences contain units, pitch and style tokens merged in time order; for a
    model without, only the units of the same manifest. By default every speech token is scored, as in SPIRIT-LM
    (arXiv 2402.05755). `convention["sequence"]` of the result records the sequence format and the scored tokens.

    Args:
        model (`nn.Module`): a causal speech language model.
        suite: path of a manifest, or a sequence of [`Pair`].
        sequence_format ([`SequenceFormat`], *optional*): conversion of speech to ids. By default the
            [`SpeechSequenceFormat`] of `model.config`, which has to be a `TinyWaveConfig`; pass a
            [`UnitSequenceFormat`] for other models. To score only the units of a model with pitch and style, pass
            `SpeechSequenceFormat(model.config, scored_streams=("unit",))`.
        normalisation (`str`, defaults to `"mean"`): log-likelihood that decides the credit of a pair: "mean" (per
            token) or "sum"; the accuracy under both is recorded. "local" and "pmi" compare the continuations that
            start at the first differing token, see [`score_contrasts`].
        window (`int`, defaults to 25): number of tokens that "local" scores.
        vocabulary (`str`, defaults to `"full"`): see [`score_sequences`].
        batch_size (`int`, defaults to 8): sequences per forward pass.
        encoder (`str`, *optional*): fingerprint of the codec of the model's training streams. The parts of the streams
            that the model uses have to match the suite: a model of units alone requires the same speech encoder only.
        seed (`int`, defaults to 0): seed of the bootstrap.
        progress (`bool`, defaults to False): show a progress bar.

    Returns:
        [`SuiteResult`].

    Raises:
        SuiteError: if the manifest is invalid, lacks a stream that the model uses, or has streams of another encoder.
        ScoringError: if a half cannot be scored. No pair is ever dropped from the denominator.
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
    """Check that the suite of `pair` has the given streams, and that they come from the codec `encoder`.

    Raises:
        SuiteError: if a stream is missing or comes from another encoder.
    """
    if missing := [name for name in streams if name not in pair.streams]:
        raise SuiteError(
            f"Suite {pair.suite!r} has no {' and '.join(missing)} tokens, which the model requires. Build the suite "
            "with a codec that produces them."
        )
    if encoder is None:
        return
    found, expected = _encoder_of_stream(pair.encoder, pair.streams), _encoder_of_stream(encoder, streams)
    if any(found.get(name) != expected.get(name) for name in streams):
        raise SuiteError(
            f"Suite {pair.suite!r} holds {', '.join(streams)} of encoder {pair.encoder!r}; the model was trained on "
            f"speech of {encoder!r}. Build the suite with the model's encoder, and extract units with it."
        )


def _encoder_of_stream(fingerprint: str, streams: Iterable[str]) -> dict[str, str]:
    """Split a codec's fingerprint into {stream: part}; with fewer parts than streams, the parts are of `streams`."""
    parts = fingerprint.split("-")
    return dict(zip(STREAM_FIELDS if len(parts) == len(STREAM_FIELDS) else streams, parts, strict=False))


def _encoder_of_read_streams(pair: Pair, streams: Iterable[str]) -> str:
    """Return the suite's fingerprint restricted to some streams, equal to that of a codec that produces only these."""
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
    """Return the row of one pair from the scores of its halves and, under "local" and "pmi", of the continuations."""
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
    """Return the result of a suite from the rows of its pairs."""

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
