"""The hub where things go wrong: large events, failing wakes, loads that fail, logs that begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import jwt
import msgspec
import pytest

import rowcast.hub
import rowcast.joins
from rowcast import AuthError, BadRequest, Rowcast
from rowcast.cache import Invalidation
from rowcast.core.entry import Batch, Control, Entry, Kind, RowChange
from rowcast.core.grants import Grant
from rowcast.core.position import Place, Position
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.stream import PAGE, PENDING_LIMIT, Stream, StreamState
from rowcast.core.subscriptions import Load, Subscriptions, UserRows
from rowcast.errors import Busy, Unavailable
from rowcast.http.events import _Writer
from rowcast.hub import Hub

SECRET = "0123456789abcdef0123456789abcdef"


class Body(msgspec.Struct):
    text: str
    size: int = 0

    def encode(self, limit: int) -> bytes:
        return self.text.encode()


def rule() -> RowRule:
    made = RowRule.from_function("s", "user", lambda row: [row["t"]], index=0)
    return made.with_key(("id",), frozenset({"id", "user", "t"}))


def make(*rules: RowRule, loader: Any = None, **settings: Any) -> Hub:
    options: dict[str, Any] = {"ring_bytes": 1 << 26, "max_event": 1 << 20, "heartbeat": 15} | settings
    hub = Hub(None, rules, loader, replica="r", max_streams=9, max_streams_per_user=9, **options)  # type: ignore[arg-type]
    hub.handle(Batch("e", [], (1, 0), reset="start"))
    hub.warm = True
    return hub


def data(place: int, topic: str, text: str) -> Batch:
    entry = Entry(Kind.DATA, (place, 1 << 20), Body(text), topic=topic)
    return Batch("e", [entry], (place, 2 << 20))


def load(hub: Hub, after: int, **rows: list[dict[str, Any]]) -> None:
    users = {user: UserRows({0: rows.get(user, [])}) for user in hub.joins.claim()}
    hub.joins.deliver(Load((after, 0), users, Snapshot(after, after)))
    hub.handle(Batch(hub.epoch, [], (after + 1, 0)))


def test_a_disconnect_is_a_control_entry() -> None:
    told: list[tuple[str, float]] = []
    hub = make(on_disconnect=lambda user, at: told.append((user, at)))
    stream = hub.connect(Grant("ann"), lambda: None)
    assert b"rowcast.ready" in stream.take()
    body = Control("disconnect", "ann", 7.0)
    hub.handle(Batch("e", [Entry(Kind.CONTROL, (50, 1), body)], (50, 1)))
    assert b'event: rowcast.bye\ndata: {"reason":"disconnected"}' in stream.take()
    assert told == [("ann", 7.0)]
    assert hub.streams_count == 0


def connect(hub: Hub, user: str = "ann", *topics: str, cursor: Position | None = None) -> Stream:
    return hub.connect(Grant(user, frozenset(topics)), lambda: None, cursor=cursor)


def read(stream: Stream, times: int = 50) -> bytes:
    return b"".join(stream.take() for _ in range(times))


def test_an_event_larger_than_a_page_is_sent_once() -> None:
    hub = make()
    for number in range(2, 7):
        hub.handle(data(number, "a", "x" * (PAGE // 2)))
    ann = connect(hub, "ann", "a", cursor=Position("e", 1, 0))
    first = ann.take()
    hub.handle(data(10, "a", "LARGE" + "y" * PAGE))
    assert (first + read(ann)).count(b"LARGE") == 1
    assert ann.state is StreamState.LIVE


def test_an_event_larger_than_a_page_is_sent_once_after_a_pause() -> None:
    hub = make(rule(), loader=object())
    ann = connect(hub, "ann", "a")
    load(hub, 2)
    hub.reload("ann")
    ann.take()
    hub.handle(data(10, "a", "LARGE" + "y" * PAGE))
    load(hub, 11)
    assert read(ann).count(b"LARGE") == 1


def test_a_client_that_does_not_read_is_bounded_while_its_subscriptions_change() -> None:
    hub = make(rule(), loader=object())
    ann = connect(hub)
    load(hub, 2, ann=[{"id": number, "user": "ann", "t": f"topic:{number:05}"} for number in range(200)])
    for number in range(3000):
        more = {"id": 999, "user": "ann", "t": "more"}
        change = RowChange(0, "delete", None, {"id": 999}) if number % 2 else RowChange(0, "insert", more, None)
        hub.handle(Batch("e", [Entry(Kind.ROW, (10 + number, 1), change, xid=20 + number)], (10 + number, 2)))
    assert ann.pending_bytes <= 2 * PENDING_LIMIT
    assert b"rowcast.reset" in read(ann)


@pytest.mark.parametrize("how", ["disconnect", "resume", "heartbeat", "entry"])
def test_a_wake_that_raises_concerns_its_stream_only(how: str) -> None:
    hub = make(rule(), loader=object())
    broken = False

    def wake() -> None:
        if broken:
            raise RuntimeError("the handle is closed")

    ann = hub.connect(Grant("ann", frozenset({"a"})), wake)
    bob = connect(hub, "bob", "a")
    load(hub, 2)
    ann.take()
    broken = True
    if how == "disconnect":
        hub.handle(Batch("e", [Entry(Kind.CONTROL, (4, 0), Control("disconnect", "ann"))], (5, 0)))
    elif how == "resume":
        hub.reload("ann")
        load(hub, 6)
    elif how == "heartbeat":
        for _ in range(20):
            hub.wheel.turn(0)
    hub.handle(data(10, "a", "DATA"))
    assert ann not in hub.streams
    assert b"DATA" in read(bob)


class Loader:
    """The first load meets a change that it has not seen and that needs another one; the second fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.hub: Hub

    async def horizon(self) -> Snapshot:
        return Snapshot(1, 1)

    async def load(self, users: list[str]) -> Load:
        self.calls += 1
        rows = {user: UserRows() for user in users}
        if self.calls == 1:
            change = RowChange(0, "update", {"id": 1, "user": "ann"}, None)
            self.hub.handle(Batch("e", [Entry(Kind.ROW, (2, 0), change, xid=50)], (2, 0)))
            connect(self.hub, "bob")
            return Load((3, 0), rows, Snapshot(50, 50))
        if self.calls == 2:
            raise Unavailable("Postgres restarts", what="postgres")
        return Load((3, 0), rows, Snapshot(60, 60))


