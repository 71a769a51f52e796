"""A parser of event streams, fed with bytes as they come.

Source: WHATWG HTML, sections 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

import codecs
import re

import msgspec

# Nothing else ends a line: `str.splitlines` would split at U+2028, too.
_LINE_END = re.compile(r"\r\n|\n|\r")


class Block(msgspec.Struct, frozen=True):
    """What a blank line ended. `data` None: there was none, so it is no event and only moves the position on.

    `event` is "" where none is named, `id` the position from here on, `retry` the pause in milliseconds that was
    asked for since the block before (None: nothing was said of it).
    """

    event: str
    data: str | None
    id: str
    retry: int | None


class Parser:
    """Parses one connection's bytes. `last_event_id` is the position that holds until the stream tells another one."""

    def __init__(self, last_event_id: str = "") -> None:
        self._id = last_event_id
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._begun = False
        self._after_cr = False
        self._event = ""
        self._data: list[str] | None = None
        self._retry: int | None = None

    def feed(self, data: bytes) -> list[Block]:
        """The blocks that these bytes complete."""
        text = self._decode(data)
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if text:
            # A CR ends a line at once; if it was half of a CRLF, the other half is none of the next line's.
            if self._after_cr:
                text = text.removeprefix("\n")
            self._after_cr = text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        return [block for line in lines if (block := self._line(line)) is not None]

    def _line(self, line: str) -> Block | None:
        if not line:
            block = Block(self._event, None if self._data is None else "\n".join(self._data), self._id, self._retry)
            self._event, self._data, self._retry = "", None, None
            return block
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            if self._data is None:
                self._data = []
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdecimal():
            self._retry = int(value[:9])
        return None
