"""Entries: the items of the log, and the batches in which they travel.

Four kinds, all ordered by their place:

- `DATA`     addressed to a topic; becomes an SSE frame on the streams that have the topic;
- `SWEEP`    like DATA, addressed to every topic that starts with `topic`: what a TRUNCATE becomes, which has
             no row to say which topics it concerns;
- `ROW`      a row change of a table that a subscription rule reads; changes users' topics at this place;
- `CONTROL`  "resubscribe" or "disconnect" for one user.

A change's ROW entries come before its DATA entries: a change to a subscription is in force for the
entries of that very change.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, Protocol

import msgspec

from rowcast.core import sse
from rowcast.core.position import ORIGIN, Place, format_position

USER_PREFIX = "user:"

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_OVERHEAD = 400
"""An entry's own memory in bytes: object, place, topic, slot and chain in the ring."""


def user_topic(user: str) -> str:
    """The name of a user's own topic."""
    return USER_PREFIX + user


class Kind(IntEnum):
    """What an entry is; see the module's docstring."""

    DATA = 0
    ROW = 1
    CONTROL = 2
    SWEEP = 3


class Body(Protocol):
    """The payload of a DATA or SWEEP entry, encoded only when somebody listens."""

    def encode(self, limit: int) -> bytes:
        """The JSON text of the SSE `data:` field, without CR or LF.

        `limit` is `max_event` in bytes: a larger payload is encoded with its keys only and
        `metadata.truncated`.
        """
        ...

    @property
    def size(self) -> int:
        """Estimated memory in bytes, before and after encoding."""
        ...


class RowChange(msgspec.Struct, frozen=True):
    """The body of a ROW entry: one change of a table that a subscription rule reads.

    `rule` is the index of the subscription rule. `new` and `old` hold decoded values of the columns that
    the rule needs (its key, user column, condition and topics), as far as the WAL gives them; a column
    that is absent from `new` was an unchanged TOASTed value. `old` is None when the WAL does not tell.
    `reload`: changes before this one could not be read, so every user must be read anew.
    """

    rule: int
    action: Literal["insert", "update", "delete", "truncate", "read"]
    new: dict[str, Any] | None
    old: dict[str, Any] | None
    reload: bool = False


class Control(msgspec.Struct, frozen=True):
    """The body of a CONTROL entry. `at` is the Unix time (seconds) at which it was asked for."""

    action: Literal["resubscribe", "disconnect"]
    user: str
    at: float = 0.0


class Entry(msgspec.Struct, gc=False, eq=False):
    """One item of the log.

    `topic` is "" for ROW and CONTROL. `key` identifies the row for conflation (None: never conflated).
    `event` is the SSE event name (None: the default, `message`). `time` is the commit's, in microseconds
    since the Unix epoch. `xid` is the 32-bit id of the transaction; of a DATA or SWEEP entry only where a snapshot
    of its topic would have its row, else 0: what was published, and what a route without `snapshot` sends, is
    never in a snapshot.
    `interval`, in microseconds: at most one entry of its topic and key is sent in that time
    (0: all are); `due` is set by the `throttle`: the time until which it is held (0: it is not).

    The ring holds hundreds of thousands: no body leads back to its entry, so the garbage collector need not look.
    """

    kind: Kind
    place: Place
    body: Any
    topic: str = ""
    xid: int = 0
    key: str | None = None
    event: str | None = None
    time: int = 0
    interval: int = 0
    due: int = 0
    _frame: bytes | None = None

    @property
    def size(self) -> int:
        """Estimated memory of a DATA or SWEEP entry in bytes: what the ring's bound counts."""
        size: int = _OVERHEAD + self.body.size
        return size

    def frame(self, epoch: str, limit: int) -> bytes:
        """The entry's SSE block, made once and shared by all streams."""
        frame = self._frame
        if frame is None:
            data = self.body.encode(limit)
            if self.event is None and b"\n" not in data and b"\r" not in data:
                # What the rest makes of it, without three calls: this is done for every entry that is sent.
                major, minor = self.place
                frame = b"id: %b:%X-%d\ndata: %b\n\n" % (epoch.encode(), major, minor, data)
            else:
                frame = sse.frame(data, position=format_position(epoch, self.place), event=self.event)
            self._frame = frame
        return frame

    def frame_on(self, topic: str, limit: int) -> bytes:
        """The SSE block of a SWEEP entry as if it were addressed to one topic alone, without an id."""
        event = _decode(self.body.encode(limit))
        if "topic" in event:
            event["topic"] = msgspec.Raw(msgspec.json.encode(topic))
        return sse.frame(msgspec.json.encode(event), event=self.event)

    def __repr__(self) -> str:
        return f"<Entry {self.kind.name} {self.topic or self.body!r} at {self.place}>"


class Batch(msgspec.Struct, eq=False):
    """What a log's tail yields: entries in order, and how far the log has been seen.

    `head`: every entry at or below it has been yielded, in this batch or before; it moves on without
    entries too, since most of a database's WAL is not for us. `reset`: None, or the reason why the entries
    before this batch can't be told to be complete (a gap, another epoch): the hub then forgets its ring and
    tells every stream. A batch with `reset` starts the tail anew at `head`, in `epoch`.
    """

    epoch: str
    entries: Sequence[Entry]
    head: Place = ORIGIN
    reset: str | None = None

    def __repr__(self) -> str:
        return f"<Batch {self.epoch} {len(self.entries)} entries, head {self.head}, reset {self.reset}>"
