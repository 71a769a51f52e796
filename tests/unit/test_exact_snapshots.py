"""A snapshot and its tail fit without a seam: what a client makes of them is the table, at every position.

The real hub is driven through random interleavings of a simulated Postgres, in which transactions commit in another
order than they begin, become visible some time after they were written to the WAL, and in which rows are read at any
moment. Clients are slow, are cut off at any block, come back with what position they have, gain and lose topics, and
fall out of a small ring. Whenever a client holds a position, its tables must be what a replay of the WAL says.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowcast.core import sse
from rowcast.core.entry import Batch, Entry, Kind, RowChange
from rowcast.core.fill import Read
from rowcast.core.grants import Grant
from rowcast.core.position import Place, parse_position
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.stream import Stream, StreamState
from rowcast.core.subscriptions import Load, UserRows
from rowcast.hub import Hub
from rowcast.snapshots import Group

USERS = ["ann", "bob"]
TOPICS = ["t:a", "t:b", "x:c"]
"""Of those that begin with t: there are snapshots."""
ROWS = range(5)
SUBS = range(3)


class Body(msgspec.Struct):
    data: dict[str, Any]
    size: int = 0

    def encode(self, limit: int) -> bytes:
        return msgspec.json.encode(self.data)


class Transaction:
    def __init__(self, xid: int) -> None:
        self.xid = xid
        self.entries: list[Entry] = []
        self.touched: set[tuple[str, int]] = set()


Data = dict[int, tuple[str, int]]
"""Row → (topic, version)."""


class Database:
    """Two tables, transactions and the WAL. Time is counted in steps; an LSN is a number of WAL records."""

    def __init__(self, rng: random.Random, *, conflate: bool) -> None:
        self.rng = rng
        self.conflate = conflate
        self.data: Data = {}
        self.subs: dict[int, dict[str, Any]] = {}
        self.visible_data: Data = {}
        self.visible_subs: dict[int, dict[str, Any]] = {}
        self.next_xid = 2**32 - 20  # wraps on the way
        self.lsn = 10
        self.open: list[Transaction] = []
        self.committed: list[Transaction] = []
        self.wal: list[tuple[int, list[Entry]]] = []
        self.numbers = 0

    def begin(self) -> None:
        self.open.append(Transaction(self.next_xid))
        self.next_xid += 1
        if self.next_xid % 2**32 < 3:  # Postgres gives these to nobody
            self.next_xid += 3

    def write(self, tx: Transaction) -> None:
        """One random change in an open transaction, of a row that nobody else has locked."""
        locked = {place for other in (*self.open, *self.committed) if other is not tx for place in other.touched}
        what = self.rng.random()
        self.numbers += 1
        if what < 0.1:
            topic = self.rng.choice(TOPICS)
            tx.entries.append(self._entry(Kind.DATA, topic, {"topic": topic, "number": self.numbers}, 0))
        elif what < 0.75:
            row = self.rng.choice(ROWS)
            if ("data", row) not in locked:
                tx.touched.add(("data", row))
                self._write_row(tx, row)
        elif what < 0.78:
            if not any(table == "data" for table, _ in locked):
                tx.touched |= {("data", row) for row in ROWS}
                self.data = {row: held for row, held in self.data.items() if held[0] == "x:c"}
                tx.entries.append(self._entry(Kind.SWEEP, "t:", {"topic": "t:*", "action": "truncate"}, tx.xid))
        else:
            row = self.rng.choice(SUBS)
            if ("subs", row) not in locked:
                tx.touched.add(("subs", row))
                self._write_sub(tx, row)

    def _write_row(self, tx: Transaction, row: int) -> None:
        old = self.data.get(row)
        new = None if old and self.rng.random() < 0.3 else (self.rng.choice(TOPICS), self.numbers)
        if old is not None and (new is None or new[0] != old[0]):
            self._tell(tx, "delete", row, *old)
        if new is not None:
            self._tell(tx, "upsert", row, *new)
            self.data[row] = new
        else:
            self.data.pop(row, None)

    def _tell(self, tx: Transaction, action: str, row: int, topic: str, version: int) -> None:
        body = {"topic": topic, "action": action, "row": row, "version": version}
        xid = tx.xid if topic.startswith("t:") else 0
        tx.entries.append(self._entry(Kind.DATA, topic, body, xid, key=f"{row}" if self.conflate else None))

    def _write_sub(self, tx: Transaction, row: int) -> None:
        old = self.subs.get(row)
        if old is not None and self.rng.random() < 0.3:
            change = RowChange(0, "delete", None, {"id": row})
            del self.subs[row]
        else:
            topics = self.rng.sample(TOPICS, self.rng.randrange(3))
            new = {"id": row, "user": self.rng.choice(USERS), "topics": topics}
            change = RowChange(0, "update" if old else "insert", new, None)
            self.subs[row] = new
        tx.entries.append(Entry(Kind.ROW, (0, 0), change, xid=tx.xid % 2**32))

    @staticmethod
    def _entry(kind: Kind, topic: str, data: dict[str, Any], xid: int, key: str | None = None) -> Entry:
        return Entry(kind, (0, 0), Body(data), topic=topic, xid=xid % 2**32, key=key)

    def commit(self, tx: Transaction) -> None:
        """Write the commit to the WAL. It is not visible yet, and its locks are held until it is."""
        self.open.remove(tx)
        self.lsn += self.rng.randrange(1, 4)
        for index, entry in enumerate(tx.entries):
            entry.place = (self.lsn, (index + 1) << 20)
        self.lsn += 1
        self.wal.append((self.lsn, tx.entries))
        self.committed.append(tx)

    def show(self, tx: Transaction) -> None:
        """The commit becomes visible to new snapshots."""
        self.committed.remove(tx)
        for table, row in tx.touched:
            now, visible = (self.data, self.visible_data) if table == "data" else (self.subs, self.visible_subs)
            if row in now:
                visible[row] = now[row]  # type: ignore[index, assignment]
            else:
                visible.pop(row, None)

    def snapshot(self) -> Snapshot:
        running = [tx.xid for tx in (*self.open, *self.committed)]
        return Snapshot(min(running, default=self.next_xid), self.next_xid, frozenset(running))

    def load(self, users: list[str]) -> Load:
        read = {
            user: UserRows({0: [dict(row) for row in self.visible_subs.values() if row["user"] == user]})
            for user in users
        }
        self.lsn += 1
        return Load((self.lsn, 0), read, self.snapshot())

    def read(self, topics: list[str]) -> Read:
        snapshot = self.snapshot()
        self.lsn += 1
        pages = {topic: Pages(topic, self.visible_data, self.rng.randrange(1, 4)) for topic in topics}
        return Read(snapshot, (self.lsn, 0), pages)  # type: ignore[arg-type]  # it has what is needed


class Pages:
    def __init__(self, topic: str, data: Data, size: int) -> None:
        rows = [(row, version) for row, (on, version) in data.items() if on == topic]
        parts = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
        self._blocks = [
            {"topic": topic, "rows": part, "first": i == 0, "last": i == len(parts) - 1} for i, part in enumerate(parts)
        ]

    def __len__(self) -> int:
        return len(self._blocks)

    def page(self, number: int) -> bytes:
        return sse.frame(msgspec.json.encode(self._blocks[number]), event="rowcast.snapshot")


class Reader:
    """Only tells that there is one: it is driven by hand."""

    timeout = 1.0

    def covers(self, topic: str) -> bool:
        return topic.startswith("t:")


class Oracle:
    """What the WAL says."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def tables(self, place: Place) -> dict[str, dict[int, int]]:
        """The rows of each topic at a place."""
        tables: dict[str, dict[int, int]] = {topic: {} for topic in TOPICS}
        for entry in self._entries:
            if entry.place > place:
                break
            if entry.kind is Kind.SWEEP:
                for topic in TOPICS:
                    if topic.startswith(entry.topic):
                        tables[topic].clear()
            elif entry.kind is Kind.DATA and "row" in entry.body.data:
                event = entry.body.data
                if event["action"] == "delete":
                    del tables[event["topic"]][event["row"]]
                else:
                    tables[event["topic"]][event["row"]] = event["version"]
        return tables

    def died(self, topic: str, row: int, version: int) -> Place:
        """The place from which on a row was not on a topic as it was."""
        there = False
        for entry in self._entries:
            if entry.kind is Kind.SWEEP and there and topic.startswith(entry.topic):
                return entry.place
            if entry.kind is Kind.DATA and entry.topic == topic and entry.body.data.get("row") == row:
                event = entry.body.data
                if there:
                    return entry.place
                there = event["action"] == "upsert" and event["version"] == version
        return (2**40, 0)

    def since(self, user: str, topic: str, place: Place) -> Place | None:
        """Since when the user has a topic that they have at a place; None when they have not."""
        rows: dict[int, dict[str, Any]] = {}
        since: Place | None = None
        for entry in self._entries:
            if entry.place > place:
                break
            if entry.kind is Kind.ROW:
                change: RowChange = entry.body
                if change.new is None:
                    assert change.old is not None
                    del rows[change.old["id"]]
                else:
                    rows[change.new["id"]] = change.new
                has = any(row["user"] == user and topic in row["topics"] for row in rows.values())
                since = (since or entry.place) if has else None
        return since


