"""Entries as bytes, and back: what a log that is not in this process keeps.

The bytes are MessagePack: `[version, [[entries, run], …]]`. An entry is an array. A run (nil where there is none) is
what follows them: DATA entries, unless there is but one, in columns, `[topics, keys or nil, majors, minors, xids,
times, sizes, payloads]`, of which topics and keys are arrays of texts and the numbers are little-endian, 8 bytes each,
of xids and sizes 4: a replica reads hundreds of entries as fast as it would read some.

The payload of a DATA or SWEEP entry is encoded by whoever appends it, once for all replicas, and comes back as an
`EncodedBody`. The values of a ROW entry come back equal, and of the same types: subscription rules compare them with
values that were read by SQL.

Source: the MessagePack specification, "Extension types", for what it has no type for.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec

from rowcast.core.entry import Control, Entry, Kind, RowChange
from rowcast.core.position import Place
from rowcast.core.run import EncodedBody, Packed, Run
from rowcast.core.values import JsonNumber
from rowcast.errors import DecodeError

VERSION = 2
"""The first element of every batch; what another version wrote is refused."""

_DECIMAL, _JSON_NUMBER, _BIG_INTEGER = 1, 2, 3
"""Codes of the extension types; the data of each is the number's text."""

_INTEGERS = range(-(1 << 63), 1 << 64)
"""The integers that MessagePack has."""


class _Item(msgspec.Struct, array_like=True, gc=False):
    """An entry as it is written. Not for the garbage collector to look at: with lists it took half of the time."""

    kind: int
    major: int
    minor: int
    xid: int
    time: int
    topic: str
    key: str | None
    event: str | None
    flat: Any
    interval: int = 0


class _Columns(msgspec.Struct, array_like=True, gc=False):
    """A run as it is written."""

    topics: list[str]
    keys: list[str | None] | None
    majors: bytes
    minors: bytes
    xids: bytes
    times: bytes
    sizes: bytes
    data: bytes


def encode(entries: Sequence[Entry], limit: int) -> bytes:
    """Entries as bytes. `limit` is `max_event` in bytes: see `entry.Body.encode`."""
    if len(entries) == 1:
        # Where commits come one by one. Columns of one row would cost whoever writes and reads them more.
        return _pack([VERSION, [([_flat(entries[0], limit)], None)]])
    parts: list[tuple[list[tuple[Any, ...]], _Columns | None]] = []
    flat: list[tuple[Any, ...]] = []
    for alike, group in itertools.groupby(entries, _alike):
        if alike:
            parts.append((flat, _columns(list(group), limit)))
            flat = []
        else:
            flat.extend(_flat(entry, limit) for entry in group)
    if flat:
        parts.append((flat, None))
    return _pack([VERSION, parts])


def decode(data: bytes, at: Place | None = None) -> list[Entry]:
    """The entries of `encode`. `at` replaces their places: a published entry gets its place by being appended.

    Raises `DecodeError` when the bytes are none of ours, or another version's.
    """
    entries = list(unpack(data))
    if at is not None:
        for entry in entries:
            entry.place = at
    return entries


def unpack(data: bytes) -> Packed:
    """The same, of which those that stand in runs are made into entries when they are asked for. Raises as `decode`."""
    try:
        try:
            version, parts = _unpack(data)
        except msgspec.ValidationError:
            # Another version's entries may have another form: then that is what is wrong.
            (version, *_), parts = _unpack_any(data), []
            if version == VERSION:
                raise
        if version != VERSION:
            raise DecodeError(f"the log holds entries of version {version}: update every replica to the same version")
        unpacked: list[Run | list[Entry]] = []
        for items, columns in parts:
            if items:
                unpacked.append([_entry(item) for item in items])
            if columns is not None:
                unpacked.append(_run(columns))
        return Packed(unpacked)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise DecodeError(f"the log holds bytes that are no entries: {error}") from None


def _alike(entry: Entry) -> bool:
    """Whether an entry can stand in a run."""
    return entry.kind is Kind.DATA and entry.event is None and not entry.interval


def _columns(entries: list[Entry], limit: int) -> _Columns:
    payloads = [entry.body.encode(limit) for entry in entries]
    keys = [entry.key for entry in entries]
    return _Columns(
        [entry.topic for entry in entries],
        None if keys.count(None) == len(keys) else keys,
        _bytes("Q", [entry.place[0] for entry in entries]),
        _bytes("Q", [entry.place[1] for entry in entries]),
        _bytes("I", [entry.xid for entry in entries]),
        _bytes("q", [entry.time for entry in entries]),
        _bytes("I", list(map(len, payloads))),
        b"".join(payloads),
    )


def _run(columns: _Columns) -> Run:
    return Run(
        columns.topics,
        columns.keys,
        _array("Q", columns.majors),
        _array("Q", columns.minors),
        _array("I", columns.xids),
        _array("q", columns.times),
        _array("I", columns.sizes),
        columns.data,
    )


def _bytes(code: Literal["Q", "q", "I"], numbers: list[int]) -> bytes:
    written = array(code, numbers)
    if sys.byteorder == "big":
        written.byteswap()
    return written.tobytes()


def _array(code: Literal["Q", "q", "I"], data: bytes) -> array[int]:
    read = array(code, data)
    if sys.byteorder == "big":
        read.byteswap()
    return read


def _entry(item: _Item) -> Entry:
    return Entry(
        _KINDS[item.kind],
        (item.major, item.minor),
        _BODIES[item.kind](item.flat),
        item.topic,
        item.xid,
        item.key,
        item.event,
        item.time,
        item.interval,
    )


def _flat(entry: Entry, limit: int) -> tuple[Any, ...]:
    kind, body = entry.kind, entry.body
    if kind is Kind.ROW:
        flat: Any = (body.rule, body.action, _packable(body.new), _packable(body.old), body.reload)
    elif kind is Kind.CONTROL:
        flat = (body.action, body.user, body.at)
    else:
        flat = body.encode(limit)
    major, minor = entry.place
    item = (int(kind), major, minor, entry.xid, entry.time, entry.topic, entry.key, entry.event, flat)
    return (*item, entry.interval) if entry.interval else item


_KINDS = {int(kind): kind for kind in Kind}
_BODIES: dict[int, Callable[[Any], Any]] = {
    Kind.DATA: EncodedBody,
    Kind.SWEEP: EncodedBody,
    Kind.ROW: lambda flat: RowChange(*flat),
    Kind.CONTROL: lambda flat: Control(*flat),
}


def _packable(value: Any) -> Any:
    """A decoded value (see `values.decode`) as what MessagePack can hold without loss."""
    if isinstance(value, dict):
        return {name: _packable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_packable(item) for item in value]
    if isinstance(value, JsonNumber):
        return msgspec.msgpack.Ext(_JSON_NUMBER, str(value).encode())
    if isinstance(value, Decimal):
        return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
    if type(value) is int and value not in _INTEGERS:
        # In hexadecimal, since Python refuses to write or read over 4,300 decimal digits.
        return msgspec.msgpack.Ext(_BIG_INTEGER, hex(value).encode())
    return value


def _extension(code: int, data: memoryview) -> Any:
    text = str(data, "ascii")
    if code == _DECIMAL:
        return Decimal(text)
    if code == _JSON_NUMBER:
        return JsonNumber(text)
    if code == _BIG_INTEGER:
        return int(text, 16)
    raise ValueError(f"extension type {code} is none of ours")


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[int, list[tuple[list[_Item], _Columns | None]]], ext_hook=_extension).decode
_unpack_any = msgspec.msgpack.Decoder(ext_hook=_extension).decode
