"""A stream receives an entry exactly if its user was subscribed to its topic at its position.

The real hub is driven through random interleavings of a simulated Postgres, in which transactions commit
in another order than they begin, become visible some time after they were written to the WAL, and in which
snapshots are taken at any moment. An oracle that replays the whole log knows what each stream must get.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowcast.core.entry import Batch, Control, Entry, Kind, RowChange
from rowcast.core.grants import Grant
from rowcast.core.position import Place
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.stream import Stream
from rowcast.core.subscriptions import Load, UserRows
from rowcast.hub import Hub

USERS = ["ann", "bob", "eve"]
TOPICS = ["a", "b", "c"]
ROWS = range(6)


class Body(msgspec.Struct):
    number: int
    size: int = 0

    def encode(self, limit: int) -> bytes:
        return b"%d" % self.number


class NoLog:
    """The hub is driven by hand."""


def make_rule() -> RowRule:
    return RowRule.from_function("subs", "user", lambda row: row["topics"] if row["on"] else [], index=0).with_key(
        ("id",), frozenset({"id", "user", "topics", "on"})
    )


class Transaction:
    def __init__(self, xid: int) -> None:
        self.xid = xid
        self.changes: list[Entry] = []
        self.touched: set[int] = set()
        self.commit: int | None = None


class Database:
    """Rows, transactions and the WAL. Time is counted in steps; an LSN is a number of WAL records."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.rows: dict[int, dict[str, Any]] = {}
        self.visible_rows: dict[int, dict[str, Any]] = {}
        self.next_xid = 2**32 - 20  # wraps on the way
        self.lsn = 10
        self.open: list[Transaction] = []
        self.committed: list[Transaction] = []
        self.wal: list[tuple[int, list[Entry]]] = []
        self.numbers = 0

    def begin(self) -> None:
        self.open.append(Transaction(self.next_xid))
        self.next_xid += 1

    def locked(self) -> set[int]:
        return {row for tx in (*self.open, *self.committed) for row in tx.touched}

    def write(self, tx: Transaction) -> None:
        """One random change in an open transaction, of a row that nobody else has locked."""
        if self.rng.random() < 0.5:
            self.numbers += 1
            body = Body(self.numbers)
            tx.changes.append(Entry(Kind.DATA, (0, 0), body, topic=self.rng.choice(TOPICS), xid=tx.xid))
            return
        free = [row for row in ROWS if row in tx.touched or row not in self.locked()]
        if not free:
            return
        number = self.rng.choice(free)
        tx.touched.add(number)
        old = self.rows.get(number)
        new = {
            "id": number,
            "user": self.rng.choice(USERS),
            "topics": self.rng.sample(TOPICS, self.rng.randrange(3)),
            "on": self.rng.random() < 0.8,
        }
        if old is None:
            change = RowChange(0, "insert", new, None)
            self.rows[number] = new
        elif self.rng.random() < 0.3:
            change = RowChange(0, "delete", None, {"id": number})
            del self.rows[number]
        else:
            sent = dict(new)
            told = old if self.rng.random() < 0.2 else None  # REPLICA IDENTITY FULL
            if self.rng.random() < 0.2 and (told or new["user"] == old["user"]):
                # An unchanged TOASTed value. (That of a row which comes from a user who is not connected
                # is told under FULL only; without, the user's rules are read anew, which is not exact.)
                new["topics"] = old["topics"]
                del sent["topics"]
            change = RowChange(0, "update", sent, told)
            self.rows[number] = new
        tx.changes.append(Entry(Kind.ROW, (0, 0), change, xid=tx.xid))

    def commit(self, tx: Transaction) -> None:
        """Write the commit to the WAL. It is not visible yet, and its locks are held until it is."""
        self.open.remove(tx)
        self.lsn += self.rng.randrange(1, 4)
        tx.commit = self.lsn
        self.lsn += 1
        entries = [
            Entry(e.kind, (tx.commit, (i + 1) << 20), e.body, topic=e.topic, xid=tx.xid % 2**32)
            for i, e in enumerate(tx.changes)
        ]
        self.wal.append((self.lsn, entries))
        self.committed.append(tx)

    def show(self, tx: Transaction) -> None:
        """The commit becomes visible to new snapshots."""
        self.committed.remove(tx)
        for row in tx.touched:
            if row in self.rows:
                self.visible_rows[row] = self.rows[row]
            else:
                self.visible_rows.pop(row, None)

    def load(self, users: list[str]) -> Load:
        running = [tx.xid for tx in (*self.open, *self.committed)]
        snapshot = Snapshot(min(running, default=self.next_xid), self.next_xid, frozenset(running))
        read = {
            user: UserRows({0: [dict(r) for r in self.visible_rows.values() if r["user"] == user]}) for user in users
        }
        self.lsn += 1
        return Load((self.lsn, 0), read, snapshot)


