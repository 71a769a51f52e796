"""Bodies: what a DATA or SWEEP entry says, encoded when the first stream needs it.

They are encoded where every stream is served from, so encoding never fails: not for any value, and not for a
limit that is too small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from rowcast.core import values
from rowcast.core.change import UNCHANGED, Change, RawTuple
from rowcast.core.codec import EncodedBody

Envelope = Literal["rowcast", "sequin"]

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999: what RFC 3339 can say."""


def timestamp(microseconds: int) -> str:
    """Microseconds since the Unix epoch as RFC 3339 in UTC; years that it can't say become 1 or 9999."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{_second(min(max(seconds, _FIRST), _LAST))}.{rest:06}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    # Formatting a date costs as much as encoding a small row, and changes come many to the second.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


class ChangeBody:
    """A change, as sent to the streams of one topic.

    `columns` are those sent (None: all), `key` those that remain when the event would be too large (None: the
    replica identity's). `numeric`: see `values.wire`. `moved`: the row did not go away but left this topic, so it
    is sent as a delete, with `"moved": true` beside the action. `envelope` "sequin" is the form that Sequin's
    webhooks have.
    """

    __slots__ = ("_change", "_columns", "_envelope", "_key", "_moved", "_numeric", "_topic")

    def __init__(
        self,
        change: Change,
        topic: str,
        columns: frozenset[str] | None = None,
        key: tuple[str, ...] | None = None,
        numeric: values.Numeric = "string",
        moved: bool = False,  # given by place: one of these is made for every entry
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
        change = self._change
        if change.length:
            return 2 * change.length + 50 * len(change.relation.columns)
        size = 0
        for row in (change.new, change.old):
            if row is not None:
                size += 60 * len(row)
                for value in row:
                    if type(value) is bytes:
                        size += 2 * len(value)
        return size

    def encode(self, limit: int) -> bytes:
        """The event's data; see `entry.Body`.

        `record` is the row: the new one, of a delete (also one that is `moved`) what is known of the old, of a
        truncate null. `changes` has the old values of the columns that an update changed, where the replica
        identity gives whole rows, else null. Column values are as `values.wire` says.

        An event of over `limit` bytes is cut: `record` has the key's columns, as far as they fit, `changes` is
        null and `metadata.truncated` true. Only the names of topic and table are sent whatever they take.
        """
        record = self._record()
        encoded = self._event(record, self._changes())
        return encoded if len(encoded) <= limit or record is None else self._cut(record, limit)

    def row(self, limit: int) -> tuple[bytes, bool]:
        """The JSON of `record` alone, and whether it was cut: of one of over `limit` bytes only the key's columns
        remain, as far as they fit."""
        record = self._record() or {}
        encoded = _encode(record)
        if len(encoded) <= limit:
            return encoded, False
        kept: dict[str, Any] = {}
        for name in self._key_columns():
            if name in record and len(_encode(kept | {name: record[name]})) <= limit:
                kept[name] = record[name]
        return _encode(kept), True

    # Values

    def _record(self) -> dict[str, Any] | None:
        change = self._change
        if change.new is not None and not self._moved:
            return self._row(change.new)
        if change.old is None:
            return None
        return self._row(change.old, only_key=change.old_is_key)

    def _row(self, raw: RawTuple, *, only_key: bool = False) -> dict[str, Any]:
        sent, numeric, wire = self._columns, self._numeric, values.wire
        row: dict[str, Any] = {}
        for column, value in zip(self._change.relation.columns, raw, strict=True):
            name = column.name
            if (sent is not None and name not in sent) or (only_key and not column.key):
                continue
            if value is None:
                row[name] = None
            elif type(value) is bytes:
                row[name] = wire(column, value, numeric)
        return row

    def _changes(self) -> dict[str, Any] | None:
        change = self._change
        if change.action != "update" or change.new is None or change.old is None or change.old_is_key or self._moved:
            return None
        # Compared as text: NaN differs from itself, and 1.0 equals 1.00, but neither is so for the reader.
        differs = zip(change.old, change.new, strict=True)
        before = tuple(UNCHANGED if old == new or new is UNCHANGED else old for old, new in differs)
        return self._row(before)

    # The event

    def _event(
        self,
        record: dict[str, Any] | None,
        changes: dict[str, Any] | None = None,
        *,
        cut: bool = False,
        unchanged: bool = True,
    ) -> bytes:
        change = self._change
        metadata: dict[str, Any] = {
            "table_schema": change.schema,
            "table_name": change.table,
            "commit_timestamp": timestamp(change.commit_time),
        }
        if unchanged and not self._moved and (names := self._unchanged()):
            metadata["unchanged"] = names
        if cut:
            metadata["truncated"] = True
        event: dict[str, Any] = {
            "action": "delete" if self._moved else change.action,
            "record": record,
            "changes": changes,
            "metadata": metadata,
        }
        if self._moved:
            event["moved"] = True
        return _encode({"data": [event]} if self._envelope == "sequin" else {"topic": self._topic, **event})

    def _unchanged(self) -> list[str]:
        if self._change.new is None or UNCHANGED not in self._change.new:
            return []
        return [name for name in self._change.unchanged if self._columns is None or name in self._columns]

    def _cut(self, record: dict[str, Any], limit: int) -> bytes:
        """The event with no more than the key's columns."""
        whole = len(self._event({}, cut=True)) <= limit
        room = limit - len(self._event({}, cut=True, unchanged=whole))
        kept: dict[str, Any] = {}
        for name in self._key_columns():
            if name in record:
                needs = len(_encode({name: record[name]})) - 1  # the braces are there, a comma is not
                if needs <= room:
                    kept[name] = record[name]
                    room -= needs
        return self._event(kept, cut=True, unchanged=whole)

    def _key_columns(self) -> Iterable[str]:
        if self._key is not None:
            return self._key
        return (column.name for column in self._change.relation.columns if column.key)


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
        """The event's data; see `entry.Body`.

        One of over `limit` bytes has null for its data and `metadata.truncated` true, and its key only if that
        fits. Only the topic's name is sent whatever it takes.
        """
        event: dict[str, Any] = {"topic": self._topic, "data": values.json_line(self._data)}
        if self._key is not None:
            event["key"] = self._key
        encoded = _encode(event)
        if len(encoded) > limit:
            event |= {"data": None, "metadata": {"truncated": True}}
            encoded = _encode(event)
            if len(encoded) > limit and event.pop("key", None) is not None:
                encoded = _encode(event)
        return encoded


def body_of(
    form: Literal["data", "event", "sweep"], topic: str, data: bytes, key: str | None
) -> PublishBody | EncodedBody:
    """The body of what was put into the log in a form; see `ports.Draft`."""
    return PublishBody(topic, data, key) if form == "data" else EncodedBody(data)
