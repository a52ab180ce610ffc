"""``maskgym evaluate``: score predictions or a trained agent with a paper's protocol, and print the paper's table.

    maskgym evaluate MAPS --truth MASKS                              # salient objects: S, E, F, weighted F, MAE
    maskgym evaluate PREDICTIONS data=ilso data.root=DIR --out OUT   # any data set of ours, any kind of prediction
    maskgym evaluate PREDICTIONS --table saliency_r1/4-sod --root DATASETS --out OUT
    maskgym evaluate RUN_DIR data=ecssd data.root=DIR --out OUT      # what the agent of a run predicts
    maskgym evaluate RUN_DIR --table saliency_r1/4-sod --root DATASETS --out OUT
    maskgym evaluate RUN_DIR --out OUT                               # each of its tasks, and each set of a task
    maskgym evaluate RUN_DIR key=value …                             # scores of its held-out samples again, as JSON
    maskgym evaluate RUN_DIR … scale=ray scale.num_workers=8 scale.use_gpu=true   # the same, answered by 8 workers

With --table, PREDICTIONS and DATASETS hold one folder per data set of the table. A folder has the usual name of its
data set, such as ECSSD or DUT-OMRON, or the name used here.
`maskgym.experiments.evaluation.predictions` describes a folder of predictions.
OUT receives table.md, table.tex, table.csv, results.json, a CSV per data set with one row per image, and the
predictions of a run. The same command resumes where it was stopped.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from maskgym import data, files
from maskgym.agents.base import Agent
from maskgym.agents.common import parallel
from maskgym.aliases import JsonObject, Settings
from maskgym.chat.asker import to_png
from maskgym.data import Dataset, run_lengths
from maskgym.data.concatenated import Concatenated
from maskgym.data.layout.listing import Reader
from maskgym.data.published import PUBLISHED, folder_of
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluation, paper_tables, predictions, presets, provenance, scoring
from maskgym.experiments.evaluation.evaluation import Evaluation
from maskgym.experiments.evaluation.measures import MEASURES
from maskgym.experiments.evaluation.provenance import Provenance, Samples
from maskgym.experiments.evaluation.scoring import Scored
from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.experiments.wiring.command import Parser
from maskgym.rewards import Transition

OF_SAMPLES_CHOSEN = ("data", "+data", "env", "evaluation")  # settings that choose the samples
SOURCE = "source.json"  # names the run that made the predictions in a folder
OF_SAMPLES: Mapping[str, Callable[..., predictions.Samples]] = {
    "need": predictions.Needs,
    "semantic": predictions.Classes,
    "ranking": predictions.Ranks,
}


def answer(given: Namespace) -> str:
    """Score the predictions or the run, and write the table; return what the command prints.

    Workers of `maskgym.agents.common.parallel` share the samples of a run; rank 0 scores and writes, and its text
    is the answer.
    """
    of_run = (given.source / run_folder.CONFIG).is_file()
    if of_run and not (given.table or given.out):
        again, of = evaluate_again(given.source, given.changes)
        sets = evaluation.scores_of_sets(again)
        more = {**({"sets": sets} if sets else {}), provenance.KEY: of}
        return "" if parallel.rank() else json.dumps({**evaluation.scores(again), **more}, indent=2)
    if not given.source.is_dir():
        raise UserError(f"{given.source}: no such folder: expected one of a run, or of predictions")
    table, found = _published(given, of_run) if given.table else _plain(given, of_run)
    if parallel.rank():
        return ""
    name = given.name or given.source.resolve().name
    values = tuple(
        found[dataset].scores.get(measure) if dataset in found else None for dataset, measure in table.columns
    )
    table = replace(table, ours=((name, values),), notes=(*table.notes, *_notes(table, found)))
    if given.out:
        _write(given.out, table, found)
    return paper_tables.to_markdown(table)


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the command's arguments.

    Returns:
        The options. ``scale`` has the settings of the workers that answer for a run, or None without ``scale=…`` among
        the arguments: then one process answers, even if several trained. ``changes`` are without it.

    Raises:
        UserError: If options do not go together.
    """
    parser = Parser(prog="maskgym evaluate", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="of a finished run, or of predictions")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="the data; of a run, what is to be different")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="folder of masks, in place of data=… data.root=…")
    parser.add_argument("--table", metavar="PAPER/TABLE", help=f"one of {', '.join(paper_tables.names())}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="holds the data sets of the table")
    parser.add_argument("--preset", help=f"how to measure: {', '.join(presets.PRESETS)} (the paper's; pysodmetrics)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--split", default="test", help="of the data that predictions are of, or all (%(default)s)")
    parser.add_argument("--name", help="of our row (the folder's)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--partial", action="store_true", help="score what there is a prediction for")
    parser.add_argument("--no-weighted", action="store_true", help="leave the weighted F out: four times as fast")
    given = parser.parse_intermixed_args(arguments)
    if given.jobs < 1:
        raise UserError(f"--jobs {given.jobs}: expected at least 1")
    if given.table and not given.root:
        raise UserError(f"--table {given.table}: expected --root DIR too, which holds its data sets")
    if given.root and not given.root.is_dir():
        raise UserError(f"--root {given.root}: no such folder")
    if given.truth and (given.table or given.changes):
        raise UserError("--truth: expected alone, without --table and key=value")
    given.scale = _scale(given)
    return given


def _scale(given: Namespace) -> Settings | None:
    """Move ``scale=…`` out of the changes, which name what the scores are of."""
    asked = [change for change in given.changes if change.startswith("scale")]
    if not asked:
        return None
    given.changes = [change for change in given.changes if change not in asked]
    file = given.source / run_folder.CONFIG
    if not file.is_file():
        raise UserError(f"{asked[0]}: expected for a run, whose agent answers; predictions are scored by --jobs N")
    scale = composition.change(composition.load(file), asked)["scale"]
    if scale["name"] == "local":
        return None
    if scale["reward_actors"] and any(change.startswith("scale.reward_actors=") for change in asked):
        raise UserError(f"scale.reward_actors={scale['reward_actors']}: expected for training; each worker scores here")
    return scale


def _plain(given: Namespace, of_run: bool) -> tuple[paper_tables.Table, dict[str, Scored]]:
    """Score one data set; return an empty table and the scores."""
    preset = given.preset or "pysodmetrics"
    if given.truth:
        masks = predictions.masks_of(given.truth)
        scored = _score_files(given, given.source, masks, preset, provenance.mask_files(given.truth, masks))
    elif of_run:
        return _plain_run(given, preset)
    else:
        settings = _data_settings(given.changes)
        dataset = data.make(**settings, split=given.split)
        scored = _score_dataset(given, given.source, dataset, settings, settings.get("task"), preset)
    return _table_of({"": scored}, preset)


def _plain_run(given: Namespace, preset: str) -> tuple[paper_tables.Table, dict[str, Scored]]:
    """Score the held-out samples of every task of a run and, where a task has several sets, each set alone."""
    built = build.trained(given.source, given.changes, _task_of(given.changes))
    found: dict[str, Scored] = {}
    for own, env in built.envs.items():
        dataset = unwrap(env, SampleVectorEnv).dataset
        parts = dataset.parts if isinstance(dataset, Concatenated) else {}
        several = len(built.envs) > 1
        folder = given.out / "predictions" / own if several or parts else given.out / "predictions"
        scored = _score_agent(given, built, own, folder, given.changes, None, preset)
        found[own if several or parts else ""] = scored
        for name, part in parts.items() if len(parts) > 1 else ():
            alone = Concatenated({name: part})
            others, source = frozenset(dataset.keys), built.config["data"]
            part_scored = _score_dataset(given, folder, alone, source, own, preset, others)
            found[f"{own}/{name}"] = replace(part_scored, of=_with_weights(part_scored.of, scored.of))
    return _table_of(found, preset)


def _table_of(found: Mapping[str, Scored], preset: str) -> tuple[paper_tables.Table, dict[str, Scored]]:
    """Build an empty table with the measures of each data set; return it with the scores."""
    columns = []
    for name, scored in found.items():
        asked = [measure for measure in presets.find(preset).measures if measure in scored.scores]
        columns += [(name, one) for one in asked or [measure for measure in scored.scores if measure in MEASURES]]
    return paper_tables.Table("", tuple(columns), preset=preset), dict(found)


def _task_of(changes: Sequence[str]) -> str | None:
    """Look up the task of the published data set that a change names, if one does."""
    named = [change.partition("=")[2] for change in changes if change.startswith("data=")]
    return PUBLISHED[named[-1]].task if named and named[-1] in PUBLISHED else None


def _published(given: Namespace, of_run: bool) -> tuple[paper_tables.Table, dict[str, Scored]]:
    """Score the available data sets of a paper's table; return the table and the scores."""
    table = paper_tables.published(given.table)
    preset = given.preset or table.preset
    roots = {name: root for name in table.datasets if (root := folder_of(given.root, name))}
    if not roots:
        names = ", ".join(PUBLISHED[name.partition("/")[0]].folder[0] for name in table.datasets)
        raise UserError(f"--root {given.root}: none of the data sets of {given.table}: expected folders {names}")
    found = {}
    for name, root in roots.items():
        if of_run:
            part = [f"data.{key}={value}" for key, value in _part(name).items()]
            changes = [*given.changes, f"data={name.partition('/')[0]}", f"data.root={root}", *part]
            found[name] = _score_run(given, changes, table.task, given.out / "predictions" / name, preset)
        else:
            folder = folder_of(given.source, name) or (given.source if len(table.datasets) == 1 else None)
            if folder is None:
                raise UserError(f"{given.source}: no predictions of {name}: expected a folder {name} there")
            settings: Settings = {"name": name.partition("/")[0], "root": root, **_part(name)}
            dataset = data.make(**settings, split=given.split)
            found[name] = _score_dataset(given, folder, dataset, settings, table.task, preset)
    return replace(table, preset=preset), found


def _part(name: str) -> dict[str, str]:
    """Return the reader argument that selects the partition in a name such as ``refcoco/testA``."""
    _, _, part = name.partition("/")
    return {"partition": part} if part else {}


def _data_settings(changes: Sequence[str]) -> JsonObject:
    """Parse ``data=… data.key=value`` into the arguments of the reader."""
    if other := [change for change in changes if not change.lstrip("+").startswith(("data=", "data."))]:
        raise UserError(f"argument '{other[0]}': predictions take data=… and data.… only")
    if not any(change.startswith("data=") for change in changes):
        raise UserError("what is it to be scored against? Expected --truth DIR, data=… data.root=DIR, or --table")
    settings = composition.compose(["env=sod", *changes])["data"]
    for key in ("rationales", "workers"):  # only training uses them
        settings.pop(key, None)
    return settings


def _score_files(given: Namespace, folder: Path, masks: Sequence[tuple[str, Path]], preset: str, of: Samples) -> Scored:
    """Score maps against mask files, those of the samples ``of``."""
    paths, notes = predictions.pair_up(folder, [key for key, _ in masks], given.partial)
    pairs = [
        predictions.Pair(key, path, mask) for (key, mask), path in zip(masks, paths, strict=True) if path is not None
    ]
    work = predictions.Maps(pairs, presets.find(preset), not given.no_weighted)
    return _score(given, work, notes, of)


def _score_dataset(
    given: Namespace,
    folder: Path,
    dataset: Dataset,
    source: Settings,
    task: str | None,
    preset: str,
    others: frozenset[str] = frozenset(),
) -> Scored:
    """Score a folder of predictions against a data set; those of ``others``, which are keys, are expected beside.

    The settings of the data set, ``source``, name it in the results.
    """
    task, of = task or dataset.shown, provenance.samples(source, dataset)
    if task == "sis":
        return _score_instances(given, folder, dataset, of, others)
    if task not in OF_SAMPLES and dataset.mask_files:  # every mask file is looked at when it is read
        (name,) = set(dataset.sets) if others else ("",)
        masks = (
            [(key.removeprefix(f"{name}/"), mask) for key, mask in dataset.mask_files] if others else dataset.mask_files
        )
        scored = _score_files(given, folder / name, masks, preset, of)
        return replace(scored, notes=(*_left_out(dataset), *scored.notes))
    paths, notes = predictions.pair_up(folder, dataset.keys, given.partial)
    notes = [*dataset.describe(), *notes]
    kept = {index: path for index, path in enumerate(paths) if path is not None}
    subset = data.Subset(dataset, list(kept))
    if task in OF_SAMPLES and OF_SAMPLES[task] is not predictions.Needs:
        return _score(given, OF_SAMPLES[task](subset, list(kept.values()), presets.find(preset)), notes, of)
    malformed = predictions.malformed(folder) & {*subset.keys}
    if malformed:
        notes.append(scoring.shorten(f"{len(malformed)} answers are malformed and have no mask", sorted(malformed)))
    work = predictions.Needs(subset, list(kept.values()), presets.find(preset), malformed)
    return _score(given, work, notes, of)


def _left_out(dataset: Dataset) -> list[str]:
    """List the notes of a reader, or of each set of several under its name."""
    if isinstance(dataset, Concatenated):
        return [f"{name}: {note}" for name, part in dataset.parts.items() for note in _left_out(part)]
    return list(dataset.notes) if isinstance(dataset, Reader) else []


def _score_instances(
    given: Namespace, folder: Path, dataset: Dataset, of: Samples, others: frozenset[str] = frozenset()
) -> Scored:
    """Score instances, given as label maps or as lines of ``instances.jsonl``."""
    keys, file = dataset.keys, folder / predictions.INSTANCES
    if not file.is_file():
        paths, notes = predictions.pair_up(folder, keys, given.partial)
        rows: Sequence[Path | JsonObject | None] = paths
    else:
        lines = predictions.read_lines(file)
        rows, notes = [lines.get(key) for key in keys], []
        if missing := [key for key in keys if key not in lines]:
            notes.append(scoring.shorten(f"{file}: no line for {len(missing)} of {len(keys)}", missing))
            if not given.partial or len(missing) == len(keys):
                raise UserError(notes[0])
        if unused := sorted(lines.keys() - set(keys) - others):
            notes.append(scoring.shorten(f"{file}: {len(unused)} lines belong to no sample and are left out", unused))
    notes = [*dataset.describe(), *notes]
    kept = {index: row for index, row in enumerate(rows) if row is not None}
    source = file if file.is_file() else None
    work = predictions.Instances(data.Subset(dataset, list(kept)), list(kept.values()), source)
    return _score(given, work, notes, of)


def _score(given: Namespace, work: scoring.Work, notes: Sequence[str], of: Samples) -> Scored:
    if parallel.rank():  # rank 0 scores, by processes of its own
        return Scored({"images": 0.0}, [], "", ())
    scored = scoring.score(work, given.jobs, given.out)
    made: Provenance = {"held_out": {"": of}, "train": {}, "weights": {}}
    return replace(scored, notes=(*notes, *scored.notes), of=made)


def _with_weights(scored: Provenance | None, agent: Provenance | None) -> Provenance | None:
    """Add the networks of the agent that predicted."""
    return scored and {**scored, "weights": agent["weights"] if agent else {}}


def _score_run(given: Namespace, changes: Sequence[str], task: str, folder: Path, preset: str) -> Scored:
    """Write the predictions of a run's agent for the data set of a table, and score them."""
    if not given.out:
        raise UserError("--table of a run: expected --out DIR too, for what it predicts")
    built = build.trained(given.source, changes, task)
    if len(built.envs) > 1:
        told = f"{given.source}: its environment has the tasks {', '.join(built.envs)}"
        raise UserError(f"{told}: expected --table of one, not of {task}")
    return _score_agent(given, built, next(iter(built.envs)), folder, changes, task, preset)


def _score_agent(
    given: Namespace,
    built: build.Built,
    own: str,
    folder: Path,
    changes: Sequence[str],
    task: str | None,
    preset: str,
) -> Scored:
    """Write the predictions of an agent for one of its environments, and score them.

    Args:
        given: Arguments of the command.
        built: The agent and its environments.
        own: Task of the environment.
        folder: Folder of the predictions.
        changes: Settings that differ from the run.
        task: How the predictions are to be scored; None for the environment's task.
        preset: Name of the protocol.
    """
    env = built.envs[own]
    dataset = unwrap(env, SampleVectorEnv).dataset
    shown = dataset.shown
    task = task or (shown if shown in OF_SAMPLES else own)
    of = _of_run(given.source, built, {"": provenance.samples(built.config["data"], dataset)})
    _claim(folder, {"run": str(given.source.resolve()), "changes": list(changes), provenance.KEY: of})
    predict(built.agent, env, folder, instances=task == "sis")
    scored = _score_dataset(given, folder, dataset, built.config["data"], task, preset)
    told = (*_changed(changes), *_since(given.source, {**of, "held_out": {}}), *_prompt(built))
    return replace(scored, notes=(*told, *scored.notes), of=of)


def _of_run(folder: Path, built: build.Built, held_out: dict[str, Samples]) -> Provenance:
    """Name what an evaluation of a run is of."""
    weights = provenance.weights(built.config, built.parts, built.agent, built.envs.values())
    results = run_folder.read_json(folder / run_folder.RESULTS)
    then = provenance.read(results)
    if then and "start" in then["weights"]:  # by now the agent has loaded what it trained
        weights["start"] = then["weights"]["start"]
    found: Provenance = {"held_out": held_out, "train": {}, "weights": weights}
    updates = results.get("steps", 0)
    return provenance.trained(found, built.config, folder / run_folder.POLICY, updates)


def _since(folder: Path, now: Provenance) -> list[str]:
    """Tell what is other than when the run ended; older runs do not name it."""
    then = provenance.read(run_folder.read_json(folder / run_folder.RESULTS))
    return [] if then is None else [f"not as in the run: {line}" for line in provenance.changes(then, now)]


def evaluate_again(folder: Path, changes: Sequence[str] = ()) -> tuple[dict[str, Evaluation], Provenance]:
    """Evaluate the trained agent of a finished run on held-out samples; arguments as of `build.trained`.

    Returns:
        The evaluations by task (of several workers, rank 0's alone), and what they are of.
    """
    built = build.trained(folder, changes, _task_of(changes))
    if not built.config["evaluation"]["samples"]:
        raise UserError("evaluation.samples=0: nothing to evaluate: expected evaluation.samples=N, the most per task")
    found = {}
    wanted = built.config["evaluation"]["samples"]
    used = {task: unwrap(env, SampleVectorEnv).dataset for task, env in built.envs.items()}
    of = _of_run(
        folder,
        built,
        {
            task: provenance.samples(built.config["data"], dataset, evaluation.held_out(len(dataset), wanted))
            for task, dataset in used.items()
        },
    )
    other = any(change.startswith(OF_SAMPLES_CHOSEN) for change in changes)
    for line in [*_changed(changes), *_since(folder, {**of, "held_out": {}} if other else of)]:
        print(line, file=sys.stderr)
    for task, env in built.envs.items():
        base = unwrap(env, SampleVectorEnv)
        indices = evaluation.held_out(base.num_samples, wanted)
        told = [f"n = {len(indices)} of {base.num_samples}, {base.dataset.split}", *evaluation.notes(env, indices)]
        for line in told + [FEW_TOLD] * (len(indices) < FEW):
            print(f"{task}: {line}", file=sys.stderr)  # the scores alone are on standard output
        if scored := evaluation.evaluate_together(built.agent, env, indices):
            found[task] = scored
    return found, of


def _prompt(built: build.Built) -> list[str]:
    """Name the words of the question, of which a score depends, if there is one."""
    settings = built.config["env"]
    asked = [f"env.{name}={settings[name]}" for name in ("instruction", "hint") if name in settings]
    return [f"asked with {' '.join(asked)}"] if asked else []


def _changed(changes: Sequence[str]) -> list[str]:
    """Name the settings other than those of the run; the data set is named anyway."""
    other = [change for change in changes if not change.startswith(("data=", "data."))]
    return [f"not as in the run: {' '.join(other)}"] if other else []


def _claim(folder: Path, source: JsonObject) -> None:
    """Record which run made the predictions in a folder, and what they are of.

    Raises:
        UserError: If the folder holds predictions of another run, or of other data or weights.
    """
    file = folder / SOURCE
    if file.is_file():
        there = run_folder.read_json(file)
        if any(there[name] != source[name] for name in ("run", "changes")):
            told = f"{there['run']} {' '.join(there['changes'])}"
            raise UserError(f"{folder}: holds predictions of {told}: choose another --out")
        then = provenance.read(there)
        if then is None:
            print(f"{folder}: its predictions do not name their data and weights, and are kept", file=sys.stderr)
        elif found := provenance.changes(then, source[provenance.KEY]):
            raise UserError(f"{folder}: holds predictions of before a change: {found[0]}: choose another --out")
    run_folder.write_json(file, source)


def predict(agent: Agent, env: VectorEnv, folder: Path, instances: bool = False) -> None:
    """Write an agent's prediction for every sample of an environment; existing predictions are kept.

    Workers of `maskgym.agents.common.parallel` share the samples, whole batches each.

    Args:
        agent: Agent as in `maskgym.experiments.evaluation.evaluation.evaluate`.
        env: Environment of the samples, as in the same function.
        folder: Output folder, in the format that `maskgym.experiments.evaluation.predictions` reads.
        instances: Whether to write instances instead of maps.
    """
    dataset = unwrap(env, SampleVectorEnv).dataset
    keys, file = dataset.keys, folder / predictions.INSTANCES
    left = parallel.first([] if parallel.rank() else _left(dataset, folder, instances))
    malformed = predictions.malformed(folder)
    own = [left[place] for place in parallel.share(len(left), env.num_envs)]
    total = len(keys) - len(left) + len(own)
    with tqdm(total=total, initial=total - len(own), desc="predict", unit="sample", disable=None) as bar:
        for index, (transition, _) in zip(own, evaluation.episodes(agent, env, own), strict=True):
            if instances:
                _append(file, keys[index], transition.masks[0])
            else:
                unread = transition.answer is not None and not transition.answer.tagged
                if unread and keys[index] not in malformed:  # it may have been stopped before the map was written
                    folder.mkdir(parents=True, exist_ok=True)
                    files.append(folder / predictions.MALFORMED, keys[index])
                for path, levels in zip(_files(dataset, index, keys[index], folder), _maps(transition), strict=True):
                    run_folder.write(path, to_png(levels))
            bar.update()
    parallel.wait()  # what the others write is there before any of it is read


def _left(dataset: Dataset, folder: Path, instances: bool) -> list[int]:
    """Return the indices of the samples without a prediction."""
    if instances:
        there = _lines_so_far(folder / predictions.INSTANCES)
        return [index for index, key in enumerate(dataset.keys) if key not in there]
    return [
        index
        for index, key in enumerate(dataset.keys)
        if not all(path.exists() for path in _files(dataset, index, key, folder))
    ]


def _files(dataset: Dataset, index: int, key: str, folder: Path) -> list[Path]:
    """Return the map files of a sample, one per photo."""
    names = [pair.key for pair in dataset.pairs(index)] or [key]
    return [folder / f"{name}.png" for name in names]


def _maps(transition: Transition) -> Iterator[np.ndarray]:
    """Yield the map of each photo, uint8 (H, W): the union of the masks, or the ranks as grey levels."""
    from maskgym.metrics import rank_map
    from maskgym.rewards.terms import union

    for masks in transition.masks:
        shown = rank_map(masks, -np.arange(len(masks))) if transition.task == "ranking" else union(masks)
        yield np.rint(np.asarray(shown, np.float64) * 255).astype(np.uint8)


def _append(file: Path, key: str, masks: np.ndarray) -> None:
    """Append one line of instances to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.append(file, json.dumps({"key": key, "masks": [run_lengths.encode(mask > 0.5) for mask in masks]}))


def _lines_so_far(file: Path) -> set[str]:
    """Read the keys of the lines of a file; remove a truncated last line."""
    if not file.is_file():
        return set()
    whole, cut, _ = file.read_text(encoding="utf-8").rpartition("\n")
    run_folder.write(file, whole + cut)
    return set(predictions.read_lines(file))


def _notes(table: paper_tables.Table, found: Mapping[str, Scored]) -> list[str]:
    """Build the lines below the table: the convention, missing data sets, image counts and notes."""
    conventions = dict.fromkeys(scored.convention for scored in found.values())
    lines = [f"Measured as {table.preset}: {' '.join(conventions)}"]
    lines += [f"{name}: not there, so not scored." for name in table.datasets if name not in found]
    for name, scored in found.items():
        few = f" Warning: {FEW_TOLD}." if scored.scores["images"] < FEW else ""
        lines.append(f"{name or 'data'}: {scored.scores['images']:.0f} images.{few}")
    lines += [f"{name or 'data'}: {note}" for name, scored in found.items() for note in scored.notes]
    return lines + provenance.shown_of_several([(name, scored.of) for name, scored in found.items() if scored.of], True)


def _write(out: Path, table: paper_tables.Table, found: Mapping[str, Scored]) -> None:
    for suffix, make in (
        ("md", paper_tables.to_markdown),
        ("tex", paper_tables.to_latex),
        ("csv", paper_tables.to_csv),
    ):
        run_folder.write(out / f"table.{suffix}", make(table))
    for name, scored in found.items():
        file = out / f"{name.replace('/', '-') or 'images'}.csv"
        run_folder.write(file, predictions.to_csv(scored.per_image))
    stored = {name or "data": {**scored.scores, "notes": list(scored.notes)} for name, scored in found.items()}
    of: Provenance = {"held_out": {}, "train": {}, "weights": {}}
    for name, scored in found.items():
        if scored.of:
            of["held_out"] |= dict.fromkeys([name or "data"], scored.of["held_out"][""])
            of["weights"] |= scored.of["weights"]
    run_folder.write_json(out / run_folder.RESULTS, {"preset": table.preset, "scores": stored, provenance.KEY: of})
    print(f"{out}: table.md, table.tex, table.csv, results.json and a CSV with a row an image", file=sys.stderr)
