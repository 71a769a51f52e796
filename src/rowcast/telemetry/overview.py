"""What the operator's page shows of a replica: one picture of its parts, and why a user has their topics."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rowcast.core import values
from rowcast.core.rules import RowRule
from rowcast.core.stream import Stream, StreamState
from rowcast.errors import Unavailable
from rowcast.ports import State

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

SLOWEST = 10
"""Streams that are named because they are behind."""


async def overview(cast: Rowcast) -> dict[str, Any]:
    """The picture of this replica. Totals, not rates: whoever looks twice has the rates."""
    hub, replica = cast.hub, cast.replica
    log = cast.log.state()
    guard = replica.guard
    return {
        "at": time.time(),
        "replica": replica.name,
        "replicas": await _replicas(cast),
        "leader": replica.reads_wal,
        "source": "Postgres" if cast.config.postgres is not None else "published data",
        "log": {"url": _kind(cast.config.log_url), **_state(log)},
        "hub": _state(hub.state()),
        "position": hub.wire.position(hub.head),
        "floor": hub.wire.position(hub.ring.floor),
        "ring": {"entries": len(hub.ring), "bytes": hub.ring.bytes, "limit": hub.ring.max_bytes},
        "streams": {"open": hub.streams_count, "limit": hub.max_streams, "users": len(hub.users), **hub.states()},
        "totals": {
            "entries": hub.entries.total(),
            "deliveries": hub.deliveries,
            "resets": hub.wire.resets,
            "catchups": hub.catchups.total(),
            "ended": hub.ended.total(),
            "skipped": replica.router.poisoned,
            "failed appends": cast.append_failures,
        },
        "control waiting": len(replica.pending),
        "latency": {"bounds": hub.latency.bounds, "counts": hub.latency.counts},
        "slots": [
            {"name": slot.name, "active": slot.active, "held": slot.held} for slot in (guard.slots if guard else ())
        ],
        "slow": [_stream(stream) for stream in _slowest(hub.streams)],
        "problems": [
            *(f"{name}: {state.detail}" for name, state in (("log", log), ("hub", hub.state())) if not state.ok),
            *replica.warnings,
            *replica.router.problems,
            *(guard.problems if guard else ()),
        ],
    }


async def user(cast: Rowcast, name: str) -> dict[str, Any]:
    """What a user has, and why: the topics by rule and row as the database has them now, and the open streams here.

    Raises `Unavailable` when the database can't be asked.
    """
    rules = {rule.index: rule for rule in cast.replica.rules}
    why: list[dict[str, Any]] = []
    if cast.replica.loader is not None:
        load = await cast.replica.loader.load([name])
        found = load.users[name]
        for index, rows in found.rows.items():
            rule = rules[index]
            assert isinstance(rule, RowRule)
            why += [
                {
                    "rule": rule.origin,
                    "row": {column: None if value is None else values.text(value) for column, value in row.items()},
                    "topics": rule.topics(row),
                }
                for row in rows
            ]
        for index, topics in found.topics.items():
            why.append({"rule": rules[index].origin, "row": None, "topics": sorted(topics)})
    return {
        "user": name,
        "why": why,
        "streams": [_stream(stream) for stream in cast.hub.users.get(name, ())],
        "replica": cast.replica.name,
    }


async def _replicas(cast: Rowcast) -> dict[str, int]:
    counts = Counter({cast.replica.name: cast.hub.streams_count})
    if cast.replica.roster is not None:
        with contextlib.suppress(Unavailable):  # the log's state says that Redis is away
            counts.update(await cast.replica.roster.others())
    return dict(counts)


def _slowest(streams: dict[Stream, None]) -> list[Stream]:
    behind = (stream for stream in streams if stream.state is StreamState.BEHIND)
    return heapq.nsmallest(SLOWEST, behind, key=lambda stream: stream.cursor)


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "user": stream.grant.user,
        "state": stream.state.value,
        "topics": stream.listed(stream.topics),
        "pending": stream.pending_bytes,
        "cursor": stream.wire.position(stream.cursor) if stream.state is StreamState.BEHIND else None,
    }


def _state(state: State) -> dict[str, Any]:
    return {"ok": state.ok, "detail": state.detail, "age": max(0.0, time.time() - state.since)}


def _kind(url: str) -> str:
    return url.split(":", 1)[0]
