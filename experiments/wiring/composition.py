"""Compose configs by Hydra from ``conf/``, with one-line errors that list the valid choices."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskgym import files
from maskgym.aliases import Config
from maskgym.errors import UserError
from maskgym.experiments.wiring.recipes import EXPERIMENT, with_recipe
from maskgym.registry import plugin_folders

CONF = Path(__file__).parents[1] / "conf"
# Environment variables that cap keys, for those who try whether a command runs.
CAPS = {
    "MASKGYM_UPDATES": ("algo", "updates"),
    "MASKGYM_BATCH": ("algo", "batch_size"),
    "MASKGYM_SAMPLES": ("evaluation", "samples"),
}
ROOT = "config"  # the root file, a list of choices
EPOCHS, UPDATES = "algo.epochs", "algo.updates"
# Keys and options that have another name now; the error for an old name tells the new one.
RENAMED: dict[str, str] = {
    "env.ids": "env.gym_ids",
    "env.answers": "env.default_batch_size",
    "env.parts": "env.default_parts",
    "env.forms": "env.algo_aliases",
    "algo.parts": "algo.default_parts",
    "env.repeats": "env.allow_repeated_clicks",
    "env.label": "env.label_source",
    "env.initial": "env.initial_prompts",
    "policy.bypass": "policy.skip_empty_need",
    "policy.most_keys": "policy.max_attention_keys",
    "algo=openai": "algo=chat_model",
}
# What may replace a default of each type, beside null, and its name.
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    list: ((list,), "a list"),
    dict: ((dict,), "names and values"),
}
BY_TASK = ("data.sod", "data.sis", "data.cosod")  # keys that only data=tasks has
SEVERAL = (
    *BY_TASK,
    *(key.replace(".", ".held_out.") for key in BY_TASK),
    "data.rationales",
)  # text, or a list of texts
OPEN = ("data.roots", "data.readers", "data.knobs", "budget")  # keys whose names below are the user's
# Newer keys, left out of a config where they have these values, so that earlier runs keep their names.
LEFT_OUT: dict[str, Any] = {"budget": None, "data.level": "easy", "data.knobs": {}}
# Groups whose keys no component takes: one that the file does not list would be ignored.
CLOSED = ("logger", "scale", "evaluation")
# Groups whose keys an evaluation may change by the names that the run's own part has.
OWN = ("algo", "data", "policy", "reward", "segmenter")
# Keys that a run reads from its stored config, whatever the option.
NEEDED = ("algo.updates", "env.gym_ids", *(f"evaluation.{key}" for key in ("split", "samples", "every", "pictures")))
# Keys whose null stands for no text.
WHOLE = (
    *("train_samples", "every", "size", "micro_batch_size", "lora_rank", "max_pixels", "min_pixels"),
    *("held_out_group_size", "epochs", "cpus_per_worker"),
)
NULLS = {**dict.fromkeys(WHOLE, int), "terms": dict, "budget": dict, "no_target": bool}
# Keys that take a word in place of a number.
WORDS = {"algo.micro_batch_size": "auto"}


@cache
def folders() -> tuple[Path, ...]:
    """List the folders of options: ``conf/`` here, and that of each plugin (entry points `maskgym.plugins`)."""
    return (CONF, *(place / "conf" for place in plugin_folders() if (place / "conf").is_dir()))


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Return the name of each config group with its options."""
    names = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    return {
        name: tuple(sorted({file.stem for folder in folders() for file in (folder / name).glob("*.yaml")}))
        for name in names
    }


@cache
def option(group: str, name: str | None) -> Config:
    """Load the file of an option over those that its ``defaults`` name, read-only; empty if there is none.

    The name may come from a stored config, and be a path: a file that is not listed is not read.
    """
    places = [folder / group / f"{name}.yaml" for folder in folders()] if name in groups()[group] else []
    file = next((file for file in places if file.is_file()), None)
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    bases = [base for base in found.pop("defaults", ()) if base != "_self_"]
    return OmegaConf.to_container(OmegaConf.merge(*(option(group, base) for base in bases), found))


@cache
def root_keys() -> tuple[str, ...]:
    """Return every key of a config's first level: the groups, and what the root file adds."""
    root = yaml.safe_load((CONF / f"{ROOT}.yaml").read_text(encoding="utf-8"))
    return (*groups(), *(key for key in root if key != "defaults"))


