"""Name the data, the segmenter and the weights of results by fingerprints, and tell where results differ in these.

Every file of results holds one `Provenance`. Tables and reports compare those of the results that they show side by
side: data and segmenters must be equal, other weights and training samples wherever the settings that choose them are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from maskgym import manifest
from maskgym.aliases import Config, Json, JsonObject, Settings
from maskgym.data.sample import Dataset, Sample, Subset
from maskgym.errors import UserError, one_line
from maskgym.segmenters.outputs import Weights, describe

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from maskgym.agents.base import Agent
    from maskgym.experiments.wiring.build import Parts

KEY = "provenance"  # in files of results
LOOKED_AT = 16  # samples whose pixels, masks and words a fingerprint is of
DIGITS = 16
TITLES = {
    "held_out": "held-out data",
    "train": "training data",
    "segmenter": "segmenter",
    "attention": "attention segmenter",
    "need_encoder": "need encoder of the environment",
    "backbone": "backbone",
    "encoder": "need encoder",
    "start": "weights before training",
    "policy": "trained policy",
}


class Samples(TypedDict):
    """Samples of results.

    Attributes:
        name: Name of the data set, or of the sets that were put together.
        root: Folder or name on the hub as the config has it; None for procedural data.
        split: Name of the split.
        samples: Number of samples.
        fingerprint: Hash of all keys, and of the whole content of at most `LOOKED_AT` samples, evenly spread.
    """

    name: str
    root: str | None
    split: str
    samples: int
    fingerprint: str


class Provenance(TypedDict):
    """Data, segmenter and weights of results.

    Attributes:
        held_out: Samples that were scored, by task.
        train: Samples that were trained on, by task; empty for an evaluation.
        weights: Networks by part, with the keys of `TITLES`; ``policy`` is the trained one.
    """

    held_out: dict[str, Samples]
    train: dict[str, Samples]
    weights: dict[str, Weights]


class Result(NamedTuple):
    """One result of several that are shown side by side.

    Attributes:
        label: Name of its row or group; results of several seeds share it.
        seed: Seed of the run.
        config: Config that it was made with.
        provenance: What it is of; None if it does not say.
        run: Name of the run, of whose policy several results may be; empty for results of a run each.
    """

    label: str
    seed: int
    config: Config
    provenance: Provenance | None
    run: str = ""


def samples(source: Settings, dataset: Dataset, indices: Sequence[int] | None = None) -> Samples:
    """Name the samples of a data set, or those with some indices; ``source`` is ``data`` of its config.

    Files that change under the same names are noticed if their sample is among those looked at.
    """
    chosen = dataset if indices is None else Subset(dataset, indices)
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    digest.update(json.dumps([len(chosen), list(chosen.keys) if _lists_keys(dataset) else []]).encode())
    for place in _spread(len(chosen)):
        _add_sample(digest, chosen[place])
    root = source.get("root") or source.get("path")
    return {
        "name": ", ".join(sorted(set(chosen.sets))) or source["name"],
        "root": None if root is None else str(root),
        "split": dataset.split,
        "samples": len(chosen),
        "fingerprint": digest.hexdigest(),
    }


def mask_files(folder: Path, masks: Sequence[tuple[str, Path]]) -> Samples:
    """Name ground truth that is a folder of masks, by key and file."""
    digest = hashlib.blake2b(json.dumps([key for key, _ in masks]).encode(), digest_size=DIGITS // 2)
    for place in _spread(len(masks)):
        digest.update(masks[place][1].read_bytes())
    root = str(folder.resolve())
    return {"name": "masks", "root": root, "split": "all", "samples": len(masks), "fingerprint": digest.hexdigest()}


def weights(config: Config, parts: Parts, agent: Agent, envs: Iterable[VectorEnv]) -> dict[str, Weights]:
    """Name the networks that an agent acts with and does not train, and those that its training begins from."""
    policy, found = config["policy"], of_environments(config, parts, envs, agent.takes)
    if policy.get("checkpoint") is not None:
        folder = Path(str(policy["checkpoint"])).expanduser()
        found["start"] = {"name": policy["name"], "fingerprint": manifest.fingerprint(folder), "random": False}
    for part, one in agent.frozen().items():
        name = policy[part]["name"] if part in policy else policy["name"]
        found[part] = {**one, "name": str(name)}
    return found


def of_environments(
    config: Config, parts: Parts, envs: Iterable[VectorEnv], taken: Collection[str] = ()
) -> dict[str, Weights]:
    """Name the networks of environments; ``taken`` are the parts that an agent takes too."""
    from maskgym.envs.base import SampleVectorEnv, unwrap
    from maskgym.envs.need_point import UserNeedPointVectorEnv

    own = [unwrap(env, SampleVectorEnv) for env in envs]
    found: dict[str, Weights] = {}
    if "segmenter" in {*taken}.union(*(env.takes for env in own)):
        found["segmenter"] = describe(parts["segmenter"], config["segmenter"]["name"])
    if "attention" in parts:
        found["attention"] = describe(parts["attention"], config["env"]["attention"]["name"])
    for env in own:
        if isinstance(env, UserNeedPointVectorEnv):
            found["need_encoder"] = describe(env.encoder, str(config["env"]["encoder"]))
    return found


def trained(found: Provenance, config: Config, folder: Path, updates: int) -> Provenance:
    """Add the policy that an agent saved in a folder; an agent that learns nothing saves none."""
    if not folder.is_dir():
        return found
    random = not updates and "start" not in found["weights"]
    policy: Weights = {
        "name": config["policy"]["name"],
        "fingerprint": manifest.fingerprint(folder),
        "random": random,
    }
    return {**found, "weights": {**found["weights"], "policy": policy}}


def read(results: JsonObject) -> Provenance | None:
    """Look up what results are of; None if they do not say, as those of older versions.

    Raises:
        UserError: If a file holds something else under `KEY`.
    """
    if KEY in results and not _is_provenance(results[KEY]):
        raise UserError(f"{KEY}: expected {', '.join(Provenance.__annotations__)}, as a run writes them")
    found: Provenance | None = results.get(KEY)
    return found


def _is_provenance(found: Json) -> bool:
    """Check the types of what a file holds."""
    text, count, perhaps = (str,), (int,), (str, type(None))
    of_samples = {"name": text, "root": perhaps, "split": text, "samples": count, "fingerprint": text}
    of_weights = {"name": text, "fingerprint": perhaps, "random": (bool,)}
    sections: dict[str, dict[str, tuple[type, ...]]] = {
        "held_out": of_samples,
        "train": of_samples,
        "weights": of_weights,
    }
    if not isinstance(found, dict) or not all(isinstance(found.get(section), dict) for section in sections):
        return False
    return found["weights"].keys() <= TITLES.keys() and all(
        isinstance(one, dict) and all(name in one and isinstance(one[name], kinds) for name, kinds in fields.items())
        for section, fields in sections.items()
        for one in found[section].values()
    )


def changes(then: Provenance, now: Provenance) -> list[str]:
    """Tell in one line each what is no longer as it was; parts that only one of the two names are left out.

    Another precision of the same segmenter, as on another machine, is no change of it.
    """
    lines = []
    for section in ("held_out", "train"):
        for task, old in then[section].items():
            new = now[section].get(task)
            if new is not None and new["fingerprint"] != old["fingerprint"]:
                of = TITLES[section] + f", {task}" * bool(task)
                lines.append(f"{of}: {_shown_samples(old)} then, {_shown_samples(new)} now")
    for part, was in then["weights"].items():
        one = now["weights"].get(part)
        if one is None or one.get("dtype") != was.get("dtype"):
            continue
        if one["fingerprint"] != was["fingerprint"]:
            lines.append(f"{TITLES[part]}: {_shown_weights(was)} then, {_shown_weights(one)} now")
    return lines


def differences(results: Sequence[Result]) -> list[str]:
    """Tell in one line each where results that are shown side by side differ in what they are of, or do not say it.

    Data and segmenters must be the same in all. Training samples and other weights must be the same in results with
    equal settings of these: others differ because they were asked to.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[str, Result]]]] = {}
    for result in results:
        for title, settings, fingerprint, shown in _aspects(result):
            kinds = found.setdefault((title, settings), {})
            kinds.setdefault(fingerprint, []).append((shown, result))
    lines = []
    for (title, _), kinds in found.items():
        if len(kinds) > 1:
            told = [f"{of[0][0]} in {_named([one for _, one in of], results)}" for of in kinds.values()]
            lines.append(f"{title}: not comparable: {'; '.join(told)}")
    silent = sum(result.provenance is None for result in results)
    lines += [f"{silent} of {len(results)} results do not name their data, segmenter and weights"] * (silent > 0)
    return lines


