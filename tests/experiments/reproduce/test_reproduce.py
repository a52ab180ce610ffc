"""From the data sets to the tables: the stages of an experiment, its plan, and the whole chain on miniatures."""

from __future__ import annotations

import json
import re
import shlex
from argparse import Namespace

import pytest

from maskgym.errors import UserError
from maskgym.experiments import cli, run
from maskgym.experiments.planning.devices import DEVICES
from maskgym.experiments.reproduce import miniature_sets, plan, saliency_r1, stages
from maskgym.experiments.wiring import composition

PARTS = ("maskgym.data",)  # of the stages of this test


@pytest.fixture
def given(tmp_path):
    """Return arguments whose folders exist and are empty."""
    for name in (saliency_r1.POLICIES["7b"], saliency_r1.SEGMENTER):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "data").mkdir()
    return Namespace(
        data=tmp_path / "data",
        models=tmp_path / "models",
        out=tmp_path / "out",
        rationales=[tmp_path / "texts.jsonl"],
        settings=[],
        task="unified",
        size="7b",
        segmenter_steps=1000,
    )


def test_the_stages_go_from_supervision_to_tables(given):
    found = saliency_r1.stages(given)
    evaluated = [f"{kind}, {task}" for task in saliency_r1.TASKS for kind in ("evaluation", "table 1")]
    assert [stage.name for stage in found] == ["data", "supervised training", "segmenter", "CGPO", *evaluated]
    _, sft, tune, cgpo, *_ = found
    configs = [composition.compose(stage.words[1:]) for stage in (sft, cgpo)]
    assert [config["algo"]["name"] for config in configs] == ["sft", "cgpo"]
    assert configs[1]["policy"]["path"] == f"{given.out}/sft/checkpoints/policy"
    assert configs[1]["segmenter"]["checkpoint"] == f"{given.out}/segmenter" == tune.words[-1].removeprefix("out=")
    assert {"data.parts.sft.sod=2640", "data.sis=[ilso,sis10k,soc]", "group_size=8"} <= set(tune.words)


def test_one_task_alone_reads_its_own_sets(given):
    given.task = "sis"
    found = saliency_r1.stages(given)
    assert [stage.name for stage in found[4:]] == ["evaluation, sis", "table 1, sis"]
    tuned = [word for word in found[2].words if word.startswith("data.") and "root" not in word]
    assert not [word for word in tuned if re.match(r"data\.(held_out\.|parts\.sft\.)?(sod|cosod)=", word)]
    assert composition.compose(found[3].words[1:])["env"]["name"] == "sis"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rationales": None}, "--rationales: expected the texts to imitate, which are made by: maskgym data reason"),
        ({"size": "3b"}, "has no folder Qwen2.5-VL-3B-Instruct"),
    ],
)
def test_what_is_missing_is_named(given, change, expected):
    vars(given).update(change)
    with pytest.raises(UserError, match=expected):
        saliency_r1.stages(given)


def test_missing_and_faulty_sets_are_named(given, capsys):
    given.task = "sod"
    words = saliency_r1.stages(given)[0].words
    miniature_sets.write_sets(given.data, ["duts", "ecssd", "pascal_s"])
    assert cli.main(words) == 2
    assert "dut_omron" in capsys.readouterr().err
    miniature_sets.write_sets(given.data, ["dut_omron"])
    assert cli.main(words) == 0
    file = next((given.data / "ECSSD").rglob("*.png"))
    file.write_bytes(b"no picture")
    assert cli.main(words) != 0
    assert file.name in "".join(capsys.readouterr())


