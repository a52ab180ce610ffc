"""Playing by hand: what the page is told is what the environment does, and a person can do it all in a browser."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from maskgym.agents.clicks.oracle import OracleAgent
from maskgym.data.run_lengths import decode_counts, runs
from maskgym.errors import UserError
from maskgym.experiments import cli, run
from maskgym.experiments.evaluation import evaluation

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from maskgym.experiments.web import kinds, play
from maskgym.experiments.wiring import build

HOSTILE = '<img src=x onerror="document.title=1"> & </script><script>document.title="2"</script>'
GOOD = "<think>A ring above two discs.</think><answer><ins>a blue ring at top center</ins></answer>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run that clicks, after one update."""
    folder = tmp_path_factory.mktemp("runs") / HOSTILE.replace("/", "")
    few = ("evaluation.samples=2", "evaluation.pictures=1", "env.num_envs=2")
    few += ("env.horizon=3", "env.label_source=policy")
    assert run.main(["env=point_prompt", "algo=ppo", "algo.updates=1", *few, f"out='{folder}'"]) == 0
    return folder


def game(out, *settings, folder=None) -> play.Game:
    return play.open_game(settings, folder, out)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return game(tmp_path_factory.mktemp("words"), "env=sis")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory, trained):
    return game(tmp_path_factory.mktemp("clicks"), folder=trained)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return game(tmp_path_factory.mktemp("ranks"), "env=ranking", "env.image_size=64", "env.steps=3")


def at(game, index=0, split="test", **more):
    return {"task": game.tasks[0], "split": split, "index": index, **more}


def unpacked(found, shape=(128, 128)) -> list[np.ndarray]:
    return [np.stack([decode_counts(row, shape) for row in rows]) for rows in found["masks"]]


def saved(game_or_folder) -> list[dict]:
    folder = getattr(getattr(game_or_folder, "journal", None), "folder", game_or_folder)
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_a_text_earns_what_the_environment_gives_and_is_saved(words):
    shown = words.show(at(words))
    assert shown["kind"] == "text" and "<ins>" in shown["asks"] and shown["skeleton"].count("<ins>") == 1
    found = words.step(at(words, actions=[GOOD], seconds=3.456, peeked=False))
    env = gym.make("maskgym/SIS-v0", split="test")
    env.reset(options={"index": 0})
    _, reward, _, _, info = env.step(GOOD)
    assert found["reward"] == reward and found["steps"][0]["terms"] == info["reward_terms"]
    assert (unpacked(found)[0] == info["masks"][0]).all() and found["ended"] == "terminated" and found["fault"] == ""
    assert (unpacked({"masks": found["truth"]})[0] == env.unwrapped.vector.dataset[0].masks[0]).all()
    row = saved(words)[-1]
    assert (row["actions"], row["rewards"], row["terms"]) == ([GOOD], [reward], [info["reward_terms"]])
    assert (row["key"], row["index"], row["split"], row["env"]) == (shown["key"], 0, "test", "sis")
    assert (row["seconds"], row["peeked"], row["ended"]) == (3.46, False, "terminated")
    assert np.asarray(Image.open(words.journal.folder / row["picture"])).shape[2] == 3
    best = words.against(at(words, who="reference"))
    assert best["reward"] > 0.9 and best["answer"]["tagged"] and len(saved(words)) == row_count(words)


def row_count(game) -> int:
    return len(list((game.journal.folder / "pictures").iterdir()))


def test_a_query_is_asked_and_answered_in_json(tmp_path):
    queries = game(tmp_path, "env=refer", "algo=random")
    shown = queries.show(at(queries))
    assert "Query: " in shown["asks"] and shown["skeleton"] == "<think></think><answer>[]</answer>"
    wrong = queries.check(at(queries, text="<think></think><answer>[1]</answer>"))
    told = 'a JSON list of {"bbox_2d": [left, top, right, bottom]}, and nothing else'
    assert tuple(wrong["findings"][-1]) == (False, told) and not wrong["tagged"]
    box = '<think></think><answer>[{"bbox_2d": [0, 0, 126, 126]}]</answer>'
    assert tuple(queries.check(at(queries, text=box))["findings"][-1]) == (True, "1 object")
    scored = queries.step(at(queries, actions=[box], seconds=1.0))
    assert 0 <= scored["reward"] < 1 and unpacked(scored)[0].shape == (1, 128, 128)
    best = queries.against(at(queries, who="reference"))
    assert best["reward"] >= 0.5 and best["answer"]["tagged"]


