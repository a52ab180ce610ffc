"""Referring segmentation by boxes, points or phrases: the agent answers a query with JSON that prompts a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from maskgym import segmenters
from maskgym.aliases import Infos, Observation
from maskgym.data import Dataset, Sample
from maskgym.envs.base import ScalarEnv, limited, make_dataset
from maskgym.envs.instructions import refer_instruction
from maskgym.envs.letterbox import fitted_size, letterbox, resized
from maskgym.envs.rendering import frame
from maskgym.envs.spaces import FreeText, ImageSpace
from maskgym.envs.text.base import LINES, MAX_TEXT, TextVectorEnv
from maskgym.envs.text.located import Frame, check_coordinates
from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.rewards import Answer, AnyReward, Located, Transition, format_objects, parse_objects
from maskgym.rewards.objects import check_form, read_rationale
from maskgym.rewards.truth import true_objects
from maskgym.segmenters.phrases.masks import find_masks
from maskgym.segmenters.points.objects import segment_objects
from maskgym.segmenters.points.promptable import PromptableSegmenter

SMALLEST = 28  # side of an image in pixels; Qwen's processors refuse smaller ones
MAX_QUERY = 8192  # characters of a query that are shown
PHRASES = "phrases"  # the form whose answers need a referring segmenter


class ReferVectorEnv(TextVectorEnv):
    """Vector environment in which a query asks for one object of an image, for several, or for none.

    Description:
        Each episode shows one image and a query in words. The agent answers once, with a JSON list of the objects that
        the query refers to. Each entry prompts the segmenter for one mask, and the reward scores the masks at the size
        of the sample. The form of the entries is an argument, so that boxes, points and phrases can be compared on the
        same samples.

    Observation Space:
        ``Dict(image, instruction, query)``.
        image: uint8 (S, S, 3), letterboxed with zeros right and below, S = image_size; or, with ``image_size=None``,
        uint8 (H, W, 3) of any size, whose sides are rounded to multiples of ``multiple``.
        instruction: The task in words, with the form of an answer and the query.
        query: The query alone.

    Action Space:
        `FreeText`: the answer, ``<think>…</think><answer>[…]</answer>`` (see `maskgym.rewards.parse_objects`). Any text
        is legal; the rules of the reward score malformed ones too. Boxes are clipped to the image, and points outside
        it are left out; an object of which nothing remains has an empty mask.

    Reward:
        Value of ``reward`` (see `maskgym.rewards`); the default is half quality of the masks, half format, in [0, 1].

    Starting State:
        A sample drawn uniformly, or the sample of ``options={"index": i}`` (an int, or one per sub-environment).

    Episode End:
        Termination: after the one step. Truncation: never.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the ground truth, a tuple of one bool
        (n, H, W), n = 0 if the query refers to nothing) and ``rationale`` (an answer to imitate in the form and the
        coordinates of the environment, or None if the data set has none), for supervised learning.
        step: ``reward_terms`` (dict), ``iou`` (of the unions; 1 if both are empty), ``expressions`` (tuple of str, the
        phrases), ``masks`` (a tuple of one bool (m, H, W), one row per object), ``objects`` (tuple of
        `maskgym.rewards.Located`, in pixels of the sample's image), ``sample_key``, ``index``.

    Arguments:
        num_envs: Number of sub-environments.
        dataset: Name in `maskgym.data`, or a data set whose samples have one image and a need.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        task: Task of a data set that is given by name.
        form: ``boxes``, ``points``, ``boxes_points`` or ``phrases``.
        coordinates: What the numbers of an answer name places in: ``pixels`` of the observed image, ``thousandths`` of
            its sides, whole numbers from 0 to 1000, or ``shares`` of its sides from 0 to 1.
        segmenter: Name in `maskgym.segmenters`, or a segmenter: a promptable one for boxes and points, a referring one
            for phrases.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        image_size: Side of the observed square in pixels, or None for native sizes.
        multiple: With native sizes, what the observed sides are multiples of, in pixels. A model that answers in pixels
            of its own resized image, as Qwen2.5-VL does, thus sees exactly the observed one (there 28).
        reasoning: Whether answers begin with reasoning.
        hint: Whether the exact form of an answer follows the instruction, for models that were not trained on it.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).
        max_episode_steps: Limit that Gymnasium passes; an episode has one step anyway.

    Raises:
        UserError: If an argument is invalid, an image has a side below 28 pixels, or the segmenter cannot take the
            form.

    Version History:
        v0: first.

    References:
        Liu et al., Seg-Zero; Liu et al., VisionReasoner; You and Wu, Seg-R1: JSON answers that prompt SAM 2.
    """

    task = "refer"

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        task: str = "refer",
        form: str = "boxes",
        coordinates: str = "pixels",
        segmenter: str | segmenters.ReferringSegmenter | PromptableSegmenter = "sam_tiny",
        reward: AnyReward = "refer_strict",
        image_size: int | None = 126,
        multiple: int = 1,
        reasoning: bool = True,
        hint: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        check_form(form)
        check_coordinates(coordinates)
        if image_size is not None and image_size < SMALLEST:
            raise UserError(f"image_size={image_size}: expected at least {SMALLEST}, or None for native sizes")
        if multiple < 1 or (image_size is not None and multiple != 1):
            raise UserError(f"multiple={multiple}: expected at least 1, and 1 beside image_size={image_size}")
        super().__init__(num_envs, make_dataset(dataset, task, split), reward, render_mode, autoreset_mode)
        self.horizon = limited(1, max_episode_steps)
        self.form, self.coordinates, self.reasoning, self.hint = form, coordinates, reasoning, hint
        self.image_size, self.multiple = image_size, multiple
        self.segmenter = _segmenter_of(form, segmenter)
        size = image_size
        shown = ImageSpace() if size is None else spaces.Box(0, 255, (size, size, 3), np.uint8)
        longest = MAX_QUERY + len(refer_instruction("", form, coordinates, reasoning, hint))
        self.single_observation_space = spaces.Dict(
            {"image": shown, "instruction": FreeText(longest), "query": FreeText(MAX_QUERY)}
        )
        self.single_action_space = FreeText(MAX_TEXT)
        self._allocate(num_envs)

    @property
    def parser(self) -> Callable[[str], Answer]:
        """Parser of its answers, which can be pickled."""
        return partial(parse_objects, form=self.form, reasoning=self.reasoning)

    def query(self, sample: Sample) -> str:
        """Select the query of a sample, as it is shown: its need, without surrounding spaces and what is too long."""
        return (sample.need or "").strip()[:MAX_QUERY]

    def instruction(self, sample: Sample) -> str:
        """Word the instruction of a sample."""
        return refer_instruction(self.query(sample), self.form, self.coordinates, self.reasoning, self.hint)

    def frame(self, sample: Sample) -> Frame:
        """Describe where the image of a sample lies in its observation."""
        height, width = sample.images[0].shape[:2]
        if self.image_size is None:
            shown = _rounded(height, self.multiple), _rounded(width, self.multiple)
            return Frame((height, width), shown, shown, self.coordinates)
        shown = fitted_size((height, width), self.image_size)
        return Frame((height, width), shown, (self.image_size, self.image_size), self.coordinates)

    def ideal(self, sample: Sample) -> tuple[Located, ...]:
        """Describe the ground truth in the coordinates of an answer: tight boxes, deepest points and phrases.

        Raises:
            UserError: If the form is ``phrases``, and the sample has none.
        """
        phrases = None if sample.phrases is None else sample.phrases[0]
        if self.form == PHRASES and phrases is None and len(sample.masks[0]):
            raise UserError(f"sample '{sample.key}' has no phrases: expected another form, or data with phrases")
        return tuple(map(self.frame(sample).to_answer, true_objects(sample.masks[0], phrases)))

    def true_answers(self) -> list[str]:
        """Write the ground truth of each current episode as an answer, for an oracle; see `ideal`."""
        think = "" if self.reasoning else None
        return [format_objects(think, self.ideal(self._shown(i)), self.form) for i in range(self.num_envs)]

    def _begin(self, i: int, sample: Sample) -> None:
        height, width = sample.images[0].shape[:2]
        if len(sample.images) != 1:
            raise UserError(f"sample '{sample.key}' has {len(sample.images)} images: expected one")
        if min(height, width) < SMALLEST:
            raise UserError(f"sample '{sample.key}': {width} x {height} pixels: expected sides of at least {SMALLEST}")

    def _observe_row(self, i: int) -> Observation:
        sample = self._shown(i)
        image, size = sample.images[0], self.image_size
        shown = resized(image, self.frame(sample).shown) if size is None else letterbox(image, size)
        return {"image": shown, "instruction": self.instruction(sample), "query": self.query(sample)}

    def _start_info(self, i: int, sample: Sample) -> Infos:
        info = super()._start_info(i, sample)
        if info.get("rationale"):
            info["rationale"] = self.answer_of(sample)
        return info

    def answer_of(self, sample: Sample) -> str:
        """Write the rationale of a sample in the form and the coordinates of the environment.

        A rationale has ``bbox_2d`` in pixels of the sample's image, and whatever else it has of ``point_2d`` and
        ``phrase``; a point that it lacks is the middle of its box.

        Raises:
            UserError: If it is no such answer, or lacks a phrase that the form needs.
        """
        think, found = read_rationale(sample.rationale or "", f"sample '{sample.key}'", self.form)
        shown = [self.frame(sample).to_answer(each) for each in found]
        return format_objects(think if self.reasoning else None, shown, self.form)

    def rebuild(self, sample: Sample, text: str, info: Mapping) -> Transition:
        """Build the transition of an answer again from the info of its step."""
        shown = self.frame(sample).shown
        given = {"answer": self.parser(text), "objects": info["objects"], "shown": shown}
        return Transition(self.task, sample, text, info["masks"], **given)

    def _segment(self, texts: Sequence[str], samples: Sequence[Sample]) -> list[Transition]:
        answers = list(map(self.parser, texts))
        frames = list(map(self.frame, samples))
        objects = [tuple(map(frame.to_image, answer.objects)) for frame, answer in zip(frames, answers, strict=True)]
        images = [sample.images[0] for sample in samples]
        masks = self._masks(images, objects, [sample.key for sample in samples])
        return [
            Transition(self.task, sample, text, (found,), answer=answer, objects=own, shown=frame.shown)
            for sample, text, found, answer, own, frame in zip(
                samples, texts, masks, answers, objects, frames, strict=True
            )
        ]

    def _masks(
        self, images: Sequence[np.ndarray], objects: Sequence[Sequence[Located]], keys: Sequence[str]
    ) -> list[np.ndarray]:
        """Segment the objects of each image, bool (m, H, W)."""
        if not isinstance(self.segmenter, PromptableSegmenter):
            phrases = [[each.phrase or "" for each in row] for row in objects]
            return find_masks(self.segmenter, images, phrases, keys)
        return segment_objects(
            self.segmenter,
            images,
            [[each.box for each in row] for row in objects],
            [[each.points for each in row] for row in objects],
            [[each.labels for each in row] for row in objects],
        )

    def _step_info(self, i: int, transition: Transition) -> Infos:
        sample = transition.sample
        kept = True if sample.void is None else ~sample.void[0]
        own = iou(transition.masks[0].any(axis=0) & kept, sample.union() & kept, empty=1.0)
        return super()._step_info(i, transition) | {"iou": float(own), "objects": transition.objects}

    def _frame(self, i: int) -> np.ndarray:
        sample, last = self._shown(i), self._last[i]
        text = f"Query: {self.query(sample)}" + ("" if last is None else f"\n{last.action}")
        masks, objects = (None, ()) if last is None else (last.masks, last.objects)
        return frame(sample, {"prediction": masks}, text, 1, LINES, {"prediction": objects})


class ReferEnv(ScalarEnv):
    """Scalar form of `ReferVectorEnv`, with its arguments, spaces and infos.

    Example:
        >>> env = gym.make("maskgym/Refer-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation["query"]  # doctest: +SKIP
        'every red disc'
        >>> env.step('<think>One.</think><answer>[{"bbox_2d": [12, 40, 51, 80]}]</answer>')[1]  # doctest: +SKIP
        0.95
    """

    vector_class = ReferVectorEnv


def _segmenter_of(
    form: str, segmenter: str | segmenters.ReferringSegmenter | PromptableSegmenter
) -> segmenters.ReferringSegmenter | PromptableSegmenter:
    made = segmenters.make(segmenter) if isinstance(segmenter, str) else segmenter
    name = segmenter if isinstance(segmenter, str) else type(segmenter).__name__
    if form == PHRASES and not isinstance(made, segmenters.ReferringSegmenter):
        raise UserError(f"form={form}: segmenter={name} takes no phrases: expected a referring one, as evf_sam_tiny")
    if form != PHRASES and not isinstance(made, PromptableSegmenter):
        raise UserError(f"form={form}: segmenter={name} takes no boxes or points: expected one that does, as sam_tiny")
    return made


def _rounded(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
