"""Queries about scenes: what they refer to, how often, and the answers of simulated annotators."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from maskgym.data.scenes import SHAPES, Scenes
from maskgym.data.scenes.queries import KINDS, annotate, draw_query, words
from maskgym.rewards.objects import read_rationale

COUNT = 300


@pytest.fixture(scope="module")
def queries():
    return [draw_query(np.random.default_rng([1, number])) for number in range(COUNT)]


def test_queries_refer_to_none_one_or_several(queries) -> None:
    counts = Counter(min(len(query.referents), 2) for query in queries)
    assert counts[0] > 0.15 * COUNT and counts[1] > 0.4 * COUNT and counts[2] > 0.1 * COUNT
    for query in queries:
        assert (query.closest is None) == bool(query.referents)
        cells = [query.objects[i].cell for i in query.referents]
        assert cells == sorted(cells)


def test_what_is_named_is_what_fits(queries) -> None:
    for query in queries:
        if not query.text.startswith("every "):
            continue
        asked = query.text.removeprefix("every ").split()
        place = " ".join(asked[asked.index("at") + 1 :]) if "at" in asked else None
        named = {word for word in asked[: asked.index("at")] if word != "thing"} if place else {*asked} - {"thing"}
        fits = [
            i
            for i, item in enumerate(query.objects)
            if named <= {item.shape, item.colour, item.texture} and place in (None, item.place)
        ]
        assert sorted(query.referents) == fits, query.text


def test_the_odd_one_and_the_extreme_ones_are_single(queries) -> None:
    kinds = Counter()
    for query in queries:
        if query.text == "the odd one out":
            shapes = Counter(item.shape for item in query.objects)
            (odd,) = query.referents
            assert shapes[query.objects[odd].shape] == 1 and len(shapes) == 2 and len(query.objects) >= 3
            kinds["odd"] += 1
        elif query.text.startswith("the "):
            _, extreme, shape = query.text.split()
            (chosen,) = query.referents
            radii = {i: item.radius for i, item in enumerate(query.objects) if item.shape == shape}
            best = max if extreme == "biggest" else min
            assert shape in SHAPES and len(radii) >= 2 and chosen == best(radii, key=radii.__getitem__)
            kinds[extreme] += 1
    assert set(kinds) == {"odd", "biggest", "smallest"} and min(kinds.values()) > 10
    assert sum(KINDS.values()) == pytest.approx(1)


def test_the_words_are_known(queries) -> None:
    from maskgym.data.scenes import vocabulary

    assert {word for query in queries for word in query.text.split()} <= words() | set(vocabulary())


def test_careful_annotators_are_right_and_others_less_so() -> None:
    careful, varied = Scenes("refer", "train", 80, annotator="full"), Scenes("refer", "train", 80)
    wrong = loose = 0
    for one, other in zip(careful, varied, strict=True):
        assert one.need == other.need and one.phrases == other.phrases
        np.testing.assert_array_equal(one.masks[0], other.masks[0])
        _, right = read_rationale(one.rationale, one.key, "phrases")
        assert tuple(each.phrase for each in right) == one.phrases[0]
        for each, mask in zip(right, one.masks[0], strict=True):
            rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
            assert each.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            ((x, y),) = each.points
            assert 0 <= x < 128 and 0 <= y < 128
        _, given = read_rationale(other.rationale, other.key, "boxes")
        wrong += len(given) != len(right)
        loose += bool(given) and len(given) == len(right) and given[0].box != right[0].box
    assert wrong > 8 and loose > 10


def test_a_scene_is_the_same_at_every_size_and_in_every_call() -> None:
    scenes, large = Scenes("refer", "test", 4), Scenes("refer", "test", 4, image_size=256)
    assert scenes[3].need == scenes[3].need == large[3].need
    np.testing.assert_array_equal(scenes[3].images[0], scenes.scene(3).image)
    _, (found, *_) = read_rationale(large[0].rationale or "", "x", "boxes") if len(large[0].masks[0]) else ("", (None,))
    assert found is None or max(found.box) <= 256


def test_loose_boxes_stay_in_the_picture() -> None:
    query = next(q for q in (draw_query(np.random.default_rng(n)) for n in range(99)) if len(q.referents) == 1)
    mask = np.zeros((len(query.objects), 128, 128), bool)
    mask[:, 100:, 100:] = True
    for number in range(30):
        _, found = read_rationale(annotate(query, mask, np.random.default_rng(number)), "x", "boxes")
        assert all(0 <= value <= 128 for each in found for value in each.box)
