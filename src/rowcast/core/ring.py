"""The ring: the newest entries of the log in memory, indexed by topic.

A catch-up costs by what its stream gets, not by what the ring holds: each entry knows the previous and the
next one of its topic (as sequence numbers), and a dictionary knows each topic's last. A `Walk` goes back
along the chains once to find where to begin, then forward page by page, so that it holds one number per
topic however far behind its stream is. Eviction is O(1).

Entries with a key are conflated: a walk leaves out those that a newer one of the same topic and key follows, so
that a client that was away gets the latest price, not a backlog.

The ring is bounded by (estimated) bytes first, then by entries: the oldest go first.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Container, Iterable, Iterator

from rowcast.core.entry import Entry, Kind
from rowcast.core.position import ORIGIN, Place
from rowcast.core.run import Run

_NONE = -1
_SWEEPS = "\0"
"""The chain of SWEEP entries: a NUL can't stand in a topic."""


class Ring:
    """The newest DATA and SWEEP entries, in order.

    `max_bytes` bounds the estimated memory of the entries, `max_entries` their number (None: no bound).
    `floor` is a promise: every entry above it that the log has yielded is still here.
    """

    def __init__(self, max_bytes: int, max_entries: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.floor: Place = ORIGIN
        self.bytes = 0
        self.first = 0
        """The sequence number of the oldest entry held."""
        self.end = 0
        """The sequence number that the next entry gets."""
        self._last: dict[str, int] = {}
        self._newest: dict[tuple[str, str], int] = {}
        """Of the entries with a key: (topic, key) → the newest one's sequence number."""
        self._mask = 1023
        self._entries: list[Entry | Run | None] = [None] * 1024
        """What has the entry of a slot: the entry, or a run, in which `_within` says where."""
        self._within = array("i", [0]) * 1024
        self._previous = array("q", [_NONE]) * 1024
        self._next = array("q", [_NONE]) * 1024

    def __len__(self) -> int:
        return self.end - self.first

    def restart(self, floor: Place) -> None:
        """Forget everything: the log begins anew at `floor`. Walks that were under way find their entries gone."""
        self.floor = floor
        self.first = self.end
        self.bytes = 0
        self._last.clear()
        self._newest.clear()
        self._entries = [None] * len(self._entries)

    def append(self, entry: Entry) -> None:
        """Add the newest entry, and evict the oldest ones that are over the bounds."""
        if self.end - self.first > self._mask:
            self._grow()
        seq = self.end
        slot = seq & self._mask
        topic = _SWEEPS if entry.kind is Kind.SWEEP else entry.topic
        last = self._last.get(topic, _NONE)
        self._entries[slot] = entry
        self._previous[slot] = last
        self._next[slot] = _NONE
        if last != _NONE:
            self._next[last & self._mask] = seq
        self._last[topic] = seq
        if entry.key is not None:
            self._newest[topic, entry.key] = seq
        self.end = seq + 1
        self.bytes += entry.size
        if self.bytes > self.max_bytes or self.max_entries is not None:
            self._bound()

    def extend(self, run: Run) -> int:
        """Add the entries of a run, and evict the oldest ones that are over the bounds. Returns the sequence number of
        the first one, though it may be evicted already."""
        count = len(run)
        while self.end - self.first + count - 1 > self._mask:
            self._grow()
        seq = start = self.end
        mask, last, previous, following = self._mask, self._last, self._previous, self._next
        before_of = last.get
        for topic in run.topics:
            # Once per entry of a log that hundreds of thousands come from in a second: no call of ours here.
            slot = seq & mask
            before = before_of(topic, _NONE)
            previous[slot] = before
            following[slot] = _NONE
            if before != _NONE:
                following[before & mask] = seq
            last[topic] = seq
            seq += 1
        if run.keys is not None:
            for number, key in enumerate(run.keys, start):
                if key is not None:
                    self._newest[run.topics[number - start], key] = number
        within = 0
        while within < count:
            slot = (start + within) & mask
            fits = min(count - within, mask + 1 - slot)
            self._entries[slot : slot + fits] = [run] * fits
            self._within[slot : slot + fits] = array("i", range(within, within + fits))
            within += fits
        self.end = seq
        self.bytes += count * run.each
        self._bound()
        return start

    def entry(self, seq: int) -> Entry:
        """The entry with a sequence number that is held; it is made of its run once."""
        slot = seq & self._mask
        held = self._entries[slot]
        if isinstance(held, Run):
            self.bytes -= held.each
            held = self._entries[slot] = held.entry(self._within[slot])
            self.bytes += held.size
        assert held is not None
        return held

    def walk(
        self, after: Place, topics: Iterable[str], upto: Place | None = None, whole: Container[str] = ()
    ) -> Walk | None:
        """The entries of `topics` above `after` (and not above `upto`, if given), or None when some of them
        may be gone. Those of the topics in `whole` are not conflated."""
        if after < self.floor:
            return None
        return Walk(self, self.index(after), topics, None if upto is None else self.index(upto), whole)

    def walk_on(
        self, start: int, topics: Iterable[str], upto: Place | None = None, whole: Container[str] = ()
    ) -> Walk | None:
        """Go on from where another walk ended (its `end`), or None when some entries since may be gone."""
        if start < self.first:
            return None
        return Walk(self, start, topics, None if upto is None else self.index(upto), whole)

    def supersedes(self, entry: Entry) -> bool:
        """Whether the ring holds an entry of the same topic and key as one that is older than all of it."""
        return entry.key is not None and (entry.topic, entry.key) in self._newest

    def index(self, place: Place) -> int:
        """The sequence number of the first entry above a place, or the one that it will get."""
        low, high = self.first, self.end
        while low < high:
            middle = (low + high) // 2
            if self._place(middle & self._mask) <= place:
                low = middle + 1
            else:
                high = middle
        return low

    def _place(self, slot: int) -> Place:
        held = self._entries[slot]
        assert held is not None
        return held.place(self._within[slot]) if isinstance(held, Run) else held.place

    def _bound(self) -> None:
        """Evict the oldest entries, as long as there are too many."""
        most = self.end if self.max_entries is None else self.max_entries
        if self.bytes <= self.max_bytes and self.end - self.first <= most:
            return
        entries, last, newest, mask = self._entries, self._last, self._newest, self._mask
        first, size, slot = self.first, self.bytes, 0
        while first < self.end and (size > self.max_bytes or self.end - first > most):
            slot = first & mask
            held = entries[slot]
            if type(held) is Run:
                within = self._within[slot]
                topic = held.topics[within]
                key = None if held.keys is None else held.keys[within]
                size -= held.each
                self.floor = (held.majors[within], held.minors[within])
            else:
                assert type(held) is Entry
                topic = _SWEEPS if held.kind is Kind.SWEEP else held.topic
                key = held.key
                size -= held.size
                self.floor = held.place
            if last.get(topic) == first:
                del last[topic]
            if key is not None and newest.get((topic, key)) == first:
                del newest[topic, key]
            entries[slot] = None
            first += 1
        self.first, self.bytes = first, size

    def _grow(self) -> None:
        mask = self._mask * 2 + 1
        entries: list[Entry | Run | None] = [None] * (mask + 1)
        within = array("i", [0]) * (mask + 1)
        previous = array("q", [_NONE]) * (mask + 1)
        following = array("q", [_NONE]) * (mask + 1)
        for seq in range(self.first, self.end):
            entries[seq & mask] = self._entries[seq & self._mask]
            within[seq & mask] = self._within[seq & self._mask]
            previous[seq & mask] = self._previous[seq & self._mask]
            following[seq & mask] = self._next[seq & self._mask]
        self._mask, self._entries, self._within = mask, entries, within
        self._previous, self._next = previous, following


class Walk:
    """The entries of some topics from one sequence number up to another, in order, page by page.

    `stop` None means: up to what the ring holds now. `end` is where the walk ends: a further one goes on there.
    """

    __slots__ = ("_heap", "_ring", "_stop", "_topics", "_whole", "end")

    def __init__(
        self, ring: Ring, start: int, topics: Iterable[str], stop: int | None, whole: Container[str] = ()
    ) -> None:
        self._whole = whole
        self._ring = ring
        self._topics = tuple(topics)
        self.end = ring.end if stop is None else stop
        self._heap = [
            seq for topic in (*self._topics, _SWEEPS) if (seq := self._begin(topic, start)) != _NONE and seq < self.end
        ]
        heapq.heapify(self._heap)

    def _begin(self, topic: str, start: int) -> int:
        """The topic's first sequence number at or above `start`."""
        ring = self._ring
        seq = ring._last.get(topic, _NONE)
        found = _NONE
        while seq >= start:
            found = seq
            seq = ring._previous[seq & ring._mask]
        return found

    @property
    def lost(self) -> bool:
        """Whether an entry that is still to come was evicted."""
        return bool(self._heap) and self._heap[0] < self._ring.first

    def __iter__(self) -> Iterator[Entry]:
        """The rest of the entries. May be left and taken up again; check `lost` before each go."""
        ring, heap = self._ring, self._heap
        while heap:
            seq = heap[0]
            entry = ring.entry(seq)  # check `lost` before walking on
            following = ring._next[seq & ring._mask]
            if following == _NONE or following >= self.end:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, following)
            if entry.kind is Kind.SWEEP:
                if any(topic.startswith(entry.topic) for topic in self._topics):
                    yield entry
            elif (
                entry.key is None
                or not seq < ring._newest[entry.topic, entry.key] < self.end
                or entry.topic in self._whole
            ):
                yield entry
