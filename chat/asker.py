"""Chat models: pretrained multimodal models that answer one question at a time in text.

A model runs behind a server (`maskgym.chat.server`) or on this machine (`maskgym.chat.local`). `Asker` retries
failed requests and caches each reply under the content of its question, so that no question is sent twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Protocol

import numpy as np
from PIL import Image

from maskgym import files
from maskgym.aliases import JsonObject
from maskgym.errors import UserError

LONGEST_PAUSE = 60.0  # seconds
Part = str | bytes  # a question consists of texts and pictures as PNG


@dataclass(frozen=True)
class Reply:
    """Reply of a model: text, model name as reported, input and output tokens, and time (UTC)."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    at: str = ""


class Unreachable(Exception):
    """Raised if no reply arrived; a retry may succeed.

    Args:
        reason: Reason for the failure.
        pause: Seconds that the server requests to wait, or None.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Refused(Exception):
    """Raised if the model refuses this question; retries do not help."""


class ChatModel(Protocol):
    """Interface of models that answer questions of texts and pictures."""

    @property
    def settings(self) -> JsonObject:
        """Settings that determine the replies besides the question, without secrets."""

    def ask(self, parts: Sequence[Part]) -> Reply:
        """Ask a question, given as texts and pictures in order, and return the reply.

        Raises:
            Unreachable: If no reply arrived.
            Refused: If the model refuses this question.
            UserError: If no question can be answered: a wrong key, an unknown model.
        """


class Asker:
    """Ask a chat model with retries, and cache its replies; thread-safe.

    The retries are ours, because those of the client libraries neither end when a run is interrupted nor repeat a
    request whose answer was no chat completion.

    Args:
        chat: The model.
        folder: Folder of the cached replies, one file each; created if absent.
        retries: Number of retries if no reply arrived.
        pause: Seconds before the first retry; doubled before each further one, unless the server states its own.

    Attributes:
        stopping: Event that ends pauses and prevents further requests once set.

    Raises:
        UserError: If the folder cannot be created.
    """

    def __init__(self, chat: ChatModel, folder: str | Path, retries: int = 4, pause: float = 1.0) -> None:
        self.chat, self.folder, self.retries, self.pause = chat, Path(folder).expanduser(), retries, pause
        self.stopping = Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def ask(self, parts: Sequence[Part], number: int = 0) -> Reply:
        """Return the cached reply to a question, else ask the model.

        Args:
            parts: Texts and pictures in order.
            number: Index of the sample; each number has its own reply, for models that are not deterministic.

        Raises:
            Unreachable, Refused, UserError: As `ChatModel.ask`, or if the reply cannot be written.
        """
        file = self.folder / f"{fingerprint(self.chat.settings, parts, number)}.json"
        if (cached := read_reply(file)) is not None:
            return cached
        reply = replace(self._request(parts), at=datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            files.write(file, json.dumps(asdict(reply), indent=1) + "\n", shared=True)
        except OSError as error:
            raise UserError(f"{file}: cannot be written: {error.strerror}") from error
        return reply

    def _request(self, parts: Sequence[Part]) -> Reply:
        """Request a reply, with retries until `stopping` is set."""
        reason = Unreachable("nothing was asked")
        for attempt in range(self.retries + 1):
            if attempt:
                self.stopping.wait(backoff(self.pause, attempt - 1, reason.pause))
            if self.stopping.is_set():
                break
            try:
                return self.chat.ask(parts)
            except Unreachable as error:
                reason = error
        raise reason


def fingerprint(settings: JsonObject, parts: Sequence[Part], number: int = 0) -> str:
    """Compute a cache key of 24 characters from a question and the model's settings."""
    told = [part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in parts]
    kinds = [type(part).__name__ for part in parts]
    return hashlib.sha256(json.dumps([settings, kinds, told, number], sort_keys=True).encode()).hexdigest()[:24]


def read_reply(file: Path) -> Reply | None:
    """Read a cached reply; None if the file is absent or unreadable."""
    try:
        found = json.loads(file.read_bytes())
        reply = Reply(**{field.name: found[field.name] for field in fields(Reply)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = isinstance(reply.text, str) and isinstance(reply.input_tokens, int) and isinstance(reply.output_tokens, int)
    return reply if whole else None


def count_tokens(folder: Path, prices: Sequence[float] | None = None) -> dict[str, float | None]:
    """Count the cached replies and their input and output tokens, and compute their price.

    Args:
        folder: Folder of an `Asker`.
        prices: Prices per million input and output tokens, or None.
    """
    replies = [reply for file in folder.glob("*.json") if (reply := read_reply(file)) is not None]
    read, written = sum(reply.input_tokens for reply in replies), sum(reply.output_tokens for reply in replies)
    price = None if prices is None else round((read * prices[0] + written * prices[1]) / 1e6, 6)
    return {"answers": len(replies), "input_tokens": read, "output_tokens": written, "price": price}


def backoff(pause: float, attempt: int, wanted: float | None = None) -> float:
    """Compute the seconds before the next retry: exponential backoff with jitter against simultaneous retries.

    Args:
        pause: Seconds before the first retry.
        attempt: Number of attempts before the last one.
        wanted: Seconds that the server requests to wait, or None.
    """
    if wanted is not None:
        return min(wanted, LONGEST_PAUSE)
    return min(pause * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)


def to_png(image: np.ndarray, largest: int | None = None, compress_level: int = 6) -> bytes:
    """Encode uint8 (H, W, 3), or grey (H, W), as PNG, scaled down if a side exceeds ``largest`` pixels.

    ``compress_level`` ranges from 0 (fast) to 9 (small).
    """
    picture = Image.fromarray(image)
    if largest is not None:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "png", compress_level=compress_level)
    return stream.getvalue()


def data_url(png: bytes) -> str:
    """Encode a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
