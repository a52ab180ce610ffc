"""Rewards on Ray: with ``scale.reward_actors=K``, K actors segment and score answers, apart from the training workers.

Each actor holds its own environments and segmenter, on its own GPU if workers have GPUs. Requests contain sample
indices and texts. An actor batches the requests of all workers that arrive while it is busy. Every image belongs to one
actor, which caches the masks of its phrases. Ray restarts an actor that dies and repeats its pending requests. An actor
that does not reply in time is restarted once; one that replies with anything but scores stops the run.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from maskgym.aliases import Config
from maskgym.errors import UserError, brief
from maskgym.experiments.wiring import build

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

ATTEMPTS = 2  # waits for a reply, with a restart of the actor in between
Scores = tuple[np.ndarray, dict[str, np.ndarray]]  # rewards and their named terms, float64 (B,) each
Request = tuple[int, Sequence[int], Sequence[str]]  # task index, sample indices, answers


class Scorer:
    """Actor that scores requests in batches.

    Args:
        config: Config of the run.
        directory: Working directory of the command, which paths in the config are relative to.
        name: Name of the actor, for messages.
    """

    def __init__(self, config: Config, directory: str, name: str = "reward actor") -> None:
        self.name = f"{name} on {socket.gethostname()}"
        self._waiting: list[tuple[Request, asyncio.Future[Scores]]] = []
        self._busy = False
        self._fault: UserError | None = None
        try:
            self._make(config, directory)
        except UserError as error:  # Ray would bury it in a text of its own, and start the actor again and again
            self._fault = error

    def _make(self, config: Config, directory: str) -> None:
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
            if self._fault is not None:
                raise self._fault
            found = await asyncio.to_thread(self.score_all, [request for request, _ in batch])
        except UserError as error:
            for _, asked in batch:
                asked.set_exception(UserError(f"{self.name}: {error}"))
            return
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
        timeout_s: Seconds to wait for a reply. An actor that hangs is restarted, since what it waits for may have been
            a file or a server; if it does not reply then either, the run stops.
    """

    def __init__(self, actors: Sequence[ActorHandle], timeout_s: float) -> None:
        self.actors, self.timeout_s = list(actors), timeout_s
        self._counts = {place: (0, 0) for place in range(len(self.actors))}
        self._expected: dict[tuple[int, int, str], ObjectRef] = {}  # pending requests, by task, sample and answer

    def expect(self, task: int, index: int, answer: str) -> None:
        """Request the score of an answer ahead of `step`, while other answers are still being generated."""
        key = (task, int(index), answer)
        if key not in self._expected:
            self._expected[key] = self.actors[key[1] % len(self.actors)].score.remote(task, [key[1]], [answer])

    def step(self, task: int, indices: Sequence[int], answers: Sequence[str]) -> Scores:
        """Score the answers to samples of one task; return the rewards and their named terms, float64 (B,) each.

        Raises:
            UserError: If an actor does not reply in time, or its reply is not one finite reward and value of each term
                per answer.
        """
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
        owners = [keys[places[0]][1] % len(self.actors) for places in groups.values()]
        values: np.ndarray = np.zeros(len(keys))
        terms: dict[str, np.ndarray] = {}
        for (group, places), owner, reply in zip(groups.items(), owners, self._replies(asked, owners), strict=True):
            # A pending request has one score, which equal answers share.
            own, named, counts = _read(reply, len(places) if isinstance(group, int) else 1, self._name(owner))
            values[places] = own
            self._counts[owner] = max(self._counts[owner], counts, key=sum)
            for name, term in named.items():
                terms.setdefault(name, np.zeros(len(keys)))[places] = term
        self._expected = {key: asked for key, asked in self._expected.items() if key[0] != task}
        return values, terms

    def _replies(self, asked: Sequence[ObjectRef], owners: Sequence[int]) -> list[Any]:
        """Wait for the replies to requests; restart the actors that do not reply in time, once."""
        import ray

        for _ in range(ATTEMPTS):
            done, late = ray.wait(list(asked), num_returns=len(asked), timeout=self.timeout_s)
            if not late:
                return ray.get(list(asked))
            ray.get(done)  # which raises what an actor raised
            hanging = sorted({owner for owner, request in zip(owners, asked, strict=True) if request in late})
            for owner in hanging:
                ray.kill(self.actors[owner], no_restart=False)  # Ray repeats its pending requests
        told = f"has not replied for {self.timeout_s} s, {ATTEMPTS} times: is its segmenter that slow, or does it hang?"
        raise UserError(f"scale.timeout_s={self.timeout_s}: {self._name(hanging[0])} {told}")

    def _name(self, number: int) -> str:
        return _named(number, len(self.actors))

    def cost(self) -> dict[str, float]:
        """Compute the hit rate of the mask caches so far, over all workers."""
        hits, misses = np.sum(list(self._counts.values()), axis=0)
        return {"mask_cache_hits": float(hits / max(1, hits + misses))}


def _named(number: int, count: int) -> str:
    return f"reward actor {number + 1} of {count}"


def _read(reply: Any, answers: int, name: str) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[int, int]]:
    """Check the reply of an actor, which may run other code on another machine: an array of one would fit any answers.

    Raises:
        UserError: If it is not rewards, terms and the counts of the cache, or a number is missing or not finite.
    """
    expected = f"expected {answers} finite numbers, one per answer"
    try:
        (own, terms), (hits, misses) = reply
        columns = {"rewards": own, **{f"term '{term}'": terms[term] for term in terms}}
        counts = int(hits), int(misses)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{name} replied {brief(reply)}: expected rewards, terms and counts of its cache") from error
    for column, values in columns.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != (answers,):
            raise UserError(f"{name} replied {brief(values)} as {column}: {expected}")
        if not np.isfinite(values).all():
            raise UserError(f"{name} replied {values[~np.isfinite(values)][0]} as one of the {column}: {expected}")
    return own, dict(terms), counts


@contextmanager
def started(config: Config, cpus: int = 1) -> Iterator[list[ActorHandle]]:
    """Start ``scale.reward_actors`` actors with some CPUs each, and stop them at the end.

    Yields:
        The handles of the actors.
    """
    import ray

    scale, count = config["scale"], config["scale"]["reward_actors"]
    actor = ray.remote(Scorer).options(
        num_cpus=cpus, num_gpus=int(scale["use_gpu"]), max_restarts=-1, max_task_retries=-1, max_concurrency=1000
    )
    actors = [actor.remote(config, os.getcwd(), _named(number, count)) for number in range(count)]
    try:
        yield actors
    finally:
        for one in actors:
            ray.kill(one)
