"""Benchmarks: which runs a matrix asks for, what is kept of them, and what the report says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import yaml

from maskgym.errors import UserError
from maskgym.experiments.grids import benchmark, benchmark_report, costs, matrix, results_table
from maskgym.experiments.wiring import composition, run_folder

SMALL = ["evaluation.samples=2", "evaluation.pictures=0"]
BRIEF = ["env.num_envs=2", "algo.batch_size=8", "algo.max_new_tokens=40"]
MATRIX = {
    "title": "Small",
    "about": "What it is.",
    "sections": [
        {
            "title": "First",
            "about": "Two algorithms.",
            "base": [*SMALL, *BRIEF, "algo.updates=2", "evaluation.every=1"],
            "columns": {"sis": {"with": ["env=sis"], "measures": ["iasm", "reward"]}},
            "rows": {"cgpo": {"with": ["algo=cgpo"]}, "grpo": {"with": ["algo=grpo"]}},
            "against": "cgpo",
            "seeds": [0],
        }
    ],
    "published": {},
    "costs": [
        {
            "title": "Cost",
            "about": "Of an update.",
            "base": ["env=sis", "algo.updates=5", *BRIEF],
            "rows": {"grpo": {"with": ["algo=grpo"]}},
            "rounds": 1,
        }
    ],
}


def write(tmp_path, **changes):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(MATRIX | changes, sort_keys=False))
    return file


def fill(results, spec, scores, tokens, seed=0):
    """Add results by hand: ``scores`` at updates 0, 2 and 4, ``tokens`` generated at each update."""
    results.rows[results.key(spec)] = {
        "config": spec.config,
        "before": {"iasm": scores[0], "reward": scores[0]},
        "after": {"iasm": scores[-1], "reward": scores[-1]},
        "updates": {"step": [1, 2, 3, 4], "generated_tokens": tokens, "reward": [0.1, 0.2, None, 0.4]},
        "held_out": {"step": [0, 2, 4], "iasm": scores, "reward": scores},
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in matrix.MATRICES.glob("*.yaml")))
def test_every_matrix_composes(name, tmp_path):
    content = matrix.load(name)
    text = (matrix.MATRICES / f"{name}.yaml").read_text()
    assert text.startswith(f"# maskgym benchmark {name}")
    first = f"seed={content['sections'][0]['seeds'][0]}"
    specs = [spec for spec in matrix.Results(content, tmp_path).specs() if spec.arguments[-1] == first]
    assert specs
    assert len({spec.folder(tmp_path) for spec in specs}) == len(specs)
    assert all(len(section["seeds"]) >= 3 for section in content["sections"])
    for cost in content["costs"]:
        for row in cost["rows"]:
            config = composition.compose(matrix.cost_arguments(cost, row))
            assert config["algo"]["updates"] > matrix.WARM_UP


def test_rows_that_sections_share_are_one_run_and_a_row_goes_before_its_column(tmp_path):
    results = matrix.Results(matrix.load("algorithms"), tmp_path)
    first, tasks, *_ = results.matrix["sections"]
    together, _ = matrix.load("cgpo")["sections"]
    keys = [results.key(matrix.run_of(section, "cgpo", "sis", 1)) for section in (first, tasks)]
    assert keys[0] == keys[1]
    runs = [matrix.run_of(together, "together", column, 0) for column in together["columns"]]
    assert {run.arguments for run in runs} == {runs[0].arguments}
    assert composition.compose(runs[0].arguments)["env"]["name"] == "saliency"


@pytest.fixture(scope="module")
def made(tmp_path_factory, in_process):
    """Run a benchmark once; return its command, its folder and the rows of its table by algorithm."""
    folder = tmp_path_factory.mktemp("made")
    file, out = write(folder), folder / "out"
    command = [str(file), "--out", str(out), "--runs", str(folder / "runs")]
    assert benchmark.main(command, in_process) == 0
    rows = results_table.read(out / "small.jsonl.gz")
    return command, out, {row.get("algo", "cost"): row for row in rows.values()}


def test_a_benchmark_runs_reports_and_repeats_nothing(made, in_process):
    command, out, found = made
    text = (out / "small.md").read_text()
    assert set(found) == {"cgpo", "grpo", "cost"} and len(list((out / "small").glob("*.png"))) == 1
    assert found["cgpo"]["held_out"]["step"] == [0, 1, 2]
    assert found["cgpo"]["held_out"]["iasm"][-1] == pytest.approx(found["cgpo"]["after"]["iasm"], rel=1e-5)
    assert found["grpo"]["updates"]["reward_calls"] == [8, 8]
    assert all(8 * 10 < tokens <= 8 * 40 for tokens in found["grpo"]["updates"]["generated_tokens"])
    assert f"| grpo | {found['grpo']['after']['iasm']:.3f} [" in text
    (round_,) = next(iter(found["cost"]["rows"].values()))
    assert round_["reward_calls"] == 8 and round_["step_s"] > 0 and round_["peak_memory_mib"] > 100
    assert f"| grpo | 8 | {round_['generated_tokens']:,.0f} | {round_['step_s']:.2f} (" in text
    written = (out / "small.jsonl.gz").stat().st_mtime_ns
    assert benchmark.main(command, in_process) == 0
    assert (out / "small.jsonl.gz").stat().st_mtime_ns == written
    assert (out / "small.md").read_text() == text  # intervals too


def test_the_same_seed_gives_the_same_row(made, tmp_path, in_process):
    section = {**MATRIX["sections"][0], "rows": {"grpo": {"with": ["algo=grpo"]}}, "against": "grpo"}
    file = write(tmp_path, sections=[section], costs=[])
    command = [str(file), "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert benchmark.main(command, in_process) == 0
    (again,) = results_table.read(tmp_path / "out" / "small.jsonl.gz").values()
    assert again == made[2]["grpo"]


def test_equal_budgets_are_read_between_evaluations(tmp_path):
    section = {**MATRIX["sections"][0], "seeds": [0, 1]}
    results = matrix.Results({**MATRIX, "sections": [section]}, tmp_path / "small")
    for seed in (0, 1):
        fill(results, matrix.run_of(section, "cgpo", "sis", seed), [0.5, 0.7, 0.9], [10, 10, 0, 0])
        fill(results, matrix.run_of(section, "grpo", "sis", seed), [0.5, 0.6, 0.8], [10, 10, 10, 10])
    text, pictures = benchmark_report.report(results, "small")
    # 20 tokens are all that cgpo generates, and what grpo has after two updates
    assert "| after | 4 updates | 20 generated tokens |" in text
    grpo = "0.800 [0.800, 0.800] | 0.600 [0.600, 0.600]"
    assert f"| grpo | {grpo} |" in text
    assert "| grpo | 0.900 [0.900, 0.900] | 0.800 [0.800, 0.800] | 1.00 [1.00, 1.00] |" in text
    assert "0.233 → 0.233" in text  # of the log, without what it lacks
    assert pictures["small-1.png"].startswith(b"\x89PNG")
    results.costs = {"algo=cgpo env=sis": [{"step_s": 2.0}], "algo=grpo env=sis": [{"step_s": 4.0}]}
    with pytest.raises(KeyError):  # batch_size is part of what decides the cost
        benchmark_report.curves(results, section, ["cgpo", "grpo"], "sis")["seconds"]
    keys = [matrix.cost_key(matrix.run_of(section, row, "sis", 0).arguments) for row in ("cgpo", "grpo")]
    results.costs = {keys[0]: [{"step_s": 2.0}], keys[1]: [{"step_s": 4.0}]}
    seconds = benchmark_report.curves(results, section, ["cgpo", "grpo"], "sis")["seconds"]
    assert seconds["cgpo"][0][0] == [0, 4, 8] and seconds["grpo"][0][0] == [0, 8, 16]


def test_an_agent_that_logs_no_tokens_has_empty_cells_and_a_line(tmp_path):
    """An algorithm of one's own, whose updates log the reward alone, beside one of ours."""
    section = {**MATRIX["sections"][0], "seeds": [0]}
    results = matrix.Results({**MATRIX, "sections": [section]}, tmp_path / "small")
    fill(results, matrix.run_of(section, "cgpo", "sis", 0), [0.5, 0.7, 0.9], [10, 10, 0, 0])
    run = tmp_path / "run"
    metrics = run_folder.Metrics(run / "metrics.csv")
    for step in range(6):
        metrics.add(step, {"held_out/iasm": 0.5 + step / 10, "held_out/reward": 0.5})
        metrics.add(step + 1, {"reward": 0.5, "mine/loss": 1.0, "peak_memory_mib": 100.0})
    scores = {"iasm": 0.5, "reward": None}
    facts = {"env": "sis", "algo": "mine", "seed": 0, "device": "cpu", "steps": 6, "split": "test", "versions": {}}
    counted = {"sis": {"n": 256, "of": 512, "split": "test", "notes": []}}
    run_folder.write_json(run / "results.json", {**facts, "samples": counted, "before": scores, "after": scores})
    results.keep(spec := matrix.run_of(section, "grpo", "sis", 0), run)
    kept = results.of(spec)
    assert kept["updates"] == {"step": [1, 2, 3, 4, 5, 6], "reward": [0.5] * 6} and kept["samples"] == counted
    cost = costs._cost_of(run)
    assert cost["peak_memory_mib"] == 100 and set(cost) == {"step_s", "peak_memory_mib"}
    results.costs = {matrix.cost_key(matrix.cost_arguments(MATRIX["costs"][0], "grpo")): [cost | {"step_s": 2.0}]}
    text, _ = benchmark_report.report(results, "small")
    assert "No generated_tokens in the log of grpo, and so no score at equal tokens." in text
    assert "| grpo | | | 2.00 (2.00) | 100 |" in text
    assert "grpo does not log generated_tokens: its cell is empty." in text
    assert "Held-out samples per run: sis: 256 of 512." in text
    assert "| grpo | 0.500 [0.500, 0.500] | nan [nan, nan] | 1 |" in text  # the reward is undefined
    assert set(benchmark_report.curves(results, section, ["cgpo", "grpo"], "sis")["generated tokens"]) == {"cgpo"}


