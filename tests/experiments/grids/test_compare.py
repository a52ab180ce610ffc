"""Protocols and comparisons: scales, budgets, verdicts and refusals, by tables whose results are known."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml

from maskgym.errors import UserError
from maskgym.experiments.grids import protocol
from maskgym.experiments.grids.compare import Comparison, Method
from maskgym.experiments.grids.matrix import run_of

OF = {"name": "scenes", "root": None, "split": "test", "samples": 2, "fingerprint": "a"}
PROVENANCE = {
    "held_out": {"sis": OF},
    "train": {},
    "weights": {"segmenter": {"name": "evf_sam_tiny", "fingerprint": "b", "random": False}},
}
PROTOCOL = {
    "title": "Small",
    "version": 3,
    "about": "What it is.",
    "sections": [
        {
            "title": "Answers",
            "about": "Two levels.",
            "base": [],
            "unit": "generated_tokens",
            "columns": {
                "sis": {"with": ["env=sis"], "measures": ["iasm"], "budget": 150},
                "sod": {"with": ["env=sod"], "measures": ["s_measure"], "budget": 100},
            },
            "rows": {
                "grpo": {"with": ["algo=grpo"]},
                "sft": {"with": ["algo=sft"]},
                "random": {"with": ["algo=random"]},
                "oracle": {"with": ["algo=oracle_text"]},
            },
            "floor": "random",
            "ceiling": "oracle",
            "against": "grpo",
            "seeds": [0, 1, 2],
        }
    ],
}


def row(config, seed, scores, spent=(100, 100), measure="iasm", **more):
    """Build what a table keeps of a run that was evaluated before training and after each update."""
    log = {"step": [1, 2], "generated_tokens": list(spent), "env_steps": [8, 8]} if spent else {"step": []}
    steps = [0, 1, 2] if spent else [0]
    return {
        "config": config,
        "seed": seed,
        "after": {measure: scores[-1]},
        "updates": log,
        "held_out": {"step": steps, measure: list(scores)},
        "provenance": PROVENANCE,
        **more,
    }


@pytest.fixture
def results(tmp_path):
    """Baselines on both levels: floor 0.2 and ceiling 1.0; GRPO ends higher with each seed."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    found = protocol.results(str(file))
    (section,) = found.matrix["sections"]
    for column, measure in (("sis", "iasm"), ("sod", "s_measure")):
        for seed in section["seeds"]:
            ends = {"grpo": 0.6 + 0.02 * seed, "random": 0.2, "oracle": 1.0, "sft": 0.4}
            for name, end in ends.items():
                spec = run_of(section, name, column, seed)
                scores, spent = ([0.4, 0.5, end], (100, 100)) if name == "grpo" else ([end], ())
                found.rows[found.key(spec)] = row(spec.config, seed, scores, spent, measure)
    return found


def method(results, ends, name="mine", levels=("sis",)):
    records = {}
    for level in levels:
        (section,) = results.matrix["sections"]
        config, measure = run_of(section, "grpo", level, 0).config, {"sis": "iasm", "sod": "s_measure"}[level]
        records[level] = {seed: row(config, seed, [0.4, 0.5, end], measure=measure) for seed, end in enumerate(ends)}
    return Method(name, records)


def test_a_score_is_read_at_the_budget_and_scaled_by_floor_and_ceiling(results):
    level = protocol.level(results.matrix, "sis")
    record = row({}, 0, [0.4, 0.5, 0.9])
    assert protocol.at_budget(level, record) == pytest.approx(0.7)  # half way between the evaluations
    assert protocol.bounds(results, level) == pytest.approx((0.2, 1.0))
    assert protocol.normalised(results, level, [0.2, 0.7, 1.0]) == pytest.approx([0.0, 0.625, 1.0])


def test_what_spends_nothing_counts_with_its_last_score_and_what_hides_it_is_refused(results):
    level = protocol.level(results.matrix, "sis")
    supervised = row({}, 0, [0.4, 0.5, 0.9])
    del supervised["updates"]["generated_tokens"]
    supervised["updates"]["env_steps"] = [0, 0]
    assert protocol.at_budget(level, supervised) == 0.9
    supervised["updates"]["generated_tokens"] = [0, 0]
    assert protocol.at_budget(level, supervised) == 0.9
    silent = row({}, 0, [0.4, 0.5, 0.9])
    del silent["updates"]["generated_tokens"]
    with pytest.raises(UserError, match="lacks generated_tokens"):
        protocol.at_budget(level, silent)
    del silent["updates"]["env_steps"]  # as of several workers
    with pytest.raises(UserError, match="lacks generated_tokens"):
        protocol.at_budget(level, silent)
    with pytest.raises(UserError, match="spent 149 of 150 generated tokens: expected more algo.updates"):
        protocol.at_budget(level, row({}, 0, [0.4, 0.5, 0.9], (100, 49)))


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ([0.9, 0.91, 0.92], "mine is better than grpo."),
        ([0.3, 0.31, 0.32], "mine is worse than grpo."),
        ([0.6, 0.62, 0.65], "mine is not told apart from grpo."),
        ([0.9], "mine: no verdict: each side needs at least two seeds."),
    ],
)
def test_a_verdict_is_one_sentence(results, ends, told):
    text = Comparison(results, [method(results, ends)], ["grpo"]).text()
    assert f"**{told}**" in text and "version 3" in text
    assert ("one seed: no verdict" in text) == (len(ends) == 1)


