"""AlignSAM and UserSOD: settings, stages, rows and plans, and the whole chains on miniatures."""

from __future__ import annotations

import csv
import json
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from maskgym.data.published import PUBLISHED
from maskgym.errors import UserError
from maskgym.experiments import cli, run
from maskgym.experiments.evaluation import paper_tables, provenance
from maskgym.experiments.reproduce import alignsam, grid_plan, stages, usersod
from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
from maskgym.experiments.reproduce.miniature_sets import Sizes, write_sets
from maskgym.experiments.wiring import composition

PAPERS = {"alignsam": alignsam, "usersod": usersod}
CHOSEN = {"alignsam": {"task": None, "sam": "vit_h"}, "usersod": {"encoder": "blip"}}
NAMES = {
    "alignsam": ("sam_vit_h_4b8939.pth", "clip-vit-base-patch16"),
    "usersod": ("RGB_VST.pth", "clip-vit-base-patch16", "blip-itm-base-coco", "bert-base-uncased"),
}
SETS = {
    "alignsam": ("cuhk_blur", "sbu", "msd", "duts", "voc2012"),
    "usersod": ("usersod", "ecssd", "hku_is", "duts", "pascal_s", "assr", "salmon", "refcoco", "refcoco_plus"),
}
UNTIL = {
    "alignsam": "runs/shadow/metrics.csv",
    "usersod": "runs/usersal_plus/metrics.csv",
}  # then it is killed


def arguments(paper: str, folder: Path, **changes: str) -> Namespace:
    """Build arguments of a command whose data sets and checkpoints are there, and empty."""
    for name in SETS[paper]:
        (folder / "data" / PUBLISHED[name].folder[0]).mkdir(parents=True, exist_ok=True)
    for name in NAMES[paper]:
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    common = {"data": folder / "data", "models": folder / "models", "out": folder / "out"}
    return Namespace(**common, settings=[], smoke=False, gpu=None, **{"table": None, **CHOSEN[paper], **changes})


def test_the_recipe_of_alignsam_has_the_settings_of_section_4_1():
    config = composition.compose(["experiment=alignsam", "task=shadow"])
    env, algo = config["env"], config["algo"]
    assert (env["image_size"], env["patch_size"], env["horizon"], config["train_samples"]) == (800, 80, 15, 50)
    assert (env["allow_repeated_clicks"], config["policy"]["inputs"], algo["normalize_advantage"]) == (
        True,
        "state",
        False,
    )
    assert (algo["gamma"], algo["clip_range"], algo["epochs"], algo["updates"]) == (0.99, 0.2, 20, 50)
    assert algo["learning_rate"] == env["recalibration"]["learning_rate"] == 1e-4
    assert (config["segmenter"]["name"], env["attention"]["name"]) == ("sam", "clip_surgery")


@pytest.mark.parametrize(
    ("task", "branch"),
    [
        ("blur", "implicit"),
        ("shadow", "explicit"),
        ("glass", "implicit"),
        ("sod", "implicit"),
        ("semantic", "explicit"),
    ],
)
def test_each_task_has_the_branch_of_table_1(tmp_path, task, branch):
    given = arguments("alignsam", tmp_path, task=task)
    of_run, other = (
        composition.compose(next(row for row in alignsam.rows(given) if row.agent.name == name).agent.settings)["env"]
        for name in (task, f"{task}-{'explicit' if branch == 'implicit' else 'implicit'}")
    )
    assert (of_run["task"], of_run["recalibration"]["branch"]) == (task, branch)
    assert other["recalibration"]["branch"] != branch
    for env in (of_run, other):  # the text goes with the explicit branch
        assert (env["text"] is not None) == (env["recalibration"]["branch"] == "explicit")
        assert ("checkpoint" in env["attention"]) == (env["text"] is not None)


def test_the_recipe_of_usersod_has_the_settings_of_section_4_1():
    config = composition.compose(["experiment=usersod"])
    policy, algo = config["policy"], config["algo"]
    assert (config["env"]["image_size"], algo["learning_rate"], algo["decay_epoch"]) == (352, 1e-4, 60)
    assert algo["decay_factor"] == 0.1 and algo["epochs"] > 60  # the decay comes
    assert (policy["backbone"]["name"], policy["encoder"]["name"], policy["siamese"]) == ("vst", "blip", "swin")
    assert policy["appearance_weight"] == 1.0 and not policy["skip_empty_need"]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_is_one_of_the_paper_and_every_stage_a_command(tmp_path, paper):
    given = arguments(paper, tmp_path)
    for row in PAPERS[paper].rows(given):
        names = {name for name, _ in paper_tables.published(f"{paper}/{row.table}").rows}
        assert row.name in names or (paper, row.table) == ("usersod", "3")  # whose rows are other methods
    found = PAPERS[paper].stages(given)
    assert len({stage.name for stage in found}) == len({stage.words for stage in found}) == len(found)
    made = set()
    for stage in found:
        if stage.words[0] == "run":
            made.add(str(stage.run))
            assert composition.compose(stage.words[1:])["out"] == str(stage.run)
        elif stage.words[0] == "evaluate":
            assert stage.words[1] in made  # its run comes first
            assert stage.words[stage.words.index("--table") + 1] in paper_tables.names()
        else:
            assert stage.words[:2] == ("data", "check") or stage.words[0] == "baselines"


