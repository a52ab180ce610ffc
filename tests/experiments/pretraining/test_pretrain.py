"""The script that makes the embedded models: a step of what is quick enough, and what its batches hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS, instruction
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.pretraining import clip, loop, pretrain, words
from maskgym.experiments.pretraining import policy as policy_recipe
from maskgym.experiments.pretraining import refer_policy as refer_recipe
from maskgym.experiments.pretraining import saliency as saliency_recipe
from maskgym.experiments.pretraining import sam as sam_recipe
from maskgym.policies.needs.vst_layers import Predictions
from maskgym.policies.text import mllm
from maskgym.rewards import FORMS, parse_objects, without_reasoning
from maskgym.segmenters.attention.clip_surgery import ClipSurgery
from maskgym.segmenters.points.sam import SamSegmenter, sam_tiny


def test_a_caption_fits_the_scene_it_was_drawn_for():
    rng, texts = np.random.default_rng(0), set()
    for index in range(50):
        objects = Scenes("shadow", "train").scene(index).objects
        for effect in ("", "shadow"):
            caption = clip.draw_caption(objects, effect, rng)
            assert caption.fits(objects, effect)
            texts.add(caption.text)
    assert {"", "shadow"} < texts


@pytest.mark.parametrize(
    ("effect", "fits"), [("", [True, False, True]), ("glass", [True, True, True]), ("blur", [True, False, True])]
)
def test_what_fits_is_what_is_there(effect, fits):
    objects = Scenes("sis", "train").scene(0).objects
    captions = [
        clip.Caption(""),
        clip.Caption("glass", effect="glass"),
        clip.Caption("", objects[0], ("shape", "colour")),
    ]
    assert [caption.fits(objects, effect) for caption in captions] == fits
    assert not captions[2].fits([item for item in objects if item.shape != objects[0].shape], effect)


def test_the_loss_is_that_of_clip_where_each_fits_one():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4)
    expected = torch.nn.functional.cross_entropy(logits, index) + torch.nn.functional.cross_entropy(logits.T, index)
    torch.testing.assert_close(clip.caption_loss(logits, torch.eye(4, dtype=torch.bool)), expected / 2)


def test_what_fits_equally_is_told_apart_by_nothing():
    fits = torch.tensor([[True, True, False], [False, False, True]])
    even = torch.where(fits, 50.0, -50.0)
    torch.testing.assert_close(clip.caption_loss(even, fits), torch.tensor(np.log(2) / 4, dtype=torch.float32))


def test_a_region_fits_what_is_in_it():
    pool = clip.CaptionPool.render(7)
    batch = pool.batch(np.random.default_rng(0), 4, 6)
    assert batch.pixels.shape == (4, 3, 128, 128) and batch.fits.shape == (4, 24)
    assert batch.region_fits.shape == (len(batch.images), 24) and batch.shares.shape == (len(batch.images), 64)
    assert 0 <= batch.shares.min() and batch.shares.max() == 1
    # What fits a region fits its image; every text fits some image, and some texts miss each region.
    assert (batch.region_fits <= batch.fits[batch.images]).all()
    assert batch.fits.any(dim=0).all() and not batch.region_fits.all(dim=1).any()


def test_a_step_of_clip_leaves_a_model_that_clip_surgery_loads(tmp_path):
    command = ["clip", str(tmp_path), "--steps", "1", "--scenes", "7", "--images", "4", "--captions", "2"]
    pretrain.main(command)
    segmenter = ClipSurgery(tmp_path / "clip_tiny", templates=["{}"], device="cpu")
    sample = Scenes("shadow", "train")[0]
    maps = segmenter.attend([sample.images[0]] * 2, ["shadow", "a red star"], size=(16, 16))
    assert maps.shape == (2, 16, 16)
    assert np.abs(maps[0] - maps[1]).max() > 0.01
    assert 1.5e6 < sum(value.numel() for value in segmenter.network.parameters()) < 2.5e6
    # Every word is known, and CLIP finds the end of a text where the tokenizer put it.
    ids = segmenter.tokenizer(["a red star", "shadow"]).input_ids
    assert not any(segmenter.tokenizer.unk_token_id in row for row in ids)
    assert {row[-1] for row in ids} == {segmenter.config.text_config.eos_token_id}
    trained = segmenter.fingerprint
    pretrain.main(command)  # nothing is left to train, and the same weights are written
    assert ClipSurgery(tmp_path / "clip_tiny", templates=["{}"], device="cpu").fingerprint == trained


def test_simulated_clicks_say_what_is_under_them():
    generator = torch.Generator().manual_seed(0)
    sam = sam_tiny(device="cpu").network
    truth = torch.zeros(3, 48, 48, dtype=torch.bool)
    truth[:, 10:30, 5:20] = True
    embeddings = sam.image_encoder(torch.randn(3, 3, 96, 96, generator=generator))
    points, labels = sam_recipe.simulate_clicks(sam, embeddings, truth, 3, generator)
    assert points.shape[:2] == labels.shape and labels[:, :2].tolist() == [[1, 0]] * 3
    cells = (points / 2).long()
    for row in range(3):
        assert truth[row, cells[row, :, 1], cells[row, :, 0]].tolist() == labels[row].bool().tolist()


def test_boxes_hold_their_regions_exactly_or_nearly():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(400, 48, 48, dtype=torch.bool)
    truth[:, 10:30, 5:25] = True
    boxes = sam_recipe.draw_boxes(truth, generator)
    exact = torch.tensor([10.0, 20.0, 50.0, 60.0])
    distances = (boxes - exact).abs().amax(dim=1)
    assert 0.4 < (distances == 0).float().mean() < 0.6 and 3 < distances.max() <= 4  # a tenth of 40 pixels
    truth[:] = True
    assert (sam_recipe.draw_boxes(truth, generator) <= 96).all() and (
        sam_recipe.draw_boxes(truth, generator) >= 0
    ).all()


def test_clicks_beside_a_box_begin_with_none():
    generator = torch.Generator().manual_seed(0)
    sam = sam_tiny(device="cpu").network
    truth = torch.zeros(2, 48, 48, dtype=torch.bool)
    truth[:, 10:30, 5:20] = True
    embeddings, boxes = torch.randn(2, 128, 12, 12, generator=generator), sam_recipe.draw_boxes(truth, generator)
    points, labels = sam_recipe.simulate_clicks(sam, embeddings, truth, 0, generator, boxes)
    assert points.shape == (2, 0, 2) and labels.shape == (2, 0)
    points, labels = sam_recipe.simulate_clicks(sam, embeddings, truth, 2, generator, boxes)
    assert points.shape[1] == labels.shape[1] >= 2


def test_regions_are_objects_alone_or_together_and_effects():
    pool = sam_recipe.RegionPool.render(6, 96)
    assert pool.images.shape == (6, 3, 96, 96)
    assert [len(regions) - objects for regions, objects in zip(pool.regions, pool.objects, strict=True)] == [0, 1] * 3
    pixels, masks = pool.batch(np.random.default_rng(0), 4, 2)
    assert pixels.shape == (4, 3, 96, 96) and masks.shape == (8, 48, 48) and 0 <= masks.min() < masks.max() <= 1


def test_a_step_of_sam_leaves_a_model_that_segments(tmp_path):
    pretrain.main(["sam", str(tmp_path), "--steps", "1", "--scenes", "6", "--images", "2", "--targets", "2"])
    segmenter = SamSegmenter(tmp_path / "sam_tiny", device="cpu")
    image = Scenes("sod", "test")[0].images[0]
    logits = segmenter.decode(segmenter.encode([image]), np.array([[[64.0, 64]]]), np.array([[1]]), side=128)
    assert logits.shape == (1, 48, 48)
    assert segmenter.fingerprint != sam_tiny(device="cpu").fingerprint


def test_looks_are_those_of_what_covers_a_cell():
    for index in range(20):
        scene = Scenes("sod", "train").scene(index)
        looks = saliency_recipe.looks_of(scene)
        assert looks.shape == (3, 16, 16)
        for row, column in np.ndindex(16, 16):
            cell = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            shares = scene.masks[cell].mean(axis=(1, 2))
            if shares.sum() <= 0.25:
                expected = [0, 0, 0]
            elif shares.max() < 0.5:
                expected = [-100] * 3
            else:
                item = scene.objects[int(np.argmax(shares))]
                expected = [1 + values.index(getattr(item, name)) for name, values in saliency_recipe.LOOKS.items()]
            if np.count_nonzero(shares == 0.5) < 2:  # two halves: either will do
                assert looks[:, row, column].tolist() == expected
        assert (looks.max(axis=(1, 2)) > 0).all()


def test_a_boundary_is_both_sides_of_a_change():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 2:, 2:] = 1
    expected = torch.zeros(6, 6)
    expected[1:3, 1:] = 1
    expected[1:, 1:3] = 1
    torch.testing.assert_close(saliency_recipe.boundary(mask)[0, 0], expected)
    assert not saliency_recipe.boundary(torch.ones(1, 1, 6, 6)).any()  # the frame is none


def test_the_loss_of_saliency_is_least_at_the_truth():
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 8:24, 16:] = 1
    edges = saliency_recipe.boundary(masks)

    def at(confidence, sizes=(16, 8, 4, 1)):
        pool, most = torch.nn.functional.avg_pool2d, torch.nn.functional.max_pool2d
        saliency = [confidence * (2 * pool(masks, size) - 1) for size in sizes]
        contours = [confidence * (2 * most(edges, size) - 1) for size in sizes]
        return saliency_recipe.saliency_loss(Predictions(saliency, contours, masks), masks)

    # At 0 each of eight maps costs log 2, weighted by 0.5, 0.5, 0.8 and 1 in each of the two tasks.
    torch.testing.assert_close(at(0.0), torch.tensor(2 * 2.8 * np.log(2), dtype=torch.float32))
    assert at(3.0) < at(0.0) < at(-3.0)


def test_the_loss_of_looks_weighs_objects_as_much_as_the_rest():
    looks = torch.zeros(1, 3, 4, 4, dtype=torch.long)
    looks[:, :, 0, 0], looks[:, :, 0, 1] = 1, -100
    logits = [torch.zeros(1, classes, 4, 4) for classes in saliency_recipe.CLASSES]
    even = np.mean([np.log(classes) for classes in (7, 7, 4)])
    torch.testing.assert_close(saliency_recipe.looks_loss(logits, looks), torch.tensor(even, dtype=torch.float32))
    for part in logits:
        part[:, 0] = 50.0  # nothing, everywhere: right in fourteen cells, and dearly wrong in one
        part[:, 1, 0, 1] = 99.0  # a cell that does not count
    torch.testing.assert_close(saliency_recipe.looks_loss(logits, looks), torch.tensor(25.0))


def test_a_step_of_saliency_leaves_weights_that_the_backbone_loads(tmp_path, monkeypatch):
    command = ["saliency", str(tmp_path), "--steps", "1", "--scenes", "4", "--images", "2"]
    pretrain.main(command)
    file = tmp_path / "vst_tiny" / "model.safetensors"
    assert file.stat().st_size < 4e6
    monkeypatch.setattr("maskgym.policies.needs.vst.EMBEDDED", file)
    backbone = policies.make_backbone("vst_tiny").eval()
    trained = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert {name for name in trained if not name.startswith("backbone.")} == {
        f"{head}_looks.{name}.{kind}"
        for head in ("encoder", "decoder")
        for name in ("norm", "classify")
        for kind in ("weight", "bias")
    }
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, trained[f"backbone.{name}"], atol=1e-3, rtol=1e-3)
    written = file.read_bytes()
    pretrain.main(command)  # nothing is left to train, and the same weights are written
    assert file.read_bytes() == written


def test_a_step_of_swin_leaves_a_backbone_to_compare_with(tmp_path):
    pretrain.main(["saliency", str(tmp_path), "--backbone", "swin", "--steps", "1", "--scenes", "4", "--images", "2"])
    folder = tmp_path / "swin_tiny"
    given = {"pretrained": False, "width": 64, "weights": folder / "backbone.safetensors"}
    backbone = policies.make_backbone("swin", checkpoint=folder, **given).eval()
    trained = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, trained[f"backbone.{name}"].to(value.dtype), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("backbone", ["vst", "swin"])
def test_saliency_trains_every_weight_of_the_backbone(backbone, tmp_path):
    torch.manual_seed(0)
    vst, pool = saliency_recipe.VSTApprentice(), saliency_recipe.SaliencyPool.render(2)
    model = vst if backbone == "vst" else saliency_recipe.SwinApprentice(tmp_path)
    pixels, masks, looks = pool.batch(np.random.default_rng(0), 2)
    assert pixels.shape == (2, 3, 128, 128) and 0 <= pixels.min() < pixels.max() <= 1
    found, loss, seen = model(pixels, masks)
    assert found.shape == masks.shape and [part[0].shape[2:] for part in seen] == [(16, 16)] * 2
    loss = loss + sum(saliency_recipe.looks_loss(logits, looks) for logits in seen)
    loss.backward()
    idle = [name for name, weights in model.named_parameters() if weights.grad is None or not weights.grad.any()]
    assert idle == []


@pytest.mark.parametrize("task", INSTRUCTIONS)
@pytest.mark.parametrize("reasoning", [True, False])
def test_the_embedded_tokenizer_knows_every_instruction(task, reasoning):
    made = policy_recipe.policy_tokenizer()
    shipped = policies.make("qwen2_5_vl_tiny", device="cpu").processor.tokenizer
    assert made.get_vocab() == shipped.get_vocab()
    ids = shipped(instruction(task, reasoning)).input_ids
    assert ids and shipped.unk_token_id not in ids


@pytest.mark.parametrize("task", INSTRUCTIONS)
@pytest.mark.parametrize("reasoning", [True, False])
def test_the_labels_of_the_policy_are_the_text_to_imitate(task, reasoning):
    _, processor = policy_recipe.tiny_policy(policy_recipe.policy_tokenizer())
    samples = [Scenes(task, "train")[index] for index in range(3)]
    batch = policy_recipe.answers_batch(processor, samples, task, reasoning)
    for sample, labels in zip(samples, batch["labels"], strict=True):
        wanted = sample.rationale if reasoning else without_reasoning(sample.rationale)
        assert labels[labels >= 0].tolist() == processor.tokenizer(f"{wanted}<|im_end|>").input_ids


def weights(folder):
    return policies.make("qwen2_5_vl", path=folder / "qwen2_5_vl_tiny", device="cpu").model.state_dict()


def test_policies_with_and_without_reasoning_share_all_but_the_last_quarter(tmp_path):
    command = ["policy", "--steps", "4", "--vision-steps", "1"]
    pretrain.main([*command, str(tmp_path / "with")])
    pretrain.main([*command, "--no-reasoning", str(tmp_path / "without")])
    (tmp_path / "branch").mkdir()
    base, again = (torch.load(tmp_path / name / "base.pt", weights_only=True) for name in ("with", "without"))
    assert base["step"] == again["step"] == 3
    torch.testing.assert_close(base["model"], again["model"], rtol=0, atol=0)
    (tmp_path / "with" / "base.pt").rename(tmp_path / "branch" / "state.pt")
    pretrain.main([*command, "--no-reasoning", str(tmp_path / "branch")])
    torch.testing.assert_close(weights(tmp_path / "branch"), weights(tmp_path / "without"), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights(tmp_path / "with"), weights(tmp_path / "without"))


@pytest.mark.parametrize("form", FORMS)
def test_the_policy_of_queries_imitates_answers_of_every_form(form):
    tokenizer = refer_recipe.refer_tokenizer()
    shipped = policies.make("qwen2_5_vl_tiny_refer", device="cpu").processor
    assert tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    env = refer_recipe.environments("varied")[form]
    shown, infos = env.reset(options={"index": np.arange(env.num_envs)})
    observations = [{name: value[i] for name, value in shown.items()} for i in range(4)]
    batch = refer_recipe.answers_batch(shipped, observations, infos["rationale"][:4])
    assert not (batch["input_ids"] == shipped.tokenizer.unk_token_id).any()
    for answer, labels in zip(infos["rationale"][:4], batch["labels"], strict=True):
        assert labels[labels >= 0].tolist() == shipped.tokenizer(f"{answer}<|im_end|>").input_ids
        text = shipped.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
        assert parse_objects(text, form).objects == parse_objects(answer, form).objects  # tokens lose nothing


def test_the_policy_of_queries_learns_every_form():
    forms = Counter(map(refer_recipe.form_of, range(120)))
    assert forms == {"boxes": 60, "points": 20, "boxes_points": 20, "phrases": 20}


def test_a_step_of_the_policy_of_queries_leaves_one_that_loads(tmp_path):
    pretrain.main(["refer_policy", "--steps", "2", "--vision-steps", "1", str(tmp_path)])
    made = policies.make("qwen2_5_vl", path=tmp_path / "qwen2_5_vl_tiny_refer", device="cpu")
    assert sum(value.numel() for value in made.model.parameters()) < 2.25e6  # 4.5 MB in half precision


def test_a_step_of_the_terse_policy_leaves_one_that_loads_with_the_vision_of_the_tiny_one(tmp_path):
    pretrain.main(["terse_policy", "--steps", "1", str(tmp_path)])
    made = policies.make("qwen2_5_vl", path=tmp_path / "qwen2_5_vl_tiny_terse", device="cpu").model.state_dict()
    tiny = policies.make("qwen2_5_vl_tiny", device="cpu").model.state_dict()
    changed = {name for name in tiny if not torch.equal(tiny[name], made[name])}
    assert changed == {name for name in changed if "language_model" in name or name.startswith("lm_head")} != set()


def test_the_terse_policy_is_small_and_hardly_says_where_an_object_is():
    folder = mllm.TINY_TERSE
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.8e6
    assert not any(name.startswith("visual.") for name in load_file(folder / "language.safetensors"))
    env = ReasoningVectorEnv(64, "sis", {"name": "scenes", "level": "discovery"}, split="test", reward="iou")
    shown, _ = env.reset(options={"index": np.arange(64)})
    answers = {
        name: policies.make(name, device="cpu").generate(
            [{key: value[i] for key, value in shown.items()} for i in range(64)]
        )
        for name in ("qwen2_5_vl_tiny", "qwen2_5_vl_tiny_terse")
    }
    placed = {
        name: np.mean([" at " in text.partition("</think>")[2] for text in texts]) for name, texts in answers.items()
    }
    assert placed["qwen2_5_vl_tiny_terse"] < 0.05 < placed["qwen2_5_vl_tiny"]


def test_words_are_hidden_where_there_are_some():
    ids = torch.tensor([[0, 7, 8, 9, 2, 1], [0, 5, 3, 2, 1, 1]])
    rng = torch.Generator().manual_seed(0)
    times = torch.zeros_like(ids)
    for _ in range(200):
        shown, asked = words.mask_words(ids, ids == 1, mask_id=3, special=4, rng=rng)
        hidden = asked != words.UNASKED
        assert torch.equal(shown[hidden], torch.full_like(shown[hidden], 3)) and torch.equal(asked[hidden], ids[hidden])
        assert torch.equal(shown[~hidden], ids[~hidden])
        times += hidden
    assert torch.equal(times > 0, ids > 3)  # no special token, no padding
    assert 0.2 < times[times > 0].float().mean() / 200 < 0.4


def test_a_step_of_bert_leaves_an_encoder_of_needs(tmp_path):
    pretrain.main(["bert", str(tmp_path), "--steps", "2", "--scenes", "3", "--texts", "4"])
    encoder = policies.make_need_encoder("bert", checkpoint=tmp_path / "bert_tiny", device="cpu")
    features = encoder.encode(["find a red star", "find a blue star", ""])
    assert features.shape == (3, 3, 128) and not torch.allclose(features[0], features[1]) and not features[2].any()


def test_a_folder_holds_the_training_of_one_model(tmp_path, capsys):
    assert pretrain.main(["bert", str(tmp_path), "--steps", "1", "--scenes", "2", "--texts", "2"]) == 0
    assert pretrain.main(["bag_of_words", str(tmp_path), "--steps", "1", "--scenes", "7", "--images", "2"]) == 2
    assert "state.pt: holds another model" in capsys.readouterr().err
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    assert pretrain.main(["bert", str(tmp_path), "--steps", "2", "--scenes", "2", "--texts", "2"]) == 2
    assert "state.pt: damaged" in capsys.readouterr().err


def test_what_fits_nothing_adds_no_loss():
    logits, fits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3, 4) > 0
    fits[1] = False  # the second image fits no text; the second and the last text fit no image
    logs = (logits.log_softmax(1), logits.log_softmax(0))
    expected = sum(-(log[0, 0] + log[2, 2]) / count for log, count in zip(logs, (3, 4), strict=True)) / 2
    assert clip.caption_loss(logits, fits).item() == pytest.approx(expected.item())


def test_a_loss_that_is_no_number_stops_before_the_weights_change():
    layer = torch.nn.Linear(1, 1)
    before = layer.weight.clone()
    with pytest.raises(UserError, match="the loss is nan"):
        loop.descend(layer, torch.optim.SGD(layer.parameters(), lr=1.0), layer(torch.ones(1)).sum() * torch.nan)
    assert torch.equal(layer.weight, before)


def test_a_step_of_the_bag_of_words_changes_the_words_it_met(tmp_path):
    arguments = ["--steps", "1", "--scenes", "7", "--images", "2", "--captions", "2"]
    pretrain.main(["bag_of_words", str(tmp_path), *arguments])
    encoder = policies.make_need_encoder("bag_of_words", checkpoint=tmp_path / "bag_of_words")
    assert encoder.encode(["find a red star"]).shape == (1, 3, 128)
    assert encoder.fingerprint != policies.make_need_encoder("bag_of_words").fingerprint
