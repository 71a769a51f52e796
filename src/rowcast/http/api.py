"""Publish, control and count: the calls of the application, by the API key."""

from __future__ import annotations

import hmac
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from rowcast.errors import AuthError, BadRequest, Forbidden, TooLarge
from rowcast.http.bodies import OVERHEAD, compact, name, read_json
from rowcast.http.responses import json

if TYPE_CHECKING:
    from rowcast.cast import Rowcast


RESERVED = "rowcast."
"""Names of events that only the service sends begin so: a client acts on them."""


class Publish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /publish: either a topic or a user."""

    data: msgspec.Raw
    topic: str | None = None
    user: str | None = None
    event: str | None = None
    key: str | None = None


class ControlCall(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /control/…"""

    user: str


def require_key(request: Request) -> None:
    """Check the API key. Raises `AuthError`, or `Forbidden` when none is configured."""
    key = request.app.state.cast.config.api.key
    if key is None:
        raise Forbidden("this call is off: set [api] key, and send it as Authorization: Bearer <key>")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = key.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
        raise AuthError("this call needs the API key: send Authorization: Bearer <key>")


async def publish(request: Request) -> Response:
    """POST /publish: 202 with the position."""
    require_key(request)
    cast: Rowcast = request.app.state.cast
    limit = cast.config.server.max_event
    body = await read_json(request, Publish, limit + OVERHEAD)
    data = compact(body.data)
    if (size := len(bytes(data))) > limit:
        raise TooLarge(f"data has {size} bytes; at most {limit} are sent ([server] max_event)")
    if body.event is not None and body.event.startswith(RESERVED):
        raise BadRequest(f"event {body.event!r} is what the service itself would send; choose another name")
    position = await cast.publish(body.topic, data, user=body.user, event=body.event, key=body.key)
    return json({"id": str(position)}, 202)


async def resubscribe(request: Request) -> Response:
    """POST /control/resubscribe: 202 with the position from which it holds."""
    return await _control(request, "resubscribe")


async def disconnect(request: Request) -> Response:
    """POST /control/disconnect: 202 with the position from which it holds."""
    return await _control(request, "disconnect")


async def _control(request: Request, action: str) -> Response:
    require_key(request)
    cast: Rowcast = request.app.state.cast
    body = await read_json(request, ControlCall, OVERHEAD)
    user = name("user", body.user)
    position = await (cast.resubscribe(user) if action == "resubscribe" else cast.disconnect(user))
    return json({"id": str(position)}, 202)


async def drain(request: Request) -> Response:
    """POST /control/drain: 202; this replica begins to drain, and goes on running without streams.

    Its siblings do the same: to a proxy all workers are one.
    """
    require_key(request)
    cast: Rowcast = request.app.state.cast
    streams = cast.hub.streams_count
    cast.drain()
    if cast.siblings is not None:
        await cast.siblings.drain()
    return json({"replica": cast.replica.name, "streams": streams}, 202)


async def count(request: Request) -> Response:
    """GET /events/count: open streams of all replicas."""
    require_key(request)
    cast: Rowcast = request.app.state.cast
    roster = cast.replica.roster
    counts = Counter({cast.replica.name: cast.hub.streams_count})
    if roster is not None:
        counts.update(await roster.others())
    return json({"count": counts.total(), "replicas": counts})
