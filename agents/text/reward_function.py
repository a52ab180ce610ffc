"""Environments of text as what trainers want: a data set of prompts, and a reward function.

Both come from environments by ``reset`` and ``step``: a row holds the number of a sample, its prompt and images are
what ``reset(index)`` shows, and the reward function resets to the same samples and steps with the answers. Agents of
ours use `Episodes` and `EnvReward`; `EnvRewardFunction` is the same for a trainer of one's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from datasets import Dataset
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image

from maskgym.agents.common import parallel
from maskgym.errors import UserError

OnMetric = Callable[[str, float], None]  # TRL's: the mean of what is handed on is in the trainer's log


class Episodes:
    """Environments, one a task, read by ``(task number, sample number)``; picklable as far as they are.

    Args:
        envs: Vector environments with autoreset DISABLED.
    """

    def __init__(self, envs: Sequence[VectorEnv]) -> None:
        self.envs = list(envs)

    def reset(self, task: int, indices: Sequence[int]) -> tuple[list[dict[str, Any]], list[str | None]]:
        """Return the observations of samples of one task, and their rationales where the environment gives them."""
        observations, rationales = [], []
        env = self.envs[task]
        for chunk, count in self._chunks(task, indices):
            batch, infos = env.reset(options={"index": chunk})
            observations += [{name: value[k] for name, value in batch.items()} for k in range(count)]
            rationales += list(infos.get("rationale", [None] * count)[:count])
        return observations, rationales

    def step(
        self, task: int, indices: Sequence[int], answers: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Answer samples of one task; return the rewards and their named terms, float64 (B,) each."""
        rewards, terms, start = [], [], 0
        env = self.envs[task]
        for chunk, count in self._chunks(task, indices):
            env.reset(options={"index": chunk})
            texts = [*answers[start : start + count], *[""] * (env.num_envs - count)]
            _, values, _, _, infos = env.step(tuple(texts))
            rewards.append(values[:count])
            terms.append({n: v[:count] for n, v in infos["reward_terms"].items() if not n.startswith("_")})
            start += count
        return np.concatenate(rewards), {name: np.concatenate([part[name] for part in terms]) for name in terms[0]}

    def cost(self) -> dict[str, float]:
        """Return what else there is to log of a step: nothing."""
        return {}

    def _chunks(self, task: int, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Cut indices to the environment's width; the last chunk is filled up with repeats."""
        width = self.envs[task].num_envs
        parts = [np.asarray(indices[start : start + width]) for start in range(0, len(indices), width)]
        return [(np.resize(part, width), len(part)) for part in parts]

    def rows(self, steps: int, batch: int, seed: int) -> Dataset:
        """Return ``steps`` batches of ``batch`` rows, tasks in turn, each task's samples reshuffled when used up."""
        orders = []
        for task, env in enumerate(self.envs):
            base: Any = env.unwrapped
            generator, size = np.random.default_rng([seed, task]), base.num_samples
            rounds = -(-steps * batch // size)
            orders.append(np.concatenate([generator.permutation(size) for _ in range(rounds)]))
        tasks = [step % len(self.envs) for step in range(steps)]
        places = [step // len(self.envs) * batch for step in range(steps)]
        indices = [orders[task][place : place + batch] for task, place in zip(tasks, places, strict=True)]
        columns = {"task": np.repeat(tasks, batch), "index": np.concatenate(indices)}
        return Dataset.from_dict(columns).with_transform(Rows(self))

    def every_row(self) -> Dataset:
        """Return one row a sample, task after task."""
        bases: list[Any] = [env.unwrapped for env in self.envs]
        sizes = [base.num_samples for base in bases]
        columns = {"task": np.repeat(range(len(sizes)), sizes), "index": np.concatenate([np.arange(n) for n in sizes])}
        return Dataset.from_dict(columns).with_transform(Rows(self))


class Rows:
    """Row numbers to prompts, images and, where there is one, the rationale as completion."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        """Return columns ``prompt``, ``images``, ``completion``, ``task`` and ``index`` of a batch of rows."""
        observations: list[Any] = [None] * len(batch["index"])
        rationales: list[Any] = [None] * len(batch["index"])
        for task in sorted(set(batch["task"])):
            places = [place for place, number in enumerate(batch["task"]) if number == task]
            shown, texts = self.episodes.reset(task, [batch["index"][place] for place in places])
            for place, observation, text in zip(places, shown, texts, strict=True):
                observations[place], rationales[place] = observation, text
        images = [list(o["images"]) if "images" in o else [o["image"]] for o in observations]
        return {
            "prompt": [[{"role": "user", "content": o["instruction"]}] for o in observations],
            "images": [[Image.fromarray(np.asarray(image)) for image in row] for row in images],
            "completion": rationales,
            **{name: list(batch[name]) for name in ("task", "index")},
        }


class EnvReward:
    """TRL's reward function over environments: resets to the rows' samples and steps with the answers."""

    __name__ = "reward"

    def __init__(self, episodes: Any) -> None:  # `Episodes`, or what scores in their place
        self.episodes = episodes
        self._cost = {"generated_tokens": 0.0, "reward_calls": 0.0, "scoring_seconds": 0.0}
        self._since = time.monotonic()

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        task: Sequence[int],
        index: Sequence[int],
        log_metric: OnMetric | None = None,
        **_: Any,
    ) -> list[float]:
        """Return one reward an answer; the means of its terms go to the trainer's log."""
        start = time.monotonic()
        values = _score(self.episodes, completions, task, index, log_metric)
        spent = parallel.total([sum(map(len, completion_ids)), len(values), time.monotonic() - start])
        self._cost = {name: value + more for (name, value), more in zip(self._cost.items(), spent, strict=True)}
        return values

    def cost(self) -> dict[str, float]:
        """Return the tokens that all workers generated, the answers they scored, and how long they waited for that.

        All are since this was last asked for; the seconds are a worker's, in the mean, as are the milliseconds of an
        answer and the share of all the time. A pool of actors adds its own.
        """
        cost, self._cost = self._cost, dict.fromkeys(self._cost, 0.0)
        elapsed, self._since = time.monotonic() - self._since, time.monotonic()
        seconds = cost["scoring_seconds"] / parallel.size()
        answers = max(1.0, cost["reward_calls"] / parallel.size())
        spent = {"scoring_seconds": seconds, "scoring_ms": 1000 * seconds / answers, "scoring_share": seconds / elapsed}
        return cost | spent | self.episodes.cost()


class EnvRewardFunction:
    """The reward of an environment of text, as a function for a trainer of one's own: TRL's, or another.

    It is called as TRL calls reward functions, with completions as text or as messages and the column ``index`` of the
    rows. The environment is made at first use, in the process that uses it, and is not pickled.

    Args:
        env_id: Of Gymnasium: ``maskgym/SOD-v0``, ``maskgym/SIS-v0``, ``maskgym/CoSOD-v0``, or one of your own that
            takes texts and resets by index.
        num_envs: Sub-environments: answers segmented at a time.
        **arguments: The environment's: ``dataset``, ``split``, ``segmenter``, ``reward``, ``image_size``, ….

    Raises:
        UserError: If there is no such environment, its actions are no texts, or an argument cannot be used; but for the
            name, at first use.

    Example:
        >>> reward = EnvRewardFunction("maskgym/SIS-v0", split="train")  # doctest: +SKIP
        >>> GRPOTrainer(model, reward_funcs=reward, train_dataset=reward.rows(), ...).train()  # doctest: +SKIP
    """

    def __init__(self, env_id: str, num_envs: int = 16, **arguments: Any) -> None:
        try:
            gym.spec(env_id)
        except gym.error.Error as error:
            raise UserError(f"environment '{env_id}': {error}") from error
        self.env_id, self.num_envs, self.arguments = env_id, num_envs, arguments
        self.__name__ = env_id.rpartition("/")[2]  # what a trainer's log calls it

    @cached_property
    def episodes(self) -> Episodes:
        """The environment, made at first use."""
        # By its own vector entry point: only that one resets by index.
        env = gym.make_vec(
            self.env_id,
            num_envs=self.num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.DISABLED,
            **self.arguments,
        )
        if not isinstance(env.single_action_space, gym.spaces.Text):
            raise UserError(f"environment '{self.env_id}': its actions are no texts: expected such as maskgym/SIS-v0")
        return Episodes([env])

    def __call__(
        self, completions: Sequence[Any], index: Sequence[int], log_metric: OnMetric | None = None, **_: Any
    ) -> list[float]:
        """Return one reward an answer; the means of its terms are handed to ``log_metric``."""
        return _score(self.episodes, completions, [0] * len(completions), index, log_metric)

    def rows(self) -> Dataset:
        """Return one row a sample: ``prompt`` (messages), ``images`` (PIL) and ``index``, made when they are read."""
        base: Any = self.episodes.envs[0].unwrapped
        return Dataset.from_dict({"index": list(range(base.num_samples))}).with_transform(self._shown)

    def _shown(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        shown = Rows(self.episodes)({"task": [0] * len(batch["index"]), "index": batch["index"]})
        return {name: shown[name] for name in ("prompt", "images", "index")}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the environment behind."""
        return {name: value for name, value in vars(self).items() if name != "episodes"}


def _score(
    episodes: Any, completions: Sequence[Any], task: Sequence[int], index: Sequence[int], log_metric: OnMetric | None
) -> list[float]:
    """Return one reward an answer of these tasks and samples; the means of each task's terms are handed on."""
    texts = [c if isinstance(c, str) else _text(c[-1]["content"]) for c in completions]
    values = np.zeros(len(texts))
    for number in sorted(set(task)):
        rows = [row for row, its_task in enumerate(task) if its_task == number]
        values[rows], terms = episodes.step(number, [index[row] for row in rows], [texts[row] for row in rows])
        if log_metric is not None:
            for name, term in terms.items():
                log_metric(f"reward/{name}", float(term.mean()))
    return values.tolist()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
