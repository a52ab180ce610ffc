from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskgym.data import run_lengths
from maskgym.data.run_lengths import decode_counts

SHAPE = (12, 16)


def test_run_lengths_agree_with_pycocotools():
    random = np.random.default_rng(0)
    for _ in range(200):
        mask = random.random(tuple(random.integers(1, 30, 2))) < random.random()
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert run_lengths.encode(mask) == {"size": list(mask.shape), "counts": counts.decode()}
        assert np.array_equal(decode_counts(counts, mask.shape), mask)
        assert np.array_equal(decode_counts(counts.decode(), mask.shape), mask)


@pytest.mark.parametrize(
    "counts",
    [
        b"",
        b"z",
        b"\xff",
        "é",
        "0",
        [],
        [5],
        [200, -8],
        [[192]],
        [10**30],
        [None],
        None,
        b"ooooooooo0",
        "PPPP",
        "PPPPPPPPPPPPP0P6",
        [193],
        [100.7, 92],
        [True] * 192,
    ],
)
def test_malformed_run_lengths(counts):
    with pytest.raises(ValueError):
        decode_counts(counts, SHAPE)
    if not isinstance(counts, bytes):  # JSON has none
        assert not run_lengths.is_code({"size": list(SHAPE), "counts": counts})


def drawn() -> np.ndarray:
    mask = np.zeros((5, 4), bool)
    mask[1:3, 2:4] = mask[4, 0] = True
    return mask


@pytest.mark.parametrize("mask", [drawn(), ~drawn(), np.zeros((3, 2), bool), np.ones((3, 2), bool)])
def test_codes_and_runs_come_back(mask):
    assert (run_lengths.decode(run_lengths.encode(mask)) == mask).all()
    assert run_lengths.is_code(run_lengths.encode(mask))
    lengths = run_lengths.runs(mask)
    assert (sum(lengths) == mask.size and lengths[0] == 0) or not mask[0, 0]
    unpacked = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(mask.shape[::-1]).T
    assert (unpacked == mask).all()


@pytest.mark.parametrize("size", [None, [], [4], [4, 4, 1], ["4", "4"], [4, 4.0], [-4, -4], [0, 0], "44", 16])
def test_codes_of_no_size(size):
    assert not run_lengths.is_code({"size": size, "counts": [8, 8]})


@pytest.mark.parametrize("code", [["x" * 9999], [["x" * 9999] * 6], {"size": ["x" * 9999], "counts": []}])
def test_what_is_wrong_is_told_briefly(code):
    with pytest.raises(ValueError, match="hold no numbers|its size is") as caught:
        run_lengths.rasterise(code, SHAPE)
    assert len(str(caught.value)) < 200