def test_timing_runs_have_one_number_of_threads(tmp_path, monkeypatch):
    results = matrix.Results(MATRIX, tmp_path / "small")
    results.costs = {"x": [{"step_s": 1.0}]}
    results.threads = "1"
    results.write()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    again = matrix.Results(MATRIX, tmp_path / "small")
    with pytest.raises(UserError, match=r"OMP_NUM_THREADS=2: the timing runs in .* had 1 threads: expected"):
        costs.measure(again, tmp_path, lambda words, cold: pytest.fail("ran"))
    assert matrix.Results(MATRIX, tmp_path / "other").threads == "2"


def test_a_matrix_needs_no_costs_and_no_published_values(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({name: MATRIX[name] for name in ("title", "about", "sections")}))
    content = matrix.load(str(file))
    assert content["costs"] == [] and content["published"] == {}
    matrix.check(content)


def test_published_orders_hold_are_reversed_or_open(tmp_path):
    section = {**MATRIX["sections"][0], "seeds": [0, 1, 2]}
    section["columns"] = {"sis": {"with": ["env=sis"], "measures": ["iasm", "mae", "noc90", "reward"]}}
    published = {
        "cgpo": {"sis": {"iasm": 0.9, "mae": 0.1, "noc90": 3.0, "reward": 0.4}},
        "grpo": {"sis": {"iasm": 0.8, "mae": 0.2, "noc90": 2.0, "reward": 0.5}},
    }
    results = matrix.Results({**MATRIX, "sections": [section], "published": published}, tmp_path / "small")
    # In the paper cgpo has the better iasm and mae and the worse number of clicks. Here it has the better iasm alone,
    # and the rewards overlap.
    here = {"cgpo": {"iasm": 0.9, "mae": 0.3, "noc90": 3.0}, "grpo": {"iasm": 0.7, "mae": 0.2, "noc90": 2.5}}
    for seed in range(3):
        for row, reward in (("cgpo", 0.5 + seed), ("grpo", 0.6 + seed)):
            spec = matrix.run_of(section, row, "sis", seed)
            fill(results, spec, [0.5, 0.6, 0.7], [1, 1, 1, 1])
            results.rows[results.key(spec)]["after"] = {**here[row], "reward": reward}
    orders = benchmark_report.published_orders(results, section, ["cgpo", "grpo"])
    assert [(order.measure, order.rows, order.verdict) for order in orders] == [
        ("iasm", ("cgpo", "grpo"), "holds"),
        ("mae", ("cgpo", "grpo"), "reversed"),
        ("noc90", ("grpo", "cgpo"), "holds"),
        ("reward", ("grpo", "cgpo"), "open"),
    ]
    assert orders[1].published == (0.1, 0.2) and orders[1].chance == (0, 0, 0)
    text = "\n".join(benchmark_report._order_table(orders))
    assert "| sis iasm | cgpo before grpo | 0.900, 0.800 | 1.00 [1.00, 1.00] | holds |" in text
    assert "| sis reward | grpo before cgpo | 0.500, 0.400 | 0.67" in text and "] | open |" in text
    assert "Of 4 published orders 2 hold here, 1 are reversed, 1 are open" in text
    assert benchmark_report.published_orders(results, {**section, "against": "grpo"}, ["grpo"]) == []