async def test_whoever_must_be_read_again_is_read_again_though_the_next_load_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rowcast.joins, "RETRY", 0.0)
    loader = Loader()
    loader.calls = 99
    hub = loader.hub = make(rule(), loader=loader)
    running = asyncio.create_task(hub.joins.run())
    woken = asyncio.Event()
    ann = hub.connect(Grant("ann"), woken.set)
    hub.handle(Batch("e", [], (4, 0)))
    async with asyncio.timeout(20):
        await woken.wait()
        assert ann.state is StreamState.LIVE
        loader.calls = 0
        hub.reload("ann")
        while loader.calls < 3:
            await asyncio.sleep(0)
        while ann.state is not StreamState.LIVE:
            hub.handle(Batch("e", [], (9, 0)))
            ann.take()
            await asyncio.sleep(0)
    running.cancel()


def test_what_could_not_be_read_before_a_reload_entry_is_read_anew_also_by_a_load_under_way() -> None:
    subscriptions = Subscriptions([rule()])
    subscriptions.expect("ann")
    change = RowChange(0, "insert", {"id": 7, "user": "bob", "t": "x"}, None, reload=True)
    subscriptions.apply(Entry(Kind.ROW, (5, 0), change, xid=20))
    assert subscriptions.join(Load((9, 0), {"ann": UserRows()}, Snapshot(15, 15))) == ["ann"]


