"""The flush: when what is pending for streams is written.

`send()` is what fan-out costs, so the way to be fast is to call it less: frames are appended to the pending lists of
their streams, and each stream is written once per flush, joined. It is fair and paced:

- Entries with up to EXPRESS subscribers, and everything that concerns one stream alone, put their streams on the
  *express* queue, which is drained first in each turn. A turn comes as soon as the loop has done what is due; where
  the last one was a while ago, the hub need not wait for that (`hurry`).
- The streams of other entries wait for the *bulk* round, which writes in slices of SLICE seconds and lets the loop go
  on between two: whoever publishes, dispatches or is accepted meanwhile waits for one at each turn of the loop. After a
  round there is a pause of twice the time that the round took, PAUSE at most, so that frames merge exactly when there
  is load.
- What the express queue holds beyond HURRY seconds goes with the next round, and until that is over everything does:
  many streams with few subscribers each are bulk as well.
- Streams that are BEHIND wait for *pages*: one after the other each gets a page of what it missed, for a slice in each
  turn, and who has more to catch up with goes to the end of that queue. So a thousand catch-ups take their time from
  each other, and from those who are LIVE one slice of a turn.

A stream may be on all of them. Its pending list is always written whole, so whichever reaches it first keeps its order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from rowcast.core.stream import Stream, StreamState

EXPRESS = 64
"""Subscribers up to which an entry hurries."""

HURRY = 0.002
"""Seconds that a turn may write to the streams of the express queue."""

SLICE = 0.0005
"""Seconds that a turn may write to the streams of a round, and give pages to those that are BEHIND. An event takes
three or four turns from where it is published to its stream: slices of 2 ms made its p99 beside a million deliveries a
second 20 ms longer, and saved nothing."""

PAUSE = 0.065
"""Seconds between two rounds at most; docs/explanation/paced-flush.md has what others would give."""

QUIET = 0.0005
"""Seconds without a turn after which what hurries is written at once: under load frames merge better. A commit each
millisecond is to find it so."""

STRIDE = 16
"""Streams between two looks at the clock."""


class Writers(Protocol):
    """What becomes of a stream that the flush can't write by itself. None of it raises."""

    def wake(self, stream: Stream) -> None:
        """Have its writer take what is pending."""
        ...

    def lag(self, stream: Stream) -> None:
        """Its sink took all that was pending, and has more than it can send."""
        ...

    def fail(self, stream: Stream) -> None:
        """Its sink raised the exception that is being handled."""
        ...


