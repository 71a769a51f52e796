"""Runs: DATA entries side by side, as a log that is not in this process brings them.

Most of what a busy log brings nobody listens to here. So a batch is not made into entries one by one: topics, places
and payloads stay in arrays, and an `Entry` is made of one of them when somebody asks for it. What else is in a batch
(subscription rows, control entries, sweeps, and entries with an event's name or a pace of their own) stands between
the runs, as entries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import overload

import msgspec

from rowcast.core.entry import Entry, Kind
from rowcast.core.position import Place

_OVERHEAD = 150
"""What an entry of a run takes in memory besides its payload, in bytes: topic, places, slot and chain in the ring."""


class EncodedBody(msgspec.Struct, gc=False):
    """The body of a DATA or SWEEP entry that was encoded where it was appended."""

    data: bytes

    @property
    def size(self) -> int:
        """Estimated memory in bytes: the data, and the frame that they become."""
        return 2 * len(self.data)

    def encode(self, limit: int) -> bytes:
        """The event's data; see `entry.Body`. It was cut to the limit of whoever appended it."""
        return self.data


class Run:
    """DATA entries in order of their places, without event and interval.

    Arrays of the same length: `topics`; `keys` (None: no entry has one); `majors` and `minors`, the places; `xids` and
    `times` as `Entry` has them; `sizes`, how many bytes of `data` are each one's payload. Raises ValueError when their
    lengths differ.
    """

    __slots__ = ("_ends", "data", "each", "keys", "majors", "minors", "times", "topics", "xids")

    def __init__(
        self,
        topics: list[str],
        keys: list[str | None] | None,
        majors: array[int],
        minors: array[int],
        xids: array[int],
        times: array[int],
        sizes: array[int],
        data: bytes,
    ) -> None:
        count = len(topics)
        if any(len(column) != count for column in (keys or topics, majors, minors, xids, times, sizes)) or not count:
            raise ValueError("a run whose columns differ in length")
        self.topics = topics
        self.keys = keys
        self.majors = majors
        self.minors = minors
        self.xids = xids
        self.times = times
        self.data = data
        self._ends = array("Q", accumulate(sizes))
        if self._ends[-1] != len(data):
            raise ValueError("a run whose payloads are cut short")
        self.each = _OVERHEAD + -(-len(data) // count)
        """Estimated memory of one of its entries in bytes, all taken to be alike."""

    def __len__(self) -> int:
        return len(self.topics)

    def place(self, index: int) -> Place:
        """The place of one of the entries."""
        return (self.majors[index], self.minors[index])

    def entry(self, index: int) -> Entry:
        """One of the entries. Made anew each time: whoever wants its frame to be shared keeps it."""
        ends = self._ends
        return Entry(
            Kind.DATA,
            (self.majors[index], self.minors[index]),
            EncodedBody(self.data[ends[index - 1] if index else 0 : ends[index]]),
            self.topics[index],
            self.xids[index],
            None if self.keys is None else self.keys[index],
            None,
            self.times[index],
        )

    def __iter__(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self.topics)))


class Packed(Sequence[Entry]):
    """The entries of a batch, in order, of which most stand in runs. `parts` are runs, and lists of entries.

    As a sequence it makes an entry anew each time that it is asked for one.
    """

    __slots__ = ("_count", "parts")

    def __init__(self, parts: list[Run | list[Entry]]) -> None:
        self.parts = parts
        self._count = sum(map(len, parts))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(self.parts)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        return list(self)[index]

    def begins_above(self, place: Place) -> bool:
        """Whether all of it lies above a place."""
        for part in self.parts:
            if part:
                return (part.place(0) if isinstance(part, Run) else part[0].place) > place
        return True
