"""The demo's own server: the page, the facts that it shows, and the replicas behind the same origin."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.demo.market import HAND, Series
from rowcast.demo.people import PEOPLE, mint
from rowcast.demo.proxy import Proxy, error
from rowcast.demo.replay import WRITE_BY_HAND, Replay
from rowcast.demo.supervisor import Supervisor

STATIC = Path(__file__).parent / "static"

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


@dataclass(frozen=True)
class Database:
    """The demo's Postgres, as the page tells of it. `psql` is the path of a psql that can be run here."""

    version: str
    url: str
    psql: Path

    def command(self) -> str:
        """The shell command that writes the row which is there to be written by hand."""
        return f'{shlex.quote(str(self.psql))} {shlex.quote(self.url)} -c "{WRITE_BY_HAND}"'


class Front:
    """Handlers of the page and of `/demo/…`.

    `secret` is the one that the replicas check tokens with: the demo mints a token for whoever asks, which is
    why it listens on this machine only and refuses requests that name another host.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        proxy: Proxy,
        replay: Replay,
        series: Sequence[Series],
        database: Database,
        secret: str,
    ) -> None:
        self._supervisor = supervisor
        self._proxy = proxy
        self._replay = replay
        self._series = series
        self._database = database
        self._secret = secret
        # Tells a page that is still open from an earlier demo on the same port.
        self._run = secrets.token_hex(4)

    def asgi(self) -> ASGIApp:
        """The application that the demo's port serves."""
        channels = self._proxy.channels
        return Starlette(
            routes=[
                Route("/", lambda _: FileResponse(STATIC / "index.html")),
                Route("/events", self._proxy, methods=["GET"]),
                Route("/demo/about", self.about),
                Route("/demo/state", self.state),
                Route("/demo/sign-in", self.sign_in, methods=["POST"]),
                Route("/demo/kill", self.kill, methods=["POST"]),
                Route("/demo/replay", self.pause, methods=["POST"]),
                Route("/users/me/channels", channels, methods=["GET", "POST"]),
                Route("/users/me/channels/{type}", channels, methods=["GET", "PUT", "DELETE"]),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[
                # A page of another site that points its name at 127.0.0.1 must not get a token or a kill.
                Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False),
                Middleware(_SafeHeaders),
            ],
        )

    async def about(self, _: Request) -> Response:
        """What does not change while the demo runs."""
        return JSONResponse(
            {
                "run": self._run,
                "people": [asdict(person) for person in PEOPLE],
                "symbols": [
                    {
                        "symbol": one.symbol,
                        "name": one.name,
                        "unit": one.unit,
                        "from": one.points[0].day.isoformat(),
                        "to": one.points[-1].day.isoformat(),
                    }
                    for one in self._series
                ],
                "hand": HAND,
                "rate": self._replay.rate,
                "postgres": {"version": self._database.version, "url": self._database.url},
                "psql": self._database.command(),
            }
        )

    async def state(self, _: Request) -> Response:
        """The replicas and the replay, now. The page asks every second."""
        now = time.monotonic()
        return JSONResponse(
            {
                "run": self._run,
                "replicas": [
                    {
                        "name": replica.name,
                        "state": replica.state,
                        "killed": replica.killed,
                        "pid": replica.pid,
                        "port": replica.port,
                        "streams": self._proxy.streams(replica),
                        "back_in": max(0.0, replica.back_at - now) if replica.back_at is not None else None,
                    }
                    for replica in self._supervisor.replicas
                ],
                "replay": {"paused": self._replay.paused, "commits": self._replay.commits},
            }
        )

    async def sign_in(self, request: Request) -> Response:
        """`{"user": id}` → `{"token": …}`."""
        user = (await _body(request)).get("user")
        person = next((person for person in PEOPLE if person.id == user), None)
        if person is None:
            return error(404, f"there is no such user; one of {', '.join(p.id for p in PEOPLE)} is")
        return JSONResponse({"token": mint(person, self._secret)})

    async def kill(self, request: Request) -> Response:
        """`{"client": id}` → kill -9 of the replica that holds this client's stream."""
        replica = self._proxy.holder(str((await _body(request)).get("client", "")))
        if replica is None:
            return error(409, "no replica holds a stream of this page right now")
        try:
            pid = self._supervisor.kill(replica)
        except ProcessLookupError:
            return error(409, f"replica {replica.name} is dead already")
        return JSONResponse({"replica": replica.name, "pid": pid, "pause": self._supervisor.pause})

    async def pause(self, request: Request) -> Response:
        """`{"paused": bool}`: hold the replay, or let it go on."""
        self._replay.paused = bool((await _body(request)).get("paused"))
        return JSONResponse({"paused": self._replay.paused})


class _SafeHeaders:
    """Adds the headers of `_HEADERS` that an answer does not have yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                added = [header for header in _HEADERS if header[0] not in there]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a POST, or {} for anything else.

    Another site's page can post without the browser asking us first, but not with this content type.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        return {}
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}