@pytest.mark.parametrize(
    ("settings", "entry", "expected"),
    [
        # The observed square has 126 pixels, and shows the image, of 128, whole.
        ((), '{"bbox_2d": [0, 63, 31.5, 126]}', {"box": [0, 0.5, 0.25, 1], "points": []}),
        ((), '{"bbox_2d": [-1e9, 0, 1e9, 63]}', {"box": [-0.02, 0, 1.02, 0.5], "points": []}),
        ((), '{"bbox_2d": [63, 0, 63, 126]}', {"box": None, "points": []}),
        (
            ("env.form=points", "env.coordinates=thousandths"),
            '{"points_2d": [[250, 500], [1000, 0], [1001, 5]], "labels": [1, 0, 1]}',
            {"box": None, "points": [[0.25, 0.5, 1], [1, 0, 0]]},
        ),
        (
            ("env.form=boxes_points",),
            '{"bbox_2d": [0, 0, 63, 63], "point_2d": [63, 31.5]}',
            {"box": [0, 0, 0.5, 0.5], "points": [[0.5, 0.25, 1]]},
        ),
    ],
)
def test_boxes_and_points_are_told_where_they_lie_on_the_image(tmp_path, settings, entry, expected):
    queries = game(tmp_path, "env=refer", *settings)
    (found,) = queries.check(at(queries, text=f"<think></think><answer>[{entry}]</answer>"))["objects"]
    assert found["box"] == (None if expected["box"] is None else pytest.approx(expected["box"]))
    assert np.allclose(found["points"], expected["points"]) and len(found["points"]) == len(expected["points"])
    assert queries.check(at(queries, text=f"<answer>[{entry}"))["objects"] == []


def test_boxes_and_points_lie_on_the_image_where_the_square_has_empty_rows_below(tmp_path):
    queries = game(tmp_path, "env=refer", "env.form=boxes_points")
    kind, sample = kinds.kind_of(queries._env("refer", "test")), queries._sample("refer", "test", 0)
    wide = {"images": (np.zeros((30, 60, 3), np.uint8),), "masks": (np.zeros((0, 30, 60), bool),), "phrases": None}
    wide = replace(sample, **wide)  # shown with 126 and 63 pixels
    text = '<think></think><answer>[{"bbox_2d": [0, 0, 63, 63], "point_2d": [63, 31.5]}]</answer>'
    (found,) = kind.describe(text, wide)["objects"]
    assert found == {"box": pytest.approx([0, 0, 0.5, 1]), "points": [pytest.approx([0.5, 0.5, 1])]}


def test_clicks_are_played_from_the_start_each_time(clicks):
    shown = clicks.show(at(clicks))
    assert (shown["kind"], shown["grid"], shown["most"], shown["labels"]) == ("clicks", 8, 3, "")
    actions = [[20, 1], [0, 0], [44, 1]]
    steps = [clicks.step(at(clicks, actions=actions[: count + 1])) for count in range(3)]
    assert [one["ended"] for one in steps] == ["", "", "truncated"] and row_count(clicks) == 1
    env = gym.make("maskgym/PointPrompt-v0", split="test", horizon=3, allow_repeated_clicks=False)
    env.reset(options={"index": 0})
    for action, found in zip(actions, steps, strict=True):
        _, reward, _, _, info = env.step(tuple(action))
        assert found["steps"][-1]["reward"] == reward and found["steps"][-1]["iou"] == info["iou"]
        assert (unpacked(found)[0] == info["masks"][0]).all()
    assert saved(clicks)[-1]["actions"] == actions
    # Undoing is playing less. Who labels clicks begins without prompts, in training too.
    again = clicks.step(at(clicks, split="train", actions=actions[:1]))
    clicks.step(at(clicks, split="train", actions=actions[:2]))
    assert clicks.step(at(clicks, split="train", actions=actions[:1])) == again and again["prompts"] == []
    assert all(clicks.against(at(clicks, split="train", who=who))["prompts"] == again["prompts"] for who in OTHERS)


