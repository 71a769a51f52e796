"""The ASGI application: routes and middlewares. Ours are plain ASGI; a stream passes through them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.errors import RowcastError
from rowcast.http import api, channels, health
from rowcast.http.events import events
from rowcast.http.responses import on_any_error, on_http_exception, on_rowcast_error

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

REPLICA_HEADER = "x-rowcast-replica"
"""Every response names the replica that served it."""


def create_app(cast: Rowcast) -> Starlette:
    """The application of a Rowcast, whose lifespan starts and stops it."""
    routes = [
        Route("/events", events, methods=["GET"]),
        Route("/events/count", api.count, methods=["GET"]),
        Route("/users/me/channels", channels.channels, methods=["GET", "POST"]),
        Route("/users/me/channels/{type}", channels.channel, methods=["GET", "PUT", "DELETE"]),
        Route("/publish", api.publish, methods=["POST"]),
        Route("/control/resubscribe", api.resubscribe, methods=["POST"]),
        Route("/control/disconnect", api.disconnect, methods=["POST"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        Route("/health", health.readyz, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"]),
    ]
    middleware = [Middleware(Serving, cast=cast)]
    if origins := cast.config.server.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Cache-Control"],
                expose_headers=[REPLICA_HEADER],
                allow_credentials="*" not in origins,
            )
        )
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            RowcastError: on_rowcast_error,
            HTTPException: on_http_exception,
            Exception: on_any_error,
        },
        lifespan=cast.lifespan,
    )
    app.state.cast = cast
    return app


class Serving:
    """Starts a mounted Rowcast at its first request, and names the replica in each response.

    A server tells only the outermost application of the lifespan, so a mounted one may not have been started.
    """

    def __init__(self, app: ASGIApp, cast: Rowcast) -> None:
        self._app = app
        self._cast = cast
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._cast.running:
            async with self._starting:
                await self._cast.start()
        name = self._cast.replica.name.encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (REPLICA_HEADER.encode(), name)]
            await send(message)

        await self._app(scope, receive, named)
