from __future__ import annotations

import pytest

from rowcast.core import codec
from rowcast.core.body import PublishBody
from rowcast.core.entry import Entry, Kind
from rowcast.core.position import ORIGIN, Place
from rowcast.errors import DecodeError
from rowcast.logs.redis_cursor import Cursor, Head, Item, Kept, format_place, parse_place


def data(*places: Place) -> bytes:
    return codec.encode([Entry(Kind.DATA, place, PublishBody("t", b"1"), topic="t") for place in places], 100)


def batch(place: Place, before: Place, *places: Place, pub: str = "10-0/", incarnation: str = "a") -> Item:
    return Item(place, incarnation, before, pub, "", data(*places), 1.0, len(places))


def published(place: Place, wal: Place, nonce: str, pub: str = "10-0/") -> Item:
    return Item(place, "a", wal, pub, nonce, data(ORIGIN), 1.0, 1)


def begun(first: Item | None = None, *, wal: Place = (10, 0), pub: str = "10-0/") -> Cursor:
    cursor = Cursor()
    cursor.begin(Head("a", wal, wal, pub, "db"), first)
    return cursor


def places(cursor: Cursor, item: Item) -> list[Place]:
    return [entry.place for found in cursor.take(item) for entry in found.entries]


def resets(cursor: Cursor, item: Item) -> list[str]:
    return [found.reset for found in cursor.take(item) if found.reset is not None]


def test_it_begins_below_the_oldest_item() -> None:
    first = batch((20, 0), (10, 0), (12, 5), pub="10-3/n")
    cursor = Cursor()
    assert cursor.begin(Head("a", (30, 0), (30, 0), "10-3/n", "db"), first) == (10, 3)
    assert cursor.place == (19, (1 << 64) - 1)
    assert resets(cursor, first) == []


def test_an_item_with_a_minor_is_read_too() -> None:
    assert begun(published((10, 1), (10, 0), "n")).place == (10, 0)


def test_an_empty_stream_begins_at_the_head() -> None:
    cursor = Cursor()
    assert cursor.begin(Head("a", (10, 0), (10, 2), "10-2/n", ""), None) == (10, 2)
    assert resets(cursor, published((10, 3), (10, 0), "m", pub="10-2/n")) == []


def test_what_was_appended_twice_comes_once() -> None:
    cursor = begun()
    assert places(cursor, batch((20, 0), (10, 0), (12, 1), (15, 1))) == [(12, 1), (15, 1)]
    assert places(cursor, batch((30, 0), (10, 0), (15, 1), (25, 1))) == [(25, 1)]
    assert cursor.wal == (30, 0)


def test_a_published_entry_takes_the_place_of_its_item() -> None:
    cursor = begun()
    assert places(cursor, published((10, 1), (10, 0), "n")) == [(10, 1)]
    assert places(cursor, batch((20, 0), (10, 0), (12, 1), pub="10-1/n")) == [(12, 1)]


def test_a_missing_batch_is_a_reset() -> None:
    cursor = begun()
    found = cursor.take(batch((30, 0), (20, 0), (25, 1)))
    assert [item.reset for item in found] == ["position_expired", None]
    assert found[0].head == (20, 0)
    assert [entry.place for entry in found[1].entries] == [(25, 1)]
    assert resets(cursor, batch((40, 0), (30, 0))) == []


def test_a_missing_published_entry_is_a_reset() -> None:
    cursor = begun()
    assert resets(cursor, batch((30, 0), (10, 0), pub="10-1/n")) == ["log_gap"]


def test_another_published_entry_at_the_same_place_is_a_reset() -> None:
    cursor = begun()
    cursor.take(published((10, 1), (10, 0), "n"))
    assert resets(cursor, batch((30, 0), (10, 0), pub="10-1/m")) == ["log_gap"]


def test_the_head_shows_what_was_lost() -> None:
    cursor = begun()
    assert not cursor.lost(Head("a", (10, 0), (10, 0), "10-0/", "db"))
    assert cursor.lost(None)
    assert cursor.lost(Head("b", (10, 0), (10, 0), "10-0/", "db"))
    assert cursor.lost(Head("a", (9, 0), (9, 1), "9-1/n", "db"))
    # The end of the WAL was lost, and will be appended again: nothing is missing.
    assert not cursor.lost(Head("a", (9, 0), (9, 0), "10-0/", "db"))


def test_items_that_do_not_come_were_lost() -> None:
    cursor = begun()
    more = Head("a", (20, 0), (20, 0), "10-0/", "db")
    assert not cursor.lost(more)
    assert cursor.lost(more)


def test_items_that_come_late_were_not_lost() -> None:
    cursor = begun()
    assert not cursor.lost(Head("a", (20, 0), (20, 0), "10-0/", "db"))
    cursor.take(batch((20, 0), (10, 0)))
    assert not cursor.lost(Head("a", (30, 0), (30, 0), "10-0/", "db"))


def test_what_nobody_of_us_wrote_is_refused() -> None:
    with pytest.raises(DecodeError, match="5-1"):
        Item.parse(b"5-1", {b"field": b"value"})
    with pytest.raises(DecodeError, match="5-1"):
        Item.parse(b"5-1", {b"i": b"a", b"w": b"x", b"p": b"", b"b": b"", b"t": b"1", b"c": b"1"})


def test_places_have_64_bits_each() -> None:
    place = ((1 << 64) - 1, (1 << 64) - 1)
    assert parse_place(format_place(place)) == parse_place(format_place(place).encode()) == place


def item_at(number: int, size: int = 1, length: int = 0) -> Item:
    return Item((number, 0), "a", ORIGIN, "", "", b"x" * length, float(number), size)


def test_kept_by_age() -> None:
    kept = Kept(10.0, None, 1 << 30)
    for number in range(5):
        kept.add(item_at(number))
    assert kept.trim(10.0) is None
    assert kept.trim(12.5) == (3, 0)
    assert kept.trim(12.5) is None
    assert kept.trim(1000.0) == (4, 0), "the newest always stays"


def test_kept_by_number() -> None:
    kept = Kept(1e9, 10, 1 << 30)
    for number in range(5):
        kept.add(item_at(number, 4))
    assert kept.trim(0.0) == (3, 0)


def test_kept_by_bytes() -> None:
    kept = Kept(1e9, None, 2500)
    for number in range(5):
        kept.add(item_at(number, length=1000))
    assert kept.trim(0.0) == (3, 0)
    kept.clear()
    kept.add(item_at(9, length=5000))
    assert kept.trim(0.0) is None
