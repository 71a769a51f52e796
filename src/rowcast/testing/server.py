"""A replica as a process of its own: `rowcast serve` on a free port, to be stopped, killed or frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rowcast.errors import SetupError

ANNOUNCEMENT = "rowcast listening on "


class RowcastServer:
    """One replica.

    `config` is the text of its rowcast.toml. `name` is how it names itself (None: an id that it makes up). `arguments`
    are further ones of `rowcast serve`.
    `environment` is added to ours, and to a `[server] drain_delay` of 0, since nobody waits here for a proxy to notice.
    As a context manager it is started on entry and stopped on exit.
    """

    def __init__(
        self,
        config: str,
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = ("--no-access-log",),
    ) -> None:
        self._config = config
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        if name is not None:
            self._environment["ROWCAST_SERVER_NAME"] = name
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.url = ""
        """Where it listens, once it is started."""

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        assert self._directory is not None
        return Path(self._directory.name, "stderr").read_text()

    @property
    def rss(self) -> int:
        """Its resident memory in bytes (proc(5), statm)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def launch(self, *, port: int = 0) -> None:
        """Start the process without waiting for it to be ready. `port` 0: a free one."""
        self._directory = tempfile.TemporaryDirectory(prefix="rowcast-")
        file = Path(self._directory.name, "rowcast.toml")
        file.write_text(self._config)
        environment = {"ROWCAST_SERVER_DRAIN_DELAY": "0"} | os.environ | self._environment
        with Path(self._directory.name, "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rowcast.cli", "serve", str(file), "--port", str(port), *self._arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )

    def wait_ready(self) -> None:
        """Wait until it says where it listens. Raises `SetupError` with its last words when it ends instead."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode().strip()
            if text.startswith(ANNOUNCEMENT):
                self.url = text.removeprefix(ANNOUNCEMENT)
                return
        self._process.wait()
        raise SetupError(f"the replica ended with {self._process.returncode}: {self.log[-2000:]}")

    def start(self, *, port: int = 0) -> None:
        """Start it, and wait until it is ready. `port` 0: a free one."""
        self.launch(port=port)
        self.wait_ready()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, *, timeout: float = 40.0) -> int:
        """SIGTERM, and wait for its end; returns the exit code. `timeout` in seconds, then it is killed."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 40.0) -> int:
        """Wait for its end; returns the exit code. `timeout` in seconds, then it is killed."""
        try:
            return self._end(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._end(10)

    def _end(self, timeout: float) -> int:
        assert self._process is not None
        code = self._process.wait(timeout)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        if self._directory is not None:
            self._directory.cleanup()
        return code

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
