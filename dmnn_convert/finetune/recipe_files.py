"""Recipes as YAML files, the package's or the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import write_all, write_text
from ..optional import needed
from .recipe import Recipe, current

RECIPES = Path(__file__).parent / "recipes"


def built_in() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the options that a YAML file, or a recipe of that name in the package, sets.

    Raises:
        ArgumentError: if it cannot be read or names unknown options.
    """
    yaml = needed("yaml")
    file = RECIPES / f"{path}.yaml" if str(path) in built_in() else Path(path)
    try:
        values = parsed(yaml, file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ArgumentError(
            f"{file}: cannot be read ({error.strerror}); give a YAML file or one of "
            f"{', '.join(built_in())}."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"{file}: is not valid YAML ({error}); give lines of OPTION: VALUE."
        ) from error
    if not isinstance(values, dict):
        raise ArgumentError(
            f"{file}: holds a {type(values).__name__}, not options and values; give lines of "
            "OPTION: VALUE."
        )
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    return current(values, str(file))


LONGEST, DEEPEST = 100_000, 20
"""Characters, and levels, beyond which a file is not a recipe and would take minutes to read."""


def parsed(yaml: Any, text: str) -> Any:
    """Return the values of a recipe's text, which may come from anywhere."""
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        # A few lines of anchors and aliases can stand for more than any memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
    return yaml.safe_load(text)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the effective configuration as YAML, which `read_recipe` reads."""
    yaml: Any = needed("yaml")
    text: str = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    write_all(path.parent, {path.name: lambda part: write_text(part, text.rstrip())})
