"""The folder of a digging project: its settings, one record per image and stage, and its lock.

    PROJECT/project.json           where the images are from, and the settings, remembered from command to command
    PROJECT/detect/NAME.json       one record an image: boxes and categories
    PROJECT/segment/NAME.json      masks, as run-length codes of COCO
    PROJECT/needs/NAME.json        the needs that a writer wrote, or why it wrote none
    PROJECT/answers/HASH.json      each answer of a model, by the content of the question
    PROJECT/corrections.jsonl      what people decided, in order; corrections.json is the outcome
    PROJECT/export/                the data set
    PROJECT/figures.json           figures of quality; sheet.png shows samples

A record holds a digest of what it was made from. Where that is the same, the record stands and nothing is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.wiring import run_folder

FORMAT = 1
PROJECT = "project.json"
DETECT, SEGMENT, NEEDS, ANSWERS = "detect", "segment", "needs", "answers"


@dataclass(frozen=True)
class Settings:
    """Settings of a project; a command's options replace them and are stored.

    Attributes:
        images: Folder of photos, or None.
        dataset: ``scenes`` in place of a folder, or None.
        split, samples: Split and number of the scenes.
        annotations: COCO-style JSON with true boxes, under ``images``; None looks for it.
        detector: ``annotations``, and folders or hub names of object detectors.
        threshold: Minimum score of a detection.
        overlap: IoU from which two boxes of one category are one object.
        min_side: Minimum side of a box, pixels.
        segmenter: Promptable segmenter, or ``annotations`` for the true masks.
        checkpoint: Checkpoint of the segmenter, or None.
        click_segmenter: Segmenter that corrects masks; None takes ``segmenter`` (``sam_tiny`` for ``annotations``).
        writer: ``templates``, ``local`` or ``server``.
        model: Folder or name of the writer's model.
        base_url: Address of the server; None leaves it to ``OPENAI_BASE_URL``, or OpenAI.
        needs: Commands per object.
        prompt: File with another prompt, which holds ``{category}`` and ``{count}``; or None.
        attempts: Answers per object, and tries per answer, before the object is given up.
        pause: Seconds before the second try; doubled before each further one.
        timeout: Seconds that an answer may take.
        max_tokens, temperature: Generation limits of an answer; None leaves them to the server.
        jobs: Requests to the server at a time.
        prices: Prices per million tokens read and written, for the cost; or None.
        device: PyTorch device of all models; None takes CUDA where there is one.
    """

    images: str | None = None
    dataset: str | None = None
    split: str = "train"
    samples: int = 20
    annotations: str | None = None
    detector: tuple[str, ...] = ("annotations",)
    threshold: float = 0.5
    overlap: float = 0.6
    min_side: float = 8.0
    segmenter: str = "sam_tiny"
    checkpoint: str | None = None
    click_segmenter: str | None = None
    writer: str = "templates"
    model: str | None = None
    base_url: str | None = None
    needs: int = 3
    prompt: str | None = None
    attempts: int = 4
    pause: float = 1.0
    timeout: float = 60.0
    max_tokens: int | None = None
    temperature: float | None = None
    jobs: int = 4
    prices: tuple[float, float] | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.dataset is None):
            raise UserError("the images are not known: expected --images DIR or --dataset scenes")
        for name in ("samples", "needs", "attempts", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: expected at least 1")
        for name in ("threshold", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: expected 0 to 1")
        for name in ("min_side", "pause", "timeout"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 0")
        if not self.detector:
            raise UserError("--detector: expected annotations, or folders or names of object detectors")


class Project:
    """A project folder.

    Args:
        folder: Made if it is not there.
        given: Settings of this command by name; None takes the stored value, else the default.

    Raises:
        UserError: If the folder cannot be written or is no project, or a setting cannot be used.
    """

    def __init__(self, folder: str | Path, given: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        file = self.folder / PROJECT
        if self.folder.is_dir() and not file.exists() and any(p for p in self.folder.iterdir() if p.name[0] != "."):
            raise UserError(f"{self.folder}: holds other things: expected a new folder, or one with a {PROJECT}")
        kept = _remembered(file)
        new = {name: value for name, value in (given or {}).items() if value is not None}
        for one, other in (("images", "dataset"), ("dataset", "images")):
            if new.get(one) and kept.get(other):
                raise UserError(
                    f"{self.folder}: was dug from --{other} {kept[other]}: choose another folder for --{one}"
                )
        known = {field.name for field in fields(Settings)}
        self.settings = Settings(**{name: _tuples(value) for name, value in {**kept, **new}.items() if name in known})
        if self.settings.images is not None:
            self.settings = replace(self.settings, images=str(Path(self.settings.images).expanduser().absolute()))
        content = json.dumps({"format": FORMAT, "settings": asdict(self.settings)}, indent=2) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_changed(file, content)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def read(self, stage: str, name: str) -> dict[str, Any] | None:
        """Return the record of an image, or None if there is none.

        Raises:
            UserError: If it cannot be read.
        """
        file = self.file(stage, name)
        return run_folder.read_json(file) if file.exists() else None

    def write(self, stage: str, name: str, record: Mapping[str, Any]) -> None:
        """Write the record of an image atomically."""
        write(self.file(stage, name), to_json(record))

    def file(self, stage: str, name: str) -> Path:
        """Return the path of a record."""
        return self.folder / stage / f"{name}.json"

    def alone(self, work: str) -> AbstractContextManager[None]:
        """Hold the project for one kind of work; see `alone`."""
        return alone(self.folder, work)


@contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder for one kind of work; the system lets it go when the process ends, however it ends.

    Raises:
        UserError: If another process holds it.
    """
    with (folder / f".{work}.lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has none: two at a time are then the user's to avoid
            pass
        except OSError:
            raise UserError(f"{folder}: another process is at work here ({work}): wait for it") from None
        yield


def provenance(by: str, **details: Any) -> dict[str, Any]:
    """Build the provenance of a field: author, time (UTC), model, version and settings."""
    known = {name: value for name, value in details.items() if value is not None}
    return {"by": by, "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **known}


def digest(*parts: Any) -> str:
    """Compute a digest of 24 characters from parts of JSON types."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def to_json(value: Any) -> str:
    """Return JSON that people can read; names of files that are no text at all come escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    return text + "\n"


def write(file: Path, content: str | bytes) -> None:
    """Write a file atomically and flush it to disk: write to a temporary name, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def write_changed(file: Path, content: str | bytes) -> None:
    """Write a file if its content differs."""
    data = content.encode() if isinstance(content, str) else content
    if not (file.exists() and file.read_bytes() == data):
        write(file, data)


def _remembered(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found = run_folder.read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("settings"), dict):
        raise UserError(f"{file}: is not a project of this version: expected format {FORMAT} with settings")
    return found["settings"]


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