def differences_by_task(results: Sequence[Result]) -> list[str]:
    """Tell the `differences` of results that have the same environment and task; others are never compared."""
    tasks: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        env = result.config.get("env", {})
        tasks.setdefault((str(env.get("name")), str(env.get("task"))), []).append(result)
    return [line for same in tasks.values() for line in differences(same)]


def shown(found: Provenance) -> list[str]:
    """Write what results are of, one line per data set and one for the weights."""
    several = len(found["held_out"]) > 1
    lines = [
        f"{TITLES[section]}{f', {task}' * several}: {_shown_samples(one)}"
        for section, of in (("held_out", found["held_out"]), ("train", found["train"]))
        for task, one in of.items()
    ]
    return lines + [f"{TITLES[part]}: {_shown_weights(one)}" for part, one in found["weights"].items()]


def shown_of_several(results: Sequence[tuple[str, Provenance]], policies: bool = False) -> list[str]:
    """Write what labelled results are of, each held-out set and network once, with the labels unless all have it.

    Trained policies are left out unless asked for, because every run has its own.
    """
    lines = []
    for label, found in results:
        weights = {part: one for part, one in found["weights"].items() if policies or part != "policy"}
        lines += [(label, line) for line in shown({"held_out": found["held_out"], "train": {}, "weights": weights})]
    return labelled(lines, {label for label, _ in results})


