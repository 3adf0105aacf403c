"""How a verb is given its recipe: a file or a packaged name, settings in place of its own, and `--print-config`."""

import argparse
from collections.abc import Callable
from typing import Any

from ..stages.parsing import read_recipe, read_yaml, recipe_to_yaml

__all__ = ["RecipeArgument", "read_recipe", "read_yaml"]


class RecipeArgument:
    """The recipe of a verb.

    Args:
        what (`str`): the recipe in the help text, such as "training recipe".
        recipe_class: its dataclass, or a function from the values of a file to it.
        default (`str`, *optional*): packaged recipe that is used where none is named.
        classes (*optional*): classes of fields that hold the settings of another class, see
            [`~stages.parsing.read_recipe`].
    """

    def __init__(
        self,
        what: str,
        recipe_class: type | Callable[[dict[str, Any]], type],
        default: str | None = None,
        **classes: type | None,
    ):
        self.what, self.recipe_class, self.default, self.classes = what, recipe_class, default, classes

    def declare(self, parser: argparse.ArgumentParser) -> None:
        """Declare the recipe, the settings in place of its own, and `--print-config`."""
        options = {} if self.default is None else {"nargs": "?", "default": self.default}
        parser.add_argument("recipe", help=f"{self.what}: a YAML file or the name of a packaged one", **options)
        self.declare_overrides(parser)

    def declare_overrides(self, parser: argparse.ArgumentParser) -> None:
        """Declare the settings in place of the recipe's own, and `--print-config`."""
        parser.add_argument(
            "overrides",
            nargs="*",
            metavar="KEY=VALUE",
            help="settings in place of the recipe's own, such as training.max_steps=10",
        )
        parser.add_argument("--print-config", action="store_true", help="print the checked recipe and exit")
        parser.set_defaults(recipe_argument=self)

    def read(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Read and check the recipe that the arguments name."""
        return read_recipe(arguments.recipe, self.recipe_class, arguments.overrides, **self.classes)

    def to_yaml(self, arguments: argparse.Namespace) -> str:
        """Return the checked recipe that the arguments name as YAML, with the defaults of what it leaves out."""
        return recipe_to_yaml(self.read(arguments), self.recipe_class)