class World:
    """The database, the hub, and the clients."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.database = Database(self.rng)
        self.hub = Hub(
            NoLog(),  # type: ignore[arg-type]  # driven by hand
            [make_rule()],
            self.database,  # type: ignore[arg-type]  # only tells that there is one
            replica="r",
            ring_bytes=1 << 30,
            max_event=1 << 20,
            max_streams=1000,
            max_streams_per_user=1000,
            heartbeat=15,
        )
        self.hub.warm = True
        self.hub.handle(Batch("e", [], (5, 0), reset="start"))
        self.loads: list[Load] = []
        self.stale: list[str] = []
        self.sent = 0
        self.half: list[Entry] = []
        self.half_head: Place = (0, 0)
        self.streams: list[tuple[Stream, list[bytes]]] = []

    def feed(self) -> None:
        """Give the hub the next part of the WAL: a transaction, or half of one."""
        if self.half:
            cut = self.rng.randrange(1, len(self.half) + 1)
            entries, self.half = self.half[:cut], self.half[cut:]
            self.hub.handle(Batch("e", entries, entries[-1].place if self.half else self.half_head))
        elif self.sent < len(self.database.wal):
            head, entries = self.database.wal[self.sent]
            self.sent += 1
            if entries:
                self.half, self.half_head = entries, (head, 0)
                self.feed()
            else:
                self.hub.handle(Batch("e", [], (head, 0)))
        else:
            self.hub.handle(Batch("e", [], (self.database.lsn, 0)))

    def step(self) -> None:
        db, rng = self.database, self.rng
        what = rng.randrange(11)
        if what == 0 and len(db.open) < 4:
            db.begin()
        elif what <= 3 and db.open:
            db.write(rng.choice(db.open))
        elif what == 4 and db.open:
            db.commit(rng.choice(db.open))
        elif what == 5 and db.committed:
            db.show(rng.choice(db.committed))
        elif what in (6, 7):
            self.feed()
        elif what == 8 and len(self.streams) < 6:
            self.connect()
        elif what == 9:
            self.load()
        elif what == 10 and self.streams and rng.random() < 0.3:
            stream, got = rng.choice(self.streams)
            got.append(stream.take())
            if rng.random() < 0.3:
                self.hub.drop(stream)

    def load(self) -> None:
        """Take a snapshot, or hand one over: loads run one at a time, as in Joins."""
        for user in self.stale:
            if user in self.hub.users:
                self.hub.joins.want(user)
        self.stale.clear()
        if self.loads:
            self.stale = self.hub.joins.deliver(self.loads.pop())
        elif users := self.hub.joins.claim():
            self.loads.append(self.database.load(users))

    def connect(self) -> None:
        grant = Grant(self.rng.choice(USERS), frozenset(), None, None)
        got: list[bytes] = []
        self.streams.append((self.hub.connect(grant, lambda: None), got))

    def finish(self) -> None:
        db = self.database
        while db.open or db.committed:
            for tx in list(db.open):
                db.commit(tx)
            for tx in list(db.committed):
                db.show(tx)
        for _ in range(4):
            self.load()
        while self.half or self.sent < len(db.wal):
            self.feed()
        for _ in range(6):
            self.load()
            self.feed()
        for stream, got in self.streams:
            got.append(stream.take())

    def check(self) -> int:
        """Compare each stream with the oracle. Returns how many entries were compared."""
        log = [entry for _, entries in self.database.wal for entry in entries]
        compared = 0
        for stream, got in self.streams:
            blocks = [block for data in got for block in data.split(b"\n\n") if block]
            if not blocks:
                assert stream not in self.hub.streams, "a connected stream was never started"
                continue
            fields = [dict(line.split(b": ", 1) for line in block.split(b"\n")) for block in blocks]
            assert fields[0][b"event"] == b"rowcast.ready"
            start = _place(fields[0][b"id"])
            received = [int(f[b"data"]) for f in fields if b"event" not in f]
            expected = self.oracle(log, stream.grant.user, start)
            if stream in self.hub.streams:
                assert received == expected
            else:
                assert received == expected[: len(received)]
            compared += len(received)
        return compared

    @staticmethod
    def oracle(log: list[Entry], user: str, start: Place) -> list[int]:
        """Replay the log: what a stream of the user that starts at a place must get."""
        rows: dict[int, dict[str, Any]] = {}
        expected: list[int] = []
        for entry in log:
            if entry.kind is Kind.ROW:
                change: RowChange = entry.body
                if change.action == "delete":
                    assert change.old is not None
                    del rows[change.old["id"]]
                else:
                    assert change.new is not None
                    rows[change.new["id"]] = rows.get(change.new["id"], {}) | change.new
            elif entry.place > start and any(
                entry.topic in row["topics"] and row["on"] for row in rows.values() if row["user"] == user
            ):
                expected.append(entry.body.number)
        return expected


def _place(text: bytes) -> Place:
    major, minor = text.split(b":")[1].split(b"-")
    return int(major, 16), int(minor)


def run(seed: int, steps: int) -> int:
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.finish()
    return world.check()


@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_random_interleavings(block: int) -> None:
    compared = 0
    for seed in range(block * 1000, block * 1000 + 1000):
        try:
            compared += run(seed, 150)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert compared > 1000, "the histories must have something to compare"


@settings(max_examples=100, deadline=None)
@given(st.integers(100_000, 2**40), st.integers(10, 1500))
def test_histories_of_any_length(seed: int, steps: int) -> None:
    run(seed, steps)


def test_a_disconnect_is_a_control_entry() -> None:
    world = World(1)
    told: list[tuple[str, float]] = []
    world.hub._on_disconnect = lambda user, at: told.append((user, at))
    counts: dict[str, int] = defaultdict(int)
    stream = world.hub.connect(Grant("ann", frozenset(), None, None), lambda: None)
    world.load()
    world.load()
    world.feed()
    assert b"rowcast.ready" in stream.take()
    body = Control("disconnect", "ann", 7.0)
    world.hub.handle(Batch("e", [Entry(Kind.CONTROL, (50, 1), body)], (50, 1)))
    assert b'event: rowcast.bye\ndata: {"reason":"disconnected"}' in stream.take()
    assert told == [("ann", 7.0)]
    assert world.hub.streams_count == 0
    assert not counts
