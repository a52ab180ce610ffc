"""Automatic stages: detect, segment, needs. Each stage computes the missing records, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from maskgym import segmenters
from maskgym.data import run_lengths
from maskgym.data.layout.images import DataFault
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import detectors, masks
from maskgym.experiments.annotation.needs.project import DETECT, NEEDS, SEGMENT, Project, Settings, digest, provenance
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.experiments.annotation.needs.writers import UNREACHABLE, Writer, Written, make_writer
from maskgym.segmenters.points.promptable import PromptableSegmenter

SILENT = 3  # objects in a row without an answer: the server is gone


def detect(project: Project, source: Source, settings: Settings, retry: bool = False) -> None:
    """Find latent targets: run every detector on every image and merge what they find.

    A photo that cannot be read is recorded as such; the others go on.
    """
    found_by = detectors.make_detectors(settings.detector, settings.threshold, settings.device)
    how = {"threshold": settings.threshold, "overlap": settings.overlap, "min_side": settings.min_side}
    identities = [detector.identity for detector in found_by]
    versions = dict(zip(settings.detector, identities, strict=True))
    for item in _bar(source, "detect"):
        # What people have marked may change while the photo stays.
        marked = [[one.category, *one.box] for one in source.annotations(item)] if _marked(settings) else []
        content = source.content(item)
        inputs = digest(content, identities, how, marked)
        if (project.read(DETECT, item.name) or {}).get("inputs") == inputs:
            continue
        try:
            image = source.image(item)
        except DataFault as error:
            record = {"key": item.key, "inputs": inputs, "content": content, "fault": str(error), "objects": []}
            project.write(DETECT, item.name, record)
            continue
        found = [one for detector in found_by for one in detector.detect(source, item, image)]
        objects: dict[str, dict[str, Any]] = {}
        for one, seen in detectors.merge(found, image.shape[:2], settings.overlap, settings.min_side):
            by = provenance(one.detector, version=versions[one.detector], settings=how)
            made = detectors.record(one, seen, by)
            # Named by what it is, so that decisions about it outlive another run of the detectors.
            objects.setdefault(digest(item.key, made["category"], made["box"])[:12], made)
        size = {"height": image.shape[0], "width": image.shape[1]}
        record = {"key": item.key, "inputs": inputs, "content": content, **size}
        record["objects"] = [{"id": name, **made} for name, made in objects.items()]
        project.write(DETECT, item.name, record)


def segment(project: Project, source: Source, settings: Settings, retry: bool = False) -> None:
    """Give every object a mask: VFM(I, BB_i) of Eq. 1, or the one that the data has."""
    true = settings.segmenter == detectors.ANNOTATIONS
    network = None if true else make_segmenter(settings.segmenter, settings)
    identity = detectors.ANNOTATIONS if network is None else network.fingerprint
    prompted = None if network is None else masks.Prompted(network)
    for item, before in _records(project, source, DETECT, "segment"):
        objects = [[one["id"], one["box"], one["annotation"]] for one in before["objects"]]
        codes = [marked.segmentation for marked in source.annotations(item)] if true else []
        inputs = digest(before["content"], objects, identity, codes)
        if (project.read(SEGMENT, item.name) or {}).get("inputs") == inputs:
            continue
        if prompted is None:
            wanted = [codes[number] if number is not None else None for _, _, number in objects]
        else:
            found = prompted(source.image(item), [box for _, box, _ in objects]) if objects else ()
            wanted = [run_lengths.encode(mask) if mask.any() else None for mask in found]
        by = provenance(settings.segmenter, version=identity)
        listed = [
            {"id": name, "segmentation": code, "provenance": {"segmentation": by}}
            for (name, _, _), code in zip(objects, wanted, strict=True)
        ]
        project.write(SEGMENT, item.name, {"key": item.key, "inputs": inputs, "objects": listed})


def write_needs(project: Project, source: Source, settings: Settings, retry: bool = False) -> None:
    """Have the writer write commands for every object.

    Objects that no answer came for are asked about again; those whose answers were of no use only with ``retry``.

    Raises:
        UserError: If the server is gone, or will answer nobody; what it answered is kept.
    """
    writer = make_writer(project, settings)
    silent = 0
    with ThreadPoolExecutor(writer.jobs) as pool:
        try:
            for item, found in _records(project, source, DETECT, "needs"):
                silent = _write_image(project, source, item, found, writer, pool, retry, silent)
        except BaseException:
            writer.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_segmenter(name: str, settings: Settings) -> PromptableSegmenter:
    """Return a promptable segmenter by name.

    Raises:
        UserError: If it is unknown or takes no prompts of places.
    """
    given = {"device": settings.device} | ({"checkpoint": settings.checkpoint} if settings.checkpoint else {})
    try:
        made = segmenters.make(name, **given)
    except TypeError:
        raise UserError(f"--checkpoint {settings.checkpoint}: segmenter '{name}' takes none") from None
    if not isinstance(made, PromptableSegmenter):
        raise UserError(f"--segmenter {name}: takes no boxes: expected annotations, sam_tiny, sam, sam_hf or sam2")
    return made


def _write_image(
    project: Project,
    source: Source,
    item: Item,
    found: dict[str, Any],
    writer: Writer,
    pool: ThreadPoolExecutor,
    retry: bool,
    silent: int,
) -> int:
    """Write the needs of one image's objects; return how many objects in a row no answer came for."""
    before = project.read(SEGMENT, item.name)
    if before is None or [one["id"] for one in before["objects"]] != [one["id"] for one in found["objects"]]:
        raise UserError(f"{project.folder}: {item.key} is not segmented as it was detected: run --stage segment first")
    marked = source.annotations(item) if any(one["annotation"] is not None for one in found["objects"]) else []
    record = project.read(NEEDS, item.name)
    old = {one["id"]: one for one in (record or {"objects": ()})["objects"]}
    entries: list[dict[str, Any]] = []
    asked: list[tuple[int, dict[str, Any], Any, tuple[str, ...], int]] = []
    for one, mask in zip(found["objects"], before["objects"], strict=True):
        phrases = marked[one["annotation"]].phrases if one["annotation"] is not None else ()
        inputs = digest(found["content"], one["category"], one["box"], mask["segmentation"], phrases, writer.identity)
        entry = old.get(one["id"], {})
        if entry.get("inputs") != inputs:
            entry = {}
        if not entry or entry.get("kind") == UNREACHABLE or (retry and "kind" in entry):
            asked.append((len(entries), one, mask["segmentation"], phrases, entry.get("answers", 0)))
            entry = {"id": one["id"], "inputs": inputs}
        entries.append(entry)
    if record is not None and not asked and len(old) == len(entries):
        return silent
    image = source.image(item) if asked else np.zeros((1, 1, 3), np.uint8)
    waiting = [
        (place, pool.submit(writer.write, one["category"], phrases, _shown(image, one, code), answers))
        for place, one, code, phrases, answers in asked
    ]
    for place, coming in waiting:
        written = coming.result()
        entries[place] |= _entry(written)
        silent = silent + 1 if written.kind == UNREACHABLE else 0
        if silent >= SILENT:
            for _, other in waiting:
                other.cancel()
            raise UserError(f"{SILENT} objects in a row got no answer ({written.reason}): the same command goes on")
    project.write(NEEDS, item.name, {"key": item.key, "objects": entries})
    return silent


def _shown(image: np.ndarray, one: dict[str, Any], code: dict[str, Any] | None) -> np.ndarray:
    return masks.appearance(image, None if code is None else run_lengths.decode(code), one["box"])


def _entry(written: Written) -> dict[str, Any]:
    known = {"reason": written.reason, "kind": written.kind, "answers": written.answers or None}
    by = {"needs": dict(written.by)} if written.needs else {}
    return {
        "needs": list(written.needs),
        **{name: value for name, value in known.items() if value is not None},
        "provenance": by,
    }


def _marked(settings: Settings) -> bool:
    return detectors.ANNOTATIONS in settings.detector


def _bar(source: Source, name: str) -> tqdm:
    return tqdm(source.items, desc=name, unit="image", disable=None)


def _records(project: Project, source: Source, stage: str, name: str) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Yield each image with its record of the stage before.

    Raises:
        UserError: If one has none.
    """
    for item in _bar(source, name):
        record = project.read(stage, item.name)
        if record is None:
            raise UserError(f"{project.folder}: {item.key} has no record yet: run --stage {stage} first")
        yield item, record


STAGES: dict[str, Callable[..., None]] = {DETECT: detect, SEGMENT: segment, NEEDS: write_needs}
