"""The servers that are measured, each driven in its own way, all with the same events at the same offered rate."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import ClassVar, Self

import jwt

from benchmarks import processes
from benchmarks.peers import pacing
from rowcast import huge_pages

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parent.parent
SECRET = "0123456789abcdef0123456789abcdef"


class Server:
    """A server on its core. As a context manager it is started on entry and stopped on exit."""

    name: ClassVar[str]
    mark: ClassVar[str] = "\r\n\r\n"
    settles: ClassVar[float] = 0.0
    """Seconds that its streams must be open before they cost what they cost from then on."""

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def cpu(self) -> float:
        """CPU seconds used so far."""
        return processes.cpu(self.pid)

    def rss(self) -> int:
        """Resident bytes."""
        return processes.rss(self.pid)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        raise NotImplementedError

    def request(self, stream: int, topics: list[int]) -> str:
        """The request line of a stream for the load generator."""
        return f"/events?topics={','.join(map(str, topics))}"

    def publish(
        self,
        rate: float,
        seconds: float,
        *,
        topics: int = 1,
        first: int = 0,
        group: int = 0,
        now: bool = False,
        size: int = 150,
    ) -> None:
        """Begin to publish; returns at once, or when it is done."""
        query = f"rate={rate}&seconds={seconds}&topics={topics}&first={first}&group={group}&size={size}&now={int(now)}"
        urllib.request.urlopen(f"{self.url}{self.publish_path}?{query}", timeout=30).close()

    publish_path: ClassVar[str] = "/bench/publish"

    def stop(self) -> None:
        """Kill it: nothing of it is needed any more."""
        if self._process is not None:
            # A master first: it would start a new worker for one that is gone.
            for pid in processes.descendants(self.pid):
                subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
            self._process.wait(30)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _wait_for(self, announcement: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(announcement):
                self.url = line.removeprefix(announcement).strip()
                return
        raise RuntimeError(f"{self.name} did not start")

    def _wait_listening(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.name} does not listen")


class Rowcast(Server):
    """Rowcast: a token for each stream, whose claims carry the topics. `more` is its environment.

    Of several `workers`, which need a shared log, one publishes.
    """

    name = "rowcast"
    mark = "rowcast.ready"
    settles = huge_pages.INTERVAL + 1

    def __init__(self, workers: int = 1, **more: str) -> None:
        super().__init__()
        self._workers = workers
        self._more = more
        self.errors = ""

    def start(self) -> None:
        """`rowcast serve` of the application with a publisher inside."""
        command = [sys.executable, "-m", "rowcast.cli", "serve", "benchmarks.peers.rowcast_app:app"]
        self._process = processes.pinned(
            processes.SERVER_CORE,
            command + ["--port", "0", "--no-access-log", "--workers", str(self._workers)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=processes.environment(**self._more),
        )
        self._wait_for("rowcast listening on ")

    def request(self, stream: int, topics: list[int]) -> str:
        """A token that carries the topics."""
        return f"/events {token(f'u{stream}', [str(topic) for topic in topics])}"


def token(user: str, topics: list[str] | None) -> str:
    """A user's token; None: without topics."""
    claims: dict[str, object] = {"sub": user, "exp": int(time.time()) + 86_400}
    return jwt.encode(claims if topics is None else {**claims, "topics": topics}, SECRET)


class Floor(Server):
    """The C floor, one send() for each event and stream."""

    name = "C floor"
    publish_path = "/publish"

    def start(self) -> None:
        """Start it on a free port."""
        self._process = processes.pinned(
            processes.SERVER_CORE, [str(processes.BUILD / "floor")], stdout=subprocess.PIPE
        )
        self._wait_for("floor listening on ")


class SseStarlette(Server):
    """sse-starlette on uvicorn with uvloop and httptools."""

    name = "sse-starlette"

    @staticmethod
    def python() -> Path:
        """The interpreter of the peers' own environment, which is made when it is missing."""
        python = processes.BUILD / "venv" / "bin" / "python"
        lock = PEERS / "requirements.txt"
        done = processes.BUILD / "venv" / ".ready"
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "pip", "sync", "--quiet", "--python", python, lock], check=True)
            done.touch()
        return python

    def start(self) -> None:
        """Start it on a free port."""
        port = free_port()
        self._process = processes.pinned(
            processes.SERVER_CORE,
            [str(self.python()), "-m", "uvicorn", "sse_starlette_app:app", "--port", str(port), "--loop", "uvloop"]
            + ["--http", "httptools", "--no-access-log", "--log-level", "warning", "--backlog", "4096"],
            cwd=PEERS,
        )
        self._wait_listening(port)


class Nchan(Server):
    """nchan in nginx, one worker; events are posted to it from the load's core, over kept connections."""

    name = "nchan"

    @staticmethod
    def available() -> bool:
        """Whether nginx and the module are installed (Debian: libnginx-mod-nchan)."""
        return shutil.which("nginx") is not None and any(Path("/usr").glob("lib*/nginx/modules/ngx_nchan_module.so"))

    def start(self) -> None:
        """Start it on a free port."""
        port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="nchan-")
        # One descriptor of a worker is a connection; the limit of this process is what it may have.
        files = 20_000
        text = (PEERS / "nchan.conf").read_text()
        for name, value in {
            "port": port,
            "directory": self._directory.name,
            "files": files,
            "connections": 19_900,
        }.items():
            text = text.replace(f"@{name}@", str(value))
        if subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip() != "0":
            text = text.replace("user root;\n", "")
        file = Path(self._directory.name, "nginx.conf")
        file.write_text(text)
        self._process = processes.pinned(
            processes.SERVER_CORE, ["nginx", "-e", "/dev/null", "-p", "/usr/share/nginx", "-c", str(file)]
        )
        self._wait_listening(port)

    def stop(self) -> None:
        """Also forget its files."""
        super().stop()
        self._directory.cleanup()

    def publish(
        self,
        rate: float,
        seconds: float,
        *,
        topics: int = 1,
        first: int = 0,
        group: int = 0,
        now: bool = False,
        size: int = 150,
    ) -> None:
        """Returns when everything was posted, or given up because nchan takes it no faster (10 s after its time)."""
        query = {"rate": rate, "seconds": seconds, "topics": topics, "first": first, "group": group, "now": int(now)}
        port = int(self.url.rpartition(":")[2])
        asyncio.run(
            _post(port, {name: str(value) for name, value in query.items()} | {"size": str(size)}, seconds + 10)
        )


async def _post(port: int, query: dict[str, str], limit: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    posted = 0

    async def publish(events: list[tuple[int, str]]) -> None:
        nonlocal posted
        posted += len(events)
        for topic, text in events:
            head = f"POST /publish?topic={topic} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write((head + text).encode())
        await writer.drain()

    answered = 0

    async def discard() -> None:
        nonlocal answered
        # The status line is the only line of an answer that begins so.
        while line := await reader.readline():
            answered += line.startswith(b"HTTP/1.1 ")

    answers = asyncio.create_task(discard())
    try:
        async with asyncio.timeout(limit):
            await pacing.run(query, publish)
            # nginx drops a request whose client is gone.
            while answered < posted:
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass
    finally:
        answers.cancel()
        writer.close()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
