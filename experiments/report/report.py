"""Reports: one HTML page about one run or several, made from the files of their run folders only.

The page makes no requests. Its templates escape all text from data, models and file names.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from maskgym.aliases import JsonObject
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.envs.rendering import PALETTE
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.measures import older_notes
from maskgym.experiments.report import run_data
from maskgym.experiments.report.curves import SMOOTHED_FROM, Curve, Panel, number
from maskgym.experiments.report.groups import ABSENT, Group, conclusions, flat, group_runs, mean, settings
from maskgym.experiments.report.run_data import SECONDS, Run, reward_gain
from maskgym.experiments.wiring import composition, run_folder
from maskgym.rewards import parse

SHOWN = 8  # maximum number of samples in the gallery of several runs
# Groups of panels of one run, with the pattern of the logged names of each panel; the first match wins.
PANELS = {
    "Learning": {
        "Reward and its terms": r"reward$|reward/",
        "Held-out reward": r"held_out/(.*/)?reward$",
        "Held-out measures": r"held_out/(.*/)?(iasm|s_measure|iou|format|sa_sor)$",
        "IoU and repeated clicks": r"(iou|repeated)$",
        "Confidence": r"cgpo/confidence$",
        "Advantage": r"(cgpo|spo)/advantage|train/advantage",
        "Response types (share of the extremes)": r"response_types/",
        "Rank-normalised advantage of the response types": r"response_advantage/",
        "Groups without signal (share)": r"group/share_without_signal$",
        "Entropy": r"(train/)?entropy(_loss)?$",
        "Response length (tokens)": r"completions/(mean|min|max)_length$",
        "Cells that the draw changed (share)": r"changed$",
    },
    "Optimisation": {
        "Loss": r"(isr/|train/)?loss$|train/(mse|appearance)$",
        "Losses of policy and value": r"train/(policy_gradient|value)_loss$",
        "Loss of the recalibration": r"recalibration/loss$",
        "Explained variance of returns": r"train/explained_variance$",
        "KL divergence from the previous policy": r"kl$|train/approx_kl$",
        "Clip fraction": r"clip_ratio/region_mean$|train/clip_fraction$",
        "Learning rate": r"(train/)?learning_rate$",
        "Gradient norm": r"(train/)?grad_norm$",
    },
    "Cost": {
        "Seconds per update": rf"{SECONDS}$",
        "Tokens generated per update": r"generated_tokens$",
        "Rewards computed per update": r"reward_calls$",
        "Scoring, seconds per update": r"(scoring|reward)_seconds$",
        "Scoring, share of the time": r"scoring_share$",
        "Peak memory (MiB)": r"peak_memory_mib$",
    },
}
# Curves of several runs that are shown unfolded, besides those of the main measures.
LEARNING = ("reward", "iou", "cgpo/confidence", "entropy", "train/entropy", "completions/mean_length")
COST = (SECONDS, "generated_tokens", "reward_calls", "peak_memory_mib")
Side = tuple[Group, Run, JsonObject]  # a sample as one group answers it


def write(folders: Sequence[Path], file: Path | None = None) -> Path:
    """Write the report of some runs, or of all runs below some folders, to a file, and return its path.

    The default is ``report.html`` in the folder of a single run, and ``comparison.html`` here for several.

    Raises:
        UserError: As in `render`, or if the file cannot be written.
    """
    folders = [run for folder in folders for run in run_data.below(folder)]
    file = file or (folders[0] / run_folder.REPORT if len(folders) == 1 else Path("comparison.html"))
    page = render(folders)
    try:
        run_folder.write(file, page)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
    return file


def render(folders: Sequence[Path]) -> str:
    """Build the report of some runs as HTML.

    Raises:
        UserError: If a folder holds no finished run, a file cannot be read, or a run is given twice.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    runs: dict[str, Run] = {}
    for folder in folders:
        run = run_data.read(folder)
        same = runs.setdefault(f"{run.config['seed']} {sorted(flat(run.config).items())}", run)
        if same is not run:
            raise UserError(f"{folder}: is the same run as {same.folder}: expected each run once")
    environments: dict[str, list[Run]] = {}
    for run in runs.values():
        environments.setdefault(run.results["env"], []).append(run)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    templates.filters |= {"gain": reward_gain, "inline": _inline, "number": number, "yaml": composition.dump}
    functions = (answer, conclusions, costs, incomparable, named, older_notes, panels, places, settings, sides)
    return templates.get_template("page.html.j2").render(
        {function.__name__: function for function in functions},
        environments={name: group_runs(found) for name, found in environments.items()},
        alone=len(runs) == 1,
        palette=PALETTE.tolist(),
        smoothed_from=SMOOTHED_FROM,
    )


def named(groups: Sequence[Group]) -> list[str]:
    """Tell in one line each which data, segmenter and weights the scores of some runs are of."""
    of = [(group.name, run.provenance) for group in groups for run in group.runs if run.provenance is not None]
    return provenance.shown_of_several(of, policies=len(of) == 1)


def incomparable(groups: Sequence[Group]) -> list[str]:
    """Tell in one line each where runs of one task differ in what they are of, or do not name it."""
    return provenance.differences_by_task(
        [
            provenance.Result(group.name, run.results["seed"], run.config, run.provenance)
            for group in groups
            for run in group.runs
        ]
    )


