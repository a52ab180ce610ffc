"""Random actions over all registered environments: legal ones are taken, others refused without a trace.

A generator knows by the documented action space whether its action is legal:

- text: any ``str``, also of surrogates, control characters and any length;
- clicks: whole numbers in range, as int, as arrays of any integer type, or as a list of the two numbers of a click;
- masks: numbers in [0, 1], the observed square, as arrays of any real type, order and byte order, or as nested lists.

Left out, because the documentation decides neither way: tensors that need no conversion, booleans among whole
numbers, objects with ``__index__`` only, and values beyond [0, 1] by less than the rounding of float32.

An environment and its twin take the same legal actions, and only the former gets the others. So a difference between
the two at any later step shows that a refused action left a trace.
"""

from __future__ import annotations

import json
import string
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from random import Random

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

import maskgym  # noqa: F401, registers the environments
from maskgym import data
from maskgym.aliases import Settings
from maskgym.benchmarks.fuzzing.verdicts import Tally, describe, guarded, lines_of, strict, wrong_line
from maskgym.envs.base import SampleVectorEnv
from maskgym.errors import UserError

SIDE, PATCH, HORIZON, SCENES = 32, 8, 4, 6  # tiny episodes
ENVS = 3  # sub-environments of a vector environment
LEGAL_SHARE = {"text": 0.25, "masks": 0.25, "clicks": 0.1}  # clicks run a network
BATCH_SHARE = 0.25  # of the illegal actions of vector environments: the whole is illegal, not one of its rows
LONG_TEXT = 300_000  # characters


@dataclass(frozen=True)
class Action:
    """One action.

    Attributes:
        value: The action.
        came: Words of the message that refuses it; empty for a legal action.
        expressions: Referring expressions that a legal text holds; None if the generator does not know.
    """

    value: object
    came: str = ""
    expressions: tuple[str, ...] | None = None


Generator = Callable[[Random, spaces.Space], Action]


QUERY = "refer"  # task whose answers are JSON


