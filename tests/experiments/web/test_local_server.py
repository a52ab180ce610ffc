"""Who is let in, and what is answered to what is no request. The tests of the pages cover the rest of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from maskgym.errors import UserError
from maskgym.experiments.web import local_server as pages


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_which_addresses_are_this_machines_own(host, own):
    assert pages.is_own(host) is own and not pages.is_own("192.168.0.1") and not pages.is_own("example.org")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_had_is_told(host, port):
    with pytest.raises(UserError, match=f"--host {host} --port {port}: ."):
        pages.serve(lambda hosts, token: pytest.fail("served"), host, port)


TOKEN = "t" * 32
HOST, JSON = (b"host", b"localhost:8000"), (b"content-type", b"application/json")


@pytest.fixture
def app():
    """Return the application of a page that counts what it is asked to change."""
    done = []

    def change(given):
        done.append(given)
        return {"count": len(done)}

    made = {"reading": {"/api/count": lambda: {"count": len(done)}}, "changing": {"/api/change": change}}
    return lambda *hosts, token=None: pages.make_app(Path(__file__), **made, hosts=hosts or pages.LOCAL, token=token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:8000"])
def test_the_names_of_this_machine_lead_here(app, call, host):
    assert call(app(), "/api/count", headers=[(b"host", host.encode())]) == (200, b'{"count": 0}')


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "127.0.0.2",
            "::1",
        ),
        *("", " ", ":8000", "[", "[::1", "[::1]x", "127.0.0.1:x", "127.0.0.1:800000", "127.0.0.1:80:80", "2130706433"),
        *("evil@127.0.0.1", "127.0.0.1/evil", "127.0.0.1?evil", "127.0.0.1#evil", "127.0.0.1, evil.example", "\xe9"),
        *("http://127.0.0.1", "localhost.", "127.1", "0x7f.1", "[::ffff:127.0.0.1]", "[127.0.0.1", "127.0.0.1\n"),
    ],
)
def test_other_names_and_what_is_no_name_do_not(app, call, host):
    assert call(app(), "/api/count", headers=[(b"host", host.encode("latin-1"))])[0] == 421
    posted = [(b"host", host.encode("latin-1")), JSON]
    assert call(app(), "/api/change", {}, headers=posted)[0] == 421
    assert call(app(), "/api/count")[1] == b'{"count": 0}'


@pytest.mark.parametrize("hosts", [(), ("*",)])
def test_without_a_name_or_with_two_nobody_is_let_in(app, call, hosts):
    for headers in ([JSON], [HOST, (b"host", b"evil.example"), JSON], [HOST, HOST, JSON]):
        assert call(app(*hosts, token=TOKEN), "/api/count", headers=headers)[0] == 421
        assert call(app(*hosts), "/api/change", {}, headers=headers)[0] == 421


@pytest.mark.parametrize(
    "cookie",
    [
        *(None, "", "x", f"maskgym_token={TOKEN[:-1]}", f"maskgym_token={TOKEN}x", f"maskgym_token= {TOKEN[1:]}"),
        *(f"Maskgym_token={TOKEN}", f"token={TOKEN}", f"maskgym_token={TOKEN.upper()}", "maskgym_token=\xe9\x80"),
        *(f"maskgym_token={TOKEN}; maskgym_token=x", f'maskgym_token="{TOKEN}', "=;=;;", "maskgym_token"),
    ],
)
def test_without_the_token_nothing_is_read_or_changed(app, call, cookie):
    headers = [HOST, JSON, *([] if cookie is None else [(b"cookie", cookie.encode("latin-1"))])]
    guarded = app("*", token=TOKEN)
    assert call(guarded, "/api/count", headers=headers)[0] == 401
    assert call(guarded, "/api/change", {}, headers=headers)[0] == 401
    assert call(guarded, "/?token=wrong", headers=headers)[0] == 401
    assert call(guarded, "//api/count", headers=headers)[0] == 401
    right = [HOST, JSON, (b"cookie", f"maskgym_token={TOKEN}".encode())]
    assert call(guarded, "/api/count", headers=right) == (200, b'{"count": 0}')


@pytest.mark.parametrize(
    "kind", [b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/json", b"\xff"]
)
def test_what_another_sites_form_can_send_changes_nothing(app, call, kind):
    assert call(app(), "/api/change", {}, headers=[HOST, (b"content-type", kind)])[0] == 415
    assert call(app(), "/api/change", {}, headers=[HOST])[0] == 415
    assert call(app(), "/api/count")[1] == b'{"count": 0}'


def test_a_client_that_leaves_in_the_middle_ends_nothing(app, call):
    for parts in ([], [b""], [b"{"], [b'{"a":', b" 1"], [b"{}"]):
        assert call(app(), "/api/change", parts=parts)[0] == 400  # an exception would be raised by `call`
    assert call(app(), "/api/count")[1] == b'{"count": 0}'


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"5", b"{", b'{"a": 1}}', b"[" * 50_000, b'{"a":' * 10_000, b"9" * 5000],
)
def test_what_is_no_object_is_refused(app, call, raw):
    status, content = call(app(), "/api/change", raw=raw)
    assert status == 400 and json.loads(content)["error"] == "expected a JSON object"


def test_objects_that_are_nested_too_deep_are_refused(call):
    app = pages.make_app(Path(__file__), reading={}, changing={"/api/echo": lambda given: {"said": repr(given)}})
    for depth in range(500, 1200, 25):
        status, content = call(app, "/api/echo", raw=b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        assert status in (200, 400) and "\n" not in json.loads(content).get("error", "")
