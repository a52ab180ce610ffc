"""Tables of results: the same rows give the same bytes, and the pages of this repository come from theirs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.grids import benchmark_report, matrix, protocol, results_table, study

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def test_equal_rows_give_equal_bytes_in_any_order(tmp_path):
    rows = {"b": {"after": {"iou": 0.5}, "loss": float("nan")}, "a": {"after": {}}}
    results_table.write(tmp_path / "one.jsonl.gz", rows)
    results_table.write(tmp_path / "two.jsonl.gz", dict(reversed(rows.items())))
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert results_table.read(tmp_path / "one.jsonl.gz") == {
        "a": {"after": {}},
        "b": {"after": {"iou": 0.5}, "loss": None},
    }
    assert results_table.read(tmp_path / "none.jsonl.gz") == {}


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"{", mtime=0), gzip.compress(b"{}", mtime=0)])
def test_a_broken_table_is_named(tmp_path, content):
    (tmp_path / "broken.jsonl.gz").write_bytes(content)
    if content:
        with pytest.raises(UserError, match=r"broken\.jsonl\.gz: cannot be read as a table of results"):
            results_table.read(tmp_path / "broken.jsonl.gz")


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
        ({"a": {}}, {"a": {"b": 1}}, False),
    ],
)
def test_an_earlier_config_agrees_if_no_value_has_changed(then, now, expected):
    assert results_table.agrees(then, now) is expected


def test_settings_newer_than_a_stored_config_are_named():
    then, now = {"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 1, "d": 2}, "e": {"f": 3}}
    assert results_table.agrees(then, now) and results_table.newer_keys(then, now) == ["b.d", "e"]
    assert results_table.newer_keys(now, now) == []
    assert results_table.newer_keys({"env": {}}, {"env": {"algo_aliases": {"cgpo": "cgpo_levels"}}}) == []  # no setting
    lines = results_table.named({}, {"1": (then, now), "2": (now, now)})
    told = "warning: 1 of 2 stored results are older than these settings, and need not have their defaults: b.d, e"
    assert lines == [told]


def test_a_stored_table_says_whether_it_names_its_data(tmp_path):
    content = study.load("usersod_siamese")
    rows = results_table.read(RESULTS / "usersod.jsonl.gz")
    told = "warning: 12 of 12 results do not name their data, segmenter and weights"
    assert told not in study.named(content, content["seeds"], tmp_path, rows)
    for row in rows.values():
        row["results"].pop(provenance.KEY, None)
    assert told in study.named(content, content["seeds"], tmp_path, rows)


@pytest.mark.e2e  # all bootstraps of a page
@pytest.mark.parametrize("name", ["algorithms", "refer", "maskgym_v0", "text_settings"])
def test_a_page_of_a_benchmark_comes_from_its_table(name):
    results = matrix.Results(matrix.load(name), RESULTS / name)
    if "version" in results.matrix:
        results = protocol.results(name, out=RESULTS / name)
    assert all(results.of(spec) for spec in results.specs())
    text, pictures = benchmark_report.report(results, name)
    assert text == (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert set(pictures) == {path.name for path in (RESULTS / name).glob("*")}


@pytest.mark.parametrize(
    "name", ["backbones", "components", "encoders", "fine", "ranking", "referring", "siamese", "swin"]
)
def test_the_tables_of_usersod_come_from_its_table(name, tmp_path):
    assert lines_without_their_page(f"usersod_{name}", "usersod", tmp_path) == []


@pytest.mark.parametrize(
    "name", ["algorithms", "baselines", "branches", "classes", "components", "published", "steps", "text", "truth"]
)
def test_the_tables_of_alignsam_come_from_its_table(name, tmp_path):
    assert lines_without_their_page(f"alignsam_{name}", "alignsam", tmp_path) == []


def lines_without_their_page(name, page, folder):
    """List the lines of a study's table, made of stored results alone, that its page lacks."""
    content = study.load(name)
    shown = study.table(content, content["seeds"], folder, results_table.read(RESULTS / f"{page}.jsonl.gz"))
    there = (RESULTS / f"{page}.md").read_text(encoding="utf-8").splitlines()
    return [line for line in shown.splitlines() if line.startswith("|") and line not in there]
