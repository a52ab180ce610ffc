"""The embedding cache: encoded once, bounded, and safe on disk."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from maskgym.errors import UserError
from maskgym.segmenters.encodings import CacheLimits
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.sam import EMBEDDED, SamSegmenter, sam_tiny

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


def test_new_images_are_encoded_in_batches(segmenter):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = segmenter.embeddings(images)  # one by one on a CPU, to the last bit
    assert segmenter.encoded == [1] * 5
    assert all(torch.equal(expected[row], segmenter.encode(images[row : row + 1])[0]) for row in range(5))
    segmenter.encoded.clear()
    segmenter.set_encoding(2, "float32", CacheLimits(2**20))
    cache = EmbeddingCache(segmenter)
    cache(images[:1])
    torch.testing.assert_close(cache(images), expected)
    assert segmenter.encoded == [1, 2, 2] and cache.hits == 1


def test_embeddings_of_half_precision_take_half_the_room_and_have_their_own_fingerprint(tmp_path):
    whole, half = (SamSegmenter(EMBEDDED, device="cpu", embedding_dtype=name) for name in ("auto", "bfloat16"))
    assert whole.embedding_dtype == torch.float32 and whole.fingerprint == sam_tiny(device="cpu").fingerprint
    assert half.fingerprint != whole.fingerprint and 2 * half.embedding_bytes == whole.embedding_bytes
    found, expected = half.encode(IMAGES), whole.encode(IMAGES)
    assert found.dtype == torch.bfloat16 and found[0].nbytes == half.embedding_bytes
    # Computed in bfloat16, not rounded to it afterwards.
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, expected.bfloat16())
    points, labels = np.full((3, 1, 2), 16.0), np.ones((3, 1), int)
    logits = half.decode(found, points, labels)
    torch.testing.assert_close(logits, whole.decode(found.float(), points, labels), atol=0, rtol=0)
    EmbeddingCache(half, folder=tmp_path)(IMAGES)
    stored = [file.stat().st_size - half.embedding_bytes for file in tmp_path.rglob("*.encoding")]
    assert len(stored) == 3 and max(stored) < 200  # a checksum and a header each


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"encode_batch_size": 0}, "encode_batch_size=0: expected at least 1, or auto"),
        ({"encode_batch_size": "many"}, "encode_batch_size=many: expected at least 1, or auto"),
        ({"embedding_dtype": "int8"}, "embedding_dtype=int8: expected one of auto, float32, bfloat16, float16"),
        ({"cache_bytes": -1}, "cache_bytes=-1: expected at least 0"),
    ],
)
def test_settings_out_of_range(settings, expected):
    with pytest.raises(UserError, match=f"^{expected}"):
        SamSegmenter(EMBEDDED, **settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_images_are_encoded_eight_at_a_time_in_bfloat16():
    segmenter = SamSegmenter(EMBEDDED, dtype="float32")
    assert segmenter.encode_batch_size == 8 and segmenter.embedding_dtype == torch.bfloat16
    expected = sam_tiny(device="cpu").encode(IMAGES)
    found = segmenter.embeddings(IMAGES)
    assert found.device.type == "cuda" and found.dtype == torch.bfloat16
    assert (found.float().cpu() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_full_folder_keeps_its_share_of_each_pass(segmenter, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    EmbeddingCache(segmenter, folder=tmp_path)(images[:1])
    (file,) = tmp_path.rglob("*.encoding")
    room = 3 * file.stat().st_size
    cache = EmbeddingCache(segmenter, 0, tmp_path, room)
    with pytest.warns(UserWarning, match="encodings of further images are not stored: holds"):
        assert not cache.store(images)
    segmenter.encoded.clear()
    for _ in range(3):
        for row in range(6):
            cache(images[row : row + 1])
    assert cache.hits == len(segmenter.encoded) == 9  # three of six in each pass
    assert len(list(tmp_path.rglob("*.encoding"))) == 3


def test_the_bound_of_a_folder_counts_other_networks_and_other_writers(segmenter, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    another = SamSegmenter(EMBEDDED, device="cpu", embedding_dtype="bfloat16")
    cache = EmbeddingCache(segmenter, 0, tmp_path, 6 * segmenter.embedding_bytes)
    cache(images[:1])
    EmbeddingCache(another, 0, tmp_path)(images)  # four embeddings' worth, after the cache has counted
    with pytest.warns(UserWarning, match="not stored: holds"):
        cache(images)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.encoding")) <= 6 * segmenter.embedding_bytes


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
