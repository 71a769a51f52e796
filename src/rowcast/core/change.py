"""What is captured: one row inserted, updated, deleted or truncated, or one logical message.

Values stay as the bytes that Postgres sent until somebody asks: most changes of a busy database are
routed nowhere, or to topics that nobody listens to.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from rowcast.core import values
from rowcast.core.position import Place

Action = Literal["insert", "update", "delete", "truncate", "read"]
"""A row that was read has not changed: a webhook's sender tells of the rows that were there before it began."""


class _Unchanged:
    """The type of `UNCHANGED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()
"""Stands for a TOASTed value that an UPDATE did not touch and that the WAL therefore lacks."""

RawTuple = tuple["bytes | _Unchanged | None", ...]
"""A row as sent: for each column its text form, None for NULL, or UNCHANGED."""


class Column(msgspec.Struct, frozen=True):
    """A column of a relation, as the Relation message has it.

    `type_name` is that of a type that is not built in, else "": `public.mood` of an enum or an extension's type,
    `int4` of a domain over a built-in one.
    `key` tells that the column belongs to the replica identity.
    """

    name: str
    type_oid: int
    typmod: int = -1
    key: bool = False
    type_name: str = ""


class Relation(msgspec.Struct, frozen=True):
    """A table as it was when the rows that follow were written.

    `identity` is pg_class.relreplident: d (primary key), n (nothing), f (full), i (an index).
    """

    oid: int
    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.table}"


class Change(msgspec.Struct, gc=False, eq=False):
    """One row change (or a TRUNCATE of one table) of a committed transaction.

    `new` is the row after an insert or update, `old` the row before an update or delete as far as the
    replica identity gives it: None, or the key columns only (`old_is_key`, the others are None), or whole.
    `place` is the change's own; `xid` the transaction's 32-bit id; `commit_time` microseconds since the
    Unix epoch; `length` the bytes that the message took, 0 where that is not known.

    There are as many of them as the ring has entries: what the garbage collector need not look at (no value of it can
    lead back to it) costs a fifth less.
    """

    action: Action
    relation: Relation
    new: RawTuple | None
    old: RawTuple | None
    old_is_key: bool = False
    place: Place = (0, 0)
    xid: int = 0
    commit_time: int = 0
    length: int = 0
    _row: dict[str, Any] | None = None
    _old: dict[str, Any] | None = None

    @property
    def table(self) -> str:
        """The table's name without its schema."""
        return self.relation.table

    @property
    def schema(self) -> str:
        """The schema's name."""
        return self.relation.schema

    @property
    def row(self) -> dict[str, Any]:
        """The row by column name, as Python values: the new one, of a DELETE what is known of the old.

        A column whose value the WAL lacks (see `unchanged`) is left out.
        """
        if self._row is None:
            if self.new is not None:
                self._row = _decode(self.relation, self.new)
            else:
                self._row = dict(self.old_row)
        return self._row

    @property
    def old_row(self) -> dict[str, Any]:
        """What is known of the row before: the key columns, or all under REPLICA IDENTITY FULL, or {}."""
        if self._old is None:
            self._old = _decode(self.relation, self.old, only_key=self.old_is_key) if self.old else {}
        return self._old

    @property
    def unchanged(self) -> list[str]:
        """Names of the columns that the WAL lacks since an UPDATE did not touch their TOASTed value."""
        if self.new is None:
            return []
        return [
            column.name for column, value in zip(self.relation.columns, self.new, strict=True) if value is UNCHANGED
        ]

    def __repr__(self) -> str:
        return f"<Change {self.action} {self.relation.name} at {self.place} xid {self.xid}>"


def _decode(relation: Relation, raw: RawTuple, *, only_key: bool = False) -> dict[str, Any]:
    return {
        column.name: None if value is None else values.decode(column, value)
        for column, value in zip(relation.columns, raw, strict=True)
        if not isinstance(value, _Unchanged) and (column.key or not only_key)
    }


class Message(msgspec.Struct, frozen=True):
    """A transactional logical message (`pg_logical_emit_message(true, prefix, content)`)."""

    prefix: str
    content: bytes
    place: Place
    xid: int
    commit_time: int
