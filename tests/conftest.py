"""Settings of the whole test run: no network, one copy of the package, the same examples on every machine."""

from __future__ import annotations

import base64
import functools
import gc
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional as F
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import maskgym
from maskgym.data import Dataset
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.policies.needs.saliency_backbone import Adapt, SaliencyBackbone

# Read when the libraries are imported, so set before any test is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's workers give way, here to the other tests
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each its share of the cores, and so what it starts
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)

settings.register_profile("maskgym", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("maskgym")

# pytest imports the root's __init__.py by the name of the clone's folder: without this, as a second package.
sys.modules.setdefault(Path(__file__).parents[1].name, maskgym)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files without end-to-end tests out of ``-m e2e``, because each process would import all libraries."""
    if config.option.markexpr != "e2e" or not (collection_path.is_file() and collection_path.name.startswith("test_")):
        return None
    return None if re.search(r"\b(e2e|browser)\b", collection_path.read_text(encoding="utf-8")) else True


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test that drives a browser as end to end; order those by length, so that no long one begins last."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)
    if config.option.markexpr == "e2e":
        seconds: Counter[str] = Counter()
        for item in items:
            seconds[dealt_with(item.nodeid)] += expected_seconds(item)
        items.sort(key=lambda item: seconds[dealt_with(item.nodeid)], reverse=True)


def pytest_collection_finish() -> None:
    """Leave the imported libraries out of garbage collection: trainers collect at each start, half a second long."""
    gc.freeze()


def expected_seconds(item: pytest.Item) -> int:
    """Return the seconds of an end-to-end test that its mark names, else 10; 0 for other tests."""
    mark = item.get_closest_marker("e2e")
    return mark.kwargs.get("seconds", 10) if mark else 0


@functools.cache
def dealt_with(nodeid: str) -> str:
    """Name what a test is dealt out with: its file, if that makes something once for all its tests, else itself."""
    file = nodeid.partition("::")[0]
    shares = 'scope="module"' in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    return file if shares else nodeid


class Dealt(LoadScopeScheduling):
    """Deals tests out one by one, but together those of a file that makes something once for all of them."""

    def _split_scope(self, nodeid: str) -> str:
        return dealt_with(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Dealt | None:
    """Deal end-to-end tests out one by one and in order, because whole files of them take minutes."""
    config.option.loadscopereorder = False
    return Dealt(config, log) if config.option.markexpr == "e2e" else None


class Halves:
    """Segments ``left`` and ``right``; anything else is empty. Counts its calls."""

    fingerprint, input_size = "halves", 1

    def __init__(self) -> None:
        self.calls = 0

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        self.calls += 1
        return [
            np.stack([self._mask(image, phrase) for phrase in row]) if row else np.zeros((0, *image.shape[:2]), "f4")
            for image, row in zip(images, expressions, strict=True)
        ]

    def _mask(self, image: np.ndarray, phrase: str) -> np.ndarray:
        mask = np.zeros(image.shape[:2], dtype=np.float32)
        half = image.shape[1] // 2
        if "left" in phrase:
            mask[:, :half] = 1
        if "right" in phrase:
            mask[:, half:] = 1
        return mask


class Photos(Dataset):
    """Three samples of different sizes whose ground truth is the left half; group n holds n images."""

    def __init__(self, task: str = "sis", split: str = "train", instances: int = 1) -> None:
        from maskgym.data import Sample

        self.task, self.split = task, split
        rng = np.random.default_rng(0)
        sizes = [(20, 30), (40, 24), (32, 32)]
        images = [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in sizes]
        masks = [np.zeros((instances, *size), dtype=bool) for size in sizes]
        for mask, size in zip(masks, sizes, strict=True):
            mask[:, :, : size[1] // 2] = True
        if task == "cosod":
            self.samples = [Sample(f"group{n}", tuple(images[:n]), tuple(masks[:n])) for n in (1, 2, 3)]
        else:
            self.samples = [
                Sample(f"photo{n}", (image,), (mask,), rationale="why")
                for n, (image, mask) in enumerate(zip(images, masks, strict=True))
            ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


class PromptedMap(nn.Module):
    """Self-attention over a map's positions and whatever tokens are appended to them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 2, batch_first=True)

    def forward(self, maps: Tensor, prompt: Tensor | None) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        context = self.norm(tokens if prompt is None else torch.cat([tokens, prompt], dim=1))
        mixed = self.attention(context[:, : tokens.shape[1]], context, context, need_weights=False)[0]
        return maps + mixed.transpose(1, 2).unflatten(2, maps.shape[2:])


class SmallBackbone(SaliencyBackbone):
    """Three scales of convolutions, with an attention at the two coarser ones and one in the decoder.

    No prompt comes before the finest features of the encoder: half of the decoder's channels are adapted there.

    Dropout and batch norm are there to be noticed where the network is not in evaluation mode.
    """

    feature_dims, encoder_prompt_dims, decoder_prompt_dims, size_divisor = (8, 12, 16), (12, 16), (16,), 8

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (3, *self.feature_dims)
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.GELU(), nn.Dropout(0.1))
                for a, b in itertools.pairwise(widths)
            )
            self.encoder_attention = nn.ModuleList(map(PromptedMap, self.encoder_prompt_dims))
            self.decoder_attention = PromptedMap(16)
            self.sides = nn.ModuleList(nn.Conv2d(dim, 16, 1) for dim in self.feature_dims)
            self.head = nn.Conv2d(16, 1, 1)

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        maps, features = pixels - 0.5, []
        for n, stage in enumerate(self.stages):
            maps = stage(maps)
            if n:
                maps = self.encoder_attention[n - 1](maps, None if prompts is None else prompts[n - 1])
            features.append(maps)
        return features

    def decode(
        self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None, adapt: Adapt | None = None
    ) -> Tensor:
        adapt = adapt or (lambda scale, maps: maps)
        place = None if prompts is None else prompts[0]
        maps = self.decoder_attention(self.sides[2](adapt(2, features[2])), place)
        # What is coarse decides, what is fine says where it ends.
        maps = F.interpolate(maps, scale_factor=2) * self.sides[1](adapt(1, features[1])).sigmoid()
        maps = F.interpolate(maps, scale_factor=2) * self.sides[0](features[0]).sigmoid()
        maps = torch.cat([adapt(0, maps[:, :8]), maps[:, 8:]], dim=1)
        return F.interpolate(self.head(maps), scale_factor=2, mode="bilinear")