def compose(arguments: Sequence[str]) -> Config:
    """Compose the resolved config of ``key=value`` arguments.

    Args:
        arguments: Hydra's overrides: ``group=option``, ``group.key=value``, ``+group.key=value`` for a key
            that the option's file does not list.

    Raises:
        UserError: If an argument cannot be read, or names an unknown group, option or key (the message lists what
            there is), or its value is of another kind than the option's own.
    """
    arguments = with_recipe(arguments, tuple(groups()))
    overrides = [parse(argument) for argument in _with_aliases(arguments)]
    for override in overrides:
        _check_choice(override)
    try:
        if any(_adds(one) and one.key_or_group.partition(".")[0] in CLOSED for one in overrides):
            _check_keys(overrides)
        config = deepcopy(_chosen(overrides))
        for override in overrides:
            if override.key_or_group not in groups():
                add = _adds(override) or _is_open(override)
                OmegaConf.update(config, override.key_or_group, override.value(), force_add=add)
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        _check_types(overrides, values)
        _keep_task(overrides, values)
        _check_length(overrides, values)
        return _shortened(_without_newer(values))
    except (HydraException, OmegaConfBaseException) as error:
        _check_keys(overrides)  # says more
        raise UserError(f"{' '.join(arguments)}: {_first_line(error)}") from error


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """Expand a multirun into its rows: every combination of the values that arguments list, ``seed=0,1,2``.

    Raises:
        UserError: If an argument cannot be read.
    """
    choices = []
    for argument in arguments:
        override = parse(argument)
        choices.append(
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [str(override.input_line)]
        )
    return [list(row) for row in itertools.product(*choices)]


def parse(argument: str) -> Override:
    """Parse one argument by Hydra.

    Raises:
        UserError: If it cannot be read.
    """
    key, equals, value = argument.partition("=")
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(argument)
    except HydraException:
        # A path may hold what Hydra's grammar has another use for: ~, =, brackets. Take the value literally.
        literal = value.replace("'", "\\'")
        try:
            override = parser.parse_override(f"{key}{equals}'{literal}'")
        except HydraException as error:
            raise UserError(f"argument '{argument}': expected key=value ({_first_line(error)})") from error
    if not override.key_or_group or override.package is not None:
        raise UserError(f"argument '{argument}': expected key=value")
    if override.is_delete():
        raise UserError(f"argument '{argument}': expected key=value; nothing can be taken out of a config")
    return override


def change(config: Config, arguments: Sequence[str]) -> Config:
    """Replace values in the config of a run; a key is one of the run's own parts unless an argument names another.

    Raises:
        UserError: As `compose`, or if an argument changes the environment.
    """
    name = config["env"]["name"]
    if any(argument.startswith(f"{EXPERIMENT}=") for argument in arguments):
        raise UserError(f"{EXPERIMENT}: is for a new run")
    if any(argument.startswith("env=") and argument != f"env={name}" for argument in arguments):
        raise UserError(f"env={name}: the environment of a run cannot be another one")
    named = {argument.partition("=")[0] for argument in arguments}
    parts = {group: config[group]["name"] for group in OWN if group not in named}
    own = [f"{group}={part}" for group, part in parts.items() if part in groups()[group]]  # a user's own is no option
    asked, changed = compose([f"env={name}", *own, *arguments]), deepcopy(config)
    for override in map(parse, arguments):
        *path, last = override.key_or_group.split(".")
        look_up(changed, path)[last] = look_up(asked, [*path, last])
    _keep_task([parse(argument) for argument in arguments], changed)
    return changed


def _keep_task(overrides: Sequence[Override], config: Config) -> None:
    """Let the task of a chosen published data set stand, as ``shadow`` of SBU, unless an argument names ``env.task``.

    This is for data whose masks are all read alike, as salient objects, blur, shadows, glass or classes.
    """
    named = {override.key_or_group for override in overrides}
    if "data" not in named or "env.task" in named or "task" not in config["env"]:
        return
    from maskgym.data.published import PUBLISHED  # with NumPy, which most arguments do not need
    from maskgym.data.sample import CATEGORIES

    alike, published = (*CATEGORIES, "semantic"), PUBLISHED.get(config["data"]["name"])
    if published and published.task in alike and config["env"]["task"] in alike:
        config["env"]["task"] = published.task


