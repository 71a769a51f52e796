"""The Protocols between the rooms, and what each promises.

Data goes one way: source → router → log → hub → streams. Nothing downstream of the log writes
upstream, and nothing a stream does can block the hub, nor the hub the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from rowcast.core.entry import Batch
from rowcast.core.fill import Pages, Read
from rowcast.core.position import Place, Position
from rowcast.core.snapshot import Snapshot
from rowcast.core.subscriptions import Load


class Draft(msgspec.Struct, frozen=True):
    """Something to be put into the log by the application: it gets its place by being appended.

    `topic` set: a DATA entry with `data` (JSON text as bytes). `control` set: a CONTROL entry for `user`.
    `event` is the SSE event name, `key` what conflation goes by. `form` says what `data` is: "data" was published,
    and is sent beside its topic; "event" is the whole event, as it is to be sent; "sweep" is one, too, for every
    topic that begins with `topic` (a SWEEP entry). `at` is the Unix time at which a control was asked for, in
    seconds; 0: now. `once` names what is to be in the log only once (see `Log.remembers`); "": it has no name.
    `interval`: see `entry.Entry`, in microseconds. `trace`: the W3C `traceparent` of whoever published it; "": none.
    """

    topic: str = ""
    data: bytes = b""
    event: str | None = None
    key: str | None = None
    control: Literal["resubscribe", "disconnect"] | None = None
    user: str = ""
    form: Literal["data", "event", "sweep"] = "data"
    at: float = 0.0
    once: str = ""
    interval: int = 0
    trace: str = ""


class Bounds(msgspec.Struct, frozen=True):
    """What a log holds now: every entry above `first` up to `last` can be read. `epoch` is theirs."""

    epoch: str
    first: Place
    last: Place


class State(msgspec.Struct, frozen=True):
    """How a dependency is, for readyz and the operator.

    `ok` False means degraded. `detail` is one sentence for a person, with what to do. `since` is the Unix
    time of the last change of `ok`.
    """

    ok: bool
    detail: str
    since: float


class Log(Protocol):
    """The ordered, bounded, shared record of entries.

    Promises: places strictly increase; every tail yields the same entries at the same places, each exactly
    once, or a batch with `reset` where that can't be promised; `tail` survives the loss of its connection
    by itself and goes on from what it yielded last; `append` is all or nothing.
    """

    remembers: bool
    """Whether `append` raises `Repeated` for a draft whose `once` was appended not long ago, by whichever replica.
    Otherwise `once` means nothing to it."""

    async def open(self) -> None:
        """Connect, and create what is missing. Raises `SetupError` with what an administrator must run."""
        ...

    async def close(self) -> None:
        """Let go of every connection, task and temporary slot. The tail ends."""
        ...

    def tail(self) -> AsyncIterator[Batch]:
        """Every entry from the oldest that the log holds, then the new ones as they come, for ever.

        The first batch has `reset="start"` and the log's lower bound as `head`. One tail at a time.
        """
        ...

    async def head(self) -> Place:
        """The place that a tail must pass to have seen everything that was committed before this call."""
        ...

    async def append(self, draft: Draft) -> Position:
        """Append, and return the position once this replica's own tail has passed it.

        Raises `Unavailable`: its message says whether the entry is surely not in the log or unknown. Raises
        `Repeated` only where the log `remembers`.
        """
        ...

    def state(self) -> State:
        """How the log is, without asking it."""
        ...


@runtime_checkable
class ReadableLog(Protocol):
    """What a log can do besides, where what it holds can be read back from any place, again and again.

    A log that can is asked for what the ring no longer holds. One that can't (reading back from the WAL would cost
    the database a decoding of the whole window) just lacks these methods.
    """

    async def bounds(self) -> Bounds:
        """What the log holds now. Raises `Unavailable`."""
        ...

    async def read(self, after: Place, upto: Place) -> Batch:
        """The next page of entries above `after` and not above `upto`, in order.

        The batch's `head` says how far it goes: `upto` when there are no more. `upto` is a place that a tail of the
        same epoch has passed. Raises `Expired` when not every entry above `after` is in the log any more, and
        `Unavailable`.
        """
        ...


class Loader(Protocol):
    """Reads users' subscription rows from the database."""

    async def load(self, users: list[str]) -> Load:
        """Read all users' rows in one REPEATABLE READ transaction, then mark the WAL.

        Raises `Unavailable` when the database can't be asked.
        """
        ...

    async def horizon(self) -> Snapshot:
        """A fresh snapshot: what is below its xmin is visible to every later load."""
        ...


class TooEarly(Exception):
    """A commit that has come by in the log is not visible to a snapshot yet: to be tried again in a moment."""


class TooLong(Exception):
    """A transaction that reads rows took longer than it may."""


class RowReader(Protocol):
    """Reads the current rows of topics from the database; see `snapshot_reader.SnapshotReader`."""

    @property
    def timeout(self) -> float:
        """Seconds that a transaction may take."""
        ...

    def covers(self, topic: str) -> bool:
        """Whether there is a snapshot of the topic to be had."""
        ...

    async def read(
        self, topics: Sequence[str], accepts: Callable[[Snapshot], bool], position: Callable[[Place], str]
    ) -> Read:
        """Read the rows of all `topics` in one transaction, and mark the WAL after its snapshot was taken.

        `accepts` says whether the snapshot will do, `position` writes a place. Raises `TooEarly`, `TooLong`,
        `Crowded` and `Unavailable`.
        """
        ...

    def failed(self, topic: str, reason: str, position: str) -> Pages:
        """The page of a topic whose rows can't be had."""
        ...

    async def horizon(self) -> Snapshot:
        """A fresh snapshot."""
        ...
