"""From a topic back to what the row's columns must be: never too little is found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.catalog import ColumnInfo, TableInfo
from rowcast.core.inversion import Inversion, element_texts
from rowcast.core.routes import Route
from rowcast.errors import ConfigError

TYPES = {
    "t": "text",
    "c": "public.citext",
    "i": "int4",
    "u": "uuid",
    "b": "bool",
    "n": "numeric",
    "d": "date",
    "f": "float8",
    "j": "jsonb",
    "js": "json",
    "a": "_text",
    "at": "timestamptz",
}
TABLE = TableInfo(
    "public", "things", "r", {name: ColumnInfo(0, kind) for name, kind in TYPES.items()}, ("t",), "d", ("t",)
)


def route(topic: str) -> Route:
    return Route.from_templates("things", origin="rowcast.toml:7", topic=topic, snapshot=True)


def inversion(topic: str) -> Inversion:
    return Inversion.of(route(topic), TABLE)


def readings(template: str, topic: str) -> Any:
    return inversion(template).readings(topic)


@pytest.mark.parametrize(
    ("template", "topic", "expected"),
    [
        ("x:{t}", "x:a", {("a",)}),
        ("x:{t}", "x:", {("",)}),
        ("x:{t}", "y:a", set()),
        ("x:{t}", "x:a\nb", {("a\nb",)}),
        ("{t}:{c}", "a:b:c", {("a", "b:c"), ("a:b", "c")}),
        ("{i}{t}", "12a", {("1", "2a"), ("12", "a")}),
        ("x:{i}", "x:007", set()),
        ("x:{i}", "x:-5", {("-5",)}),
        ("x:{i}", "x:2147483648", set()),
        ("x:{b}", "x:true", {("true",)}),
        ("x:{b}", "x:t", set()),
        ("x:{u}", "x:00000000-0000-0000-0000-00000000000A", set()),
        ("x:{n}", "x:-1.50", {("-1.50",)}),
        ("x:{n}", "x:1e5", set()),
        ("x:{t|urlencode}", "x:a%20b", {("a b",)}),
        ("x:{t|urlencode}", "x:a b", set()),
        ("x:{t|urlencode}", "x:%41", set()),
        ("x:{t|lower}:{i}", "x:ab:1", {("1",)}),
        ("x:{j.a.b}:{a[*]}", "x:1:2", {("1", "2")}),
        ("all", "all", {()}),
        ("all", "al", set()),
    ],
)
def test_readings(template: str, topic: str, expected: set[tuple[str, ...]]) -> None:
    assert set(readings(template, topic)) == expected
    assert inversion(template).covers(topic) == bool(expected)


@pytest.mark.parametrize(
    "template", ["{t|lower}", "{t|fnv1a32}", "{js.a}", "{t.a}", "{f}", "{at}", "{a}", "{j[*].x}", "{t|lower|urlencode}"]
)
def test_what_tells_no_rows_apart_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"rowcast\.toml:7: snapshot = true needs a topic that tells rows apart"):
        inversion(f"x:{template}")


def test_a_function_is_refused() -> None:
    made = Route.from_function("things", lambda change: "x")
    with pytest.raises(ConfigError, match="a route by a function has no snapshot"):
        Inversion.of(made, TABLE)


def test_too_many_readings_are_none_and_take_no_time() -> None:
    found = inversion("{t}:{c}:{d}")
    assert found.readings(":" * 500) is None
    assert found.covers(":" * 500)
    assert inversion("{t}{c}{d}").readings("a" * 500) is None


TEXTS = st.text("ab:%/ 1é", max_size=6)


@given(TEXTS, TEXTS, st.integers(-(2**31), 2**31 - 1))
def test_what_a_row_gives_is_read_as_the_row(first: str, second: str, number: int) -> None:
    row = {"t": first, "c": second, "i": number}
    for template in ("{t}:{c}", "x{t}{i}", "{c|urlencode}/{t}:{i}", "{t|upper}:{i}:{c}"):
        made = inversion(template)
        text = route(template).template
        assert text is not None
        for topic in text.render(row):
            found = made.readings(topic)
            assert found is not None
            wanted = tuple(str(row[one.column]) for one in made.narrowings)
            assert wanted in found


def test_elements_are_texts_or_numbers() -> None:
    assert element_texts('a"b') == ['["a\\"b"]']
    assert element_texts("5") == ['["5"]', "[5]"]
    assert element_texts("true") == ['["true"]', "[true]"]
    assert element_texts("05") == ['["05"]']
