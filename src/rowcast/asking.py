"""Asking a Redis or Valkey for the services beside the log: one client, short waits, one kind of error.

Nothing is sent twice by the client itself, and nobody waits longer than `timeout`: what these services tell is worth
little when it comes late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from rowcast.errors import Unavailable
from rowcast.logs import redis_client

TIMEOUT = 2.0
"""Seconds after which an answer is given up."""


def connect(url: str, key: str, *, timeout: float = TIMEOUT) -> Redis:
    """A client for a key, and others in its slot; nothing is connected yet. `timeout` in seconds bounds each answer.

    With Sentinel or a Cluster it goes to the server that has the key, and fails once when that is another one now.

    Raises ValueError for a URL that is none.
    """
    return redis_client.connect(url, key=key, socket_timeout=timeout, socket_connect_timeout=timeout)


@asynccontextmanager
async def asking(what: str = "redis", *, timeout: float = TIMEOUT) -> AsyncIterator[None]:
    """For the time of a block that asks Redis: whatever goes wrong is `Unavailable`, with `what` as what is down.

    `timeout` in seconds bounds the block as a whole.
    """
    failure: Exception | None = None
    try:
        async with asyncio.timeout(timeout):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        failure = error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # Before Python 3.12, asyncio.wait_for forgets a cancellation that comes as a command is being sent.
        raise asyncio.CancelledError
    if failure is not None:
        raise Unavailable(f"Redis can't be asked: {reason(failure, timeout)}", what=what) from failure


def reason(error: BaseException, timeout: float = TIMEOUT) -> str:
    """What went wrong, in one line."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {timeout:g} s"
    return " ".join(str(error).split()) or type(error).__name__
