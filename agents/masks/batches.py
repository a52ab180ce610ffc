"""Batches of supervised training: what the environment shows, made here or ahead of time in worker processes.

PyTorch's ``DataLoader`` runs the processes and keeps the batches in order. A batch depends on its number alone, so the
number of processes changes none. Images and targets stay uint8, a quarter of the bytes, until they are on the device.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch.utils.data import DataLoader, Dataset

from maskgym.agents.common import parallel
from maskgym.agents.masks.acting import letterboxed
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError, one_line


class Batch(NamedTuple):
    """Samples of one update.

    Attributes:
        images: uint8 (B, S, S, 3), RGB.
        needs: One text per image.
        targets: uint8 (B, S, S), the share of the ground truth in each pixel times 255.
    """

    images: torch.Tensor
    needs: list[str]
    targets: torch.Tensor

    def pixels(self, device: torch.device) -> torch.Tensor:
        """Convert the images to float32 (B, 3, S, S) in [0, 1] on a device."""
        return self.images.to(device).permute(0, 3, 1, 2).float() / 255

    def wanted(self, device: torch.device) -> torch.Tensor:
        """Convert the targets to float32 (B, 1, S, S) in [0, 1] on a device."""
        return self.targets.to(device)[:, None].float() / 255


class Batches(Dataset):
    """Batches of this worker by the number of their update, from 0; consecutive updates take turns at the environments.

    Each epoch has its own order of samples. The environments are copies with one sub-environment per sample of a batch,
    so that no more is loaded than is shown.

    Args:
        envs: Environments of the training split that reset by index, with ``autoreset_mode=DISABLED``.
        batch_size: Global batch: samples per update over all workers (see `maskgym.agents.common.parallel`).
        seed: Seed of the order of samples.
    """

    def __init__(self, envs: Sequence[VectorEnv], batch_size: int, seed: int) -> None:
        self.own = np.arange(parallel.rank(), batch_size, parallel.size())
        self.envs = [unwrap(env, SampleVectorEnv).resized(len(self.own)) for env in envs]
        self.batch_size, self.seed = batch_size, seed

    def epoch(self, update: int) -> int:
        """Compute the epoch of an update, from 0."""
        samples = self.envs[update % len(self.envs)].num_samples
        return update // len(self.envs) * self.batch_size // samples

    def __getitem__(self, update: int) -> Batch | UserError:
        """Make the batch of an update; the fault of a sample is the result, because PyTorch changes what is raised."""
        env, turn = self.envs[update % len(self.envs)], update // len(self.envs)
        indices = batch_of(turn, self.batch_size, env.num_samples, self.seed)
        chances = np.random.default_rng([self.seed, update]).random(self.batch_size)
        try:
            return show(env, indices[self.own], chances[self.own])
        except UserError as error:
            return error


@contextmanager
def loading(batches: Batches, updates: range, workers: int) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of updates in order, made by worker processes while the caller uses those before.

    The processes end with the block. They are started afresh instead of forked, so that they hold neither the lock of
    the run folder nor a copy of the GPU's context.

    Args:
        batches: The batches.
        updates: Numbers of the updates.
        workers: Number of processes; 0 makes each batch here when it is asked for.

    Raises:
        UserError: If a sample is faulty, a worker process dies, or the environment cannot be sent to one.
    """
    if workers:
        try:
            pickle.dumps(batches)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            told = f"the data cannot be sent to another process ({str(error).splitlines()[0]}): expected 0"
            raise UserError(one_line(f"data.workers={workers}: {told}")) from error
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=updates,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),  # PyTorch draws a seed for the workers, which must not change the run's own draws
    )

    def checked() -> Generator[Batch, None, None]:
        for batch in _started(loader):  # without a name, which the traceback of an error would keep alive
            if isinstance(batch, UserError):
                raise batch
            yield batch

    loaded = checked()
    try:
        yield loaded
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        told = "a process that loads samples died, most likely for lack of memory: expected fewer of them"
        raise UserError(one_line(f"data.workers={workers}: {told} ({str(error).splitlines()[0]})")) from error
    finally:
        loaded.close()


def _started(loader: DataLoader) -> Iterator[Batch | UserError]:
    """Start the processes of a loader so that they ignore Ctrl-C: this process is told of it, and ends them."""
    if threading.current_thread() is not threading.main_thread():  # Ray's; only the main thread may set handlers
        return iter(loader)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGINT, handler)


def show(env: SampleVectorEnv, indices: np.ndarray, chances: np.ndarray) -> Batch:
    """Load samples by index.

    Args:
        env: Environment of the training split.
        indices: Indices of the samples, (num_envs,).
        chances: Random numbers in [0, 1), (num_envs,): with ranked objects, the share that is detected before.
    """
    observations, infos = env.reset(options={"index": indices})
    images, masks = list(observations["image"].copy()), [target[0] for target in infos["target"]]
    needs = [str(need) for need in observations["need"]]
    if "ranks" in infos:
        orders = [np.argsort(-ranks[0], kind="stable") for ranks in infos["ranks"]]
        objects = [mask[order] for mask, order in zip(masks, orders, strict=True)]
        images, masks = _detect(env, indices, images, objects, chances)
    side = images[0].shape[0]
    return Batch(torch.from_numpy(np.stack(images)), needs, torch.from_numpy(letterboxed(masks, side)))


def _detect(
    env: SampleVectorEnv,
    indices: np.ndarray,
    images: list[np.ndarray],
    objects: Sequence[np.ndarray],
    chances: np.ndarray,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Detect some objects by their ground truth; return the images shown then, and the next object of each.

    Args:
        env: Ranking environment, reset to the samples of these indices.
        indices: Indices of the samples, (num_envs,).
        images: Images shown at the start, one per sub-environment.
        objects: Masks bool (n, H, W) per sub-environment, most salient first.
        chances: Random numbers in [0, 1), one per sub-environment: the share of its objects that is detected.
    """
    depths = (chances * [min(env.horizon, len(masks)) for masks in objects]).astype(int)
    for step in range(depths.max()):
        # A sub-environment without remaining detections gets an empty mask, which ends its episode.
        actions = letterboxed([masks[step : step + 1] for masks in objects], images[0].shape[0])
        observations, _, terminated, truncated, _ = env.step(actions.astype(np.float32) / 255)
        for i in np.flatnonzero(depths == step + 1):
            images[i] = observations["image"][i].copy()
        over = terminated | truncated
        if over.any():  # The others can step only after these are reset.
            env.reset(options={"index": indices, "reset_mask": over})
    return images, [masks[depth : depth + 1] for masks, depth in zip(objects, depths, strict=True)]


def batch_of(number: int, size: int, samples: int, seed: int) -> np.ndarray:
    """Compute the indices of a batch, int64 (size,), from consecutive epochs, each its own permutation.

    Args:
        number: Number of the batch, from 0.
        size: Indices per batch.
        samples: Number of samples in the data set.
        seed: Seed of the permutations.
    """
    positions = range(number * size, (number + 1) * size)
    epochs = range(positions[0] // samples, positions[-1] // samples + 1)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(samples) for epoch in epochs}
    return np.array([orders[position // samples][position % samples] for position in positions])
