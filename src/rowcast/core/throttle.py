"""At most one entry per key and interval: which entries of routes with `min_interval` wait, and until when.

The first entry of a key after a quiet time is sent at once. What follows is held until it is *due*, and only the newest
is sent then: an older one that is held gives way to it.

When an entry is due follows from the log alone, so that every replica finds the same: it is a function of the times of
commit of the entry and of those before it with the same topic and key. Dues lie on a grid of the interval, shifted by a
hash of topic and key: so replicas that began at different places agree after two intervals, keys do not come all at
once, and hardly any two are due in the same microsecond.

`clock` is the due up to which everything was sent. Together with a place it says exactly what a client has: of each key
the newest entry at or below the place, unless that is due after the clock. An id that is given to a client while
anything is held carries the clock as its *mark*, and so a resume, on whichever replica, knows what it is owed. Ids
without a mark say that nothing was held.

See docs/adr/0008-min-interval-and-marks.md. No clock here: the caller tells the time, in microseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

from rowcast.core.entry import Entry
from rowcast.core.position import Place

MAX_KEYS = 100_000
"""Keys that are remembered before those that have been quiet are let go."""

QUIET = 60_000_000
"""Microseconds of quiet after which a key may be let go."""


class _Last(NamedTuple):
    """The newest entry of a key. `lead`: it was sent at once, at its own time. `overtaken`: the place of the first
    entry after it that must not overtake it, before which it was sent."""

    entry: Entry
    due: int
    lead: bool
    overtaken: Place | None = None


class Throttle:
    """The held entries of a hub, for all its streams."""

    __slots__ = ("_book", "_count", "_forgotten", "_heap", "_limit", "clock", "held")

    def __init__(self) -> None:
        self.clock = 0
        self.held: dict[str, dict[str, Entry]] = {}
        """Topic → key → the newest entry, where it is not due yet."""
        self._book: dict[str, dict[str, _Last]] = {}
        self._heap: list[tuple[int, Place, Entry]] = []
        self._count = 0
        self._limit = MAX_KEYS
        self._forgotten = 0

    def clear(self) -> None:
        """The log begins anew."""
        self.held.clear()
        self._book.clear()
        self._heap.clear()
        self._count = self._forgotten = 0

    def take(self, entry: Entry) -> bool:
        """Take an entry that has an interval and a key. Returns whether it is to be sent now; else it is held."""
        key = entry.key
        assert key is not None
        keys = self._book.setdefault(entry.topic, {})
        last = keys.get(key)
        due, lead = _due(entry, last)
        if last is None:
            self._count += 1
        keys[key] = _Last(entry, due, lead)
        held = self.held.get(entry.topic)
        if held is not None and held.pop(key, None) is not None and not held:
            del self.held[entry.topic]
        if self._count > self._limit:
            self._forget()
        if lead:
            return True
        entry.due = due
        if due <= self.clock:
            return True
        self.held.setdefault(entry.topic, {})[key] = entry
        heapq.heappush(self._heap, (due, entry.place, entry))
        return False

    @property
    def next_due(self) -> int | None:
        """When the next held entry is due; None: nothing is held."""
        heap = self._heap
        while heap and not self._holds(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def release(self, upto: int) -> Iterator[Entry]:
        """The held entries that are due by then, in the order of their dues; `clock` goes along with each."""
        while (due := self.next_due) is not None and due <= upto:
            entry = heapq.heappop(self._heap)[2]
            self._let_go(entry)
            self.clock = max(self.clock, due)
            yield entry
        self.clock = max(self.clock, upto)

    def settle(self, topics: Iterable[str], place: Place) -> list[Entry]:
        """The held entries of some topics, in the order of their dues, to be sent now: an entry at a place must not
        overtake them."""
        entries: list[Entry] = []
        for topic in topics:
            entries.extend(self.held.pop(topic, {}).values())
            # So it is on every replica, whether anything was held there or not, since the log says so.
            keys = self._book.get(topic, {})
            for key, last in keys.items():
                if last.overtaken is None:
                    keys[key] = last._replace(overtaken=place)
        return sorted(entries, key=_due_of)

    def newest(self, topic: str, key: str | None) -> Entry | None:
        """The newest entry of a key, held or not; None: it is not known."""
        last = self._book.get(topic, {}).get(key) if key is not None else None
        return None if last is None else last.entry

    def matching(self, prefix: str) -> list[str]:
        """The topics with a prefix of which any entry is known."""
        return [topic for topic in self._book if topic.startswith(prefix)]

    def holding(self, topics: Iterable[str]) -> list[Entry]:
        """What is held of some topics."""
        return [entry for topic in topics for entry in self.held.get(topic, {}).values()]

    def owed(self, topics: Iterable[str], place: Place, mark: int, over: int = 0) -> list[Entry] | None:
        """What a client with these topics that has everything up to a place and mark is owed of what is at or below it.

        `over`: it also has what is due by then and must not be overtaken by the entry that follows the place (0:
        nothing). None: it is not known any more.
        """
        if mark < self._forgotten:
            return None
        following = (place[0], place[1] + 1)
        return [
            last.entry
            for topic in topics
            for last in self._book.get(topic, {}).values()
            if last.entry.due > mark
            and last.entry.place <= place
            and (last.overtaken is None or last.overtaken > place)
            and not (last.overtaken == following and last.entry.due <= over)
        ]

    def _holds(self, entry: Entry) -> bool:
        assert entry.key is not None
        return self.held.get(entry.topic, {}).get(entry.key) is entry

    def _let_go(self, entry: Entry) -> None:
        assert entry.key is not None
        held = self.held[entry.topic]
        del held[entry.key]
        if not held:
            del self.held[entry.topic]

    def _forget(self) -> None:
        self._count = 0
        for topic, keys in list(self._book.items()):
            for key, last in list(keys.items()):
                if last.due + 2 * last.entry.interval + QUIET < self.clock:
                    del keys[key]
                    self._forgotten = max(self._forgotten, last.due)
            self._count += len(keys)
            if not keys:
                del self._book[topic]
        self._limit = max(MAX_KEYS, 2 * self._count)


def _due(entry: Entry, last: _Last | None) -> tuple[int, bool]:
    """When an entry is due after the last one of its topic and key, and whether it leads."""
    time, interval = entry.time, entry.interval
    if last is None or time >= last.due + interval:
        return time, True
    phase = crc32(f"{entry.topic}\0{entry.key}".encode(errors="surrogatepass")) % interval
    due = (time + phase) // interval * interval + interval - phase
    if last.lead:
        return (due if due >= last.due + interval else due + interval), False
    # Clocks can be set back: nothing waits for more than two intervals of its own time.
    return (last.due if due < last.due <= due + interval else due), False


def _due_of(entry: Entry) -> int:
    return entry.due
