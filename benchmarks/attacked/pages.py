"""Requests to the pages: hostile bodies, hosts and tokens; what is refused must change nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskgym.aliases import Json, JsonObject
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage, check_line
from maskgym.experiments.annotation.needs import masks, page, review, sources, stages
from maskgym.experiments.annotation.needs.project import Project
from maskgym.experiments.web import play

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

TOKEN = "a-token-of-this-page"
VALUES: tuple[Json, ...] = (
    *(None, True, False, 0, 1, -1, 3, 1.5, 1e308, 10**400, float("nan"), float("inf"), "", "x", "0", "\ud800", "\0"),
    *("\x1b[2J", "<script>alert(1)</script>", "../../etc/passwd", "y" * 30_000, [], {}, [[]], [{}], [None], [1], ["1"]),
    *(
        [[1, 2], [3]],
        {"0": 1},
        [10**400, 1],
        [[1e308, 1e308]],
        [[float("nan"), 1]],
        [["1", "2"]],
        [[1, True]],
        [[-1, 5]],
    ),
    *(
        [[5, 1], [5, 1]],
        [[0, 2]],
        [[64, 1]],
        [[1, 1]] * 100,
        [4096],
        [-1, 4097],
        [[4096]],
        [0] * 10_000,
        {"size": [1, 1]},
    ),
    *(["find \x1b[31m it"], ["x"] * 500, json.loads("[" * 300 + "]" * 300)),
)
RAW = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"17",
    b'"x"',
    b"\xff\xfe",
    b"[" * 50_000,
    b"{" * 50_000,
    b'{"a":' * 20_000,
    b"\0" * 100,
)
HOSTS = (
    b"",
    b"evil.example",
    b"127.0.0.1.evil.example",
    b"127.0.0.1@evil",
    b"[::1",
    b"localhost:99999999",
    b"\xff",
    b"*",
)
PATHS = (
    "/api",
    "/api/nothing",
    "/../../etc/passwd",
    "/api/%2e%2e",
    "//",
    "/api/show/",
    "/é",
    "/\x1b[2J",
    "/" + "x" * 5000,
)


@dataclass
class Request:
    """One request to an application.

    Attributes:
        path: Path, with the query.
        body: Content of a POST; None sends a GET.
        host: The headers named host.
        kind: Content type.
        cookie: Cookie, or none.
        cut: Whether the client leaves before the end of the body.
    """

    path: str
    body: bytes | None = None
    host: tuple[bytes, ...] = (b"127.0.0.1:8000",)
    kind: bytes = b"application/json"
    cookie: bytes = b""
    cut: bool = False


def ask(app: ASGIApp, asked: Request) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request in this process; return status (0 for none), headers and content; errors are raised."""
    parts: list[Message] = [{"type": "http.request", "body": asked.body or b"", "more_body": asked.cut}]
    status, content = 0, b""
    headers: dict[bytes, bytes] = {}

    async def receive() -> Message:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers, content
        status, content = message.get("status", status), content + message.get("body", b"")
        headers = headers | dict(message.get("headers", ()))

    path, _, query = asked.path.partition("?")
    given = [*((b"host", host) for host in asked.host), (b"content-type", asked.kind)]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET" if asked.body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [*given, *([(b"cookie", asked.cookie)] if asked.cookie else [])],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
    }

    async def answer() -> None:
        await app(scope, receive, send)

    asyncio.run(answer())
    return status, headers, content


def judged(status: int, content: bytes, expected: Iterable[int]) -> str:
    """Check an answer: its status, and that a refusal is one line; return the line."""
    if status not in expected:
        raise Broken(f"status {status}: {content[:200]!r}")
    if status in (400, 413, 415, 421) or (status == 401 and content.startswith(b"{")):
        told = json.loads(content)
        if list(told) != ["error"]:
            raise Broken(f"told {content[:200]!r}")
        return check_line(told["error"]) if told["error"].isprintable() else _escaped(told["error"])
    return ""


def _escaped(line: str) -> str:
    """Accept what a page shows as text, where nothing but line breaks would be wrong."""
    if len(line.splitlines()) != 1:
        raise Broken(f"told in several lines: {line[:200]!r}")
    return line


