"""Templates: `finance:{symbol}`, `league:{config.leagues[*]}`, `feed:{url|fnv1a32}`.

A placeholder names a column, then optionally a path into a json value (`.name`, `.0`, `[*]` for each element),
then optionally filters (`|lower`, `|upper`, `|urlencode`, `|fnv1a32`). `{{` and `}}` stand for braces. With
`[*]` a template gives one text per element; several of them multiply.

What is NULL, absent, or no scalar gives no text at all: never `finance:None`. A text column that holds JSON
is parsed when a path goes into it. A text with CR, LF or NUL is left out: no topic can hold them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from rowcast.core import values
from rowcast.errors import ConfigError

Row = dict[str, Any]

_PATH = re.compile(r"\s*([^\s.\[\]|{}]+)((?:\.[^\s.\[\]|{}]+|\[\*\])*)\s*((?:\|\s*\w+\s*)*)", re.ASCII)
_STEP = re.compile(r"\.([^.\[\]]+)|(\[\*\])")
_UNFIT = re.compile(r"[\r\n\0]")


def fnv1a32(value: str) -> str:
    """FNV-1a, 32 bits, of the UTF-8 text, as 8 hexadecimal digits (draft-eastlake-fnv, section 2)."""
    digest = 0x811C9DC5
    for byte in value.encode():
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{digest:08x}"


FILTERS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "urlencode": lambda value: quote(value, safe=""),
    "fnv1a32": fnv1a32,
}

EACH = "[*]"


class Path:
    """A column and a way into its value."""

    __slots__ = ("column", "steps")

    def __init__(self, column: str, steps: tuple[str, ...]) -> None:
        self.column = column
        self.steps = steps

    @classmethod
    def parse(cls, column: str, steps: str) -> Path:
        """From a column's name and the text of the steps behind it."""
        return cls(column, tuple(name or EACH for name, _ in _STEP.findall(steps)))

    def find(self, row: Row) -> list[Any]:
        """The values that the path leads to; none where it leads nowhere."""
        value = row.get(self.column)
        if self.steps and isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except msgspec.DecodeError:
                return []
        found = [value]
        for step in self.steps:
            found = [inner for outer in found for inner in _enter(outer, step)]
        return [value for value in found if value is not None]


def _enter(value: Any, step: str) -> list[Any]:
    if step == EACH:
        return value if isinstance(value, list) else []
    if isinstance(value, dict):
        return [value[step]] if step in value else []
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return [value[int(step)]]
    return []


class _Placeholder:
    __slots__ = ("filters", "path")

    def __init__(self, path: Path, filters: list[Callable[[str], str]]) -> None:
        self.path = path
        self.filters = filters

    def texts(self, row: Row) -> list[str]:
        texts = []
        for value in self.path.find(row):
            if not isinstance(value, (dict, list)):
                text = values.text(value)
                for apply in self.filters:
                    text = apply(text)
                texts.append(text)
        return texts


class Template:
    """A parsed template. `columns` are those that it needs, `prefix` the literal text before its first
    placeholder (all of it, when there is none)."""

    __slots__ = ("_parts", "_simple", "columns", "prefix", "text")

    def __init__(self, text: str, parts: list[str | _Placeholder]) -> None:
        self.text = text
        self._parts = parts
        self.columns = frozenset(p.path.column for p in parts if isinstance(p, _Placeholder))
        self.prefix = parts[0] if parts and isinstance(parts[0], str) else ""
        self._simple = self._as_simple()

    @classmethod
    def parse(cls, text: str, origin: str) -> Template:
        """Parse a template. Raises `ConfigError`, beginning with `origin`, that says what is wrong where."""
        parts: list[str | _Placeholder] = []
        literal = ""
        at = 0
        while at < len(text):
            if text.startswith(("{{", "}}"), at):
                literal += text[at]
                at += 2
            elif text[at] == "}":
                raise ConfigError(f"{origin}: a single }} in {text!r}; write }}}} for a brace")
            elif text[at] == "{":
                end = text.find("}", at)
                if end < 0:
                    raise ConfigError(f"{origin}: {{ without }} in {text!r}; write {{{{ for a brace")
                if literal:
                    parts.append(literal)
                    literal = ""
                parts.append(_placeholder(text[at + 1 : end], text, origin))
                at = end + 1
            else:
                literal += text[at]
                at += 1
        if literal:
            parts.append(literal)
        if _UNFIT.search(text):
            raise ConfigError(f"{origin}: {text!r} holds CR, LF or NUL, which no topic can")
        return cls(text, parts)

    @property
    def constant(self) -> bool:
        """Whether it has no placeholder."""
        return not self.columns

    @property
    def column(self) -> str | None:
        """The column, if the template is nothing but one column: `{user_id}`."""
        if len(self._parts) == 1 and isinstance(part := self._parts[0], _Placeholder):
            return part.path.column if not part.path.steps and not part.filters else None
        return None

    def render(self, row: Row) -> list[str]:
        """The texts for a row; none when something that the template needs is not there."""
        if self._simple is not None:
            before, column, after = self._simple
            value = row.get(column)
            if value is None or isinstance(value, (dict, list)):
                return []
            text = f"{before}{values.text(value)}{after}"
            return [] if _UNFIT.search(text) else [text]
        choices = [[part] if isinstance(part, str) else part.texts(row) for part in self._parts]
        rendered = ("".join(chosen) for chosen in itertools.product(*choices))
        return list(dict.fromkeys(text for text in rendered if text and not _UNFIT.search(text)))

    def _as_simple(self) -> tuple[str, str, str] | None:
        """The common form, text around one column, has a faster way."""
        places = [i for i, part in enumerate(self._parts) if isinstance(part, _Placeholder)]
        if len(places) != 1:
            return None
        part = self._parts[places[0]]
        assert isinstance(part, _Placeholder)
        if part.path.steps or part.filters:
            return None
        literal = [p if isinstance(p, str) else "" for p in self._parts]
        return "".join(literal[: places[0]]), part.path.column, "".join(literal[places[0] :])


def _placeholder(inner: str, text: str, origin: str) -> _Placeholder:
    match = _PATH.fullmatch(inner)
    if match is None:
        raise ConfigError(
            f"{origin}: {{{inner}}} in {text!r} is no placeholder; expected {{column}}, {{column.path}}, "
            "{column.path[*]} or {column|filter}"
        )
    column, steps, names = match.groups()
    filters = []
    for name in (part.strip() for part in names.split("|")[1:]):
        if name not in FILTERS:
            raise ConfigError(f"{origin}: no filter {name!r} in {text!r}; there are {', '.join(FILTERS)}")
        filters.append(FILTERS[name])
    return _Placeholder(Path.parse(column, steps), filters)
