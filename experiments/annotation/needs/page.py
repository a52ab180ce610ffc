"""The page on which annotators correct needs, served by `maskgym.experiments.web.local_server`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock

import numpy as np

from maskgym.aliases import Json, JsonObject
from maskgym.chat.asker import to_png
from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import commands, masks, review
from maskgym.experiments.annotation.needs.sources import Item
from maskgym.experiments.web import local_server as pages

PAGE = Path(__file__).with_name("page.html")
MOST_POINTS, MOST_NEEDS = 64, 20


class Desk:
    """Back end of the page: objects, live masks, decisions.

    Args:
        objects: All objects to review.
        decisions: Store of the decisions.
        image: Function from an item to its image, uint8 (H, W, 3).
        prompted: Segmenter that turns clicks into masks, or None.
        annotator: Name of the annotator.
    """

    def __init__(
        self,
        objects: Sequence[review.Candidate],
        decisions: review.Decisions,
        image: Callable[[Item], np.ndarray],
        prompted: masks.Prompted | None,
        annotator: str,
    ) -> None:
        self.objects, self.decisions, self.annotator = objects, decisions, annotator
        self._by_id = {one.id: one for one in objects}
        self._image = lru_cache(maxsize=16)(image)
        self._prompted, self._busy = prompted, Lock()  # the network is not thread-safe

    def overview(self) -> JsonObject:
        """List the id and status of every object, in order, and the totals."""
        made = self.decisions.made
        listed = [[one.id, made.get(one.id, {}).get("status", review.UNDECIDED)] for one in self.objects]
        return {"objects": listed, "progress": review.progress(self.objects, self.decisions)}

    def show(self, name: str) -> JsonObject:
        """Describe the current state of an object.

        Raises:
            UserError: If no object has this name.
        """
        one = self._find(name)
        decision = self.decisions.made.get(name)
        now = review.outcome(one, decision)
        image = self._image(one.item)
        code = now["segmentation"]
        return {
            "id": name,
            "image": one.item.key,
            "height": image.shape[0],
            "width": image.shape[1],
            "category": one.found["category"],
            "box": one.found["box"],
            "seen_by": one.found["seen_by"],
            "status": now["status"],
            "needs": now["needs"],
            "written": list(one.needs),
            "reason": one.reason,
            "mask": None if code is None else run_lengths.runs(run_lengths.decode(code)),
            **{field: (decision or {}).get(field) for field in ("points", "labels", "boxed")},
        }

    def picture(self, name: str) -> bytes:
        """Encode the image of an object as PNG, whose pixels no browser rotates."""
        return to_png(self._image(self._find(name).item), compress_level=1)

    def mask(self, given: JsonObject) -> JsonObject:
        """Segment an object from clicks.

        Raises:
            UserError: If the clicks cannot be used.
        """
        one = self._find(given.get("id"))
        made = self._clicked(one, *_clicks(given, self._image(one.item).shape))
        return {"mask": None if made is None else run_lengths.runs(made)}

    def decide(self, given: JsonObject) -> JsonObject:
        """Record a decision, with the mask recomputed from its clicks.

        Raises:
            UserError: If the decision is invalid; then nothing is recorded.
        """
        one = self._find(given.get("id"))
        status, texts = given.get("status"), given.get("needs")
        if status not in review.STATUSES:
            raise UserError(f"status {repr(status)[:80]}: expected one of {', '.join(review.STATUSES)}")
        if not isinstance(texts, list) or len(texts) > MOST_NEEDS:
            raise UserError(f"needs: expected a list of at most {MOST_NEEDS} commands")
        # Only accepted objects need valid commands and a mask.
        needs, faults = commands.check(texts)
        if status == review.ACCEPTED and (faults or not needs):
            raise UserError("; ".join(faults) or "no command: expected at least one")
        points, labels, boxed = _clicks(given, self._image(one.item).shape)
        corrected = self._corrected(one, points, labels, boxed) if points else {}
        code = corrected.get("segmentation", one.segmentation)
        if status == review.ACCEPTED and (code is None or not run_lengths.decode(code).any()):
            raise UserError("the mask is empty: correct it with clicks, or reject the object")
        self.decisions.decide(one.id, self.annotator, status, needs, corrected)
        return {"saved": True, "faults": faults, "progress": review.progress(self.objects, self.decisions)}

    def _corrected(
        self, one: review.Candidate, points: list[list[float]], labels: list[int], boxed: bool
    ) -> JsonObject:
        """Build the clicks and their mask for a decision; with unchanged clicks the earlier mask is kept."""
        clicks = {"points": points, "labels": labels, "boxed": boxed}
        before = self.decisions.made.get(one.id, {})
        if "segmentation" in before and all(before[name] == value for name, value in clicks.items()):
            return {name: before[name] for name in (*clicks, "segmenter", "segmentation")}
        made = self._clicked(one, points, labels, boxed)
        assert made is not None and self._prompted is not None
        return {**clicks, "segmenter": self._prompted.segmenter.fingerprint, "segmentation": run_lengths.encode(made)}

    def _clicked(
        self, one: review.Candidate, points: list[list[float]], labels: list[int], boxed: bool
    ) -> np.ndarray | None:
        """Compute the mask bool (H, W) for clicks; without clicks it is the mask of the stage ``segment``, if any."""
        if not points:
            return None if one.segmentation is None else run_lengths.decode(one.segmentation)
        if self._prompted is None:
            raise UserError("this page has no segmenter for clicks")
        with self._busy:
            image = self._image(one.item)
            return self._prompted(image, [one.found["box"]] if boxed else None, [points], [labels])[0]

    def _find(self, name: str | None) -> review.Candidate:
        found = self._by_id.get(name) if isinstance(name, str) else None
        if found is None:
            raise UserError(f"no object {repr(name)[:80]}")
        return found


def make_app(desk: Desk, hosts: Sequence[str] = pages.LOCAL, token: str | None = None) -> pages.Starlette:
    """Build the application of a desk; hosts and token are those of `pages.make_app`."""
    return pages.make_app(
        PAGE,
        reading={
            "/api/objects": desk.overview,
            "/api/objects/{name}": desk.show,
            "/api/pictures/{name}": desk.picture,
        },
        changing={"/api/mask": desk.mask, "/api/decide": desk.decide},
        hosts=hosts,
        token=token,
    )


def serve(desk: Desk, host: str, port: int, announce: Callable[[str], None] = print) -> None:
    """Serve the page until the process is interrupted; arguments and errors are those of `pages.serve`."""
    try:
        pages.serve(partial(make_app, desk), host, port, announce)
    finally:
        desk.decisions.save()


def _clicks(given: JsonObject, shape: Sequence[int]) -> tuple[list[list[float]], list[int], bool]:
    """Read the clicks of a request, with places rounded to tenths of a pixel."""
    points, labels, boxed = given.get("points") or [], given.get("labels") or [], given.get("boxed", True)
    fits = isinstance(points, list) and isinstance(labels, list) and len(labels) == len(points) <= MOST_POINTS
    if not fits or not all(_is_inside(point, shape) for point in points) or not all(map(_is_label, labels)):
        raise UserError(f"clicks: expected at most {MOST_POINTS} points (x, y) in the image, each with label 0 or 1")
    if not isinstance(boxed, bool):
        raise UserError("boxed: expected true or false")
    return [[round(float(x), 1), round(float(y), 1)] for x, y in points], labels, boxed


def _is_inside(point: Json, shape: Sequence[int]) -> bool:
    if not isinstance(point, list) or len(point) != 2:
        return False
    return all(
        type(place) in (int, float) and 0 <= place <= side for place, side in zip(point, shape[1::-1], strict=True)
    )


def _is_label(label: Json) -> bool:
    return type(label) is int and label in (0, 1)
