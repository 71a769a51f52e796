"""What a router does with the changes of one table, as the table is at the moment.

A plan is made once for each Relation message and then used for every row that follows it: only the columns
that some route or rule needs are decoded, by their index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rowcast.core import values
from rowcast.core.body import Envelope, Form
from rowcast.core.change import UNCHANGED, Change, Column, RawTuple, Relation
from rowcast.core.entry import RowChange
from rowcast.core.rules import RowRule, Rule

if TYPE_CHECKING:
    from rowcast.core.routes import Route

Row = dict[str, Any]

_Getters = tuple[tuple[int, str, Column], ...]


class BoundRule:
    """A rule at one table.

    `broken`: the table lacks a column that it needs, or (`untold`) a DELETE does not tell which row is gone.
    `returned`: it was broken until now, and no change has been read since.
    """

    __slots__ = ("broken", "columns", "returned", "rule", "untold", "user")

    def __init__(self, rule: Rule, relation: Relation) -> None:
        self.rule = rule
        self.returned = False
        self.user = rule.user_column if isinstance(rule, RowRule) else rule.depends_on[relation.name]
        self.columns = rule.columns if isinstance(rule, RowRule) else frozenset({self.user})
        self.untold = isinstance(rule, RowRule) and not _tells(relation, rule.key)
        self.broken = self.untold or not self.columns <= names_of(relation)

    def change(self, change: Change, new: Row | None, old: Row | None) -> RowChange:
        """The body of the ROW entry for a change. Of an SQL rule's table it tells the users only, where known."""
        index = self.rule.index
        if change.action == "truncate":
            return RowChange(index, "truncate", None, None)
        if isinstance(self.rule, RowRule):
            return RowChange(index, change.action, self._own(new), self._own(old))
        return RowChange(index, change.action, self._user(new), self._user(old))

    def _own(self, row: Row | None) -> Row | None:
        return None if row is None else {name: row[name] for name in self.columns if name in row}

    def _user(self, row: Row | None) -> Row | None:
        if row is None:
            return None
        return {"user": row[self.user]} if self.user in row else {}


class BoundRoute:
    """A route at one table.

    `addressable`: the replica identity tells all columns that decide where a change goes, so that a DELETE
    and the row before an UPDATE can be addressed. `key` are the columns that conflation goes by, () for none. `form`
    is how changes are written.
    """

    __slots__ = ("addressable", "addressing", "form", "key", "route")

    def __init__(self, route: Route, relation: Relation, envelope: Envelope = "rowcast") -> None:
        identity = frozenset(column.name for column in relation.columns if column.key)
        self.route = route
        self.form = Form(relation, route.columns, route.key, route.numeric, envelope)
        self.addressing = route.addressing
        self.addressable = route.function is None and route.addressing <= identity
        self.key: tuple[str, ...] = ()
        keyed = route.conflate or route.min_interval > 0
        if keyed and route.key is not None:
            self.key = route.key
        elif keyed and relation.identity != "f":
            # Of a whole row there is no telling which columns identify it.
            self.key = tuple(sorted(identity))

    def conflation_key(self, row: Row | None) -> str | None:
        """What tells which row an entry is about: the table and the key's values; None where it is not known."""
        if row is None or not self.key or any(name not in row for name in self.key):
            return None
        return f"{self.route.table}:{values.encode([row[name] for name in self.key]).decode()}"


DIRECT_TOPICS = 4096
"""Topics that a direct plan remembers, by the value that gave them; then it forgets them all."""


class Plan:
    """What is done with the changes of one relation. `revoke` until the first change was handled: see `Router`.

    `direct` is the index of the one column that decides where a row goes, or -1: when the table has no rule and one
    route, whose template is text around that column. Such a row need not be decoded: `topics` says where rows with
    the same bytes in that column went. `topic` is where all rows go, when the template has no column: else None.
    """

    __slots__ = (
        "_getters",
        "_key_getters",
        "direct",
        "relation",
        "revoke",
        "routes",
        "rules",
        "topic",
        "topics",
        "width",
    )

    def __init__(self, relation: Relation, rules: list[BoundRule], routes: list[BoundRoute]) -> None:
        self.relation = relation
        self.rules = rules
        self.routes = routes
        self.revoke = any(rule.broken for rule in rules)
        needed: set[str] = set()
        for rule in rules:
            needed |= rule.columns
        for route in routes:
            needed |= route.addressing | set(route.key)
        self._getters: _Getters = tuple(
            (index, column.name, column) for index, column in enumerate(relation.columns) if column.name in needed
        )
        self._key_getters: _Getters = tuple(getter for getter in self._getters if getter[2].key)
        self.topics: dict[bytes, str] = {}
        self.direct, self.topic = self._find_direct()
        self.width = len(self._getters)
        """How many columns a row has from which nothing is missing."""

    def _find_direct(self) -> tuple[int, str | None]:
        if self.rules or len(self.routes) != 1 or self.routes[0].key:
            return -1, None
        route = self.routes[0].route
        template = route.template
        if template is None or route.when is not None or route.min_interval:
            return -1, None
        if template.constant:
            return -1, template.prefix
        column = template.plain_column
        return next((index for index, name, _ in self._getters if name == column), -1), None

    def pick(self, raw: RawTuple, *, key_only: bool = False) -> tuple[Row, Exception | None]:
        """The needed columns of a row, decoded, without those that are not known.

        `key_only`: only the identity's columns are known. A value that can't be decoded becomes NULL, so that
        only what depends on it is lost; the last such error is returned.
        """
        row: Row = {}
        failed: Exception | None = None
        for index, name, column in self._key_getters if key_only else self._getters:
            value = raw[index]
            if value is None:
                row[name] = None
            elif value is not UNCHANGED:
                try:
                    row[name] = values.decode(column, value)  # type: ignore[arg-type]  # bytes: the rest is excluded
                except (ValueError, ArithmeticError, RecursionError) as error:
                    row[name] = None
                    failed = error
        return row, failed


def _tells(relation: Relation, key: tuple[str, ...]) -> bool:
    """Whether the replica identity tells a row's key; without a key it takes the whole row."""
    if not key:
        return relation.identity == "f"
    return set(key) <= {column.name for column in relation.columns if column.key}


def names_of(relation: Relation) -> frozenset[str]:
    """The names of a relation's columns."""
    return frozenset(column.name for column in relation.columns)
