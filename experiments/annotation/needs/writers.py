"""Writers of commands: MMLM(Pmt, O_i, M_i ⊙ I) of Eq. 1.

`Templates` needs no model: it puts what the data says of an object into sentences. `ModelWriter` asks a multimodal
model (`maskgym.chat.asker`), on this machine or behind a server.
Each answer is stored under the hash of its question as soon as it is there, so that no question is asked twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import numpy as np

from maskgym.chat.asker import Refused, Reply, Unreachable, backoff, to_png
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import commands
from maskgym.experiments.annotation.needs.project import ANSWERS, Project, Settings, digest, provenance, write
from maskgym.experiments.wiring import run_folder

VERBS = ("find {}", "look for {}", "show me {}", "i am looking for {}", "point out {}", "where is {}", "i need {}")
LARGEST = 512  # side of the picture that a model is shown, pixels
UNREACHABLE, UNUSABLE = "unreachable", "unusable"  # nothing came; what came is of no use


@dataclass(frozen=True)
class Written:
    """Commands of a writer for one object.

    Attributes:
        needs: The commands; none where it was given up.
        by: Provenance of the commands.
        reason: Why there are fewer than were asked for, or none; None if all is well.
        kind: Kind of the reason: ``unreachable`` is asked again by itself, ``unusable`` when told to.
        answers: Answers that the model gave.
    """

    needs: tuple[str, ...]
    by: Mapping[str, Any]
    reason: str | None = None
    kind: str | None = None
    answers: int = 0


class Writer(Protocol):
    """Writes commands."""

    @property
    def identity(self) -> str:
        """Return a text that changes whenever the commands can change."""

    @property
    def jobs(self) -> int:
        """Return the number of objects processed at a time."""

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Return commands for an object.

        Args:
            category: Category of the object.
            phrases: Descriptions of the object in the data set.
            shown: Appearance of the object, uint8 (h, w, 3).
            answers: Number of stored answers to skip as unusable.
        """


class Templates:
    """Commands from what the data says of an object: its descriptions, else its category. No two runs differ.

    Args:
        count: Commands per object.
    """

    jobs = 1

    def __init__(self, count: int) -> None:
        if count > len(VERBS):
            raise UserError(f"--needs {count}: templates write at most {len(VERBS)} commands an object")
        self.count, self.identity = count, f"templates {count} {VERBS}"

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Return each description with the first verb, then with the next; see `Writer`."""
        texts = [verb.format(phrase) for verb in VERBS for phrase in phrases or (f"the {category}",)]
        needs, faults = commands.check(texts)
        by = provenance("templates", settings={"count": self.count})
        if not needs:
            return Written((), by, faults[0], UNUSABLE)
        return Written(tuple(needs[: self.count]), by)


class ModelWriter(ABC):
    """Asks a multimodal model until its answer is usable, at most ``attempts`` times.

    A subclass gives `name`, `settings` and `answer`.

    Args:
        project: Where answers are stored.
        settings: See `Settings`.

    Raises:
        UserError: If the prompt cannot be used.
    """

    name: str  # of the writer, in provenance
    jobs = 1

    def __init__(self, project: Project, settings: Settings) -> None:
        self.count, self.attempts, self.pause = settings.needs, settings.attempts, settings.pause
        self.prompt = read_prompt(settings.prompt)
        self._project = project
        self.stopping = Event()

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the answers, without secrets."""

    @abstractmethod
    def answer(self, prompt: str, picture: bytes) -> Reply:
        """Return the model's answer to a prompt and a picture, PNG.

        Raises:
            Unreachable: If none came.
            Refused: If none will.
            UserError: If none will, for any object: a wrong key, an unknown model.
        """

    @property
    def identity(self) -> str:
        """Return a text that determines the commands."""
        return digest(self.name, self.settings, self.prompt, self.count)

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Return the model's commands; see `Writer`. After an answer of no use it is told what was wrong with it."""
        first = self.prompt.replace("{category}", category).replace("{count}", str(self.count))
        prompt, picture, reason = first, to_png(shown, LARGEST), "nothing was asked"
        best: list[str] = []
        given, kind = answers, UNUSABLE
        by = provenance(self.name, **self.settings)
        for attempt in range(self.attempts):
            if self.stopping.is_set():
                break
            try:
                found = self._stored_or_asked(prompt, picture, given)
            except Unreachable as error:
                reason, kind = str(error), UNREACHABLE
                if attempt + 1 < self.attempts and self.stopping.wait(backoff(self.pause, attempt, error.pause)):
                    break
                continue
            except Refused as error:
                reason, kind = str(error), UNUSABLE
                break
            given += 1
            needs, fault = commands.read_answer(found.text, self.count)
            if len(needs) > len(best) or fault is None:
                best, by = needs, {**by, "at": found.at, "version": found.model}
            if fault is None:
                return Written(tuple(best), by, answers=given)
            reason, kind = fault, UNUSABLE
            prompt = first + commands.AGAIN.format(fault=fault, count=self.count)
        # Some commands are worth having, but not where the next try may bring all.
        kept = tuple(best) if kind == UNUSABLE else ()
        return Written(kept, by, reason, kind, given)

    def _stored_or_asked(self, prompt: str, picture: bytes, number: int) -> Reply:
        question = digest(self.name, self.settings, prompt, picture.hex(), number)
        file = self._project.file(ANSWERS, question)
        if file.exists():
            return Reply(**run_folder.read_json(file))
        found = self.answer(prompt, picture)
        found = Reply(**{**asdict(found), "at": provenance("")["at"]})
        write(file, run_folder.to_json(asdict(found), indent=1) + "\n")
        return found


def read_prompt(file: str | None) -> str:
    """Return the prompt of a file, or our own.

    Raises:
        UserError: If it cannot be read, or lacks ``{category}`` or ``{count}``.
    """
    if file is None:
        return commands.PROMPT
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt {file}: cannot be read: {error}") from error
    for place in ("{category}", "{count}"):
        if place not in text:
            raise UserError(f"--prompt {file}: holds no {place}: expected it where that belongs")
    return text


def make_writer(project: Project, settings: Settings) -> Writer:
    """Return the writer that the settings name.

    Raises:
        UserError: If it is unknown, or what it needs is missing.
    """
    if settings.writer == "templates":
        return Templates(settings.needs)
    if settings.writer not in ("local", "server"):
        raise UserError(f"--writer {settings.writer}: expected templates, local or server")
    if settings.model is None:
        raise UserError(f"--writer {settings.writer} needs --model: a folder or name of a model")
    if settings.writer == "local":
        from maskgym.experiments.annotation.needs.local import LocalWriter

        return LocalWriter(project, settings)
    from maskgym.experiments.annotation.needs.server import ServerWriter

    return ServerWriter(project, settings)
