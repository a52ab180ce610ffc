"""Parts driven directly: the parser of answers, metrics of odd arrays, wrong steps of a batch, long runs."""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import maskgym  # noqa: F401, registers the environments
from maskgym import metrics
from maskgym.benchmarks.attacked import runs
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage, told
from maskgym.rewards.answers import MARKED, SEMANTIC, TAGS, parse

BATCH = 1000  # answers per call
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<rg>", "</rg>", "<ins>", "</ins>", "[semantic]", "<", ">", "</"),
    *("a red cup", " ", "\n", "\0", "\ud800", "é", "[", "]", "<INS>", "<ins >", "\u2028", "x" * 50, "<ins", "answer>"),
)
LONG = 200_000  # characters
SECONDS_PER_LONG = 0.5  # many times what linear time needs


def answers(stage: Stage) -> Case:
    """Prepare: answers from pieces of tags and texts, half of them well-formed; a long one per call."""

    def case(chance: random.Random, number: int) -> str:
        for place in range(BATCH):
            task = chance.choice(list(TAGS))
            stage.label = f"answer {place}"
            if place % 2:
                _well_formed(chance, task)
            else:
                text = "".join(chance.choices(PIECES, k=chance.randrange(30)))
                found = parse(text, task)
                if found.text != text or bool(found.expressions) != found.tagged:
                    raise Broken(f"{text!r}: {found}")
        unit = "".join(chance.choices(PIECES, k=chance.randint(1, 6)))
        stage.label = f"{unit!r} repeated"
        long = chance.choice(("", "<think>", "<think></think><answer>")) + unit * (LONG // len(unit))
        start = time.process_time()
        parse(long, chance.choice(list(TAGS)))
        if (seconds := time.process_time() - start) > SECONDS_PER_LONG:
            raise Broken(f"{LONG} characters took {seconds:.1f} s")
        return ""

    return case


def _well_formed(chance: random.Random, task: str) -> None:
    """Parse an answer that is right, and compare what is found."""
    tag = TAGS[task]
    words = [
        " ".join(chance.choices(("red", "cup", "é", "left", "2"), k=chance.randint(1, 5)))
        for _ in range(chance.randint(1, 6))
    ]
    marked = [f"{SEMANTIC} {word}" if chance.choice(MARKED[task]) else word for word in words][
        : 1 if task == "cosod" else 6
    ]
    space = chance.choice(("", " ", "\n"))
    body = space.join(f"<{tag}>{space}{one}{space}</{tag}>" for one in marked)
    thought = chance.choice(("", "a < b", "one\ntwo", "<ins>"))
    found = parse(f"<think>{thought}</think>{space}<answer>{space}{body}{space}</answer>{space}", task)
    if found.expressions != tuple(marked) or not found.structured or found.think != thought:
        raise Broken(f"{body!r}: {found}")


Pair = tuple[object, object]
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    **{
        name: getattr(metrics, name)
        for name in ("mae", "iou", "ber", "f_measure", "e_measure", "s_measure", "weighted_f")
    },
    **{name: getattr(metrics, name) for name in ("f_curve", "e_curve")},
    "SaliencyScores": lambda one, two: _accumulated(metrics.SaliencyScores(), one, two),
    "ReferringScores": lambda one, two: _accumulated(metrics.ReferringScores(), one, two),
    "iasm": lambda one, two: metrics.iasm(one, two),
    "average_precision": lambda one, two: _accumulated(metrics.InstanceScores(), one, two),
}
OF_SETS = ("iasm", "average_precision")  # of masks (n, H, W)


def _accumulated(scores: object, one: np.ndarray, two: np.ndarray) -> object:
    scores.add(one, two)  # type: ignore[attr-defined]  # all three have both methods
    return scores.result()  # type: ignore[attr-defined]


def _tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], object]:
    return lambda array: change(torch.from_numpy(np.ascontiguousarray(array)))


