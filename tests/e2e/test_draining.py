"""Draining as others see it: clients, proxies, the other replicas; under `rowcast serve`, uvicorn and granian."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import free_port
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
KEY = {"authorization": "Bearer k"}
CONFIG = f"""
[auth]
secret = "{SECRET}"

[api]
key = "k"
"""


def token(user: str = "ann", *topics: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=list(topics))


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def server_with(**environment: str) -> AsyncIterator[RowcastServer]:
    server = RowcastServer(CONFIG, name="r1", environment=environment)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.kill)


async def test_readiness_first_and_the_port_after() -> None:
    async with server_with(ROWCAST_SERVER_DRAIN_DELAY="700ms") as server:
        async with (
            OpenStream(server.url, token("ann", "t")) as stream,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            await stream.ready()
            assert "connection" not in (await client.get("/readyz")).headers
            server.send(signal.SIGTERM)
            async with asyncio.timeout(30):
                while (answer := await client.get("/readyz")).status_code != 503:
                    pass
            assert "draining" in answer.json()["error"]
            # Whoever still comes by a connection of before is asked to come by another one next time.
            assert answer.headers["connection"] == "close"
            late = await client.get("/events", headers={"authorization": f"Bearer {token('late')}"})
            assert late.status_code == 200
            assert '{"reason":"draining"}' in late.text
            assert late.text.startswith("retry: ")
            # Everything else goes on: calls, and streams that are there.
            published = await client.post("/publish", headers=KEY, json={"topic": "t", "data": 1})
            assert published.status_code == 202
            await stream.expect(lambda block: block.id == published.json()["id"])
            assert not stream.ended
            await stream.until(lambda: stream.ended)
            assert stream.events("rowcast.bye") == [{"reason": "draining"}]
            with pytest.raises(httpx.ConnectError):
                await client.get("/readyz")
        assert await asyncio.to_thread(server.wait) == 0


async def test_drained_by_a_call_it_stays_without_streams() -> None:
    async with server_with(ROWCAST_SERVER_DRAIN_DELAY="0") as server:
        async with OpenStream(server.url, token()) as stream, httpx.AsyncClient(base_url=server.url) as client:
            await stream.ready()
            assert (await client.post("/control/drain")).status_code == 401
            assert not stream.ended
            for _ in range(2):
                answer = await client.post("/control/drain", headers=KEY)
                assert answer.status_code == 202
                assert answer.json()["replica"] == "r1"
            await stream.until(lambda: stream.ended)
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
        assert await asyncio.to_thread(server.stop) == 0


async def test_the_limit_ends_what_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(EMBEDDED)
    environment = os.environ | {"ROWCAST_SERVER_DRAIN_DELAY": "0"}
    command = [sys.executable, "-m", "rowcast.cli", "serve", "hanging:app", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            hanging = asyncio.create_task(client.get("/hang"))
            assert await asyncio.to_thread(process.stdout.readline) == "it hangs\n"
            begun = time.monotonic()
            process.terminate()
            assert (await hanging).status_code == 500
            assert await asyncio.to_thread(process.wait, 20) == 0
            assert time.monotonic() - begun > 1.5


# Under a server that is not ours

EMBEDDED = f"""
import asyncio, contextlib
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from rowcast import Rowcast
from rowcast.signals import SIGNALS

cast = Rowcast(auth="{SECRET}", api="k", server={{"name": "r1", "drain_delay": "1500ms", "drain_limit": "2s"}})

async def hang(request):
    print("it hangs", flush=True)
    await asyncio.sleep(3600)

async def hello(request):
    return PlainTextResponse("hello" if SIGNALS.ready else "signals are not ours yet")

@contextlib.asynccontextmanager
async def lifespan(app):
    async with cast.lifespan():
        yield
    print("went down in order", flush=True)

app = Starlette(routes=[Route("/", hello), Route("/hang", hang), Mount("/live", cast.asgi())], lifespan=lifespan)
"""

SERVERS = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--log-level", "warning", "embedded:app"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "--no-log", "embedded:app"],
}


@pytest.fixture(params=SERVERS)
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """An application with a mounted Rowcast, run by somebody else's server."""
    (tmp_path / "embedded.py").write_text(EMBEDDED)
    port = free_port()
    command = [part.format(port=port) for part in SERVERS[request.param]]
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield f"http://127.0.0.1:{port}", process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def test_mounted_it_drains_before_the_server_ends(embedded: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = embedded
    async with httpx.AsyncClient(base_url=url) as client:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if (await client.get("/")).text == "hello":
                        break
                await asyncio.sleep(0.05)
        async with OpenStream(f"{url}/live", token()) as stream:
            await stream.ready()
            process.terminate()
            async with asyncio.timeout(30):
                while (await client.get("/live/readyz")).status_code != 503:
                    pass
            assert not stream.ended
            # The server still takes calls, since it has not heard of the signal yet.
            assert (await client.get("/")).text == "hello"
            await stream.until(lambda: stream.ended)
            assert stream.events("rowcast.bye") == [{"reason": "draining"}]
    assert await asyncio.to_thread(process.wait, 20) in (0, -signal.SIGTERM)
    assert process.stdout is not None
    assert "went down in order" in process.stdout.read()


# The WAL


async def test_the_reading_of_the_wal_is_handed_over_at_once(database: str) -> None:
    """The leader of a shared log leaves: another one reads within a second, while the first still drains."""
    with ValkeyServer() as valkey, psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
        config = (
            f'{CONFIG}\n[postgres]\nurl = "{database}"\n[log]\nurl = "{valkey.url}"\n'
            '[[route]]\ntable = "items"\ntopic = "t"\n'
        )
        servers = {
            name: RowcastServer(config, name=name, environment={"ROWCAST_SERVER_DRAIN_DELAY": "10s"})
            for name in ("r1", "r2")
        }

        def leaders() -> list[str]:
            rows = connection.execute(
                "SELECT application_name FROM pg_stat_replication WHERE application_name LIKE 'rowcast % leader'"
            )
            return [row[0].split()[1] for row in rows]

        try:
            await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers.values()))
            await until(lambda: len(leaders()) == 1)
            [first] = leaders()
            [second] = servers.keys() - {first}
            async with OpenStream(servers[first].url, token("ann", "t")) as stream:
                await stream.ready()
                begun = time.monotonic()
                servers[first].send(signal.SIGTERM)
                await until(lambda: leaders() == [second])
                taken = time.monotonic() - begun
                assert not stream.ended
                # A stream of the one that drains gets what the other one reads.
                connection.execute("INSERT INTO items DEFAULT VALUES")
                await stream.until(lambda: bool(stream.events()))
                whole = time.monotonic() - begun
                assert not stream.ended
            print(f"another replica had the slot after {taken:.2f} s, and its first entry was here after {whole:.2f} s")
        finally:
            for server in servers.values():
                server.kill()
