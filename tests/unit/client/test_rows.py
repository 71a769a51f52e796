"""Rows from pages and changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rowcast.client import Rows


def change(rows: Rows, action: str, record: Any, topic: str = "t") -> None:
    rows.take("message", json.dumps({"topic": topic, "action": action, "record": record}))


def page(rows: Rows, content: list[Any], *, first: bool = True, last: bool = True, **more: Any) -> None:
    told = {"topic": "t", "rows": content, "key": ["k"], "first": first, "last": last}
    rows.take("rowcast.snapshot", json.dumps(told | more))


def test_pages_then_changes() -> None:
    rows = Rows()
    page(rows, [{"k": 1, "v": "a"}], last=False)
    assert rows.get() == ()
    page(rows, [{"k": 2, "v": "b"}], first=False)
    assert rows.get() == ({"k": 1, "v": "a"}, {"k": 2, "v": "b"})
    change(rows, "update", {"k": 1, "v": "c"})
    change(rows, "insert", {"k": 3, "v": "d"})
    change(rows, "delete", {"k": 2})
    assert rows.get() == ({"k": 1, "v": "c"}, {"k": 3, "v": "d"})
    page(rows, [{"k": 9}])
    assert rows.get() == ({"k": 9},)
    page(rows, [{"k": 8}], topic="elsewhere", first=False)
    assert rows.get() == ({"k": 9},), "a page whose beginning did not come is none"


def test_the_same_tuple_until_something_changes_and_who_listens_is_told() -> None:
    rows, calls = Rows(), []
    end = rows.listen(lambda: calls.append(rows.get()))
    change(rows, "insert", {"id": 1})
    before = rows.get()
    rows.take("rowcast.bye", '{"reason":"draining"}')
    rows.take("message", '{"topic":"t","data":{"published":1}}')
    rows.take("message", "no JSON")
    rows.take("message", "[1]")
    change(rows, "delete", {"id": 7})
    assert rows.get() is before
    end()
    change(rows, "insert", {"id": 2})
    assert rows.get() is not before
    assert calls == [({"id": 1},)]


def test_topics_that_are_lost_take_their_rows_with_them_and_one_topic_does_not_touch_anothers() -> None:
    every, one = Rows(), Rows("a:1")
    for rows in (every, one):
        change(rows, "insert", {"id": 1}, "a:1")
        change(rows, "insert", {"id": 2}, "a:2")
        change(rows, "insert", {"id": 3}, "user:u")
    assert len(every.get()) == 3
    assert one.get() == ({"id": 1},)
    page(one, [{"k": 4}])
    assert one.get() == ({"id": 1},)
    every.take("rowcast.subscriptions", '{"topics":["a:2"],"added":[],"removed":["a:1"]}')
    assert every.get() == ({"id": 2}, {"id": 3})
    change(every, "truncate", None, "a:*")
    assert every.get() == ({"id": 3},)


def test_an_update_without_a_large_value_keeps_the_one_that_is_there() -> None:
    rows = Rows()
    change(rows, "insert", {"id": 1, "text": "long", "n": 1})
    change(rows, "update", {"id": 1, "n": 2})
    assert rows.get() == ({"id": 1, "text": "long", "n": 2},)


def test_an_update_of_the_key_moves_the_row() -> None:
    rows = Rows()
    change(rows, "insert", {"id": 1, "text": "long", "n": 1})
    told = {"topic": "t", "action": "update", "record": {"id": 2, "n": 1}, "changes": {"id": 1}}
    rows.take("message", json.dumps(told))
    assert rows.get() == ({"id": 2, "text": "long", "n": 1},)


def test_a_key_may_be_json() -> None:
    rows = Rows(key=["path"])
    change(rows, "insert", {"path": ["a", {"b": 1}], "n": 1})
    change(rows, "update", {"path": ["a", {"b": 1}], "n": 2})
    assert rows.get() == ({"path": ["a", {"b": 1}], "n": 2},)


@pytest.mark.parametrize("how", ["reset", "failed"])
def test_rows_that_were_missed_are_stale_until_they_are_replaced(how: str) -> None:
    rows = Rows("t")
    rows.take("rowcast.reset", '{"reason":"position_expired","topics":["t"],"snapshot":["t"]}')
    assert not rows.stale, "rows follow by themselves"
    if how == "reset":
        rows.take("rowcast.reset", '{"reason":"position_expired","topics":["t"]}')
    else:
        page(rows, [], failed="too_large")
    assert rows.stale
    rows.replace([{"id": 7}])
    assert not rows.stale
    assert rows.get() == ({"id": 7},)


@pytest.mark.parametrize(
    "data",
    [
        {"action": "joined"},
        {"action": "joined", "topic": "t"},
        {"action": "insert", "topic": "t", "record": None},
        {"action": "insert", "topic": 5, "record": {"id": 1}},
        {"action": "truncate"},
        [{"action": "insert"}],
        "action",
        None,
    ],
)
def test_what_somebody_published_is_no_change_because_it_has_an_action(data: Any) -> None:
    rows = Rows()
    rows.take("message", json.dumps(data))
    assert rows.get() == ()
