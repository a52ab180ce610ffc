from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments import report, run_folder

HOSTILE = "<script>alert('x')</script>&\""
ANSWER = f"<think>{HOSTILE}</think><answer><ins>one & only</ins><ins>two</ins></answer>"
VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Checks that tags close in order, and gathers what they load."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]

    def handle_startendtag(self, tag, attributes):
        """Pass over an element that closes itself; none of these loads anything."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture
def folder(tmp_path):
    """Return the files of a run with names and texts that look like markup."""
    before, after = {"reward": 0.25, "ap50": None, HOSTILE: 0.5}, {"reward": 0.75, "ap50": 0.5, HOSTILE: 0.5}
    facts = {"env": HOSTILE, "algo": "cgpo", "seed": 0, "device": "cpu", "wall_s": 1.5, "steps": 2, "split": "test"}
    run_folder.write_json(
        tmp_path / "results.json", {**facts, "before": before, "after": after, "versions": {"x": HOSTILE}}
    )
    metrics = run_folder.Metrics(tmp_path / "metrics.csv")
    metrics.add(0, {"held_out/iasm": 0.5})
    metrics.add(1, {"reward": 0.25, "entropy": float("nan"), "reward/" + HOSTILE: 1.0, "grad_norm": 3.0})
    metrics.add(
        2, {"reward": 0.75, "entropy": float("nan"), "response_types/hrhc": 0.5, "response_advantage/hrhc": 0.2}
    )
    rows = [
        {
            "task": "sis",
            "index": i,
            "key": HOSTILE,
            "before": {"reward": 0.2 + 0.1 * i, "answer": f"<think>{HOSTILE}</think>"},
            "after": {"reward": 0.7 + 0.1 * i, "answer": ANSWER},
        }
        for i in range(2)
    ]
    rows[0]["picture"] = "sis-00.png"
    run_folder.write(tmp_path / "samples" / "answers.jsonl", "".join(f"{run_folder.to_json(row)}\n" for row in rows))
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "samples" / "sis-00.png")
    run_folder.write(tmp_path / "config.yaml", f"out: {HOSTILE}\n")
    return tmp_path


def test_the_page_is_well_formed_and_asks_for_nothing_outside(folder):
    page = report.render(folder)
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert reader.sources and all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r"https?:|@import|url\(", page)


def test_text_is_escaped(folder):
    page = report.render(folder)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5  # title, heading, measure, legend, config, versions


def test_expressions_have_the_colours_of_their_masks(folder):
    page = report.render(folder)
    assert '<mark class="m0">one &amp; only</mark>' in page and '<mark class="m1">two</mark>' in page
    assert ".m0 { background: rgb(230, 159, 0); }" in page
    assert "reward 0.200 → 0.700" in page and '<span class="good">(+0.500)</span>' in page
    assert report._coloured("<answer><ins>a</ins> b</answer>", "sis") == escape("<answer><ins>a</ins> b</answer>")


def test_answers_that_are_no_texts_are_not_shown(folder):
    row = {"key": "k", "task": "user_need", "picture": "sis-00.png"}
    sides = {when: {"reward": 0.5, "answer": '[{"counts": "<ins>0"}]'} for when in ("before", "after")}
    assert "counts" not in report._gallery(folder / "samples", [row | sides])


def test_losses_and_gains_take_turns(folder):
    def row(number, gain):
        return {"key": f"k{number}", "task": "sis", "before": {"reward": 0.5}, "after": {"reward": 0.5 + gain}}

    gains = [0.1, -0.3, 0.4, -0.1, 0.2]
    rows = [row(number, gain) | {"picture": "sis-00.png"} for number, gain in enumerate(gains)]
    shown = report._gallery(folder / "samples", [*rows, row(9, 0.9)])
    assert re.findall(r"<figcaption>(k\d)", shown) == ["k1", "k2", "k3", "k4", "k0"]


def test_curves_are_drawn_where_there_are_numbers(folder):
    page = report.render(folder)
    figures = re.findall(r"<figure><strong>(.*?)</strong>(.*?)</figure>", page)
    drawn = {title: body.count("<polyline") for title, body in figures}
    assert drawn == {
        "Held-out": 1,
        "Reward and its terms": 2,
        "Response types (share of the extremes)": 1,
        "Rank-normalised advantage of the response types": 1,
        "Gradient norm": 1,
    }
    reward = dict(figures)["Reward and its terms"]
    assert '<text x="46" y="17" text-anchor="end">1</text>' in reward  # the axis ends at the largest value
    assert "update 2</text>" in reward


def test_the_table_has_intervals_of_means_and_of_paired_gains(folder):
    page = report.render(folder)
    row = re.search(r"<tr><td>reward</td>(.*?)</tr>", page).group(1)
    assert "0.250" in row and "0.750" in row
    # Both samples gain 0.5, so the interval of the gain is a point, above 0.
    assert '<td class="good">+0.500 <span class="soft">[0.500, 0.500]</span></td>' in row
    assert re.search(r"<tr><td>ap50</td><td>–</td><td>0\.500</td><td>–</td></tr>", page)


def test_the_file_is_written(folder):
    report.write(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == report.render(folder)


def test_a_missing_file_is_named(folder):
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"results\.json: cannot be read"):
        report.render(folder)


@pytest.mark.parametrize(("better", "kind"), [(1, "bad"), (-1, "good"), (0, "")])
def test_fewer_clicks_are_better(better, kind):
    assert report._number(-3.0, [-3.0, -4.0], better).startswith(f'<td class="{kind}">')
    assert {"mae", "noc85", "noc90", "repeated"} == set(report.LESS)
