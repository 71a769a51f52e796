from __future__ import annotations

import gc
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.body import ChangeBody, Form, PublishBody, timestamp
from rowcast.core.change import UNCHANGED, Action, Change, Column, RawTuple, Relation

COLUMNS = (
    Column("id", 20, key=True),
    Column("symbol", 25),
    Column("price", 1700),
    Column("ratio", 701),
    Column("doc", 3802),
)
TRADES = Relation(1, "public", "trades", "d", COLUMNS)
WHOLE = Relation(2, "public", "trades", "f", tuple(Column(c.name, c.type_oid, key=True) for c in COLUMNS))
OLD: RawTuple = (b"1", b"AAPL", b"1.0", b"NaN", b'{"a": 1}')
NEW: RawTuple = (b"1", b"AAPL", b"1.00", b"NaN", b'{"a": 2}')
KEY: RawTuple = (b"1", None, None, None, None)
TIME = 1_767_323_045_678_901
METADATA = {"table_schema": "public", "table_name": "trades", "commit_timestamp": "2026-01-02T03:04:05.678901Z"}
RECORD = {"id": 1, "symbol": "AAPL", "price": "1.00", "ratio": "NaN", "doc": {"a": 2}}
PLENTY = 1 << 20


def change(
    action: Action,
    new: RawTuple | None,
    old: RawTuple | None = None,
    *,
    old_is_key: bool = False,
    relation: Relation = TRADES,
) -> Change:
    return Change(action, relation, new, old, old_is_key=old_is_key, place=(1, 2), xid=3, commit_time=TIME)


def body(what: Change, topic: str, *, moved: bool = False, **options: Any) -> ChangeBody:
    return ChangeBody(what, topic, Form(what.relation, **options), moved)


def event(what: Change, limit: int = PLENTY, **options: Any) -> dict[str, Any]:
    encoded = body(what, "finance:AAPL", **options).encode(limit)
    made: dict[str, Any] = json.loads(encoded)
    return made


def test_an_insert_to_the_byte() -> None:
    assert body(change("insert", NEW), "finance:AAPL").encode(PLENTY) == (
        b'{"topic":"finance:AAPL","action":"insert",'
        b'"record":{"id":1,"symbol":"AAPL","price":"1.00","ratio":"NaN","doc":{"a":2}},"changes":null,'
        b'"metadata":{"table_schema":"public","table_name":"trades","commit_timestamp":"2026-01-02T03:04:05.678901Z"}}'
    )


def test_an_update_of_the_key_tells_the_old_one() -> None:
    """Else nobody who keeps rows by their key could know which of them is gone."""
    renamed: RawTuple = (b"2", *NEW[1:])
    assert event(change("update", renamed, KEY, old_is_key=True))["changes"] == {"id": 1}
    assert event(change("update", renamed, OLD, relation=WHOLE))["changes"] == {
        "id": 1,
        "price": "1.0",
        "doc": {"a": 1},
    }


def test_an_update_without_old_values() -> None:
    made = event(change("update", NEW, KEY, old_is_key=True))
    assert made == {
        "topic": "finance:AAPL",
        "action": "update",
        "record": RECORD,
        "changes": None,
        "metadata": METADATA,
    }


def test_changes_are_the_old_values_of_what_differs() -> None:
    """NaN stays NaN though it differs from itself; 1.0 became 1.00 though they are equal."""
    made = event(change("update", NEW, OLD, relation=WHOLE))
    assert made["record"] == RECORD
    assert made["changes"] == {"price": "1.0", "doc": {"a": 1}}


def test_an_update_that_changed_nothing() -> None:
    assert event(change("update", NEW, NEW, relation=WHOLE))["changes"] == {}


def test_null_is_a_value_that_changes() -> None:
    with_null: RawTuple = (b"1", None, b"1.00", b"NaN", b'{"a": 2}')
    assert event(change("update", NEW, with_null, relation=WHOLE))["changes"] == {"symbol": None}
    assert event(change("update", with_null, NEW, relation=WHOLE))["changes"] == {"symbol": "AAPL"}


