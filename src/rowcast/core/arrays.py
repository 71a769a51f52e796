"""The text form of arrays: `{1,NULL,"a b"}`, `{{1},{2}}`, `[0:1]={1,2}`.

Source: Postgres documentation, section 8.15.6 "Array Input and Output Syntax".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

MAX_DIMENSIONS = 6
"""Dimensions that an array can have (MAXDIM in Postgres)."""

_BOUNDS = re.compile(r"(?:\[-?\d+:-?\d+\])+=", re.ASCII)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(text: str, element: Callable[[str], Any], delimiter: str = ",") -> list[Any]:
    """Read an array: a list, of lists if it has several dimensions, with None for NULL.

    `element` reads an element's text; `delimiter` is the element type's (pg_type.typdelim). Lower bounds are
    dropped, as JSON has none. Raises ValueError when it is malformed, and whatever `element` raises.
    """
    if text.startswith("[") and (bounds := _BOUNDS.match(text)):
        text = text[bounds.end() :]
    if text.startswith("{") and '"' not in text and "\\" not in text and text.find("{", 1) < 0:
        if text.find("}") == len(text) - 1:
            items = text[1:-1].split(delimiter)
            if "" not in items:
                return [None if item == "NULL" else element(item) for item in items]
            if len(items) == 1:
                return []
    else:
        array = _parse_any(text, element, _tokens(delimiter))
        if array is not None:
            return array
    raise ValueError(f"malformed array: {text[:60]!r}")


@functools.cache
def _tokens(delimiter: str) -> re.Pattern[str]:
    """A quoted element, a bare one, or a mark."""
    d = re.escape(delimiter)
    return re.compile(rf'"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<bare>[^{{}}"\\{d}]+)|(?P<mark>[{{}}{d}])', re.DOTALL)


def _parse_any(text: str, element: Callable[[str], Any], tokens: re.Pattern[str]) -> list[Any] | None:
    """Quotes and dimensions are slower. None: malformed."""
    open_lists: list[list[Any]] = []
    wanted = True  # an element or a list must come now, or the end of an empty one
    at = 0
    while match := tokens.match(text, at):
        at = match.end()
        quoted, bare, mark = match.groups()
        if mark == "{":
            if not wanted or len(open_lists) == MAX_DIMENSIONS:
                return None
            open_lists.append([])
        elif not open_lists:
            return None
        elif mark == "}":
            if wanted and open_lists[-1]:
                return None
            done = open_lists.pop()
            if not open_lists:
                return done if at == len(text) else None
            open_lists[-1].append(done)
            wanted = False
        elif wanted == bool(mark):
            return None
        elif mark:
            wanted = True
        else:
            if bare is not None:
                item = None if bare == "NULL" else element(bare)
            else:
                item = element(_ESCAPE.sub(r"\1", quoted) if "\\" in quoted else quoted)
            open_lists[-1].append(item)
            wanted = False
    return None
