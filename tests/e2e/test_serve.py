"""`rowcast serve` and the commands around it, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from rowcast import huge_pages
from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = f"""
[auth]
secret = "{SECRET}"
query_token = true

[api]
key = "k"
"""

APP = """
import asyncio, contextlib
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from rowcast import Rowcast

cast = Rowcast(auth="0123456789abcdef0123456789abcdef", api="k", server={"name": "of mine", "drain_delay": 0})
quick = Rowcast(auth="0123456789abcdef0123456789abcdef", server={"port": 0, "drain_delay": 0})

async def hang(request):
    print("it hangs", flush=True)
    await asyncio.sleep(3600)

async def hello(request):
    return PlainTextResponse("hello")

@contextlib.asynccontextmanager
async def lifespan(app):
    async with cast.lifespan():
        yield
    print("went down in order", flush=True)

app = Starlette(routes=[Route("/", hello), Route("/hang", hang), Mount("/live", cast.asgi())], lifespan=lifespan)

@contextlib.asynccontextmanager
async def falling(app):
    async with cast.lifespan():
        asyncio.get_running_loop().call_later(0.2, setattr, cast.replica, "failed", ValueError("the hub fell over"))
        yield

dying = Starlette(routes=[Mount("/live", cast.asgi())], lifespan=falling)

@contextlib.asynccontextmanager
async def failing(app):
    raise ValueError("no luck\\ntoday")
    yield

broken = Starlette(lifespan=failing)
"""


def token(user: str = "alice", *topics: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=list(topics))


class Command:
    """A `rowcast` command that runs in a directory of its own; what it writes is collected."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROWCAST_")}
        environment.setdefault("ROWCAST_SERVER_DRAIN_DELAY", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rowcast.cli", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def until(self, holds: Callable[[], Any], *, timeout: float = 20.0) -> Any:
        """Wait until what was written fits."""
        with self._news:
            assert self._news.wait_for(holds, timeout), (self.out, self.err)
            return holds()

    def url(self) -> str:
        """Where it listens, once it says so."""
        line: str = self.until(lambda: self.out and self.out[0])
        found = re.fullmatch(r"rowcast listening on (http://127\.0\.0\.1:\d+)", line)
        assert found is not None, line
        return found[1]

    def end(self, number: signal.Signals | None = None, *, timeout: float = 20.0) -> int:
        """Send a signal if one is given, and wait; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts commands in a directory with a rowcast.toml; whatever still runs is killed afterwards."""
    (tmp_path / "rowcast.toml").write_text(CONFIG)
    (tmp_path / "app_of_mine.py").write_text(APP)
    started: list[Command] = []

    def _start(*arguments: str) -> Command:
        started.append(Command(tmp_path, *arguments))
        return started[-1]

    yield _start
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.end()
        for pipe in (command.process.stdout, command.process.stderr):
            assert pipe is not None
            pipe.close()


def one_line(command: Command) -> str:
    """Check that the command failed with one line on stderr, and return it."""
    assert command.out == []
    [line] = command.err
    assert line.startswith("rowcast: ")
    return line


# Its life


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_itself_once_and_ends_well(start: Start, number: signal.Signals) -> None:
    command = start("serve", "--port", "0")
    url = command.url()
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert command.end(number) == 0
    assert command.out == [f"rowcast listening on {url}"]
    assert "Traceback" not in "\n".join(command.err)


async def test_streams_are_told_before_the_port_closes(start: Start) -> None:
    command = start("serve", "--port", "0")
    url = command.url()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(OpenStream(url, token(f"u{n}"))) for n in range(5)]
        for stream in streams:
            await stream.ready()
        command.process.send_signal(signal.SIGTERM)
        for stream in streams:
            await stream.expect(lambda block: block.event == "rowcast.bye")
            assert stream.events("rowcast.bye") == [{"reason": "draining"}]
            assert any(block.retry is not None for block in stream.blocks[1:])
    assert await asyncio.to_thread(command.end) == 0


def test_a_second_signal_ends_at_once(start: Start) -> None:
    command = start("serve", "app_of_mine:app", "--port", "0")
    url = command.url()
    asking = threading.Thread(target=_ask, args=[f"{url}/hang"], daemon=True)
    asking.start()
    # The access log tells of a request when it is answered, so the application says that it came.
    command.until(lambda: "it hangs" in command.out)
    command.process.send_signal(signal.SIGTERM)
    # The request hangs, so it does not end by itself.
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(0.5)
    assert command.end(signal.SIGTERM, timeout=20) == 1


