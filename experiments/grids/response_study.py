"""Response types of an untrained policy: ``maskgym response_study env=sis --responses 8000 --out DIR``.

This is the experiment of Saliency-R1's Fig. 4. A policy after supervised fine-tuning answers each training prompt
several times. The answers are divided by reward and confidence into four types, and the advantages that every algorithm
gives them are compared. ``key=value`` arguments are those of ``run.py``; the agent's settings define the sampling
temperature.

The command writes ``responses.json`` (reward, confidence, group and key of every answer; shares and means; the share of
each algorithm's advantage that lies within prompts; the data, segmenter and weights) and a plot of it,
``responses.png`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Provenance
from maskgym.experiments.wiring import build, command, composition, run_folder

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from matplotlib.axes import Axes

    from maskgym.agents.text.language import LanguageAgent

RESPONSES = "responses.json"
PICTURES = ("responses.png", "responses.svg")
# Blue means high reward and orange low reward; the saturated colours mark the types with a learning signal.
COLOURS = {"hrhc": "#9ecae1", "hrlc": "#0072b2", "lrhc": "#d55e00", "lrlc": "#fdbe85"}
NAMES = {"hrhc": "HrHc", "hrlc": "HrLc", "lrhc": "LrHc", "lrlc": "LrLc"}  # names in the paper


class Answers(TypedDict):
    """Sampled answers in columns, in the order of their prompts, and what they are of."""

    reward: list[float]
    confidence: list[float]
    key: list[str]
    group: list[int]
    provenance: NotRequired[Provenance]


# A sampler of answers: it takes a config, a folder for output, the number of prompts and the answers per prompt.
Sampler = Callable[[Config, Path, int, int], Answers]


def main(argv: Sequence[str] | None = None, run: Sampler | None = None) -> int:
    """Sample, compare and plot; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(partial(_main, run=run or sample), argv)


