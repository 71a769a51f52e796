"""Server-Sent Events framing (WHATWG HTML, section 9.2 "Server-sent events").

An SSE line ends with CR, LF or CRLF only, so a payload is split there and nowhere else (`str.splitlines`
would split on U+2028 and corrupt the data). CR, LF and NUL in an id or event name are refused: they would
end the field, and a NUL makes the browser ignore the id.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")
_FORBIDDEN = re.compile(r"[\r\n\0]")

PING = b": ping\n\n"
"""The heartbeat of a stream whose position has not moved."""


def frame(data: bytes, *, position: str | None = None, event: str | None = None) -> bytes:
    """One SSE block. Raises ValueError when `position` (the block's id) or `event` holds CR, LF or NUL."""
    plain = b"\n" not in data and b"\r" not in data
    if plain and event is None and position is not None:  # what nearly every entry becomes
        return b"id: %b\ndata: %b\n\n" % (_field(position, "id"), data)
    parts: list[bytes] = []
    if position is not None:
        parts.append(b"id: " + _field(position, "id"))
    if event is not None:
        parts.append(b"event: " + _field(event, "event"))
    if plain:
        parts.append(b"data: " + data)
    else:
        parts.extend(b"data: " + line for line in _LINE_END.split(data))
    return b"\n".join(parts) + b"\n\n"


def retry(milliseconds: int) -> bytes:
    """The block that tells the client how long to wait before it reconnects, in milliseconds."""
    return b"retry: %d\n\n" % milliseconds


def heartbeat(position: str) -> bytes:
    """A block with an id only: moves the browser's last event id on and dispatches nothing."""
    return b"id: " + _field(position, "id") + b"\n\n"


def marked(block: bytes, mark: str) -> bytes:
    """A block that begins with its id, with a mark put behind the id."""
    first, _, rest = block.partition(b"\n")
    return first + mark.encode() + b"\n" + rest


def placed(block: bytes, position: str) -> bytes:
    """A block that has no id, with one."""
    return b"id: " + _field(position, "id") + b"\n" + block


def at(block: bytes, position: str) -> bytes:
    """A block that begins with its id, with another id."""
    return b"id: " + _field(position, "id") + b"\n" + block.partition(b"\n")[2]


def bare(block: bytes) -> bytes:
    """A block that begins with its id, without it."""
    return block.partition(b"\n")[2]


def _field(value: str, name: str) -> bytes:
    if not value.isprintable() and _FORBIDDEN.search(value):  # the first is quicker, and nearly all are
        raise ValueError(f"an SSE {name} can't hold CR, LF or NUL: {value!r}")
    return value.encode()
