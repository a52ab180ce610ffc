"""Which addresses are this machine's own. The tests of the pages cover the rest of the server."""

from __future__ import annotations

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