@pytest.mark.parametrize(
    ("old", "old_is_key", "record"),
    [
        (KEY, True, {"id": 1}),
        (OLD, False, {"id": 1, "symbol": "AAPL", "price": "1.0", "ratio": "NaN", "doc": {"a": 1}}),
    ],
)
def test_a_delete_has_what_is_known(old: RawTuple, old_is_key: bool, record: dict[str, Any]) -> None:
    made = event(change("delete", None, old, old_is_key=old_is_key))
    assert (made["action"], made["record"], made["changes"]) == ("delete", record, None)
    assert "moved" not in made


def test_a_truncate_has_no_record() -> None:
    for limit in (PLENTY, 1):
        made = event(change("truncate", None), limit)
        assert (made["action"], made["record"], made["changes"]) == ("truncate", None, None)


def test_a_row_that_left_the_topic() -> None:
    made = event(change("update", NEW, OLD, relation=WHOLE), moved=True)
    assert (made["action"], made["moved"], made["changes"]) == ("delete", True, None)
    assert made["record"]["price"] == "1.0"
    made = event(change("update", (b"2", b"AAPL", b"1.00", b"NaN", UNCHANGED), KEY, old_is_key=True), moved=True)
    assert (made["record"], made["metadata"]) == ({"id": 1}, METADATA)


def test_what_the_log_lacks_is_named() -> None:
    made = event(change("update", (b"1", UNCHANGED, b"1.00", b"NaN", UNCHANGED)))
    assert made["record"] == {"id": 1, "price": "1.00", "ratio": "NaN"}
    assert made["metadata"] == METADATA | {"unchanged": ["symbol", "doc"]}


def test_only_the_columns_of_the_route_are_sent() -> None:
    columns = frozenset({"id", "price"})
    made = event(change("update", NEW, OLD, relation=WHOLE), columns=columns)
    assert (made["record"], made["changes"]) == ({"id": 1, "price": "1.00"}, {"price": "1.0"})
    made = event(change("update", (b"1", UNCHANGED, b"1.00", b"NaN", UNCHANGED)), columns=columns)
    assert "unchanged" not in made["metadata"]
    assert event(change("delete", None, KEY, old_is_key=True), columns=columns)["record"] == {"id": 1}


def test_numbers_as_the_route_says() -> None:
    made = body(change("update", NEW, OLD, relation=WHOLE), "t", numeric="number").encode(PLENTY)
    assert b'"price":1.00,' in made
    assert b'"changes":{"price":1.0,' in made


def test_the_envelope_of_sequin() -> None:
    ours = event(change("update", NEW, OLD, relation=WHOLE))
    theirs = event(change("update", NEW, OLD, relation=WHOLE), envelope="sequin")
    del ours["topic"]
    assert theirs == {"data": [ours]}


# Too large


def test_what_is_too_large_has_its_key_only() -> None:
    large: RawTuple = (b"1", b"x" * 5000, b"1.00", None, None)
    made = event(change("insert", large), 1000)
    assert made["record"] == {"id": 1}
    assert made["metadata"] == METADATA | {"truncated": True}
    made = event(change("insert", large), 1000, key=("price", "id", "nothing"))
    assert made["record"] == {"price": "1.00", "id": 1}
    made = event(change("insert", large), 1000, columns=frozenset({"symbol", "price"}), key=("price", "id"))
    assert made["record"] == {"price": "1.00"}
    made = event(change("update", (b"1", b"x" * 5000, b"1.00", None, UNCHANGED)), 1000)
    assert made["metadata"] == METADATA | {"unchanged": ["doc"], "truncated": True}


def test_what_is_too_large_keeps_of_a_large_key_what_fits() -> None:
    made = event(change("update", (b"1", b"x" * 5000, b"1.00", None, None), OLD, relation=WHOLE), 1000)
    assert made["record"] == {"id": 1, "price": "1.00", "ratio": None, "doc": None}
    assert made["changes"] is None


