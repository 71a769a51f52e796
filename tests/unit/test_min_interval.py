"""`min_interval`: at most one entry per key and interval, the last one always, and every resume exact."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from rowcast.cache import Invalidation
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.position import Position, parse_position
from rowcast.core.ring import Ring
from rowcast.core.stream import PENDING_LIMIT, Stream, StreamState
from rowcast.core.subscriptions import TopicChange
from rowcast.hub import Hub

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


class Body:
    def __init__(self, text: str) -> None:
        self.text = text
        self.size = 100

    def encode(self, limit: int) -> bytes:
        return self.text.encode()


class World:
    """Replicas that tail one log, in simulated time."""

    def __init__(self, replicas: int = 1) -> None:
        self.now = START
        self.number = 1
        self.sent: list[tuple[int, str, str | None, str]] = []
        """(place, topic, key, what) of every entry."""
        self.hubs = [self._hub() for _ in range(replicas)]

    def _hub(self) -> Hub:
        hub = Hub(
            None,  # type: ignore[arg-type]  # nothing here asks the log
            [],
            None,
            replica="r",
            ring_bytes=1 << 26,
            max_event=1 << 20,
            max_streams=1000,
            max_streams_per_user=1000,
            heartbeat=15,
        )
        hub.releases._log_time = lambda: self.now  # type: ignore[method-assign]
        hub.handle(Batch("e", [], (1, 0), reset="start"))
        hub.warm = True
        return hub

    def send(
        self,
        topic: str = "t",
        key: str | None = "k",
        interval: int = SECOND,
        kind: Kind = Kind.DATA,
        hubs: list[Hub] | None = None,
        pad: str = "",
    ) -> int:
        self.number += 1
        self.sent.append((self.number, topic, key, kind.name))
        for hub in self.hubs if hubs is None else hubs:
            body = Body(f"<{self.number}>{topic}|{key or ''}{pad}")
            entry = Entry(kind, (self.number, 1), body, topic=topic, key=key, time=self.now, interval=interval)
            hub.handle(Batch("e", [entry], (self.number, 2)))
        return self.number

    def wait(self, seconds: float, *, release: bool = True) -> None:
        self.now += round(seconds * SECOND)
        if release:
            for hub in self.hubs:
                hub.releases.release(self.now)


class Client:
    """Keeps what it was given; `cut` loses what was given after a block, as a broken connection does."""

    def __init__(self, hub: Hub, *topics: str, last: str | None = None) -> None:
        self.topics = topics
        self.blocks: list[str] = []
        self.seen: list[int] = []
        self.ids: list[Position] = []
        self.last = last
        self.connect(hub)

    def connect(self, hub: Hub) -> None:
        self.hub = hub
        cursor = None if self.last is None else parse_position(self.last)
        self.stream: Stream = hub.connect(Grant("ann", frozenset(self.topics)), lambda: None, cursor=cursor)

    def read(self, blocks: int | None = None) -> list[int]:
        """Take what there is, or only so many blocks of it: the rest is lost with the connection."""
        data = b""
        while part := self.stream.take():
            data += part
        found = [block for block in data.decode().split("\n\n") if block]
        for block in found if blocks is None else found[:blocks]:
            self.blocks.append(block)
            if block.startswith("id: "):
                self.last = block.split("\n")[0][4:]
                self.ids.append(parse_position(self.last))
            if "data: <" in block:
                self.seen.append(int(block.split("data: <")[1].split(">")[0]))
        return self.seen

    def move(self, hub: Hub) -> None:
        self.hub.drop(self.stream)
        self.connect(hub)


def test_the_first_comes_at_once_and_the_last_at_the_end_of_the_interval() -> None:
    world = World()
    client = Client(world.hubs[0], "t")
    first = world.send()
    assert client.read() == [first]
    for _ in range(5):
        last = world.send()
        world.wait(0.01)
    assert client.read() == [first]
    world.wait(2)
    assert client.read() == [first, last]
    world.wait(10)
    assert client.read() == [first, last]
    assert client.read()[-1:] == [last]
    again = world.send()
    assert client.read() == [first, last, again]


def test_a_busy_key_comes_once_per_interval() -> None:
    world = World()
    client = Client(world.hubs[0], "t")
    for _ in range(1000):
        world.send()
        world.wait(0.01)
    world.wait(3)
    seen = client.read()
    assert 9 <= len(seen) <= 12
    assert seen[-1] == world.number
    assert seen == sorted(seen)


def test_keys_and_topics_are_on_their_own() -> None:
    world = World()
    client = Client(world.hubs[0], "t", "u")
    numbers = [world.send(topic, key) for topic in "tu" for key in "ab"]
    assert client.read() == numbers


def test_others_are_not_held_and_ids_tell_what_is() -> None:
    world = World()
    client = Client(world.hubs[0], "t", "u")
    world.send("u", None, 0)
    client.read()
    assert [position.mark for position in client.ids] == [0, 0]
    first, held = world.send(), world.send()
    other = world.send("u", None, 0)
    assert client.read()[1:] == [first, other]
    assert client.ids[-1].mark
    world.wait(3)
    last = world.send("u", None, 0)
    assert client.read()[1:] == [first, other, held, last]
    assert client.ids[-1].mark == 0
    assert client.ids == sorted(client.ids, key=lambda position: position.place)


@pytest.mark.parametrize("replica", [0, 1])
def test_what_is_held_when_a_client_breaks_is_not_lost(replica: int) -> None:
    world = World(2)
    client = Client(world.hubs[0], "t", "u")
    first, held, other = world.send(), world.send(), world.send("u", None, 0)
    client.read()
    client.move(world.hubs[replica])
    assert client.read() == [first, other]
    world.wait(3)
    assert client.read() == [first, other, held]


@pytest.mark.parametrize("replica", [0, 1])
def test_what_was_released_while_a_client_was_away_comes_once(replica: int) -> None:
    world = World(2)
    client = Client(world.hubs[0], "t", "u")
    first, held, other = world.send(), world.send(), world.send("u", None, 0)
    client.read()
    world.wait(3)
    last = world.send("u", None, 0)
    client.move(world.hubs[replica])
    assert client.read() == [first, other, held, last]
    client.move(world.hubs[1 - replica])
    assert client.read() == [first, other, held, last]


def test_what_was_released_to_it_is_not_given_again_by_a_replica_that_is_late() -> None:
    world = World(2)
    client = Client(world.hubs[0], "t")
    first, held = world.send(), world.send()
    world.wait(2, release=False)
    world.hubs[0].releases.release(world.now)
    assert client.read() == [first, held]
    client.move(world.hubs[1])
    world.wait(3)
    assert client.read() == [first, held]


def test_a_stream_that_begins_is_not_given_what_was_before() -> None:
    world = World()
    world.send()
    world.send()
    client = Client(world.hubs[0], "t")
    world.wait(3)
    assert client.read() == []


def test_a_truncate_is_not_overtaken() -> None:
    world = World()
    clients = [Client(world.hubs[0], "t:1", "u"), Client(world.hubs[0], "t:1", "u")]
    first, held = world.send("t:1"), world.send("t:1")
    clients[0].read()
    clients[1].stream.pause(world.hubs[0].head)
    truncate = world.send("t:", None, 0, Kind.SWEEP)
    assert clients[0].read() == [first, held, truncate]
    clients[1].stream.resume(clients[1].stream.topics)
    assert clients[1].read() == [first, held, truncate]
    for client in clients:
        client.move(world.hubs[0])
        world.wait(3)
        assert client.read() == [first, held, truncate]


def test_a_delete_whose_row_is_not_known_is_not_overtaken() -> None:
    world = World()
    client = Client(world.hubs[0], "t")
    first, held, delete = world.send(), world.send(), world.send("t", None)
    world.wait(3)
    assert client.read() == [first, held, delete]


def test_topics_that_go_are_given_what_is_held_and_those_that_come_are_not() -> None:
    world = World()
    hub = world.hubs[0]
    client = Client(hub, "t")
    first, held = world.send(), world.send()
    world.send("u")
    world.send("u")
    stream = client.stream
    own = stream.topics - {"t"}
    hub._reindex(stream, own | {"u"})
    stream.change(hub.head, own | {"u"})
    assert client.read() == [first, held]
    world.wait(3)
    assert client.read() == [first, held]
    last = world.send("u")
    world.wait(3)
    assert client.read() == [first, held, last]


def test_a_slow_stream_takes_along_what_is_held() -> None:
    world = World()
    client = Client(world.hubs[0], "t", "u")
    first, held = world.send(), world.send()
    others = [world.send("u", None, 0, pad="x" * 10_000) for _ in range(2 * PENDING_LIMIT // 10_000)]
    assert client.stream.state is StreamState.BEHIND
    assert client.read() == [first, *others]
    assert client.stream.state is StreamState.LIVE
    world.wait(3)
    assert client.read() == [first, *others, held]


def test_released_while_a_stream_is_behind() -> None:
    world = World()
    client = Client(world.hubs[0], "t", "u")
    first, held = world.send(), world.send()
    others = [world.send("u", None, 0, pad="x" * 10_000) for _ in range(2 * PENDING_LIMIT // 10_000)]
    world.wait(3)
    seen = client.read()
    assert sorted(seen) == [first, held, *others]
    assert client.ids == sorted(client.ids, key=lambda position: position.place)
    world.wait(3)
    assert client.read() == seen


@pytest.mark.parametrize("seed", range(int(os.environ.get("ROWCAST_ROUNDS", "150"))))
def test_random_histories(seed: int) -> None:
    """Replicas at different moments, clients that break anywhere and come back anywhere: nothing twice, no key goes
    back, the last of every key comes, and what has no interval comes exactly."""
    chance = random.Random(seed)
    world = World(3)
    clients = [Client(chance.choice(world.hubs), "t", "u", "v", "w:1") for _ in range(6)]
    for client in clients:
        client.read()
    for _ in range(400):
        what = chance.random()
        if what < 0.5:
            topic = chance.choice("tu")
            world.send(topic, chance.choice("abcd"), SECOND if topic == "t" else 300_000)
        elif what < 0.6:
            world.send("v", None, 0)
        elif what < 0.62:
            world.send("w:1", "a", 2 * SECOND)
        elif what < 0.63:
            world.send("w:", None, 0, Kind.SWEEP)
        elif what < 0.64:
            world.send("t", None, SECOND)
        elif what < 0.8:
            world.wait(chance.choice((0.01, 0.1, 0.5, 3.0)), release=False)
            for hub in world.hubs:
                hub.releases.release(world.now - chance.choice((0, 10_000, 80_000)))
        elif what < 0.9:
            chance.choice(clients).read()
        elif what < 0.95:
            client = chance.choice(clients)
            client.read(chance.randrange(6))
            client.move(chance.choice(world.hubs))
        else:
            client = chance.choice(clients)
            client.stream.pause(client.hub.head)
            if chance.random() < 0.8:
                client.stream.resume(client.stream.topics)
    for client in clients:
        client.stream.resume(client.stream.topics)
    world.wait(5)
    last: dict[Any, int] = {}
    whole = []
    for place, topic, key, _ in world.sent:
        if key is None:
            whole.append(place)
        else:
            last[topic, key] = place
    by_place = {place: (topic, key) for place, topic, key, _ in world.sent}
    for client in clients:
        seen = client.read()
        assert len(seen) == len(set(seen)), "nothing comes twice"
        assert [place for place in seen if by_place[place][1] is None] == whole
        assert set(last.values()) <= set(seen)
        for name in last:
            of_key = [place for place in seen if by_place[place] == name]
            assert of_key == sorted(of_key)
        assert [p.place for p in client.ids] == sorted(p.place for p in client.ids)
        # What must not be overtaken is not.
        for barrier in whole:
            topic = by_place[barrier][0]
            after = seen[seen.index(barrier) :]
            if topic != "v":
                prefix = topic if topic == "t" else "w:"
                assert all(place >= barrier for place in after if by_place[place][0].startswith(prefix))


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_sent_because_its_topic_goes_waits_for_the_cache_too(behind: bool) -> None:
    world = World()
    (hub,) = world.hubs
    client = Client(hub, "other")
    hub._change(TopicChange("ann", ["t"]), hub.head)
    world.send()
    held = world.send()
    client.read()
    if behind:
        client.stream.lag()
    hub.cache = Invalidation(None, [], hub.wake)  # type: ignore[arg-type]  # it deletes nothing here
    hub._change(TopicChange("ann", []), hub.head)
    assert held not in client.read(), "the user's keys were not deleted yet"
    client.stream.unhold()
    assert client.read().count(held) == 1


@pytest.mark.parametrize("blocks", range(1, 7))
def test_what_is_read_from_the_log_after_it_was_released_comes_once(blocks: int) -> None:
    world = World(2)
    hub, other = world.hubs
    hub.wire.read_back = lambda stream: True
    client = Client(hub, "t", "u")
    leads = [world.send(key=key) for key in "kl"]
    client.read()
    client.stream.lag()
    numbers = [world.send(key="k"), world.send(key="l"), world.send("u", None, 0)]
    page = Ring(1 << 20)
    page.restart((leads[-1], 2))
    for entry in [hub.ring.entry(seq) for seq in range(hub.ring.end - 3, hub.ring.end)]:
        read = (entry.kind, entry.place, entry.body, entry.topic, 0, entry.key, None, entry.time, entry.interval)
        page.append(Entry(*read))
    hub.ring.max_entries = 0
    hub.ring._bound()
    due = hub.wire.throttle.next_due
    assert due is not None
    for one in world.hubs:
        one.releases.release(due)
    assert len(hub.wire.throttle.holding("t")) == 1, "the other one is due later"
    client.stream.feed(page, (numbers[-1], 2))
    client.read(blocks)
    client.move(other)
    client.read()
    world.wait(5)
    assert sorted(client.read()) == [*leads, *numbers]


class Covered:
    """There are snapshots of every topic, some time."""

    def covers(self, topic: str) -> bool:
        return True

    def want(self, stream: Stream, fill: Any) -> None:
        pass


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("snapshot", [False, True])
def test_what_is_sent_because_its_topic_goes_says_that_it_is_gone(behind: bool, snapshot: bool) -> None:
    world = World()
    (hub,) = world.hubs
    client = Client(hub, "t")
    client.read()
    stream = client.stream
    world.send()
    held = world.send()
    hub.wire.snapshots = Covered()
    stream.snapshot = snapshot
    if behind:
        stream.lag()
    else:
        client.read()
    world.send("v", None, 0)  # so that the head is at another place
    own = stream.topics - {"t"} | {"u"}
    hub._reindex(stream, own)
    stream.change(hub.head, own)
    client.read()
    (block,) = [block for block in client.blocks if f"<{held}>" in block]
    position = parse_position(block.split("\n")[0][4:])
    assert position.place == hub.head, "whoever comes back from there is not owed it"
    assert position.owed == snapshot, "whoever comes back from there lacks the rows of the new topic"


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("blocks", range(6))
def test_of_several_that_are_sent_because_their_topics_go_none_is_lost(behind: bool, blocks: int) -> None:
    world = World()
    (hub,) = world.hubs
    client = Client(hub, "t")
    client.read()
    leads = [world.send(key=key) for key in "klm"]
    if behind:
        client.read()
        client.stream.lag()
    numbers = [world.send(key=key) for key in "klm"]
    world.send("v", None, 0)
    client.read()
    if behind:
        client.stream.lag()
    own = client.stream.topics - {"t"}
    hub._reindex(client.stream, own)
    client.stream.change(hub.head, own)
    client.read(blocks)
    lost = {*leads, *numbers} - set(client.seen)
    assert client.last is not None
    # Who comes back from the place at which the topic went is owed nothing of it any more.
    assert not lost or parse_position(client.last).place < hub.head
