from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core import values
from rowcast.core.body import ChangeBody, Form
from rowcast.core.change import UNCHANGED, Change, Column, Message, RawTuple, Relation
from rowcast.core.pgoutput import POSTGRES_EPOCH, Begin, Commit, Decoder, Event
from rowcast.core.position import MINOR_SPACING
from rowcast.errors import DecodeError

# What a server writes. Source: Postgres documentation, "Logical Replication Message Formats".


def string(text: str) -> bytes:
    return text.encode() + b"\0"


def begin(lsn: int = 0x100, time: int = 0, xid: int = 7) -> bytes:
    return b"B" + struct.pack("!QqI", lsn, time, xid)


def commit(lsn: int = 0x100, end: int = 0x140, time: int = 0) -> bytes:
    return b"C\0" + struct.pack("!QQq", lsn, end, time)


def origin() -> bytes:
    return b"O" + struct.pack("!Q", 5) + string("elsewhere")


def type_(oid: int, name: str, schema: str = "public") -> bytes:
    return b"Y" + struct.pack("!I", oid) + string(schema) + string(name)


def relation(
    oid: int, table: str, *columns: tuple[str, int, bool], identity: str = "d", schema: str = "public"
) -> bytes:
    described = b"".join(
        bytes([key]) + string(name) + struct.pack("!Ii", type_oid, -1) for name, type_oid, key in columns
    )
    head = b"R" + struct.pack("!I", oid) + string(schema) + string(table) + identity.encode()
    return head + struct.pack("!H", len(columns)) + described


def row(raw: RawTuple) -> bytes:
    cells = []
    for value in raw:
        if value is None:
            cells.append(b"n")
        elif isinstance(value, bytes):
            cells.append(b"t" + struct.pack("!I", len(value)) + value)
        else:
            cells.append(b"u")
    return struct.pack("!H", len(raw)) + b"".join(cells)


def insert(oid: int, *new: bytes | None) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + row(new)


def update(oid: int, new: RawTuple, old: RawTuple | None = None, marker: bytes = b"") -> bytes:
    before = b"" if old is None else marker + row(old)
    return b"U" + struct.pack("!I", oid) + before + b"N" + row(new)


def delete(oid: int, old: RawTuple, marker: bytes = b"K") -> bytes:
    return b"D" + struct.pack("!I", oid) + marker + row(old)


def truncate(*oids: int, options: int = 0) -> bytes:
    return b"T" + struct.pack("!Ib", len(oids), options) + b"".join(struct.pack("!I", oid) for oid in oids)


def message(prefix: str, content: bytes, *, transactional: bool = True) -> bytes:
    head = b"M" + struct.pack("!bQ", transactional, 0x99)
    return head + string(prefix) + struct.pack("!I", len(content)) + content


TRADES = relation(1, "trades", ("id", 20, True), ("symbol", 25, False), ("doc", 25, False))
USERS = relation(2, "users", ("id", 20, True))


def decode(*messages: bytes, wanted: Callable[[Relation], bool] | None = None) -> list[Event]:
    decoder = Decoder(wanted)
    return [event for data in messages if (event := decoder.decode(data)) is not None]


def decode_one(*messages: bytes) -> Change:
    """The change that is the last of some messages of a transaction with the table `trades`."""
    *_, event = decode(begin(), TRADES, *messages)
    assert isinstance(event, Change)
    return event


# Each message


def test_a_transaction() -> None:
    first, change, last = decode(
        begin(0x16B3740, -1, 42), TRADES, insert(1, b"1", b"A", None), commit(0x16B3740, 0x16B3778)
    )
    assert first == Begin(0x16B3740, POSTGRES_EPOCH - 1, 42)
    assert last == Commit(0x16B3740, 0x16B3778, POSTGRES_EPOCH)
    assert isinstance(change, Change)
    assert (change.place, change.xid, change.commit_time) == ((0x16B3740, 1 << 20), 42, POSTGRES_EPOCH - 1)


def test_the_epoch_is_the_year_2000() -> None:
    (event,) = decode(begin(time=694_321_445_678_901))
    assert isinstance(event, Begin)
    assert event.commit_time == 1_641_006_245_678_901  # 2022-01-01 03:04:05.678901 UTC


