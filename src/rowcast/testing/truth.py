"""What a database committed, and in which order, read from its WAL by another plugin than ours.

`test_decoding` (contrib of Postgres) writes changes as text through plain SQL. So what Rowcast delivered can be
judged by something that shares no code with it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Self

import psycopg

from rowcast.core.position import MINOR_SPACING, Place, parse_lsn

Row = dict[str, str]
"""A row's columns as text; a null is `null`."""

_FIELD = re.compile(r"(\w+)\[[^]]+\]:(?:'((?:[^']|'')*)'|(\S+))")
_CHANGE = re.compile(r"table (?:public\.)?([\w.]+): ([A-Z]+): (.*)", re.DOTALL)


class TrueChange(NamedTuple):
    """One change. `old` is empty where the WAL does not tell; a DELETE has only `old`."""

    table: str
    action: str
    old: Row
    new: Row


class Moment(NamedTuple):
    """A point of the commit order: the transaction's number, and the change's in it; comparable."""

    transaction: int
    change: int


class Truth:
    """The transactions that a slot of test_decoding holds, in the order of their commits."""

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self.transactions: list[list[TrueChange]] = []
        self._ends: list[int] = []
        changes: list[TrueChange] = []
        for lsn, line in lines:
            if line.startswith("BEGIN"):
                changes = []
            elif line.startswith("COMMIT"):
                self._ends.append(parse_lsn(lsn))
                self.transactions.append(changes)
            elif line.startswith("message: transactional: 1"):
                changes.append(TrueChange("", "MESSAGE", {}, {}))
            elif match := _CHANGE.match(line):
                table, action, text = match.groups()
                old, marked, new = text.removeprefix("old-key: ").partition("new-tuple: ")
                if not marked and action != "DELETE":
                    old, new = "", old
                changes.append(TrueChange(table, action, _fields(old), _fields(new)))

    @classmethod
    def read(cls, url: str, slot: str) -> Self:
        """Read and consume what the slot holds. It must be one of test_decoding."""
        with psycopg.connect(url, autocommit=True) as connection:
            return cls(
                connection.execute(
                    "SELECT lsn::text, data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", [slot]
                ).fetchall()
            )

    def moment(self, place: Place) -> Moment:
        """Where a place of Rowcast's stands: at a change, or (change -1) before a transaction.

        A transaction's commit LSN lies just below its end, and a place between transactions at an end.
        """
        return Moment(bisect_right(self._ends, place[0]), place[1] // MINOR_SPACING - 1)


def _fields(text: str) -> Row:
    return {name: quoted.replace("''", "'") or plain for name, quoted, plain in _FIELD.findall(text)}
