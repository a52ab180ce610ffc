"""Folders of predictions: which file belongs to which sample, and what each kind measures."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskgym import data
from maskgym.data import Sample
from maskgym.data.layout.images import DataFault
from maskgym.errors import UserError
from maskgym.experiments.evaluation import predictions, presets, scoring
from maskgym.metrics import InstanceScores, RankingScores, ReferringScores, SaliencyScores, rank_map

PRESET = presets.find("pysodmetrics")


def write(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


def soft(rng, shape=(12, 16)):
    return rng.integers(0, 256, shape, dtype=np.uint8)


class Given(list):
    """A data set of samples that are given."""

    task, split = "sod", "test"


def test_a_prediction_is_found_by_its_key_or_the_last_part_of_it(tmp_path, rng):
    for name in ("a", "deep/b", "TE/c"):
        write(tmp_path / f"{name}.png", soft(rng))
    write(tmp_path / "spare.jpg", soft(rng))
    paths, notes = predictions.pair_up(tmp_path, ["a", "other/b", "TE/c"])
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["a.png", "deep/b.png", "TE/c.png"]
    assert notes == [f"{tmp_path}: 1 pictures belong to no sample and are left out: spare"]


def test_what_two_keys_end_in_stands_for_neither(tmp_path, rng):
    write(tmp_path / "1.png", soft(rng))
    write(tmp_path / "cat" / "2.png", soft(rng))
    with pytest.raises(UserError, match="no prediction for 2 of 3: cat/1, dog/1"):
        predictions.pair_up(tmp_path, ["cat/1", "dog/1", "cat/2"])


def test_two_predictions_of_one_sample_are_refused(tmp_path, rng):
    for name in ("old/a", "new/a", "old/b"):
        write(tmp_path / f"{name}.png", soft(rng))
    with pytest.raises(UserError, match=r"new/a\.png and .*old/a\.png: two predictions of 'x/a': expected one"):
        predictions.pair_up(tmp_path, ["x/a", "x/b"], partial=True)
    paths, notes = predictions.pair_up(tmp_path, ["old/a", "x/b"])  # a whole key means one file
    assert [path.parent.name for path in paths] == ["old", "old"] and "new/a" in notes[0]


def test_predictions_are_looked_at_like_masks(tmp_path, rng):
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:9] = 255
    truth = write(tmp_path / "gt" / "a.png", mask)
    full = write(tmp_path / "gt" / "full.png", mask | 255)
    path = tmp_path / "pred" / "a.png"

    def kinds(levels, truth=truth):
        pair = predictions.Pair("a", write(path, levels), truth)
        return [kind for kind, _ in predictions.Maps([pair], PRESET).measure(0)["notes"]]

    assert kinds(mask) == kinds(soft(rng)) == []
    assert kinds(mask & 0) == ["predictions of one level: no foreground"]
    assert kinds(mask, full) == ["masks of one level: all foreground"]
    assert kinds(mask // 255) == ["predictions of 2 levels (0, 1), perhaps of several classes"]
    (dim,) = kinds(mask.astype(np.uint16))
    assert dim.startswith("predictions of 16 bits without a level above 255, read as black")
    white = Image.new("RGB", (16, 12), "white")
    white.putalpha(Image.fromarray(mask))
    white.save(path)
    with pytest.raises(DataFault, match=r"a\.png: one colour and 2 levels of alpha"):
        predictions.read_map(path, mask.shape)
    scored = scoring.score(predictions.Maps([predictions.Pair("a", write(path, mask & 0), truth)], PRESET))
    assert scored.notes == ("1 predictions of one level: no foreground: a.png",)


def test_a_prediction_that_is_a_link_to_nothing_is_named(tmp_path):
    truth = write(tmp_path / "gt" / "a.png", np.eye(12, 16, dtype=np.uint8) * 255)
    (tmp_path / "a.png").symlink_to("gone.png")
    with pytest.raises(DataFault, match=r"a\.png: no such file"):
        scoring.score(predictions.Maps([predictions.Pair("a", tmp_path / "a.png", truth)], PRESET), folder=tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"3", b'{"key": "c", "masks": [], "scores": {}}'])
def test_lines_that_are_no_rows_are_named(tmp_path, content):
    file = tmp_path / "instances.jsonl"
    file.write_bytes(codecs.BOM_UTF8 + b'{"key": "a\xe2\x80\xa8b", "masks": []}\n' + content)
    with pytest.raises(UserError, match=r"instances\.jsonl: line 2: (not JSON|expected an object)"):
        predictions.read_lines(file)
    file.write_bytes(file.read_bytes().removesuffix(content))
    assert [*predictions.read_lines(file)] == ["a\u2028b"]


def test_what_is_missing_is_named_and_left_out_on_demand(tmp_path, rng):
    write(tmp_path / "A.png", soft(rng))
    write(tmp_path / "b.png", soft(rng))
    with pytest.raises(UserError, match=r"no prediction for 1 of 2: a \('A' differs in case\) \(--partial scores"):
        predictions.pair_up(tmp_path, ["a", "b"])
    paths, notes = predictions.pair_up(tmp_path, ["a", "b"], partial=True)
    assert paths == [None, tmp_path / "b.png"] and len(notes) == 2
    with pytest.raises(UserError, match="no prediction for 1 of 1: c$"):
        predictions.pair_up(tmp_path, ["c"], partial=True)


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path, lambda path: path / "file"])
def test_a_folder_without_pictures_is_refused(tmp_path, make):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected"):
        predictions.pair_up(make(tmp_path), ["a"])


def test_maps_are_measured_as_the_preset_says(tmp_path, rng):
    mask, levels = rng.random((12, 16)) > 0.6, soft(rng) // 2 + 40
    write(tmp_path / "gt" / "a.png", mask.astype(np.uint8) * 255)
    write(tmp_path / "pred" / "a.png", levels)
    pair = predictions.Pair("a", tmp_path / "pred" / "a.png", tmp_path / "gt" / "a.png")
    plain, stretched = levels / 255, (levels - levels.min()) / np.ptp(levels)
    for name, kinds in {
        "alignsam": (plain, plain),
        "usersod": (stretched, stretched),
        "cosod": (stretched, plain),
    }.items():
        work = predictions.Maps([pair], presets.find(name))
        scores, (row,) = work.summarise([json.loads(json.dumps(work.measure(0)))])
        for kind, names in zip(kinds, (("s_measure", "f_max", "weighted_f", "iou"), ("mae",)), strict=True):
            expected = SaliencyScores()
            expected.add(kind, mask)
            for measure in names:
                assert scores[measure] == pytest.approx(expected.result()[measure], abs=1e-7), (name, measure)
        assert row == {"key": "a", **scores}
    assert "weighted_f" not in predictions.Maps([pair], PRESET, weighted=False).measure(0)


def test_a_map_of_another_size_is_resized_and_noted(tmp_path, rng):
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    write(tmp_path / "gt.png", mask.astype(np.uint8) * 255)
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((15, 10), Image.Resampling.BILINEAR)
    small.save(tmp_path / "pred.png")
    row = predictions.Maps([predictions.Pair("a", tmp_path / "pred.png", tmp_path / "gt.png")], PRESET).measure(0)
    kind = "predictions are of another size than their masks"
    assert row["notes"][-1:] == [(kind, f"{tmp_path}/pred.png: 15x10, resized to its mask's 30x20")]
    assert row["iou"] > 0.8


def test_needs_have_the_measures_of_both_literatures(tmp_path, rng):
    scenes = data.make("scenes", task="need", split="test", size=4)
    files = [write(tmp_path / f"{index}.png", soft(rng, scenes[index].masks[0].shape[1:])) for index in range(4)]
    work = predictions.Needs(scenes, files, PRESET)
    scores, per_image = work.summarise([work.measure(index) for index in range(4)])
    expected, saliency = ReferringScores(), SaliencyScores()
    for index, file in enumerate(files):
        levels = np.asarray(Image.open(file))
        stretched = (levels - levels.min()) / np.ptp(levels)
        expected.add(stretched, scenes[index].union())
        saliency.add(stretched, scenes[index].union())
    assert scores["oiou"] == pytest.approx(expected.result()["oiou"])
    assert scores["miou"] == pytest.approx(expected.result()["miou"])
    assert scores["f_max"] == pytest.approx(saliency.result()["f_max"])
    assert [row["key"] for row in per_image] == [scenes[index].key for index in range(4)]


def test_what_two_empty_masks_score_is_the_presets_and_void_is_not_scored(tmp_path):
    image, void = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool)
    void[:, 3] = True
    mask = np.zeros((4, 4), bool)
    mask[:2] = True  # 6 pixels outside of void
    nothing = Sample("a", (image,), (np.zeros((0, 4, 4), bool),), need="a cat")
    dataset = Given([nothing, Sample("b", (image,), (mask[None],), (void,), need="it")])
    shown = np.zeros((4, 4), np.uint8)
    shown[:1], shown[:, 3] = 255, 255  # 3 of the 6 pixels, and the void
    files = [write(tmp_path / "a.png", np.zeros((4, 4), np.uint8)), write(tmp_path / "b.png", shown)]
    for name, miou in (("grefcoco", 0.75), ("seg_zero", 0.25), ("pysodmetrics", 0.75)):  # (empty + 3/6) / 2
        work = predictions.Needs(dataset, files, presets.find(name))
        scores, _ = work.summarise([work.measure(index) for index in range(2)])
        assert (scores["miou"], scores["oiou"], scores["n_acc"], scores["t_acc"]) == (miou, 0.5, 1, 1)


def test_the_iou_of_a_class_is_pooled_and_void_is_left_out(tmp_path):
    def sample(key, category, columns, void=None):
        mask = np.zeros((4, 4), bool)
        mask[:, :columns] = True
        return Sample(key, (np.zeros((4, 4, 3), np.uint8),), (mask[None],), void, category=category)

    void = np.zeros((4, 4), bool)
    void[3] = True
    dataset = Given([sample("a", "cat", 2), sample("b", "cat", 4), sample("c", "dog", 1, (void,))])
    everything = write(tmp_path / "all.png", np.full((4, 4), 255, np.uint8))
    half = write(tmp_path / "half.png", np.repeat(np.array([[255, 255, 0, 0]], np.uint8), 4, axis=0))
    work = predictions.Classes(dataset, [everything, half, half], PRESET)
    scores, rows = work.summarise([work.measure(index) for index in range(3)])
    assert scores["class_iou/cat"] == (8 + 8) / (16 + 16)  # not the mean of 1/2 and 1/2 by chance: see dog
    assert scores["class_iou/dog"] == 3 / 6 and scores["class_iou"] == 0.5
    assert [row["iou"] for row in rows] == [0.5, 0.5, 0.5]


def test_instances_from_label_maps_and_from_lines(tmp_path):
    scenes = data.make("scenes", task="sis", split="test", size=6)
    expected, files, lines = InstanceScores(), [], {}
    for index in range(6):
        sample = scenes[index]
        guesses = sample.masks[0][:-1] if index % 2 else sample.masks[0]
        labels = np.zeros(guesses.shape[1:], np.uint8)
        for number, mask in enumerate(guesses, start=1):
            labels[mask] = number
        files.append(write(tmp_path / f"{index}.png", labels))
        masks = [labels == number for number in np.unique(labels[labels > 0])]
        codes = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        line = {"key": sample.key, "masks": [{"counts": code["counts"].decode()} for code in codes]}
        lines[sample.key] = json.dumps({**line, "scores": [0.5] * len(codes)})
        expected.add(np.stack(masks) if masks else guesses[:0], sample.masks[0])
    (tmp_path / predictions.INSTANCES).write_text("\n".join(lines.values()) + "\n")
    read = predictions.read_lines(tmp_path / predictions.INSTANCES)
    by_line = predictions.Instances(scenes, list(read.values()), tmp_path / predictions.INSTANCES)
    for work in (predictions.Instances(scenes, files), by_line):
        rows = json.loads(json.dumps([work.measure(index) for index in range(6)]))
        scores, per_image = work.summarise(rows)
        assert scores == pytest.approx(expected.result())
        assert len(per_image) == 6 and 0 < scores["recall"] < 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected an object with a key"),
        ('{"key": "a"}', "line 1: expected an object with a key"),
        ('{"key": "a", "masks": []}\n{"key": "a", "masks": []}', "line 2: 'a' was there before"),
    ],
)
def test_lines_that_are_none_are_refused(tmp_path, line, fault):
    file = tmp_path / predictions.INSTANCES
    file.write_text(line)
    with pytest.raises(UserError, match=fault):
        predictions.read_lines(file)


@pytest.mark.parametrize(
    "line",
    [
        {"masks": [{"counts": "1"}]},
        {"masks": [3]},
        {"masks": [{"counts": [384]}], "scores": [1, 2]},
        {"masks": [{"counts": [384]}], "scores": [float("inf")]},
        {"masks": [{"counts": [384]}], "scores": [10**400]},
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, line):
    sample = Sample("a", (np.zeros((16, 24, 3), np.uint8),), (np.ones((1, 16, 24), bool),))
    work = predictions.Instances(Given([sample]), [{"key": "a", **line}], tmp_path / "instances.jsonl")
    with pytest.raises(DataFault, match=r"instances.jsonl: 'a': "):
        work.measure(0)


def test_ranks_are_levels(tmp_path):
    scenes = data.make("scenes", task="ranking", split="test", size=4)
    expected, files = RankingScores(), []
    for index in range(4):
        masks, ranks = scenes[index].masks[0], scenes[index].ranks[0]
        levels = np.rint(rank_map(masks, ranks[::-1]) * 255).astype(np.uint8)
        files.append(write(tmp_path / f"{index}.png", levels))
        greys = np.unique(levels[levels > 0])
        expected.add(levels == greys[:, None, None], greys, masks, ranks)
    work = predictions.Ranks(scenes, files, PRESET)
    scores, _ = work.summarise([work.measure(index) for index in range(4)])
    assert scores == pytest.approx(expected.result(), nan_ok=True)
    files[0] = write(tmp_path / "small.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataFault, match="small.png: 4x4: expected the size of its photo"):
        predictions.Ranks(scenes, files, PRESET).measure(0)


def test_csv_has_eight_digits():
    assert predictions.to_csv([{"key": "a,b", "mae": 1 / 3}]) == 'key,mae\n"a,b",0.33333333\n'


@pytest.fixture
def rng():
    return np.random.default_rng(0)
