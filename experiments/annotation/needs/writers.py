"""Writers of commands: MMLM(Pmt, O_i, M_i ⊙ I) of Eq. 1.

`Templates` needs no model: it puts the categories and descriptions of the data set into sentences. `ModelWriter` asks a
multimodal model (`maskgym.chat.asker`), on this machine or behind a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.chat.asker import Asker, ChatModel, Refused, Unreachable, to_png
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import commands
from maskgym.experiments.annotation.needs.project import ANSWERS, Project, Settings, digest, provenance

VERBS = ("find {}", "look for {}", "show me {}", "i am looking for {}", "point out {}", "where is {}", "i need {}")
LARGEST = 512  # longest side in pixels of the picture that a model sees
UNREACHABLE, UNUSABLE = "unreachable", "unusable"  # no answer; no usable answer


@dataclass(frozen=True)
class Written:
    """Commands of a writer for one object.

    Attributes:
        needs: The commands; empty if the writer gave up.
        by: Provenance of the commands.
        reason: Reason for missing commands, or None.
        kind: Kind of the reason: the next run repeats ``unreachable`` always, ``unusable`` only with ``--retry``.
        answers: Number of answers of the model.
    """

    needs: tuple[str, ...]
    by: JsonObject
    reason: str | None = None
    kind: str | None = None
    answers: int = 0


class Writer(Protocol):
    """Interface of writers."""

    @property
    def identity(self) -> str:
        """Text that changes whenever the commands can change."""

    @property
    def jobs(self) -> int:
        """Number of objects processed at a time."""

    def stop(self) -> None:
        """Prevent further requests to a model."""

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Write the commands for an object.

        Args:
            category: Category of the object.
            phrases: Descriptions of the object in the data set.
            shown: Appearance of the object, uint8 (h, w, 3).
            answers: Number of stored answers to skip as unusable.
        """


class Templates:
    """Deterministic commands from the descriptions of an object, else from its category.

    Args:
        count: Commands per object.
    """

    jobs = 1

    def __init__(self, count: int) -> None:
        if count > len(VERBS):
            raise UserError(f"--needs {count}: templates write at most {len(VERBS)} commands per object")
        self.count, self.identity = count, f"templates {count} {VERBS}"

    def stop(self) -> None:
        """Do nothing, because no model is asked."""

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Combine all descriptions with the first verb, then with the next; see `Writer`."""
        texts = [verb.format(phrase) for verb in VERBS for phrase in phrases or (f"the {category}",)]
        needs, faults = commands.check(texts)
        by = provenance("templates", settings={"count": self.count})
        if not needs:
            return Written((), by, faults[0], UNUSABLE)
        return Written(tuple(needs[: self.count]), by)


class ModelWriter:
    """Ask a multimodal model until its answer is usable, at most ``attempts`` times.

    Args:
        name: Name of the writer, for provenance.
        chat: The model.
        project: Project that caches the answers.
        settings: See `Settings`.
        jobs: Number of objects processed at a time.
        picture_first: Whether the picture precedes the prompt in a question.

    Raises:
        UserError: If the prompt cannot be used.
    """

    def __init__(
        self,
        name: str,
        chat: ChatModel,
        project: Project,
        settings: Settings,
        jobs: int = 1,
        picture_first: bool = False,
    ) -> None:
        self.name, self.jobs, self.picture_first = name, jobs, picture_first
        self.count, self.attempts = settings.needs, settings.attempts
        self.prompt = read_prompt(settings.prompt)
        self.asker = Asker(chat, project.folder / ANSWERS, settings.attempts - 1, settings.pause)

    @property
    def identity(self) -> str:
        """Compute a digest of the model, the prompt and the number of commands."""
        return digest(self.name, self.asker.chat.settings, self.prompt, self.count)

    def stop(self) -> None:
        """Prevent further requests; pending replies are still stored."""
        self.asker.stopping.set()

    def write(self, category: str, phrases: tuple[str, ...], shown: np.ndarray, answers: int = 0) -> Written:
        """Ask for the commands for an object; after an unusable answer the model is told the fault. See `Writer`."""
        first = self.prompt.replace("{category}", category).replace("{count}", str(self.count))
        prompt, picture, fault = first, to_png(shown, LARGEST), "nothing was asked"
        best: list[str] = []
        by = provenance(self.name, **self.asker.chat.settings)
        for number in range(answers, answers + self.attempts):
            try:
                reply = self.asker.ask([picture, prompt] if self.picture_first else [prompt, picture], number)
            except Unreachable as error:  # the commands so far are dropped, because the next run may bring all
                return Written((), by, str(error), UNREACHABLE, number)
            except Refused as error:
                return Written(tuple(best), by, str(error), UNUSABLE, number)
            needs, wrong = commands.read_answer(reply.text, self.count)
            if len(needs) > len(best) or wrong is None:
                best, by = needs, {**by, "at": reply.at, "version": reply.model}
            if wrong is None:
                return Written(tuple(best), by, answers=number + 1)
            fault, prompt = wrong, first + commands.AGAIN.format(fault=wrong, count=self.count)
        return Written(tuple(best), by, fault, UNUSABLE, answers + self.attempts)


def read_prompt(file: str | None) -> str:
    """Read the prompt from a file; None gives the default prompt.

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
            raise UserError(f"--prompt {file}: holds no {place}: expected this placeholder")
    return text


def make_writer(project: Project, settings: Settings) -> Writer:
    """Build the writer that the settings name.

    Raises:
        UserError: If the writer is unknown, or an option that it needs is missing.
    """
    name, model = settings.writer, settings.model
    if name == "templates":
        return Templates(settings.needs)
    if name not in ("local", "server"):
        raise UserError(f"--writer {name}: expected templates, local or server")
    if model is None:
        raise UserError(f"--writer {name} needs --model: a folder or name of a model")
    if name == "local":
        from maskgym.chat.local import MAX_TOKENS, LocalChat

        local = LocalChat(model, settings.device, settings.max_tokens or MAX_TOKENS, settings.temperature or 0.0)
        return ModelWriter(name, local, project, settings, picture_first=True)
    from maskgym.chat.server import ChatServer

    options = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
    server = ChatServer(model, settings.base_url, timeout=settings.timeout, options=options)
    return ModelWriter(name, server, project, settings, settings.jobs)
