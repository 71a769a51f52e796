"""The ASGI application: routes and middlewares. Ours are plain ASGI; a stream passes through them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.addresses import Proxies
from rowcast.core.grants import Grant
from rowcast.errors import ConfigError, RowcastError, SetupError, Unavailable
from rowcast.http import admin, api, channels, health, limited, redact, responses, webhooks
from rowcast.http.events import events
from rowcast.http.heads import GO_AWAY
from rowcast.http.responses import Answered, on_answered, on_http_exception, on_rowcast_error
from rowcast.limits import Limiter
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

logger = get_logger(__name__)

REPLICA_HEADER = "x-rowcast-replica"
"""Every response names the replica that served it."""

START_PAUSE = 5.0
"""Seconds after a start that failed, before a request makes a mounted Rowcast try again."""


Authenticate = Callable[[Request], Awaitable[Grant]]
"""Says who a request's user is. Raises `AuthError`, or `Answered`."""


def create_app(cast: Rowcast, authenticate: Authenticate | None = None) -> Starlette:
    """The application of a Rowcast, whose lifespan starts and stops it.

    `authenticate` says who a request's user is; None: its token does, as `[auth]` says.
    """
    routes = [
        Route("/events", events, methods=["GET"]),
        Route("/events/count", api.count, methods=["GET"]),
        Route("/users/me/channels", channels.channels, methods=["GET", "POST"]),
        Route("/users/me/channels/{type}", channels.channel, methods=["GET", "PUT", "DELETE"]),
        Route("/publish", api.publish, methods=["POST"]),
        Route("/control/resubscribe", api.resubscribe, methods=["POST"]),
        Route("/control/disconnect", api.disconnect, methods=["POST"]),
        Route("/control/drain", api.drain, methods=["POST"]),
        Route("/webhooks/sequin", webhooks.sequin, methods=["POST"]),
        Route("/webhooks/debezium", webhooks.debezium, methods=["POST"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        Route("/health", health.readyz, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"]),
        *admin.routes(),
    ]
    middleware = [Middleware(Named, cast=cast)]
    if origins := cast.config.server.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["Authorization", "Cache-Control", "Last-Event-ID", "Prefer"],
                expose_headers=[REPLICA_HEADER, "Retry-After", "Location", *limited.EXPOSED],
                allow_credentials="*" not in origins,
            )
        )
    cast.limiter = Limiter.of(cast.config)
    proxies = Proxies(cast.config.server.trusted_proxies)
    middleware.append(Middleware(limited.Limited, limiter=lambda: cast.limiter, proxies=proxies))
    middleware.append(Middleware(Running, cast=cast))
    if cast.traces is not None:
        from rowcast.telemetry.traces import Traced

        middleware.insert(0, Middleware(Traced, traces=cast.traces))
    redact.install()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with cast.lifespan():
            yield
        if cast.limiter is not None:
            await cast.limiter.close()

    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            RowcastError: on_rowcast_error,
            HTTPException: on_http_exception,
            Answered: on_answered,
        },
        lifespan=lifespan,
    )
    # A redirect to the path without a slash would name whatever host and scheme a proxy spoke to us.
    app.router.redirect_slashes = False
    app.state.cast = cast
    app.state.authenticate = cast.authenticator.authenticate if authenticate is None else _guarded(cast, authenticate)
    app.state.watch = admin.Watch(cast)
    app.state.database = health.DatabaseProbe()
    app.state.webhooks = cast.webhooks
    return app


def _guarded(cast: Rowcast, authenticate: Authenticate) -> Authenticate:
    """Somebody else's authentication. What it goes by is not known to us; by cookies, if there are no other signs."""

    async def guarded(request: Request) -> Grant:
        if "cookie" in request.headers and "authorization" not in request.headers:
            cast.authenticator.check_origin(request)
        return await authenticate(request)

    return guarded


class Named:
    """Names the replica in every response, and asks for connections to be closed while it drains."""

    def __init__(self, app: ASGIApp, cast: Rowcast) -> None:
        self._app = app
        self._cast = cast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and self._cast.running:
                replica = self._cast.replica
                headers = [*message.get("headers", ()), (REPLICA_HEADER.encode(), replica.name.encode())]
                if replica.drain.begun:
                    # Or a proxy would use it again at the very moment at which it is closed.
                    if scope["http_version"].startswith("1"):
                        headers.append((b"connection", b"close"))
                    elif (go_away := (scope.get("extensions") or {}).get(GO_AWAY)) is not None:
                        go_away()
                message = {**message, "headers": headers}
            await send(message)

        if self._cast.running:
            self._cast.replica.asked_at = asyncio.get_running_loop().time()

        await self._app(scope, receive, named)


class Running:
    """Starts a mounted Rowcast at its first request, and answers for whatever goes wrong behind it.

    A server tells only the outermost application of the lifespan, so a mounted one may not have been started.
    Once it was stopped, it stays so. Answers for errors are made here, and not by Starlette's outermost layer, so
    that they too get the headers that the middlewares add.
    """

    def __init__(self, app: ASGIApp, cast: Rowcast) -> None:
        self._app = app
        self._cast = cast
        self._starting = asyncio.Lock()
        self._started = False
        self._failure = ""
        self._again_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if self._cast.running:
                self._started = True
            elif not scope["path"].endswith("/healthz"):
                await self._start()
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            if begun:
                raise
            if not isinstance(error, Unavailable):
                logger.exception("request_failed", "%s %s failed", scope["method"], scope["path"])
            await responses.of(error)(scope, receive, send)

    async def _start(self) -> None:
        async with self._starting:
            if self._cast.running:
                return
            if self._started:
                raise Unavailable("this replica was stopped", what="replica")
            if time.monotonic() < self._again_at:
                raise Unavailable(self._failure, what="replica")
            try:
                await self._cast.start()
            except (ConfigError, SetupError) as error:
                self._failure = f"Rowcast can't start: {error}"
                self._again_at = time.monotonic() + START_PAUSE
                logger.error("start_failed", "%s", self._failure)
                raise Unavailable(self._failure, what="replica") from None
            self._cast.watch_signals()
            self._started = True
