"""A registry: names to the classes or functions that make one kind of part."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from maskgym.errors import UserError

PLUGIN_GROUP = "maskgym.plugins"
_plugins_loaded = False


class Registry:
    """Names to factories of one kind of part (data, segmenters, rewards, policies, agents).

    A target is a callable, or a string ``"module:attribute"`` that is imported when first used, so that a
    registry costs nothing at import.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... class Square:
        ...     def __init__(self, side=1):
        ...         self.side = side
        >>> shapes.make("square", side=3).side
        3
        >>> shapes.names()
        ('square',)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, Callable[..., Any] | str] = {}

    def register(self, name: str, target: Callable[..., Any] | str | None = None) -> Any:
        """Register ``target`` under ``name``; without a target, return a decorator.

        Raises:
            ValueError: If the name is taken.
        """
        if target is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._targets:
            raise ValueError(f"{self.kind} '{name}' is registered already")
        self._targets[name] = target
        return target

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted, plugins included."""
        load_plugins()
        return tuple(sorted(self._targets))

    def get(self, name: str) -> Callable[..., Any]:
        """Return the factory registered under ``name``.

        Raises:
            UserError: If the name is unknown; the message lists the closest names.
        """
        load_plugins()
        if name not in self._targets:
            close = difflib.get_close_matches(str(name), self._targets, n=3, cutoff=0.5)
            offer = close or sorted(self._targets)
            raise UserError(f"unknown {self.kind} '{name}': expected one of {', '.join(offer)}")
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            self._targets[name] = target
        return target

    def make(self, name: str, **kwargs: Any) -> Any:
        """Return ``get(name)(**kwargs)``."""
        return self.get(name)(**kwargs)


def plugin_folders() -> tuple[Path, ...]:
    """Return the folder of each plugin's module, imported or not, in order of name."""
    places = []
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda plugin: plugin.name):
        spec = importlib.util.find_spec(plugin.module.partition(".")[0])
        places += [Path(place) for place in (spec.submodule_search_locations or () if spec else ())]
    return tuple(dict.fromkeys(places))


def load_plugins() -> None:
    """Import every installed ``maskgym.plugins`` entry point, once; importing one registers its parts."""
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for plugin in entry_points(group=PLUGIN_GROUP):
            plugin.load()
