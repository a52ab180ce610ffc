"""Hold `maskgym plan` against runs on this machine: seconds of processor time per update, and peak memory.

    python benchmarks/plan.py                  # the bundled policy, a few minutes on one core
    python benchmarks/plan.py --policy DIR     # a policy in a folder, such as 3B of `benchmarks/paper_shape.py`
    python benchmarks/plan.py --sizes          # plan alone: the memory of models x algorithms x image sizes, in GiB

Each run is `maskgym run` in a process of its own, with one thread: CGPO with as many supervised updates as others, and
GRPO. Its first update warms up and is not counted. The plan is that of the same arguments, measured with the same
clock, processor time, in which other programs do not count. The expected length of an answer is that of the run: the
mean of the longest of each batch. Peak memory is the resident memory of the process, weights and libraries included;
weights of a checkpoint in the policy's own precision stay pages of its file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskgym.aliases import JsonObject

COMMON = ("env=sod", "evaluation.samples=0", "evaluation.pictures=0", "algo.save_every=1000")
ALGORITHMS = {
    "cgpo": ("algo=cgpo", "algo.isr_period=2", "algo.isr_sft_steps=1"),
    "grpo": ("algo=grpo", "algo.group_size=4"),
}
TINY = ("policy=qwen2_5_vl_tiny", "algo.batch_size=16", "algo.updates=5")
GIVEN = ("policy=qwen2_5_vl", "env.image_size=224", "algo.batch_size=4", "algo.max_new_tokens=24", "algo.updates=3")
LARGE = ("env=sod", "segmenter=evf_sam", "algo.max_new_tokens=768", "algo.micro_batch_size=8")
TRAINED = {
    "rank 16": ("policy.lora_rank=16",),
    "all of the language part": ("policy.lora_rank=null", "policy.dtype=float32", "+algo.bf16=true"),
}
SIDES = (448, 896, 1344)  # pixels
GIB = 2**30
TITLES = ("policy", "algorithm", "longest answer", "s per update, planned", "measured", "ratio")
TITLES += ("GiB, planned", "measured", "ratio")


def measure(arguments: list[str]) -> JsonObject:
    """Run ``maskgym run`` in this process; return seconds, peaks and the mean of the longest answers."""
    from maskgym.agents.text.language import LanguageAgent
    from maskgym.experiments import run

    ends: list[float] = []
    longest: list[float] = []
    train = LanguageAgent.train

    def timed(agent: LanguageAgent, envs: Any, updates: int, on_log: Any, *others: Any, **more: Any) -> None:
        def log(step: int, values: Mapping[str, float]) -> None:
            ends.append(time.process_time())
            if "completions/max_length" in values:
                longest.append(values["completions/max_length"])
            on_log(step, values)

        train(agent, envs, updates, log, *others, **more)

    LanguageAgent.train = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        if run.main([*arguments, f"out={folder}/run"]):
            raise SystemExit(f"{' '.join(arguments)}: the run failed")
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {
        "seconds": statistics.mean(seconds),
        "each": seconds,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10 / GIB,
        "answer": statistics.mean(longest),
    }


def planned(arguments: list[str], answer: int) -> JsonObject:
    """Plan the run of the same arguments, as `maskgym plan` does."""
    from maskgym.experiments.planning import plan, text
    from maskgym.experiments.wiring import composition
    from maskgym.experiments.wiring.process import silence_transformers

    silence_transformers()
    config = composition.compose(arguments)
    found = plan.of_run(config, None, answer, time.process_time)
    print(text.table(found), file=sys.stderr)
    return {"seconds": found.update, "gib": found.memory.total / GIB}


def apart(kind: str, arguments: list[str], answer: float = 1) -> JsonObject:
    """Call `measure` or `planned` in a process of its own, with one thread."""
    words = [sys.executable, __file__, "--only", kind, "--answer", str(round(answer)), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: failed")
    return json.loads(done.stdout.splitlines()[-1])


def sizes() -> str:
    """Write the planned memory of a worker as Markdown."""
    from maskgym.experiments.planning import memory, plan
    from maskgym.experiments.wiring import composition
    from maskgym.experiments.wiring.process import silence_transformers

    silence_transformers()
    lines = ["| | " + " | ".join(f"{side} pixels" for side in SIDES) + " | held | sharded over 8 |"]
    lines.append("|---" * (len(SIDES) + 3) + "|")
    for size in ("3b", "7b"):
        for algorithm in ("cgpo", "grpo"):
            for name, own in TRAINED.items():
                arguments = [*LARGE, f"policy=qwen2_5_vl_{size}", f"algo={algorithm}", *own]
                found = plan.of_run(composition.compose(arguments), "h100")
                (work,) = found.works.values()
                works = [replace(work, image=(side, side)) for side in SIDES]
                works.append(replace(works[0], workers=8, sharded=True))
                *each, eight = (memory.of_worker(found.model, one, found.device, found.segmenter) for one in works)
                cells = [*(one.total for one in each), *(sum(one.held.values()) for one in (each[0], eight))]
                shown = " | ".join(f"{value / GIB:.0f}" for value in cells)
                lines.append(f"| {size.upper()}, {algorithm}, {name} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Run and plan each case; print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, metavar="DIR", help="folder of a Qwen2.5-VL with weights")
    parser.add_argument("--sizes", action="store_true", help="print the planned memory of models and algorithms")
    parser.add_argument("--only", choices=("measure", "planned"), help=argparse.SUPPRESS)  # the child process
    parser.add_argument("--answer", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further settings of all runs")
    given = parser.parse_intermixed_args()
    if given.sizes:
        print(sizes())
        return
    if given.only:
        found = measure(given.settings) if given.only == "measure" else planned(given.settings, given.answer)
        print(json.dumps(found))
        return
    cases = {"tiny": [*TINY]}
    if given.policy:
        cases = {given.policy.name: [*GIVEN, f"policy.path={given.policy.absolute()}"]}
    print(f"| {' | '.join(TITLES)} |\n" + "|---" * len(TITLES) + "|", flush=True)
    for name, settings in cases.items():
        for algorithm, own in ALGORITHMS.items():
            arguments = [*COMMON, *settings, *own, *given.settings]
            real = apart("measure", arguments)
            told = apart("planned", arguments, real["answer"])
            cells = [f"{real['answer']:.0f}"]
            for key in ("seconds", "gib"):
                cells += [f"{told[key]:.2f}", f"{real[key]:.2f}", f"{told[key] / real[key]:.2f}"]
            print(f"| {name} | {algorithm} | {' | '.join(cells)} |", flush=True)
            print(real["each"], file=sys.stderr)


if __name__ == "__main__":
    main()
