"""What a stream is, and what of its entries is held: the ground of the state machine, whose rules stand in `stream`.

An entry that is not due yet (see `throttle`) is held by the hub for its LIVE streams. A stream that gets behind takes
along what is held for it, as deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from rowcast.core import sse
from rowcast.core.entry import Entry, Kind, user_topic
from rowcast.core.fill import Fill, Filter
from rowcast.core.grants import Grant
from rowcast.core.position import ORIGIN, OWED, Place, format_mark
from rowcast.core.ring import Walk
from rowcast.core.wire import StreamState, Wire

PAGE = 64 * 1024
"""Bytes that a catch-up reads at once."""

NOTHING: frozenset[Any] = frozenset()
"""Shared by all streams: each empty set that is made takes 216 bytes."""

_json = msgspec.json.encode


class Sink(Protocol):
    """What takes a stream's bytes: a transport (`asyncio.WriteTransport`) that has sent all that it was given."""

    def write(self, data: bytes, /) -> None:
        """Send; what can't be sent at once is kept, and the stream's `sink` is None from then on."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


class Turn(NamedTuple):
    """From `place` on the topics are `topics`; `block` tells the client. Of `owed` ones it gets a snapshot first."""

    place: Place
    topics: frozenset[str]
    block: bytes
    owed: frozenset[str] = frozenset()


class Held:
    """The state of a stream, and what concerns held entries."""

    __slots__ = (
        "__weakref__", "_clock", "_counted", "_counted_bytes", "_deferred", "_filters", "_narrow", "_noted",
        "_origin", "_paused", "_reset", "_rows", "_since", "_topics", "_turns", "_walk", "_walk_from", "_walk_topics",
        "after", "beaten", "bulk", "cursor", "express", "fill", "free", "grant", "number", "paging", "pending", "sink",
        "snapshot", "state", "wake", "wire",
    )  # fmt: skip

    def __init__(
        self,
        grant: Grant,
        wire: Wire,
        wake: Callable[[], None],
        *,
        narrow: frozenset[str] | None = None,
        snapshot: bool = False,
    ) -> None:
        self.grant = grant
        self.wire = wire
        self.wake = wake
        self.state = StreamState.STARTING
        self._topics: tuple[str, ...] = ()
        self.cursor: Place = ORIGIN
        """BEHIND: everything up to here is pending or written."""
        self.after: Place | None = None
        """STARTING: the hub must have passed this place first."""
        self.pending: list[bytes] = []
        self.free: int | None = None
        """How many of the pending blocks may be taken; None: all."""
        self.sink: Sink | None = None
        """Where all that is pending of a LIVE stream may be written at once; None: its writer must be woken."""
        self._counted = self._counted_bytes = 0
        self.express = self.bulk = self.paging = False
        """On which queues of the flush it is."""
        self.number = 0
        """By which the wheel knows it."""
        self.beaten: Place = ORIGIN
        """A place that the client was told."""
        self.snapshot = snapshot
        self.fill: Fill | None = None
        """BEHIND: what must be sent before the stream goes on from its cursor."""
        self._filters: tuple[Filter, ...] = ()
        self._noted = 0
        self._narrow = narrow
        self._deferred: dict[tuple[str, str | None], Entry] = {}
        """BEHIND: by topic and key, what is at or below the cursor and held until later than `_clock`."""
        self._clock = 0
        self._origin: Place = ORIGIN
        """What is held and not above it is not for this stream: it began there."""
        self._since: dict[str, Place] | None = None
        """The same for single topics that it got while something of them was held."""
        self._rows: frozenset[Place] = NOTHING
        """The same for single entries that were in the rows of a snapshot."""
        self._walk: Walk | None = None
        self._walk_from: int | None = None
        self._walk_topics: frozenset[str] = NOTHING
        self._turns: tuple[Turn, ...] = ()
        self._paused: Place | None = None
        self._reset: str | None = None

    @property
    def topics(self) -> frozenset[str]:
        """What the stream is subscribed to at the hub's head, its user's own topic included.

        Kept as a tuple: a set of twenty takes a kilobyte more, and is asked for when subscriptions change.
        """
        return frozenset(self._topics)

    @topics.setter
    def topics(self, topics: frozenset[str]) -> None:
        self._topics = tuple(topics)

    # What it is told

    def listed(self, topics: frozenset[str]) -> list[str]:
        """Topics as the client is told them: sorted, without its user's own."""
        return sorted(topics - {user_topic(self.grant.user)})

    def _reset_block(self, reason: str, place: Place, owed: frozenset[str]) -> bytes:
        position = self._position(place, owed)
        self.beaten = place
        self.wire.resets += 1
        data: dict[str, Any] = {"reason": reason, "position": position, "topics": self.listed(self.topics)}
        if self.snapshot:
            data["snapshot"] = sorted(owed)
        return sse.frame(_json(data), position=position, event="rowcast.reset")

    def _subscriptions_block(self, place: Place, topics: frozenset[str], owed: frozenset[str]) -> bytes:
        data = {
            "added": self.listed(topics - self.topics),
            "removed": self.listed(self.topics - topics),
            "topics": self.listed(topics),
        }
        if self.snapshot:
            data["snapshot"] = sorted(owed)
        return sse.frame(_json(data), position=self._position(place, owed), event="rowcast.subscriptions")

    def _position(self, place: Place, owed: frozenset[str]) -> str:
        """A place's wire form when snapshots of some topics are owed from there on."""
        return self.wire.position(place) + (OWED if owed else "")

    # What is pending

    def _append(self, block: bytes) -> None:
        self.pending.append(block)

    @property
    def pending_bytes(self) -> int:
        """Bytes that are pending. Counted when it is asked for: a delivery must not pay for it."""
        pending = self.pending
        if self.sink is not None and self.state is StreamState.LIVE:
            return sum(map(len, pending))  # it is written past `take`, so nothing may stay counted
        if self._counted > len(pending):
            self._counted = self._counted_bytes = 0
        for i in range(self._counted, len(pending)):
            self._counted_bytes += len(pending[i])
        self._counted = len(pending)
        return self._counted_bytes

    # What is held

    def concerns(self, entry: Entry) -> bool:
        """Whether an entry of one of the stream's topics that was held is for it."""
        place = entry.place
        return (
            place > self._origin
            and (self._since is None or place > self._since.get(entry.topic, ORIGIN))
            and place not in self._rows
        )

    def _owed(self, topics: frozenset[str]) -> frozenset[str]:
        """Those of which the stream must send a snapshot when it gets them."""
        wants = self.wire.snapshots
        if not self.snapshot or wants is None:
            return frozenset()
        return frozenset(topic for topic in topics if wants.covers(topic))

    def _mark(self) -> str:
        return format_mark(self._clock) if self._deferred else ""

    def _marked(self, block: bytes) -> bytes:
        return sse.marked(block, self._mark()) if self._deferred else block

    def _leave_out(self, ended: list[Filter]) -> None:
        """What is held, and was in the rows of snapshots that have been sent, is not for us."""
        held = self.wire.throttle.holding
        known = self._rows.intersection(entry.place for entry in held(self.topics)) if self._rows else NOTHING
        rows = (entry for one in ended for entry in held(one.topics) if _in_rows(entry, one))
        self._rows = known.union(entry.place for entry in rows) or NOTHING

    def _overtake(self, entry: Entry) -> None:
        """An entry is about to be sent: what is deferred and must come before it is sent now."""
        self._deferred.pop((entry.topic, entry.key), None)
        if entry.kind is Kind.SWEEP:
            names = [name for name in self._deferred if name[0].startswith(entry.topic)]
        elif entry.interval and entry.key is None:
            names = [name for name in self._deferred if name[0] == entry.topic]
        else:
            return
        self._give_up(names, before=entry.place)

    def _twin(self, entry: Entry) -> Entry:
        """The entry as the throttle knows it, if it is the newest of its key: what is read from the log does not tell
        when it is due, or was."""
        known = self.wire.throttle.newest(entry.topic, entry.key)
        return known if known is not None and known.place == entry.place else entry

    def _give_due(self) -> bool:
        """Send what is deferred and due by now. Returns False when a page is pending before that is done."""
        clock = self.wire.throttle.clock
        for entry in sorted(self._deferred.values(), key=_due) if self._deferred else ():
            if entry.due > clock:
                break
            if self.pending_bytes >= PAGE:
                return False
            self._clock = max(self._clock, entry.due)
            self._give_up([(entry.topic, entry.key)])
        self._clock = max(self._clock, clock)
        return True

    def _give_up(self, names: list[tuple[str, str | None]], before: Place | None = None) -> None:
        """Send what is deferred, in the order of its dues; `before`: since the entry at that place must not overtake
        it."""
        place = self.cursor if before is None else (before[0], before[1] - 1)
        for entry in sorted((self._deferred.pop(name) for name in names), key=_due):
            block = entry.frame(self.wire.epoch, self.wire.max_event)
            mark = format_mark(self._clock, entry.due if before is not None else 0)
            owed = OWED if self.fill is not None or self._filters else ""
            self._append(sse.at(block, self.wire.position(place) + owed + mark))

    def _give_last(self, entries: Iterable[Entry], position: str) -> None:
        """Send what is held of topics that go, in the order of its dues. Whoever comes back from the position is owed
        nothing of these topics: so only the last block has it, and the others no id."""
        blocks = [entry.frame(self.wire.epoch, self.wire.max_event) for entry in sorted(entries, key=_due)]
        for block in blocks[:-1]:
            self._append(sse.bare(block))
        for block in blocks[-1:]:
            self._append(sse.at(block, position))

    def _leave_and_join(self, place: Place, topics: frozenset[str], owed: frozenset[str]) -> None:
        """Topics are about to change at a place: what is held of those that go is sent now, and what is held of those
        that come is not for us. Of `owed` ones snapshots are due from that place on."""
        throttle = self.wire.throttle
        if self.state is StreamState.LIVE:
            gone = filter(self.concerns, throttle.holding(self.topics - topics))
            self._give_last(gone, self._position(place, owed) + self.wire.mark)
        since = {topic: start for topic, start in (self._since or {}).items() if topic in throttle.held}
        since |= dict.fromkeys((topic for topic in topics - self.topics if topic in throttle.held), place)
        self._since = since or None

    def _begin_at(self, place: Place) -> None:
        """The client is told to refetch: what was before is not for it any more."""
        self._deferred.clear()
        self._origin = place


def _in_rows(entry: Entry, one: Filter) -> bool:
    return entry.place <= one.after and one.has(entry.topic, entry)


def _due(entry: Entry) -> int:
    return entry.due