def _requests(
    app: ASGIApp, routes: dict[str, JsonObject], state: Callable[[], object], reads: Sequence[str]
) -> Callable[[random.Random], str]:
    """Build the case of a page: one request that is wrong somewhere.

    Args:
        app: The page's application.
        routes: A right request for each path of a POST.
        state: What no refused request may change.
        reads: Paths of GET, which hostile ones extend.
    """

    def case(chance: random.Random) -> str:
        path = chance.choice(list(routes))
        right = json.dumps(routes[path]).encode()
        asked, expected = Request(path, right), {200, 400}
        way = chance.randrange(8)
        if way < 3:
            keys = [*routes[path], "unknown"]
            wrong = {**routes[path], chance.choice(keys): chance.choice(VALUES)}
            asked.body = json.dumps(wrong).encode()
        elif way == 3:
            asked.body, expected = chance.choice(RAW), {400}
        elif way == 4:
            raw = bytearray(right)
            for _ in range(chance.randint(1, 3)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            asked.body = bytes(raw[: chance.randint(1, len(raw))])
        elif way == 5:
            asked.host, expected = chance.choice([(), *((one,) for one in HOSTS), (b"127.0.0.1", b"evil")]), {421}
        elif way == 6:
            asked = chance.choice(
                [
                    Request(path, right, kind=b"text/plain"),
                    Request(path, right, cut=True),
                    Request(path, b"x" * 3_000_000),
                ]
            )
            expected = {415, 400, 413}
        else:
            asked, expected = Request(chance.choice([*PATHS, *reads])), {200, 307, 400, 404, 405}
        before = state()
        status, _, content = ask(app, asked)
        line = judged(status, content, expected)
        if status != 200 and state() != before:
            raise Broken("a refused request changed something")
        return f"{line or status}" if status != 200 else ""

    return case


def play_page(stage: Stage) -> Case:
    """Prepare: pages of games of texts, clicks and masks."""
    cases = []
    for name, settings in (
        ("words", ("env=sis",)),
        ("clicks", ("env=point_prompt", "env.horizon=3", "env.label_source=policy")),
        ("ranks", ("env=ranking", "env.image_size=64", "env.steps=3")),
    ):
        game = play.open_game(settings, None, stage.empty(f"played-{name}"))
        place: JsonObject = {"task": game.tasks[0], "split": "test", "index": 0}
        action = {"words": "<answer><ins>a disc</ins></answer>", "clicks": [5, 1], "ranks": [64 * 64]}[name]
        routes = {
            "/api/show": place,
            "/api/check": {**place, "text": "x"},
            "/api/step": {**place, "actions": [action], "seconds": 1.5, "peeked": False},
            "/api/against": {**place, "who": "truth"},
        }
        cases.append(_requests(play.make_app(game), routes, _bytes_of(game.journal.file), ("/", "/api/start")))

    def case(chance: random.Random, number: int) -> str:
        stage.label = ("words", "clicks", "ranks")[number % 3]
        return cases[number % 3](chance)

    return case


def _bytes_of(file: Path) -> Callable[[], object]:
    return lambda: file.read_bytes() if file.exists() else b""


def _desk(stage: Stage) -> tuple[page.Desk, Project]:
    project = Project(stage.empty("desk"), {"dataset": "scenes", "samples": 2, "segmenter": "annotations"})
    source = sources.open_source(project.settings)
    for act in stages.STAGES.values():
        act(project, source, project.settings, False)
    objects, decisions = review.candidates(project, source), review.Decisions(project, writing=True)
    prompted = masks.Prompted(stages.make_segmenter("sam_tiny", project.settings))
    return page.Desk(objects, decisions, source.image, prompted, "ann"), project


def dig_page(stage: Stage) -> Case:
    """Prepare: the page on which needs are corrected."""
    desk, project = _desk(stage)
    one = desk.objects[0].id
    clicks: JsonObject = {"id": one, "points": [[40, 50]], "labels": [1], "boxed": True}
    routes = {"/api/mask": clicks, "/api/decide": {**clicks, "status": "accepted", "needs": ["find it"]}}
    reads = ("/", "/api/objects", f"/api/objects/{one}", f"/api/pictures/{one}", "/api/objects/x", "/api/pictures/%00")
    act = _requests(page.make_app(desk), routes, _bytes_of(project.folder / review.JOURNAL), reads)
    return lambda chance, number: act(chance)


def token(stage: Stage) -> Case:
    """Prepare: a page for other machines, which asks for its token."""
    game = play.open_game(("env=sis",), None, stage.empty("played-token"))
    app = play.make_app(game, ("*",), TOKEN)
    cookie = f"maskgym_token={TOKEN}"

    def case(chance: random.Random, number: int) -> str:
        wrong = chance.choice(
            ("", "x", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), f" {TOKEN}", f"{TOKEN}\0", "é" * 20, "%00")
        )
        kept = chance.choice(
            (f"maskgym_token={wrong}", f"other={TOKEN}", f"maskgym_token=;{TOKEN}", "\xff=\xfe", "a" * 9000)
        )
        path = chance.choice(
            ("/", "/api/start", "/api/show", f"/?token={wrong}", f"/api/start?token={TOKEN}", "/?token=")
        )
        body = json.dumps({"task": "sis", "split": "test", "index": 0}).encode() if path == "/api/show" else None
        if wrong.strip() == TOKEN:  # spaces around a cookie are no part of it
            kept = "a=b"
        status, headers, content = ask(app, Request(path, body, cookie=kept.encode("latin-1")))
        judged(status, content, (401,))
        if TOKEN.encode() in content or any(TOKEN.encode() in value for value in headers.values()):
            raise Broken("the token was told")
        status, headers, _ = ask(app, Request(f"/?token={TOKEN}"))
        if status != 303 or b"HttpOnly" not in headers[b"set-cookie"] or headers[b"location"] != b"/":
            raise Broken(f"the right token: status {status}")
        status, _, _ = ask(app, Request("/api/start", cookie=cookie.encode()))
        if status != 200:
            raise Broken(f"the right cookie: status {status}")
        return "401"

    return case
