"""Rows as JSON, by a plan that is made once for each relation.

What is written is what `values.wire` says of each value, and what `msgspec.json.encode` makes of it. But most values
need no Python object on their way: between quotes goes the text of the type as it is, unless something in it must be
escaped, and that is asked once for all texts of a row; an integer is its own JSON. So a row is one `join` of the
column names, quoted beforehand, and of the bytes that Postgres sent.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import msgspec

from rowcast.core import values
from rowcast.core.change import UNCHANGED, Column, RawTuple

_encode = msgspec.json.Encoder().encode
_join = b"".join
_between = b" ".join
"""Halves of a character that stand in two texts must not make a whole one."""
_SPECIAL = bytes(range(0x20)) + b'"\\'
"""What can't stand between the quotes of a JSON string as it is (RFC 8259, section 7), besides what is no UTF-8."""

_Write = Callable[[bytes], bytes]


class RowWriter:
    """Writes the rows of a relation that has `columns`; those named in `sent` only (None: all).

    `numeric`: see `values.wire`. It never fails, whatever bytes a value has.
    """

    __slots__ = ("_columns", "_pick", "_pieces", "_texts", "_writes")

    def __init__(self, columns: tuple[Column, ...], sent: frozenset[str] | None, numeric: values.Numeric) -> None:
        chosen = [i for i, column in enumerate(columns) if sent is None or column.name in sent]
        self._columns: list[tuple[int, bytes, _Write]] = []
        """Of each: its index, its name in quotes and with a colon, and how its value is written."""
        self._pieces: list[bytes] = []
        """The texts around the values of a row that is there whole; each second one stands for a value."""
        self._writes: list[tuple[int, _Write]] = []
        """Which of the chosen values are not text as it is."""
        texts: list[int] = []
        before = b"{"
        for place, index in enumerate(chosen):
            name = _encode(columns[index].name) + b":"
            write = _writer(columns[index], numeric)
            if write is None:
                texts.append(place)
                self._pieces += [before + name + b'"', b""]
                before = b'",'
                self._columns.append((index, name, _string))
            else:
                self._writes.append((place, write))
                self._pieces += [before + name, b""]
                before = b","
                self._columns.append((index, name, write))
        self._pieces.append((before[:-1] if chosen else before) + b"}")
        everything = len(chosen) == len(columns)
        self._pick = None if everything else _getter(chosen)
        self._texts = _getter(texts)

    def write(self, raw: RawTuple) -> bytes:
        """The JSON object of a row. What is UNCHANGED is left out."""
        row: Any = raw if self._pick is None else self._pick(raw)
        if None in row or UNCHANGED in row:
            return self.write_known(raw)
        text = _between(self._texts(row))
        if len(text.translate(None, _SPECIAL)) != len(text) or not (text.isascii() or _is_utf8(text)):
            return self.write_known(raw)
        filled = list(row)
        for place, write in self._writes:
            filled[place] = write(filled[place])
        pieces = self._pieces.copy()
        pieces[1::2] = filled
        return _join(pieces)

    def write_known(self, raw: RawTuple, known: Callable[[int], bool] | None = None) -> bytes:
        """The same of the columns only of whose index `known` is true (None: all), value by value."""
        written = []
        for index, name, write in self._columns:
            value = raw[index]
            if known is not None and not known(index):
                continue
            if value is None:
                written.append(name + b"null")
            elif type(value) is bytes:
                written.append(name + write(value))
        return b"{" + b",".join(written) + b"}"


def _getter(places: list[int]) -> Callable[[Any], Any]:
    """The items at some places, as a tuple. `operator.itemgetter` gives the bare item where there is one only, but a
    slice of one as well."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    place = places[0] if places else 0
    return operator.itemgetter(slice(place, place + len(places)))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _string(value: bytes) -> bytes:
    return _encode(value.decode(errors="replace"))


# How values are written, by type. None of `_writer` means: the text itself, between quotes.

_SAFE_DIGITS = 15
"""Digits that an integer surely has within what a double can hold."""


@functools.cache
def _integer(oid: int, numeric: values.Numeric) -> _Write:
    otherwise = _any(Column("", oid), numeric)

    def write(value: bytes) -> bytes:
        if value.isdigit() and value[0] != 0x30 and len(value) <= _SAFE_DIGITS:
            return value
        return otherwise(value)

    return write


def _bool(value: bytes) -> bytes:
    return b"true" if value == b"t" else b"false"


@functools.cache
def _moment(oid: int) -> _Write:
    # Rows of one transaction, and rows that are written together, mostly have the same moments.
    return functools.lru_cache(maxsize=1024)(_any(Column("", oid), "string"))


def _any(column: Column, numeric: values.Numeric) -> _Write:
    wire = values.wire
    return lambda value: _encode(wire(column, value, numeric))


_INTEGERS = (20, 21, 23, 26)
_MOMENTS = (1114, 1184, 1266)
_BOOL, _NUMERIC = 16, 1700


def _writer(column: Column, numeric: values.Numeric) -> _Write | None:
    oid = column.type_oid
    if oid in _INTEGERS:
        return _integer(oid, numeric)
    if oid in _MOMENTS:
        return _moment(oid)
    if oid == _BOOL:
        return _bool
    if values.is_text(column) or (oid == _NUMERIC and numeric == "string"):
        return None
    return _any(column, numeric)
