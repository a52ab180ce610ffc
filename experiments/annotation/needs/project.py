"""The folder of a digging project: its settings, one record per image and stage, and its lock.

    PROJECT/project.json           source of the images and settings, remembered from command to command
    PROJECT/detect/NAME.json       one record per image: boxes and categories
    PROJECT/segment/NAME.json      masks, as run-length codes of COCO
    PROJECT/needs/NAME.json        needs of a writer, or the reason why there are none
    PROJECT/answers/HASH.json      each answer of a model, by the content of the question
    PROJECT/corrections.jsonl      decisions of annotators, in order; corrections.json is the outcome
    PROJECT/export/                the data set
    PROJECT/figures.json           figures of quality; sheet.png shows samples

A record holds a digest of its inputs. A stage skips the records whose digest is unchanged.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TypedDict, get_args, get_origin, get_type_hints

from maskgym import files
from maskgym.aliases import Json, JsonObject
from maskgym.aliases import Settings as Given
from maskgym.data import run_lengths
from maskgym.data.run_lengths import RunLengths
from maskgym.errors import UserError, brief
from maskgym.experiments.wiring import run_folder

FORMAT = 1
PROJECT = "project.json"
DETECT, SEGMENT, NEEDS, ANSWERS = "detect", "segment", "needs", "answers"


class DetectedObject(TypedDict):
    """One object in the record of the stage ``detect``.

    ``box`` is (left, top, right, bottom) in pixels, ``seen_by`` the score of each detector that found the object, and
    ``annotation`` the index among the annotations of the image. Annotations have no score.
    """

    id: str
    category: str
    box: list[float]
    score: float | None
    seen_by: dict[str, float | None]
    annotation: int | None
    provenance: JsonObject


class Outcome(TypedDict):
    """Current state of an object: status, commands, mask, and the provenance of each field."""

    status: str
    needs: list[str]
    segmentation: RunLengths | None
    provenance: JsonObject


@dataclass(frozen=True)
class Settings:
    """Settings of a project; the options of a command replace them and are stored.

    Attributes:
        images: Folder of photos, or None.
        dataset: ``scenes`` in place of a folder, or None.
        split, samples: Split and number of the scenes.
        annotations: COCO-style JSON with true boxes, under ``images``; None searches for it.
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
        timeout: Maximal seconds per answer.
        max_tokens, temperature: Generation limits of an answer; None leaves them to the server.
        jobs: Number of simultaneous requests to the server.
        prices: Prices per million tokens read and written, for the cost; or None.
        device: PyTorch device of all models; None takes CUDA if available.
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
        folder: Folder of the project; created if absent.
        given: Settings of this command by name; None takes the stored value, else the default.

    Raises:
        UserError: If the folder cannot be written or is no project, or a setting cannot be used.
    """

    def __init__(self, folder: str | Path, given: Given | None = None) -> None:
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
        settings = {name: value for name, value in {**kept, **new}.items() if name in known}
        lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
        self.settings = Settings(**{**settings, **lists})
        if self.settings.images is not None:
            self.settings = replace(self.settings, images=str(Path(self.settings.images).expanduser().absolute()))
        content = json.dumps({"format": FORMAT, "settings": asdict(self.settings)}, indent=2) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_changed(file, content)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def read(self, stage: str, name: str) -> JsonObject | None:
        """Read the record of an image; None if there is none.

        Raises:
            UserError: If it cannot be read, or is no record.
        """
        file = self.file(stage, name)
        if not file.exists():
            return None
        found = run_folder.read_json(file)
        objects = found.get("objects") if isinstance(found, dict) else None
        if not isinstance(objects, list) or not all(map(_is_object, objects)):
            raise UserError(f"{file}: is no record: remove it, and the stage {stage} writes it again")
        return found

    def write(self, stage: str, name: str, record: JsonObject) -> None:
        """Write the record of an image atomically."""
        files.write(self.file(stage, name), to_json(record), flush=True)

    def file(self, stage: str, name: str) -> Path:
        """Build the path of a record."""
        return self.folder / stage / f"{name}.json"

    def alone(self, work: str) -> AbstractContextManager[None]:
        """Lock the project for one kind of work; see `maskgym.files.alone`."""
        return files.alone(self.folder, work)


def provenance(by: str, **details: str | JsonObject | None) -> JsonObject:
    """Build the provenance of a field: author, time (UTC), model, version and settings."""
    known = {name: value for name, value in details.items() if value is not None}
    return {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds"), **known}


def digest(*parts: object) -> str:
    """Compute a digest of 24 characters from parts of JSON types."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def to_json(value: JsonObject) -> str:
    """Convert to readable JSON; file names that are not valid text are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    return text + "\n"


def write_changed(file: Path, content: str | bytes) -> None:
    """Write a file if its content differs."""
    data = content.encode() if isinstance(content, str) else content
    if not (file.exists() and file.read_bytes() == data):
        files.write(file, data, flush=True)


def _remembered(file: Path) -> JsonObject:
    if not file.exists():
        return {}
    found = run_folder.read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("settings"), dict):
        raise UserError(f"{file}: is not a project of this version: expected format {FORMAT} with settings")
    for name, kind in get_type_hints(Settings).items():
        value = found["settings"].get(name, getattr(Settings, name))
        if not _is_a(value, kind):
            raise UserError(f"{file}: {name}: {brief(value)}: expected {kind if get_args(kind) else kind.__name__}")
    return found["settings"]


def _is_object(one: Json) -> bool:
    """Check that an entry of a record has an id, and a mask whose runs fill it if it has one."""
    if not isinstance(one, dict) or "id" not in one:
        return False
    code = one.get("segmentation")
    return code is None or run_lengths.is_code(code)


def _is_a(value: Json, kind: type | UnionType) -> bool:
    """Check a value from JSON, which has no tuples and writes some floats as whole numbers, against a type."""
    if isinstance(kind, UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is_a(one, get_args(kind)[0]) for one in value)
    return type(value) is kind or (kind is float and type(value) is int)
