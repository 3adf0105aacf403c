"""Suites of minimal pairs: the manifest file, its validation, and the accuracy of a model on it.

A manifest is a parquet file with one row per pair and the units of both halves, so that scoring needs no audio. Raw
units (25 Hz, not de-duplicated) are stored; de-duplication belongs to the scoring convention.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from .results import atomic_file
from .scoring import NORMALISATIONS, SequenceScore, UnitSequenceFormat, pair_credit, score_sequences
from .statistics import NUM_RESAMPLES, bootstrap_mean_interval, standard_error

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


class SuiteError(ValueError):
    """A manifest that cannot be used; the message names the pair and the rule."""


@dataclass(frozen=True)
class Pair:
    """One minimal pair; field meanings as in the manifest.

    Args:
        id (`str`): unique within the suite.
        suite, phenomenon (`str`): suite name and part of it.
        group (`str`): what resampling keeps together, such as the word of a lexical pair.
        positive_units, negative_units (`tuple[int, ...]`): raw units of both halves.
        positive_text, negative_text (`str`): what is spoken, or its phonemes.
        voice (`str`): voice and style.
        encoder (`str`): fingerprint of the speech encoder that made the units.
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


@dataclass(frozen=True)
class SuiteResult:
    """Accuracy of one model on one suite.

    Args:
        suite (`str`): name.
        accuracy (`float`): mean credit under `convention["normalisation"]`.
        n (`int`): number of pairs.
        ci95 (`list[float]`): bootstrap interval over groups.
        standard_error (`float` or `None`): robust to correlation within groups; `None` for a single group.
        accuracy_by_normalisation (`dict[str, float]`): accuracy under "mean" and under "sum" log-likelihood.
        accuracy_by_phenomenon (`dict[str, float]`): accuracy of each part.
        convention (`dict`): everything that the numbers depend on.
        rows (`list[dict]`): per pair L and N of both halves and the credit.
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
    """Validates pairs and writes their manifest."""
    validate_pairs(pairs)
    rows = [{field.name: getattr(pair, field.name) for field in fields(Pair)} for pair in pairs]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), partial)
    return Path(path)


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
    pairs = [_row_to_pair(row) for row in table.select(MANIFEST_SCHEMA.names).to_pylist()]
    validate_pairs(pairs)
    return pairs


def _row_to_pair(row: dict) -> Pair:
    units = {name: tuple(row[name] or ()) for name in ("positive_units", "negative_units")}
    return Pair(**{**row, **units})


def validate_pairs(pairs: Sequence[Pair]) -> None:
    """Raises `SuiteError` unless the pairs form one suite of unique ids, two halves each and one encoder."""
    if not pairs:
        raise SuiteError("The suite holds no pairs.")
    for name in ("suite", "encoder"):
        if len(values := sorted({str(getattr(pair, name)) for pair in pairs})) > 1:
            raise SuiteError(f"One manifest holds one {name}; found {values}.")
    id_, count = Counter(pair.id for pair in pairs).most_common(1)[0]
    if count > 1:
        raise SuiteError(f"Duplicate id {id_!r} ({count} times); expected unique ids.")
    for pair in pairs:
        _validate_pair(pair)


def _validate_pair(pair: Pair) -> None:
    for field in fields(Pair):
        value = getattr(pair, field.name)
        if field.name.endswith("_units"):
            half = field.name.removesuffix("_units")
            if not value:
                raise SuiteError(f"Pair {pair.id!r} has no {half} half: its units are empty or missing.")
            if min(value) < 0:
                raise SuiteError(f"Pair {pair.id!r} has unit {min(value)} in its {half} half; units start at 0.")
        elif not value:
            raise SuiteError(f"Pair {pair.id!r} has an empty {field.name}.")


def evaluate_suite(
    model: nn.Module,
    suite: str | os.PathLike | Sequence[Pair],
    *,
    sequence_format: UnitSequenceFormat | None = None,
    normalisation: str = "mean",
    vocabulary: str = "full",
    batch_size: int = 8,
    encoder: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SuiteResult:
    """Scores both halves of every pair and reports the accuracy.

    Args:
        model (`nn.Module`): a causal language model over units.
        suite: path of a manifest, or its pairs.
        sequence_format (`UnitSequenceFormat`, *optional*): from `model.config` by default.
        normalisation (`str`, defaults to `"mean"`): "mean" or "sum" log-likelihood decides the credit; the accuracy
            under both is recorded.
        vocabulary (`str`, defaults to `"full"`): see `score_sequences`.
        encoder (`str`, *optional*): fingerprint of the encoder that the model's training units come from.
        seed (`int`, defaults to 0): of the bootstrap.

    Raises:
        SuiteError: an invalid manifest, or units of another encoder.
        ScoringError: a half that cannot be scored; no pair ever leaves the denominator.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"Unknown normalisation {normalisation!r}; expected one of {NORMALISATIONS}.")
    pairs = read_suite(suite) if isinstance(suite, str | os.PathLike) else list(suite)
    validate_pairs(pairs)
    if encoder is not None and pairs[0].encoder != encoder:
        raise SuiteError(
            f"Suite {pairs[0].suite!r} holds units of encoder {pairs[0].encoder!r}, the model was trained on units of "
            f"{encoder!r}. Build the suite with the model's encoder."
        )
    sequence_format = sequence_format or UnitSequenceFormat.from_config(model.config)
    rows = _score_pairs(model, pairs, sequence_format, normalisation, vocabulary, batch_size, progress)
    convention = {
        "sequence": sequence_format.to_record(),
        "targets": "units only; BOS, markers and EOS are not scored",
        "normalisation": normalisation,
        "vocabulary": vocabulary,
        "tie": 0.5,
        "grouping": "group",
        "num_resamples": NUM_RESAMPLES,
        "seed": seed,
        "encoder": pairs[0].encoder,
    }
    return _summarise(pairs[0].suite, rows, normalisation, convention, seed)


