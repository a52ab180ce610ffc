"""The report of a run and the one that compares runs: what they hold, by their text and in a real browser."""

from __future__ import annotations

import csv
import math
import re
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments import cli, run
from maskgym.experiments.report import compare_report, curves, finished_run, report, report_page
from maskgym.experiments.wiring import composition, run_folder

HOSTILE = "<script>document.title='x'</script><img src=x onerror=\"document.title='y'\">&\""
ANSWER = f"<think>{HOSTILE}</think><answer><ins>one & only</ins><ins>two</ins></answer>"
VOID = {"meta", "img", "link", "input"}


class Balance(HTMLParser):
    """Checks that tags close in order, and gathers what they load."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]

    def handle_startendtag(self, tag, attributes):
        """Pass over an element that closes itself; none of these loads anything."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_run(folder, settings=("env=sis", "algo=cgpo"), seed=0, after=(0.7, 0.8), updates=2, **changes):
    """Write the files of a finished run of two samples, with names and texts that look like markup."""
    config = composition.compose([*settings, f"seed={seed}"]) | {"out": HOSTILE}
    run_folder.write(folder / "config.yaml", composition.dump(config))
    measures = {"ap50": None, HOSTILE: 0.5}
    before = {"reward": 0.25, "iasm": 0.25, **measures}
    ends = {"reward": sum(after) / 2, "iasm": sum(after) / 2, **measures, "ap50": 0.5}
    facts = {"algo": config["algo"]["name"], "seed": seed, "device": HOSTILE, "wall_s": 90.0, "steps": updates}
    facts |= {"env": config["env"]["name"], "split": "test", "versions": {"x": HOSTILE}} | changes
    run_folder.write_json(folder / "results.json", {**facts, "before": before, "after": ends})
    rows = [{"step": 0, "wall_s": 1.0, "held_out/iasm": 0.5}]
    for step in range(1, updates + 1):
        cost = {"generated_tokens": 100.0, "reward_calls": 8.0, "peak_memory_mib": 500.0 + step}
        rows.append({"step": step, "wall_s": 1.0 + 3 * step, "reward": 0.25 + seed, f"reward/{HOSTILE}": 1.0} | cost)
        rows[-1] |= {"entropy": math.nan, "grad_norm": 3.0, "new/name": 1.0}
    rows[-1] |= {"response_types/hrhc": 0.5}
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    samples = [
        {
            "task": "sis",
            "index": i,
            "key": f"{HOSTILE}{i}",
            "before": {"reward": 0.2 + 0.1 * i, "iasm": 0.2 + 0.1 * i, "answer": f"<think>{HOSTILE}</think>"},
            "after": {"reward": after[i], "iasm": after[i], "answer": ANSWER},
            "picture": f"sis-0{i}.png",
        }
        for i in range(2)
    ]
    text = "".join(f"{run_folder.to_json(row)}\n" for row in samples)
    run_folder.write(folder / "samples" / "answers.jsonl", text)
    Image.fromarray(np.zeros((2, 8, 3), np.uint8)).save(folder / "samples" / "sis-00.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def several(tmp_path):
    """Return two groups: three seeds that end high, and one that ends low."""
    seeds = [make_run(tmp_path / f"seed{seed}", seed=seed, after=(0.7 + seed / 100, 0.8)) for seed in range(3)]
    return [*seeds, make_run(tmp_path / "other", ("env=sis", "algo=grpo"), after=(0.3, 0.4))]


# One run.


def test_pages_are_well_formed_and_ask_for_nothing_outside(folder, several):
    for page in (report.render(folder), compare_report.render(several)):
        reader = Balance(page)
        assert reader.open == []
        assert reader.sources and all(re.match(r"data:|#", source) for source in reader.sources)
        assert not re.search(r"https?:|@import|url\(", page)
        assert "<script" not in page and page.count("&lt;script&gt;") >= 6


def test_expressions_have_the_colours_of_their_masks(folder):
    page = report.render(folder)
    assert '<mark class="m0">one &amp; only</mark>' in page and '<mark class="m1">two</mark>' in page
    assert "mark.m0 { background: rgb(230, 159, 0); color: #000; }" in page
    assert "mark.m4 { background: rgb(0, 114, 178); color: #fff; }" in page  # black on it would be hard to read
    assert "reward 0.200 → 0.700" in page and '<span class="good">(+0.500)</span>' in page
    odd = "<answer><ins>a</ins> b</answer>"
    assert report_page.coloured(odd, "sis") == escape(odd)


def test_answers_that_are_no_texts_are_not_shown():
    assert report_page.answer('[{"counts": "<ins>0"}]', "user_need") == ""
    assert report_page.answer(None, "sis") == ""
    assert report_page.answer("<b>", "sis") == "&lt;b&gt;"


def test_the_gallery_has_four_orders():
    gains = [0.1, -0.3, 0.4, -0.1, 0.2]
    rows = [{"n": n, "before": {"reward": 0.5}, "after": {"reward": 0.5 + gain}} for n, gain in enumerate(gains)]
    places = report._places(rows)
    assert [row["n"] for row, _ in places] == [1, 2, 3, 4, 0]  # losses and gains in turn
    order = {name: [row["n"] for row, _ in sorted(places, key=lambda pair: pair[1][name])] for name in report.ORDERS}
    assert order == {"turn": [1, 2, 3, 4, 0], "loss": [1, 3, 0, 4, 2], "gain": [2, 4, 0, 3, 1], "data": [0, 1, 2, 3, 4]}


def test_a_picture_that_is_gone_or_lies_elsewhere_is_left_out(folder):
    found = finished_run.read(folder)
    assert [found.picture(row) for row in found.samples] == [folder / "samples" / "sis-00.png", None]
    (folder / "secret.png").write_bytes(b"x")
    assert found.picture({"picture": "../secret.png"}) is None
    (folder / "samples" / "sis-00.png").unlink()
    assert "No picture was kept." in report.render(folder)


def test_every_curve_is_drawn_and_those_without_a_panel_are_folded_up(folder):
    page = report.render(folder)
    shown, _, folded = page.partition("Everything else that was logged: 1 more")
    titles = re.findall(r"<h4>(.*?)</h4>", shown)
    assert titles == [
        *("Reward and its terms", "Held-out measures", "Response types (share of the extremes)", "Gradient norm"),
        *("Seconds an update", "Tokens generated an update", "Rewards computed an update", "Peak memory (MiB)"),
    ]
    assert re.findall(r"<h4>(.*?)</h4>", folded) == ["new/name"]
    reward = shown.partition("Reward and its terms</h4>")[2].partition("</figure>")[0]
    assert reward.count("<polyline") == 2 and "c0" in reward and "c1" in reward
    seconds = shown.partition("Seconds an update</h4>")[2].partition("</figure>")[0]
    assert "<b>3</b>" in seconds and "update 2: 3</title>" in seconds and '<th scope="row">2</th><td>3</td>' in seconds


@pytest.mark.parametrize(
    "name",
    [
        *("train/entropy_loss", "train/value_loss", "train/approx_kl", "train/mse", "recalibration/loss", "isr/loss"),
        *("train/learning_rate", "train/grad_norm", "scoring_share", "train/advantage_deviation", "changed", "kl"),
    ],
)
def test_what_other_algorithms_log_has_a_panel(name):
    assert report.panel_of(name)


def test_many_points_are_smoothed_and_few_are_not():
    few, many = ([(step, float(step % 2)) for step in range(count)] for count in (40, 480))
    assert "raw" not in curves.figure("t", [curves.Curve("a", few)])
    drawn = curves.figure("t", [curves.Curve("a", many)])
    raw, smooth = re.findall(r'<polyline class="(?:raw|curve) c0" points="([^"]*)"', drawn)
    heights = [{point.partition(",")[2] for point in line.split()[50:-50]} for line in (raw, smooth)]
    levels = [max(map(float, found)) - min(map(float, found)) for found in heights]
    assert levels[0] > 100 and levels[1] < 10  # 20 neighbours on either side, and itself: about one half
    assert "<circle" not in drawn
    assert "from 0 to 1, between 0 and 1" in drawn
    assert report.smoothing_note([few]) == "" and "more than 40 points" in report.smoothing_note([few, many])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([3e-5, 3e-5], ["2.7e-05", "2.8e-05", "2.9e-05", "3e-05", "3.1e-05", "3.2e-05", "3.3e-05"]),
        ([0.0, 0.0], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        ([-5000.0, 5000.0], ["-4,000", "-2,000", "0", "2,000", "4,000"]),
    ],
)
def test_ticks_are_round_and_told_apart(values, labels):
    drawn = curves.figure("t", [curves.Curve("a", list(enumerate(values)))])
    found = re.findall(r'text-anchor="end">(.*?)</text>', drawn)
    assert len(set(found)) == len(found) >= 3
    assert [float(label.replace(",", "")) for label in found] == pytest.approx(
        [float(label.replace(",", "")) for label in labels]
    )


