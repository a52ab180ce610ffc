"""The run: ``python experiments/run.py env=sis algo=cgpo`` trains an agent and writes a run folder.

It wires one of each part from a config, evaluates on held-out samples before and after training, and leaves
``config.yaml``, ``results.json``, ``metrics.csv``, ``checkpoints/``, ``samples/`` and ``report.html``.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.command import status

USAGE = """usage: python experiments/run.py [group=option ...] [key=value ...]
       python experiments/run.py -m [--jobs N] [--ray ADDRESS] [group=option,option ...] [key=value,value ...]
       python experiments/run.py resume=DIR

  -m          run every combination of listed values, as in: -m env=sod,sis algo=cgpo,sft seed=0,1,2
              runs lie in out=DIR, else in runs/multirun; the same command goes on after an interruption
  resume=DIR  continue the run in that folder; its config.yaml says what it is
  out=DIR     the run folder; else runs/<env>/<algo>/seed<k>-<time>
  +key=value  pass on an argument that the option's file does not list

groups (options in {conf}):
{groups}

defaults:
{defaults}"""
SUMMARISED = ("reward", "iasm", "s_measure", "sa_sor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status, as `maskgym.experiments.wiring.command.status`."""
    return status(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return 0
    if {"-m", "--multirun"} & set(arguments):
        from maskgym.experiments.grids import sweep

        return sweep.multirun([argument for argument in arguments if argument not in ("-m", "--multirun")])
    return run_one(arguments)


def usage() -> str:
    """Format the text of ``--help``."""
    groups = "\n".join(f"  {name:<12}{', '.join(options)}" for name, options in composition.groups().items())
    defaults = composition.dump(composition.compose([])).rstrip().replace("\n", "\n  ")
    return USAGE.format(conf=composition.CONF, groups=groups, defaults=f"  {defaults}")


def run_one(arguments: Sequence[str]) -> int:
    """Run or resume the run of ``key=value`` arguments; print its summary; return 0.

    Raises:
        UserError: If an argument is invalid, the disk is full, or the run meets a user error.
        KeyboardInterrupt: With the words that continue the run.
    """
    from maskgym.experiments.wiring import build

    asked = {argument.partition("=")[0]: argument for argument in arguments}
    resume = "resume" in asked
    if resume:
        folder = Path(asked["resume"].partition("=")[2]).expanduser().absolute()
        config = composition.load(folder / run_folder.CONFIG)
        _announce(config)
        _check_same(config, [argument for name, argument in asked.items() if name != "resume"], folder)
    else:
        config = composition.compose(arguments)
        _announce(config)
        with _imports():
            build.check(config)
        folder = run_folder.create(config)
    config["out"] = str(folder)
    try:
        results = _train(config, folder, resume)
    except UserError:
        if not resume:
            run_folder.discard_unstarted(folder)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"continue with resume={folder}") from None
    except Exception as error:
        if run_folder.is_full(folder):  # libraries raise different errors for it
            raise UserError(f"{folder}: the disk is full: make room, and continue with resume={folder}") from error
        raise
    print(_summary(results, folder))
    return 0


def _announce(config: Config) -> None:
    """Print what starts, because the imports that follow take seconds."""
    print(f"{config['env']['name']} {config['algo']['name']}, seed {config['seed']}", flush=True)


@contextmanager
def _imports() -> Iterator[None]:
    """Keep the garbage collector off: it would walk the growing modules again and again, for a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _train(config: Config, folder: Path, resume: bool) -> JsonObject:
    """Train in this process, or in workers on Ray; return the content of ``results.json``."""
    if config["scale"]["name"] == "ray":
        from maskgym.experiments.on_ray import workers

        return workers.run(config, folder, resume)
    with _imports():
        from maskgym.experiments.training import train

    return train.run(config, folder, resume)


def _check_same(config: Config, arguments: Sequence[str], folder: Path) -> None:
    """Raise a UserError if arguments beside ``resume`` differ from the stored config."""
    named = [] if any(argument.startswith("env=") for argument in arguments) else [f"env={config['env']['name']}"]
    asked = composition.compose([*named, *arguments])
    for argument in arguments:
        path = composition.parse(argument).key_or_group.split(".")
        if path == ["out"]:
            continue
        stored, wanted = composition.look_up(config, path), composition.look_up(asked, path)
        if isinstance(wanted, dict):
            stored, wanted = stored["name"], wanted["name"]
        if stored != wanted:
            raise UserError(f"resume={folder}: its run has {'.'.join(path)}={stored}, not {wanted}")


def _summary(results: JsonObject, folder: Path) -> str:
    """Format the last lines of a run: the main scores before and after, the time and the report."""
    before, after = results["before"], results["after"]
    names = [name for name in after if name.rpartition("/")[2] in SUMMARISED and name in before]
    lines = [f"{name:<16}{before[name]:.3f} -> {after[name]:.3f}" for name in names]
    return "\n".join([*lines, f"{results['wall_s']:.0f} s, {folder / run_folder.REPORT}"])


if __name__ == "__main__":
    sys.exit(main())
