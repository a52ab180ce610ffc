"""Check a segmenter: of phrases, of points, or of attention to a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial

import numpy as np
import torch

from maskgym.errors import UserError
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings
from maskgym.segmenters import AttentionSegmenter, ReferringSegmenter
from maskgym.segmenters.phrases.masks import check_probabilities
from maskgym.segmenters.points.promptable import PromptableSegmenter

RULES = {
    "class": "segment(images, expressions) for phrases, a PromptableSegmenter for points, or attend(images, texts)",
    "result": "for each image probabilities (n, H, W), a row per expression; attend: (B, h, w)",
    "sizes": "images of any sizes, in one call",
    "any text": "any text as an expression, because any text is a legal action; no expressions give (0, H, W)",
    "repeat": "the same result each time",
    "alone": "the same result for an image alone and among others",
    "untouched": "images that are left unchanged",
    "embedding": "encode gives (B, …) embeddings whose spatial maps have embedding_shape (C, h, w)",
    "decode": "decode gives finite logits float32 (B, h, w), and padded points change nothing",
    "episode": "masks that the environments accept",
}
TEXTS = ("", " ", "[semantic] disc", "ein roter Ball, 红色的球, \U0001f534", "a red disc " * 200, "\ud800\0")
CLOSE = 1e-3  # largest difference between an image alone and among others: sums in another order


def check(segmenter: object, found: Findings) -> None:
    """Check a segmenter by the contract that it follows."""
    if isinstance(segmenter, PromptableSegmenter):
        _check_points(segmenter, found)
    elif isinstance(segmenter, ReferringSegmenter):
        _check_phrases(segmenter, found)
    elif isinstance(segmenter, AttentionSegmenter):
        _check_attention(segmenter, found)
    else:
        found.add("class", f"a {type(segmenter).__module__}.{type(segmenter).__qualname__}")


def images() -> list[np.ndarray]:
    """Cut scenes to three sizes, uint8 (H, W, 3)."""
    shown = probes.scenes("sis")
    return [shown[0].images[0], shown[1].images[0][:37, :53], shown[2].images[0][:, :20]]


def _check_phrases(segmenter: ReferringSegmenter, found: Findings) -> None:
    shown = images()
    phrases = [["a red disc", "the large square"], [], ["a star"]]
    before = [image.copy() for image in shown]
    first = found.attempt("sizes", "segment", lambda: segmenter.segment(shown, phrases))
    if first is None:
        return
    found.expect(all(map(np.array_equal, shown, before)), "untouched", "segment wrote into an image")
    if not _fits(first, shown, phrases, found):
        return
    again = found.attempt("repeat", "segment, called again", lambda: segmenter.segment(shown, phrases))
    found.expect(again is not None and _distance(first, again) == 0, "repeat", "two calls differ")
    alone = found.attempt("alone", "segment of one image", lambda: segmenter.segment(shown[2:], phrases[2:]))
    far = None if alone is None else _distance(first[2:], alone)
    found.expect(far is not None and far <= CLOSE, "alone", f"probabilities differ by {far}")
    for text in TEXTS:
        masks = found.attempt("any text", f"segment of {text[:40]!r}", partial(segmenter.segment, shown[:1], [[text]]))
        if masks is not None:
            _fits(masks, shown[:1], [[text]], found)
    with found.guard("episode"):
        probes.play(probes.make_env("sis", segmenter=segmenter))


def _fits(
    masks: Sequence[np.ndarray], shown: Sequence[np.ndarray], phrases: Sequence[Sequence[str]], found: Findings
) -> bool:
    """Check what ``segment`` gave."""
    count = len(masks) if isinstance(masks, Sized) else type(masks).__name__
    if not found.expect(count == len(shown), "result", f"{count} arrays for {len(shown)} images"):
        return False
    try:
        for mask, image, row in zip(masks, shown, phrases, strict=True):
            check_probabilities(mask, (len(row), *image.shape[:2]), f"{len(row)} expressions on {image.shape}")
    except UserError as error:
        found.add("result", str(error))
        return False
    return True


def _distance(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Compute the largest difference between two lists of arrays, infinite where shapes differ."""
    if [a.shape for a in one] != [b.shape for b in other]:
        return np.inf
    return max((float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True) if a.size), default=0.0)


