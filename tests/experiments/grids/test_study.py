"""Studies: what is trained, what is shared, what is shown."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments.grids import baselines, results_table, study, summary
from maskgym.experiments.reproduce.miniature_parts import write_sam
from maskgym.experiments.reproduce.miniature_sets import Sizes, write_sets
from maskgym.experiments.wiring import composition

SMALL = ["env=point_prompt", "algo=random", "env.horizon=2", "env.num_envs=2", "evaluation.samples=2"]


def write(tmp_path, **changes):
    file = tmp_path / "small.yaml"
    content = {
        "title": "Small",
        "base": SMALL,
        "columns": {"glass": {"with": ["env.task=glass"], "measure": "iou"}},
        "rows": {"two": {}, "one": {"evaluate": ["env.horizon=1"], "measure": "iou@1"}},
        "seeds": [0],
    }
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return file


@pytest.mark.parametrize("name", sorted(path.stem for path in study.STUDIES.glob("*.yaml")))
def test_every_study_composes_and_shares_its_runs(name, tmp_path):
    content = study.load(name)
    assert (study.STUDIES / f"{name}.yaml").read_text().startswith(f"# maskgym study {name}")
    assert len(content["seeds"]) >= 3
    groups = study.specs(content, content["seeds"][:1])
    for group in groups.values():
        composition.change(composition.compose(group[0].arguments), group[0].changes)
        if group[0].baseline:
            baselines.parse([*group[0].command[1:], "--out=results.json"])
    trained = {spec.folder(tmp_path) for group in groups.values() for spec in group}
    most = 35 if name == "learning_rates" else 28  # the sweep has nothing to share
    assert len(trained) <= most


def test_columns_of_one_run_and_rows_of_one_agent_share_a_folder(tmp_path):
    content = study.load("alignsam_components")
    groups = study.specs(content, [0])
    folder = {place: group[0].folder(tmp_path) for place, group in groups.items()}
    assert folder["ours", "blur IoU"] == folder["ours", "blur F"] == folder["without RL", "blur IoU"]
    assert folder["ours", "blur IoU"] != folder["without SRM", "blur IoU"] != folder["without SRM", "glass IoU"]
    branches = study.specs(study.load("alignsam_branches"), [0])
    baseline = study.specs(study.load("alignsam_baselines"), [3])
    command = baseline["SAMed", "glass F"][0].command
    assert command == ("baselines", "samed", *content["base"], "env.task=glass", "seed=3")
    folders = [baseline["SAMed", f"{column}"][0].folder(tmp_path) for column in ("glass F", "glass IoU", "blur F")]
    assert folders[0] == folders[1] != folders[2]
    assert branches["explicit", "shadow"][0].folder(tmp_path) == folder["ours", "shadow IoU"]


def test_settings_are_of_every_run_and_of_its_baselines(tmp_path, capsys, in_process):
    rows = {"two": {}, "PerSAM": {"baseline": "persam"}}
    file = write(tmp_path, rows=rows, base=[*SMALL, "train_samples=2"])
    out = tmp_path / "out"
    words = [str(file), "--out", str(out)]
    assert study.main([*words, "data.image_size=64", "evaluation.samples=3"], in_process) == 0
    assert "Small: data.image_size=64 evaluation.samples=3" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in out.glob("runs/*/results.json")]
    assert len(results) == 2 and all("3" in json.dumps(one["samples"]) for one in results)
    assert next(one for one in results if "baseline" in one)["data"]["image_size"] == 64
    assert len(list(out.glob("small-*.md"))) == 1 and not (out / "small.md").exists()
    assert study.main(["usersod_components", "data.size"], in_process) == 2


def test_a_study_runs_resumes_and_shows(tmp_path, capsys, in_process):
    file, out = write(tmp_path), tmp_path / "out"
    assert study.main([str(file), "--out", str(out)], in_process) == 0
    shown = capsys.readouterr().out
    (folder,) = (out / "runs").iterdir()
    two = json.loads((folder / "results.json").read_text())["after"]["iou"]
    (one,) = [json.loads(path.read_text())["iou@1"] for path in folder.glob("evaluation-*.json")]
    assert f"| two | {two:.3f} |" in shown and f"| one | {one:.3f} |" in shown and "One seed." in shown
    assert f"| over one | {two - one:+.3f} |" in shown  # one value has no interval
    assert shown == (out / "small.md").read_text() + f"\n{summary.page_command(out / 'runs')}\n"
    before = json.loads((folder / "results.json").read_text())["before"]["iou"]
    assert f"Before training:\n\n| | glass |\n|---|---|\n| two | {before:.3f} |\n" in shown
    assert "Held-out samples of a run: 2 of 512." in shown
    written = (folder / "results.json").stat().st_mtime_ns
    assert study.main([str(file), "--out", str(out)], in_process) == 0
    assert (folder / "results.json").stat().st_mtime_ns == written

    # The table takes the results over, and a study with the table needs no folder of runs.
    kept = tmp_path / "kept.jsonl.gz"
    assert study.main([str(file), "--out", str(out), "--table", str(kept)], in_process) == 0
    assert len(results_table.read(kept)) == 2
    assert study.main([str(file), "--out", str(tmp_path / "other"), "--table", str(kept)], in_process) == 0
    assert (tmp_path / "other" / "small.md").read_text() == (out / "small.md").read_text()
    assert not (tmp_path / "other" / "runs").exists()


def test_two_studies_with_one_table_keep_each_others_rows(tmp_path, in_process):
    file, kept = write(tmp_path, rows={"two": {}}), tmp_path / "kept.jsonl.gz"

    def run(*arguments, **settings):
        results_table.write(kept, {"other": {"results": {}}})  # another study ends meanwhile
        return in_process(*arguments, **settings)

    assert study.main([str(file), "--out", str(tmp_path / "out"), "--table", str(kept)], run) == 0
    assert len(results_table.read(kept)) == 2 and "other" in results_table.read(kept)


def test_several_seeds_have_intervals(tmp_path):
    content = study.load(str(write(tmp_path, seeds=[0, 1], rows={"two": {}, "more": {"with": ["env.horizon=3"]}})))
    for (row, _), group in study.specs(content, content["seeds"]).items():
        for seed, spec in enumerate(group):
            spec.file(tmp_path).parent.mkdir(parents=True)
            value = {"two": (0.2, 0.4), "more": (0.1, 0.1)}[row][seed]
            spec.file(tmp_path).write_text(json.dumps({"after": {"iou": value}}))
    shown = study.table(content, content["seeds"], tmp_path)
    assert "| two | 0.300 [0.200, 0.400] |" in shown and "2 seeds, mean and 95 % interval" in shown
    assert "| over more | +0.200 [+0.100, +0.300] |" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"two": {"with": ["env.horizon=0"]}}}, "horizon=0: expected at least 1"),
        ({"columns": {"glass": {"measure": "iouu"}}}, "measure 'iouu': expected one of reward"),
        ({"rows": {"x": {"withh": []}}}, "rows.x: unknown key 'withh': expected one of baseline, evaluate"),
        ({"rows": {"x": None}}, "rows.x: None: expected {}, or keys among baseline"),
        ({"columns": {"x": {"mesure": "iou"}}}, "columns.x: unknown key 'mesure': expected one of measure, with"),
        ({"columns": {"x": {}}}, "columns.x: expected a measure"),
        ({"rows": {"x": {"baseline": "samed", "evaluate": ["env.horizon=1"]}}}, "rows.x: a baseline is scored once"),
        ({"rows": {"two": {}, "x": {"baseline": "samed", "with": ["segmenter=sam_hf"]}}}, "baselines take sam_tiny"),
        ({"rows": {"two": {}, "x": {"baseline": "none"}}}, "invalid choice: 'none'"),
        ({"rows": {"x": {"baseline": "samed", "measure": "iou@1"}}}, "measure 'iou@1': a baseline has mae, f_mean"),
        (
            {"columns": {"glass": {"with": ["env.task=glass"], "measure": "class_iou/star"}}},
            "measure 'class_iou/star': ",
        ),
        ({"rows": {"two": {}, "x": {"baseline": "samed --ranks 1"}}}, "unrecognized arguments: --ranks"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, capsys, in_process, changes, message):
    assert study.main([str(write(tmp_path, **changes)), "--out", str(tmp_path / "out")], in_process) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "runs").exists() or "horizon" in message


def test_what_is_no_study(tmp_path, capsys):
    with pytest.raises(UserError, match="study 'nope': no such file: expected a path, or one of alignsam_algorithms"):
        study.load("nope")
    (tmp_path / "a.yaml").write_text("title: x")
    with pytest.raises(UserError, match="is not a study: expected the keys base, columns, rows, seeds, title"):
        study.load(str(tmp_path / "a.yaml"))
    assert study.main([str(write(tmp_path)), "--jobs", "0"]) == 2


def test_a_study_by_class_has_the_same_measure_in_every_row(tmp_path, in_process):
    """The mean over classes of ours, of the oracle and of baselines, and ours again from a folder of predictions."""
    semantic = [*SMALL, "env.task=semantic", "data.size=24", "evaluation.samples=24", "train_samples=24"]
    file = write(
        tmp_path,
        base=[*semantic, "segmenter.device=cpu"],
        columns={"mean": {"measure": "class_iou"}, "star": {"measure": "class_iou/star"}, "IoU": {"measure": "iou"}},
        rows={
            "oracle": {"with": ["algo=oracle", "env.label_source=policy"]},
            "one click": {"with": ["algo=oracle", "env.label_source=policy"], "evaluate": ["env.horizon=1"]},
            "SAMed": {"baseline": "samed --rank 0 --steps 1 --batch-size 2"},
        },
    )
    out = tmp_path / "out"
    assert study.main([str(file), "--out", str(out)], in_process) == 0
    groups = study.specs(study.load(str(file)), [0])
    values = {place: group[0].value(out / "runs") for place, group in groups.items()}
    assert values["oracle", "mean"] > values["one click", "mean"] and len(set(values.values())) == len(values)
    run = groups["oracle", "mean"][0]
    ours = run.results(out / "runs")["after"]
    assert ours["iou@1"] == pytest.approx(values["one click", "IoU"])  # fewer clicks are the same clicks
    classes = [value for name, value in ours.items() if name.startswith("class_iou/")]
    assert len(classes) > 3 and ours["class_iou"] == pytest.approx(sum(classes) / len(classes))
    again = tmp_path / "again"
    folder = str(run.folder(out / "runs"))
    assert in_process(("evaluate", folder, "--out", str(again))).status == 0
    scores = json.loads((again / "results.json").read_text())["scores"]
    (found,) = scores.values()
    assert {name: found[name] for name in ours if name.startswith("class_iou")} == pytest.approx(
        {name: value for name, value in ours.items() if name.startswith("class_iou")}
    )


def test_rows_on_other_data_or_another_segmenter_are_told_and_rows_that_share_theirs_are_not(
    tmp_path, capsys, in_process
):
    rows = {"two": {}, "one": {"evaluate": ["env.horizon=1"]}, "small": {"with": ["data.image_size=64"]}}
    file = write(tmp_path, rows=rows, seeds=[0, 1])
    assert study.main([str(file), "--out", str(tmp_path / "out")], in_process) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "warning" in line]
    assert line.startswith("- warning: held-out data: not comparable: scenes, test, 2 samples (")
    assert ") in 'two', 'one'; scenes, test, 2 samples (" in line and line.endswith(") in 'small'")
    assert sum(line.startswith("- segmenter: sam_tiny (") for line in lines) == 1


def test_stored_results_whose_data_has_changed_are_told(tmp_path, capsys, in_process, photo_folder):
    base = [*SMALL, "data=folder", f"data.root={photo_folder}"]
    file = write(tmp_path, base=base, columns={"IoU": {"measure": "iou"}}, rows={"a": {}})
    words = [str(file), "--out", str(tmp_path / "out"), "--table", str(tmp_path / "t.jsonl.gz")]
    for _ in range(2):
        assert study.main(words, in_process) == 0
        assert "warning" not in capsys.readouterr().out
    for mask in (photo_folder / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    assert study.main(words, in_process) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    place = f"held-out data, point_prompt: folder in {photo_folder}, test, 2 samples ("
    assert line.startswith(f"- warning: not as when the results were stored: {place}") and line.endswith(") now")
    shutil.rmtree(photo_folder)
    assert study.main(words, in_process) == 0
    assert "warning: results are stored whose data cannot be read here: " in capsys.readouterr().out


def test_a_baseline_is_scored_on_the_published_data_and_the_segmenter_of_its_cell(tmp_path, capsys, in_process):
    """Miniatures of DUTS and of ViT-B, in the published files."""
    write_sets(tmp_path, ["duts"], Sizes(train=3, test=2))
    sam = write_sam(tmp_path)
    base = ["env=point_prompt", "env.horizon=1", "env.num_envs=2", "data=duts", f"data.root={tmp_path / 'DUTS'}"]
    base += ["segmenter=sam", f"segmenter.checkpoint={sam}", "train_samples=2", "evaluation.samples=2"]
    rows = {"clicks": {"with": ["algo=random"]}, "SAMed": {"baseline": "samed --steps 1 --batch-size 1"}}
    file = write(tmp_path, base=base, columns={"IoU": {"measure": "iou"}}, rows=rows)
    assert study.main([str(file), "--out", str(tmp_path / "out")], in_process) == 0
    shown = capsys.readouterr().out
    assert "warning" not in shown
    assert f"held-out data: duts in {tmp_path / 'DUTS'}, test, 2 samples" in shown
    results = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*/results.json")]
    (ours,), (samed,) = ([one for one in results if ("baseline" in one) is which] for which in (False, True))
    assert samed["provenance"]["held_out"]["point_prompt"] == ours["provenance"]["held_out"]["point_prompt"]
    assert samed["provenance"]["train"]["point_prompt"] == ours["provenance"]["train"]["point_prompt"]
    assert samed["provenance"]["weights"]["segmenter"] == ours["provenance"]["weights"]["segmenter"]
    assert samed["provenance"]["weights"]["segmenter"]["name"] == "sam"
    assert samed["provenance"]["held_out"]["point_prompt"]["root"] == str(tmp_path / "DUTS")
    written = {file.stem for file in (tmp_path / "DUTS" / "DUTS-TE" / "DUTS-TE-Image").iterdir()}
    assert {row["key"].rpartition("/")[2] for row in samed["per_sample"]} == written
