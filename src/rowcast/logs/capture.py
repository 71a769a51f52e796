"""From the server's messages to entries with places: the sans-IO half of the postgres log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from rowcast.core.change import Change, Message, Relation
from rowcast.core.entry import Entry
from rowcast.core.pgoutput import Begin, Commit, Decoder
from rowcast.core.position import MINOR_SPACING, ORIGIN, Place
from rowcast.logs.messages import Messages

if TYPE_CHECKING:
    from rowcast.telemetry.traces import Traces


class Routing(Protocol):
    """What `Capture` needs of a router."""

    def wants(self, relation: Relation) -> bool:
        """Whether any route or rule reads this table."""
        ...

    def route(self, change: Change) -> list[Entry]:
        """The entries of a change."""
        ...


class Capture:
    """Keeps the position, and makes entries of the messages above it.

    `router` makes entries of changes, `messages` of logical messages; `seen` is told of each of our messages
    that comes by: (nonce, place). `begin` before each replication session, then `take` what comes.
    """

    def __init__(
        self, router: Routing, messages: Messages, seen: Callable[[str, Place], None] = lambda nonce, place: None
    ) -> None:
        self._router = router
        self._messages = messages
        self._seen = seen
        self._decoder = Decoder(router.wants)
        self.position: Place = ORIGIN
        """Every entry at or below it has been taken."""
        self.finished = 0
        """Every transaction that ends at or below this LSN has been taken whole: the server may forget it."""
        self.traces: Traces | None = None
        """Makes a span of each batch; None: nobody wants any."""
        self.last_commit = 0.0
        """Monotonic time at which a transaction came by last."""

    def begin(self, position: Place) -> None:
        """A session starts that sends every transaction whose commit LSN is at or above `position[0]`.

        What is not above the position is sent again, and skipped.
        """
        # Relations are sent anew in each session, and a transaction that was cut starts anew.
        self._decoder = Decoder(self._router.wants)
        self.position = position
        self.finished = position[0]

    def ask_again(self) -> None:
        """The router wants other tables than before."""
        self._decoder.ask_again()

    def accept(self, secret: bytes | None) -> None:
        """Take messages, too, that are signed with this secret."""
        self._messages.accept(secret)

    def take(self, payloads: Iterable[bytes], sent: int = 0) -> list[Entry] | None:
        """The entries of pgoutput messages; None when not even the position moved on.

        `sent`: the server says that it has sent everything below this LSN (0: it does not say). Raises
        `DecodeError`; the position is then that of before.
        """
        begun = 0 if self.traces is None else time.time_ns()
        decoder = self._decoder
        decode, route = decoder.decode, self._router.route
        entries: list[Entry] = []
        position, finished = self.position, self.finished
        committed = False
        for payload in payloads:
            event = decode(payload)
            if type(event) is Change:
                if event.place > position:
                    entries += route(event)
            elif event is None or type(event) is Begin:
                continue
            elif type(event) is Commit:
                committed = True
                if event.end_lsn > finished:
                    finished = event.end_lsn
                if (finished, 0) > position:
                    position = (finished, 0)
            elif type(event) is Message:
                if event.place > position:
                    self._message(event, entries)
            elif isinstance(event, list):
                for change in event:
                    if change.place > position:
                        entries.extend(route(change))
        if decoder.in_transaction:
            # Every entry of the changes so far has been made, and lies below the place of the next one.
            position = max(position, (decoder.commit_lsn, (decoder.index + 1) * MINOR_SPACING - 1))
        elif sent > finished:
            finished = sent
            position = max(position, (finished, 0))
        self.finished = finished
        if committed:
            self.last_commit = time.monotonic()
        if position == self.position and not entries:
            return None
        self.position = position
        if entries and self.traces is not None:
            self.traces.captured(begun, len(entries), position)
        return entries

    def _message(self, message: Message, entries: list[Entry]) -> None:
        read = self._messages.read(message)
        if read is not None:
            nonce, entry = read
            entries.append(entry)
            self._seen(nonce, entry.place)
