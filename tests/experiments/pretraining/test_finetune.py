"""Fine-tuning the mask decoder of a small EVF-SAM with random weights."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskgym import data
from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.experiments.pretraining.finetune import (
    finetune_mask_decoder,
    main,
    mask_loss,
    paired,
    phrase_masks,
    rationale_masks,
)
from maskgym.segmenters.phrases.beit3 import Beit3Config
from maskgym.segmenters.phrases.evf_sam import (
    EMBEDDED,
    EvfSam,
    EvfSamConfig,
    EvfSamSegmenter,
    SamConfig,
    evf_sam_tiny,
    save_checkpoint,
)
from maskgym.segmenters.text import word_tokenizer

CONFIG = EvfSamConfig(
    SamConfig(
        image_size=32,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        window_size=0,
        global_attention_layers=(),
        use_rel_pos=False,
        prompt_embed_dim=16,
        decoder_num_heads=2,
        decoder_mlp_dim=32,
        iou_head_dim=16,
    ),
    Beit3Config(
        image_size=16,
        patch_size=8,
        vocabulary_size=20,
        embed_dim=16,
        num_heads=2,
        feed_forward_dim=32,
        depth=1,
        max_text_positions=20,
    ),
)


class Halves(data.Dataset):
    """Images whose left half is bright; the phrases ask for either half."""

    task = "sis"
    split = "train"

    def __init__(self, size: int = 3, phrases: tuple[str, ...] | None = ("left", "right")) -> None:
        self.size = size
        self.phrases = phrases

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.size

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        left = np.zeros((20 + index, 24), bool)
        left[:, :12] = True
        image = np.where(left[..., None], 220, 30).astype(np.uint8).repeat(3, axis=2)
        phrases = None if self.phrases is None else (self.phrases,)
        masks = np.stack([left, ~left])[: len(self.phrases or "..")]
        return Sample(key=str(index), images=(image,), masks=(masks,), phrases=phrases)


@pytest.fixture
def real_data():
    """The folder of the real photographs: MASKGYM_DATA, else ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[4] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real photographs in {folder}: set MASKGYM_DATA")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> EvfSamSegmenter:
    """Return a segmenter with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    save_checkpoint(folder, EvfSam(CONFIG), word_tokenizer(["left right half"]))
    return EvfSamSegmenter(folder, device="cpu")


def test_only_the_mask_decoder_learns_and_the_loss_falls(start, tmp_path):
    dataset = Halves(phrases=("left",))
    losses = finetune_mask_decoder(start, dataset, tmp_path, steps=40, batch_size=2, learning_rate=3e-3)
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(2), abs=0.15)
    assert losses[-1] < 0.3 * losses[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (start.weights_file.parent, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("visual_model.mask_decoder.") for name in changed)
    sample = dataset[0]
    tuned = EvfSamSegmenter(tmp_path, device="cpu").segment(sample.images, sample.phrases)[0]
    assert ((tuned > 0.5) == sample.masks[0]).mean() > 0.9


def test_a_resumed_run_is_the_uninterrupted_one(start, tmp_path):
    arguments = {"batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 2}
    whole = finetune_mask_decoder(start, Halves(), tmp_path / "whole", steps=5, **arguments)
    finetune_mask_decoder(start, Halves(), tmp_path / "parts", steps=3, **arguments)
    parts = finetune_mask_decoder(start, Halves(), tmp_path / "parts", steps=5, **arguments)
    assert parts == whole
    file = tmp_path / "parts" / "training.pt"
    for damaged in (b"", file.read_bytes()[:-100], file.read_bytes().replace(b"optimizer", b"optimiser")):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged" / "training.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"training\.pt: "):
            finetune_mask_decoder(start, Halves(), tmp_path / "damaged", steps=5, **arguments)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(start, tmp_path):
    class Broken(Halves):
        broken = True

        def __getitem__(self, index: int) -> Sample:
            self.reads = getattr(self, "reads", 0) + 1
            if self.broken and self.reads == 4:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    dataset = Broken()
    whole = finetune_mask_decoder(start, Halves(), tmp_path / "whole", steps=5, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        finetune_mask_decoder(start, dataset, tmp_path / "parts", steps=5, batch_size=1, checkpoint_every=2)
    dataset.broken = False
    again = finetune_mask_decoder(start, dataset, tmp_path / "parts", steps=5, batch_size=1, checkpoint_every=2)
    assert again == whole
    assert dataset.reads == 4 + 3  # two of the three finished steps were saved


@pytest.mark.parametrize(
    "change", [{"batch_size": 1}, {"learning_rate": 1e-2}, {"seed": 1}], ids=lambda change: next(iter(change))
)
def test_each_setting_changes_the_run_and_a_run_keeps_its_settings(start, tmp_path, change):
    arguments = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3}
    base = finetune_mask_decoder(start, Halves(), tmp_path / "base", **arguments)
    other = finetune_mask_decoder(start, Halves(), tmp_path / "other", **{**arguments, **change})
    assert base != other
    with pytest.raises(UserError, match=f"{next(iter(change))}="):
        finetune_mask_decoder(start, Halves(), tmp_path / "base", **{**arguments, **change})


def test_the_loss_is_the_mean_over_scored_pixels(start):
    model = start.network
    sample = Halves()[0]
    masks = start.segment(sample.images, sample.phrases)[0].astype(np.float64)
    truth = sample.masks[0]
    entropy = -np.where(truth, np.log(masks), np.log(1 - masks))
    assert mask_loss(model, start, sample).item() == pytest.approx(entropy.mean(), abs=1e-5)
    void = np.zeros_like(truth[0])
    void[:, 5:] = True
    partly = Sample(sample.key, sample.images, sample.masks, void=(void,), phrases=sample.phrases)
    assert mask_loss(model, start, partly).item() == pytest.approx(entropy[:, :, :5].mean(), abs=1e-5)
    nothing = Sample(sample.key, sample.images, sample.masks, void=(np.ones_like(void),), phrases=sample.phrases)
    assert mask_loss(model, start, nothing).item() == 0


def test_equal_phrases_mean_the_union_and_images_without_phrases_are_left_out():
    image = np.zeros((2, 2, 3), np.uint8)
    masks = np.eye(4, dtype=bool)[:3].reshape(3, 2, 2)
    sample = Sample(
        "group",
        images=(image, image),
        masks=(np.zeros((0, 2, 2), bool), masks),
        phrases=((), ("[semantic]duck", "pond", "[semantic] duck")),
    )
    ((_, phrases, merged, scored),) = phrase_masks(sample)
    assert phrases == ["[semantic] duck", "pond"]
    assert merged.tolist() == [[[True, False], [True, False]], [[False, True], [False, False]]]
    assert scored.all()


def test_data_without_phrases_and_wrong_numbers_are_refused(start, tmp_path):
    with pytest.raises(UserError, match="sample '.': has no phrases"):
        finetune_mask_decoder(start, Halves(phrases=None), tmp_path)
    for name in ("steps", "batch_size", "checkpoint_every"):
        with pytest.raises(UserError, match=f"{name} 0: expected at least 1"):
            finetune_mask_decoder(start, Halves(), tmp_path, **{name: 0})


def test_the_command_trains_and_its_mistakes_are_one_line(start, tmp_path, capsys, registered):
    registered(data, "halves_for_finetune", Halves)
    base = [
        "data=halves_for_finetune",
        "data.size=2",
        "segmenter=evf_sam",
        f"segmenter.checkpoint={start.weights_file.parent}",
        "segmenter.device=cpu",
        "steps=2",
        "learning_rate=1e-3",  # which YAML takes for a text
    ]
    assert main([*base, f"out={tmp_path / 'out'}"]) == 0
    assert "in 2 steps" in capsys.readouterr().out
    assert EvfSamSegmenter(tmp_path / "out").fingerprint != start.fingerprint
    for wrong in ("wings=2", "data.wings=2", "segmenter.wings=2"):
        with pytest.raises(UserError, match="wings"):
            main([*base, f"out={tmp_path / 'out'}", wrong])
    with pytest.raises(UserError, match="out"):
        main(base)
    for wrong in ("steps", "policy.x=1", "steps=[1"):
        with pytest.raises(UserError, match="argument"):
            main([*base, wrong])


def test_a_decoder_begins_with_the_stored_weights_in_any_precision(tmp_path):
    segmenter = evf_sam_tiny(device="cpu", dtype="bfloat16")
    finetune_mask_decoder(
        segmenter, data.make("scenes", task="sis"), tmp_path, steps=1, batch_size=1, learning_rate=0.0
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (EMBEDDED, tmp_path))
    assert all(torch.equal(value.float(), after[name]) for name, value in before.items())


# --- Expressions of rationales ---------------------------------------------------------------------------------------

LEFT, RIGHT = np.eye(2, dtype=bool)[:, None, :].repeat(2, axis=1)  # columns of a picture of 2x2 pixels
ANSWERS = {
    "sod": "<rg>left</rg><rg>right</rg>",
    "sis": "<ins>right half</ins><ins>left half</ins>",
    "cosod": "<rg>[semantic] half</rg>",
}


def rationale(task: str) -> str:
    """Return a rationale of a task."""
    return f"<think>It stands out.</think><answer>{ANSWERS[task]}</answer>"


def of(task: str, images: int = 1) -> Sample:
    """Return a sample with a rationale, whose last image, of several, shows nothing."""
    masks = [np.stack([LEFT, RIGHT])] * images
    if images > 1:
        masks[-1] = np.zeros((0, 2, 2), bool)
    picture = np.zeros((2, 2, 3), np.uint8)
    return Sample("one", (picture,) * images, tuple(masks), rationale=rationale(task))


def test_an_answers_expressions_are_paired_with_the_truth_as_the_task_says():
    sure = torch.tensor([-4.0, 4.0])
    logits = torch.stack([sure[torch.from_numpy(mask).long()] for mask in (RIGHT, LEFT)])  # right first, as answered
    target = torch.from_numpy(np.stack([LEFT, RIGHT])).float()
    found, truth = paired(logits, target, "sis")
    assert torch.equal((found > 0).float(), truth) and len(truth) == 2
    found, truth = paired(logits, target, "sod")
    assert found.shape == truth.shape == (1, 2, 2) and truth.all() and (found == 4).all()
    found, truth = paired(logits[:1], target, "cosod")
    assert torch.equal(found, logits[:1]) and truth.shape == (1, 2, 2) and truth.all()
    assert paired(logits, target, None) == (logits, target)


def test_masks_without_a_pixel_above_the_threshold_are_matched_by_their_probabilities():
    logits = torch.stack([torch.tensor([-2.0, -1.0])[torch.from_numpy(mask).long()] for mask in (RIGHT, LEFT)])
    target = torch.from_numpy(np.stack([LEFT, RIGHT])).float()
    found, truth = paired(logits, target, "sis")
    assert torch.equal((found > -1.5).float(), truth)


def test_more_expressions_than_instances_leave_the_worst_out():
    logits = torch.stack([torch.full((2, 2), -5.0), torch.tensor([-4.0, 4.0])[torch.from_numpy(LEFT).long()]])
    found, truth = paired(logits, torch.from_numpy(LEFT[None]).float(), "sis")
    assert len(found) == len(truth) == 1 and torch.equal(found, logits[1:])


def test_the_expressions_are_those_of_the_rationale_for_every_image():
    ((_, phrases, masks, scored),) = rationale_masks(of("sis"), "sis")
    assert phrases == ["right half", "left half"] and masks.shape == (2, 2, 2) and scored.all()
    rows = list(rationale_masks(of("cosod", 3), "cosod"))
    assert [phrases for _, phrases, _, _ in rows] == [["[semantic] half"]] * 3
    assert rows[0][2].any() and not rows[2][2].any() and rows[2][2].shape == (1, 2, 2)
    with pytest.raises(
        UserError, match="sample 'one': its rationale has not the form of an answer for sod: str '<think>"
    ):
        list(rationale_masks(of("sis"), "sod"))


@pytest.mark.parametrize(("task", "images"), [("sod", 1), ("sis", 1), ("cosod", 2)])
def test_the_loss_of_an_answer_is_the_cross_entropy_of_its_pairs(start, task, images):
    sample, model = of(task, images), start.network
    expressions = [names for _, names, _, _ in rationale_masks(sample, task)]
    values = []
    for masks, found in zip(sample.masks, start.segment(sample.images, expressions), strict=True):
        union = masks.any(axis=0) if len(masks) else np.zeros((2, 2), bool)
        if task == "sis":
            options = [(found, masks), (found, masks[::-1])]
            pairs = min(
                options,
                key=lambda pair: -sum((p * t).sum() / (p + t - p * t).sum() for p, t in zip(*pair, strict=True)),
            )
        else:
            pairs = (found.max(axis=0)[None], union[None])
        probability, truth = (np.asarray(side, np.float64) for side in pairs)
        values += list(-(truth * np.log(probability) + (1 - truth) * np.log(1 - probability)).mean(axis=(1, 2)))
    assert mask_loss(model, start, sample, task).item() == pytest.approx(np.mean(values), abs=1e-4)


def test_the_command_takes_rationales_of_every_task_and_refuses_samples_without(start, tmp_path, capsys):
    more = [f"segmenter.checkpoint={start.weights_file.parent}", "segmenter.device=cpu", "segmenter=evf_sam", "steps=2"]
    scenes = "data.readers.scenes={size: 3, image_size: 32}"
    asked = ["data.sod=scenes", "data.sis=scenes", "data.cosod=scenes", scenes, "group_size=2"]
    assert main([*more, *asked, f"out={tmp_path / 'out'}"]) == 0
    assert "in 2 steps" in capsys.readouterr().out
    state = torch.load(tmp_path / "out" / "training.pt", weights_only=True)
    assert state["settings"]["samples"] == 9
    with pytest.raises(UserError, match=r"data\.foo"):
        main([*more, *asked, "data.foo=1", f"out={tmp_path / 'other'}"])


def test_real_photographs_without_phrases_are_trained_on_by_their_rationales(tmp_path, real_data, capsys):
    rows = []
    for task, name in (("sod", "real_sod"), ("sis", "real_sis"), ("cosod", "real_cosod")):
        size = {"group_size": 2} if task == "cosod" else {}
        dataset = data.make("tasks", task=task, root=real_data, **{task: name}, **size)
        rows += [{"key": key, "task": task, "rationale": rationale(task)} for key in dataset.keys[:3]]
    file = tmp_path / "rationales.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    named = [
        "data.sod=real_sod",
        "data.sis=real_sis",
        "data.cosod=real_cosod",
        f"data.root={real_data}",
        "group_size=2",
    ]
    asked = [*named, "segmenter.device=cpu", "steps=3", "batch_size=2", f"out={tmp_path / 'out'}"]
    assert main([*asked, f"data.rationales={file}"]) == 0
    assert "loss" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(UserError, match=r"data\.sod: has samples without a rationale: expected data\.rationales=FILE"):
        main(asked)
    file.write_text(json.dumps({"key": "no such photo", "task": "sod", "rationale": rationale("sod")}))
    with pytest.raises(UserError, match="none of them for the"):
        main([*asked, f"data.rationales={file}"])
