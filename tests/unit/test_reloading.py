"""The parts of a reload that need no database."""

from __future__ import annotations

from typing import Any

import pytest

from rowcast import Rowcast
from rowcast.config import Config
from rowcast.core.change import Change, Column, Relation
from rowcast.core.entry import Entry, Kind, RowChange
from rowcast.core.routes import Router
from rowcast.core.rules import RowRule
from rowcast.core.subscriptions import Subscriptions
from rowcast.errors import ConfigError
from rowcast.logs.messages import Messages
from rowcast.ports import Draft
from rowcast.reloading import differing

ONE = {"table": "a", "user": "{u}", "topics": ["x:{t}"]}
TWO = {"table": "b", "user": "{u}", "topics": ["x:{t}"]}
RELATION = Relation(1, "public", "a", "d", tuple(Column(name, 25, -1, name == "u", "") for name in "ut"))


def made(**sections: Any) -> Config:
    return Config.from_sections({"postgres": "postgresql://x/x", "auth": "s" * 32} | sections)


def test_a_rule_is_known_by_what_it_says() -> None:
    one, two = made(subscription=[ONE, TWO]).to_rules()
    three, four = made(subscription=[TWO, ONE]).to_rules()
    assert (one.index, two.index) == (four.index, three.index)
    assert made(subscription=[ONE | {"when": "{t}"}]).to_rules()[0].index != one.index
    assert len({rule.index for rule in made(subscription=[ONE, ONE, ONE]).to_rules()}) == 3


def test_rules_in_code_are_counted_apart() -> None:
    cast = Rowcast(made(subscription=[ONE]))
    cast.subscriptions("a", user="u")(lambda row: [])
    cast.subscriptions("b", user="u")(lambda row: [])
    _, rules = cast.rules_with([], [])
    assert [rule.index for rule in rules] == [0, 1]


def test_what_differs_is_named() -> None:
    old = made(route=[{"table": "a", "topic": "t"}], limits={"strict": {"/a": "1/minute"}})
    new = made(route=[{"table": "b", "topic": "t"}], limits={"strict": {"/b": "1/minute"}}, server={"port": 1}, api="k")
    assert differing(old, old) == []
    assert differing(old, new) == ["api.key", "limits.strict", "route", "server.port"]
    assert differing(made(), made(auth="t" * 32)) == ["auth.secret"]


def row(index: int, *, reload: bool = False) -> Entry:
    return Entry(Kind.ROW, (1, 1), RowChange(index, "insert", {"u": "ann", "t": "1"}, None, reload), xid=5)


def test_a_row_of_a_rule_that_is_not_known_here_changes_nothing() -> None:
    (rule,) = made(subscription=[ONE]).to_rules()
    subscriptions = Subscriptions([rule])  # type: ignore[list-item]
    subscriptions.expect("ann")
    for entry in (row(rule.index + 1), row(rule.index + 1, reload=True)):
        assert subscriptions.gaining(entry.body) == []
        assert subscriptions.apply(entry) == ([], [])
    assert subscriptions.recent == 0


def test_the_first_change_that_a_new_rule_sees_has_everybody_read() -> None:
    def bound(*sections: Any) -> list[RowRule]:
        rules = made(subscription=list(sections)).to_rules()
        return [
            RowRule(rule.index, rule.table, "u", rule.give, rule.origin, frozenset({"u", "t"}), ("u",))
            for rule in rules
            if isinstance(rule, RowRule)
        ]

    def change(number: int) -> Change:
        return Change("insert", RELATION, None, [b"ann", b"1"], place=(number, 1 << 20), xid=9, commit_time=0)

    old, new = bound(ONE), bound(ONE, ONE | {"topics": ["y:{t}"]})
    router = Router([], old)
    assert [entry.body.reload for entry in router.route(change(1))] == [False]
    router.replace([], new)
    assert [entry.body.reload for entry in router.route(change(2))] == [False, True]
    assert [entry.body.reload for entry in router.route(change(3))] == [False, False]
    router.replace([], old)
    assert [entry.body.reload for entry in router.route(change(4))] == [False]


def test_messages_of_both_keys_are_taken_while_ours_are_signed_as_ever() -> None:
    old, new = Messages(b"old"), Messages(b"new")
    draft = Draft(topic="t", data=b"1")
    by_old, by_new = old.compose(draft)[1], new.compose(draft)[1]
    assert old.draft(by_new) is None
    old.accept(b"new")
    old.accept(b"new")
    assert old.draft(by_new) is not None
    assert old.draft(by_old) is not None
    assert new.draft(old.compose(draft)[1]) is None
    none = Messages(None)
    none.accept(None)
    with pytest.raises(ConfigError):
        none.compose(draft)
    none.accept(b"new")
    assert new.draft(none.compose(draft)[1]) is not None
