"""Draining: how a replica leaves without anybody noticing.

1. At once: `/readyz` fails, a request for a stream is told to come back (and reaches another replica), the reading of
   the WAL is handed over, and every answer asks for its connection to be closed.
2. *Readiness first, drain after*: for `delay` seconds everything else goes on as before, while proxies find out that
   this replica is not ready. Who closed the port first would make them say 502, after which a browser's EventSource
   never comes back (WHATWG HTML, section 9.2.3).
3. The port is closed, where it is ours to close, and the streams are ended, a little fewer than `rate` of them per
   second, each with `rowcast.bye` and a `retry:` of its own: the others take them over without a stampede, each from
   the last id that its client has seen. The pauses are spread evenly, so that those who come back stay below `rate`
   in every second, too (drawn one by one they do not: 530 in the fullest second of 500).
4. After `limit` seconds, counted from the beginning, whatever is left is cut.

`rowcast serve` does this by its own handling of signals. Under another server (uvicorn, granian) `rowcast.signals`
holds a signal back until the streams are gone: those servers tell the application nothing while any is open.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rowcast import jitter
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.hub import Hub

logger = get_logger(__name__)

RECENT = 60.0
"""Seconds after the last request of any kind during which somebody may be sending more, and so must be told first."""

GROUP_PAUSE = 0.05
"""Seconds between two groups of streams, about."""

MARGIN = 0.95
"""The part of the rate at which streams are ended."""

COME_BACK = (0.1, 2.1)
"""Seconds after which an ended stream's client comes back."""


class Drain:
    """The draining of one replica; it happens once.

    `delay` and `limit` in seconds, `rate` in streams per second. `hand_over` is called at the beginning. `asked_at`
    tells when (by the loop's clock) the last request came; if that is long ago and no stream is open, nobody needs
    the delay.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        delay: float,
        limit: float,
        rate: int,
        hand_over: Callable[[], None] = lambda: None,
        asked_at: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._hub = hub
        self._delay = delay
        self._limit = limit
        self._rate = rate
        self._hand_over = hand_over
        self._asked_at = asked_at
        self.loop = asyncio.get_running_loop()
        self._hurry = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._pauses = jitter.Even(*COME_BACK)
        self._noticed_at = 0.0
        self._noticed = False
        self.deadline = math.inf
        """When everything must be over, by the loop's clock."""
        self.port_closes: Callable[[], None] = lambda: None
        """Called after the delay, before the first stream is ended."""

    def tune(self, *, delay: float, limit: float, rate: int) -> None:
        """Drain by other figures, if it has not begun."""
        self._delay, self._limit, self._rate = delay, limit, rate

    @property
    def begun(self) -> bool:
        """Whether this replica is draining, or has drained."""
        return self._running is not None

    @property
    def done(self) -> bool:
        """Whether it has drained: no stream is left."""
        return self._running is not None and self._running.done()

    @property
    def noticed(self) -> bool:
        """Whether the delay is over."""
        return self._noticed

    def begin(self, *, delay: bool = True) -> asyncio.Task[None]:
        """Begin; the task ends when no stream is left. `delay` False: don't wait for anybody to notice.

        To be called in the loop; again is fine.
        """
        if not delay:
            self._hurry.set()
        if self._running is not None:
            return self._running
        now = self.loop.time()
        self.deadline = now + self._limit
        needed = bool(self._hub.streams) or now - self._asked_at() < RECENT
        self._noticed_at = min(now + self._delay, self.deadline) if needed else now
        count = self._hub.streams_count
        logger.info("draining", "this replica leaves its %d streams to others", count, streams=count)
        self._hub.drain()
        self._hand_over()
        self._running = self.loop.create_task(self._run())
        return self._running

    def cut(self) -> None:
        """End what is left, now."""
        self.deadline = min(self.deadline, self.loop.time())
        self._hurry.set()
        self._end(self._hub.streams_count)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout_at(self._noticed_at):
                await self._hurry.wait()
        except TimeoutError:
            pass
        self._noticed = True
        self.port_closes()
        while self._hub.streams:
            left = self.deadline - self.loop.time()
            # In time for the limit, even if the pace must be forced for it.
            forced = self._hub.streams_count / max(1.0, (left - self._limit / 10) / GROUP_PAUSE)
            if forced > self._rate * MARGIN * GROUP_PAUSE:
                count, pause = math.ceil(forced), GROUP_PAUSE
            else:
                count = max(1, round(self._rate * GROUP_PAUSE))
                pause = count / (self._rate * MARGIN)
            self._end(count)
            if self._hub.streams:
                await asyncio.sleep(pause)

    def _end(self, count: int) -> None:
        for stream in list(itertools.islice(self._hub.streams, count)):
            self._hub.end(stream, "draining", retry=self._pauses.retry())
