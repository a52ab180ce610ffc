"""Tables: published rows with ours below, in three forms."""

from __future__ import annotations

import csv
import io

import pytest

from maskgym.errors import UserError
from maskgym.experiments.evaluation import paper_tables, presets

TABLE = paper_tables.Table(
    caption="Paper & Table 1: 50 % of it",
    columns=(("ecssd", "s_measure"), ("ecssd", "mae"), ("pascal_s", "s_measure")),
    rows=(("VST_x", (0.9, 0.04, 0.8)), ("a|b", (0.8, 0.03, None))),
    ours=(("run", (0.85, 0.0301, 0.81)),),
    notes=("Measured by us.",),
)


def test_markdown():
    lines = paper_tables.to_markdown(TABLE).splitlines()
    assert lines[0] == "**Paper & Table 1: 50 % of it**"
    assert lines[2] == "| method | ECSSD S ↑ | ECSSD MAE ↓ | PASCAL-S S ↑ |"
    assert lines[4:7] == [
        "| VST_x | **0.900** | 0.040 | 0.800 |",
        r"| a\|b | 0.800 | **0.030** | – |",
        "| run * | 0.850 | **0.030** | **0.810** |",
    ]
    assert lines[-2:] == [r"\* measured here.", "Measured by us."]


def test_latex():
    text = paper_tables.to_latex(TABLE)
    assert r"\caption{Paper \& Table 1: 50 \% of it}" in text
    assert r" & \multicolumn{2}{c}{ECSSD} & \multicolumn{1}{c}{PASCAL-S} \\" in text
    assert r"VST\_x & \textbf{0.900} & 0.040 & 0.800 \\" in text
    assert text.index(r"a|b &") < text.rindex(r"\midrule") < text.index("run &")
    assert text.count("{") == text.count("}")


def test_csv_says_where_a_row_is_from():
    rows = list(csv.DictReader(io.StringIO(paper_tables.to_csv(TABLE))))
    assert [row["source"] for row in rows] == ["published", "published", "measured"]
    assert (rows[1]["pascal_s/s_measure"], rows[2]["ecssd/mae"]) == ("", "0.0301")


def test_one_row_has_no_best_value_and_no_star():
    table = paper_tables.Table("", (("", "mae"),), ours=(("run", (0.5,)),))
    assert "| run | 0.500 |" in paper_tables.to_markdown(table) and "measured here" not in paper_tables.to_markdown(
        table
    )
    assert "textbf" not in paper_tables.to_latex(table) and "multicolumn" not in paper_tables.to_latex(table)


def test_every_published_table_can_be_printed():
    names = paper_tables.names()
    assert len(names) > 25 and {"saliency_r1/4-sod", "alignsam/3", "usersod/1"} <= set(names)
    for name in names:
        table = paper_tables.published(name)
        for make in (paper_tables.to_markdown, paper_tables.to_latex, paper_tables.to_csv):
            assert table.rows[0][0] in make(table) or "_" in table.rows[0][0] or "&" in table.rows[0][0]


def test_the_columns_of_usersod_are_the_measures_that_its_note_names():
    preset = presets.find("usersod")
    shown = {
        name
        for table in paper_tables.names()
        if table.startswith("usersod/")
        for _, name in paper_tables.published(table).columns
    }
    assert {"f_max", "e_mean"} < shown and not {"f_mean", "e_max"} & shown
    assert {"f_max", "e_mean"} < set(preset.measures) and preset.note.endswith("here maximum F and mean E.")


def test_percentages_are_scaled_like_the_published_ones():
    table = paper_tables.published("alignsam/2-shadow")
    assert table.scale == 100
    ours = paper_tables.Table(**{**vars(table), "ours": (("run", (0.5, 0.25)),)})
    assert ours.all_rows()[-1] == ("run", [50.0, 25.0])


@pytest.mark.parametrize("name", ["saliency_r1/9", "nothing/1", "saliency_r1", ""])
def test_an_unknown_table_is_refused(name):
    with pytest.raises(UserError, match="expected one of alignsam/2-blur"):
        paper_tables.published(name)
