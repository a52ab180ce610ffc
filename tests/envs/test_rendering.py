"""Pictures: one row an image, a column a panel, instances in distinct colours."""

from __future__ import annotations

import dataclasses
import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo

import maskgym  # noqa: F401
from maskgym.data import Sample
from maskgym.data.scenes import Scenes
from maskgym.envs.rendering import (
    BLANK,
    GAP,
    PALETTE,
    PANEL,
    TITLE,
    clicks_picture,
    contact_sheet,
    frame,
    overlay,
    picture,
)

IDS = [id for id, spec in gym.registry.items() if spec.namespace == "maskgym"]


def test_columns_rows_and_text_take_room() -> None:
    sample = Scenes("cosod", group_size=3)[0]
    plain = picture(sample, {})
    with_panel = picture(sample, {"after": sample.masks})
    with_text = picture(sample, {}, "two words\nand more")
    assert plain.dtype == np.uint8 and plain.shape[0] > 3 * 200
    assert with_panel.shape[1] > plain.shape[1]
    assert with_text.shape[0] > plain.shape[0]


def test_instances_have_their_own_colours_and_the_rest_is_dimmed() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :5, :5] = masks[1, 10:, 10:] = True
    shown = overlay(image, masks)
    np.testing.assert_array_equal(shown[0, 0], PALETTE[0])
    np.testing.assert_array_equal(shown[10, 10], PALETTE[1])
    assert shown[7, 7].max() < 100
    assert (image == 200).all()


def test_no_mask_dims_everything() -> None:
    shown = overlay(np.full((8, 8, 3), 200, np.uint8), np.zeros((0, 8, 8), bool))
    assert (shown == 90).all()


def test_a_sheet_breaks_into_rows_and_shows_every_sample() -> None:
    scenes = Scenes("need", size=9)
    narrow, wide = (contact_sheet([scenes[index] for index in range(9)], width) for width in (500, 5000))
    assert narrow.shape[0] > 4 * wide.shape[0] and wide.shape[1] == 5000
    for index in range(9):  # each panel but the first row's begins below another's text
        assert (
            narrow[index // 2 * 260 + 6 : index // 2 * 260 + 226, index % 2 * 230 + 6 : index % 2 * 230 + 200] < 255
        ).any()


def test_a_sheet_says_how_large_a_group_is_and_cuts_long_names() -> None:
    group = Scenes("cosod", group_size=3)[0]
    blank = contact_sheet([dataclasses.replace(group, key="", category=" ")])
    named = contact_sheet([dataclasses.replace(group, key="k" * 500)])
    assert named.shape == blank.shape and (named != blank).any()


def test_a_frame_has_one_size_for_any_answer_sample_and_number_of_images() -> None:
    groups, wide = Scenes("cosod", group_size=3), np.zeros((10, 90, 3), np.uint8)
    samples = [groups[0], Sample("wide", (wide,), (np.ones((1, 10, 90), bool),))]
    texts = [None, "", "two words", "word " * 3000, "\n" * 50 + "end", "x" * 9000]
    frames = [
        frame(sample, {"prediction": masks}, text, rows=3, lines=4)
        for sample in samples
        for masks in (None, sample.masks)
        for text in texts
    ]
    assert {image.shape for image in frames} == {(TITLE + 3 * (PANEL + GAP) + 4 * 15 + GAP, 3 * (PANEL + GAP) + GAP, 3)}
    grey = int(BLANK[1:3], 16)
    blank, shown = (
        frames[0][TITLE : TITLE + PANEL, -PANEL - GAP : -GAP],
        frames[6][TITLE : TITLE + PANEL, -PANEL - GAP : -GAP],
    )
    assert (blank == grey).all() and (shown != grey).any()  # no prediction yet; the prediction


def test_the_end_of_a_long_text_is_drawn() -> None:
    sample = Scenes("sis")[0]
    one, other = (
        frame(sample, {}, "word " * 400 + end, lines=4) for end in ("<answer>a</answer>", "<answer>b</answer>")
    )
    assert (one != other).any()


def test_clicks_lie_on_the_image_inside_a_square_panel() -> None:
    image, mask = np.zeros((20, 80, 3), np.uint8), np.zeros((1, 20, 80), bool)
    sample = Sample("wide", (image,), (~mask,))
    shown = clicks_picture(sample, {"clicks": (mask, np.array([[40.0, 10.0]]), np.array([1]))}, square=True)
    assert shown.shape == (PANEL + TITLE + GAP, 2 * (PANEL + GAP) + GAP, 3)
    rows, columns = np.nonzero((shown == (0x00, 0x9E, 0x73)).all(axis=2))
    assert abs(rows.mean() - (TITLE + PANEL / 2)) < 2 and abs(columns.mean() - (GAP + PANEL / 2)) < 2


@pytest.mark.parametrize("id", IDS)
def test_all_frames_of_an_environment_make_one_video(id: str, tmp_path, halves, photos) -> None:
    task = {"maskgym/SIS-v0": "sis", "maskgym/SOD-v0": "sod", "maskgym/CoSOD-v0": "cosod"}.get(id)
    settings = {"segmenter": halves, "dataset": photos(task)} if task else {}
    env = gym.make(id, render_mode="rgb_array", **settings)
    shapes = set()
    for index in range(3):
        env.reset(seed=0, options={"index": index})
        shapes.add(env.render().shape)
        for _ in range(min(3, env.unwrapped.horizon)):
            action = (
                "<think>x</think><answer><ins>left</ins></answer>" * 20 * index if task else env.action_space.sample()
            )
            over = env.step(action)[2:4]
            shapes.add(env.render().shape)
            if any(over):
                break
    assert len(shapes) == 1
    if importlib.util.find_spec("moviepy") is None:
        return  # The frames are of one size; only the encoder is missing.
    video = RecordVideo(env, str(tmp_path), episode_trigger=lambda number: True, disable_logger=True)
    video.reset(seed=0)
    video.step("x" if task else env.action_space.sample())
    video.close()
    assert [file.stat().st_size > 0 for file in tmp_path.glob("*.mp4")] == [True]
