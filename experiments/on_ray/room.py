"""Room for workers and reward actors on the machines of a cluster: checked at once, told, and waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from maskgym.aliases import Settings
from maskgym.errors import UserError, one_line
from maskgym.experiments.wiring import cluster


def check(scale: Settings, count: int, gpus: int, patience_s: float = 0) -> int:
    """Check that the cluster has room for workers and actors, since Ray itself would wait forever.

    Args:
        scale: Settings of ``scale=ray``.
        count: Number of processes.
        gpus: GPUs of each.
        patience_s: Seconds to wait for machines that went away.

    Returns:
        The CPUs of each.

    Raises:
        UserError: If the cluster lacks CPUs or GPUs.
    """
    limit = time.monotonic() + patience_s
    while fault := lacking(count, cpus := cluster.cpus_each(scale, count, gpus), gpus):
        if time.monotonic() >= limit:
            raise UserError(f"{asked(scale)}: {fault}")
        time.sleep(1)
    return cpus


def tell(scale: Settings, count: int, cpus: int, gpus: int) -> None:
    """Say what each process gets, if the machines were split, and what is waited for, if others use the cluster."""
    import ray

    wanted, unused = {"CPU": count * cpus, "GPU": count * gpus}, ray.available_resources()
    if scale["cpus_per_worker"] is None:
        tqdm.write(f"scale.cpus_per_worker: {cpus}, the CPUs of the cluster shared among {count}", file=sys.stderr)
    if any(unused.get(name, 0) < number for name, number in wanted.items()):
        told = f"waits for {_numbers(wanted)}, for at most {scale['timeout_s']} s (scale.timeout_s)"
        tqdm.write(one_line(f"{asked(scale)}: {told}: {free()}"), file=sys.stderr)


def lacking(count: int, cpus: int, gpus: int) -> str | None:
    """Say what the machines of the cluster lack for processes, even if nobody else uses them."""
    import ray

    found = ray.cluster_resources()
    for name, number in {"GPU": count * gpus, "CPU": count * cpus}.items():
        if found.get(name, 0) < number:
            return f"takes {number} {name}s, and there are {found.get(name, 0):g}"
    if (fitting := cluster.room(cpus, gpus)) < count:
        each = _numbers({"CPU": cpus, "GPU": gpus})
        return f"takes {each} on one machine for each of {count}, and the machines have room for {fitting:g}"
    return None


def asked(scale: Settings) -> str:
    """Name the keys that ask for processes."""
    names = ["num_workers", *(["reward_actors"] if scale["reward_actors"] else [])]
    return " ".join(f"scale.{name}={scale[name]}" for name in names)


def free() -> str:
    """Say what nobody uses on the cluster now."""
    import ray

    unused, found = ray.available_resources(), ray.cluster_resources()
    told = [f"{unused.get(name, 0):g} of {found[name]:g} {name}s" for name in ("CPU", "GPU") if found.get(name)]
    return f"{' and '.join(told)} are free"


def _numbers(wanted: Mapping[str, int]) -> str:
    return " and ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in wanted.items() if number)
