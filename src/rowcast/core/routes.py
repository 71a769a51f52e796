"""Routes: which topics a change goes to, and the router that turns changes into entries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from rowcast.core import values
from rowcast.core.body import ChangeBody, Envelope
from rowcast.core.catalog import qualified
from rowcast.core.change import UNCHANGED, Change, RawTuple, Relation
from rowcast.core.condition import Condition
from rowcast.core.entry import USER_PREFIX, Entry, Kind, RowChange
from rowcast.core.position import Place
from rowcast.core.rules import RowRule, Rule, origin_of
from rowcast.core.template import Template
from rowcast.errors import ConfigError

Row = dict[str, Any]
RouteFunction = Callable[[Change], "str | Iterable[str] | None"]

MAX_PROBLEMS = 50
"""Texts of problems kept for the operator."""


class Route(msgspec.Struct, frozen=True):
    """A rule that turns the changes of a table into entries.

    Either `template` or `function` gives the topics. `needed` are the columns that topics, condition and key
    need. `columns` are those sent (None: all). `key` is what conflation goes by (None: the replica identity).
    `deletes` False: a DELETE makes no entry. `origin` is the place to point at in errors.
    """

    table: str
    origin: str
    template: Template | None = None
    function: RouteFunction | None = None
    when: Condition | None = None
    columns: frozenset[str] | None = None
    key: tuple[str, ...] | None = None
    conflate: bool = False
    snapshot: bool = False
    deletes: bool = True
    numeric: values.Numeric = "string"

    @classmethod
    def from_templates(
        cls,
        table: str,
        *,
        origin: str,
        topic: str | None = None,
        user: str | None = None,
        when: str | None = None,
        columns: Iterable[str] | None = None,
        key: Iterable[str] | None = None,
        conflate: bool = False,
        snapshot: bool = False,
        deletes: bool = True,
        numeric: values.Numeric = "string",
    ) -> Route:
        """A route from the file: `topic` is a template, or `user` one that names whose own topic it is."""
        if (topic is None) == (user is None):
            raise ConfigError(f"{origin}: a route has either topic or user")
        text = topic if topic is not None else f"{USER_PREFIX}{user}"
        return cls(
            qualified(table),
            origin,
            template=Template.parse(text, origin),
            when=None if when is None else Condition.parse(when, origin),
            columns=None if columns is None else frozenset(columns),
            key=None if key is None else tuple(key),
            conflate=conflate,
            snapshot=snapshot,
            deletes=deletes,
            numeric=numeric,
        )

    @classmethod
    def from_function(
        cls,
        table: str,
        function: RouteFunction,
        *,
        columns: tuple[str, ...] | None = None,
        key: tuple[str, ...] | None = None,
        conflate: bool = False,
        deletes: bool = True,
    ) -> Route:
        """A route from a Python function of the change, which returns a topic, several, or None."""
        return cls(
            qualified(table),
            origin_of(function),
            function=function,
            columns=None if columns is None else frozenset(columns),
            key=key,
            conflate=conflate,
            deletes=deletes,
        )

    @property
    def needed(self) -> frozenset[str]:
        """The columns without which the route can't work."""
        needed = self.addressing
        return needed | frozenset(self.key or ()) | (self.columns or frozenset())

    @property
    def addressing(self) -> frozenset[str]:
        """The columns that decide where a change goes."""
        needed: frozenset[str] = frozenset()
        if self.template is not None:
            needed |= self.template.columns
        if self.when is not None:
            needed |= self.when.columns
        return needed


class _Plan:
    """What the router does with the changes of one Relation."""

    __slots__ = ("columns", "identity", "relation", "routes", "rules", "sql_columns")

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.rules: list[Rule] = []
        self.routes: list[Route] = []
        self.sql_columns: dict[int, str] = {}
        self.columns: list[int] = []
        """Indexes of the columns that any of them needs decoded."""
        self.identity = frozenset(column.name for column in relation.columns if column.key)


