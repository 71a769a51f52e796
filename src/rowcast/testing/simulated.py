"""A simulated Postgres whose transactions do what real ones do, at moments that a test decides.

Transactions commit in another order than they begin, become visible to new snapshots some time after they were
written to the WAL, and their ids wrap. Rows of a table, and of the table of the subscription rule, change under locks.
A snapshot sees what is visible, which need not be a prefix of the commit order.

All chance comes from the `random.Random` that is given: a seeded one, or one that hypothesis draws from.
"""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from rowcast.core import sse
from rowcast.core.entry import Control, Entry, Kind, RowChange
from rowcast.core.fill import Read
from rowcast.core.position import Place
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.subscriptions import Load, UserRows

USERS = ("ann", "bob", "eve")

TABLE_TOPICS = ("t:a", "t:b", "x:c")
"""Where the table's rows go. Of those that begin with t: there are snapshots."""

TOPICS = (*TABLE_TOPICS, "x:d")
"""What a row of the rule can give its user. Nothing but messages comes on x:d."""

T = TypeVar("T")

ROWS = range(5)
SUBS = range(5)

Identity = Literal["default", "full", "mixed"]
"""Whether changes of the rule's table tell the row before: never, always, or one in two."""


class Options(msgspec.Struct, frozen=True):
    """What a history is like: those of the one route, the identity of the rule's table, and how the log is held.

    `interval` is `min_interval` in microseconds (0: none). `ring` bounds a ring in entries (None: unbounded).
    `packed`: the log brings runs, as one on Redis does. `readable`: it can be read back. `turns`: a stream keeps only
    few changes of subscription apart.
    """

    conflate: bool = False
    interval: int = 0
    identity: Identity = "default"
    ring: int | None = None
    readable: bool = False
    turns: bool = False
    packed: bool = False

    @property
    def keyed(self) -> bool:
        """Whether rows that a newer one follows may be left out."""
        return self.conflate or self.interval > 0


class Body(msgspec.Struct):
    """The data of an entry: `number` tells it from all others, `row` and `version` the row, where it is about one."""

    data: dict[str, Any]
    size: int = 0

    def encode(self, limit: int) -> bytes:
        """See `entry.Body`."""
        return msgspec.json.encode(self.data)


class Transaction:
    """Its id, what it wrote, and the rows that it has locked."""

    def __init__(self, xid: int) -> None:
        self.xid = xid
        self.entries: list[Entry] = []
        self.touched: set[tuple[str, int]] = set()


class Written(NamedTuple):
    """An item of the WAL: what one transaction wrote, everything up to `head`. `epoch`: the log begins anew here."""

    head: Place
    entries: list[Entry]
    epoch: str | None = None


def rule() -> RowRule:
    """The rule whose table is simulated."""
    made = RowRule.from_function("subs", "user", lambda row: row["topics"] if row["on"] else [], index=0)
    return made.with_key(("id",), frozenset({"id", "user", "topics", "on"}))


