"""The state machine of a stream, driven by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rowcast.core.entry import Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.position import Place
from rowcast.core.ring import Ring
from rowcast.core.stream import MAX_TURNS, PENDING_LIMIT, Stream, StreamState, Wire

OWN = "user:ann"


class Body(msgspec.Struct):
    text: str
    size: int = 100

    def encode(self, limit: int) -> bytes:
        return self.text.encode()


class Desk:
    """A stream with its ring, as the hub would drive them."""

    def __init__(self, *, narrow: frozenset[str] | None = None, max_entries: int | None = None) -> None:
        self.wire = Wire(Ring(1 << 30, max_entries), max_event=1 << 20, replica="r1")
        self.wire.epoch = "e"
        self.woken = 0
        self.stream = Stream(Grant("ann", frozenset(), None, None), self.wire, self.wake, narrow=narrow)

    def wake(self) -> None:
        self.woken += 1

    def start(self, *topics: str, cursor: Place | None = None, reset: str | None = None) -> None:
        self.stream.start(self.stream.effective(topics), cursor, reset)

    def send(self, number: int, topic: str = "a", text: str | None = None) -> None:
        entry = Entry(Kind.DATA, (number, 1), Body(text or f"{topic}{number}"), topic=topic)
        self.wire.ring.append(entry)
        if topic in self.stream.topics and self.stream.state is StreamState.LIVE:
            self.stream.push(entry)
        self.wire.head = entry.place
        self.stream.bound()

    def take(self) -> list[dict[str, Any]]:
        """What the client gets, by fields; data that is an object is parsed."""
        events = []
        for block in self.stream.take().decode().split("\n\n"):
            if block:
                fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if fields.get("data", "").startswith("{"):
                    fields["data"] = msgspec.json.decode(fields["data"])
                events.append(fields)
        return events

    def data(self) -> list[str]:
        return [event.get("event") or event["data"] for event in self.take() if "data" in event]


def test_ready_tells_position_topics_and_replica() -> None:
    desk = Desk()
    desk.wire.head = (10, 0)
    desk.start("b", "a")
    assert desk.take() == [
        {
            "id": "e:A-0",
            "event": "rowcast.ready",
            "data": {"user": "ann", "topics": ["a", "b"], "position": "e:A-0", "replica": "r1"},
        }
    ]
    assert desk.stream.topics == {"a", "b", OWN}


def test_live_entries_come_in_order_with_ids() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.send(1)
    desk.send(2, "b")
    desk.send(3)
    assert desk.take() == [{"id": "e:1-1", "data": "a1"}, {"id": "e:3-1", "data": "a3"}]
    assert desk.take() == []


def test_narrowing_holds_for_all_topics_and_for_the_own_one() -> None:
    desk = Desk(narrow=frozenset({"a", "z"}))
    desk.start("a", "b")
    assert desk.stream.topics == {"a"}
    desk.take()
    desk.stream.change((1, 0), desk.stream.effective(["a", "b", "c"]))
    assert desk.take() == [], "nothing that it sees has changed"
    desk.stream.change((2, 0), desk.stream.effective(["z", "b"]))
    assert desk.take()[0]["data"] == {"added": ["z"], "removed": ["a"], "topics": ["z"]}


def test_resumes_from_a_cursor_and_turns_live() -> None:
    desk = Desk()
    for number in range(1, 6):
        desk.send(number)
    desk.start("a", cursor=(2, 1))
    assert desk.data() == ["rowcast.ready", "a3", "a4", "a5"]
    assert desk.stream.state is StreamState.LIVE
    desk.send(6)
    assert desk.data() == ["a6"]


def test_a_client_that_does_not_read_is_bounded_and_catches_up() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    sent = [f"{number}:" + "x" * 1000 for number in range(1, 2001)]
    for number, text in enumerate(sent, 1):
        desk.send(number, text=text)
        assert desk.stream.pending_bytes < PENDING_LIMIT + 2000
    assert desk.stream.state is StreamState.BEHIND
    got: list[str] = []
    while page := desk.data():
        got.extend(page)
        if len(got) == 1000:
            desk.send(5000, text="late")
    assert got == sent + (["late"] if "late" in got else [])
    assert desk.stream.state is StreamState.LIVE


def test_topics_change_at_their_place_also_while_behind() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.send(1, text="x" * (PENDING_LIMIT + 1))
    assert desk.stream.state is StreamState.BEHIND
    desk.send(2, "a")
    desk.send(3, "b")
    desk.stream.change((4, 0), desk.stream.effective(["b"]))
    desk.send(5, "a")
    desk.send(6, "b")
    desk.stream.change((7, 0), desk.stream.effective(["a"]))
    desk.send(8, "a")
    desk.send(9, "b")
    desk.take()
    assert desk.data() == ["a2", "rowcast.subscriptions", "b6", "rowcast.subscriptions", "a8"]
    desk.send(10, "a")
    assert desk.data() == ["a10"]


def test_a_pause_holds_back_what_comes_after_it() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.send(1)
    desk.stream.pause((2, 0))
    desk.send(3, "a")
    desk.send(4, "b")
    assert desk.data() == ["a1"]
    assert desk.data() == []
    desk.stream.resume(desk.stream.effective(["b"]))
    assert desk.data() == ["rowcast.subscriptions", "b4"]
    assert desk.stream.state is StreamState.LIVE


def test_a_pause_that_changes_nothing_is_silent_unless_it_was_asked_for() -> None:
    for tell, expected in ((False, []), (True, ["rowcast.subscriptions"])):
        desk = Desk()
        desk.start("a")
        desk.take()
        desk.stream.pause((2, 0))
        desk.stream.resume(desk.stream.effective(["a"]), tell=tell)
        assert desk.data() == expected


def test_missed_entries_that_are_gone_are_a_reset() -> None:
    desk = Desk(max_entries=10)
    desk.start("a")
    desk.take()
    desk.send(1, text="x" * (PENDING_LIMIT + 1))
    for number in range(2, 100):
        desk.send(number)
    desk.take()
    (event,) = desk.take()
    assert event["event"] == "rowcast.reset"
    assert event["id"] == "e:63-1"
    assert event["data"] == {"reason": "position_expired", "position": "e:63-1", "topics": ["a"]}
    desk.send(100)
    assert desk.data() == ["a100"]


def test_a_gap_in_the_log_is_one_reset_where_the_topics_are_known() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.send(1)
    desk.wire.ring.restart((50, 0))
    desk.wire.head = (50, 0)
    desk.stream.pause((50, 0), reset="log_restarted")
    desk.send(51, "b")
    assert desk.data() == ["a1"]
    # That it had b at 51 is not known: what is known holds from here on.
    desk.stream.resume(desk.stream.effective(["a", "b"]), at=desk.wire.head)
    desk.send(52)
    desk.send(53, "b")
    events = desk.take()
    assert [event.get("event", event["data"]) for event in events] == ["rowcast.reset", "a52", "b53"]
    assert events[0]["data"]["topics"] == ["a", "b"]
    assert events[0]["id"] == "e:33-1"


def test_a_gap_in_the_log_is_one_reset_at_its_place_where_the_topics_of_then_are_known() -> None:
    desk = Desk()
    desk.start("a")
    desk.stream.pause((50, 0), reset="log_restarted")
    assert desk.stream.refused == (50, 0)
    desk.send(51)
    desk.stream.resume(desk.stream.effective(["a"]))
    assert desk.stream.refused is None
    *_, reset, entry = desk.take()
    assert (reset["event"], reset["id"], entry["data"]) == ("rowcast.reset", "e:32-0", "a51")


def test_lost_while_paused_is_told_once_the_topics_are_known() -> None:
    desk = Desk(max_entries=5)
    desk.start("a")
    desk.take()
    desk.stream.pause((1, 0))
    for number in range(2, 50):
        desk.send(number)
    assert desk.data() == []
    desk.stream.resume(desk.stream.effective(["a"]))
    assert desk.data() == ["rowcast.reset"]
    desk.send(50)
    assert desk.data() == ["a50"]


def test_too_many_changes_while_behind_are_a_reset() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.send(1, text="x" * (PENDING_LIMIT + 1))
    for number in range(2, 2 * MAX_TURNS):
        desk.wire.head = (number, 0)
        desk.stream.change((number, 0), desk.stream.effective([f"t{number}"]))
        assert len(desk.stream._turns) <= MAX_TURNS
    desk.take()
    events = [event for _ in range(3) for event in desk.data()]
    assert events[0] == "rowcast.reset"
    assert 0 < events.count("rowcast.subscriptions") <= MAX_TURNS


def test_bye_is_the_last_block() -> None:
    desk = Desk()
    desk.start("a")
    desk.send(1)
    desk.stream.end("draining", retry=1234)
    desk.send(2)
    desk.stream.beat()
    desk.stream.end("disconnected")
    events = desk.take()
    assert events[-2:] == [{"retry": "1234"}, {"event": "rowcast.bye", "data": {"reason": "draining"}}]
    assert desk.take() == []


@pytest.mark.parametrize("moved", [True, False])
def test_the_heartbeat_moves_the_clients_position_on(moved: bool) -> None:
    desk = Desk()
    desk.wire.head = (5, 0)
    desk.start("a")
    desk.take()
    if moved:
        desk.wire.head = (9, 0)
    desk.stream.beat()
    assert desk.stream.take() == (b"id: e:9-0\n\n" if moved else b": ping\n\n")
    desk.stream.beat()
    assert desk.stream.take() == b": ping\n\n"


def test_the_heartbeat_of_a_stream_that_is_behind_promises_nothing() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.stream.pause((2, 0))
    desk.wire.head = (9, 0)
    desk.stream.beat()
    assert desk.stream.take() == b": ping\n\n"


def test_what_is_held_is_not_taken_and_comes_in_order_afterwards() -> None:
    desk = Desk()
    desk.start("a")
    desk.send(1)
    desk.stream.hold()
    desk.send(2)
    assert desk.data() == ["rowcast.ready", "a1"]
    desk.stream.mark()
    desk.stream.hold()  # held already: it begins where it began
    desk.send(3)
    assert desk.data() == []
    desk.stream.unhold(marked=True)
    assert desk.data() == ["a2"]
    assert desk.data() == []
    desk.stream.unhold()
    desk.send(4)
    assert desk.data() == ["a3", "a4"]
    assert desk.stream.pending_bytes == 0


def test_a_held_stream_that_catches_up_holds_what_it_reads() -> None:
    desk = Desk()
    for number in range(1, 4):
        desk.send(number)
    desk.start("a", cursor=(1, 1))
    desk.stream.hold()
    assert desk.data() == ["rowcast.ready"]
    assert desk.stream.state is StreamState.LIVE
    desk.send(4)
    assert desk.data() == []
    desk.stream.unhold()
    assert desk.data() == ["a2", "a3", "a4"]


def test_a_stream_that_ends_is_held_no_longer() -> None:
    desk = Desk()
    desk.start("a")
    desk.take()
    desk.stream.hold()
    desk.send(1)
    desk.stream.end("draining")
    assert desk.data() == ["a1", "rowcast.bye"]
    desk.stream.hold()
    desk.stream.unhold(marked=True)
    assert desk.data() == []
