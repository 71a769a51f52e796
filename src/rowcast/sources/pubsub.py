"""The bridge: what other programs PUBLISH in Redis, to the streams of this replica.

    PUBLISH cdc:finance:AAPL {json}          to the topic finance:AAPL
    PUBLISH cdc:core:user:alice {json}       to alice's own topic
    PUBLISH sse:ctl:resubscribe alice        alice's subscriptions are read anew

Every replica listens for itself. Nothing of it is in the log: it is delivered at most once and without an id, as
pub/sub is (https://redis.io/docs/latest/develop/pubsub/#delivery-semantics).

A connection that died without a word looks like one on which nothing is published. So whenever it was quiet for QUIET
seconds the listener asks; without an answer in SILENCE seconds it connects anew. A control may have been missed
meanwhile, so then every user here is resubscribed. The client library would reconnect by itself, and tell nobody: it is
given no chance to.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from rowcast.asking import asking, reason
from rowcast.core import sse, values
from rowcast.core.body import Envelope, PublishBody
from rowcast.core.entry import user_topic
from rowcast.core.template import fits
from rowcast.errors import SetupError, Unavailable
from rowcast.ports import State
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

PREFIX = "cdc:"
USER_PREFIX = "cdc:core:user:"
CONTROL = "sse:ctl:resubscribe"

QUIET = 1.0
"""Seconds without a message after which the listener asks whether anybody is there."""

SILENCE = 3.0
"""Seconds without an answer after which the connection is dead."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts to connect: doubled each time."""

OPEN_TIMEOUT = 5.0
"""Seconds that the start waits for the first subscription."""

YIELD_EVERY = 64
"""Messages after which everybody else gets their turn."""

REPEAT_INTERVAL = 60.0
"""Seconds after which a complaint is logged again."""

MAX_NAME = 512
"""Characters that a topic or a user id may have."""


class Bridge:
    """Listens, and hands over what comes: `deliver` a topic and the SSE block for it, `resubscribe` a user, `missed`
    that messages may have been missed. `max_event` in bytes: a larger message is refused. `envelope` "sequin": the
    event's data are the message as it is; else they stand beside the topic, as what POST /publish brings.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        deliver: Callable[[str, bytes], None],
        resubscribe: Callable[[str], None],
        missed: Callable[[], None],
        max_event: int,
        envelope: Envelope = "rowcast",
    ) -> None:
        self._redis = redis
        self._deliver = deliver
        self._resubscribe = resubscribe
        self._missed = missed
        self._max_event = max_event
        self._envelope = envelope
        self._state = State(ok=False, detail="not connected yet", since=time.time())
        self._up = asyncio.Event()
        self._began = False
        self._told: dict[str, float] = {}
        self.messages: Counter[str] = Counter()
        """What came, by what became of it: delivered, control or refused."""
        self.reconnects = 0

    def state(self) -> State:
        """Whether it listens."""
        return self._state

    async def opened(self) -> None:
        """Wait until it listens. Raises `SetupError` when it can't."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._up.wait()
        except TimeoutError:
            raise SetupError(f"[log] pubsub_bridge: {self._state.detail}") from None

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def run(self) -> None:
        """Listen, for ever."""
        pause = FIRST_PAUSE
        while True:
            pubsub = self._redis.pubsub()
            try:
                await self._listen(pubsub)
            except (RedisError, OSError, TimeoutError, Unavailable) as error:
                pause = FIRST_PAUSE if self._state.ok else min(pause * 2, LONGEST_PAUSE)
                self._down(reason(error))
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause)

    async def _listen(self, pubsub: PubSub) -> None:
        """Listen on one connection until it fails."""
        async with asking("bridge"):
            await pubsub.psubscribe(PREFIX + "*")
            await pubsub.subscribe(CONTROL)
        confirmed = 0
        heard = asked = time.monotonic()
        for number in range(1, 1 << 62):
            message: Any = await pubsub.get_message(timeout=QUIET)
            now = time.monotonic()
            if message is None:
                if asked > heard and now - heard > SILENCE:
                    raise Unavailable(f"the connection is dead: no answer for {now - heard:.1f} s")
                async with asking("bridge"):
                    await pubsub.ping()
                asked = now
                continue
            heard = now
            if message["type"] in ("subscribe", "psubscribe"):
                confirmed += 1
                if confirmed == 2:
                    self._listening()
                elif confirmed > 2:
                    raise Unavailable("the connection was made anew")
            elif message["type"] in ("message", "pmessage"):
                self._take(message["channel"], message["data"])
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _take(self, channel: bytes, data: bytes) -> None:
        """Hand over a message. Whatever is wrong with it ends here."""
        try:
            name = channel.decode()
            if name == CONTROL:
                user = data.decode()
                _check("user", user)
                self._resubscribe(user)
                self.messages["control"] += 1
                return
            topic = user_topic(name.removeprefix(USER_PREFIX)) if name.startswith(USER_PREFIX) else name[len(PREFIX) :]
            _check("user" if name == USER_PREFIX else "topic", "" if name == USER_PREFIX else topic)
            self._deliver(topic, self._block(topic, data))
            self.messages["delivered"] += 1
        except Exception as error:  # whatever it is: the next message may be fine
            self.messages["refused"] += 1
            self._complain("bridge_refused", f"a message on {channel[:80]!r} was refused: {reason(error)[:200]}")

    def _block(self, topic: str, data: bytes) -> bytes:
        if len(data) > self._max_event:
            raise ValueError(f"it has {len(data)} bytes; at most {self._max_event} are sent ([server] max_event)")
        data.decode()  # the decoder would not look into JSON text that is passed on as it is
        msgspec.json.decode(data)
        if self._envelope == "sequin":
            broken = b"\n" in data or b"\r" in data
            return sse.frame(bytes(values.json_line(data)) if broken else data)
        return sse.frame(PublishBody(topic, data).encode(2 * len(data) + 16 * len(topic) + 1024))

    # State

    def _listening(self) -> None:
        self._state = State(ok=True, detail="listening", since=time.time())
        self._up.set()
        if self._began:
            self.reconnects += 1
            logger.info("bridge_listening", "the bridge listens again; every user here is resubscribed")
            self._missed()
        self._began = True

    def _down(self, detail: str) -> None:
        self._complain("bridge_down", f"the bridge does not listen: {detail}; trying again")
        since = time.time() if self._state.ok else self._state.since
        self._state = State(ok=False, detail=f"what is PUBLISHed does not arrive here: {detail}", since=since)

    def _complain(self, event: str, text: str) -> None:
        now = time.monotonic()
        if now - self._told.get(event, float("-inf")) >= REPEAT_INTERVAL:
            self._told[event] = now
            logger.warning(event, "%s", text)


def _check(what: str, value: str) -> None:
    if len(value) > MAX_NAME or not fits(value):
        raise ValueError(f"no {what} can be like that")
