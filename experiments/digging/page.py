"""The page on which people correct: a small server, on this machine alone unless it is told otherwise.

The page is one file, `page.html`, without requests to anywhere else; what it shows of the data it shows as text. A
policy of the browser backs that: only the page's own script may run. Requests that change something must be JSON, so
that no other site's form can send them, and must name a host that we serve, so that no other name can lead here.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from maskgym.data.images import DataFault
from maskgym.errors import UserError
from maskgym.experiments.digging import commands, masks, review

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise UserError("the page needs starlette and uvicorn: pip install 'maskgym[dig]'") from error

PAGE = Path(__file__).with_name("page.html")
COOKIE = "maskgym_token"
MOST_POINTS, MOST_NEEDS, LARGEST_BODY = 64, 20, 100_000  # the last in bytes
LOCAL = ("127.0.0.1", "localhost", "::1")
ASK = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>maskgym: token</title><form><label>Token, as the terminal shows it:
<input name="token" type="password" autofocus></label> <button>Open</button></form>"""


class Desk:
    """What the page asks of a project: objects, live masks, decisions.

    Args:
        objects: All that there is to decide about.
        decisions: Where they are kept.
        image: Gives an image, uint8 (H, W, 3), by its item.
        prompted: Makes masks of clicks; None where there is no segmenter for it.
        annotator: Who decides.
    """

    def __init__(
        self,
        objects: Sequence[review.Candidate],
        decisions: review.Decisions,
        image: Callable[[Any], np.ndarray],
        prompted: masks.Prompted | None,
        annotator: str,
    ) -> None:
        self.objects, self.decisions, self.annotator = objects, decisions, annotator
        self._by_id = {one.id: one for one in objects}
        self._image = lru_cache(maxsize=16)(image)
        self._prompted, self._busy = prompted, Lock()  # one mask at a time: a network is no crowd's

    def overview(self) -> dict[str, Any]:
        """Return every object's id and status, in order, and the totals."""
        made = self.decisions.made
        listed = [[one.id, made.get(one.id, {}).get("status", review.UNDECIDED)] for one in self.objects]
        return {"objects": listed, "progress": review.progress(self.objects, self.decisions)}

    def show(self, name: str) -> dict[str, Any]:
        """Return an object as it is now.

        Raises:
            UserError: If there is none of this name.
        """
        one = self._find(name)
        decision = self.decisions.made.get(name)
        now = review.outcome(one, decision)
        image = self._image(one.item)
        code = now["segmentation"]
        return {
            "id": name,
            "image": one.item.key,
            "height": image.shape[0],
            "width": image.shape[1],
            **{field: one.found[field] for field in ("category", "box", "seen_by")},
            "status": now["status"],
            "needs": now["needs"],
            "written": list(one.needs),
            "reason": one.reason,
            "mask": None if code is None else masks.runs(masks.decode(code)),
            **{field: (decision or {}).get(field) for field in ("points", "labels", "boxed")},
        }

    def picture(self, name: str) -> bytes:
        """Return an object's image as a file of pixels that no browser turns or resizes: PNG."""
        stream = io.BytesIO()
        Image.fromarray(self._image(self._find(name).item)).save(stream, "png", compress_level=1)
        return stream.getvalue()

    def mask(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the mask that clicks make of an object.

        Raises:
            UserError: If the clicks cannot be used.
        """
        one = self._find(given.get("id"))
        made = self._clicked(one, *_clicks(given, self._image(one.item).shape))
        return {"mask": None if made is None else masks.runs(made)}

    def decide(self, given: dict[str, Any]) -> dict[str, Any]:
        """Record a decision; the mask is made again here from its clicks.

        Raises:
            UserError: If it cannot be used; nothing is recorded then.
        """
        one = self._find(given.get("id"))
        status, texts = given.get("status"), given.get("needs")
        if status not in review.STATUSES:
            raise UserError(f"status {status!r}: expected one of {', '.join(review.STATUSES)}")
        if not isinstance(texts, list) or len(texts) > MOST_NEEDS:
            raise UserError(f"needs: expected a list of at most {MOST_NEEDS} commands")
        # What is not yet decided may be half done; what is rejected need not be right.
        needs, faults = commands.check(texts)
        if status == review.ACCEPTED and (faults or not needs):
            raise UserError("; ".join(faults) or "no command: expected at least one")
        points, labels, boxed = _clicks(given, self._image(one.item).shape)
        mended = self._mended(one, points, labels, boxed) if points else {}
        code = mended.get("segmentation", one.segmentation)
        if status == review.ACCEPTED and (code is None or not masks.decode(code).any()):
            raise UserError("the mask is empty: mend it with clicks, or reject the object")
        self.decisions.decide(one.id, self.annotator, status, needs, **mended)
        return {"saved": True, "faults": faults, "progress": review.progress(self.objects, self.decisions)}

    def _mended(
        self, one: review.Candidate, points: list[list[float]], labels: list[int], boxed: bool
    ) -> dict[str, Any]:
        """Return clicks and their mask, as decisions hold them; what was seen with the same clicks stays as it was."""
        clicks = {"points": points, "labels": labels, "boxed": boxed}
        before = self.decisions.made.get(one.id, {})
        if "segmentation" in before and all(before[name] == value for name, value in clicks.items()):
            return {name: before[name] for name in (*clicks, "segmenter", "segmentation")}
        made = self._clicked(one, points, labels, boxed)
        assert made is not None and self._prompted is not None
        return {**clicks, "segmenter": self._prompted.segmenter.fingerprint, "segmentation": masks.encode(made)}

    def _clicked(
        self, one: review.Candidate, points: list[list[float]], labels: list[int], boxed: bool
    ) -> np.ndarray | None:
        """Return the mask bool (H, W) of clicks; without any, the segmenter's first one."""
        if not points:
            return None if one.segmentation is None else masks.decode(one.segmentation)
        if self._prompted is None:
            raise UserError("no segmenter here turns clicks into masks")
        with self._busy:
            image = self._image(one.item)
            return self._prompted(image, [one.found["box"]] if boxed else None, [points], [labels])[0]

    def _find(self, name: Any) -> review.Candidate:
        found = self._by_id.get(name) if isinstance(name, str) else None
        if found is None:
            raise UserError(f"no object {name!r} here")
        return found


def make_app(desk: Desk, hosts: Sequence[str] = LOCAL, token: str | None = None) -> Starlette:
    """Return the application.

    Args:
        desk: What it serves.
        hosts: Names that requests may be addressed to; ``*`` for any, with a token.
        token: Asked for before anything is shown; None asks for none.
    """

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
        return HTMLResponse(text, headers={"content-security-policy": policy})

    def reading(act: Callable[[str], Any]) -> Callable:
        async def answer(request: Request) -> Response:
            return await _answered(act, request.path_params["name"])

        return answer

    def changing(act: Callable[[dict[str, Any]], Any]) -> Callable:
        async def answer(request: Request) -> Response:
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return JSONResponse({"error": "expected JSON"}, 415)
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    return JSONResponse({"error": f"expected at most {LARGEST_BODY} bytes"}, 413)
            return await _answered(lambda: act(_object(body)))

        return answer

    async def overview(request: Request) -> Response:
        return await _answered(desk.overview)

    routes = [
        Route("/", page),
        Route("/api/objects", overview),
        Route("/api/objects/{name}", reading(desk.show)),
        Route("/api/pictures/{name}", reading(desk.picture)),
        Route("/api/mask", changing(desk.mask), methods=["POST"]),
        Route("/api/decide", changing(desk.decide), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=tuple(hosts), token=token)])


