"""Snapshots on a stream: pages, what is left out of the tail, and when there is a position."""

from __future__ import annotations

from typing import Any

import msgspec

from rowcast.core import sse
from rowcast.core.entry import Entry, Kind
from rowcast.core.fill import Fill, Filter, Read, due
from rowcast.core.gains import MAX_USERS, Gains
from rowcast.core.grants import Grant
from rowcast.core.position import format_mark, parse_position
from rowcast.core.ring import Ring
from rowcast.core.snapshot import Snapshot
from rowcast.core.stream import PAGE, Stream, StreamState, Wire

SEEN, UNSEEN = 50, 100
SNAPSHOT = Snapshot(100, 100)


class Body(msgspec.Struct):
    data: dict[str, Any]
    size: int = 0

    def encode(self, limit: int) -> bytes:
        return msgspec.json.encode(self.data)


class Pages:
    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def page(self, number: int) -> bytes:
        return sse.frame(self._texts[number].encode(), event="rowcast.snapshot")


class Asked:
    """Who reads snapshots: the test."""

    def __init__(self) -> None:
        self.fills: list[Fill] = []

    def covers(self, topic: str) -> bool:
        return topic.startswith("t:")

    def want(self, stream: Stream, fill: Fill) -> None:
        self.fills.append(fill)


def entry(number: int, topic: str = "t:a", xid: int = SEEN, key: str | None = None, kind: Kind = Kind.DATA) -> Entry:
    shown = f"{topic}*" if kind is Kind.SWEEP else topic
    return Entry(kind, (number, 1), Body({"topic": shown, "n": number}), topic=topic, xid=xid, key=key)


class World:
    def __init__(self, *topics: str) -> None:
        self.wire = Wire(Ring(1 << 20), max_event=1 << 16, replica="r")
        self.wire.epoch, self.wire.head = "e", (10, 0)
        self.asked = Asked()
        self.wire.snapshots = self.asked
        self.stream = Stream(Grant("ann"), self.wire, lambda: None, snapshot=True)
        self.stream.start(frozenset({*topics, "user:ann"}), None)

    def append(self, *entries: Entry) -> None:
        for one in entries:
            self.wire.ring.append(one)
            self.wire.head = one.place

    def supply(self, after: int = 20, **pages: Pages) -> None:
        self.wire.head = max(self.wire.head, (after, 0))
        topics: dict[str, Any] = {f"t:{name}": one for name, one in pages.items()}
        self.asked.fills[-1].supply(Read(SNAPSHOT, (after, 0), topics))

    def take(self) -> list[dict[str, str]]:
        blocks = []
        while data := self.stream.take():
            blocks.extend(data.decode().split("\n\n"))
        return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks if block]


def numbers(blocks: list[dict[str, str]]) -> list[int]:
    return [msgspec.json.decode(block["data"])["n"] for block in blocks if '"n"' in block.get("data", "")]


def test_nothing_comes_before_the_rows_and_positions_say_so_before_the_join() -> None:
    world = World("t:a", "x")
    (ready,) = world.take()
    assert (ready["id"], ready["event"]) == ("e:A-0*", "rowcast.ready")
    assert msgspec.json.decode(ready["data"])["snapshot"] == ["t:a"]
    world.append(entry(11), entry(12, xid=UNSEEN), entry(13, "x"), entry(14, xid=0))
    assert world.take() == []
    assert world.stream.state is StreamState.BEHIND
    world.append(entry(25))
    world.supply(a=Pages("1", "2"))
    blocks = world.take()
    assert [block.get("data") for block in blocks[:2]] == ["1", "2"]
    assert numbers(blocks) == [12, 13, 14, 25]
    assert [block.get("id") for block in blocks] == [None, None, "e:C-1*", "e:D-1*", "e:E-1*", "e:14-0", "e:19-1"]
    assert world.stream.state is StreamState.LIVE


