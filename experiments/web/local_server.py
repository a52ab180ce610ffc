"""Shared local server of the pages, with access control.

A page is one file of HTML without requests to anywhere else; what it shows of the data it shows as text. A policy of
the browser backs that: only the page's own script may run. Requests that change something, or take a while, must be
JSON, so that no other site's form can send them, and must name a host that we serve, so that no other name can lead
here. Anything but this machine's own address asks for a token.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.wiring.run_folder import to_json

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, RedirectResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise UserError("the page needs starlette and uvicorn: pip install 'maskgym[play]'") from error

Answer = JsonObject | list[JsonObject] | bytes | None  # sent as JSON; bytes as PNG
COOKIE = "maskgym_token"
LARGEST_BODY = 100_000  # bytes of a request, unless a page says otherwise
HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")  # of a header, with its port
LOCAL = ("127.0.0.1", "localhost", "::1")
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>maskgym: token</title><form><label>Token, as the terminal shows it:
<input name="token" type="password" autofocus></label> <button>Open</button></form></html>"""


def make_app(
    page: Path,
    reading: Mapping[str, Callable],
    changing: Mapping[str, Callable[[JsonObject], Answer]],
    hosts: Sequence[str] = LOCAL,
    token: str | None = None,
    largest_body: int = LARGEST_BODY,
) -> Starlette:
    """Return the application of a page.

    What an action returns is sent as JSON, bytes as PNG; a `UserError` as ``{"error": one line}`` and
    status 400. Actions run in threads, several at a time.

    Args:
        page: HTML file, in which ``NONCE`` is replaced by the nonce of its script and style.
        reading: Handlers of GET by path; each receives the path's parameters by name.
        changing: Handlers of POST by path; each receives the JSON object.
        hosts: Names that requests may be addressed to; ``*`` for any, with a token. A name is required.
        token: Token that every visitor must give; None needs none.
        largest_body: Largest size of a request in bytes.
    """
    routes = [
        Route("/", _page(page)),
        *(Route(path, _reading(act)) for path, act in reading.items()),
        *(Route(path, _changing(act, largest_body), methods=["POST"]) for path, act in changing.items()),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=tuple(hosts), token=token)])


def _page(file: Path) -> Callable:
    async def answer(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        text = file.read_text(encoding="utf-8").replace("NONCE", nonce)
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return answer


def _reading(act: Callable) -> Callable:
    async def answer(request: Request) -> Response:
        return await _answered(lambda: act(**request.path_params))

    return answer


def _changing(act: Callable[[JsonObject], Answer], largest_body: int) -> Callable:
    async def answer(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _json({"error": "expected JSON"}, 415)
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > largest_body:
                    return _json({"error": f"expected at most {largest_body} bytes"}, 413)
        except ClientDisconnect:  # nobody reads this answer
            return _json({"error": "the request was cut off"}, 400)
        return await _answered(lambda: act(_object(bytes(body))))

    return answer


async def _answered(act: Callable[[], Answer]) -> Response:
    """Run an action in a thread; errors become one line."""
    try:
        found = await run_in_threadpool(act)
    except UserError as error:
        return _json({"error": " ".join(str(error).split())}, 400)
    except RecursionError:
        return _json({"error": "expected lists and objects that are not nested so deep"}, 400)
    return Response(found, media_type="image/png") if isinstance(found, bytes) else _json(found)


def _json(found: Answer, status: int = 200) -> Response:
    """Return JSON as ASCII: the name of a file, and what a person types, may hold what has no UTF-8."""
    return Response(to_json(found), status, media_type="application/json")


def _object(body: bytes) -> JsonObject:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("expected a JSON object")
    return found


class Guard:
    """Middleware that checks the host and, if there is one, the token.

    Args:
        app: The guarded application.
        hosts: See `make_app`.
        token: See `make_app`.
    """

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], token: str | None) -> None:
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, hardened)

    def _refusal(self, request: Request) -> Response | None:
        named = [HOST.fullmatch(value) for value in request.headers.getlist("host")]
        host = named[0]["name"].strip("[]").lower() if len(named) == 1 and named[0] else None
        if host is None or ("*" not in self._hosts and host not in self._hosts):
            return _json({"error": "this name does not lead here"}, 421)
        if self._token is None or self._knows(request.cookies.get(COOKIE)):
            return None
        if request.scope["path"] != "/":
            return _json({"error": "the token is missing or wrong"}, 401)
        if not self._knows(request.query_params.get("token")):
            return HTMLResponse(ASK, 401)
        answer = RedirectResponse("/", 303)  # so that the token does not stay in the address
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: str | None) -> bool:
        return self._token is not None and hmac.compare_digest((given or "").encode(), self._token.encode())


def serve(
    app: Callable[[Sequence[str], str | None], Starlette],
    host: str,
    port: int,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve a page until the process is interrupted.

    Args:
        app: Function that returns the application, given hosts and token as `make_app` takes them.
        host: Address to bind. Anything but this machine's own asks for a token, which is shown once, here.
        port: Port number; 0 takes a free one.
        announce: Function that receives the address.

    Raises:
        UserError: If the address is not available.
    """
    own = is_own(host)
    token = None if own else secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:  # the latter where the port is no port
        raise UserError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}") from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        announce(f"{address}?token={token}" if token else address)
        settings = uvicorn.Config(
            app((*LOCAL, host) if own else ("*",), token),
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(settings).run([listening])


def is_own(host: str) -> bool:
    """Check whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
