"""Lists of a data set's files for readers: findings, splits, and excluded keys."""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from maskgym.data.layout.images import SUFFIXES, DataFault, check_regular
from maskgym.data.layout.names import split_in_name
from maskgym.data.sample import SPLITS, Dataset, Sample, split_of
from maskgym.errors import EmptySplit, UserError, one_line

LOOKED_AT = 32  # samples that `Reader.describe` reads, a second or less
THINNEST = 200  # longest photo that Qwen2-VL's processor takes, in times of its width
_LISTS = {"train": ("train.txt",), "validation": ("val.txt", "validation.txt"), "test": ("test.txt",)}


class Listing:
    """Findings of a reader while it lists the files of a data set.

    Args:
        root: Folder of the data set.
        split: Requested split, or ``all``.
        exclude: Keys of photos to leave out; numbers stand for their digits.

    Attributes:
        faults: Reasons why files are unusable, one line each.
        notes: What is left out without a fault, one line each.
        dealt: Whether a hash of their names assigned the splits.

    Raises:
        UserError: If ``exclude`` is no list.
    """

    def __init__(self, root: Path, split: str = "all", exclude: Collection[str | float] = ()) -> None:
        if isinstance(exclude, str) or not isinstance(exclude, Collection):
            raise UserError(f"data.exclude={exclude}: expected a list of keys, such as [{exclude}]")
        self.root, self.split = root, split
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.dealt = False
        self._excluded = frozenset(map(str, exclude))  # YAML reads digits as a number
        self._forgiven: set[str] = set()

    def find_fault(self, key: str, fault: str) -> None:
        """Record a fault of the photo with this key, unless the photo is excluded."""
        if key in self._excluded:
            self._forgiven.add(key)
        else:
            self.faults.append(fault)

    def check_excluded(self, keys: Iterable[str]) -> frozenset[str]:
        """Check the keys to leave out, and return them.

        Args:
            keys: Keys of the photos without a fault.

        Raises:
            UserError: If a key matches no photo, which is most likely a typing error.
        """
        known = self._forgiven.union(keys)
        if unknown := sorted(self._excluded - known):
            twins = (key for key in sorted(known) if key.lstrip("0") == unknown[0].lstrip("0"))
            hint = "".join(f": quotes keep the zeros of '{twin}'" for twin in islice(twins, 1))
            raise UserError(f"data.exclude: no photo has the key '{unknown[0]}'{hint}")
        return self._excluded

    def inside(self, path: Path) -> Path:
        """Check that a file may be read, and return it.

        Raises:
            DataFault: If it is behind a link that leaves the data set, is no regular file, or its name is no UTF-8.
        """
        if fault := name_fault(path) or link_fault(self.root, path):
            raise DataFault(fault)
        check_regular(path)
        return path

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Record the faults of a DataFault that is raised inside, and go on after the block."""
        try:
            yield
        except DataFault as error:
            self.faults += error.faults

    def leave_out(self, names: Iterable[str], why: str, what: str = "photos") -> None:
        """Note photos, or other things, that are left out without a fault, if there are any.

        Example:
            >>> listing = Listing(Path("data"))
            >>> listing.leave_out(["a.jpg", "b.jpg"], "without an instance")
            >>> listing.notes
            ['2 photos without an instance are left out: a.jpg, b.jpg']
        """
        if listed := list(names):
            self.notes.append(f"{len(listed)} {what} {why} are left out: {preview(listed)}")

    def assign(
        self, units: Collection[str], splits: str, lists: Mapping[str, Path] | None = None
    ) -> dict[str, str | None]:
        """Assign a split to each unit (a photo's key, or a group): by folders, else by lists, else by hash.

        Folders count only if the first folder of every unit names a split: a group of trains is not the training split.

        Args:
            units: Names of the units, which begin with the split's folder if there is one.
            splits: ``auto`` as above; ``hash`` to ignore folders and lists; or the split that contains all units.
            lists: Lists by split; None takes ``train.txt``, ``val.txt`` and ``test.txt`` in the root.

        Returns:
            The split of each unit; None for a unit that is on no list.

        Raises:
            UserError: If ``splits`` has another value.
        """
        if splits in SPLITS:
            return dict.fromkeys(units, splits)
        if splits not in ("auto", "hash"):
            choices = f"auto (split folders or lists, else by hash), hash, or {', '.join(SPLITS)} for all of it"
            raise UserError(f"data.splits={splits}: expected {choices}")
        if splits == "auto" and units:
            stated = {unit: split_in_name(unit.split("/")[0]) if "/" in unit else None for unit in units}
            if all(stated.values()):
                return stated
            if lists is None:
                places = ((split, self.root / name) for split, names in _LISTS.items() for name in names)
                lists = {split: path for split, path in places if path.is_file()}
            if lists:
                return self._read_lists(lists, units)
        self.dealt = True
        return {unit: split_of(unit) for unit in units}

    def selects(self, split: str | None) -> bool:
        """Check whether a sample of a split belongs to the requested split."""
        return self.split in ("all", split)

    def _read_lists(self, lists: Mapping[str, Path], units: Iterable[str]) -> dict[str, str | None]:
        assigned: dict[str, str | None] = dict.fromkeys(units)
        for split, path in lists.items():
            lines: list[str] = []
            with self.collecting():
                lines = read_lines(self.inside(path))
            for number, entry in enumerate(lines, start=1):
                if not entry.strip():
                    continue
                unit = _unit_named(entry.strip(), assigned)
                if unit is None:
                    self.faults.append(f"{path}: line {number} names nothing in the data set: '{entry.strip()[:80]}'")
                elif assigned[unit] not in (None, split):
                    self.faults.append(f"{path}: line {number}: '{unit}' is on the {assigned[unit]} list too")
                else:
                    assigned[unit] = split
        return assigned


class Reader(Dataset):
    """Data set on disk, whose files are listed at construction; a sample is decoded and checked on each access.

    Each reader takes the arguments ``root``, ``task`` (meaning of the masks), ``split`` (``train``, ``validation``,
    ``test`` or ``all``), and:

    - ``splits``: ``auto`` splits by folders or lists such as ``train.txt``, ``val.txt`` and ``test.txt`` if they exist,
      otherwise by the hash of the key; ``hash`` always by hash; ``test`` makes all samples the test split, and so on.
    - ``exclude``: keys of photos to leave out.
    - ``strict``: whether to raise on faults found in listing; False records them in ``faults`` and skips those samples.

    Attributes:
        root: Folder of the data set.
        keys: The key of each sample.
        splits: The split of each sample (None: on no list).
        shown: The given ``task``, if ``task`` itself is the more general meaning of the masks.
        faults: Faults found in listing, one line each.
        notes: Samples left out without a fault, one line per reason.
        dealt: Whether a hash of their names assigned the splits.

    Raises:
        UserError: If an argument is invalid, or the split is empty.
        DataFault: If strict and there are faults.
    """

    root: Path
    keys: tuple[str, ...]
    splits: tuple[str | None, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    dealt: bool

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def with_rationale(self) -> tuple[int, ...]:
        """No indices, because photographs come without rationales, except in a column of `data=hf`."""
        return ()

    def finish(self, listing: Listing, strict: bool, splits: Iterable[str | None]) -> None:
        """Keep the findings of a listing; if strict, raise if it has faults or its requested split is empty.

        Args:
            listing: The listing.
            strict: Whether to raise.
            splits: Split of every sample that was found.

        Raises:
            DataFault: If there are faults.
            EmptySplit: If the split is empty; the message states the sizes of the other splits.
        """
        self.faults, self.notes = tuple(map(one_line, listing.faults)), tuple(map(one_line, listing.notes))
        self.dealt = listing.dealt
        if strict and self.faults:
            raise DataFault(*self.faults)
        found = list(splits) if strict else []
        if strict and listing.split not in ("all", *found):
            counts = ", ".join(f"{name} {found.count(name)}" for name in SPLITS)
            raise EmptySplit(
                f"data.split={listing.split}: {listing.root} has no sample there ({counts}): choose another, all, or "
                "data.splits=hash"
            )

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield, for each mask of a sample, its name and what is unusual about it, or None.

        Args:
            index: Index of the sample.
            sample: The sample.
        """
        for mask in (mask for masks in sample.masks for mask in masks):
            yield sample.key, "that fill the whole photo" if mask.all() else None

    def describe(self) -> list[str]:
        """List what is left out, and what is unusual about some samples, spread evenly; `check` looks at all."""
        looks = Looks()
        for index in np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)) if len(self) else ():
            with suppress(DataFault):  # raised again when the sample is used
                looks.add(self, int(index), self[int(index)])
        return [*self.notes, *looks.notes]


