from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from maskgym.chat.asker import Refused, Reply, Unreachable, count_tokens, to_png
from maskgym.data import make as make_data
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.project import Project, Settings
from maskgym.experiments.annotation.needs.writers import LARGEST, VERBS, ModelWriter, make_writer
from maskgym.policies.text.mllm import TINY, LanguagePolicy

SHOWN = np.full((20, 30, 3), 90, np.uint8)
GOOD = '["find one", "find two", "find three"]'


class Planned:
    """A model that replies as planned, once per question, and keeps the prompts."""

    settings = {"model": "m"}  # noqa: RUF012

    def __init__(self, *plan):
        self.plan, self.prompts = list(plan), []

    def ask(self, parts):
        self.prompts.append(parts[0])
        todo = self.plan.pop(0)
        if isinstance(todo, Exception):
            raise todo
        return Reply(todo, "m-1", 10, 5)


def planned(project, *plan, **settings):
    """Return a writer with a planned model, and the list of the prompts."""
    chat = Planned(*plan)
    return ModelWriter("planned", chat, project, Settings(dataset="scenes", pause=0.0, **settings)), chat.prompts


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
    written = planned(project, GOOD)[0].write("dog", (), SHOWN)
    assert written.needs == ("find one", "find two", "find three") and written.by["version"] == "m-1"
    again, prompts = planned(project)
    assert again.write("dog", (), SHOWN) == written and prompts == []


@pytest.mark.parametrize("other", ["category", "picture", "count", "prompt"])
def test_another_question_is_asked(project, tmp_path, other):
    planned(project, GOOD)[0].write("dog", (), SHOWN)
    (tmp_path / "prompt.txt").write_text("Say {count} things of a {category}.")
    settings = {"count": {"needs": 2}, "prompt": {"prompt": str(tmp_path / "prompt.txt")}}.get(other, {})
    writer, prompts = planned(project, GOOD, **settings)
    writer.write("cat" if other == "category" else "dog", (), SHOWN + (other == "picture"))
    assert len(prompts) == 1
    if other == "prompt":
        assert prompts == ["Say 3 things of a dog."]


def test_an_answer_of_no_use_is_answered_with_what_was_wrong(project):
    writer, prompts = planned(project, "nonsense", GOOD)
    written = writer.write("dog", (), SHOWN)
    assert written.reason is None and written.answers == 2 and len(written.needs) == 3
    assert "could not be used: no JSON list" in prompts[1] and "could not" not in prompts[0]


def test_after_so_many_attempts_the_best_answer_is_kept_with_the_reason(project):
    plan = ['["find one"]', '["find one", "find two"]', "nonsense"]
    written = planned(project, *plan, attempts=3)[0].write("dog", (), SHOWN)
    assert written.needs == ("find one", "find two") and written.kind == "unusable" and "no JSON" in written.reason
    nothing = planned(project, "nonsense", attempts=1)[0].write("cat", (), SHOWN)
    assert nothing.needs == () and nothing.kind == "unusable"


def test_what_was_of_no_use_is_left_aside_when_told(project):
    planned(project, "nonsense", attempts=1)[0].write("dog", (), SHOWN)
    writer, prompts = planned(project, GOOD, attempts=1)
    assert writer.write("dog", (), SHOWN).kind == "unusable" and not prompts
    assert writer.write("dog", (), SHOWN, answers=1).needs and len(prompts) == 1


def test_a_lost_answer_is_asked_for_again_and_a_refusal_is_not(project):
    lost = Unreachable("late")
    writer, prompts = planned(project, lost, lost, GOOD, attempts=3)
    assert writer.write("dog", (), SHOWN).needs and len(prompts) == 3
    gone = planned(project, '["find one"]', lost, lost, attempts=2)[0].write("cat", (), SHOWN)
    assert (gone.needs, gone.kind, gone.reason, gone.answers) == ((), "unreachable", "late", 1)
    refused = planned(project, Refused("not that one"), attempts=3)[0].write("owl", (), SHOWN)
    assert (refused.kind, refused.reason) == ("unusable", "not that one")


def test_a_stopped_writer_asks_no_more(project):
    writer, prompts = planned(project, GOOD)
    writer.stop()
    assert writer.write("dog", (), SHOWN).kind == "unreachable" and not prompts


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
        (
            {"writer": "server", "model": "m", "base_url": "http://localhost:1/v1", "prompt": "nowhere.txt"},
            "--prompt nowhere.txt: cannot be read",
        ),
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
        planned(project, prompt=str(tmp_path / "prompt.txt"))


