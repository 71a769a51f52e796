"""Rowcast with a publisher inside its process: `rowcast serve benchmarks.peers.rowcast_app:app`.

Everything is on: tokens, subscriptions, positions, the ring for catch-up, metrics. Events take the public way,
`cast.publish`, so what a server spends on publishing is part of what is measured.
"""

from __future__ import annotations

import asyncio
import os

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers import pacing
from rowcast import Rowcast

SECRET = "0123456789abcdef0123456789abcdef"

cast = Rowcast(
    postgres=os.environ.get("BENCH_POSTGRES"),
    log=os.environ.get("BENCH_LOG") or "memory:",
    auth=SECRET,
    server={"max_streams_per_user": 1_000_000},
    subscription=msgspec.json.decode(os.environ.get("BENCH_SUBSCRIPTION") or "[]"),
    route=msgspec.json.decode(os.environ.get("BENCH_ROUTE") or "[]"),
)
app = cast.asgi()
_running: set[asyncio.Task[None]] = set()


async def _publish(events: list[tuple[int, str]]) -> None:
    # As an application would: without waiting for one before the next, if there are several.
    if len(events) == 1:
        topic, text = events[0]
        await cast.publish(str(topic), msgspec.Raw(text.encode()))
        return
    await asyncio.gather(*(cast.publish(str(topic), msgspec.Raw(text.encode())) for topic, text in events))


async def _start(request: Request) -> Response:
    task = asyncio.create_task(pacing.run(request.query_params, _publish))
    _running.add(task)
    task.add_done_callback(_running.discard)
    return Response(status_code=202)


app.router.routes.append(Route("/bench/publish", _start, methods=["GET"]))
