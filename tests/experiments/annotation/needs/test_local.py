"""A model on this machine: the embedded one, which speaks of scenes and not in lists, so its answers are refused."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.data import make
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import figures
from maskgym.experiments.annotation.needs.project import Project
from maskgym.experiments.annotation.needs.writers import make_writer
from maskgym.policies.text.mllm import TINY, LanguagePolicy


@pytest.fixture
def writer(tmp_path):
    (tmp_path / "prompt.txt").write_text("find {category} {count}")
    given = {"writer": "local", "model": str(TINY), "max_tokens": 12, "attempts": 2, "device": "cpu"}
    project = Project(tmp_path / "p", {"dataset": "scenes", **given, "prompt": str(tmp_path / "prompt.txt")})
    return make_writer(project, project.settings)


def test_it_answers_as_the_policy_does_and_is_refused_with_the_reason(writer, tmp_path):
    image = make("scenes", split="test")[0].images[0]
    written = writer.write("disc", (), image)
    assert written.needs == () and written.kind == "unusable" and written.answers == 2
    assert written.reason == "no JSON list"
    kept = [figures.run_folder.read_json(file) for file in (tmp_path / "p" / "answers").glob("*.json")]
    own = LanguagePolicy(TINY, device="cpu")
    observation = {"image": image, "instruction": "find disc 3"}
    expected = own.generate([observation], max_new_tokens=12)[0]
    assert expected in [answer["text"] for answer in kept] and len(expected) > 10
    assert all(0 < answer["output_tokens"] <= 12 and answer["input_tokens"] > 4 for answer in kept)


def test_a_temperature_samples(writer):
    greedy = writer.settings["settings"]
    assert greedy == {"max_tokens": 12, "temperature": 0.0} and writer.settings["fingerprint"]


def test_what_is_no_such_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    project = Project(tmp_path / "p", {"dataset": "scenes", "writer": "local", "model": str(tmp_path)})
    with pytest.raises(UserError, match="holds a 'bert' model"):
        make_writer(project, project.settings).write("dog", (), np.zeros((9, 9, 3), np.uint8))