NEEDS = tuple(f"find the thing number {word}" for word in ("one", "two", "three"))


@pytest.fixture
def make(tmp_path, asking):
    pytest.importorskip("openai")

    def make(**settings):
        project = Project(tmp_path / "p", {"dataset": "scenes", **asking, **settings})
        return make_writer(project, project.settings)

    return make


def test_it_is_asked_for_an_object_and_counted(make, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    written = make(temperature=0.5, max_tokens=99, prices=[2.0, 4.0]).write("dog", (), SHOWN)
    assert written.needs == NEEDS and written.by["model"] == "m" and written.by["version"] == "model-7"
    (request,) = server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.5, 99)
    text, picture = request["messages"][0]["content"]
    assert "A detector calls it: dog" in text["text"] and "JSON list of 3 strings" in text["text"]
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == SHOWN).all()
    assert server.keys == ["Bearer secret-key"]
    kept = "".join(path.read_text() for path in (tmp_path / "p").rglob("*.json"))
    assert "secret-key" not in kept and "secret-key" not in json.dumps(dict(written.by))
    cost = count_tokens(tmp_path / "p" / "answers", [2.0, 4.0])
    assert cost == {"answers": 1, "input_tokens": 100, "output_tokens": 10, "price": 0.00024}


@pytest.mark.parametrize("fault", ["late", "gone", "cut", "page", "429", "500", "prose", "[1, 2, 3]", "[]"])
def test_it_is_asked_again_after(make, server, fault):
    server.plan = [fault, fault]
    written = make(timeout=0.25).write("dog", (), SHOWN)
    assert written.needs == NEEDS and written.reason is None and len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("late", "unreachable", "no answer within 0.25 s"),
        ("gone", "unreachable", "no connection"),
        ("page", "unreachable", "no chat completion"),
        ("503", "unreachable", "status 503: .*as planned"),
        ("prose", "unusable", "no JSON list"),
    ],
)
def test_it_is_given_up_with_the_reason(make, server, fault, kind, reason):
    server.plan = [fault] * 3
    written = make(timeout=0.25).write("dog", (), SHOWN)
    assert written.needs == () and written.kind == kind and re.search(reason, written.reason)
    assert len(server.requests) == 3


def test_a_refused_object_is_not_asked_about_again(make, server):
    server.plan = ["400"]
    written = make().write("dog", (), SHOWN)
    assert written.kind == "unusable" and "status 400" in written.reason and len(server.requests) == 1


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_wrong_key_or_model_ends_it_all(make, server, status):
    server.plan = [status]
    with pytest.raises(UserError, match=rf"{server.url}/: status {status}: .*as planned"):
        make().write("dog", (), SHOWN)


@pytest.fixture
def local(tmp_path):
    (tmp_path / "prompt.txt").write_text("find {category} {count}")
    given = {"writer": "local", "model": str(TINY), "max_tokens": 12, "attempts": 2, "device": "cpu"}
    project = Project(tmp_path / "p", {"dataset": "scenes", **given, "prompt": str(tmp_path / "prompt.txt")})
    return make_writer(project, project.settings)


def test_it_answers_as_the_policy_does_and_is_refused_with_the_reason(local, tmp_path):
    image = make_data("scenes", split="test")[0].images[0]
    written = local.write("disc", (), image)
    assert written.needs == () and written.kind == "unusable" and written.answers == 2
    assert written.reason == "no JSON list"
    kept = [json.loads(file.read_text()) for file in (tmp_path / "p" / "answers").glob("*.json")]
    own = LanguagePolicy(TINY, device="cpu")
    observation = {"image": image, "instruction": "find disc 3"}
    expected = own.generate([observation], max_new_tokens=12)[0]
    assert expected in [answer["text"] for answer in kept] and len(expected) > 10
    assert all(0 < answer["output_tokens"] <= 12 and answer["input_tokens"] > 4 for answer in kept)


def test_a_local_model_is_greedy(local):
    greedy = local.asker.chat.settings["settings"]
    assert (
        greedy == {"max_tokens": 12, "temperature": 0.0, "decoding": "plain"}
        and local.asker.chat.settings["fingerprint"]
    )


def test_what_is_no_such_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    project = Project(tmp_path / "p", {"dataset": "scenes", "writer": "local", "model": str(tmp_path)})
    with pytest.raises(UserError, match="holds a 'bert' model"):
        make_writer(project, project.settings).write("dog", (), np.zeros((9, 9, 3), np.uint8))
