"""The README and the pages of names list what the registries have, and their pictures are small."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import maskgym
from maskgym import agents, data, policies, rewards, segmenters
from maskgym.experiments.wiring.composition import groups, option

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = [id for id, spec in gym.registry.items() if spec.namespace == maskgym.__name__]
PARTS = {
    "data": data.names,
    "segmenter": segmenters.names,
    "attention": segmenters.attention_names,
    "policy": lambda: (*policies.names(), *policies.need_encoder_names()),
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_lists_every_environment_but_levels_and_its_picture_has_a_caption_for_each():
    levels = re.findall(r"^\| `(.+?)`, `\w+` \|", read("docs/levels.md"), re.MULTILINE)
    assert len({*levels}) == len(levels)
    own = re.findall(r"^\| `(maskgym/.+?)` \|", read("README.md"), re.MULTILINE)
    assert own == [name for name in ENVIRONMENTS if name in own]
    assert {*own} | {f"maskgym/{name}" for name in levels} == {*ENVIRONMENTS}
    sys.path.insert(0, str(ROOT / "docs"))
    from episodes import CAPTIONS

    assert [f"maskgym/{name}" for name in CAPTIONS] == own


def test_the_readme_is_short_and_its_pictures_are_small():
    text = read("README.md")
    assert text.count("\n") < 160
    pictures = [ROOT / place for place in re.findall(r"!\[[^]]*\]\((docs/[^)]+)\)", text)]
    assert len(pictures) == 2
    assert all(picture.stat().st_size < 300_000 for picture in pictures)


@pytest.mark.parametrize("kind", PARTS)
def test_the_page_of_parts_names_every_one(kind):
    page = read("docs/parts.md")
    hidden = {"none"}  # the policy of environments without one
    assert [name for name in PARTS[kind]() if f"`{name}`" not in page and name not in hidden] == []


def test_the_page_of_parts_names_every_algorithm_as_the_command_line_does():
    options = [option("env", env) for env in groups()["env"]]
    aliases = {name: short for one in options for short, name in one.get("algo_aliases", {}).items()}
    page = read("docs/parts.md")
    assert [name for name in agents.names() if f"`{aliases.get(name, name)}`" not in page] == []


def test_the_page_of_rewards_has_every_reward_with_its_range():
    page = read("docs/rewards.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.+?) \|$", page, re.MULTILINE))
    assert set(rows) == set(rewards.names())
    for name, words in rows.items():
        made = rewards.get(name)
        if all(p.default is not p.empty for p in inspect.signature(made).parameters.values()):
            low, high = made().range
            assert words == f"{low:g} to {high:g}", name
