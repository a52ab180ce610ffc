"""The documentation site, built once with warnings as errors: its pages, and how a browser opens them from disk."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.experiments.wiring.composition import groups

pytest.importorskip("mkdocs")
from mkdocs.structure.files import File, Files

pytestmark = pytest.mark.e2e(seconds=3)  # each; one of them builds the site for all

ROOT = Path(__file__).parents[1]
# Levels share a page; a test of the pages holds the README to the registry.
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENTS = re.findall(r"^\| `maskgym/(.+?)` \|", README, re.MULTILINE)
PARTS = {
    "data": data.names,
    "segmenters": lambda: (*segmenters.names(), *segmenters.attention_names()),
    "rewards": rewards.names,
    "policies": lambda: (*policies.names(), *policies.backbone_names(), *policies.need_encoder_names()),
    "agents": agents.names,
}
OPENED = ("index.html", "environments/index.html", "environments/PointPrompt-v0.html", "api/rewards/terms.html")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def reference():
    """Return the hook as a module."""
    sys.path.insert(0, str(ROOT / "docs"))  # MkDocs does the same, for what lies beside a hook
    spec = importlib.util.spec_from_file_location("site_reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[audit](../reward_audit.md#the-tables)", "[audit](../reward_audit.md#the-tables)"),
        ("![curve](../picture.png)", "![curve](../picture.png)"),
        ("[`run.py`](../../experiments/run.py)", "[`run.py`](../api/experiments/run.md)"),
        ("[the example](../../examples)", "[the example](examples.md)"),
        ("[start](../../README.md)", "[start](../index.md)"),
        ("[the licence](../../LICENSE)", "the licence"),  # no page of the site
        ("[a [name] here](#there) and [out](https://example.org)",) * 2,
        ("`[text](../../LICENSE)`",) * 2,
        ("```python\n[text](../../LICENSE)\n```",) * 2,
    ],
)
def test_a_link_of_the_repository_leads_to_the_page_that_the_site_has(reference, link, expected):
    uris = ("index.md", "reward_audit.md", "picture.png", "api/experiments/run.md", "tutorials/examples.md")
    files = Files([File(uri, "", "", False) for uri in uris])
    assert reference.relink(link, "docs/tutorials/sweep.md", "tutorials/sweep.md", files) == expected


def test_a_link_to_nothing_is_a_warning(reference, caplog):
    reference.relink("[gone](../nowhere.md)", "docs/tutorials/sweep.md", "tutorials/sweep.md", Files([]))
    assert "docs/tutorials/sweep.md has a link to ../nowhere.md, which does not exist" in caplog.text


def test_the_comments_of_an_option_are_read_with_its_keys(reference, tmp_path):
    file = tmp_path / "option.yaml"
    file.write_text(
        "name: one # what it is\nparts: {a: b, c: '#'} # in a row\nmore: # below\n  width: 1.0e-3 # of it: 2 # or 3\n"
        "last: null\n"
    )
    assert reference.keys_in(file) == [
        ("name", "one", "what it is"),
        ("parts", "{a: b, c: '#'}", "in a row"),
        ("more", "", "below"),
        ("more.width", "1.0e-3", "of it: 2 # or 3"),
        ("last", "null", ""),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder of the site, as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_every_environment_has_a_page_with_its_spaces_and_a_picture(site):
    assert len(ENVIRONMENTS) >= 7
    shown = (site / "environments" / "index.html").read_text(encoding="utf-8")
    for name in ENVIRONMENTS:
        page = Tags(site / "environments" / f"{name}.html")
        env = gym.make(f"maskgym/{name}")
        spaces = [*env.observation_space.spaces.values(), env.action_space]
        for space in spaces:
            assert type(space).__name__ in page.text, name
            assert not space.shape or str(space.shape) in page.text, name
        assert set(env.observation_space.spaces) <= set(page.text.split()), name
        assert re.search(r"Episode End\W+.*Termination: .* Truncation: ", page.text), name
        pictures = [attributes for tag, attributes in page.tags if tag == "img"]
        assert pictures and all(picture["alt"] for picture in pictures), name
        assert np.asarray(Image.open(site / "environments" / pictures[0]["src"])).std() > 10, name
        assert f'href="{name}.html"' in shown and f'src="{name}-small.png"' in shown


@pytest.mark.parametrize("kind", PARTS)
def test_every_registered_part_is_in_a_table(site, kind):
    page = (site / "parts" / f"{kind}.html").read_text(encoding="utf-8")
    assert {name for name in PARTS[kind]() if f"<td><code>{name}</code></td>" not in page} == set()


def test_every_option_of_every_group_has_its_keys(site):
    for group, names in groups().items():
        headings = {
            attributes.get("id") for tag, attributes in Tags(site / "options" / f"{group}.html").tags if tag == "h2"
        }
        assert {f"{group}{name}" for name in names} <= headings
    algo = Tags(site / "options" / "algo.html").text
    assert "algo.isr_period 5 updates in a cycle (section 4.2)" in algo
    assert "env.recalibration.channels 64 width" in Tags(site / "options" / "env.html").text


def test_every_module_has_a_page_with_its_docstrings(site):
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    modules = [path.relative_to(ROOT) for package in packages for path in package.rglob("*.py")]
    pages = {path.relative_to(site / "api").with_suffix(".py") for path in (site / "api").rglob("*.html")}
    assert {Path(str(module).replace("__init__", "index")) for module in modules} <= pages
    terms = Tags(site / "api" / "rewards" / "terms.html").text
    assert "Increase of the IoU of the mask by a step." in terms
    assert "_without" not in terms, "private"


def test_the_pages_of_the_repository_are_there_and_their_data_is_not(site):
    written = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    others = ["index.html", "contributing.html", "changelog.html", "tutorials/examples.html"]
    assert [page for page in [*written, *others] if not (site / page).is_file()] == []
    assert {path.suffix for path in (site / "results").rglob("*") if path.is_file()} <= {".html", ".png"}
    home = Tags(site / "index.html")
    links = {attributes.get("href") for tag, attributes in home.tags if tag == "a"}
    assert {"evaluation.html", "tutorials/examples.html", "contributing.html"} <= links


def test_no_page_asks_for_anything_outside(site):
    asked = re.compile(
        r"<(?:img|script|iframe|link|source|object)\b[^>]*\s(?:src|href|data)=[\"']?((?:\w+:)?//[^\"'\s>]*)"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    found = {page.name: asked.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {name: places for name, places in found.items() if places} == {}
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.fixture
def open_page(site, browser):
    """Return a function that opens a page from disk without the browser's memory of it."""

    def opener(page: str, width: int = 1280, height: int = 900, dark: bool = False):
        browser.size(width, height, dark)
        browser.driver.get((site / page).as_uri())
        browser.driver.execute_script("localStorage.clear()")  # the colours that were chosen
        browser.driver.refresh()
        return browser

    return opener


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", OPENED)
def test_a_page_opened_from_disk_has_no_fault(open_page, page, dark):
    browser = open_page(page, dark=dark)
    colour = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 384) == dark
    assert browser.faults() == []
    assert browser.console() == []


@pytest.mark.parametrize("page", OPENED)
def test_a_phone_scrolls_down_only(open_page, page):
    driver = open_page(page, 390, 800).driver
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def test_the_search_works_from_disk(open_page):
    from selenium.webdriver.support.ui import WebDriverWait

    browser = open_page("parts/rewards.html")
    browser.driver.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    field = WebDriverWait(browser.driver, 10).until(lambda d: d.find_element("css selector", ".md-search__input"))
    field.send_keys("telescopes")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"
    links = WebDriverWait(browser.driver, 30).until(lambda d: d.execute_script(found))
    assert any("api/rewards/terms.html" in link for link in links)
    assert browser.console() == []
