"""Measure the difficulty of scenes: scores of colour-contrast saliency, empty masks, full masks and the ground truth.

Run ``python benchmarks/scenes.py``. The heuristic is the classic one: a pixel is salient if its colour is far from the
image's mean colour in CIELAB (Achanta et al., Frequency-tuned Salient Region Detection, CVPR 2009), with a threshold of
twice the map's mean, as in that paper. The last row is the bundled segmenter on the true descriptions, which bounds
what a policy can reach.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.ndimage import gaussian_filter, label
from tqdm import trange

from maskgym import segmenters
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
    samples = [data[index] for index in trange(len(data), desc="scenes", disable=None)]
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for sample in samples:
        nothing = np.zeros_like(sample.union())
        guesses = {"nothing": nothing, "everything": ~nothing, "contrast": colour_contrast(sample.images[0])}
        for name, mask in guesses.items():
            scores.setdefault(name, []).append(score(components(mask), sample.masks[0]))
    segmenter = segmenters.make("evf_sam_tiny", device="cpu")
    segmenter.segment(samples[0].images, samples[0].phrases)  # loads the weights
    begun = time.perf_counter()
    found = segmenter.segment([sample.images[0] for sample in samples], [sample.phrases[0] for sample in samples])
    seconds = time.perf_counter() - begun
    masks = [probabilities > 0.5 for probabilities in found]
    truths = [sample.masks[0] for sample in samples]
    scores["described"] = [score(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    each = np.concatenate([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
    print(f"{'':<12}{'S-measure':>10}{'IoU':>8}{'IASM':>8}   mean over {len(data)} test scenes")
    for name, rows in scores.items():
        print(f"{name:<12}" + "{:>10.3f}{:>8.3f}{:>8.3f}".format(*np.mean(rows, axis=0)))
    print(
        f"described: IoU {each.mean():.3f} a phrase, {1e3 * seconds / len(each):.2f} ms a phrase, {len(each)} phrases"
    )


def score(predictions: np.ndarray, truths: np.ndarray) -> tuple[float, float, float]:
    """Compute S-measure and IoU of the unions, and strict IASM, of bool (m, H, W) against bool (n, H, W)."""
    union, truth = predictions.any(axis=0), truths.any(axis=0)
    return s_measure(union, truth), iou(union, truth), iasm(predictions, truths)


if __name__ == "__main__":
    main()
