"""What a client of a stream knows and decides, without IO: what to ask for, what came, and when to come back.

The rules, in short:

- a connection that ends is made again, with the position of the last block that came whole (Last-Event-ID), after
  the pause that the server asked for (`retry:`);
- tries that fail in a row are made ever more slowly, and spread out, so that clients do not come together;
- a status in the 5xx, 408 and 429 are "not now", with Retry-After; every other one but 200 is final;
- a token that was refused (401), has expired or was revoked (`rowcast.bye`) is asked for anew, where a function gives
  it; refused right after that, it is final.

Source: WHATWG HTML, section 9.2 "Server-sent events", for what moves the last event id and the pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from rowcast import jitter
from rowcast.client.api import error_of, events_url
from rowcast.client.parser import Parser
from rowcast.client.rows import Rows
from rowcast.errors import AuthError, BadRequest

LONGEST_PAUSE = 60.0
"""Seconds between two tries that fail, at most."""

_TOKEN_IS_OVER = ("token_expired", "disconnected")


class Event(msgspec.Struct, frozen=True):
    """One event of a stream.

    `event` is its name: `message` for changes and published data, `rowcast.…` for what the service itself has to
    say (`rowcast.ready`, `rowcast.reset`, `rowcast.bye`, …). `data` is its text, JSON. `id` is the position to
    resume from.
    """

    event: str
    data: str
    id: str

    def json(self) -> Any:
        """The data, decoded. Raises ValueError when it is no JSON."""
        return msgspec.json.decode(self.data)


class Wait(msgspec.Struct, frozen=True):
    """Why there is no stream just now, and in how many seconds it is to be tried again."""

    reason: str
    pause: float


class Session:
    """One client's stream over all its connections; see the module's docstring. The caller does the IO.

    For each connection `begin`, GET `url` with `params` and `headers`, then `accept` with the answer's head (or
    `refused` with a body, where the status is not 200), `feed` with what comes, and at the end `ended` or `broke`.
    """

    def __init__(
        self, url: str, *, last_event_id: str | None = None, topics: Iterable[str] = (), snapshot: bool = False
    ) -> None:
        self.url = events_url(url)
        self.params = {"topics": ",".join(topics)} if topics else {}
        if snapshot:
            self.params["snapshot"] = "1"
        self.last_event_id = last_event_id or ""
        self.retry = 3.0
        self._parser = Parser()
        self._collections: list[Rows] = []
        self._begun = False
        self._failures = 0
        self._stale = False
        self._fresh = False

    def rows(self, topic: str | None = None, key: Iterable[str] = ("id",)) -> Rows:
        """A collection that is kept from what comes. Raises RuntimeError when something may have come already."""
        if self._begun:
            raise RuntimeError("ask for rows before the stream is iterated: what came until now would be missing")
        rows = Rows(topic, key)
        self._collections.append(rows)
        return rows

    def begin(self) -> bool:
        """A connection is to be made; returns whether the token that was used last is of no use any more."""
        self._begun = True
        self._parser = Parser(self.last_event_id)
        self._fresh, self._stale = self._stale, False
        return self._fresh

    def headers(self, token: str | None) -> dict[str, str]:
        """The request's headers."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        if self.last_event_id:
            headers["last-event-id"] = self.last_event_id
        return headers

    def accept(self, headers: Mapping[str, str]) -> None:
        """The answer has status 200 and these headers. Raises `BadRequest` when it is no event stream."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
            raise BadRequest(f"{self.url} is no event stream; is it the address of Rowcast?")

    def refused(self, status: int, headers: Mapping[str, str], content: bytes, *, renewable: bool) -> Wait:
        """The answer has a status that is not 200. `renewable`: a function gives the token.

        Raises the error that the status stands for, with the server's words, when it is final.
        """
        error = error_of(status, content, self.url)
        if isinstance(error, AuthError) and status == 401 and renewable and not self._fresh:
            self._stale = True
            return Wait(str(error), 0.0)
        if status not in (408, 429) and status < 500:
            raise error
        after = headers.get("retry-after", "")
        return self._failed(str(error), float(after) if after.isascii() and after.isdecimal() else 0.0)

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete; to be gone through to its end before more are fed."""
        for block in self._parser.feed(data):
            self._failures = 0
            self.last_event_id = block.id
            if block.retry is not None:
                self.retry = block.retry / 1000
            # A block without data is a heartbeat: it moves the position on and is no event.
            if block.data is not None:
                event = Event(block.event or "message", block.data, block.id)
                self._heed(event)
                yield event

    def ended(self) -> Wait:
        """The server ended the stream."""
        return Wait("the server ended the stream", self._pause())

    def broke(self, reason: str) -> Wait:
        """The connection broke, or could not be made."""
        return self._failed(reason, 0.0)

    def _heed(self, event: Event) -> None:
        for rows in self._collections:
            rows.take(event.event, event.data)
        # Elsewhere "not now" is said with the same event.
        if event.event == "rowcast.bye" and any(reason in event.data for reason in _TOKEN_IS_OVER):
            self._stale = True

    def _failed(self, reason: str, pause: float) -> Wait:
        self._failures += 1
        return Wait(reason, max(pause, self._pause()))

    def _pause(self) -> float:
        pause = min(self.retry * 2.0 ** min(self._failures, 16), max(LONGEST_PAUSE, self.retry))
        return jitter.seconds(0.75 * pause, 1.25 * pause) if self._failures else pause
