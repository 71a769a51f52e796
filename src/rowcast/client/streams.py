"""The clients' IO, by httpx: two thin shells, for asyncio and for threads, around one `Session`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from typing import Generic, TypeVar

import httpx

from rowcast.client.rows import Rows
from rowcast.client.session import Event, Session, Wait

Token = str | Callable[[bool], str]
AsyncToken = str | Callable[[bool], "str | Awaitable[str]"]

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take to be made, and a request to be sent."""

_LONGEST_ANSWER = 64 * 1024
"""Bytes that are read of an answer that is no stream."""

_T = TypeVar("_T")


class _Stream(Generic[_T]):
    """What both have; see `EventStream` for the arguments."""

    def __init__(
        self,
        url: str,
        *,
        token: _T | None = None,
        last_event_id: str | None = None,
        topics: Iterable[str] = (),
        snapshot: bool = False,
        headers: Mapping[str, str] | None = None,
        silence: float = 60.0,
        on_retry: Callable[[str, float], None] = lambda reason, pause: None,
    ) -> None:
        self._session = Session(url, last_event_id=last_event_id, topics=topics, snapshot=snapshot)
        self._token = token
        self._more = dict(headers or {})
        self._timeout = httpx.Timeout(CONNECT_TIMEOUT, read=silence)
        self._on_retry = on_retry
        self._ending = threading.Event()
        self._response: httpx.Response | None = None

    @property
    def url(self) -> str:
        """The stream's address."""
        return self._session.url

    @property
    def last_event_id(self) -> str:
        """The position of the last event that was received; "" where there is none, as in the midst of a snapshot."""
        return self._session.last_event_id

    @property
    def retry(self) -> float:
        """Seconds to wait before a new try, as the server asked last."""
        return self._session.retry

    @retry.setter
    def retry(self, seconds: float) -> None:
        self._session.retry = seconds

    def rows(self, topic: str | None = None, key: Iterable[str] = ("id",)) -> Rows:
        """A collection of the stream's rows, up to date with the event that was received last: see `Rows`.

        Raises RuntimeError when the stream is being iterated already.
        """
        return self._session.rows(topic, key)

    def _put_off(self, response: httpx.Response, content: bytes) -> Wait:
        renewable = callable(self._token)
        return self._session.refused(response.status_code, response.headers, content, renewable=renewable)


class EventStream(_Stream[AsyncToken]):
    """The events of a user's stream, for ever; to be iterated once, by `async for`. To end it, cancel its task.

    `url`: the service, with or without `/events`. `token`: the user's, or a function that gives it, which may be
    async; it is called at each connect, with True when the last token was refused or has expired, so that a new one
    is needed. None sends none. `last_event_id`: the position to resume from; None starts from now. `topics` narrow the
    stream; none means all of the user's. `snapshot`: have the current rows of the topics first (`rowcast.snapshot`),
    where their routes have them. `headers` are sent besides, as a cookie. `silence`: seconds without a byte, heartbeats
    included, after which the connection is taken for dead. `on_retry` is told why there is no stream just now, and in
    how many seconds it is tried again.

    That something was missed for good is an event, `rowcast.reset`: fetch your state anew, the stream goes on.

    Raises `AuthError`, `Forbidden`, `NotFound` or `BadRequest` with the server's words when it refuses for good.
    """

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        session = self._session
        async with httpx.AsyncClient(timeout=self._timeout) as http:
            while True:
                try:
                    headers = session.headers(await self._bearer(session.begin())) | self._more
                    async with http.stream("GET", session.url, params=session.params, headers=headers) as response:
                        if response.status_code == 200:
                            session.accept(response.headers)
                            async for chunk in response.aiter_bytes():
                                for event in session.feed(chunk):
                                    yield event
                            wait = session.ended()
                        else:
                            wait = self._put_off(response, await anext(response.aiter_bytes(_LONGEST_ANSWER), b""))
                except httpx.TransportError as error:
                    wait = session.broke(_words(error))
                self._on_retry(wait.reason, wait.pause)
                await asyncio.sleep(wait.pause)

    async def run(self) -> None:
        """Receive, for ever: for those who look at `rows` only."""
        async with contextlib.aclosing(self.__aiter__()) as events:
            async for _ in events:
                pass

    async def _bearer(self, expired: bool) -> str | None:
        if not callable(self._token):
            return self._token
        token = self._token(expired)
        return token if isinstance(token, str) else await token


class SyncEventStream(_Stream[Token]):
    """The same as `EventStream` for programs without asyncio: to be iterated once, by `for`.

    Another thread may `close` it. `token`, where it is a function, is not async.
    """

    def __iter__(self) -> Generator[Event, None, None]:
        session = self._session
        with httpx.Client(timeout=self._timeout) as http:
            while not self._ending.is_set():
                try:
                    headers = session.headers(self._bearer(session.begin())) | self._more
                    with http.stream("GET", session.url, params=session.params, headers=headers) as response:
                        if response.status_code == 200:
                            session.accept(response.headers)
                            self._response = response
                            # Looked at after that, so that `close` finds the response, or we what it said.
                            if self._ending.is_set():
                                return
                            for chunk in response.iter_bytes():
                                for event in session.feed(chunk):
                                    yield event
                                    if self._ending.is_set():
                                        return
                            wait = session.ended()
                        else:
                            wait = self._put_off(response, next(response.iter_bytes(_LONGEST_ANSWER), b""))
                except httpx.TransportError as error:
                    wait = session.broke(_words(error))
                finally:
                    self._response = None
                if not self._ending.is_set():
                    self._on_retry(wait.reason, wait.pause)
                    self._ending.wait(wait.pause)

    def run(self) -> None:
        """Receive until it is closed: for those who look at `rows` only."""
        with contextlib.closing(self.__iter__()) as events:
            for _ in events:
                pass

    def close(self) -> None:
        """End the iteration, from any thread: at once, or when the connection that is just being made is there."""
        self._ending.set()
        response = self._response
        if response is not None:
            sock = response.extensions["network_stream"].get_extra_info("socket")
            # The socket's own method, also of one with TLS: a thread that waits for bytes wakes up, and sees the end.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _bearer(self, expired: bool) -> str | None:
        return self._token(expired) if callable(self._token) else self._token


def _words(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()
