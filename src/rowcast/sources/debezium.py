"""What Debezium Server's HTTP sink sends: change events as JSON, with their schema or without, singly or in an array.

Source: Debezium's documentation, "Debezium Server", section "HTTP Client", and "Debezium connector for PostgreSQL",
section "Data change events".

A logical message (`op` m) with our prefix is what `publish_sql` put into the WAL. Other messages, tombstones,
heartbeats, the beginnings and ends of transactions, and schema changes are taken and ignored.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from typing import Literal

import msgspec

from rowcast.core.change import Action
from rowcast.sources.records import Delivery, JsonRow, Record, RecordError, Refused, SignedMessage, ToldRow, split

_ACTIONS: dict[str, Action] = {"c": "insert", "r": "read", "u": "update", "d": "delete", "t": "truncate"}

_PLACEHOLDER = "__debezium_unavailable_value"
_UNAVAILABLE = frozenset(
    {
        b'"%s"' % _PLACEHOLDER.encode(),
        b'"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="',  # the same, of a bytea
        b'["%s"]' % _PLACEHOLDER.encode(),  # the same, of an array
    }
)
"""What stands for a large value that an UPDATE did not touch and that the WAL therefore lacks."""

_NO_CHANGES = ("status", "ddl", "tableChanges")
"""Fields of events about transactions and schemas."""

_PREFIX = "rowcast"
"""Of our own logical messages."""

_PAST = 1 << 62


class _Source(msgspec.Struct, rename={"transaction_id": "txId"}):
    name: str = ""
    db: str = ""
    schema: str | None = None
    table: str | None = None
    lsn: int | None = None
    transaction_id: int | str | None = None
    ts_ms: int | None = None
    ts_us: int | None = None


class _Transaction(msgspec.Struct):
    total_order: int | None = None


class _LogicalMessage(msgspec.Struct):
    prefix: str
    content: str


class _Event(msgspec.Struct):
    op: Literal["c", "r", "u", "d", "t", "m"]
    source: msgspec.Raw
    before: JsonRow | None = None
    after: JsonRow | None = None
    transaction: _Transaction | None = None
    message: _LogicalMessage | None = None


_decode_row = msgspec.json.Decoder(JsonRow).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_source = msgspec.json.Decoder(_Source).decode


def parse(body: bytes) -> Delivery:
    """The records of a request's body. Raises `BadRequest` when it is none of Debezium's as a whole."""
    delivery = Delivery()
    seen: Counter[str] = Counter()
    for index, raw in enumerate([msgspec.Raw(b"null")] if body.strip() == b"null" else split(body)):
        try:
            record = _record(raw, seen)
        except RecordError as error:
            delivery.refused.append(Refused(index, str(error)))
        else:
            if record is None:
                delivery.ignored += 1
            else:
                delivery.records.append(record)
    return delivery


def _record(raw: msgspec.Raw, seen: Counter[str]) -> Record | SignedMessage | None:
    """The record of an event; None when it is of no concern to us. `seen` counts the keys of this delivery."""
    try:
        if (event := _event(raw)) is None:
            return None
        if event.op == "m":
            return _message(event.message)
        source = _decode_source(event.source)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError(f"it is no change event of Debezium's: {error}") from None
    # Databases without schemas tell their own name instead.
    schema = source.schema or source.db
    if not schema or not source.table:
        raise RecordError("its source names no table")
    new, old, partial = _rows(event)
    key = _key(event, source)
    seen[key] += 1
    return Record(
        _ACTIONS[event.op],
        schema,
        source.table,
        new,
        old,
        partial,
        _microseconds(source),
        # A COPY can put two equal rows at one place, into a table without a primary key.
        f"{key}\n{seen[key]}",
    )


def _event(raw: msgspec.Raw) -> _Event | None:
    if bytes(raw) == b"null":
        return None
    fields = _decode_row(raw)
    if "payload" in fields and "op" not in fields:
        raw = fields["payload"]
        if bytes(raw) == b"null":
            return None
        fields = _decode_row(raw)
    if "op" in fields:
        return _decode_event(raw)
    if any(name in fields for name in _NO_CHANGES) or fields.keys() <= {"ts_ms", "ts_us", "ts_ns"}:
        return None
    raise RecordError(
        "it has no op: send change events as they are, without the transformation ExtractNewRecordState "
        "and not as CloudEvents"
    )


def _message(message: _LogicalMessage | None) -> SignedMessage | None:
    if message is None or message.prefix != _PREFIX:
        return None
    try:
        return SignedMessage(base64.b64decode(message.content, validate=True))
    except ValueError:
        raise RecordError("the content of its message is not in base64: leave binary.handling.mode as it is") from None


def _rows(event: _Event) -> tuple[ToldRow | None, ToldRow | None, bool]:
    """The row after and before, and whether the latter is the replica identity's columns only."""
    new = None if event.after is None else _told(event.after)
    old = None if event.before is None else _told(event.before)
    if event.op == "t":
        return None, None, False
    if event.op == "d":
        return None, old, False
    if new is None:
        raise RecordError(f"it has no after, which an event with op {event.op} must have")
    if event.op != "u":
        return new, None, False
    return new, old, old is not None and not new.keys() <= old.keys()


def _told(row: JsonRow) -> ToldRow:
    """A row, with None for the columns of which only a placeholder came."""
    return {name: None if bytes(value) in _UNAVAILABLE else value for name, value in row.items()}


def _key(event: _Event, source: _Source) -> str:
    """What tells the event again: its transaction, its place in it, and, as rows can share one, its rows."""
    rows = hashlib.sha256(event.op.encode())
    for row in (event.before, event.after):
        rows.update(b"-" if row is None else msgspec.json.encode(row))
    order = event.transaction.total_order if event.transaction is not None else None
    # Of a connector for another database the whole source says where the event stood.
    place = (
        f"{source.lsn}\n{source.transaction_id}" if source.lsn is not None else hashlib.sha256(event.source).hexdigest()
    )
    parts = ("debezium", source.name, source.db, source.schema, source.table, place, order, rows.hexdigest())
    return "\n".join(map(str, parts))


def _microseconds(source: _Source) -> int | None:
    if source.ts_us is not None:
        at: int | None = source.ts_us
    else:
        at = None if source.ts_ms is None else source.ts_ms * 1000
    return at if at is not None and abs(at) < _PAST else None
