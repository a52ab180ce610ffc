"""Encode the images of click episodes before training, and say how many embeddings the cache has room for."""

from __future__ import annotations

from collections.abc import Mapping

from gymnasium.vector import VectorEnv
from tqdm import tqdm

from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import one_line


def encode_ahead(envs: Mapping[str, VectorEnv], updates: int) -> None:
    """Encode the images of training environments into the folder of the segmenter's cache, with a progress bar.

    Without ``segmenter.cache_folder``, or if training is too short to show each image once, images are encoded as
    episodes show them, which is as often.

    Args:
        envs: Training environments by task; those without clicks are left alone.
        updates: Number of updates; each begins one episode per sub-environment.
    """
    for task, env in envs.items():
        base = env.unwrapped
        if isinstance(base, PointPromptVectorEnv):
            _encode(task, base, shown=updates * base.num_envs)


def _encode(task: str, env: PointPromptVectorEnv, shown: int) -> None:
    limits, count = env.segmenter.cache_limits, env.num_samples
    if env.segmenter.embedding_dtype != env.segmenter.dtype:
        print(f"{task}: embeddings are {str(env.segmenter.embedding_dtype).removeprefix('torch.')}")
    on_disk = limits.cache_folder is not None
    bound = limits.cache_folder_bytes if on_disk else limits.cache_bytes
    fit = bound // env.segmenter.embedding_bytes
    if fit < min(count, shown):
        key = "cache_folder_bytes" if on_disk else "cache_bytes"
        room = f"{task}: segmenter.{key}={bound} has room for {fit} of {count} embeddings"
        more = "" if on_disk else ", unless segmenter.cache_folder=DIR keeps them"
        print(one_line(f"{room}: the others are encoded at each visit{more}"))
    if on_disk and shown >= count:
        with tqdm(total=count, desc=f"encode, {task}", unit="image", disable=None) as bar:
            for number in env.encode_ahead():
                bar.update(number)
