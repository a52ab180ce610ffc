"""The base class of referring segmenters, on one without a network; test_evf_sam tests more."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskgym.errors import UserError
from maskgym.segmenters.encodings import CacheLimits
from maskgym.segmenters.frozen import pixels_key
from maskgym.segmenters.phrases.referring import ReferringNetwork


class Brighter(ReferringNetwork):
    """Answers "n" with the pixels whose red is above n, at a quarter of the size."""

    input_size = 8

    def __init__(self, file: Path | None = None, **arguments) -> None:
        super().__init__(**arguments)
        self.file = file
        self.encoded: list[int] = []
        self.decoded: list[list[str]] = []

    def _load(self) -> nn.Module:
        return nn.Linear(1, 1, dtype=self.dtype)

    def encode(self, images: list[np.ndarray]) -> tuple[Tensor]:
        assert not self.network.training
        self.encoded.append(len(images))
        return (torch.stack([torch.from_numpy(image[:8:4, :8:4, 0]).float() for image in images]),)

    def _decode(self, encoded: tuple[Tensor], phrases: list[str], image_index: Tensor) -> Tensor:
        self.decoded.append(phrases)
        return encoded[0][image_index] - torch.tensor([float(phrase) for phrase in phrases])[:, None, None]

    def _identity(self) -> tuple[str, list[Path]]:
        return "brighter", [self.file] if self.file else []


def plain(red: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Build an image of one colour."""
    return np.full((height, width, 3), red, np.uint8)


def test_masks_come_back_in_the_order_of_the_phrases():
    segmenter = Brighter(device="cpu")
    masks = segmenter.segment([plain(10), plain(20, 9, 12), plain(30)], [["5", "15", "5"], [], ["40", "25"]])
    assert [mask.shape for mask in masks] == [(3, 8, 8), (0, 9, 12), (2, 8, 8)]
    assert [(mask > 0.5).all(axis=(1, 2)).tolist() for mask in masks] == [[True, False, True], [], [False, True]]
    np.testing.assert_allclose(masks[0][0], 1 / (1 + np.exp(-5)), rtol=1e-5)
    assert segmenter.encoded == [2]
    assert segmenter.decoded == [["5", "15", "40", "25"]]


def test_no_batch_exceeds_its_size():
    segmenter = Brighter(device="cpu", batch_size=2)
    segmenter.segment([plain(red) for red in range(5)], [["1", "2", "3"]] * 5)
    assert segmenter.encoded == [2, 2, 1]
    assert max(map(len, segmenter.decoded)) == 2
    assert sum(map(len, segmenter.decoded)) == 15


def test_equal_pixels_of_another_shape_are_another_image():
    segmenter = Brighter(device="cpu")
    masks = segmenter.segment([plain(9, 8, 16), plain(9, 16, 8)], [["5"], ["5"]])
    assert [mask.shape for mask in masks] == [(1, 8, 16), (1, 16, 8)]
    assert segmenter.encoded == [2]


def test_images_in_any_memory_order():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    turned = np.asfortranarray(image)
    first, second = Brighter(device="cpu").segment([image, turned], [["99"], ["99"]])
    np.testing.assert_array_equal(first, second)


def test_the_network_is_loaded_once_frozen_and_in_the_asked_precision():
    segmenter = Brighter(device="cpu", dtype="float16")
    network = segmenter.network
    assert network is segmenter.network
    assert not network.training
    assert network.weight.dtype == torch.float16
    assert not network.weight.requires_grad


def test_a_network_loaded_by_segment_can_still_be_trained():
    segmenter = Brighter(device="cpu")
    segmenter.segment([plain(1)], [["2"]])
    network = segmenter.network.requires_grad_(True)
    network(torch.ones(1, 1)).sum().backward()
    assert network.weight.grad is not None


def test_the_fingerprint_is_of_files_and_precision(tmp_path):
    file = tmp_path / "weights"
    prints = []
    for content, dtype in (("a", "float32"), ("b", "float32"), ("b", "float16")):
        file.write_text(content)
        prints.append(Brighter(file, dtype=dtype).fingerprint)
    assert len(set(prints)) == 3
    assert prints[2] == Brighter(file, dtype="float16", batch_size=1, device="cpu").fingerprint


def test_auto_is_bfloat16_on_gpus_that_compute_in_it(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation))
    for device, expected in (("cpu", torch.float32), ("meta", torch.float32), ("cuda:0", torch.float32)):
        assert Brighter(device=device, dtype="auto").dtype == expected
    assert asked == [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert Brighter(device="cuda:0", dtype="auto").dtype == torch.bfloat16
    assert Brighter(device="cuda:0", dtype="float32").dtype == torch.float32
    prints = {Brighter(device=device, dtype="auto").fingerprint for device in ("cpu", "cuda:0")}
    assert prints == {Brighter(dtype=dtype, device="cpu").fingerprint for dtype in ("float32", "bfloat16")}


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="dtype 'double': expected one of auto, float32"):
        Brighter(dtype="double")
    with pytest.raises(UserError, match="batch_size=-1"):
        Brighter(batch_size=-1)


