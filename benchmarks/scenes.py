"""How hard scenes are: what colour-contrast saliency scores, beside nothing, everything and the truth.

Run ``python benchmarks/scenes.py``. The heuristic is the classic one: a pixel stands out as its colour lies far from
the image's mean colour in CIELAB (Achanta et al., Frequency-tuned Salient Region Detection, CVPR 2009), cut at twice
the map's mean, as there. Its score on scenes should lie near those that take no looking at all.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.ndimage import gaussian_filter, label
from tqdm import trange

from maskgym.data.scenes import Scenes
from maskgym.metrics import iasm, iou, s_measure


def colour_contrast(image: np.ndarray) -> np.ndarray:
    """Return bool (H, W): the frequency-tuned saliency of uint8 (H, W, 3), above twice its mean."""
    lab = cielab(image)
    blurred = np.stack([gaussian_filter(lab[..., channel], 1.0) for channel in range(3)], axis=-1)
    saliency = np.linalg.norm(blurred - lab.mean(axis=(0, 1)), axis=-1)
    return saliency > 2 * saliency.mean()


def cielab(image: np.ndarray) -> np.ndarray:
    """Return float (H, W, 3): CIELAB of uint8 sRGB under D65."""
    linear = np.where((c := image / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def components(mask: np.ndarray, least: int = 100) -> np.ndarray:
    """Return bool (n, H, W): the connected parts of a mask with at least ``least`` pixels, as instances."""
    parts, count = label(mask)
    rows = [parts == number for number in range(1, count + 1)]
    return np.array([row for row in rows if row.sum() >= least]).reshape(-1, *mask.shape)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512, help="of the test split")
    data = Scenes("sis", "test", size=parser.parse_args().samples)
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for index in trange(len(data), disable=None):
        sample = data[index]
        truth, instances = sample.union(), sample.masks[0]
        nothing = np.zeros_like(truth)
        guesses = {"nothing": nothing, "everything": ~nothing, "contrast": colour_contrast(sample.images[0])}
        for name, mask in guesses.items():
            scores.setdefault(name, []).append(
                (s_measure(mask, truth), iou(mask, truth), iasm(components(mask), instances))
            )
    print(f"{'':<12}{'S-measure':>10}{'IoU':>8}{'IASM':>8}   mean over {len(data)} test scenes")
    for name, rows in scores.items():
        print(f"{name:<12}" + "{:>10.3f}{:>8.3f}{:>8.3f}".format(*np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
