"""A client of the stream, as a program on the command line or a service needs it, and of the API.

It reconnects by itself with Last-Event-ID, waits as long as the server's `retry:` says, and stops only when
coming back would be of no use (400, 401, 403 and every other 4xx but 429).

Source: WHATWG HTML, section 9.2 "Server-sent events", for what moves the last event id and the pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import httpx
import httpx_sse
import msgspec

from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound, RowcastError, TooLarge, Unavailable

LONGEST_PAUSE = 60.0
"""Seconds between two tries that fail, at most."""

_FINAL: dict[int, type[RowcastError]] = {401: AuthError, 403: Forbidden, 404: NotFound, 413: TooLarge}
_LONGEST_ANSWER = 64 * 1024


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


class EventStream:
    """The events of a user's stream, for ever; to be iterated once, by `async for`.

    `url`: the service, with or without `/events`. `token`: the user's; None sends none. `last_event_id`: the
    position to resume from; None starts from now. `topics` narrow the stream; none means all of the user's.
    `snapshot`: have the current rows of the topics first (`rowcast.snapshot`), where their routes have them.
    `silence`: seconds without a byte, heartbeats included, after which the connection is taken for dead.
    `on_retry` is told why there is no stream just now, and in how many seconds it is tried again.

    Raises `AuthError`, `Forbidden`, `NotFound` or `BadRequest` with the server's words when it refuses for good.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        last_event_id: str | None = None,
        topics: Iterable[str] = (),
        snapshot: bool = False,
        silence: float = 60.0,
        on_retry: Callable[[str, float], None] = lambda reason, pause: None,
    ) -> None:
        self.url = events_url(url)
        self.last_event_id = last_event_id or ""
        """The position of the last event that was received; "" where there is none, as in the midst of a snapshot."""
        self.retry = 3.0
        """Seconds to wait before a new try, as the server asked last."""
        self._token = token
        self._params = {"topics": ",".join(topics)} if topics else {}
        if snapshot:
            self._params["snapshot"] = "1"
        self._timeout = httpx.Timeout(10.0, read=silence)
        self._on_retry = on_retry
        self._failures = 0

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        async with httpx.AsyncClient(timeout=self._timeout) as http:
            while True:
                pause = 0.0
                try:
                    async with contextlib.aclosing(self._connection(http)) as events:
                        async for event in events:
                            yield event
                    reason = "the server ended the stream"
                except httpx.TransportError as error:
                    self._failures += 1
                    reason = f"{type(error).__name__} {error}".strip()
                except _NotNowError as error:
                    self._failures += 1
                    reason, pause = str(error), error.pause
                pause = max(pause, self._pause())
                self._on_retry(reason, pause)
                await asyncio.sleep(pause)

    async def _connection(self, http: httpx.AsyncClient) -> AsyncGenerator[Event, None]:
        """The events of one connection."""
        async with http.stream("GET", self.url, params=self._params, headers=self._headers()) as response:
            if response.status_code != 200:
                await _refuse(response)
            named = False
            try:
                async for received in httpx_sse.EventSource(response).aiter_sse():
                    self._failures = 0
                    # "" is what the server says to have it forgotten, and also what is before its first word on it.
                    named = named or bool(received.id)
                    if named:
                        self.last_event_id = received.id
                    if received.retry is not None:
                        self.retry = received.retry / 1000
                    # A block without data is a heartbeat: it moves the position on and is no event.
                    if received.data:
                        yield Event(received.event or "message", received.data, self.last_event_id)
            except httpx_sse.SSEError:
                raise BadRequest(f"{self.url} is no event stream; is it the address of Rowcast?") from None

    def _headers(self) -> dict[str, str]:
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        if self.last_event_id:
            headers["last-event-id"] = self.last_event_id
        return headers

    def _pause(self) -> float:
        """`retry`, doubled with every try that failed in a row, and spread so that clients don't come together."""
        pause = min(self.retry * 2.0 ** min(self._failures, 16), max(LONGEST_PAUSE, self.retry))
        return pause * random.uniform(0.75, 1.25) if self._failures else pause  # noqa: S311 - no secret


class _NotNowError(Exception):
    """The server can't serve the stream now; `pause` is the Retry-After in seconds, or 0."""

    def __init__(self, message: str, pause: float) -> None:
        super().__init__(message)
        self.pause = pause


def events_url(url: str) -> str:
    """The stream's address of a service's address. Raises `BadRequest` when it is no http(s) URL."""
    return service_url(url).removesuffix("/events") + "/events"


def service_url(url: str) -> str:
    """A service's address without a slash at its end. Raises `BadRequest` when it is no http(s) URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadRequest(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadRequest(f"{url!r} is no URL of a service; write it like http://127.0.0.1:8080")
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def call(url: str, path: str, body: dict[str, Any], *, key: str, timeout: float = 15.0) -> Any:
    """POST to the API of the service at `url` with the API key; returns what it answers, decoded.

    `timeout` in seconds, for each step. Raises the error that the answer's status stands for, with the
    server's words, and `Unavailable` when there is no answer.
    """
    address = service_url(url) + path
    try:
        response = httpx.post(
            address,
            content=msgspec.json.encode(body),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            timeout=timeout,
        )
    except httpx.TransportError as error:
        raise Unavailable(f"{address} can't be reached: {error or type(error).__name__}", what="server") from None
    if response.status_code >= 400:
        raise _error(response.status_code, response.content, address)
    try:
        return msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        raise BadRequest(f"{address} does not answer like Rowcast; is it its address?") from None


async def _refuse(response: httpx.Response) -> None:
    """Raise what a status other than 200 stands for."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _LONGEST_ANSWER:
            break
    error = _error(response.status_code, bytes(content), str(response.request.url.copy_with(query=None)))
    if response.status_code == 429 or response.status_code >= 500:
        after = response.headers.get("retry-after", "")
        raise _NotNowError(str(error), float(after) if after.isdecimal() else 0.0)
    raise error


def _error(status: int, content: bytes, address: str) -> RowcastError:
    try:
        words = msgspec.json.decode(content)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        words = "an answer that is not Rowcast's; is it its address?"
    message = f"{address} says {status}: {words}"
    if status == 429 or status >= 500:
        return Unavailable(message, what="server")
    return _FINAL.get(status, BadRequest)(message)