OTHERS = ("reference", "policy")


def test_the_oracle_and_the_trained_policy_play_the_same_sample(clicks, trained):
    found = {who: clicks.against(at(clicks, index=5, who=who)) for who in OTHERS}
    assert all(len(one["steps"]) == 3 and one["ended"] == "truncated" for one in found.values())
    built = build.trained(trained)
    agent, envs = built.agent, built.envs
    ((_, expected),) = evaluation.episodes(agent, envs["point_prompt"], [5])
    assert expected["reward"] == found["policy"]["reward"] and expected["iou"] == found["policy"]["steps"][-1]["iou"]
    ((_, best),) = evaluation.episodes(OracleAgent(), envs["point_prompt"], [5])
    assert best["iou"] == found["reference"]["steps"][-1]["iou"] > 0.9


def test_masks_are_drawn_in_turn_and_what_they_cover_is_erased(ranks):
    shown = ranks.show(at(ranks))
    first = shown["outcome"]["now"]
    assert (first["width"], first["height"], shown["most"]) == (64, 64, 3)
    truth = unpacked(ranks.against(at(ranks, who="truth")))[0]
    drawn = [runs(mask[::2, ::2]) for mask in truth]
    one = ranks.step(at(ranks, actions=drawn[:1]))
    assert one["now"]["url"] != first["url"] and one["steps"][0]["found"] == 1 and one["steps"][0]["iou"] > 0.8
    end = ranks.step(at(ranks, actions=[*drawn[:1], [64 * 64]]))
    assert end["ended"] == "terminated" and end["steps"][1]["terms"]["s_measure"] == 0 and len(end["masks"][0]) == 1
    action = saved(ranks)[-1]["actions"][0]
    assert (decode_counts(action["counts"], tuple(action["size"])) == truth[0][::2, ::2]).all()


def test_several_tasks_and_images_in_a_group(tmp_path):
    several = game(tmp_path, "env=saliency")
    assert several.start()["tasks"] == ("sod", "sis", "cosod")
    shown = several.show({"task": "cosod", "split": "test", "index": 1})
    assert len(shown["images"]) == 4 and "[semantic]" in shown["skeleton"]
    text = several.against({"task": "cosod", "split": "test", "index": 1, "who": "reference"})
    assert len(text["masks"]) == 4 and text["reward"] > 0.5


def test_large_images_are_shown_smaller_with_their_masks(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "LARGEST", 16)
    small = game(tmp_path / "out", "env=sod", "data=folder", f"data.root={photo_folder}")
    place = at(small, split=small.split)
    (image,) = small.show(place)["images"]
    assert (image["width"], image["height"]) == (16, 12)
    ((mask,),) = small.against({**place, "who": "truth"})["masks"]
    assert decode_counts(mask, (12, 16))[:, :8].all() and not decode_counts(mask, (12, 16))[:, 8:].any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, [True, True, True]),
        ("<think></think><answer><ins></ins></answer>", [True, True, False]),
        ("<answer><ins>a disc</ins></answer>", [False, True, True]),
        ("<answer><ins>a disc</ins></answer><think></think>", [True, True, False, True]),
        ("<think></think><answer>a disc</answer></answer>", [True, False, False]),
        ("", [False, False, False]),
    ],
)
def test_what_is_malformed_is_told(words, text, expected):
    found = words.check(at(words, text=text))
    assert [right for right, _ in found["findings"]] == expected and found["text"] == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"task": "sod"}, "expected one of sis"),
        ({"split": "all"}, "expected one of"),
        ({"index": -1}, "the test split has samples 0 to 511"),
        ({"index": 512}, "samples 0 to 511"),
        ({"index": "0"}, "samples 0 to 511"),
        ({"index": True}, "samples 0 to 511"),
        ({"actions": GOOD}, "actions: expected a list"),
        ({"actions": [5]}, "expected a text of at most 20000 characters"),
        ({"actions": ["x" * 20_001]}, "expected a text of at most 20000 characters"),
        ({"actions": ["a", "b"]}, "2 actions: the episode is over after 1"),
        ({"actions": ["a"] * 10_000}, "10000 actions: the episode is over after 1"),
    ],
)
def test_what_cannot_be_played_is_told(words, given, expected):
    with pytest.raises(UserError, match=expected):
        words.step({**at(words, actions=[GOOD]), **given})