def labelled(lines: Iterable[tuple[str, str]], labels: Collection[str]) -> list[str]:
    """Put the labels of equal lines in front of the line, unless it has all ``labels``."""
    found: dict[str, dict[str, None]] = {}
    for label, line in lines:
        found.setdefault(line, {})[label] = None
    return [line if set(labels) == set(of) else f"{', '.join(of)}: {line}" for line, of in found.items()]


def _aspects(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """Yield title, the settings that must agree, fingerprint and text of each part of what a result is of."""
    found, config = result.provenance, result.config
    if found is None:
        return
    for task, one in found["held_out"].items():
        several = f", {task}" * (len(found["held_out"]) > 1)
        yield f"{TITLES['held_out']}{several}", "", one["fingerprint"], _shown_samples(one)
    drawn = {name: config.get(name) for name in ("data", "env", "train_samples")}
    seed = result.seed if drawn["train_samples"] is not None else None
    for task, one in found["train"].items():
        settings = json.dumps([drawn, seed, task], sort_keys=True, default=str)
        yield TITLES["train"], settings, one["fingerprint"], _shown_samples(one)
    for part, network in found["weights"].items():
        if network["fingerprint"] is None or (part == "policy" and not result.run):
            continue
        settings = json.dumps(_settings_of(part, result, network), sort_keys=True, default=str)
        yield TITLES[part], settings, network["fingerprint"], _shown_weights(network)


def _settings_of(part: str, result: Result, network: Weights) -> list[object]:
    """Collect the settings that choose a network; results with equal ones must have equal weights."""
    env, policy = result.config.get("env", {}), result.config.get("policy", {})
    of: Mapping[str, object] = {
        "segmenter": "",
        "attention": env.get("attention"),
        "need_encoder": env.get("encoder"),
        "policy": result.run,
    }
    return [of.get(part, policy), result.seed if network["random"] or part == "policy" else None]


def _named(some: Sequence[Result], every: Sequence[Result]) -> str:
    """Name results by their label, and by their seeds where a label has others too."""
    seeds: dict[str, set[int]] = {}
    for result in some:
        seeds.setdefault(result.label, set()).add(result.seed)
    told = []
    for label, own in seeds.items():
        whole = own == {result.seed for result in every if result.label == label}
        told.append(f"'{label}'" if whole else f"'{label}' of seed {', '.join(map(str, sorted(own)))}")
    return ", ".join(told)


def _shown_samples(one: Samples) -> str:
    place = "" if one["root"] is None else f" in {one['root']}"
    return one_line(f"{one['name']}{place}, {one['split']}, {one['samples']:,} samples ({one['fingerprint']})")


def _shown_weights(one: Weights) -> str:
    more = [one["fingerprint"] or "without a fingerprint", *([str(one["dtype"])] if "dtype" in one else [])]
    return one_line(f"{one['name']} ({', '.join([*more, *['random weights'] * one['random']])})")


def _lists_keys(dataset: Dataset) -> bool:
    """Check whether a data set knows its keys; otherwise every sample would be read for them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return "keys" in vars(dataset) or type(dataset).keys is not Dataset.keys


def _spread(count: int) -> list[int]:
    looked = min(count, LOOKED_AT)
    return [place * count // looked for place in range(looked)]


def _add_sample(digest: hashlib.blake2b, sample: Sample) -> None:
    """Add a whole sample to a hash."""
    words = [sample.key, sample.phrases, sample.category, sample.need, sample.rationale]
    digest.update(json.dumps(words).encode())
    for arrays in (sample.images, sample.masks, sample.void or (), sample.ranks or ()):
        for array in arrays:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
