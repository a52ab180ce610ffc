"""The stages of AlignSAM, from the data sets to its tables.

    maskgym reproduce alignsam --data DATASETS --models MODELS --out OUT
    maskgym reproduce alignsam --smoke               # the chain on miniatures

DATASETS holds CUHK, SBU, MSD, DUTS and VOC2012 or those of the asked tasks, MODELS the checkpoints of SAM and CLIP by
their published names. The stages of a task: check the data, train, evaluate on all test samples as each row of Tables 2
to 5 asks, and fit the baselines. Each is a maskgym command, printed so that it can be run alone. The same command goes
on where it was stopped, and then writes the tables with our rows below.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from segment_anything.modeling import Sam

from maskgym.experiments.reproduce import grid, grid_plan
from maskgym.experiments.reproduce.grid import Agent, Row
from maskgym.experiments.reproduce.stages import Stage, check_of, checkpoint, dataset
from maskgym.experiments.wiring import composition
from maskgym.segmenters.points.sam import PUBLISHED as SAMS
from maskgym.segmenters.points.sam import PUBLISHED_FILES, decode_prompts

PAPER = "alignsam"
PARTS: tuple[str, ...] = (
    *("maskgym.policies:point_actor_critic", "maskgym.segmenters:sam", "maskgym.agents:ppo", "maskgym.agents:random"),
    *("maskgym.policies.few_shot", "maskgym.experiments.grids.baselines", "transformers.models.clip.modeling_clip"),
)
DATA = {"blur": "cuhk_blur", "shadow": "sbu", "glass": "msd", "sod": "duts", "semantic": "voc2012"}
CLIP = "clip-vit-base-patch16"
TABLES = ("2", "3", "4", "5")
EXPLICIT = ("shadow", "semantic")  # tasks of the explicit branch (Table 1)
TEXTS = {"blur": "defocus background", "glass": "glass", "sod": "salient objects"}  # Table 4: of the other branch
CLICKS = (1, 5, 10, 15, 20)  # Table 5
SMOKE = (  # of the miniatures: as little of everything as shows that each part works
    *("env.image_size=64", "env.patch_size=16", "env.horizon=2", "env.num_envs=2", "train_samples=2"),
    *("algo.updates=4", "algo.epochs=2", "algo.minibatch_size=4", "algo.save_every=1", "+env.attention.input_size=64"),
)
SMOKE_BASELINE = {"samed": ("--steps=1",), "msa": ("--steps=1",)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--table", choices=TABLES, help="what this table needs alone (all)")
    parser.add_argument("--task", choices=DATA, help="one task alone (all)")
    parser.add_argument("--sam", choices=PUBLISHED_FILES, default="vit_h", help="the paper does not say (%(default)s)")


def write_miniatures(given: Namespace, root: Path) -> None:
    """Write miniatures of the data sets and random checkpoints, and make them the experiment's.

    Args:
        given: Arguments of the command, which are changed.
        root: Folder to write; what it holds already stands.
    """
    from maskgym.experiments.reproduce import miniature_parts
    from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
    from maskgym.experiments.reproduce.miniature_sets import RATIONALES, Sizes, write_sets

    given.data, given.models, given.sam = root / "data", root / "models", "vit_b"
    given.settings = [*SMOKE, *given.settings]
    if not (given.data / RATIONALES).exists():  # it is written last
        miniature_parts.write_sam(given.models)
        miniature_parts.write_clip(given.models / CLIP)
        write_sets(given.data, list(DATA.values()), Sizes(train=4, validation=4, test=2, side=64), writers=LAYOUTS)


def rows(given: Namespace) -> list[Row]:
    """List our rows of the asked tables and tasks; a smoke run makes those of one task, and every task's agent."""
    tasks = [given.task] if given.task else list(DATA)
    found = [row for task in tasks for row in _rows(given, task)]
    found = [row for row in found if given.table in (None, row.table.partition("-")[0])]
    return [row for row in found if not given.smoke or _smoked(row)]


def _smoked(row: Row) -> bool:
    plain = row.agent.name in DATA and not (row.changes or row.baseline)
    return plain or row.agent.name.startswith("shadow") or row.baseline == "msa"


def stages(given: Namespace) -> list[Stage]:
    """List the stages.

    Raises:
        UserError: If a checkpoint or a data set is missing.
    """
    wanted = rows(given)
    checks = [check_of(given.data, name) for name in _sets(wanted)]
    return [*checks, *grid.stages(PAPER, wanted, given.data, given.out)]