@pytest.mark.parametrize(
    "action", [5, [5], [64, 1], [-1, 1], [5, 2], [5, True], [5, 1.0], ["5", 1], [[5], 1], [10**30, 1]]
)
def test_what_is_no_click_is_told(clicks, action):
    with pytest.raises(UserError, match="a click: expected a patch from 0 to 63 and a label 0 or 1"):
        clicks.step(at(clicks, actions=[action]))


@pytest.mark.parametrize(
    "action", ["x", [64], [-1, 4097], [10**30], ["4096"], [2.0, 4094.0], [[4096]], {"size": [64, 64]}]
)
def test_what_is_no_mask_is_told(ranks, action):
    with pytest.raises(UserError, match="a mask: expected run lengths"):
        ranks.step(at(ranks, actions=[action]))


def is_index(value) -> bool:
    return type(value) is int and 0 <= value < 512


@pytest.mark.parametrize("route", ["show", "check", "step", "against"])
@pytest.mark.parametrize("name", ["words", "clicks", "ranks"])
def test_requests_with_something_wrong_in_them_are_refused_and_save_nothing(request, call, attack, name, route):
    game = request.getfixturevalue(name)
    app, place = play.make_app(game), at(game)
    legal = {"task": lambda value: False, "split": lambda value: False, "index": is_index}
    more = {
        "show": ({}, {}),
        "check": ({"text": GOOD}, {"text": lambda value: isinstance(value, str)}),
        "step": ({"actions": [], "seconds": 3.5, "peeked": True}, {"actions": lambda value: value == []}),
        "against": ({"who": "truth"}, {"who": lambda value: False}),
    }
    body, rules = more[route]
    if route == "check" and name != "words":
        assert call(app, "/api/check", {**place, **body})[0] == 400  # only answers in words have a form
        return

    def saves():
        file = game.journal.file
        return file.read_bytes() if file.exists() else b""

    attack(app, f"/api/{route}", {**place, **body}, {**legal, **rules}, saves, tries=40)


def test_nobody_else_plays(words, ranks):
    with pytest.raises(UserError, match="who 'policy': nobody of this name plays here"):
        words.against(at(words, who="policy"))
    assert [other["who"] for other in ranks.show(at(ranks))["others"]] == ["truth"]


def test_what_is_there_is_continued_and_a_cut_line_left_out(tmp_path):
    file, picture = tmp_path / "episodes.jsonl", np.zeros((2, 2, 3), np.uint8)
    play.Journal(tmp_path).add({"n": 1}, picture)
    file.write_bytes(file.read_bytes() + b'{"n": 2, "act')
    play.Journal(tmp_path).add({"n": 3}, picture)
    assert [(row["n"], row["picture"]) for row in saved(tmp_path)] == [
        (1, "pictures/0001.png"),
        (3, "pictures/0002.png"),
    ]
    file.write_bytes(file.read_bytes().rstrip(b"\n"))  # cut right before the line break: nothing is lost
    play.Journal(tmp_path).add({"n": 4}, picture)
    assert [row["n"] for row in saved(tmp_path)] == [1, 3, 4]
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="line 1 is no episode: choose another --out"):
        play.Journal(tmp_path)