def _check_length(overrides: Sequence[Override], config: Config) -> None:
    """Raise a UserError if arguments give the length of a training both in epochs and in updates."""
    named = {override.key_or_group for override in overrides}
    if counts_epochs(config) and {EPOCHS, UPDATES} <= named and config["algo"][EPOCHS.partition(".")[2]] is not None:
        raise UserError(f"{EPOCHS} and {UPDATES} both give the length of the training: expected one of them")


def _without_newer(config: Config) -> Config:
    """Leave out newer keys that change nothing."""
    for key, value in LEFT_OUT.items():
        group, _, last = key.rpartition(".")
        part = config[group] if group else config
        if part.get(last, value) == value:
            part.pop(last, None)
    return config


def counts_epochs(config: Config) -> bool:
    """Check whether ``algo.epochs`` is the length of a training: of other algorithms, it is passes over a rollout."""
    return option("algo", config["algo"]["name"]).get("epochs", 0) is None


def _shortened(config: Config) -> Config:
    """Cap updates, their batches and samples of a config by environment variables."""
    for variable, (group, key) in CAPS.items():
        if text := os.environ.get(variable):
            if not text.isdecimal():
                raise UserError(f"{variable}={text}: expected a whole number")
            if key in config[group]:  # not every agent has batches
                config[group][key] = min(config[group][key], int(text))
            if key == "updates" and counts_epochs(config):
                config["algo"]["epochs"] = None
    return config


def dump(config: Config) -> str:
    """Format a config as the text of ``config.yaml``."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)


def load(file: Path) -> Config:
    """Read a ``config.yaml`` that a run wrote.

    Raises:
        UserError: If it is missing, cannot be read, or is not the config of a run.
    """
    try:
        config = yaml.safe_load(files.read(file).decode())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: expected the folder of a run that was started") from None
    except (OSError, ValueError, yaml.YAMLError, OverflowError) as error:
        raise UserError(f"{file}: cannot be read: {_first_line(error)}") from error
    except RecursionError:
        raise UserError(f"{file}: cannot be read: lists or names and values that are nested too deep") from None
    keys = set(root_keys())
    if not isinstance(config, dict) or not keys - LEFT_OUT.keys() <= set(config) <= keys:
        raise UserError(f"{file}: is not the config of a run: expected the keys {', '.join(root_keys())}")
    _check_stored(config, file)
    return config


def _check_stored(config: Config, file: Path) -> None:
    """Raise a UserError if values of a stored config lack, or are of another kind than those of its options."""
    root = yaml.safe_load((CONF / f"{ROOT}.yaml").read_text(encoding="utf-8"))
    for name in (*groups(), "evaluation"):
        if not isinstance(config[name], dict) or (name in groups() and not isinstance(config[name].get("name"), str)):
            raise UserError(f"{file}: {name}={config[name]}: expected names and values")
    for old, new in RENAMED.items():
        group, _, key = old.partition(".")
        if key in config.get(group, {}):
            raise UserError(f"{file}: an older version wrote it: '{old}' is now '{new}'")
    for key in NEEDED:
        group, _, last = key.partition(".")
        if last not in config[group]:
            raise UserError(f"{file}: has no key '{key}'")
    listed = {name: option(name, config[name]["name"]) for name in groups()} | {"evaluation": root["evaluation"]}
    for name, defaults in listed.items():
        for key in config[name].keys() & defaults.keys():
            if not (isinstance(defaults[key], str) and "${" in defaults[key]):
                _check_type(f"{file}: {name}.{key}", defaults[key], config[name][key])


def _chosen(overrides: Sequence[Override]) -> DictConfig:
    """Return the config of the chosen options, every key as the options have it; not to be changed."""
    chosen = [str(override.input_line) for override in overrides if override.key_or_group in groups()]
    return _compose((*_parts(overrides), *chosen))


@lru_cache(maxsize=64)  # rows of a study differ in numbers more than in options, and Hydra takes its time
def _compose(options: tuple[str, ...]) -> DictConfig:
    others = ",".join(f"'file://{folder}'" for folder in folders()[1:])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(ROOT, [*([f"hydra.searchpath=[{others}]"] if others else []), *options])


def _defaults(overrides: Sequence[Override]) -> Config:
    return OmegaConf.to_container(_chosen(overrides), resolve=True)


def _with_aliases(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``algo=X`` as the agent that X means for the chosen environment or scale, if any.

    A set for a task, as ``data.sod=duts``, means ``data=tasks`` unless another option is named.
    """
    named = dict(argument.partition("=")[::2] for argument in arguments)
    if "data" not in named and any(key in named for key in BY_TASK):
        arguments = [*arguments, "data=tasks"]
    aliases: dict[str, str] = {}
    for group in ("env", "scale"):
        aliases |= option(group, named.get(group)).get("algo_aliases", {})
    chosen = aliases.get(named.get("algo", ""))
    return [f"algo={chosen}" if chosen and argument.startswith("algo=") else argument for argument in arguments]


