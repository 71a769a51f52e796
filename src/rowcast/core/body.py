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
from rowcast.core.change import UNCHANGED, Change, RawTuple, Relation
from rowcast.core.run import EncodedBody
from rowcast.core.writer import RowWriter

Envelope = Literal["rowcast", "sequin"]

_encode = msgspec.json.Encoder().encode
_join = b"".join
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999: what RFC 3339 can say."""


def timestamp(microseconds: int) -> str:
    """Microseconds since the Unix epoch as RFC 3339 in UTC; years that it can't say become 1 or 9999."""
    return _stamp(microseconds).decode()


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    # Formatting a date costs as much as encoding a small row, and changes come many to the second.
    return (_EPOCH + timedelta(seconds=min(max(seconds, _FIRST), _LAST))).isoformat()[:19].encode()


@functools.lru_cache(maxsize=64)
def _stamp(microseconds: int) -> bytes:
    # All rows of a transaction have the same. Not by way of `timestamp`: a commit that comes alone has one of its own.
    return b"%b.%06dZ" % (_second(microseconds // 1_000_000), microseconds % 1_000_000)


class Form:
    """How the changes of one relation are written: made once, for all bodies of a route.

    `columns` are those sent (None: all), `key` those that remain when the event would be too large (None: the
    replica identity's). `numeric`: see `values.wire`. `envelope` "sequin" is the form that Sequin's webhooks have.
    """

    __slots__ = ("_close", "_columns", "_key", "_metadata", "_numeric", "_open", "_topic", "relation", "rows")

    def __init__(
        self,
        relation: Relation,
        columns: frozenset[str] | None = None,
        key: tuple[str, ...] | None = None,
        numeric: values.Numeric = "string",
        envelope: Envelope = "rowcast",
    ) -> None:
        self.relation = relation
        self.rows = RowWriter(relation.columns, columns, numeric)
        self._columns = columns
        self._key = key
        self._numeric = numeric
        self._topic = envelope == "rowcast"
        self._open, self._close = (b'{"topic":', b"}") if self._topic else (b'{"data":[{"action":"', b"}]}")
        schema, table = _encode(relation.schema), _encode(relation.table)
        self._metadata = b',"metadata":{"table_schema":' + schema + b',"table_name":' + table + b',"commit_timestamp":"'

    def event(
        self, topic: str, action: str, record: bytes, changes: bytes, time: int, more: bytes = b"", moved: bytes = b""
    ) -> bytes:
        """An event of its parts. `more` is what else its metadata has, `moved` what follows them."""
        addressed = (_encode(topic), b',"action":"') if self._topic else ()
        return _join(
            (self._open, *addressed, action.encode(), b'","record":', record, b',"changes":', changes)
            + (self._metadata, _stamp(time), b'"', more, b"}", moved, self._close)
        )

    def known(self, raw: RawTuple, *, only_key: bool = False) -> dict[str, Any]:
        """The columns sent of a row, for msgspec to encode one by one."""
        sent, numeric = self._columns, self._numeric
        row: dict[str, Any] = {}
        for column, value in zip(self.relation.columns, raw, strict=True):
            if (sent is None or column.name in sent) and (column.key or not only_key):
                if value is None:
                    row[column.name] = None
                elif type(value) is bytes:
                    row[column.name] = values.wire(column, value, numeric)
        return row

    def unchanged(self, change: Change) -> bytes:
        """What the metadata says of the columns sent that the WAL lacks."""
        names = [name for name in change.unchanged if self._columns is None or name in self._columns]
        return b',"unchanged":' + _encode(names) if names else b""

    def key_columns(self) -> Iterable[str]:
        """What remains of a row that is too large."""
        if self._key is not None:
            return self._key
        return (column.name for column in self.relation.columns if column.key)


class ChangeBody(msgspec.Struct, gc=False, eq=False):
    """A change, as sent to the streams of one topic.

    `form` is its relation's. `moved`: the row did not go away but left this topic, so it is sent as a delete, with
    `"moved": true` beside the action.
    """

    change: Change
    topic: str
    form: Form
    moved: bool = False

    @property
    def size(self) -> int:
        """Estimated memory in bytes: the raw values, and the frame that they become."""
        change = self.change
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
        truncate null. `changes` has the old values of the columns that an update changed, as far as the replica
        identity gives them: of whole rows, or of the key alone if that changed; else null. Column values are as
        `values.wire` says.

        An event of over `limit` bytes is cut: `record` has the key's columns, as far as they fit, `changes` is
        null and `metadata.truncated` true. Only the names of topic and table are sent whatever they take.
        """
        change, form, new = self.change, self.form, self.change.new
        record: bytes | None
        if new is not None and change.old is None and not self.moved and UNCHANGED not in new:
            # What the rest makes of it, without the calls: nearly every change is like this.
            record = form.rows.write(new)
            encoded = form.event(self.topic, change.action, record, b"null", change.commit_time)
        else:
            record = self._record()
            encoded = self._event(record or b"null", self._changes() if change.old is not None else b"null")
        return encoded if len(encoded) <= limit or record is None else self._cut(limit)

    def row(self, limit: int) -> tuple[bytes, bool]:
        """The JSON of `record` alone, and whether it was cut: of one of over `limit` bytes only the key's columns
        remain, as far as they fit."""
        encoded = self._record() or b"{}"
        if len(encoded) <= limit:
            return encoded, False
        kept: dict[str, Any] = {}
        record = self._values()
        for name in self.form.key_columns():
            if name in record and len(_encode(kept | {name: record[name]})) <= limit:
                kept[name] = record[name]
        return _encode(kept), True

    # Values

    def _record(self) -> bytes | None:
        change = self.change
        if change.new is not None and not self.moved:
            return self.form.rows.write(change.new)
        if change.old is None:
            return None
        if not change.old_is_key:
            return self.form.rows.write(change.old)
        columns = self.form.relation.columns
        return self.form.rows.write_known(change.old, lambda index: columns[index].key)

    def _values(self) -> dict[str, Any]:
        change = self.change
        if change.new is not None and not self.moved:
            return self.form.known(change.new)
        return {} if change.old is None else self.form.known(change.old, only_key=change.old_is_key)

    def _changes(self) -> bytes:
        change = self.change
        if change.old is None or change.new is None or change.action != "update" or self.moved:
            return b"null"
        # Compared as text: NaN differs from itself, and 1.0 equals 1.00, but neither is so for the reader.
        old, new = change.old, change.new
        if not change.old_is_key:
            return self.form.rows.write_known(
                old, lambda index: new[index] is not UNCHANGED and old[index] != new[index]
            )
        # Postgres sends the old key where an update changed it, and nothing of the other columns.
        columns = self.form.relation.columns
        changes = self.form.rows.write_known(old, lambda index: columns[index].key and old[index] != new[index])
        return changes if changes != b"{}" else b"null"

    # The event

    def _event(self, record: bytes, changes: bytes = b"null", *, cut: bool = False, unchanged: bool = True) -> bytes:
        change, form, more = self.change, self.form, b""
        if unchanged and not self.moved and change.new is not None and UNCHANGED in change.new:
            more = form.unchanged(change)
        if cut:
            more += b',"truncated":true'
        if self.moved:
            return form.event(self.topic, "delete", record, changes, change.commit_time, more, b',"moved":true')
        return form.event(self.topic, change.action, record, changes, change.commit_time, more)

    def _cut(self, limit: int) -> bytes:
        """The event with no more than the key's columns."""
        record = self._values()
        whole = len(self._event(b"{}", cut=True)) <= limit
        room = limit - len(self._event(b"{}", cut=True, unchanged=whole))
        kept: dict[str, Any] = {}
        for name in self.form.key_columns():
            if name in record:
                needs = len(_encode({name: record[name]})) - 1  # the braces are there, a comma is not
                if needs <= room:
                    kept[name] = record[name]
                    room -= needs
        return self._event(_encode(kept), cut=True, unchanged=whole)


class PublishBody(msgspec.Struct, gc=False, eq=False):
    """Published data: `{"topic": …, "data": …}`, with `"key"` if one was given. `data` is JSON text. `trace` is the
    `traceparent` of whoever published it, for `metadata` ("": there is none)."""

    _topic: str
    _data: bytes
    _key: str | None = None
    _trace: str = ""

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
        if self._trace:
            event["metadata"] = {"traceparent": self._trace}
        encoded = _encode(event)
        if len(encoded) > limit:
            event |= {"data": None, "metadata": {"truncated": True}}
            encoded = _encode(event)
            if len(encoded) > limit and event.pop("key", None) is not None:
                encoded = _encode(event)
        return encoded


def body_of(
    form: Literal["data", "event", "sweep"], topic: str, data: bytes, key: str | None, trace: str = ""
) -> PublishBody | EncodedBody:
    """The body of what was put into the log in a form; see `ports.Draft`."""
    return PublishBody(topic, data, key, trace) if form == "data" else EncodedBody(data)
