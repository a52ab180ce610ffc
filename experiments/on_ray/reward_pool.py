"""Rewards on Ray: with ``scale.reward_actors=K``, K actors segment and score answers, apart from the training workers.

Each actor holds its own environments and segmenter, on its own GPU if workers have GPUs. Requests contain sample
indices and texts. An actor batches the requests of all workers that arrive while it is busy. Every image belongs to one
actor, which caches the masks of its phrases. Ray restarts an actor that dies and repeats its pending requests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from maskgym.aliases import Config
from maskgym.experiments.wiring import build

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

Scores = tuple[np.ndarray, dict[str, np.ndarray]]  # rewards and their named terms, float64 (B,) each
Request = tuple[int, Sequence[int], Sequence[str]]  # task index, sample indices, answers


class Scorer:
    """Actor that scores requests in batches.

    Args:
        config: Config of the run.
        directory: Working directory of the command, which paths in the config are relative to.
    """

    def __init__(self, config: Config, directory: str) -> None:
        from maskgym.agents.text.reward_function import Episodes
        from maskgym.segmenters.contracts import ReferringSegmenter
        from maskgym.segmenters.phrases.mask_cache import MaskCache

        os.chdir(directory)
        parts = build.make_parts(config)
        segmenter = parts["segmenter"]
        assert isinstance(segmenter, ReferringSegmenter)  # the environments of text take no other
        self.cache = MaskCache(segmenter)
        parts["segmenter"] = self.cache
        self.episodes = Episodes([build.make_env(config, task, "train", parts) for task in config["env"]["gym_ids"]])
        self._waiting: list[tuple[Request, asyncio.Future[Scores]]] = []
        self._busy = False

    async def score(self, task: int, indices: Sequence[int], answers: Sequence[str]) -> tuple[Scores, tuple[int, int]]:
        """Score answers; return the scores, and the mask cache's hits and misses so far over all workers."""
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._waiting.append(((task, indices, answers), future))
        if not self._busy:
            self._busy = True
            try:
                while self._waiting:
                    batch, self._waiting = self._waiting, []
                    await self._answer(batch)
            finally:
                self._busy = False
        return await future, (self.cache.hits, self.cache.misses)

    async def _answer(self, batch: Sequence[tuple[Request, asyncio.Future[Scores]]]) -> None:
        try:
            found = await asyncio.to_thread(self.score_all, [request for request, _ in batch])
        except Exception as error:  # each waiting request receives it
            for _, asked in batch:
                asked.set_exception(error)
            return
        for (_, asked), scores in zip(batch, found, strict=True):
            asked.set_result(scores)

    def score_all(self, requests: Sequence[Request]) -> list[Scores]:
        """Score requests; those of one task go through its environment together."""
        found: dict[int, Scores] = {}
        for task in {request[0] for request in requests}:
            places = [place for place, request in enumerate(requests) if request[0] == task]
            indices = [index for place in places for index in requests[place][1]]
            values, terms = self.episodes.step(task, indices, [a for place in places for a in requests[place][2]])
            ends = np.cumsum([len(requests[place][1]) for place in places])[:-1]
            parts = [np.split(column, ends) for column in (values, *terms.values())]
            for number, place in enumerate(places):
                own, *others = (part[number] for part in parts)
                found[place] = own, dict(zip(terms, others, strict=True))
        return [found[place] for place in range(len(requests))]


class RewardPool:
    """A worker's client of the actors, with the interface of `maskgym.agents.text.reward_function.Episodes`.

    Args:
        actors: Handles of actors of `Scorer`.
    """

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self.actors = list(actors)
        self._counts = {place: (0, 0) for place in range(len(self.actors))}
        self._expected: dict[tuple[int, int, str], ObjectRef] = {}  # pending requests, by task, sample and answer

    def expect(self, task: int, index: int, answer: str) -> None:
        """Request the score of an answer ahead of `step`, while other answers are still being generated."""
        key = (task, int(index), answer)
        if key not in self._expected:
            self._expected[key] = self.actors[key[1] % len(self.actors)].score.remote(task, [key[1]], [answer])

    def step(self, task: int, indices: Sequence[int], answers: Sequence[str]) -> Scores:
        """Score the answers to samples of one task; return the rewards and their named terms, float64 (B,) each."""
        import ray

        keys = [(task, int(index), answer) for index, answer in zip(indices, answers, strict=True)]
        # Answers without a pending request are sent in one request per actor, to keep messages few.
        groups: dict[ObjectRef | int, list[int]] = {}  # places of answers by request, or by the actor to ask
        for place, key in enumerate(keys):
            groups.setdefault(self._expected.get(key, key[1] % len(self.actors)), []).append(place)
        asked = [
            self.actors[group].score.remote(task, [keys[i][1] for i in places], [answers[i] for i in places])
            if isinstance(group, int)
            else group
            for group, places in groups.items()
        ]
        values: np.ndarray = np.zeros(len(keys))
        terms: dict[str, np.ndarray] = {}
        for places, ((own, named), counts) in zip(groups.values(), ray.get(asked), strict=True):
            values[places] = own  # a pending request has one score, which equal answers share
            owner = keys[places[0]][1] % len(self.actors)
            self._counts[owner] = max(self._counts[owner], counts, key=sum)
            for name, term in named.items():
                terms.setdefault(name, np.zeros(len(keys)))[places] = term
        self._expected = {key: asked for key, asked in self._expected.items() if key[0] != task}
        return values, terms

    def cost(self) -> dict[str, float]:
        """Compute the hit rate of the mask caches so far, over all workers."""
        hits, misses = np.sum(list(self._counts.values()), axis=0)
        return {"mask_cache_hits": float(hits / max(1, hits + misses))}


@contextmanager
def started(config: Config) -> Iterator[list[ActorHandle]]:
    """Start ``scale.reward_actors`` actors, and stop them at the end.

    Yields:
        The handles of the actors.
    """
    import ray

    scale = config["scale"]
    actor = ray.remote(Scorer).options(
        num_cpus=1, num_gpus=int(scale["use_gpu"]), max_restarts=-1, max_task_retries=-1, max_concurrency=1000
    )
    actors = [actor.remote(config, os.getcwd()) for _ in range(scale["reward_actors"])]
    try:
        yield actors
    finally:
        for one in actors:
            ray.kill(one)