def _ask(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(url, timeout=30)


def test_a_signal_during_the_start_gives_it_up(start: Start, tmp_path: Path) -> None:
    with socket.socket() as silent:
        # Accepts connections and never says a word, as a database behind a broken firewall.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (tmp_path / "rowcast.toml").write_text(
            f'{CONFIG}\n[postgres]\nurl = "postgresql://ours@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"\n'
        )
        command = start("serve", "--port", "0")
        connection, _ = silent.accept()
        while b"user\0ours" not in connection.recv(1000):  # somebody looks for who had the port before
            connection, _ = silent.accept()
        assert command.end(signal.SIGTERM, timeout=8) == 0
    assert command.out == []
    assert "Traceback" not in "\n".join(command.err)


def test_a_taken_port_is_told_in_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = start("serve", "--port", str(taken.getsockname()[1]))
        assert command.end() == 1
    assert "can't be used" in one_line(command)


def test_a_start_that_fails_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "rowcast.toml").write_text("[server]\nport = 0\n")
    command = start("serve")
    assert command.end() == 1
    assert "set [auth] secret" in one_line(command)


def test_a_database_that_is_not_there_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "rowcast.toml").write_text(f'{CONFIG}\n[postgres]\nurl = "postgresql://x@127.0.0.1:1/x"\n')
    command = start("serve", "--port", "0")
    assert command.end(timeout=30) == 1
    assert "Postgres can't be reached" in command.err[-1]
    assert command.err[-1].startswith("rowcast: ")
    assert "Traceback" not in "\n".join(command.err)


# Applications of one's own


async def test_an_application_with_a_mounted_rowcast(start: Start) -> None:
    command = start("serve", "app_of_mine:app", "--port", "0")
    url = command.url()
    assert httpx.get(url).text == "hello"
    async with OpenStream(f"{url}/live", token()) as stream:
        assert (await stream.ready())["replica"] == "of mine"
        command.process.send_signal(signal.SIGTERM)
        await stream.until(lambda: stream.ended)
        assert stream.events("rowcast.bye") == [{"reason": "draining"}]
    assert await asyncio.to_thread(command.end) == 0
    assert command.out[1:] == ["went down in order"]


def test_a_rowcast_in_a_module(start: Start) -> None:
    command = start("serve", "app_of_mine:quick")
    assert httpx.get(f"{command.url()}/healthz").status_code == 200
    assert command.end(signal.SIGINT) == 0


def test_an_application_that_fails_to_start(start: Start) -> None:
    command = start("serve", "app_of_mine:broken", "--port", "0")
    assert command.end() == 1
    assert "ValueError: no luck today" in one_line(command)


def test_a_replica_with_a_failed_part_ends_so_that_it_is_started_anew(start: Start) -> None:
    command = start("serve", "app_of_mine:dying", "--port", "0")
    command.url()
    assert command.end() == 1
    assert command.err[-1].startswith("rowcast: ValueError: the hub fell over")


# Logs