@pytest.mark.parametrize(("turn", "turns"), [(0.0, 20), (float("inf"), 0)])
async def test_batches_at_hand_are_handled_together_for_a_while(
    turn: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        async def tail(self) -> AsyncIterator[Batch]:
            for number in range(20):
                yield data(2 + number, "t", "x")

    hub = make()
    hub.log = Full()  # type: ignore[assignment]
    monkeypatch.setattr(rowcast.hub, "TURN", turn)
    running = asyncio.create_task(hub.run())
    await asyncio.sleep(0)
    counted = 0
    while not running.done():
        counted += 1
        await asyncio.sleep(0)
    assert counted - 1 <= turns <= counted
    assert hub.head == (21, 2 << 20)


class OldLog:
    async def head(self) -> Place:
        return (1000, 0)


async def test_places_of_the_old_log_are_not_waited_for_in_a_new_one() -> None:
    hub = make()
    hub.log = OldLog()  # type: ignore[assignment]  # only its head is asked for
    ann = connect(hub, cursor=Position("e", 900, 0))
    running = asyncio.create_task(hub.joins.run())
    async with asyncio.timeout(20):
        while ann.after is None:
            await asyncio.sleep(0)
    hub.handle(Batch("f", [], (10, 0), reset="log_restarted"))
    running.cancel()
    assert ann.state is StreamState.LIVE
    assert b'"reason":"other_epoch"' in read(ann)


def test_a_resubscribe_while_the_user_is_being_read_is_answered() -> None:
    hub = make(rule(), loader=object())
    ann = connect(hub)
    load(hub, 2)
    hub.reload("ann")
    ann.take()
    hub.handle(Batch("e", [Entry(Kind.CONTROL, (4, 0), Control("resubscribe", "ann"))], (5, 0)))
    load(hub, 6)
    assert b"rowcast.subscriptions" in read(ann)


@pytest.mark.parametrize("claims", [{"sub": "a\ud800"}, {"sub": "a", "topics": ["a\ud800"]}])
async def test_half_a_character_in_a_token_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(AuthError):
        await Rowcast(auth=SECRET).authenticator.verify(jwt.encode(claims, SECRET, algorithm="HS256"))


async def test_half_a_character_is_not_published() -> None:
    cast = Rowcast(auth=SECRET)
    async with cast.lifespan():
        for names in ({"topic": "\ud800"}, {"topic": "a", "key": "\ud800"}, {"topic": "a", "event": "\ud800"}):
            with pytest.raises(BadRequest):
                await cast.publish(data=1, **names)  # type: ignore[arg-type]


async def test_two_starts_at_once_make_one_replica() -> None:
    cast = Rowcast(auth=SECRET)
    await asyncio.gather(cast.start(), cast.start())
    tasks = len(asyncio.all_tasks())
    await cast.stop()
    await asyncio.gather(cast.start())
    assert len(asyncio.all_tasks()) <= tasks
    await cast.stop()


def test_a_storm_is_let_in_as_far_as_it_can_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is too many is told so, and who waits costs the others nothing until it is their turn."""
    monkeypatch.setattr(rowcast.hub, "MAX_STARTING", 5)
    hub = make(rule(), loader=object())
    streams = [connect(hub, f"user{number}") for number in range(5)]
    with pytest.raises(Busy, match="come at once") as raised:
        connect(hub, "one too many")
    assert raised.value.reason == "busy"
    tries = 0
    attempt = hub._try_start

    def counted(stream: Stream) -> None:
        nonlocal tries
        tries += 1
        attempt(stream)

    monkeypatch.setattr(hub, "_try_start", counted)
    for number in range(2, 50):
        hub.handle(data(number, "a", "x"))
    assert tries == 0
    load(hub, 60)
    assert tries == 5
    assert [stream.state for stream in streams] == [StreamState.LIVE] * 5
    assert connect(hub, "one too many").state is StreamState.STARTING


def test_what_a_topic_brought_before_it_was_known_to_be_a_users_waits_for_the_cache_too() -> None:
    hub = make(rule(), loader=object())
    ann = connect(hub)
    load(hub, 1, ann=[{"id": "1", "user": "ann", "t": "a"}])
    read(ann)
    hub.cache = Invalidation(None, [], hub.wake)  # type: ignore[arg-type]  # it deletes nothing here
    hub.reload("ann")
    hub.handle(data(5, "b", "NEW"))
    load(hub, 6, ann=[{"id": "1", "user": "ann", "t": "b"}])
    assert ann.topics >= {"b"}
    assert b"NEW" not in read(ann), "the user's keys were not deleted yet"
    ann.unhold()
    assert read(ann).count(b"NEW") == 1


def test_other_rules_are_not_read_before_what_came_by_is_visible() -> None:
    hub = make(rule(), loader=object())
    stream = hub.connect(Grant("ann"), lambda: None)
    load(hub, 5)
    hub.adopt([rule()], hub.joins._loader)
    rows = {"ann": UserRows({0: [{"id": 1, "user": "ann", "t": "b"}]})}
    users = hub.joins.claim()
    early = [Snapshot(90, 90), Snapshot(90, 101, frozenset({90})), Snapshot(90, 102, frozenset({90, 101}))]
    for snapshot in early:
        assert hub.joins.deliver(Load((6, 0), {user: UserRows() for user in users}, snapshot)) == ["ann"]
    assert hub.joins.deliver(Load((6, 0), rows, Snapshot(101, 103, frozenset({101})))) == []
    assert stream.topics == {"b", "user:ann"}


async def test_whoever_waits_for_the_same_place_is_started_in_turns() -> None:
    hub = make(rule(), loader=object())
    hub.max_streams = 100
    streams = [connect(hub, f"user{number}") for number in range(5 * rowcast.hub.STARTS)]
    load(hub, 5)
    counts = [hub.states()["live"]]
    while hub.states()["starting"]:
        await asyncio.sleep(0)
        counts.append(hub.states()["live"])
    assert counts[0] == rowcast.hub.STARTS
    assert max(after - before for before, after in pairwise(counts)) == rowcast.hub.STARTS
    assert all(b"rowcast.ready" in read(stream) for stream in streams)


async def test_whoever_goes_together_is_forgotten_in_turns_and_gets_nothing_meanwhile() -> None:
    hub = make(rule(), loader=object())
    hub.max_streams = 100
    streams = [connect(hub, f"user{number}") for number in range(3 * rowcast.hub.LEAVES)]
    rows = {f"user{n}": [{"id": str(n), "user": f"user{n}", "t": "a"}] for n in range(len(streams))}
    load(hub, 5, **rows)
    while hub.states()["starting"]:
        await asyncio.sleep(0)
    for stream in streams:
        hub.leave(stream)
    left = [hub.streams_count]
    # The topics of one who is still to be forgotten change, and its user comes back.
    last = streams[-1].grant.user
    row = {"id": rows[last][0]["id"], "user": last, "t": "b"}
    hub.handle(Batch("e", [Entry(Kind.ROW, (8, 1), RowChange(0, "update", row, None), xid=99)], (8, 1)))
    hub.handle(data(9, "a", "too late"))
    back = connect(hub, last)
    hub.end(streams[-2], "draining")  # nothing is to be said to it any more
    while hub.streams_count > 1:
        await asyncio.sleep(0)
        left.append(hub.streams_count)
    assert left[0] == len(streams) - rowcast.hub.LEAVES
    assert max(before - after for before, after in pairwise(left)) <= rowcast.hub.LEAVES
    assert not any(stream.pending for stream in streams[:-2])
    assert not hub.ended
    assert back.topics == {"b", "user:" + last}
    hub.drop(back)
    assert not hub.listened("a")
    assert not hub.listened("b")


def test_a_load_is_joined_in_parts() -> None:
    users = {f"user{n}": UserRows({0: [{"id": str(k)} for k in range(n)]}) for n in (3, 0, 90, 1, 2)}
    whole = Load((5, 0), users, Snapshot(5, 5))
    parts = list(whole.parts(5))
    assert [list(part.users) for part in parts] == [["user3", "user0"], ["user90"], ["user1", "user2"]]
    assert all((part.after, part.snapshot) == (whole.after, whole.snapshot) for part in parts)
    assert list(Load((5, 0), {}).parts(5)) == []


class Doubted:
    """A loader whose first read does not see yet what was committed in a gap; hands over in parts, as they all do."""

    def __init__(self) -> None:
        self.calls = 0

    async def load(self, users: list[str]) -> Load:
        self.calls += 1
        seen = self.calls > 1
        rows = {user: UserRows({0: [{"id": user, "user": user, "t": "a"}] if seen else []}) for user in users}
        return Load((3, 0), rows, Snapshot(50 + self.calls, 50 + self.calls))

    async def horizon(self) -> Snapshot:
        return Snapshot(50, 50)


def test_what_was_read_before_a_gap_for_one_who_has_gone_tells_nothing_of_what_is_under_way() -> None:
    hub = make(rule(), loader=object())
    connect(hub, "ann")
    bob = connect(hub, "bob")
    early = Load((3, 0), {user: UserRows() for user in hub.joins.claim()}, Snapshot(50, 50))
    hub.handle(Batch("e", [], (9, 0), reset="log_gap"))
    hub.drop(bob)
    hub.joins.deliver(early)
    # The first one after the gap: what is under way is not listed, since nothing newer has ended.
    (user,) = hub.joins.claim()
    assert hub.joins.deliver(Load((9, 0), {user: UserRows()}, Snapshot(60, 60))) == ["ann"]


async def test_no_part_of_a_load_after_a_gap_is_relied_on_for_the_part_before_it() -> None:
    loader = Doubted()
    hub = make(rule(), loader=loader)
    hub.max_streams = hub.max_streams_per_user = 1000
    hub.handle(Batch("e", [], (9, 0), reset="log_gap"))
    streams = [connect(hub, f"user{number}") for number in range(3 * rowcast.joins.PART)]
    running = asyncio.create_task(hub.joins.run())
    async with asyncio.timeout(30):
        while hub.states()["starting"]:
            await asyncio.sleep(0)
    running.cancel()
    assert all("a" in stream.topics for stream in streams)


async def test_a_stream_that_gets_behind_while_its_writer_sleeps_is_woken() -> None:
    hub = make()
    sent: list[bytes] = []
    ready, done = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message["body"])
        if b"rowcast.ready" in message["body"]:
            ready.set()
        if b"LAST" in message["body"]:
            done.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    writer = _Writer(send, hub)
    writer.stream = hub.connect(Grant("ann", frozenset({"a"})), writer.wake)
    running = asyncio.create_task(writer.run(receive, first=b""))
    async with asyncio.timeout(30):
        await ready.wait()
        # What comes at once is more than may wait for a client that does not read.
        for number in range(2, 12):
            hub.handle(data(number, "a", "x" * PAGE))
        hub.handle(data(20, "a", "LAST"))
        await done.wait()
    running.cancel()
    assert b"".join(sent).count(b"x" * PAGE) == 10


async def test_streams_that_are_still_to_be_forgotten_do_not_count_as_the_users() -> None:
    hub = make()
    hub.max_streams, hub.max_streams_per_user = 100, 2
    for stream in [connect(hub, f"user{number}") for number in range(rowcast.hub.LEAVES)]:
        hub.leave(stream)
    first, second = connect(hub), connect(hub)
    hub.leave(second)
    third = connect(hub)
    assert first.state is StreamState.LIVE
    assert third.state is StreamState.LIVE
    assert hub.users["ann"] == [first, third]


def test_what_the_ring_holds_is_not_lost_when_the_log_has_it_no_more() -> None:
    hub = make()
    hub.handle(data(5, "a", "DATA"))
    ann = connect(hub, "ann", "a", cursor=Position("e", 1, 0))
    ann.lose("position_expired")
    assert b"DATA" in (got := read(ann))
    assert b"rowcast.reset" not in got
    assert ann.state is StreamState.LIVE


async def test_a_stream_that_fails_while_it_is_behind_does_not_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = make()
    hub.handle(data(5, "a", "DATA"))

    def take(self: Stream) -> bytes:
        raise RuntimeError("a broken stream")

    async def send(message: Any) -> None:
        pass

    async def receive() -> Any:
        await asyncio.Event().wait()

    writer = _Writer(send, hub)
    writer.stream = hub.connect(Grant("ann", frozenset({"a"})), writer.wake, cursor=Position("e", 1, 0))
    monkeypatch.setattr(Stream, "take", take)
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="a broken stream"):
            await writer.run(receive, first=b"")
    assert not hub.streams
