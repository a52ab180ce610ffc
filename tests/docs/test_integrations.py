"""Blocks of the page on other libraries that need nothing else are run, short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def blocks(title: str) -> str:
    """Join the Python blocks of a section."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found
    return "\n".join(found)


@pytest.mark.e2e
def test_stable_baselines3(monkeypatch):
    from stable_baselines3 import PPO

    learn, shown = PPO.learn, []

    def short(self, steps, **settings):
        self.n_steps = self.rollout_buffer.buffer_size = 4
        self.rollout_buffer.reset()
        shown.append(steps)
        return learn(self, 4 * self.n_envs, **settings)

    monkeypatch.setattr(PPO, "learn", short)
    exec(compile(blocks("Stable-Baselines3").replace("n_envs=32", "n_envs=2"), PAGE.name, "exec"), {})
    assert shown == [2_000, 20_000]


@pytest.mark.e2e
def test_cgpo_trainer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(blocks("CGPOTrainer"), PAGE.name, "exec"), namespace)
    history = namespace["trainer"].state.log_history
    assert sum("isr/loss" in row for row in history) == 2 and sum("cgpo/confidence" in row for row in history) == 3