class Looks:
    """Unusual findings about the masks and photos of samples."""

    def __init__(self) -> None:
        self._masks, self._photos = 0, 0
        self._kinds: dict[str, list[str]] = {}
        self._thin: list[str] = []

    def add(self, reader: Reader, index: int, sample: Sample) -> None:
        """Look at one sample of a reader."""
        for name, kind in reader.look(index, sample):
            self._masks += 1
            if kind is not None:
                self._kinds.setdefault(kind, []).append(name)
        self._photos += len(sample.images)
        if any(max(image.shape[:2]) > THINNEST * min(image.shape[:2]) for image in sample.images):
            self._thin.append(sample.key)

    @property
    def notes(self) -> list[str]:
        """One line per kind, with the share of masks and the first names."""
        lines = [_share(names, self._masks, f"masks {kind}") for kind, names in self._kinds.items()]
        if self._thin:
            kind = f"photos more than {THINNEST} times as long as wide, which processors of models refuse"
            lines.append(_share(self._thin, self._photos, kind))
        return lines


def _share(names: Sequence[str], total: int, kind: str) -> str:
    return one_line(f"{len(names)} of {total:,} {kind}: {preview(names)}")


def check_root(data: str, root: str | Path | None, task: str, tasks: tuple[str, ...], split: str) -> Path:
    """Validate the arguments common to all readers, and return the root as a path.

    Raises:
        UserError: If the root is not a folder, or the reader does not know the task or the split.
    """
    if task not in tasks:
        raise UserError(f"task={task}: data={data} reads {', '.join(tasks)}")
    if split not in (*SPLITS, "all"):
        raise UserError(f"data.split={split}: expected {', '.join(SPLITS)} or all")
    if not root:
        raise UserError(f"data.root is not set: data={data} expects a folder")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"data.root={root}: {'not a folder' if path.exists() else 'no such folder'}")
    return path


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file in UTF-8, or in UTF-16 if its byte-order mark says so.

    Raises:
        DataFault: If it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFault(f"{path}: cannot be read: {error.strerror}") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors="replace").splitlines()


