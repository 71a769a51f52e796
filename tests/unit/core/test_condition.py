"""Conditions: the language, its treatment of NULL and of types, and an oracle for the whole."""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.condition import MAX_DEPTH, Condition
from rowcast.errors import ConfigError


def holds(text: str, **row: Any) -> bool:
    return Condition.parse(text, "here").holds(row)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{v} > 0", Decimal("0.01"), True),
        ("{v} > 0", Decimal(0), False),
        ("{v} >= 2.50", Decimal("2.5"), True),
        ("{v} = 0.1", 0.1, True),
        ("{v} = 0.1", Decimal("0.1"), True),
        ("0.1 = {v}", 0.1, True),
        ("{v} = 1", 1.0, True),
        ("{v} < 1e3", 999, True),
        ("{v} = -.5", Decimal("-0.50"), True),
        ("{v} <> 5", 4, True),
        ("{v} != 5", 5, False),
        ("{v} == 'open'", "open", True),
        ("{v} = 'it''s'", "it's", True),
        ("{v} < 'b'", "a", True),
        ("{v} = ''", "", True),
        ("{v} = true", True, True),
        ("{v} = FALSE", True, False),
        ("5 < {v}", 6, True),
        ("{v} > 9007199254740992", 2**53 + 1, True),
    ],
)
def test_comparisons_are_by_value(text: str, value: Any, expected: bool) -> None:
    assert holds(text, v=value) is expected


@pytest.mark.parametrize("symbol", ["=", "==", "!=", "<>", "<", "<=", ">", ">="])
@pytest.mark.parametrize("value", [None, [1], {"a": 1}, float("nan"), Decimal("NaN")])
def test_what_is_null_or_can_not_be_compared_makes_every_comparison_false(symbol: str, value: Any) -> None:
    for other in ("1", "'1'", "true", "null", "{v}"):
        assert not holds(f"{{v}} {symbol} {other}", v=value)
        assert not holds(f"{other} {symbol} {{v}}", v=value)


@pytest.mark.parametrize(
    ("text", "value"), [("{v} != 1", "1"), ("{v} != '1'", 1), ("{v} < true", 0), ("{v} = 1", True)]
)
def test_types_do_not_mix(text: str, value: Any) -> None:
    assert not holds(text, v=value)


def test_infinity_compares() -> None:
    assert holds("{v} > 1e300", v=float("inf"))
    assert holds("{v} > {w}", v=Decimal("Infinity"), w=1.5)
    assert holds("{v} > {w}", v=Decimal("1e999"), w=1.5)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{v} in ('open', 'new')", "new", True),
        ("{v} in ('open', 'new')", "old", False),
        ("{v} IN (1, 2.0)", Decimal(2), True),
        ("{v} in (1)", None, False),
        ("{v} in (1, null)", 1, True),
        ("{v} not in (1, 2)", 3, True),
        ("{v} not in (1, 2)", 2, False),
        ("{v} not in (1, 2)", None, False),
        ("{v} not in (1, null)", 3, False),
        ("not {v} in (1)", None, True),
        ("{v} is null", None, True),
        ("{v} is null", 0, False),
        ("{v} is not null", 0, True),
        ("{v} is not null", None, False),
    ],
)
def test_in_and_is(text: str, value: Any, expected: bool) -> None:
    assert holds(text, v=value) is expected


@pytest.mark.parametrize("value", [None, False, 0, Decimal(0), 0.0, "", [], {}])
def test_a_bare_column_that_is_nothing_does_not_hold(value: Any) -> None:
    assert not holds("{v}", v=value)
    assert holds("not {v}", v=value)


@pytest.mark.parametrize("value", [True, 1, Decimal("0.1"), "f", [0], {"a": None}])
def test_a_bare_column_that_is_something_holds(value: Any) -> None:
    assert holds("{v}", v=value)


def test_a_column_that_the_row_lacks_is_null() -> None:
    assert holds("{v} is null")
    assert not holds("{v}")


def test_paths_and_names_in_quotes() -> None:
    row = {"config": {"limit": 5, "a b": True}, "my col": "x", "list": [1, 2]}
    assert holds("{config.limit} > 4", **row)
    assert holds('{config."a b"}', **row)
    assert holds("{\"my col\"} = 'x'", **row)
    assert holds("{list[1]} = 2 and { list.0 } = 1", **row)
    assert not holds("{config.limit.deeper} = 5", **row)
    assert holds("{config.no} is null", **row)
    assert holds("{note.a} = 1.10", note='{"a": 1.1}')


def test_not_binds_before_and_and_that_before_or() -> None:
    assert holds("true or false and false")
    assert not holds("(true or false) and false")
    assert holds("not false and true")
    assert not holds("not (false or true)")
    assert holds("not {a} = 1", a=2)
    assert holds("({a} > 1) = true", a=2)
    assert holds("{a} > 1 and {b} and {c} in (1) or {d}", a=2, b=True, c=1, d=False)


