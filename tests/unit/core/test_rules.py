"""Subscription rules: from templates, from functions, bound to tables; a rule that raises gives nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rowcast.core.catalog import ColumnInfo, TableInfo
from rowcast.core.rules import RowRule, SqlRule, origin_of, tables_of, user_column
from rowcast.errors import ConfigError


def table(identity: str = "d", primary: tuple[str, ...] = ("id",), known: tuple[str, ...] = ("id",)) -> TableInfo:
    columns = {name: ColumnInfo(25, "text") for name in ("id", "user_id", "symbol", "enabled", "note")}
    return TableInfo("public", "channels", "r", columns, primary, identity, known)


def from_templates(topics: list[str], when: str | None = None) -> RowRule:
    return RowRule.from_templates("channels", "{user_id}", topics, when, index=3, origin="rowcast.toml:9")


def test_a_rule_from_templates_gives_the_topics_of_each() -> None:
    rule = from_templates(["finance:{symbol}", "all", "list:{config.symbols[*]}"], "{enabled}")
    row = {"user_id": "ann", "symbol": "AAPL", "enabled": True, "config": {"symbols": ["a", "b"]}}
    assert rule.topics(row) == ["finance:AAPL", "all", "list:a", "list:b"]
    assert rule.topics({**row, "enabled": False}) == []
    assert rule.topics({**row, "symbol": None}) == ["all", "list:a", "list:b"]
    assert (rule.index, rule.table, rule.user_column, rule.origin) == (
        3,
        "public.channels",
        "user_id",
        "rowcast.toml:9",
    )
    assert rule.columns == {"user_id", "symbol", "enabled", "config"}


def test_errors_point_at_the_option_where_that_is_known() -> None:
    def make(user: str, topic: str, when: str) -> RowRule:
        origins = {"user": "f:2", "topics": "f:3", "when": "f:4"}
        return RowRule.from_templates("t", user, [topic], when, index=0, origin="f:1", origins=origins)

    for arguments, place in [(("u", "t", "true"), "f:2"), (("{u}", "{", "true"), "f:3"), (("{u}", "t", "?"), "f:4")]:
        with pytest.raises(ConfigError, match=f"^{place}: "):
            make(*arguments)


@pytest.mark.parametrize("user", ["user_id", "user:{user_id}", "{user_id|lower}", "{a.b}", "{a}{b}"])
def test_the_user_is_one_column(user: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: .* must name one column and nothing else"):
        user_column(user, "here")


def test_binding_a_rule_of_templates_adds_the_key() -> None:
    rule = from_templates(["finance:{symbol}"]).bound(table())
    assert rule.key == ("id",)
    assert rule.columns == {"id", "user_id", "symbol"}


def test_rows_are_identified_by_what_a_delete_carries() -> None:
    rule = from_templates(["a"])
    assert rule.bound(table("i", ("id",), ("symbol",))).key == ("symbol",)
    assert rule.bound(table("f", ("id",), ("id", "user_id", "symbol"))).key == ("id",)
    assert rule.bound(table("f", (), ("id", "user_id", "symbol"))).key == ()


def test_a_function_is_given_every_column() -> None:
    rule = RowRule.from_function("app.channels", "user_id", lambda row: row["topics"], index=1).bound(table())
    assert rule.table == "app.channels"
    assert rule.columns == set(table().columns)


def test_a_function_may_return_any_iterable_one_text_or_nothing() -> None:
    def rule(given: Any) -> list[str]:
        made = RowRule.from_function("t", "u", lambda row: given, index=0)
        topics = made.topics({})
        assert made.troubles.poisoned == 0
        return topics

    assert rule(("a", "b")) == ["a", "b"]
    assert rule(topic for topic in "ab") == ["a", "b"]
    assert rule("finance:AAPL") == ["finance:AAPL"]
    assert rule(None) == []
    assert rule([]) == []


def test_a_function_that_raises_gives_no_topics_and_is_counted() -> None:
    def broken(row: dict[str, Any]) -> Iterator[str]:
        yield "finance:AAPL"
        raise KeyError("symbol")

    rule = RowRule.from_function("channels", "user_id", broken, index=0)
    assert rule.topics({}) == []
    bound = rule.bound(table())
    assert bound.topics({}) == []
    assert rule.troubles.poisoned == 2  # the bound rule's count is the rule's
    (problem,) = bound.troubles.texts
    assert "test_rules.py:" in problem
    assert problem.endswith("a row of public.channels was skipped: KeyError: 'symbol'")


@pytest.mark.parametrize("given", [["a", None], ["a", 5], [b"a"], 7, [["a"]]])
def test_what_is_no_text_is_no_topic_and_spoils_the_row(given: Any) -> None:
    rule = RowRule.from_function("t", "u", lambda row: given, index=0)
    assert rule.topics({}) == []
    assert rule.troubles.poisoned == 1


def test_topics_that_no_topic_can_be_are_left_out_and_counted() -> None:
    rule = RowRule.from_function("t", "u", lambda row: ["a\nb", "", "c"], index=0)
    assert rule.topics({}) == ["c"]
    assert rule.unfit == 2
    templates = from_templates(["{symbol}"])
    assert templates.topics({"symbol": "a\0"}) == []
    assert templates.unfit == 1
    assert templates.troubles.poisoned == 0


def test_the_tables_of_a_rule() -> None:
    assert list(tables_of(from_templates(["a"]))) == ["public.channels"]
    assert list(tables_of(SqlRule(0, "…", {"public.a": "u", "public.b": "v"}, "here"))) == ["public.a", "public.b"]


def plain(row: dict[str, Any]) -> Iterable[str]:
    return ["a"]


class Rule:
    def __call__(self, row: dict[str, Any]) -> Iterable[str]:
        return ["a"]


async def waits(row: dict[str, Any]) -> Iterable[str]:
    return ["a"]


def test_the_origin_of_a_function_names_it_and_its_line() -> None:
    line = plain.__code__.co_firstlineno
    assert origin_of(plain) == f"{plain.__module__}:plain (test_rules.py:{line})"
    assert origin_of(functools.partial(functools.partial(plain))) == origin_of(plain)
    assert origin_of(Rule()) == f"{plain.__module__}:Rule"
    assert origin_of(len) == "builtins:len"


def test_a_coroutine_function_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"waits \(test_rules\.py:\d+\): a rule must be a plain function"):
        RowRule.from_function("t", "u", waits, index=0)  # type: ignore[arg-type]  # that is the point