def test_all_trained_baselines_are_shown_unless_some_are_named(results):
    shown = Comparison(results, [method(results, [0.9, 0.91])])
    assert [one.name for one in shown.baselines] == ["grpo"]  # sft's made no updates here
    with pytest.raises(UserError, match="--against gpro: no baseline with runs on sis: expected of grpo"):
        Comparison(results, [method(results, [0.9])], ["gpro"])


def test_a_method_with_the_name_of_a_baseline_is_told_apart(results):
    shown = Comparison(results, [method(results, [0.9, 0.91], "grpo")])
    assert [one.name for one in shown.methods] == ["grpo (given)", "grpo"]


def test_levels_are_put_together_over_the_seeds_that_all_have(results):
    two = method(results, [0.9, 0.91, 0.92], levels=("sis", "sod"))
    del two.records["sod"][1]
    shown = Comparison(results, [two])
    scores = shown.table_of(two, shown.levels)
    # at 150 of 200 tokens on sis, at 100 on sod: (0.7 - 0.2) / 0.8 and (0.5 - 0.2) / 0.8, of seeds 0 and 2
    assert scores == pytest.approx(np.array([[0.625, 0.375], [0.6375, 0.375]]))
    assert "| grpo | 2 | 2, 3 |" in shown.text()
    assert "Left out here: seeds 1, which are not on all levels." in shown.text()
    two.records["sod"] = {7: two.records["sod"][0]}
    with pytest.raises(UserError, match="mine: has no seed on all of sis, sod"):
        Comparison(results, [two]).text()


def test_a_run_that_stopped_early_is_named(results):
    short = method(results, [0.9, 0.91])
    short.records["sis"][1]["updates"]["generated_tokens"] = [100, 20]
    with pytest.raises(UserError, match="mine, seed 1: level sis: the run spent 120 of 150 generated tokens"):
        Comparison(results, [short]).text()


def test_other_samples_or_another_segmenter_are_refused(results):
    other = method(results, [0.9, 0.91])
    for record in other.records["sis"].values():
        record["provenance"] = {**PROVENANCE, "held_out": {"sis": {**OF, "fingerprint": "c"}}}
    with pytest.raises(UserError, match="level sis: held-out data: not comparable"):
        Comparison(results, [other])


def test_another_reward_than_the_level_has_is_named(results):
    level = protocol.level(results.matrix, "sis")
    config = run_of(level.section, "grpo", "sis", 0).config
    assert protocol.differences(level, config) == []
    changed = {**config, "reward": {**config["reward"], "name": "iasm"}}
    assert protocol.differences(level, changed) == ["reward.name=iasm: level sis has reward.name=saliency_strict"]


def test_the_closest_level_is_named_first(results):
    with pytest.raises(UserError, match="level 'sis_hrad': expected one of sis, sod"):
        protocol.level(results.matrix, "sis_hrad")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"unit": "seconds"}, "unit=seconds: expected one of generated_tokens"),
        ({"floor": "nobody"}, "floor=nobody: expected one of grpo"),
        ({"columns": {"sis": {"with": ["env=sis"], "measures": ["iasm"]}}}, "columns.sis: expected a budget"),
    ],
)
def test_a_wrong_protocol_is_told_in_one_line(tmp_path, changes, told):
    file = tmp_path / "wrong.yaml"
    section = {**PROTOCOL["sections"][0], **changes}
    file.write_text(yaml.safe_dump({**PROTOCOL, "sections": [section]}))
    with pytest.raises(UserError, match=told):
        protocol.load(str(file))


def test_scores_are_written_for_tables_and_for_marl_eval(results):
    files = Comparison(results, [method(results, [0.9, 0.91])]).tables()
    rows = list(csv.DictReader(files["scores.csv"].splitlines()))
    assert [(one["method"], one["seed"]) for one in rows][:2] == [("mine", "0"), ("mine", "1")] and len(rows) == 5
    assert float(rows[0]["normalised"]) == pytest.approx(0.625)
    found = json.loads(files["marl_eval.json"])["maskgym"]["sis"]["mine"]["seed_0"]
    assert found["absolute_metrics"] == {"normalised_score": [pytest.approx(0.625)]}
    assert found["step_5"] == {"step_count": 75, "normalised_score": [pytest.approx(0.34375)]}
    assert found["step_10"] == {"step_count": 150, "normalised_score": [pytest.approx(0.625)]}
    assert list(found)[-1] == "absolute_metrics" and len(found) == 12


def test_names_for_marl_eval_have_no_commas(results):
    mine = Method("mine, learning_rate=0.1", method(results, [0.9, 0.91]).records)
    found = json.loads(Comparison(results, [mine]).tables()["marl_eval.json"])["maskgym"]["sis"]
    assert list(found) == ["mine learning_rate=0.1", "grpo"]


def test_the_arguments_of_a_run_lead_to_its_algorithm_again(results):
    level = protocol.level(results.matrix, "sis")
    asked = {**level.config["algo"], "learning_rate": 3e-4, "micro_batch_size": None, "group_size": 4}
    assert (
        run_of({**level.section, "rows": {"": {"with": list(protocol.arguments(level, asked))}}}, "", "sis", 0).config[
            "algo"
        ]
        == asked
    )