def _score_pairs(model, pairs, sequence_format, normalisation, vocabulary, batch_size, progress) -> list[dict]:
    halves = [units for pair in pairs for units in (pair.positive_units, pair.negative_units)]
    scores = score_sequences(
        model,
        [sequence_format.units_to_sequence(units) for units in halves],
        scored_ids=sequence_format.scored_ids,
        vocabulary=vocabulary,
        batch_size=batch_size,
        progress=pairs[0].suite if progress else None,
    )
    halves_of_pairs = zip(pairs, scores[::2], scores[1::2], strict=True)
    return [_pair_row(pair, positive, negative, normalisation) for pair, positive, negative in halves_of_pairs]


def _pair_row(pair: Pair, positive: SequenceScore, negative: SequenceScore, normalisation: str) -> dict:
    credit = {name: pair_credit(positive, negative, name) for name in NORMALISATIONS}
    return {
        "id": pair.id,
        "phenomenon": pair.phenomenon,
        "group": pair.group,
        "positive_log_likelihood": positive.log_likelihood,
        "positive_num_tokens": positive.num_tokens,
        "negative_log_likelihood": negative.log_likelihood,
        "negative_num_tokens": negative.num_tokens,
        "credit": credit[normalisation],
        **{f"credit_{name}": value for name, value in credit.items()},
    }


def _summarise(suite: str, rows: list[dict], normalisation: str, convention: dict, seed: int) -> SuiteResult:
    def accuracy(selected: list[dict], name: str) -> float:
        return sum(row[f"credit_{name}"] for row in selected) / len(selected)

    phenomena = sorted({row["phenomenon"] for row in rows})
    credits, groups = [row["credit"] for row in rows], [row["group"] for row in rows]
    return SuiteResult(
        suite=suite,
        accuracy=accuracy(rows, normalisation),
        n=len(rows),
        ci95=bootstrap_mean_interval(credits, groups, seed=seed),
        standard_error=standard_error(credits, groups),
        accuracy_by_normalisation={name: accuracy(rows, name) for name in NORMALISATIONS},
        accuracy_by_phenomenon={
            name: accuracy([row for row in rows if row["phenomenon"] == name], normalisation) for name in phenomena
        },
        convention=convention,
        rows=rows,
    )
