"""Reading back: streams whose missed entries the ring no longer holds are fed from the log.

One reader goes through the log, from the oldest cursor to where the ring begins, and every stream that is there when
it comes by goes along: a thousand streams that come back together cost one reading. A stream that comes later with
an older cursor waits for the next time round. What is read is handed out in slices, with a pause as long as each
slice took, so that it takes at most about half of the time that live streams leave; a stream whose client does not
take its page while the others do is left behind, and asks again when it has. In memory there is one page of the log
besides what is pending for each stream.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rowcast.core.entry import Batch, Kind
from rowcast.core.position import Place
from rowcast.core.ring import Ring
from rowcast.core.stream import PAGE, Stream
from rowcast.errors import DecodeError, Expired, Unavailable
from rowcast.ports import ReadableLog
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.hub import Hub

logger = get_logger(__name__)

SLICE = 0.002
"""Seconds of handing out after which everybody else gets their turn."""

PATIENCE = 0.05
"""Seconds that clients have to take a full page, before the reader goes on without them."""

RETRY = 0.5
"""Seconds until a log that could not be read is asked again."""

_UNBOUNDED = 1 << 62


class ReadBack:
    """Feeds streams of `hub` from `log` (None: it can't be read back)."""

    def __init__(self, hub: Hub, log: ReadableLog | None) -> None:
        self._hub = hub
        self._log = log
        self._waiting: dict[Stream, None] = {}
        self._work = asyncio.Event()
        self.pages = 0
        """Pages read since the start."""

    @property
    def able(self) -> bool:
        """Whether the log can be read back."""
        return self._log is not None

    def __len__(self) -> int:
        """How many streams wait to be fed."""
        return len(self._waiting)

    def want(self, stream: Stream) -> bool:
        """Have a stream fed from its cursor on; asking twice is fine. False: the log can't be read back."""
        if self._log is None:
            return False
        self._waiting[stream] = None
        self._work.set()
        return True

    def forget(self, stream: Stream) -> None:
        """The stream is gone."""
        self._waiting.pop(stream, None)

    def clear(self) -> None:
        """The log begins anew: nobody's cursor lies before it any more."""
        self._waiting.clear()

    async def run(self) -> None:
        """Feed whoever waits, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._round()
            except (Unavailable, DecodeError) as error:
                # They stay behind, and nothing is lost: the log is there again, or it begins anew.
                logger.warning(
                    "readback_failed", "the log can't be read back for %d streams: %s", len(self._waiting), error
                )
                await asyncio.sleep(RETRY)
            if self._waiting:
                self._work.set()

    async def _round(self) -> None:
        """Go through the log once, from the oldest cursor on."""
        assert self._log is not None
        bounds = await self._log.bounds()
        if bounds.epoch != self._hub.epoch:
            # The tail is about to find out too.
            await asyncio.sleep(RETRY)
            return
        self._lose([stream for stream in self._waiting if stream.cursor < bounds.first])
        after = min((stream.cursor for stream in self._waiting), default=None)
        while after is not None:
            upto = self._hub.ring.floor
            if after < upto:
                try:
                    page = await self._log.read(after, upto)
                except Expired:
                    # Evicted meanwhile; those who are further on may still be served.
                    self._lose([stream for stream in self._waiting if stream.cursor <= after])
                    return
                if page.epoch != self._hub.epoch:
                    return
                self.pages += 1
                await self._hand_out(after, page)
            for stream in [stream for stream in self._waiting if stream.cursor >= self._hub.ring.floor]:
                # The ring has the rest.
                del self._waiting[stream]
                self._hub.again(stream)
            after = min((stream.cursor for stream in self._waiting if stream.cursor >= after), default=None)

    async def _hand_out(self, after: Place, page: Batch) -> None:
        ring = Ring(_UNBOUNDED)
        ring.restart(after)
        for entry in page.entries:
            if entry.kind is Kind.DATA or entry.kind is Kind.SWEEP:
                ring.append(entry)
        todo = [stream for stream in self._waiting if after <= stream.cursor < page.head]
        patience = time.monotonic() + PATIENCE
        while todo:
            full: list[Stream] = []
            began = time.monotonic()
            for stream in todo:
                if stream not in self._waiting:
                    continue
                if not stream.feed(ring, page.head):
                    if stream.pending_bytes >= PAGE:
                        full.append(stream)
                    else:
                        del self._waiting[stream]
                if stream.pending:
                    self._hub.wake(stream)
                if (now := time.monotonic()) - began >= SLICE:
                    await asyncio.sleep(now - began)
                    began = time.monotonic()
            await asyncio.sleep(max(time.monotonic() - began, 0.001 if full else 0.0))
            if full and time.monotonic() >= patience:
                for stream in full:
                    # One that was drained meanwhile has asked already.
                    if stream.pending_bytes >= PAGE:
                        self._waiting.pop(stream, None)
                return
            todo = full

    def _lose(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._waiting.pop(stream, None)
            stream.lose("position_expired")
            self._hub.wake(stream)