def test_the_table_has_intervals_of_means_and_of_paired_gains(folder):
    page = report.render(folder)
    row = re.search(r'<tr><th scope="row">reward</th>(.*?)</tr>', page).group(1)
    assert "0.250 <" in row.replace('<span class="">', "").replace("</span>", "") and "0.750" in row
    # Both samples gain 0.5, so the interval of the gain is a point, above 0.
    assert '<span class="good">+0.500</span> <span class="soft">[0.500, 0.500]</span>' in row
    assert '<tr><th scope="row">ap50</th><td>–</td><td>0.500</td><td>–</td></tr>' in page


def test_the_cost_is_told_in_words(folder):
    assert report.cost(finished_run.read(folder)) == (
        f"2 updates in 1 min 30 s on {HOSTILE}: 200 tokens generated, 16 rewards computed, 502 MiB of memory at most."
    )
    assert [finished_run.duration(seconds) for seconds in (1.25, 59.9, 3661)] == ["1.25 s", "59.9 s", "1 h 1 min"]


@pytest.mark.parametrize(
    ("name", "kind"), [("iasm", "bad"), ("noc85", "good"), ("sod/mae", "good"), ("characters", "")]
)
def test_a_loss_is_bad_where_more_is_better(name, kind):
    shown = report_page.number(-3.0, [-3.0, -4.0], finished_run.better(name))
    assert shown.startswith(f'<span class="{kind}">-3.000')


