"""Games in words, in clicks and in masks: their rules, actions and outcomes for the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image

from maskgym.agents.base import Action
from maskgym.aliases import Infos, Json, JsonObject, Observation
from maskgym.chat.asker import data_url, to_png
from maskgym.data import Sample
from maskgym.data.run_lengths import decode_counts, encode, runs
from maskgym.data.sample import CATEGORIES
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.instructions import ENTRIES
from maskgym.envs.letterbox import fitted_size
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.envs.text.base import TextVectorEnv
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.errors import UserError
from maskgym.rewards import Answer, Located, parse, without_reasoning
from maskgym.rewards.answers import TAGS

MOST_TEXT = 20_000  # characters of an answer
LARGEST = 1024  # longest side that the page shows, in pixels; larger images and their masks are made smaller
# What an answer in words holds, by task: what to begin with, and what its tags mean.
FORMS = {
    "sod": (
        "<rg></rg>",
        (
            ("<rg>…</rg>", "a phrase for a salient region; as many as there are"),
            ("<rg>[semantic] dog</rg>", "a bare category: all that belongs to it"),
        ),
    ),
    "sis": ("<ins></ins>", (("<ins>…</ins>", "a phrase for one salient instance, told apart by place or looks"),)),
    "cosod": ("<rg>[semantic] </rg>", (("<rg>[semantic] …</rg>", "the one category that all images share; once"),)),
}


@dataclass(frozen=True)
class Step:
    """One step: its action, reward and outcome.

    Attributes:
        action: Action that the environment received.
        reward: The reward.
        terms: Values of the reward's terms by name.
        iou: IoU of the mask, of all expressions together, or with the object that is scored.
        masks: For each image bool (m, H, W).
        facts: ``patch``, ``label`` and ``repeated`` of a click, ``found`` of a ranking step.
    """

    action: Action
    reward: float
    terms: dict[str, float]
    iou: float
    masks: tuple[np.ndarray, ...]
    facts: JsonObject

    @classmethod
    def of(cls, action: Action, reward: float, info: Infos) -> Step:
        """Build the record of a step from its info."""
        terms = {name: float(value) for name, value in info["reward_terms"].items()}
        facts: JsonObject = {name: info[name].item() for name in ("label", "repeated", "found") if name in info}
        if "point" in info:
            facts["patch"] = int(np.ravel(action)[0])
        return cls(action, reward, terms, float(info["iou"]), tuple(info["masks"]), facts)


@dataclass(frozen=True)
class Episode:
    """A whole or unfinished episode.

    Attributes:
        observation: Observation after the last step.
        steps: Steps so far.
        ended: ``terminated``, ``truncated``, or empty if it continues.
    """

    observation: Observation
    steps: tuple[Step, ...]
    ended: str


class Kind(ABC):
    """One kind of actions in one environment with one sub-environment."""

    name: str

    @abstractmethod
    def rules(self) -> JsonObject:
        """Describe the legal actions."""

    @abstractmethod
    def asks(self, sample: Sample) -> str:
        """Describe the request in words."""

    @abstractmethod
    def read(self, given: Json, sample: Sample) -> Action:
        """Convert an action of the page to the environment's.

        Raises:
            UserError: If it is invalid.
        """

    @abstractmethod
    def masks(self, steps: Sequence[Step]) -> tuple[np.ndarray, ...]:
        """Return the masks of an episode so far, for each image bool (m, H, W)."""

    def ground_truth(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """Return the ground-truth masks of each image, in the order in which the page numbers them."""
        return sample.masks

    def details(self, sample: Sample, episode: Episode) -> JsonObject:
        """Describe what only this kind shows of an episode."""
        return {}

    def rationale(self, sample: Sample) -> str | None:
        """Return the data set's own answer, if it has one."""
        return None

    def to_json(self, action: Action) -> JsonObject | Action:
        """Format an action for the journal."""
        return action


