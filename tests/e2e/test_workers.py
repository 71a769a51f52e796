"""`rowcast serve --workers N`: one port, several replicas, kept up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
KEY = {"authorization": "Bearer k"}
CONFIG = """
[server]
name = "w"
drain_delay = 0

[auth]
secret = "{secret}"

[api]
key = "k"

[postgres]
url = "{url}"
"""


def token(user: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=["t"])


class Service:
    """`rowcast serve --workers N` as a process; what it writes goes to files."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self._arguments = arguments

    async def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROWCAST_")}
        with (self.directory / "out").open("wb") as out, (self.directory / "err").open("wb") as err:
            self.process = await asyncio.create_subprocess_exec(
                os.sys.executable,  # type: ignore[attr-defined]
                *("-m", "rowcast.cli", "serve", *self._arguments),
                cwd=self.directory,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text()

    async def url(self) -> str:
        await until(lambda: self.out.endswith("\n") or self.process.returncode is not None)
        found = re.fullmatch(r"rowcast listening on (http://127\.0\.0\.1:\d+)\n", self.out)
        assert found is not None, (self.out, self.err)
        return found[1]

    def children(self) -> list[int]:
        """The workers' process ids."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)


async def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def service(directory: Path, config: str, *arguments: str) -> AsyncIterator[Service]:
    (directory / "rowcast.toml").write_text(config)
    made = Service(directory, *arguments)
    await made.start()
    workers: list[int] = []
    try:
        yield made
    finally:
        if made.process.returncode is None:
            workers = made.children()
            made.process.kill()
            await made.process.wait()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line))


async def names(url: str, count: int) -> Counter[str]:
    """Who answers, asked by a new connection each time."""
    seen: Counter[str] = Counter()
    async with asyncio.timeout(20):
        while len(seen) < count:
            async with httpx.AsyncClient() as client:
                seen[(await client.get(f"{url}/healthz")).headers["x-rowcast-replica"]] += 1
    return seen


async def test_workers_are_replicas_on_one_port(tmp_path: Path, database: str) -> None:
    config = CONFIG.format(secret=SECRET, url=database)
    async with service(tmp_path, config, "--port", "0", "--workers", "2") as made:
        url = await made.url()
        assert set(await names(url, 2)) == {"w-1", "w-2"}
        async with contextlib.AsyncExitStack() as stack, httpx.AsyncClient(base_url=url, headers=KEY) as client:
            streams = [await stack.enter_async_context(OpenStream(url, token(f"u{n}"))) for n in range(24)]
            where = Counter([(await stream.ready())["replica"] for stream in streams])
            assert len(where) == 2
            # What one takes, all deliver; and one tells of all, whichever is asked.
            published = await client.post("/publish", json={"topic": "t", "data": 1})
            assert published.status_code == 202
            for stream in streams:
                await stream.expect(lambda block: block.id == published.json()["id"])
            for _ in range(6):
                async with httpx.AsyncClient(base_url=url, headers=KEY) as another:
                    text = (await another.get("/metrics")).text
                    assert metric(text, "rowcast_streams") == 24
                    assert metric(text, "rowcast_deliveries_total") == 24
                    assert metric(text, "rowcast_delivery_latency_seconds_count") == 24
                    # Of the other worker as it was a second ago.
                    async with asyncio.timeout(20):
                        while (await another.get("/events/count")).json() != {"count": 24, "replicas": dict(where)}:
                            await asyncio.sleep(0.05)

            # A worker that dies is started again, and what it had counted still counts.
            victims = made.children()
            assert len(victims) == 2
            os.kill(victims[0], signal.SIGKILL)
            await until(lambda: any(stream.ended for stream in streams))
            await until(lambda: len(made.children()) == 2 and victims[0] not in made.children())
            assert len(await names(url, 2)) == 2
            text = (await client.get("/metrics")).text
            assert metric(text, "rowcast_deliveries_total") == 24
            assert metric(text, "rowcast_streams") == sum(not stream.ended for stream in streams)
            assert "was ended by SIGKILL" in made.err

            assert await made.end() == 0
            for stream in streams:
                await stream.until(lambda: stream.ended)  # noqa: B023  # awaited at once
            byes = [stream.events("rowcast.bye") for stream in streams]
            # The killed worker's streams broke; all others were told.
            assert 0 < byes.count([{"reason": "draining"}]) == 24 - byes.count([]) < 24
        assert made.out.count("\n") == 1
        assert "Traceback" not in made.err
        assert not any(exists(pid) for pid in victims)


async def test_a_drain_by_call_drains_all(tmp_path: Path, database: str) -> None:
    config = CONFIG.format(secret=SECRET, url=database)
    async with service(tmp_path, config, "--port", "0", "--workers", "2") as made:
        url = await made.url()
        async with contextlib.AsyncExitStack() as stack, httpx.AsyncClient(base_url=url, headers=KEY) as client:
            streams = [await stack.enter_async_context(OpenStream(url, token(f"u{n}"))) for n in range(12)]
            assert len({(await stream.ready())["replica"] for stream in streams}) == 2
            assert (await client.post("/control/drain")).status_code == 202
            for stream in streams:
                await stream.until(lambda: stream.ended)  # noqa: B023  # awaited at once
                assert stream.events("rowcast.bye") == [{"reason": "draining"}]
        # When the supervisor is killed, its workers end by themselves.
        workers = made.children()
        made.process.kill()
        await made.process.wait()
        await until(lambda: not any(exists(pid) for pid in workers))


async def test_a_second_signal_ends_at_once(tmp_path: Path, database: str) -> None:
    config = CONFIG.format(secret=SECRET, url=database).replace("drain_delay = 0", 'drain_delay = "60s"')
    async with service(tmp_path, config, "--port", "0", "--workers", "2") as made:
        url = await made.url()
        async with OpenStream(url, token("ann")) as stream:
            await stream.ready()
            workers = made.children()
            made.process.terminate()
            async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(30):
                while (await client.get("/readyz")).status_code != 503:
                    pass
            begun = time.monotonic()
            assert await made.end() == 1
            assert time.monotonic() - begun < 30  # of the 60 that the drain may take
        assert not any(exists(pid) for pid in workers)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (f'[auth]\nsecret = "{SECRET}"\n', 'need a log that they share, and [log] url "memory:" is of one process'),
        ("[server]\nprot = 1\n", "did you mean 'port'?"),
    ],
)
async def test_a_start_that_fails_is_told_in_one_line(tmp_path: Path, config: str, error: str) -> None:
    async with service(tmp_path, config, "--port", "0", "--workers", "2") as made:
        assert await asyncio.wait_for(made.process.wait(), 30) == 1
        [line] = made.err.splitlines()
        assert line.startswith("rowcast: ")
        assert error in line
        assert made.out == ""
