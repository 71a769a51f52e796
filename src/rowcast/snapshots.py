"""Snapshots: reading the current rows of topics for the streams that are owed them.

Streams that wait for a topic share one read; what is asked for while a read is under way gets the next one, since the
rows of a transaction that began before a stream had the topic are not that stream's to see. There are never more
than `READS` at a time, whatever the number of streams.

What the rows are joined to is what the hub dispatched: a transaction will only do whose snapshot saw everything on
the topics that has come by before it. A commit can come by in the log before it is visible, for a moment as a rule,
and for as long as a synchronous standby is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rowcast import jitter
from rowcast.core.entry import Entry, Kind
from rowcast.core.fill import Fill, Read
from rowcast.core.position import Place
from rowcast.core.run import Packed, Run
from rowcast.core.snapshot import Snapshot
from rowcast.core.stream import Stream
from rowcast.errors import Unavailable
from rowcast.ports import RowReader, TooEarly, TooLong
from rowcast.spool import Crowded
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.hub import Hub

logger = get_logger(__name__)

READS = 2
"""Transactions at a time."""

GROUP = 500
"""Topics of one transaction at most."""

PAUSE = 0.02
"""Seconds after which a transaction is begun anew that began too early."""

PATIENCE = 5.0
"""Seconds that it may take until commits that have come by are visible."""

LAG = 30.0
"""Seconds that the hub may be behind. To end streams sooner would only have them ask again."""

PRUNE_AT = 50_000
"""Transactions remembered before a fresh snapshot is asked for, to let go of those that everybody sees."""

Group = dict[str, list[tuple[Stream, Fill]]]


class Snapshots:
    """Which topics are wanted by which streams, and the tasks that read them; `core.fill.Wants`.

    `reader` None: no route has snapshots.
    """

    def __init__(self, hub: Hub, reader: RowReader | None) -> None:
        self._hub = hub
        self._reader = reader
        self._wanted: Group = {}
        self._unsettled: dict[int, Place] = {}
        """Transactions that came by with rows that snapshots have, and the place of the first of these."""
        self._prune_at = PRUNE_AT
        self._work = asyncio.Event()
        self.reads = 0
        """Transactions that were read through."""
        self.failures = 0
        """How often the streams that waited were ended, since there was nothing to be had."""

    # core.fill.Wants

    def covers(self, topic: str) -> bool:
        """Whether there is a snapshot of the topic to be had."""
        return self._reader is not None and self._reader.covers(topic)

    def want(self, stream: Stream, fill: Fill) -> None:
        """Have the fill's topics read, by a transaction that begins after this call."""
        for topic in fill.topics:
            self._wanted.setdefault(topic, []).append((stream, fill))
        self._hub.catchups["snapshot"] += 1
        self._work.set()

    # The hub's side

    def note(self, entries: Iterable[Entry]) -> None:
        """These came by."""
        if self._reader is None:
            return
        unsettled, last = self._unsettled, 0
        for part in entries.parts if type(entries) is Packed else (entries,):
            if type(part) is Run:
                for xid in dict.fromkeys(part.xids):
                    if xid:
                        unsettled.setdefault(xid, part.place(part.xids.index(xid)))
                continue
            for entry in part:
                xid = entry.xid
                if xid != last and xid and (entry.kind is Kind.DATA or entry.kind is Kind.SWEEP):
                    unsettled.setdefault(xid, entry.place)
                    last = xid
        if len(unsettled) > self._prune_at:
            self._prune_at = 2 * len(unsettled)
            self._work.set()

    def restart(self) -> None:
        """The log begins anew: whoever waits will want their topics once more, at another place."""
        self._wanted.clear()
        self._unsettled.clear()

    # Reading

    async def run(self) -> None:
        """Read what is wanted, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(READS):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            await self._work.wait()
            if len(self._unsettled) > PRUNE_AT:
                await self._prune_anew()
            group = self.claim()
            if group:
                await self.serve(group)
            elif not self._wanted:
                self._work.clear()

    def claim(self) -> Group:
        """Take topics to be read now, together, with those who still wait for them."""
        group: Group = {}
        while self._wanted and len(group) < GROUP:
            topic = next(iter(self._wanted))
            waiting = _waiting(self._wanted.pop(topic))
            if waiting:
                group[topic] = waiting
        return group

    async def serve(self, group: Group) -> None:
        """Read the topics of a group and give them to those who wait for them; or end these, with a reason."""
        assert self._reader is not None
        epoch = self._hub.epoch
        try:
            read = await self._read(list(group))
            async with asyncio.timeout(LAG):
                await self._hub.passed(read.after)
        except (TooLong, Crowded) as error:
            if len(group) > 1:
                # One topic must not cost the others their rows.
                topics = list(group)
                for half in (topics[: len(topics) // 2], topics[len(topics) // 2 :]):
                    if left := {topic: still for topic in half if (still := _waiting(group[topic]))}:
                        await self.serve(left)
                return
            if isinstance(error, Crowded):
                self._give_up(group, "busy", "there is no room for more snapshots now")
                return
            (topic,) = group
            logger.warning("snapshot_slow", "the rows of a topic could not be read within %g s", self._reader.timeout)
            place = self._hub.head
            pages = self._reader.failed(topic, "timeout", self._hub.wire.position(place))
            read = Read(None, place, {topic: pages})
        except _InvisibleError as error:
            visible = {topic: still for topic in group.keys() - error.topics if (still := _waiting(group[topic]))}
            why = "commits that have come by are not visible yet; is a synchronous standby away?"
            self._give_up({topic: group[topic] for topic in error.topics}, "unavailable", why)
            if visible:
                await self.serve(visible)
            return
        except (Unavailable, TimeoutError) as error:
            self._give_up(group, "unavailable", str(error) or "the log is behind")
            return
        except Exception:
            # Whatever it was, those who wait must be told, and those who come must be served.
            logger.exception("snapshots_failed", "snapshots could not be read")
            self._give_up(group, "unavailable", "")
            return
        if self._hub.epoch == epoch:
            self.deliver(read, group)

    async def _read(self, topics: list[str]) -> Read:
        assert self._reader is not None
        hub = self._hub
        head = hub.head
        early: set[str] = set()

        def accepts(snapshot: Snapshot) -> bool:
            nonlocal early
            early = self.early(snapshot, topics, head)
            return not early

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                read = await self._reader.read(topics, accepts, hub.wire.position)
            except TooEarly:
                if time.monotonic() > deadline:
                    raise _InvisibleError(early) from None
                await asyncio.sleep(PAUSE)
            else:
                self.reads += 1
                return read

    def deliver(self, read: Read, group: Group) -> None:
        """Hand over what was read to the streams that still wait for it."""
        given: dict[Stream, None] = {}
        for topic, waiting in group.items():
            for stream, fill in _waiting(waiting):
                if topic in fill.awaited:
                    fill.supply(read)
                if not fill.awaited:
                    given[stream] = None
        for stream in given:
            self._hub.again(stream)

    def _give_up(self, group: Group, reason: str, why: str) -> None:
        if why:
            logger.warning("snapshots_unavailable", "snapshots can't be had: %s", why)
        self.failures += 1
        for stream in dict.fromkeys(stream for waiting in group.values() for stream, _ in _waiting(waiting)):
            self._hub.end(stream, reason, retry=jitter.retry(2.0, 6.0))

    # Transactions that came by before they are visible

    def early(self, snapshot: Snapshot, topics: list[str], head: Place) -> set[str]:
        """The topics of which a snapshot did not see everything that had come by at `head`."""
        if self._hub.doubtful:
            return set(topics)
        self._prune(snapshot)
        unseen = {xid: place for xid, place in self._unsettled.items() if place <= head and not snapshot.saw(xid)}
        if not unseen:
            return set()
        major, minor = min(unseen.values())
        walk = self._hub.ring.walk((major, minor - 1), topics, head, whole=frozenset(topics))
        if walk is None:
            return set(topics)
        return {
            topic
            for entry in walk
            if entry.xid in unseen
            for topic in ([entry.topic] if entry.kind is Kind.DATA else topics)
            if topic.startswith(entry.topic)
        }

    def _prune(self, snapshot: Snapshot) -> None:
        if self._unsettled:
            self._unsettled = {xid: place for xid, place in self._unsettled.items() if not snapshot.settled(xid)}
        self._prune_at = max(PRUNE_AT, 2 * len(self._unsettled))

    async def _prune_anew(self) -> None:
        assert self._reader is not None
        try:
            self._prune(await self._reader.horizon())
        except Unavailable as error:
            logger.warning("snapshots_unreadable", "%s", error)
            self._prune_at = 2 * len(self._unsettled)


class _InvisibleError(Exception):
    """Commits on these topics have come by and are not visible."""

    def __init__(self, topics: set[str]) -> None:
        super().__init__()
        self.topics = topics


def _waiting(waiting: list[tuple[Stream, Fill]]) -> list[tuple[Stream, Fill]]:
    """Those who still wait: a stream that was ended or reset meanwhile does not."""
    return [(stream, fill) for stream, fill in waiting if stream.fill is fill]
