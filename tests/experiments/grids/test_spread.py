"""The spread of a level: places by the seeds that chose it, and the same rows on others."""

from __future__ import annotations

import copy

import pytest
import yaml

from maskgym.errors import UserError
from maskgym.experiments.grids import benchmark_report, protocol, spread
from maskgym.experiments.grids.matrix import run_of

from .test_compare import PROTOCOL, row

ENDS = {  # score of each seed; floor 0.2, ceiling 1.0
    "grpo": [0.6, 0.62, 0.9, 0.9],
    "rloo": [0.8, 0.84, 0.4, 0.44],
    "spo": [0.4, 0.4, 0.5, 0.5],
    "gspo": [0.3, 0.32, 0.3, 0.3],
    "sft": [0.95, 0.95, 0.95, 0.95],
    "random": [0.2] * 4,
    "oracle": [1.0] * 4,
}


@pytest.fixture
def results_of(tmp_path):
    """Return a function that writes a protocol with one level and these rows, and fills its table."""

    def fill(**changes):
        content = copy.deepcopy(PROTOCOL)
        section = content["sections"][0]
        section |= {"seeds": [0, 1, 2, 3], "chosen_on": [0, 1]} | changes
        section["columns"] = {"sis": section["columns"]["sis"]}
        section["rows"] = {name: {"with": [f"algo={name}"]} for name in ENDS}
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        found = protocol.results(str(file))
        for name, ends in ENDS.items():
            for seed, end in zip(section["seeds"], ends, strict=False):
                spec = run_of(found.matrix["sections"][0], name, "sis", seed)
                acts = name not in ("sft", "random", "oracle")
                scores, spent = ([0.2, end, end], (150, 100)) if acts else ([end], ())
                found.rows[found.key(spec)] = row(spec.config, seed, scores, spent, before={"iasm": 0.2})
        return found

    return fill


def test_rows_are_placed_by_the_seeds_that_chose_the_level(results_of):
    results = results_of()
    (level,) = protocol.levels(results.matrix).values()
    found = spread.spread(results, level)
    assert found.rows == ("rloo", "grpo", "gspo")  # of four rows the better middle one; sft does not act
    assert found.chosen[0] == pytest.approx([0.75, 0.8]) and found.others[0] == pytest.approx([0.25, 0.3])
    assert found.chosen[2] == pytest.approx([0.125, 0.15])


def test_the_table_shows_that_an_order_does_not_come_again(results_of):
    results = results_of()
    lines = spread.table(results, results.matrix["sections"][0])
    first, second = (line.split(" | ") for line in lines[2:4])
    assert first[0] == "| sis" and first[1] == "0 to 1" and first[2] == "rloo 0.775 [0.750, 0.800]"
    assert first[5:7] == ["+0.262", "+0.637"]
    assert second[1] == "2 to 3" and second[5:7] == ["-0.600", "+0.150"]
    text, _ = benchmark_report.report(results, "small")
    assert "\n".join(lines) in text


def test_a_section_without_chosen_seeds_has_no_such_table(results_of):
    results = results_of()
    del results.matrix["sections"][0]["chosen_on"]
    assert spread.table(results, results.matrix["sections"][0]) == []


def test_a_level_with_missing_seeds_has_no_line(results_of):
    results = results_of(seeds=[0, 1, 2, 3, 4])
    assert spread.table(results, results.matrix["sections"][0]) == []


def test_seeds_that_would_show_a_small_difference_follow_from_the_deviations(results_of):
    alike = ENDS | {"grpo": [0.5] * 4, "rloo": [0.6] * 4}
    results = results_of()
    section = results.matrix["sections"][0]
    for name, ends in alike.items():
        for seed, end in enumerate(ends):
            found = results.rows[results.key(run_of(section, name, "sis", seed))]
            found["held_out"]["iasm"][1:] = [end] * (len(found["held_out"]["iasm"]) - 1)
    assert spread.table(results, section)[2].endswith("| 2 |")


def test_seeds_that_are_none_of_the_section_are_refused(results_of):
    with pytest.raises(UserError, match=r"chosen_on=7: expected one of its seeds"):
        results_of(chosen_on=[0, 7])