class HashEncoder(NeedEncoder):
    """The mean of a table's rows, which words choose by their hash; two levels: all words, and the last one."""

    levels, width = 2, 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        table = torch.randn(64, self.width, generator=torch.Generator().manual_seed(seed))
        self.table, self.seed = nn.Parameter(table), seed

    @property
    def fingerprint(self) -> str:
        return f"hash{self.seed}"

    @torch.inference_mode()
    def encode(self, needs: Sequence[str]) -> Tensor:
        found = torch.zeros(len(needs), self.levels, self.width)
        for row, need in zip(found, needs, strict=True):
            rows = [int(hashlib.sha256(word.encode()).hexdigest(), 16) % 64 for word in need.lower().split()]
            if rows:
                row[:] = torch.stack([self.table[rows].mean(dim=0), self.table[rows[-1]]])
        return found


@pytest.fixture
def halves() -> Halves:
    return Halves()


@pytest.fixture
def photos() -> type[Photos]:
    return Photos


@pytest.fixture
def backbone() -> SmallBackbone:
    return SmallBackbone().eval()


@pytest.fixture
def need_encoder() -> HashEncoder:
    return HashEncoder()


class ChatHandler(BaseHTTPRequestHandler):
    """Chat completions in the format of OpenAI's server."""

    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.keys.append(self.headers.get("authorization"))
            todo = server.plan.pop(0) if server.plan else None
            server.busy += 1
            server.most = max(server.most, server.busy)
        answer = self._answer(todo, body)
        with server.lock:  # before the answer is out: a client that has it asks its next question at once
            server.busy -= 1
        if answer is None:
            self.close_connection = True
        else:
            self._send(*answer)

    def _answer(self, todo: str | bytes | None, body: dict) -> tuple[int, bytes] | None:
        """Return status and body, or None for a connection that ends."""
        time.sleep(self.server.seconds)
        if isinstance(todo, bytes):
            return 200, todo
        if todo == "gone":
            return None
        if todo is not None and todo.isdigit():
            return int(todo), b'{"error": {"message": "as planned"}}'
        text = self.server.reply(parts_of(body)) if todo is None else todo
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
        return 200, json.dumps({"model": "model-7", "choices": choices, "usage": usage}).encode()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Say nothing."""


class ChatServer(ThreadingHTTPServer):
    """Answers chat completions by ``plan``, one entry per request, then by ``reply``.

    An entry is a text to answer with, a status, ``gone`` for a connection that ends, or the bytes of a whole body.
    ``reply`` is called with the question's texts and pictures (PNG).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.plan: list[str | bytes] = []
        self.reply: Callable[[list[str | bytes]], str] = lambda parts: "I see a thing."
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.lock, self.busy, self.most, self.seconds = threading.Lock(), 0, 0, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that give up are part of the plan."""


def parts_of(body: dict) -> list[str | bytes]:
    """Return the texts and the pictures of a request."""
    return [
        part["text"] if part["type"] == "text" else base64.b64decode(part["image_url"]["url"].split(",")[1])
        for part in body["messages"][0]["content"]
    ]


@pytest.fixture
def chat_server():
    """Return a server with OpenAI's interface on a port of this machine."""
    with ChatServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
)


