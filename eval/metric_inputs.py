"""Computation of the `evaluate` modules from their columns; the modules in `eval/metrics` only call these functions.

Speech is a list of raw units (one per frame, repeats included), a dict of the lists "units", "pitch" and "style" for a
model that has them, or [`SpeechStreams`]. The configuration "scores" needs no model: its columns are the summed
log-likelihood of each half, in nats, and its number of scored tokens, computed with any toolkit, under the column
names of `pairs.parquet`.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Features, List, Value
from pyarrow.json import read_json
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..configuration_tinywave import STREAM_FIELDS
from ..loading_tinywave import load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from ..tokenization_tinywave import SpeechStreams
from .aggregation import AGGREGATIONS
from .scoring import (
    PerplexityResult,
    ScoringError,
    SequenceScore,
    pair_credit,
    score_perplexity,
)
from .sequence_formats import SequenceFormat, SpeechSequenceFormat
from .statistics import NUM_RESAMPLES, ratio_interval
from .story_sequences import is_speech_alone, join_speech, score_stories, story_direction
from .suites import HALVES, Pair, evaluate_suite

SCORES = "scores"
CONFIGURATIONS = {"storycloze": ("spoken", "topic", SCORES)}
"""Names of the configurations of a module; modules that are not listed have "default" and "scores"."""
LABELS = {
    "swuggy": ("id", "voice", "group", "part"),
    "sblimp": ("id", "voice", "group", "part", "subtype"),
    "salmon": ("id", "group", "part"),
    "storycloze": ("id", "group"),
    "normalized_perplexity": ("id",),
}
"""String columns of each module."""
STORY_OPTIONS = ("tokenizer", "scored")
"""Keywords that only `storycloze` accepts."""

_NOT_STATED = "not stated"
_LABEL = Value("string")
_UNITS = List(Value("int32"))
_SPEECH = dict.fromkeys(STREAM_FIELDS.values(), _UNITS)
_NUMBERS = {"sum": Value("float64"), "count": Value("int64")}


def module_features(module: str, config_name: str) -> Features:
    """Return the features that `evaluate` stores for a module: its columns as [`columns_to_batch`] returns them.

    Args:
        module: name of the module's folder.
        config_name: "default" or "scores"; for `storycloze` "spoken", "topic" or "scores".

    Raises:
        ValueError: if the module does not have this configuration.
    """
    known = CONFIGURATIONS.get(module, ("default", SCORES))
    if config_name not in known:
        raise ValueError(f"{module} has no configuration {config_name!r}; expected one of {known}.")
    labels = dict.fromkeys(LABELS[module], _LABEL)
    if config_name == SCORES and module == "normalized_perplexity":
        return Features({**labels, **_NUMBERS, "seconds": Value("float64")})
    if config_name == SCORES:
        halves = {f"{half}_{name}": value for half in HALVES for name, value in _NUMBERS.items()}
        return Features({**labels, **halves})
    if module == "normalized_perplexity":
        return Features({**labels, "speech": _SPEECH})
    if module == "storycloze":
        part = {"text": _LABEL, **_SPEECH}
        return Features({**labels, "context": part, "positive": part, "negative": part})
    return Features({**labels, "positive": _SPEECH, "negative": _SPEECH})


def columns_to_batch(features: Features, columns: Mapping[str, Sequence | None]) -> dict[str, list]:
    """Check the columns of a module, and return them with every item of speech or text as a row that Arrow can store.

    Args:
        features: of the module, from [`module_features`].
        columns: name -> values, one per item.

    Raises:
        ValueError: if a column is missing, unknown or empty, columns differ in length, or a value is not speech.
    """
    given = {name: column for name, column in columns.items() if column is not None}
    if missing := [name for name in features if name not in given]:
        raise ValueError(f"The columns {missing} are missing; expected {list(features)}, each with one row per item.")
    if unknown := [name for name in given if name not in features]:
        raise ValueError(f"The columns {unknown} are unknown; expected {list(features)}.")
    lengths = {name: len(column) for name, column in given.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns have different lengths: {lengths}; expected one row per item in each.")
    if not all(lengths.values()):
        raise ValueError(f"The columns {list(features)} are empty; expected at least one item.")
    return {
        name: [_value_to_row(f"Row {index} of {name!r}", value, features[name]) for index, value in enumerate(column)]
        if isinstance(features[name], dict)
        else list(column)
        for name, column in given.items()
    }


def _value_to_row(name: str, value, feature: dict) -> dict:
    """Convert text, or speech in any of its forms, to the row that `feature` describes; text has no units."""
    if isinstance(value, str):
        if "text" not in feature:
            raise ValueError(f"{name} is text; expected speech, a list of units.")
        return {"text": value} | dict.fromkeys(_SPEECH)
    try:
        speech = value if isinstance(value, SpeechStreams) else _value_to_speech(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not speech: {error}") from error
    streams = {name: None if (values := getattr(speech, name)) is None else values.tolist() for name in _SPEECH}
    return streams | ({"text": ""} if "text" in feature else {})


def _value_to_speech(value: Sequence[int] | Mapping[str, Sequence[int] | None]) -> SpeechStreams:
    return SpeechStreams(**value) if isinstance(value, Mapping) else SpeechStreams(value)


def pairs_to_columns(module: str, pairs: Iterable[Pair]) -> dict[str, list]:
    """Convert the pairs of a manifest to the columns of a module, in its first configuration.

    The id of an item is that of its pair without a final "/<voice>". The subtype of `sblimp` is taken from ids of the
    form "<type>/<subtype>/<id>", and is "-" otherwise. A story of a manifest is a single item of speech, so its
    context is empty.

    Args:
        module: "swuggy", "sblimp", "salmon" or "storycloze".
        pairs: from [`read_suite`].

    Returns:
        `dict[str, list]`: name of the column -> values.
    """
    columns: dict[str, list] = {name: [] for name in LABELS[module]}
    columns |= {name: [] for name in (("context", *HALVES) if module == "storycloze" else HALVES)}
    for pair in pairs:
        labels = {"id": pair.id.removesuffix(f"/{pair.voice}"), "voice": pair.voice, "group": pair.group}
        values = labels | {"part": pair.phenomenon, "context": []}
        if "subtype" in columns:
            values |= _type_labels(labels["id"], pair.phenomenon)
        values |= {half: pair.half(half) for half in HALVES}
        for name, column in columns.items():
            column.append(values[name])
    return columns


def _type_labels(id_: str, part: str) -> dict[str, str]:
    """Return the labels of an item: its id without leading part and subtype, and these two."""
    pieces = id_.split("/", 2)
    if len(pieces) == 3 and pieces[0] == part:
        return {"id": pieces[2], "part": part, "subtype": pieces[1]}
    return {"id": id_, "part": part, "subtype": "-"}


def read_scores(module: str, path: str | os.PathLike) -> dict[str, list]:
    """Read a table of log-likelihoods as the columns of a module in the configuration "scores".

    Args:
        module: "swuggy", "sblimp", "salmon" or "storycloze".
        path: parquet file, such as the `pairs.parquet` of `tinywave evaluate`, or JSON lines (`.jsonl`) with the same
            columns. If "voice" is missing, it is taken from ids of the form "<group>/<voice>"; if "subtype" is
            missing, from ids of the form "<type>/<subtype>/<id>".

    Returns:
        `dict[str, list]`: name of the column -> values.

    Raises:
        ValueError: if the file is not a table, lacks columns, or holds several suites.
    """
    table = read_json(path) if Path(path).suffix == ".jsonl" else pq.read_table(path)
    features = module_features(module, SCORES)
    if missing := [name for name in features if name not in (*table.column_names, "voice", "subtype")]:
        raise ValueError(f"The table lacks the columns {missing}; expected {list(features)}.")
    if "suite" in table.column_names and len(suites := table["suite"].unique().to_pylist()) > 1:
        raise ValueError(f"The table holds the suites {suites}; keep the rows of one.")
    return _rows_to_columns(table.to_pylist(), features)


def _rows_to_columns(rows: list[dict], features: Features) -> dict[str, list]:
    for row in rows:
        # Ids may be stored as numbers.
        row |= {name: str(row[name]) for name, feature in features.items() if feature == _LABEL and name in row}
        if "voice" in features:
            # The pairs of an item that is spoken by several voices have ids of the form "<group>/<voice>".
            is_spoken = row["id"].startswith(f"{row['group']}/")
            row.setdefault("voice", row["id"].removeprefix(f"{row['group']}/") if is_spoken else "-")
            row["id"] = row["group"] if is_spoken else row["id"]
        if "subtype" in features and "subtype" not in row:
            row |= _type_labels(row["id"], row["part"])
    return {name: [row[name] for row in rows] for name in features}


def compute_accuracy(
    module: str,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    normalisation: str = "mean",
    vocabulary: str = "full",
    batch_size: int = 8,
    deduplicate: bool | None = None,
    sequence_format: SequenceFormat | None = None,
    seed: int = 0,
    **columns,
) -> dict:
    """Compute the result of an `evaluate` module of minimal pairs.

    Args:
        module: "swuggy", "sblimp", "salmon" or "storycloze".
        model: a causal language model or its folder. Not used in the configuration "scores".
        normalisation (`str`, defaults to `"mean"`): log-likelihood that decides the credit of a pair: "mean" (per
            token) or "sum"; if speech is scored whole, also "local" and "pmi", see [`evaluate_suite`].
        vocabulary, batch_size: as in [`evaluate_suite`].
        deduplicate (`bool`, *optional*, defaults to True): merge each run of equal units into one token.
        sequence_format (*optional*): conversion of speech to ids for models without a TinyWave config, such as a
            [`UnitSequenceFormat`].
        seed (`int`, defaults to 0): seed of the bootstrap.
        columns: columns as returned by [`columns_to_batch`]; for `storycloze` also "tokenizer" and "scored" of
            [`score_stories`].

    Returns:
        `dict`, JSON-serializable: the keys that the module's function in `aggregation.py` returns, "num_pairs", and
        "convention" with all settings that the numbers depend on.

    Raises:
        TypeError: if a keyword is unknown.
        ValueError: if a model is needed but missing, or items contradict each other.
        ScoringError: if a half cannot be scored.
    """
    options = {name: columns.pop(name) for name in STORY_OPTIONS if name in columns and module == "storycloze"}
    _check_names(module, columns)
    _check_ids(columns, [name for name in ("part", "subtype", "id", "voice") if name in columns])
    if "positive_sum" in columns:
        credits, convention = _credits_of_scores(columns, normalisation), {"scores": "given"}
    else:
        model, sequence_format = _model_and_format(model, sequence_format, deduplicate)
        scoring = {"sequence_format": sequence_format, "vocabulary": vocabulary, "batch_size": batch_size}
        score = _score_stories if module == "storycloze" else _score_speech
        credits, convention = score(model, columns, normalisation, scoring, **options)
    rows = [
        {**{name: columns[name][index] for name in LABELS[module]}, "credit": credit}
        for index, credit in enumerate(credits)
    ]
    result = AGGREGATIONS[module](rows, seed)
    convention |= {"normalisation": normalisation, "tie": 0.5, "grouping": result.pop("grouping")}
    convention |= {"num_resamples": NUM_RESAMPLES, "seed": seed}
    return {**result, "num_pairs": len(rows), "convention": convention}


def _check_names(module: str, columns: Mapping[str, list]) -> None:
    """Raise `TypeError` for a keyword that is not a column, because `evaluate` forwards every unknown keyword."""
    configurations = CONFIGURATIONS.get(module, ("default", SCORES))
    known = {name for config_name in configurations for name in module_features(module, config_name)}
    if unknown := sorted(set(columns) - known):
        raise TypeError(f"{module} has no keyword {unknown[0]!r}; see the keywords on the card of the module.")


def _check_ids(columns: Mapping[str, list], key: Sequence[str]) -> None:
    seen: set[tuple] = set()
    for item in zip(*(columns[name] for name in key), strict=True):
        if item in seen:
            raise ValueError(f"Duplicate {' / '.join(key)}: {' / '.join(item)}; expected every pair once.")
        seen.add(item)


def _credits_of_scores(columns: Mapping[str, list], normalisation: str) -> list[float]:
    halves = {
        half: [
            _given_score(f"The {half} half of pair {id_!r}", *numbers)
            for id_, *numbers in zip(columns["id"], columns[f"{half}_sum"], columns[f"{half}_count"], strict=True)
        ]
        for half in HALVES
    }
    return [
        pair_credit(positive, negative, normalisation) for positive, negative in zip(*halves.values(), strict=True)
    ]


def _given_score(name: str, total: float, count: int) -> SequenceScore:
    if not math.isfinite(total) or count < 1:
        raise ScoringError(f"{name} has log-likelihood {total} of {count} tokens; expected a number of at least one.")
    return SequenceScore(total, count)


def _model_and_format(model, sequence_format, deduplicate) -> tuple[nn.Module, SequenceFormat]:
    """Return the model, loaded in evaluation mode, and its sequence format; TinyWave folders need no format."""
    if model is None:
        raise ValueError("found no model; pass `model=`, or log-likelihoods in the configuration 'scores'.")
    if sequence_format is not None and deduplicate is not None:
        raise ValueError("found `deduplicate` and `sequence_format`; set `deduplicate` in the format instead.")
    if isinstance(model, str | os.PathLike):
        loader = TinyWaveForCausalLM if sequence_format is None else AutoModelForCausalLM
        model = load_pretrained(loader, model, dtype="float32")
    if sequence_format is None:
        sequence_format = SpeechSequenceFormat(model.config, deduplicate=deduplicate is not False)
    return model, sequence_format


def _score_speech(model, columns, normalisation: str, scoring: dict) -> tuple[list[float], dict]:
    """Return the credits and the convention of [`evaluate_suite`]."""
    labels = [name for name in ("part", "subtype", "id", "voice") if name in columns]
    pairs = [
        Pair(
            id="/".join(columns[name][index] for name in labels),
            suite="module",
            phenomenon=columns["part"][index] if "part" in columns else _NOT_STATED,
            group=columns["group"][index],
            positive_text=_NOT_STATED,
            negative_text=_NOT_STATED,
            voice=_NOT_STATED,
            encoder=_NOT_STATED,
            **{
                f"{half}_{field}": tuple(values)
                for half in HALVES
                for field in _SPEECH
                if (values := columns[half][index][field]) is not None
            },
        )
        for index in range(len(columns["id"]))
    ]
    result = evaluate_suite(model, pairs, normalisation=normalisation, **scoring)
    kept = ("sequence", "targets", "vocabulary", "window")
    return result.credits, {name: value for name, value in result.convention.items() if name in kept}


def _score_stories(
    model, columns, normalisation: str, scoring: dict, tokenizer: PreTrainedTokenizerBase | None = None, scored="item"
) -> tuple[list[float], dict]:
    """Return the credits and the convention of stories; a spoken ending after a spoken context is scored as speech."""
    stories = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    direction = story_direction(stories)
    if scored == "item" and all(map(is_speech_alone, stories)):
        joined = {half: [join_speech(story["context"], story[half]) for story in stories] for half in HALVES}
        credits, convention = _score_speech(model, columns | joined, normalisation, scoring)
    else:
        credits, convention = score_stories(
            model, stories, normalisation, tokenizer=tokenizer, scored=scored, **scoring
        )
    return credits, {**convention, "direction": direction, "scored": scored}


def compute_perplexity(
    *,
    model: nn.Module | str | os.PathLike | None = None,
    vocabulary: str = "full",
    batch_size: int = 8,
    deduplicate: bool | None = None,
    sequence_format: SequenceFormat | None = None,
    seed: int = 0,
    **columns,
) -> dict:
    """Compute the result of the `evaluate` module `normalized_perplexity`.

    Args:
        model, vocabulary, batch_size, deduplicate, sequence_format, seed: as in [`compute_accuracy`].
        columns: columns as returned by [`columns_to_batch`].

    Returns:
        `dict`, JSON-serializable: "token_weighted", "utterance_mean" and "bits_per_second" of [`PerplexityResult`],
        "ci95" of the first (percentile bootstrap over utterances), "n" (number of utterances), "num_tokens" and
        "convention".

    Raises:
        TypeError, ValueError, ScoringError: as [`compute_accuracy`].
    """
    _check_names("normalized_perplexity", columns)
    _check_ids(columns, ["id"])
    if "sum" in columns:
        numbers = zip(columns["id"], columns["sum"], columns["count"], strict=True)
        scores = [_given_score(f"Utterance {id_!r}", *values) for id_, *values in numbers]
        result, convention = PerplexityResult.from_scores(scores, sum(columns["seconds"])), {"scores": "given"}
    else:
        model, sequence_format = _model_and_format(model, sequence_format, deduplicate)
        utterances = [SpeechStreams(**row) for row in columns["speech"]]
        scoring = {"sequence_format": sequence_format, "vocabulary": vocabulary, "batch_size": batch_size}
        result = score_perplexity(model, utterances, **scoring)
        convention = {"sequence": sequence_format.to_record(), "vocabulary": vocabulary}
    losses = [-score.log_likelihood for score in result.scores]
    interval = ratio_interval(losses, [score.num_tokens for score in result.scores], seed=seed)
    return {
        "token_weighted": result.token_weighted,
        "utterance_mean": result.utterance_mean,
        "bits_per_second": result.bits_per_second,
        "ci95": None if interval is None else [math.exp(bound) for bound in interval],
        "n": len(result.scores),
        "num_tokens": sum(score.num_tokens for score in result.scores),
        "convention": {**convention, "num_resamples": NUM_RESAMPLES, "seed": seed},
    }
