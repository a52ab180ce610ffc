"""The stages of UserSOD, from the data sets to its tables.

    maskgym reproduce usersod --data DATASETS --models MODELS --out OUT
    maskgym reproduce usersod --smoke                # the chain on miniatures

DATASETS holds UserSOD as ``maskgym data dig`` exports it, and ECSSD, HKU-IS, DUTS, PASCAL-S, ASSR, IRSR, RefCOCO and
RefCOCO+ as the asked tables need them; MODELS the checkpoints of VST, CLIP, BLIP and BERT by their published names. The
stages: check the data, train the agent of each row of Tables 1 to 8, and evaluate it. Each is a maskgym command,
printed so that it can be run alone. The same command goes on where it was stopped, and then writes the tables with our
rows below.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from maskgym.experiments.evaluation import paper_tables
from maskgym.experiments.reproduce import grid, grid_plan
from maskgym.experiments.reproduce.grid import Agent, Row
from maskgym.experiments.reproduce.stages import Stage, check_of, checkpoint, dataset
from maskgym.experiments.wiring import composition
from maskgym.policies.needs.vst import VST

PAPER = "usersod"
PARTS: tuple[str, ...] = (
    *("maskgym.policies:usersal", "maskgym.policies:usersal_plus", "maskgym.agents:usersal"),
    *("maskgym.agents:usersal_plus", "maskgym.policies.needs.vst", "transformers.models.blip.modeling_blip"),
    *("transformers.models.bert.modeling_bert", "transformers.models.clip.modeling_clip"),
)
CHECKPOINT = "RGB_VST.pth"
PASSES = 5  # of the network per training sample: with tokens, twice that backward, the photo and its object alone
ENCODERS = {"blip": "blip-itm-base-coco", "clip": "clip-vit-base-patch16", "bert": "bert-base-uncased"}
TABLES = ("1", "2", "3", "4", "5", "6", "7", "8")
NO_NEED = ("env.task=sod", "env.need=false")  # 4.3: conventional salient objects, with zeros as text
UNTRAINED = ("algo.epochs=null", "algo.updates=0")
PLAIN = ("algo=usersal", "policy.skip_empty_need=true", *UNTRAINED)  # without a need the frozen network, without tokens
PARTS_OF_5 = {  # each row has what the row before lacks
    "MPL + SME + SC": ("similarity", ("multi_scale", "appearance_loss", "adder")),
    "MPL + SME + SC + AIA": ("adder", ("multi_scale", "appearance_loss")),
    "MPL + SME + SC + AIA + AL": ("appearance", ("multi_scale",)),
}
SIAMESE = {"FC*": "linear", "Conv*": "convolution", "ViT*": "attention"}  # beside swin, which is ours
SMOKE = (  # of the miniatures: as little of everything as shows that each part works
    *("env.image_size=64", "env.num_envs=2", "data.workers=0", "algo.epochs=null", "algo.updates=4"),
    *("algo.batch_size=2", "algo.save_every=1"),
)
SMOKE_AGENTS = ("vst", "usersal", "usersal_plus", "clip", "bert", "linear", "ranking")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--table", choices=TABLES, help="what this table needs alone (all)")
    parser.add_argument(
        "--encoder", choices=ENCODERS, default="blip", help="of needs; the paper's is FLIP (%(default)s)"
    )


def write_miniatures(given: Namespace, root: Path) -> None:
    """Write miniatures of the data sets and random checkpoints, and make them the experiment's.

    Args:
        given: Arguments of the command, which are changed.
        root: Folder to write; what it holds already stands.
    """
    from maskgym.experiments.reproduce import miniature_parts
    from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
    from maskgym.experiments.reproduce.miniature_sets import RATIONALES, Sizes, write_sets

    given.data, given.models = root / "data", root / "models"
    sizes = (f"+policy.backbone.{name}={value}" for name, value in miniature_parts.VST_SIZES.items())
    given.settings = [*SMOKE, *sizes, *given.settings]
    if not (given.data / RATIONALES).exists():  # it is written last
        miniature_parts.write_vst(given.models / CHECKPOINT)
        for name, folder in ENCODERS.items():
            miniature_parts.ENCODERS[name](given.models / folder)
        names = [PAPER, *_named([f"{PAPER}/{table}" for table in "234"])]
        write_sets(given.data, names, Sizes(train=4, validation=0, test=2, side=64), writers=LAYOUTS)


def rows(given: Namespace) -> list[Row]:
    """List our rows of the asked tables; a smoke run leaves out agents that take the code of others."""
    found = [row for table in ([given.table] if given.table else TABLES) for row in _rows(given, table)]
    return [row for row in found if not given.smoke or row.agent.name in SMOKE_AGENTS]


def stages(given: Namespace) -> list[Stage]:
    """List the stages.

    Raises:
        UserError: If a checkpoint or a data set is missing.
    """
    wanted = rows(given)
    checks = [check_of(given.data, name) for name in _sets(wanted)]
    return [*checks, *grid.stages(PAPER, wanted, given.data, given.out)]


def plan(given: Namespace) -> str:
    """Write the samples, updates and minutes of the stages as text."""
    asked = rows(given)
    if given.gpu:
        config = composition.compose(asked[0].agent.settings)
        side = config["env"]["image_size"]
        image = grid_plan.operations(
            lambda: VST(pretrained=False), lambda network: network(torch.empty(1, 3, side, side))
        )
        rates = grid_plan.computed(given.gpu, config["algo"]["batch_size"] * PASSES * image, image, 0)
    else:
        rates = grid_plan.measured(asked[0].agent.settings, UNTRAINED, PARTS)
    return grid_plan.table(given, PAPER, asked, rates, len(_sets(asked)))


def _sets(wanted: Sequence[Row]) -> list[str]:
    """List the data sets of rows by name, that of training first."""
    return list(dict.fromkeys((PAPER, *_named([f"{PAPER}/{row.table}" for row in wanted]))))


def _named(tables: Sequence[str]) -> list[str]:
    """List the data sets of tables by name; a part of one, such as ``refcoco/testA``, counts as its set."""
    names = [name for table in tables for name in paper_tables.published(table).datasets]
    return list(dict.fromkeys(name.partition("/")[0] for name in names))


def report(given: Namespace) -> None:
    """Write the tables of the finished stages."""
    grid.write_tables(PAPER, rows(given), given.out)


def agent(given: Namespace, name: str, *more: str, encoder: str | None = None) -> Agent:
    """Build an agent that is trained on UserSOD."""
    return Agent(name, settings(given, PAPER, *more, encoder=encoder))


def settings(given: Namespace, data: str, *more: str, encoder: str | None = None) -> tuple[str, ...]:
    """Build the arguments of a run on a data set."""
    chosen = encoder or given.encoder
    parts = (
        f"encoder={chosen}",
        f"data.root={dataset(given.data, data)}",
        f"+policy.backbone.checkpoint={checkpoint(given.models, CHECKPOINT)}",
        f"+policy.encoder.checkpoint={checkpoint(given.models, ENCODERS[chosen])}",
    )
    return (f"experiment={PAPER}", *parts, *given.settings, *more)


def _rows(given: Namespace, table: str) -> list[Row]:
    """List our rows of a table."""
    plus, plain = agent(given, "usersal_plus"), agent(given, "usersal", "algo=usersal")
    if table in ("1", "4"):  # 4 is of generalization: the expressions of RefCOCO are needs, and none trains on them
        return [Row(table, "Usersal", plain), Row(table, "Usersal+", plus)]
    if table == "2":
        return [Row(table, "Usersal", plain, NO_NEED), Row(table, "Usersal+", plus, NO_NEED)]
    if table == "3":  # detects, erases and detects again, without training
        ranking = settings(given, "assr", "env=ranking", "data=assr", *UNTRAINED)
        return [Row(table, "Usersal+", Agent("ranking", ranking, plus))]
    agents, base = {"VST*": plus}, {"5": "Base", "6": "VST"}.get(table)
    if table == "5":
        agents = _components(given, plain, plus)
    elif table == "7":
        agents = _encoders(given, plus)
    elif table == "8":
        agents = {row: agent(given, name, f"policy.siamese={name}") for row, name in SIAMESE.items()} | {"Swin*": plus}
    found = [Row(f"{table}-sod", base, agent(given, "vst", *PLAIN), NO_NEED, scored="5-sod")] if base else []
    for name, one in agents.items():
        found.append(Row(f"{table}-sod", name, one, NO_NEED, scored="5-sod"))
        found.append(Row(f"{table}-need", name, one, scored="1"))
    return found


def _components(given: Namespace, plain: Agent, plus: Agent) -> dict[str, Agent]:
    """List the agents of Table 5: its first row is UserSal, its last UserSal+."""
    found = {"MPL": plain}
    for row, (name, missing) in PARTS_OF_5.items():
        found[row] = agent(given, name, *(f"policy.{part}=false" for part in missing))
    return {**found, "MPL + SME + SC + AIA + AL + MS": plus}


def _encoders(given: Namespace, plus: Agent) -> dict[str, Agent]:
    """List the agents of Table 7 whose encoders there are."""
    names = reversed(ENCODERS)
    return {n.upper(): plus if n == given.encoder else agent(given, n, encoder=n) for n in names}
