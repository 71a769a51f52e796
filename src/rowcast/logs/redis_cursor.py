"""A reader's place in a log on Redis, and what it must check: the sans-IO half of the `redis://` log's tail.

Every item of the stream says what came before it: the WAL position and the published entry that the log ended with
when it was appended. A reader goes on only if it has seen both. So an item that was lost (a flush, a fail-over that
lost the end, a trim beyond a slow reader) shows at the next one, or within a second by the head hash: there is no
silent loss. An item may be appended twice, by two WAL readers that cut their batches differently: what is not above
the reader's own WAL position is skipped.

See docs/adr/0005-the-append-rule.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rowcast.core import codec
from rowcast.core.entry import Batch, Entry
from rowcast.core.position import ORIGIN, Place
from rowcast.errors import DecodeError

_LARGEST = (1 << 64) - 1

_FIELDS = [b"i", b"w", b"p", b"b", b"t", b"c"]
"""The names in an item of a batch, in the order in which redis_scripts/append.lua writes them."""

ITEM_OVERHEAD = 150
"""Bytes that Redis needs for an item besides its entries."""


class Item(NamedTuple):
    """One item of the stream: a batch of the WAL's entries, or one published entry.

    `wal` and `pub` are what the log ended with before it; `nonce` is "" for a batch. `time` is Unix time in
    seconds, by the clock of whoever appended; `size` the number of entries in `data`.
    """

    place: Place
    incarnation: str
    wal: Place
    pub: str
    nonce: str
    data: bytes
    time: float
    size: int

    @property
    def before(self) -> Place:
        """The place of the item before it: between the two there is nothing."""
        return max(self.wal, _place_of(self.pub))

    def entries(self, after: Place) -> list[Entry]:
        """Its entries above `after`; what other items before it have, too, is left out. Raises `DecodeError`."""
        if self.nonce:
            return codec.decode(self.data, self.place) if self.place > after else []
        after = max(after, self.wal)
        return [entry for entry in codec.decode(self.data) if entry.place > after]

    @classmethod
    def parse(cls, name: bytes, fields: Mapping[bytes, bytes]) -> Item:
        """An item as redis-py returns it: its id and its fields. Raises `DecodeError` when it is none of ours."""
        return cls.of(name, [part for field in fields.items() for part in field])

    @classmethod
    def of(cls, name: bytes, parts: list[bytes]) -> Item:
        """An item as Redis returns it: its id, and names and values in turn. Raises `DecodeError` likewise."""
        nonce = ""
        try:
            if parts[::2] == _FIELDS:
                # As append.lua writes it: one of these comes with each commit.
                _, incarnation, _, wal, _, pub, _, data, _, moment, _, size = parts
            else:
                fields = dict(zip(parts[::2], parts[1::2], strict=True))
                incarnation, wal, pub, data, moment, size = [fields[field] for field in _FIELDS]
                nonce = fields.get(b"n", b"").decode()
            major, minor = name.split(b"-")
            wal_major, wal_minor = wal.split(b"-")
            return cls(
                (int(major), int(minor)),
                incarnation.decode(),
                (int(wal_major), int(wal_minor)),
                pub.decode(),
                nonce,
                data,
                int(moment) / 1000,
                int(size),
            )
        except (KeyError, ValueError) as error:
            raise DecodeError(
                f"the item {name.decode()} of the log is none of ours ({type(error).__name__}: {error}); nobody else "
                "may write to the stream"
            ) from None


class Head(NamedTuple):
    """The head hash: the incarnation (which is the epoch), the WAL position that the log has, the place of its last
    item, the last published entry (`place/nonce`), and which database it is fed from ("": none)."""

    incarnation: str
    wal: Place
    top: Place
    pub: str
    database: str


class Cursor:
    """Where a reader is. `begin`, then `take` each item in order; `lost` when no item came for a while."""

    def __init__(self) -> None:
        self.incarnation = ""
        """The epoch; "" before the log was reached."""
        self.place: Place = ORIGIN
        """The last item taken: the next one is above."""
        self.wal: Place = ORIGIN
        """Every entry of the WAL at or below it has been taken."""
        self.pub = ""
        """The last published entry that was taken."""
        self._missing: Place | None = None

    def begin(self, head: Head, first: Item | None) -> Place:
        """Start at the oldest item (None: at the end); returns the place from which on everything will come."""
        self._missing = None
        self.incarnation = head.incarnation
        if first is None:
            self.wal, self.pub, self.place = head.wal, head.pub, max(head.top, head.wal)
            return self.place
        self.wal, self.pub = first.wal, first.pub
        major, minor = first.place
        self.place = (major, minor - 1) if minor else (major - 1, _LARGEST)
        return first.before

    def take(self, item: Item) -> list[Batch]:
        """The batch of an item, after one with a reset if everything before it can't be told to be complete.

        The item must be of this incarnation. Raises `DecodeError`.
        """
        self._missing = None
        batches: list[Batch] = []
        if item.wal > self.wal or item.pub != self.pub:
            reason = "position_expired" if item.wal > self.wal else "log_gap"
            bound = max(self.place, self.wal, item.wal, _place_of(item.pub))
            batches.append(Batch(self.incarnation, [], bound, reset=reason))
            self.wal = max(self.wal, item.wal)
        entries: Sequence[Entry]
        if item.nonce:
            entries = codec.decode(item.data, item.place)
            self.pub = f"{format_place(item.place)}/{item.nonce}"
        else:
            entries = packed = codec.unpack(item.data)
            if not packed.begins_above(self.wal):
                entries = [entry for entry in packed if entry.place > self.wal]
            self.wal = max(self.wal, item.place)
            self.pub = item.pub
        self.place = item.place
        return [*batches, Batch(self.incarnation, entries, item.place)]

    def lost(self, head: Head | None) -> bool:
        """Whether the head shows that an item was lost: asked when there was nothing to read."""
        if head is None or head.incarnation != self.incarnation:
            return True
        if head.top <= self.place:
            self._missing = None
            return head.pub != self.pub
        # There is more; or it was there, and is gone: then it has not come by the next time we ask.
        gone = self._missing == head.top
        self._missing = head.top
        return gone


def page_of(items: list[Item], after: Place, upto: Place) -> Batch | None:
    """The entries above `after` and not above `upto` of items that lie above `after`, as far as they go.

    None: something between them, or before the first, is not there any more, or is another incarnation's. Raises
    `DecodeError`.
    """
    entries: list[Entry] = []
    reached = after
    for item in items:
        if item.before > reached or item.incarnation != items[0].incarnation:
            return None
        entries.extend(entry for entry in item.entries(after) if entry.place <= upto)
        reached = item.place
        if reached >= upto:
            break
    # Up to there the log was seen to go: what is not there now is gone.
    return Batch(items[0].incarnation, entries, min(reached, upto)) if items else None


class Kept:
    """What of the stream must be kept: by age in seconds, number of entries (None: any) and bytes."""

    def __init__(self, retention: float, max_entries: int | None, max_bytes: int) -> None:
        self._retention = retention
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._items: deque[tuple[float, Place, int, int]] = deque()
        self._entries = 0
        self._bytes = 0

    def add(self, item: Item) -> None:
        """An item is in the stream."""
        taken = len(item.data) + ITEM_OVERHEAD
        self._items.append((item.time, item.place, item.size, taken))
        self._entries += item.size
        self._bytes += taken

    def clear(self) -> None:
        """The stream begins anew."""
        self._items.clear()
        self._entries = self._bytes = 0

    def trim(self, now: float) -> Place | None:
        """The oldest place to keep, when older ones may go (None: nothing may). The newest item always stays."""
        items, dropped = self._items, False
        while len(items) > 1 and (
            items[0][0] < now - self._retention
            or self._bytes > self._max_bytes
            or (self._max_entries is not None and self._entries > self._max_entries)
        ):
            _, _, count, taken = items.popleft()
            self._entries -= count
            self._bytes -= taken
            dropped = True
        return items[0][1] if dropped else None


def format_place(place: Place) -> str:
    """A place as the stream has it: `major-minor`, in decimal."""
    return f"{place[0]}-{place[1]}"


def parse_place(text: bytes | str) -> Place:
    """Read `format_place`. Raises ValueError on anything else."""
    major, minor = text.split(b"-") if isinstance(text, bytes) else text.split("-")
    return int(major), int(minor)


def _place_of(pub: str) -> Place:
    """The place of what `pub` names."""
    return parse_place(pub.partition("/")[0])
