"""Inversion: from a topic back to the rows that a route sends to it.

A template like `finance:{symbol}` is matched against the topic, and what its placeholders stand for says what the
row's columns must be. That narrows a query; it need not be exact: whoever reads the rows puts each of them through
the route again, and only what comes out at the topic belongs to it. So a condition may let through too much, and
must never let through too little.

What narrows, and how a column is compared:

| placeholder | compared |
| --- | --- |
| `{column}` of a text, an integer, a numeric, a uuid or a boolean | in its own type, so that its index serves |
| `{column}` of any other type that is written as Postgres writes it (date, enum, inet, …) | as text |
| `{column}`, `{column.path}` of jsonb | `column #>> path` |
| `{column.path[*]}` of jsonb | `column #> path @> '[value]'` |
| `{column[*]}` of an array of texts, integers or uuids | `column && array` |
| any of these with `\\|urlencode` | the decoded value |

Nothing is gained from the others: `lower`, `upper` and `fnv1a32` can't be undone, a path into json or into a text
may read what SQL reads otherwise, times and doubles are written otherwise in a topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from rowcast.core.catalog import TableInfo
from rowcast.core.routes import Route
from rowcast.core.template import EACH, FILTERS, Placeholder, Step, Template
from rowcast.errors import ConfigError

MAX_READINGS = 256
"""Ways in which one topic may be read as a template: `{a}:{b}` reads `x:y:z` in two."""

MAX_STEPS = 20_000
"""Comparisons that the search for them may take."""

MAX_KEPT = 10_000
"""Topics whose readings are remembered."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_RANGES = {"int2": (-(1 << 15), 1 << 15), "int4": (-(1 << 31), 1 << 31), "int8": (-(1 << 63), 1 << 63)} | {
    "oid": (0, 1 << 32)
}
_PATTERNS = {
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII),
    "bool": re.compile(r"true|false", re.ASCII),
    "numeric": re.compile(r"-?[0-9]{1,1000}(\.[0-9]{1,1000})?|NaN|-?Infinity", re.ASCII),
}
_JSON_SCALAR = re.compile(r"true|false|-?(0|[1-9][0-9]{0,1000})(\.[0-9]{1,1000})?", re.ASCII)
_TEXTS = frozenset({"text", "varchar", "bpchar", "name"})
_OTHERWISE = frozenset({"json", "jsonb", "float4", "float8", "timestamp", "timestamptz", "timetz"})
"""Types whose values are written otherwise in a topic than by Postgres, or may be."""

How = Literal["own", "text", "json", "element", "array"]


class Narrowing(NamedTuple):
    """How one placeholder narrows the query: a column, and how it is compared with values, which are texts.

    `how`: "own" in the type `type_name`; "text" as text; "json" the scalar at `path` of a jsonb; "element" one of the
    list at `path` of a jsonb; "array" an element of an array of `type_name`.
    """

    column: str
    how: How
    type_name: str = ""
    path: tuple[str, ...] = ()


Reading = tuple[str, ...]
"""What the placeholders that narrow must stand for: a value for each."""


class Inversion:
    """A route's template, and the topics that it can give.

    `narrowings` are in the order of a `Reading`'s values; () when the topic is always the same, and all rows are
    candidates.
    """

    def __init__(self, template: Template, table: TableInfo) -> None:
        self._prefix = template.prefix
        self._parts: list[str | tuple[Narrowing | None, bool]] = []
        for part in template.parts:
            self._parts.append(part if isinstance(part, str) else _narrowing(part, table))
        self.narrowings = tuple(part[0] for part in self._parts if not isinstance(part, str) and part[0] is not None)
        self._kept: dict[str, tuple[Reading, ...] | None] = {}

    @classmethod
    def of(cls, route: Route, table: TableInfo) -> Inversion:
        """The inversion of a route with `snapshot`. Raises `ConfigError` when its topics can't be turned back into
        a query."""
        if route.template is None:
            raise ConfigError(f"{route.origin}: a route by a function has no snapshot: nobody can tell its rows")
        made = cls(route.template, table)
        if not made.narrowings and not route.template.constant:
            raise ConfigError(
                f"{route.origin}: snapshot = true needs a topic that tells rows apart, and {route.template.text!r} "
                f"does not: every snapshot would read all of {table.name}. Use a column of a text, a number, a uuid, a "
                "boolean or an enum ({symbol}), a value in a jsonb column ({config.market}), an element of an array or "
                "of a list in jsonb ({tags[*]}), alone or with |urlencode; other placeholders may stand beside it"
            )
        return made

    def covers(self, topic: str) -> bool:
        """Whether the route could send a row to the topic."""
        return self.readings(topic) != ()

    def readings(self, topic: str) -> tuple[Reading, ...] | None:
        """What the row's columns must be, each reading an alternative: () when the topic is none of the route's, None
        when there are more than `MAX_READINGS`."""
        if not topic.startswith(self._prefix):
            return ()
        if topic not in self._kept:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[topic] = self._read(topic)
        return self._kept[topic]

    def _read(self, topic: str) -> tuple[Reading, ...] | None:
        found: dict[Reading, None] = {}
        try:
            for reading in _Search(topic, self._parts).run(0, 0, ()):
                found[reading] = None
                if len(found) > MAX_READINGS:
                    return None
        except _TooLongError:
            return None
        return tuple(found)


