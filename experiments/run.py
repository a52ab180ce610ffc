"""The run: ``python experiments/run.py env=sis algo=cgpo`` trains an agent and writes a run folder.

It wires one of each part from a config, evaluates on held-out samples before and after training, and leaves
``config.yaml``, ``results.json``, ``metrics.csv``, ``checkpoints/``, ``samples/`` and ``report.html``.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from maskgym import files
from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError, one_line
from maskgym.experiments.wiring import composition, recipes, run_folder
from maskgym.experiments.wiring.command import status

USAGE = """usage: python experiments/run.py [--cfg] [group=option ...] [key=value ...]
       python experiments/run.py -m [--jobs N] [--ray ADDRESS] [group=option,option ...] [key=value,value ...]
       python experiments/run.py resume=DIR

  -m          run every combination of listed values, as in: -m env=sod,sis algo=cgpo,sft seed=0,1,2
              runs lie in out=DIR, else in runs/multirun; the same command goes on after an interruption
  resume=DIR  continue the run in that folder; its config.yaml says what it is
              with algo.updates=N, or +N for N more, it becomes longer, also a finished one; a run by epochs
              also with algo.epochs=N; a run on Ray goes on elsewhere with scale.address=HOST:PORT
  out=DIR     the run folder; else runs/<env>/<algo>/seed<k>-<time>
  +key=value  pass on an argument that the option's file does not list
  --cfg       print the config, and run nothing
  --help      with arguments: the defaults of the options that they choose

groups (options in {conf}):
{groups}

