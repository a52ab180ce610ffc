"""Write a plan as text: tables of memory and time, and the assumptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from maskgym.experiments.planning import memory, seconds
from maskgym.experiments.planning.plan import Plan
from maskgym.experiments.planning.work import PHOTO

GIB = 2**30
WIDTH = 44  # of a line's words
LONG_S = 7200  # of a run: a longer one is in hours


def table(plan: Plan) -> str:
    """Write a plan."""
    return "\n".join([*_title(plan), "", *_memory(plan), "", *_time(plan), "", "It assumes:", *_assumed(plan)])


def verdict(plan: Plan) -> str:
    """Tell whether a worker fits into its device's memory and, if not, which key to change."""
    return "fits" if plan.memory.total <= plan.device.memory else f"does not fit: {_advice(plan)}"


def _title(plan: Plan) -> Iterator[str]:
    config, model, policy = plan.config, plan.model, plan.config["policy"]
    work = next(iter(plan.works.values()))
    how = f"adapters of rank {policy['lora_rank']}" if work.adapters else "no adapters"
    yield f"env={config['env']['name']} algo={config['algo']['name']} policy={policy['name']} ({model.family})"
    yield f"{model.total:,} parameters, {model.trained:,} trained ({how}), {policy['dtype']}"
    each = "one worker" if work.workers == 1 else f"{work.workers} workers, each"
    yield f"{each} on {plan.device.name}: {work.answers} answers per update, {work.in_pass} per forward pass"


def _memory(plan: Plan) -> Iterator[str]:
    found, work = plan.memory, next(iter(plan.works.values()))
    names = {
        "process": "process and its libraries",
        "weights": "weights" + ", sharded" * work.sharded,
        "moments": "adapters and moments" if work.adapters else "moments",
        "generation": "generation, keys and values "
        f"{max(memory.cache(plan.model, replace(one, answers=one.together)) for one in plan.works.values()) / GIB:.2f}",
        "training": "a training pass and gradients",
        "segmenter": "segmenter",
        "freed": "freed, but kept by the C library",
    }
    yield _line("memory per worker", "GiB")
    for part, value in found.held.items():
        if value:
            yield _line(names.get(part, part), f"{value / GIB:.2f}")
    largest = max(found.phases, key=lambda phase: found.phases[phase])
    for part, value in found.phases.items():
        name = "a pass of the segmenter" if part == "segmenter" else names[part]
        yield _line(f"{'+' if part == largest else ' '} {name}", f"{value / GIB:.2f}")
    if plan.segmenter is None:
        yield _line(f"segmenter={plan.config['segmenter']['name']}", "not counted")
    told = f"{found.total / GIB:.2f} of {plan.device.memory / GIB:.0f}: {verdict(plan)}"
    yield f"{'together, with the largest phase (+)':<{WIDTH}}{told}"


def _time(plan: Plan) -> Iterator[str]:
    mean = {
        part: sum(getattr(one, part) for one in plan.updates) / len(plan.updates)
        for part in ("generation", "segmenter", "scoring", "training", "supervised", "update")
    }
    work = next(iter(plan.works.values()))
    yield _line("time per update", "s")
    if work.supervised < 1:
        yield _line("generation", f"{mean['generation']:.2f}")
        told = "not counted" if plan.segmenter is None else "in actors" if not work.segments else None
        yield _line("segmenter", told or f"{mean['segmenter']:.2f}")
        if work.scorings:
            yield _line("scoring before training", f"{mean['scoring']:.2f}")
        yield _line("training", f"{mean['training']:.2f}")
    if work.supervised:
        yield _line(f"a supervised update, {work.supervised:.0%} of all", f"{mean['supervised']:.2f}")
    yield _line("an update, on average", f"{mean['update']:.2f}")
    unit, length = ("hours", 3600) if plan.run > LONG_S else ("minutes", 60)
    updates, samples = plan.config["algo"]["updates"], plan.config["evaluation"]["samples"]
    yield ""
    yield _line("time of the run", unit)
    yield _line("start", f"{seconds.START_S / length:.1f}")
    evaluated = plan.evaluations * plan.evaluation / length
    yield _line(f"{plan.evaluations} evaluations, {samples} samples per task", f"{evaluated:.1f}")
    yield _line(f"{updates:,} updates", f"{updates * plan.update / length:.1f}")
    yield _line("together", f"{plan.run / length:.1f}")


def _assumed(plan: Plan) -> Iterator[str]:
    config = plan.config
    for task, work in plan.works.items():
        text = f"{work.text} tokens of text" + ("" if plan.counted else " (assumed)")
        height, width = work.image
        shown = f"{work.images} image{'s' * (work.images > 1)} of {width} x {height} pixels, "
        yield f"- {task}: prompts of {text} and {shown}{plan.model.tokens(work.image)} tokens each"
    work = next(iter(plan.works.values()))
    yield f"- time: the longest answer of a batch has {work.answer} tokens (--answer), and {_phrases(plan)}"
    yield f"- memory: answers of {work.longest} tokens (algo.max_new_tokens), without what the allocator wastes"
    yield f"- {plan.device.assumed}"
    yield "- images are new to the segmenter; each evaluation has so many samples; no time for reading images, for"
    yield "  exchanging gradients, for the optimizer and for checkpoints"
    if config["env"]["image_size"] is None:
        yield f"- photos of {PHOTO[1]} x {PHOTO[0]} pixels"
    if work.workers > 1 and not plan.device.gpu:
        yield "- all workers are on this machine, and share its memory"
    if config["algo"]["name"] == "dapo":
        yield "- every group has signal: each further round of sampling (algo.sampling_rounds) generates once more"
    if not work.segments:
        yield "- the actors keep up with the workers; each needs the segmenter's memory on its own device"


def _phrases(plan: Plan) -> str:
    found = {work.phrases for work in plan.works.values()}
    return f"names {' or '.join(f'{number:g}' for number in sorted(found))} phrases per image"


def _advice(plan: Plan) -> str:
    """Name the key that acts on the largest part of the memory."""
    found, work = plan.memory, next(iter(plan.works.values()))
    phase = max(found.phases, key=lambda one: found.phases[one])
    parts = {**found.held, phase: max(found.phases[phase], found.held.get(phase, 0))}
    largest = max(parts, key=lambda part: parts[part])
    if largest == "training" and work.in_pass > 1:
        return "algo.micro_batch_size=1, or auto"
    if largest == "generation":
        return "a smaller algo.batch_size, or more workers (scale=ray scale.num_workers=N)"
    if largest == "segmenter":
        return "segmenter.batch_size=1, or scale.reward_actors=N"
    if not work.adapters:
        return "policy.lora_rank=16 trains adapters"
    if work.size > 2:
        return "policy.dtype=bfloat16"
    return "a smaller policy, or a smaller env.image_size"


def _line(words: str, value: str) -> str:
    return f"{words:<{WIDTH}}{value:>12}"
