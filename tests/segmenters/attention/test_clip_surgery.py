"""CLIP Surgery against values of the reference implementation (see parity/clip_surgery_tiny.json for their source)."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from maskgym import segmenters
from maskgym.errors import UserError
from maskgym.segmenters.attention.clip_surgery import (
    TEMPLATES,
    ClipSurgery,
    embed,
    encode_text,
    extreme_points,
    project,
    set_similarity,
    surgered_layer,
    surgered_tokens,
    to_maps,
)

PARITY = Path(__file__).parent / "parity"
ABOUT = json.loads((PARITY / "clip_surgery_tiny.json").read_text())
TEXTS, BLOCKS = ABOUT["config"]["n_texts"], ABOUT["config"]["surgered_blocks"]
PIXELS = {"base": "pixels", "hi": "pixels_hi", "batch2": "pixels_batch2"}
PARTS = {  # OpenAI's names within a block, and those of transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def to_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a state dict of OpenAI CLIP to the names of transformers."""
    state = {}
    for name, value in weights.items():
        if name in WHOLE:
            state[WHOLE[name]] = value
        elif name in TRANSPOSED:
            state[TRANSPOSED[name]] = value.T
        else:
            tower, _, rest = name.partition("transformer.resblocks.")
            number, _, rest = rest.partition(".")
            block = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            part, _, kind = rest.rpartition(".")
            if kind.startswith("in_proj_"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    state[f"{block}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = third
            else:
                state[f"{block}.{PARTS[part]}.{kind}"] = value
    return state


@pytest.fixture(scope="module")
def model():
    """Load the stored tiny CLIP; the names must agree one by one."""
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**ABOUT["transformers_config"])).eval().requires_grad_(False)
    model.load_state_dict(to_transformers(load_file(PARITY / "clip_surgery_tiny.safetensors")), strict=True)
    return model


