"""How a stream that is behind becomes live again; the rules stand in `stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rowcast.core import held, sse
from rowcast.core.entry import Entry
from rowcast.core.fill import Fill, due
from rowcast.core.held import NOTHING, Held, Turn
from rowcast.core.position import OWED, Place, format_mark
from rowcast.core.ring import Ring, Walk
from rowcast.core.wire import StreamState

if TYPE_CHECKING:
    from rowcast.core.stream import Stream

MAX_TURNS = 256
"""Changes of subscription that a stream that is behind keeps apart; more, and it is reset."""


class Behind(Held):
    """Reads what is missed: from snapshots, from pages of the log, from the ring."""

    __slots__ = ()

    # What the writer does

    def take(self) -> bytes:
        """What is to be written now: b"" means wait to be woken, or the end when the stream is ENDED."""
        if self.state is StreamState.BEHIND and self.pending_bytes < held.PAGE:
            self._catch_up()
        if not self.pending:
            return b""
        if self.free is not None:
            return self._take_free(self.free)
        data = self.pending[0] if len(self.pending) == 1 else b"".join(self.pending)
        self.pending.clear()
        self._counted = self._counted_bytes = 0
        return data

    def feed(self, page: Ring, upto: Place) -> bool:
        """Read on in a page of the log, which holds every entry above `page.floor` up to `upto`.

        Returns whether the stream has all of it, and wants the next one. If not, it must be drained first (over PAGE is
        pending), or is not behind any more, or is paused; then it asks again by itself.
        """
        ring = self.wire.ring
        while self.state is StreamState.BEHIND and page.floor <= self.cursor and self.pending_bytes < held.PAGE:
            if self.fill is not None and not self._fill(self.fill):
                return False
            bound = self._bound()
            stop = upto if bound is None else min(bound, upto)
            walk = page.walk(self.cursor, self._walk_topics, stop, self._whole())
            assert walk is not None
            for entry in walk:
                # Topics that are to stay as they are get the newer entry of the same key from the ring.
                if bound is None and ring.supersedes(entry):
                    continue
                self._send(self._twin(entry) if entry.interval else entry)
                self.cursor = entry.place
                if self.pending_bytes >= held.PAGE:
                    return False
            self.cursor = max(self.cursor, stop)
            if bound is None or bound > upto:
                return True
            if self._joined(bound):
                continue
            if not self._turns:
                return False
            self._take_turn()
        return False

    def lose(self, reason: str) -> None:
        """What the stream is fed can't be had any more: it gets a reset, unless it has come so far that the ring holds
        the rest."""
        if self.state is StreamState.BEHIND and self.cursor < self.wire.ring.floor:
            self._lose(reason)

    # Inside

    def _take_free(self, count: int) -> bytes:
        """Take so many blocks; those behind them are held."""
        free = self.pending[:count]
        del self.pending[:count]
        self._counted = self._counted_bytes = 0
        self.free = 0
        self._noted = max(0, self._noted - count)
        return b"".join(free)

    def _fall_behind(self, place: Place) -> None:
        if self.state is StreamState.LIVE:
            self._walk_topics = self.topics
            throttle = self.wire.throttle
            self._clock = throttle.clock
            if throttle.held:
                held = throttle.holding(self.topics)
                self._deferred = {(entry.topic, entry.key): entry for entry in held if self.concerns(entry)}
        self.state = StreamState.BEHIND
        self.cursor = place
        self._walk = self._walk_from = None

    def _turn(self, turn: Turn) -> None:
        self._turns += (turn,)
        if len(self._turns) > MAX_TURNS:
            # All that is missed becomes one reset, at the last of the turns; the stream stays behind.
            self._turns = ()
            self.fill = None
            self._filters = ()
            self._fall_behind(turn.place)
            self._begin_at(turn.place)
            owed = self._owed(turn.topics)
            block = self._reset_block("too_slow", turn.place, owed)
            self._turns = (Turn(turn.place, turn.topics, block, owed),)

    def _owe(self, owed: frozenset[str]) -> None:
        """From the cursor on the stream owes snapshots."""
        if owed:
            assert self.wire.snapshots is not None
            self.fill = Fill(owed)
            # What is deferred of them will be in the rows, and these may be newer.
            for name in [name for name, entry in self._deferred.items() if entry.xid and entry.topic in owed]:
                del self._deferred[name]
            self.wire.snapshots.want(cast("Stream", self), self.fill)

    def _fill(self, fill: Fill) -> bool:
        """Append pages; returns whether the stream goes on from its cursor."""
        if fill.awaited or self._paused is not None:
            # Paused, it is not known what the user may see now, and so not which of the rows.
            return False
        # What was lost on the way to the head was lost before the rows were read, or may have been; if it was got
        # again, that has a turn of its own.
        allowed = self.topics.intersection(*(turn.topics for turn in self._turns))
        while self.pending_bytes < held.PAGE:
            page = fill.next(allowed)
            if page is None:
                self.fill = None
                self._filters += tuple(fill.filters)
                return True
            self._append(page)
        return False

    def _send(self, entry: Entry) -> None:
        """Append an entry of a catch-up, as far as no snapshot holds it, and defer it if it is not due yet."""
        left = due(entry, self._walk_topics, self._filters) if self._filters else None
        if left is None and entry.due > self._clock:
            self._deferred[entry.topic, entry.key] = entry
            return
        mark = OWED if self._filters else ""
        if left is None:
            block = entry.frame(self.wire.epoch, self.wire.max_event)
            if self._deferred:
                self._overtake(entry)
                mark += self._mark()
            self._append(sse.marked(block, mark) if mark else block)
            if not self._filters:
                self.beaten = entry.place
        elif left:
            if self._deferred:
                self._overtake(entry)
                mark += self._mark()
            # In an envelope without topics they are all the same. They are one entry: the last one has its position.
            *blocks, last = dict.fromkeys(entry.frame_on(topic, self.wire.max_event) for topic in left)
            for block in blocks:
                self._append(block)
            self._append(sse.placed(last, self.wire.position(entry.place) + mark))

    def _bound(self) -> Place | None:
        """The place up to which the topics are `_walk_topics` and the filters those that there are; None: up to the
        head."""
        places = [one.after for one in self._filters]
        if self._turns:
            places.append(self._turns[0].place)
        elif self._paused is not None:
            places.append(self._paused)
        return min(places, default=None)

    def _whole(self) -> frozenset[str]:
        """The topics that are not conflated: a newer entry that is left out must not hide an older one that is not."""
        return frozenset().union(*(one.topics for one in self._filters))

    def _joined(self, place: Place) -> bool:
        """Let go of the filters that end at a place; returns whether there was one. Without any left, blocks have
        ids again."""
        left = tuple(one for one in self._filters if one.after > place)
        if len(left) == len(self._filters):
            return False
        if self.wire.throttle.held:
            self._leave_out([one for one in self._filters if one.after <= place])
        self._filters = left
        self.cursor = max(self.cursor, place)
        if not left:
            self._append(self._marked(sse.heartbeat(self.wire.position(self.cursor))))
            self.beaten = self.cursor
        return True

    def _catch_up(self) -> None:
        """Read from the ring until a page is pending, or the stream is LIVE, or paused."""
        if not self._give_due():
            return
        while self.state is StreamState.BEHIND:
            if self.fill is not None and not self._fill(self.fill):
                return
            walk = self._walk if self._walk is not None else self._next_walk()
            if walk is None or walk.lost:
                self._walk = self._walk_from = None
                if not self.wire.read_back(cast("Stream", self)):
                    self._lose("position_expired")
                return
            self._walk = walk
            for entry in walk:
                self._send(entry)
                self.cursor = entry.place
                if self.pending_bytes >= held.PAGE:
                    return
            self._walk, self._walk_from = None, walk.end
            upto = self._bound()
            if upto is not None and walk.end < self.wire.ring.index(upto):
                continue  # the walk began before this turn was known, and ended short of it
            if upto is not None and self._joined(upto):
                continue
            if self._turns:
                self._take_turn()
            elif self._paused is not None:
                return
            elif walk.end == self.wire.ring.end:
                self.state = StreamState.LIVE
                self._walk_from = None
                self._walk_topics = NOTHING
                self._deferred.clear()  # the hub has them too
                if self.wire.caught_up is not None:
                    self.wire.caught_up(cast("Stream", self))

    def _take_turn(self) -> None:
        turn, self._turns = self._turns[0], self._turns[1:]
        self._walk_topics = turn.topics
        self.cursor = max(self.cursor, turn.place)
        if self._deferred:
            gone = [self._deferred.pop(name) for name in list(self._deferred) if name[0] not in turn.topics]
            star = OWED if turn.owed or self._filters else ""
            self._give_last(gone, self.wire.position(self.cursor) + star + format_mark(self._clock))
        if turn.block:
            lacking = OWED if self._filters and not turn.owed else ""
            self._append(sse.marked(turn.block, lacking + self._mark()))
        self._owe(turn.owed)

    def _next_walk(self) -> Walk | None:
        ring = self.wire.ring
        upto = self._bound()
        whole = self._whole()
        if self._walk_from is None:
            return ring.walk(self.cursor, self._walk_topics, upto, whole)
        return ring.walk_on(self._walk_from, self._walk_topics, upto, whole)

    def _lose(self, reason: str) -> None:
        """What is missed can't be had any more: reset, and go on from the head (or stay paused there)."""
        self._turns = ()
        self.fill = None
        self._filters = ()
        self._walk = self._walk_from = None
        self.cursor = self.wire.head
        self._begin_at(self.wire.head)
        if self._paused is not None:
            self._paused = self.wire.head
            self._reset = self._reset or reason
            return
        owed = self._owed(self.topics)
        block = self._reset_block(reason, self.wire.head, owed)
        self._append(block)
        if owed:
            self._walk_topics = self.topics
            self._owe(owed)
        else:
            self.state = StreamState.LIVE
            if self.wire.caught_up is not None:
                self.wire.caught_up(cast("Stream", self))
