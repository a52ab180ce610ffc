"""The recipe of VisionReasoner from end to end: miniatures of its models, and data in its official layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskgym.data.scenes import Scenes
from maskgym.experiments.evaluation import evaluate_command
from maskgym.experiments.reproduce.miniature_models import write_policy
from maskgym.experiments.reproduce.miniature_sets import polygon_of, save

PHOTO = "COCO_train2014_{:012d}.jpg"
SMALL = (
    *("env.image_size=84", "env.num_envs=2", "evaluation.samples=4", "evaluation.pictures=1"),
    *("algo.updates=2", "algo.batch_size=4", "algo.group_size=2", "algo.max_new_tokens=8"),
)
SPLITS = {"train": "train", "validation": "val", "test": "testA"}


def write_grefcoco(root: Path, per_split: int = 4) -> None:
    """Write scenes in the files of gRefCOCO: photos, ``instances.json`` and ``grefs(unc).json``; half mean nothing."""
    images, annotations, refs = [], [], []
    for place, (split, name) in enumerate(SPLITS.items()):
        scenes = Scenes("refer", split=split, size=400, image_size=96)
        samples = [scenes[index] for index in range(len(scenes))][:40]
        some = [one for one in samples if len(one.masks[0])][: per_split // 2]
        none = [one for one in samples if not len(one.masks[0])][: per_split // 2]
        for number, sample in enumerate([*some, *none], start=1 + 100 * place):
            save(root / "images" / "train2014" / PHOTO.format(number), sample.images[0])
            images.append({"id": number, "file_name": PHOTO.format(number), "height": 96, "width": 96})
            of_photo = {"image_id": number, "category_id": 1, "iscrowd": 0}
            own = [
                {"id": 1 + len(annotations) + k, **of_photo, **polygon_of(mask)}
                for k, mask in enumerate(sample.masks[0])
            ]
            annotations += own
            sentence = {"raw": sample.need, "sent": sample.need, "sent_id": number, "tokens": sample.need.split()}
            means = {"ann_id": [one["id"] for one in own] or [-1], "image_id": number, "ref_id": number}
            refs.append({**means, "split": name, "sentences": [sentence], "sent_ids": [number]})
    folder = root / "grefcoco"
    folder.mkdir()
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "grefs(unc).json").write_text(json.dumps(refs))


def write_sam2(folder: Path) -> None:
    """Write a SAM 2 with random weights, of the classes and files of the published folders."""
    import transformers

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [64, 64],
        "window_positional_embedding_background_size": [2, 2],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3],
    }
    sizes = {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = transformers.Sam2Config(
        vision_config={"backbone_config": backbone, **sizes, "fpn_hidden_size": 32},
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    transformers.Sam2Model(config).save_pretrained(folder)
    transformers.Sam2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Write the data set and both models; return the arguments of a run that name them."""
    root = tmp_path_factory.mktemp("visionreasoner")
    torch.manual_seed(0)
    write_grefcoco(root / "data")
    write_sam2(root / "sam2")
    write_policy(root / "qwen")
    return (
        *("experiment=visionreasoner", f"data.root={root}/data", f"segmenter.checkpoint={root}/sam2"),
        *("policy=qwen2_5_vl", f"policy.path={root}/qwen", "train_samples=2"),
    )


@pytest.mark.parametrize("weights", ["all", pytest.param("lora", marks=pytest.mark.e2e)])
def test_the_recipe_runs_and_is_scored_on_miniatures(parts, maskgym_run, tmp_path, weights):
    whole = ("policy.dtype=float32", "+algo.bf16=false")  # the processors of this machine may not compute in bfloat16
    status, _, error = maskgym_run(*parts, *SMALL, f"weights={weights}", *whole, f"out={tmp_path}/run")
    assert status == 0, error
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2 and {"reward", "instance_iou", "iou", "visionreasoner_accuracy"} <= set(
        results["after"]
    )
    data = results["provenance"]["train"]["refer"]
    assert (data["name"], data["samples"]) == ("grefcoco", 2)
    again, _ = evaluate_command.evaluate_again(tmp_path / "run")
    assert again["refer"].scores == pytest.approx(results["after"])


def test_true_boxes_and_points_earn_the_most_and_prompt_sam_2(parts, tmp_path, maskgym_run):
    without_recipe = [argument for argument in parts if argument.startswith(("data.root", "segmenter."))]
    given = ("env=refer", "env.form=boxes_points", "env.image_size=84", "data=grefcoco", "segmenter=sam2")
    status, _, error = maskgym_run(
        *given, *without_recipe, "reward=visionreasoner", "algo=oracle", f"out={tmp_path}/run"
    )
    assert status == 0, error
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "answers.jsonl").read_text().splitlines()]
    assert [row["after"]["reward"] for row in rows] == [7, 7, 2, 2]  # the last two mean nothing, and are answered so
    assert all(row["after"]["iou"] > 0 for row in rows)  # random weights draw some mask in every box