def test_tokens_are_not_in_the_access_log(start: Start) -> None:
    command = start("serve", "--port", "0")
    url = command.url()
    secret = token("alice")
    with httpx.stream("GET", f"{url}/events", params={"token": secret, "topics": "a"}) as response:
        assert response.status_code == 200
    assert httpx.get(f"{url}/events?%74oken={secret}x").status_code == 401
    assert httpx.get(f"{url}/readyz", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    command.until(lambda: any("/readyz" in line for line in command.err))
    assert command.end(signal.SIGTERM) == 0
    log = "\n".join(command.err)
    assert "GET /events?token=…&topics=a" in log
    assert secret not in log
    assert secret.split(".")[2] not in log


# The commands that need a service


def test_publish_tail_and_disconnect(start: Start) -> None:
    url = start("serve", "--port", "0").url()
    made = start("token", "--user", "alice", "--topics", "news")
    assert made.end() == 0
    tail = start("tail", url, "--token", made.out[0], "--json")
    ready = json.loads(tail.until(lambda: tail.out and tail.out[0]))
    assert ready["event"] == "rowcast.ready"
    assert ready["data"]["topics"] == ["news"]
    text = start("tail", url, "--token", made.out[0], "--topics", "news")
    text.until(lambda: text.out)

    published = start("publish", '{"n": 1}', "--topic", "news", "--event", "note", "--url", url)
    assert published.end() == 0
    [position] = published.out
    heard = json.loads(tail.until(lambda: len(tail.out) > 1 and tail.out[1]))
    assert heard == {"id": position, "event": "note", "data": {"topic": "news", "data": {"n": 1}}}
    text.until(lambda: f'{position}  note {{"topic":"news","data":{{"n":1}}}}' in text.out)

    resumed = start("tail", url, "--token", made.out[0], "--last-event-id", ready["id"], "--json")
    assert resumed.until(lambda: len(resumed.out) > 1 and resumed.out[1]) == tail.out[1]
    assert resumed.end(signal.SIGINT) == 0
    assert resumed.err == [""]

    assert start("resubscribe", "alice", "--url", url).end() == 0
    tail.until(lambda: any("rowcast.subscriptions" in line for line in tail.out))
    assert start("disconnect", "alice", "--url", url).end() == 0
    # The bye is told, then the token is refused, and that is final.
    assert tail.end() == 1
    assert json.loads(tail.out[-1])["data"] == {"reason": "disconnected"}
    assert "401: the user was disconnected" in tail.err[-1]
    assert tail.err[-1].startswith("rowcast: ")


def test_tail_into_a_pipe_that_closes(start: Start, tmp_path: Path) -> None:
    url = start("serve", "--port", "0").url()
    rowcast = f"{sys.executable} -m rowcast.cli"
    piped = subprocess.Popen(
        f"{rowcast} tail {url} --token {token('alice', 'news')} | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert piped.stdout is not None
    assert "rowcast.ready" in piped.stdout.readline()
    start("publish", "1", "--topic", "news", "--url", url).end()
    out, err = piped.communicate(timeout=20)
    assert (out, err) == ("0\n", "")


def test_slot_status_and_drop(start: Start, tmp_path: Path, database: str) -> None:
    (tmp_path / "rowcast.toml").write_text(f'{CONFIG}\n[postgres]\nurl = "{database}"\nslot = "seen"\n')
    missing = start("slot", "status")
    assert missing.end() == 1
    assert "no replication slot 'seen'" in one_line(missing)
    command = start("serve", "--port", "0")
    command.url()
    status = start("slot", "status")
    assert status.end() == 0
    names = [line.split()[0] for line in status.out[1:]]
    assert names[0] == "seen"
    assert any(name.startswith("seen_epoch_") for name in names)
    told = start("slot", "status", "--json")
    assert told.end() == 0
    anchor = json.loads(told.out[0])["slots"][0]
    assert (anchor["name"], anchor["process"], anchor["wal_status"]) == ("seen", None, "reserved")
    assert anchor["held_bytes"] >= anchor["lag_bytes"] >= 0
    assert command.end(signal.SIGTERM) == 0
    dropped = start("slot", "drop", "--json")
    assert dropped.end() == 0
    assert json.loads(dropped.out[0])["dropped"][0] == "seen"
    assert dropped.err == []
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_name ^@ 'seen'").fetchall()
    assert rows == []


def test_a_replica_under_its_test_fixture_names_itself(tmp_path: Path) -> None:
    with RowcastServer(CONFIG, name="r7") as server:
        assert httpx.get(f"{server.url}/healthz").headers["x-rowcast-replica"] == "r7"


async def test_its_memory_goes_onto_huge_pages_where_there_are_any() -> None:
    possible = huge_pages.collapse() > 0
    with RowcastServer(CONFIG) as server:
        async with asyncio.timeout(30):
            while possible and not _huge(server.pid):
                await asyncio.sleep(0.1)


async def test_its_memory_stays_where_it_is_when_that_is_wanted() -> None:
    possible = huge_pages.collapse() > 0
    with RowcastServer(CONFIG, environment={"ROWCAST_SERVER_HUGE_PAGES": "false"}) as server:
        before = _huge(server.pid)  # of a kernel that does it of its own accord
        with RowcastServer(CONFIG) as other:
            async with asyncio.timeout(30):
                while possible and not _huge(other.pid):
                    await asyncio.sleep(0.1)
        assert _huge(server.pid) == before


def _huge(pid: int) -> int:
    match = re.search(r"AnonHugePages: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(match[1]) if match else 0
