"""The embedding cache: encoded once, bounded, and safe on disk."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from maskgym.errors import UserError
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.sam import sam_tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def segmenter(monkeypatch):
    """Build the bundled SAM, which records how many images it encodes."""
    made = sam_tiny(device="cpu")
    made.encoded = []
    encode = made.encode
    monkeypatch.setattr(made, "encode", lambda images: made.encoded.append(len(images)) or encode(images))
    return made


def test_an_image_is_encoded_once(segmenter):
    cache = EmbeddingCache(segmenter)
    first = cache(IMAGES[[0, 1, 0]])
    torch.testing.assert_close(first[0], first[2])
    assert segmenter.encoded == [1, 1]
    torch.testing.assert_close(cache(IMAGES[[1, 2]])[0], first[1])
    assert segmenter.encoded == [1, 1, 1]
    assert cache.kept.bytes == 3 * first[0].nbytes


def test_memory_is_bound_by_bytes(segmenter):
    size = EmbeddingCache(segmenter)(IMAGES[:1])[0].nbytes
    cache = EmbeddingCache(segmenter, max_bytes=3 * size)  # a tenth is for the latest, which is less than one
    segmenter.encoded.clear()
    for wanted in (0, 1, 0, 2, 0, 1):
        cache(IMAGES[[wanted]])
        assert cache.kept.bytes <= 2 * size
    assert segmenter.encoded == [1, 1, 1]  # 0, 1 and 2, which was not asked for often enough to stay
    none = EmbeddingCache(segmenter, max_bytes=0)
    assert none(IMAGES).shape[0] == 3 and none.kept.bytes == 0
    with pytest.raises(UserError, match="cache_bytes=-1: expected at least 0"):
        EmbeddingCache(segmenter, max_bytes=-1)


def test_the_disk_is_read_by_another_process_and_not_by_another_segmenter(segmenter, tmp_path, monkeypatch):
    expected = EmbeddingCache(segmenter, folder=tmp_path)(IMAGES)
    segmenter.encoded.clear()
    torch.testing.assert_close(EmbeddingCache(segmenter, folder=tmp_path)(IMAGES), expected)
    changed = IMAGES.copy()
    changed[0, 0, 0] ^= 1
    EmbeddingCache(segmenter, folder=tmp_path)(changed)
    assert segmenter.encoded == [1]
    monkeypatch.setitem(vars(segmenter), "fingerprint", "another")
    EmbeddingCache(segmenter, folder=tmp_path)(IMAGES)
    assert segmenter.encoded == [1, 1, 1, 1]


def test_a_file_that_was_cut_off_is_computed_again(segmenter, tmp_path):
    expected = EmbeddingCache(segmenter, folder=tmp_path)(IMAGES[:1])
    (file,) = tmp_path.rglob("*.encoding")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=rf"{file}: is damaged, or of another segmenter or image: computed again"):
        torch.testing.assert_close(EmbeddingCache(segmenter, folder=tmp_path)(IMAGES[:1]), expected)
    torch.testing.assert_close(EmbeddingCache(segmenter, folder=tmp_path)(IMAGES[:1]), expected)
    assert segmenter.encoded == [1, 1]


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(segmenter, tmp_path, monkeypatch):
    def full(temporary, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskgym.files.os.replace", full)
    cache = EmbeddingCache(segmenter, folder=tmp_path)
    with pytest.warns(UserWarning, match="encodings of further images are not stored: .*No space left") as caught:
        assert cache(IMAGES).shape[0] == 3
    assert len(caught) == 1 and not [path for path in tmp_path.rglob("*") if path.is_file()]
    cache(IMAGES)
    assert segmenter.encoded == [1, 1, 1]


def test_a_pickle_leaves_the_embeddings_behind(segmenter):
    cache = EmbeddingCache(sam_tiny(device="cpu"))
    cache(IMAGES)
    assert pickle.loads(pickle.dumps(cache)).kept.bytes == 0