class Client:
    """What a client makes of its streams."""

    def __init__(self, world: World, user: str) -> None:
        self.world = world
        self.user = user
        self.stream: Stream | None = None
        self.position = ""
        self.topics: set[str] = set()
        self.tables: dict[str, dict[int, int]] = {}
        self.complete: set[str] = set()
        self.numbers: set[int] = set()
        self.checks = 0
        self._paging = False
        self._head: Place = (0, 0)
        """Where the hub was when the first page of a fill came."""
        self.connect()

    def connect(self) -> None:
        cursor = parse_position(self.position) if self.position else None
        self.stream = self.world.hub.connect(Grant(self.user), lambda: None, cursor=cursor, snapshot=True)

    def cut(self) -> None:
        assert self.stream is not None
        self.world.hub.drop(self.stream)
        self.stream = None

    def take(self, *, cut: bool = False) -> None:
        """Read what there is; `cut`: the connection breaks somewhere in it."""
        assert self.stream is not None
        data = self.stream.take()
        blocks = [block for block in data.split(b"\n\n") if block and not block.startswith(b":")]
        if cut:
            blocks = blocks[: self.world.rng.randrange(len(blocks) + 1)]
        for block in blocks:
            self._block(dict(line.split(b": ", 1) for line in block.split(b"\n")))
        if cut:
            self.cut()
        elif self.position and self.stream.state is StreamState.LIVE:
            self.check()

    def _block(self, fields: dict[bytes, bytes]) -> None:
        if b"data" in fields:
            self._event(fields.get(b"event", b"message").decode(), msgspec.json.decode(fields[b"data"]))
        if b"id" in fields:
            self.position = fields[b"id"].decode()
            # In the middle of a conflated catch-up an older entry may have been left out for a newer one to come.
            if not self.world.database.conflate:
                self.check()

    def _event(self, name: str, data: dict[str, Any]) -> None:
        self._paging = self._paging and name == "rowcast.snapshot"
        if name in ("rowcast.ready", "rowcast.subscriptions", "rowcast.reset"):
            self.topics = set(data["topics"])
            for topic in self.tables.keys() - self.topics:
                del self.tables[topic]
                self.complete.discard(topic)
            self.complete -= set(data["snapshot"])
        elif name == "rowcast.snapshot":
            self._page(data)
            self._paging = True
        elif "number" in data:
            assert data["number"] not in self.numbers, "a message came twice"
            self.numbers.add(data["number"])
        elif data["topic"] in self.complete or data.get("action") == "truncate":
            self._change(data)

    def _page(self, page: dict[str, Any]) -> None:
        topic = page["topic"]
        if not self._paging:
            self._head = self.world.hub.head
        since = self.world.oracle().since(self.user, topic, self._head)
        assert since is not None, "a snapshot of a topic that the user has not"
        rows = {} if page["first"] else self.tables[topic]
        for row, version in page["rows"]:
            assert row not in rows
            rows[row] = version
            assert self.world.oracle().died(topic, row, version) > since, "a row that was not there for the user"
        self.tables[topic] = rows
        if page["last"]:
            self.complete.add(topic)

    def _change(self, event: dict[str, Any]) -> None:
        if event["action"] == "truncate":
            for topic, rows in self.tables.items():
                if topic.startswith(event["topic"].removesuffix("*")):
                    rows.clear()
            return
        rows = self.tables[event["topic"]]
        row = event["row"]
        conflated = self.world.database.conflate
        if event["action"] == "upsert":
            assert row not in rows or event["version"] > rows[row], "an older row, or one twice"
            rows[row] = event["version"]
        elif not conflated or row in rows:
            assert rows[row] == event["version"] or conflated, "a delete of another row"
            del rows[row]

    def check(self) -> None:
        """Whoever holds a position has everything up to there, rows included unless the position says otherwise."""
        place = parse_position(self.position).place
        if parse_position(self.position).owed:
            return
        tables = self.world.oracle().tables(place)
        for topic in self.topics - {"x:c"}:
            if topic in self.complete:
                assert self.tables[topic] == tables[topic], f"{topic} at {self.position}"
            else:
                # Lost before its rows could be read: the client is about to be told.
                since = self.world.oracle().since(self.user, topic, self.world.hub.head)
                assert since is None or since > place, f"a position before the snapshot of {topic} is whole"
        self.checks += 1


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.database = Database(self.rng, conflate=seed % 4 == 0)
        self.hub = Hub(
            None,  # type: ignore[arg-type]  # driven by hand
            [
                RowRule.from_function("subs", "user", lambda row: row["topics"], index=0).with_key(
                    ("id",), frozenset({"id", "user", "topics"})
                )
            ],
            self.database,  # type: ignore[arg-type]  # only tells that there is one
            replica="r",
            ring_bytes=(1 << 30) if seed % 3 else 8000,
            max_event=1 << 20,
            max_streams=1000,
            max_streams_per_user=1000,
            heartbeat=15,
            reader=Reader(),  # type: ignore[arg-type]  # only tells that there is one
        )
        self.hub.warm = True
        self.hub.handle(Batch("e", [], (5, 0), reset="start"))
        self.loads: list[Load] = []
        self.stale: list[str] = []
        self.groups: list[Group] = []
        self.reads: list[tuple[Read, Group]] = []
        self.sent = 0
        self.half: list[Entry] = []
        self.half_head: Place = (0, 0)
        self.clients: list[Client] = []
        self._oracle: Oracle | None = None
        self._length = -1

    def oracle(self) -> Oracle:
        if self._length != len(self.database.wal):
            self._length = len(self.database.wal)
            self._oracle = Oracle([entry for _, entries in self.database.wal for entry in entries])
        assert self._oracle is not None
        return self._oracle

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
                self.half, self.half_head = list(entries), (head, 0)
                self.feed()
            else:
                self.hub.handle(Batch("e", [], (head, 0)))
        else:
            self.hub.handle(Batch("e", [], (self.database.lsn, 0)))

    def load(self) -> None:
        for user in self.stale:
            if user in self.hub.users:
                self.hub.joins.want(user)
        self.stale.clear()
        if self.loads:
            self.stale = self.hub.joins.deliver(self.loads.pop())
        elif users := self.hub.joins.claim():
            self.loads.append(self.database.load(users))

    def read(self) -> None:
        """Begin to read what is wanted, or what was begun too early."""
        if group := self.hub.snapshots.claim():
            self.groups.append(group)
        for group in list(self.groups):
            if not self.hub.snapshots.early(self.database.snapshot(), list(group), self.hub.head):
                self.groups.remove(group)
                self.reads.append((self.database.read(list(group)), group))

    def deliver(self) -> None:
        passed = [one for one in self.reads if one[0].after <= self.hub.head]
        if passed:
            read, group = self.rng.choice(passed)
            self.reads.remove((read, group))
            self.hub.snapshots.deliver(read, group)

    def step(self) -> None:
        db, rng = self.database, self.rng
        what = rng.randrange(16)
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
        elif what == 8 and len(self.clients) < 3:
            self.clients.append(Client(self, rng.choice(USERS)))
        elif what == 9:
            self.load()
        elif what in (10, 11):
            self.read()
        elif what == 12:
            self.deliver()
        elif self.clients:
            client = rng.choice(self.clients)
            if client.stream is None:
                client.connect()
            else:
                client.take(cut=rng.random() < 0.15)

    def finish(self) -> int:
        db = self.database
        while db.open or db.committed:
            for tx in list(db.open):
                db.commit(tx)
            for tx in list(db.committed):
                db.show(tx)
        for client in self.clients:
            if client.stream is None:
                client.connect()
        for _ in range(30):
            self.load()
            self.read()
            while self.half or self.sent < len(db.wal):
                self.feed()
            self.feed()
            self.deliver()
            for client in self.clients:
                client.take()
        for client in self.clients:
            assert client.stream is not None
            client.stream.beat()
            client.take()
            client.stream.beat()
            client.take()
            assert client.position, "a stream never held a position"
            assert self.hub.subscriptions.topics(client.user) == client.topics
            client.check()
        return sum(client.checks for client in self.clients)


def run(seed: int, steps: int) -> int:
    world = World(seed)
    for _ in range(steps):
        world.step()
    return world.finish()


@pytest.mark.parametrize("block", range(4))
def test_a_thousand_random_interleavings(block: int) -> None:
    checks = 0
    for seed in range(block * 250, block * 250 + 250):
        try:
            checks += run(seed, 400)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert checks > 2000, "there must be something to check"


@settings(max_examples=30, deadline=None)
@given(st.integers(100_000, 2**40), st.integers(10, 2000))
def test_histories_of_any_length(seed: int, steps: int) -> None:
    run(seed, steps)
