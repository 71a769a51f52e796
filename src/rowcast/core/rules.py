"""Subscription rules: which topics a user has.

A *row rule* reads the rows of one table: each row gives its user topics while its condition holds. An *SQL
rule* asks a query, and names the tables on which its result depends. (Topics that stand in the token need no
rule.) Applying the rules is the business of `subscriptions`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from rowcast.core.catalog import TableInfo, qualified
from rowcast.core.condition import Condition
from rowcast.core.template import Template, fits
from rowcast.core.troubles import Troubles
from rowcast.errors import ConfigError

Row = dict[str, Any]
RowFunction = Callable[[Row], Iterable[str]]


class RowRule(msgspec.Struct, frozen=True):
    """Topics from the rows of a table.

    `index` identifies the rule in ROW entries. `user_column` holds the user's id. `columns` are those that
    the rule needs of a row, its key included; `key` is the row's identity, () for a table without one, whose
    rows are told apart by all of `columns`. Both are complete only once the rule is `bound` to a table.
    `give` returns the topics of a row. `origin` is the place to point at in errors. `templates` are those that
    `give` renders, () for a function. `troubles` counts the rows for which `give` raised. `everyone`: the keys in the
    cache of all users in the table are deleted, not only of those with an open stream (see `audience`).
    """

    index: int
    table: str
    user_column: str
    give: RowFunction
    origin: str
    columns: frozenset[str] = frozenset()
    key: tuple[str, ...] = ()
    every_column: bool = False
    templates: tuple[Template, ...] = ()
    everyone: bool = False
    troubles: Troubles = msgspec.field(default_factory=Troubles)

    @classmethod
    def from_templates(
        cls,
        table: str,
        user: str,
        topics: Sequence[str],
        when: str | None,
        *,
        index: int,
        origin: str,
        origins: Mapping[str, str] | None = None,
        everyone: bool = False,
    ) -> RowRule:
        """A rule from the file: `user` is `{column}`, `topics` are templates, `when` a condition or None.

        `origins` are the places of single options by name, where they are known. Raises `ConfigError`.
        """
        places = {"user": origin, "topics": origin, "when": origin, **(origins or {})}
        column = user_column(user, places["user"])
        templates = tuple(Template.parse(topic, places["topics"]) for topic in topics)
        condition = None if when is None else Condition.parse(when, places["when"])

        def give(row: Row) -> list[str]:
            if condition is not None and not condition.holds(row):
                return []
            return [topic for template in templates for topic in template.render(row)]

        needed = frozenset({column}).union(*(template.columns for template in templates))
        if condition is not None:
            needed |= condition.columns
        return cls(index, qualified(table), column, give, origin, needed, templates=templates, everyone=everyone)

    @classmethod
    def from_function(
        cls, table: str, user: str, function: RowFunction, *, index: int, everyone: bool = False
    ) -> RowRule:
        """A rule from a Python function of the row. It is given every column of the table.

        `user` is the name of the column with the user's id. Raises `ConfigError` for a coroutine function.
        """
        origin = origin_of(function)
        return cls(index, qualified(table), user, function, origin, every_column=True, everyone=everyone)

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

    @property
    def unfit(self) -> int:
        """Topics that were left out since no topic can be like that."""
        return self.troubles.unfit + sum(template.unfit for template in self.templates)

    def topics(self, row: Row) -> list[str]:
        """The topics that a row gives its user.

        A row for which the rule raises, or gives anything but texts, gives none: never more than the user
        should see. It is counted, and the latest one's error kept in `troubles`.
        """
        try:
            given = self.give(row)
            topics = [given] if isinstance(given, str) else list(given or ())
            return [topic for topic in topics if self._fits(topic)]
        except Exception as error:  # whatever an application's function raises
            self.troubles.poison("row", f"{self.origin}: a row of {self.table}", error)
            return []

    def _fits(self, topic: Any) -> bool:
        if not isinstance(topic, str):
            raise TypeError(f"{topic!r} is no topic: a topic is a str")
        if fits(topic):
            return True
        self.troubles.unfit += 1
        return False


class SqlRule(msgspec.Struct, frozen=True):
    """Topics from a query with the parameter `%(user)s`, whose first column is the topic.

    `depends_on` maps tables to the column that names the user whom a change of a row concerns.
    """

    index: int
    sql: str
    depends_on: dict[str, str]
    origin: str


Rule = RowRule | SqlRule


def tables_of(rule: Rule) -> Iterable[str]:
    """The tables whose changes a rule must see."""
    return (rule.table,) if isinstance(rule, RowRule) else rule.depends_on


def user_column(user: str, origin: str) -> str:
    """The column that `{column}` names. Raises `ConfigError`, beginning with `origin`, for anything else."""
    column = Template.parse(user, origin).column
    if column is None:
        raise ConfigError(f'{origin}: {user!r} must name one column and nothing else, like "{{user_id}}"')
    return column


def origin_of(function: Callable[..., Any]) -> str:
    """Where a function stands, for errors: `app.rules:trade (rules.py:12)`.

    Raises `ConfigError` for a coroutine function: rules run in the middle of dispatching and can't wait.
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        path = PurePath(inspect.getsourcefile(function) or "?").name
        line = inspect.getsourcelines(function)[1]
    except (OSError, TypeError):  # made by a class or by exec: there is no source to point at
        origin = name
    else:
        origin = f"{name} ({path}:{line})"
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{origin}: a rule must be a plain function, not async: it runs for every row and can't wait")
    return origin
