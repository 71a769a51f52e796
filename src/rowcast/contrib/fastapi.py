"""FastAPI: mount Rowcast, and let the application's own authentication say whose stream it is.

    from rowcast import Rowcast
    from rowcast.contrib.fastapi import mount

    cast = Rowcast(postgres=…, api=…, route=[…], subscription=[…])
    mount(app, cast, user=current_user)     # GET /live/events

`current_user` is the dependency that your endpoints have already. What it needs is resolved as for them, with
`dependency_overrides`, and what it raises is answered by your own exception handlers. It is over, with all that it
opened (a database session, say), before the stream begins.

To publish in a request's own transaction see `rowcast.contrib.sqlalchemy`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.cast import Rowcast
from rowcast.contrib.users import grant_of
from rowcast.core.grants import Grant
from rowcast.http.responses import Answered

_GRANTS = "rowcast.grants"
_SCOPE = "rowcast.scope"


def mount(app: FastAPI, cast: Rowcast, path: str = "/live", *, user: Callable[..., Any] | None = None) -> None:
    """Serve Rowcast below `path`, started after the application's own start-up and stopped before its end.

    `user` is a dependency that gives the current user: an id, an object with `id`, None for nobody (401), or a
    `rowcast.core.grants.Grant` with topics of its own. It authorises the stream and the channels; without it that is
    done by tokens, as `[auth]` says.

    A stream lives longer than a request: call `await cast.disconnect(user)` where a user signs out or is locked.
    """
    authenticate = None if user is None else _OwnUser(app, user)
    live: ASGIApp = cast.asgi(authenticate=authenticate)
    app.mount(path, live if authenticate is None else authenticate.keeping_scope(live))
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state, cast.lifespan():
            yield state

    app.router.lifespan_context = lifespan


class _OwnUser:
    """Asks a dependency of the application who a request's user is.

    It is asked through a route that exists for this alone and whose answer nobody gets: so the dependency is resolved
    by FastAPI, and done with, before anything is streamed.
    """

    def __init__(self, app: FastAPI, user: Callable[..., Any]) -> None:
        async def tell(request: Request, current: Any = Depends(user)) -> Response:  # noqa: B008 - that is how
            request.scope[_GRANTS].append(grant_of(current))
            return Response(status_code=204)

        router = APIRouter(dependency_overrides_provider=app)
        router.add_api_route("/", tell, methods=["GET"], response_model=None)
        self._ask: ASGIApp = router.routes[-1].app  # type: ignore[attr-defined]  # it is a Route

    def keeping_scope(self, live: ASGIApp) -> ASGIApp:
        """An application that remembers the scope as yours had it: `live` puts its own handlers into it."""

        async def kept(scope: Scope, receive: Receive, send: Send) -> None:
            await live({**scope, _SCOPE: scope}, receive, send)

        return kept

    async def __call__(self, request: Request) -> Grant:
        grants: list[Grant] = []
        said: list[Message] = []
        scope = {**request.scope[_SCOPE], "method": "GET", _GRANTS: grants}

        async def keep(message: Message) -> None:
            said.append(message)

        await self._ask(scope, _no_body, keep)
        if grants:
            return grants[0]
        raise Answered(said)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