def test_a_relation_and_its_types() -> None:
    mood, domain, other = 16385, 16386, 16387
    change = decode_one(
        type_(mood, "mood"),
        type_(domain, "int4", ""),
        type_(other, "int4", "other"),
        relation(
            3,
            "t",
            ("id", 23, True),
            ("mood", mood, False),
            ("small", domain, False),
            ("odd", other, False),
            identity="f",
        ),
        insert(3, b"1", b"ok", b"2", b"3"),
    )
    assert change.relation == Relation(
        3,
        "public",
        "t",
        "f",
        (
            Column("id", 23, key=True),
            Column("mood", mood, type_name="public.mood"),
            Column("small", domain, type_name="int4"),
            Column("odd", other, type_name="other.int4"),
        ),
    )
    assert change.row == {"id": 1, "mood": "ok", "small": 2, "odd": "3"}


def test_the_catalogue_s_own_schema() -> None:
    change = decode_one(relation(3, "pg_x", ("id", 23, True), schema=""), insert(3, b"1"))
    assert change.relation.name == "pg_catalog.pg_x"


def test_an_insert() -> None:
    change = decode_one(insert(1, b"1", None, b""))
    assert (change.action, change.new, change.old) == ("insert", (b"1", None, b""), None)


def test_an_update_without_old_values() -> None:
    change = decode_one(update(1, (b"1", b"A", UNCHANGED)))
    assert (change.action, change.new, change.old) == ("update", (b"1", b"A", UNCHANGED), None)


def test_an_update_of_the_key() -> None:
    change = decode_one(update(1, (b"2", b"A", UNCHANGED), (b"1", None, None), b"K"))
    assert (change.new, change.old, change.old_is_key) == ((b"2", b"A", UNCHANGED), (b"1", None, None), True)
    assert change.old_row == {"id": 1}


def test_an_update_with_the_whole_old_row_lacks_nothing() -> None:
    change = decode_one(update(1, (b"1", b"B", UNCHANGED), (b"1", b"A", b"long"), b"O"))
    assert (change.new, change.old, change.old_is_key) == ((b"1", b"B", b"long"), (b"1", b"A", b"long"), False)


@pytest.mark.parametrize(("marker", "is_key"), [(b"K", True), (b"O", False)])
def test_a_delete(marker: bytes, is_key: bool) -> None:
    change = decode_one(delete(1, (b"1", None, None), marker))
    assert (change.action, change.new, change.old, change.old_is_key) == ("delete", None, (b"1", None, None), is_key)


@pytest.mark.parametrize("options", [0, 1, 2, 3])
def test_a_truncate_is_a_change_of_each_table(options: int) -> None:
    _, changes = decode(begin(0x100), TRADES, USERS, truncate(2, 1, options=options))
    assert isinstance(changes, list)
    assert [(c.action, c.table, c.place, c.new, c.old) for c in changes] == [
        ("truncate", "users", (0x100, 1 << 20), None, None),
        ("truncate", "trades", (0x100, 2 << 20), None, None),
    ]


def test_a_message() -> None:
    events = decode(begin(0x100, 3, 9), message("p", b"\0x"))
    assert events[1] == Message("p", b"\0x", (0x100, 1 << 20), 9, POSTGRES_EPOCH + 3)


def test_a_message_outside_the_commit_order_is_no_event() -> None:
    assert decode(message("p", b"x", transactional=False)) == []


def test_the_newest_relation_counts() -> None:
    decoder = Decoder()
    decoder.decode(begin())
    decoder.decode(USERS)
    first = decoder.decode(insert(2, b"1"))
    decoder.decode(relation(2, "users", ("id", 20, True), ("name", 25, False)))
    second = decoder.decode(insert(2, b"2", b"x"))
    assert isinstance(first, Change)
    assert isinstance(second, Change)
    assert (first.row, second.row) == ({"id": 1}, {"id": 2, "name": "x"})


# Counting


