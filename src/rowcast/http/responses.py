"""Answers: JSON by msgspec, and errors as `{"status": …, "error": …}`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound, RowcastError, TooLarge, Unavailable

_encode = msgspec.json.encode

RETRY_AFTER = "2"
"""Seconds that a client is told to wait after a 503."""


class Conflict(BadRequest):
    """What is to be made is there already: HTTP 409."""


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


async def on_rowcast_error(request: Request, raised: Exception) -> Response:
    """The response for an error of ours. One that is not the client's to mend is a 500 without details."""
    status = next((code for kind, code in _STATUSES if isinstance(raised, kind)), 500)
    if status == 401:
        return error(401, str(raised), {"www-authenticate": 'Bearer error="invalid_token"'})
    if isinstance(raised, Unavailable):
        return error(503, str(raised), {"retry-after": RETRY_AFTER}, down=raised.what)
    return error(status, str(raised))


async def on_http_exception(request: Request, raised: Exception) -> Response:
    """Starlette's own errors (404, 405) as JSON."""
    assert isinstance(raised, HTTPException)
    return error(raised.status_code, raised.detail, dict(raised.headers or {}))


async def on_any_error(request: Request, raised: Exception) -> Response:
    """What nobody expected; Starlette logs it."""
    return error(500, "something went wrong here; the log of this replica says what")
