"""``maskgym evaluate``: predictions and runs to tables."""

from __future__ import annotations

import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from maskgym import data
from maskgym.agents.base import FrozenAgent
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.experiments import cli, run
from maskgym.experiments.evaluation import evaluate_command
from maskgym.experiments.wiring import build
from maskgym.metrics import SaliencyScores

DATA = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[4] / "shared" / "data")


class Same(FrozenAgent):
    """Gives one answer to everything."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def act(self, observations, greedy):
        return [self.answer] * len(observations)


@pytest.fixture
def evaluate(capsys):
    """Return a function that runs the command and gives its status, its output and its errors."""

    def call(*arguments):
        status = cli.main(["evaluate", *map(str, arguments), "--jobs", "1"])
        return status, *capsys.readouterr()

    return call


def write_set(root, images, masks, count=3, seed=0):
    """Write photos and masks in some layout; return the masks' names."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        for folder, levels in ((images, rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)), (masks, None)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            levels = np.uint8(255) * (rng.random((12, 16)) > 0.6) if levels is None else levels
            Image.fromarray(levels).save(root / folder / f"{number:04d}.{'png' if folder == masks else 'jpg'}")


def write_maps(folder, count=3, seed=1):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(folder / f"{number:04d}.png")


def test_maps_against_a_folder_of_masks(evaluate, tmp_path):
    write_set(tmp_path / "set", "images", "masks")
    write_maps(tmp_path / "maps")
    status, out, _ = evaluate(tmp_path / "maps", "--truth", tmp_path / "set" / "masks", "--out", tmp_path / "out")
    assert status == 0 and out.startswith("| method | S ↑ | mean E ↑")
    expected = SaliencyScores()
    for number in range(3):
        levels, mask = (
            np.asarray(Image.open(tmp_path / place / f"{number:04d}.png")).astype(float)
            for place in ("maps", "set/masks")
        )
        expected.add((levels - levels.min()) / np.ptp(levels), mask > 128)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["data"]
    for name, value in expected.result().items():
        assert stored[name] == pytest.approx(value, abs=1e-7), name
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open()))
    assert [row["key"] for row in rows] == ["0000", "0001", "0002"]
    assert np.mean([float(row["mae"]) for row in rows]) == pytest.approx(stored["mae"], abs=1e-7)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("table.md", "table.tex", "table.csv"),
        *("results.json", "images.csv"),
    }
    assert (tmp_path / "out" / "table.md").read_text() == out[:-1]


def test_a_papers_table_from_folders_of_usual_names(evaluate, tmp_path):
    write_set(tmp_path / "sets" / "ecssd", "images", "ground_truth_mask")
    write_set(tmp_path / "sets" / "PASCAL-S", "imgs", "masks", count=2)
    write_maps(tmp_path / "maps" / "ECSSD")
    write_maps(tmp_path / "maps" / "pascal_s", count=2)
    status, out, _ = evaluate(
        *(tmp_path / "maps", "--table", "saliency_r1/4-sod", "--root", tmp_path / "sets", "--out", tmp_path / "out"),
        *("--name", "mine"),
    )
    assert status == 0
    published, ours = (
        next(line for line in out.splitlines() if line.startswith(f"| {name}")) for name in ("VST", "mine")
    )
    assert "0.850" in published and ours.startswith("| mine * | – | – | – | – |") and ours.count("0.") >= 8
    assert "dut_omron: not there, so not scored." in out and "ecssd: 3 images." in out
    assert {"ecssd.csv", "pascal_s.csv", "table.tex"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_each_measure_of_the_real_fixture_is_the_references(evaluate, tmp_path):
    if not (DATA / "metric_fixture").is_dir():
        pytest.skip("no real data")
    folder = DATA / "metric_fixture"
    assert evaluate(folder / "pred", "--truth", folder / "gt", "--out", tmp_path)[0] == 0
    found = json.loads((tmp_path / "results.json").read_text())["scores"]["data"]
    expected = json.loads((folder / "expected.json").read_text())["mean_all"]
    names = {"s_measure": "Smeasure", "mae": "MAE", "iou": "IoU_at_half"}
    for ours, theirs in (("f", "F"), ("e", "E")):
        names |= {f"{ours}_mean": f"mean{theirs}", f"{ours}_max": f"max{theirs}", f"{ours}_adaptive": f"adp{theirs}"}
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6), ours