def test_what_is_no_finished_run_is_told_in_one_line(folder, tmp_path):
    (folder / "samples" / "answers.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"answers\.jsonl: cannot be read"):
        report.render(folder)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"its run is not finished: continue it with resume="):
        report.render(folder)
    with pytest.raises(UserError, match=r"no such file: expected the folder of a run"):
        report.render(tmp_path)


# Several runs.


def test_runs_are_grouped_by_what_differs_but_for_the_seed(several):
    groups = compare_report.group_runs([finished_run.read(folder) for folder in several])
    assert [(group.name, [run.results["seed"] for run in group.runs]) for group in groups] == [
        ("cgpo", [0, 1, 2]),
        ("grpo", [0]),
    ]
    assert "algo.name" in (keys := compare_report.differing(groups))
    assert not {"seed", "out", "env.name"} & set(keys)


def test_groups_of_one_algorithm_are_named_by_their_settings(tmp_path):
    rates = [
        make_run(
            tmp_path / rate, ("env=sis", "algo=cgpo", f"algo.learning_rate={rate}", f"evaluation.pictures={count}")
        )
        for count, rate in enumerate(("1e-4", "1e-5"))
    ]
    groups = compare_report.group_runs([finished_run.read(folder) for folder in rates])
    assert [group.name for group in groups] == ["cgpo, learning_rate=0.0001", "cgpo, learning_rate=1e-05"]
    assert compare_report.differing(groups) == ["algo.learning_rate"]


