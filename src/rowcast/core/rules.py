"""Subscription rules: which topics a user has.

A *row rule* reads the rows of one table: each row gives its user topics while its condition holds. An *SQL
rule* asks a query, and names the tables on which its result depends. (Topics that stand in the token need no
rule.) Applying the rules is the business of `subscriptions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from rowcast.core.catalog import TableInfo, qualified
from rowcast.core.condition import Condition
from rowcast.core.template import Template
from rowcast.errors import ConfigError

Row = dict[str, Any]


class RowRule(msgspec.Struct, frozen=True):
    """Topics from the rows of a table.

    `index` identifies the rule in ROW entries. `user_column` holds the user's id. `columns` are those that
    the rule needs of a row, its key included; `key` is the row's identity, () for a table without one, whose
    rows are told apart by all of `columns`. Both are complete only once the rule is `bound` to a table.
    `give` returns the topics of a row. `origin` is the place to point at in errors.
    """

    index: int
    table: str
    user_column: str
    give: Callable[[Row], Iterable[str]]
    origin: str
    columns: frozenset[str] = frozenset()
    key: tuple[str, ...] = ()
    every_column: bool = False

    @classmethod
    def from_templates(
        cls, table: str, user: str, topics: list[str], when: str | None, *, index: int, origin: str
    ) -> RowRule:
        """A rule from the file: `user` is `{column}`, `topics` are templates, `when` a condition or None."""
        column = Template.parse(user, origin).column
        if column is None:
            raise ConfigError(f'{origin}: user = {user!r} must name one column, like "{{user_id}}"')
        templates = [Template.parse(topic, origin) for topic in topics]
        condition = None if when is None else Condition.parse(when, origin)

        def give(row: Row) -> list[str]:
            if condition is not None and not condition.holds(row):
                return []
            return [topic for template in templates for topic in template.render(row)]

        needed = frozenset({column}).union(*(template.columns for template in templates))
        if condition is not None:
            needed |= condition.columns
        return cls(index, qualified(table), column, give, origin, needed)

    @classmethod
    def from_function(cls, table: str, user: str, function: Callable[[Row], Iterable[str]], *, index: int) -> RowRule:
        """A rule from a Python function of the row. It is given every column of the table."""
        return cls(index, qualified(table), user, function, origin_of(function), every_column=True)

    def with_key(self, key: tuple[str, ...], columns: frozenset[str] | None = None) -> RowRule:
        """The same rule with the row's identity known. `columns`: those needed (None: as they are)."""
        needed = (self.columns if columns is None else columns) | {self.user_column, *key}
        return msgspec.structs.replace(self, key=key, columns=needed)

    def bound(self, table: TableInfo) -> RowRule:
        """The same rule, complete for a table as the catalogue has it.

        Rows are identified by what a DELETE carries: the replica identity, where it is not the whole row.
        """
        columns = frozenset(table.columns) if self.every_column else None
        key = table.primary_key if table.identity == "f" else table.identity_columns
        return self.with_key(key, columns)

    def topics(self, row: Row) -> list[str]:
        """The topics that a row gives its user. A rule that raises gives none: never too many."""
        try:
            given = self.give(row)
            return [given] if isinstance(given, str) else [str(topic) for topic in given or ()]
        except Exception:  # whatever an application's function raises
            return []


class SqlRule(msgspec.Struct, frozen=True):
    """Topics from a query with the parameter `%(user)s`, whose first column is the topic.

    `depends_on` maps tables to the column that names the user whom a change of a row concerns.
    """

    index: int
    sql: str
    depends_on: dict[str, str]
    origin: str


Rule = RowRule | SqlRule


def origin_of(function: Callable[..., Any]) -> str:
    """Where a function stands, for errors: `app.rules:trade (app/rules.py:12)`."""
    name = f"{function.__module__}:{getattr(function, '__qualname__', repr(function))}"
    try:
        path = inspect.getsourcefile(function)
        line = inspect.getsourcelines(function)[1]
    except (OSError, TypeError):
        return name
    return f"{name} ({path}:{line})"
