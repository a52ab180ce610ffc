"""Export of a project: COCO-style JSON with needs, and the images, as ``data=coco`` reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from maskgym import files
from maskgym.aliases import JsonObject
from maskgym.chat.asker import to_png
from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import masks, review
from maskgym.experiments.annotation.needs.project import Outcome, Project, to_json, write_changed
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.experiments.wiring import run_folder

FOLDER, ANNOTATIONS, IMAGES = "export", "annotations.json", "images"
INCLUDED = {"accepted": (review.ACCEPTED,), "all": (review.ACCEPTED, review.UNDECIDED)}
WAYS = ("copy", "link")


def export(project: Project, source: Source, include: str = "accepted", way: str = "copy") -> dict[str, int]:
    """Write the data set; files that are up to date are not touched.

    Args:
        project: Project whose decisions are exported.
        source: Source of its images.
        include: ``accepted``: accepted objects; ``all``: all objects that are not rejected.
        way: ``copy`` the photos, or ``link``: a second name of the same file; scenes are always written.

    Returns:
        Number of images, annotations and needs, and of objects ``without_mask``, which are left out.

    Raises:
        UserError: If there is nothing to export, an argument is unknown, or a photo is on another disk than the link.
    """
    if include not in INCLUDED or way not in WAYS:
        raise UserError(f"export {include}, {way}: expected {' or '.join(INCLUDED)}, and {' or '.join(WAYS)}")
    decisions = review.Decisions(project).made
    chosen, without_mask = [], 0
    for one in review.candidates(project, source):
        now = review.outcome(one, decisions.get(one.id))
        if now["status"] in INCLUDED[include]:
            mask = None if now["segmentation"] is None else run_lengths.decode(now["segmentation"])
            if mask is None or not mask.any():
                without_mask += 1
            else:
                chosen.append((one, now, mask))
    if not chosen:
        raise UserError(f"{project.folder}: nothing to export: no object with a mask is {include}")
    folder = project.folder / FOLDER
    names = _file_names([item for item in source.items if any(one.item == item for one, _, _ in chosen)], source)
    content = _content(chosen, names)
    before = folder / ANNOTATIONS
    old = _exported(before) if before.exists() else set()
    for item, name in names.items():
        _bring(source, item, folder / IMAGES / name, way)
    write_changed(before, to_json(content))
    for name in old - set(names.values()):
        (folder / IMAGES / name).unlink(missing_ok=True)
    needs = sum(len(one.get("needs", ())) for one in content["annotations"])
    totals = {"images": len(names), "annotations": len(chosen), "needs": needs}
    return {**totals, "without_mask": without_mask}


def _exported(file: Path) -> set[str]:
    """List the photos of an earlier export.

    Raises:
        UserError: If the file is none, or names a photo outside of its folder, which would be removed.
    """
    try:
        found = {PurePosixPath(image["file_name"]) for image in run_folder.read_json(file)["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is no export of a project: remove it") from error
    if any(name.is_absolute() or ".." in name.parts for name in found):
        raise UserError(f"{file}: names a photo outside of {file.parent / IMAGES}: remove it")
    return {name.as_posix() for name in found}


def _content(chosen: Sequence[tuple[review.Candidate, Outcome, np.ndarray]], names: dict[Item, str]) -> JsonObject:
    """Build the JSON in the project's order, so that it is deterministic."""
    categories = {
        name: number for number, name in enumerate(sorted({one.found["category"] for one, _, _ in chosen}), 1)
    }
    numbers = {item: number for number, item in enumerate(names, 1)}
    sizes = {one.item: mask.shape for one, _, mask in chosen}
    annotations = []
    for number, (one, now, mask) in enumerate(chosen, 1):
        left, top, right, bottom = masks.box_of(mask) or one.found["box"]
        annotations.append(
            {
                "id": number,
                "image_id": numbers[one.item],
                "category_id": categories[one.found["category"]],
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "segmentation": now["segmentation"],
                "iscrowd": 0,
                **({"needs": now["needs"]} if now["needs"] else {}),
                "score": one.found["score"],
                "object": one.id,
                "provenance": now["provenance"],
            }
        )
    return {
        "images": [
            {"id": numbers[item], "file_name": name, "height": sizes[item][0], "width": sizes[item][1]}
            for item, name in names.items()
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def _file_names(items: Sequence[Item], source: Source) -> dict[Item, str]:
    """Choose the file name of each image: its path, which may hold split folders, with unique stems.

    An image that shares its stem with another gets the name of its records.
    """
    names: dict[Item, str] = {}
    taken: set[str] = set()
    for item in items:
        path = PurePosixPath(item.key if source.file(item) else f"{item.key}.png")
        if path.parts[0] == IMAGES and len(path.parts) > 1:
            path = path.relative_to(IMAGES)
        if str(path.with_suffix("")).casefold() in taken:
            path = path.with_name(f"{item.name}{path.suffix}")
        taken.add(str(path.with_suffix("")).casefold())
        names[item] = path.as_posix()
    return names


def _bring(source: Source, item: Item, target: Path, way: str) -> None:
    """Copy, link or render an image to its target."""
    file = source.file(item)
    target.parent.mkdir(parents=True, exist_ok=True)
    if file is None:
        write_changed(target, to_png(source.image(item)))
        return
    one = target.exists() and target.samefile(file)
    if way == "link":
        if not one or target.is_symlink():
            target.unlink(missing_ok=True)
            try:
                os.link(file.resolve(), target)  # a symbolic link would leave the data set, and readers refuse those
            except OSError as error:
                told = f"{target}: no link to {file}: {error.strerror}: without --link the photo is copied"
                raise UserError(told) from error
    elif one or not target.exists() or target.read_bytes() != file.read_bytes():
        with files.replacing(target) as temporary:
            shutil.copyfile(file, temporary)
