"""The intake: records of webhooks through the routes into the log, each exactly once.

The routes are those of the configuration. Subscription rules are not fed from here: they are read from the
database, and a change that came by another way than its WAL could not be joined to what was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec

from rowcast.core.body import Envelope
from rowcast.core.entry import Kind
from rowcast.core.routes import Route, Router
from rowcast.deliveries import Deliveries
from rowcast.errors import Repeated
from rowcast.logs.messages import Messages
from rowcast.ports import Draft
from rowcast.sources.records import Delivery, Record, Shapes, SignedMessage

YIELD_EVERY = 64
"""Records after which the streams get their turn, also while none of the records goes anywhere."""


class Taken(msgspec.Struct):
    """What became of a delivery. `repeated` entries were in the log already."""

    records: int = 0
    appended: int = 0
    repeated: int = 0


class Intake:
    """Puts deliveries into the log.

    `append` appends a draft to the log, `deliveries` remembers what is in it (None: the log itself does, see
    `ports.Log.remembers`). `messages` verifies logical messages (None: they are ignored, since the log has them from
    the WAL). `max_event` in bytes: larger events are cut as those from the WAL are.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        append: Callable[[Draft], Awaitable[Any]],
        deliveries: Deliveries | None,
        messages: Messages | None = None,
        *,
        envelope: Envelope = "rowcast",
        max_event: int,
    ) -> None:
        # A router of its own: what is odd about a record must not look like a change of the table.
        self.router = Router(routes, envelope=envelope)
        self._append = append
        self._deliveries = deliveries
        self._messages = messages
        self._max_event = max_event
        needed: dict[str, frozenset[str]] = {}
        for route in routes:
            needed[route.table] = needed.get(route.table, frozenset()) | route.needed
        self._shapes = Shapes(needed)

    async def take(self, delivery: Delivery) -> Taken:
        """Route the records and append what comes of them, in order; returns when all of it is in the log.

        Raises `Unavailable` when one can't be appended: those before it are in the log and are known when they
        are delivered again. Where it is unknown whether one was appended, it may come twice unless the log remembers.
        """
        taken = Taken(len(delivery.records))
        for number, record in enumerate(delivery.records, 1):
            for key, draft in self._drafts(record):
                if await self._once(key, draft):
                    taken.appended += 1
                else:
                    taken.repeated += 1
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return taken

    def _drafts(self, record: Record | SignedMessage) -> Iterator[tuple[str, Draft]]:
        """What is to be appended of a record, each with the key that tells it again; "" when nothing does."""
        if isinstance(record, SignedMessage):
            read = self._messages.draft(record.content) if self._messages is not None else None
            if read is not None:
                yield f"message\n{read[0]}", read[1]
            return
        for part, entry in enumerate(self.router.route(self._shapes.change(record))):
            draft = Draft(
                topic=entry.topic,
                data=entry.body.encode(self._max_event),
                key=entry.key,
                interval=entry.interval,
                form="sweep" if entry.kind is Kind.SWEEP else "event",
            )
            yield (f"{record.key}\n{part}" if record.key else ""), draft

    async def _once(self, key: str, draft: Draft) -> bool:
        """Append a draft; returns False when it is in the log."""
        if self._deliveries is None:
            try:
                await self._append(msgspec.structs.replace(draft, once=key))
            except Repeated:
                return False
            return True
        if key and not await self._deliveries.claim(key):
            return False
        appended = False
        try:
            await self._append(draft)
            appended = True
        finally:
            if key:
                await self._deliveries.settle(key, appended=appended)
        return True
