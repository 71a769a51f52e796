"""The operator's page, `/admin/`: static files and their data, behind the API key.

A browser is asked for the key by HTTP Basic authentication (RFC 7617: any name, the key as the password) and then sends
it by itself, also with what other sites make it ask for. So whatever changes something is a POST with a header that no
other site can send without asking first (Fetch Standard, "CORS-safelisted request-header").

The page's data come over an ordinary stream of the hub, on a topic that no rule, route or token can name.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from rowcast.core import sse
from rowcast.core.grants import Grant
from rowcast.core.template import fits
from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound
from rowcast.http.api import ControlCall
from rowcast.http.bodies import OVERHEAD, name, read_json
from rowcast.http.events import Events
from rowcast.http.responses import json, of
from rowcast.telemetry.journal import get_logger
from rowcast.telemetry.overview import overview, user

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

logger = get_logger(__name__)

PAGE = Path(__file__).parent / "admin_page"
FILES = {"": "text/html", "admin.css": "text/css", "admin.js": "text/javascript", "charts.js": "text/javascript"}

OPERATOR = "rowcast:operator"
"""The user whose streams the page's are."""

TOPIC = "\0overview"
"""Where the pictures go: a NUL can stand in no topic that a rule, a route, a token or a publisher names."""

INTERVAL = 1.0
"""Seconds between two pictures, while somebody looks."""

HEADER = "x-rowcast-admin"
"""With any value: sent by the page with everything that changes something."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_encode = msgspec.json.Encoder(enc_hook=str).encode


def routes() -> list[BaseRoute]:
    """Everything under `/admin`."""
    return [
        Route("/admin", lambda request: RedirectResponse("admin/"), methods=["GET"]),
        Mount(
            "/admin",
            routes=[
                Route("/events", Guarded(Events(_watch)), methods=["GET"]),
                Route("/tail", Guarded(Events(_tail)), methods=["GET"]),
                Route("/users/{user:path}", _user, methods=["GET"]),
                Route("/resubscribe", _resubscribe, methods=["POST"]),
                Route("/disconnect", _disconnect, methods=["POST"]),
                Route("/{file:path}", _file, methods=["GET"]),
            ],
        ),
    ]


def require_operator(request: Request) -> None:
    """Check the API key, as bearer or as the password of Basic. Raises `AuthError`, or `Forbidden` without a key."""
    key = request.app.state.cast.config.api.key
    if key is None:
        raise Forbidden("the operator's page is off: set [api] key")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    if not hmac.compare_digest(given.strip().encode(), key.get_secret_value().encode()):
        raise AuthError(
            "this page needs the API key: as the password, with any name, or as Authorization: Bearer <key>"
        )


class Guarded:
    """An endpoint that is for operators only."""

    def __init__(self, endpoint: Events) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            require_operator(Request(scope))
        except AuthError as error:
            await _challenge(error)(scope, receive, send)
            return
        await self._endpoint(scope, receive, send)


async def _watch(request: Request) -> Grant:
    """The stream of pictures."""
    request.app.state.watch.wake()
    return Grant(OPERATOR, frozenset({TOPIC}))


async def _tail(request: Request) -> Grant:
    """The stream of one topic, as its subscribers have it."""
    topic = request.query_params.get("topics", "")
    if not fits(topic) or "," in topic:
        raise BadRequest("?topics= must name one topic")
    return Grant(OPERATOR, frozenset({topic}))


class Watch:
    """Takes pictures of a replica while somebody looks."""

    def __init__(self, cast: Rowcast) -> None:
        self._cast = cast
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Somebody is about to look."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        idle = 0
        while self._cast.running and idle < 3:
            await asyncio.sleep(INTERVAL)
            if not self._cast.running or not self._cast.hub.listened(TOPIC):
                idle += 1
                continue
            idle = 0
            try:
                picture = await overview(self._cast)
            except Exception:
                logger.exception("overview_failed", "no picture for the operator's page")
                continue
            self._cast.hub.deliver(TOPIC, sse.frame(_encode(picture), event="overview"))


async def _file(request: Request) -> Response:
    try:
        require_operator(request)
    except AuthError as error:
        return _challenge(error)
    file = request.path_params["file"]
    if file not in FILES:
        raise NotFound(f"there is no /admin/{file}")
    return FileResponse(PAGE / (file or "index.html"), headers=_HEADERS, media_type=FILES[file])


async def _user(request: Request) -> Response:
    require_operator(request)
    found = await user(request.app.state.cast, name("user", request.path_params["user"]))
    return Response(_encode(found), 200, {"cache-control": "no-store"}, "application/json")


async def _resubscribe(request: Request) -> Response:
    cast, who = await _control(request)
    return json({"id": str(await cast.resubscribe(who))}, 202)


async def _disconnect(request: Request) -> Response:
    cast, who = await _control(request)
    return json({"id": str(await cast.disconnect(who))}, 202)


async def _control(request: Request) -> tuple[Rowcast, str]:
    require_operator(request)
    if HEADER not in request.headers:
        raise Forbidden(f"send the header {HEADER}: it shows that the page itself asks, and not another site")
    body = await read_json(request, ControlCall, OVERHEAD)
    return request.app.state.cast, name("user", body.user)


def _challenge(error: AuthError) -> Response:
    response = of(error)
    response.headers["www-authenticate"] = 'Basic realm="Rowcast operator", charset="UTF-8"'
    return response
