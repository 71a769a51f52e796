"""Answers: JSON by msgspec, and errors as `{"status": …, "error": …}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound, RowcastError, TooLarge, Unavailable

_encode = msgspec.json.encode

RETRY_AFTER = "2"
"""Seconds that a client is told to wait after a 503."""


class Conflict(BadRequest):
    """What is to be made is there already: HTTP 409."""


class Answered(Exception):
    """Who authenticates the users of a mounted Rowcast has answered instead: what was said is passed on as it is."""

    def __init__(self, said: Sequence[Message]) -> None:
        super().__init__("the application answered by itself")
        self.said = said


_STATUSES: list[tuple[type[RowcastError], int]] = [
    (Forbidden, 403),
    (AuthError, 401),
    (NotFound, 404),
    (Conflict, 409),
    (TooLarge, 413),
    (BadRequest, 400),
    (Unavailable, 503),
]


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(_encode(content), status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """An error response."""
    return json({"status": status, "error": message, **more}, status, headers)


def of(raised: Exception) -> Response:
    """The response for an error. What is not the client's to mend is a 500 without details."""
    if isinstance(raised, Unavailable):
        return error(503, str(raised), {"retry-after": RETRY_AFTER}, down=raised.what)
    status = next((code for kind, code in _STATUSES if isinstance(raised, kind)), 500)
    if status == 500:
        return error(500, "something went wrong here; the log of this replica says what")
    if status == 401:
        return error(401, str(raised), {"www-authenticate": 'Bearer realm="rowcast"'})
    if status == 413:
        # The rest of the body is not read, so the connection can't be used again.
        return error(413, str(raised), {"connection": "close"})
    return error(status, str(raised))


async def on_rowcast_error(request: Request, raised: Exception) -> Response:
    """Errors of ours, as JSON."""
    return of(raised)


async def on_answered(request: Request, raised: Exception) -> Response:
    """The answer of somebody else."""
    assert isinstance(raised, Answered)
    return _Said(raised.said)


class _Said(Response):
    """A response of which the messages are there already."""

    def __init__(self, said: Sequence[Message]) -> None:
        super().__init__()
        self._said = said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self._said:
            await send(message)


async def on_http_exception(request: Request, raised: Exception) -> Response:
    """Starlette's own errors (404, 405), as JSON with words."""
    assert isinstance(raised, HTTPException)
    headers = dict(raised.headers or {})
    if raised.status_code == 404:
        return error(404, f"there is no {request.url.path}", headers)
    if raised.status_code == 405:
        return error(405, f"{request.url.path} takes {headers.get('Allow', 'other methods')}", headers)
    return error(raised.status_code, raised.detail, headers)
