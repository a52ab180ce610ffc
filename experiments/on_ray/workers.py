"""Runs on Ray: ``scale=ray`` trains one agent in several workers, each on a shard of every global batch.

Every worker runs `maskgym.experiments.training.train.run` with the same config. All evaluate, and rank 0 writes the run
folder. All workers and the machine that runs the command must see this folder under the same path. Workers that die are
restarted from the last checkpoint.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from maskgym import files
from maskgym.aliases import Config, JsonObject, Settings
from maskgym.errors import UserError, one_line
from maskgym.experiments.on_ray import reward_pool, room
from maskgym.experiments.training import train as training
from maskgym.experiments.wiring import cluster, composition, run_folder
from maskgym.experiments.wiring.cluster import connected
from maskgym.experiments.wiring.process import beside
from maskgym.files import disk_error

if TYPE_CHECKING:
    from ray.train import Result, TrainingFailedError

STORAGE = f"{run_folder.CHECKPOINTS}/ray"  # Ray's own output, which nothing reads
POINTER = "pointer.json"  # holds the path of a checkpoint
GONE = ("health check failed", "Connection closed by peer")  # messages of Ray and other workers on a lost worker
KILLED = "one was killed, or its machine went away"
NO_ROOM = "worker group startup timed out"  # of Ray, on a placement group that does not get ready
MARK = f"{STORAGE}/mark"  # a file that all workers must see
SEEN_S = 30  # seconds after which a network file system shows a new file
ASKED_S = 0.5  # interval of Ray's health checks, which also collect reports; Ray's default is 2
BARRIER_S = 24 * 3600  # timeout of collectives: workers wait for the slowest share of an evaluation, or for rank 0


def run(config: Config, folder: Path, resume: bool = False) -> JsonObject:
    """Train on Ray, with the arguments and the result of `maskgym.experiments.training.train.run`.

    Raises:
        UserError: If Ray is not installed, its cluster does not answer or lacks resources, the config is invalid, or
            workers are killed more than ``scale.max_failures`` times.
        ray.train.TrainingFailedError: If the code of workers fails more often.
    """
    # Runs of older versions lack newer keys.
    config = {**config, "scale": composition.option("scale", "ray") | config["scale"]}
    _check(config)
    if _starts_workers(config):
        with _joined(config, folder, again=False):
            _find_room(config)
            return training.run(config, folder, resume)
    with _storage(folder), _progress(config, folder):
        for failures in itertools.count():
            # At the end of a connection Ray frees all that workers held, also that of some which never got ready.
            with _joined(config, folder, again=failures > 0):
                _find_room(config, config["scale"]["timeout_s"] if failures else 0)
                told = _attempt(config, folder, resume, last=failures == config["scale"]["max_failures"])
            if told is None:
                return run_folder.read_json(folder / run_folder.RESULTS)
            tqdm.write(
                one_line(f"workers died ({told}): they are started again, from the last checkpoint"), file=sys.stderr
            )
            resume = (folder / run_folder.CONFIG).exists()
    raise AssertionError("unreachable")


def _find_room(config: Config, patience_s: float = 0) -> None:
    """Check that the cluster has room, wait for machines that went away, and say what workers and actors get."""
    scale, (count, gpus) = config["scale"], cluster.processes(config)
    room.tell(scale, count, room.check(scale, count, gpus, patience_s), gpus)


def _attempt(config: Config, folder: Path, resume: bool, last: bool) -> str | None:
    """Train until the end or until workers die; return why they died, if they may be started again."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    try:
        _fit(config, folder, resume)
        return None
    except (RayActorError, TrainingFailedError) as error:
        # The first is of Ray's controller of the workers, which ends where the head of the cluster goes away.
        fault = _fault(error, config) if isinstance(error, TrainingFailedError) else KILLED
        if last and fault == KILLED:
            told = f"workers died more often than that ({fault})"
            raise UserError(
                f"scale.max_failures={config['scale']['max_failures']}: {told}: {run_folder.how_to_continue(folder)}"
            ) from error
        # A restart cannot succeed on a full disk.
        if last or disk_error(error):
            raise
        return fault


@contextmanager
def _joined(config: Config, folder: Path, again: bool) -> Iterator[None]:
    """Connect to the cluster; SIGTERM, which `ray job stop` and Slurm send, ends the run as Ctrl-C does.

    Args:
        config: Config of the run.
        folder: The run folder.
        again: Whether the run was on the cluster before.

    Raises:
        UserError: If no cluster answers; with how to go on, if the run was on it before.
    """
    with ExitStack() as stack:
        advice = partial(run_folder.how_to_continue, folder)
        try:
            stack.enter_context(connected(config["scale"]["address"], advice=advice))
        except UserError as error:
            if again:
                raise UserError(f"{error}: {advice()}") from error
            raise
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, which sets its own
            stack.callback(signal.signal, signal.SIGTERM, before)
        yield