def _main(arguments: Sequence[str], run: Sampler) -> None:
    given = parse(arguments)
    config = composition.compose(given.arguments)
    if config["out"] is not None:
        raise UserError(f"out={config['out']}: expected --out {config['out']}")
    folder = run_folder.create({**config, "out": given.out})
    run_folder.check_unused(folder)
    start, group_size = time.monotonic(), given.group_size
    answers = run(config, folder, given.responses // group_size, group_size)
    settings = {"responses": given.responses, "group_size": group_size, **config}
    found = {"settings": settings, "wall_s": round(time.monotonic() - start, 1), **study(answers, group_size)}
    run_folder.write_json(folder / RESPONSES, found)
    draw(found, folder)
    print(summary(found))
    print(f"{found['wall_s']:.0f} s, {folder / PICTURES[0]}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: If an argument is invalid.
    """
    parser = command.Parser(prog="maskgym response_study", description=__doc__)
    parser.add_argument(
        "arguments", nargs="*", metavar="key=value", help="arguments of run.py: env=sis policy.path=DIR seed=1"
    )
    parser.add_argument("--responses", type=int, default=8000, help="total number of answers (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="answers per prompt (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    given = parser.parse_intermixed_args(arguments)
    if given.group_size < 2:
        raise UserError(f"--group-size {given.group_size}: expected at least 2 answers to compare")
    if given.responses < 1 or given.responses % given.group_size:
        raise UserError(f"--responses {given.responses}: expected a multiple of --group-size {given.group_size}")
    return given


def study(answers: Answers, group_size: int) -> JsonObject:
    """Compute types, advantages and their shares within prompts, for ``responses.json``.

    Args:
        answers: Sampled answers.
        group_size: Number of answers per prompt, at least 2.
    """
    import torch

    from maskgym.agents.text.advantages import advantages_by_algorithm, share_within_prompts
    from maskgym.agents.text.response_types import mean_by_type, rank_normalized, response_types, shares, thresholds

    rewards = torch.tensor(answers["reward"], dtype=torch.float64)
    confidences = torch.tensor(answers["confidence"], dtype=torch.float64)
    types = response_types(rewards, confidences)
    advantages = advantages_by_algorithm(rewards, confidences, group_size)
    return {
        "thresholds": {
            name: [float(value) for value in thresholds(values)]
            for name, values in (("reward", rewards), ("confidence", confidences))
        },
        "counts": {name: int(chosen.sum()) for name, chosen in types.items()},
        "shares": shares(types),
        "advantages": {name: mean_by_type(rank_normalized(values), types) for name, values in advantages.items()},
        "within_prompts": {name: share_within_prompts(values, group_size) for name, values in advantages.items()},
        **answers,
    }


def sample(config: Config, folder: Path, prompts: int, group_size: int) -> Answers:
    """Sample answers to training prompts.

    The seed determines the prompts, which are spread evenly over the tasks. A prompt repeats only after all were drawn.

    Raises:
        UserError: If the config is invalid, or the policy is not a language model.
    """
    from tqdm import tqdm

    from maskgym.agents.text.language import LanguageAgent
    from maskgym.envs.base import SampleVectorEnv, unwrap

    built = build.untrained(config, folder)
    agent, envs = built.agent, built.envs
    if not isinstance(agent, LanguageAgent):
        names = f"env={config['env']['name']} algo={config['algo']['name']}"
        raise UserError(f"{names}: expected an agent whose policy is a language model")
    found: Answers = {
        "reward": [],
        "confidence": [],
        "key": [],
        "group": np.arange(prompts).repeat(group_size).tolist(),
        "provenance": {
            "held_out": {},
            "train": {
                task: provenance.samples(config["data"], unwrap(env, SampleVectorEnv).dataset)
                for task, env in envs.items()
            },
            "weights": provenance.weights(config, built.parts, agent, envs.values()),
        },
    }
    with tqdm(total=prompts * group_size, desc="sample", unit="answer", disable=None) as bar:
        for task, env in enumerate(envs.values()):
            order = np.random.default_rng([config["seed"], task]).permutation(unwrap(env, SampleVectorEnv).num_samples)
            indices = np.resize(order, len(range(task, prompts, len(envs)))).repeat(group_size)
            for start in range(0, len(indices), env.num_envs):
                chunk = indices[start : start + env.num_envs]
                rewards, confidences, keys = _answer(agent, env, chunk)
                found["reward"] += rewards
                found["confidence"] += confidences
                found["key"] += keys
                bar.update(len(chunk))
    return found


def _answer(agent: LanguageAgent, env: VectorEnv, indices: np.ndarray) -> tuple[list[float], list[float], list[str]]:
    """Sample one answer to each of at most ``num_envs`` samples; return rewards, confidences and the samples' keys."""
    from maskgym.agents.text.response_types import CONFIDENCES

    count = len(indices)
    shown, _ = env.reset(options={"index": np.resize(indices, env.num_envs)})  # filled up with repeats
    observations = [{name: value[i] for name, value in shown.items()} for i in range(count)]
    temperature, form = agent.settings.get("temperature", 1.0), agent.settings.get("confidence", "mean_probability")
    answers, log_probabilities, mask, _ = agent.policy.sample(observations, agent.max_new_tokens, temperature)
    _, rewards, _, _, infos = env.step((*answers, *[""] * (env.num_envs - count)))
    confidences = CONFIDENCES[form](log_probabilities, mask).tolist()
    return rewards[:count].tolist(), confidences, list(infos["sample_key"][:count])


def summary(found: JsonObject) -> str:
    """Format counts, shares and advantages as a text table."""
    lines = [f"{'':<10}{''.join(f'{name:>8}' for name in NAMES.values())}{'within':>10}"]
    for title, values, form in (
        ("answers", found["counts"], "8d"),
        ("share", found["shares"], "8.3f"),
        *((name, means, "+8.3f") for name, means in found["advantages"].items()),
    ):
        within = f"{found['within_prompts'][title]:10.3f}" if title in found["within_prompts"] else ""
        lines.append(f"{title:<10}{''.join(f'{values[kind]:{form}}' for kind in NAMES)}{within}")
    return "\n".join(lines)


def draw(found: JsonObject, folder: Path) -> None:
    """Plot the answers by confidence and reward, and the advantages per algorithm and type."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    where, what = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_answers(where, found)
    _draw_advantages(what, found["advantages"])
    for name in PICTURES:
        stream = BytesIO()
        figure.savefig(stream, format=Path(name).suffix[1:], dpi=150)
        run_folder.write(folder / name, stream.getvalue())


def _draw_answers(axes: Axes, found: JsonObject) -> None:
    """Plot the confidence and reward of each answer, and the regions of the types."""
    from matplotlib.patches import Rectangle

    x, y = (np.array(found[name], dtype=np.float32) for name in ("confidence", "reward"))  # the dtype of the thresholds
    (unsure, sure), (bad, good) = found["thresholds"]["confidence"], found["thresholds"]["reward"]
    axes.scatter(x, y, s=8, color="0.6", alpha=0.4, linewidths=0, rasterized=True)
    axes.margins(x=0.04, y=0.12)  # the names need room above and below
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    edges = {"lc": (left, unsure), "hc": (sure, right), "lr": (bottom, bad), "hr": (good, top)}
    for kind, name in NAMES.items() if unsure < sure and bad < good else ():
        (x_low, x_high), (y_low, y_high) = edges[kind[2:]], edges[kind[:2]]
        inside = (x >= x_low) & (x <= x_high) & (y >= y_low) & (y <= y_high)
        axes.scatter(x[inside], y[inside], s=10, color=COLOURS[kind], linewidths=0, rasterized=True)
        axes.add_patch(Rectangle((x_low, y_low), x_high - x_low, y_high - y_low, color=COLOURS[kind], alpha=0.2))
        axes.annotate(
            f"{name}  {100 * found['shares'][kind]:.1f} %",
            (x_low if kind[2] == "l" else x_high, y_high if kind[0] == "h" else y_low),
            xytext=(8 if kind[2] == "l" else -8, -8 if kind[0] == "h" else 8),
            textcoords="offset points",
            ha="left" if kind[2] == "l" else "right",
            va="top" if kind[0] == "h" else "bottom",
            weight="bold",
        )
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="confidence (mean token probability)", ylabel="reward")
    axes.set_title(f"{len(x):,} responses; {sum(found['counts'].values()):,} are extreme in both")


def _draw_advantages(axes: Axes, advantages: Mapping[str, Mapping[str, float]]) -> None:
    """Plot four bars per algorithm; algorithms whose advantages have the same ranks share their bars."""
    labels: dict[tuple[float, ...], list[str]] = {}
    for name, means in advantages.items():
        labels.setdefault(tuple(round(means[kind], 6) for kind in NAMES), []).append(name)
    width = 0.8 / len(NAMES)
    for number, (kind, name) in enumerate(NAMES.items()):
        places = [place + (number - 1.5) * width for place in range(len(labels))]
        axes.bar(places, [means[number] for means in labels], width, label=name, color=COLOURS[kind])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), ["\n".join(names) for names in labels.values()])
    axes.set(ylim=(-1, 1.2), ylabel="mean rank-normalised advantage")
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.legend(ncols=4, loc="upper center", frameon=False)
    axes.set_title("Advantages of each algorithm for the four types")
