"""Parts of the training samples, and photos that are held out."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.data.concatenated import Concatenated
from maskgym.data.parts import Counts, HeldOut, digest, draw, listing
from maskgym.data.sample import Dataset, Sample
from maskgym.errors import UserError

NOTHING = HeldOut([])


class Pixels(Dataset):
    """Photos of one colour each; those read are counted."""

    def __init__(self, colours, task="sod", keys=None) -> None:
        self.task, self.split, self.colours, self.read = task, "train", list(colours), 0
        self.keys = tuple(keys or (f"{colour:03d}" for colour in self.colours))

    def __len__(self) -> int:
        return len(self.colours)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        image = np.full((4, 6, 3), self.colours[index], np.uint8)
        return Sample(self.keys[index], (image,), (np.ones((1, 4, 6), bool),))


def test_the_parts_are_those_of_the_paper():
    parts = draw("sod", Pixels(range(100)), NOTHING, Counts(40, 30, 20), 0, None)
    assert [len(part) for part in (parts.sft, parts.rl, parts.isr)] == [40, 30, 20]
    assert not set(parts.sft) & set(parts.rl) and set(parts.isr) < set(parts.sft)
    assert all(list(part) == sorted(part) for part in (parts.sft, parts.rl, parts.isr))
    assert parts == draw("sod", Pixels(range(100)), NOTHING, Counts(40, 30, 20), 0, None)
    assert parts.sft != draw("sod", Pixels(range(100)), NOTHING, Counts(40, 30, 20), 1, None).sft


def test_a_larger_part_of_one_kind_leaves_the_samples_of_a_smaller_one_in_it():
    small, large = (draw("sod", Pixels(range(100)), NOTHING, Counts(size, 5), 0, None) for size in (10, 40))
    assert set(small.sft) < set(large.sft)


def test_what_is_imitated_has_a_rationale_and_the_others_serve_reinforcement_learning():
    with_one = set(range(0, 100, 2))
    parts = draw("sod", Pixels(range(100)), NOTHING, Counts(sft=30, rl=60), 0, with_one)
    assert set(parts.sft) < with_one and len(parts.sft) == 30 and not set(parts.sft) & set(parts.rl)
    every = draw("sod", Pixels(range(100)), NOTHING, Counts(rl=50), 0, with_one)
    assert set(every.sft) == with_one and set(every.rl) == set(range(100)) - with_one


def test_without_sizes_the_training_split_serves_everything():
    parts = draw("sod", Pixels(range(10)), NOTHING, Counts(), 0, {1, 3})
    assert parts.rl == tuple(range(10)) and parts.sft == parts.isr == (1, 3)


@pytest.mark.parametrize(
    ("counts", "imitable", "words"),
    [
        (Counts(sft=11), None, r"data\.parts\.sft\.sod=11: data\.sod=sod has 10 training samples: expected at most 10"),
        (Counts(sft=4), {1, 2, 3}, "10 training samples, 3 of them with a rationale: expected at most 3"),
        (
            Counts(sft=7, rl=4),
            None,
            r"data\.parts\.rl=4: .*10 training samples, 7 of them imitated: expected at most 3",
        ),
        (Counts(sft=4, rl=4, isr=5), None, r"data\.parts\.isr=5: sod has 4 samples to imitate: expected at most 4"),
        (Counts(sft=10), None, "none is left for reinforcement learning"),
    ],
)
def test_a_set_that_is_too_small_is_told_with_the_numbers(counts, imitable, words):
    with pytest.raises(UserError, match=words):
        draw("sod", Pixels(range(10)), NOTHING, counts, 0, imitable)


def test_a_photo_that_is_held_out_is_in_no_part_whatever_the_task():
    held_out = HeldOut([("cosod", Pixels([3, 7, 200]))])
    parts = draw("sod", Pixels(range(10)), held_out, Counts(), 0, None)
    assert parts.rl == (0, 1, 2, 4, 5, 6, 8, 9)
    assert [(one.key, one.held_out, one.why) for one in parts.shared] == [
        ("003", "cosod: 003", "pixels"),
        ("007", "cosod: 007", "pixels"),
    ]
    drawn = draw("sod", Pixels(range(10)), held_out, Counts(sft=4, rl=4, isr=2), 0, None)
    assert not {3, 7} & {*drawn.sft, *drawn.rl} and {*drawn.sft, *drawn.rl} == {*range(10)} - {3, 7}
    with pytest.raises(UserError, match="2 of the ones looked at show held-out photos"):
        draw("sod", Pixels(range(10)), held_out, Counts(sft=4, rl=5), 0, None)


def test_a_photo_whose_name_states_a_held_out_set_is_kept_out_though_its_pixels_differ():
    train = Concatenated({"ilso": Pixels(range(3), "sis", ["ECSSD_0001", "hku_0001", "ADD_0001"])})
    test = Concatenated({"ecssd": Pixels([99])})
    parts = draw("sis", train, HeldOut([("sod", test)]), Counts(), 0, None)
    assert parts.rl == (1, 2)
    assert listing("sis", train, parts)["shared"] == [{"key": "ilso/ECSSD_0001", "held_out": "ecssd", "why": "origin"}]


def test_only_the_photos_that_are_needed_are_read():
    dataset = Pixels([index % 250 for index in range(2000)])
    draw("sod", dataset, NOTHING, Counts(sft=10, rl=10), 0, None)
    assert dataset.read <= 2 * 256


def test_the_hash_is_of_size_and_pixels():
    photo = np.zeros((4, 6, 3), np.uint8)
    assert digest(photo) == digest(photo[:, ::-1]) != digest(photo.reshape(6, 4, 3))
    other = photo.copy()
    other[0, 0, 0] = 1
    assert digest(other) != digest(photo)