defaults{chosen}:
{defaults}"""
FLAGS = ("-h", "--help", "-m", "--multirun", "--cfg")
UPDATES = composition.UPDATES  # the key that a resumed run may change; a run by epochs may change those instead
# Schedules whose learning rate does not depend on the number of updates.
CONSTANT = ("constant", "constant_with_warmup")
# Keys of a run on Ray that may change when it is resumed: where it goes on, because its cluster may be gone.
PLACE = ("scale.address", "scale.cpus_per_worker", "scale.max_failures", "scale.timeout_s")
SUMMARISED = ("reward", "iasm", "iou", "s_measure", "sa_sor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status, as `maskgym.experiments.wiring.command.status`."""
    return status(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    flags = [argument for argument in arguments if argument in FLAGS]
    settings = [argument for argument in arguments if argument not in FLAGS]
    if {"-h", "--help"} & set(flags):
        print(usage(settings))
        return 0
    if "--cfg" in flags:
        if len(set(flags)) > 1:
            raise UserError("--cfg: prints the config of one run: expected it without -m")
        from maskgym.experiments.wiring import build

        config, _ = _asked(settings)
        build.check(config)
        print(composition.dump(config), end="")
        return 0
    if flags:
        from maskgym.experiments.grids import sweep

        return sweep.multirun(settings)
    return run_one(settings)


def usage(settings: Sequence[str] = ()) -> str:
    """Format the text of ``--help``, with the defaults of the options that arguments choose.

    Raises:
        UserError: If an argument is invalid.
    """
    listed = {**composition.groups(), recipes.EXPERIMENT: recipes.names()}
    groups = "\n".join(f"  {name:<12}{', '.join(options)}" for name, options in listed.items())
    defaults = composition.dump(composition.compose(settings)).rstrip().replace("\n", "\n  ")
    chosen = f" with {' '.join(settings)}" if settings else ""
    return USAGE.format(conf=composition.CONF, groups=groups, chosen=chosen, defaults=f"  {defaults}")


def run_one(arguments: Sequence[str]) -> int:
    """Run or resume the run of ``key=value`` arguments; print its summary; return 0.

    Raises:
        UserError: If an argument is invalid, another process runs in the folder, a file cannot be written, or the run
            meets a user error.
        KeyboardInterrupt: With the words that continue the run.
    """
    from maskgym.experiments.wiring import build

    config, resumed = _asked(arguments)
    # What starts is told first, because the imports that follow take seconds.
    print(one_line(f"{config['env']['name']} {config['algo']['name']}, seed {config['seed']}"), flush=True)
    with _imports():
        build.check(config)
    folder = resumed or run_folder.create(config)
    config["out"] = str(folder)
    with _imports():
        build.set_updates(config)
    with files.alone(folder, run_folder.WORK):
        if not resumed:
            run_folder.check_unused(folder)
        results = _finished(config, folder, resumed is not None)
    print(_summary(results, folder))
    return 0


def _asked(arguments: Sequence[str]) -> tuple[Config, Path | None]:
    """Return the config that arguments ask for, and the folder of the run that they resume, if any.

    Raises:
        UserError: If an argument is invalid, or differs from the run in the folder.
    """
    asked = {argument.partition("=")[0]: argument for argument in arguments}
    if "resume" not in asked:
        return composition.compose(arguments), None
    folder = Path(asked.pop("resume").partition("=")[2]).expanduser().absolute()
    config = composition.load(folder / run_folder.CONFIG)
    _lengthen(config, asked.pop(UPDATES, ""), folder)
    if config["algo"].get("epochs") is not None and composition.counts_epochs(config):
        _lengthen_epochs(config, asked.pop(composition.EPOCHS, ""), folder)
    if config["scale"]["name"] == "ray":
        _move(config, [asked.pop(key) for key in PLACE if key in asked])
    _check_same(config, list(asked.values()), folder)
    return config, folder


def _move(config: Config, arguments: Sequence[str]) -> None:
    """Set the keys of a resumed run on Ray that say where it goes on."""
    wanted = composition.compose([f"env={config['env']['name']}", "scale=ray", *arguments])["scale"]
    for argument in arguments:
        name = argument.partition("=")[0].partition(".")[2]
        config["scale"][name] = wanted[name]


def _lengthen(config: Config, argument: str, folder: Path) -> None:
    """Set the number of updates of a resumed run: that of ``algo.updates=N``, or with ``=+N`` so many more."""
    if not argument:
        return
    number, old = argument.partition("=")[2], config["algo"]["updates"]
    if not number.removeprefix("+").isdecimal():
        raise UserError(f"{argument}: expected a whole number of updates, or +N for N more")
    updates = int(number) + old * number.startswith("+")
    if updates < old:
        raise UserError(f"resume={folder}: its run has {UPDATES}={old}, not {updates}: expected as many, or more")
    schedule = config["algo"].get("lr_scheduler_type", CONSTANT[0])
    if updates > old and schedule not in CONSTANT:
        said = f"differs from a run of {updates} updates: its first {old} had the learning rates of a shorter one"
        print(f"algo.lr_scheduler_type={schedule}: {said}", file=sys.stderr)
    config["algo"]["updates"] = updates
    if composition.counts_epochs(config):
        config["algo"]["epochs"] = None  # from now on the run is as long as its updates


def _lengthen_epochs(config: Config, argument: str, folder: Path) -> None:
    """Set the epochs of a resumed run: those of ``algo.epochs=N``, which the number of updates follows."""
    number, old = argument.partition("=")[2], config["algo"]["epochs"]
    if argument and (not number.isdecimal() or int(number) < old):
        raise UserError(f"resume={folder}: its run has algo.epochs={old}, not {number}: expected as many, or more")
    config["algo"]["epochs"] = int(number or old)


def _finished(config: Config, folder: Path, resume: bool) -> JsonObject:
    """Train in a folder that is locked; return the content of ``results.json``."""
    try:
        return _train(config, folder, resume)
    except UserError:
        if not resume:
            run_folder.discard_unstarted(folder)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run_folder.how_to_continue(folder)) from None
    except Exception as error:
        if fault := files.disk_error(error):
            raise UserError(f"{fault}: once it can be written, {run_folder.how_to_continue(folder)}") from error
        raise


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
    """Format the last lines of a run: the main scores before and after with their samples, the time and the report."""
    from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD  # too slow to import before the first line

    before, after, samples = results["before"], results["after"], results["samples"]
    lines = []
    for name in after:
        task, _, measure = name.rpartition("/")
        if measure in SUMMARISED and name in before:
            old, new = (f"{math.nan if (score := scores[name]) is None else score:.3f}" for scores in (before, after))
            counted = samples[task or next(iter(samples))]
            lines.append(f"{name:<16}{old} -> {new}   n = {counted['n']} of {counted['of']}, {counted['split']}")
    for task, sets in results.get("sets", {}).get("after", {}).items():
        for name, scores in sets.items():
            shown = ", ".join(
                f"{one} {math.nan if scores[one] is None else scores[one]:.3f}" for one in SUMMARISED if one in scores
            )
            lines.append(f"{task}, {name} alone, after: {shown}")
    for task, counted in samples.items():
        if counted["n"] < FEW:
            few = f"{counted['n']} samples of {task}" if counted["n"] > 1 else f"one sample of {task}"
            lines.append(f"warning: scores of {few}: {FEW_TOLD}")
    return "\n".join([*lines, one_line(f"{results['wall_s']:.0f} s, {folder / run_folder.REPORT}")])


if __name__ == "__main__":
    sys.exit(main())
