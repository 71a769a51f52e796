"""Bodies: what a DATA or SWEEP entry says, encoded when the first stream needs it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from rowcast.core import values
from rowcast.core.change import Change

Envelope = Literal["rowcast", "sequin"]

_encode = msgspec.json.encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(microseconds: int) -> str:
    """Microseconds since the Unix epoch as RFC 3339 in UTC."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class ChangeBody:
    """A change, as sent to the streams of one topic.

    `columns` are those sent (None: all), `key` those that remain when the event would be too large (None: the
    replica identity's). `moved`: the row did not go away but left this topic, so this is sent as a delete.
    `envelope` "sequin" is the form that Sequin's webhooks have.
    """

    __slots__ = ("_change", "_columns", "_envelope", "_key", "_moved", "_numeric", "_topic")

    def __init__(
        self,
        change: Change,
        topic: str,
        *,
        columns: frozenset[str] | None = None,
        key: tuple[str, ...] | None = None,
        numeric: values.Numeric = "string",
        moved: bool = False,
        envelope: Envelope = "rowcast",
    ) -> None:
        self._change = change
        self._topic = topic
        self._columns = columns
        self._key = key
        self._numeric = numeric
        self._moved = moved
        self._envelope = envelope

    @property
    def size(self) -> int:
        """Estimated memory in bytes: the raw values, and the frame that they become."""
        size = 0
        for row in (self._change.new, self._change.old):
            if row is not None:
                size += 60 * len(row)
                for value in row:
                    if type(value) is bytes:
                        size += 2 * len(value)
        return size

    def encode(self, limit: int) -> bytes:
        """The event's data; see `entry.Body`."""
        change = self._change
        record = change.old_row if self._moved else change.row
        encoded = self._encode(None if change.action == "truncate" else record, self._changes(), cut=False)
        if len(encoded) <= limit or change.action == "truncate":
            return encoded
        key = self._key or tuple(column.name for column in change.relation.columns if column.key)
        kept = {name: record[name] for name in key if name in record}
        encoded = self._encode(kept, None, cut=True)
        return encoded if len(encoded) <= limit else self._encode({}, None, cut=True)

    def _changes(self) -> dict[str, Any] | None:
        """The old values of the changed columns, where the identity gives whole rows."""
        change = self._change
        if change.action != "update" or change.old is None or change.old_is_key or self._moved:
            return None
        row, old = change.row, change.old_row
        return {name: old[name] for name in row if name in old and old[name] != row[name]}

    def _encode(self, record: dict[str, Any] | None, changes: dict[str, Any] | None, *, cut: bool) -> bytes:
        change = self._change
        metadata: dict[str, Any] = {
            "table_schema": change.schema,
            "table_name": change.table,
            "commit_timestamp": timestamp(change.commit_time),
        }
        if unchanged := [name for name in change.unchanged if self._sends(name)]:
            metadata["unchanged"] = unchanged
        if cut:
            metadata["truncated"] = True
        event: dict[str, Any] = {
            "action": "delete" if self._moved else change.action,
            "record": None if record is None else self._pick(record),
            "changes": None if changes is None else self._pick(changes),
            "metadata": metadata,
        }
        if self._moved:
            event["moved"] = True
        if self._envelope == "sequin":
            return _encode({"data": [event]})
        return _encode({"topic": self._topic, **event})

    def _pick(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: values.jsonable(value, self._numeric) for name, value in row.items() if self._sends(name)}

    def _sends(self, name: str) -> bool:
        return self._columns is None or name in self._columns


class PublishBody:
    """Published data: `{"topic": …, "data": …}`, with `"key"` if one was given. `data` is JSON text."""

    __slots__ = ("_data", "_key", "_topic")

    def __init__(self, topic: str, data: bytes, key: str | None = None) -> None:
        self._topic = topic
        self._data = data
        self._key = key

    @property
    def size(self) -> int:
        """Estimated memory in bytes."""
        return 2 * len(self._data) + len(self._topic)

    def encode(self, limit: int) -> bytes:
        """The event's data; see `entry.Body`."""
        event: dict[str, Any] = {"topic": self._topic, "data": msgspec.Raw(self._data)}
        if self._key is not None:
            event["key"] = self._key
        encoded = _encode(event)
        if len(encoded) > limit:
            event["data"] = None
            event["metadata"] = {"truncated": True}
            encoded = _encode(event)
        return encoded