def test_a_finished_stage_stands_and_another_command_is_refused(tmp_path, capfd):
    first = stages.Stage("first", ("doctor", "--help"))
    wrong = stages.Stage("second", ("run", "env=mars"))
    assert stages.execute([first, wrong], tmp_path, PARTS) == 2
    assert set(json.loads((tmp_path / stages.FILE).read_text())) == {"first"}
    assert stages.execute([first], tmp_path, PARTS) == 0
    assert "[1/1] first: stands" in capfd.readouterr().out
    with pytest.raises(UserError, match="its stage first was made by another command: expected another --out"):
        stages.execute([stages.Stage("first", ("doctor",))], tmp_path, PARTS)
    (tmp_path / stages.FILE).write_text("[]")
    with pytest.raises(UserError, match="is not the list of an experiment's stages"):
        stages.execute([first], tmp_path, PARTS)


def test_mistakes_are_one_line(tmp_path, capsys):
    for arguments, expected in (
        ([], "--data: expected a folder, or --smoke"),
        (["--data", str(tmp_path), "--models", "nowhere"], "--models nowhere: expected a folder, or --smoke"),
        (["--gpu", "h100"], "--gpu h100: expected --plan too"),
        (["--plan", "--gpu", "abacus"], "--gpu abacus: expected one of a100"),
        (["--plan", "--gpu", "h100", "--gpus", "0"], "--gpus 0: expected at least 1, with --gpu NAME"),
        (["--plan", "--gpus", "8"], "--gpus 8: expected at least 1, with --gpu NAME"),
    ):
        assert cli.main(["reproduce", "saliency_r1", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


@pytest.mark.parametrize("gpu", DEVICES)
def test_the_plan_of_a_gpu_has_a_line_for_each_stage(given, capsys, gpu):
    assert cli.main(["reproduce", "saliency_r1", "--plan", "--gpu", gpu]) == 0
    printed = capsys.readouterr().out
    for stage in saliency_r1.stages(given)[1:]:
        assert printed.count(f"\n{stage.name} ") == 1
    assert " hours" in printed and "GiB" in printed


def test_eight_gpus_share_the_training_alone(given, capsys):
    seconds = {}
    for gpus in (1, 8):
        rates = plan.computed(given, "a100", gpus)
        held_out = dict.fromkeys(saliency_r1.TASKS, 1000)
        seconds[gpus] = {row.stage: row.seconds for row in plan.rows(given, rates, held_out)}
        scoring = 2 * sum(min(256, 1000) * rates.score[task] for task in saliency_r1.TASKS)
    for stage, alone in seconds[1].items():
        fixed = rates.start + scoring
        shared = fixed + (alone - fixed) / 8 if stage in ("supervised training", "CGPO") else alone
        assert seconds[8][stage] == pytest.approx(shared)
    assert cli.main(["reproduce", "saliency_r1", "--plan", "--gpu", "a100", "--gpus", "8"]) == 0
    assert "scale.num_workers=8 scale.use_gpu=true algo.batch_size=24 algo.updates=375" in capsys.readouterr().out


@pytest.mark.e2e(seconds=250)
def test_the_whole_chain_on_miniatures_survives_a_kill(tmp_path, capsys, finish_after_a_kill):
    out = tmp_path / "out"
    printed = finish_after_a_kill("saliency_r1", out, "cgpo/metrics.csv")
    assert "[3/10] segmenter: stands" in printed
    done = json.loads((out / stages.FILE).read_text())
    words = shlex.split(done["CGPO"]["command"])[2:]
    assert run.main([*words[:-1], f"out={tmp_path}/undisturbed"]) == 0
    killed, whole = (
        json.loads((folder / "results.json").read_text()) for folder in (out / "cgpo", tmp_path / "undisturbed")
    )
    assert (killed["before"], killed["after"]) == (whole["before"], whole["after"])
    for table in ("4-sod", "4-sis", "4-cosod", "1-sod", "1-sis", "1-cosod"):
        assert "| ours * |" in (out / "tables" / table / "table.md").read_text()
    capsys.readouterr()
    smoke = ["reproduce", "saliency_r1", "--smoke", "--out", str(out)]
    assert cli.main([*smoke, "--plan"]) == 0
    found = re.search(r"^together +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert found and float(found[1]) > 0
