"""The board: a true submission passes; whatever was tampered with is named in one line."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import yaml

from maskgym import manifest
from maskgym.errors import UserError
from maskgym.experiments import cli
from maskgym.experiments.evaluation import rescoring
from maskgym.experiments.grids import board, board_page, matrix, protocol, results_table
from maskgym.experiments.wiring import composition
from maskgym.policies.text.mllm import TINY

ROWS = {"random": {"with": ["algo=random"]}, "true": {"with": ["algo=oracle"]}}
# Of the level of each run that the tests share: arguments, measure, unit, budget, row that it is compared with.
LEVELS = {
    "ppo": (["env=point_prompt", "env.label_source=policy", "env.horizon=5"], "iou", "env_steps", 60, "ppo"),
    "refer": (["env=refer"], "instance_iou", "generated_tokens", 8, "grpo"),
    "usersal": (["env=user_need"], "s_measure", "reward_calls", 1, "usersal"),
    "ranking": (["env=ranking"], "sa_sor", "reward_calls", 1, "random"),
}
FLOOR, CEILING = 0.1, 0.9


@pytest.fixture
def protocol_of(tmp_path):
    """Return a function that writes the protocol with the level of a run, and its table; it gives the arguments."""

    def write(name: str, **changes) -> list[str]:
        arguments, measure, unit, budget, row = LEVELS[name]
        env = arguments[0].removeprefix("env=")
        column = {"with": arguments, "measures": [measure], "budget": changes.pop("budget", budget)}
        section = {
            **{"title": "Only", "about": "", "base": ["evaluation.samples=4", "env.num_envs=4"], "unit": unit},
            **{"columns": {env: column}, "rows": {row: {"with": [f"algo={row}"]}, **ROWS}, "against": row},
            **{"floor": "random", "ceiling": "true", "seeds": [0]},
        }
        if env in ("user_need", "ranking"):  # which have no oracle
            section["rows"]["true"] = {"with": ["algo=grpo"]}
        found = {"title": "Small", "version": 1, "about": "", "sections": [section], **changes}
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(found, sort_keys=False))
        results, rows = protocol.results(str(file)), {}
        for key, value in (("random", FLOOR), ("true", CEILING)):
            spec = matrix.run_of(section, key, env, 0)
            rows[results.key(spec)] = {"config": spec.config, "after": {measure: value}}
        results_table.write(tmp_path / "small.jsonl.gz", rows)
        return ["--protocol", str(file)]

    return write


@pytest.fixture
def submitted(tmp_path, finished_run, protocol_of):
    """Return a function that copies a finished run into a submission and gives both folders."""

    def copy(name: str = "ppo", of: str = "mine"):
        folder = tmp_path / of
        shutil.copytree(finished_run(name), folder / name)
        return folder, folder / name

    return copy


@pytest.fixture
def refused(capfd, protocol_of):
    """Return a function that checks a submission that is at fault, and gives the one line without its folder."""

    def check(folder, *more: str, name: str = "ppo", **changes) -> str:
        arguments = protocol_of(name, **changes)
        capfd.readouterr()
        assert cli.main(["board", "check", str(folder), *arguments, *more]) == 2
        out, error = capfd.readouterr()
        (line,) = [one for one in error.splitlines() if one.startswith("error: ")]
        assert not out and not (folder / "board.json").exists()
        return line.removeprefix("error: ").replace(f"{folder}/", "")

    return check


def rows_of(run):
    return [json.loads(line) for line in (run / "samples" / "answers.jsonl").read_text().splitlines()]


def write_rows(run, rows):
    (run / "samples" / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def edit(file, change):
    """Change a file of JSON in place."""
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def check(folder, arguments, *more):
    return cli.main(["board", "check", str(folder), *arguments, *more])


@pytest.mark.parametrize("replay", [False, True])
def test_a_true_submission_passes_and_is_on_the_page(submitted, protocol_of, tmp_path, capfd, replay):
    folder, run = submitted()
    arguments = protocol_of("ppo")
    assert check(folder, arguments, *["--replay"] * replay) == 0
    assert f"; 4 answers scored again, {4 if replay else 'none'} replayed\n" in capfd.readouterr().out
    (entry,) = json.loads((folder / "board.json").read_text())["runs"]
    score = json.loads((run / "results.json").read_text())["after"]["iou"]
    assert entry["score"] == pytest.approx(score, abs=1e-9) and entry["replayed"] is replay
    assert entry["normalised"] == pytest.approx((score - FLOOR) / (CEILING - FLOOR)) and entry["spent"] == 1.0
    assert cli.main(["board", "page", str(folder), *arguments, "--out", str(tmp_path / "board.md")]) == 0
    overall, level = (tmp_path / "board.md").read_text().split("## point_prompt")
    told = "replayed" if replay else "**answers only: not replayed**"
    shown = f"{entry['normalised']:.3f}"
    assert f"| ppo | mine | 1 (0) | 1 of 1 | {shown} [{shown}, {shown}] | {told} |" in overall
    assert f"| ppo | mine | 1 (0) | {shown} [{shown}, {shown}] | {score:.3f} | 1.00 | {told} |" in level


def test_true_texts_maps_and_ranks_pass_where_they_can_be_scored_again(submitted, protocol_of, refused):
    texts, _ = submitted("refer", "texts")
    assert check(texts, protocol_of("refer"), "--replay") == 0
    maps, _ = submitted("usersal", "maps")
    told = refused(maps, name="usersal")
    assert told == "usersal: level user_need: s_measure is of soft maps, and the answers stored are binary: " + (
        "expected --replay"
    )
    assert check(maps, protocol_of("usersal"), "--replay") == 0
    ranks, _ = submitted("ranking", "ranks")
    assert check(ranks, protocol_of("ranking")) == 0
    told = refused(ranks, "--replay", name="ranking")
    assert told == "ranking: algo=random: learns nothing: expected a trained policy to replay"


def swap(rows):
    rows[0], rows[1] = rows[1], rows[0]


def other_click(rows):
    first = rows[1]["after"]["answer"].split()
    used = {int(click[:-1]) for click in first}
    rows[1]["after"]["answer"] = " ".join([f"{next(p for p in range(64) if p not in used)}-", *first[1:]])


ANSWERS = "ppo/samples/answers.jsonl: "
ON_ROWS = {
    "answer": (other_click, f"{ANSWERS}sample 'sod-test-00128': .+: stored is [0-9.]+, scored again it is [0-9.]+"),
    "number": (
        lambda rows: rows[2]["after"].update(s_measure=rows[2]["after"]["s_measure"] + 1e-4),
        f"{ANSWERS}sample 'sod-test-00256': s_measure: stored is [0-9.]+, scored again it is [0-9.]+",
    ),
    "nan": (
        lambda rows: rows[0]["after"].update(iou=float("nan")),
        f"{ANSWERS}sample 'sod-test-00000': iou: stored is .*nan.*, scored again it is .+",
    ),
    "huge": (
        lambda rows: rows[0]["after"].update(iou=10**400),
        f"{ANSWERS}sample 'sod-test-00000': iou: stored is int 10+, scored again it is .+",
    ),
    "left out": (
        lambda rows: rows[0]["after"].pop("iou"),
        f"{ANSWERS}sample 'sod-test-00000': iou: is not stored: expected reward, .+",
    ),
    "swapped": (
        swap,
        f"{ANSWERS}line 1: sample 'sod-test-00128' \\(point_prompt, index 128\\): expected sample 'sod-test-00000' .+",
    ),
    "missing": (lambda rows: rows.pop(), f"{ANSWERS}has 3 answers of 4: expected the file as it was written"),
    "repeated": (
        lambda rows: rows.__setitem__(3, rows[0]),
        f"{ANSWERS}line 4: sample 'sod-test-00000' .+ is repeated: expected it once",
    ),
    "foreign": (
        lambda rows: rows[3].update(index=7, key="sod-test-00007"),
        f"{ANSWERS}line 4: sample 'sod-test-00007' .+ is none of the level's held-out samples",
    ),
    "no index": (lambda rows: rows[3].update(index=[1]), f"{ANSWERS}line 4: expected texts as task and key, .+"),
    "no clicks": (
        lambda rows: rows[0]["after"].update(answer="99999+"),
        f"{ANSWERS}sample 'sod-test-00000': answer: str '99999\\+': expected 5 clicks, patches from 0 to 63 with .+",
    ),
    "no text": (
        lambda rows: rows[0]["after"].update(answer=[1]),
        f"{ANSWERS}sample 'sod-test-00000': answer: list \\[1\\]: expected a text",
    ),
    "fewer clicks": (
        lambda rows: rows[0]["after"].update(answer=rows[0]["after"]["answer"].rpartition(" ")[0]),
        f"{ANSWERS}sample 'sod-test-00000': answer: str '[-+ 0-9]+': expected 5 clicks, .+",
    ),
}


@pytest.mark.parametrize("fault", ON_ROWS)
def test_tampered_answers_are_named(submitted, refused, fault):
    change, expected = ON_ROWS[fault]
    folder, run = submitted()
    rows = rows_of(run)
    change(rows)
    write_rows(run, rows)
    assert re.fullmatch(expected, refused(folder))


def test_a_missing_answer_is_named_where_its_number_was_changed_too(submitted, refused):
    folder, run = submitted()
    write_rows(run, rows_of(run)[:-1])
    edit(run / "results.json", lambda results: results["samples"]["point_prompt"].update(n=3))
    assert refused(folder) == (
        f"{ANSWERS}sample 'sod-test-00384' (point_prompt, index 384) is missing: expected 4 samples"
    )


def other(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))


def link(run):
    shutil.move(run / "results.json", run / "elsewhere")
    (run / "results.json").symlink_to(run / "elsewhere")


def log_of(run, end):
    lines = (run / "metrics.csv").read_text().splitlines()
    cells, head = lines[-1].split(","), lines[0].split(",")
    cells[head.index("held_out/iou")] = end
    (run / "metrics.csv").write_text("\n".join([*lines[:-1], ",".join(cells), ""]))


def results_of(change):
    return lambda run: edit(run / "results.json", change)


ON_FILES = {
    "total": (
        results_of(lambda found: found["after"].update(iou=0.99)),
        "ppo/results.json: after: iou: stored is 0.99, scored again it is [0-9.]+",
    ),
    "reward": (
        lambda run: other(run / "config.yaml", "name: foreground_hit", "name: delta_iou"),
        "ppo/config.yaml: reward.name=delta_iou: level point_prompt has reward.name=foreground_hit",
    ),
    "data": (
        results_of(lambda found: found["provenance"]["held_out"]["point_prompt"].update(fingerprint="0" * 16)),
        "ppo/results.json: held-out data, point_prompt: scenes, test, 4 samples \\(0{16}\\) then, scenes, .+ now",
    ),
    "segmenter": (
        results_of(lambda found: found["provenance"]["weights"]["segmenter"].update(fingerprint="0" * 16)),
        "ppo/results.json: segmenter: sam_tiny \\(0{16}, float32\\) then, sam_tiny .+ now",
    ),
    "no segmenter": (
        results_of(lambda found: found["provenance"]["weights"].pop("segmenter")),
        "ppo/results.json: provenance.weights: does not name segmenter",
    ),
    "curve": (
        lambda run: log_of(run, "0.99"),
        "ppo/metrics.csv: held_out/iou ends at 0.99, but the answers score [0-9.]+: expected the log of this run",
    ),
    "spent": (
        lambda run: other(run / "metrics.csv", ",20.0,", ",nan,"),
        "ppo/metrics.csv: level point_prompt: the run spent nan of 60 clicks: expected more algo.updates",
    ),
    "json": (
        lambda run: (run / "results.json").write_text('{"after": '),
        "ppo/results.json: cannot be read: Expecting value: .+",
    ),
    "other json": (
        results_of(lambda found: found["samples"].update(point_prompt=[1])),
        "ppo: cannot be read as a run: TypeError: .+",
    ),
    "line": (
        lambda run: other(run / "samples" / "answers.jsonl", '{"task"', '["task"'),
        "ppo/samples/answers.jsonl: cannot be read: .+",
    ),
    "aliases": (
        lambda run: other(run / "config.yaml", "seed: 0", "seed: &a 0\nout: *a"),
        "ppo/config.yaml: has YAML aliases: expected the file as it was written",
    ),
    "link": (link, "ppo/results.json: is a link: expected a file or folder of the submission itself"),
    "large": (
        lambda run: (run / "config.yaml").write_text("#" * 2**18 + "\n"),
        "ppo/config.yaml: 262,145 bytes: expected at most 262,144",
    ),
    "level": (
        lambda run: other(run / "config.yaml", "name: point_prompt", "name: ../../x"),
        ".+: of env=point_prompt: expected env=../../x",
    ),
    "oracle": (
        lambda run: (
            other(run / "config.yaml", "name: ppo", "name: oracle"),
            edit(run / "results.json", lambda found: found.update(algo="oracle")),
        ),
        "ppo: algo=oracle: is the ceiling of level point_prompt: expected a method",
    ),
}


@pytest.mark.parametrize("fault", ON_FILES)
def test_other_tampered_files_are_named(submitted, refused, fault):
    change, expected = ON_FILES[fault]
    folder, run = submitted()
    change(run)
    assert re.fullmatch(expected, refused(folder))


def test_too_little_spent_and_two_runs_of_a_seed_are_refused(submitted, refused):
    folder, run = submitted()
    assert refused(folder, budget=61) == (
        "ppo/metrics.csv: level point_prompt: the run spent 60 of 61 clicks: expected more algo.updates"
    )
    shutil.copytree(run, folder / "again")
    assert refused(folder) == "ppo: ppo has two runs of seed 0: expected one"


def test_runs_of_another_version_are_refused(submitted, refused):
    folder, _ = submitted()
    (folder / "protocol.json").write_text('{"protocol": "Small", "version": 2}')
    assert refused(folder) == "protocol.json: the runs are of 'Small', version 2: expected 'Small', version 1"
    (folder / "protocol.json").write_text("[]")
    assert refused(folder).startswith(f"{folder}: cannot be read as a run: TypeError: ")


def test_a_policy_that_answers_otherwise_is_found_by_the_replay(submitted, protocol_of, refused):
    folder, run = submitted()
    file = run / "checkpoints" / "policy" / "policy.pt"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "policy": {name: -value for name, value in state["policy"].items()}}, file)
    assert refused(folder, "--replay") == (
        "ppo/checkpoints/policy: is not the policy that results.json names: expected it as it was saved"
    )
    new = manifest.fingerprint(file.parent)
    edit(run / "results.json", lambda found: found["provenance"]["weights"]["policy"].update(fingerprint=new))
    told = refused(folder, "--replay")
    assert re.fullmatch(
        f"{ANSWERS}sample 'sod-test-00000': the submitted policy answers str .+: stored is str .+", told
    )
    assert check(folder, protocol_of("ppo")) == 0  # its answers are true all the same


def test_a_replay_refuses_a_language_model_of_other_sizes(submitted, refused):
    folder, run = submitted("refer")
    policy = run / "checkpoints" / "policy"
    shutil.rmtree(policy)
    shutil.copytree(TINY, policy)
    new = manifest.fingerprint(policy)
    edit(run / "results.json", lambda found: found["provenance"]["weights"]["policy"].update(fingerprint=new))
    assert refused(folder, "--replay", name="refer") == (
        "refer/checkpoints/policy: its model is another one than policy=qwen2_5_vl_tiny_refer"
    )


def test_a_replay_runs_nothing_that_is_not_installed_or_no_weights(submitted, refused):
    folder, run = submitted()
    (run / "checkpoints" / "policy" / "model.py").write_text("raise SystemExit(3)")
    assert refused(folder, "--replay").startswith("ppo/checkpoints/policy/model.py: expected the files of a saved")
    other(run / "config.yaml", "name: ppo", "name: theirs:Agent")
    edit(run / "results.json", lambda found: found.update(algo="theirs:Agent"))
    assert refused(folder, "--replay").startswith("unknown agent 'theirs:Agent': expected one of ")


def test_a_page_refuses_what_is_not_as_it_was_checked(submitted, protocol_of, capfd):
    folder, run = submitted()
    arguments = protocol_of("ppo")

    def told() -> str:
        capfd.readouterr()
        assert cli.main(["board", "page", str(folder), *arguments]) == 2
        return capfd.readouterr().err.strip().replace(f"{folder}/", "")

    unchecked = f"error: {folder}: has no board.json: expected a folder that maskgym board check found to be right"
    assert told() == unchecked
    assert check(folder, arguments) == 0
    kept = (run / "results.json").read_text()
    again = f"is not as it was checked: run maskgym board check {folder} again"
    (run / "results.json").write_text(kept + " ")
    assert told() == f"error: ppo/results.json: {again}"
    (run / "results.json").write_text(kept)
    shutil.copytree(run, folder / "more")
    assert told() == f"error: more/checkpoints/policy/policy.pt: {again}"
    shutil.rmtree(folder / "more")
    arguments = protocol_of("ppo", version=2)
    assert told() == "error: board.json: version=1: expected 2"
    (folder / "board.json").write_text("[]")
    assert told() == "error: board.json: is none of maskgym board check: check the folder again"


def test_a_page_puts_the_best_first_and_shows_no_markup_of_strangers(protocol_of):
    found = protocol.load(protocol_of("ppo")[1])

    def board_of(method, score, **more):
        entry = {"folder": ".", "method": method, "level": "point_prompt", "seed": 0, "measure": "iou", "score": score}
        entry |= {"normalised": score, "samples": 4, "replayed": True, **more}
        return {"runs": [entry, {**entry, "seed": 1, "replayed": False}], "date": "2026-01-31"}

    hostile = "a|<img src=x>[l](javascript:1)`*\n# www.x"
    text = board_page.page({"one": board_of("low", 0.2), "two": board_of(hostile, 0.7, spent=1.25)}, found)
    level = text.split("## point_prompt")[1]
    assert level.index("| two |") < level.index("| one |")
    assert "| 2 (0, 1) | 0.700 [0.700, 0.700] | 0.700 | 1.25 | **answers only: not replayed** | 2026-01-31 |" in level
    shown = next(line for line in level.splitlines() if "| two |" in line)
    assert not set("<>`[") & set(shown.split("| two |")[0]) and "www.x" not in text
    assert all(line.count("|") in (0, 9) for line in level.splitlines())


def test_masks_of_strangers_are_not_made_before_they_are_looked_at(finished_run):
    from maskgym.experiments.wiring import build

    run = finished_run("ranking")
    config = composition.load(run / "config.yaml")
    env = build.make_held_out_env(config, "ranking", build.make_parts(config))
    rows = rows_of(run)
    file = run / "samples" / "answers.jsonl"
    assert rescoring.read_answers(file, env, rows) == [row["after"]["answer"] for row in rows]
    for answer in ('[{"size": [1000000, 1000000], "counts": [1000000000000]}]', "[]", "{", "[" * 9999, "[1]"):
        rows[1]["after"]["answer"] = answer
        with pytest.raises(UserError, match=r"sample 'ranking-test-00128': answer: .+: expected at most 5 run-length"):
            rescoring.read_answers(file, env, rows)


def test_a_failed_check_removes_the_board_of_an_earlier_one(submitted, protocol_of, refused):
    folder, run = submitted()
    assert check(folder, protocol_of("ppo")) == 0 and (folder / board.FILE).exists()
    write_rows(run, rows_of(run)[::-1])
    refused(folder)