def test_intervals_are_over_three_seeds_else_over_samples(several):
    three, one = compare_report.group_runs([finished_run.read(folder) for folder in several])
    assert three.values("iasm", "after") == pytest.approx([0.75, 0.755, 0.76]) and three.over_seeds
    assert three.values("iasm", "gain") == pytest.approx([0.5, 0.505, 0.51])
    assert one.values("iasm", "gain") == pytest.approx([0.1, 0.1]) and not one.over_seeds
    two = compare_report.Group("two", {}, three.runs[:2])
    assert two.values("iasm", "after") == pytest.approx([0.705, 0.8])  # a sample's mean over both seeds
    assert one.values("ap50", "after") is None and one.mean("ap50", "gain") is None
    page = compare_report.render(several)
    assert "+0.505</span> <span" in page and "bootstrap over seeds where a group has three of them, else" in page


def test_the_conclusion_says_no_more_than_the_intervals_allow(several, tmp_path):
    def told(*folders):
        return compare_report.conclusions(compare_report.group_runs([finished_run.read(one) for one in folders]))

    assert told(*several)[1] == (
        "iasm: cgpo ends best, at 0.755 [0.750, 0.760], ahead of grpo, at 0.350 [0.300, 0.400]. "
        "The intervals, over seeds or samples, do not overlap; other seeds may end otherwise."
    )
    near = make_run(tmp_path / "near", ("env=sis", "algo=sft"), after=(0.35, 0.4))
    assert "over samples, overlap: the order may be chance" in told(several[3], near)[0]
    same = make_run(tmp_path / "same", ("env=sis", "algo=rloo"), after=(0.3, 0.4))
    assert "end the same, at 0.350" in told(several[3], same)[0]
    assert "there is nothing to compare" in told(several[0])[0]


def test_curves_are_means_of_seeds_in_a_band(several):
    page = compare_report.render(several[:3])
    panel = page.partition("<h4>reward</h4>")[2].partition("</figure>")[0]
    assert panel.count('class="band') == 1 and "cgpo, update 1: 1.25</title>" in panel  # of 0.25, 1.25 and 2.25
    assert 'class="band' not in compare_report.render(several[2:]).partition("<h4>reward</h4>")[2].partition("</fig")[0]


def test_samples_are_those_that_groups_share_a_picture_of(several):
    page = compare_report.render(several)
    assert page.count("data:image/png;base64,") == 2 and "grpo, seed 0</strong>: reward 0.300" in page
    (several[3] / "samples" / "sis-00.png").unlink()
    assert "No two groups kept a picture of the same sample." in compare_report.render(several)


def test_environments_have_sections_of_their_own(several, tmp_path):
    clicks = make_run(tmp_path / "clicks", ("env=point_prompt", "algo=random"))
    page = compare_report.render([*several, clicks])
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == ["sis", "point_prompt", "Runs"]
    assert "sis: iasm: cgpo ends best" in page


def test_the_command_writes_one_page_or_the_other(several, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(several[0])]) == 0
    assert (several[0] / "report.html").read_text(encoding="utf-8") == report.render(several[0])
    assert cli.main(["report", *map(str, several), "--out", "deep/page.html"]) == 0
    assert "4 runs in 2 groups" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert cli.main(["report", *map(str, several[2:])]) == 0 and (tmp_path / "comparison.html").exists()
    assert capsys.readouterr().out.split() == [f"{several[0]}/report.html", "deep/page.html", "comparison.html"]


