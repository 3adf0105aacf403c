"""Recipes: YAML files that hold everything a run depends on."""

from importlib.resources import files
from pathlib import Path

import yaml


def read_recipe(path: str | Path) -> dict:
    """Reads a recipe; a bare name such as `nano/teacher` is one of the packaged recipes.

    Raises `FileNotFoundError` for a path that does not exist and `ValueError` for a file that is not a YAML mapping.
    """
    path = Path(path)
    packaged = files("tinywave.recipes").joinpath(f"{path}.yaml")
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None and packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    if text is None:
        raise FileNotFoundError(f"No recipe {path}: expected a YAML file, or the name of a packaged recipe.")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds {type(recipe).__name__}; expected a mapping.")
    return recipe
