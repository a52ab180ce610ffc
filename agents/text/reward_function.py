"""Environments of text in the form that trainers take: a data set of prompts, and a reward function.

Both come from environments by ``reset`` and ``step``. A row holds the number of a sample; its prompt and images are
what ``reset(index)`` shows. The reward function resets to the same samples and steps with the answers. The agents here
use `Episodes` and `EnvReward`; `EnvRewardFunction` does the same for any other trainer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np
from datasets import Dataset
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image

from maskgym.agents.base import Scorer
from maskgym.agents.common import parallel
from maskgym.aliases import JsonObject, Observation, Settings
from maskgym.data.layout.listing import Reader
from maskgym.data.sample import Dataset as SampleDataset
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.rewards import Answer

OnMetric = Callable[[str, float], None]  # TRL's receiver of scalars, which logs their mean
Parser = Callable[[str], Answer]
Completion = str | Sequence[JsonObject]  # an answer as text, or as messages


class Episodes:
    """Environments, one per task, read by ``(task number, sample number)``; picklable if the environments are.

    Args:
        envs: Vector environments with autoreset DISABLED.
    """

    def __init__(self, envs: Sequence[VectorEnv]) -> None:
        self.envs = list(envs)

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each task."""
        return [unwrap(env, SampleVectorEnv).num_samples for env in self.envs]

    def reset(self, task: int, indices: Sequence[int]) -> tuple[list[Observation], list[str | None]]:
        """Load the observations of samples of one task, and their rationales if the environment has them."""
        observations: list[Observation] = []
        rationales: list[str | None] = []
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
        """Collect no scalars, because the caller measures the time of `step`."""
        return {}

    def expect(self, task: int, index: int, answer: str) -> None:
        """Ignore an early answer, because scoring in this process would stop generation."""

    def _chunks(self, task: int, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Cut indices to the environment's width; repeats fill up the last chunk."""
        width = self.envs[task].num_envs
        parts = [np.asarray(indices[start : start + width]) for start in range(0, len(indices), width)]
        return [(np.resize(part, width), len(part)) for part in parts]

    def rows(self, steps: int, batch: int, seed: int) -> Dataset:
        """Build ``steps`` batches of ``batch`` rows; tasks take turns, and each epoch of a task has its own order."""
        orders = []
        for task, size in enumerate(self.sizes):
            generator = np.random.default_rng([seed, task])
            rounds = -(-steps * batch // size)
            orders.append(np.concatenate([generator.permutation(size) for _ in range(rounds)]))
        tasks = [step % len(self.envs) for step in range(steps)]
        places = [step // len(self.envs) * batch for step in range(steps)]
        indices = [orders[task][place : place + batch] for task, place in zip(tasks, places, strict=True)]
        columns = {"task": np.repeat(tasks, batch), "index": np.concatenate(indices)}
        return Dataset.from_dict(columns).with_transform(Rows(self))

    def every_row(self) -> Dataset:
        """Build one row per sample, task after task."""
        sizes = self.sizes
        tasks = np.repeat(range(len(sizes)), sizes)
        columns = {"task": tasks, "index": np.concatenate([np.arange(size) for size in sizes])}
        return Dataset.from_dict(columns).with_transform(Rows(self))

    def rationale_rows(self) -> Dataset:
        """Build one row per sample with a rationale, task after task.

        Raises:
            UserError: If no sample of a task has one, or its environment shows none, as outside the training split.
        """
        tasks: list[int] = []
        indices: list[int] = []
        for task, env in enumerate(self.envs):
            dataset = unwrap(env, SampleVectorEnv).dataset
            if not dataset.with_rationale or dataset.split != "train":
                raise UserError(
                    f"{dataset.task}: no sample of the {dataset.split} split has a rationale to imitate: expected a "
                    "data set that has them, or no supervised steps"
                )
            tasks += [task] * len(dataset.with_rationale)
            indices += dataset.with_rationale
        return Dataset.from_dict({"task": tasks, "index": indices}).with_transform(Rows(self))


class Rows:
    """Map row numbers to prompts, images and, if there is one, the rationale as completion."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list]:
        """Build the columns ``prompt``, ``images``, ``completion``, ``task`` and ``index`` of a batch of rows."""
        observations: list[Observation] = [{}] * len(batch["index"])
        rationales: list[str | None] = [None] * len(batch["index"])
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
    """Reward function for TRL over environments: resets to the rows' samples and steps with the answers.

    Args:
        episodes: `Episodes`, or another scorer of answers.
        prefilled: See `EnvRewardFunction`.
        parsers: Parser of each task's answers by its number, for the share of readable answers; None logs none.
    """

    __name__ = "reward"

    def __init__(self, episodes: Scorer, prefilled: str = "", parsers: Sequence[Parser] | None = None) -> None:
        self.episodes, self.prefilled, self.parsers = episodes, prefilled, parsers
        self._cost = {"generated_tokens": 0.0, "reward_calls": 0.0, "scoring_seconds": 0.0, "readable": 0.0}
        self._since = time.monotonic()

    def __call__(
        self,
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        task: Sequence[int],
        index: Sequence[int],
        log_metric: OnMetric | None = None,
        **_: Any,
    ) -> list[float]:
        """Compute one reward per answer, and pass the means of its terms to the trainer's log."""
        start = time.monotonic()
        answers = [self.prefilled + message_text(completion) for completion in completions]
        values = _score(self.episodes, answers, task, index, log_metric)
        parsers = self.parsers or ()
        readable = sum(parsers[number](text).tagged for text, number in zip(answers, task, strict=True) if parsers)
        spent = parallel.total([sum(map(len, completion_ids)), len(values), time.monotonic() - start, readable])
        self._cost = {name: value + more for (name, value), more in zip(self._cost.items(), spent, strict=True)}
        return values

    def cost(self) -> dict[str, float]:
        """Compute the cost since the last call: generated tokens and scored answers of all workers, and scoring time.

        Seconds, milliseconds per answer and the share of elapsed time are means over workers. ``readable_share`` is
        the share of answers whose ``<answer>`` block has the form of the task, if there were answers. A pool of actors
        adds its own scalars.
        """
        cost, self._cost = self._cost, dict.fromkeys(self._cost, 0.0)
        readable = cost.pop("readable")
        told = {"readable_share": readable / cost["reward_calls"]} if self.parsers and cost["reward_calls"] else {}
        elapsed, self._since = time.monotonic() - self._since, time.monotonic()
        seconds = cost["scoring_seconds"] / parallel.size()
        answers = max(1.0, cost["reward_calls"] / parallel.size())
        spent = {"scoring_seconds": seconds, "scoring_ms": 1000 * seconds / answers, "scoring_share": seconds / elapsed}
        return cost | spent | told | self.episodes.cost()


class EnvRewardFunction:
    """Reward of an environment of text as a function for any trainer, such as TRL's.

    The signature is TRL's: completions are text or messages, and ``index``, ``split`` and ``data`` are columns of the
    rows, so that rows of another split, such as those of an ``eval_dataset``, are scored against their own samples. An
    environment is created on first use of its split, in the process that uses it, and is not pickled.

    Args:
        env_id: Gymnasium id: ``maskgym/SOD-v0``, ``maskgym/SIS-v0``, ``maskgym/CoSOD-v0``, or another environment that
            takes texts and resets by index.
        num_envs: Number of sub-environments, whose answers are segmented together.
        split: Split of `rows` without an argument; None means the environment's default. It is part of ``__name__``.
        prefilled: Text with which the chat template begins every answer, such as ``<think>``, and which completions
            therefore lack (see `maskgym.policies.text.mllm.prefilled`).
        **arguments: Arguments of the environment: ``dataset``, ``segmenter``, ``reward``, ``image_size``, ….

    Raises:
        UserError: If there is no such environment; on first use, if its actions are no texts or an argument is invalid.

    Example:
        >>> reward = EnvRewardFunction("maskgym/SIS-v0")  # doctest: +SKIP
        >>> rows = {"train_dataset": reward.rows(), "eval_dataset": reward.rows("test")}  # doctest: +SKIP
        >>> GRPOTrainer(model, reward_funcs=reward, **rows, ...).train()  # doctest: +SKIP
    """

    def __init__(
        self, env_id: str, num_envs: int = 16, split: str | None = None, prefilled: str = "", **arguments: Any
    ) -> None:
        try:
            gym.spec(env_id)
        except gym.error.Error as error:
            raise UserError(f"environment '{env_id}': {error}") from error
        self.env_id, self.num_envs, self.prefilled = env_id, num_envs, prefilled
        self.arguments = arguments if split is None else {**arguments, "split": split}
        self.__name__ = "-".join([env_id.rpartition("/")[2], *([] if split is None else [split])])  # in trainers' logs
        self._others: dict[str, Episodes] = {}

    @cached_property
    def episodes(self) -> Episodes:
        """The environment of the function's own split."""
        return self._make(self.arguments)

    def __call__(
        self,
        completions: Sequence[Completion],
        index: Sequence[int],
        split: Sequence[str] | None = None,
        data: Sequence[str] | None = None,
        log_metric: OnMetric | None = None,
        **_: Any,
    ) -> list[float]:
        """Compute one reward per answer, and pass the means of its terms to ``log_metric``.

        Args:
            completions: Answers (B), as text or messages.
            index: Number of each answer's sample in its split.
            split: Split of each sample; None means the function's own.
            data: Identifier of each sample's data set, as `rows` writes it; None trusts the caller.
            log_metric: Receiver of scalars.

        Raises:
            UserError: If a row is of another data set, its split cannot be read, or a column has another length.
        """
        for column, values in (("index", index), ("split", split), ("data", data)):
            if values is not None and len(values) != len(completions):
                raise UserError(f"{self.__name__}: {len(values)} values of {column} for {len(completions)} completions")
        rewards = np.zeros(len(completions))
        splits: Sequence[str | None] = [None] * len(rewards) if split is None else split
        for name in dict.fromkeys(splits):
            places = [place for place, its_split in enumerate(splits) if its_split == name]
            episodes = self._of(name)
            own = _identify(_dataset(episodes))
            for other in () if data is None else (data[place] for place in places):
                if other != own:
                    raise UserError(f"{self.__name__}: a row is of {other}: this function scores {own}")
            answers = [self.prefilled + message_text(completions[place]) for place in places]
            rewards[places] = _score(
                episodes, answers, [0] * len(places), [index[place] for place in places], log_metric
            )
        return rewards.tolist()

    def rows(self, split: str | None = None) -> Dataset:
        """Build one row per sample of a split; reading a row renders it.

        Args:
            split: ``train``, ``validation`` or ``test``; None means the function's own.

        Returns:
            Columns ``prompt`` (messages), ``images`` (PIL), ``index``, ``split`` and ``data``.
        """
        episodes = self._of(split)
        dataset, count = _dataset(episodes), episodes.sizes[0]
        named = {"split": [dataset.split] * count, "data": [_identify(dataset)] * count}
        return Dataset.from_dict({"index": range(count), **named}).with_transform(partial(_shown, episodes))

    def _of(self, split: str | None) -> Episodes:
        """Find the environment of a split; None means the function's own."""
        if split is None or split == _dataset(self.episodes).split:
            return self.episodes
        if split not in self._others:
            self._others[split] = self._make({**self.arguments, "split": split})
        return self._others[split]

    def _make(self, arguments: Settings) -> Episodes:
        # Gymnasium's other vectorization modes do not reset by index.
        env = gym.make_vec(
            self.env_id,
            num_envs=self.num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.DISABLED,
            **arguments,
        )
        if not isinstance(env.single_action_space, gym.spaces.Text):
            raise UserError(f"environment '{self.env_id}': its actions are no texts: expected such as maskgym/SIS-v0")
        return Episodes([env])

    def __getstate__(self) -> Settings:
        """Pickle everything except the environments."""
        return {name: value for name, value in vars(self).items() if name != "episodes"} | {"_others": {}}


def _shown(episodes: Episodes, batch: Mapping[str, list]) -> dict[str, list]:
    """Add prompts and images to the columns of a batch of rows."""
    shown = Rows(episodes)({"task": [0] * len(batch["index"]), "index": batch["index"]})
    return {name: shown[name] for name in ("prompt", "images")} | {name: list(batch[name]) for name in batch}


def _dataset(episodes: Episodes) -> SampleDataset:
    """Get the data set of the only task."""
    return unwrap(episodes.envs[0], SampleVectorEnv).dataset


def _identify(dataset: SampleDataset) -> str:
    """Name a data set: kind, task, split, size, and a digest of its folder, if it has one, and of its keys."""
    root = str(dataset.root) if isinstance(dataset, Reader) else ""
    digest = hashlib.sha256("\n".join([root, *dataset.keys]).encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{type(dataset).__name__}, {dataset.shown}, {dataset.split}, {len(dataset)} samples, {digest}"


def message_text(completion: Completion) -> str:
    """Extract the text of an answer: the answer itself, or the text of its last message."""
    content = completion if isinstance(completion, str) else completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _score(
    episodes: Scorer,
    answers: Sequence[str],
    task: Sequence[int],
    index: Sequence[int],
    log_metric: OnMetric | None,
) -> list[float]:
    """Compute one reward per answer, and pass the means of each task's terms to the log."""
    values = np.zeros(len(answers))
    for number in sorted(set(task)):
        rows = [row for row, its_task in enumerate(task) if its_task == number]
        values[rows], terms = episodes.step(number, [index[row] for row in rows], [answers[row] for row in rows])
        if log_metric is not None:
            for name, term in terms.items():
                log_metric(f"reward/{name}", float(term.mean()))
    return values.tolist()
