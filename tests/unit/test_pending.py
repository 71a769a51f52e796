from __future__ import annotations

import asyncio
import contextlib

import pytest

from rowcast import pending
from rowcast.core.entry import Batch
from rowcast.core.position import Position
from rowcast.errors import Unavailable
from rowcast.logs.memory import MemoryLog
from rowcast.ports import Draft


class Hub:
    """Remembers what it was given."""

    epoch = "e"
    head = (7, 3)

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def handle(self, batch: Batch) -> None:
        self.batches.append(batch)


class Away(MemoryLog):
    """A log that is away until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.back = False
        self.appended: list[tuple[str | None, str]] = []
        self.refused = 0

    async def append(self, draft: Draft) -> Position:
        if not self.back:
            self.refused += 1
            raise Unavailable("away")
        self.appended.append((draft.control, draft.user))
        return await super().append(draft)


async def test_in_force_here_at_once_and_everywhere_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PAUSE", 0.001)
    hub, log = Hub(), Away()
    kept = pending.Pending(hub, log)
    running = asyncio.create_task(kept.run())
    try:
        for user in ("ann", "bob", "ann"):
            position = kept.keep(Draft(control="disconnect", user=user))
        assert position == Position("e", 7, 3)
        assert [(e.body.action, e.body.user) for b in hub.batches for e in b.entries] == [
            ("disconnect", "ann"), ("disconnect", "bob"), ("disconnect", "ann"),
        ]  # fmt: skip
        assert len(kept) == 2
        async with asyncio.timeout(30):
            while log.refused < 3:
                await asyncio.sleep(0)
            log.back = True
            while kept:
                await asyncio.sleep(0)
        # In the order in which they were asked for last.
        assert log.appended == [("disconnect", "bob"), ("disconnect", "ann")]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
