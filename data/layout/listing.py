"""Lists of a data set's files for readers: findings, splits, and excluded keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from maskgym.data.layout.images import SUFFIXES, DataFault
from maskgym.data.layout.names import split_in_name
from maskgym.data.sample import SPLITS, Dataset, split_of
from maskgym.errors import UserError

_LISTS = {"train": ("train.txt",), "validation": ("val.txt", "validation.txt"), "test": ("test.txt",)}


class Listing:
    """Findings of a reader while it lists the files of a data set.

    Args:
        root: Folder of the data set.
        split: Requested split, or ``all``.

    Attributes:
        faults: Reasons why files are unusable, one line each.
        notes: What is left out without a fault, one line each.
    """

    def __init__(self, root: Path, split: str = "all") -> None:
        self.root, self.split = root, split
        self.faults: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Record the faults of a DataFault that is raised inside, and go on after the block."""
        try:
            yield
        except DataFault as error:
            self.faults += error.faults

    def leave_out(self, names: Iterable[str], why: str) -> None:
        """Note photos that are left out without a fault, if there are any.

        Example:
            >>> listing = Listing(Path("data"))
            >>> listing.leave_out(["a.jpg", "b.jpg"], "without an instance")
            >>> listing.notes
            ['2 photos without an instance are left out: a.jpg, b.jpg']
        """
        if listed := list(names):
            self.notes.append(f"{len(listed)} photos {why} are left out: {preview(listed)}")

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
        return {unit: split_of(unit) for unit in units}

    def selects(self, split: str | None) -> bool:
        """Check whether a sample of a split belongs to the requested split."""
        return self.split in ("all", split)

    def _read_lists(self, lists: Mapping[str, Path], units: Iterable[str]) -> dict[str, str | None]:
        assigned: dict[str, str | None] = dict.fromkeys(units)
        for split, path in lists.items():
            for number, entry in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
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

    Raises:
        UserError: If an argument is invalid, or the split is empty.
        DataFault: If strict and there are faults.
    """

    root: Path
    keys: tuple[str, ...]
    splits: tuple[str | None, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def finish(self, listing: Listing, strict: bool, splits: Iterable[str | None]) -> None:
        """Keep the findings of a listing; if strict, raise if it has faults or its requested split is empty.

        Args:
            listing: The listing.
            strict: Whether to raise.
            splits: Split of every sample that was found.

        Raises:
            DataFault: If there are faults.
            UserError: If the split is empty; the message states the sizes of the other splits.
        """
        self.faults, self.notes = tuple(listing.faults), tuple(listing.notes)
        if strict and self.faults:
            raise DataFault(*self.faults)
        found = list(splits) if strict else []
        if strict and listing.split not in ("all", *found):
            counts = ", ".join(f"{name} {found.count(name)}" for name in SPLITS)
            raise UserError(
                f"data.split={listing.split}: {listing.root} has no sample there ({counts}): choose another, all, or "
                "data.splits=hash"
            )


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


def check_excluded(exclude: Iterable[str], keys: Iterable[str]) -> frozenset[str]:
    """Check the keys to leave out.

    Raises:
        UserError: If a key matches no sample, which is most likely a typing error.
    """
    excluded = frozenset(exclude)
    if unknown := sorted(excluded.difference(keys)):
        raise UserError(f"data.exclude: no photo has the key '{unknown[0]}'")
    return excluded


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
