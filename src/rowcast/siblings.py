"""The other workers of this host: one request reaches one of them, and some must be answered for all.

Every worker answers on a Unix socket in the directory that they share: with its metrics, or by draining.
What a worker's counters were when it was last asked is kept there too, so that they count when it is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rowcast.telemetry.journal import get_logger
from rowcast.telemetry.merge import Family, families, merge

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

logger = get_logger(__name__)

TIMEOUT = 2.0
"""Seconds that another worker may take to answer."""

T = TypeVar("T")

_numbers = itertools.count()


class _Draining(msgspec.Struct):
    name: str


class Siblings:
    """The workers that run the same Rowcast in other processes of this host."""

    def __init__(self, cast: Rowcast, directory: Path) -> None:
        self._cast = cast
        self._directory = directory
        # A process may run several Rowcasts; every worker makes them in the same order.
        self._group = next(_numbers)
        self._path = self._directory / f"{self._group}.{os.getpid()}.sock"
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Answer the others from now on."""
        self._server = await asyncio.start_unix_server(self._answer, self._path)

    async def close(self) -> None:
        """Leave what we counted to the others."""
        if self._server is not None:
            self._keep(self._path, families(self._cast.metrics.collect()))
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def metrics(self) -> list[Family]:
        """The metrics of all workers, the counters of dead ones as they were last seen."""
        mine = families(self._cast.metrics.collect())
        answers = await self._ask_all("metrics", list[Family])
        seen = {self._path: mine, **answers}
        for path, told in seen.items():
            self._keep(path, told)
        gone = [told for path, told in self._kept() if path not in seen]
        return merge([*seen.values(), *gone])

    async def drain(self) -> None:
        """Have the others drain."""
        await self._ask_all("drain", _Draining)

    # Asking

    async def _ask_all(self, what: str, kind: type[T]) -> dict[Path, T]:
        paths = [path for path in self._directory.glob(f"{self._group}.*.sock") if path != self._path]
        answers = await asyncio.gather(*(self._ask(path, what, kind) for path in paths))
        return {path: answer for path, answer in zip(paths, answers, strict=True) if answer is not None}

    async def _ask(self, path: Path, what: str, kind: type[T]) -> T | None:
        """What another worker answers; None: it is dead, or does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path)
                with contextlib.closing(writer):
                    writer.write(what.encode() + b"\n")
                    return msgspec.json.decode(await reader.read(-1), type=kind)
        except (ConnectionRefusedError, FileNotFoundError):
            _forget(path)
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            logger.warning("sibling_silent", "another worker of this host does not answer: %s", error)
        return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            what = (await reader.readline()).strip().decode()
            if what == "metrics":
                writer.write(msgspec.json.encode(families(self._cast.metrics.collect())))
            elif what == "drain":
                self._cast.drain()
                writer.write(msgspec.json.encode(_Draining(self._cast.replica.name)))
            await writer.drain()

    # What the dead have counted

    def _keep(self, path: Path, told: list[Family]) -> None:
        kept = path.with_suffix(".last")
        new = kept.with_suffix(f".new{os.getpid()}")
        new.write_bytes(msgspec.json.encode([family for family in told if family.lasts]))
        new.replace(kept)

    def _kept(self) -> list[tuple[Path, list[Family]]]:
        return [
            (path.with_suffix(".sock"), msgspec.json.decode(path.read_bytes(), type=list[Family]))
            for path in self._directory.glob(f"{self._group}.*.last")
        ]


def _forget(path: Path) -> None:
    """It was killed: nobody will ever answer here again."""
    path.unlink(missing_ok=True)
