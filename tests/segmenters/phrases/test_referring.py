"""The base class of referring segmenters, on one without a network; test_evf_sam tests more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskgym.errors import UserError
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

    def _encode(self, images: list[np.ndarray]) -> Tensor:
        assert not self.network.training
        self.encoded.append(len(images))
        return torch.stack([torch.from_numpy(image[:8:4, :8:4, 0]).float() for image in images])

    def _decode(self, encoded: Tensor, phrases: list[str], image_index: Tensor) -> Tensor:
        self.decoded.append(phrases)
        return encoded[image_index] - torch.tensor([float(phrase) for phrase in phrases])[:, None, None]

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


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="dtype 'double': expected one of float32"):
        Brighter(dtype="double")
    with pytest.raises(UserError, match="batch_size=-1"):
        Brighter(batch_size=-1)


def test_the_registry_costs_no_heavy_import():
    code = "import sys, maskgym.segmenters as s; s.names(); print({'torch', 'transformers'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"