def boundary(root: Path, folder: Path) -> Path:
    """Find the folder that links must not leave: the root, or a folder outside of it that was requested."""
    inside = Path(os.path.normpath(folder)).is_relative_to(os.path.normpath(root))
    return root if inside else folder


def link_fault(root: Path, path: Path) -> str | None:
    """Check whether ``path`` is a link, or behind a link, that leaves the data set's folder; return the fault."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # the latter before Python 3.13
        return f"{path}: a link in a circle"
    except ValueError:  # a NUL
        return f"{path}: a name that no file can have"
    if target.is_relative_to(root.resolve()):
        return None
    return f"{path}: a link to {target}, outside of {root}: expected the files themselves, or data.root there"


def name_fault(path: Path) -> str | None:
    """Check whether a file's name is UTF-8, as keys in results must be; return the fault."""
    return None if is_text(str(path)) else f"{path}: its name is no UTF-8: expected another name"


def is_text(text: str) -> bool:
    """Check whether a text has no half of a surrogate pair, which cannot be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def preview(names: Sequence[str]) -> str:
    """Format the first five names as text."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _unit_named(entry: str, units: Mapping[str, str | None]) -> str | None:
    """Parse the unit from a list's line: a name with or without suffix and folders, alone or before a mask's."""
    for text in (entry, entry.split()[0]):
        path = PurePosixPath(text)
        parts = (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in units:
                return name
    return None
