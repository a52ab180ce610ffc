from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from maskgym.chat.asker import Refused, Reply, Unreachable, backoff, to_png
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.project import Project, Settings
from maskgym.experiments.annotation.needs.writers import LARGEST, VERBS, ModelWriter, make_writer

SHOWN = np.full((20, 30, 3), 90, np.uint8)
GOOD = '["find one", "find two", "find three"]'


class Planned(ModelWriter):
    """Gives what is planned, one a question, and counts."""

    name, settings = "planned", {"model": "m"}

    def __init__(self, project, *plan, **settings):
        super().__init__(project, Settings(dataset="scenes", pause=0.0, **settings))
        self.plan, self.prompts = list(plan), []

    def answer(self, prompt, picture):
        self.prompts.append(prompt)
        todo = self.plan.pop(0)
        if isinstance(todo, Exception):
            raise todo
        return Reply(todo, "m-1", 10, 5)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "p", {"dataset": "scenes"})


def test_templates_put_descriptions_before_verbs_and_never_differ():
    writer = make_writer(None, Settings(dataset="scenes", needs=3))
    assert writer.write("disc", ("a red disc", "a disc"), SHOWN).needs == (
        "find a red disc",
        "find a disc",
        "look for a red disc",
    )
    assert writer.write("dog", (), SHOWN).needs == ("find the dog", "look for the dog", "show me the dog")
    hostile = writer.write("\x00", (), SHOWN)
    assert hostile.needs == () and "cannot be seen" in hostile.reason
    with pytest.raises(UserError, match=f"templates write at most {len(VERBS)}"):
        make_writer(None, Settings(dataset="scenes", needs=len(VERBS) + 1))


def test_a_question_is_asked_once(project):
    first = Planned(project, GOOD)
    written = first.write("dog", (), SHOWN)
    assert written.needs == ("find one", "find two", "find three") and written.by["version"] == "m-1"
    again = Planned(project)
    assert again.write("dog", (), SHOWN) == written and again.prompts == []


@pytest.mark.parametrize("other", ["category", "picture", "count", "prompt"])
def test_another_question_is_asked(project, tmp_path, other):
    Planned(project, GOOD).write("dog", (), SHOWN)
    (tmp_path / "prompt.txt").write_text("Say {count} things of a {category}.")
    settings = {"count": {"needs": 2}, "prompt": {"prompt": str(tmp_path / "prompt.txt")}}.get(other, {})
    writer = Planned(project, GOOD, **settings)
    writer.write("cat" if other == "category" else "dog", (), SHOWN + (other == "picture"))
    assert len(writer.prompts) == 1
    if other == "prompt":
        assert writer.prompts == ["Say 3 things of a dog."]


def test_an_answer_of_no_use_is_answered_with_what_was_wrong(project):
    writer = Planned(project, "nonsense", GOOD)
    written = writer.write("dog", (), SHOWN)
    assert written.reason is None and written.answers == 2 and len(written.needs) == 3
    assert "could not be used: no JSON list" in writer.prompts[1] and "could not" not in writer.prompts[0]


def test_after_so_many_attempts_the_best_answer_is_kept_with_the_reason(project):
    plan = ['["find one"]', '["find one", "find two"]', "nonsense"]
    written = Planned(project, *plan, attempts=3).write("dog", (), SHOWN)
    assert written.needs == ("find one", "find two") and written.kind == "unusable" and "no JSON" in written.reason
    nothing = Planned(project, "nonsense", attempts=1).write("cat", (), SHOWN)
    assert nothing.needs == () and nothing.kind == "unusable"


def test_what_was_of_no_use_is_left_aside_when_told(project):
    Planned(project, "nonsense", attempts=1).write("dog", (), SHOWN)
    writer = Planned(project, GOOD, attempts=1)
    assert writer.write("dog", (), SHOWN).kind == "unusable" and not writer.prompts
    assert writer.write("dog", (), SHOWN, answers=1).needs and len(writer.prompts) == 1


def test_a_lost_answer_is_asked_for_again_and_a_refusal_is_not(project):
    lost = Unreachable("late")
    writer = Planned(project, lost, lost, GOOD, attempts=3)
    assert writer.write("dog", (), SHOWN).needs and len(writer.prompts) == 3
    gone = Planned(project, lost, lost, attempts=2).write("cat", (), SHOWN)
    assert (gone.needs, gone.kind, gone.reason) == ((), "unreachable", "late")
    refused = Planned(project, Refused("not that one"), attempts=3).write("owl", (), SHOWN)
    assert (refused.kind, refused.reason) == ("unusable", "not that one")


def test_pauses_grow_and_a_server_may_name_its_own():
    for attempt, expected in enumerate((2, 4, 8)):
        assert 0.75 * expected <= backoff(2.0, attempt) <= 1.25 * expected
    assert backoff(2.0, 30) <= 75 and backoff(2.0, 0, 7.0) == 7 and backoff(2.0, 0, 1e9) == 60


def test_a_model_sees_the_whole_appearance_not_larger_than_it_needs():
    picture = Image.open(io.BytesIO(to_png(np.zeros((300, 2000, 3), np.uint8), LARGEST)))
    assert picture.size == (512, 77)
    assert (np.asarray(Image.open(io.BytesIO(to_png(SHOWN, LARGEST)))) == SHOWN).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"writer": "poet"}, "--writer poet: expected templates, local or server"),
        ({"writer": "server"}, "--writer server needs --model"),
        ({"writer": "local", "model": "nowhere/at-all/x"}, "nowhere/at-all/x"),
        ({"writer": "server", "model": "m", "base_url": "no url"}, "no url"),
        ({"writer": "server", "model": "m", "prompt": "nowhere.txt"}, "--prompt nowhere.txt: cannot be read"),
    ],
)
def test_writers_that_are_none(project, settings, expected):
    with pytest.raises(UserError, match=expected):
        writer = make_writer(project, Settings(dataset="scenes", pause=0.0, attempts=1, **settings))
        if settings.get("base_url"):  # some versions of the library find out when they ask
            raise UserError(writer.write("dog", (), SHOWN).reason + "no url")


def test_a_prompt_holds_both_places(project, tmp_path):
    (tmp_path / "prompt.txt").write_text("Say {count} things.")
    with pytest.raises(UserError, match="holds no {category}"):
        Planned(project, prompt=str(tmp_path / "prompt.txt"))