def panel_of(name: str) -> str | None:
    """Find the title of the panel of a logged name, or None if no panel matches."""
    groups = (pair for group in PANELS.values() for pair in group.items())
    return next((title for title, pattern in groups if re.match(pattern, name)), None)


def panels(groups: Sequence[Group], alone: bool) -> dict[str, list[Panel]]:
    """Draw the curves of some runs: panels by heading, those of no heading last.

    A panel of a run alone holds related curves. A panel of several runs holds one logged name: per group, the mean over
    its seeds at each step, in the band of their range.
    """
    found: dict[str, list[Curve]] = {}
    for group in groups:
        by_name: dict[str, dict[float, list[float]]] = {}
        for name, points in itertools.chain.from_iterable(run.curves().items() for run in group.runs):
            for step, value in points:
                by_name.setdefault(name, {}).setdefault(step, []).append(value)
        for name, by_step in by_name.items():
            steps = sorted(by_step.items())
            line = [(step, sum(values) / len(values)) for step, values in steps]
            band = [(step, min(values), max(values)) for step, values in steps]
            panel = found.setdefault((alone and panel_of(name)) or name, [])
            panel.append(Curve(name, line, len(panel)) if alone else Curve(group.name, line, group.style, band))
    main = [f"held_out/{name}" for group in groups for name in group.runs[0].main]
    layout = PANELS if alone else {"Learning": (*main, *LEARNING), "Cost": COST}
    drawn = {title: Panel(title, curves) for title, curves in found.items()}
    shown = {heading: [drawn.pop(title) for title in titles if title in drawn] for heading, titles in layout.items()}
    return shown | {"": list(drawn.values())}


def places(run: Run) -> list[tuple[JsonObject, dict[str, int]]]:
    """Order the samples with a picture, losses and gains in turn, each with its place in every order of the gallery."""
    rows = [row for row in run.samples if run.picture(row)]
    moved = {id(row): reward_gain(row) or 0.0 for row in rows}  # an undefined reward did not move
    worst = sorted(rows, key=lambda row: moved[id(row)])
    falling = [row for row in worst if moved[id(row)] < 0]
    rising = [row for row in reversed(worst) if moved[id(row)] >= 0]
    turn = [row for pair in itertools.zip_longest(falling, rising) for row in pair if row is not None]
    orders = {"turn": turn, "loss": worst, "gain": worst[::-1], "data": rows}
    place = {name: {id(row): place for place, row in enumerate(order)} for name, order in orders.items()}
    return [(row, {name: place[name][id(row)] for name in orders}) for row in turn]


def sides(groups: Sequence[Group]) -> list[list[Side]]:
    """Select the samples with pictures of several groups whose rewards after training are furthest apart."""
    found: dict[tuple[str, str], dict[str, Side]] = {}
    for group in groups:
        for run, row in ((one, row) for one in group.runs for row in one.samples if one.picture(row)):
            found.setdefault((row["task"], str(row["key"])), {}).setdefault(group.name, (group, run, row))

    def spread(sample: Sequence[Side]) -> float:
        rewards = [reward for _, _, row in sample if (reward := row["after"].get("reward")) is not None]
        return max(rewards) - min(rewards) if rewards else 0.0

    shared = [list(sample.values()) for sample in found.values() if len(sample) > 1]
    return sorted(shared, key=spread, reverse=True)[:SHOWN]


def answer(text: str | None, task: str) -> list[tuple[str, int | None]]:
    """Split a text answer into pieces, each with the index of its mask's colour; no pieces for clicks and masks.

    Only the expressions of a well-formed answer have colours.
    """
    if not text or task not in INSTRUCTIONS:
        return []
    if not parse(text, task).tagged:
        return [(text, None)]
    head, opening, rest = text.partition("<answer>")
    pieces: list[tuple[str, int | None]] = [(head + opening, None)]
    place = itertools.count()
    for piece in re.split(r"(</?(?:rg|ins)>)", rest):
        pieces.append((piece, next(place) % len(PALETTE) if pieces[-1][0] in ("<rg>", "<ins>") else None))
    return pieces


def costs(group: Group) -> dict[str, str]:
    """Format the mean cost of a group's runs by column heading."""
    time = mean([run.results["wall_s"] for run in group.runs])
    counts = {
        "tokens generated": mean([run.total("generated_tokens") for run in group.runs]),
        "rewards computed": mean([run.total("reward_calls") for run in group.runs]),
        "peak memory (MiB)": mean([run.peak_memory_mib for run in group.runs]),
    }
    return {
        "runs": str(len(group.runs)),
        "updates": f"{group.runs[0].results['steps']:,}",
        "time": ABSENT if time is None else duration(time),
        **{name: ABSENT if count is None else f"{count:,.0f}" for name, count in counts.items()},
    }


def duration(seconds: float) -> str:
    """Format a duration, such as ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _inline(file: Path) -> str:
    """Encode a PNG file as the source of an image.

    Raises:
        UserError: If it is damaged, which its checksums tell.
    """
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a damaged part a mistake of syntax
        raise UserError(f"{file}: is no picture, or damaged: remove it, and the page is without it") from error
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
