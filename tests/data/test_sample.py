"""Subsets of a data set."""

from __future__ import annotations

import pytest

from maskgym.data import Dataset, Subset, by_category, few_shot, few_shot_per_category
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError


def test_few_shots_are_different_samples_and_depend_on_the_seed():
    scenes = Scenes("sod", "train", size=20)
    drawn = few_shot(scenes, 5, seed=1)
    assert isinstance(drawn, Dataset) and len(drawn) == 5 and (drawn.task, drawn.split) == ("sod", "train")
    assert len(set(drawn.indices)) == 5 and list(drawn.indices) == sorted(drawn.indices)
    assert drawn.indices == few_shot(scenes, 5, seed=1).indices != few_shot(scenes, 5, seed=2).indices
    assert [drawn[place].key for place in range(5)] == [scenes[index].key for index in drawn.indices]
    assert few_shot(scenes, 20).indices == tuple(range(20))


def test_a_subset_ends():
    with pytest.raises(IndexError):
        Subset(Scenes("sod", "train", size=20), [3])[1]


@pytest.mark.parametrize("count", [0, 21])
def test_more_than_there_are(count):
    with pytest.raises(UserError, match=f"{count} samples to train on: expected 1 to 20, all of the train split"):
        few_shot(Scenes("sod", "train", size=20), count)


def test_few_shots_of_each_category():
    scenes = Scenes("semantic", "train", size=60, image_size=32)
    rows = by_category(scenes)
    assert sorted(index for own in rows.values() for index in own) == list(range(60)) and list(rows) == sorted(rows)
    assert all(scenes[index].category == name for name, own in rows.items() for index in own)
    drawn = few_shot_per_category(scenes, 3, seed=1)
    assert {name: len(own) for name, own in by_category(drawn).items()} == dict.fromkeys(rows, 3)
    assert len(set(drawn.indices)) == len(drawn) and drawn.indices == tuple(sorted(drawn.indices))
    assert drawn.indices == few_shot_per_category(scenes, 3, seed=1).indices
    assert drawn.indices != few_shot_per_category(scenes, 3, seed=2).indices
    with pytest.raises(UserError, match=r"^50 samples per category to train on: the train split has \d+ of 'cross'$"):
        few_shot_per_category(scenes, 50)
    with pytest.raises(UserError, match="sample 'sis-train-00000' has no category: expected data of env.task=semantic"):
        by_category(Scenes("sis", "train", size=2))
