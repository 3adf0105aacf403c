"""From YAML to checked recipes: one line for every mistake, naming the file, the key and what is expected."""

import dataclasses
import difflib
import json
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydantic
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

MAX_BYTES = 2**20
# Numbers of the fields that all `TrainingArguments` share: (lowest, highest).
_RANGES = {
    "max_steps": (-1, 10**9),
    "num_train_epochs": (0, 10**6),
    "per_device_train_batch_size": (1, 10**5),
    "per_device_eval_batch_size": (1, 10**5),
    "gradient_accumulation_steps": (1, 10**5),
    "learning_rate": (0, 10),
    "weight_decay": (0, 10),
    "warmup_steps": (0, 10**9),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, 10**6),
    "logging_steps": (0, 10**9),
    "save_steps": (0, 10**9),
    "eval_steps": (0, 10**9),
    "save_total_limit": (1, 10**6),
    "dataloader_num_workers": (0, 256),
    "lora_rank": (1, 65_536),
}
# No other setting of a training is negative.
_LOWEST = 0
# Set by the command itself.
_RESERVED = ("output_dir", "seed")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the key, what was found and what is expected."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, and with `3e-3` as a number, as JSON has it."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)) or key in seen:
                problem = f"the key {key!r} occurs twice or is no text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        FileNotFoundError: where there is no file.
        RecipeError: for a file that is not YAML in UTF-8, is larger than 1 MiB, has a key twice, or is no mapping.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a YAML file")
    if Path(path).stat().st_size > MAX_BYTES:
        raise RecipeError(f"{path} has more than {MAX_BYTES:,} bytes; expected a recipe")
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def parse_yaml(text: str, name: str | os.PathLike) -> dict[str, Any]:
    """Parse YAML text whose top level is a mapping; `name` is what errors call it."""
    try:
        values = yaml.load(text, _StrictLoader)
        json.dumps(values)  # Aliases of themselves, dates and other objects are no settings.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise RecipeError(f"{name} is not a YAML file of settings: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name} holds {type(values).__name__}; expected a mapping, such as `seed: 0`")
    return values


def find_recipe(path: str | os.PathLike) -> Path:
    """Return the file of a recipe: a path, or a bare name such as `nano/teacher` of a packaged one.

    Raises:
        FileNotFoundError: where there is neither.
    """
    path = Path(path)
    if "\0" not in str(path) and path.is_file():
        return path
    is_plain = not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)
    packaged = Path(str(files("tinywave.recipes").joinpath(f"{path}.yaml"))) if is_plain else path
    if packaged.is_file():
        return packaged
    raise FileNotFoundError(f"no recipe {str(path)!r}: expected a YAML file, or the name of a packaged recipe")


def load_recipe(path: str | os.PathLike) -> dict[str, Any]:
    """Read the file of a recipe, a path or the name of a packaged one, without checking its keys."""
    return read_yaml(find_recipe(path))


def read_recipe(
    path: str | os.PathLike,
    recipe_class: type | Callable[[dict[str, Any]], type],
    overrides: Sequence[str] = (),
    **classes: type | None,
) -> dict[str, Any]:
    """Read and check a recipe.

    Args:
        path: of a YAML file, or the name of a packaged recipe.
        recipe_class: dataclass of `tinywave.stages.recipes`, or a function from the values of the file to one.
        overrides: settings in place of those of the file, such as "training.max_steps=10".
        classes (*optional*): for fields that hold the settings of another class, that class: `training` for a
            `TrainingArguments`, `model` for a configuration.

    Returns:
        The recipe as nested dictionaries, with what the file leaves out left out.

    Raises:
        FileNotFoundError: where there is no such recipe.
        RecipeError: for unknown, missing and mistyped keys and values out of range.
    """
    values = load_recipe(path)
    for override in overrides:
        _override(values, override)
    recipe_class = recipe_class if isinstance(recipe_class, type) else recipe_class(values)
    check_recipe(values, recipe_class, path, **classes)
    return _without_nulls(values, recipe_class)


def _without_nulls(values: dict[str, Any], recipe_class: type) -> dict[str, Any]:
    """A recipe without the settings that are null, where null leaves them out."""
    optional = {field.name for field in dataclasses.fields(recipe_class) if field.default is None}
    return {name: value for name, value in values.items() if value is not None or name not in optional}


