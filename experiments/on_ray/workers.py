"""Runs on Ray: ``scale=ray`` trains one agent in several workers, each on a shard of every global batch.

Every worker runs `maskgym.experiments.training.train.run` with the same config. All evaluate, and rank 0 writes the run
folder. All workers and the machine that runs the command must see this folder under the same path. Workers that die are
restarted from the last checkpoint.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from maskgym.aliases import Config, JsonObject, Settings
from maskgym.errors import UserError, one_line
from maskgym.experiments.on_ray import reward_pool
from maskgym.experiments.training import train as training
from maskgym.experiments.wiring import run_folder
from maskgym.experiments.wiring.cluster import connected
from maskgym.files import disk_error

if TYPE_CHECKING:
    from ray.train import Result, TrainingFailedError

STORAGE = f"{run_folder.CHECKPOINTS}/ray"  # Ray's own output, which nothing reads
POINTER = "pointer.json"  # holds the path of a checkpoint
GONE = ("health check failed", "Connection closed by peer")  # messages of Ray and other workers on a lost worker
ASKED_S = 0.5  # interval of Ray's health checks, which also collect reports; Ray's default is 2
BARRIER_S = 24 * 3600  # timeout of collectives: workers wait for the slowest share of an evaluation, or for rank 0


def run(config: Config, folder: Path, resume: bool = False) -> JsonObject:
    """Train on Ray, with the arguments and the result of `maskgym.experiments.training.train.run`.

    Raises:
        UserError: If Ray is not installed, its cluster does not answer or lacks resources, or the config is invalid.
        ray.train.TrainingFailedError: If workers die more than ``scale.max_failures`` times.
    """
    _check(config)
    if _starts_workers(config):
        with connected(config["scale"]["address"]):
            _check_resources(config)
            return training.run(config, folder, resume)
    with connected(config["scale"]["address"]), _storage(folder), _progress(config, folder):
        from ray.train import TrainingFailedError

        _check_resources(config)
        for failures in itertools.count(1):
            try:
                _fit(config, folder, resume)
                return run_folder.read_json(folder / run_folder.RESULTS)
            except TrainingFailedError as error:
                fault = _fault(error)
                # A restart cannot succeed on a full disk.
                if failures > config["scale"]["max_failures"] or disk_error(error):
                    raise
            tqdm.write(
                one_line(f"workers died ({fault}): they are started again, from the last checkpoint"), file=sys.stderr
            )
            resume = (folder / run_folder.CONFIG).exists()
    raise AssertionError("unreachable")


def _fit(config: Config, folder: Path, resume: bool) -> Result:
    """Start the workers and wait for their end."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: object) -> None:
            """Leave Ctrl-C to the run, which prints how to resume; Ray's handler would end the process."""

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths in a config are relative to the command's working directory
    if config["scale"]["address"] is None:  # a local machine is never preempted
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(ASKED_S))
    scale, settings = config["scale"], {"config": config, "folder": str(folder), "resume": resume}
    with reward_pool.started(config) as actors:
        return Trainer(
            _work,
            train_loop_config={**settings, "actors": actors, "directory": os.getcwd()},
            torch_config=TorchConfig(timeout_s=BARRIER_S),
            scaling_config=train.ScalingConfig(
                num_workers=scale["num_workers"],
                use_gpu=scale["use_gpu"],
                resources_per_worker={"CPU": scale["cpus_per_worker"]},
            ),
            run_config=train.RunConfig(name=folder.name, storage_path=str(folder / STORAGE)),
        ).fit()


def _work(settings: Settings) -> None:
    """Run the training in one worker."""
    os.chdir(settings["directory"])
    scorer = reward_pool.RewardPool(settings["actors"]) if settings["actors"] else None
    config, folder = settings["config"], Path(settings["folder"])
    every, last = config["algo"].get("save_every", 1), config["algo"]["updates"]
    report = partial(_report, folder / run_folder.CHECKPOINTS, every, last)
    training.run(config, folder, settings["resume"], scorer, report)