class Router:
    """Turns changes into entries. It never raises: a row that a route or rule can't digest is skipped.

    `rules` are bound to their tables. `envelope` is the form of events on the wire.
    """

    def __init__(self, routes: Sequence[Route], rules: Sequence[Rule] = (), *, envelope: Envelope = "rowcast") -> None:
        self.routes = tuple(routes)
        self.rules = tuple(rules)
        self.poisoned = 0
        """Rows that were skipped since a route or rule raised."""
        self.problems: deque[str] = deque(maxlen=MAX_PROBLEMS)
        """What went wrong since the start, newest last, for the operator."""
        self._envelope: Envelope = envelope
        self._plans: dict[int, tuple[Relation, _Plan | None]] = {}

    @property
    def tables(self) -> set[str]:
        """Every table that a route or rule reads, as `schema.table`."""
        return {route.table for route in self.routes} | {table for rule in self.rules for table in _tables_of(rule)}

    def wants(self, relation: Relation) -> bool:
        """Whether any route or rule reads this table."""
        return relation.name in self.tables

    def route(self, change: Change) -> list[Entry]:
        """The entries of a change: first what changes subscriptions, then what is delivered."""
        found = self._plans.get(change.relation.oid)
        if found is None or found[0] is not change.relation:
            plan = self._bind(change.relation)
            self._plans[change.relation.oid] = (change.relation, plan)
        else:
            plan = found[1]
        if plan is None:
            return []
        try:
            return self._route(plan, change)
        except Exception as error:  # a poison row must not stop the log for everybody
            self._poison(f"a row of {change.relation.name} at {change.place}", error)
            return []

    # Binding to a table as it is now

    def _bind(self, relation: Relation) -> _Plan | None:
        present = {column.name for column in relation.columns}
        plan = _Plan(relation)
        needed: set[str] = set()
        for rule in self.rules:
            if relation.name in _tables_of(rule):
                wants = rule.columns if isinstance(rule, RowRule) else {rule.depends_on[relation.name]}
                if self._complete(rule.origin, relation, wants, present):
                    plan.rules.append(rule)
                    needed |= wants
        for route in self.routes:
            if route.table == relation.name and self._complete(route.origin, relation, route.needed, present):
                plan.routes.append(route)
                needed |= route.addressing | set(route.key or ())
        plan.columns = [i for i, column in enumerate(relation.columns) if column.name in needed]
        return plan if plan.rules or plan.routes else None

    def _complete(self, origin: str, relation: Relation, needed: Iterable[str], present: set[str]) -> bool:
        missing = sorted(set(needed) - present)
        if missing:
            self.problems.append(
                f"{origin}: {relation.name} has no column {missing[0]!r} any more; what it routes is lost "
                "until the column is back or the configuration is changed"
            )
        return not missing

    # Routing

    def _route(self, plan: _Plan, change: Change) -> list[Entry]:
        new = None if change.new is None else _pick(plan, change.new)
        old = None
        if change.old is not None:
            old = _pick(plan, change.old, plan.identity if change.old_is_key else None)
        major, minor = change.place
        entries: list[Entry] = []

        def add(kind: Kind, body: Any, topic: str = "", key: str | None = None) -> None:
            place: Place = (major, minor + len(entries))
            entries.append(Entry(kind, place, body, topic=topic, xid=change.xid, key=key, time=change.commit_time))

        for rule in plan.rules:
            add(Kind.ROW, _row_change(rule, change, new, old))
        for route in plan.routes:
            try:
                addressed = self._addressed(route, plan, change, new, old)
            except Exception as error:  # whatever an application's function raises
                self._poison(f"{route.origin}: a row of {route.table} at {change.place}", error)
                continue
            for kind, topic, moved in addressed:
                body = ChangeBody(
                    change,
                    f"{topic}*" if kind is Kind.SWEEP else topic,
                    columns=route.columns,
                    key=route.key,
                    numeric=route.numeric,
                    moved=moved,
                    envelope=self._envelope,
                )
                key = _key(route, plan, new or old or {}, change) if route.conflate else None
                add(kind, body, topic, key)
        return entries

    def _addressed(
        self, route: Route, plan: _Plan, change: Change, new: Row | None, old: Row | None
    ) -> list[tuple[Kind, str, bool]]:
        """Where a route sends a change: (kind, topic, whether the row only left that topic)."""
        if change.action == "truncate":
            return self._sweep(route, change)
        if change.action == "delete":
            if not route.deletes or old is None:
                return []
            return [(Kind.DATA, topic, False) for topic in _topics(route, old, change)]
        assert new is not None
        topics = _topics(route, new, change)
        addressed = [(Kind.DATA, topic, False) for topic in topics]
        if change.action == "update" and old is not None:
            whole = not change.old_is_key
            if whole or (route.function is None and route.addressing <= plan.identity):
                before = Change("update", change.relation, change.old, None) if whole else change
                left = (topic for topic in _topics(route, old, before) if topic not in topics)
                addressed.extend((Kind.DATA, topic, True) for topic in left)
        return addressed

    def _sweep(self, route: Route, change: Change) -> list[tuple[Kind, str, bool]]:
        """A TRUNCATE has no row: it goes to every topic that begins as the template does."""
        template = route.template
        if template is not None and template.constant:
            return [(Kind.DATA, template.text, False)]
        if template is None or not template.prefix:
            self.problems.append(
                f"{route.origin}: a TRUNCATE of {route.table} at {change.place} could not be addressed: "
                "the route's topics have no common beginning"
            )
            return []
        return [(Kind.SWEEP, template.prefix, False)]

    def _poison(self, what: str, error: Exception) -> None:
        self.poisoned += 1
        self.problems.append(f"{what} was skipped: {type(error).__name__}: {error}")


