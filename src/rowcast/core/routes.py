"""Routes: which topics a change goes to, and the router that turns changes into entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from rowcast.core import values
from rowcast.core.body import ChangeBody, Envelope
from rowcast.core.catalog import TableInfo, qualified, quoted
from rowcast.core.change import Change, Relation
from rowcast.core.condition import Condition
from rowcast.core.entry import USER_PREFIX, Entry, Kind, RowChange
from rowcast.core.plan import DIRECT_TOPICS, BoundRoute, BoundRule, Plan, names_of
from rowcast.core.position import MINOR_SPACING
from rowcast.core.rules import RowRule, Rule, origin_of, tables_of
from rowcast.core.template import MAX_TEXTS, Template, fits
from rowcast.core.troubles import Troubles
from rowcast.errors import ConfigError

Row = dict[str, Any]
RouteFunction = Callable[[Change], "str | Iterable[str] | None"]

MAX_ENTRIES = MINOR_SPACING // 2
"""Entries of one change: they must find room between its place and the next change's."""


_DATA = Kind.DATA

# What it means that a table lacks a column: while it does, and when it is over.
_NO_TOPICS = ("nobody has topics by it", "users who were connected then have topics by it again once they reconnect")
_NOT_READ = ("users are not read anew", "users were not read anew in that time")
_NOT_ROUTED = ("its changes are not sent", "its changes in that time were not sent")
_NOT_SENT = ("the column is not sent", "it was not sent in that time")


class Route(msgspec.Struct, frozen=True):
    """A rule that turns the changes of a table into entries.

    Either `template` or `function` gives the topics, while `when` holds. `columns` are those sent (None: all).
    `key` is what conflation and `min_interval` go by (None: the replica identity's columns); the latter in
    microseconds, 0 for none. `deletes` False: a DELETE makes no entry. `numeric` says how numbers are written that a
    JSON double can't hold. `origin` is the place to point at in errors.
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
    min_interval: int = 0

    @classmethod
    def from_templates(
        cls,
        table: str,
        *,
        origin: str,
        origins: Mapping[str, str] | None = None,
        topic: str | None = None,
        user: str | None = None,
        when: str | None = None,
        columns: Iterable[str] | None = None,
        key: Iterable[str] | None = None,
        conflate: bool = False,
        snapshot: bool = False,
        deletes: bool = True,
        numeric: values.Numeric = "string",
        min_interval: float = 0.0,
    ) -> Route:
        """A route from the file: `topic` is a template, or `user` one that names whose own topic it is.

        `origins` are the places of single options by name, where they are known. `min_interval` in seconds. Raises
        `ConfigError`.
        """
        if (topic is None) == (user is None):
            raise ConfigError(f'{origin}: a route has either topic or user, like topic = "finance:{{symbol}}"')
        places = {"topic": origin, "user": origin, "when": origin, **(origins or {})}
        if topic is not None:
            template = Template.parse(topic, places["topic"])
        else:
            template = Template.parse(f"{USER_PREFIX}{user}", places["user"])
        return cls(
            qualified(table),
            origin,
            template=template,
            when=None if when is None else Condition.parse(when, places["when"]),
            columns=None if columns is None else frozenset(columns),
            key=None if key is None else tuple(key),
            conflate=conflate,
            snapshot=snapshot,
            deletes=deletes,
            numeric=numeric,
            min_interval=round(min_interval * 1e6),
        )

    @classmethod
    def from_function(
        cls,
        table: str,
        function: RouteFunction,
        *,
        columns: Iterable[str] | None = None,
        key: Iterable[str] | None = None,
        conflate: bool = False,
        deletes: bool = True,
        numeric: values.Numeric = "string",
        min_interval: float = 0.0,
    ) -> Route:
        """A route from a Python function of the change, which returns a topic, several, or None. `min_interval` in
        seconds.

        Raises `ConfigError` for a coroutine function.
        """
        return cls(
            qualified(table),
            origin_of(function),
            function=function,
            columns=None if columns is None else frozenset(columns),
            key=None if key is None else tuple(key),
            conflate=conflate,
            deletes=deletes,
            numeric=numeric,
            min_interval=round(min_interval * 1e6),
        )

    def bound(self, table: TableInfo) -> Route:
        """The same route, with the table's primary key as its key unless it names one."""
        return self if self.key is not None else msgspec.structs.replace(self, key=table.primary_key or None)

    @property
    def needed(self) -> frozenset[str]:
        """The columns that the table must have at start."""
        return self.addressing | frozenset(self.key or ()) | (self.columns or frozenset())

    @property
    def addressing(self) -> frozenset[str]:
        """The columns that decide where a change goes, as far as they are known: a function does not tell."""
        needed: frozenset[str] = frozenset()
        if self.template is not None:
            needed |= self.template.columns
        if self.when is not None:
            needed |= self.when.columns
        return needed


