"""Templates: `finance:{symbol}`, `league:{config.leagues[*]}`, `feed:{url|fnv1a32}`.

A placeholder names a column, then optionally a path into a json value or an array, then optionally filters:

    placeholder = "{" path { "|" filter } "}"
    path        = name { "." name | "[" number "]" | "[*]" }
    name        = any characters but space . [ ] | { } "  -  or any at all in double quotes, "" for one quote

`.name` goes into an object, `.0` and `[0]` to an element of a list, `[*]` to each element: then a template gives
one text for each, and several of them multiply. `{{` and `}}` stand for braces.

What is NULL, absent, or no scalar gives no text at all: never `finance:None`. A text column is parsed as JSON
when a path goes into it. A text that no topic can be (empty, or with CR, LF or NUL in it) is left out and
counted.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import msgspec

from rowcast.core import values
from rowcast.errors import ConfigError

Row = dict[str, Any]

MAX_TEXTS = 10_000
"""Texts that one template may give for one row: `[*]` twice over two long lists would fill the memory."""

_NAME = r'(?:"(?:[^"]|"")*"|[^\s.\[\]|{}"]+)'
_PATH = re.compile(rf"(?P<column>{_NAME})(?P<steps>(?:\.{_NAME}|\[\d+\]|\[\*\])*)", re.ASCII)
_STEP = re.compile(rf"\.({_NAME})|\[(\d+)\]|(\[\*\])", re.ASCII)
_PLACEHOLDER = re.compile(rf"\{{\s*(?P<path>{_PATH.pattern})\s*(?P<filters>(?:\|\s*\w+\s*)*)\}}", re.ASCII)
_UNFIT = re.compile(r"[\r\n\0\ud800-\udfff]")

_decode_json = msgspec.json.Decoder(float_hook=values.JsonNumber).decode


class _Each:
    """The type of `EACH`."""

    __slots__ = ()


EACH: Final = _Each()
"""The step `[*]`: into each element of a list."""

Step = str | int | _Each


def fnv1a32(value: str) -> str:
    """FNV-1a, 32 bits, of the UTF-8 text, as 8 lower-case hexadecimal digits (draft-eastlake-fnv, section 2)."""
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


def fits(topic: str) -> bool:
    """Whether a text can be a topic: not empty, without CR, LF and NUL, and without half a character (a lone
    surrogate, which JSON can name and UTF-8 can't hold)."""
    return bool(topic) and _UNFIT.search(topic) is None


class Path:
    """A column and a way into its value."""

    __slots__ = ("column", "steps")

    def __init__(self, column: str, steps: tuple[Step, ...]) -> None:
        self.column = column
        self.steps = steps

    @classmethod
    def parse(cls, text: str) -> Path | None:
        """The path that a text is, or None when it is none."""
        match = _PATH.fullmatch(text)
        if match is None:
            return None
        steps: list[Step] = []
        for name, number, _ in _STEP.findall(match["steps"]):
            steps.append(_unquoted(name) if name else int(number) if number else EACH)
        return cls(_unquoted(match["column"]), tuple(steps))

    def find(self, row: Row) -> list[Any]:
        """The values that the path leads to, NULL excepted; [] where it leads nowhere."""
        value = row.get(self.column)
        if self.steps and isinstance(value, str):
            try:
                value = _decode_json(value)
            except (msgspec.DecodeError, RecursionError):  # no JSON, or nested beyond reason
                return []
        found = [value]
        for step in self.steps:
            found = [inner for outer in found for inner in _enter(outer, step)]
        return [value for value in found if value is not None]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _enter(value: Any, step: Step) -> list[Any]:
    if isinstance(step, _Each):
        return value if isinstance(value, list) else []
    if isinstance(value, dict):
        return [value[step]] if step in value else []
    if isinstance(value, list) and (isinstance(step, int) or (step.isascii() and step.isdecimal())):
        index = int(step)
        return [value[index]] if index < len(value) else []
    return []


class Placeholder:
    """A path, and the filters that its texts go through, from left to right."""

    __slots__ = ("filters", "path")

    def __init__(self, path: Path, filters: list[Callable[[str], str]]) -> None:
        self.path = path
        self.filters = filters

    def texts(self, row: Row) -> list[str]:
        """The texts for a row; [] when the path leads to no scalar."""
        texts = []
        for value in self.path.find(row):
            if not isinstance(value, (dict, list)):
                text = values.text(value)
                for apply in self.filters:
                    text = apply(text)
                texts.append(text)
        return texts


class Template:
    """A parsed template.

    `columns` are those that it needs, `prefix` the literal text before its first placeholder (all of it, when
    there is none). `unfit` counts the texts that were left out since no topic can be like that.
    """

    __slots__ = ("_parts", "_simple", "columns", "prefix", "text", "unfit")

    def __init__(self, text: str, parts: list[str | Placeholder]) -> None:
        self.text = text
        self.columns = frozenset(part.path.column for part in parts if isinstance(part, Placeholder))
        self.prefix = parts[0] if parts and isinstance(parts[0], str) else ""
        self.unfit = 0
        self._parts = parts
        self._simple = self._as_simple()

    @classmethod
    def parse(cls, text: str, origin: str) -> Template:
        """Parse a template. Raises `ConfigError`, beginning with `origin`, that says what is wrong where."""
        parts: list[str | Placeholder] = []
        literal = ""
        at = 0
        while at < len(text):
            if text.startswith(("{{", "}}"), at):
                literal += text[at]
                at += 2
            elif text[at] == "}":
                raise ConfigError(f"{origin}: a single }} in {text!r}, column {at + 1}; write }}}} for a brace")
            elif text[at] == "{":
                if literal:
                    parts.append(literal)
                    literal = ""
                placeholder, at = _placeholder(text, at, origin)
                parts.append(placeholder)
            else:
                literal += text[at]
                at += 1
        if literal:
            parts.append(literal)
        if not fits(text):
            raise ConfigError(f"{origin}: {text!r} is empty or holds CR, LF or NUL, which no topic can")
        return cls(text, parts)

    @property
    def parts(self) -> tuple[str | Placeholder, ...]:
        """Literal texts and placeholders, in order."""
        return tuple(self._parts)

    @property
    def constant(self) -> bool:
        """Whether it has no placeholder."""
        return not self.columns

    @property
    def plain_column(self) -> str | None:
        """The column, if the template is text around one column, without a path into it or a filter."""
        return None if self._simple is None else self._simple[1]

    @property
    def column(self) -> str | None:
        """The column, if the template is nothing but one column: `{user_id}`."""
        if len(self._parts) == 1 and isinstance(part := self._parts[0], Placeholder):
            return part.path.column if not part.path.steps and not part.filters else None
        return None

    def render(self, row: Row) -> list[str]:
        """The texts for a row, each once; [] when something that the template needs is not there.

        Raises ValueError when there would be more than `MAX_TEXTS`.
        """
        if self._simple is not None:
            before, column, after = self._simple
            value = row.get(column)
            if value is None or isinstance(value, (dict, list)):
                return []
            text = before + (value if type(value) is str else values.text(value)) + after
            if fits(text):
                return [text]
            self.unfit += 1
            return []
        choices = [[part] if isinstance(part, str) else part.texts(row) for part in self._parts]
        if (count := math.prod(map(len, choices))) > MAX_TEXTS:
            raise ValueError(f"{self.text!r} gives {count} topics for one row; {MAX_TEXTS} are the most")
        rendered = list(dict.fromkeys("".join(chosen) for chosen in itertools.product(*choices)))
        fit = [text for text in rendered if fits(text)]
        self.unfit += len(rendered) - len(fit)
        return fit

    def _as_simple(self) -> tuple[str, str, str] | None:
        """The common form, text around one column, has a faster way."""
        places = [i for i, part in enumerate(self._parts) if isinstance(part, Placeholder)]
        if len(places) != 1:
            return None
        part = self._parts[places[0]]
        assert isinstance(part, Placeholder)
        if part.path.steps or part.filters:
            return None
        literal = [p if isinstance(p, str) else "" for p in self._parts]
        return "".join(literal[: places[0]]), part.path.column, "".join(literal[places[0] :])


def _placeholder(text: str, at: int, origin: str) -> tuple[Placeholder, int]:
    """The placeholder that begins at `at`, and the place behind it."""
    match = _PLACEHOLDER.match(text, at)
    if match is None:
        end = text.find("}", at)
        if end < 0:
            raise ConfigError(f"{origin}: {{ without }} in {text!r}, column {at + 1}; write {{{{ for a brace")
        raise ConfigError(
            f"{origin}: {text[at : end + 1]} in {text!r} is no placeholder; expected {{column}}, {{column.path}}, "
            "{column.path[*]} or {column|filter}"
        )
    filters = []
    for name in (part.strip() for part in match["filters"].split("|")[1:]):
        if name not in FILTERS:
            raise ConfigError(f"{origin}: no filter {name!r} in {text!r}; there are {', '.join(FILTERS)}")
        filters.append(FILTERS[name])
    path = Path.parse(match["path"])
    assert path is not None
    return Placeholder(path, filters), match.end()
