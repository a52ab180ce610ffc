"""The page in a real browser: accept, edit, mend a mask, reject, reload, and a server that is killed in between."""

from __future__ import annotations

import json

import pytest

from maskgym.experiments.annotation.needs import dig, review
from maskgym.experiments.annotation.needs.project import Project

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

HOSTILE = '<img src=x onerror="document.title=1"> & find </script><script>document.title="2"</script> it'


class Page:
    """What a person sees and does."""

    def __init__(self, browser, folder) -> None:
        self.driver, self.log, self.folder = browser.driver, browser.console, folder

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.until(lambda: self.text("category"))

    def until(self, true):
        return WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: true())

    def find(self, name: str):
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.find(name).text

    def fields(self):
        return self.driver.find_elements("css selector", "#needs input")

    def needs(self) -> list[str]:
        return [field.get_property("value") for field in self.fields()]

    def press(self, key: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def at(self) -> str:
        return self.driver.execute_script("return location.hash.slice(1)")

    def made(self) -> dict:
        """Return the decisions that are on the disk."""
        return review.Decisions(Project(self.folder)).made

    def mask(self):
        return self.driver.execute_script("return shown.mask")


@pytest.fixture
def page(browser, project):
    return Page(browser, project.folder)


def test_a_session_of_work(page, project, serve):
    running = serve(project.folder)
    page.open(running.address)
    total = len(page.driver.execute_script("return list"))
    first = page.at()
    assert page.needs()[0].startswith("find a ") and page.text("status") == "undecided"

    page.press("a")  # accept
    page.until(lambda: page.at() != first)
    assert page.made()[first]["status"] == "accepted" and page.text("count").startswith(f"1 of {total}")

    second = page.at()  # edit: the text is saved when it is left, before anything is decided
    page.press("1")
    page.driver.switch_to.active_element.send_keys("find what i lost", webdriver.Keys.ENTER)
    page.until(lambda: page.made().get(second, {}).get("needs", [""])[0] == "find what i lost")
    assert page.made()[second]["status"] == "undecided"
    page.press("n")
    page.driver.switch_to.active_element.send_keys(HOSTILE, webdriver.Keys.ESCAPE)
    page.until(lambda: HOSTILE in page.made()[second]["needs"])
    page.driver.find_element("css selector", "[aria-label='remove command 2']").click()
    page.until(lambda: len(page.made()[second]["needs"]) == 3)
    page.find("accept").click()
    page.until(lambda: page.at() != second)
    assert page.made()[second]["needs"][0] == "find what i lost" and page.made()[second]["status"] == "accepted"

    third, before = page.at(), page.mask()  # mend the mask, in the whole image
    if page.find("closer").get_attribute("aria-pressed") == "true":
        page.press("f")
    canvas = page.find("canvas")
    webdriver.ActionChains(page.driver).move_to_element_with_offset(canvas, 60, -40).click().perform()
    page.until(lambda: len(page.made().get(third, {}).get("points", ())) == 1)
    once = page.mask()
    webdriver.ActionChains(page.driver).move_to_element_with_offset(canvas, -60, 40).context_click().perform()
    page.until(lambda: page.made()[third]["labels"] == [1, 0])
    assert before != once != page.mask()
    page.press("z")
    page.until(lambda: page.made()[third]["labels"] == [1])
    page.until(lambda: page.mask() == once)

    assert running.stop() < 0  # the server is killed; the page says so, and keeps what was typed
    page.press("2")
    page.driver.switch_to.active_element.send_keys("find it after the crash", webdriver.Keys.ENTER)
    page.until(lambda: "the server does not answer" in page.text("message"))
    again = serve(project.folder, "--port", running.address.rsplit(":", 1)[1].strip("/"))
    page.press("a")
    page.until(lambda: page.at() != third)
    kept = page.made()[third]
    assert kept["needs"][1] == "find it after the crash" and kept["labels"] == [1] and kept["status"] == "accepted"
    assert all("ERR_CONNECTION_REFUSED" in line for line in page.log())

    fourth = page.at()
    page.press("r")
    page.until(lambda: page.at() != fourth)
    assert page.made()[fourth]["status"] == "rejected"
    page.until(lambda: page.text("count") == f"4 of {total}: 3 accepted, 1 rejected")

    here = page.at()
    page.driver.refresh()
    page.until(lambda: page.at() == here and page.text("category") and page.text("count").startswith("4 of"))
    page.driver.get("about:blank")
    page.open(again.address)  # without a place: the first that is undecided
    assert page.at() == here
    page.press(webdriver.Keys.ARROW_LEFT)
    page.until(lambda: page.at() == fourth)
    assert page.text("status") == "rejected"
    page.press("u")
    page.until(lambda: page.made()[fourth]["status"] == "undecided" and page.text("status") == "undecided")
    assert page.log() == []


def test_a_click_means_the_pixel_under_it_also_from_close(page, project, serve):
    page.open(serve(project.folder).address)
    here = page.at()
    for number, closer in enumerate(("false", "true"), start=1):
        while page.find("closer").get_attribute("aria-pressed") != closer:
            page.press("f")
        size = page.find("canvas").size
        place = page.driver.execute_script("return [...frame(), ...shown.box]")
        offset = (int(size["width"] / 4), int(-size["height"] / 5))
        webdriver.ActionChains(page.driver).move_to_element_with_offset(page.find("canvas"), *offset).click().perform()
        page.until(lambda number=number: len(page.made().get(here, {}).get("points", ())) == number)
        left, top, width, height, *_ = place
        expected = (left + width * 3 / 4, top + height * 3 / 10)
        # A pixel of the screen is a part of a pixel of the image.
        assert page.made()[here]["points"][-1] == pytest.approx(expected, abs=1.5 * width / size["width"] + 0.1)
    left, top, width, height, *box = place
    assert width < 128 and left <= box[0] and top <= box[1] and left + width >= box[2] and top + height >= box[3]


def test_text_of_the_data_is_shown_and_never_run(page, project, serve):
    for stage, change in (("detect", {"category": HOSTILE}), ("needs", {"needs": [HOSTILE], "reason": HOSTILE})):
        file = next(iter(sorted((project.folder / stage).iterdir())))
        record = json.loads(file.read_text())
        record["objects"][0] |= change
        file.write_text(json.dumps(record))
    page.open(serve(project.folder).address)
    assert page.text("category") == HOSTILE and page.needs() == [HOSTILE] and HOSTILE in page.text("reason")
    assert page.driver.title == "maskgym: correct" and not page.driver.find_elements("css selector", "img")
    here = page.at()
    page.press("a")
    page.until(lambda: page.at() != here)
    assert [one["needs"] for one in page.made().values()] == [[HOSTILE]] and page.log() == []


def test_what_cannot_be_accepted_stays_with_the_reason(page, project, serve):
    page.open(serve(project.folder).address)
    here = page.at()
    page.press("1")
    page.driver.switch_to.active_element.send_keys("123 456", webdriver.Keys.ENTER)
    page.until(lambda: "hardly any letters" in page.text("message"))
    page.press("a")
    page.until(lambda: page.text("message").startswith("command 1"))
    assert page.at() == here and page.needs()[0] == "123 456"
    assert [line for line in page.log() if "400" not in line] == []


@pytest.mark.parametrize("size", [(390, 800), (1280, 900)])
def test_it_fits_a_phone_and_a_desk(page, project, serve, size):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
    )
    page.open(serve(project.folder).address)
    wide, height = page.driver.execute_script("return [document.documentElement.scrollWidth, innerHeight]")
    assert wide <= size[0] and height == size[1]
    box = page.find("accept").rect
    assert 0 <= box["x"] and box["x"] + box["width"] <= size[0] and box["height"] >= 40
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_a_person_accepted_is_exported_and_trained_on(page, project, serve, maskgym_run, tmp_path):
    page.open(serve(project.folder).address)
    total = len(page.driver.execute_script("return list"))
    for number in range(1, total + 1):
        page.until(lambda: page.text("status") == "undecided")
        page.press("r" if number == 1 else "a")
        page.until(lambda number=number: page.text("count").startswith(f"{number} of {total}"))
    assert dig.main([str(project.folder), "--stage", "export"]) == 0
    root = project.folder / "export"
    *first, last = sorted(path.stem for path in (root / "images").iterdir())
    (root / "train.txt").write_text("\n".join(first))
    (root / "test.txt").write_text(last)
    policy = ("policy.backbone.name=vst_tiny", "+policy.backbone.pretrained=false", "algo.updates=1", "env.num_envs=2")
    few = ("evaluation.samples=2", "evaluation.pictures=1", f"out={tmp_path}/run")
    status, _, error = maskgym_run("env=user_need", "algo=usersal", "data=coco", f"data.root={root}", *policy, *few)
    assert status == 0
    (line,) = error
    assert "the whole network has random weights, and is frozen" in line
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["key"].startswith(last) for row in rows)
