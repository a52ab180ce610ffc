"""The procedural data set, one builder of samples per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import cached_property
from typing import ClassVar

import numpy as np

from maskgym.aliases import Settings
from maskgym.data.sample import CATEGORIES, SPLITS, Dataset, Sample
from maskgym.data.scenes.graphs import choice, draw_group_objects, draw_look_alikes, draw_objects
from maskgym.data.scenes.language import STYLES, group_answer, instances_answer, likeness, random_reference
from maskgym.data.scenes.levels import level_of
from maskgym.data.scenes.objects import COLOURS, FULL, SHAPES, Scene
from maskgym.data.scenes.queries import annotate, draw_query
from maskgym.data.scenes.rendering import EFFECTS, render
from maskgym.errors import UserError

TASKS = (
    *("sod", "sis", "cosod", "need", "semantic", "blur", "shadow", "glass"),
    *("need_fine", "ranking", "ranking_need", "refer"),
)
_REGION_TASKS = ("need", "need_fine", "semantic", "blur", "shadow", "glass")  # one region per image, as in SOD
_RANKING_TASKS = ("ranking", "ranking_need")
_SIZE = {"train": 2000, "validation": 256, "test": 512}
_WORLD_SEED = 20260


class _Stream(IntEnum):
    """Independent random streams of one sample."""

    SCENE = 0
    ANNOTATOR = 1
    GROUP = 2
    NEED = 3
    CATEGORY = 4
    EFFECT = 5
    LOOK_ALIKES = 6
    REQUESTED_RANK = 7
    QUERY = 8


class Scenes(Dataset):
    """The procedural data set.

    A pair (split, index) always gives the same scene, in every task; splits never overlap.

    Args:
        task: ``sod``, ``sis``, ``cosod``, ``semantic``, ``blur``, ``shadow``, ``glass``; ``need``: the requested
            object, or the closest one; ``need_fine``: a need that only texture and colour decide; ``ranking``: salient
            instances with ranks, and a need that names the first; ``ranking_need``: the need names any of them, which
            then has the first rank; ``refer``: a query for one object, several or none (`maskgym.data.scenes.queries`).
        split: ``train``, ``validation`` or ``test``.
        size: Number of samples; default 2,000, 256 and 512.
        image_size: Side of the square image in pixels, at least 32.
        group_size: Images in a co-salient group, at least 2.
        annotator: Style of the rationales: ``varied`` draws one per sample; a `STYLES` name fixes it, without misses.
            In ``refer`` every style except ``varied`` has tight boxes and no misses.
        level: What is shown, a name in `maskgym.data.scenes.levels`; not for ``cosod``, ``need_fine`` and ``refer``.
        knobs: Fields of that `Level`, changed.

    Raises:
        UserError: If an argument is invalid.
    """

    def __init__(
        self,
        task: str = "sis",
        split: str = "train",
        size: int | None = None,
        image_size: int = 128,
        group_size: int = 4,
        annotator: str = "varied",
        level: str = "easy",
        knobs: Settings | None = None,
    ) -> None:
        _require("task", task, TASKS)
        _require("split", split, SPLITS)
        _require("annotator", annotator, ("varied", *STYLES))
        for name, value, least in (("size", size, 1), ("image_size", image_size, 32), ("group_size", group_size, 2)):
            if value is not None and value < least:
                raise UserError(f"scenes: {name}={value} is too small: expected at least {least}")
        self.scene_task, self.split, self.annotator = task, split, annotator
        self.level = level_of(level, knobs or {}, task, split)
        self.shown = task
        self.image_size, self.group_size = image_size, group_size
        self.size = _SIZE[split] if size is None else size
        # Tasks with one region are read as ``sod``, ranked instances and those of a query as ``sis``.
        self.task = "sis" if task in (*_RANKING_TASKS, "refer") else "sod" if task in _REGION_TASKS else task

    def __len__(self) -> int:
        return self.size

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each sample."""
        return tuple(map(self._key, range(self.size)))

    @cached_property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of the samples with a rationale: all, in the tasks of text."""
        return () if self.scene_task in (*_REGION_TASKS, *_RANKING_TASKS) else tuple(range(self.size))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"scenes has {self.size} samples; index {index} is out of range")
        return self._builders[self.scene_task](self, index)

    def scene(self, index: int) -> Scene:
        """Build the scene graph and picture of a sample of any task except ``cosod``."""
        if self.scene_task == "refer":
            rng = self._rng(index, _Stream.QUERY)
            return render(draw_query(rng).objects, rng, self.image_size)
        if self.scene_task == "need_fine":
            rng = self._rng(index, _Stream.LOOK_ALIKES)
            return render(draw_look_alikes(rng)[0], rng, self.image_size)
        rng = self._rng(index, _Stream.SCENE)
        return render(draw_objects(rng, self.level), rng, self.image_size)

    def refer(self, index: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Draw an image uint8 (H, W, 3), ``count`` random phrases and their masks bool (count, H, W).

        The phrases name any attributes of any object, pale ones included; about one in twenty fits nothing.
        """
        scene = self.scene(index)
        pairs = [random_reference(scene.objects, rng) for _ in range(count)]
        masks = np.stack([scene.masks[fitting].any(axis=0) for _, fitting in pairs])
        return scene.image, [phrase for phrase, _ in pairs], masks

    def _rng(self, index: int, stream: _Stream) -> np.random.Generator:
        return np.random.default_rng([_WORLD_SEED, SPLITS.index(self.split), index, stream])

    def _key(self, index: int) -> str:
        return f"{self.scene_task}-{self.split}-{index:05d}"

    def _instances(self, index: int, scene: Scene) -> Sample:
        """Build a sample of the salient instances."""
        chosen = scene.salient
        return Sample(
            key=self._key(index),
            images=(scene.image,),
            masks=(scene.masks[chosen],),
            phrases=(tuple(scene.objects[i].describe(FULL) for i in chosen),),
            ranks=(_ranks(scene, chosen),),
        )

    def _region(
        self, index: int, scene: Scene, mask: np.ndarray, category: str | None = None, need: str | None = None
    ) -> Sample:
        """Build a sample of one region."""
        return Sample(key=self._key(index), images=(scene.image,), masks=(mask[None],), category=category, need=need)

    def _salient(self, index: int) -> Sample:
        """Find the salient instances, or their union in ``sod``."""
        scene = self.scene(index)
        answer = instances_answer(
            scene, self._rng(index, _Stream.ANNOTATOR), self.annotator, self.scene_task, self.level.styles
        )
        return replace(self._instances(index, scene), category=CATEGORIES.get(self.scene_task), rationale=answer)

    def _ranking(self, index: int) -> Sample:
        """Rank the salient instances; the need names the first, or in ``ranking_need`` a random one, which leads."""
        sample = self._instances(index, self.scene(index))
        assert sample.ranks is not None and sample.phrases is not None
        ((ranks,), (phrases,)) = sample.ranks, sample.phrases
        if self.scene_task == "ranking_need":
            ranks[self._rng(index, _Stream.REQUESTED_RANK).integers(len(ranks))] = ranks.max() + 1
        return replace(sample, need=f"find {phrases[ranks.argmax()]}")

    def _group(self, index: int) -> Sample:
        """Find the common shape of a group of images, from one of which it may be absent."""
        rng = self._rng(index, _Stream.GROUP)
        category = SHAPES[rng.integers(len(SHAPES))]
        absent = int(rng.integers(self.group_size)) if self.group_size > 2 and rng.random() < 0.25 else -1
        scenes = []
        for image in range(self.group_size):
            objects = draw_group_objects(rng, category, common=image != absent)
            scenes.append(render(objects, rng, self.image_size))
        rows = [[i for i, item in enumerate(scene.objects) if item.shape == category] for scene in scenes]
        return Sample(
            key=self._key(index),
            images=tuple(scene.image for scene in scenes),
            masks=tuple(scene.masks[row] for scene, row in zip(scenes, rows, strict=True)),
            phrases=tuple((f"[semantic] {category}",) * len(row) for row in rows),
            category=category,
            rationale=group_answer(scenes, category, self._rng(index, _Stream.ANNOTATOR), self.annotator),
        )

    def _need(self, index: int) -> Sample:
        """Find the requested object; if nothing fits, the closest object (UserSOD §3)."""
        scene, rng = self.scene(index), self._rng(index, _Stream.NEED)
        wanted = scene.objects[rng.integers(len(scene.objects))]
        attributes = [("shape",), ("colour", "shape"), ("texture", "colour", "shape"), FULL][rng.integers(4)]
        if rng.random() < self.level.absent:
            wanted = replace(wanted, shape=choice(rng, SHAPES), colour=choice(rng, COLOURS))
            attributes = ("colour", "shape")
        mask = scene.fitting(lambda item: wanted.matches(item, attributes))
        if not mask.any():
            closest = max(scene.objects, key=lambda item: likeness(wanted, item))
            mask = scene.fitting(lambda item: item is closest)
        return self._region(index, scene, mask, need=f"find {wanted.describe(attributes)}")

    def _need_fine(self, index: int) -> Sample:
        """Find the only object of that texture and colour among others of its shape."""
        _, wanted, attributes = draw_look_alikes(self._rng(index, _Stream.LOOK_ALIKES))
        scene = self.scene(index)
        mask = scene.fitting(lambda item: wanted.matches(item, attributes))
        need = f"find {wanted.describe(attributes)}"
        return self._region(index, scene, mask, category=wanted.shape, need=need)

    def _refer(self, index: int) -> Sample:
        """Find what a query refers to: one object, several or none."""
        rng = self._rng(index, _Stream.QUERY)
        query = draw_query(rng)
        scene = render(query.objects, rng, self.image_size)
        chosen = list(query.referents)
        careful = self.annotator != "varied"
        return Sample(
            key=self._key(index),
            images=(scene.image,),
            masks=(scene.masks[chosen],),
            phrases=(tuple(scene.objects[i].describe(FULL) for i in chosen),),
            need=query.text,
            rationale=annotate(query, scene.masks, self._rng(index, _Stream.ANNOTATOR), careful),
        )

    def _semantic(self, index: int) -> Sample:
        """Find all objects of the shape of a random one."""
        scene, rng = self.scene(index), self._rng(index, _Stream.CATEGORY)
        category = scene.objects[rng.integers(len(scene.objects))].shape
        return self._region(index, scene, scene.fitting(lambda item: item.shape == category), category=category)

    def _effect(self, index: int) -> Sample:
        """Find the blur, shadow or glass."""
        scene = EFFECTS[self.scene_task](self.scene(index), self._rng(index, _Stream.EFFECT))
        assert scene.effect is not None
        return self._region(index, scene, scene.effect, category=CATEGORIES[self.scene_task])

    _builders: ClassVar[dict[str, Callable[[Scenes, int], Sample]]] = {
        "sod": _salient,  # the environment takes the union; the annotators describe regions
        "sis": _salient,
        "cosod": _group,
        "need": _need,
        "need_fine": _need_fine,
        "semantic": _semantic,
        "ranking": _ranking,
        "ranking_need": _ranking,
        "refer": _refer,
        **dict.fromkeys(EFFECTS, _effect),
    }


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"scenes: {name}={value!r} is unknown: expected one of {', '.join(allowed)}")


def _ranks(scene: Scene, chosen: Sequence[int]) -> np.ndarray:
    """Compute salience, float (n,): visible area times closeness to the centre, larger is more salient."""
    areas = scene.masks[list(chosen)].sum(axis=(1, 2))
    away = [np.hypot(scene.objects[i].x - 64, scene.objects[i].y - 64) / 90 for i in chosen]
    return areas * (1.3 - np.array(away))
