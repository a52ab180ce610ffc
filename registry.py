"""Registries of components: each maps the names of one kind to the classes or functions that make it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from maskgym.aliases import Settings
from maskgym.errors import UserError, one_line

PLUGIN_GROUP = "maskgym.plugins"
_plugins_loaded = False

Part = TypeVar("Part")
_Target = TypeVar("_Target", bound=Callable[..., Any] | str)


class Registry(Generic[Part]):
    """Names of one kind of component (data set, segmenter, reward, policy, agent), and their factories.

    A factory is a callable, or a string ``"module:attribute"`` that is imported at its first use, so that a registry
    costs nothing at import.

    Args:
        kind: Name of the kind, for errors.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... class Square:
        ...     def __init__(self, side=1):
        ...         self.side = side
        >>> _ = shapes.register("big_square", Square, side=9)
        >>> shapes.make("square", side=3).side, shapes.make("big_square").side
        (3, 9)
        >>> shapes.names()
        ('big_square', 'square')
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, Callable[..., Part] | str] = {}
        self._presets: dict[str, Settings] = {}

    def register(
        self, name: str, target: Callable[..., Part] | str | None = None, **preset: Any
    ) -> Callable[[_Target], _Target]:
        """Register a factory under a name; without a factory, the result is a decorator that does.

        Args:
            name: New name.
            target: Factory.
            preset: Arguments of the factory that this name fixes.

        Raises:
            ValueError: If the name is taken.
        """

        def decorate(decorated: _Target) -> _Target:
            if name in self._targets:
                raise ValueError(f"{self.kind} '{name}' is registered already")
            self._targets[name], self._presets[name] = decorated, preset
            return decorated

        if target is not None:
            decorate(target)
        return decorate

    def names(self) -> tuple[str, ...]:
        """List every registered name, sorted, with those of plugins."""
        load_plugins()
        return tuple(sorted(self._targets))

    def get(self, name: str) -> Callable[..., Part]:
        """Look up the factory of a name.

        Raises:
            UserError: If the name is unknown; the message lists all names, the closest first.
        """
        load_plugins()
        if name not in self._targets:
            close = difflib.get_close_matches(str(name), self._targets, n=3, cutoff=0.5)
            offer = dict.fromkeys([*close, *sorted(self._targets)])
            raise UserError(f"unknown {self.kind} '{name}': expected one of {', '.join(offer)}")
        target = self._targets[name]
        if isinstance(target, str):
            target = self._targets[name] = _imported(target, f"{self.kind} '{name}'")
        return partial(target, **self._presets[name]) if self._presets[name] else target

    def make(self, name: str, **arguments: Any) -> Part:
        """Make the component of a name.

        Raises:
            UserError: If the name is unknown, or an argument is unknown or missing.
        """
        target = self.get(name)
        check_arguments(target, arguments, f"{self.kind} '{name}'")
        return target(**arguments)


def _imported(target: str, owner: str) -> Callable[..., Any]:
    """Import ``module:attribute``; an error of a plugin's module names the part that it belongs to."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except UserError:
        raise
    except Exception as error:  # A plugin's module may raise anything when it is imported.
        if module.partition(".")[0] == __package__:  # a fault of ours, or a library that is not installed
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{owner}: its target {target} cannot be imported: {reason}") from error


def check_arguments(target: Callable[..., Part], arguments: Settings, owner: str, prefix: str = "") -> None:
    """Check the names of arguments before a factory is called.

    A class with ``**settings`` takes the arguments of the base class that it passes them to. A function with
    ``**settings`` takes any.

    Args:
        target: Factory.
        arguments: Arguments by name.
        owner: Name of the component, for errors.
        prefix: Prefix of each argument, for errors, such as ``env.``.

    Raises:
        UserError: If an argument is unknown, or one without a default is missing.

    Example:
        >>> check_arguments(Path.exists, {"self": 0, "strict": True}, "path")
        Traceback (most recent call last):
        maskgym.errors.UserError: unknown key 'strict': path does not take it
    """
    try:
        layers = [inspect.signature(target).parameters]
    except ValueError:  # Some built-in types have no signature.
        return
    factory = target.func if isinstance(target, partial) else target
    for base in factory.__mro__[1:] if isinstance(factory, type) else ():
        if _takes_any(layers[-1]) and "__init__" in vars(base):
            layers.append(inspect.signature(vars(base)["__init__"]).parameters)
    for name in arguments:
        if not (_takes_any(layers[-1]) or any(name in layer for layer in layers)):
            raise UserError(f"unknown key '{prefix}{name}': {owner} does not take it")
    for name, one in layers[0].items():
        if name not in arguments and one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD:
            raise UserError(f"missing key '{prefix}{name}': {owner} needs it")


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def plugin_folders() -> tuple[Path, ...]:
    """List the folder of each plugin's package, by name; no plugin is imported."""
    places = []
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda plugin: plugin.name):
        spec = importlib.util.find_spec(plugin.module.partition(".")[0])
        places += [Path(place) for place in (spec.submodule_search_locations or () if spec else ())]
    return tuple(dict.fromkeys(places))


def load_plugins() -> None:
    """Import every installed ``maskgym.plugins`` entry point once, which registers its components.

    Raises:
        UserError: If one cannot be imported; the message names it.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True  # also for names that a plugin asks for while it is imported
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()
        except (Exception, SystemExit) as error:
            _plugins_loaded = False
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"plugin '{plugin.name}' ({plugin.value}): {reason}: mend or uninstall it") from error
