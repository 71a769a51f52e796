"""What the database says of the tables that routes and rules name."""

from __future__ import annotations

import msgspec


class ColumnInfo(msgspec.Struct, frozen=True):
    """A column: its type's oid and name, of a domain those of the base type. A type that is not built in is named
    with its schema, `public.mood`."""

    type_oid: int
    type_name: str


class TableInfo(msgspec.Struct, frozen=True):
    """A table.

    `kind` is pg_class.relkind (r: table, p: partitioned). `identity` is pg_class.relreplident. `primary_key`
    and `identity_columns` are () if there are none; the latter are what a DELETE will carry. `partition_of`
    is the root of the partition tree that it belongs to, or "".
    """

    schema: str
    table: str
    kind: str
    columns: dict[str, ColumnInfo]
    primary_key: tuple[str, ...]
    identity: str
    identity_columns: tuple[str, ...]
    partition_of: str = ""

    @property
    def name(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.table}"


Catalog = dict[str, TableInfo]
"""By `schema.table`."""


def qualified(table: str) -> str:
    """`schema.table` of a table as configured: public is implied."""
    return table if "." in table else f"public.{table}"


def quoted(table: str) -> str:
    """`schema.table` as an SQL identifier."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))