class TextKind(Kind):
    """Answers in words."""

    name = "text"
    env: TextVectorEnv

    def __init__(self, env: ReasoningVectorEnv) -> None:
        self.env, self.instruction = env, env.instruction

    def rules(self) -> JsonObject:
        """Describe the form of an answer; a task of one's own has none."""
        if self.env.task not in FORMS:
            return {"most": MOST_TEXT, "tag": "", "skeleton": "", "help": []}
        inside, tags = FORMS[self.env.task]
        blocks = [("<answer>…</answer>", "holds these, and nothing else")]
        if self.env.reasoning:
            blocks = [("<think>…</think>", "how you come to it: anything, even nothing"), *blocks]
        skeleton = f"{'<think></think>' if self.env.reasoning else ''}<answer>{inside}</answer>"
        return {"most": MOST_TEXT, "tag": TAGS[self.env.task], "skeleton": skeleton, "help": [*blocks, *tags]}

    def asks(self, sample: Sample) -> str:
        """Return the instruction."""
        return self.instruction

    def read(self, given: Json, sample: Sample) -> str:
        """Check a text."""
        if not isinstance(given, str) or len(given) > MOST_TEXT:
            raise UserError(f"an answer: expected a text of at most {MOST_TEXT} characters")
        return given

    def masks(self, steps: Sequence[Step]) -> tuple[np.ndarray, ...]:
        """Return the masks of the expressions."""
        return steps[-1].masks if steps else ()

    def details(self, sample: Sample, episode: Episode) -> JsonObject:
        """Describe how the answer is parsed."""
        return {"answer": self.describe(str(episode.steps[-1].action), sample)} if episode.steps else {}

    def rationale(self, sample: Sample) -> str | None:
        """Return the rationale, without its reasoning if the environment asks for none."""
        if sample.rationale is None or self.env.reasoning:
            return sample.rationale
        return without_reasoning(sample.rationale)

    def describe(self, text: str, sample: Sample) -> JsonObject:
        """Describe how an answer to a sample is parsed.

        Returns:
            ``text``; ``findings``, pairs of whether something is right and what it is; ``expressions``; ``tagged``;
            ``objects``, those of an answer in JSON: each with its ``box``, [left, top, right, bottom] or None, and
            ``points``, [x, y, label], in shares of the image. A task of one's own has no findings.
        """
        task, reasoning = self.env.task, self.env.reasoning
        if task not in TAGS:
            return _described(Answer(text, None, (), False, False), [])
        answer, tag = parse(text, task, reasoning), TAGS[task]
        findings = _blocks(answer, reasoning)
        form = "one <rg>[semantic] …</rg>" if task == "cosod" else f"<{tag}>…</{tag}>, once or more"
        count = len(answer.expressions)
        said = f"{count} expression{'s' * (count != 1)}" if count else f"inside <answer>, nothing but {form}"
        findings.append((answer.tagged, said))
        return _described(answer, findings)


# What an entry of an answer in JSON means, by form.
MEANINGS = {
    "boxes": "a box around one object",
    "points": "points of one object",
    "boxes_points": "a box around one object, and a point on it",
    "phrases": "a phrase for one object, told apart by place or looks",
}


class QueryKind(TextKind):
    """Answers to a query in JSON."""

    env: ReferVectorEnv

    def __init__(self, env: ReferVectorEnv) -> None:
        self.env = env

    def rules(self) -> JsonObject:
        """Describe the form of an answer."""
        entry, told = ENTRIES[self.env.form], MEANINGS[self.env.form]
        blocks = [("<answer>[…, …]</answer>", "holds a JSON list and nothing else; an empty one if nothing fits")]
        if self.env.reasoning:
            blocks = [("<think>…</think>", "how you come to it: anything, even nothing"), *blocks]
        skeleton = f"{'<think></think>' if self.env.reasoning else ''}<answer>[]</answer>"
        return {"most": MOST_TEXT, "tag": "", "skeleton": skeleton, "help": [*blocks, (entry, told)]}

    def asks(self, sample: Sample) -> str:
        """Return the instruction, with the query."""
        return self.env.instruction(sample)

    def rationale(self, sample: Sample) -> str | None:
        """Return the rationale in the form and the coordinates of the environment."""
        return self.env.answer_of(sample) if sample.rationale else None

    def describe(self, text: str, sample: Sample) -> JsonObject:
        """Describe how an answer to a sample is parsed; see `TextKind.describe`."""
        answer = self.env.parser(text)
        findings = _blocks(answer, self.env.reasoning)
        count, entry = len(answer.objects), ENTRIES[self.env.form]
        said = f"{count} object{'s' * (count != 1)}" if answer.tagged else f"a JSON list of {entry}, and nothing else"
        findings.append((answer.tagged, said))
        frame, shape = self.env.frame(sample), sample.images[0].shape
        objects = [_in_shares(frame.to_image(found), shape) for found in answer.objects]
        return {**_described(answer, findings), "objects": objects}


