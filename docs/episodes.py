"""Episodes of every environment, played well and drawn: ``python docs/episodes.py`` makes ``docs/environments.png``."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

import maskgym
from maskgym.agents.base import Action
from maskgym.agents.clicks.oracle import OracleAgent
from maskgym.aliases import Observation
from maskgym.envs.base import ScalarEnv
from maskgym.envs.rendering import GAP, PANEL, TITLE
from maskgym.errors import UserError

NAMESPACE = maskgym.__name__
# What the agent answers with, and what the masks show.
CAPTIONS = {
    "SOD-v0": "phrases, for every salient region",
    "SIS-v0": "a phrase per salient instance",
    "CoSOD-v0": "one category, in a group of images",
    "Refer-v0": "a box per object of a query",
    "PointPrompt-v0": "clicks for a frozen SAM",
    "UserNeed-v0": "a mask of what a user needs",
    "UserNeedPoint-v0": "clicks for what a user needs",
    "Ranking-v0": "masks, the most salient first",
}
SEED = 7  # of the episodes
FRAMES = 4  # maximum number of pictures per episode
WIDEST = 1000  # maximum width of two pictures beside each other, pixels
TILE = (340, 148)  # width and height of a tile in the picture of all environments, pixels
COLUMNS = 3


def environments() -> list[str]:
    """List the ids of our environments that have a page of their own; `docs/levels.md` has their levels."""
    return [f"{NAMESPACE}/{name}" for name in CAPTIONS]


def make(id: str, **arguments: str | bool | int) -> ScalarEnv:
    """Make one of our environments without wrappers."""
    env = gym.make(id, render_mode="rgb_array", disable_env_checker=True, **arguments).unwrapped
    if not isinstance(env, ScalarEnv):
        raise UserError(f"{id}: expected an environment of {NAMESPACE}")
    return env


def episode(id: str) -> tuple[list[np.ndarray], float]:
    """Play one episode with the ground truth at hand.

    Returns:
        Up to `FRAMES` of its pictures, uint8 (H, W, 3), and its last IoU.
    """
    clicks = make(id).vector.action_kind == "clicks"
    short = {"initial_prompts": "none", "allow_repeated_clicks": False, "horizon": FRAMES} if clicks else {}
    env = make(id, **short)
    _, info = env.reset(seed=SEED)
    frames = []
    for action in good_actions(env, info):
        _, _, terminated, truncated, info = env.step(action)
        if (frame := env.render()) is not None:
            frames.append(frame)
        if terminated or truncated:
            break
    chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    return [frames[i] for i in chosen], info["iou"]


def good_actions(env: ScalarEnv, info: Observation) -> Iterator[Action]:
    """Yield good answers: the annotator's text, clicks of a search, or blurred ground-truth masks in order."""
    if isinstance(env.action_space, spaces.Text):
        yield info["rationale"]
    elif isinstance(env.action_space, spaces.Box):
        target = info["target"][0]
        masks = target[np.argsort(-info["ranks"][0])] if "ranks" in info else target.any(axis=0)[None]
        yield from (gaussian_filter(mask.astype(np.float32), 1).clip(0, 1) for mask in masks)
    else:
        (state,) = OracleAgent().search(env.vector)
        yield from zip(state.patches, state.labels, strict=True)


def first_row(frame: np.ndarray) -> Image.Image:
    """Crop a picture to its titles and its first row of panels."""
    return Image.fromarray(frame[: TITLE + PANEL + GAP])


def strip(frames: Sequence[np.ndarray]) -> Image.Image:
    """Arrange pictures below each other, in two columns where they are narrow."""
    height, width = max(frame.shape[0] for frame in frames), max(frame.shape[1] for frame in frames)
    columns = 2 if len(frames) > 1 and 2 * width <= WIDEST else 1
    sheet = Image.new("RGB", (width * columns, height * -(-len(frames) // columns)), "white")
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (width * (number % columns), height * (number // columns)))
    return sheet


def png(picture: Image.Image) -> bytes:
    """Encode a picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def draw_all() -> Image.Image:
    """Draw a tile per environment: its name, its caption, and the first row of an episode's last picture."""
    ids = environments()
    width, height = TILE
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(ids) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    bold, font = ImageFont.load_default(14), ImageFont.load_default(12)
    for number, id in enumerate(ids):
        left, top = number % COLUMNS * width + GAP, number // COLUMNS * height + GAP
        name = id.partition("/")[2]
        draw.text((left, top), name, "black", bold)
        draw.text((left + draw.textlength(name, bold) + 2 * GAP, top + 2), CAPTIONS[name], "dimgray", font)
        frames, _ = episode(id)
        picture = first_row(frames[-1])
        picture.thumbnail((width - 2 * GAP, height - 24 - GAP), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left, top + 20))
    return sheet


if __name__ == "__main__":
    Path(__file__).with_name("environments.png").write_bytes(png(draw_all().quantize(192)))
