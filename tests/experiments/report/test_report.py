"""The page of one run and the page of several: what they hold, by their text and in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from maskgym.errors import UserError
from maskgym.experiments import cli, run
from maskgym.experiments.report import report, run_data
from maskgym.experiments.wiring import run_folder

VOID = {"meta", "img", "link", "input"}


class Balance(HTMLParser):
    """Checks that tags close in order, and gathers their names, their attributes and what they load."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.tags, self.attributes = [], [], set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]

    def handle_startendtag(self, tag, attributes):
        """Pass over an element that closes itself; none of these loads anything."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# One run.


def test_pages_are_well_formed_and_ask_for_nothing_outside(make_run, hostile, several, tmp_path):
    odd = make_run(tmp_path / "odd", ("env=sis", "algo=rloo"), env=hostile, algo=hostile, split=hostile)
    for folders in (several[:1], several, [odd], [*several, odd]):
        page = report.render(folders)
        reader = Balance(page)
        assert reader.open == []
        assert reader.sources and all(re.match(r"data:|#", source) for source in reader.sources)
        assert not re.search(r"https?:|@import|url\(", page) and "script" not in reader.tags
        assert not [name for name in reader.attributes if name.startswith("on")]
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
        assert page.count("&lt;script&gt;") >= 6 and page == report.render(folders)


def test_a_damaged_picture_is_named(folder):
    file = folder / "samples" / "sis-00.png"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sis-00\.png: is no picture, or damaged: remove it"):
        report.render([folder])


def test_expressions_have_the_colours_of_their_masks(folder):
    page = report.render([folder])
    assert '<mark class="m0">one &amp; only</mark>' in page and '<mark class="m1">two</mark>' in page
    assert "mark.m0 { background: rgb(230, 159, 0); color: #000; }" in page
    assert "mark.m4 { background: rgb(0, 114, 178); color: #fff; }" in page  # black on it would be hard to read
    assert "reward 0.200 → 0.700" in page and '<span class="good">(+0.500)</span>' in page
    odd = "<answer><ins>a</ins> b</answer>"
    assert report.answer(odd, "sis") == [(odd, None)]


def test_answers_that_are_no_texts_are_not_shown():
    assert report.answer('[{"counts": "<ins>0"}]', "user_need") == []
    assert report.answer(None, "sis") == []
    assert report.answer("<b>", "sis") == [("<b>", None)]


def test_the_gallery_has_four_orders(folder):
    gains = [0.1, -0.3, 0.4, -0.1, 0.2]
    rows = [
        {"n": n, "picture": "sis-00.png", "before": {"reward": 0.5}, "after": {"reward": 0.5 + gain}}
        for n, gain in enumerate(gains)
    ]
    places = report.places(replace(run_data.read(folder), samples=[*rows, rows[0] | {"picture": None}]))
    assert [row["n"] for row, _ in places] == [1, 2, 3, 4, 0]  # losses and gains in turn
    order = {name: [row["n"] for row, _ in sorted(places, key=lambda pair: pair[1][name])] for name in places[0][1]}
    assert order == {"turn": [1, 2, 3, 4, 0], "loss": [1, 3, 0, 4, 2], "gain": [2, 4, 0, 3, 1], "data": [0, 1, 2, 3, 4]}
    (folder / "samples" / "sis-00.png").unlink()
    assert "No picture was kept." in report.render([folder])


def test_every_curve_is_drawn_and_those_without_a_panel_are_folded_up(folder):
    page = report.render([folder])
    shown, _, folded = page.partition("Everything else that was logged: 1 more")
    titles = re.findall(r"<h4>(.*?)</h4>", shown)
    assert titles == [
        *("Reward and its terms", "Held-out measures", "Response types (share of the extremes)", "Gradient norm"),
        *("Seconds per update", "Tokens generated per update", "Rewards computed per update", "Peak memory (MiB)"),
    ]
    assert re.findall(r"<h4>(.*?)</h4>", folded) == ["new/name"]
    reward = shown.partition("Reward and its terms</h4>")[2].partition("</figure>")[0]
    assert reward.count('class="curve') == 4 and "c0" in reward and "c1" in reward
    seconds = shown.partition("Seconds per update</h4>")[2].partition("</figure>")[0]
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


def test_the_table_has_intervals_of_means_and_of_paired_gains(folder):
    page = report.render([folder])
    row = re.search(r'<tr><th scope="row">reward</th>(.*?)</tr>', page).group(1)
    assert "0.250 <" in row.replace('<span class="">', "").replace("</span>", "") and "0.750" in row
    # Both samples gain 0.5, so the interval of the gain is a point, above 0.
    assert '<span class="good">+0.500</span> <span class="soft">[0.500, 0.500]</span>' in row
    assert '<tr><th scope="row">ap50</th><td>–</td><td>0.500</td><td>–</td></tr>' in page


def test_the_cost_is_told_in_words(folder, hostile):
    told = re.search(r'<p class="lead">(.*?)</p>', report.render([folder]), re.S).group(1)
    assert unescape(" ".join(told.split())) == (
        f"2 updates in 1 min 30 s on {hostile}: 200 tokens generated, 16 rewards computed, 502 MiB of memory at most."
    )
    assert [report.duration(seconds) for seconds in (1.25, 59.9, 3661)] == ["1.25 s", "59.9 s", "1 h 1 min"]


# Several runs.


def test_measures_have_intervals_over_seeds_or_samples(several):
    page = report.render(several)
    assert "+0.505</span> <span" in page and "seeds where a group has three of them, otherwise over samples" in page
    assert "bootstrap over\nseeds.\n" in report.render(several[:3])
    assert "samples: no group has 3 seeds" in report.render(several[2:])


def test_curves_are_means_of_seeds_in_a_band(several):
    page = report.render(several[:3])
    panel = page.partition("<h4>reward</h4>")[2].partition("</figure>")[0]
    assert panel.count('class="band') == 1 and "cgpo, update 1: 1.25</title>" in panel  # of 0.25, 1.25 and 2.25
    assert 'class="band' not in report.render(several[2:]).partition("<h4>reward</h4>")[2].partition("</fig")[0]


def test_samples_are_those_that_groups_share_a_picture_of(several):
    page = report.render(several)
    assert page.count("data:image/png;base64,") == 2 and "grpo, seed 0</strong>: reward 0.300" in page
    (several[3] / "samples" / "sis-00.png").unlink()
    assert "No two groups kept a picture of the same sample." in report.render(several)


def test_undefined_rewards_and_scores_are_dashes(several):
    """A reward of the user that is NaN is null in the files; the page is written all the same."""
    for folder, sides in zip(several, (("before", "after"), ("after",), ("before",), ("after",)), strict=True):
        rows = (folder / "samples" / "answers.jsonl").read_text()
        for value in ("0.2", "0.3", "0.7", "0.71", "0.72", "0.8", "0.4"):
            rows = rows.replace(f'"reward": {value},', '"reward": null,')
        assert '"reward": null' in rows
        (folder / "samples" / "answers.jsonl").write_text(rows)
        results = run_folder.read_json(folder / "results.json")
        for side in sides:
            results[side] = dict.fromkeys(results[side])
        run_folder.write_json(folder / "results.json", results)
    page = report.render(several[:1])
    assert Balance(page).open == [] and "reward – → –" in page and "It is undefined in 2 more." in page
    assert Balance(report.render(several)).open == []


def test_the_number_of_samples_stands_beside_the_scores(make_run, tmp_path, folder):
    assert "2 samples of the test split" in report.render([folder])  # an older run
    counted = {"sis": {"n": 16, "of": 512, "split": "test", "notes": ["3 photos are left out"]}}
    folders = [make_run(tmp_path / f"new{seed}", seed=seed, samples=counted) for seed in (7, 8)]
    for page in (report.render(folders[:1]), report.render(folders)):
        assert "16 of the 512 test samples" in page and "3 photos are left out" in page
        assert "Warning: with fewer than 30 samples, differences are mostly chance" in page


def of(data, backbone="b"):
    held_out = {"name": "duts", "root": "<DUTS>", "split": "test", "samples": 2, "fingerprint": data}
    weights = {"backbone": {"name": "vst", "fingerprint": backbone, "random": False}}
    return {"held_out": {"sis": held_out}, "train": {}, "weights": weights}


def test_runs_of_other_data_or_weights_are_marked_in_red(make_run, tmp_path):
    folders = [
        make_run(tmp_path / name, ("env=sis", f"algo={algo}"), provenance=found)
        for name, algo, found in (("a", "cgpo", of("d")), ("b", "grpo", of("e")), ("c", "dapo", of("d", "other")))
    ]
    page = report.render(folders)
    red = [unescape(line) for line in re.findall(r'<p class="red">(.*?)</p>', page)]
    assert re.search(r"\.red \{ color: var\(--red\)", page) and "--red: light-dark(#b00020" in page
    told = "held-out data: not comparable: duts in <DUTS>, test, 2 samples (d) in 'cgpo', 'dapo'; duts"
    assert red[0].startswith(told) and red[1].startswith("backbone: not comparable: vst (b) in")
    assert len(red) == 2
    assert 'class="red"' not in report.render([folders[0]])
    assert "<li>held-out data: duts in &lt;DUTS&gt;, test, 2 samples (d)</li>" in report.render([folders[0]])
    assert 'class="red"' not in report.render([folders[0], make_run(tmp_path / "d", seed=1, provenance=of("d"))])


def test_runs_that_do_not_name_their_data_are_marked_in_red(make_run, tmp_path):
    folders = [make_run(tmp_path / "a", provenance=of("d")), make_run(tmp_path / "b", seed=1)]
    (line,) = re.findall(r'<p class="red">(.*?)</p>', report.render(folders))
    assert line == "1 of 2 results do not name their data, segmenter and weights"
    with pytest.raises(UserError, match=r"results\.json: provenance: expected held_out, train, weights"):
        report.render([make_run(tmp_path / "c", provenance={"held_out": 1})])


def test_average_precision_of_two_rules_is_marked(make_run, tmp_path):
    folders = [make_run(tmp_path / "old"), make_run(tmp_path / "new", seed=1, average_precision="equal scores jointly")]
    assert "AP50 and AP70 of 1 of 2 runs are of the older rule" in report.render(folders)
    assert "of the older rule" in report.render(folders[:1]) and "of the older rule" not in report.render(folders[1:])


def test_a_folder_of_runs_is_all_its_runs(several, tmp_path):
    assert report.write([tmp_path], tmp_path / "all.html").read_text() == report.render(sorted(several))
    with pytest.raises(UserError, match="no such file: expected the folder of a run"):
        report.write([tmp_path / "nowhere"])


def test_environments_have_sections_of_their_own(make_run, several, tmp_path):
    clicks = make_run(tmp_path / "clicks", ("env=point_prompt", "algo=random"))
    page = report.render([*several, clicks])
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == ["sis", "point_prompt", "Runs"]
    assert "sis: iasm: cgpo ends best" in page


def test_the_command_writes_one_page_or_the_other(several, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(several[0])]) == 0
    assert (several[0] / "report.html").read_text(encoding="utf-8") == report.render(several[:1])
    assert cli.main(["report", *map(str, several), "--out", "deep/page.html"]) == 0
    assert "4 runs in 2 groups" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert cli.main(["report", *map(str, several[2:])]) == 0 and (tmp_path / "comparison.html").exists()
    assert capsys.readouterr().out.split() == [f"{several[0]}/report.html", "deep/page.html", "comparison.html"]


def test_mistakes_are_one_line(make_run, several, tmp_path, capsys):
    def fault(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert f"{several[0]}: is the same run as {several[0]}: expected each run once" in fault(several[0], several[0])
    copy = make_run(tmp_path / "copy")
    assert f"{copy}: is the same run as {several[0]}" in fault(*several, copy)
    assert "expected the folder of a run that was started" in fault(several[0], tmp_path / "nowhere")
    (several[1] / "results.json").unlink()
    assert f"{several[1]}: its run is not finished" in fault(*several)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fault(several[0], "--out", tmp_path / "file" / "page.html")


# In a browser.


@pytest.fixture(scope="module")
def real(finished_run, tmp_path_factory):
    """Return the folders of real runs: text, two of masks, and clicks."""
    other = tmp_path_factory.mktemp("runs") / "other"
    arguments = ("env=user_need", "algo=random", "evaluation.samples=4", "evaluation.pictures=4")
    assert run.main([*arguments, f"out={other}"]) == 0
    names = {"text": "cgpo", "masks": "usersal", "clicks": "ppo"}
    return SimpleNamespace(**{name: finished_run(of) for name, of in names.items()}, other=other)


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


def test_a_real_run_has_all_that_a_report_holds(finished_run):
    folder = finished_run("cgpo")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "4 updates in" in page and "tokens generated" in page and "iasm, before → after" in page
    titles = set(re.findall(r"<h4>(.*?)</h4>", page))
    assert {"Reward and its terms", "Confidence", "Response types (share of the extremes)", "Entropy"} <= titles
    assert {"Response length (tokens)", "Seconds per update", "Peak memory (MiB)"} <= titles
    logged = {name for row in run_folder.read_metrics(folder / "metrics.csv") for name in row} - {"step", "wall_s"}
    legends = re.findall(r"</svg>\s*(\S+) <b>", page)
    assert logged <= set(legends)


def test_the_page_of_a_real_run_is_drawn(opened, real):
    driver = opened((real.text / "report.html").read_text(encoding="utf-8"))
    assert len(driver.find_elements("css selector", "mark.m0")) >= 2
    assert "tokens generated" in driver.find_element("tag name", "body").text
    drawn = driver.find_elements("css selector", ".panel .curve, .panel .dot")
    assert any(item.rect["width"] > 20 for item in drawn) and all(
        item.value_of_css_property("stroke") for item in drawn
    )


@pytest.mark.parametrize("name", ["masks", "clicks"])
def test_real_runs_of_other_kinds_have_a_report(opened, real, name):
    driver = opened((getattr(real, name) / "report.html").read_text(encoding="utf-8"), faults=((390, True),))
    assert len(driver.find_elements("css selector", ".gallery figure")) == 2


def test_the_order_of_samples_is_chosen_without_a_script(opened, real):
    driver = opened((real.masks / "report.html").read_text(encoding="utf-8"), faults=())
    rows = [row for row in run_data.read(real.masks).samples if row.get("picture")]
    keys = {name: [row["key"] for row in sorted(rows, key=run_data.reward_gain)] for name in ("loss", "gain")}
    keys["gain"].reverse()
    for name, expected in (keys | {"data": [row["key"] for row in rows]}).items():
        driver.find_element("css selector", f"[value={name}]").click()
        figures = driver.find_elements("css selector", ".gallery figure")
        placed = sorted(figures, key=lambda figure: (figure.rect["y"], figure.rect["x"]))
        assert [figure.find_element("tag name", "strong").text for figure in placed] == expected, name


def test_real_runs_are_compared(opened, real):
    driver = opened(report.render([real.masks, real.other, real.clicks]), faults=((1280, True),))
    words = driver.find_element("tag name", "body").text
    assert "3 runs in 3 groups" in words and "user_need: reward:" in words and "overlap" in words
    heads = [item.text for item in driver.find_elements("tag name", "h2")]
    assert heads == ["user_need", "point_prompt", "Runs"]
    rows = [row for row in run_data.read(real.masks).samples if row.get("picture")]
    shown = [item.text for item in driver.find_elements("css selector", ".gallery h3")]
    assert sorted(shown) == sorted(row["key"] for row in rows)


def test_hostile_text_is_text(opened, hostile, several):
    for page in (report.render(several[:1]), report.render(several)):
        driver = opened(page, faults=((390, False),))
        assert driver.title.endswith("· maskgym")
        for item in driver.find_elements("tag name", "details"):
            driver.execute_script("arguments[0].open = true", item)
        assert driver.find_element("tag name", "body").text.count(hostile) >= 6
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
