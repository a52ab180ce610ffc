"""Check a data set: read every sample and list every fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from maskgym.aliases import JsonObject, Settings
from maskgym.data import make
from maskgym.data.layout.images import DataFault
from maskgym.data.layout.listing import Listing, Looks, Reader
from maskgym.data.layout.names import split_in_name
from maskgym.data.layout.pairs import find_pairs
from maskgym.data.published import PUBLISHED
from maskgym.data.readers.coco import find_annotations
from maskgym.data.readers.reasoning import is_reasoning
from maskgym.data.sample import SPLITS
from maskgym.data.tasks import TASKS, Folder, Source, find_folders, named_sets
from maskgym.errors import UserError, one_line

FEW = 30  # a mean over fewer held-out samples is noted
COUNTED = ("samples", "images", "instances")
_SIGNS = {  # files that identify the reader of a data set
    "voc": ("SegmentationClass", "VOC2012/SegmentationClass", "VOCdevkit/VOC2012/SegmentationClass"),
    "expressions": ("refs(*).p", "refcoco*/refs(*).p", "grefs(*).json", "grefcoco/grefs(*).json"),
    "ranked": ("rank_order", "Annotations/*.pkl", "obj_seg_data_*.json"),
}
_SIGNS_OF_LABELS = ("[Ii]nstance*", "*/[Ii]nstance*", "ImageSets/*id*.txt")
READERS = ("folder", "coco", "groups", "label_maps", "voc", "expressions", "reasoning", "ranked")


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
        data: Name of the reader or published data set.
        root: Folder of the data set.
        task: ``sod``, ``sis`` or ``cosod``.
        counts: For each split, and ``unlisted`` if lists leave samples out: the number of ``samples`` and, in
            samples without fault, of ``images`` and ``instances`` (mask rows).
        faults: Reasons why files are unusable, one line each.
        notes: Unusual findings that may be intended, one line each.
    """

    data: str
    root: str
    task: str
    counts: dict[str, dict[str, int]]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the check found no fault."""
        return not self.faults

    def as_dict(self) -> JsonObject:
        """Convert the report to JSON types."""
        total = {name: sum(row[name] for row in self.counts.values()) for name in COUNTED}
        return {
            "data": self.data,
            "root": self.root,
            "task": self.task,
            "counts": {**self.counts, "total": total},
            "faults": list(self.faults),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = [f"{'split':<12}" + "".join(f"{name:>11}" for name in COUNTED)]
        for split, row in self.as_dict()["counts"].items():
            rows.append(f"{split:<12}" + "".join(f"{row[name]:>11,}" for name in COUNTED))
        verdict = "no faults" if self.ok else f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        lines = [one_line(f"data={self.data} task={self.task} data.root={self.root}"), "", *rows, ""]
        lines += [f"note   {note}" for note in self.notes] + [f"fault  {fault}" for fault in self.faults]
        return "\n".join([*lines, verdict])


def check(name: str | None, root: str | Path, task: str | None = None, **arguments: Any) -> Report:
    """Read every sample of every split and report all faults.

    Args:
        name: Name of a folder reader or published data set; None or ``auto`` detects it from the folder.
        root: Folder of the data set.
        task: Task of the reader; None for the reader's default.
        **arguments: Other arguments of the reader.

    Raises:
        UserError: If an argument is invalid, such as a root that is not a folder.
    """
    if name in (None, "auto"):
        name = detect(root)
    if name not in (*READERS, *PUBLISHED):
        raise UserError(f"data={name}: expected one of {', '.join((*READERS, *PUBLISHED))} to check a folder")
    given = {} if task is None else {"task": task}
    reader = make(name, root=root, split="all", strict=False, **given, **arguments)
    assert isinstance(reader, Reader)
    counts = {split: dict.fromkeys(COUNTED, 0) for split in SPLITS}
    faults, notes, looks = list(reader.faults), list(reader.notes), Looks()
    for index in tqdm(range(len(reader)), desc=f"check {Path(root).name}", unit="sample", disable=None):
        row = counts.setdefault(reader.splits[index] or "unlisted", dict.fromkeys(COUNTED, 0))
        row["samples"] += 1
        try:
            sample = reader[index]
        except DataFault as error:
            faults += error.faults
            continue
        row["images"] += len(sample.images)
        row["instances"] += sum(len(masks) for masks in sample.masks)
        looks.add(reader, index, sample)
    notes += [note for split in SPLITS for note in _size(split, counts[split]["samples"])]
    notes += [*_compare(name, reader, counts, arguments), *looks.notes]
    return Report(name, str(root), reader.task, counts, tuple(faults), tuple(notes))


def check_tasks(
    root: str | Path | None,
    held_out: Mapping[str, Source] | None = None,
    roots: Mapping[str, Folder] | None = None,
    readers: Mapping[str, Settings] | None = None,
    **sources: Source,
) -> list[Report]:
    """Check every set of every task, each once; the arguments are those of `maskgym.data.tasks.make_tasks`.

    Raises:
        UserError: If no task has a set, or folders are missing, all of which are named.
    """
    named = named_sets({task: sources.get(task) for task in TASKS}, held_out or {})
    places = find_folders({name: key for key, names in named.items() for name in names}, root, roots or {})
    reports: dict[str, Report] = {}
    for key, names in named.items():
        for name, place in ((name, places[name]) for name in names if places[name] is not None and name not in reports):
            assert place is not None
            arguments = (readers or {}).get(name, {})
            reports[name] = check(name if name in PUBLISHED else None, place, key.rpartition(".")[2], **arguments)
    if not reports:
        raise UserError("no task has a set with a folder: expected sod=NAME, sis=NAME or cosod=NAME")
    return list(reports.values())


def detect(root: str | Path) -> str:
    """Detect the data set, or the reader, for a folder.

    A published set is recognised by its folder's name. Otherwise the result is ``voc``, ``expressions`` or ``ranked``
    if their files exist, ``reasoning`` if photos have a JSON file each, ``coco`` for COCO-style JSON, ``label_maps`` if
    a folder's name says instances, ``groups`` if photos lie in several folders that are not splits, and ``folder`` in
    all other cases.

    Raises:
        UserError: If several JSON files or folders match.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        return "folder"  # this reader reports the fault of the root
    for name, published in PUBLISHED.items():
        if path.resolve().name.lower() in {folder.lower() for folder in published.folder}:
            return name
    for reader, patterns in _SIGNS.items():
        if _holds(path, patterns):
            return reader
    if is_reasoning(path):
        return "reasoning"
    if find_annotations(path):
        return "coco"
    if _holds(path, _SIGNS_OF_LABELS):
        return "label_maps"
    parents = {PurePosixPath(pair.key).parent for pair in find_pairs(Listing(path))}
    return "groups" if len(parents) > 1 and not all(split_in_name(parent.name) for parent in parents) else "folder"


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _size(split: str, samples: int) -> list[str]:
    """List a note if a split is empty, or too small to measure on."""
    if not samples:
        return [f"no sample is in split {split}"]
    if split == "train" or samples >= FEW:
        return []
    return [f"split {split} has {samples} samples, fewer than {FEW}: means over them are uncertain"]


def _compare(name: str, reader: Reader, counts: dict[str, dict[str, int]], arguments: Mapping[str, Any]) -> list[str]:
    """List a note for each split whose number of photos, or of samples, differs from the authors' number."""
    published = PUBLISHED.get(name)
    if published is None or any(arguments.get(key) not in (None, "both") for key in ("partition", "split_by")):
        return []  # the numbers are those of the usual splits
    notes = []
    for split, stated in published.counts.items():
        found = counts[split]["images"]
        if published.part:
            own = (key for key, other in zip(reader.keys, reader.splits, strict=True) if other == split)
            found = len({key.partition(published.part)[0] for key in own})
        if found != stated:
            notes.append(f"split {split} has {found:,} photos without fault; its authors state {stated:,}")
    for split, stated in published.sentences.items():
        found = counts[split]["samples"]
        if found != stated:
            notes.append(f"split {split} has {found:,} sentences; its authors' files have {stated:,}")
    return notes
