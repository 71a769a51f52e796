"""Health: healthz (can this process work), readyz (should it get traffic), metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from rowcast.http.api import require_key
from rowcast.http.responses import json

if TYPE_CHECKING:
    from rowcast.cast import Rowcast
    from rowcast.ports import State


async def healthz(request: Request) -> Response:
    """200 while this process can work, even if what it depends on is down; 503 when it must be restarted."""
    cast: Rowcast = request.app.state.cast
    failed = cast.replica.failed if cast.running else None
    if failed is not None:
        return json({"status": "failed", "error": f"{type(failed).__name__}: {failed}"}, 503)
    return json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 when this replica should get traffic, else 503; each dependency with its state and age."""
    cast: Rowcast = request.app.state.cast
    if not cast.running:
        return json({"status": "starting", "checks": {}}, 503)
    replica = cast.replica
    states = {"hub": cast.hub.state(), "log": cast.log.state()}
    ready = all(state.ok for state in states.values()) and replica.failed is None
    body: dict[str, Any] = {
        "status": "ok" if ready else "unavailable",
        "replica": replica.name,
        "checks": {name: _check(state) for name, state in states.items()},
    }
    problems = [
        *replica.warnings,
        *replica.router.problems,
        *(replica.guard.problems if replica.guard else ()),
    ]
    if problems:
        body["problems"] = problems
    return json(body, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """The metrics; with the API key, if one is configured."""
    cast: Rowcast = request.app.state.cast
    if cast.config.api.key is not None:
        require_key(request)
    return Response(cast.metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _check(state: State) -> dict[str, Any]:
    return {"ok": state.ok, "detail": state.detail, "age": round(time.time() - state.since, 3)}
