"""``maskgym doctor``: what is installed, on what machine, what optional parts there are, and whether it all works.

maskgym doctor            # with a self-test of about 20 seconds
maskgym doctor --no-test
maskgym doctor --json     # the same for programs
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.experiments.wiring.command import Parser

REQUIRED = (
    *("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "gymnasium", "stable-baselines3"),
    *("segment-anything", "hydra-core", "numpy", "scipy", "pillow", "datasets", "safetensors"),
)
OPTIONAL = {  # module: what it is for, and what installs it
    "ray": ("scale=ray: several workers, reward actors, PPO on RLlib", "maskgym[ray]"),
    "wandb": ("logger=wandb", "maskgym[wandb]"),
    "tensorboard": ("logger=tensorboard", "maskgym[tensorboard]"),
    "openai": ("algo=chat_model, maskgym data reason, needs by a server", "maskgym[dig]"),
    "starlette": ("maskgym play, maskgym data dig: pages on this machine", "maskgym[play]"),
    "sb3_contrib": ("MaskablePPO and RecurrentPPO on clicks", "maskgym[contrib]"),
    "vllm": ("algo.use_vllm=true: vLLM samples the answers of a language model", "trl[vllm]"),
}
# One of each kind of environment, with what answers there; the bundled models are behind each.
EPISODES = {
    "maskgym/SIS-v0": "a text",
    "maskgym/PointPrompt-v0": "clicks",
    "maskgym/UserNeed-v0": "a mask",
}


@dataclass(frozen=True)
class Check:
    """One step of the self-test: what was tried, how long it took, and what went wrong, empty if nothing."""

    name: str
    seconds: float
    fault: str


def main(arguments: Sequence[str]) -> int:
    """Print what is here; return 1 if a required part is missing or a check failed, else 0."""
    parser = Parser(prog="maskgym doctor", description=__doc__)
    parser.add_argument("--no-test", action="store_true", help="leave the self-test out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    found: JsonObject = {"versions": versions(), "machine": machine(), "optional": optional(), "checks": []}
    if not given.json:
        print(_describe(found))
    for check in () if given.no_test else self_test():
        found["checks"].append(asdict(check))
        if not given.json:
            print(
                f"  {'FAILED' if check.fault else 'ok':<8}{check.name:<60}{check.seconds:6.1f} s  {check.fault}",
                flush=True,
            )
    ill = [name for name, found_version in found["versions"].items() if found_version is None]
    ill += [check["name"] for check in found["checks"] if check["fault"]]
    found["healthy"] = not ill
    print(json.dumps(found, indent=2) if given.json else f"\n{'not well: ' + ', '.join(ill) if ill else 'all well'}")
    return 1 if ill else 0


def versions() -> dict[str, str | None]:
    """Return the version of this package, of Python and of each library that is required; None where it is missing."""
    return {"maskgym": _version("maskgym"), "python": platform.python_version(), **{n: _version(n) for n in REQUIRED}}


def machine() -> JsonObject:
    """Return the system, the cores, the memory and the GPUs, sizes in GiB."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "gib": round(properties.total_memory / 2**30, 1)})
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        if os.name == "posix"
        else None,
        "gpus": gpus,
        "mps": bool(torch.backends.mps.is_available()),
    }


def optional() -> dict[str, JsonObject]:
    """Return of each optional part whether it is there, what it enables, and what installs it."""
    return {
        name: {"present": find_spec(name) is not None, "enables": enables, "install": f"pip install '{extra}'"}
        for name, (enables, extra) in OPTIONAL.items()
    }


def self_test() -> Iterator[Check]:
    """Yield the outcome of each check: episodes of each kind, a policy's answer, an update, a picture."""
    for name, kind in EPISODES.items():
        yield _timed(f"an episode of {name}, answered by {kind}", partial(_play, name))
    yield _timed("an answer of the embedded policy", _answer)
    yield _timed("an update of CGPO, and its run folder", _update)


def _play(name: str) -> None:
    """Play an episode with random actions, and draw its end."""
    import gymnasium as gym

    env = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    env.action_space.seed(0)
    over = False
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        over = terminated or truncated
    assert math.isfinite(reward), "the reward is no number"
    assert np.shape(np.asarray(env.render()))[2:] == (3,), "no picture"


def _answer() -> None:
    """Let the bundled policy answer and the environment score the answer."""
    import gymnasium as gym
    from transformers.utils import logging

    from maskgym.policies.text.mllm import tiny_policy

    logging.disable_progress_bar()
    env = gym.make("maskgym/SIS-v0")
    observation, _ = env.reset(seed=0)
    (text,) = tiny_policy().generate([observation])
    _, _, _, _, info = env.step(text)
    assert info["reward_terms"]["format"] == 1, f"a malformed answer: {text[:80]}"


def _update() -> None:
    """Train for one update."""
    import contextlib
    import io
    import tempfile

    from maskgym.experiments import run

    few = ("algo.updates=1", "algo.batch_size=4", "evaluation.samples=2", "evaluation.pictures=1", "env.num_envs=2")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        status = run.main(["env=sis", "algo=cgpo", *few, f"out={folder}/run"])
    assert status == 0, f"exit status {status}"


def _timed(name: str, act: Callable[[], None]) -> Check:
    start = time.perf_counter()
    fault = ""
    try:
        act()
    except Exception as error:  # whatever it is, it is what the doctor is there to tell
        fault = f"{type(error).__name__}: {error}"
    return Check(name, round(time.perf_counter() - start, 2), " ".join(fault.split())[:300])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe(found: JsonObject) -> str:
    """Return everything but the self-test as text."""
    machine = found["machine"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in machine["gpus"]) or "no GPU"
    lines = [f"{machine['system']}, {machine['cores']} cores, {machine['gib']} GiB, {gpus}, {sys.executable}", ""]
    lines += [f"  {name:<20}{number or 'MISSING'}" for name, number in found["versions"].items()]
    lines.append("\noptional")
    for name, part in found["optional"].items():
        there = "there" if part["present"] else part["install"]
        lines.append(f"  {name:<14}{part['enables']:<62}{there}")
    return "\n".join([*lines, "", "self-test"])