class Guard:
    """Lets in what names one of our hosts and, if there is one, knows the token.

    Args:
        app: What is guarded.
        hosts: See `make_app`.
        token: See `make_app`.
    """

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )

    def __init__(self, app: Any, hosts: tuple[str, ...], token: str | None) -> None:
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def hardened(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, hardened)

    def _refusal(self, request: Request) -> Response | None:
        try:
            named = request.url.hostname
        except ValueError:
            named = None
        if "*" not in self._hosts and named not in self._hosts:
            return JSONResponse({"error": "this name does not lead here"}, 421)
        if self._token is None or self._knows(request.cookies.get(COOKIE)):
            return None
        if request.url.path != "/":
            return JSONResponse({"error": "the token is missing or wrong"}, 401)
        if not self._knows(request.query_params.get("token")):
            return HTMLResponse(ASK, 401)
        answer = RedirectResponse("/", 303)  # so that the token does not stay in the address
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: str | None) -> bool:
        return self._token is not None and hmac.compare_digest((given or "").encode(), self._token.encode())


def serve(desk: Desk, host: str, port: int, announce: Callable[[str], object] = print) -> None:
    """Serve the page until the process is interrupted.

    Args:
        desk: What is served.
        host: Address to bind. Anything but this machine's own asks for a token, which is shown once, here.
        port: Number; 0 takes a free one.
        announce: Told the address.

    Raises:
        UserError: If the address cannot be had.
    """
    own = is_own(host)
    token = None if own else secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}") from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        announce(f"{address}?token={token}" if token else address)
        app = make_app(desk, (*LOCAL, host) if own else ("*",), token)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2))
        try:
            server.run([listening])
        finally:
            desk.decisions.save()


def is_own(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _answered(act: Callable, *arguments: Any) -> Response:
    """Return what an action gives, made in a thread; mistakes come as one line."""
    try:
        found = await run_in_threadpool(act, *arguments)
    except (UserError, DataFault) as error:
        return JSONResponse({"error": " ".join(str(error).split())}, 400)
    return Response(found, media_type="image/png") if isinstance(found, bytes) else JSONResponse(found)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("expected a JSON object")
    return found


def _clicks(given: dict[str, Any], shape: Sequence[int]) -> tuple[list[list[float]], list[int], bool]:
    points, labels, boxed = given.get("points") or [], given.get("labels") or [], bool(given.get("boxed", True))
    try:
        places = np.array(points, np.float32).reshape(len(points), 2)
        fits = len(labels) == len(points) <= MOST_POINTS and all(label in (0, 1) for label in labels)
        inside = bool(((places >= 0) & (places <= (shape[1], shape[0]))).all())
    except (TypeError, ValueError):
        fits = inside = False
    if not (fits and inside):
        raise UserError(f"clicks: expected at most {MOST_POINTS} points (x, y) in the image, each with label 0 or 1")
    return [[round(float(x), 1), round(float(y), 1)] for x, y in places], [int(label) for label in labels], boxed
