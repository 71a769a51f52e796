"""A line: a connection to Redis that has one user, and a short way to the server and back.

What redis-py does around each command (pool, retries, options, time-out contexts, callbacks) takes several times as
long as the command where commits come one by one. So redis-py connects, with everything that a URL may ask for
(passwords, TLS, Sentinel, Clusters), and then the line is the protocol of the transport: it writes commands that are
packed already, and gives what it reads to hiredis.

Of redis-py that needs what is not documented: that a connection keeps its `StreamWriter` in `_writer`, and has read
everything when it is connected. `tests/integration/test_redis_line.py` fails where that is not so any more.

Source: "Redis serialization protocol specification".
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as Unanswered

from rowcast.logs.redis_client import FollowingPool


class Declined(Exception):
    """The server answered with an error: it did not do it. Or the line is in use, and it was not sent."""


class Line:
    """The connection of one user of a client of `connect(url, key=…)`; one command at a time.

    Broken, it stays so until `connect`. `timeout`: seconds after which a server that does not answer is given up.
    """

    def __init__(self, client: Redis, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._single: Redis | None = None
        """Has a connection of the pool's."""
        self._wire: _Wire | None = None
        self._connecting = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection that has not been seen to end."""
        return self._wire is not None and self._wire.failure is None and not self._wire.transport.is_closing()

    async def connect(self) -> None:
        """Connect, in the place of a connection that is broken. Raises what redis-py raises, and `Declined`."""
        if self._connecting:
            raise Declined("it is being connected already")
        self._connecting = True
        try:
            await self._give_back()
            single = self._single = self._client.client()
            await single.initialize()
            self._wire = _Wire(single.connection)
        finally:
            self._connecting = False

    def send(self, command: bytes) -> bool:
        """Send a command, whose `answer` is to be waited for then. False: there is no connection, nothing was sent.

        Raises `Declined` while another command is under way.
        """
        wire = self._wire
        if wire is None or wire.failure is not None or wire.transport.is_closing():
            return False
        if wire.asked:
            raise Declined("it is in use")
        wire.asked = True
        # One timer for many commands: to set one and to cancel it for each costs as much as the rest of this.
        wire.until = wire.loop.time() + self._timeout
        if wire.timer is None:
            wire.timer = wire.loop.call_at(wire.until, wire.rings)
        wire.transport.write(command)
        return True

    async def answer(self) -> Any:
        """The answer to what was sent, as hiredis gives it.

        Raises `Declined` where that is an error, and redis's ConnectionError and TimeoutError. Whoever is cancelled as
        they wait breaks the line: what came then would be taken for the answer to the next command.
        """
        wire = self._wire
        assert wire is not None
        assert wire.asked
        if not wire.answered and wire.failure is None:
            waiting = wire.waiting = wire.loop.create_future()
            try:
                await waiting
            except BaseException:
                wire.fail(Unreachable("the answer was not waited for"))
                raise
        answered, wire.asked, wire.answered = wire.answered, False, False
        if not answered:
            pool = self._client.connection_pool
            if isinstance(pool, FollowingPool):
                pool.locator.forget()
            assert wire.failure is not None
            raise wire.failure
        answer, wire.result = wire.result, None
        if type(answer) is Declined:
            raise answer
        return answer

    def drop(self) -> None:
        """Break the line: what was sent is of no interest any more."""
        if self._wire is not None:
            self._wire.fail(Unreachable("the connection was closed"))

    async def close(self) -> None:
        """Break the line, and give its connection back to the pool."""
        self.drop()
        await self._give_back()

    async def _give_back(self) -> None:
        """Give the connection back to the pool, which connects it anew for whoever needs one next."""
        single, self._single, self._wire = self._single, None, None
        if single is not None:
            if single.connection is not None:
                await single.connection.disconnect(nowait=True)
            await single.aclose()


_PARTIAL = object()
"""What hiredis says as long as the answer is not there whole."""


class _Wire(asyncio.Protocol):
    """The protocol of the transport of one connection, until that ends."""

    __slots__ = (
        "_address", "_former", "_reader",
        "answered", "asked", "failure", "loop", "result", "timer", "transport", "until", "waiting",
    )  # fmt: skip

    def __init__(self, connection: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked = self.answered = False
        """Whether a command was sent whose answer was not taken yet; and whether that has come."""
        self.result: Any = None
        self.failure: Exception | None = None
        self.waiting: asyncio.Future[None] | None = None
        self._address = f"{connection.host}:{connection.port}"
        self.until = 0.0
        """When the answer must be there, by the loop's clock."""
        self.timer: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=Declined, notEnoughData=_PARTIAL)
        self.transport: asyncio.Transport = connection._writer.transport
        self._former = self.transport.get_protocol()
        self.transport.set_protocol(self)

    def fail(self, error: Exception) -> None:
        """End the connection at once."""
        if self.failure is None:
            self.failure = error
            self.transport.abort()
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            waiting, self.waiting = self.waiting, None
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def rings(self) -> None:
        """The timer does."""
        self.timer = None
        if self.asked and not self.answered:
            if self.loop.time() >= self.until:
                self.fail(Unanswered(f"Timeout reading from {self._address}"))
            else:
                self.timer = self.loop.call_at(self.until, self.rings)

    # For the transport

    def data_received(self, data: bytes) -> None:
        """Some of an answer, or all of it."""
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
        except InvalidResponse as error:
            self.fail(error)
            return
        if answer is _PARTIAL:
            return
        if not self.asked or self.answered:
            self.fail(Unreachable("Connection has data"))
            return
        self.result = answer
        self.answered = True
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.fail(Unreachable("Connection closed by server." if exc is None else f"Connection lost: {exc}"))
        # Whoever closes redis-py's connection waits for it.
        self._former.connection_lost(exc)
