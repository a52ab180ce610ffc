"""Crash-safe journal of the annotators' decisions about objects: Man[·] of Eq. 1.

Each decision is the whole outcome for one object: a line that is appended to ``corrections.jsonl`` and flushed to disk
before the page receives its answer. ``corrections.json`` is a snapshot that keeps the journal's tail short. A line that
a crash truncated was never answered, so it is removed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock

from maskgym import files
from maskgym.aliases import Json, JsonObject
from maskgym.data import run_lengths
from maskgym.data.run_lengths import RunLengths
from maskgym.errors import UserError, brief
from maskgym.experiments.annotation.needs.project import (
    DETECT,
    NEEDS,
    SEGMENT,
    DetectedObject,
    Outcome,
    Project,
    provenance,
)
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.experiments.wiring import run_folder

JOURNAL, SNAPSHOT = "corrections.jsonl", "corrections.json"
ACCEPTED, REJECTED, UNDECIDED = "accepted", "rejected", "undecided"
STATUSES = (ACCEPTED, REJECTED, UNDECIDED)  # undecided includes objects that were begun and left for later
SNAPSHOT_EVERY = 50  # decisions


@dataclass(frozen=True)
class Candidate:
    """One object with the results of the stages.

    Attributes:
        item: Image of the object.
        found: Id, category, box, score and the detectors that found it.
        segmentation: Run-length code of its mask, or None.
        needs: Commands of the writer.
        reason: Reason for missing needs, or None.
        provenance: Provenance of each field.
    """

    item: Item
    found: DetectedObject
    segmentation: RunLengths | None
    needs: tuple[str, ...]
    reason: str | None
    provenance: JsonObject

    @property
    def id(self) -> str:
        """Name of the object, a digest of its image, box and category."""
        return self.found["id"]


def candidates(project: Project, source: Source) -> list[Candidate]:
    """List every object of a project in the order of its images; results of missing stages are empty.

    Raises:
        UserError: If no image has a record of the detectors.
    """
    listed, records = [], 0
    for item in source.items:
        record = project.read(DETECT, item.name)
        records += record is not None
        made = {stage: _by_id(project.read(stage, item.name)) for stage in (SEGMENT, NEEDS)}
        for found in (record or {"objects": ()})["objects"]:
            mask, words = (made[stage].get(found["id"], {}) for stage in (SEGMENT, NEEDS))
            by = {**found["provenance"], **mask.get("provenance", {}), **words.get("provenance", {})}
            needs = tuple(words.get("needs", ()))
            listed.append(Candidate(item, found, mask.get("segmentation"), needs, words.get("reason"), by))
    if not records:
        raise UserError(f"{project.folder}: nothing is detected yet: run --stage detect first")
    return listed


class Decisions:
    """The decisions of a project, by object; only one process may write them.

    Args:
        project: Project of the decisions.
        writing: Whether to remove a line that a crash truncated; False only reads.

    Raises:
        UserError: If the journal holds a line that is no decision.
    """

    def __init__(self, project: Project, writing: bool = False) -> None:
        self._journal, self._snapshot = project.folder / JOURNAL, project.folder / SNAPSHOT
        self._lock, self._since = RLock(), 0
        self.made: dict[str, JsonObject] = {}
        self._bytes = self._read(writing)

    def decide(
        self, name: str, by: str, status: str, needs: Sequence[str], corrected: JsonObject | None = None
    ) -> None:
        """Record the outcome for an object and flush it to disk.

        Args:
            name: Id of the object.
            by: Name of the annotator.
            status: ``accepted``, ``rejected`` or ``undecided``.
            needs: The final commands.
            corrected: Corrected ``segmentation`` and the clicks that made it; None keeps the mask of the segmenter.

        Raises:
            UserError: If it cannot be written, as on a full disk; then nothing is recorded.
        """
        made = {
            "object": name,
            "status": status,
            "needs": list(needs),
            **(corrected or {}),
            "provenance": provenance(by),
        }
        line = json.dumps(made, ensure_ascii=True)
        with self._lock:
            try:
                files.append(self._journal, line)
            except OSError as error:
                raise UserError(f"{self._journal}: not saved: {error.strerror}") from error
            self.made[name] = made
            self._bytes += len(line) + 1
            self._since += 1
            if self._since >= SNAPSHOT_EVERY:
                with suppress(UserError):  # the journal holds the decision; the next one tries again
                    self.save()

    def save(self) -> None:
        """Write the snapshot.

        Raises:
            UserError: If it cannot be written; the journal still holds every decision.
        """
        with self._lock:
            content = json.dumps({"bytes": self._bytes, "decisions": self.made}, indent=1) + "\n"
            try:
                files.write(self._snapshot, content, flush=True)
            except OSError as error:
                kept = f"the decisions are in {self._journal.name}"
                raise UserError(f"{self._snapshot}: cannot be written: {error.strerror}; {kept}") from error
            self._since = 0

    def _read(self, writing: bool) -> int:
        """Read the snapshot and the lines after it; return the bytes of the journal without a truncated line."""
        content = files.whole_lines(self._journal, repair=writing)
        start = 0
        if self._snapshot.exists():
            found = run_folder.read_json(self._snapshot)
            size, kept = (found.get("bytes"), found.get("decisions")) if isinstance(found, dict) else (None, None)
            if type(size) is not int or not isinstance(kept, dict) or not all(map(_is_decision, kept.values())):
                told = f"remove it: every decision is in {self._journal.name}"
                raise UserError(f"{self._snapshot}: is no snapshot of decisions: {told}")
            if size <= len(content):  # otherwise the journal is an older copy
                start, self.made = size, kept
        for number, line in enumerate(content[start:].splitlines(), start=1):
            try:
                made = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self._journal}: line {number} after byte {start}: no decision: {error}") from error
            if not _is_decision(made):
                raise UserError(f"{self._journal}: line {number} after byte {start}: no decision: {brief(made)}")
            self.made[made["object"]] = made
        return len(content)


def outcome(one: Candidate, decision: JsonObject | None) -> Outcome:
    """Combine an object with the decision about it; fields that the annotator left unchanged keep their provenance."""
    if decision is None:
        return Outcome(
            status=UNDECIDED, needs=list(one.needs), segmentation=one.segmentation, provenance=dict(one.provenance)
        )
    who, by = decision["provenance"], dict(one.provenance)
    if decision["needs"] != list(one.needs):
        by["needs"] = {**who, **({"from": by["needs"]} if "needs" in by else {})}
    segmentation = decision.get("segmentation") or one.segmentation
    if decision.get("segmentation"):
        clicks = {name: decision[name] for name in ("points", "labels", "boxed", "segmenter") if name in decision}
        by["segmentation"] = {**who, **clicks}
    by["status"] = who
    return Outcome(status=decision["status"], needs=decision["needs"], segmentation=segmentation, provenance=by)


def progress(objects: Sequence[Candidate], decisions: Decisions) -> dict[str, int]:
    """Count the objects, in total and per status."""
    statuses = Counter(decisions.made.get(one.id, {}).get("status", UNDECIDED) for one in objects)
    return {"objects": len(objects), **{status: statuses[status] for status in STATUSES}}


def _is_decision(made: Json) -> bool:
    """Check the fields that every decision has, and those of a corrected mask."""
    if not isinstance(made, dict) or made.get("status") not in STATUSES:
        return False
    kinds = {"object": str, "needs": list, "provenance": dict}
    fits = all(isinstance(made.get(name), kind) for name, kind in kinds.items())
    return fits and (made.get("segmentation") is None or run_lengths.is_code(made["segmentation"]))


def _by_id(record: JsonObject | None) -> JsonObject:
    return {} if record is None else {one["id"]: one for one in record["objects"]}
