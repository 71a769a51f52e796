"""`rowcast serve --workers N`: several processes on one port, each a whole replica, kept up by a light supervisor.

Each worker listens by a socket of its own (SO_REUSEPORT), between which the kernel spreads the connections; with one
shared socket the quicker ones would take most. They begin to listen together, when all are started, or the first one
would get everything that waits. The supervisor serves nothing and imports nothing of the server.

A worker and its supervisor talk over a socket, in lines: `journal FORMAT LEVEL`, `bound PORT HOST`, `started`,
`listening SCHEME` from the worker, `go` from the supervisor. When the supervisor is gone, even by kill -9, the socket
is at its end, and the worker drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rowcast import jitter
from rowcast.errors import ConfigError
from rowcast.signals import Terminal
from rowcast.sockets import address_of, listen
from rowcast.telemetry import journal
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

SHORT_LIFE = 10.0
"""Seconds; a worker that ends sooner is started again after a pause, doubled each time."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the end of a worker with a short life and its next start."""

_NUMBER, _FD, _PORT, _DIRECTORY = (f"ROWCAST_WORKER_{name}" for name in ("NUMBER", "FD", "PORT", "DIRECTORY"))
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


# The worker's side


@dataclass
class Worker:
    """What a worker knows of itself: its number from 1, the directory that all workers share, and the supervisor.

    `port`: the one to listen on; None: as configured, it is the first of all.
    """

    number: int
    directory: Path
    port: int | None
    _socket: socket.socket

    def __post_init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._may = asyncio.Event()
        self._told = self._started = False
        threading.Thread(target=self._hear, daemon=True, name="supervisor").start()

    def tell(self, line: str) -> None:
        """Say something to the supervisor."""
        with contextlib.suppress(OSError):  # it is gone, and we hear of that elsewhere
            self._socket.sendall(line.encode() + b"\n")

    async def may_listen(self) -> None:
        """Wait until all workers are to listen."""
        self._loop = asyncio.get_running_loop()
        self._started = True
        self.tell("started")
        if not self._told:
            await self._may.wait()

    def listening(self, scheme: str) -> None:
        """It listens, and speaks http or https."""
        if not self._started:
            self.tell("started")  # an application that knows of no lifespan
        self.tell(f"listening {scheme}")

    def listen(self, host: str, port: int) -> socket.socket:
        """A socket on the port that the workers share. Raises `ConfigError`."""
        if self.port is None:
            # Bound by ourselves alone for a moment: another service of ours would let us share its port.
            with contextlib.closing(listen(host, port)) as probe:
                port = probe.getsockname()[1]
        sock = listen(host, port if self.port is None else self.port, shared=True)
        self.tell(f"bound {sock.getsockname()[1]} {host}")
        return sock

    def _hear(self) -> None:
        with self._socket.makefile() as lines:
            for _ in lines:
                self._told = True
                if self._loop is not None:
                    with contextlib.suppress(RuntimeError):  # closed: it ended meanwhile
                        self._loop.call_soon_threadsafe(self._may.set)
        os.kill(os.getpid(), signal.SIGTERM)


_current: list[Worker] = []


def current() -> Worker | None:
    """The worker that this process is; None: it was not started by a supervisor."""
    if not _current and (fd := os.environ.pop(_FD, None)) is not None:
        port = os.environ.pop(_PORT)
        _current.append(
            Worker(
                int(os.environ.pop(_NUMBER)),
                Path(os.environ.pop(_DIRECTORY)),
                int(port) if port else None,
                socket.socket(fileno=int(fd)),
            )
        )
    return _current[0] if _current else None


def require_shared(log_url: str) -> None:
    """Raise `ConfigError` when workers could not share a log."""
    if log_url.startswith("memory:"):
        raise ConfigError(
            'several workers need a log that they share, and [log] url "memory:" is of one process: what is published '
            'on one would not reach the streams of another; set "postgres:" or "redis://…", or leave out --workers'
        )


# The supervisor's side


