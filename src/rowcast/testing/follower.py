"""A client that comes back: to any replica, with the position it had, whatever happens to the connection.

Cheaper than a whole HTTP client, so that a test can have hundreds of them, and by default with a small receive buffer,
so that one that reads slowly is felt by the server at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlencode, urlsplit

import httptools

from rowcast.testing.stream import Block, parse_block

RECEIVE_BUFFER = 4096
"""Bytes that the kernel keeps for a follower that does not read; it doubles them (socket(7), SO_RCVBUF). So much can
come per turn of its loop: on a busy machine, some hundred kB a second."""

PAUSE = 0.05
"""Seconds before a new try, at least."""

LATELY = 40
"""Happenings that a follower remembers."""

IMPATIENCE = 0.5
"""Seconds that a `retry:` of the server is heeded, at most: a test need not wait as long as a browser."""


class Follower:
    """Follows a user's stream until it is cancelled.

    `pick` says for each connection which service to ask (a URL), `token` is the user's. `heed` is awaited with each
    block but comments, in order; `connecting` is told the position that is asked for (None: from now on). `buffer` is
    the size of its receive buffer in bytes.
    Raises AssertionError when the server answers with a status other than 200 and those in `again`, which a proxy
    may say while a replica is gone.
    """

    def __init__(
        self,
        pick: Callable[[], str],
        token: str,
        heed: Callable[[Block], Awaitable[None]],
        *,
        connecting: Callable[[str | None], None] = lambda position: None,
        params: dict[str, str] | None = None,
        again: Collection[int] = (),
        buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.position: str | None = None
        """The id that came last: the position to resume from."""
        self.connections = 0
        self.lately: deque[str] = deque(maxlen=LATELY)
        """What happened last, for a person who looks for the reason of a failure."""
        self._pick = pick
        self._token = token
        self._heed = heed
        self._connecting = connecting
        self._again = again
        self._buffer = buffer
        self._query = f"?{urlencode(params)}" if params else ""
        self._retry = PAUSE
        self._writer: asyncio.StreamWriter | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    def cut(self) -> None:
        """Break the connection, as a lost network does; the follower comes back."""
        if self._writer is not None:
            self._note("cut")
            self._writer.transport.abort()

    def stall(self) -> None:
        """Read no more until `go_on`."""
        self._note("stalled")
        self._reading.clear()

    def go_on(self) -> None:
        """Read again."""
        self._note("reads again")
        self._reading.set()

    async def run(self) -> None:
        """Follow, for ever."""
        while True:
            with contextlib.suppress(OSError):  # refused, reset, or cut by us: the same to a client
                await self._connection()
            await asyncio.sleep(min(max(self._retry, PAUSE), IMPATIENCE))

    async def _connection(self) -> None:
        url = urlsplit(self._pick())
        self._note(f"connecting to {url.netloc} from {self.position}")
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (url.hostname, url.port))
            reader, self._writer = await asyncio.open_connection(sock=sock, limit=self._buffer)
        except BaseException:
            sock.close()
            raise
        self.connections += 1
        try:
            self._connecting(self.position)
            self._writer.write(self._request(url.netloc))
            await self._read(reader)
        finally:
            self._writer.transport.abort()
            self._writer = None

    def _request(self, host: str) -> bytes:
        lines = [f"GET /events{self._query} HTTP/1.1", f"host: {host}", f"authorization: Bearer {self._token}"]
        if self.position is not None:
            lines.append(f"last-event-id: {self.position}")
        return "\r\n".join([*lines, "", ""]).encode()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        rest = b""
        while not response.complete:
            await self._reading.wait()
            data = await reader.read(self._buffer)
            if not data:
                self._note("the end")
                return
            parser.feed_data(data)
            if response.body and (status := parser.get_status_code()) != 200:
                self._note(f"status {status}")
                assert status in self._again, f"{status}: {response.body!r}"
                return
            *blocks, rest = (rest + bytes(response.body)).split(b"\n\n")
            response.body.clear()
            for text in blocks:
                if not text.startswith(b":"):
                    await self._take(parse_block(text))

    def _note(self, text: str) -> None:
        self.lately.append(f"{time.time() % 1000:.3f} {text}")

    async def _take(self, block: Block) -> None:
        self._note(f"{block.event} {block.id} {str(block.data)[:200]}")
        if block.id:
            self.position = block.id
        if block.retry is not None:
            self._retry = block.retry / 1000
        if block.data is not None:
            await self._heed(block)


class _Response:
    """What the parser found, head aside."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
