"""Health: healthz (can this process work), readyz (should it get traffic), metrics."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from starlette.requests import Request
from starlette.responses import Response

from rowcast.core.troubles import public
from rowcast.errors import AuthError
from rowcast.http.api import require_key
from rowcast.http.responses import RETRY_AFTER, error, json
from rowcast.ports import State
from rowcast.telemetry import merge

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

PROBE_PAUSE = 1.0
PROBE_TIMEOUT = 2.0


async def healthz(request: Request) -> Response:
    """200 while this process can work, even if what it depends on is down; 503 when it must be restarted."""
    cast: Rowcast = request.app.state.cast
    failed = cast.replica.failed if cast.running else None
    if failed is not None:
        return error(503, _failure(failed))
    return json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 when this replica should get traffic, else 503; each dependency with its state and age."""
    cast: Rowcast = request.app.state.cast
    database: DatabaseProbe = request.app.state.database
    replica = cast.replica
    states = {"hub": cast.hub.state(), "log": cast.log.state()}
    if replica.bridge is not None:
        states["bridge"] = replica.bridge.state()
    if replica.pool is not None:
        states["postgres"] = await database.state(replica.pool)
    if replica.failed is not None:
        states["replica"] = State(ok=False, detail=_failure(replica.failed), since=time.time())
    more: dict[str, Any] = {
        "replica": replica.name,
        "checks": {name: _check(state) for name, state in states.items()},
    }
    problems = [
        *replica.warnings,
        *replica.router.problems,
        *request.app.state.webhooks.problems,
        *(replica.guard.problems if replica.guard else ()),
    ]
    if problems:
        more["problems"] = problems if _is_operator(request) else [public(problem) for problem in problems]
    down = [f"{name}: {state.detail}" for name, state in states.items() if not state.ok]
    if down:
        return error(503, "; ".join(down), {"retry-after": RETRY_AFTER}, **more)
    return json({"status": "ok", **more})


class DatabaseProbe:
    """Whether Postgres answers; it is asked at most every PROBE_PAUSE seconds, however often we are."""

    def __init__(self) -> None:
        self._state = State(ok=True, detail="not asked yet", since=time.time())
        self._asked = float("-inf")
        self._asking = asyncio.Lock()

    async def state(self, pool: AsyncConnectionPool[Any]) -> State:
        """Its state, asked by a connection of the pool."""
        async with self._asking:
            if time.monotonic() - self._asked > PROBE_PAUSE:
                detail = await self._ask(pool)
                ok = not detail
                since = self._state.since if ok == self._state.ok else time.time()
                self._state = State(ok=ok, detail=detail or "answers", since=since)
                self._asked = time.monotonic()
            return self._state

    async def _ask(self, pool: AsyncConnectionPool[Any]) -> str:
        """What is wrong, or ""."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT), pool.connection() as connection:
                await connection.execute("SELECT 1")
        except TimeoutError:
            return f"no answer within {PROBE_TIMEOUT:g} s"
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            return " ".join(str(error).split())
        return ""


async def metrics(request: Request) -> Response:
    """The metrics; with the API key, if one is configured."""
    cast: Rowcast = request.app.state.cast
    if cast.config.api.key is not None:
        require_key(request)
    told = cast.metrics.expose() if cast.siblings is None else merge.text(await cast.siblings.metrics())
    return Response(told, media_type="text/plain; version=0.0.4; charset=utf-8")


def _is_operator(request: Request) -> bool:
    try:
        require_key(request)
    except AuthError:
        return False
    return True


def _failure(failed: BaseException) -> str:
    return f"a part of this replica failed, and it must be restarted: {type(failed).__name__}: {failed}"


def _check(state: State) -> dict[str, Any]:
    return {"ok": state.ok, "detail": state.detail, "age": round(time.time() - state.since, 3)}
