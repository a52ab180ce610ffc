from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.detectors import Found, HubDetector, box_iou, make_detectors, merge

SIZE = (100, 200)


def found(detector, box, category="cat", score=0.9):
    return Found(detector, tuple(map(float, box)), category, score)


def test_one_object_seen_twice_is_one_with_both_scores():
    merged = merge(
        [
            found("a", (10, 10, 50, 50), score=0.7),
            found("b", (12, 10, 52, 50), " Cat ", 0.8),
            found("a", (11, 10, 51, 50), score=0.6),
            found("b", (10, 10, 50, 50), "dog", 0.5),
            found("b", (110, 10, 150, 50), score=0.55),
        ],
        SIZE,
        overlap=0.6,
        min_side=8,
    )
    assert [(one.category, one.score) for one, _ in merged] == [("Cat", 0.8), ("cat", 0.55), ("dog", 0.5)]
    assert merged[0][1] == {"b": 0.8, "a": 0.7} and merged[0][0].box == (12, 10, 52, 50)


def test_how_much_overlap_makes_one_object_is_a_setting():
    pair = [found("a", (0, 0, 40, 40)), found("b", (20, 0, 60, 40), score=0.8)]  # an IoU of one third
    assert box_iou(pair[0].box, pair[1].box) == pytest.approx(1 / 3)
    assert [len(merge(pair, SIZE, overlap, 8)) for overlap in (0.3, 0.34)] == [1, 2]


def test_annotations_suppress_detections_but_not_each_other():
    true = [found("annotations", (0, 0, 40, 40), score=None), found("annotations", (1, 0, 41, 40), score=None)]
    merged = merge([found("a", (0, 0, 40, 40), score=1.0), *true], SIZE, 0.6, 8)
    assert [one.detector for one, _ in merged] == ["annotations"] * 2
    assert merged[0][1] == {"annotations": None, "a": 1.0}


def test_boxes_are_cut_to_the_image_and_specks_left_out():
    boxes = [(-5, 90, 250, 120), (10, 10, 17, 50), (210, 10, 260, 50), (30, 30, 30, 60)]
    assert [one.box for one, _ in merge([found("a", box) for box in boxes], SIZE, 0.6, 8)] == [(0, 90, 200, 100)]
    assert len(merge([found("a", (10, 10, 17, 50))], SIZE, 0.6, 7)) == 1
    assert merge([found("annotations", (1, 1, 3, 3), score=None)], SIZE, 0.6, 8) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a folder with a YOLOS of random weights."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=6,
        id2label={0: "cat", 1: "N/A", 2: "dog"},
        label2id={"cat": 0, "N/A": 1, "dog": 2},
    )
    folder = tmp_path_factory.mktemp("detector") / "yolos"
    model = YolosForObjectDetection(config)
    with torch.no_grad():  # so that categories, scores and boxes differ
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        model.class_labels_classifier.layers[-1].bias.copy_(torch.tensor([1.0, 1.0, 1.0, -3.0]))
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return folder


def test_a_detector_of_transformers_agrees_with_its_pipeline(checkpoint):
    from PIL import Image
    from transformers import pipeline

    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mine = HubDetector(str(checkpoint), threshold=0.2, device="cpu").detect(None, None, image)
    own = pipeline("object-detection", model=str(checkpoint), device="cpu")(Image.fromarray(image), threshold=0.2)
    own = [one for one in own if one["label"] != "N/A"]
    assert len(own) > 0 and sorted(one.category for one in mine) == sorted(one["label"] for one in own)
    for a, b in zip(sorted(mine, key=lambda one: -one.score), own, strict=True):
        assert a.score == pytest.approx(b["score"], abs=1e-3)
        assert a.box == pytest.approx(tuple(b["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")), abs=1.01)


def test_the_threshold_is_part_of_who_a_detector_is(checkpoint):
    low, high = (HubDetector(str(checkpoint), threshold, "cpu") for threshold in (0.2, 0.9))
    assert low.identity != high.identity
    image = np.zeros((48, 64, 3), np.uint8)
    assert len(high.detect(None, None, image)) < len(low.detect(None, None, image))


def test_detectors_that_are_none(tmp_path, checkpoint):
    with pytest.raises(UserError, match="expected each name once"):
        make_detectors(["annotations", "annotations"], 0.5, None)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="holds a 'clip' model: expected .*yolos"):
        make_detectors([str(tmp_path)], 0.5, None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as the config of a model"):
        make_detectors([str(tmp_path)], 0.5, None)