def _check_attention(segmenter: AttentionSegmenter, found: Findings) -> None:
    shown, texts = images(), ["a red disc", "a square", "a star"]
    before = [image.copy() for image in shown]
    for size in (None, (9, 7)):
        maps = found.attempt("sizes", "attend", partial(segmenter.attend, shown, texts, size))
        if maps is None:
            return
        shape = np.shape(maps)
        try:
            check_probabilities(maps, (3, *(size or shape[1:3])), f"3 texts and size={size}")
        except UserError as error:
            found.add("result", str(error))
            return
        again = segmenter.attend(shown, texts, size)
        found.expect(_distance([maps], [again]) == 0, "repeat", "two calls differ")
        alone = segmenter.attend(shown[2:], texts[2:], size)
        far = _distance([maps[2:]], [alone])
        found.expect(far <= CLOSE, "alone", f"maps differ by {far}")
    found.expect(all(map(np.array_equal, shown, before)), "untouched", "attend wrote into an image")
    for text in filter(str.strip, TEXTS):  # Attention to nothing has no meaning.
        with found.guard("any text", f"attend to {text[:40]!r}"):
            segmenter.attend(shown[:1], [text])


def _check_points(segmenter: PromptableSegmenter, found: Findings) -> None:
    shown = [probes.scenes("sod")[index].images[0] for index in range(2)]
    before = [image.copy() for image in shown]
    embeddings = found.attempt("embedding", "encode", lambda: segmenter.encode(shown))
    shape = found.attempt("embedding", "embedding_shape", lambda: tuple(segmenter.embedding_shape))
    if embeddings is None or shape is None:
        return
    maps = found.attempt("embedding", "spatial", lambda: segmenter.spatial(embeddings))
    given = None if maps is None else tuple(maps.shape)
    if not found.expect(given == (2, *shape), "embedding", f"spatial maps {given} and embedding_shape {shape}"):
        return
    found.expect(all(map(np.array_equal, shown, before)), "untouched", "encode wrote into an image")
    points, labels = np.array([[[20.0, 20.0]], [[40.0, 30.0]]]), np.array([[1], [1]])

    def decode(rows: slice, padded: bool = False) -> torch.Tensor:
        places, kinds = points[rows], labels[rows]
        if padded:
            places = np.concatenate([places, np.zeros_like(places)], axis=1)
            kinds = np.concatenate([kinds, np.full_like(kinds, -1)], axis=1)
        return segmenter.decode(embeddings[rows], places, kinds, probes.SIDE)

    logits = found.attempt("decode", "decode", lambda: decode(slice(None)))
    if logits is None:
        return
    fits = logits.dtype == torch.float32 and logits.ndim == 3 and len(logits) == 2 and bool(logits.isfinite().all())
    if not found.expect(fits, "decode", f"{logits.dtype} {tuple(logits.shape)} with values up to {logits.max():g}"):
        return
    variants: list[tuple[str, Callable[[], torch.Tensor], torch.Tensor]] = [
        ("repeat", lambda: decode(slice(None)), logits),
        ("alone", lambda: decode(slice(1, 2)), logits[1:]),
        ("decode", lambda: decode(slice(None), padded=True), logits),
    ]
    for rule, act, expected in variants:
        values = found.attempt(rule, "decode", act)
        far = None if values is None else float((values - expected).abs().max())
        found.expect(far is not None and far <= (0 if rule == "repeat" else CLOSE), rule, f"logits differ by {far}")
    with found.guard("episode"):
        probes.play(probes.make_env("point_prompt", segmenter=segmenter))