def test_rows_that_begin_elsewhere_have_starts_of_their_own(tmp_path):
    section = {**MATRIX["sections"][0], "seeds": [0, 1, 2]}
    section["columns"] = {"sis": {"with": ["env=sis"], "measures": ["iasm"]}}
    for start, lines in ((0.5, ["| before | 0.500"]), (0.2, ["| cgpo: before | 0.500", "| grpo: before | 0.200"])):
        results = matrix.Results({**MATRIX, "sections": [section]}, tmp_path / "small")
        for row, first in (("cgpo", 0.5), ("grpo", start)):
            for seed in range(3):
                fill(results, matrix.run_of(section, row, "sis", seed), [first, 0.6, 0.7], [1, 1, 1, 1])
        shown = benchmark_report._quality_table(results, section, ["cgpo", "grpo"])
        assert [line for line in shown if "before" in line] == [
            next(line for line in shown if line.startswith(expected)) for expected in lines
        ]


def test_rows_that_train_nothing_have_neither_start_nor_curve(tmp_path):
    section = {**MATRIX["sections"][0], "seeds": [0, 1, 2]}
    section["columns"] = {"sis": {"with": ["env=sis"], "measures": ["iasm"]}}
    results = matrix.Results({**MATRIX, "sections": [section]}, tmp_path / "small")
    for row in ("cgpo", "grpo"):
        for seed in range(3):
            spec = matrix.run_of(section, row, "sis", seed)
            fill(results, spec, [0.5, 0.6, 0.7], [1, 1, 1, 1])
            if row == "grpo":
                run = results.rows[results.key(spec)]
                run["updates"], run["held_out"] = {"step": []}, {"step": [0], "iasm": [0.5]}
    text, pictures = benchmark_report.report(results, "small")
    assert "| before | 0.500" in text and "grpo: before" not in text and not pictures
    assert "| grpo | 0.700" in text and "| log, sis |" in text and "4 updates" not in text