@pytest.mark.parametrize("key", [("id",), ("id", "price"), ("symbol",)])
def test_the_key_is_sent_as_soon_as_it_fits(key: tuple[str, ...]) -> None:
    large: RawTuple = (b"12345", b"AAPL", b"1.00", None, b'"' + b"x" * 5000 + b'"')
    exact = len(body(change("insert", large), "t", key=key).encode(4000))
    made = body(change("insert", large), "t", key=key)
    assert set(json.loads(made.encode(exact + 1))["record"]) == set(key)  # a comma is always reckoned with
    for limit in range(exact - 40, exact):
        assert len(made.encode(limit)) <= max(limit, len(made.encode(0)))
        assert set(json.loads(made.encode(limit))["record"]) < set(key)


@given(
    st.integers(0, 2000),
    st.lists(st.none() | st.sampled_from([UNCHANGED]) | st.text(max_size=300).map(str.encode), min_size=5, max_size=5),
    st.booleans(),
    st.sampled_from([None, ("id",), ("symbol", "id"), ("id", "symbol", "price", "doc")]),
    st.sampled_from(["rowcast", "sequin"]),
)
def test_no_limit_is_exceeded(
    limit: int, new: list[Any], old: bool, key: tuple[str, ...] | None, envelope: Any
) -> None:
    new = [*new[:4], None if new[4] is None else UNCHANGED]  # the last is json: not any text
    what = change("update", tuple(new), OLD if old else None, relation=WHOLE)
    encoded = body(what, "t", key=key, envelope=envelope).encode(limit)
    whole = body(what, "t", key=key, envelope=envelope).encode(PLENTY)
    made = json.loads(encoded)
    (made,) = made["data"] if envelope == "sequin" else (made,)
    if len(whole) <= limit:
        assert encoded == whole
    else:
        assert made["metadata"]["truncated"] is True
        # The names of topic and table are sent whatever they take.
        assert len(encoded) <= limit or (made["record"] == {} and "unchanged" not in made["metadata"])
        assert len(encoded) <= max(limit, 250)


# Times


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (TIME, "2026-01-02T03:04:05.678901Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        (2**63 - 1, "9999-12-31T23:59:59.775807Z"),
        (-(2**63), "0001-01-01T00:00:00.224192Z"),
    ],
)
def test_times(microseconds: int, text: str) -> None:
    assert timestamp(microseconds) == text


# Published


def test_published_data() -> None:
    assert PublishBody("t", b'{"a": 1}').encode(PLENTY) == b'{"topic":"t","data":{"a":1}}'
    assert PublishBody("t", b"1.10", "k").encode(PLENTY) == b'{"topic":"t","data":1.10,"key":"k"}'


def test_published_data_is_sent_on_one_line_and_in_utf8() -> None:
    assert PublishBody("t", b'{\r\n"a":\n["\\u2028"]}').encode(PLENTY) == b'{"topic":"t","data":{"a":["\\u2028"]}}'
    assert PublishBody("t", b'"\xff"').encode(PLENTY) == '{"topic":"t","data":"\ufffd"}'.encode()
    deep = b"[" * 3000 + b"\n" + b"]" * 3000
    assert PublishBody("t", deep).encode(PLENTY) == b'{"topic":"t","data":' + deep.replace(b"\n", b" ") + b"}"


def test_published_data_that_is_too_large() -> None:
    made = PublishBody("t", json.dumps("x" * 500).encode(), "k" * 100)
    assert json.loads(made.encode(500)) == {
        "topic": "t",
        "data": None,
        "key": "k" * 100,
        "metadata": {"truncated": True},
    }
    assert json.loads(made.encode(100)) == {"topic": "t", "data": None, "metadata": {"truncated": True}}
    assert json.loads(made.encode(0)) == {"topic": "t", "data": None, "metadata": {"truncated": True}}


def test_size_counts_what_is_held() -> None:
    small = body(change("insert", (b"1", None, None, None, None)), "t").size
    large = body(change("insert", (b"1", b"x" * 1000, None, None, None)), "t").size
    assert large - small == 2000
    assert PublishBody("t", b"x" * 1000).size - PublishBody("t", b"").size == 2000


def test_published_data_are_nothing_for_the_garbage_collector() -> None:
    """The ring holds hundreds of thousands."""
    assert not gc.is_tracked(PublishBody("t", b"1", "k"))