class Stripes:
    """Referring segmenter without a network: each phrase is a stripe of the image."""

    fingerprint, input_size = "stripes", 1

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return probabilities, float32 (n, H, W), for each image."""
        found = [
            np.zeros((len(row), *image.shape[:2]), np.float32) for image, row in zip(images, expressions, strict=True)
        ]
        for masks, row in zip(found, expressions, strict=True):
            for mask, phrase in zip(masks, row, strict=True):
                mask[:, len(phrase) % SIDE // 2 : len(phrase) % SIDE] = 1
        return found


class Hostile:
    """Object whose every special method raises the same exception."""

    def __init__(self, error: Exception) -> None:
        self.__dict__["error"] = error

    def _fail(self, *arguments: object) -> bool:
        raise self.__dict__["error"]

    def __repr__(self) -> str:
        raise self.__dict__["error"]

    def __getattr__(self, name: str) -> object:
        raise self.__dict__["error"]

    __array__ = __len__ = __getitem__ = __iter__ = __bool__ = __index__ = __float__ = _fail


class Shaped:
    """Object whose shape is none."""

    shape, dtype = 3, "nothing"


class Number(IntEnum):
    """Whole numbers of a type of their own."""

    NONE, ONE, TWO = 0, 1, 2


class Words(str):
    """Text of a type of its own."""


ERRORS = (KeyError("a"), OSError(5, "b"), ZeroDivisionError(), RecursionError("c"), AssertionError(), UnicodeError("d"))


# --- What is illegal everywhere --------------------------------------------------------------------------------------


def _deep(random: Random) -> list:
    value: list = []
    for _ in range(random.choice((10, 100, 3000, 60_000))):
        value = [value]
    return value


def _circle(random: Random) -> list:
    value: list = [1]
    value.append(value)
    return value


def _odd_record(random: Random) -> np.ndarray:
    names = [f"field {number}\n\x1b[31m" for number in range(random.choice((1, 900)))]
    return np.zeros(random.choice(((), (2,), (SIDE, SIDE))), [(name, "i4") for name in names])


def _odd_type(random: Random) -> object:
    return type(random.choice(("a\x1b[31mb", "line\nline", "x" * 5000)), (), {})()


STRANGERS: tuple[Callable[[Random], object], ...] = (
    lambda random: None,
    lambda random: random.choice((b"", b"1", b"<answer>", bytes(500))),
    lambda random: random.choice((float("nan"), float("inf"), -float("inf"), 0.5, 1e308, 2.0)),
    lambda random: random.choice((1j, complex("nan"), np.complex64(1))),
    lambda random: random.choice((np.float32("nan"), np.float64(0.5), np.float16("inf"), np.longdouble(2))),
    lambda random: random.choice(({}, {"patch": 1}, {0: 0, 1: 1}, {"a": {"b": []}}, {"\x1b[31m": "\n"})),
    lambda random: random.choice((set(), {1, 2}, frozenset({0}))),
    lambda random: random.choice(([], [[]], [None, None], [[1, 2], [3]], ["a", "b"], ["0", "1"], [b"", b""])),
    lambda random: random.choice(((), (None,), ("0",), ((1, 2), (3,)), (1.5, float("nan")))),
    lambda random: random.choice((object(), object, print, iter([1, 2]), iter(()), Ellipsis, NotImplemented)),
    lambda random: random.choice((Decimal("NaN"), Decimal("1.5"), Fraction(1, 3), ValueError("x"), Path("1"))),
    lambda random: random.choice(
        (np.bytes_(b"1"), np.datetime64("2020"), np.timedelta64(1, "D"), np.datetime64("NaT"))
    ),
    lambda random: random.choice((np.array("1"), np.array(None), np.array([None, 1]), np.array(["0", "1"]))),
    lambda random: np.zeros(random.choice(((0,), (7, 7, 7), (1,) * 32, (SIDE, SIDE + 1), (0, SIDE, SIDE))), "f4"),
    lambda random: random.choice((np.void(b"ab"), np.array([b"0", b"1"]), np.zeros((2, 2), "M8[s]"))),
    lambda random: torch.ones(random.choice(((2,), (SIDE, SIDE))), requires_grad=True),
    lambda random: 10 ** random.choice((40, 4000, 6000)),
    lambda random: Hostile(random.choice(ERRORS)),
    lambda random: Shaped(),
    _deep,
    _circle,
    _odd_record,
    _odd_type,
)


def stranger(random: Random, space: spaces.Space) -> Action:
    """Make a value that is no action of any environment."""
    value = random.choice(STRANGERS)(random)
    name = type(value).__name__
    return Action(value, name[:20] if name.isprintable() else name[:1])


# --- Texts -----------------------------------------------------------------------------------------------------------

TASK_TAGS = {"sod": "rg", "sis": "ins", "cosod": "rg"}
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<rg>", "</rg>", "<ins>", "</ins>", "[semantic]", "[", "]", "<"),
    *(
        "<think >",
        "<THINK>",
        "</answer",
        "<answer/>",
        "&lt;",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\udfff",
        "\u202e",
        "\ufeff",
    ),
    *(
        "a red disc",
        "find it",
        " ",
        "\n",
        "\t",
        "\r\n",
        "\u2028",
        "日本",
        "👩‍👩‍👧",
        "e\u0301",
        "%s{0}",
        "$(id)",
        "NaN",
        "-1",
        "''\"`",
    ),
)
ALPHABETS = (
    string.printable,
    "".join(map(chr, range(32))),
    "\ud800\udfff",
    "日本語の答え",
    "a\u0301\u0302\u0303",
    "👍🏽",
)


def _phrase(random: Random) -> str:
    return " ".join(
        "".join(random.choices(string.ascii_lowercase, k=random.randint(1, 6))) for _ in range(random.randint(1, 4))
    )


def _answer(task: str, phrases: Sequence[str], think: str = "why") -> str:
    if task == QUERY:
        return f"<think>{think}</think><answer>{json.dumps([{'phrase': phrase} for phrase in phrases])}</answer>"
    tag = TASK_TAGS[task]
    return f"<think>{think}</think><answer>{''.join(f'<{tag}>{phrase}</{tag}>' for phrase in phrases)}</answer>"


def well_formed(random: Random, space: spaces.Space, task: str = "sis") -> Action:
    """Make a legal answer whose expressions are known."""
    count = 1 if task == "cosod" else random.choice((1, 2, 3, 7, 100))
    phrases = tuple(("[semantic] " if task == "cosod" else "") + _phrase(random) for _ in range(count))
    return Action(_answer(task, phrases), expressions=phrases)


def torn(random: Random, space: spaces.Space, task: str = "sis") -> Action:
    """Make an answer that one change makes malformed, so that it holds no expressions."""
    text = _answer(task, [("[semantic] " if task == "cosod" else "") + _phrase(random)])
    if task == QUERY:
        return Action(random.choice(TORN_JSON)(text), expressions=())
    tag = TASK_TAGS[task]
    other = "ins" if tag == "rg" else "rg"
    changes: tuple[Callable[[str], str], ...] = (
        lambda text: text.replace("</answer>", ""),
        lambda text: text.replace("<answer>", "<answer><answer>"),
        lambda text: text + "<answer></answer>",
        lambda text: text.replace(f"</{tag}>", f"</{tag}></{tag}>"),
        lambda text: text.replace(f"<{tag}>", f"<{tag}><{tag}>"),
        lambda text: text.replace(f"{tag}>", f"{other}>"),
        lambda text: text.replace(f"</{tag}>", f"\x00</{tag}>"),
        lambda text: text.replace(f"</{tag}>", f"\ud800</{tag}>"),
        lambda text: text.replace(f"</{tag}>", f"[x]</{tag}>"),
        lambda text: text.replace("</answer>", "loose words</answer>"),
        lambda text: text.replace("<answer>", "<answer>" + f"<{tag}>a</{tag}>" * 101),
        lambda text: text.upper(),
        lambda text: text[::-1],
    )
    return Action(random.choice(changes)(text), expressions=())


TORN_JSON: tuple[Callable[[str], str], ...] = (
    lambda text: text.replace("</answer>", ""),
    lambda text: text + "<answer></answer>",
    lambda text: text.replace('"phrase"', '"phrases"'),
    lambda text: text.replace('"phrase": ', '"phrase": "a", "phrase": '),
    lambda text: text.replace("}]", "},]"),
    lambda text: text.replace("[{", "{"),
    lambda text: text.replace("}]", "}" + ', {"phrase": "a"}' * 101 + "]"),
    lambda text: text.replace("</answer>", "loose words</answer>"),
    lambda text: text.upper(),
    lambda text: text[::-1],
)
PLACES = (0, 1, -1, 0.5, 1e9, -1e9, 1e308, SIDE, SIDE / 2, 10**30)  # coordinates in and far outside the image


def boxes(random: Random, space: spaces.Space) -> Action:
    """Make an answer of boxes anywhere, of any size."""
    found = [{"bbox_2d": random.choices(PLACES, k=4)} for _ in range(random.choice((0, 1, 2, 7, 100)))]
    return Action(f"<think>why</think><answer>{json.dumps(found)}</answer>", expressions=())


def nest(random: Random, space: spaces.Space) -> Action:
    """Make a text of tags, markers, controls and words in any order."""
    return Action("".join(random.choices(PIECES, k=random.randint(0, 60))))


def noise(random: Random, space: spaces.Space) -> Action:
    """Make a text of one alphabet, sometimes very long."""
    length = random.choice((0, 1, 10, 100, 1000, LONG_TEXT) if random.random() < 0.05 else (0, 1, 10, 100))
    return Action("".join(random.choices(random.choice(ALPHABETS), k=length)))


def long_nest(random: Random, space: spaces.Space) -> Action:
    """Make a very long text of one piece, in the blocks of an answer or not."""
    piece = random.choice(PIECES)
    body = piece * (random.choice((3000, 3000, 3000, LONG_TEXT)) // len(piece))
    return Action(random.choice((body, f"<think>{body}</think>", _answer("sis", [body]), _answer("sod", [body]))))


def other_text(random: Random, space: spaces.Space) -> Action:
    """Make a text of a subclass of ``str``."""
    text = "".join(random.choices(PIECES, k=5))
    return Action(Words(text) if random.random() < 0.5 else np.str_(text.replace("\ud800", "").replace("\udfff", "")))


def number_for_text(random: Random, space: spaces.Space) -> Action:
    """Make a number, or texts in a container, where one text is expected."""
    value = random.choice((0, 1, -1, True, np.int64(3), ["<answer>"], ("a",), {"answer": "a"}, np.array(["a"])))
    return Action(value, type(value).__name__)


# --- Clicks ----------------------------------------------------------------------------------------------------------

INTEGERS = ("i1", "u1", "i2", "<i4", ">i4", "i8", "u8")


def _click(random: Random, space: spaces.Space) -> tuple[int, ...]:
    """Draw a legal click: the patch, and the label if the policy gives it."""
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(random.randrange(int(count)) for count in space.nvec)
    assert isinstance(space, spaces.Discrete)
    return (random.randrange(int(space.n)),)


def click(random: Random, space: spaces.Space) -> Action:
    """Make a legal click of any integer type."""
    numbers = _click(random, space)
    array = np.array(numbers, random.choice(INTEGERS))
    if len(numbers) == 1:
        own = Number(numbers[0]) if numbers[0] < len(Number) else numbers[0]
        return Action(random.choice((numbers[0], own, array[0], array, np.array(numbers[0]), list(numbers), numbers)))
    strided = np.repeat(array, 2)[::2]
    return Action(
        random.choice((list(numbers), numbers, array, strided, [array[0], array[1]], np.asfortranarray(array)))
    )


def click_out_of_range(random: Random, space: spaces.Space) -> Action:
    """Make a click of whole numbers of which one is no patch, or no label."""
    numbers = list(_click(random, space))
    beyond = random.choice((64, 1000, 2**31, 2**63 - 1, -1, -(2**31), -(2**63)))
    numbers[random.randrange(len(numbers))] = beyond
    value = random.choice((numbers, np.array(numbers))) if len(numbers) > 1 or random.random() < 0.5 else beyond
    return Action(value, str(beyond))


def click_of_wrong_length(random: Random, space: spaces.Space) -> Action:
    """Make a click of too few or too many whole numbers."""
    numbers = _click(random, space)
    wrong = [length for length in (0, 1, 2, 3, 64) if length not in ({1} if len(numbers) == 1 else {2})]
    length = random.choice(wrong)
    value = [*numbers, *[0] * 64][:length]
    if len(numbers) == 2 and length == 1 and random.random() < 0.5:
        return Action(numbers[0], "int")
    nested = random.random() < 0.2
    return Action([value] if nested else value, "list")


def click_of_wrong_type(random: Random, space: spaces.Space) -> Action:
    """Make a click in range that is of another type than whole numbers."""
    numbers = _click(random, space)
    array = np.array(numbers, float)
    made = (
        array,
        array.astype("f2"),
        array.astype(complex),
        array.astype(str),
        array.astype(object),
        array.astype(bool),
    )
    value = random.choice(
        (*made, *(one.tolist() for one in made[:1]), [str(one) for one in numbers], array.astype("S3"))
    )
    return Action(value, type(value).__name__)


# --- Masks -----------------------------------------------------------------------------------------------------------

REALS = ("f2", "<f4", ">f4", "f8", "g", "i1", "u1", "i8", "u8", "?")


def _square(random: Random, side: int) -> np.ndarray:
    """Draw float64 (S, S) in [0, 1]: noise, a box, or one value."""
    values = np.random.default_rng(random.getrandbits(32)).random((side, side))
    kind = random.randrange(4)
    if kind == 1:
        values = np.full((side, side), random.choice((0.0, 1.0, 0.5, -0.0, 5e-324, 1 - 2**-24)))
    elif kind:
        box = np.zeros((side, side))
        top, left = random.randrange(side), random.randrange(side)
        box[top : top + side // 2, left : left + side // 2] = 1
        values = box
    return values


def mask(random: Random, space: spaces.Space) -> Action:
    """Make a legal mask of any real type, order and layout."""
    assert isinstance(space, spaces.Box)
    values = _square(random, space.shape[0]).astype(random.choice(REALS))
    views: tuple[Callable[[], object], ...] = (
        lambda: values,
        lambda: np.asfortranarray(values),
        lambda: values[::-1, ::-1],
        lambda: np.broadcast_to(values[:1, :1], values.shape),
        lambda: np.kron(values, np.ones((1, 2), values.dtype))[:, ::2],
        lambda: values.tolist() if values.dtype != np.longdouble else values,
        lambda: tuple(map(tuple, values.tolist())) if values.dtype != np.longdouble else values,
        lambda: list(values),
    )
    return Action(random.choice(views)())


def mask_out_of_range(random: Random, space: spaces.Space) -> Action:
    """Make a mask of the right shape with one value that is none in [0, 1]."""
    assert isinstance(space, spaces.Box)
    values = _square(random, space.shape[0]).astype(random.choice(("f4", "f8", ">f4", "g")))
    worst = random.choice(
        (float("nan"), float("inf"), -float("inf"), 1.001, -0.001, 2.0, 255.0, -1.0, 3e38, 1e300, -1e300)
    )
    if values.dtype.itemsize == 4 and np.isfinite(worst):
        worst = float(np.clip(worst, -3e38, 3e38))
    values.flat[random.randrange(values.size)] = worst
    return Action(
        values.tolist() if random.random() < 0.1 and values.dtype != np.longdouble else values, f"{worst:g}"[:3]
    )


def mask_of_wrong_whole_numbers(random: Random, space: spaces.Space) -> Action:
    """Make a mask of whole numbers with one beyond 1, such as grey levels."""
    assert isinstance(space, spaces.Box)
    kind = random.choice(("u1", "i2", "i8", "u8"))
    values = _square(random, space.shape[0]).round().astype(kind)
    worst = random.choice((2, 255, np.iinfo(kind).max))
    values.flat[random.randrange(values.size)] = worst
    return Action(values, f"{int(worst):g}"[:3])


def mask_of_wrong_shape(random: Random, space: spaces.Space) -> Action:
    """Make a mask in [0, 1] whose shape is not the observed square's."""
    assert isinstance(space, spaces.Box)
    side = space.shape[0]
    shapes = (
        (side,),
        (side, side + 1),
        (side - 1, side),
        (1, side, side),
        (side, side, 1),
        (side, side, 3),
        (side * side,),
    )
    value = np.zeros(
        random.choice((*shapes, (0, 0), (side, 0), (2 * side, side // 2), (1, 1), ())), random.choice(REALS)
    )
    return Action(value, type(value).__name__)


def mask_of_wrong_type(random: Random, space: spaces.Space) -> Action:
    """Make a mask of the right shape that holds no real numbers."""
    values = np.zeros(space.shape or ())
    made = values.astype(random.choice(("c8", "S1", "U1", object, "M8[s]", "m8[s]")))
    ragged = [*values.tolist()[1:], [0.0]]
    value = random.choice(
        (made, made, made, ragged, made.tolist() if made.dtype.kind in "cSUO" and made.dtype != object else made)
    )
    return Action(value, type(value).__name__)


# --- Tables ----------------------------------------------------------------------------------------------------------

LEGAL: dict[str, tuple[Generator, ...]] = {
    "text": (well_formed, well_formed, torn, torn, nest, nest, noise, long_nest, other_text),
    "clicks": (click,),
    "masks": (mask,),
}
ILLEGAL: dict[str, tuple[Generator, ...]] = {
    "text": (stranger, number_for_text),
    "clicks": (stranger, click_out_of_range, click_of_wrong_length, click_of_wrong_type),
    "masks": (stranger, mask_out_of_range, mask_of_wrong_whole_numbers, mask_of_wrong_shape, mask_of_wrong_type),
}
# Whole arguments of `step` of a vector environment that hold no action per sub-environment, from legal actions.
BATCHES: tuple[Callable[[list[object], Random], object], ...] = (
    lambda rows, random: rows[:-1],
    lambda rows, random: [*rows, rows[0]],
    lambda rows, random: rows * 50,
    lambda rows, random: [],
    lambda rows, random: (),
    lambda rows, random: None,
    lambda rows, random: "a" * len(rows),
    lambda rows, random: b"a" * len(rows),
    lambda rows, random: dict(enumerate(rows)),
    lambda rows, random: {number for number, _ in enumerate(rows)},
    lambda rows, random: iter(rows),
    lambda rows, random: (row for row in rows),
    lambda rows, random: 3,
    lambda rows, random: float("nan"),
    lambda rows, random: np.float32(0),
    lambda rows, random: np.array(3),
    lambda rows, random: object(),
    lambda rows, random: list,
    lambda rows, random: Hostile(random.choice(ERRORS)),
    lambda rows, random: Shaped(),
    lambda rows, random: _odd_type(random),
)
CONTAINERS: tuple[Callable[[list[object]], object], ...] = (list, tuple, deque)


# --- Environments ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to make an environment.

    Attributes:
        name: Name of the row.
        env_id: Gymnasium id.
        vector: Whether it is made by ``gymnasium.make_vec``.
        settings: Arguments.
        share: Cases, in proportion to the other rows.
    """

    name: str
    env_id: str
    vector: bool
    settings: Settings
    share: float = 1.0


def variants() -> list[Variant]:
    """List the rows: each registered id, scalar and vector, in all modes of autoreset."""
    found = []
    for env_id in sorted(env_id for env_id in gym.registry if env_id.startswith("maskgym/")):
        kind, task = _kind(env_id), _task(env_id)
        size = {"size": SCENES, "image_size": SIDE}
        settings: Settings = {
            "image_size": SIDE,
            "dataset": data.make("scenes", task=task, split="train", **size),
        }
        name = env_id.removeprefix("maskgym/")
        if kind == "clicks":
            settings = {**settings, "patch_size": PATCH, "horizon": HORIZON}
        plain = {**settings, **({"segmenter": Stripes()} if kind == "text" else {})}
        plain |= {"form": "phrases"} if task == QUERY else {}
        found.append(Variant(name, env_id, False, plain))
        modes = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]
        found += [
            Variant(f"{name}, {mode.value}", env_id, True, plain | {"autoreset_mode": mode}, 1 / 3) for mode in modes
        ]
        if kind == "text":
            found.append(Variant(f"{name}, bundled segmenter", env_id, False, settings, 0.02))
        if kind == "clicks":
            found.append(Variant(f"{name}, one label", env_id, False, {**settings, "label_source": "positive"}, 0.2))
    return found


def _class_of(env_id: str) -> type[SampleVectorEnv]:
    made: object = gym.envs.registration.load_env_creator(str(gym.registry[env_id].vector_entry_point))
    assert isinstance(made, type) and issubclass(made, SampleVectorEnv)
    return made


def _kind(env_id: str) -> str:
    return _class_of(env_id).action_kind


def _task(env_id: str) -> str:
    tasks = {"PointPrompt": "sod", "Refer": QUERY, "UserNeed": "need", "UserNeedPoint": "need", "Ranking": "ranking"}
    own = gym.registry[env_id].kwargs.get("task")
    return str(own) if own else tasks.get(env_id.removeprefix("maskgym/").partition("-")[0], "need")


class Pair:
    """An environment and its twin, which gets no illegal action.

    Args:
        variant: How to make both.
        seed: Seed of both.
    """

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant = variant
        self.envs = [self._make(), self._make()]
        base = getattr(self.envs[0].unwrapped, "vector", self.envs[0].unwrapped)
        assert isinstance(base, SampleVectorEnv)
        self.kind, self.range, self.count = base.action_kind, base.reward.range, base.num_envs
        self.space, self.shown = base.single_action_space, base.single_observation_space
        self.form = getattr(base, "form", "")
        self.task, self.mode = str(getattr(base, "task", "")), base.autoreset_mode
        self.resting = np.zeros(self.count, bool)
        for env in self.envs:
            env.reset(seed=seed)

    def _make(self) -> gym.Env | VectorEnv:
        own = self.variant
        if own.vector:
            return gym.make_vec(own.env_id, num_envs=ENVS, vectorization_mode="vector_entry_point", **own.settings)
        return gym.make(own.env_id, **own.settings)

    def generate(self, table: dict[str, tuple[Generator, ...]], random: Random) -> Action:
        """Draw an action for one sub-environment."""
        made = random.choice(table[self.kind])
        if self.task == QUERY and self.form != "phrases" and made in (well_formed, torn):
            return boxes(random, self.space)
        if made in (well_formed, torn):
            return partial(made, task=self.task)(random, self.space)
        return made(random, self.space)

    def legal(self, random: Random) -> tuple[list[Action], object]:
        """Draw a legal action for all, and how to pass it."""
        rows = [self.generate(LEGAL, random) for _ in range(self.count)]
        values = [row.value for row in rows]
        return rows, random.choice(CONTAINERS)(values) if self.variant.vector else values[0]

    def take(self, rows: Sequence[Action], value: object) -> str:
        """Take a legal action in both; return the failure, empty if there is none."""
        found = [env.step(value) for env in self.envs]
        for env, (observation, reward, _, _, infos) in zip(self.envs, found, strict=True):
            failure = self._wrong(env, rows, observation, np.atleast_1d(np.asarray(reward, float)), infos)
            if failure:
                return f"a legal action: {failure}"
        if not same(*found):
            return "a refused action left a trace: the twin did otherwise"
        over = np.atleast_1d(found[0][2]) | np.atleast_1d(found[0][3])
        return self._go_on(over)

    def _wrong(
        self, env: gym.Env | VectorEnv, rows: Sequence[Action], observation: object, rewards: np.ndarray, infos: dict
    ) -> str:
        """Say what is wrong about a step, empty if nothing is."""
        if not env.observation_space.contains(observation):
            return "the observation is not in its space"
        live = rewards[~self.resting]
        low, high = self.range
        if not (np.isfinite(live).all() and (live >= low - 1e-9).all() and (live <= high + 1e-9).all()):
            return f"rewards {live}: expected {low} to {high}"
        finals = infos.get("final_obs", ())
        if any(final is not None and not self.shown.contains(final) for final in finals):
            return "a final observation is not in its space"
        told = infos.get("final_info", infos).get("expressions")
        if told is not None:
            told = [told] if not self.variant.vector else told
            for row, own, rests in zip(rows, told, self.resting, strict=True):
                if row.expressions is not None and not rests and tuple(own) != row.expressions:
                    return f"expressions {str(own)[:100]}: expected {str(row.expressions)[:100]}"
        return ""

    def _go_on(self, over: np.ndarray) -> str:
        """Begin the next episodes of both where the environment leaves it to its user."""
        if self.variant.vector:
            self.resting = over if self.mode is AutoresetMode.NEXT_STEP else np.zeros(self.count, bool)
            options = {"reset_mask": over} if over.any() and self.mode is AutoresetMode.DISABLED else None
        else:
            options = {} if over.any() else None
        if options is None or same(*(env.reset(options=options) for env in self.envs)):
            return ""
        return "a refused action left a trace: the twin began another episode"

    def illegal(self, random: Random) -> tuple[object, list[str]]:
        """Draw an illegal action, and the words that must be in the message."""
        name = self.variant.env_id
        if not self.variant.vector:
            wrong = self.generate(ILLEGAL, random)
            return wrong.value, [name, "sub-environment 0", wrong.came, "expected"]
        rows = [self.generate(LEGAL, random).value for _ in range(self.count)]
        live = np.flatnonzero(~self.resting)
        if random.random() < BATCH_SHARE or not len(live):
            value = random.choice(BATCHES)(rows, random)
            came = f"{len(value)} actions" if isinstance(value, list | tuple) else type(value).__name__
            return value, [name, came if came.isprintable() else came[:1], f"{self.count}", "expected"]
        wrong, place = self.generate(ILLEGAL, random), random.choice(live.tolist())
        rows[place] = wrong.value
        return random.choice(CONTAINERS)(rows), [name, f"sub-environment {place}:", wrong.came, "expected"]

    def refuse(self, value: object, words: Sequence[str]) -> str:
        """Hand an illegal action to the first of both; return the failure, empty if it was refused by name."""
        try:
            self.envs[0].step(value)
        except UserError as error:
            wrong = next(filter(None, map(wrong_line, lines_of(error))), "")
            absent = [word for word in words if word[:40] not in str(error)]
            return wrong or (f"a message without {absent}: {error}" if absent else "")
        except Exception as error:
            return describe(error)
        return f"an illegal action was taken: expected one line with {list(words)}"


def same(one: object, other: object) -> bool:
    """Compare results of steps to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.dtype == object:
            return one.shape == other.shape and all(map(same, one.flat, other.flat))
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one == other or (one != one and other != other)


@dataclass
class Row:
    """Cases of one variant.

    Attributes:
        variant: The environment.
        seed: Seed of all cases.
        tallies: Legal and illegal actions.
    """

    variant: Variant
    seed: int
    tallies: tuple[Tally, Tally] = field(init=False)

    def __post_init__(self) -> None:
        name = self.variant.name
        self.tallies = Tally(f"{name}: legal", False), Tally(f"{name}: illegal", True)

    def run(self, count: int) -> Iterator[None]:
        """Try so many cases, each with a generator of its own; yield after each."""
        with strict():
            pair = Pair(self.variant, self.seed)
            legal, illegal = self.tallies
            for number in range(count):
                random = Random(f"{self.seed} {self.variant.name} {number}")
                label = f"{self.variant.name}, --seed {self.seed}, number {number}"
                if random.random() < LEGAL_SHARE[pair.kind]:
                    rows, value = pair.legal(random)
                    failure = guarded(partial(pair.take, rows, value))
                    legal.add(label, failure)
                else:
                    value, words = pair.illegal(random)
                    failure = guarded(partial(pair.refuse, value, words))
                    illegal.add(label, failure)
                if failure:
                    pair = Pair(self.variant, self.seed)  # What follows is judged from a fresh start.
                yield


def rows_of(seed: int) -> tuple[Row, ...]:
    """List the rows."""
    return tuple(Row(variant, seed) for variant in variants())


def counts_of(total: int, rows: Sequence[Row]) -> list[int]:
    """Share a number of cases among rows; each gets at least one."""
    whole = sum(row.variant.share for row in rows)
    return [ceil(total * row.variant.share / whole) for row in rows]