# The same values in another form: the result must be the same.
FORMS: dict[str, Callable[[np.ndarray], object]] = {
    "bytes of 255 as bool": lambda array: (array.astype(bool) * 255).astype(np.uint8).view(bool),
    "Fortran": lambda array: np.asfortranarray(array),
    "reversed twice": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "big-endian": lambda array: array.astype(">f8"),
    "float16": lambda array: array.astype(np.float16),
    "uint8": lambda array: array.astype(np.uint8),
    "int64": lambda array: array.astype(np.int64),
    "read-only": lambda array: np.lib.stride_tricks.as_strided(array, array.shape, array.strides, writeable=False),
    "subclass": lambda array: array.view(np.recarray),
    "negative zero": lambda array: np.where(array > 0, array, -0.0),
    "tensor": _tensor(lambda value: value),
    "tensor, bfloat16": _tensor(lambda value: value.to(torch.bfloat16)),
    "tensor, half": _tensor(lambda value: value.half()),
    "tensor, bool": _tensor(lambda value: value > 0.5),
    "tensor with gradient": _tensor(lambda value: value.double().requires_grad_()),
    "tensor, transposed": _tensor(lambda value: value.transpose(-1, -2).contiguous().transpose(-1, -2)),
    "nested lists": lambda array: array.tolist(),
}
# What no metric can score: a ValueError or a TypeError must say so.
ODD: dict[str, Callable[[np.ndarray], object]] = {
    "NaN": lambda array: np.where(array > 0, np.nan, array),
    "infinite": lambda array: np.where(array > 0, np.inf, array),
    "2": lambda array: array * 2.0 + 2,
    "negative": lambda array: array - 0.5,
    "255": lambda array: (array * 255).astype(np.uint8) + np.uint8(2),
    "complex": lambda array: array + 1j,
    "objects": lambda array: array.astype(object),
    "texts": lambda array: array.astype(str),
    "dates": lambda array: array.astype("datetime64[s]"),
    "no pixel": lambda array: array[..., :0],
    "one axis": lambda array: array.reshape(-1),
    "five axes": lambda array: array[None, None, None],
    "a number": lambda array: 0.5,
    "None": lambda array: None,
    "another shape": lambda array: array[..., :-1],
    "ragged": lambda array: [[0, 1], [0]],
    "a record": lambda array: np.zeros(array.shape, [("a", "f4")]),
    "tensor, complex": _tensor(lambda value: value.to(torch.complex64)),
    "tensor, sparse": _tensor(lambda value: value.to_sparse()),
    "tensor, meta": _tensor(lambda value: value.to("meta")),
}


