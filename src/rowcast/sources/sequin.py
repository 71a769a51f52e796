"""What Sequin's webhook sink sends: change messages, singly or as `{"data": [...]}`.

Source: Sequin's documentation, "Webhook sink" and "Messages". `changes` holds the old values of changed columns;
it is null, or {} where the table's replica identity does not give them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from rowcast.sources.records import Delivery, JsonRow, Record, RecordError, Refused, split


class _Named(msgspec.Struct):
    id: str = ""


class _Metadata(msgspec.Struct):
    table_name: str
    table_schema: str = "public"
    commit_timestamp: str | None = None
    commit_lsn: int | None = None
    commit_idx: int | None = None
    idempotency_key: str | None = None
    database: _Named | None = None
    consumer: _Named | None = None


class _Message(msgspec.Struct):
    record: JsonRow
    action: Literal["insert", "update", "delete", "read"]
    metadata: _Metadata
    changes: JsonRow | None = None


_decode = msgspec.json.Decoder(_Message).decode


def parse(body: bytes) -> Delivery:
    """The records of a request's body. Raises `BadRequest` when it is none of Sequin's as a whole."""
    delivery = Delivery()
    for index, raw in enumerate(split(body)):
        try:
            delivery.records.append(_record(raw))
        except RecordError as error:
            delivery.refused.append(Refused(index, str(error)))
    return delivery


def _record(raw: msgspec.Raw) -> Record:
    try:
        message = _decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError(f"it is no change message of Sequin's: {error}") from None
    metadata, row = message.metadata, message.record
    old: JsonRow | None = None
    if message.action == "delete":
        old = row
    elif message.action == "update" and message.changes:
        old = row | message.changes
    return Record(
        message.action,
        metadata.table_schema,
        metadata.table_name,
        None if message.action == "delete" else row,
        old,
        commit_time=_microseconds(metadata.commit_timestamp),
        key=_key(message),
    )


def _microseconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return round(at.timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise RecordError(f"its metadata.commit_timestamp {text[:40]!r} is no time of ISO 8601") from None


def _key(message: _Message) -> str:
    """The idempotency key is unique within a database; an older Sequin gives the place in the WAL only."""
    metadata = message.metadata
    unique = metadata.idempotency_key
    if unique is None and metadata.commit_lsn is not None and metadata.commit_idx is not None:
        unique = f"{metadata.commit_lsn}:{metadata.commit_idx}"
    if not unique:
        return ""
    origin = (metadata.database or metadata.consumer or _Named()).id
    return f"sequin\n{origin}\n{metadata.table_schema}\n{metadata.table_name}\n{message.action}\n{unique}"