def test_predictions_made_of_real_masks_score_as_the_references(evaluate, tmp_path):
    library = pytest.importorskip("py_sod_metrics")
    masks = sorted((DATA / "real_sod" / "masks").glob("*.png"))[::10]
    if not masks:
        pytest.skip("no real data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s, e, f = library.Smeasure(), library.Emeasure(), library.Fmeasure()
        mae, weighted = library.MAE(), library.WeightedFmeasure()
    (tmp_path / "gt").mkdir()
    (tmp_path / "maps").mkdir()
    for number, path in enumerate(masks):
        mask = Image.open(path).convert("L")
        blurred = mask.filter(ImageFilter.GaussianBlur(3 + number % 5)).rotate(number % 7 - 3)
        mask.save(tmp_path / "gt" / path.name)
        blurred.save(tmp_path / "maps" / path.name)
        for measure in (s, e, f, mae, weighted):
            measure.step(np.asarray(blurred), np.asarray(mask))
    assert evaluate(tmp_path / "maps", "--truth", tmp_path / "gt", "--out", tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["data"]
    expected = {"s_measure": s.get_results()["sm"], "mae": mae.get_results()["mae"]}
    expected["weighted_f"] = weighted.get_results()["wfm"]
    for name, result in (("e", e.get_results()["em"]), ("f", f.get_results()["fm"])):
        curve = result["curve"]
        expected |= {f"{name}_mean": curve.mean(), f"{name}_max": curve.max(), f"{name}_adaptive": result["adp"]}
    assert len(masks) == 15 and {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["maps"], "what is it to be scored against? Expected --truth DIR"),
        (["none", "--truth", "maps"], "no such folder"),
        (["maps", "algo=ppo"], "argument 'algo=ppo': predictions take data=… and data.… only"),
        (["maps", "data=ecsd", "data.root=maps"], "unknown data 'ecsd'"),
        (["maps", "--truth", "maps", "data=ecssd"], "--truth: expected alone"),
        (["maps", "--table", "saliency_r1/4-sod"], "expected --root DIR too"),
        (["maps", "--table", "saliency_r1/4-sod", "--root", "none"], "--root none: no such folder"),
        (["maps", "--table", "saliency_r1/4-sod", "--root", "maps"], "none of the data sets of saliency_r1/4-sod"),
        (["maps", "--truth", "maps", "--preset", "mine"], "preset 'mine': expected one of pysodmetrics"),
        (["maps", "--truth", "maps", "--out"], "expected one argument"),
    ],
)
def test_mistakes_are_one_line(evaluate, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    write_maps(tmp_path / "maps")
    status, _, error = evaluate(*arguments)
    assert (status, error.count("\n")) == (2, 1) and expected in error


def test_no_process_is_no_number(capsys, tmp_path):
    assert cli.main(["evaluate", str(tmp_path), "--truth", str(tmp_path), "--jobs", "0"]) == 2
    assert "--jobs 0: expected at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that gives the folder of a finished run of few samples and no update."""
    made = {}

    def make(name, *arguments):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            few = ("algo.updates=0", "evaluation.samples=4", "evaluation.pictures=0", "data.size=4")
            assert run.main([*arguments, *few, f"out={made[name]}"]) == 0
        return made[name]

    return make


def test_a_key_that_reshapes_the_policy_is_refused_in_one_line(evaluate, trained):
    folder = trained("grid", "env=point_prompt", "algo=ppo", "train_samples=2", "env.num_envs=2")
    status, _, error = evaluate(folder, "policy.layers=1")
    assert status == 2 and f"policy.layers=1: does not fit the weights of {folder}, see its config.yaml" in error


def test_a_key_of_the_runs_own_algorithm_leaves_its_trained_weights(evaluate, trained):
    folder = trained("grid", "env=point_prompt", "algo=ppo", "train_samples=2", "env.num_envs=2")
    _, plain, _ = evaluate(folder)
    status, out, error = evaluate(folder, "algo.gamma=0.5")
    assert status == 0 and json.loads(out) == json.loads(plain) and "not as in the run: algo.gamma=0.5" in error
    built = build.trained(folder, ["algo.gamma=0.5"])
    assert built.agent.model.gamma == built.config["algo"]["gamma"] == 0.5
    status, _, error = evaluate(folder, "algo.isr_period=2")
    assert status == 2 and "unknown key 'algo.isr_period': algo=ppo has updates" in error


@pytest.mark.parametrize(
    ("name", "arguments", "measure"),
    [
        ("sod", ("env=sod", "algo=random"), "s_measure"),
        ("sis", ("env=sis", "algo=random"), "ap50"),
        ("clicks", ("env=point_prompt", "algo=random"), "s_measure"),
        ("need", ("env=user_need", "algo=random"), "s_measure"),
        ("ranking", ("env=ranking", "algo=random"), "mae"),
    ],
)
def test_what_an_agent_predicts_is_written_and_scored(evaluate, trained, tmp_path, name, arguments, measure):
    folder = trained(name, *arguments)
    capture = evaluate(folder, "--out", tmp_path / "out")
    assert capture[0] == 0, capture[2]
    written = sorted((tmp_path / "out" / "predictions").rglob("*"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["data"]
    assert found["images"] == 4 and len([path for path in written if path.suffix in (".png", ".jsonl")]) in (1, 4)
    assert 0 <= found[measure] <= 1


def test_malformed_answers_are_named_beside_the_maps_and_are_no_empty_answers(evaluate, tmp_path):
    scenes = ("data=scenes", "data.size=24", "+data.task=refer")
    dataset = data.make("scenes", task="refer", split="test", size=24)
    nothing = [index for index in range(24) if not len(dataset[index].masks[0])]
    assert nothing
    env = ReferVectorEnv(4, dataset, autoreset_mode="Disabled")
    for folder, answer, accuracy in (("empty", "<answer>[]</answer>", 1), ("malformed", "<answer>[", 0)):
        agent = Same(answer)
        for _ in range(2):  # the second time all is there
            evaluate_command.predict(agent, env, tmp_path / folder)
        status, printed, _ = evaluate(tmp_path / folder, *scenes, "--preset", "grefcoco", "--out", tmp_path / "out")
        scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["data"]
        assert (status, scores["n_acc"], scores["t_acc"]) == (0, accuracy, 0)
        assert scores["miou"] == pytest.approx(accuracy * len(nothing) / 24)
        assert ("24 answers are malformed and have no mask" in printed) == (folder == "malformed")
    assert (tmp_path / "malformed" / "malformed.txt").read_text().split("\n") == [*dataset.keys, ""]
    # A kill after the key was written, and before the map was.
    (tmp_path / "malformed" / f"{dataset.keys[3]}.png").unlink()
    evaluate_command.predict(agent, env, tmp_path / "malformed")
    assert (tmp_path / "malformed" / "malformed.txt").read_text().split("\n") == [*dataset.keys, ""]


def test_an_agent_is_not_asked_again_for_what_is_there(trained, tmp_path):
    built = build.trained(trained("sis", "env=sis", "algo=random"))
    agent, envs = built.agent, built.envs
    env, asked = envs["sis"], []
    original = agent.act
    agent.act = lambda observations, greedy: asked.append(len(observations)) or original(observations, greedy=greedy)
    evaluate_command.predict(agent, env, tmp_path, instances=True)
    file = tmp_path / "instances.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # cut off in the fourth line
    evaluate_command.predict(agent, env, tmp_path, instances=True)
    assert sum(asked) == 4 + 1
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == [
        env.unwrapped.dataset[i].key for i in range(4)
    ]


def test_an_unchanged_run_is_scored_as_it_was_without_a_note(evaluate, trained, capsys):
    folder = trained("answers", "env=sis", "algo=cgpo", "algo.max_new_tokens=8")
    capsys.readouterr()  # what the run printed
    status, out, error = evaluate(folder)
    results = json.loads((folder / "results.json").read_text())
    assert (status, json.loads(out)["reward"]) == (0, results["after"]["reward"])
    assert "not as in the run" not in error  # the policy has loaded other weights than those that it began from
    assert json.loads(out)["provenance"]["weights"] == results["provenance"]["weights"]


def test_a_run_is_scored_on_another_data_set(evaluate, trained, tmp_path):
    write_set(tmp_path / "ECSSD", "images", "ground_truth_mask")
    folder = trained("sod", "env=sod", "algo=random")
    status, out, error = evaluate(
        folder, "--table", "saliency_r1/1-sod", "--root", tmp_path, "--out", tmp_path / "out", "--name", "random"
    )
    assert status == 0, error
    assert "| random * |" in out and "ecssd: 3 images." in out
    assert len(list((tmp_path / "out" / "predictions" / "ecssd").glob("*.png"))) == 3


def test_groups_are_written_and_scored_photo_by_photo(evaluate, trained, tmp_path):
    write_set(tmp_path / "CoCA", "image/alarm clock", "binary/alarm clock", count=3)
    write_set(tmp_path / "CoCA", "image/bear", "binary/bear", count=2, seed=5)
    folder = trained("cosod", "env=cosod", "algo=random", "env.group_size=2")
    given = ("data=coca", f"data.root={tmp_path / 'CoCA'}", "--out", tmp_path / "out")
    assert evaluate(folder, *given, "--preset", "cosod")[0] == 0
    names = [path.relative_to(tmp_path / "out/predictions").as_posix() for path in (tmp_path / "out").rglob("0*.png")]
    assert sorted(names) == [f"{group}/000{k}.png" for group, n in (("alarm clock", 3), ("bear", 2)) for k in range(n)]
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open()))
    assert sorted(row["key"] for row in rows) == [name[:-4] for name in sorted(names)]


def test_predictions_of_another_run_are_not_taken_for_these(evaluate, trained, tmp_path):
    folder = trained("sod", "env=sod", "algo=random")
    assert evaluate(folder, "--out", tmp_path)[0] == 0
    status, _, error = evaluate(folder, "seed=1", "--out", tmp_path)
    assert status == 2 and "holds predictions of" in error and "choose another --out" in error


def test_predictions_of_before_a_change_of_the_data_are_not_taken_for_these(evaluate, trained, tmp_path):
    folder, place, out = trained("sod", "env=sod", "algo=random"), tmp_path / "ECSSD", tmp_path / "out"
    write_set(place, "images", "ground_truth_mask")
    given = (folder, "data=ecssd", f"data.root={place}", "--out", out)
    assert evaluate(*given)[0] == evaluate(*given)[0] == 0
    found = json.loads((out / "results.json").read_text())["provenance"]
    assert found["held_out"]["data"]["root"] == str(place) and found["held_out"]["data"]["samples"] == 3
    assert found["weights"]["segmenter"]["name"] == "evf_sam_tiny"
    write_set(place, "images", "ground_truth_mask", seed=7)
    status, _, error = evaluate(*given)
    assert status == 2 and "holds predictions of before a change: held-out data: ecssd in " in error
    source = out / "predictions" / "source.json"
    kept = json.loads(source.read_text())
    assert kept.pop("provenance")
    source.write_text(json.dumps(kept))  # as an older version left it
    status, _, error = evaluate(*given)
    assert status == 0 and "its predictions do not name their data and weights, and are kept" in error


def test_tables_name_what_they_are_of(evaluate, tmp_path):
    write_set(tmp_path / "set", "images", "masks")
    write_maps(tmp_path / "maps")
    given = (tmp_path / "maps", "--truth", tmp_path / "set" / "masks", "--out", tmp_path / "out")
    assert f"held-out data: masks in {tmp_path / 'set' / 'masks'}, all, 3 samples (" in evaluate(*given)[1]
    first = json.loads((tmp_path / "out" / "results.json").read_text())["provenance"]
    write_set(tmp_path / "set", "images", "masks", seed=3)
    assert evaluate(*given)[0] == 0
    other = json.loads((tmp_path / "out" / "results.json").read_text())["provenance"]
    assert first["held_out"]["data"]["fingerprint"] != other["held_out"]["data"]["fingerprint"]
    assert first["weights"] == {}  # predictions may be any program's


def test_without_out_a_run_prints_its_scores(evaluate, trained):
    folder = trained("sod", "env=sod", "algo=random")
    status, out, _ = evaluate(folder)
    found, run_itself = json.loads(out), json.loads((folder / "results.json").read_text())
    assert status == 0 and "s_measure" in found
    assert found["provenance"]["held_out"] == run_itself["provenance"]["held_out"]
    assert found["provenance"]["weights"] == run_itself["provenance"]["weights"] != {}
    other = json.loads(evaluate(folder, "data.image_size=64")[1])["provenance"]
    assert other["held_out"]["sod"]["fingerprint"] != found["provenance"]["held_out"]["sod"]["fingerprint"]


def test_settings_other_than_those_of_the_run_stand_beside_its_scores(evaluate, trained, tmp_path):
    folder, changed = trained("sod", "env=sod", "algo=random"), ("segmenter.batch_size=1", "data.size=4")
    assert "not as in the run: segmenter.batch_size=1\n" in evaluate(folder, *changed)[2]
    assert "not as in the run" not in evaluate(folder)[2]
    assert "data: not as in the run: segmenter.batch_size=1" in evaluate(folder, *changed, "--out", tmp_path)[1]


def test_all_names_of_data_sets_can_be_chosen():
    from maskgym.data.published import PUBLISHED
    from maskgym.experiments.wiring import composition

    assert set(PUBLISHED) <= set(data.names()) and set(PUBLISHED) <= set(composition.groups()["data"])


def test_notes_on_the_data_stand_below_the_table(evaluate, tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    Image.new("RGB", (16, 12)).save(tmp_path / "set" / "images" / "a.jpg")
    polygon, brushed = [[1, 1, 5, 1, 5, 5, 1, 5]], {"size": [12, 16], "counts": [96, 12, 84]}
    annotations = [
        {"id": 1, "image_id": 1, "segmentation": polygon, "bbox": [9, 1, 4, 4]},
        {"id": 2, "image_id": 1, "segmentation": brushed, "iscrowd": 1},
        {"id": 3, "image_id": 1, "segmentation": polygon, "salient": False},
    ]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "maps").mkdir()
    rows = [{"key": "a", "masks": []}, {"key": "b", "masks": []}]
    (tmp_path / "maps" / "instances.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, out, _ = evaluate(tmp_path / "maps", "data=coco", f"data.root={tmp_path / 'set'}", "data.splits=test")
    assert status == 0
    for note in (
        "1 of 3 annotations are crowds (iscrowd), every run-length code among them, read as void, not scored: ",
        '1 of 3 annotations are left out because they say "salient": false',
        "1 of 1 masks whose box has an IoU below 0.3 with their stated bbox: annotation 1 of a.jpg",
        "1 lines belong to no sample and are left out: b",
        "1 predictions without an instance: a",
    ):
        assert note in out
