"""A data set: one bright circle on a dark background."""

import numpy as np

from maskgym.data import Dataset, Sample

SIZES = {"train": 64, "validation": 16, "test": 16}


class Circles(Dataset):
    """Pictures of 64 x 64 pixels with one circle each, determined by split and index.

    Args:
        task: ``sod``.
        split: ``train``, ``validation`` or ``test``.
        radius: Radius of the smallest circle in pixels.
    """

    def __init__(self, task: str = "sod", split: str = "train", radius: int = 6) -> None:
        self.task, self.split, self.radius = task, split, radius
        self.keys = tuple(f"circle-{split}-{index}" for index in range(SIZES[split]))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng([sorted(SIZES).index(self.split), index])
        radius = self.radius + random.integers(10)
        row, column = random.integers(radius, 64 - radius, 2)
        rows, columns = np.ogrid[:64, :64]
        mask = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        image = random.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        image[mask] = random.integers(150, 256, 3)
        return Sample(self.keys[index], (image,), (mask[None],), category="circle")