def test_mistakes_are_one_line(several, tmp_path, capsys):
    def fault(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "is given twice" in fault(several[0], several[0])
    copy = make_run(tmp_path / "copy")
    assert f"{copy}: is the same run as {several[0]}" in fault(*several, copy)
    assert "expected the folder of a run that was started" in fault(several[0], tmp_path)
    (several[1] / "results.json").unlink()
    assert f"{several[1]}: its run is not finished" in fault(*several)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fault(several[0], "--out", tmp_path / "file" / "page.html")


# In a browser.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return the folders of real runs: text, two of masks, and clicks."""
    root = tmp_path_factory.mktemp("runs")
    small = ("evaluation.samples=4", "evaluation.pictures=4", "algo.updates=2")
    few = (
        "evaluation.samples=2",
        "evaluation.pictures=2",
        "env.num_envs=4",
        "algo.batch_size=4",
        "algo.isr_period=3",
        "algo.isr_sft_steps=1",
    )
    wanted = {
        "text": ("env=sis", "algo=cgpo", *few),
        "masks": ("env=user_need", "algo=usersal", "algo.batch_size=2"),
        "other": ("env=user_need", "algo=random", "algo.updates=0"),
        "clicks": ("env=point_prompt", "algo=random", "env.num_envs=4", "env.horizon=3", "algo.updates=0"),
    }
    for name, arguments in wanted.items():
        assert run.main([*small, *arguments, f"out={root / name}"]) == 0
    return SimpleNamespace(**{name: root / name for name in wanted})


@pytest.fixture
def opened(browser, tmp_path):
    """Return a function that shows a page from disk, and checks all that holds of every page."""

    def call(page, faults=((1280, False), (1280, True), (390, False))):
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        browser.driver.get(file.as_uri())
        script = browser.driver.execute_script
        for width, dark in faults:
            browser.size(width, 900, dark)
            assert browser.faults() == [], (width, dark)
            assert script("return document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.console() == []
        names = script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in names if not name.startswith("data:")] == []
        broken = script("return [...document.images].filter(image => !image.naturalWidth).length")
        assert broken == 0
        return browser.driver

    return call


def test_a_real_run_has_all_that_a_report_holds(opened, real):
    driver = opened((real.text / "report.html").read_text(encoding="utf-8"))
    words = driver.find_element("tag name", "body").text
    assert "2 updates in" in words and "tokens generated" in words and "iasm, before → after" in words
    titles = [item.get_attribute("textContent") for item in driver.find_elements("tag name", "h4")]
    assert {"Reward and its terms", "Confidence", "Response types (share of the extremes)", "Entropy"} <= set(titles)
    assert {"Response length (tokens)", "Seconds an update", "Peak memory (MiB)"} <= set(titles)
    assert len(driver.find_elements("css selector", "mark.m0")) >= 2
    logged = {name for row in run_folder.read_metrics(real.text / "metrics.csv") for name in row} - {"step", "wall_s"}
    legends = [item.get_attribute("textContent") for item in driver.find_elements("css selector", ".legend li")]
    assert {name for name in logged if any(name in legend for legend in legends)} == logged


@pytest.mark.parametrize("name", ["masks", "clicks"])
def test_real_runs_of_other_kinds_have_a_report(opened, real, name):
    driver = opened((getattr(real, name) / "report.html").read_text(encoding="utf-8"), faults=((390, True),))
    assert len(driver.find_elements("css selector", ".gallery figure")) == 4


def test_the_order_of_samples_is_chosen_without_a_script(opened, real):
    driver = opened((real.masks / "report.html").read_text(encoding="utf-8"), faults=())
    rows = finished_run.read(real.masks).samples
    keys = {name: [row["key"] for row in sorted(rows, key=finished_run.reward_gain)] for name in ("loss", "gain")}
    keys["gain"].reverse()
    for name, expected in (keys | {"data": [row["key"] for row in rows]}).items():
        driver.find_element("css selector", f"[value={name}]").click()
        figures = driver.find_elements("css selector", ".gallery figure")
        placed = sorted(figures, key=lambda figure: (figure.rect["y"], figure.rect["x"]))
        assert [figure.find_element("tag name", "strong").text for figure in placed] == expected, name


def test_real_runs_are_compared(opened, real):
    driver = opened(compare_report.render([real.masks, real.other, real.clicks]))
    words = driver.find_element("tag name", "body").text
    assert "3 runs in 3 groups" in words and "user_need: reward:" in words and "overlap" in words
    heads = [item.text for item in driver.find_elements("tag name", "h2")]
    assert heads == ["user_need", "point_prompt", "Runs"]
    rows = finished_run.read(real.masks).samples
    shown = [item.text for item in driver.find_elements("css selector", ".gallery h3")]
    assert sorted(shown) == sorted(row["key"] for row in rows)


def test_hostile_text_is_text(opened, folder, several):
    for page in (report.render(folder), compare_report.render(several)):
        driver = opened(page, faults=((390, False),))
        assert driver.title.endswith("· maskgym")
        for item in driver.find_elements("tag name", "details"):
            driver.execute_script("arguments[0].open = true", item)
        assert driver.find_element("tag name", "body").text.count(HOSTILE) >= 6
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
