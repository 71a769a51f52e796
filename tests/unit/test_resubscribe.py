"""Resubscribe and a user's own topic: routed by the hub alone, and published through a real log."""

from __future__ import annotations

from typing import Any

from rowcast import Rowcast
from rowcast.core.entry import Batch, Control, Entry, Kind, user_topic
from rowcast.core.grants import Grant
from rowcast.core.rules import SqlRule
from rowcast.core.stream import Stream, StreamState
from rowcast.core.subscriptions import Load, UserRows
from rowcast.hub import Hub
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"


class Body:
    size = 0

    def encode(self, limit: int) -> bytes:
        return b'{"n":1}'


def make() -> Hub:
    rule = SqlRule(index=0, sql="select 1", depends_on={}, origin="subscription 1")
    hub = Hub(
        None, [rule], object(), replica="r", ring_bytes=1 << 20, max_event=1 << 16, max_streams=9,  # type: ignore[arg-type]
        max_streams_per_user=9, heartbeat=15,
    )  # fmt: skip
    hub.handle(Batch("e", [], (1, 0), reset="start"))
    hub.warm = True
    return hub


def load(hub: Hub, topic: str) -> list[str]:
    """Read whoever waits: their rule gives them this topic. Returns who they were."""
    users = {user: UserRows(topics={0: frozenset({topic})}) for user in hub.joins.claim()}
    hub.joins.deliver(Load(hub.head, users))
    return list(users)


def connect(hub: Hub, user: str) -> Stream:
    stream = hub.connect(Grant(user, frozenset()), lambda: None)
    load(hub, "old")
    stream.take()
    return stream


def resubscribe(user: str) -> Entry:
    return Entry(Kind.CONTROL, (2, 0), Control("resubscribe", user))


async def test_publish_round_trip() -> None:
    """What one replica is asked for comes by in every replica's own tail, at the place that was answered."""
    with ValkeyServer() as valkey:
        here, there = (Rowcast(log=valkey.url, auth=SECRET) for _ in range(2))
        async with here.lifespan(), there.lifespan():
            streams = [LocalStream(cast, "ann") for cast in (here, there)]
            for stream in streams:
                await stream.ready()
            position = await here.resubscribe("ann")
            for stream in streams:
                await stream.until(lambda: bool(stream.events("rowcast.subscriptions")))  # noqa: B023  # awaited at once
                told = [block for block in stream.blocks if block.event == "rowcast.subscriptions"]
                assert [block.id for block in told] == [str(position)]


def test_refresh_when_connected() -> None:
    hub = make()
    stream = connect(hub, "ann")
    assert stream.topics == {"old", user_topic("ann")}
    hub.handle_entry(resubscribe("ann"))
    assert load(hub, "new") == ["ann"]
    stream.take()
    assert stream.topics == {"new", user_topic("ann")}
    assert stream.state is StreamState.LIVE


def test_strict_no_op_when_absent() -> None:
    hub = make()
    stream = connect(hub, "ann")
    before = _all(hub)
    hub.handle_entry(resubscribe("bob"))
    assert hub.joins.claim() == []
    assert _all(hub) == before
    assert stream.take() == b""


def test_a_users_own_topic_still_dispatches() -> None:
    """Whatever rules say, and also after a resubscribe."""
    hub = make()
    stream = connect(hub, "ann")
    hub.handle_entry(resubscribe("ann"))
    load(hub, "new")
    stream.take()
    hub.handle(Batch("e", [Entry(Kind.DATA, (3, 0), Body(), topic=user_topic("ann"))], (3, 0)))
    assert b'data: {"n":1}' in stream.take()
    hub.handle(Batch("e", [Entry(Kind.DATA, (4, 0), Body(), topic=user_topic("bob"))], (4, 0)))
    assert stream.take() == b""


def _all(hub: Hub) -> Any:
    return hub.states(), list(hub.users), hub.subscriptions.topics("ann"), hub.deliveries, sum(hub.catchups.values())
