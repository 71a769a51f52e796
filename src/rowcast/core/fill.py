"""Fills: what a stream that asked for snapshots is owed, and how it is joined to the tail.

A snapshot of a topic is read in one transaction, which says by its `Snapshot` which others it saw. At the place
where the stream got the topic it stands still until the rows are there; it sends them, and then goes on from that
very place, leaving out those entries of the topic that the rows hold already. That is over at the place `after`,
below which lies everything that the reading transaction saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from rowcast.core.entry import Entry, Kind
from rowcast.core.position import Place
from rowcast.core.snapshot import Snapshot

if TYPE_CHECKING:
    from rowcast.core.stream import Stream


class Pages(Protocol):
    """The rows of one topic, as SSE blocks without ids: at least one."""

    def __len__(self) -> int: ...

    def page(self, number: int) -> bytes:
        """A block, by its number from 0."""
        ...


class Read(msgspec.Struct, frozen=True):
    """What one transaction read: the pages of topics. Everything that it saw lies at or below `after`. `snapshot`
    None: there were no rows to be had, and the pages say why."""

    snapshot: Snapshot | None
    after: Place
    topics: dict[str, Pages]


class Wants(Protocol):
    """Who reads snapshots; see `snapshots.Snapshots`."""

    def covers(self, topic: str) -> bool:
        """Whether there is a snapshot of the topic to be had."""
        ...

    def want(self, stream: Stream, fill: Fill) -> None:
        """Have the fill's topics read, from now on: by a transaction that begins after this call."""
        ...


class Filter(NamedTuple):
    """Entries of `topics` up to `after` are left out when `snapshot` saw them."""

    topics: frozenset[str]
    snapshot: Snapshot
    after: Place

    def has(self, topic: str, entry: Entry) -> bool:
        """Whether the snapshot of a topic holds what an entry on it tells."""
        return bool(entry.xid) and topic in self.topics and self.snapshot.saw(entry.xid)


class Fill:
    """Snapshots of `topics`, from the moment that a stream owes them until they are pending or written."""

    __slots__ = ("_begun", "_page", "_pages", "awaited", "filters", "topics")

    def __init__(self, topics: frozenset[str]) -> None:
        self.topics = topics
        self.awaited = set(topics)
        """Those that have not been read yet."""
        self.filters: list[Filter] = []
        self._pages: dict[str, Pages] = {}
        self._page = 0
        self._begun = False

    def supply(self, read: Read) -> None:
        """Take over the topics that are still awaited."""
        taken = self.awaited & read.topics.keys()
        if taken:
            self.awaited -= taken
            if read.snapshot is not None:
                self.filters.append(Filter(frozenset(taken), read.snapshot, read.after))
            self._pages.update((topic, read.topics[topic]) for topic in sorted(taken))

    def next(self, allowed: Iterable[str]) -> bytes | None:
        """The next page, None when that was all. `allowed` are the topics that the stream has had ever since: those
        that it has lost before the first page are not sent."""
        if not self._begun:
            self._begun = True
            kept = self.topics.intersection(allowed)
            self._pages = {topic: pages for topic, pages in self._pages.items() if topic in kept}
            self.filters = [one._replace(topics=topics) for one in self.filters if (topics := one.topics & kept)]
        while self._pages:
            topic, pages = next(iter(self._pages.items()))
            if self._page < len(pages):
                self._page += 1
                return pages.page(self._page - 1)
            del self._pages[topic]
            self._page = 0
        return None


def due(entry: Entry, topics: Iterable[str], filters: Iterable[Filter]) -> Iterable[str] | None:
    """On which of a stream's topics an entry is still to be sent: None for all that it is addressed to."""
    if entry.kind is Kind.DATA:
        return () if any(one.has(entry.topic, entry) for one in filters) else None
    addressed = [topic for topic in topics if topic.startswith(entry.topic)]
    left = [topic for topic in addressed if not any(one.has(topic, entry) for one in filters)]
    return None if len(left) == len(addressed) else left