def _report(checkpoints: Path, every: int, last: int, step: int, values: Mapping[str, float]) -> None:
    """Report to Ray the last update, and the first update after each checkpoint with the checkpoint's path.

    Ray accepts one report per health check, so that a report per update would block the workers. The reported
    checkpoint is a file with a path, because Ray would copy the checkpoint itself, which all workers can already read.
    """
    from ray import train

    if (step - 1) % every and step != last:
        return
    told = {"step": step, **values}
    if train.get_context().get_world_rank() or step == 1 or (step - 1) % every:
        train.report(told)
        return
    with tempfile.TemporaryDirectory() as place:
        run_folder.write_json(Path(place) / POINTER, {"path": str(checkpoints)})
        train.report(told, checkpoint=train.Checkpoint.from_directory(place))


def _fault(error: TrainingFailedError) -> str:
    """Describe in one line why workers died; raise the cause if it is a `UserError`."""
    from ray.train import WorkerGroupError

    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = [cause(failure) for failure in failures] or [error]
    for cause in causes:
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
    said = [" ".join(str(cause).split()) for cause in causes]
    if any(sign in text for text in said for sign in GONE):
        return "one was killed, or its machine went away"
    return said[0][:300]


def cause(error: BaseException) -> BaseException:
    """Find the root cause of an error that Ray wrapped."""
    inner = getattr(error, "cause", None) or error.__cause__
    return error if inner is None else cause(inner)


def check(scale: Settings) -> None:
    """Raise a UserError if a number of the scale is out of range."""
    for key, least in (("num_workers", 1), ("cpus_per_worker", 1), ("reward_actors", 0), ("max_failures", 0)):
        if scale[key] < least:
            raise UserError(f"scale.{key}={scale[key]}: expected at least {least}")


def _check(config: Config) -> None:
    from maskgym import agents

    scale = config["scale"]
    check(scale)
    if scale["reward_actors"] and "scorer" not in agents.get(config["algo"]["name"]).takes:
        raise UserError(f"scale.reward_actors={scale['reward_actors']}: expected 0: they score answers in text")
    if config["algo"].get("fsdp") and config["evaluation"]["every"]:
        raise UserError("evaluation.every: with algo.fsdp, rank 0 has all weights only at the end")


def _starts_workers(config: Config) -> bool:
    """Check whether the agent starts its workers itself, as RLlib agents do."""
    from maskgym import agents

    return agents.get(config["algo"]["name"]).starts_workers


def _needs(config: Config) -> dict[str, int]:
    """Count the CPUs and GPUs of a run's workers and actors."""
    scale = config["scale"]
    wanted = {"CPU": scale["num_workers"] * scale["cpus_per_worker"] + scale["reward_actors"]}
    if scale["use_gpu"]:
        wanted["GPU"] = scale["num_workers"] + scale["reward_actors"]
        if _starts_workers(config) and scale["num_workers"] > 1:
            wanted["GPU"] *= 2  # such agents use one GPU for rollouts and one for learning
    return wanted


def check_resources(wanted: Mapping[str, int], asked: str) -> None:
    """Raise a UserError if the cluster lacks what some keys ask for; Ray itself would wait forever."""
    import ray

    found = ray.cluster_resources()
    for name, count in wanted.items():
        if found.get(name, 0) < count:
            raise UserError(f"{asked}: takes {count} {name}s, and there are {found.get(name, 0):g}")


def _check_resources(config: Config) -> None:
    scale = config["scale"]
    actors = f" scale.reward_actors={scale['reward_actors']}" * bool(scale["reward_actors"])
    check_resources(_needs(config), f"scale.num_workers={scale['num_workers']}{actors}")


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Delete Ray's storage folder at the end, and before, because Ray fails on a file that a kill left half written."""
    shutil.rmtree(folder / STORAGE, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder / STORAGE, ignore_errors=True)
        with suppress(OSError):  # the folder is not empty if the run has started
            (folder / STORAGE).parent.rmdir()


@contextmanager
def _progress(config: Config, folder: Path) -> Iterator[None]:
    """Show a progress bar that follows the metrics file of rank 0."""
    name, file = f"{config['env']['name']} {config['algo']['name']}", folder / run_folder.METRICS
    over = threading.Event()

    def follow(bar: tqdm) -> None:
        while not over.wait(1):
            rows = run_folder.read_metrics(file) if file.exists() else []
            if rows:
                bar.update(rows[-1]["step"] - bar.n)
                bar.set_postfix({"reward": f"{rows[-1]['reward']:.3f}"} if "reward" in rows[-1] else {})

    with tqdm(total=config["algo"]["updates"], desc=name, unit="update", disable=None) as bar:
        thread = threading.Thread(target=follow, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
