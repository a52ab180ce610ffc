"""Recipes: the arguments of a published experiment, each with its source, under one name.

``experiment=NAME`` stands for the arguments in ``experiments/recipes/NAME.yaml``; arguments beside it win. A recipe has

- ``arguments``: a list of ``key=value``;
- any number of choices, by option: a mapping from each option to further arguments. A choice is a config group, such as
  ``algo``, or a name of the recipe's own, such as ``size``; its first option is the default;
- or, for a variant, ``recipe``: the name of another recipe, and an option for each of its choices that differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from maskgym.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
EXPERIMENT = "experiment"


def names() -> list[str]:
    """List the recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def with_recipe(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Replace ``experiment=NAME`` and the recipe's own choices by what they stand for; other arguments stay, and win.

    Args:
        arguments: Arguments of a run.
        groups: Names of the config's groups.

    Raises:
        UserError: If there is no such recipe, or it has no such option.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    name = given.get(EXPERIMENT)
    if name is None:
        return list(arguments)
    if sum(argument.startswith(f"{EXPERIMENT}=") for argument in arguments) > 1:
        raise UserError(f"{EXPERIMENT}={name}: expected one recipe")
    choices, found = _load(name)
    added: list[str] = []
    for choice, (default, options) in choices.items():
        value = given.get(choice, default)
        if value in options:
            added += [f"{choice}={value}"] * (choice in groups) + options[value]
        elif choice not in groups:
            raise UserError(f"{choice}={value}: {EXPERIMENT}={name} has {', '.join(options)}")
    own = {EXPERIMENT, *(choice for choice in choices if choice not in groups)}
    kept = [argument for argument in arguments if argument.partition("=")[0] not in own]
    named = {argument.partition("=")[0].lstrip("+") for argument in kept}
    return [argument for argument in (*added, *found) if argument.partition("=")[0].lstrip("+") not in named] + kept


def _load(name: str) -> tuple[dict[str, tuple[str, Mapping[str, list[str]]]], list[str]]:
    """Read a recipe: by choice, the default and each option's arguments; and the arguments of all of them.

    Raises:
        UserError: If there is no such recipe.
    """
    file = RECIPES / f"{name}.yaml"
    if name not in names():
        raise UserError(f"{EXPERIMENT}={name}: expected one of {', '.join(names())}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "recipe" in content:
        choices, arguments = _load(content.pop("recipe"))
        return choices | {choice: (option, choices[choice][1]) for choice, option in content.items()}, arguments
    arguments = content.pop("arguments")
    return {choice: (next(iter(options)), options) for choice, options in content.items()}, arguments
