"""Replicas of a history: real hubs on a simulated Postgres, whose every step is taken by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rowcast.core import codec, held
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.fill import Read
from rowcast.core.position import ORIGIN, Place
from rowcast.core.ring import Ring
from rowcast.core.stream import Stream
from rowcast.core.subscriptions import Load
from rowcast.hub import Hub
from rowcast.readback import ReadBack
from rowcast.snapshots import Group
from rowcast.testing.simulated import rule

if TYPE_CHECKING:
    from rowcast.testing.history import World

START: Place = (5, 0)


class Reader:
    """Only tells that there are snapshots: rows are read by hand."""

    timeout = 1.0

    def covers(self, topic: str) -> bool:
        """See `ports.RowReader`."""
        return topic.startswith("t:")


class Feeder(ReadBack):
    """Reads the log back when it is told to, one stream and a few entries at a time."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica.hub, None)
        self._replica = replica

    @property
    def able(self) -> bool:
        """It is."""
        return True

    def want(self, stream: Stream) -> bool:
        """Have a stream fed."""
        self._waiting[stream] = None
        return True

    def step(self) -> None:
        """Feed one of those who wait."""
        if not self._waiting:
            return
        replica = self._replica
        hub, world = replica.hub, replica.world
        stream = world.rng.choice(list(self._waiting))
        if stream.cursor < world.first:
            self._lose([stream])
        elif stream.cursor >= hub.ring.floor:
            del self._waiting[stream]
            hub.wake(stream)
        else:
            floor = hub.ring.floor
            entries = [one for item in world.database.wal for one in item.entries if stream.cursor < one.place <= floor]
            count = world.rng.randrange(1, 8)
            page = Ring(1 << 30)
            page.restart(stream.cursor)
            for entry in entries[:count]:
                if entry.kind is Kind.DATA or entry.kind is Kind.SWEEP:
                    page.append(replica.copy(entry))
            upto = entries[count - 1].place if len(entries) > count else floor
            if not stream.feed(page, upto) and (stream.pending_bytes < held.PAGE or world.rng.random() < 0.5):
                self._waiting.pop(stream, None)
            hub.wake(stream)


class Replica:
    """A hub, and how far it is in the WAL."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.hub = Hub(
            None,  # type: ignore[arg-type]  # nothing here asks the log
            [rule()],
            world.database,  # type: ignore[arg-type]  # only tells that there is one
            replica=name,
            ring_bytes=400 * world.options.ring if world.options.ring else 1 << 30,
            max_event=1 << 20,
            max_streams=1000,
            max_streams_per_user=1000,
            heartbeat=15,
            reader=Reader(),  # type: ignore[arg-type]  # only tells that there is one
        )
        self.hub.warm = True
        self.hub.patience = float("inf")
        self.hub.releases._log_time = self.log_time  # type: ignore[method-assign]
        self.feeder = Feeder(self)
        if world.options.readable:
            self.hub.readback = self.feeder
            self.hub.wire.read_back = self.feeder.want
        self.hub.handle(Batch("e", [], START, reset="start"))
        self.began = START
        """Where it last began anew."""
        self.sent = 0
        self.half: list[Entry] = []
        self.half_head = ORIGIN
        self.loads: list[Load] = []
        self.stale: list[str] = []
        self.groups: list[Group] = []
        self.reads: list[tuple[str, Read, Group]] = []

    @property
    def behind(self) -> bool:
        """Whether there is more of the WAL."""
        return bool(self.half) or self.sent < len(self.world.database.wal)

    @staticmethod
    def copy(entry: Entry) -> Entry:
        """The entry as one replica has it: what is found out about it is not the other's."""
        made = Entry(entry.kind, entry.place, entry.body, entry.topic, entry.xid, entry.key, None, entry.time)
        made.interval = entry.interval
        return made

    def log_time(self) -> int:
        """The time of the log as the replica can know it, not quite the same everywhere."""
        unread = self.half or [entry for item in self.world.database.wal[self.sent :] for entry in item.entries]
        now = unread[0].time - 1 if unread else self.world.database.now
        return now - self.world.rng.choice((0, 10_000, 80_000))

    def feed(self) -> None:
        """Give the hub the next part of the WAL: a transaction, or part of one."""
        database = self.world.database
        if self.half:
            cut = self.world.rng.randrange(1, len(self.half) + 1)
            entries, self.half = self.half[:cut], self.half[cut:]
            head = entries[-1].place if self.half else self.half_head
            copies: Sequence[Entry] = [self.copy(entry) for entry in entries]
            if self.world.options.packed:
                copies = codec.unpack(codec.encode(copies, 1 << 20))
            self.hub.handle(Batch(self.hub.epoch, copies, head))
        elif self.sent < len(database.wal):
            head, entries, epoch = database.wal[self.sent]
            self.sent += 1
            if epoch is not None:
                self._begin(epoch, head, "log_restarted")
            elif entries:
                self.half, self.half_head = list(entries), head
                self.feed()
            else:
                self.hub.handle(Batch(self.hub.epoch, [], head))
        else:
            self.hub.handle(Batch(self.hub.epoch, [], (database.lsn, 0)))

    def lose(self) -> None:
        """The log is gone for a while: what is unread until now is not got any more."""
        database = self.world.database
        epochs = [item.epoch for item in database.wal[self.sent :] if item.epoch is not None]
        self.half, self.sent = [], len(database.wal)
        database.lsn += 1
        self._begin(epochs[-1] if epochs else self.hub.epoch, (database.lsn, 0), "log_gap")

    def _begin(self, epoch: str, head: Place, reason: str) -> None:
        self.began = head
        self.hub.handle(Batch(epoch, [], head, reset=reason))

    def load(self) -> None:
        """Take a snapshot of the rule's rows, or hand one over: one at a time, as `Joins` does it."""
        joins = self.hub.joins
        for stream in list(joins._heads):
            stream.after = self.world.database.mark()
            del joins._heads[stream]
        for user in self.stale:
            if user in self.hub.users:
                joins.want(user)
        self.stale.clear()
        if self.loads:
            self.stale = joins.deliver(self.loads.pop())
        elif users := joins.claim():
            self.loads.append(self.world.database.load(users))
        self.hub.settle()

    def read(self) -> None:
        """Begin to read the topics that are wanted, or what was begun too early."""
        snapshots = self.hub.snapshots
        if group := snapshots.claim():
            self.groups.append(group)
        for group in list(self.groups):
            if not snapshots.early(self.world.database.snapshot(), list(group), self.hub.head):
                self.groups.remove(group)
                self.reads.append((self.hub.epoch, self.world.database.read(list(group)), group))

    def deliver(self) -> None:
        """Hand over the rows of topics, when the hub has come as far as they."""
        passed = [one for one in self.reads if one[1].after <= self.hub.head]
        if passed:
            self.reads.remove(one := self.world.rng.choice(passed))
            epoch, read, group = one
            if epoch == self.hub.epoch:
                self.hub.snapshots.deliver(read, group)

    def forget(self) -> None:
        """The ring lets go of what is old."""
        ring = self.hub.ring
        ring.max_entries = self.world.rng.randrange(len(ring) + 1)
        ring._bound()
        ring.max_entries = None