class ClickKind(Kind):
    """Clicks on patches."""

    name = "clicks"

    def __init__(self, env: PointPromptVectorEnv) -> None:
        self.env = env

    def rules(self) -> JsonObject:
        """Describe the grid, the horizon and who labels."""
        source = self.env.label_source
        return {
            "grid": self.env.grid,
            "most": self.env.horizon,
            "labels": "" if source == "policy" else source,
            "repeats": self.env.allow_repeated_clicks,
        }

    def asks(self, sample: Sample) -> str:
        """Return the need, or what the data shows."""
        return sample.need or CATEGORIES.get(self.env.task) or sample.category or "what is salient"

    def read(self, given: Json, sample: Sample) -> int | tuple[int, int]:
        """Check a click; its label counts only where the policy labels."""
        last = self.env.grid**2 - 1
        fits = isinstance(given, list) and len(given) == 2 and all(type(number) is int for number in given)
        if not isinstance(given, list) or not fits or not 0 <= given[0] <= last or given[1] not in (0, 1):
            raise UserError(f"a click: expected a patch from 0 to {last} and a label 0 or 1")
        (action,) = self.env.actions([given[0]], [given[1]])
        return action

    def masks(self, steps: Sequence[Step]) -> tuple[np.ndarray, ...]:
        """Return the current mask; before the first click that of the initial prompts."""
        return tuple(mask[None] for mask, _ in self.env.masks_and_targets())

    def details(self, sample: Sample, episode: Episode) -> JsonObject:
        """Describe the initial prompts, in shares of the image."""
        (state,) = self.env.get_state()
        points = (state.points[: len(state.labels) - len(episode.steps)] / self.env.image_size).tolist()
        return {"prompts": [[*point, int(label)] for point, label in zip(points, state.labels, strict=False)]}


