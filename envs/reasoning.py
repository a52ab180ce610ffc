"""Reasoning to mask: the agent writes referring expressions, and a frozen segmenter turns them into masks.

One family for three tasks of Saliency-R1 (Section 3.1): salient objects, salient instances and co-salient objects. A
step segments the answers of all sub-environments in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from maskgym import rewards, segmenters
from maskgym.aliases import Infos, Observation
from maskgym.data import Dataset, Sample
from maskgym.envs.base import ScalarEnv, limited, make_dataset
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.envs.instructions import instruction as wording
from maskgym.envs.letterbox import letterbox
from maskgym.envs.rendering import frame
from maskgym.envs.spaces import FreeText, ImageGroupSpace, ImageSpace
from maskgym.envs.text.base import LINES, MAX_TEXT, TextVectorEnv
from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.rewards import Answer, AnyReward, Transition
from maskgym.segmenters.phrases.masks import find_masks


class ReasoningVectorEnv(TextVectorEnv):
    """Vector environment of one task, whose sub-environments share data set, segmenter and reward.

    Description:
        Each episode shows one image, or a group of images, and an instruction. The agent answers once. The segmenter
        segments the expressions of the answer, and the reward scores the masks at the size of the sample.

    Observation Space:
        ``Dict(image, instruction)`` for ``sod`` and ``sis``; ``Dict(images, instruction)`` for ``cosod``.
        image: uint8 (S, S, 3), letterboxed with zeros right and below; any size when ``image_size`` is None.
        images: uint8 (K, S, S, 3); images of a smaller group are repeated up to K, and the repeats are not scored. With
        ``whole_groups``, uint8 (k, S, S, 3) with the k images of the group, at most K.
        instruction: The task in words.

    Action Space:
        `FreeText`: the answer, ``<think>…</think><answer>…</answer>`` (see `maskgym.rewards.answers.parse`). Any
        text is legal; the rules of the reward score malformed ones too. With ``reasoning=False`` the answer is
        ``<answer>…</answer>``.

    Reward:
        Value of ``reward`` (see `maskgym.rewards`); the default is half segmentation quality, half format, in [0, 1].

    Starting State:
        A sample drawn uniformly, or the sample of ``options={"index": i}`` (an int, or one per sub-environment).

    Episode End:
        Termination: after the one step. Truncation: never.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the ground truth, a tuple of bool
        (n, H, W)) and ``rationale`` (str or None; without ``reasoning`` only its answer), for supervised learning.
        step: ``reward_terms`` (dict), ``iou`` (of the unions, mean over images), ``expressions`` (tuple of str),
        ``masks`` (tuple of bool (m, H, W), one per image), ``sample_key``, ``index``.

    Arguments:
        num_envs: Number of sub-environments.
        task: ``sod``, ``sis`` or ``cosod``.
        dataset: Name in `maskgym.data`, or a data set of this task.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        segmenter: Name in `maskgym.segmenters`, or a referring segmenter.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        image_size: Side of the observed square in pixels, or None for native sizes (``sod``, ``sis``).
        group_size: K, number of images per group (``cosod``).
        reasoning: Whether answers begin with reasoning; if not, instruction, rationale and format reward consider the
            answer only (Saliency-R1, Table 1, w/o CoT).
        instruction: Wording of the instruction: ``maskgym``, ours, or ``paper``, that of Saliency-R1 (Figure 5).
        hint: Whether the exact form of an answer follows the instruction, for models that were not trained on it.
        whole_groups: Whether a group is shown as it is, without repeats (``cosod``).
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).
        max_episode_steps: Limit that Gymnasium passes; an episode has one step anyway.

    Raises:
        UserError: If an argument is invalid.

    Version History:
        v0: first.

    References:
        Li et al., Saliency-R1, Eq. 1–3 and 16–24.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "sis",
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        segmenter: str | segmenters.ReferringSegmenter = "evf_sam_tiny",
        reward: AnyReward = "saliency_strict",
        image_size: int | None = 128,
        group_size: int = 4,
        reasoning: bool = True,
        instruction: str = "maskgym",
        hint: bool = False,
        whole_groups: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        _check_arguments(task, image_size, group_size)
        self._instruction = wording(task, reasoning, instruction, hint)
        shown = make_dataset(dataset, task, split, **({"group_size": group_size} if task == "cosod" else {}))
        if shown.task != task:
            raise UserError(f"dataset is for task '{shown.task}': expected '{task}'")
        super().__init__(num_envs, shown, reward, render_mode, autoreset_mode)
        self.horizon = limited(1, max_episode_steps)
        self.task, self.image_size, self.group_size, self.reasoning = task, image_size, group_size, reasoning
        made = segmenters.make(segmenter) if isinstance(segmenter, str) else segmenter
        if not isinstance(made, segmenters.ReferringSegmenter):
            raise UserError(f"segmenter={segmenter}: takes no phrases: expected a referring one, such as evf_sam_tiny")
        self.segmenter = made
        self.whole_groups, self.instruction_name, self.hint = whole_groups, instruction, hint
        self.single_observation_space = self._observation_space()
        self.single_action_space = FreeText(MAX_TEXT)
        self._allocate(num_envs)

    @property
    def instruction(self) -> str:
        """Task in words; a subclass may word it differently."""
        return self._instruction

    def _observation_space(self) -> spaces.Dict:
        words = [wording(task, name=self.instruction_name, hint=self.hint) for task in INSTRUCTIONS]
        text, size = FreeText(max(map(len, words))), self.image_size
        if size is None:
            return spaces.Dict({"image": ImageSpace(), "instruction": text})
        if self.task != "cosod":
            return spaces.Dict({"image": spaces.Box(0, 255, (size, size, 3), np.uint8), "instruction": text})
        if self.whole_groups:
            return spaces.Dict({"images": ImageGroupSpace(self.group_size, size), "instruction": text})
        shape = (self.group_size, size, size, 3)
        return spaces.Dict({"images": spaces.Box(0, 255, shape, np.uint8), "instruction": text})

    def _observe_row(self, i: int) -> Observation:
        images, size = self._shown(i).images, self.image_size
        if self.task == "cosod":
            assert size is not None
            shown = [letterbox(image, size) for image in images[: self.group_size]]
            filled = shown if self.whole_groups else [shown[k % len(shown)] for k in range(self.group_size)]
            return {"images": np.stack(filled), "instruction": self.instruction}
        image = images[0] if size is None else letterbox(images[0], size)
        return {"image": image, "instruction": self.instruction}

    def _start_info(self, i: int, sample: Sample) -> Infos:
        info = super()._start_info(i, sample)
        if not self.reasoning and info.get("rationale"):
            info["rationale"] = rewards.without_reasoning(info["rationale"])
        return info

    @property
    def parser(self) -> Callable[[str], Answer]:
        """Parser of its answers, which can be pickled."""
        return partial(rewards.parse, task=self.task, reasoning=self.reasoning)

    def rebuild(self, sample: Sample, text: str, info: Mapping) -> Transition:
        """Build the transition of an answer again from the info of its step."""
        return Transition(self.task, sample, text, info["masks"], answer=self.parser(text))

    def true_answers(self) -> list[str]:
        """Write the true phrases of each current episode as an answer; see `TextVectorEnv.true_answers`."""
        return [self._true_answer(self._shown(i)) for i in range(self.num_envs)]

    def _true_answer(self, sample: Sample) -> str:
        if sample.phrases is None:
            raise UserError(f"sample '{sample.key}' has no phrases: expected data with phrases")
        phrases = [phrase for of_image in sample.phrases for phrase in of_image]
        if self.task != "sis":  # a region is named once
            phrases = list(dict.fromkeys(phrases))
        tag, think = ("ins" if self.task == "sis" else "rg"), "<think></think>" * self.reasoning
        return f"{think}<answer>{''.join(f'<{tag}>{phrase}</{tag}>' for phrase in phrases)}</answer>"

    def _segment(self, texts: Sequence[str], samples: Sequence[Sample]) -> list[Transition]:
        answers = list(map(self.parser, texts))
        images = [image for sample in samples for image in sample.images]
        phrases = [answer.expressions for sample, answer in zip(samples, answers, strict=True) for _ in sample.images]
        keys = [sample.key for sample in samples for _ in sample.images]
        found = iter(find_masks(self.segmenter, images, phrases, keys))
        masks = [tuple(next(found) for _ in sample.images) for sample in samples]
        return [
            Transition(self.task, sample, text, mask, answer=answer)
            for sample, text, mask, answer in zip(samples, texts, masks, answers, strict=True)
        ]

    def _step_info(self, i: int, transition: Transition) -> Infos:
        unions = zip(transition.masks, transition.sample.masks, strict=True)
        own = float(np.mean([iou(mask.any(axis=0), truth.any(axis=0)) for mask, truth in unions]))
        return super()._step_info(i, transition) | {"iou": own}

    def _frame(self, i: int) -> np.ndarray:
        last, rows = self._last[i], self.group_size if self.task == "cosod" else 1
        masks, text = (None, None) if last is None else (last.masks, str(last.action))
        return frame(self._shown(i), {"prediction": masks}, text, rows, LINES)


class ReasoningEnv(ScalarEnv):
    """Scalar form of `ReasoningVectorEnv`, with its arguments, spaces and infos.

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