def _fit(config: Config, folder: Path, resume: bool) -> Result:
    """Start the workers and wait for their end."""
    from ray import train
    from ray.train.torch import TorchTrainer

    from maskgym.experiments.on_ray.process_group import NetworkedTorchConfig

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: object) -> None:
            """Leave Ctrl-C to the run, which prints how to resume; Ray's handler would end the process."""

    scale, settings = config["scale"], {"config": config, "folder": str(folder), "resume": resume}
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths in a config are relative to the command's working directory
    if scale["address"] is None:  # a local machine is never preempted
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(ASKED_S))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(scale["timeout_s"])
    cpus, mark = cluster.cpus_per_worker(config), _marked(folder)
    with reward_pool.started(config, cpus) as actors:
        return Trainer(
            _work,
            train_loop_config={**settings, "actors": actors, "directory": os.getcwd(), "mark": mark},
            torch_config=NetworkedTorchConfig(timeout_s=BARRIER_S),
            scaling_config=train.ScalingConfig(
                num_workers=scale["num_workers"], use_gpu=scale["use_gpu"], resources_per_worker={"CPU": cpus}
            ),
            run_config=train.RunConfig(
                name=folder.name,
                storage_path=str(folder / STORAGE),
                failure_config=train.FailureConfig(controller_failure_limit=0),  # Ray would wait for room forever
            ),
        ).fit()


def _work(settings: Settings) -> None:
    """Run the training in one worker."""
    config, folder = settings["config"], Path(settings["folder"])
    _check_marked(folder, settings["mark"])
    os.chdir(settings["directory"])
    timeout_s = config["scale"]["timeout_s"]
    scorer = reward_pool.RewardPool(settings["actors"], timeout_s) if settings["actors"] else None
    every, last = config["algo"].get("save_every", 1), config["algo"]["updates"]
    report = partial(_report, folder / run_folder.CHECKPOINTS, every, last)
    training.run(config, folder, settings["resume"], scorer, report)


def _marked(folder: Path) -> str:
    """Write into the run folder by what workers recognise it; return that text."""
    mark = secrets.token_hex(8)
    files.write(folder / MARK, mark)
    return mark


def _check_marked(folder: Path, mark: str) -> None:
    """Raise a UserError if this machine does not see the run folder of the command."""
    limit = time.monotonic() + SEEN_S
    while not (folder / MARK).exists() or (folder / MARK).read_text(encoding="utf-8") != mark:
        if time.monotonic() > limit:
            where = f"machine {socket.gethostname()} does not see this folder"
            raise UserError(f"out={folder}: {where}: expected a folder that all machines of the cluster share")
        time.sleep(0.5)


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


def _fault(error: TrainingFailedError, config: Config) -> str:
    """Describe in one line why workers died; raise the cause if it is a `UserError`, or if there was no room."""
    from ray.train import ControllerError, WorkerGroupError

    scale = config["scale"]
    if isinstance(error, ControllerError) and NO_ROOM in str(error):
        raise UserError(
            f"{room.asked(scale)}: no room within {scale['timeout_s']} s (scale.timeout_s): {room.free()}"
        ) from error

    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = [cause(failure) for failure in failures] or [error]
    for one in causes:
        if isinstance(one, UserError):
            raise UserError(str(one)) from error
    said = [" ".join(str(one).split()) for one in causes]
    if any(sign in text for text in said for sign in GONE):
        return KILLED
    return said[0][:300]


def cause(error: BaseException) -> BaseException:
    """Find the root cause of an error that Ray wrapped."""
    inner = getattr(error, "cause", None) or error.__cause__
    return error if inner is None else cause(inner)


def check(scale: Settings) -> None:
    """Raise a UserError if a number of the scale is out of range."""
    least = {"num_workers": 1, "cpus_per_worker": 1, "reward_actors": 0, "max_failures": 0, "timeout_s": 1}
    for key, lowest in least.items():
        if scale[key] is not None and scale[key] < lowest:
            raise UserError(f"scale.{key}={scale[key]}: expected at least {lowest}")


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

    def follow(over: threading.Event) -> None:
        while not over.wait(1):
            rows = run_folder.read_metrics(file) if file.exists() else []
            if rows:
                bar.update(rows[-1]["step"] - bar.n)
                bar.set_postfix({"reward": f"{rows[-1]['reward']:.3f}"} if "reward" in rows[-1] else {})

    with tqdm(total=config["algo"]["updates"], desc=name, unit="update", disable=None) as bar, beside(follow):
        yield