def test_a_condition_tells_its_columns() -> None:
    assert Condition.parse("{a.b} = 1 or not ({c} in ({d}, 1)) and {a}", "here").columns == {"a", "c", "d"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: expected a value"),
        ("{a} >", "column 6: expected a value"),
        ("{a} > 1 2", "column 9: unexpected '2'"),
        ("{a} = open", "column 7: unexpected 'open'; columns are written {name}, texts 'in quotes'"),
        ("price > 1", "column 1: unexpected 'price'"),
        ("{a} = 'open", "column 7: a text without its closing quote"),
        ('{a} = "open"', "column 7: texts are written 'in single quotes'"),
        ("{a} & {b}", "column 5: unexpected '&'"),
        ("{a", "column 1: { without }"),
        ("{a b} = 1", "column 1: {a b} is no column"),
        ("{a[*]} = 1", "column 1: {a[*]} is no column"),
        ("{a} in 1", "column 8: expected '('"),
        ("{a} in ()", "column 9: unexpected ')'"),
        ("{a} in (1", "column 10: expected ')'"),
        ("{a} is 1", "column 8: expected 'null'"),
        ("{a} not 1", "column 9: expected 'in'"),
        ("({a}", "column 5: expected ')'"),
        ("1 < {a} < 2", "column 9: unexpected '<'"),
        ("{a} =\n  §", "column 9: unexpected '§'"),
        ("(" * 99 + "1" + ")" * 99, f"column {MAX_DEPTH + 1}: more than {MAX_DEPTH}"),
        ("not " * 99 + "1", f"more than {MAX_DEPTH}"),
    ],
)
def test_errors_point_at_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Condition.parse(text, "rowcast.toml:12")
    assert str(caught.value).startswith("rowcast.toml:12: in the condition ")
    assert message in str(caught.value)


@given(st.text(alphabet="{}ab.'\"()=<>! 01-,innotulrdIS", max_size=40))
def test_any_text_is_a_condition_or_a_config_error(text: str) -> None:
    try:
        condition = Condition.parse(text, "here")
    except ConfigError:
        return
    condition.holds({"a": 1, "b": "x"})


# An oracle: conditions as trees, written out as text in one way and evaluated in another.

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([Decimal("0.5"), Decimal("1.0"), Decimal("NaN"), 0.5, 1.0, float("nan")])
    | st.sampled_from(["", "a", "b", "1", "it's"])
    | st.sampled_from([[], [1], {}, {"a": 1}])
)
LITERALS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([Decimal("0.5"), "", "a", "it's"])
OPERANDS = st.tuples(st.just("column"), st.sampled_from("abc")) | st.tuples(st.just("literal"), LITERALS)
LEAVES = (
    st.tuples(st.just("compare"), st.sampled_from(list(COMPARE)), OPERANDS, OPERANDS)
    | st.tuples(st.just("in"), st.booleans(), OPERANDS, st.lists(OPERANDS, min_size=1, max_size=3))
    | st.tuples(st.just("null"), st.booleans(), OPERANDS)
    | st.tuples(st.just("bare"), OPERANDS)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(st.just("not"), inner)
        | st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=6,
)


def written(tree: Any) -> str:
    match tree:
        case ("column", name):
            return f"{{{name}}}"
        case ("literal", None):
            return "null"
        case ("literal", bool() as value):
            return str(value).upper()
        case ("literal", str() as value):
            return "'" + value.replace("'", "''") + "'"
        case ("literal", value):
            return str(value)
        case ("compare", symbol, left, right):
            return f"{written(left)}{symbol} {written(right)}"
        case ("in", negated, left, items):
            return f"{written(left)} {'not ' * negated}in ({', '.join(map(written, items))})"
        case ("null", negated, left):
            return f"{written(left)} is {'not ' * negated}null"
        case ("bare", operand):
            return written(operand)
        case ("not", inner):
            return f"not ({written(inner)})"
        case (word, terms):
            return f" {word} ".join(f"({written(term)})" for term in terms)
    raise AssertionError(tree)


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float, Decimal)):
        return "nan" if value != value else "number"
    return type(value).__name__


def compared(symbol: str, one: Any, other: Any) -> bool:
    if kind(one) != kind(other) or kind(one) not in ("boolean", "number", "str"):
        return False
    return bool(COMPARE[symbol](one, other))


def oracle(tree: Any, row: dict[str, Any]) -> bool:
    def value(operand: Any) -> Any:
        return row.get(operand[1]) if operand[0] == "column" else operand[1]

    match tree:
        case ("compare", symbol, left, right):
            return compared(symbol, value(left), value(right))
        case ("in", False, left, items):
            return any(compared("=", value(left), value(item)) for item in items)
        case ("in", True, left, items):
            return all(compared("!=", value(left), value(item)) for item in items)
        case ("null", negated, left):
            return (value(left) is None) != negated
        case ("bare", operand):
            return bool(value(operand))
        case ("not", inner):
            return not oracle(inner, row)
        case ("and", terms):
            return all(oracle(term, row) for term in terms)
        case ("or", terms):
            return any(oracle(term, row) for term in terms)
    raise AssertionError(tree)


@given(TREES, st.fixed_dictionaries({}, optional=dict.fromkeys("abc", VALUES)))
def test_a_condition_holds_exactly_when_the_oracle_says(tree: Any, row: dict[str, Any]) -> None:
    assert Condition.parse(written(tree), "here").holds(row) is oracle(tree, row)
