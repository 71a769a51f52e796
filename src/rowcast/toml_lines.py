"""On which line of a TOML file a table or key stands, so that errors can point at it.

tomllib does not tell. This reads the file once more, knowing that it is valid, and looks at nothing but where
keys and tables begin. Source: TOML 1.0.
"""

from __future__ import annotations

import re
import tomllib

Place = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_STRINGS = (
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}',
    r"'''(?:[^']|'(?!''))*'{3,5}",
    r'"(?:[^"\\\n]|\\.)*"',
    r"'[^'\n]*'",
)
_STRING = re.compile("|".join(_STRINGS), re.DOTALL)
_SCALAR = re.compile(r"[^\s,#\]}]+(?: \d\d:[^\s,#\]}]+)?")
_POSITION = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)")


class TomlLines:
    """The lines of the tables and keys of one file. `name` is what errors begin with.

    `text` must be valid TOML.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._text = text
        self._at = 0
        self._lines: dict[Place, int] = {}
        self._counts: dict[Place, int] = {}
        table: Place = ()
        self._skip(_BLANK)
        while self._at < len(text):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def line(self, place: Place) -> int | None:
        """The line of a key or table such as `("route", 0, "topic")`; None when it is not there."""
        return self._lines.get(place)

    def origin(self, place: Place) -> str:
        """`rowcast.toml:12` for a place: that of the nearest thing around it that stands in the file."""
        while place:
            if place in self._lines:
                return f"{self.name}:{self._lines[place]}"
            place = place[:-1]
        return self.name

    # Each of these begins at a thing and ends behind it.

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"{self.name}: not valid TOML at {self._text[self._at : self._at + 20]!r}"
        self._at = match.end()
        return match[0]

    def _mark(self, place: Place, start: int) -> None:
        self._lines.setdefault(place, self._text.count("\n", 0, start) + 1)

    def _key(self) -> Place:
        """A dotted key."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            part = self._skip(_KEY_PART)
            parts.append(part if part[0] not in "\"'" else next(iter(tomllib.loads(f"{part} = 0"))))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return tuple(parts)
            self._at += 1

    def _header(self) -> Place:
        start = self._at
        array = self._text.startswith("[[", start)
        self._at += 2 if array else 1
        key = self._key()
        self._at += 2 if array else 1
        place: Place = ()
        for part in key[:-1]:
            place = self._current((*place, part))
        place = (*place, key[-1])
        if array:
            self._counts[place] = self._counts.get(place, -1) + 1
            self._mark(place, start)
        place = self._current(place)
        self._mark(place, start)
        return place

    def _current(self, place: Place) -> Place:
        """Of an array of tables, its latest one."""
        return (*place, self._counts[place]) if place in self._counts else place

    def _pair(self, table: Place) -> None:
        """`key = value`."""
        start = self._at
        place = table
        for part in self._key():
            place = (*place, part)
            self._mark(place, start)
        self._at += 1
        self._skip(_SPACE)
        self._value(place)

    def _value(self, place: Place) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._skip(_STRING)
        elif first == "[":
            self._list(place)
        elif first == "{":
            self._at += 1
            while self._more("}"):
                self._pair(place)
        else:
            self._skip(_SCALAR)

    def _list(self, place: Place) -> None:
        self._at += 1
        number = 0
        while self._more("]"):
            self._mark((*place, number), self._at)
            self._value((*place, number))
            number += 1

    def _more(self, end: str) -> bool:
        """Step over what separates the items of a list or inline table; False behind its end."""
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_BLANK)
        if self._text[self._at] != end:
            return True
        self._at += 1
        return False


def syntax_error(name: str, text: str, error: tomllib.TOMLDecodeError) -> str:
    """What tomllib says, with the place in front: `rowcast.toml:12: not valid TOML: …`."""
    message = str(error)
    match = _POSITION.search(message)
    if match is None:
        return f"{name}: not valid TOML: {message}"
    line = match[1] or text.count("\n") + 1
    return f"{name}:{line}: not valid TOML: {message[: match.start()].strip()}"
