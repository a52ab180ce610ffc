"""Names that public data sets give to folders of photos, masks and splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_IMAGE_NAME = re.compile(r"(.*[-_ ])?(images?|imgs?|im|photos?|shadowimages)")
_MASK_NAME = re.compile(
    r"(.*[-_ ])?(masks?|gts?(_object)?|ground[-_ ]?truths?([-_ ]masks?)?|binary|pixelwisegt-new-png|shadowmasks)"
)
_INSTANCE_NAME = re.compile(r"(.*[-_ ])?inst(ances?)?([-_ ]?(gts?|masks?|maps?))?")
_SPLIT_NAME = re.compile(
    r"(?<![a-z])(?:gt|imgs?|sbu)?(?:"
    r"(?P<train>train(?:ing|set|val)?|sbutrain\w*|tr)|(?P<validation>val(?:idation|id|set)?|vd)|(?P<test>test(?:ing|set)?|te)"
    r")(?![a-z])"
)


def subfolders(folder: Path) -> list[Path]:
    """List a folder's subfolders in order of name, without hidden ones and ``__MACOSX``."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def image_folders(folder: Path) -> list[Path]:
    """List the subfolders whose name denotes photos; only exact names if any exist."""
    return _named(folder, _IMAGE_NAME)


def split_in_name(name: str) -> str | None:
    """Find the split in the name of a folder or file: ``DUTS-TR`` is train, ``val2017`` validation."""
    match = _SPLIT_NAME.search(name.lower())
    return match.lastgroup if match else None


def mask_folders(folder: Path, instances: bool = False) -> list[Path]:
    """List the subfolders whose name denotes masks; with ``instances``, those of instances if any exist."""
    return (_named(folder, _INSTANCE_NAME) if instances else []) or _named(folder, _MASK_NAME)


def denotes_instances(name: str) -> bool:
    """Check whether the name of a folder denotes instances, as ``Instance gt`` does."""
    return bool(_INSTANCE_NAME.fullmatch(name.lower()))


def find_home(root: Path, holds: Callable[[Path], bool]) -> Path | None:
    """Find the first folder that satisfies ``holds``: the root, or the only folder in it, as archives unpack."""
    folder, only = root, [root]
    while len(only) == 1:
        folder = only[0]
        if holds(folder):
            return folder
        only = subfolders(folder)
    return None


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    matches = [(path, pattern.fullmatch(path.name.lower())) for path in subfolders(folder)]
    plain = [path for path, match in matches if match and not match[1]]
    return plain or [path for path, match in matches if match]  # 'GT' takes precedence over 'Instance gt' (SOC)
