"""Automatic stages: detect, segment, needs. Each stage computes the missing records, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from maskgym import segmenters
from maskgym.aliases import JsonObject
from maskgym.data import run_lengths
from maskgym.data.layout.images import DataFault
from maskgym.data.run_lengths import RunLengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import detectors, masks
from maskgym.experiments.annotation.needs.project import (
    DETECT,
    NEEDS,
    SEGMENT,
    DetectedObject,
    Project,
    Settings,
    digest,
    provenance,
)
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.experiments.annotation.needs.writers import UNREACHABLE, Writer, Written, make_writer
from maskgym.segmenters.points.promptable import PromptableSegmenter

SILENT = 3  # objects in a row without an answer, after which the server counts as gone


def detect(project: Project, source: Source, settings: Settings, retry: bool = False) -> None:
    """Find latent targets: run every detector on every image and merge the detections.

    A photo that cannot be read is recorded with its fault, and the stage continues.
    """
    found_by = detectors.make_detectors(settings.detector, settings.threshold, settings.device)
    how = {"threshold": settings.threshold, "overlap": settings.overlap, "min_side": settings.min_side}
    identities = [detector.identity for detector in found_by]
    versions = dict(zip(settings.detector, identities, strict=True))
    for item in _bar(source, "detect"):
        # The annotations of a photo may change while the photo does not.
        marked = (
            [[one.category, *one.box] for one in source.annotations(item)]
            if detectors.ANNOTATIONS in settings.detector
            else []
        )
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
        objects: dict[str, DetectedObject] = {}
        for one, seen in detectors.merge(found, image.shape[:2], settings.overlap, settings.min_side):
            box = [round(side, 2) for side in one.box]
            by = provenance(one.detector, version=versions[one.detector], settings=how)
            # The id depends on the object alone, so that decisions about it outlive another run of the detectors.
            name = digest(item.key, one.category, box)[:12]
            made = DetectedObject(
                id=name,
                category=one.category,
                box=box,
                score=one.score,
                seen_by=seen,
                annotation=one.annotation,
                provenance={"box": by, "category": by},
            )
            objects.setdefault(name, made)
        size = {"height": image.shape[0], "width": image.shape[1]}
        record = {"key": item.key, "inputs": inputs, "content": content, **size, "objects": [*objects.values()]}
        project.write(DETECT, item.name, record)


def segment(project: Project, source: Source, settings: Settings, retry: bool = False) -> None:
    """Compute the mask of every object: VFM(I, BB_i) of Eq. 1, or the ground truth of the data set."""
    annotated = settings.segmenter == detectors.ANNOTATIONS
    network = None if annotated else make_segmenter(settings.segmenter, settings)
    identity = detectors.ANNOTATIONS if network is None else network.fingerprint
    prompted = None if network is None else masks.Prompted(network)
    for item, before in _records(project, source, DETECT, "segment"):
        objects = [[one["id"], one["box"], one["annotation"]] for one in before["objects"]]
        codes = [marked.segmentation for marked in source.annotations(item)] if annotated else []
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
    """Write commands for every object.

    The model is asked again about objects without an answer, and with ``retry`` also about those whose answers were
    unusable.

    Raises:
        UserError: If several objects in a row got no answer, or no question can be answered; answers are kept.
    """
    writer = make_writer(project, settings)
    with ThreadPoolExecutor(writer.jobs) as pool:
        needs = _NeedsOfImages(project, source, writer, pool, retry)
        try:
            for item, found in _records(project, source, DETECT, "needs"):
                needs.write(item, found)
        except BaseException:
            writer.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_segmenter(name: str, settings: Settings) -> PromptableSegmenter:
    """Build a promptable segmenter by name.

    Raises:
        UserError: If it is unknown or accepts no boxes and clicks.
    """
    given = {"device": settings.device} | ({"checkpoint": settings.checkpoint} if settings.checkpoint else {})
    made = segmenters.make(name, **given)
    if not isinstance(made, PromptableSegmenter):
        raise UserError(f"--segmenter {name}: takes no boxes: expected annotations, sam_tiny, sam, sam_hf or sam2")
    return made


class _NeedsOfImages:
    """Write the needs of one image after the other; the questions about one image are asked in parallel.

    Args:
        project: Project of the records.
        source: Source of the images.
        writer: Writer of the commands.
        pool: Threads that ask.
        retry: Whether to ask again about objects whose answers were unusable.
    """

    def __init__(self, project: Project, source: Source, writer: Writer, pool: ThreadPoolExecutor, retry: bool) -> None:
        self.project, self.source, self.writer, self.pool, self.retry = project, source, writer, pool, retry
        self._silent = 0  # objects in a row without an answer

    def write(self, item: Item, found: JsonObject) -> None:
        """Write the record of an image, unless it is up to date."""
        before, record = self.project.read(SEGMENT, item.name), self.project.read(NEEDS, item.name)
        if before is None or [one["id"] for one in before["objects"]] != [one["id"] for one in found["objects"]]:
            where = f"{self.project.folder}: {item.key}"
            raise UserError(f"{where} is not segmented as it was detected: run --stage segment first")
        marked = self.source.annotations(item) if any(one["annotation"] is not None for one in found["objects"]) else []
        old = {one["id"]: one for one in (record or {"objects": ()})["objects"]}
        entries: list[JsonObject] = []
        asked: list[tuple[JsonObject, DetectedObject, RunLengths | None, tuple[str, ...], int]] = []
        for one, mask in zip(found["objects"], before["objects"], strict=True):
            code, identity = mask["segmentation"], self.writer.identity
            phrases = marked[one["annotation"]].phrases if one["annotation"] is not None else ()
            inputs = digest(found["content"], one["category"], one["box"], code, phrases, identity)
            entry = old.get(one["id"], {})
            if entry.get("inputs") != inputs:
                entry = {}
            if not entry or entry.get("kind") == UNREACHABLE or (self.retry and "kind" in entry):
                answers = entry.get("answers", 0)
                entry = {"id": one["id"], "inputs": inputs}
                asked.append((entry, one, code, phrases, answers))
            entries.append(entry)
        if asked:
            self._ask(self.source.image(item), asked)
        if asked or record is None or len(old) != len(entries):
            self.project.write(NEEDS, item.name, {"key": item.key, "objects": entries})

    def _ask(
        self,
        image: np.ndarray,
        asked: Sequence[tuple[JsonObject, DetectedObject, RunLengths | None, tuple[str, ...], int]],
    ) -> None:
        """Ask about objects and complete their entries."""
        coming = []
        for _, one, code, phrases, answers in asked:
            shown = masks.appearance(image, None if code is None else run_lengths.decode(code), one["box"])
            coming.append(self.pool.submit(self.writer.write, one["category"], phrases, shown, answers))
        for (entry, *_), future in zip(asked, coming, strict=True):
            written = future.result()
            entry |= _entry(written)
            self._silent = self._silent + 1 if written.kind == UNREACHABLE else 0
            if self._silent >= SILENT:
                for other in coming:
                    other.cancel()
                raise UserError(f"{SILENT} objects in a row got no answer ({written.reason}): the same command goes on")


def _entry(written: Written) -> JsonObject:
    known = {"reason": written.reason, "kind": written.kind, "answers": written.answers or None}
    return {
        "needs": list(written.needs),
        **{name: value for name, value in known.items() if value is not None},
        "provenance": {"needs": dict(written.by)} if written.needs else {},
    }


def _bar(source: Source, name: str) -> tqdm:
    return tqdm(source.items, desc=name, unit="image", disable=None)


def _records(project: Project, source: Source, stage: str, name: str) -> Iterator[tuple[Item, JsonObject]]:
    """Yield each image with its record of the previous stage.

    Raises:
        UserError: If a record is missing.
    """
    for item in _bar(source, name):
        record = project.read(stage, item.name)
        if record is None:
            raise UserError(f"{project.folder}: {item.key} has no record yet: run --stage {stage} first")
        yield item, record


STAGES: dict[str, Callable[..., None]] = {DETECT: detect, SEGMENT: segment, NEEDS: write_needs}