class Browser:
    """A headless Chromium: its ``driver`` (selenium), its console, and the violations that axe-core finds."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def console(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def faults(self) -> list[str]:
        """Return the serious and critical violations that axe-core finds on the page, one line per rule."""
        from axe_core_python.selenium import Axe

        found = Axe().run(self.driver)["violations"]
        worst = [one for one in found if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}" for one in worst]

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Show pages as a screen of this size does, in pixels; ``dark`` as one that prefers dark pages."""
        asked = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", asked)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@pytest.fixture(scope="session")
def _driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    program, helper = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which(DRIVER)
    if not program or not helper:
        pytest.skip("no Chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(helper))
    running.set_script_timeout(120)  # seconds: axe-core on a long page, on a busy machine
    yield running
    running.quit()


@pytest.fixture
def browser(_driver) -> Browser:
    """Return a browser on an empty page, of the size of a laptop's, that prefers light pages."""
    _driver.get("about:blank")
    found = Browser(_driver)
    found.console()  # discard the messages of an earlier page
    found.size(1280, 900)
    return found


@pytest.fixture
def worker_of():
    """Return a function that finds the id of a process below another one, by the beginning of its program's name."""

    def find(pid: int, name: str) -> int:
        listed = subprocess.run(
            ["ps", "-e", "-ww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        family = {pid}
        while more := {int(row[0]) for row in rows if int(row[1]) in family} - family:
            family |= more
        return next(
            int(row[0]) for row in rows if int(row[0]) in family and Path(row[-1].split()[0]).name.startswith(name)
        )

    return find


@pytest.fixture
def registered(monkeypatch):
    """Register a part for one test: ``registered(maskgym.data, "name", target)``."""

    def register(module, name, target):
        registry = module.names.__self__
        monkeypatch.setattr(registry, "_targets", dict(registry._targets))
        monkeypatch.setattr(registry, "_presets", dict(registry._presets))
        module.register(name, target)

    return register
