"""Heartbeats and deadlines, with the clock in our hands."""

from __future__ import annotations

import time
from typing import Any

from rowcast.core.entry import Batch
from rowcast.core.grants import Grant
from rowcast.core.stream import Stream, StreamState
from rowcast.hub import Hub


def make(**settings: Any) -> Hub:
    options: dict[str, Any] = {"max_streams": 100_000, "max_streams_per_user": 100_000, "heartbeat": 15} | settings
    hub = Hub(None, [], None, replica="r", ring_bytes=1 << 20, max_event=1 << 20, **options)  # type: ignore[arg-type]
    hub.handle(Batch("e", [], (1, 0), reset="start"))
    hub.warm = True
    return hub


def connect(hub: Hub, user: str = "ann", expires_at: float | None = None) -> Stream:
    return hub.connect(Grant(user, frozenset(), expires_at), lambda: None)


def test_every_stream_has_one_heartbeat_a_turn_and_they_are_spread() -> None:
    hub = make(heartbeat=15)
    streams = [connect(hub, f"u{number}") for number in range(45)]
    for stream in streams:
        stream.take()
    beaten: list[int] = []
    for _ in range(15):
        hub.wheel.turn(time.time())
        beaten.append(sum(stream.take() == b": ping\n\n" for stream in streams))
    assert beaten == [3] * 15


def test_streams_end_when_their_tokens_expire() -> None:
    hub = make()
    now = time.time()
    early, late = connect(hub, "a", now + 10), connect(hub, "b", now + 20)
    hub.wheel.turn(now + 9)
    assert hub.streams_count == 2
    hub.wheel.turn(now + 10)
    assert early.state is StreamState.ENDED
    assert b"token_expired" in early.take()
    assert late.state is StreamState.LIVE


def test_deadlines_of_streams_that_are_gone_do_not_pile_up() -> None:
    hub = make()
    for _ in range(20_000):
        hub.drop(connect(hub, expires_at=time.time() + 3600))
    assert len(hub.wheel._deadlines) < 2000
    assert not hub.users
    assert not hub.wheel._streams