class Stored(dict):
    """The stored tensors by name; what `same` has compared is noted."""

    compared: set[str]

    def same(self, name: str, value: torch.Tensor) -> None:
        self.compared.add(name)
        tolerance = ABOUT["tolerance"] if value.is_floating_point() else {"atol": 0, "rtol": 0}
        atol, rtol = tolerance["atol"], tolerance["rtol"]
        torch.testing.assert_close(value, self[name], atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")


@pytest.fixture(scope="module")
def io():
    """Load the stored tensors; at the end every output must have been compared."""
    stored = Stored(load_file(PARITY / "clip_surgery_tiny_io.safetensors"))
    stored.compared = set()
    return stored


def check_maps(io: Stored, case: str, kind: str, similarity: torch.Tensor) -> None:
    """Compare similarities and everything that is made of them, where it is stored."""
    height, width = io["input.out_hw"].tolist()
    side = int((similarity.shape[1] - 1) ** 0.5)
    results = {
        "similarity": similarity,
        "minmax": to_maps(similarity, (side, side)).flatten(2).transpose(1, 2),
        "map": to_maps(similarity, (height, width)).permute(0, 2, 3, 1),
    }
    for name, value in results.items():
        if f"{case}.{kind}_{name}" in io:
            io.same(f"{case}.{kind}_{name}", value)


def check_texts(io: Stored, model) -> torch.Tensor:
    """Compare the features of the texts and of the empty one; return both, (n, C) and (1, C)."""
    raw = model.get_text_features(input_ids=io["input.text_ids"].long().flatten(0, 1)).pooler_output
    io.same("text.features_raw", raw.unflatten(0, (TEXTS, -1)))
    texts = torch.stack([encode_text(model, ids) for ids in io["input.text_ids"].long()])
    empty = encode_text(model, io["input.empty_text_ids"].long())[None]
    io.same("text.features", texts)
    io.same("text.redundant_features", empty)
    return texts, empty


def check_blocks(io: Stored, vision) -> None:
    """Compare both paths after every block."""
    original = embed(vision, io["input.pixels"])
    io.same("base.tokens_in", original)
    layers = list(vision.encoder.layers)
    for number, layer in enumerate(layers[:-BLOCKS]):
        original = layer(original, attention_mask=None)
        io.same(f"base.block_{number}.single_path", original)
    new = original
    for number, layer in enumerate(layers[-BLOCKS:], start=len(layers) - BLOCKS):
        original, new = surgered_layer(layer, original, new)
        io.same(f"base.block_{number}.original_path", original)
        io.same(f"base.block_{number}.new_path", new)


def check_points(io: Stored, case: str, similarity: torch.Tensor) -> None:
    """Compare the points of each text."""
    for number in range(TEXTS):
        points, labels = extreme_points(similarity[0, :, number], tuple(io["input.out_hw"].tolist()))
        io.same(f"{case}.points_{number}", points)
        io.same(f"{case}.point_labels_{number}", labels)


def test_every_stored_value_of_the_reference(io, model):
    texts, empty = check_texts(io, model)
    check_blocks(io, model.vision_model)
    for case, pixels in PIXELS.items():
        tokens = surgered_tokens(model.vision_model, io[f"input.{pixels}"], BLOCKS)
        raw = project(model, tokens)
        features = F.normalize(raw, dim=-1)
        io.same(f"{case}.image_features_raw", raw)
        io.same(f"{case}.image_features", features)
        check_maps(io, case, "plain", features @ texts.T)
        check_maps(io, case, "single", features @ (texts - empty).T)
        if case == "base":
            io.same("base.tokens_out", tokens)
        if case != "batch2":  # the reference's set mode takes one picture
            check_maps(io, case, "set", set_similarity(features, texts))
            check_points(io, case, features @ (texts - empty).T)
    older = io["base.image_features_raw"] / io["base.image_features_raw"].norm(dim=1, keepdim=True)
    io.same("token_axis.image_features", older)
    check_maps(io, "token_axis", "single", older @ (texts - empty).T)
    check_maps(io, "token_axis", "set", set_similarity(older, texts))
    assert io.compared == {name for name in io if not name.startswith("input.")}


def test_pictures_of_a_batch_do_not_see_each_other_in_a_set(io, model):
    texts, _ = check_texts(io, model)
    features = F.normalize(
        project(model, surgered_tokens(model.vision_model, io["input.pixels_batch2"], BLOCKS)), dim=-1
    )
    alone = torch.cat([set_similarity(features[i : i + 1], texts) for i in range(2)])
    torch.testing.assert_close(set_similarity(features, texts), alone, atol=1e-6, rtol=0)


def test_without_a_surgered_block_the_tokens_are_those_of_clip(io, model):
    tokens = surgered_tokens(model.vision_model, io["input.pixels"], 0)
    expected = model.vision_model(io["input.pixels"]).last_hidden_state
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_the_templates_are_eighty_five():
    assert len(set(TEMPLATES)) == len(TEMPLATES) == 85
    assert sum("scene" in template for template in TEMPLATES) == 5
    assert {"a photo of the hard to see {}.", "a origami {}.", "itap of my {}.", "the {} in a video game."} < {
        *TEMPLATES
    }


# --- the class, on a checkpoint of random weights ---------------------------------------------------------------------

PROMPTS = ("{}", "a {}")
SIDE = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, letters_tokenizer):
    """Write a folder with a small CLIP of random weights: 8 blocks, patches of 8, pictures of 32 pixels."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    end = len(letters_tokenizer) - 1
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 8}
    ids = {"vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**sizes, **ids, "num_hidden_layers": 2, "max_position_embeddings": 16},
        vision_config={**sizes, "num_hidden_layers": 8, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
        initializer_factor=3.0,
    )
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    letters_tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def surgery(checkpoint, **arguments) -> ClipSurgery:
    return ClipSurgery(checkpoint, **{"templates": PROMPTS, "device": "cpu", **arguments})


def expected_similarity(checkpoint, tokenizer, image, text, side=SIDE) -> torch.Tensor:
    """Compute similarities (1, 1 + N, 1) from the checkpoint step by step."""
    from transformers import CLIPModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    model = CLIPModel.from_pretrained(checkpoint).eval()
    square = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    pixels = torch.tensor((square - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        features = F.normalize(project(model, surgered_tokens(model.vision_model, pixels, 6)), dim=-1)
        ids = [tokenizer([p.format(t) for p in PROMPTS], padding=True, return_tensors="pt") for t in (text, "")]
        named, empty = (encode_text(model, batch["input_ids"]) for batch in ids)
    return features @ (named - empty)[None, :, None]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("side", [SIDE, 48])
def test_a_map_is_that_of_the_steps_one_by_one(checkpoint, two_images, letters_tokenizer, batch_size, side):
    segmenter = surgery(checkpoint, batch_size=batch_size, input_size=side)
    maps = segmenter.attend(two_images, ["cat", "a red  dog"])
    assert (maps.shape, maps.dtype) == ((2, side, side), np.float32)
    assert segmenter.input_size == side
    for image, text, mine in zip(two_images, ["cat", "a red dog"], maps, strict=True):
        similarity = expected_similarity(checkpoint, letters_tokenizer, image, text, side)
        np.testing.assert_allclose(mine, to_maps(similarity, (side, side))[0, 0], atol=1e-3)
        assert mine.max() - mine.min() > 0.5


def test_a_set_of_texts(checkpoint, two_images):
    segmenter = surgery(checkpoint)
    maps = segmenter.attend_set(two_images, ["cat", "dog", "bird"], size=(4, 4))
    assert (maps.shape, maps.dtype) == ((2, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(maps.min(axis=(2, 3)), 0)
    np.testing.assert_allclose(maps.max(axis=(2, 3)), 1, atol=1e-6)
    alone = segmenter.attend_set(two_images[1:], ["cat", "dog", "bird"], size=(4, 4))
    np.testing.assert_allclose(maps[1:], alone, atol=1e-4)
    other = segmenter.attend_set(two_images, ["cat", "dog", "fish"], size=(4, 4))
    assert not np.allclose(maps[:, 0], other[:, 0], atol=1e-3)


def test_the_size_of_a_map_and_no_images(checkpoint, two_images):
    segmenter = surgery(checkpoint)
    assert segmenter.attend(two_images, ["cat", "cat"], size=(5, 7)).shape == (2, 5, 7)
    assert segmenter.attend([], []).shape == (0, SIDE, SIDE)
    assert segmenter.attend_set([], ["cat", "dog"]).shape == (0, 2, SIDE, SIDE)


def test_a_map_without_differences_is_zero():
    assert not to_maps(torch.full((1, 5, 1), 0.3), (4, 4)).any()


def test_the_prefix_is_taken_off(checkpoint, two_images):
    maps = surgery(checkpoint).attend([two_images[0]] * 2, ["[semantic] cat", "cat"])
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)


def test_every_setting_changes_the_map_and_the_fingerprint(checkpoint, two_images):
    settings = [{}, {"surgered_blocks": 5}, {"templates": ["{}"]}, {"input_size": 64}, {"dtype": "bfloat16"}]
    made = [surgery(checkpoint, **setting) for setting in settings]
    assert len({segmenter.fingerprint for segmenter in made}) == len(settings)
    maps = [segmenter.attend(two_images, ["cat", "dog"], size=(8, 8)) for segmenter in made]
    assert all(np.abs(maps[0] - other).max() > 1e-4 for other in maps[1:])
    assert made[-1].network.dtype == torch.bfloat16
    assert np.abs(maps[0] - maps[-1]).mean() < 0.1


def test_each_text_is_encoded_once(checkpoint, two_images, monkeypatch):
    segmenter, calls = surgery(checkpoint), []
    encode = segmenter.network.get_text_features
    monkeypatch.setattr(segmenter.network, "get_text_features", lambda **inputs: calls.append(1) or encode(**inputs))
    segmenter.attend(two_images, ["cat", "cat"])
    segmenter.attend_set(two_images, ["dog", "cat"])
    assert len(calls) == 3  # cat, the empty text, dog


def test_loaded_parts_are_left_behind_and_the_network_is_frozen(checkpoint, two_images):
    segmenter = surgery(checkpoint)
    maps = segmenter.attend(two_images, ["cat", "dog"])
    assert not any(value.requires_grad or value.is_inference() for value in segmenter.network.parameters())
    packed = pickle.dumps(segmenter)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    assert "network" not in vars(copy)
    np.testing.assert_array_equal(copy.attend(two_images, ["cat", "dog"]), maps)


def test_settings_that_do_not_fit_are_refused(checkpoint):
    with pytest.raises(UserError, match="input_size 36: expected a multiple of the patch, 8 pixels"):
        surgery(checkpoint, input_size=36)
    with pytest.raises(UserError, match="surgered_blocks 9: expected 0 to 8"):
        surgery(checkpoint, surgered_blocks=9)
    for templates in ([], ["a photo"], "a {}"):
        with pytest.raises(UserError, match="templates .*: expected a list of texts"):
            surgery(checkpoint, templates=templates)


def test_what_cannot_be_attended_to_is_refused_in_one_line(checkpoint, two_images):
    segmenter = surgery(checkpoint)
    with pytest.raises(UserError, match="text 1 is empty"):
        segmenter.attend(two_images, ["cat", " [semantic] "])
    with pytest.raises(UserError, match="image 1 is float32 .*: expected uint8"):
        segmenter.attend([two_images[0], two_images[0].astype(np.float32)], ["cat", "dog"])
    with pytest.raises(UserError, match="image 0 is uint8 .*: expected uint8"):
        segmenter.attend_set([two_images[0][..., 0]], ["cat", "dog"])
    with pytest.raises(UserError, match="a set of 1 texts: expected at least two"):
        segmenter.attend_set(two_images, ["cat"])
    with pytest.raises(ValueError, match="2 images but 1 texts"):
        segmenter.attend(two_images, ["cat"])
    with pytest.raises(TypeError, match="one string"):
        segmenter.attend(two_images, "cat")
    assert "network" not in vars(segmenter)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_broken_checkpoint_ends_with_one_line(checkpoint, tmp_path, two_images, name):
    folder = shutil.copytree(checkpoint, tmp_path / "clip")
    for breaks in (lambda file: file.write_bytes(b"garbage"), Path.unlink):
        breaks(folder / name)
        with pytest.raises(UserError) as caught:
            surgery(folder).attend(two_images, ["cat", "dog"])
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_maps_of_attention_have_names_of_their_own(checkpoint, tmp_path):
    assert "clip_surgery" in segmenters.attention_names()
    assert "clip_surgery" not in segmenters.names()
    assert segmenters.make_attention("clip_surgery", checkpoint=checkpoint).input_size == SIDE
    with pytest.raises(UserError, match="unknown attention 'clip': expected one of clip_"):
        segmenters.make_attention("clip")
    with pytest.raises(UserError, match="neither a folder nor a model"):
        segmenters.make_attention("clip_surgery", checkpoint=tmp_path / "no" / "where")
    with pytest.raises(UserError, match="'clip' model: expected clipseg"):
        segmenters.make("clipseg", checkpoint=checkpoint)


def test_a_published_model_without_safetensors_is_fetched_as_it_is(checkpoint, tmp_path, monkeypatch):
    folder, asked = shutil.copytree(checkpoint, tmp_path / "clip"), []
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or folder
    )
    surgery("some/clip")
    assert asked[1:] == ["pytorch_model*.bin"]
    shutil.copy(checkpoint / "model.safetensors", folder)
    surgery("some/clip")
    assert len(asked) == 3
