"""Reasoning to mask: the agent writes referring expressions, a frozen segmenter turns them into masks.

One family for three tasks (Saliency-R1, Section 3.1): salient objects, salient instances, co-salient objects. It is
written once, as a vector environment that asks the segmenter for all sub-environments in one call; the scalar
environment is the vector environment of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from maskgym import data, rewards, segmenters
from maskgym.data import Dataset, Sample
from maskgym.envs.base import SampleVectorEnv, ScalarEnv
from maskgym.envs.instructions import INSTRUCTIONS, instruction
from maskgym.envs.letterbox import letterbox
from maskgym.envs.rendering import picture
from maskgym.envs.spaces import FreeText, ImageSpace
from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.rewards import Reward, Transition

MAX_TEXT = 65536  # characters of an action; longer ones are outside the space, and scored all the same


class ReasoningVectorEnv(SampleVectorEnv):
    """Sub-environments of one task that share data set, segmenter and reward.

    Description:
        Each episode shows one image, or a group of images, and an instruction. The agent answers once. Expressions
        in the answer are segmented, and the masks are scored against the truth at the sample's own size.

    Observation Space:
        ``Dict(image, instruction)`` for ``sod`` and ``sis``; ``Dict(images, instruction)`` for ``cosod``.
        image: uint8 (S, S, 3), letterboxed with zeros right and below; any size when ``image_size`` is None.
        images: uint8 (K, S, S, 3); a group with fewer than K images is filled with repeats, which are not scored.
        instruction: what the task asks for, as text.

    Action Space:
        `FreeText`: the answer, ``<think>…</think><answer>…</answer>`` (see `maskgym.rewards.answers.parse`). Any
        text is legal; a malformed one gets what the rules of the reward give it. With ``reasoning=False`` the answer
        is ``<answer>…</answer>``.

    Reward:
        That of ``reward`` (see `maskgym.rewards`); the default is half segmentation quality, half format, in [0, 1].

    Starting State:
        A sample drawn uniformly, or the one that ``options={"index": i}`` names (an int, or one for each).

    Episode End:
        Termination: after the one step. Truncation: never.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the true masks, a tuple of bool
        (n, H, W)) and ``rationale`` (str or None; without ``reasoning`` its answer alone), for supervised parts.
        step: ``reward_terms`` (dict), ``iou`` (of the unions, mean over images), ``expressions`` (tuple of str),
        ``masks`` (tuple of bool (m, H, W), one an image), ``sample_key``, ``index``.

    Arguments:
        num_envs: Number of sub-environments.
        task: ``sod``, ``sis`` or ``cosod``.
        dataset: A name in `maskgym.data`, or a data set of this task.
        split: ``train`` (default), ``validation`` or ``test``; with a data set object, its own.
        segmenter: A name in `maskgym.segmenters`, or a referring segmenter.
        reward: A name in `maskgym.rewards`, or a reward.
        image_size: Side of the observed square in pixels, or None for native sizes (``sod``, ``sis``).
        group_size: K, images in a group (``cosod``).
        reasoning: Whether answers think first; if not, the instruction, the rationale and the format reward are of the
            answer alone (Saliency-R1, Table 1, w/o CoT).
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).

    Raises:
        UserError: If an argument cannot be used.

    Version History:
        v0: first.

    References:
        Li et al., Saliency-R1, Eq. 1–3 and 16–24.
    """

    action_kind = "text"
    takes = frozenset({"reward", "segmenter"})

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "sis",
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        segmenter: str | segmenters.ReferringSegmenter = "evf_sam_tiny",
        reward: str | Reward = "saliency_strict",
        image_size: int | None = 128,
        group_size: int = 4,
        reasoning: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        _check_arguments(task, image_size, group_size)
        super().__init__(num_envs, _make_dataset(dataset, task, split, group_size), reward, render_mode, autoreset_mode)
        self.task, self.image_size, self.group_size, self.reasoning = task, image_size, group_size, reasoning
        self.segmenter = segmenters.make(segmenter) if isinstance(segmenter, str) else segmenter
        if not isinstance(self.segmenter, segmenters.ReferringSegmenter):
            raise UserError(f"segmenter={segmenter}: takes no phrases: expected a referring one, such as evf_sam_tiny")
        self.single_observation_space = _observation_space(task, image_size, group_size)
        self.single_action_space = FreeText(MAX_TEXT)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations: list[dict[str, Any]] = [{}] * num_envs
        self._last: list[Transition | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes, all or those of ``options["reset_mask"]`` (bool (num_envs,)).

        Sub-environment i is seeded with ``seed + i``, or ``seed[i]``, as the scalar environment would be.

        Raises:
            UserError: If an index is not one of the data set's.
        """
        rows, wanted = self._begin_reset(seed, options)
        infos: dict[str, Any] = {}
        for i in rows:
            infos = self._add_info(infos, self._start(i, wanted[i]), i)
        return self._batched(), infos

    def step(self, actions: Sequence[str]) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Score one answer a sub-environment; see the class for what comes back."""
        live = self._live()
        values, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(self._done):  # NEXT_STEP: this step only starts the next episode
            infos = self._add_info(infos, self._start(i, None), i)
        if len(live):
            transitions = self._segment([str(actions[i]) for i in live], live)
            totals, terms = self.reward(transitions)
            for row, (i, transition) in enumerate(zip(live, transitions, strict=True)):
                values[i], terminated[i], self._done[i], self._last[i] = totals[row], True, True, transition
                info = self._step_info(i, transition, {name: float(term[row]) for name, term in terms.items()})
                if self.autoreset_mode is AutoresetMode.SAME_STEP:
                    final = {"final_obs": self._observations[i], "final_info": info}
                    infos, info = self._add_info(infos, final, i), self._start(i, None)
                infos = self._add_info(infos, info, i)
        if self.render_mode == "human":
            self.render()
        return self._batched(), values, terminated, np.zeros(self.num_envs, dtype=bool), infos

    def _start(self, i: int, index: int | None) -> dict[str, Any]:
        """Begin an episode of sub-environment ``i``; return its info."""
        sample = self._draw(i, index)
        self._last[i], self._observations[i] = None, self._observe(sample)
        info = self._start_info(i, sample)
        if not self.reasoning and info.get("rationale"):
            info["rationale"] = rewards.without_reasoning(info["rationale"])
        return info

    @property
    def instruction(self) -> str:
        """What is asked of the agent; a subclass may ask otherwise."""
        return instruction(self.task, self.reasoning)

    def _observe(self, sample: Sample) -> dict[str, Any]:
        text = self.instruction
        if self.task == "cosod":
            assert self.image_size is not None
            shown = [letterbox(image, self.image_size) for image in sample.images[: self.group_size]]
            filled = [shown[k % len(shown)] for k in range(self.group_size)]
            return {"images": np.stack(filled), "instruction": text}
        image = sample.images[0]
        return {
            "image": image if self.image_size is None else letterbox(image, self.image_size),
            "instruction": text,
        }

    def _segment(self, texts: Sequence[str], live: np.ndarray) -> list[Transition]:
        """Turn answers into masks, with one call of the segmenter for all."""
        samples = [self._sample(int(self._indices[i])) for i in live]
        answers = [rewards.parse(text, self.task, self.reasoning) for text in texts]
        images = [image for sample in samples for image in sample.images]
        phrases = [answer.expressions for sample, answer in zip(samples, answers, strict=True) for _ in sample.images]
        found = iter(self.segmenter.segment(images, phrases))
        masks = [tuple(next(found) > 0.5 for _ in sample.images) for sample in samples]
        return [
            Transition(self.task, sample, text, mask, answer=answer)
            for sample, text, mask, answer in zip(samples, texts, masks, answers, strict=True)
        ]

    def _step_info(self, i: int, transition: Transition, terms: Mapping[str, float]) -> dict[str, Any]:
        assert transition.answer is not None
        unions = zip(transition.masks, transition.sample.masks, strict=True)
        return {
            "sample_key": transition.sample.key,
            "index": int(self._indices[i]),
            "reward_terms": dict(terms),
            "iou": float(np.mean([iou(mask.any(axis=0), truth.any(axis=0)) for mask, truth in unions])),
            "expressions": transition.answer.expressions,
            "masks": transition.masks,
        }

    def _frame(self, i: int) -> np.ndarray:
        sample, last = self._sample(int(self._indices[i])), self._last[i]
        return picture(
            sample, {} if last is None else {"prediction": last.masks}, None if last is None else last.action
        )

    def _batched(self) -> dict[str, Any]:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return cast(dict[str, Any], concatenate(self.single_observation_space, self._observations, empty))


class ReasoningEnv(ScalarEnv):
    """One episode at a time: `ReasoningVectorEnv` of one, whose arguments, spaces and infos it has.

    Example:
        >>> env = gym.make("maskgym/SIS-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> env.step("<think>A disc.</think><answer><ins>a red disc</ins></answer>")[1]  # doctest: +SKIP
        0.9
    """

    vector_class = ReasoningVectorEnv


def _check_arguments(task: str, image_size: int | None, group_size: int) -> None:
    if task not in INSTRUCTIONS:
        raise UserError(f"task={task!r}: expected one of {', '.join(INSTRUCTIONS)}")
    if image_size is None and task == "cosod":
        raise UserError("image_size=None: a group of images needs one size; expected pixels")
    for name, value in (("image_size", image_size), ("group_size", group_size)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: expected at least 1")


def _make_dataset(dataset: str | Dataset, task: str, split: str | None, group_size: int) -> Dataset:
    if isinstance(dataset, str):
        extra = {"group_size": group_size} if task == "cosod" else {}
        return data.make(dataset, task=task, split=split or "train", **extra)
    if dataset.task != task:
        raise UserError(f"dataset is for task '{dataset.task}': expected '{task}'")
    if split is not None and dataset.split != split:
        raise UserError(f"split={split!r}: the data set given is of split '{dataset.split}'")
    return dataset


def _observation_space(task: str, image_size: int | None, group_size: int) -> spaces.Dict:
    text = FreeText(max(map(len, INSTRUCTIONS.values())))
    if image_size is None:
        return spaces.Dict({"image": ImageSpace(), "instruction": text})
    shape = (image_size, image_size, 3)
    if task == "cosod":
        return spaces.Dict({"images": spaces.Box(0, 255, (group_size, *shape), np.uint8), "instruction": text})
    return spaces.Dict({"image": spaces.Box(0, 255, shape, np.uint8), "instruction": text})