class Database:
    """Two tables, transactions and the WAL. An LSN is a number of WAL records; `now` is in microseconds."""

    def __init__(self, rng: random.Random, options: Options) -> None:
        self.rng = rng
        self.options = options
        self.data: dict[int, tuple[str, int]] = {}
        """Row → (topic, version), as the transactions that hold the locks see them."""
        self.subs: dict[int, dict[str, Any]] = {}
        self.visible_data: dict[int, tuple[str, int]] = {}
        self.visible_subs: dict[int, dict[str, Any]] = {}
        self.next_xid = 2**32 - 20  # wraps on the way
        self.ended = self.next_xid - 1
        """The newest transaction that is visible."""
        self.lsn = 10
        self.now = 1_700_000_000_000_000
        self.open: list[Transaction] = []
        self.committed: list[Transaction] = []
        self.wal: list[Written] = []
        self.numbers = 0

    # Transactions

    def begin(self) -> None:
        """Begin one."""
        self.open.append(Transaction(self._assign()))

    def write(self, tx: Transaction) -> None:
        """One random change in an open transaction, of what nobody else has locked."""
        rng = self.rng
        locked = {place for other in (*self.open, *self.committed) if other is not tx for place in other.touched}
        what = rng.randrange(100)
        self.numbers += 1
        if what < 15:
            topic = rng.choice((*TOPICS, *(f"user:{user}" for user in USERS)))
            tx.entries.append(_entry(Kind.DATA, topic, {"topic": topic, "number": self.numbers}))
        elif what < 68:
            row = rng.choice(ROWS)
            if ("data", row) not in locked:
                tx.touched.add(("data", row))
                self._write_row(tx, row)
        elif what < 72:
            if not any(table == "data" for table, _ in locked):
                tx.touched |= {("data", row) for row in ROWS}
                self.data = {row: held for row, held in self.data.items() if not held[0].startswith("t:")}
                event = {"topic": "t:*", "action": "truncate", "number": self.numbers}
                tx.entries.append(_entry(Kind.SWEEP, "t:", event, tx.xid))
        elif what < 73:
            if not any(table == "subs" for table, _ in locked):
                tx.touched |= {("subs", row) for row in SUBS}
                self.subs.clear()
                self._note_sub(tx, RowChange(0, "truncate", None, None))
        elif what < 75:
            control = Control("resubscribe", rng.choice(USERS))
            tx.entries.append(Entry(Kind.CONTROL, (0, 0), control))
        else:
            row = rng.choice(SUBS)
            if ("subs", row) not in locked:
                tx.touched.add(("subs", row))
                self._write_sub(tx, row)

    def commit(self, tx: Transaction) -> None:
        """Write the commit to the WAL. It is not visible yet, and its locks are held until it is."""
        self.open.remove(tx)
        self.lsn += self.rng.randrange(1, 4)
        for index, entry in enumerate(tx.entries):
            entry.place = (self.lsn, (index + 1) << 20)
            entry.time = self.now
        self.lsn += 1
        self.wal.append(Written((self.lsn, 0), tx.entries))
        self.committed.append(tx)

    def show(self, tx: Transaction) -> None:
        """The commit becomes visible to new snapshots."""
        self.committed.remove(tx)
        self.ended = max(self.ended, tx.xid)
        for table, row in tx.touched:
            if table == "data":
                _take_over(self.visible_data, self.data, row)
            else:
                _take_over(self.visible_subs, self.subs, row)

    def restart(self, epoch: str) -> None:
        """The log begins anew."""
        self.lsn += 1
        self.wal.append(Written((self.lsn, 0), [], epoch))

    # What replicas ask

    def snapshot(self) -> Snapshot:
        """What is visible now. It lists what is under way only below the newest transaction that has ended."""
        xmax = self.ended + 1
        running = [tx.xid for tx in (*self.open, *self.committed) if tx.xid < xmax]
        return Snapshot(min(running, default=xmax), xmax, frozenset(running))

    def load(self, users: list[str]) -> Load:
        """The rule's rows of some users; then a mark."""
        read = {
            user: UserRows({0: [dict(row) for row in self.visible_subs.values() if row["user"] == user]})
            for user in users
        }
        snapshot = self.snapshot()
        return Load(self.mark(), read, snapshot)

    def read(self, topics: list[str]) -> Read:
        """The table's rows of some topics; then a mark."""
        pages = {topic: Rows(topic, self.visible_data, self.rng.randrange(1, 4)) for topic in topics}
        snapshot = self.snapshot()
        return Read(snapshot, self.mark(), dict(pages))

    def mark(self) -> Place:
        """A transaction that only says where it is: above all that was written."""
        self.ended = max(self.ended, self._assign())
        self.lsn += 1
        return (self.lsn, 0)

    # Inside

    def _assign(self) -> int:
        xid = self.next_xid
        self.next_xid += 1
        if self.next_xid % 2**32 < 3:  # Postgres gives these to nobody
            self.next_xid += 3
        return xid

    def _write_row(self, tx: Transaction, row: int) -> None:
        old = self.data.get(row)
        new = None if old and self.rng.random() < 0.3 else (self.rng.choice(TABLE_TOPICS), self.numbers)
        if old is not None and (new is None or new[0] != old[0]):
            self._tell(tx, "delete", row, *old)
        if new is not None:
            self._tell(tx, "upsert", row, *new)
            self.data[row] = new
        else:
            self.data.pop(row, None)

    def _tell(self, tx: Transaction, action: str, row: int, topic: str, version: int) -> None:
        self.numbers += 1
        body = {"topic": topic, "action": action, "row": row, "version": version, "number": self.numbers}
        entry = _entry(Kind.DATA, topic, body, tx.xid if topic.startswith("t:") else 0)
        if self.options.keyed and (action == "upsert" or self.rng.random() < 0.8):
            entry.key = str(row)
        entry.interval = self.options.interval
        tx.entries.append(entry)

    def _write_sub(self, tx: Transaction, row: int) -> None:
        rng, identity = self.rng, self.options.identity
        old = self.subs.get(row)
        told = old if identity == "full" or (identity == "mixed" and rng.random() < 0.5) else None
        if old is not None and rng.random() < 0.3:
            del self.subs[row]
            self._note_sub(tx, RowChange(0, "delete", None, told or {"id": row}))
            return
        new: dict[str, Any] = {
            "id": row,
            "user": rng.choice(USERS),
            "topics": rng.sample(TOPICS, rng.randrange(4)),
            "on": rng.random() < 0.8,
        }
        sent = dict(new)
        if old is not None and rng.random() < 0.2 and (told or new["user"] == old["user"]):
            # An unchanged TOASTed value. (That of a row which comes from a user who is not connected is told under FULL
            # only; without, the user's rules are read anew, which is not exact.)
            new["topics"] = old["topics"]
            del sent["topics"]
        self.subs[row] = new
        self._note_sub(tx, RowChange(0, "update" if old else "insert", sent, told))

    @staticmethod
    def _note_sub(tx: Transaction, change: RowChange) -> None:
        tx.entries.append(Entry(Kind.ROW, (0, 0), change, xid=tx.xid % 2**32))


class Rows:
    """The rows of one topic, `size` on a page; `core.fill.Pages`."""

    def __init__(self, topic: str, data: dict[int, tuple[str, int]], size: int) -> None:
        rows = [(row, version) for row, (on, version) in data.items() if on == topic]
        parts = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
        self._blocks = [
            {"topic": topic, "rows": part, "first": i == 0, "last": i == len(parts) - 1} for i, part in enumerate(parts)
        ]

    def __len__(self) -> int:
        return len(self._blocks)

    def page(self, number: int) -> bytes:
        """See `core.fill.Pages`."""
        return sse.frame(msgspec.json.encode(self._blocks[number]), event="rowcast.snapshot")


def _entry(kind: Kind, topic: str, data: dict[str, Any], xid: int = 0) -> Entry:
    return Entry(kind, (0, 0), Body(data), topic=topic, xid=xid % 2**32)


def _take_over(visible: dict[int, T], now: dict[int, T], row: int) -> None:
    if row in now:
        visible[row] = now[row]
    else:
        visible.pop(row, None)
