"""SAM and SAM 2 of transformers: the adapters against the models' own computation with the same random weights."""

from __future__ import annotations

import json
import pickle
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgym import segmenters
from maskgym.errors import UserError
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.sam_hf import Sam2Segmenter, SamHfSegmenter

KINDS = {"sam": SamHfSegmenter, "sam2": Sam2Segmenter, "sam2_video": Sam2Segmenter}
POINTS = np.array([[[10.0, 20], [50, 40], [5, 60]], [[30, 30], [0, 0], [63, 1]]], np.float32)
LABELS = np.array([[1, 0, 1], [1, 1, 0]])
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 32, "image_size": 64}


def small_sam():
    from transformers import SamConfig, SamImageProcessor, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 32,
        },
        prompt_encoder_config={**PROMPTS, "patch_size": 8},
        mask_decoder_config=DECODER,
    )
    square = {"height": 64, "width": 64}
    return SamModel(config), SamImageProcessor(size={"longest_edge": 64}, pad_size=square)


def small_sam2(kind: str):
    import transformers

    vision = {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 16,
            "image_size": [64, 64],
            "window_positional_embedding_background_size": [2, 2],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 4, 2],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    prompts = {**PROMPTS, "patch_size": 16}
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": DECODER}
    processor = transformers.Sam2ImageProcessor(size={"height": 64, "width": 64})
    if kind == "sam2":
        return transformers.Sam2Model(transformers.Sam2Config(**parts)), processor
    memory = {"image_size": 64, "memory_attention_hidden_size": 32, "memory_encoder_hidden_size": 32}
    return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**parts, **memory)), processor


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """Write a folder with a small model of random weights, named after its kind."""
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    torch.manual_seed(0)
    model, processor = small_sam() if request.param == "sam" else small_sam2(request.param)
    with torch.no_grad():  # at the usual initialisation every mask is nearly flat
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return KINDS[checkpoint.name](checkpoint, device="cpu")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference(checkpoint, images):
    """Compute the model's own logits for each image alone, prompted in pixels of the image by its own processor."""
    import transformers

    if checkpoint.name == "sam":
        model = transformers.SamModel.from_pretrained(checkpoint).eval()
        processor = transformers.SamProcessor(transformers.SamImageProcessor.from_pretrained(checkpoint))
    else:
        model = transformers.Sam2Model.from_pretrained(checkpoint).eval()
        image_processor = transformers.Sam2ImageProcessor.from_pretrained(checkpoint)
        processor = transformers.Sam2Processor(image_processor, target_size=64)

    def logits(row: int, count: int) -> torch.Tensor:
        points, labels = (POINTS[row, :count] * 40 / 64).tolist(), LABELS[row, :count].tolist()
        batch = processor(images[row], input_points=[[points]], input_labels=[[labels]], return_tensors="pt")
        wanted = {name: batch[name] for name in ("pixel_values", "input_points", "input_labels")}
        with torch.no_grad():
            return model(**wanted, multimask_output=False).pred_masks[0, 0, 0]

    return logits


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("counts", [(3, 3), (1, 3), (2, 1)])
def test_a_batch_of_images_equals_the_model_called_on_each(checkpoint, images, reference, counts, batch_size):
    segmenter = KINDS[checkpoint.name](checkpoint, device="cpu", batch_size=batch_size)
    labels = np.where(np.arange(3) < np.array(counts)[:, None], LABELS, -1)
    logits = segmenter.decode(segmenter.encode(images), POINTS, labels)
    assert logits.dtype == torch.float32 and logits.std() > 0.01
    for row, count in enumerate(counts):
        torch.testing.assert_close(logits[row], reference(row, count), atol=1e-4, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("clicked", [False, True])
def test_boxes_equal_the_model_called_with_them(checkpoint, segmenter, images, clicked):
    import transformers

    boxes = np.array([[8.0, 12, 40, 50], [20, 4, 60, 33]], np.float32)
    given = (POINTS, LABELS) if clicked else (None, None)
    logits = segmenter.decode(segmenter.encode(images), *given, boxes=boxes)
    model = (transformers.SamModel if checkpoint.name == "sam" else transformers.Sam2Model).from_pretrained(checkpoint)
    for row in range(2):
        prompts = {"input_boxes": torch.from_numpy(boxes[row])[None, None]}
        if clicked:
            prompts["input_points"] = torch.from_numpy(POINTS[row])[None, None]
            prompts["input_labels"] = torch.from_numpy(LABELS[row])[None, None]
        with torch.no_grad():
            own = model.eval()(segmenter.pixels([images[row]]), **prompts, multimask_output=False).pred_masks[0, 0, 0]
        torch.testing.assert_close(logits[row], own, atol=1e-4, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_padding_takes_no_part_wherever_it_is(segmenter, images):
    embeddings = segmenter.encode(images)
    labels = LABELS.copy()
    labels[0, 1] = labels[1, 0] = labels[1, 2] = -1
    together = segmenter.decode(embeddings, POINTS, labels)
    for row in range(2):
        kept = labels[row] >= 0
        alone = segmenter.decode(embeddings[row : row + 1], POINTS[row : row + 1, kept], labels[row : row + 1, kept])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)
    moved = segmenter.decode(embeddings, np.where(labels[..., None] < 0, 7, POINTS), labels)
    torch.testing.assert_close(moved, together, atol=0, rtol=0)


def test_points_and_labels_matter_and_points_are_in_pixels_of_the_square_shown(segmenter, images):
    embeddings = segmenter.encode(images)
    expected = segmenter.decode(embeddings, POINTS, LABELS)
    torch.testing.assert_close(segmenter.decode(embeddings, POINTS * 2, LABELS, side=128), expected)
    for points, labels in ((POINTS[..., ::-1].copy(), LABELS), (POINTS, 1 - LABELS)):
        assert (segmenter.decode(embeddings, points, labels) - expected).abs().max() > 1e-3


def test_shapes_and_fingerprint_are_known_before_the_network_is_loaded(checkpoint, images):
    segmenter = KINDS[checkpoint.name](checkpoint, device="cpu")
    grid, packed = (8, 32) if checkpoint.name == "sam" else (4, 128)
    assert segmenter.input_size == 64 and segmenter.embedding_shape == (32, grid, grid)
    assert len(segmenter.fingerprint) == 16 and "network" not in vars(segmenter)
    embeddings = segmenter.encode(images)
    assert embeddings.shape == (2, packed, grid, grid)
    assert segmenter.spatial(embeddings).shape == (2, *segmenter.embedding_shape)


def test_what_a_policy_sees_is_the_coarsest_map_of_the_model(segmenter, images):
    own = segmenter.network.get_image_embeddings(segmenter.pixels(list(images)))
    coarse = own if isinstance(own, torch.Tensor) else own[-1]
    torch.testing.assert_close(segmenter.spatial(segmenter.encode(images)), coarse)


@pytest.mark.parametrize("checkpoint", ["sam2"], indirect=True)
def test_packing_loses_nothing_and_keeps_places(segmenter, images):
    own = segmenter.network.get_image_embeddings(segmenter.pixels(list(images)))
    for level, expected in zip(segmenter._unpack(segmenter.encode(images)), own, strict=True):
        torch.testing.assert_close(level, expected)
    # A cell of a finer map goes into the coarse cell above it.
    marked = torch.zeros(1, 128, 4, 4)
    marked[:, 32:, 1, 2] = 1
    fine, middle, coarse = segmenter._unpack(marked)
    assert [level.shape for level in (fine, middle, coarse)] == [(1, 4, 16, 16), (1, 8, 8, 8), (1, 32, 4, 4)]
    assert fine[:, :, 4:8, 8:12].min() == 1 and fine.sum() == 4 * 16
    assert middle[:, :, 2:4, 4:6].min() == 1 and middle.sum() == 8 * 4
    assert not coarse.any()


def test_embeddings_from_the_disk_decode_alike(segmenter, images, tmp_path):
    expected = segmenter.decode(EmbeddingCache(segmenter, folder=tmp_path)(images), POINTS, LABELS)
    reader = type(segmenter)(segmenter.folder, device="cpu")
    torch.testing.assert_close(
        segmenter.decode(EmbeddingCache(reader, folder=tmp_path)(images), POINTS, LABELS), expected, atol=0, rtol=0
    )
    assert "network" not in vars(reader)


def test_a_pickle_leaves_the_network_behind(segmenter, images):
    expected = segmenter.decode(segmenter.encode(images), POINTS, LABELS)
    content = pickle.dumps(segmenter)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert "network" not in vars(again) and again.fingerprint == segmenter.fingerprint
    torch.testing.assert_close(again.decode(again.encode(images), POINTS, LABELS), expected)


def test_the_network_is_frozen(segmenter):
    assert not segmenter.network.training
    assert not any(parameter.requires_grad for parameter in segmenter.network.parameters())


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_is_near_and_has_its_own_fingerprint(checkpoint, segmenter, images, dtype, share):
    half = KINDS[checkpoint.name](checkpoint, device="cpu", dtype=dtype)
    embeddings = half.encode(images)
    assert embeddings.dtype == getattr(torch, dtype) and half.fingerprint != segmenter.fingerprint
    logits = half.decode(embeddings, POINTS, LABELS)
    expected = segmenter.decode(segmenter.encode(images), POINTS, LABELS)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().mean() < share * expected.std()


def test_the_statistics_are_those_of_the_checkpoint(checkpoint, segmenter, images, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    other = KINDS[checkpoint.name](folder, device="cpu")
    assert other.fingerprint != segmenter.fingerprint
    shift = (torch.tensor([0.485, 0.456, 0.406]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.229, 0.224, 0.225])
    difference = other.pixels(list(images)) - segmenter.pixels(list(images))
    torch.testing.assert_close(difference, shift[None, :, None, None].expand(2, 3, 64, 64), atol=1e-5, rtol=0)


def test_an_image_processor_of_another_size_is_told(checkpoint, images, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": {name: 32 for name in settings["size"]}, "pad_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"gives \(32, 32\) pixels: expected 64 a side"):
        KINDS[checkpoint.name](folder, device="cpu").encode(images)


def test_missing_weights_are_refused_instead_of_drawn(checkpoint, images, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if "iou_token" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(mask_decoder.iou_token.weight\)"):
        KINDS[checkpoint.name](folder, device="cpu").encode(images)


@pytest.mark.parametrize("content", [None, b"garbage"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_broken_checkpoint_ends_with_one_line(checkpoint, images, tmp_path, name, content):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        KINDS[checkpoint.name](folder, device="cpu").encode(images)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_weights_with_nan_are_refused(checkpoint, images, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    name = next(name for name, value in state.items() if value.is_floating_point() and value.ndim > 1)
    state[name].view(-1)[0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="damaged: 1 with NaN or infinity"):
        KINDS[checkpoint.name](folder, device="cpu").encode(images)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_of_a_checkpoint_is_never_run_and_nobody_is_asked(checkpoint, images, tmp_path, name, monkeypatch):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    places = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer")
    content = json.loads((folder / name).read_text()) | {"auto_map": {place: "code.Trap" for place in places}}
    (folder / name).write_text(json.dumps({**content, "image_processor_type": "Trap", "model_type": "sam"}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked on the terminal"))
    try:
        SamHfSegmenter(folder, device="cpu").encode(images)
    except UserError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


def test_a_photo_that_leaves_no_pixel_of_a_side_is_named(tmp_path):
    model, processor = small_sam()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segmenter = SamHfSegmenter(tmp_path, device="cpu")
    with pytest.raises(UserError, match="SamImageProcessor refuses images of 900x2 pixels: ."):
        segmenter.pixels([np.zeros((2, 900, 3), np.uint8)])


def test_a_checkpoint_of_another_model_is_refused(checkpoint):
    other, expected = ("sam2", "sam2 or sam2_video") if checkpoint.name == "sam" else ("sam_hf", "sam")
    with pytest.raises(UserError, match=rf"holds a '{checkpoint.name}' model: expected {expected}$"):
        segmenters.make(other, checkpoint=checkpoint)


@pytest.mark.parametrize("checkpoint", ["sam2_video"], indirect=True)
def test_a_folder_as_published_names_the_former_image_processor(checkpoint, segmenter, images, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**settings, "image_processor_type": "Sam2ImageProcessorFast"})
    )
    other = Sam2Segmenter(folder, device="cpu")
    torch.testing.assert_close(other.pixels(list(images)), segmenter.pixels(list(images)))


def test_an_episode_of_point_prompting(segmenter):
    env = gym.make("maskgym/PointPrompt-v0", segmenter=segmenter, image_size=64, patch_size=8, horizon=3)
    observation, _ = env.reset(seed=0)
    assert observation["state"].shape == (segmenter.embedding_shape[0], 8, 8)
    assert env.unwrapped.vector.unprompted()["state"][0].shape == observation["state"].shape
    for step in range(3):
        observation, reward, terminated, truncated, info = env.step((9 * step, 1))
        assert env.observation_space.contains(observation) and reward in (-1, 1)
        assert (terminated, truncated) == (False, step == 2)
    assert info["masks"][0].any()
