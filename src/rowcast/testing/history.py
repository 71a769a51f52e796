"""Histories: replicas with real hubs on a simulated Postgres, driven by hand, step by step.

Whoever drives a `World` decides what happens next: a transaction writes, commits or becomes visible, a replica reads
on in the WAL, reads rows of rules or topics, forgets part of its ring, loses the log, releases what `min_interval`
holds; a client reads, stalls, is cut off, comes back. `settle` compares each client with the `Model`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rowcast.core.grants import Grant
from rowcast.testing.by_hand import START, Replica
from rowcast.testing.model import Model
from rowcast.testing.simulated import TOPICS, USERS, Database, Options
from rowcast.testing.viewer import Viewer

SECOND = 1_000_000
MAX_CLIENTS = 4


class World:
    """See the module's docstring."""

    def __init__(self, rng: random.Random, options: Options, replicas: int = 2) -> None:
        self.rng = rng
        self.options = options
        self.database = Database(rng, options)
        self.first = START
        """Everything above it can be read back."""
        self.model = Model()
        self._modelled = 0
        self.restarts = 0
        self.replicas = [Replica(self, f"r{i}") for i in range(replicas)]
        self.clients: list[Viewer] = []
        self.checks = 0

    # What can happen: where it can't, nothing does.

    def begin(self) -> None:
        """A transaction begins."""
        if len(self.database.open) < 4:
            self.database.begin()

    def write(self) -> None:
        """A transaction writes."""
        if self.database.open:
            self.database.write(self.rng.choice(self.database.open))

    def commit(self) -> None:
        """A transaction commits."""
        if self.database.open:
            self.database.commit(self.rng.choice(self.database.open))
            self._model()

    def show(self) -> None:
        """A commit becomes visible."""
        if self.database.committed:
            self.database.show(self.rng.choice(self.database.committed))

    def wait(self) -> None:
        """Time passes."""
        self.database.now += round(self.rng.choice((0.01, 0.1, 0.5, 3.0)) * SECOND)

    def restart_log(self) -> None:
        """The log begins anew, for all."""
        self.restarts += 1
        self.database.restart(f"e{self.restarts}")
        self._model()
        self.first = self.database.wal[-1].head

    def trim_log(self) -> None:
        """The log lets go of what is old."""
        if self.database.wal and self.options.readable:
            self.first = max(self.first, self.rng.choice(self.database.wal).head)

    def feed(self) -> None:
        """A replica reads on in the WAL."""
        self._at(Replica.feed)

    def load(self) -> None:
        """A replica goes on reading the users' rows."""
        self._at(Replica.load)

    def read(self) -> None:
        """A replica goes on reading rows of topics."""
        self._at(Replica.read)

    def deliver(self) -> None:
        """A replica hands over rows of topics."""
        self._at(Replica.deliver)

    def release(self) -> None:
        """A replica sends what is due."""
        self._at(lambda replica: replica.hub.releases.release(replica.log_time()))

    def read_back(self) -> None:
        """A replica reads the log back."""
        self._at(lambda replica: replica.feeder.step())

    def forget(self) -> None:
        """A replica's ring lets go of what is old."""
        self._at(Replica.forget)

    def lose_log(self) -> None:
        """A replica misses part of the log. (With `min_interval` it takes two intervals until replicas agree again.)"""
        if not self.options.interval:
            self._at(Replica.lose)

    def connect(self) -> None:
        """A new client, or one that was away, connects to any replica."""
        if (away := [client for client in self.clients if client.stream is None]) and self.rng.random() < 0.8:
            self.rng.choice(away).connect(self.rng.choice(self.replicas))
        elif len(self.clients) < MAX_CLIENTS:
            narrow = frozenset(self.rng.sample(TOPICS, 3)) if self.rng.random() < 0.2 else None
            claims = frozenset({"x:d"}) if self.rng.random() < 0.1 else frozenset[str]()
            grant = Grant(self.rng.choice(USERS), claims)
            client = Viewer(self.model, self.options, grant, narrow, snapshot=self.rng.random() < 0.6)
            self.clients.append(client)
            client.connect(self.rng.choice(self.replicas))
        self._started()

    def take(self) -> None:
        """A client reads what there is for it."""
        self._some(Viewer.take)

    def cut(self) -> None:
        """A client's connection breaks, somewhere in what it is sent."""
        self._some(lambda client: client.cut(self.rng))

    def back(self) -> None:
        """A client forgets what it got last, and comes back as it was before."""
        self._some(lambda client: client.back())

    def keep(self) -> None:
        """A client writes down what it has, for `back`."""
        self._some(lambda client: client.keep())

    def stall(self) -> None:
        """A client's transport is full."""
        self._some(lambda client: client.replica.hub.lag(client.the_stream))

    def beat(self) -> None:
        """A heartbeat."""
        self._some(lambda client: client.the_stream.beat())

    def end(self) -> None:
        """A stream is ended by its replica."""
        self._some(lambda client: client.replica.hub.end(client.the_stream, "draining"))

    # At rest

    def settle(self) -> None:
        """Let everything come to rest, and compare."""
        database = self.database
        while database.open or database.committed:
            for tx in list(database.open):
                database.commit(tx)
            for tx in list(database.committed):
                database.show(tx)
        self._model()
        database.now += 10 * SECOND
        for _ in range(200):
            for client in self.clients:
                if client.stream is None:
                    client.connect(self.rng.choice(self.replicas))
            for replica in self.replicas:
                while replica.behind:
                    self._do(replica, Replica.feed)
                for action in (Replica.load, Replica.read, Replica.feed, Replica.deliver):
                    self._do(replica, action)
                for _ in range(len(replica.feeder)):
                    replica.feeder.step()
                replica.hub.releases.release(database.now)
            busy = [client.take() for client in self.clients]
            if not any(busy) and all(client.settled for client in self.clients):
                break
        else:
            raise AssertionError("a stream is never live")
        for client in self.clients:
            client.the_stream.beat()
            client.take()
            client.at_rest(client.replica.hub.head)
            self.checks += client.checks
            client.checks = 0

    # Inside

    def _at(self, action: Callable[[Replica], None]) -> None:
        self._do(self.rng.choice(self.replicas), action)

    def _do(self, replica: Replica, action: Callable[[Replica], None]) -> None:
        action(replica)
        self._started()

    def _some(self, action: Callable[[Viewer], object]) -> None:
        if open_ := [client for client in self.clients if client.stream is not None]:
            action(self.rng.choice(open_))

    def _started(self) -> None:
        for client in self.clients:
            client.look()

    def _model(self) -> None:
        for item in self.database.wal[self._modelled :]:
            for entry in item.entries:
                self.model.add(entry)
        self._modelled = len(self.database.wal)
