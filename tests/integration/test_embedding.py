"""Rowcast inside an application of one's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from rowcast import BadRequest, ConfigError, Rowcast, Unavailable
from rowcast.auth.jwt import mint
from rowcast.testing.postgres import free_port
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Run an application by uvicorn in this loop."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    task = asyncio.create_task(server.serve())
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get(url)
                break
            await asyncio.sleep(0)
    try:
        yield url
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("composed", [True, False])
async def test_mounted_with_and_without_the_lifespan(database: str, composed: bool) -> None:
    cast = Rowcast(postgres=database, auth=SECRET)

    async def say(request: Request) -> JSONResponse:
        await cast.publish(user="ann", data={"said": (await request.json())["text"]})
        return JSONResponse({})

    app = Starlette(
        routes=[Route("/say", say, methods=["POST"]), Mount("/live", cast.asgi())],
        lifespan=cast.lifespan if composed else None,
    )
    async with served(app) as url:
        token = mint(cast.config, "ann")
        async with OpenStream(f"{url}/live", token) as stream, httpx.AsyncClient() as client:
            await stream.ready()
            assert (await client.post(f"{url}/say", json={"text": "hi"})).status_code == 200
            await stream.until(lambda: bool(stream.events()))
            assert stream.events() == [{"topic": "user:ann", "data": {"said": "hi"}}]
            assert (await client.get(f"{url}/live/readyz")).json()["status"] == "ok"
    await cast.stop()


async def test_without_postgres_published_data_is_delivered_in_the_process() -> None:
    cast = Rowcast(auth=SECRET)
    async with served(cast.asgi()) as url:
        async with OpenStream(url, mint(cast.config, "ann", topics=["a"])) as stream:
            await stream.ready()
            first = await cast.publish("a", {"n": 1}, event="note", key="k")
            await cast.publish("b", {"n": 2})
            await cast.publish("a", {"n": 3})
            await stream.until(lambda: bool(stream.events()))
            assert stream.events("note") == [{"topic": "a", "data": {"n": 1}, "key": "k"}]
            assert stream.events() == [{"topic": "a", "data": {"n": 3}}]
        async with OpenStream(url, mint(cast.config, "ann", topics=["a"]), last_event_id=str(first)) as again:
            await again.until(lambda: bool(again.events()))
            assert again.events() == [{"topic": "a", "data": {"n": 3}}]


async def test_a_memory_log_beside_postgres_delivers_changes_and_published_data_in_order(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
        route = [{"table": "items", "topic": "t", "deletes": False}]
        cast = Rowcast(postgres=database, auth=SECRET, log="memory:", route=route)  # type: ignore[arg-type]
        async with served(cast.asgi()) as url:
            async with OpenStream(url, mint(cast.config, "ann", topics=["t"])) as stream:
                await stream.ready()
                for number in range(50):
                    connection.execute("INSERT INTO items DEFAULT VALUES")
                    await stream.until(lambda: len(stream.events()) == 2 * number + 1)  # noqa: B023
                    await cast.publish("t", number)
                    await stream.until(lambda: len(stream.events()) == 2 * number + 2)  # noqa: B023
                ids = [block.id for block in stream.blocks if block.event == "message" and block.data]
                places = [tuple(int(p, 16 - 6 * i) for i, p in enumerate(i.split(":")[1].split("-"))) for i in ids]
                assert places == sorted(set(places))


async def test_bad_calls_say_what_is_wrong(database: str) -> None:
    cast = Rowcast(auth=SECRET)
    with pytest.raises(Unavailable, match="not running"):
        await cast.publish("a", 1)
    async with cast.lifespan():
        for topic, user, event in ((None, None, None), ("a", "b", None), ("a\nb", None, None), ("a", None, "x\r")):
            with pytest.raises(BadRequest):
                await cast.publish(topic, 1, user=user, event=event)
        with pytest.raises(BadRequest, match="JSON"):
            await cast.publish("a", object())
        with pytest.raises(RuntimeError, match="before Rowcast is started"):
            cast.route("x")(lambda change: None)
    with pytest.raises(ConfigError, match="postgres"):
        await Rowcast(auth=SECRET, route=[{"table": "t", "topic": "x"}]).start()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="secret"):
        await Rowcast(postgres=database).start()
