"""Control that could not be appended: in force here at once, and everywhere when the log is back.

Without it a `disconnect` asked for while the log is away would be lost, and one replica alone would be worse off than
without a log. What is kept is in this process only, and goes with it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from rowcast.core.entry import Batch, Control, Entry, Kind
from rowcast.core.position import Place, Position
from rowcast.errors import Unavailable
from rowcast.ports import Draft, Log
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

PAUSE = 0.5
"""Seconds between two tries to append."""


class ControlHub(Protocol):
    """What is needed of the hub."""

    @property
    def epoch(self) -> str:
        """The log's epoch."""
        ...

    @property
    def head(self) -> Place:
        """Every entry at or below it has been dispatched."""
        ...

    def handle(self, batch: Batch) -> None:
        """Dispatch a batch."""
        ...


class Pending:
    """Keeps control entries for `log`, and applies them to `hub`. `run` appends them.

    An append whose outcome is unknown is tried again, so an entry may be in the log twice: both actions can be done
    twice without harm.
    """

    def __init__(self, hub: ControlHub, log: Log) -> None:
        self._hub = hub
        self._log = log
        self._kept: dict[tuple[str, str], Draft] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def keep(self, draft: Draft) -> Position:
        """Put a control entry in force on this replica's streams now, and keep it for the log.

        Returns the place at which it is in force here. The same for the same user is kept once.
        """
        assert draft.control is not None
        hub = self._hub
        place = hub.head
        now = draft.at or time.time()
        entry = Entry(Kind.CONTROL, place, Control(draft.control, draft.user, now), time=round(now * 1e6))
        hub.handle(Batch(hub.epoch, [entry], place))
        # Behind all that was asked for before it, also when the same was.
        self._kept.pop((draft.control, draft.user), None)
        self._kept[draft.control, draft.user] = msgspec.structs.replace(draft, at=now)
        self._some.set()
        logger.warning(
            "control_kept", "a %s could not be appended: in force on this replica, kept for the others", draft.control
        )
        return Position(hub.epoch, *place)

    async def run(self) -> None:
        """Append what is kept, oldest first, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._kept:
                name, draft = next(iter(self._kept.items()))
                try:
                    await self._log.append(draft)
                except Unavailable:
                    await asyncio.sleep(PAUSE)
                else:
                    # Unless it was asked for again meanwhile: then that one must come after.
                    if self._kept.get(name) is draft:
                        del self._kept[name]