@pytest.mark.parametrize("seconds", [10**400, -1, float("nan"), float("inf"), True, "3", None, [3], 1e300])
def test_a_time_that_is_none_is_not_saved(words, seconds):
    words.step(at(words, actions=[GOOD], seconds=seconds))
    assert saved(words)[-1]["seconds"] is None


def test_two_players_with_one_folder_lose_nothing(words, tmp_path):
    games = [play.Game(words.config, words._parts, play.Journal(tmp_path)) for _ in range(2)]
    picture, saves = np.zeros((2, 2, 3), np.uint8), 40

    def save(number):
        return games[number % 2]._save({"n": number}, picture)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(save, range(saves))) == {""}
    rows = saved(tmp_path)
    assert sorted(row["n"] for row in rows) == list(range(saves))
    assert [row["picture"] for row in rows] == [f"pictures/{count + 1:04d}.png" for count in range(saves)]


def test_an_episode_that_cannot_be_saved_is_shown_all_the_same(words, tmp_path, monkeypatch):
    (tmp_path / "pictures").write_text("in the way")
    monkeypatch.setattr(words, "journal", play.Journal(tmp_path))
    found = words.step(at(words, actions=[GOOD]))
    assert found["reward"] > 0 and "not saved" in found["fault"] and not (tmp_path / "episodes.jsonl").exists()


def test_mistakes_on_the_command_line_are_one_line(tmp_path, trained, capsys):
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, expected in (
            (["env=nope"], "unknown env 'nope'"),
            (["--run", str(tmp_path)], "config.yaml: no such file"),
            (["--run", str(trained), "env=sis"], "the environment of a run cannot be another one"),
            (["--port", "x"], "invalid int value"),
            (["--out", str(tmp_path / "file" / "out")], "cannot be written"),
            (["--port", str(port), "--out", str(tmp_path / "out")], f"--port {port}: "),
        ):
            assert cli.main(["play", *arguments]) == 2
            error = capsys.readouterr().err.splitlines()
            assert len(error) == 1 and error[0].startswith("error: ") and expected in error[0]


# Over the wire.


class Serving:
    """The command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.output = folder / "out", folder / "served.txt"
        self.output.write_text("")

        def act() -> None:
            torch.set_num_threads(1)
            os.dup2(os.open(self.output, os.O_WRONLY), 1)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(cli.main(["play", "--port", "0", "--out", str(self.folder), *arguments]))

        self.process = multiprocessing.get_context("fork").Process(target=act)
        self.process.start()
        ends = time.monotonic() + 60
        while not (found := re.search(r"http://\S+", self.output.read_text())):
            assert self.process.is_alive() and time.monotonic() < ends, self.output.read_text()
            time.sleep(0.02)
        self.address = found[0]

    def stop(self, number: int = signal.SIGKILL) -> int:
        """Send a signal; return how the process ended."""
        os.kill(self.process.pid, number)
        self.process.join(30)
        return self.process.exitcode


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Return a function that serves; what still runs at the end is killed."""
    started = []

    def act(*arguments: str) -> Serving:
        started.append(Serving(tmp_path_factory.mktemp("served"), *arguments))
        return started[-1]

    yield act
    for one in started:
        if one.process.is_alive():
            one.stop()