def test_a_table_alone_needs_its_own_runs_and_sets(tmp_path):
    names = [stage.name for stage in alignsam.stages(arguments("alignsam", tmp_path / "a", table="5"))]
    clicks = [f"3/semantic-horizon-{count}" for count in (1, 5, 10)]
    assert names == ["data, voc2012", "semantic", *clicks, "3/semantic", "3/semantic-horizon-20"]
    names = [stage.name for stage in usersod.stages(arguments("usersod", tmp_path / "b", table="3"))]
    assert names == ["data, usersod", "data, assr", "data, salmon", "usersal_plus", "ranking", "3/ranking"]
    names = [stage.name for stage in usersod.stages(arguments("usersod", tmp_path / "c", table="4"))]
    checks = ["data, usersod", "data, refcoco", "data, refcoco_plus"]
    assert names == [*checks, "usersal", "4/usersal", "usersal_plus", "4/usersal_plus"]


def test_referring_expressions_are_needs_of_the_agents_that_are_trained_on_usersod(tmp_path):
    of_table_4 = usersod.stages(arguments("usersod", tmp_path, table="4"))
    everything = usersod.stages(arguments("usersod", tmp_path))
    assert {stage.words for stage in of_table_4} <= {stage.words for stage in everything}
    for stage in of_table_4:
        if stage.words[0] == "run":
            assert composition.compose(stage.words[1:])["data"]["name"] == "usersod"
        elif stage.words[0] == "evaluate":
            assert stage.words[2:4] == ("--table", "usersod/4")
    assert [row.name for row in usersod.rows(arguments("usersod", tmp_path, table="4"))] == ["Usersal", "Usersal+"]


def test_ranking_begins_with_the_trained_policy(tmp_path):
    *_, first, ranking, _ = usersod.stages(arguments("usersod", tmp_path, table="3"))
    config = composition.compose(ranking.words[1:])
    assert config["policy"]["checkpoint"] == f"{first.run}/checkpoints/policy"
    assert (config["env"]["name"], config["data"]["name"], config["algo"]["updates"]) == ("ranking", "assr", 0)


@pytest.mark.parametrize("paper", PAPERS)
def test_what_is_missing_is_named(tmp_path, paper):
    given = arguments(paper, tmp_path)
    (given.data / PUBLISHED[SETS[paper][1]].folder[0]).rmdir()
    with pytest.raises(UserError, match=f"has no .*: expected the folder of {SETS[paper][1]}"):
        PAPERS[paper].stages(given)
    (given.models / NAMES[paper][0]).rmdir()
    with pytest.raises(UserError, match=f"--models .*: has no {NAMES[paper][0]}"):
        PAPERS[paper].stages(given)


