"""What the tests of the digger share: a project of scenes, a server that speaks as OpenAI's, and a real kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from maskgym.experiments.annotation.needs import sources, stages
from maskgym.experiments.annotation.needs.project import Project

SCENES = {"dataset": "scenes", "samples": 3, "segmenter": "annotations"}


def _dig(folder, *names: str, source=None, retry: bool = False, **settings) -> Project:
    """Run stages in a folder, all that need nobody unless some are named; return the project."""
    project = Project(folder, settings)
    source = source or sources.open_source(project.settings)
    for name in names or stages.STAGES:
        stages.STAGES[name](project, source, project.settings, retry)
    return project


def _contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder with its bytes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class _Deadly:
    """A source that kills its process, as `kill -9` does, when an image is asked for the ``n``-th time."""

    def __init__(self, source, n: int) -> None:
        self._source, self._left = source, n

    def __getattr__(self, name):
        return getattr(self._source, name)

    def image(self, item):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source.image(item)


def _alone(act) -> None:
    """Run something in a forked process, which has none of its parent's threads to wait for."""
    torch.set_num_threads(1)
    act()


def _killed(act) -> None:
    """Run something in a process of its own and see that it is killed."""
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(act,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


class _Serving:
    """The command that serves the page, in a process of its own; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        output = folder.parent / "served.txt"
        output.write_text("")

        def act() -> None:
            from maskgym.experiments.annotation.needs import dig

            os.dup2(os.open(output, os.O_WRONLY), 1)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            os._exit(dig.main([str(folder), "--stage", "correct", "--port", "0", "--annotator", "ann", *options]))

        self.process = multiprocessing.get_context("fork").Process(target=_alone, args=(act,))
        self.process.start()
        ends = time.monotonic() + 60
        while not (found := re.search(r"http://\S+", output.read_text())):
            assert self.process.is_alive() and time.monotonic() < ends, output.read_text()
            time.sleep(0.02)
        self.address, self.said = found[0], output.read_text()

    def stop(self, number: int = signal.SIGKILL) -> int:
        """Send a signal; return how the process ended."""
        os.kill(self.process.pid, number)
        self.process.join(30)
        return self.process.exitcode


@pytest.fixture
def serve():
    """Return a function that serves a project's folder; what still runs at the end is killed."""
    started = []

    def act(folder: Path, *options: str) -> _Serving:
        started.append(_Serving(folder, *options))
        return started[-1]

    yield act
    for one in started:
        if one.process.is_alive():
            one.stop()


@pytest.fixture
def dig():
    return _dig


@pytest.fixture
def contents():
    return _contents


@pytest.fixture
def killed():
    return _killed


@pytest.fixture
def deadly():
    return _Deadly


@pytest.fixture
def scenes():
    """Return the settings of a project of three scenes with their true masks."""
    return dict(SCENES)


@pytest.fixture(scope="session")
def dug(tmp_path_factory):
    """Return a folder with three scenes, dug by templates with the true masks; do not write into it."""
    folder = tmp_path_factory.mktemp("dug") / "project"
    _dig(folder, **SCENES)
    return folder


@pytest.fixture
def project(dug, tmp_path):
    """Return a copy of that project."""
    return Project(shutil.copytree(dug, tmp_path / "project"))


@pytest.fixture
def source(project):
    return sources.open_source(project.settings)


class Server(ThreadingHTTPServer):
    """Answers chat completions by a plan: one behaviour a request, then ``ok`` for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that give up are part of the plan."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers.get("authorization"))
            number = len(self.server.requests)
            todo = self.server.plan.pop(0) if self.server.plan else "ok"
        if todo == "late":
            time.sleep(0.6)
        elif todo == "gone":
            self.close_connection = True
        elif todo == "cut":
            self._send(200, b'{"choices": [', length=5000)
        elif todo == "page":
            self._send(200, b"<html>not what you asked for</html>")
        elif todo.isdigit():
            self._send(int(todo), b'{"error": {"message": "as planned"}}')
        else:
            # The words tell one answer from another; the object is the request's own.
            needs = [f"find the thing number {word}" for word in ("one", "two", "three")]
            text = {"ok": f"Sure:\n```json\n{json.dumps(needs)}\n```", "prose": "I see a thing."}.get(todo, todo)
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
            answer = {"id": str(number), "model": "model-7", "choices": choices, "usage": usage}
            self._send(200, json.dumps(answer).encode())

    def _send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(length or len(body)))
        self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or length is not None

    def log_message(self, *arguments) -> None:
        """Say nothing."""


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def asking(server):
    """Return the settings that ask that server, with short pauses."""
    asked = {"writer": "server", "model": "m", "base_url": server.url}
    return {**asked, "pause": 0.01, "timeout": 5.0, "jobs": 1, "attempts": 3}
