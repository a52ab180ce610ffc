from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import figures
from maskgym.experiments.annotation.needs.project import Project
from maskgym.experiments.annotation.needs.writers import make_writer

pytest.importorskip("openai")
SHOWN = np.full((20, 30, 3), (90, 10, 200), np.uint8)
NEEDS = tuple(f"find the thing number {word}" for word in ("one", "two", "three"))


@pytest.fixture
def make(tmp_path, asking):
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
    cost = figures.cost(Project(tmp_path / "p"))
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
    import re

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