def odd_arrays(stage: Stage) -> Case:
    """Prepare: a metric of a pair, one of which has an odd form or odd values."""
    ways = [way for pair in itertools.zip_longest(FORMS, ODD) for way in pair if way is not None]

    def case(chance: random.Random, number: int) -> str:
        name, way = list(METRICS)[number % len(METRICS)], ways[number // len(METRICS) % len(ways)]
        rng = np.random.default_rng(chance.randrange(2**32))
        shape = (2, 9, 8) if name in OF_SETS or chance.random() < 0.3 else (9, 8)
        pair = [(rng.random(shape) < 0.4).astype(np.float64) for _ in range(2)]
        side = chance.randrange(2)
        stage.label = f"{name}, {way} as {'prediction' if side == 0 else 'target'} {shape}"
        changed: list[object] = list(pair)
        changed[side] = (FORMS | ODD)[way](pair[side])
        try:
            found = METRICS[name](*changed)  # type: ignore[arg-type]  # the point of it
        except (ValueError, TypeError) as error:
            if way in FORMS and way != "nested lists":
                raise Broken(f"refused: {error}") from error
            return str(error)[:80] or "refused"
        if way in ODD:
            raise Broken(f"scored {str(found)[:80]}")
        _same(found, METRICS[name](*pair))
        return ""

    return case


def _same(found: object, expected: object) -> None:
    for one, two in zip(_numbers(found), _numbers(expected), strict=True):
        if not np.allclose(one, two, rtol=0, atol=1e-6, equal_nan=True):
            raise Broken(f"{one} for {two}")


def _numbers(value: object) -> list[np.ndarray]:
    if isinstance(value, Mapping):
        return [np.asarray(one, float) for one in value.values()]
    if isinstance(value, tuple):
        return [np.asarray(one, float) for one in value]
    return [np.asarray(value, float)]


IDS = ("SIS", "SOD", "CoSOD", "PointPrompt", "UserNeed", "UserNeedPoint", "Ranking")
COUNT = 3  # sub-environments


def _make(name: str) -> gym.vector.VectorEnv:
    mode = gym.vector.AutoresetMode.DISABLED
    return gym.make_vec(f"maskgym/{name}-v0", num_envs=COUNT, split="test", autoreset_mode=mode)


def _right(name: str, env: gym.vector.VectorEnv, seed: int) -> list[object]:
    """Draw a legal action for each sub-environment."""
    if name in ("SIS", "SOD", "CoSOD"):
        return ["<answer><ins>a disc</ins></answer>"] * COUNT
    env.single_action_space.seed(seed)
    return [env.single_action_space.sample() for _ in range(COUNT)]


def _wrong(name: str, right: list[object], chance: random.Random) -> object:
    """Make a step wrong: another number of actions, or one action that is none."""
    odd: tuple[object, ...] = (
        None,
        float("nan"),
        [],
        {},
        "x" if name[:2] not in ("SI", "SO", "Co") else b"x",
        object(),
        1.5,
        [[]],
        (1, 2, 3, 4),
    )
    numbers = (np.array([-1, 0]), np.array([10**9, 1]), np.array([1, 7]), np.array([np.nan, 1]), np.full((3, 3), 7.0))
    place = chance.randrange(COUNT)
    return chance.choice(
        [
            right[:-1],
            [*right, right[0]],
            [],
            None,
            7,
            *([*right[:place], one, *right[place + 1 :]] for one in (*odd, *numbers)),
        ]
    )


def wrong_steps(stage: Stage) -> Case:
    """Prepare: a wrong step of a batch, after which a twin that never saw it must go on alike."""

    def case(chance: random.Random, number: int) -> str:
        name = IDS[number % len(IDS)]
        one, twin = _make(name), _make(name)
        for env in (one, twin):
            env.reset(seed=5)
        right = _right(name, one, chance.randrange(1000))
        wrong = _wrong(name, right, chance)
        stage.label = f"{name}, {str(wrong)[:120]}"
        line = told(lambda: one.step(wrong))
        if not line:
            raise Broken("it was taken")
        _alike(one.step(right), twin.step(right))
        return line

    return case


def _alike(found: object, expected: object) -> None:
    """Compare what two environments return, nested as it is."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        if found.keys() != expected.keys():
            raise Broken(f"keys {sorted(found.keys() ^ expected.keys())}")
        for key in found:
            _alike(found[key], expected[key])
    elif isinstance(found, np.ndarray) and found.dtype != object:
        if not np.array_equal(found, np.asarray(expected), equal_nan=found.dtype.kind == "f"):
            raise Broken("a state of the batch changed")
    elif isinstance(found, tuple | list | np.ndarray) and isinstance(expected, tuple | list | np.ndarray):
        for one, two in zip(found, expected, strict=True):
            _alike(one, two)
    elif isinstance(found, str | int | float | bool | None) and repr(found) != repr(expected):
        raise Broken(f"{found!r} for {expected!r}")


MOST_MIB, MOST_HANDLES = 60.0, 2  # by which a long run may grow after it is warm


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _episodes(name: str) -> Callable[[int], None]:
    env = _make(name)

    def play(count: int) -> None:
        for episode in range(count):
            env.reset(seed=episode)
            done = np.zeros(COUNT, bool)
            for _ in range(40):
                _, _, terminated, truncated, _ = env.step(_right(name, env, episode))
                done |= terminated | truncated
                if done.all():
                    break

    return play


def _training(stage: Stage, kind: str) -> Callable[[int], None]:
    def train(count: int) -> None:
        for _ in range(-(-count // 40)):
            place = stage.empty("long")
            runs.command(runs.run.main, *runs.arguments(kind), "algo.updates=6", f"out={place}")

    return train


def long_runs(stage: Stage) -> Case:
    """Prepare: many episodes, and many runs in one process; memory and handles must not grow once it is warm."""
    kinds: Sequence[tuple[str, Callable[[], Callable[[int], None]], int]] = [
        ("episodes of text", lambda: _episodes("SIS"), 300),
        ("episodes of clicks", lambda: _episodes("PointPrompt"), 100),
        ("episodes of masks", lambda: _episodes("UserNeed"), 300),
        ("trainings", lambda: _training(stage, stage.kinds[0]), 240),
    ]

    def case(chance: random.Random, number: int) -> str:
        name, make, count = kinds[number % len(kinds)]
        stage.label, act = name, make()
        act(count)
        gc.collect()
        memory, handles = _rss_mib(), len(os.listdir("/proc/self/fd"))
        act(count)
        gc.collect()
        grown, opened = _rss_mib() - memory, len(os.listdir("/proc/self/fd")) - handles
        if grown > MOST_MIB or opened > MOST_HANDLES:
            raise Broken(f"{count} more took {grown:.0f} MiB and {opened} handles")
        return ""

    return case
