"""Chat models: multimodal models, trained elsewhere, that are asked one question at a time and answer in text.

One is behind a server (`maskgym.chat.server`) or on this machine (`maskgym.chat.local`). `Asker` asks
again where no reply came, and keeps each reply under the content of its question, so that nothing is asked twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from threading import Event, get_ident
from typing import Any, Protocol

import numpy as np
from PIL import Image

from maskgym.errors import UserError

LONGEST_PAUSE = 60.0  # seconds
Part = str | bytes  # of a question: text, or a picture as PNG


@dataclass(frozen=True)
class Reply:
    """What a model replied: the text, the model as it names itself, tokens read and written, and when (UTC)."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    at: str = ""


class Unreachable(Exception):
    """No reply came; another try may help.

    Args:
        reason: Why.
        pause: Seconds that the server asks to wait, or None.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Refused(Exception):
    """The model will not answer this question, however often it is asked."""


class ChatModel(Protocol):
    """Answers questions of texts and pictures."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return what fixes the replies beside the question; no secrets."""

    def ask(self, parts: Sequence[Part]) -> Reply:
        """Return the reply to a question, its texts and pictures in order.

        Raises:
            Unreachable: If none came.
            Refused: If none will.
            UserError: If none will, to any question: a wrong key, an unknown model.
        """


class Asker:
    """Asks a chat model with patience, and keeps what it replied; several threads may ask at a time.

    Args:
        chat: The model.
        folder: Where replies are kept, one file each; made if it is not there.
        retries: Further tries where no reply came.
        pause: Seconds before the first of them; doubled before each further one, unless the server names its own.

    Attributes:
        stopping: Once set, nothing is asked any more, and pauses end.

    Raises:
        UserError: If the folder cannot be made.
    """

    def __init__(self, chat: ChatModel, folder: str | Path, retries: int = 4, pause: float = 1.0) -> None:
        self.chat, self.folder, self.retries, self.pause = chat, Path(folder).expanduser(), retries, pause
        self.stopping = Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def ask(self, parts: Sequence[Part], number: int = 0) -> Reply:
        """Return the kept reply to a question, else the model's.

        Args:
            parts: Texts and pictures in order.
            number: The same question with another number is another one, for models that do not always say the same.

        Raises:
            Unreachable, Refused, UserError: As `ChatModel.ask`; or the reply cannot be kept.
        """
        file = self.folder / f"{fingerprint(self.chat.settings, parts, number)}.json"
        kept = read_reply(file)
        if kept is not None:
            return kept
        reason = Unreachable("nothing was asked")
        for attempt in range(self.retries + 1):
            if self.stopping.is_set():
                break
            try:
                found = self.chat.ask(parts)
            except Unreachable as error:
                reason = error
                if attempt < self.retries:
                    self.stopping.wait(backoff(self.pause, attempt, error.pause))
                continue
            found = Reply(**{**asdict(found), "at": datetime.now(timezone.utc).isoformat(timespec="seconds")})
            _keep(file, found)
            return found
        raise reason


def fingerprint(settings: dict[str, Any], parts: Sequence[Part], number: int = 0) -> str:
    """Return 24 characters that change with a question and with who is asked."""
    told = [part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in parts]
    kinds = [type(part).__name__ for part in parts]
    return hashlib.sha256(json.dumps([settings, kinds, told, number], sort_keys=True).encode()).hexdigest()[:24]


def read_reply(file: Path) -> Reply | None:
    """Return the reply that a file keeps; None if there is none that can be read."""
    try:
        found = json.loads(file.read_bytes())
        reply = Reply(**{field.name: found[field.name] for field in fields(Reply)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = isinstance(reply.text, str) and isinstance(reply.input_tokens, int) and isinstance(reply.output_tokens, int)
    return reply if whole else None


def backoff(pause: float, attempt: int, wanted: float | None = None) -> float:
    """Return the seconds before the next try: doubled each time, spread so that many do not come at once.

    Args:
        pause: Seconds before the first further try.
        attempt: Tries before the last one.
        wanted: Seconds that the server asks to wait, or None.
    """
    if wanted is not None:
        return min(wanted, LONGEST_PAUSE)
    return min(pause * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)


def to_png(image: np.ndarray, largest: int | None = None) -> bytes:
    """Return uint8 (H, W, 3), or grey (H, W), as PNG, made smaller where a side is longer than ``largest`` pixels."""
    picture = Image.fromarray(image)
    if largest is not None:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


def data_url(png: bytes) -> str:
    """Return a PNG as the URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _keep(file: Path, reply: Reply) -> None:
    """Write a reply whole; two threads that were asked the same do not write into each other's file."""
    temporary = file.with_name(f"{file.stem}.{os.getpid()}-{get_ident()}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(reply), indent=1) + "\n", encoding="ascii")
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