def test_a_newer_entry_of_a_key_that_the_rows_hold_does_not_hide_an_older_one_that_they_do_not() -> None:
    world = World("t:a")
    world.append(entry(11, xid=UNSEEN, key="k"), entry(12, xid=SEEN, key="k"))
    world.supply(a=Pages("1"))
    assert numbers(world.take()) == [11]


def test_behind_the_join_conflation_is_as_ever() -> None:
    world = World("t:a")
    world.append(entry(11, xid=UNSEEN, key="k"), entry(30, xid=UNSEEN, key="k"), entry(31, xid=UNSEEN, key="k"))
    world.supply(a=Pages("1"))
    assert numbers(world.take()) == [11, 31]


def test_a_truncate_is_addressed_to_the_topics_whose_rows_do_not_hold_it() -> None:
    world = World("t:a", "t:b")
    world.append(entry(11, "t:", kind=Kind.SWEEP))
    fill = world.asked.fills[0]
    fill.supply(Read(SNAPSHOT, (20, 0), {"t:a": Pages("1")}))
    fill.supply(Read(Snapshot(10, 10), (21, 0), {"t:b": Pages("2")}))
    world.wire.head = (21, 0)
    blocks = world.take()
    assert [msgspec.json.decode(block["data"]) for block in blocks if '"n"' in block.get("data", "")] == [
        {"topic": "t:b", "n": 11}
    ]
    assert blocks[-1] == {"id": "e:15-0"}


def test_a_gained_topic_marks_the_positions_until_the_client_has_the_rows() -> None:
    world = World("x")
    assert world.take()[0]["id"] == "e:A-0"
    world.stream.change((11, 0), frozenset({"x", "t:a", "user:ann"}))
    (told,) = world.take()
    assert (told["id"], told["event"]) == ("e:B-0*", "rowcast.subscriptions")
    world.append(entry(12, "x"), entry(13))
    world.supply(a=Pages("1"))
    assert [block.get("id") for block in world.take()] == [None, "e:C-1*", "e:14-0"]


def test_cut_off_before_the_rows_the_client_misses_nothing_of_its_other_topics() -> None:
    world = World("x")
    world.take()
    world.stream.change((11, 0), frozenset({"x", "t:a", "user:ann"}))
    world.append(entry(12, "x"), entry(13), entry(14, "x"), entry(15))
    (told,) = world.take()
    cursor = parse_position(told["id"])
    assert cursor.owed
    again = Stream(Grant("ann"), world.wire, lambda: None, snapshot=True)
    again.start(frozenset({"x", "t:a", "user:ann"}), cursor.place, anew=cursor.owed)
    world.stream = again
    world.supply(a=Pages("1"))
    blocks = world.take()
    assert blocks[0]["id"] == told["id"]
    assert msgspec.json.decode(blocks[0]["data"])["snapshot"] == ["t:a"]
    assert numbers(blocks) == [12, 14]
    assert blocks[-1] == {"id": "e:14-0"}


def test_what_is_lost_before_the_rows_are_there_is_not_sent() -> None:
    world = World("t:a", "t:b")
    world.take()
    world.stream.change((12, 0), frozenset({"t:b", "user:ann"}))
    world.supply(a=Pages("secret"), b=Pages("1"))
    blocks = world.take()
    assert [block["data"] for block in blocks if block.get("event") == "rowcast.snapshot"] == ["1"]
    assert "secret" not in str(blocks)


def test_paused_it_sends_no_rows() -> None:
    world = World("t:a")
    world.take()
    world.stream.pause((11, 0))
    world.supply(a=Pages("1"))
    assert world.take() == []
    world.stream.resume(frozenset({"user:ann"}))
    assert [block.get("event") for block in world.take()] == ["rowcast.subscriptions"]


def test_a_reset_brings_the_rows_anew() -> None:
    world = World("t:a")
    world.take()
    world.stream.pause((15, 0), reset="log_gap")
    world.stream.resume(world.stream.topics)
    world.supply(a=Pages("old"), after=12)  # of the fill before it
    (reset,) = world.take()
    assert (reset["event"], reset["id"]) == ("rowcast.reset", "e:F-0*")
    assert len(world.asked.fills) == 2
    world.supply(a=Pages("new"), after=30)
    assert [block.get("data") for block in world.take()] == ["new", None]