def ask(address, path="", body=None, content_type="application/json", **headers):
    """Return the status and the content of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": content_type, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_who_is_not_let_in_and_how_it_ends(serve):
    running = serve("env=sis")
    place = {"task": "sis", "split": "test", "index": 0}
    assert ask(running.address, "api/start", Host="evil.example")[0] == 421
    assert ask(running.address, "api/show", place, content_type="text/plain")[0] == 415
    assert ask(running.address, "api/step", {**place, "actions": ["x" * 2_000_000]})[0] == 413
    status, answer = ask(running.address, "api/show", {**place, "index": 600})
    assert (status, json.loads(answer)) == (400, {"error": "sample 600: the test split has samples 0 to 511"})
    lone = "\ud800<answer>"  # no UTF-8 has it
    status, answer = ask(running.address, "api/step", {**place, "actions": [lone]})
    assert status == 200 and json.loads(answer)["answer"]["text"] == lone == saved(running.folder)[0]["actions"][0]
    page = ask(running.address)[1]
    assert (
        b"NONCE" not in page and b"https://" not in page and b"http://" not in page.replace(b"http://www.w3.org", b"")
    )
    assert running.stop(signal.SIGINT) == 0 and running.output.read_text().endswith("\nended\n")


def test_wider_than_this_machine_a_token_is_asked_for(serve):
    running = serve("env=sis", "--host", "0.0.0.0")
    address, token = re.match(r"(http://.*/)\?token=(\S+)", running.address).groups()
    address = address.replace("0.0.0.0", "127.0.0.1")
    assert len(token) >= 32 and ask(address, "api/start")[0] == 401 and ask(address, "api/show", {})[0] == 401
    assert ask(address)[0] == 401 and ask(address, "api/start", Cookie=f"maskgym_token={token}")[0] == 200


# In a browser.


class Page:
    """What a person sees and does."""

    def __init__(self, browser) -> None:
        self.browser, self.driver = browser, browser.driver

    def open(self, running: Serving) -> Page:
        self.running = running
        self.driver.get(running.address)
        self.rest()
        return self

    def js(self, code: str):
        return self.driver.execute_script(code)

    def until(self, true):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, poll_frequency=0.02).until(lambda _: true())

    def rest(self) -> None:
        self.until(lambda: self.js("return shown && outcome && !working"))

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def press(self, name: str) -> None:
        self.find(f"#{name}").click()
        self.rest()

    def text(self, css: str) -> str:
        return self.find(css).text

    def write(self, text: str) -> None:
        self.find("#text").clear()
        self.find("#text").send_keys(text)

    def offset(self, x: float, y: float) -> tuple:
        """Return the canvas and a place on it, in shares, as from its middle."""
        canvas = self.find("#pictures canvas")
        return canvas, int((x - 0.5) * canvas.rect["width"]), int((y - 0.5) * canvas.rect["height"])

    def hand(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver, duration=10)

    def see(self, who: str) -> str:
        """Have another shown; return what its card says."""
        card = self.until(lambda: self.find(f"[data-who={who}]"))
        title = card.get_attribute("aria-label").removeprefix("show: ")
        card.click()
        self.until(lambda: self.js(f"return others.{who} && others.{who} !== 'busy'"))
        return self.text(f"article[aria-label='{title}']")

    def check(self) -> None:
        """See that it fits and that everybody can use it, on a desk and on a phone, light and dark."""
        for width, height in ((1280, 900), (390, 844)):
            for dark in (False, True):
                self.browser.size(width, height, dark)
                assert self.js("return document.documentElement.scrollWidth") <= width
                assert self.browser.faults() == []
        self.browser.size(1280, 900)


@pytest.fixture
def page(browser):
    return Page(browser)


@pytest.fixture(scope="module")
def texts(serve):
    return serve("env=sis")


def test_a_text_is_typed_scored_and_compared(page, texts):
    from selenium.webdriver import Keys

    page.open(texts)
    assert page.text("#key") == "sis-test-00000" and not page.find("[data-who=reference]").is_enabled()
    page.write("<think>A ring</think><answer>")
    page.until(lambda: "there are 1 and 0" in page.text("#findings"))
    page.check()
    page.write(GOOD)
    page.find("#more").click()
    page.driver.switch_to.active_element.send_keys("a blue disc at middle center")
    page.until(lambda: "2 expressions" in page.text("#findings"))
    page.find("#text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.rest()
    (row,) = saved(texts.folder)
    assert row["actions"][0].endswith("</ins><ins>a blue disc at middle center</ins></answer>") and not row["peeked"]
    assert page.text("#message") == f"Reward {row['reward']:.3f}. Saved."
    card = page.text("article[aria-label=You]")
    assert f"{row['reward']:.3f}" in card and f"{row['terms'][0]['correctness']:.3f}" in card
    colours = page.js("return [...document.querySelectorAll('mark')].map((m) => [m.textContent, m.style.background])")
    assert colours == [
        ["a blue ring at top center", "rgb(230, 159, 0)"],
        ["a blue disc at middle center", "rgb(86, 180, 233)"],
    ]
    assert "salient : 3" in page.see("reference")
    page.check()
    page.press("again")
    page.write("no tags at all")
    page.press("score")
    assert saved(texts.folder)[-1]["peeked"] is True and "0.000" in page.text("#message")
    page.press("onward")
    assert page.text("#key") == "sis-test-00001" and page.find("#text").get_property("value").startswith(
        "<think></think>"
    )
    page.driver.refresh()
    page.rest()
    assert page.text("#key") == "sis-test-00001"
    page.find("body").send_keys("p")
    page.until(lambda: page.text("#key") == "sis-test-00000")
    page.find("#index").clear()
    page.find("#index").send_keys("600", Keys.ENTER)
    page.until(lambda: page.text("#message") == "sample 600: the test split has samples 0 to 511")
    assert page.text("#key") == "sis-test-00000"
    assert [line for line in page.browser.console() if "400 (Bad Request)" not in line] == []


def test_boxes_are_drawn_while_they_are_typed_and_beside_the_masks(page, serve):
    orange = "230, 159, 0"  # of the first mask

    def drawn(canvas: str) -> bool:
        """Whether the middle of the box's right side has its colour; the canvas has 640 pixels, the square 126."""
        x, y = 5 * 128 * 100 // 126, 5 * 128 * 60 // 126
        code = f"document.querySelector(`{canvas}`).getContext('2d').getImageData({x}, {y}, 1, 1).data"
        return page.js(f"return [...{code}].slice(0, 3).join(', ')") == orange

    running = serve("env=refer")
    page.open(running)
    page.write('<think></think><answer>[{"bbox_2d": [20, 20, 100, 100]}]</answer>')
    page.until(lambda: drawn("#pictures canvas"))
    page.write('<think></think><answer>[{"bbox_2d": [20, 20, 100, 100')
    page.until(lambda: not drawn("#pictures canvas"))
    page.write('<think></think><answer>[{"bbox_2d": [20, 20, 100, 100]}]</answer>')
    page.press("score")
    assert drawn("#pictures canvas") and drawn("article[aria-label=You] canvas")
    assert '"bbox_2d": [20, 20, 100, 100]' in page.text("article[aria-label=You]")
    (row,) = saved(running.folder)
    assert page.text("#message") == f"Reward {row['reward']:.3f}. Saved."
    page.press("overlay")
    assert not drawn("#pictures canvas")
    assert '"bbox_2d"' in page.see("reference")
    page.check()
    page.press("onward")
    assert not drawn("#pictures canvas")
    assert [line for line in page.browser.console() if "willReadFrequently" not in line] == []  # of this test