def test_of_a_measure_that_is_better_when_lower_the_lower_row_is_better(tmp_path):
    section = {**MATRIX["sections"][0], "seeds": [0, 1, 2]}
    columns = {"first": {"measures": ["ber_mean", "iou"]}, "second": {"with": ["env=sod"], "measures": ["iou"]}}
    results = matrix.Results({**MATRIX, "sections": [section]}, tmp_path / "small")
    for row, error in (("cgpo", 0.1), ("grpo", 0.3)):
        for seed in range(3):
            for column in columns:
                spec = matrix.run_of({**section, "columns": columns}, row, column, seed)
                fill(results, spec, [0.5, 0.6, 0.7], [1, 1, 1, 1])
                results.rows[results.key(spec)]["after"] = {"ber_mean": error, "iou": 1 - error, "reward": 0.0}
    alone = {**section, "columns": {"first": columns["first"]}}
    ours, theirs, chance = benchmark_report.compare(results, alone, "cgpo", "grpo")
    assert chance == (1, 1, 1)
    assert ours == pytest.approx((0.1, 0.1, 0.1)) and theirs == pytest.approx((0.3, 0.3, 0.3))
    assert benchmark_report.compare(results, {**section, "columns": columns}, "cgpo", "grpo")[2] == (1, 1, 1)
    assert benchmark_report.compare(results, alone, "grpo", "cgpo")[2] == (0, 0, 0)