def check_recipe(values: Mapping[str, Any], recipe_class: type, name: object, **classes: type | None) -> None:
    """Raise [`RecipeError`] for values that do not form a recipe; arguments as of [`read_recipe`]."""
    try:
        pydantic.TypeAdapter(recipe_class).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{name}: {_describe(error, recipe_class)}") from error
    for field, settings_class in classes.items():
        if settings_class is not None and values.get(field) is not None:
            check_settings(values[field], settings_class, f"{name}: {field}")


def check_settings(values: Mapping[str, Any], settings_class: type, name: str) -> None:
    """Raise [`RecipeError`] for settings that a dataclass does not have, or not of this type or in this range."""
    known = {field.name for field in dataclasses.fields(settings_class) if field.init} - set(_RESERVED)
    types = _types_of(settings_class)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{name}.{key} is unknown{_nearest(key, known)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{name}.{key} is {value}; expected a finite number")
        low, high = _RANGES.get(key, (_LOWEST, math.inf))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not low <= value <= high:
            raise RecipeError(f"{name}.{key} is {value:g}; expected {low:g} to {high:g}")
        if key in _RANGES and not isinstance(value, (int, float)):
            raise RecipeError(f"{name}.{key} is {value!r}; expected a number from {low:g} to {high:g}")
        try:
            pydantic.TypeAdapter(types.get(key, Any)).validate_json(json.dumps(value))
        except pydantic.ValidationError as error:
            raise RecipeError(f"{name}.{key} is {value!r}: {error.errors()[0]['msg']}") from error
        except pydantic.errors.PydanticSchemaGenerationError:
            continue
    if issubclass(settings_class, PreTrainedConfig):
        _check_configuration(values, settings_class, name)


def _check_configuration(values: Mapping[str, Any], config_class: type, name: str) -> None:
    """Let a configuration check its own types and ranges."""
    try:
        config_class(**values)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise RecipeError(f"{name}: {' '.join(str(error).split())}") from error


def _types_of(settings_class: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(settings_class)
    except NameError:  # Configurations of transformers name types of modules that they do not import; they check
        return {}  # the types themselves.


def _override(values: dict[str, Any], override: str) -> None:
    """Set one value by its dotted name, in place."""
    name, separator, text = override.partition("=")
    keys = name.split(".")
    if not separator or not all(keys):
        raise RecipeError(f"found {override!r}; expected an override such as training.max_steps=10")
    target = values
    for number, key in enumerate(keys[:-1], start=1):
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{override!r} sets a key of {'.'.join(keys[:number])}, which is no group of settings")
    target[keys[-1]] = parse_yaml(f"value: {text}", f"the override {override!r}")["value"]


def _describe(error: pydantic.ValidationError, recipe_class: type) -> str:
    """The first mistake of a recipe as one line."""
    mistake = error.errors()[0]
    # Branches of a union stand in the location too, in names that are no keys.
    location = [str(part) for part in mistake["loc"] if not re.search(r"[\[\]{}(),-]", str(part))]
    name = ".".join(location) or "the recipe"
    if mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is unknown{_nearest(location[-1], _keys(recipe_class))}"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    return f"{name} is {mistake['input']!r}: {mistake['msg']}"


def _keys(recipe_class: type) -> set[str]:
    """All keys of a recipe and of the recipes in its fields."""
    found = set()
    for field in dataclasses.fields(recipe_class):
        found.add(field.name)
        for part in _parts(field.type):
            if dataclasses.is_dataclass(part):
                found |= _keys(part)
    return found


def _parts(kind: Any) -> Iterable[Any]:
    yield kind
    for argument in typing.get_args(kind):
        yield from _parts(argument)


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"; the nearest known key is {near[0]}" if near else f"; expected one of {', '.join(sorted(known)[:12])}"


def recipe_to_yaml(values: dict[str, Any], recipe_class: type | Callable[[dict[str, Any]], type]) -> str:
    """Return a recipe as YAML, with the defaults of what it leaves out."""
    recipe_class = recipe_class if isinstance(recipe_class, type) else recipe_class(values)
    settings = {
        field.name: values.get(field.name, field.default)
        for field in dataclasses.fields(recipe_class)
        if field.name in values or field.default is not dataclasses.MISSING
    }
    return yaml.safe_dump(settings, sort_keys=False)
