"""Keeps the replicas running: real `rowcast serve` processes, each restarted a while after it died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rowcast.errors import SetupError

GRACE = 3.0
"""Seconds that a replica has to drain when the demo ends, before it is killed."""

_LISTENING = re.compile(rb"rowcast listening on http://(\S+):(\d+)")

State = Literal["starting", "up", "down"]


@dataclass
class Replica:
    """One replica as the supervisor knows it.

    `port` and `pid` are None while there is no process that listens. `back_at` is the time (`time.monotonic`)
    at which a dead one is started again, else None. `starts` counts its processes. `killed` tells that the
    last one died by `Supervisor.kill` and not by itself.
    """

    name: str
    log: Path
    state: State = "starting"
    port: int | None = None
    pid: int | None = None
    starts: int = 0
    killed: bool = False
    back_at: float | None = None
    _process: Process | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where it listens. To be asked only while it is up."""
        return f"http://127.0.0.1:{self.port}"


class Supervisor:
    """Runs one process per name in `names` while the context is open, and ends them all with it.

    `command` gives the command line for a name; the process must print `rowcast listening on http://HOST:PORT`
    when it serves. `environment` is the whole environment for a name. `logs` is the directory for what the
    processes print. `pause` is how many seconds a dead replica stays dead: long enough to see the other one
    carry on alone.
    """

    def __init__(
        self,
        names: Sequence[str],
        command: Callable[[str], Sequence[str | Path]],
        environment: Callable[[str], dict[str, str]],
        *,
        logs: Path,
        pause: float = 5.0,
    ) -> None:
        self.replicas = [Replica(name, logs / f"replica-{name}.log") for name in names]
        self.pause = pause
        self._command = command
        self._environment = environment
        self._changed = asyncio.Condition()
        self._keepers: list[asyncio.Task[None]] = []

    def live(self) -> list[Replica]:
        """The replicas that serve right now."""
        return [replica for replica in self.replicas if replica.state == "up"]

    def kill(self, replica: Replica) -> int:
        """kill -9: no goodbye, no draining. Returns the pid. Raises ProcessLookupError when it is dead."""
        if replica.pid is None:
            raise ProcessLookupError(replica.name)
        os.killpg(replica.pid, signal.SIGKILL)  # with whatever it has started itself
        # Told to nobody yet, but new streams must not be sent there from this moment on.
        replica.state, replica.killed = "down", True
        return replica.pid

    async def __aenter__(self) -> Self:
        """Start all and wait until each one listens.

        Raises `SetupError` with the last lines that a replica printed when it ends before it listened.
        """
        self._keepers = [
            asyncio.create_task(self._keep(replica), name=f"replica {replica.name}") for replica in self.replicas
        ]
        everyone = asyncio.create_task(self._all_up())
        try:
            await asyncio.wait([everyone, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()
        except BaseException:
            await self._end()
            raise
        finally:
            everyone.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _all_up(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.live()) == len(self.replicas))

    async def _end(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, replica: Replica) -> None:
        while True:
            try:
                await self._live(replica)
            finally:
                await _end_process(replica)
            if replica.starts == 1 and replica.port is None:
                raise SetupError(f"replica {replica.name} ended before it served: {_last_lines(replica.log)}")
            replica.state, replica.port, replica.pid = "down", None, None
            replica.back_at = time.monotonic() + self.pause
            await asyncio.sleep(self.pause)
            replica.back_at = None

    async def _live(self, replica: Replica) -> None:
        """One life of a replica: from its start to the end of its process."""
        with replica.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command(replica.name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=log,
                env=self._environment(replica.name),
                # A group of its own: Ctrl-C in the terminal is for us, and we end the replicas in order.
                start_new_session=True,
            )
            replica._process = process
            replica.state, replica.pid, replica.killed = "starting", process.pid, False
            replica.starts += 1
            assert process.stdout is not None
            async for line in process.stdout:
                log.write(line)
                if replica.port is None and (match := _LISTENING.search(line)):
                    replica.port, replica.state = int(match[2]), "up"
                    async with self._changed:
                        self._changed.notify_all()
            await process.wait()


async def _end_process(replica: Replica) -> None:
    process, replica._process = replica._process, None
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
            return
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _last_lines(log: Path, count: int = 3) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-count:]) or "it printed nothing"
