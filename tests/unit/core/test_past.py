"""What users were subscribed to at an earlier place. (That it is exact: see test_oracle.)"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rowcast.core import past as module
from rowcast.core.entry import RowChange
from rowcast.core.past import Past
from rowcast.core.rules import RowRule, SqlRule

Row = dict[str, Any]


def rule(index: int = 0, key: tuple[str, ...] = ("id",)) -> RowRule:
    made = RowRule.from_function(f"s{index}", "user", lambda row: [row["topic"]], index=index)
    return made.with_key(key, frozenset({"id", "user", "topic"}))


def row(number: int, user: str | None, topic: str) -> Row:
    return {"id": number, "user": user, "topic": topic}


def at(past: Past, user: str, place: int, *now: str) -> list[tuple[int, set[str]]]:
    """(place, topics) of the spans of a user to whom the rows of rule 0 give these topics now."""
    spans = past.spans(user, (place, 0), {0: Counter(now)}, {"other"})
    return [(span.place[0], set(span.topics - {"other"})) for span in spans]


def test_changes_are_taken_back_and_applied_again() -> None:
    past = Past([rule()])
    past.note(RowChange(0, "insert", row(1, "ann", "a"), None), (1, 1))
    past.note(RowChange(0, "update", row(1, "ann", "b"), row(1, "ann", "a")), (2, 1))
    past.note(RowChange(0, "update", row(1, "bob", "b"), row(1, "ann", "b")), (3, 1))
    past.note(RowChange(0, "delete", None, row(1, "bob", "b")), (4, 1))
    assert at(past, "ann", 0) == [(0, set()), (1, {"a"}), (2, {"b"}), (3, set())]
    assert at(past, "ann", 2) == [(2, {"a"}), (2, {"b"}), (3, set())]
    assert at(past, "bob", 1) == [(1, set()), (3, {"b"}), (4, set())]
    assert at(past, "bob", 4) == [(4, {"b"}), (4, set())]
    assert at(past, "eve", 0, "c") == [(0, {"c"})]
    assert past.known((0, 0))


def test_a_topic_that_another_row_gives_too_does_not_go() -> None:
    past = Past([rule(key=())])
    past.note(RowChange(0, "insert", row(1, "ann", "a"), None), (1, 1))
    past.note(RowChange(0, "insert", row(1, "ann", "a"), None), (2, 1))
    past.note(RowChange(0, "delete", None, row(1, "ann", "a")), (3, 1))
    assert at(past, "ann", 0, "a") == [(0, set()), (1, {"a"})]
    assert at(past, "ann", 2, "a", "a") == [(2, {"a"})]


@pytest.mark.parametrize(
    "untold",
    [
        RowChange(0, "update", row(1, "ann", "b"), None),
        RowChange(0, "delete", None, {"id": 1}),
        RowChange(0, "truncate", None, None),
        RowChange(0, "insert", row(1, "ann", "b"), None, reload=True),
        RowChange(0, "update", {"id": 1, "user": "ann"}, {"id": 1}),
    ],
)
def test_a_change_that_does_not_tell_the_row_before_hides_what_was_before_it(untold: RowChange) -> None:
    past = Past([rule(0), rule(1)])
    past.note(RowChange(0, "insert", row(1, "ann", "a"), None), (1, 1))
    past.note(RowChange(1, "insert", row(1, "ann", "c"), None), (1, 2))
    past.note(untold, (2, 1))
    past.note(RowChange(0, "insert", row(2, "ann", "d"), None), (3, 1))
    assert not past.known((2, 0))
    assert past.known((2, 1))
    spans = past.spans("ann", (0, 0), {0: Counter("bd"), 1: Counter("c")}, ())
    assert [set(span.topics) for span in spans] == [{"b", "d"}, {"b", "d", "c"}], "the other rule's past is known"
    spans = past.spans("ann", (2, 1), {0: Counter("bd"), 1: Counter("c")}, ())
    assert [set(span.topics) for span in spans] == [{"b", "c"}, {"b", "c", "d"}]


def test_unchanged_toasted_values_are_in_the_row_before_and_an_identity_may_be_all_that_is_needed() -> None:
    past = Past([rule()])
    past.note(RowChange(0, "update", {"id": 1, "user": "bob"}, row(1, "ann", "a")), (1, 1))
    assert at(past, "ann", 0) == [(0, {"a"}), (1, set())]
    assert at(past, "bob", 0, "a") == [(0, set()), (1, {"a"})]
    past = Past([rule(key=("id", "topic", "user"))])
    past.note(RowChange(0, "update", row(1, "ann", "a"), None), (1, 1))
    assert past.known((0, 0))
    assert at(past, "ann", 0, "a") == [(0, {"a"})]


def test_what_is_forgotten_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    past = Past([rule(), SqlRule(1, "select 1", {"t": "user"}, "here")])
    past.note(RowChange(1, "update", {"user": "ann"}, None), (1, 0))
    for number in range(1, 5):
        past.note(RowChange(0, "insert", row(number, "ann", f"t{number}"), None), (number, 1))
    assert past.known((0, 0))
    past.note(RowChange(0, "insert", row(5, None, "x"), None), (5, 1), (2, 1))
    assert not past.known((2, 0))
    assert past.known((2, 1))
    monkeypatch.setattr(module, "MAX_CHANGES", 2)
    past.note(RowChange(0, "insert", row(6, "bob", "b"), None), (6, 1))
    assert not past.known((3, 0))
    assert at(past, "ann", 3, "t1", "t2", "t3", "t4") == [(3, {"t1", "t2", "t3", "t4"})]
    assert at(past, "ann", 4, "t1", "t2", "t3", "t4")[0] == (4, {"t1", "t2", "t3"})
    monkeypatch.setattr(module, "MAX_TOPICS", 0)
    past.note(RowChange(0, "insert", row(7, "bob", "c"), None), (7, 1))
    assert past.known((7, 1))
    assert not past.known((7, 0))
    past.restart((9, 0))
    assert not past.known((8, 0))