class Flush:
    """The queues of a hub and their pace.

    A LIVE stream with a sink is written here; for every other one `writers` are asked. Without a running loop (in tests
    that drive a hub by hand) everything is written at once.

    `latency` is told once per entry how long after its commit it was written, in seconds, and to how many streams: an
    entry of the express when the queue was drained. Of a round, one entry after the other stands for what was written
    in its first, second, third and last quarter, so that what is counted costs no more than it did to count at all.
    """

    def __init__(
        self,
        writers: Writers,
        clock: Callable[[], float] = time.perf_counter,
        latency: Callable[[float, int], None] = lambda seconds, times: None,
    ) -> None:
        self._writers = writers
        self._clock = clock
        self._latency = latency
        self._commits: list[tuple[float, int]] = []
        """Of the entries that were pushed to the express since it was drained: when they were committed, and to how
        many streams they go."""
        self._bulk_commits: list[tuple[float, int]] = []
        self._round_commits: list[tuple[float, int]] = []
        self._quarters: list[float] = []
        """When a quarter of the round was written, and the next ones."""
        self._hurried = 0.0
        self._express: list[Stream] = []
        self._bulk: list[Stream] = []
        self._round: list[Stream] = []
        self._behind: deque[Stream] = deque()
        self._at = 0
        self._began = 0.0
        self._not_before = 0.0
        self._crowded = False
        self._soon = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.rounds = 0
        """Rounds that were completed."""

    def push(self, streams: Collection[Stream], frame: bytes, commit: float = 0.0) -> int:
        """Give a frame to those of the streams that are LIVE, and have it written. Returns how many those are.

        `commit`: the Unix time of the entry's, in seconds.

        This loop runs once per delivery: whatever can be done per entry has no place in it.
        """
        live = StreamState.LIVE
        given = 0
        if len(streams) <= EXPRESS and not self._crowded:
            for stream in streams:
                if stream.state is live:
                    given += 1
                    stream.pending.append(frame)
                    if not stream.express:
                        stream.express = True
                        self._express.append(stream)
            if given:
                self._commits.append((commit, given))
            return given
        bulk = self._bulk
        for stream in streams:
            if stream.state is live:
                given += 1
                stream.pending.append(frame)
                if not stream.bulk:
                    stream.bulk = True
                    bulk.append(stream)
        if given:
            self._bulk_commits.append((commit, given))
        return given

    def add(self, stream: Stream) -> None:
        """Have a stream written that something happened to: with the express, unless that is crowded."""
        if self._crowded:
            self.later(stream)
        elif not stream.express:
            stream.express = True
            self._express.append(stream)

    def later(self, stream: Stream) -> None:
        """Have a stream written with the next round: it is in no hurry."""
        if not stream.bulk:
            stream.bulk = True
            self._bulk.append(stream)

    def catch_up(self, stream: Stream) -> None:
        """Have a stream that is BEHIND written when its turn for a page comes."""
        if not stream.paging:
            stream.paging = True
            self._behind.append(stream)

    def hurry(self) -> None:
        """Write what hurries at once, if the last turn was a while ago."""
        if self._express and (now := self._clock()) - self._hurried >= QUIET:
            self._hurry(now + HURRY)

    def start(self) -> None:
        """Have what was put on the queues written, in turns of its own."""
        if self._soon or not (self._express or self._bulk or self._round or self._behind):
            return
        loop = self._loop = self._loop or _running_loop()
        if loop is None:
            while self._express or self._bulk or self._behind:
                self._hurry(float("inf"))
                self._slice(float("inf"))
                self._pages(float("inf"))
            return
        if not (self._express or self._round or self._behind):
            pause = self._not_before - self._clock()
            if pause > 0:
                if self._timer is None:
                    self._timer = loop.call_later(pause, self._turn_after_pause)
                return
        self._soon = True
        loop.call_soon(self._turn)

    def _turn_after_pause(self) -> None:
        self._timer = None
        self._not_before = 0.0
        self.start()

    def _turn(self) -> None:
        self._soon = False
        now = self._clock()
        try:
            self._hurry(now + HURRY)
            now = self._clock()
            if self._round or now >= self._not_before:
                self._slice(now + SLICE)
            if self._behind:
                self._pages(self._clock() + SLICE)
        finally:
            self.start()

    def _hurry(self, until: float) -> None:
        """Drain the express queue; what can't be done until then goes with the bulk."""
        express, self._express = self._express, []
        commits, self._commits = self._commits, []
        for start in range(0, len(express), STRIDE):
            if start and self._clock() >= until:
                self._crowded = True
                for stream in express[start:]:
                    stream.express = False
                    self.later(stream)
                self._bulk_commits += commits
                return
            some = express[start : start + STRIDE]
            for stream in some:
                stream.express = False
            self._write(some)
        self._hurried = self._clock()
        if commits:
            now = time.time()
            for commit, count in commits:
                self._latency(now - commit, count)

    def _slice(self, until: float) -> None:
        """Go on with the round, or begin one."""
        if not self._round:
            if not self._bulk:
                return
            self._round, self._bulk = self._bulk, []
            self._round_commits, self._bulk_commits = self._bulk_commits, []
            self._quarters.clear()
            self._at = 0
            self._began = self._clock()
        streams = self._round
        while self._at < len(streams):
            start = self._at
            self._at += STRIDE
            some = streams[start : self._at]
            for stream in some:
                stream.bulk = False
            self._write(some)
            while len(self._quarters) < 4 * self._at // len(streams) and len(self._quarters) < 4:
                self._quarters.append(time.time())
            now = self._clock()
            if now >= until and self._at < len(streams):
                return
        now = self._clock()
        self._not_before = now + min(2 * (now - self._began), PAUSE)
        self._round = []
        quarters = self._quarters
        for number, (commit, count) in enumerate(self._round_commits, self.rounds):
            self._latency(quarters[number & 3] - commit, count)
        self._round_commits = []
        self._crowded = False
        self.rounds += 1

    def _pages(self, until: float) -> None:
        """Give pages to those who wait for one: to one at least, and to as many as can have theirs until then."""
        behind = self._behind
        while behind:
            stream = behind.popleft()
            stream.paging = False
            self._writers.wake(stream)
            if self._clock() >= until:
                return

    def _write(self, streams: list[Stream]) -> None:
        """Write what is pending. This loop runs once per system call: nothing may be called in it that need not be."""
        live = StreamState.LIVE
        frames: list[bytes] = []
        joined = b""
        for stream in streams:
            pending = stream.pending
            sink = stream.sink
            if sink is None or stream.free is not None or stream.state is not live:
                if pending or stream.state is not live:
                    self._writers.wake(stream)
            elif pending:
                if len(pending) == 1:
                    data = pending[0]
                elif pending == frames:  # the streams of a hot topic have the same, which is joined once
                    data = joined
                else:
                    frames = pending
                    data = joined = b"".join(frames)
                try:
                    sink.write(data)
                except Exception:
                    self._writers.fail(stream)
                    continue
                if pending is frames:
                    stream.pending = []
                else:
                    pending.clear()
                if stream.sink is None:
                    self._writers.lag(stream)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
