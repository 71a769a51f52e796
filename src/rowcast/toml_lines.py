"""On which line of a TOML file a table or key stands, so that errors can point at it."""

from __future__ import annotations

import re
import tomllib

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\"' -]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_\"'-]+)\s*[=.]")
_POSITION = re.compile(r"\(at line (\d+), column \d+\)")

Place = tuple[str | int, ...]


class TomlLines:
    """The lines of the tables and keys of one file. `name` is what errors begin with."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name.rsplit("/", 1)[-1]
        self._lines: dict[Place, int] = {}
        table: Place = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                parts = tuple(part.strip(" \"'") for part in header[2].split("."))
                table = parts
                if header[1] == "[[":
                    count = counts[header[2]] = counts.get(header[2], -1) + 1
                    table = (*parts, count)
                self._lines[table] = number
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, key[1].strip("\"'")), number)

    def origin(self, place: Place) -> str:
        """`rowcast.toml:12` for a place such as `("route", 0, "topic")`: the nearest line that is known."""
        while place:
            if place in self._lines:
                return f"{self.name}:{self._lines[place]}"
            place = place[:-1]
        return self.name

    def syntax_error(self, error: tomllib.TOMLDecodeError) -> str:
        """What tomllib says, with the place in front."""
        message = str(error)
        if match := _POSITION.search(message):
            return f"{self.name}:{match[1]}: {message[: match.start()].strip()}"
        return f"{self.name}: {message}"