def test_clicks_with_a_mouse_and_with_keys(page, serve, trained):
    from selenium.webdriver import Keys

    running = serve("--run", str(trained))
    page.open(running)
    canvas, x, y = page.offset(4.5 / 8, 2.5 / 8)
    page.hand().move_to_element_with_offset(canvas, x, y).click().perform()
    page.until(lambda: page.js("return actions.length === 1 && !working"))
    assert page.text("#steps tbody").split()[:4] == ["1", "3", "5", "in"]
    page.hand().move_to_element_with_offset(canvas, x + 100, y).context_click().perform()
    page.until(lambda: page.js("return actions.length === 2 && !working"))
    page.press("undo")
    assert page.js("return actions") == [[20, 1]]
    page.check()
    canvas = page.find("#pictures canvas")
    canvas.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP)  # the first shows where it is: row 5, column 5
    assert page.text("#message") == "row 4, column 4"
    canvas.send_keys(Keys.ENTER)
    page.until(lambda: page.js("return actions.length === 2 && !working"))
    page.find("#labels input[value='0']").click()
    canvas.send_keys(Keys.ARROW_UP, " ")
    page.until(lambda: page.js("return outcome.ended") == "truncated")
    page.rest()
    (row,) = saved(running.folder)
    assert row["actions"] == [[20, 1], [27, 1], [19, 0]] and row["ended"] == "truncated"
    assert page.text("#message").endswith(f"Over: {row['reward']:.3f} in all. Saved.")
    assert "last IoU" in page.see("reference") and f"ppo, {trained.name}" in page.see("policy")
    assert page.driver.title == "maskgym: play" and not page.driver.find_elements("css selector", "img")
    page.check()
    assert page.browser.console() == []


