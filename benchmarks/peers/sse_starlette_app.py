"""sse-starlette with a publisher inside its process: a queue per stream, as its documentation shows it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

import pacing
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_queues: defaultdict[int, list[asyncio.Queue[str]]] = defaultdict(list)
_running: set[asyncio.Task[None]] = set()


async def _events(request: Request) -> EventSourceResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()
    for topic in request.query_params.get("topics", "0").split(","):
        _queues[int(topic)].append(queue)

    async def body() -> AsyncIterator[dict[str, str]]:
        while True:
            yield {"data": await queue.get()}

    return EventSourceResponse(body())


async def _publish(events: list[tuple[int, str]]) -> None:
    for topic, text in events:
        for queue in _queues[topic]:
            queue.put_nowait(text)
    await asyncio.sleep(0)


async def _start(request: Request) -> Response:
    task = asyncio.create_task(pacing.run(request.query_params, _publish))
    _running.add(task)
    task.add_done_callback(_running.discard)
    return Response(status_code=202)


app = Starlette(routes=[Route("/events", _events), Route("/bench/publish", _start)])
