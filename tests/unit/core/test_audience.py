"""The audience by itself: what a snapshot saw and what came by, in every order."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from rowcast.core.audience import Audience
from rowcast.core.entry import Entry, Kind, RowChange
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot

RULE = RowRule.from_templates("subs", "{usr}", ["{topic}"], "{on}", index=3, origin="here", everyone=True).with_key(
    ("id",)
)
SNAPSHOT = Snapshot(10, 20, frozenset({12}))
SEEN, UNSEEN = 11, 12


def row(number: int, user: str, topic: str, *, on: bool = True) -> dict[str, Any]:
    return {"id": number, "usr": user, "topic": topic, "on": on}


def change(
    action: Literal["insert", "update", "delete", "truncate"],
    new: dict[str, Any] | None = None,
    old: dict[str, Any] | None = None,
    *,
    reload: bool = False,
    rule: int = 3,
) -> RowChange:
    return RowChange(rule, action, new, old, reload)


def entry(xid: int, change: RowChange, place: int = 1) -> Entry:
    return Entry(Kind.ROW, (place, 0), change, xid=xid)


def read(audience: Audience, *rows: dict[str, Any], recent: list[tuple[int, RowChange]] | None = None) -> None:
    reading = audience.begin(recent or [])
    for each in rows:
        reading.add(3, each)
    audience.join(reading, SNAPSHOT, (5, 0))


@pytest.fixture
def audience() -> Audience:
    return Audience([RULE])


def users(audience: Audience, topic: str) -> list[str]:
    return sorted(audience.users(topic))


def test_what_came_by_before_is_applied_only_where_the_snapshot_did_not_see_it(audience: Audience) -> None:
    recent = [
        (SEEN, change("insert", row(1, "ann", "a"))),
        (UNSEEN, change("insert", row(2, "bob", "b"))),
        (UNSEEN, change("insert", row(9, "eve", "e"), rule=7)),
    ]
    # The first row was there for a while, and the snapshot saw that it is gone.
    read(audience, row(3, "cat", "c"), recent=recent)
    assert [users(audience, topic) for topic in "abce"] == [[], ["bob"], ["cat"], []]


def test_what_comes_by_while_it_is_read(audience: Audience) -> None:
    reading = audience.begin([])
    assert audience.apply(entry(UNSEEN, change("delete", None, {"id": 1}))) is None
    audience.apply(entry(SEEN, change("insert", row(2, "bob", "b"))))
    reading.add(3, row(1, "ann", "a"))
    audience.join(reading, SNAPSHOT, (5, 0))
    assert users(audience, "a") == users(audience, "b") == []


def test_what_the_snapshot_saw_may_come_by_afterwards(audience: Audience) -> None:
    read(audience, row(1, "ann", "b"))
    audience.apply(entry(SEEN, change("update", row(1, "ann", "a"), {"id": 1})))
    assert users(audience, "b") == ["ann"]
    audience.settle((4, 0))
    audience.apply(entry(SEEN, change("update", row(1, "ann", "a"), {"id": 1})))
    assert users(audience, "b") == ["ann"]
    audience.settle((5, 0))
    # From here on there is none that it saw: xids come again.
    audience.apply(entry(SEEN, change("update", row(1, "ann", "a"), {"id": 1})))
    assert users(audience, "a") == ["ann"]


def test_rows_change_their_user_topic_and_key(audience: Audience) -> None:
    read(audience, row(1, "ann", "a"), row(2, "ann", "a"), row(3, "bob", "a"), row(4, "off", "a", on=False))
    assert users(audience, "a") == ["ann", "bob"]
    assert len(audience) == 3
    lost = audience.apply(entry(30, change("delete", None, {"id": 1})))
    assert lost is not None
    assert (lost.user, lost.topics) == ("ann", ("a",))
    assert users(audience, "a") == ["ann", "bob"], "by another row"
    audience.apply(entry(30, change("update", row(7, "cat", "a"), {"id": 2})))
    assert users(audience, "a") == ["bob", "cat"]
    audience.apply(entry(30, change("update", row(4, "off", "a"))))
    audience.apply(entry(30, change("update", row(3, "bob", "a", on=False))))
    assert users(audience, "a") == ["cat", "off"]
    audience.apply(entry(30, change("insert", row(7, "dan", "z"))))
    assert users(audience, "z") == ["dan"]
    audience.apply(entry(30, change("truncate")))
    assert users(audience, "a") == []
    assert len(audience) == 0


def test_a_large_topic_shrinks_to_nothing(audience: Audience) -> None:
    read(audience, *(row(number, f"u{number}", "a") for number in range(100)))
    assert len(users(audience, "a")) == 100
    for number in range(100):
        audience.apply(entry(30, change("delete", None, {"id": number})))
    assert not audience._indexes[3].topics


def test_a_value_that_was_left_out(audience: Audience) -> None:
    long = "a" * 40
    read(audience, row(1, "ann", long), row(2, "bob", long, on=False), row(3, "cat", "short"))
    left_out = {"id": 2, "usr": "bob", "on": True}
    audience.apply(entry(30, change("update", left_out)))
    assert users(audience, long) == ["ann", "bob"]
    assert not audience.stale
    # Never so in Postgres; but if it were, nobody is lost.
    audience.apply(entry(30, change("update", {"id": 3, "usr": "cat", "on": True})))
    assert users(audience, "short") == ["cat"]
    assert audience.stale


def test_what_could_not_be_read_is_read_again(audience: Audience) -> None:
    assert audience.stale
    audience.begin([])
    assert not audience.stale
    audience.failed()
    assert audience.stale
    read(audience, row(1, "ann", "a"))
    assert not audience.stale
    audience.apply(entry(30, change("insert", reload=True)))
    assert audience.stale
    assert users(audience, "a") == ["ann"], "what was known goes on to be used"


def test_a_reading_from_before_a_restart_is_of_no_use(audience: Audience) -> None:
    reading = audience.begin([])
    reading.add(3, row(1, "ann", "a"))
    audience.restart()
    audience.join(reading, SNAPSHOT, (5, 0))
    assert not audience.known
    assert audience.stale
    assert users(audience, "a") == []


def test_users_own_topics_and_prefixes(audience: Audience) -> None:
    read(audience, row(1, "ann", "t:a"), row(2, "bob", "t:b"), row(3, "cat", "x"))
    assert users(audience, "user:zoe") == ["zoe"]
    assert list(audience.matching("t:")) == ["ann", "bob", None]
    assert list(audience.matching("user:c")) == [None, None, "cat"]
    assert list(audience.matching("")) == ["ann", "bob", "cat"]


def test_whoever_goes_through_is_not_disturbed(audience: Audience) -> None:
    read(audience, *(row(number, f"u{number}", "a") for number in range(3)))
    having, matching = audience.users("a"), audience.matching("a")
    audience.apply(entry(30, change("truncate")))
    assert len(list(having)) == len(list(matching)) == 3
