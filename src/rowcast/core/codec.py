"""Entries as bytes, and back: what a log that is not in this process keeps.

The bytes are MessagePack: `[version, [entry, …]]`, an entry being an array. The payload of a DATA or SWEEP entry is
encoded by whoever appends it, once for all replicas, and comes back as an `EncodedBody`. The values of a ROW entry
come back equal, and of the same types: subscription rules compare them with values that were read by SQL.

Source: the MessagePack specification, "Extension types", for what it has no type for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import msgspec

from rowcast.core.entry import Control, Entry, Kind, RowChange
from rowcast.core.position import Place
from rowcast.core.values import JsonNumber
from rowcast.errors import DecodeError

VERSION = 1
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


class EncodedBody(msgspec.Struct, gc=False):
    """The body of a DATA or SWEEP entry that was encoded where it was appended."""

    data: bytes

    @property
    def size(self) -> int:
        """Estimated memory in bytes: the data, and the frame that they become."""
        return 2 * len(self.data)

    def encode(self, limit: int) -> bytes:
        """The event's data; see `entry.Body`. It was cut to the limit of whoever appended it."""
        return self.data


def encode(entries: Iterable[Entry], limit: int) -> bytes:
    """Entries as bytes. `limit` is `max_event` in bytes: see `entry.Body.encode`."""
    return _pack([VERSION, [_flat(entry, limit) for entry in entries]])


def decode(data: bytes, at: Place | None = None) -> list[Entry]:
    """The entries of `encode`. `at` replaces their places: a published entry gets its place by being appended.

    Raises `DecodeError` when the bytes are none of ours, or another version's.
    """
    try:
        try:
            version, items = _unpack(data)
        except msgspec.ValidationError:
            # Another version's entries may have another form: then that is what is wrong.
            (version, *_), items = _unpack_any(data), []
            if version == VERSION:
                raise
        if version != VERSION:
            raise DecodeError(f"the log holds entries of version {version}: update every replica to the same version")
        data_kind, new = Kind.DATA, Entry
        entries = []
        for item in items:
            # Nearly all are of this kind, and most of them nobody listens to: every call counts here.
            if item.kind == 0:
                body: Any = EncodedBody(item.flat)
                kind = data_kind
            else:
                body = _BODIES[item.kind](item.flat)
                kind = _KINDS[item.kind]
            entries.append(
                new(
                    kind,
                    at or (item.major, item.minor),
                    body,
                    topic=item.topic,
                    xid=item.xid,
                    key=item.key,
                    event=item.event,
                    time=item.time,
                    interval=item.interval,
                )
            )
        return entries
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise DecodeError(f"the log holds bytes that are no entries: {error}") from None


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
_unpack = msgspec.msgpack.Decoder(tuple[int, list[_Item]], ext_hook=_extension).decode
_unpack_any = msgspec.msgpack.Decoder(ext_hook=_extension).decode
