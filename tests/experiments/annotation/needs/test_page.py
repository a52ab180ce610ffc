"""The page's server, by real requests to the command that serves it."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request

import numpy as np
import pytest

from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import masks, review, stages
from maskgym.experiments.annotation.needs.project import Project

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from maskgym.experiments.annotation.needs import page

HOSTILE = '<img src=x onerror="alert(1)"> find </script><script>alert(2)</script>'


@pytest.fixture(scope="module")
def segmenter():
    from maskgym.segmenters.points.sam import sam_tiny

    return sam_tiny(device="cpu")


@pytest.fixture
def desk(project, source, segmenter):
    listed = review.candidates(project, source)
    decisions = review.Decisions(project, writing=True)
    return page.Desk(listed, decisions, source.image, masks.Prompted(segmenter), "ann")


def ask(address, path="", body=None, raw=None, **headers):
    """Return status, headers and content of an answer."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    if data is not None:
        headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(address + path, data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


def clicks(one, *points):
    return {"id": one.id, "points": [list(point) for point in points], "labels": [1] * len(points), "boxed": False}


def test_what_is_shown_is_what_was_dug(desk, source):
    one = desk.objects[0]
    shown = desk.show(one.id)
    assert shown["needs"] == shown["written"] == list(one.needs) and shown["status"] == "undecided"
    mask = np.repeat(np.arange(len(shown["mask"])) % 2 == 1, shown["mask"]).reshape(128, 128).T
    assert (mask == run_lengths.decode(one.segmentation)).all()
    assert (shown["height"], shown["width"], shown["box"]) == (128, 128, one.found["box"])


def test_clicks_make_the_mask_that_the_segmenter_makes_and_a_decision_keeps_it(desk, source, segmenter):
    one = desk.objects[0]
    given = clicks(one, (40, 50), (60.04, 20))
    expected = masks.Prompted(segmenter)(source.image(one.item), None, [[[40, 50], [60, 20]]], [[1, 1]])[0]
    assert desk.mask(given)["mask"] == run_lengths.runs(expected)
    boxed = masks.Prompted(segmenter)(source.image(one.item), [one.found["box"]], [[[40, 50], [60, 20]]], [[1, 1]])[0]
    assert desk.mask({**given, "boxed": True})["mask"] == run_lengths.runs(boxed) != run_lengths.runs(expected)
    desk.decide({**given, "status": "accepted", "needs": ["find it"]})
    kept = desk.decisions.made[one.id]
    assert (run_lengths.decode(kept["segmentation"]) == expected).all() and kept["segmenter"] == segmenter.fingerprint
    assert desk.show(one.id)["points"] == [[40, 50], [60, 20]]
    # Without clicks the first mask is back; with the same clicks nothing is made again.
    desk._prompted = None
    desk.decide({**given, "status": "accepted", "needs": ["find that"]})
    assert desk.decisions.made[one.id]["segmentation"] == kept["segmentation"]
    desk.decide({"id": one.id, "status": "accepted", "needs": ["find that"]})
    assert "segmentation" not in desk.decisions.made[one.id]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"id": "nobody"}, "no object 'nobody'"),
        ({"id": ["x"]}, "no object"),
        ({"status": "maybe"}, "status 'maybe': expected one of accepted"),
        ({"needs": "find it"}, "needs: expected a list"),
        ({"needs": ["find it"] * 21}, "at most 20"),
        ({"needs": []}, "no command: expected at least one"),
        ({"needs": ["find it", "Find it"]}, "command 2: a duplicate"),
        ({"needs": [{"a": 1}]}, "command 1: a dict"),
        ({"points": [[1]], "labels": [1]}, "clicks: expected"),
        ({"points": [[1, 2]], "labels": []}, "clicks: expected"),
        ({"points": [[1, 2]], "labels": [3]}, "clicks: expected"),
        ({"points": [[1, 500]], "labels": [1]}, "clicks: expected"),
        ({"points": [["nan", 5]], "labels": [1]}, "clicks: expected"),
        ({"points": {"a": 1}, "labels": [1]}, "clicks: expected"),
        ({"points": [[10**400, 1]], "labels": [1]}, "clicks: expected"),
        ({"points": [[[1], [2]]], "labels": [1]}, "clicks: expected"),
        ({"points": [["1", "2"]], "labels": [1]}, "clicks: expected"),
        ({"points": [[True, False]], "labels": [1]}, "clicks: expected"),
        ({"points": [[1, 2]], "labels": [True]}, "clicks: expected"),
        ({"points": [[1, 2]], "labels": "1"}, "clicks: expected"),
        ({"points": [[1, 2]], "labels": [1], "boxed": "yes"}, "boxed: expected true or false"),
        ({"points": [[1, 1]] * 65, "labels": [1] * 65}, "clicks: expected at most 64"),
    ],
)
def test_what_cannot_be_decided_is_told_and_not_recorded(desk, given, expected):
    with pytest.raises(UserError, match=expected):
        desk.decide({"id": desk.objects[0].id, "status": "accepted", "needs": ["find it"], **given})
    assert not desk.decisions.made


