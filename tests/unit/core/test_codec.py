from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core import codec
from rowcast.core.body import PublishBody
from rowcast.core.change import Column
from rowcast.core.entry import Control, Entry, Kind, RowChange
from rowcast.core.values import JsonNumber, decode
from rowcast.errors import DecodeError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 70), max_value=1 << 70)
    | st.floats(allow_nan=False)
    | TEXT
    | st.decimals(allow_nan=False)
    | st.decimals(allow_nan=False, allow_infinity=False).map(JsonNumber)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
ROWS = st.none() | st.dictionaries(TEXT, VALUES, max_size=4)
PLACES = st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
NAMES = st.none() | TEXT


def entries(kind: Kind, bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Entry]:
    return st.builds(
        lambda place, body, topic, xid, key, event, time: Entry(
            kind, place, body, topic=topic, xid=xid, key=key, event=event, time=time
        ),
        *(PLACES, bodies, TEXT, st.integers(0, (1 << 32) - 1), NAMES, NAMES),
        st.integers(-(1 << 62), 1 << 62),
    )


ENTRIES = (
    entries(Kind.ROW, st.builds(RowChange, st.integers(0, 99), st.sampled_from(("insert", "delete")), ROWS, ROWS))
    | entries(
        Kind.CONTROL, st.builds(Control, st.sampled_from(("resubscribe", "disconnect")), TEXT, st.floats(0, 1e10))
    )
    | entries(Kind.DATA, st.builds(PublishBody, TEXT, st.just(b'{"a":1}'), NAMES))
    | entries(Kind.SWEEP, st.builds(PublishBody, TEXT, st.just(b"null")))
)


def flat(entry: Entry) -> list[Any]:
    body = entry.body if entry.kind in (Kind.ROW, Kind.CONTROL) else entry.body.encode(1 << 20)
    return [entry.kind, entry.place, entry.topic, entry.xid, entry.key, entry.event, entry.time, body]


def types(value: Any) -> Any:
    """The types of a value and of all that is in it: 1, 1.0, True and Decimal(1) are equal."""
    if isinstance(value, dict):
        return {name: types(item) for name, item in value.items()}
    if isinstance(value, list):
        return [types(item) for item in value]
    return type(value)


@given(st.lists(ENTRIES, max_size=5))
def test_entries_come_back_as_they_were(given_entries: list[Entry]) -> None:
    back = codec.decode(codec.encode(given_entries, 1 << 20))
    assert [flat(entry) for entry in back] == [flat(entry) for entry in given_entries]
    for entry, original in zip(back, given_entries, strict=True):
        if entry.kind is Kind.ROW:
            assert types(entry.body.new) == types(original.body.new)
            assert types(entry.body.old) == types(original.body.old)


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (1700, "1.00"), (1700, "123456789012345678901234567890.1"), (20, "-9223372036854775808"), (701, "1e300"),
        (16, "t"), (25, "Zoë \u2028"), (1231, "{1.0,NULL,2.50}"), (1009, '{a,"b,c",NULL}'), (701, "Infinity"),
        (3802, '{"a":[1,2.50,{"b":null}],"n":123456789012345678901234567890,"e":1e30}'),
        (1184, "2026-01-02 03:04:05+00"),
    ],
)  # fmt: skip
def test_what_postgres_sent_compares_equal(oid: int, text: str) -> None:
    value = decode(Column("c", oid), text.encode())
    entry = Entry(Kind.ROW, (1, 2), RowChange(0, "insert", {"c": value}, None))
    back = codec.decode(codec.encode([entry], 100))[0].body.new["c"]
    assert back == value
    assert types(back) == types(value)
    assert str(back) == str(value)


def test_a_numeric_that_is_no_number() -> None:
    entry = Entry(Kind.ROW, (1, 2), RowChange(0, "insert", {"c": Decimal("NaN")}, None))
    assert codec.decode(codec.encode([entry], 100))[0].body.new["c"].is_nan()


def test_an_integer_with_more_digits_than_python_writes() -> None:
    entry = Entry(Kind.ROW, (1, 2), RowChange(0, "insert", {"c": 10**5000}, None))
    assert codec.decode(codec.encode([entry], 100))[0].body.new["c"] == 10**5000


def test_a_large_body_is_cut_where_it_is_appended() -> None:
    entry = Entry(Kind.DATA, (1, 2), PublishBody("t", b'"' + b"x" * 1000 + b'"'), topic="t")
    body = codec.decode(codec.encode([entry], 100))[0].body
    assert body.encode(1 << 20) == b'{"topic":"t","data":null,"metadata":{"truncated":true}}'
    assert body.size == 2 * len(body.encode(1))


def test_a_published_entry_takes_its_place() -> None:
    entry = Entry(Kind.CONTROL, (0, 0), Control("disconnect", "ann", 1.5))
    assert codec.decode(codec.encode([entry], 100), (7, 1))[0].place == (7, 1)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_entries(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(codec.decode(data), list)


def test_another_version_is_refused() -> None:
    with pytest.raises(DecodeError, match="version 1"):
        codec.decode(msgspec.msgpack.encode([1, [(0, 1, 1, 0, 0, "t", None, None, b"{}")]]))
    with pytest.raises(DecodeError, match="version 3"):
        codec.decode(msgspec.msgpack.encode([3, []]))


def test_an_unknown_extension_is_refused() -> None:
    item = (1, 1, 1, 0, 0, "", None, None, (0, "insert", {"c": msgspec.msgpack.Ext(9, b"1")}, None))
    with pytest.raises(DecodeError, match="none of ours"):
        codec.decode(msgspec.msgpack.encode([2, [[[item], None]]]))


def test_what_can_stand_in_a_run_does() -> None:
    def data(number: int, **more: Any) -> Entry:
        return Entry(Kind.DATA, (1, number), PublishBody("t", b"1"), topic=f"t{number}", **more)

    control = Entry(Kind.CONTROL, (1, 3), Control("disconnect", "ann", 1.5))
    packed = codec.unpack(codec.encode([data(1), data(2, key="k"), control, data(4, event="e"), data(5)], 100))
    assert [(type(part).__name__, len(part)) for part in packed.parts] == [("Run", 2), ("list", 2), ("Run", 1)]
    assert [entry.place for entry in packed] == [(1, number) for number in range(1, 6)]
    assert (len(packed), packed[1].key, packed[0].key, [entry.topic for entry in packed[3:]]) == (
        5,
        "k",
        None,
        ["t4", "t5"],
    )
    assert packed.begins_above((1, 0))
    assert not packed.begins_above((1, 1))


@pytest.mark.parametrize("column", range(8))
def test_a_run_whose_columns_do_not_fit_is_refused(column: int) -> None:
    entries = [Entry(Kind.DATA, (1, n), PublishBody("t", b"1"), topic="t", key="k") for n in (1, 2)]
    version, [[items, columns]] = msgspec.msgpack.decode(codec.encode(entries, 100))
    columns[column] = columns[column][:-1]
    with pytest.raises(DecodeError, match="no entries"):
        codec.decode(msgspec.msgpack.encode([version, [[items, columns]]]))