def test_the_registry_costs_no_heavy_import():
    code = "import sys, maskgym.segmenters as s; s.names(); print({'torch', 'transformers'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


def cached(**limits) -> Brighter:
    """Build a segmenter with a cache."""
    segmenter = Brighter(device="cpu", batch_size=2)
    segmenter.cache_limits = CacheLimits(**limits)
    return segmenter


def test_images_are_encoded_in_batches_once_for_all_phrases_and_calls():
    images = [plain(red) for red in range(5)]
    segmenter = cached(cache_bytes=2**20)
    first = segmenter.segment(images, [["1", "2"]] * 5)
    assert segmenter.encoded == [2, 2, 1]
    again = segmenter.segment(images[::-1], [["2", "3"]] * 5)
    assert segmenter.encoded == [2, 2, 1]
    assert (segmenter.encodings.hits, segmenter.encodings.misses) == (5, 5)
    for masks, later, image in zip(first, again[::-1], images, strict=True):
        np.testing.assert_array_equal(masks[1], later[0])
        np.testing.assert_array_equal(Brighter(device="cpu").segment([image], [["1", "2"]])[0], masks)
    assert segmenter.encodings.kept.bytes == 5 * 4 * 4  # 2 x 2 pixels of 4 bytes, without the rest of a batch
    assert pickle.loads(pickle.dumps(segmenter)).segment(images[:1], [["1"]])[0].shape == (1, 8, 8)


def test_encodings_on_disk_serve_other_processes_and_no_other_precision(tmp_path):
    images = [plain(red) for red in range(3)]
    expected = cached(cache_folder=tmp_path).segment(images, [["1"]] * 3)
    other = cached(cache_folder=tmp_path)
    for mine, theirs in zip(expected, other.segment(images, [["1"]] * 3), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert other.encoded == []
    rounded = Brighter(device="cpu", dtype="float16")
    rounded.cache_limits = CacheLimits(cache_folder=tmp_path)
    rounded.segment(images, [["1"]] * 3)
    assert rounded.encoded == [3]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("fault", ["a flipped bit", "cut", "of another image", "of another segmenter"])
def test_a_wrong_file_is_told_and_never_used(tmp_path, fault):
    cached(cache_folder=tmp_path).segment([plain(10), plain(20)], [["15"]] * 2)
    ours, theirs = (next(tmp_path.rglob(f"{pixels_key(plain(red)).hex()}.encoding")) for red in (10, 20))
    content = bytearray(ours.read_bytes())
    if fault == "a flipped bit":
        content[-1] ^= 1  # in the numbers, where a format without checksum would not notice
    if fault == "cut":
        content = content[:-3]
    if fault == "of another image":
        content = theirs.read_bytes()
    ours.write_bytes(content)
    segmenter = cached(cache_folder=tmp_path)
    if fault == "of another segmenter":
        other = tmp_path / "other"
        vars(segmenter)["fingerprint"] = other.name
        ours.parent.rename(other)
    with pytest.warns(UserWarning, match=r"\.encoding: .*: computed again") as caught:
        masks = segmenter.segment([plain(10), plain(20)], [["15"]] * 2)
    assert (masks[0] < 0.5).all() and (masks[1] > 0.5).all()
    assert segmenter.encoded == [2 if fault == "of another segmenter" else 1]
    assert len(caught) == 1
    again = cached(cache_folder=tmp_path)
    again.segment([plain(10)], [["15"]])
    assert len(again.encoded) == (fault == "of another segmenter")  # else the file was written anew


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    cached(cache_folder=tmp_path).segment([plain(10)], [["15"]])
    (file,) = tmp_path.rglob("*.encoding")
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="computed again"), pytest.raises(UserError, match="is no regular file"):
        cached(cache_folder=tmp_path).segment([plain(10)], [["15"]])


def test_the_folder_is_bound_by_bytes_and_a_negative_bound_is_refused(tmp_path):
    images = [plain(red) for red in range(6)]
    cached(cache_folder=tmp_path).segment(images[:1], [["1"]])
    (file,) = tmp_path.rglob("*.encoding")
    size = file.stat().st_size
    segmenter = cached(cache_folder=tmp_path, cache_folder_bytes=3 * size)
    with pytest.warns(UserWarning, match=rf"not stored: holds 0.00 GiB of cache_folder_bytes={3 * size}") as caught:
        segmenter.segment(images, [["1"]] * 6)
    assert len(caught) == 1
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.encoding")) <= 3 * size
    for name in ("cache_bytes", "cache_folder_bytes"):
        with pytest.raises(UserError, match=f"^{name}=-1: expected at least 0"):
            CacheLimits(**{name: -1})


def test_eight_writers_of_one_folder_leave_whole_files(tmp_path):
    images = [plain(red) for red in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cached(cache_folder=tmp_path).segment(images, [["1"]] * 20), range(8)))
    reader = cached(cache_folder=tmp_path)
    reader.segment(images, [["1"]] * 20)
    assert reader.encoded == [] and not list(tmp_path.rglob("*.tmp"))
