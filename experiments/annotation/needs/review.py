"""Crash-safe journal of the annotators' decisions about objects: Man[·] of Eq. 1.

Each decision is the whole outcome for one object: a line appended to ``corrections.jsonl`` and seen on the disk before
it is answered. ``corrections.json`` is a snapshot, written whole now and then, so that opening reads few lines. A line
that a crash cut off was never answered, and is taken away.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.project import DETECT, NEEDS, SEGMENT, Project, provenance, write
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.experiments.wiring import run_folder

JOURNAL, SNAPSHOT = "corrections.jsonl", "corrections.json"
ACCEPTED, REJECTED, UNDECIDED = "accepted", "rejected", "undecided"
STATUSES = (ACCEPTED, REJECTED, UNDECIDED)  # undecided: begun, and left for later
SNAPSHOT_EVERY = 50  # decisions


@dataclass(frozen=True)
class Candidate:
    """One object as the stages made it.

    Attributes:
        item: Image of the object.
        found: Id, category, box, score and the detectors that found it.
        segmentation: Run-length code of its mask, or None.
        needs: Commands that a writer wrote.
        reason: Reason for missing needs, or None.
        provenance: Provenance of each field.
    """

    item: Item
    found: Mapping[str, Any]
    segmentation: Mapping[str, Any] | None
    needs: tuple[str, ...]
    reason: str | None
    provenance: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The object's name, the same for the same box and category."""
        return self.found["id"]


def candidates(project: Project, source: Source) -> list[Candidate]:
    """Return every object of a project in the order of its images; what a later stage has not made is empty.

    Raises:
        UserError: If no image has been through the detectors.
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
    """The decisions of a project, by object; one process at a time writes them.

    Args:
        project: Project of the decisions.
        writing: Mend the journal where a crash cut it off; False only reads.

    Raises:
        UserError: If the journal holds something else in the middle.
    """

    def __init__(self, project: Project, writing: bool = False) -> None:
        self._journal, self._snapshot = project.folder / JOURNAL, project.folder / SNAPSHOT
        self._lock, self._since = Lock(), 0
        self.made: dict[str, dict[str, Any]] = {}
        self._bytes = self._read(writing)

    def decide(self, name: str, by: str, status: str, needs: Sequence[str], **more: Any) -> dict[str, Any]:
        """Record the outcome for an object and see it on the disk; return it.

        Args:
            name: The object's id.
            by: Name of the annotator.
            status: ``accepted``, ``rejected`` or ``undecided``.
            needs: The final commands.
            **more: ``segmentation`` where the mask is another than the segmenter's, and the clicks that made it.
        """
        made = {"object": name, "status": status, "needs": list(needs), **more, "provenance": provenance(by)}
        line = json.dumps(made, ensure_ascii=True) + "\n"
        with self._lock:
            with self._journal.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
            self.made[name] = made
            self._bytes += len(line)
            self._since += 1
            if self._since >= SNAPSHOT_EVERY:
                self._save()
        return made

    def save(self) -> None:
        """Write the snapshot."""
        with self._lock:
            self._save()

    def _save(self) -> None:
        write(self._snapshot, json.dumps({"bytes": self._bytes, "decisions": self.made}, indent=1) + "\n")
        self._since = 0

    def _read(self, writing: bool) -> int:
        """Read the snapshot and the lines after it; return how long the journal is, a cut line left out."""
        content = self._journal.read_bytes() if self._journal.exists() else b""
        whole = content.rfind(b"\n") + 1
        if writing and whole < len(content):
            with self._journal.open("r+b") as stream:
                stream.truncate(whole)
        start = 0
        if self._snapshot.exists():
            found = run_folder.read_json(self._snapshot)
            if found["bytes"] <= whole:  # else the journal is of an older copy: it alone counts
                start, self.made = found["bytes"], found["decisions"]
        for number, line in enumerate(content[start:whole].splitlines(), start=1):
            try:
                made = json.loads(line)
                self.made[made["object"]] = made
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._journal}: line {number} after byte {start}: no decision: {error}") from error
        return whole


def outcome(one: Candidate, decision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the current state of an object: status, needs, segmentation, and the provenance of each field.

    What a person left as it was keeps the provenance of what made it.
    """
    by = dict(one.provenance)
    state = {"status": UNDECIDED, "needs": list(one.needs), "segmentation": one.segmentation}
    if decision is not None:
        who = decision["provenance"]
        state |= {"status": decision["status"], "needs": decision["needs"]}
        if decision["needs"] != list(one.needs):
            by["needs"] = {**who, **({"from": by["needs"]} if "needs" in by else {})}
        if decision.get("segmentation"):
            state["segmentation"] = decision["segmentation"]
            clicks = {name: decision[name] for name in ("points", "labels", "boxed", "segmenter") if name in decision}
            by["segmentation"] = {**who, **clicks}
        by["status"] = who
    return {**state, "provenance": by}


def progress(objects: Sequence[Candidate], decisions: Decisions) -> dict[str, int]:
    """Count the objects, in total and per status."""
    statuses = Counter(decisions.made.get(one.id, {}).get("status", UNDECIDED) for one in objects)
    return {"objects": len(objects), **{status: statuses[status] for status in STATUSES}}


def _by_id(record: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if record is None else {one["id"]: one for one in record["objects"]}