class MaskKind(Kind):
    """Masks over the observed square."""

    name = "masks"

    def __init__(self, env: MaskVectorEnv) -> None:
        self.env = env

    def rules(self) -> JsonObject:
        """Return the number of masks."""
        return {"most": self.env.horizon}

    def asks(self, sample: Sample) -> str:
        """Return the need, or what is to be found."""
        if sample.need and self.env.need:
            return sample.need
        ranking = isinstance(self.env, RankingVectorEnv)
        return "the most salient object that is left" if ranking else "what is salient"

    def read(self, given: Json, sample: Sample) -> np.ndarray:
        """Decode run lengths over the part of the square that shows the image, to float32 (S, S)."""
        side = self.env.image_size
        height, width = fitted_size(sample.images[0].shape, side)
        mask = np.zeros((side, side), np.float32)
        if not isinstance(given, list) or not all(type(length) is int for length in given):
            raise UserError("a mask: expected run lengths")
        try:
            mask[:height, :width] = decode_counts(given, (height, width))
        except (ValueError, OverflowError) as error:
            raise UserError(f"a mask: expected run lengths of {width}x{height} pixels") from error
        return mask

    def masks(self, steps: Sequence[Step]) -> tuple[np.ndarray, ...]:
        """Return the non-empty masks in order."""
        if not steps:
            return ()
        drawn = [step.masks[0] for step in steps if step.masks[0].any()]
        return (np.concatenate(drawn or [steps[0].masks[0][:0]]),)

    def ground_truth(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """Return the ground-truth masks; ranked objects in their order."""
        if sample.ranks is None:
            return sample.masks
        return tuple(
            masks[np.argsort(-ranks, kind="stable")] for masks, ranks in zip(sample.masks, sample.ranks, strict=True)
        )

    def details(self, sample: Sample, episode: Episode) -> JsonObject:
        """Show what is left to find, without the padding."""
        height, width = fitted_size(sample.images[0].shape, self.env.image_size)
        return {"now": picture(episode.observation["image"][:height, :width], shrink=False)}

    def to_json(self, action: Action) -> JsonObject:
        """Encode a mask, thresholded at 0.5."""
        return {**encode(np.asarray(action) > 0.5)}


def kind_of(env: VectorEnv) -> Kind:
    """Find the kind of an environment's actions."""
    kind = unwrap(env, SampleVectorEnv).action_kind
    if kind == "clicks":
        return ClickKind(unwrap(env, PointPromptVectorEnv))
    if kind == "masks":
        return MaskKind(unwrap(env, MaskVectorEnv))
    base = env.unwrapped
    return QueryKind(base) if isinstance(base, ReferVectorEnv) else TextKind(unwrap(env, ReasoningVectorEnv))


def picture(image: np.ndarray, shrink: bool = True) -> JsonObject:
    """Encode uint8 (H, W, 3) for the page: ``url``, a data URL, ``height`` and ``width``."""
    height, width = _shown_size(image.shape) if shrink else image.shape[:2]
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return {"url": data_url(to_png(resized)), "height": height, "width": width}


def shown_runs(masks: Sequence[np.ndarray]) -> list[list[list[int]]]:
    """Encode each mask of each image as run lengths at the size that the page shows."""
    return [[runs(_nearest(mask)) for mask in rows] for rows in masks]


def _described(answer: Answer, findings: Sequence[tuple[bool, str]]) -> JsonObject:
    """Describe a parsed answer, with what was found right and wrong about it; see `TextKind.describe`."""
    expressions = list(answer.expressions)
    found = {"text": answer.text, "findings": list(findings), "expressions": expressions, "tagged": answer.tagged}
    return {**found, "objects": []}


def _in_shares(found: Located, shape: tuple[int, ...]) -> JsonObject:
    """Describe an object, in pixels of an image of shape (H, W, 3), in shares of its sides.

    As in the pictures of runs, a box is clipped to just outside the image, and one without extent is left out; a point
    outside is left out too, as the environment does.
    """
    height, width = shape[:2]
    box = None
    if found.box is not None and found.box[0] < found.box[2] and found.box[1] < found.box[3]:
        sides = (width, height, width, height)
        box = [min(max(value / side, -0.02), 1.02) for value, side in zip(found.box, sides, strict=True)]
    places = zip(found.points, found.labels, strict=True)
    inside = [[x / width, y / height, label] for (x, y), label in places if 0 <= x <= width and 0 <= y <= height]
    return {"box": box, "points": inside}


def _blocks(answer: Answer, reasoning: bool) -> list[tuple[bool, str]]:
    """Check the blocks of an answer, and their order."""
    findings = [_block(answer.text, name) for name in (("think", "answer") if reasoning else ("answer",))]
    if all(right for right, _ in findings) and not answer.structured:
        findings.append((False, "<think> goes before <answer>"))
    return findings


def _block(text: str, name: str) -> tuple[bool, str]:
    """Check that a block is there, as `parse` wants it; describe what it is or should be."""
    opened, closed = text.count(f"<{name}>"), text.count(f"</{name}>")
    if opened == closed == 1 and text.index(f"<{name}>") < text.index(f"</{name}>"):
        return True, f"one <{name}> block"
    return False, f"<{name}> and </{name}> once each, in this order: there are {opened} and {closed}"


def _shown_size(shape: tuple[int, ...]) -> tuple[int, int]:
    return fitted_size(shape, min(LARGEST, max(shape[:2])))


def _nearest(mask: np.ndarray) -> np.ndarray:
    """Resize bool (H, W) to the size that the page shows."""
    rows, columns = (
        np.arange(shown) * side // shown for shown, side in zip(_shown_size(mask.shape), mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]