class Router:
    """Turns changes into entries. It never raises: a row that a route or rule can't digest is skipped.

    `rules` are bound to their tables, and so should `routes` be. `envelope` is the form of events on the wire.

    The entries of a change have the places `(major, minor + k)`: one for each rule on its table, then those
    delivered. So the places of the latter are the same on every replica, also while a rule is broken on one.

    A table that loses a column breaks the routes and rules that need it, until the column is back; the others
    go on. A broken subscription rule takes all its topics away from everybody, since it can no longer see
    when a user must lose one; so does one whose table's replica identity no longer tells which row is gone.
    """

    def __init__(self, routes: Sequence[Route], rules: Sequence[Rule] = (), *, envelope: Envelope = "rowcast") -> None:
        self.routes = tuple(routes)
        self.rules = tuple(rules)
        self.tables = {route.table for route in routes}.union(*(tables_of(rule) for rule in rules))
        """Every table that a route or rule reads, as `schema.table`."""
        self._envelope: Envelope = envelope
        self._troubles = Troubles()
        self._plans: dict[int, tuple[Relation, Plan | None]] = {}
        self._missing: dict[str, str] = {}
        self._broken: set[tuple[int, str]] = set()
        """Rules, by index, that could not be bound to a table as it was last."""

    def replace(self, routes: Sequence[Route], rules: Sequence[Rule]) -> None:
        """Go on with other routes and rules, from the next change on.

        The first change that a new rule sees has everybody's topics read again, on every replica that has the rule by
        then: before it nothing was told of the rule's tables.
        """
        kept = [rule.index for rule in self.rules]
        fresh = [rule for rule in rules if rule.index not in kept]
        self._broken = {place for place in self._broken if place[0] in kept}
        self._broken |= {(rule.index, table) for rule in fresh for table in tables_of(rule)}
        self.routes, self.rules = tuple(routes), tuple(rules)
        self.tables = {route.table for route in routes}.union(*(tables_of(rule) for rule in rules))
        self._plans.clear()

    @property
    def poisoned(self) -> int:
        """Rows that were skipped, or values taken for NULL, since a route, rule or decoder raised."""
        return self._troubles.poisoned + sum(rule.troubles.poisoned for rule in self.rules if isinstance(rule, RowRule))

    @property
    def unfit(self) -> int:
        """Topics that were left out since they were empty, or held CR, LF or NUL, which no topic can."""
        templates = sum(route.template.unfit for route in self.routes if route.template is not None)
        return self._troubles.unfit + templates + sum(rule.unfit for rule in self.rules if isinstance(rule, RowRule))

    @property
    def problems(self) -> list[str]:
        """What went wrong since the start and still matters, for the operator."""
        found = self._troubles.texts
        for rule in self.rules:
            if isinstance(rule, RowRule):
                found.extend(rule.troubles.texts)
        return found

    def wants(self, relation: Relation) -> bool:
        """Whether any route or rule reads this table."""
        return relation.name in self.tables

    def route(self, change: Change) -> list[Entry]:
        """The entries of a change: first what changes subscriptions, then what is delivered."""
        relation = change.relation
        found = self._plans.get(relation.oid)
        if found is None or found[0] is not relation:
            found = self._plans[relation.oid] = (relation, self._plan(relation))
        plan = found[1]
        if plan is None:
            return []
        topic = plan.topic
        if change.new is None or change.old is not None or (topic is None and plan.direct < 0):
            return self._route(plan, change)
        if topic is None:
            value = change.new[plan.direct]
            topic = plan.topics.get(value) if type(value) is bytes else None
            if topic is None:
                entries = self._route(plan, change)
                if len(entries) == 1 and type(value) is bytes:
                    if len(plan.topics) >= DIRECT_TOPICS:
                        plan.topics.clear()
                    plan.topics[value] = entries[0].topic
                return entries
        # The topic is all that there is to know.
        bound = plan.routes[0]
        xid = change.xid if bound.route.snapshot else 0
        body = ChangeBody(change, topic, bound.form)
        return [Entry(_DATA, change.place, body, topic, xid, None, None, change.commit_time)]

    # Binding to a table as it is now

    def _plan(self, relation: Relation) -> Plan | None:
        if not self.wants(relation):
            return None
        rules = [BoundRule(rule, relation) for rule in self.rules if relation.name in tables_of(rule)]
        for bound in rules:
            consequence = _NO_TOPICS if isinstance(bound.rule, RowRule) else _NOT_READ
            if self._check(bound.rule.origin, relation, bound.columns, consequence) and bound.untold:
                self._untold(bound.rule.origin, relation)
            place = (bound.rule.index, relation.name)
            if bound.broken:
                self._broken.add(place)
            elif place in self._broken:
                self._broken.discard(place)
                bound.returned = True
        routes: list[BoundRoute] = []
        for route in self.routes:
            if route.table == relation.name:
                decisive = route.addressing | frozenset(route.key or ())
                if self._check(route.origin, relation, decisive, _NOT_ROUTED):
                    self._check(route.origin, relation, route.columns or (), _NOT_SENT)
                    routes.append(BoundRoute(route, relation, self._envelope))
        return Plan(relation, rules, routes) if rules or routes else None

    def _check(self, origin: str, relation: Relation, needed: Iterable[str], consequence: tuple[str, str]) -> bool:
        """Whether the table has all `needed` columns; tells the operator while it has not, and afterwards."""
        table = relation.name
        what = f"columns {origin} {table} {consequence[0]}"
        missing = sorted(set(needed) - names_of(relation))
        if missing:
            self._missing[what] = missing[0]
            self._troubles.note(
                what,
                f"{origin}: {table} has no column {missing[0]!r} any more, so {consequence[0]}; bring the column back, "
                "or change the configuration and restart",
            )
        elif column := self._missing.pop(what, None):
            self._troubles.note(what, f"{origin}: {table} had no column {column!r} for a time, and {consequence[1]}")
        return not missing

    def _untold(self, origin: str, relation: Relation) -> None:
        self._troubles.note(
            f"identity {origin}",
            f"{origin}: a DELETE from {relation.name} does not tell which row is gone, as its replica identity is not "
            f"what it was at the start, so {_NO_TOPICS[0]}; run: ALTER TABLE {quoted(relation.name)} REPLICA IDENTITY "
            "FULL, and restart",
        )

    # Routing

    def _route(self, plan: Plan, change: Change) -> list[Entry]:
        new = None if change.new is None else self._pick(plan, change, change.new)
        old = None if change.old is None else self._pick(plan, change, change.old, key_only=change.old_is_key)
        major, minor = change.place
        xid, time = change.xid, change.commit_time
        entries: list[Entry] = []
        for number, rule in enumerate(plan.rules):
            if not rule.broken:
                body = rule.change(change, new, old)
                if rule.returned:
                    body = msgspec.structs.replace(body, reload=True)
                    rule.returned = False
                entries.append(Entry(Kind.ROW, (major, minor + number), body, xid=xid, time=time))
            elif plan.revoke:
                body = RowChange(rule.rule.index, "truncate", None, None)
                entries.append(Entry(Kind.ROW, (major, minor + number), body, xid=xid, time=time))
        plan.revoke = False
        minor += len(plan.rules)
        last = minor + MAX_ENTRIES
        for bound in plan.routes:
            route = bound.route
            seen_as = xid if route.snapshot else 0
            try:
                addressed = self._addressed(bound, plan, change, new, old)
                if minor + len(addressed) > last:
                    raise ValueError(f"more than {MAX_ENTRIES} entries for one change")
                for kind, topic, moved in addressed:
                    data = ChangeBody(change, f"{topic}*" if kind is Kind.SWEEP else topic, bound.form, moved)
                    key = None
                    if bound.key:
                        key = bound.conflation_key(old if moved or new is None else new)
                        if new is not None and old is not None and not moved and not route.min_interval:
                            # A row that got another key: no later change of it tells which row is gone.
                            key = key if bound.conflation_key(old) in (key, None) else None
                    entries.append(
                        Entry(
                            kind,
                            (major, minor),
                            data,
                            topic=topic,
                            xid=seen_as,
                            key=key,
                            time=time,
                            interval=route.min_interval,
                        )
                    )
                    minor += 1
            except Exception as error:  # a poison row must not stop the log for everybody
                self._poison(route, change, error)
        return entries

    def _pick(self, plan: Plan, change: Change, raw: Any, *, key_only: bool = False) -> Row:
        row, failed = plan.pick(raw, key_only=key_only)
        if failed is not None:
            self._troubles.poison(
                f"decode {plan.relation.name}",
                f"a value in a row of {plan.relation.name} at {change.place} was taken for NULL: it",
                failed,
            )
        return row

    def _addressed(
        self, bound: BoundRoute, plan: Plan, change: Change, new: Row | None, old: Row | None
    ) -> list[tuple[Kind, str, bool]]:
        """Where a route sends a change: (kind, topic, whether the row only left that topic).

        What the row left comes first: a client that has both topics, and keeps rows by their key, must not
        remove the row that it has just put in.
        """
        route = bound.route
        if change.action == "truncate":
            return self._sweep(route)
        if change.action == "delete":
            if (
                not route.deletes
                or old is None
                or (change.old_is_key and route.function is None and not bound.addressable)
            ):
                return []
            return [(Kind.DATA, topic, False) for topic in self._topics(route, old, change)]
        assert new is not None
        if len(new) < plan.width and not bound.addressing <= new.keys():
            self._unaddressable(route, min(bound.addressing - new.keys()))
            return []
        topics = self._topics(route, new, change)
        addressed = [(Kind.DATA, topic, False) for topic in topics]
        if old is None or change.action != "update" or (change.old_is_key and not bound.addressable):
            return addressed
        before = change
        if route.function is not None:
            before = Change(
                "update",
                change.relation,
                change.old,
                None,
                place=change.place,
                xid=change.xid,
                commit_time=change.commit_time,
            )
        left = [topic for topic in self._topics(route, old, before) if topic not in topics]
        return [(Kind.DATA, topic, True) for topic in left] + addressed

    def _topics(self, route: Route, row: Row, change: Change) -> list[str]:
        """The topics that a route gives a row; none if it raises."""
        try:
            if route.when is not None and not route.when.holds(row):
                return []
            if route.template is not None:
                return route.template.render(row)
            assert route.function is not None
            given = route.function(change)
            topics = [given] if isinstance(given, str) else list(dict.fromkeys(given or ()))
            return self._fitting(topics)
        except KeyError as error:
            # Of a DELETE only the identity's columns are known, and a function may well want another.
            missing = error.args[0] if error.args else None
            known = change.row
            if isinstance(missing, str) and missing in names_of(change.relation) and missing not in known:
                self._unaddressable(route, missing)
            else:
                self._poison(route, change, error)
            return []
        except Exception as error:  # whatever an application's function raises
            self._poison(route, change, error)
            return []

    def _fitting(self, topics: list[str]) -> list[str]:
        """A function's topics, checked. Raises when they are no topics."""
        if len(topics) > MAX_TEXTS:
            raise ValueError(f"{len(topics)} topics for one change; {MAX_TEXTS} are the most")
        for topic in topics:
            if not isinstance(topic, str):
                raise TypeError(f"{topic!r} is no topic: a topic is a str")
        fit = [topic for topic in topics if fits(topic)]
        self._troubles.unfit += len(topics) - len(fit)
        return fit

    def _sweep(self, route: Route) -> list[tuple[Kind, str, bool]]:
        """A TRUNCATE has no row: it goes to every topic that begins as the template does."""
        template = route.template
        if template is not None and template.constant:
            return [(Kind.DATA, template.prefix, False)]
        if template is None or not template.prefix:
            self._troubles.note(
                f"truncate {route.origin}",
                f"{route.origin}: a TRUNCATE of {route.table} could not be addressed, as the route's topics have no "
                'common beginning; begin the template with one, like "trades:"',
            )
            return []
        return [(Kind.SWEEP, template.prefix, False)]

    def _unaddressable(self, route: Route, column: str) -> None:
        self._troubles.note(
            f"unaddressable {route.origin}",
            f"{route.origin}: a change of {route.table} did not tell {column!r}, so it could not be addressed "
            "(a DELETE tells the replica identity's columns only, an UPDATE not a large value that it left alone); "
            f"run: ALTER TABLE {quoted(route.table)} REPLICA IDENTITY FULL",
        )

    def _poison(self, route: Route, change: Change, error: Exception) -> None:
        self._troubles.poison(f"row {route.origin}", f"{route.origin}: a row of {route.table} at {change.place}", error)
