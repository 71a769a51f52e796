"""The writer of rows writes, to the byte, what `values.wire` and msgspec make of each value."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowcast.core import values
from rowcast.core.change import UNCHANGED, Column, RawTuple
from rowcast.core.writer import RowWriter

OIDS = (16, 20, 21, 23, 25, 26, 114, 700, 701, 1005, 1009, 1043, 1082, 1114, 1184, 1231, 1266, 1700, 2950, 3802)
"""Of each way to write a value some types, and some arrays."""

TEXTS = (
    *(b"t", b"f", b"0", b"-7", b"007", b"42", b"999999999999999", b"9007199254740993", b"-9007199254740993", b"1.50"),
    *(b"NaN", b"Infinity", b"1e+20", b"2026-01-02 03:04:05.678+00", b"2026-01-02 03:04:05+00", b"infinity"),
    *(
        b"0044-03-15 BC",
        b"12:00:00+02",
        b'{"a": [1.50, "x"]}',
        b'"\\ud800"',
        b"{1,NULL,3}",
        b'{"a b",c}',
        b"",
        b"plain",
    ),
    *(
        b'with "quotes"',
        b"back\\slash",
        b"new\nline",
        b"nul\0",
        b"del\x7f",
        "e\u0301 \u2028 \U0001f600".encode(),
        b"\xff\xfe",
    ),
)


def plain(columns: tuple[Column, ...], sent: frozenset[str] | None, numeric: Any, raw: RawTuple) -> bytes:
    """The definition."""
    return msgspec.json.encode(
        {
            column.name: None if value is None else values.wire(column, value, numeric)
            for column, value in zip(columns, raw, strict=True)
            if isinstance(value, bytes | None) and (sent is None or column.name in sent)
        }
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[Column, ...], frozenset[str] | None]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True))
    named = st.sampled_from(["", "public.mood", "int4", "_public.mood"])
    columns = tuple(
        Column(name, draw(st.sampled_from(OIDS)))
        if draw(st.integers(0, 4))
        else Column(name, 90_000, type_name=draw(named))
        for name in names
    )
    return columns, draw(st.none() | st.frozensets(st.sampled_from(names)))


@settings(deadline=None, max_examples=300)
@given(tables(), st.sampled_from(["string", "number"]), st.data())
def test_a_row_is_written_as_the_definition_says(
    table: tuple[tuple[Column, ...], frozenset[str] | None], numeric: values.Numeric, data: st.DataObject
) -> None:
    columns, sent = table
    writer = RowWriter(columns, sent, numeric)
    some: st.SearchStrategy[Any] = (
        st.sampled_from(TEXTS) | st.binary(max_size=12) | st.text(max_size=12).map(str.encode)
    )
    if data.draw(st.booleans()):
        some = some | st.none() | st.just(UNCHANGED)
    for _ in range(3):
        raw = tuple(data.draw(some) for _ in columns)
        assert writer.write(raw) == plain(columns, sent, numeric, raw)


@pytest.mark.parametrize("oid", OIDS)
def test_every_text_of_every_type(oid: int) -> None:
    column = Column("c", oid)
    for numeric in ("string", "number"):
        writer = RowWriter((column,), None, numeric)  # type: ignore[arg-type]  # one of the two
        for text in TEXTS:
            assert writer.write((text,)) == plain((column,), None, numeric, (text,)), (oid, text)


def test_only_the_known_columns() -> None:
    columns = (Column("a", 23, key=True), Column("b", 25), Column("c", 16))
    writer = RowWriter(columns, frozenset({"a", "b"}), "string")
    assert writer.write_known((b"1", b"x", b"t"), lambda index: columns[index].key) == b'{"a":1}'
    assert writer.write_known((b"1", UNCHANGED, b"t")) == b'{"a":1}'
    assert RowWriter(columns, frozenset(), "string").write((b"1", b"x", b"t")) == b"{}"


def test_a_row_costs_no_call_for_a_text() -> None:
    """The hot path by counts: what calls Python is one writer for each integer, and nothing for a text."""
    columns = (Column("id", 20), *(Column(f"t{n}", 25) for n in range(20)), Column("price", 1700))
    writer = RowWriter(columns, None, "string")
    raw = (b"123", *(b"a text" for _ in range(20)), b"1.50")
    calls: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        writer.write(raw)
    finally:
        sys.setprofile(None)
    assert len(calls) == 2, calls


def test_two_texts_that_are_utf8_only_together_are_mended_one_by_one() -> None:
    columns = (Column("a", 25), Column("b", 25))
    halves = (b"\xc3", b"\xa9")
    assert RowWriter(columns, None, "string").write(halves) == plain(columns, None, "string", halves)