def test_tables_have_the_published_rows_and_ours_below(tmp_path, capsys):
    given = arguments("alignsam", tmp_path, task="sod", table="2")
    of = {"held_out": {"duts": {"name": "duts", "root": "DIR", "split": "test", "samples": 2, "fingerprint": "0"}}}
    of |= {"train": {}, "weights": {}}
    for number, row in enumerate(alignsam.rows(given)):
        scores = {"e_mean": number / 100, "mae": 0.5, "images": 2.0}
        content = {"baseline": row.baseline, "scores": scores} if row.baseline else {"scores": {"duts": scores}}
        row.results(given.out).parent.mkdir(parents=True, exist_ok=True)
        if not row.results(given.out).exists():
            row.results(given.out).write_text(json.dumps(content | {provenance.KEY: of}))
    alignsam.report(given)
    printed = capsys.readouterr().out
    assert "| Ours-w/o MSI * | 3.00 |" in printed and "| PerSAM * | 5.00 |" in printed
    assert (
        "| Ours * | 0.500 |" in printed and "| SEEM | 0.326 |" in printed
    )  # of the table of MAE, from the same scores
    assert printed.count("duts: 2 images") == 2 and "here maximum F, mean E" in printed
    with (given.out / "tables" / "2-sod.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["source"] == "measured"]
    assert [row["method"] for row in measured] == [row.name for row in alignsam.rows(given) if row.table == "2-sod"]
    assert {path.suffix for path in (given.out / "tables").iterdir()} == {".md", ".tex", ".csv"}


def test_equal_scores_are_made_once(tmp_path):
    rows = alignsam.rows(arguments("alignsam", tmp_path, task="sod"))
    places = {row.table: row.place for row in rows if row.name in ("Ours", "Implicit Branch")}
    assert set(places.values()) == {"2-sod/sod"} and set(places) == {"2-sod", "2-sod-mae", "4-sod"}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_plan_of_a_gpu_has_a_line_for_each_stage(tmp_path, capsys, paper):
    given = arguments(paper, tmp_path)
    assert cli.main(["reproduce", paper, "--plan", "--gpu", "a100"]) == 0
    printed = capsys.readouterr().out
    for stage in PAPERS[paper].stages(given):
        assert printed.count(f"\n{stage.name} ") == (not stage.name.startswith("data, "))
    assert cli.main(["reproduce", paper, "--plan", "--gpu", "abacus"]) == 2
    assert "--gpu abacus: expected one of a100" in capsys.readouterr().err


def test_a_plan_counts_epochs_and_what_a_folder_holds():
    algo = {"epochs": 80, "batch_size": 16, "updates": 400}
    assert grid_plan.updates_of({"algo": algo}, 69_239) == 80 * (69_239 // 16)
    assert grid_plan.updates_of({"algo": {**algo, "epochs": None}}, 69_239) == 400
    assert grid_plan.updates_of({"algo": {"epochs": 20, "updates": 50}}, 50) == 50  # PPO's are over a rollout
    assert grid_plan.count(None, "duts", "test") == 5019 and grid_plan.count(None, "voc2012", "test") == 1449


def test_a_plan_counts_the_asked_part_of_the_test_split_with_and_without_the_folder(tmp_path):
    sizes = Sizes(train=1, validation=0, test=3, side=32)
    write_sets(tmp_path, ["refcoco"], sizes, writers=LAYOUTS)
    found = [grid_plan.count(tmp_path, f"refcoco{part}", "test") for part in ("/testA", "/testB", "")]
    assert found == [2, 1, 3]
    stated = [grid_plan.count(None, f"refcoco{part}", "test") for part in ("/testA", "/testB", "")]
    assert stated == [5657, 5095, 10752] and grid_plan.count(None, "refcoco_plus/testA", "test") == 5726


def test_a_plan_counts_the_start_of_each_command_and_the_imports_once():
    given = Namespace(data=None, models=None, out=Path("out"), settings=[], smoke=False, gpus=1, sam="vit_h", task=None)
    given.table = "5"  # one agent of 50 updates, and five evaluations of VOC's 1,449 test photos
    rates = grid_plan.Rates("here", start=2.0, update=3.0, score=5.0, encode=7.0, imports=11.0)
    printed = grid_plan.table(given, "alignsam", alignsam.rows(given), rates, checks=4)
    seconds = {"imports": 11, "checks": 4 * 2, "training": 2 + 50 * 3, "evaluations": 5 * (2 + 1449 * 5)}
    assert sum(seconds.values()) > grid_plan.LONG_S  # and so it is in hours
    assert printed.splitlines()[-2].split() == ["together", f"{sum(seconds.values()) / 3600:.1f}"]
    assert "each stage has 2.0 s to start its command" in printed and "imports, once" in printed
    rates = grid_plan.Rates("here", start=60.0, update=0.0, score=0.0, encode=0.0)
    printed = grid_plan.table(given, "alignsam", alignsam.rows(given), rates, checks=4)
    assert printed.splitlines()[-2].split() == ["together", "10.0"]  # minutes of ten commands: the starts alone
    assert "imports" not in printed


def test_the_start_is_measured_on_a_run_that_does_nothing(monkeypatch):
    asked = []

    class Server:
        def __init__(self, threads, parts):
            asked.append(parts)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(grid_plan, "ForkServer", Server)
    monkeypatch.setattr(grid_plan, "call", lambda server, words: asked.append(words))
    ticks = iter((100.0, 107.0, 110.0))
    monkeypatch.setattr(grid_plan.time, "monotonic", lambda: next(ticks))
    assert grid_plan._starts(("env=sod", "algo.updates=0"), ("part",)) == (7.0, 3.0)
    parts, first, run_of_nothing = asked
    assert parts[-1] == "part" and first[0] == "doctor"
    assert run_of_nothing[:4] == ("run", "env=sod", "algo.updates=0", "evaluation.samples=0")


@pytest.mark.e2e(seconds=120)
@pytest.mark.parametrize("paper", PAPERS)
def test_the_whole_chain_on_miniatures_survives_a_kill(tmp_path, capsys, finish_after_a_kill, paper):
    out = tmp_path / "out"
    printed = finish_after_a_kill(paper, out, UNTIL[paper])
    assert "] data, " in printed and ": stands" in printed
    killed = (out / UNTIL[paper]).parent
    words = shlex.split(json.loads((out / stages.FILE).read_text())[killed.name]["command"])[2:]
    assert run.main([*words[:-1], f"out={tmp_path}/undisturbed"]) == 0
    results = [json.loads((folder / "results.json").read_text()) for folder in (killed, tmp_path / "undisturbed")]
    policies = [result[provenance.KEY]["weights"]["policy"] for result in results]
    assert policies[0]["fingerprint"] == policies[1]["fingerprint"]
    given = Namespace(**CHOSEN[paper] | {"table": None, "smoke": True, "out": out, "settings": []})
    PAPERS[paper].write_miniatures(given, out)  # they stand
    for row in PAPERS[paper].rows(given):
        lines = (out / "tables" / f"{row.table}.md").read_text().splitlines()
        assert any(line.startswith(f"| {row.name} * |") and any(c.isdigit() for c in line) for line in lines), row