def test_pages_come_as_the_client_reads() -> None:
    world = World("t:a")
    world.take()
    world.supply(a=Pages(*["x" * PAGE] * 50))
    assert len(world.stream.take()) < 2 * PAGE + 200
    assert world.stream.pending_bytes == 0


def test_a_released_stream_wants_nothing_more() -> None:
    world = World("t:a")
    world.stream.release()
    assert world.stream.fill is None


def test_entries_without_a_transaction_are_always_due() -> None:
    filters = [Filter(frozenset({"t:a"}), SNAPSHOT, (20, 0))]
    assert due(entry(1, xid=0), ["t:a"], filters) is None
    assert due(entry(1, xid=SEEN), ["t:a"], filters) == ()
    assert due(entry(1, "t:b", xid=SEEN), ["t:a"], filters) is None


def hold(world: World, number: int, topic: str, xid: int = 0) -> None:
    """An entry of a route with `min_interval`, as the hub takes it: pushed at once, or held."""
    made = entry(number, topic, xid, key="k")
    made.time, made.interval = number, 1000
    world.append(made)
    world.wire.throttle.clock = world.wire.throttle.clock or 1
    pushed = world.wire.throttle.take(made)
    world.wire.mark = format_mark(world.wire.throttle.clock) if world.wire.throttle.held else ""
    if pushed and topic in world.stream.topics and world.stream.state is StreamState.LIVE:
        world.stream.push(made)


def test_what_is_held_stays_so_while_rows_are_awaited() -> None:
    """Sent before its time it would come again to a client that is cut off and resumes."""
    world = World("x")
    hold(world, 11, "x")
    hold(world, 12, "x")
    assert numbers(world.take()) == [11]
    world.wire.head = (13, 0)
    world.stream.change((13, 0), frozenset({"x", "t:a", "user:ann"}))
    (told,) = world.take()
    assert told["event"] == "rowcast.subscriptions"
    assert told["id"].startswith("e:D-0*~")
    world.wire.throttle.clock = 3000
    (held,) = world.take()
    assert numbers([held]) == [12]
    assert held["id"].startswith("e:D-0*")
    world.supply(a=Pages("1"))
    assert [block.get("data", block.get("id")) for block in world.take()] == ["1", "e:14-0"]


def test_what_is_held_and_in_the_rows_is_not_sent_after_them() -> None:
    world = World()
    hold(world, 11, "t:a", SEEN)
    hold(world, 12, "t:a", SEEN)
    world.stream.change((12, 1), frozenset({"t:a", "user:ann"}))
    hold(world, 13, "t:a", SEEN)
    hold(world, 14, "t:a", UNSEEN)
    world.supply(a=Pages("1"))
    assert numbers(world.take()) == []
    assert world.stream.state is StreamState.LIVE
    (held,) = world.wire.throttle.holding(["t:a"])
    assert held.place == (14, 1)
    assert world.stream.concerns(held)

    world = World("x")
    hold(world, 11, "t:a", SEEN)
    world.stream.change((11, 1), frozenset({"x", "t:a", "user:ann"}))
    hold(world, 12, "t:a", SEEN)
    hold(world, 13, "x")
    world.supply(a=Pages("1"))
    assert numbers(world.take()) == [13]
    (held,) = world.wire.throttle.holding(["t:a"])
    assert not world.stream.concerns(held), "the rows hold it"


def test_gains_are_known_for_many_users_and_assumed_for_the_others() -> None:
    gains = Gains()
    gains.restart((5, 0))
    gains.note(["ann"], (10, 0))
    assert gains.since("ann", (9, 0))
    assert not gains.since("ann", (10, 0))
    assert not gains.since("bob", (5, 0))
    assert gains.since("bob", (4, 0))
    gains.note((f"u{number}" for number in range(MAX_USERS)), (11, 0))
    assert gains.since("bob", (9, 0))
    gains.note(None, (20, 0))
    assert gains.since("bob", (19, 0))