def _tables_of(rule: Rule) -> Iterable[str]:
    return (rule.table,) if isinstance(rule, RowRule) else rule.depends_on


def _pick(plan: _Plan, raw: RawTuple, only: frozenset[str] | None = None) -> Row:
    """The needed columns of a row, decoded. `only`: of a key tuple, the others are not known."""
    row: Row = {}
    columns = plan.relation.columns
    for index in plan.columns:
        value = raw[index]
        column = columns[index]
        if value is UNCHANGED or (only is not None and column.name not in only):
            continue
        row[column.name] = None if value is None else values.decode(column, value)  # type: ignore[arg-type]
    return row


def _row_change(rule: Rule, change: Change, new: Row | None, old: Row | None) -> RowChange:
    if change.action == "truncate":
        return RowChange(rule.index, "truncate", None, None)
    if isinstance(rule, RowRule):
        columns = rule.columns
        return RowChange(
            rule.index,
            change.action,
            None if new is None else {name: new[name] for name in columns if name in new},
            None if old is None else {name: old[name] for name in columns if name in old},
        )
    user = rule.depends_on[change.relation.name]
    return RowChange(
        rule.index,
        change.action,
        None if new is None else {"user": new.get(user)},
        None if old is None else {"user": old.get(user)},
    )


def _topics(route: Route, row: Row, change: Change) -> list[str]:
    if route.when is not None and not route.when.holds(row):
        return []
    if route.template is not None:
        return route.template.render(row)
    assert route.function is not None
    given = route.function(change)
    if given is None:
        return []
    topics = [given] if isinstance(given, str) else list(given)
    for topic in topics:
        if not isinstance(topic, str) or not topic or any(char in topic for char in "\r\n\0"):
            raise ValueError(f"{topic!r} is no topic")
    return list(dict.fromkeys(topics))


def _key(route: Route, plan: _Plan, row: Row, change: Change) -> str | None:
    """What conflation goes by: the table and the key's values."""
    if route.key is not None:
        known = row
        names: Iterable[str] = route.key
    else:
        known = change.row
        names = sorted(plan.identity)
    if any(name not in known for name in names):
        return None
    return f"{route.table}:{values.encode([known[name] for name in names]).decode()}"
