"""A decoder of pgoutput, the server's logical replication output (protocol versions 1 and 2, no streaming).

Source: Postgres documentation, chapter "Frontend/Backend Protocol", section "Logical Replication Message Formats".

The decoder numbers the changes of a transaction, since a change's place is `(commit LSN, (i + 1) << 20)`.
What counts is the same on every walsender: row changes, truncated tables and transactional messages, whether
or not anybody wants them. Relation, Type and Origin messages come at different moments on different
walsenders (after a reconnect they are sent again), so they never count. Non-transactional messages have no
place in the commit order: their LSN can equal the next commit's; they are not events here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from rowcast.core.change import UNCHANGED, Action, Change, Column, Message, RawTuple, Relation
from rowcast.core.position import MINOR_SPACING
from rowcast.errors import DecodeError

POSTGRES_EPOCH = 946_684_800_000_000
"""Microseconds from the Unix epoch to 2000-01-01, from which Postgres counts."""

_BEGIN = struct.Struct("!QqI")
_COMMIT = struct.Struct("!bQQq")
_U32 = struct.Struct("!I")
_U16 = struct.Struct("!H")
_RELATION_COLUMN = struct.Struct("!Ii")
_MESSAGE = struct.Struct("!bQ")
_TRUNCATE = struct.Struct("!Ib")

_NOT_ASKED_FOR = {
    b"S": "Stream Start",
    b"E": "Stream Stop",
    b"c": "Stream Commit",
    b"A": "Stream Abort",
    b"b": "Begin Prepare",
    b"P": "Prepare",
    b"K": "Commit Prepared",
    b"r": "Rollback Prepared",
    b"p": "Stream Prepare",
}
"""Messages that the server sends only to who asks for streaming or two-phase commits."""

_IDENTITIES = "dnfi"


class Begin(msgspec.Struct, frozen=True):
    """A transaction begins.

    `commit_lsn` is where its commit record starts (the server knows it already, since it sends a transaction
    when it is committed), `commit_time` in microseconds since the Unix epoch; `xid` has 32 bits.
    """

    commit_lsn: int
    commit_time: int
    xid: int


class Commit(msgspec.Struct, frozen=True):
    """The transaction is complete.

    `end_lsn` is behind its commit record: no later commit starts below it. `commit_time` as in `Begin`.
    """

    commit_lsn: int
    end_lsn: int
    commit_time: int


Event = Begin | Commit | Message | Change | list[Change]


class Decoder:
    """Turns the payloads of one replication session's XLogData messages into events.

    `wanted` says of a relation whether its changes are decoded (None: all are); it is asked once per Relation
    message. A change of an unwanted relation is counted and skipped. Relations and types are kept: each session
    needs a decoder of its own, since the server tells them anew.
    """

    def __init__(self, wanted: Callable[[Relation], bool] | None = None) -> None:
        self._wanted = wanted
        self._relations: dict[int, tuple[Relation, bool]] = {}
        self._types: dict[int, str] = {}
        self._begin = Begin(0, 0, 0)
        self._index = 0
        self.in_transaction = False
        """Whether a Begin has come, and its Commit has not."""

    def ask_again(self) -> None:
        """What is wanted has changed: ask of every relation that is known."""
        if self._wanted is not None:
            self._relations = {oid: (known, self._wanted(known)) for oid, (known, _) in self._relations.items()}

    @property
    def index(self) -> int:
        """How many changes of the current transaction have been counted."""
        return self._index

    @property
    def commit_lsn(self) -> int:
        """The commit LSN of the current transaction, or of the last."""
        return self._begin.commit_lsn

    def decode(self, data: bytes) -> Event | None:
        """Decode one message.

        Begin and Commit give their like, Insert, Update and Delete a Change, Truncate a list of Changes, one for
        each table (CASCADE and RESTART IDENTITY are not told on), a transactional logical message a Message. None
        is nothing that anybody must know of: Relation, Type, Origin, a non-transactional message, and a change of
        an unwanted relation.

        Raises `DecodeError` on anything that is not a message of protocol 1 or 2 without streaming, or that
        comes where it can't.
        """
        try:
            kind = data[0]
            if kind == 0x49:  # I
                return self._insert(data)
            if kind == 0x42:  # B
                commit_lsn, time, xid = _BEGIN.unpack_from(data, 1)
                if len(data) != _BEGIN.size + 1:
                    _ends(data, _BEGIN.size + 1)
                self._index = 0
                self.in_transaction = True
                begin = self._begin = Begin(commit_lsn, time + POSTGRES_EPOCH, xid)
                return begin
            if kind == 0x43:  # C
                _, commit_lsn, end_lsn, time = _COMMIT.unpack_from(data, 1)
                if len(data) != _COMMIT.size + 1:
                    _ends(data, _COMMIT.size + 1)
                if not self.in_transaction:
                    raise DecodeError(f"a Commit at {commit_lsn:X} without its Begin")
                self.in_transaction = False
                return Commit(commit_lsn, end_lsn, time + POSTGRES_EPOCH)
            if kind == 0x55:  # U
                return self._update(data)
            if kind == 0x44:  # D
                return self._delete(data)
            return self._other(data[:1], data)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise DecodeError(f"malformed pgoutput message {data[:1]!r}: {error}") from None

    # Rows

    def _insert(self, data: bytes) -> Change | None:
        # The hot path of a busy database: what `_relation` and `_change` do, without calling them.
        (oid,) = _U32.unpack_from(data, 1)
        found = self._relations.get(oid)
        if found is None or not self.in_transaction:
            found = self._known(oid)
        relation, wanted = found
        index = self._index = self._index + 1
        if not wanted:
            return None
        if data[5] != 0x4E:
            _expect(data[5:6], b"N")
        new, end = _tuple(data, 6, relation)
        length = len(data)
        if end != length:
            _ends(data, end)
        begin = self._begin
        place = (begin.commit_lsn, index * MINOR_SPACING)
        return Change("insert", relation, new, None, False, place, begin.xid, begin.commit_time, length)

    def _update(self, data: bytes) -> Change | None:
        relation, wanted = self._relation(data)
        self._index += 1
        if not wanted:
            return None
        old: RawTuple | None = None
        marker = data[5:6]
        at = 6
        if marker in (b"K", b"O"):
            old, at = _tuple(data, at, relation)
            _expect(data[at : at + 1], b"N")
            at += 1
        else:
            _expect(marker, b"N")
        new, at = _tuple(data, at, relation)
        _ends(data, at)
        if marker == b"O" and old is not None and UNCHANGED in new:
            # Unchanged TOASTed values are absent from the new tuple even under REPLICA IDENTITY FULL.
            new = tuple(before if now is UNCHANGED else now for now, before in zip(new, old, strict=True))
        return self._change("update", relation, new, old, old_is_key=marker == b"K", length=len(data))

    def _delete(self, data: bytes) -> Change | None:
        relation, wanted = self._relation(data)
        self._index += 1
        if not wanted:
            return None
        marker = data[5:6]
        if marker not in (b"K", b"O"):
            raise DecodeError(f"malformed pgoutput message: a Delete with a tuple {marker!r}")
        old, end = _tuple(data, 6, relation)
        _ends(data, end)
        return self._change("delete", relation, None, old, old_is_key=marker == b"K", length=len(data))

    def _relation(self, data: bytes) -> tuple[Relation, bool]:
        (oid,) = _U32.unpack_from(data, 1)
        return self._known(oid)

    def _known(self, oid: int) -> tuple[Relation, bool]:
        if not self.in_transaction:
            raise DecodeError(f"a change of relation {oid} outside a transaction")
        found = self._relations.get(oid)
        if found is None:
            raise DecodeError(f"a change of relation {oid}, of which no Relation message has told")
        return found

    def _change(
        self,
        action: Action,
        relation: Relation,
        new: RawTuple | None,
        old: RawTuple | None,
        *,
        old_is_key: bool = False,
        length: int = 0,
    ) -> Change:
        begin = self._begin
        return Change(
            action,
            relation,
            new,
            old,
            old_is_key=old_is_key,
            place=(begin.commit_lsn, self._index * MINOR_SPACING),
            xid=begin.xid,
            commit_time=begin.commit_time,
            length=length,
        )

    # Everything else

    def _other(self, kind: bytes, data: bytes) -> Event | None:
        if kind == b"R":
            self._learn(data)
            return None
        if kind == b"Y":
            self._learn_type(data)
            return None
        if kind == b"M":
            return self._message(data)
        if kind == b"T":
            return self._truncate(data)
        if kind == b"O":
            _, end = _string(data, 9)
            _ends(data, end)
            return None
        if kind in _NOT_ASKED_FOR:
            raise DecodeError(
                f"{_NOT_ASKED_FOR[kind]}: neither streaming of unfinished transactions nor two-phase commits "
                "were asked for"
            )
        raise DecodeError(f"unknown pgoutput message {kind!r}")

    def _learn_type(self, data: bytes) -> None:
        """Sent before the Relation that has a column of it; of a domain the name is its base type's."""
        (oid,) = _U32.unpack_from(data, 1)
        schema, at = _string(data, 5)
        name, end = _string(data, at)
        _ends(data, end)
        # The catalogue's own schema is sent as "". A type of another schema may be called like a built-in one.
        self._types[oid] = f"{schema}.{name}" if schema else name

    def _learn(self, data: bytes) -> None:
        (oid,) = _U32.unpack_from(data, 1)
        schema, at = _string(data, 5)
        table, at = _string(data, at)
        identity = chr(data[at])
        if identity not in _IDENTITIES:
            raise DecodeError(f"malformed pgoutput message: {schema}.{table} has a replica identity {identity!r}")
        (count,) = _U16.unpack_from(data, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            flags = data[at]
            name, at = _string(data, at + 1)
            type_oid, typmod = _RELATION_COLUMN.unpack_from(data, at)
            at += 8
            columns.append(Column(name, type_oid, typmod, bool(flags & 1), self._types.get(type_oid, "")))
        _ends(data, at)
        relation = Relation(oid, schema or "pg_catalog", table, identity, tuple(columns))
        self._relations[oid] = (relation, self._wanted is None or self._wanted(relation))

    def _message(self, data: bytes) -> Message | None:
        flags, _lsn = _MESSAGE.unpack_from(data, 1)
        prefix, at = _string(data, 10)
        (length,) = _U32.unpack_from(data, at)
        content = data[at + 4 :]
        _ends(data, at + 4 + length)
        if not flags & 1:
            return None
        if not self.in_transaction:
            raise DecodeError("a transactional message outside a transaction")
        self._index += 1
        begin = self._begin
        place = (begin.commit_lsn, self._index * MINOR_SPACING)
        return Message(prefix, content, place, begin.xid, begin.commit_time)

    def _truncate(self, data: bytes) -> list[Change]:
        count, _options = _TRUNCATE.unpack_from(data, 1)
        _ends(data, 6 + 4 * count)
        changes = []
        for (oid,) in _U32.iter_unpack(data[6:]):
            relation, wanted = self._known(oid)
            self._index += 1
            if wanted:
                changes.append(self._change("truncate", relation, None, None))
        return changes


def _tuple(data: bytes, at: int, relation: Relation) -> tuple[RawTuple, int]:
    """TupleData: for each column its kind, and for text its length and bytes."""
    (count,) = _U16.unpack_from(data, at)
    if count != len(relation.columns):
        raise DecodeError(f"a row of {count} columns for {relation.name}, which has {len(relation.columns)}")
    at += 2
    unpack = _U32.unpack_from
    row: list[bytes | None] = []
    append = row.append
    starts = data.startswith
    for _ in range(count):
        if starts(b"t\0\0\0", at):  # a text of less than 256 bytes: the common case needs no unpacking
            end = at + 5 + data[at + 4]
            append(data[at + 5 : end])
            at = end
            continue
        kind = data[at]
        if kind == 0x74:  # t
            (length,) = unpack(data, at + 1)
            at += 5
            end = at + length
            append(data[at:end])
            at = end
        elif kind == 0x6E:  # n
            append(None)
            at += 1
        elif kind == 0x75:  # u
            append(UNCHANGED)  # type: ignore[arg-type]  # kept out of the loop's type: this is the hot path
            at += 1
        else:
            raise DecodeError(f"a column of kind {chr(kind)!r}; only text was asked for")
    return tuple(row), at


def _ends(data: bytes, end: int) -> None:
    """A message ends where its last part does: a row that is cut short shows only here."""
    if end != len(data):
        raise DecodeError(f"malformed pgoutput message {data[:1]!r}: {len(data)} bytes where {end} must be")


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(0, at)
    if end < 0:
        raise DecodeError(f"malformed pgoutput message {data[:1]!r}: a name is cut short")
    return data[at:end].decode(), end + 1


def _expect(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise DecodeError(f"malformed pgoutput message: a tuple {found!r} where {expected!r} must be")