def plan(given: Namespace) -> str:
    """Write the samples, updates and minutes of the stages as text; computed, each evaluation encodes its images."""
    asked = rows(given)
    if given.gpu:
        config = composition.compose((*asked[0].agent.settings, "segmenter.cache_folder=null"))
        encode, decode = (grid_plan.operations(SAMS[given.sam].build, run) for run in (_encode, _decode))
        clicks = config["env"]["horizon"] + 1
        update = config["env"]["num_envs"] * clicks * decode
        rates = grid_plan.computed(given.gpu, update, encode + clicks * decode, encode)
    else:
        rates = grid_plan.measured(asked[0].agent.settings, ("algo.updates=0",), PARTS)
    return grid_plan.table(given, PAPER, asked, rates, len(_sets(asked)))


def _sets(wanted: Sequence[Row]) -> list[str]:
    """List the data sets of rows by name."""
    return [DATA[task] for task in dict.fromkeys(row.agent.name.partition("-")[0] for row in wanted)]


def _encode(sam: Sam) -> None:
    sam.image_encoder(torch.empty(1, 3, sam.image_encoder.img_size, sam.image_encoder.img_size))


def _decode(sam: Sam) -> None:
    encoder, prompts = sam.prompt_encoder, 2 + 15 + 1  # the first two, all clicks, and SAM's padding
    grid = encoder.image_embedding_size
    decode_prompts(sam, torch.empty(1, encoder.embed_dim, *grid), torch.empty(1, prompts, encoder.embed_dim))


def report(given: Namespace) -> None:
    """Write the tables of the finished stages."""
    grid.write_tables(PAPER, rows(given), given.out)


def settings(given: Namespace, task: str, *more: str) -> tuple[str, ...]:
    """Build the arguments of a task's run."""
    sam = PUBLISHED_FILES[given.sam]
    parts = (
        f"data.root={dataset(given.data, DATA[task])}",
        f"segmenter.checkpoint={checkpoint(given.models, sam, Path(sam).stem)}",
        f"segmenter.cache_folder={given.out / 'embeddings'}",  # all stages share it
    )
    return (f"experiment={PAPER}", f"task={task}", *parts, *given.settings, *more)


def _rows(given: Namespace, task: str) -> list[Row]:
    """List our rows of a task."""
    clip = f"+env.attention.checkpoint={checkpoint(given.models, CLIP)}"
    own = (clip,) if task in EXPLICIT else ()
    ours = Agent(task, settings(given, task, *own))
    positive = Agent(f"{task}-positive", settings(given, task, *own, "env.label_source=positive"))
    if task in EXPLICIT:
        other = Agent(f"{task}-implicit", settings(given, task, "env.recalibration.branch=implicit", "env.text=null"))
    else:
        text = ("env.recalibration.branch=explicit", f"env.text={TEXTS[task]}", clip)
        other = Agent(f"{task}-explicit", settings(given, task, *text))
    two, four = ("3", "4-semantic") if task == "semantic" else (f"2-{task}", f"4-{task}")
    found = [
        Row(two, "Ours", ours),
        Row(two, "Ours-w/o RL", ours, ("algo=random",)),  # 4.3: "relying solely on random action selection"
        Row(two, "Ours-w/o SRM", positive),  # 3.3: "to regard all the selected points as target foreground"
    ]
    if task != "semantic":
        found.append(Row(two, "Ours-w/o MSI", ours, ("env.horizon=1",)))  # 4.3: "single point prompt"
    for name in ("MSA", "SAMed", "PerSAM") if task == "semantic" else ("SAMed", "PerSAM"):
        found.append(Row(two, name, ours, SMOKE_BASELINE.get(name.lower(), ()) * given.smoke, name.lower()))
    if task == "sod":  # its error is in a table of its own, as it is no percentage
        found += [Row("2-sod-mae", row.name, row.agent, row.changes, row.baseline, two) for row in tuple(found)]
    branches = {"Implicit Branch": other, "Explicit Branch": ours}
    if task not in EXPLICIT:
        branches = {"Implicit Branch": ours, "Explicit Branch": other}
    found += [Row(four, name, agent, scored=two) for name, agent in branches.items()]
    if task == "semantic":
        asked = {count: () if count == 15 else (f"env.horizon={count}",) for count in CLICKS}
        found += [Row("5", f"T = {count}", ours, changes, scored=two) for count, changes in asked.items()]
    return found
