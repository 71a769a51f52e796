"""A program that runs while a test or a drill needs it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self


class ServerProcess:
    """The base of all servers: one process with a directory of its own. A subclass says how to `start` it.

    As a context manager it is started on entry and destroyed on exit.
    """

    def __init__(self, prefix: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix=prefix))
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

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

    def _launch(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Run a command line; what it prints goes to the log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self._process

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