def test_requests_with_something_wrong_in_them_are_refused_and_decide_nothing(desk, call, attack):
    one, app = desk.objects[0], page.make_app(desk)
    given = {**clicks(one, (40, 50)), "status": "accepted", "needs": ["find it"]}
    legal = {
        "id": lambda value: False,
        "status": lambda value: False,
        "needs": lambda value: False,
        # Nothing, as a page sends it that has no clicks, is right where both are nothing.
        "points": lambda value: False,
        "labels": lambda value: value == [1] and type(value[0]) is int,
        "boxed": lambda value: isinstance(value, bool),
    }
    journal = desk.decisions._journal
    for route, tries in (("mask", 70), ("decide", 120)):
        rules = {name: rule for name, rule in legal.items() if route == "decide" or name not in ("status", "needs")}
        attack(app, f"/api/{route}", given, rules, lambda: journal.read_bytes() if journal.exists() else b"", tries)
    for name in ("x", "..", "%2e%2e%2fproject.json", "\x1b[2J", "é"):
        for place in ("objects", "pictures"):
            assert call(app, f"/api/{place}/{name}".encode().decode("latin-1"))[0] in (400, 404)


def test_an_object_without_a_mask_is_not_accepted(desk, project, source):
    from dataclasses import replace

    bare = [replace(one, segmentation=None) for one in desk.objects]
    desk = page.Desk(bare, desk.decisions, source.image, desk._prompted, "ann")
    one = bare[0]
    assert desk.show(one.id)["mask"] is None
    with pytest.raises(UserError, match="the mask is empty"):
        desk.decide({"id": one.id, "status": "accepted", "needs": ["find it"]})
    desk.decide({"id": one.id, "status": "rejected", "needs": []})
    left, top, right, bottom = one.found["box"]
    given = clicks(one, ((left + right) / 2, (top + bottom) / 2))
    desk.decide({**given, "boxed": True, "status": "accepted", "needs": ["find it"]})


def test_over_the_wire_and_through_a_crash(project, serve):
    running = serve(project.folder)
    total = len(json.loads(ask(running.address, "api/objects")[2])["objects"])
    assert f"{total} objects, 0 accepted, 0 rejected, {total} undecided" in running.said
    status, headers, text = ask(running.address)
    nonce = re.search(rb'<script nonce="([^"]+)">', text)[1].decode()
    assert status == 200 and f"script-src 'nonce-{nonce}'" in headers["content-security-policy"]
    assert b"NONCE" not in text and b"http://" not in text and b"https://" not in text
    assert nonce not in ask(running.address)[2].decode() and headers["x-content-type-options"] == "nosniff"
    names = [name for name, _ in json.loads(ask(running.address, "api/objects")[2])["objects"]]
    assert ask(running.address, f"api/pictures/{names[0]}")[2].startswith(b"\x89PNG")
    answer = ask(running.address, "api/decide", {"id": names[0], "status": "accepted", "needs": [HOSTILE]})
    assert answer[0] == 200 and json.loads(answer[2])["progress"]["accepted"] == 1
    with pytest.raises(UserError, match="another process is at work here"), Project(project.folder).alone("correct"):
        pass
    assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    again = serve(project.folder)
    shown = json.loads(ask(again.address, f"api/objects/{names[0]}")[2])
    assert (shown["status"], shown["needs"]) == ("accepted", [HOSTILE])
    assert again.stop(signal.SIGINT) in (0, 130)
    assert json.loads((project.folder / review.SNAPSHOT).read_text())["decisions"][names[0]]["needs"] == [HOSTILE]


def test_who_is_not_let_in(project, serve):
    running = serve(project.folder)
    port = running.address.rsplit(":", 1)[1].strip("/")
    body = {"id": "x", "status": "rejected", "needs": []}
    assert ask(running.address, "api/objects", Host=f"evil.example:{port}")[0] == 421
    assert ask(running.address, "api/decide", body, content_type="text/plain")[0] == 415  # what a form can send
    assert ask(running.address, "api/decide", raw=b"x" * 200_000)[0] == 413
    for raw in (b"not json", b"[1]", b"[" * 50_000):
        status, _, answer = ask(running.address, "api/decide", raw=raw)
        assert status == 400 and json.loads(answer) == {"error": "expected a JSON object"}
    status, _, answer = ask(running.address, "api/decide", body)
    assert status == 400 and json.loads(answer) == {"error": "no object 'x'"}
    assert ask(running.address, "api/objects/..%2f..%2fproject.json")[0] in (400, 404)


def test_wider_than_this_machine_a_token_is_asked_for(project, serve):
    running = serve(project.folder, "--host", "0.0.0.0")
    address, token = re.match(r"(http://.*/)\?token=(\S+)", running.address).groups()
    address = address.replace("0.0.0.0", "127.0.0.1")
    assert len(token) >= 32
    assert ask(address, "api/objects")[0] == 401 and ask(address, "api/decide", {})[0] == 401
    status, _, form = ask(address)
    assert status == 401 and b"<form>" in form and b"api/objects" not in form
    assert ask(address, "?token=wrong")[0] == 401 and ask(address, "api/objects", Cookie="maskgym_token=x")[0] == 401
    status, headers, _ = ask(address, f"?token={token}")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ask(address, "api/objects", Cookie=cookie.partition(";")[0])[0] == 200


def test_a_port_that_is_taken_is_told(desk, server):
    with pytest.raises(UserError, match=f"--port {server.server_port}: .*in use"):
        page.serve(desk, "127.0.0.1", server.server_port)


def test_the_annotations_as_segmenter_leave_clicks_to_another(project):
    with pytest.raises(UserError, match="unknown segmenter 'annotations'"):
        stages.make_segmenter("annotations", project.settings)
