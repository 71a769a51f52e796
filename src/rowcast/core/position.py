"""Positions: the place of an entry in the log, the same on every replica.

A position is `(epoch, major, minor)`. From Postgres, `major` is the commit LSN of the transaction and
`minor` is spaced: change number *i* of the transaction (row changes, truncates and transactional
messages count; Relation, Type and Origin messages do not, since they come at different moments on
different walsenders) has `(i + 1) << 20`, and the entries that one change is routed to count up from
there. `minor` 0 at an LSN means "everything committed before this LSN".

A position that was given to a client while entries were held back from it (see `throttle`) has a mark besides, and one
that was given while it still lacked rows of a snapshot (see `fill`) has a star.

On the wire (the SSE `id:`, and so the client's `Last-Event-ID`) it reads `EPOCH:MAJOR-MINOR`: epoch and
major in hexadecimal, as Postgres writes LSNs but without the slash, minor in decimal. The star follows, and then the
mark as `~MARK`, in base 36.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rowcast.errors import PositionError

MINOR_SPACING = 1 << 20
"""Room between two changes of a transaction: for the entries of one change, and for published ones."""

MAX_TEXT = 64
"""Longest accepted text form, in characters."""

_TEXT = re.compile(
    r"([0-9a-f]{1,16}):([0-9A-Fa-f]{1,16})-([0-9]{1,19})(\*)?(?:~([0-9a-z]{1,12})(?:~([0-9a-z]{1,12}))?)?", re.ASCII
)

OWED = "*"
"""Behind a place: whoever comes back with it is sent the rows of its topics anew."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

Place = tuple[int, int]
"""A place within one epoch: `(major, minor)`, ordered as a tuple."""

ORIGIN: Place = (0, 0)
"""The place before every entry."""


class Position(NamedTuple):
    """The place of an entry in the log.

    `epoch` stands for the database's identity (system identifier, timeline) and the log's incarnation;
    positions of different epochs can't be compared, and a client that holds one of another epoch is reset.
    `mark`: what was held back when a client was given it; 0: nothing. `over`: how far the client has what the very next
    entry may not overtake; see `throttle`. `owed`: rows of a snapshot were still to come.
    """

    epoch: str
    major: int
    minor: int
    mark: int = 0
    over: int = 0
    owed: bool = False

    @property
    def place(self) -> Place:
        """`(major, minor)`: what is left to compare within one epoch."""
        return (self.major, self.minor)

    def __str__(self) -> str:
        owed = OWED if self.owed else ""
        return format_position(self.epoch, (self.major, self.minor)) + owed + format_mark(self.mark, self.over)


def format_position(epoch: str, place: Place) -> str:
    """The wire form of a place in an epoch, e.g. `7f3a:16B3740-1048576`."""
    return f"{epoch}:{place[0]:X}-{place[1]}"


def format_mark(mark: int, over: int = 0) -> str:
    """What follows a place in its wire form; "" for 0. Neither is negative."""
    text = ""
    for number in (mark, over) if over else (mark,) if mark else ():
        digits = _DIGITS[number % 36]
        while (number := number // 36) > 0:
            digits = _DIGITS[number % 36] + digits
        text += f"~{digits}"
    return text


def parse_position(text: str) -> Position:
    """Read the wire form.

    Raises `PositionError` when it is longer than 64 characters or not of the form.
    """
    match = _TEXT.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None:
        raise PositionError(
            "Last-Event-ID is not a position of this service: expected the id of an earlier event, "
            "like 7f3a:16B3740-1048576; leave it out to start from now"
        )
    epoch, major, minor, owed, mark, over = match.groups()
    return Position(epoch, int(major, 16), int(minor), int(mark or "0", 36), int(over or "0", 36), bool(owed))


def parse_lsn(text: str) -> int:
    """A Postgres LSN (`16/B374D848`, type pg_lsn) as an integer. Raises ValueError on anything else."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """An integer as Postgres writes an LSN."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