class _TooLongError(Exception):
    pass


class _Search:
    """All ways to split a topic at a template's parts."""

    def __init__(self, topic: str, parts: list[str | tuple[Narrowing | None, bool]]) -> None:
        self._topic = topic
        self._parts = parts
        self._steps = 0

    def run(self, number: int, at: int, values: Reading) -> Iterator[Reading]:
        """The readings of what stands from `at` on as the parts from `number` on."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _TooLongError
        topic, parts = self._topic, self._parts
        if number == len(parts):
            if at == len(topic):
                yield values
            return
        part = parts[number]
        if isinstance(part, str):
            if topic.startswith(part, at):
                yield from self.run(number + 1, at + len(part), values)
            return
        narrowing, encoded = part
        for end in self._ends(number + 1, at):
            text = topic[at:end]
            if encoded:
                decoded = unquote(text)
                if quote(decoded, safe="") != text:
                    continue
                text = decoded
            if narrowing is None:
                yield from self.run(number + 1, end, values)
            elif _possible(narrowing, text):
                yield from self.run(number + 1, end, (*values, text))

    def _ends(self, following: int, at: int) -> Iterator[int]:
        """Where a placeholder that begins at `at` may end: before the literal that follows, or anywhere."""
        if following == len(self._parts):
            yield len(self._topic)
            return
        literal = self._parts[following]
        if not isinstance(literal, str):
            yield from range(at, len(self._topic) + 1)
            return
        end = self._topic.find(literal, at)
        while end >= 0:
            yield end
            end = self._topic.find(literal, end + 1)


def _narrowing(placeholder: Placeholder, table: TableInfo) -> tuple[Narrowing | None, bool]:
    """How a placeholder narrows (None: it does not), and whether its text is percent-encoded."""
    filters = placeholder.filters
    encoded = filters == [FILTERS["urlencode"]]
    if filters and not encoded:
        return None, False
    path = placeholder.path
    name = table.columns[path.column].type_name
    return _compared(path.column, path.steps, name), encoded


def _compared(column: str, steps: tuple[Step, ...], type_name: str) -> Narrowing | None:
    if type_name == "jsonb":
        keys = tuple(str(step) for step in steps if isinstance(step, (str, int)))
        if len(keys) == len(steps):
            return Narrowing(column, "json", path=keys)
        if len(keys) == len(steps) - 1 and steps[-1] is EACH:
            return Narrowing(column, "element", path=keys)
        return None
    if type_name.startswith("_"):
        element = type_name[1:]
        known = element in _RANGES or element in _TEXTS or element == "uuid"
        return Narrowing(column, "array", element) if steps and known else None
    if steps or type_name in _OTHERWISE or "._" in type_name:
        return None
    if type_name in _RANGES or type_name in _PATTERNS or type_name in _TEXTS or type_name.endswith(".citext"):
        return Narrowing(column, "own", type_name)
    return Narrowing(column, "text")


def _possible(narrowing: Narrowing, text: str) -> bool:
    """Whether the column can hold the value at all, and the database would not refuse it as none of its type."""
    if "\0" in text:
        return False
    name = narrowing.type_name
    if name in _RANGES:
        low, high = _RANGES[name]
        return _INTEGER.fullmatch(text) is not None and low <= int(text) < high
    pattern = _PATTERNS.get(name)
    return pattern is None or pattern.fullmatch(text) is not None


def element_texts(value: str) -> list[str]:
    """The JSON lists of one element that a jsonb list with a value of this text contains."""
    texts = [msgspec.json.encode([value]).decode()]
    if _JSON_SCALAR.fullmatch(value):
        texts.append(f"[{value}]")
    return texts