def test_a_mask_is_drawn(page, serve):
    from selenium.webdriver import Keys

    running = serve("env=user_need")
    page.open(running)
    page.js("at('size').value = 20")
    for ends in ((0.3, 0.3, 0.6, 0.3), (0.6, 0.3, 0.6, 0.6)):
        canvas, x, y = page.offset(*ends[:2])
        hand = page.hand().move_to_element_with_offset(canvas, x, y).click_and_hold()
        hand.move_to_element_with_offset(canvas, *page.offset(*ends[2:])[1:]).release().perform()
    canvas.send_keys(Keys.ARROW_DOWN, " ")  # a dab in the middle
    drawn = np.array(page.js("return [...brush.inside]")).reshape(128, 128).astype(bool)
    assert drawn[38, 38:77].all() and drawn[40:77, 77].all() and drawn[64, 64] and 0.05 < drawn.mean() < 0.4
    page.press("unstroke")
    assert not page.js("return brush.inside[64 * 128 + 64]")
    page.check()
    page.press("unstroke")
    drawn = np.array(page.js("return [...brush.inside]")).reshape(128, 128).astype(bool)
    page.press("reveal")
    page.press("submit")
    (row,) = saved(running.folder)
    action = row["actions"][0]
    assert (decode_counts(action["counts"], tuple(action["size"])) == drawn).all() and row["peeked"] is True
    assert page.text("#message") == f"Mask 1 of 1: reward {row['reward']:.3f}, IoU {row['iou'][0]:.3f}. " + (
        f"Over: {row['reward']:.3f} in all. Saved."
    )
    assert "the need taken as a phrase" in page.see("reference")
    page.check()
    assert page.browser.console() == []


def test_text_of_the_data_is_shown_and_never_run(page, serve, tmp_path):
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    name = HOSTILE.replace("/", "") + ".png"
    Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(root / "images" / name)
    box = {"id": 1, "image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "category_id": 1, "needs": [HOSTILE]}
    photo = {"id": 1, "file_name": name, "height": 12, "width": 16}
    content = {"images": [photo], "annotations": [box], "categories": [{"id": 1, "name": HOSTILE}]}
    (root / "annotations.json").write_text(json.dumps(content))
    running = serve("env=user_need", "data=coco", f"data.root={root}")  # one photo: two of the splits are empty
    page.open(running)
    assert page.text("#asks") == HOSTILE and HOSTILE.replace("/", "") in page.text("#key")
    page.press("submit")
    assert saved(running.folder)[0]["asks"] == HOSTILE
    empty = next(split for split in ("train", "validation", "test") if split != page.js("return place.split"))
    page.find(f"#split option[value={empty}]").click()
    page.until(lambda: "has no sample there" in page.text("#message"))
    page.open(serve("env=sis"))
    page.write(f"<think>{HOSTILE}</think><answer><ins>{HOSTILE}</ins></answer>")
    page.press("score")
    assert HOSTILE in page.text("article[aria-label=You]")
    assert page.driver.title == "maskgym: play" and not page.driver.find_elements("css selector", "img")
    assert [line for line in page.browser.console() if "400 (Bad Request)" not in line] == []