def _parts(overrides: Sequence[Override]) -> list[str]:
    """Return the options of groups that no argument names: as the chosen algorithm asks, else the environment."""
    named = {override.key_or_group: override.value() for override in overrides}
    wanted: dict[str, str] = {}
    for group in ("env", "algo"):
        if group in named:
            wanted |= option(group, named[group]).get("default_parts", {})
    return [f"{group}={name}" for group, name in wanted.items() if group not in named]


def _check_choice(override: Override) -> None:
    """Raise a UserError if an argument lists values, or its group or option does not exist."""
    if override.is_sweep_override():
        raise UserError(f"argument '{override.input_line}': several values need -m")
    key, value = override.key_or_group, override.value()
    for old in (key, f"{key}={value}"):
        if old in RENAMED:
            raise UserError(f"'{old}': is now '{RENAMED[old]}'")
    if key.partition(".")[0] not in root_keys():
        raise UserError(f"unknown key '{key}': expected one of {', '.join(root_keys())}")
    options = groups().get(key)
    if options and value not in options:
        raise UserError(f"unknown {key} '{value}': expected one of {', '.join(options)}")


def _is_open(override: Override) -> bool:
    """Check whether an argument sets names that are the user's own."""
    return f"{override.key_or_group}.".startswith(tuple(f"{key}." for key in OPEN))


def _adds(override: Override) -> bool:
    return bool(override.is_add() or override.is_force_add())


def _check_keys(overrides: Sequence[Override]) -> None:
    """Raise a UserError if an argument sets a key that the chosen options lack, and that no component may take."""
    defaults = _defaults(overrides)
    for override in overrides:
        path = override.key_or_group.split(".")
        if (_adds(override) and path[0] not in CLOSED) or _is_open(override):
            continue
        here = defaults
        for depth, name in enumerate(path):
            if not isinstance(here, dict) or name not in here:
                keys = ", ".join(key for key in here if key != "name") if isinstance(here, dict) else ""
                owner = f"{path[0]}={defaults[path[0]]['name']}" if path[0] in groups() else ".".join(path[:depth])
                raise UserError(f"unknown key '{override.key_or_group}': {owner} has {keys or 'no keys'}")
            here = here[name]


def _check_types(overrides: Sequence[Override], values: Config) -> None:
    """Raise a UserError if an argument's value is of another kind than the default it replaces."""
    defaults = _defaults(overrides)
    for override in overrides:
        if override.key_or_group in groups():
            continue
        path = override.key_or_group.split(".")
        try:
            default, value = look_up(defaults, path), look_up(values, path)
        except (KeyError, TypeError):
            continue  # added, and has no default
        _check_type(override.key_or_group, default, value)


def _check_type(key: str, default: Any, value: Any) -> None:
    last = key.rpartition(" ")[2]  # of a stored config, the file comes before it
    kinds, expected = KINDS[NULLS.get(last.rpartition(".")[2], str) if default is None else type(default)]
    if last in SEVERAL:
        kinds, expected = (str, list), "text, or a list"
    if last.startswith("data.parts.") and not isinstance(default, dict):
        kinds, expected = KINDS[int]
    if value is not None and type(value) not in kinds and WORDS.get(last) != value:
        example = "" if default is None else f", such as {default}"
        raise UserError(f"{key}={value}: expected {expected}{example}")


def look_up(values: Any, path: Sequence[str]) -> Any:
    """Return the value under nested names."""
    for name in path:
        values = values[name]
    return values


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