def test_what_counts() -> None:
    """Row changes, truncated tables and transactional messages; nothing that a walsender may repeat."""
    decoder = Decoder()
    counted = []
    for data in (
        *(begin(), TRADES, USERS, insert(1, b"1", None, None), type_(16385, "mood"), origin(), TRADES),
        *(message("no", b"", transactional=False), update(1, (b"1", None, None)), message("yes", b"")),
        *(truncate(1, 2), delete(2, (b"1",)), commit()),
    ):
        decoder.decode(data)
        counted.append(decoder.index)
    assert counted == [0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 5, 6, 6]
    decoder.decode(begin(0x200))
    assert decoder.index == 0
    assert decoder.commit_lsn == 0x200


def test_what_is_unwanted_is_counted_but_not_decoded() -> None:
    asked = []

    def wanted(relation: Relation) -> bool:
        asked.append(relation.name)
        return relation.table == "users"

    broken = b"I" + struct.pack("!I", 1) + b"N\xff\xff"
    events = decode(
        *(begin(0x100), TRADES, USERS, broken, truncate(1, 2), update(1, (None,)), insert(2, b"1")), wanted=wanted
    )
    changes = [change for event in events[1:] for change in (event if isinstance(event, list) else [event])]
    assert [(c.action, c.table, c.place) for c in changes if isinstance(c, Change)] == [
        ("truncate", "users", (0x100, 3 << 20)),
        ("insert", "users", (0x100, 5 << 20)),
    ]
    assert asked == ["public.trades", "public.users"]


@given(st.lists(st.sampled_from("iudtmTROYn"), max_size=30), st.sets(st.integers(0, 40)))
def test_places_do_not_depend_on_what_a_walsender_repeats_or_who_wants_what(
    kinds: list[str], repeats: set[int]
) -> None:
    made: dict[str, bytes] = {
        "i": insert(1, b"1", None, None),
        "u": update(1, (b"1", None, UNCHANGED)),
        "d": delete(1, (b"1", None, None)),
        "t": truncate(2, 1),
        "m": message("x", b""),
        "T": truncate(2),
    }
    noise = {"R": TRADES, "O": origin(), "Y": type_(16385, "mood"), "n": message("x", b"", transactional=False)}
    plain = [begin(), TRADES, USERS, *(made[kind] for kind in kinds if kind in made)]
    noisy = [begin(), TRADES, USERS]
    for number, kind in enumerate(kinds):
        noisy += [TRADES, USERS] if number in repeats else []
        noisy.append((made | noise)[kind])

    def places(messages: list[bytes], wanted: Callable[[Relation], bool] | None = None) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for event in decode(*messages, wanted=wanted):
            for one in event if isinstance(event, list) else [event]:
                if isinstance(one, Change):
                    found.append((one.table, one.place[1]))
                elif isinstance(one, Message):
                    found.append(("", one.place[1]))
        return found

    assert places(noisy) == places(plain)
    assert places(noisy, lambda r: r.table == "users") == [place for place in places(plain) if place[0] != "trades"]
    assert [minor for _, minor in places(plain)] == [i * MINOR_SPACING for i in range(1, len(places(plain)) + 1)]


