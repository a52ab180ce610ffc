"""Fixtures for the tests of experiments: the command line in this process, finished runs, and a tiny data set."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from maskgym.experiments import run

SMALL = ("evaluation.samples=4", "evaluation.pictures=2", "env.num_envs=4")
RUNS = {  # those that train keep a checkpoint of every update, so that a killed one can be compared
    "text": ("env=sis", "algo=random"),
    "cgpo": (
        *("env=sis", "algo=cgpo", "env.default_batch_size=4", "algo.updates=4", "algo.save_every=1"),
        *("algo.isr_period=3", "algo.isr_sft_steps=1"),
    ),
    "refer": (
        *("env=refer", "algo=grpo", "algo.batch_size=8", "algo.group_size=4"),
        *("algo.updates=4", "algo.save_every=1"),
    ),
    "ppo": (
        *("env=point_prompt", "algo=ppo", "env.label_source=policy", "env.horizon=5"),
        *("algo.updates=3", "algo.epochs=2", "algo.save_every=1"),
    ),
    "usersal": ("env=user_need", "algo=usersal", "algo.batch_size=2", "algo.updates=2"),
    "ranking": ("env=ranking", "algo=random"),
}


@pytest.fixture
def maskgym_run(capfd):
    """Return a function that calls the run's command line and gives its status, standard output and error lines."""

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        status = run.main(list(arguments))
        out, error = capfd.readouterr()
        return status, out, error.splitlines()

    return call


class FinishedRuns:
    """The runs that tests share: each is made once, by the process of pytest-xdist that first asks for it."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.shared.mkdir(exist_ok=True)

    def arguments(self, name: str) -> list[str]:
        return [*RUNS[name], *SMALL]

    def __call__(self, name: str) -> Path:
        """Return the folder of a run of `RUNS`; copy it to change it."""
        folder = self.shared / name
        with FileLock(self.shared / f"{name}.lock"):
            if not (folder / "report.html").exists():
                assert run.main([*self.arguments(name), f"out={folder}"]) == 0
        return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> FinishedRuns:
    base = tmp_path_factory.getbasetemp()
    return FinishedRuns((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished")


@pytest.fixture
def photo_folder(tmp_path):
    """Return a folder of 40 photos, 24 x 32, with masks: the left half is salient."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :16] = 255
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{number:03d}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")
    return root


HOSTILE = (
    *(None, True, False, 0, 1, -1, 5, 1.5, -0.0, 1e308, 10**400, -(10**400), float("nan"), float("inf")),
    *("", "x", "0", "1", "\ud800", "\0", "\x1b[2J\x07", "<script>alert(1)</script>", "../../etc/passwd", "x" * 5000),
    *([], {}, [[]], [{}], [None], [1], ["1", "2"], [[1, 2], [3]], {"0": 1}, [10**400, 1], [[10**400, 1]], [1e308] * 3),
    *([[[1], [2]]], [[1, 2, 3]], [[True, False]], [["3", "4"]], json.loads("[" * 400 + "]" * 400)),
)


def _call(app, path: str, body=None, raw: bytes | None = None, headers=(), parts=None) -> tuple[int, bytes]:
    """Send one request to an application in this process; what it raises is raised, where a server prints a traceback.

    Args:
        app: The application.
        path: Path of the request, and its query.
        body: Content to send as JSON by POST; None sends a GET, unless ``raw`` is given.
        raw: Bytes to send instead.
        headers: Pairs of bytes in place of the host ``127.0.0.1`` and the type of JSON.
        parts: Parts of a body after which the client leaves.

    Returns:
        Status, 0 if there is no answer, and content.
    """
    raw = json.dumps(body).encode() if raw is None and body is not None else raw
    sending = [raw or b""] if parts is None else list(parts)
    place, _, query = path.partition("?")
    status, content = 0, b""

    async def receive():
        if not sending:
            return {"type": "http.disconnect"}
        part = sending.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(sending) or parts is not None}

    async def send(message) -> None:
        nonlocal status, content
        status, content = message.get("status", status), content + message.get("body", b"")

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET" if raw is None and parts is None else "POST",
        "scheme": "http",
        "path": place,
        "raw_path": place.encode(),
        "query_string": query.encode(),
        "headers": list(headers) or [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
    }
    asyncio.run(app(scope, receive, send))
    return status, content


def _attack(app, path: str, body: dict, legal: dict, state, tries: int, seed: int = 0) -> None:
    """Send requests with one wrong part each, and check that each is refused in one line and changes nothing.

    Args:
        app: Application that receives them.
        path: Path of the POST.
        body: A request that is right.
        legal: For each key that counts a function that tells whether a value is right; other keys are free.
        state: Function that gives what only a right request may change.
        tries: Number of requests.
        seed: Seed of the generator.
    """
    chance, right = random.Random(seed), json.dumps(body).encode()
    for number in range(tries):
        before, harmful = state(), True
        if number % 4 == 3:  # damage the bytes
            raw = bytearray(right)
            for _ in range(chance.randint(1, 3)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            sent = bytes(raw[: chance.randint(1, len(raw))]) if chance.random() < 0.5 else bytes(raw)
            harmful = None
        else:
            key, value = chance.choice([*body, "unknown"]), chance.choice(HOSTILE)
            harmful = key in legal and not legal[key](value)
            sent = json.dumps({**body, key: value}).encode()
        status, content = _call(app, path, raw=sent)
        assert status == (400 if harmful else 200) or (harmful is None and status in (200, 400)), (sent[:300], content)
        if status == 400:
            told = json.loads(content)
            assert list(told) == ["error"] and told["error"] and "\n" not in told["error"], sent[:300]
            assert state() == before, sent[:300]


@pytest.fixture(scope="session")
def call():
    return _call


@pytest.fixture(scope="session")
def attack():
    return _attack
