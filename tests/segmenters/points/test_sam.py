"""SAM: batched decoding against the package's own, checkpoints, and refused arguments."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor

from maskgym.errors import UserError
from maskgym.segmenters.points import sam as module
from maskgym.segmenters.points.sam import (
    PIXEL_DEVIATION,
    PIXEL_MEAN,
    PUBLISHED,
    SamConfig,
    SamSegmenter,
    published_config,
    resized_size,
    sam_pixels,
    sam_tiny,
    save_sam,
)
from maskgym.segmenters.weights import write_state

SMALL = SamConfig(
    image_size=64,
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    window_size=4,
    global_attention_layers=(1,),
    prompt_embed_dim=32,
    decoder_num_heads=4,
    decoder_mlp_dim=32,
    iou_head_dim=16,
)
POINTS = np.array([[[10.0, 20], [50, 40], [5, 60]], [[30, 30], [0, 0], [63, 1]]], np.float32)
LABELS = np.array([[1, 0, 1], [1, 1, 0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a folder with a small SAM of random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    save_sam(folder, SMALL.build(), SMALL)
    return folder


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return SamSegmenter(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def test_a_batch_of_images_equals_the_packages_predictor(segmenter, images):
    logits = segmenter.decode(segmenter.encode(images), POINTS, LABELS)
    predictor = SamPredictor(segmenter.network)
    for image, points, labels, mine in zip(images, POINTS, LABELS, logits, strict=True):
        predictor.set_image(image)
        _, _, low = predictor.predict(points, labels, multimask_output=False)
        np.testing.assert_allclose(mine.numpy(), low[0], atol=1e-4)
    assert logits.std() > 0.01


def test_rows_of_different_lengths_equal_rows_alone(segmenter, images):
    embeddings = segmenter.encode(images)
    labels = LABELS.copy()
    labels[0, 1] = labels[1, 0] = labels[1, 2] = -1
    together = segmenter.decode(embeddings, POINTS, labels)
    for row in range(2):
        kept = labels[row] >= 0
        alone = segmenter.decode(embeddings[row : row + 1], POINTS[row : row + 1, kept], labels[row : row + 1, kept])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


BOXES = np.array([[8.0, 12, 40, 50], [20, 4, 60, 33]], np.float32)


def test_boxes_equal_the_forward_pass_of_sam_itself(segmenter, images):
    embeddings = segmenter.encode(images)
    alone, clicked = (
        segmenter.decode(embeddings, boxes=BOXES),
        segmenter.decode(embeddings, POINTS, LABELS, boxes=BOXES),
    )
    for row, image in enumerate(images):
        given = {
            "image": torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)),
            "original_size": (64, 64),
            "boxes": torch.from_numpy(BOXES[row : row + 1]),
        }
        points = {
            "point_coords": torch.from_numpy(POINTS[row : row + 1]),
            "point_labels": torch.from_numpy(LABELS[row : row + 1]),
        }
        for mine, more in ((alone, {}), (clicked, points)):
            (own,) = segmenter.network([{**given, **more}], multimask_output=False)
            torch.testing.assert_close(mine[row], own["low_res_logits"][0, 0], atol=1e-4, rtol=0)
    assert (alone - clicked).abs().max() > 1e-3 and (alone[0] - alone[1]).abs().max() > 1e-3


def test_boxes_are_in_pixels_of_the_square_shown_and_need_no_point(segmenter, images):
    embeddings = segmenter.encode(images)
    expected = segmenter.decode(embeddings, boxes=BOXES)
    torch.testing.assert_close(segmenter.decode(embeddings, side=128, boxes=BOXES * 2), expected)
    padding = np.full((2, 3), -1)
    torch.testing.assert_close(segmenter.decode(embeddings, POINTS, padding, boxes=BOXES), expected)
    with pytest.raises(ValueError, match=r"boxes \(2, 3\): expected"):
        segmenter.decode(embeddings, boxes=BOXES[:, :3])
    with pytest.raises(ValueError, match="row 0 has no point: expected at least one, or a box"):
        segmenter.decode(embeddings)


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (2, 900), (1, 1)])
def test_long_and_thin_photos_keep_a_pixel_of_each_side(size):
    assert min(resized_size(size, 64)) >= 1 and max(resized_size(size, 64)) == 64
    assert sam_pixels(np.zeros((*size, 3), np.uint8), 64).shape == (3, 64, 64)


def test_points_are_in_pixels_of_the_square_shown(segmenter, images):
    embeddings = segmenter.encode(images)
    expected = segmenter.decode(embeddings, POINTS, LABELS)
    torch.testing.assert_close(segmenter.decode(embeddings, POINTS * 2, LABELS, side=128), expected)


def test_masks_come_back_at_each_size(segmenter):
    logits = torch.arange(32.0).reshape(2, 4, 4)
    assert [mask.shape for mask in segmenter.resize(logits, [(8, 8), (8, 8)])] == [(8, 8)] * 2
    wide, high = segmenter.resize(logits, [(4, 8), (8, 4)])
    assert wide.shape == (4, 8) and high.shape == (8, 4) and high.dtype == np.float32
    np.testing.assert_allclose(wide.mean(axis=1), logits[0].mean(dim=1), atol=1e-5)


@pytest.mark.parametrize(
    ("points", "labels", "expected"),
    [
        (POINTS[:1], LABELS[:1], "2 embeddings"),
        (POINTS[..., :1], LABELS, "expected"),
        (POINTS, np.full((2, 3), -1), "row 0 has no point"),
    ],
)
def test_points_that_do_not_fit(segmenter, images, points, labels, expected):
    with pytest.raises(ValueError, match=expected):
        segmenter.decode(segmenter.encode(images), points, labels)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (64, 32, 3)])
def test_images_that_are_none(segmenter, shape):
    with pytest.raises(UserError, match="image 0 is"):
        segmenter.encode([np.zeros(shape, np.uint8)])


def test_sixteen_bits_are_refused(segmenter):
    with pytest.raises(UserError, match="uint16"):
        segmenter.encode([np.zeros((64, 64, 3), np.uint16)])


def test_a_published_file_is_known_by_its_weights(tmp_path, monkeypatch, images):
    small = {name: SamConfig(**{**vars(SMALL), "embed_dim": width}) for name, width in (("vit_b", 32), ("vit_l", 48))}
    monkeypatch.setattr(module, "PUBLISHED", {**small, "vit_h": SamConfig(**{**vars(SMALL), "embed_dim": 64})})
    torch.manual_seed(0)
    torch.save(small["vit_l"].build().state_dict(), tmp_path / "sam_vit_l_0b3195.pth")
    file = tmp_path / "sam_vit_l_0b3195.pth"
    for model in ("auto", "vit_l"):
        segmenter = SamSegmenter(file, model=model, device="cpu")
        assert segmenter.embedding_shape == (32, 8, 8) and segmenter.input_size == 64
        assert segmenter.encode(images).shape == (2, 32, 8, 8)
    with pytest.raises(UserError, match=r"sam_vit_l_0b3195\.pth: is a vit_l: expected vit_b"):
        SamSegmenter(file, model="vit_b", device="cpu").encode(images)


def test_a_folder_holds_a_published_file_by_its_name(tmp_path):
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: no weights there: expected one of sam_vit_b_01ec64\.pth, sam_v"
    ):
        SamSegmenter(tmp_path)
    for name in ("sam_vit_h_4b8939.pth", "another.pth"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
    for model in ("auto", "vit_h"):
        assert SamSegmenter(tmp_path, model=model).weights_file == tmp_path / "sam_vit_h_4b8939.pth"
    with pytest.raises(UserError, match=rf"^{tmp_path}: no weights there: expected sam_vit_b_01ec64\.pth$"):
        SamSegmenter(tmp_path, model="vit_b")
    torch.save({"a": torch.zeros(1)}, tmp_path / "sam_vit_b_01ec64.pth")
    assert SamSegmenter(tmp_path, model="vit_b").weights_file.name == "sam_vit_b_01ec64.pth"
    with pytest.raises(
        UserError, match=r"holds sam_vit_b_01ec64\.pth and sam_vit_h_4b8939\.pth: expected the path of o"
    ):
        SamSegmenter(tmp_path)
    (theirs := tmp_path / "transformers").mkdir()
    (theirs / "config.json").write_text('{"model_type": "sam"}')
    write_state({"a": torch.zeros(1)}, theirs / "model.safetensors")
    with pytest.raises(UserError, match=r"config\.json: is of a model of transformers: expected segmenter=sam_hf"):
        SamSegmenter(theirs)


def test_the_published_sizes():
    assert published_config({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, "x") == PUBLISHED["vit_b"]
    assert SamSegmenter.__init__ and PUBLISHED["vit_h"].depth == 32 and PUBLISHED["vit_l"].num_heads == 16
    with torch.device("meta"):
        counts = {
            name: sum(value.numel() for value in config.build().parameters()) for name, config in PUBLISHED.items()
        }
    assert {name: round(count / 1e6, 1) for name, count in counts.items()} == {
        "vit_b": 93.7,
        "vit_l": 312.3,
        "vit_h": 641.1,
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "needs checkpoint=PATH"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth: no such checkpoint"),
        ({"checkpoint": ".", "model": "vit_x"}, "segmenter.model=vit_x: expected auto, vit_b, vit_l, vit_h"),
    ],
)
def test_wrong_arguments(arguments, expected):
    with pytest.raises(UserError, match=expected):
        SamSegmenter(**arguments)


def test_files_that_are_no_sam(checkpoint, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: holds no image_encoder"):
        _ = SamSegmenter(tmp_path / "a.pth").network
    save_sam(tmp_path / "b", SMALL.build(), SMALL)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "embed_dim": 16, "num_heads": 2}))
    with pytest.raises(UserError, match="does not fit the model"):
        _ = SamSegmenter(tmp_path / "b").network
    (tmp_path / "b" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        SamSegmenter(tmp_path / "b")


def test_the_bundled_one_says_its_shapes_before_it_is_loaded():
    segmenter = sam_tiny()
    assert segmenter.input_size == 96 and segmenter.embedding_shape == (128, 12, 12)
    assert "network" not in vars(segmenter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("image_size", 0),
            ("image_size", "64"),
            ("patch_size", 0),
            ("patch_size", -8),
            ("depth", None),
            ("depth", 1.5),
        ),
        *(("window_size", -1), ("global_attention_layers", 5), ("global_attention_layers", ["a"]), ("mlp_ratio", "x")),
        *(("use_rel_pos", "yes"), ("num_heads", True), ("num_heads", 5), ("embed_dim", [16]), ("unknown", 1)),
    ],
)
def test_a_config_that_fits_no_network_is_named(checkpoint, tmp_path, key, value):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError, match=f"{folder}.*: .") as caught:
        SamSegmenter(folder, device="cpu").encode([np.zeros((8, 8, 3), np.uint8)])
    assert "\n" not in str(caught.value)


def test_pixels_are_those_of_the_plain_formula():
    for shape in ((30, 50, 3), (50, 30, 3), (64, 64, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        height, width = resized_size(image.shape[:2], 40)
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        values = torch.from_numpy(resized).permute(2, 0, 1).float()
        expected = (values - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_DEVIATION)[:, None, None]
        found = sam_pixels(image, 40)
        assert torch.equal(found[:, :height, :width], expected)
        assert not found[:, height:].any() and not found[:, :, width:].any()