def supervise(count: int, arguments: Sequence[str]) -> int:
    """Run `rowcast ARGUMENTS` as `count` workers until a signal; returns the exit code.

    Prints `rowcast listening on http://HOST:PORT` (or https) when all serve. When a worker ends before, its exit code
    is ours, and it has said itself why.
    """
    directory = Path(tempfile.mkdtemp(prefix="rowcast-"))
    try:
        return asyncio.run(Supervisor(count, arguments, directory).run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Supervisor:
    """Starts the first worker, then the others, keeps them up, and hands signals on. See `supervise`."""

    def __init__(self, count: int, arguments: Sequence[str], directory: Path) -> None:
        self._count = count
        self._arguments = list(arguments)
        self._directory = directory
        self._processes: dict[int, Process] = {}
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._started: set[int] = set()
        self._listening: set[int] = set()
        self._terminal = Terminal()
        self._to_reload: set[int] = set()
        """Workers that were starting when a reload was asked for: they may have read the old file."""
        self._first = asyncio.Event()
        self._ending = asyncio.Event()
        self._port: socket.socket | None = None
        self._announced = False
        self._code = 0

    async def run(self) -> int:
        """Until a signal, or a start that fails; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        keepers = [asyncio.create_task(self._keep(1))]
        first = asyncio.create_task(self._first.wait())
        await asyncio.wait([first, keepers[0]], return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        if not self._ending.is_set():
            # What the first one has made and checked, the others find ready.
            keepers += [asyncio.create_task(self._keep(number)) for number in range(2, self._count + 1)]
        try:
            await asyncio.gather(*keepers)
        finally:
            if self._port is not None:
                self._port.close()
        return self._code

    def _on_signal(self, number: int) -> None:
        again = self._ending.is_set()
        self._ending.set()
        if again:
            self._code = 1
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if again else number)

    def _on_hangup(self) -> None:
        """Have every worker reload; the end of our terminal is ours."""
        if self._terminal.hung_up():
            if not self._ending.is_set():
                self._on_signal(signal.SIGTERM)
            return
        for number in self._processes:
            self._to_reload.add(number)
            self._have_reloaded(number)

    def _have_reloaded(self, number: int) -> None:
        if number in self._to_reload and number in self._listening:
            self._to_reload.discard(number)
            with contextlib.suppress(ProcessLookupError):
                self._processes[number].send_signal(signal.SIGHUP)

    async def _keep(self, number: int) -> None:
        pause = 0.0
        while not self._ending.is_set():
            begun = time.monotonic()
            code = await self._live(number)
            if self._ending.is_set():
                if code not in (0, -signal.SIGTERM, -signal.SIGINT):
                    self._code = self._code or 1
                return
            if not self._announced:
                self._fail(number, code)
                return
            short = time.monotonic() - begun < SHORT_LIFE
            pause = min(max(FIRST_PAUSE, pause * 2), LONGEST_PAUSE) if short else 0.0
            wait = jitter.seconds(0.75, 1.25) * pause
            logger.warning(
                "worker_ended", "worker %d %s; it is started again in %.1f s", number, _how(code), wait, worker=number
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), wait)

    async def _live(self, number: int) -> int:
        """One life of a worker; returns its exit code."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = self._processes[number] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "rowcast.cli",
                *self._arguments,
                env=self._environment(number, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                # A group of its own: Ctrl-C in the terminal is for us, and we hand it on once.
                process_group=0,
            )
        reader, self._writers[number] = await asyncio.open_connection(sock=ours)
        if self._ending.is_set():
            process.terminate()
        try:
            with contextlib.suppress(ConnectionError):
                while line := (await reader.readline()).decode().split():
                    self._heard(number, line)
            return await process.wait()
        finally:
            self._writers.pop(number).close()
            del self._processes[number]
            self._listening.discard(number)

    def _environment(self, number: int, fd: int) -> dict[str, str]:
        port = "" if self._port is None else str(self._port.getsockname()[1])
        return os.environ | {
            _NUMBER: str(number),
            _FD: str(fd),
            _PORT: port,
            _DIRECTORY: str(self._directory),
        }

    def _heard(self, number: int, line: list[str]) -> None:
        if line[0] == "bound":
            if self._port is None:
                # Never listens: it keeps the port ours, even while every worker is down.
                self._port = listen(line[2] if len(line) > 2 else "", int(line[1]), shared=True)
        elif line[0] == "journal":
            journal.install(cast("journal.Format", line[1]), cast("journal.Level", line[2]))
        elif line[0] == "started":
            self._started.add(number)
            self._first.set()
            if len(self._started) == self._count:
                for writer in self._writers.values():
                    writer.write(b"go\n")
        elif line[0] == "listening":
            self._listening.add(number)
            self._have_reloaded(number)
            if len(self._listening) == self._count and not self._announced:
                self._announced = True
                assert self._port is not None
                print(f"rowcast listening on {line[1]}://{address_of(self._port)}", flush=True)

    def _fail(self, number: int, code: int) -> None:
        """The start failed: the worker has said why, unless it was killed."""
        if code <= 0:
            logger.error("worker_start_failed", "worker %d %s before it served", number, _how(code), worker=number)
        self._code = code if code > 0 else 1
        self._ending.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()


def _how(code: int) -> str:
    return f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