# What is wrong


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((b"S", "Stream Start"), (b"E", "Stream Stop"), (b"c", "Stream Commit"), (b"A", "Stream Abort")),
        *((b"b", "Begin Prepare"), (b"P", "Prepare"), (b"K", "Commit Prepared"), (b"r", "Rollback Prepared")),
        (b"p", "Stream Prepare"),
    ],
)
def test_what_was_not_asked_for_is_named(kind: bytes, name: str) -> None:
    with pytest.raises(DecodeError, match=f"{name}: neither streaming .* nor two-phase"):
        decode(kind + bytes(40))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([b""], "malformed"),
        ([b"?"], "unknown pgoutput message b'\\?'"),
        ([begin(), insert(9, b"1")], "relation 9, of which no Relation message has told"),
        ([begin(), truncate(9)], "relation 9, of which no Relation message has told"),
        ([TRADES, insert(1, b"1", None, None)], "outside a transaction"),
        ([TRADES, truncate(1)], "outside a transaction"),
        ([message("p", b"")], "a transactional message outside a transaction"),
        ([commit()], "a Commit at 100 without its Begin"),
        ([begin(), commit(), commit()], "without its Begin"),
        ([begin(), TRADES, insert(1, b"1")], "a row of 1 columns for public.trades, which has 3"),
        ([begin(), USERS, b"I" + struct.pack("!I", 2) + b"N\0\x01b\0\0\0\x01x"], "a column of kind 'b'; only text"),
        ([begin(), USERS, b"I" + struct.pack("!I", 2) + b"O\0\x01n"], "a tuple b'O' where b'N' must be"),
        ([begin(), USERS, b"U" + struct.pack("!I", 2) + b"X\0\x01n"], "a tuple b'X' where b'N' must be"),
        ([begin(), USERS, delete(2, (None,), b"N")], "a Delete with a tuple b'N'"),
        ([begin(), USERS, insert(2, b"1") + b"\0"], "15 bytes where 14 must be"),
        ([relation(1, "t", identity="x")], "public.t has a replica identity 'x'"),
        ([b"R" + struct.pack("!I", 1) + b"\xff\0t\0d\0\0"], "malformed"),
    ],
)
def test_what_is_wrong_is_said(messages: Sequence[bytes], says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        decode(*messages)


VALID = [
    *(begin(), origin(), type_(16385, "mood"), relation(3, "t", ("id", 23, True), ("mood", 16385, False))),
    *(insert(1, b"1", None, b"text"), update(1, (b"1", None, UNCHANGED)), update(1, (b"1", None, b"text"))),
    update(1, (b"1", None, UNCHANGED), (b"2", None, None), b"K"),
    update(1, (b"1", None, UNCHANGED), (b"2", b"x", b"long"), b"O"),
    *(delete(1, (b"1", None, None)), delete(1, (b"1", b"x", None), b"O"), truncate(1, 2, options=3)),
    *(message("p", b"content"), message("p", b"content", transactional=False), commit()),
]


@pytest.mark.parametrize("data", VALID, ids=lambda data: f"{data[:1].decode()}{len(data)}")
def test_a_message_has_one_end(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode(begin(), TRADES, USERS, data[:end])
    with pytest.raises(DecodeError):
        decode(begin(), TRADES, USERS, data + b"\0")
    decode(begin(), TRADES, USERS, data)


def check(data: bytes) -> None:
    """A valid event that can be sent, or DecodeError."""
    decoder = Decoder()
    for known in (begin(), TRADES, USERS):
        decoder.decode(known)
    try:
        event = decoder.decode(data)
    except DecodeError:
        return
    for change in event if isinstance(event, list) else [event]:
        if isinstance(change, Change):
            assert change.relation.oid in (1, 2)
            ChangeBody(change, "t", Form(change.relation)).encode(1 << 20)


@given(st.binary(max_size=200), st.sampled_from([b"", *(bytes([kind]) for kind in b"BCORYIUDTMSEcAbPKrp")]))
def test_random_bytes_are_an_event_or_an_error(data: bytes, kind: bytes) -> None:
    check(kind + data)


@given(st.sampled_from(VALID), st.data())
def test_a_broken_message_is_an_event_or_an_error(valid: bytes, data: st.DataObject) -> None:
    broken = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        how = data.draw(st.sampled_from(["set", "insert", "remove", "repeat"]))
        if how == "set":
            broken[at] = data.draw(st.sampled_from([0, 1, 0x6E, 0x74, 0x75, 0x7F, 0xFF]) | st.integers(0, 255))
        elif how == "insert":
            broken.insert(at, data.draw(st.integers(0, 255)))
        elif how == "remove" and len(broken) > 1:
            del broken[at]
        else:
            broken[at:at] = broken[at : at + 9]
    check(bytes(broken))


@given(st.lists(st.none() | st.binary(max_size=40), min_size=1, max_size=40))
def test_a_row_comes_back(cells: list[bytes | None]) -> None:
    wide = relation(5, "wide", *((f"c{i}", 25, i == 0) for i in range(len(cells))))
    (change,) = (event for event in decode(begin(), wide, insert(5, *cells)) if isinstance(event, Change))
    assert change.new == tuple(cells)
    assert list(change.row) == [f"c{i}" for i in range(len(cells))]
    for value, cell in zip(change.row.values(), cells, strict=True):
        assert value == (None if cell is None else values.decode(Column("c", 25), cell))