def test_a_curve_is_read_between_its_points():
    curves = [([0, 10, 20], [0.0, 1.0, 2.0]), ([0, 5, 25], [1.0, 1.0, 3.0])]
    np.testing.assert_allclose(benchmark_report.at_budget(curves, 15), [[1.5], [2.0]])
    picture = benchmark_report.draw_curves({"updates": {"cgpo": [([0, 1], [0.1, 0.2])] * 2}}, "iasm")
    assert picture.startswith(b"\x89PNG")


def test_results_of_other_defaults_are_not_taken_and_new_keys_change_nothing(tmp_path):
    section = MATRIX["sections"][0]
    results = matrix.Results(MATRIX, tmp_path / "small")
    spec = matrix.run_of(section, "cgpo", "sis", 0)
    fill(results, spec, [0.5, 0.7, 0.9], [10, 10, 0, 0])
    found = results.rows[results.key(spec)]
    found["config"] = copy.deepcopy(found["config"])  # the composed one is cached
    assert results.of(spec) == found
    del found["config"]["algo"]["epsilon"]  # as if the run were older than this key
    assert results.of(spec) == found
    found["config"]["algo"]["learning_rate"] = 0.5
    assert results.of(spec) is None and results.read(section, "cgpo", "sis") == []


def test_a_report_of_what_is_there(tmp_path, capsys):
    out = tmp_path / "out"
    assert benchmark.main([str(write(tmp_path)), "--out", str(out), "--report"]) == 0
    assert "Not run yet." in (out / "small.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "is not a matrix: expected the keys"),
        ({"costs": [{"title": "no rows"}]}, "is not a cost: expected the keys"),
        ({"sections": [{**MATRIX["sections"][0], "against": "ppo"}]}, "against: ppo: expected one of cgpo, grpo"),
        (
            {"sections": [{**MATRIX["sections"][0], "columns": {"sis": {"with": ["env=sis"], "measures": ["iasmm"]}}}]},
            "First: cgpo, sis: measure 'iasmm': expected one of reward, mae",
        ),
        (
            {"sections": [{**MATRIX["sections"][0], "rows": {"cgpo": {"withh": []}, "grpo": {}}}]},
            "First: rows.cgpo: unknown key 'withh': expected one of with",
        ),
        ({"costs": [{**MATRIX["costs"][0], "base": ["env=sis", "algo.updates=3"]}]}, "expected more than 3, which are"),
        (
            {"sections": [{**MATRIX["sections"][0], "rows": {"cgpo": {"with": ["algo=ppo"]}}}]},
            "unknown key 'algo.batch_size': algo=ppo has updates",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, capsys, changes, message):
    assert benchmark.main([str(write(tmp_path, **changes)), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_unknown_matrix_and_measure(tmp_path, capsys):
    assert benchmark.main(["nonesuch"]) == 2
    assert "expected a path, or one of algorithms" in capsys.readouterr().err
    with pytest.raises(UserError, match="measure 'iasmm' of sis: expected one of iasm"):
        matrix.score({"iasm": 1.0}, "sis", "iasmm")
    assert matrix.score({"sis/iasm": np.float64(0.5)}, "sis", "iasm") == 0.5
