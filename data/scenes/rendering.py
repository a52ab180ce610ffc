"""Pictures of scene graphs, and the effects of tasks whose region is not an object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maskgym.data.scenes.objects import COLOURS, Scene, SceneObject

PALE_OPACITY = 0.45


def render(objects: tuple[SceneObject, ...], rng: np.random.Generator, side: int) -> Scene:
    """Draw objects in order over a random background of ``side`` pixels."""
    canvas = _background(rng, side)
    masks = np.zeros((len(objects), side, side), dtype=bool)
    for number, item in enumerate(objects):
        depth, window = _depth(item, side)
        inside = depth <= 0
        masks[(slice(None), *window)] &= ~inside
        masks[(number, *window)] = inside
        _paint(canvas[window], depth, item, rng)
    return Scene(objects, np.clip(canvas, 0, 255).astype(np.uint8), masks)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Render float32 (side, side, 3): muted clouds, saturated soft blobs, stripes, grain and vivid specks."""
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    canvas = _clouds(rng, side, cells=5) * 30 + rng.uniform(80, 170, size=3).astype(np.float32)
    along = np.arange(side, dtype=np.float32) / side
    for _ in range(3):
        (row, column), width = rng.uniform(0, 1, size=2), rng.uniform(0.12, 0.3)
        profile = np.exp(-((along - np.array([[row], [column]])) ** 2) / (2 * width**2)).astype(np.float32)
        weight = 0.75 * np.outer(profile[0], profile[1])[..., None]
        canvas += weight * (palette[rng.integers(len(palette))] - canvas)
    turn, waves = rng.uniform(0, np.pi), rng.uniform(40, 90)
    phase = np.add.outer(along * np.sin(turn), along * np.cos(turn)) * waves
    texture = 8 * np.sin(phase, dtype=np.float32) + 6 * rng.standard_normal((side, side), dtype=np.float32)
    canvas += texture[..., None]
    for row, column in rng.integers(1, side - 3, size=(30, 2)):
        reach = 1 + int(row + column) % 3
        canvas[row : row + reach, column : column + reach] = palette[rng.integers(len(palette))]
    return canvas


def _clouds(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Interpolate a coarse random grid bilinearly to float32 (side, side, 3) in [-1, 1]."""
    grid = rng.uniform(-1, 1, size=(cells + 1, cells + 1, 3)).astype(np.float32)
    at = np.arange(side, dtype=np.float32) * cells / side
    low, share = at.astype(int), at % 1
    weights = np.zeros((side, cells + 1), dtype=np.float32)
    weights[np.arange(side), low], weights[np.arange(side), low + 1] = 1 - share, share
    return np.einsum("ra,abk,cb->rck", weights, grid, weights, optimize=True)


def _depth(item: SceneObject, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Compute the signed shape function over the object's window, and the window."""
    scale = side / 128
    x, y, radius = item.x * scale, item.y * scale, item.radius * scale
    rows = slice(max(0, int(y - radius) - 1), min(side, int(y + radius) + 3))
    columns = slice(max(0, int(x - radius) - 1), min(side, int(x + radius) + 3))
    v, u = np.mgrid[rows, columns]
    u, v = (u - x) / radius, (v - y) / radius
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    return _signed(item, u * cos + v * sin, v * cos - u * sin), (rows, columns)


def _paint(window: np.ndarray, depth: np.ndarray, item: SceneObject, rng: np.random.Generator) -> None:
    """Paint the object into its window of the canvas, in place: jittered colour, shading, texture and a dark rim."""
    height, width = depth.shape
    y, x = np.mgrid[0:height, 0:width]
    colour = np.array(COLOURS[item.colour]) + rng.uniform(-14, 14, size=3)
    light = 1 + 0.18 * (x / width - 0.5) * rng.choice([-1, 1]) - 0.18 * (y / height - 0.5)
    period = max(height / 6, 3)
    if item.texture == "striped":
        light = light * np.where((x + y) % period < period * 0.42, 0.62, 1)
    elif item.texture == "dotted":
        light = light * np.where(np.hypot(x % period - period / 2, y % period - period / 2) < period * 0.3, 0.55, 1)
    light = light * np.where(depth > -0.1, 0.6, 1)
    opacity = PALE_OPACITY if item.pale else 1.0
    inside = depth <= 0
    window[inside] += opacity * ((light[..., None] * colour)[inside] - window[inside])


def _signed(item: SceneObject, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute the signed shape function of local coordinates (radius 1); it is ≤ 0 inside the shape."""
    distance = np.hypot(u, v)
    if item.shape == "disc":
        return distance - 0.95
    if item.shape == "ring":
        return np.maximum(distance - 1.0, 0.46 - distance)
    if item.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if item.shape == "triangle":
        return np.maximum(np.maximum(0.87 * u - 0.5 * v, -0.87 * u - 0.5 * v), v) - 0.58
    if item.shape == "cross":
        return np.minimum(np.maximum(np.abs(u) - 1, np.abs(v) - 0.38), np.maximum(np.abs(u) - 0.38, np.abs(v) - 1))
    turn = np.arctan2(u, -v) * 5 / (2 * np.pi)
    return distance - (1.08 - 0.96 * np.abs(turn - np.round(turn)))  # star of five points


def blur(scene: Scene, rng: np.random.Generator) -> Scene:
    """Defocus everything except one bright object; the region is the blurred part."""
    sharp = scene.masks[scene.salient[rng.integers(len(scene.salient))]]
    picture = scene.image.astype(np.float32)
    for axis in (0, 1, 0, 1, 0, 1):  # three box blurs are close to a Gaussian
        picture = np.sum([np.roll(picture, shift, axis) for shift in range(-2, 3)], axis=0) / 5
    image = np.where(sharp[..., None], scene.image, picture.astype(np.uint8))
    return replace(scene, image=image, effect=~sharp)


def shadow(scene: Scene, rng: np.random.Generator) -> Scene:
    """Let every bright object cast a shadow to one side; the region is the shadow."""
    side = scene.image.shape[0]
    shift = (side // 9, int(rng.choice([-1, 1])) * side // 9)
    cast = np.zeros_like(scene.masks[0])
    for i in scene.salient:
        down, right = shift
        moved = np.zeros_like(cast)
        moved[down:, max(right, 0) : side + min(right, 0)] = scene.masks[i][
            : side - down, max(-right, 0) : side - max(right, 0)
        ]
        cast |= moved
    cast &= ~scene.masks.any(axis=0)
    image = np.where(cast[..., None], scene.image * 0.42, scene.image).astype(np.uint8)
    return replace(scene, image=image, effect=cast)


def glass(scene: Scene, rng: np.random.Generator) -> Scene:
    """Draw a tinted pane that displaces the background; the region is the pane."""
    side = scene.image.shape[0]
    height, width = rng.integers(side // 3, side // 2, size=2)
    top, left = rng.integers(2, side - height - 2), rng.integers(2, side - width - 2)
    pane = np.zeros((side, side), dtype=bool)
    pane[top : top + height, left : left + width] = True
    edge = pane.copy()
    edge[top + 2 : top + height - 2, left + 2 : left + width - 2] = False
    behind = np.roll(scene.image, (side // 25, side // 20), axis=(0, 1)) * 0.8 + np.array([25, 45, 45])
    image = np.where(pane[..., None], np.where(edge[..., None], 225, behind), scene.image).astype(np.uint8)
    return replace(scene, image=image, effect=pane)


EFFECTS = {"blur": blur, "shadow": shadow, "glass": glass}
