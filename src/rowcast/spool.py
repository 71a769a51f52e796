"""Spools: what a snapshot read from the database, until every stream that asked for it has sent it on.

The rows must be out of the database quickly, whatever the clients do, and they must not fill the memory: so what is
small stays in memory, and what is larger goes into a temporary file without a name.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from typing import IO

from rowcast.core.pages import Overflow

IN_MEMORY = 256 * 1024
"""Bytes of one topic that are kept in memory."""


class Budget:
    """How many bytes all spools of a replica may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Room:
    """What one spool takes of a budget, and its file, if it has one."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.used = 0
        self.file: IO[bytes] | None = None

    def take(self, size: int) -> None:
        """Raises `Overflow` when one spool would have more than half of the budget, and `Crowded` when others have
        what is missing."""
        if self.used + size > self._budget.limit // 2:
            raise Overflow
        if self._budget.used + size > self._budget.limit:
            raise Crowded
        self.used += size
        self._budget.used += size

    def release(self) -> None:
        """Give it all back."""
        self._budget.used -= self.used
        self.used = 0
        if self.file is not None:
            self.file.close()
            self.file = None


class Crowded(Exception):
    """The streams that are being sent snapshots have taken all the room: later there will be some."""


class Spool:
    """The pages of one topic; see `core.fill.Pages` and `core.pages.Sink`. Its room is given back when nobody holds
    it any more."""

    def __init__(self, budget: Budget) -> None:
        self._room = Room(budget)
        self._memory: list[bytes] = []
        self._ends = array("q", [0])
        weakref.finalize(self, self._room.release)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, block: bytes) -> None:
        """Add a page. Raises `Overflow` and `Crowded`, see `Room.take`."""
        room = self._room
        room.take(len(block))
        self._ends.append(self._ends[-1] + len(block))
        if room.file is None and self._ends[-1] <= IN_MEMORY:
            self._memory.append(block)
            return
        if room.file is None:
            room.file = tempfile.TemporaryFile(prefix="rowcast-snapshot-")  # noqa: SIM115  # closed by `release`
            room.file.write(b"".join(self._memory))
            self._memory.clear()
        room.file.seek(self._ends[-2])
        room.file.write(block)

    def clear(self) -> None:
        """Forget all pages."""
        self._room.release()
        self._memory.clear()
        self._ends = array("q", [0])

    def page(self, number: int) -> bytes:
        """A page by its number. From the page cache that takes microseconds."""
        file = self._room.file
        if file is None:
            return self._memory[number]
        start, end = self._ends[number], self._ends[number + 1]
        file.seek(start)
        return file.read(end - start)
