"""The state machine of one stream, without its socket.

The rules:

- A stream is STARTING, LIVE, BEHIND or ENDED. STARTING, it waits until the hub knows exactly what its user
  is subscribed to; it receives nothing. `start` makes it LIVE at the hub's head, or BEHIND when the client
  brought a position.
- LIVE: an entry that the hub passes is pushed to it, in order, as it arrives: its frame is appended to `pending`.
- BEHIND: nothing is pushed. The writer pulls instead: `take` reads the missed entries from the ring, page by
  page, and when there are none left the stream is LIVE again within that same call, so that nothing can come
  between. It gets behind when the client brought a position, when its writer does not take and what is pending is
  over `PENDING_LIMIT` (`bound`), when its transport is full (`lag`), and when it is paused.
- What is subscribed to changes at a place. LIVE, that is now. BEHIND, the place is noted as a *turn*, and the
  catch-up goes up to it with the topics before and on from it with the topics after.
- Paused means: from a place on, the topics are not known yet, a query is under way. The catch-up stops there
  until `resume` brings them.
- What the ring no longer holds is fed to it from the log, page by page (`feed`), where the log can be read back;
  it asks for that by `Wire.read_back`, and goes on from the ring as soon as that holds the rest.
- When neither holds what is missed, or the log itself had a gap, the stream gets one `rowcast.reset` and goes on
  from the head. Never silence.
- A stream that asked for snapshots is owed one of each topic that it gets: at its start, after a reset, and when its
  subscription gives it the topic. It stays BEHIND at that place until the rows are there and sent (see `fill`), and
  then goes on from it, leaving out what the rows hold. Until that is over its positions have a star: whoever is
  cut off meanwhile comes back with one, to what it missed of its other topics, and with snapshots begun anew.
- Entries that the `throttle` holds are given to a LIVE stream when they are due. A stream that gets behind takes them
  along as *deferred*, and sends them when they are due, or leaves those that are not to the hub when it is LIVE again.
  While it defers any, the ids that it sends have its clock for a mark.
- ENDED: it gets nothing more, but what is pending is still written; the last block is `rowcast.bye`.
- Every block is appended whole to `pending`, and only `take` removes: order is the order of appending.

Memory is bounded by PENDING_LIMIT plus one page and what arrives between two flushes, one number per topic for a
catch-up, and MAX_TURNS. Rows of snapshots are not held here, but read page by page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from rowcast.core import sse
from rowcast.core.entry import Entry, Kind, user_topic
from rowcast.core.fill import Fill, Filter, Wants, due
from rowcast.core.grants import Grant
from rowcast.core.position import ORIGIN, OWED, Place, format_mark, format_position
from rowcast.core.ring import Ring, Walk
from rowcast.core.throttle import Throttle

PENDING_LIMIT = 256 * 1024
"""Bytes that may wait for a client that does not read, before its stream is no longer pushed to."""

PAGE = 64 * 1024
"""Bytes that a catch-up reads at once."""

MAX_TURNS = 256
"""Changes of subscription that a stream that is behind keeps apart; more, and it is reset."""

_json = msgspec.json.encode


class StreamState(Enum):
    """See the module's docstring."""

    STARTING = "starting"
    LIVE = "live"
    BEHIND = "behind"
    ENDED = "ended"


class Wire:
    """What all streams of a hub share: the log's epoch and head, the limit of an event, the ring."""

    __slots__ = (
        "_beat", "_beat_at", "caught_up", "epoch", "head", "mark", "max_event", "read_back", "replica", "resets",
        "ring", "snapshots", "throttle",
    )  # fmt: skip

    def __init__(self, ring: Ring, *, max_event: int, replica: str) -> None:
        self.epoch = ""
        self.head: Place = ORIGIN
        self._beat = b""
        self._beat_at: tuple[str, Place, str] = ("", ORIGIN, "")
        self.ring = ring
        self.max_event = max_event
        self.replica = replica
        self.snapshots: Wants | None = None
        """Who reads snapshots; None: there are none."""
        self.throttle = Throttle()
        self.mark = ""
        """What is put behind the ids of LIVE streams; "" when nothing is held."""
        self.resets = 0
        """How often a stream was told to refetch."""
        self.caught_up: Callable[[Stream], None] | None = None
        """Told of each stream that has caught up; None: nobody wants to know."""
        self.read_back: Callable[[Stream], bool] = lambda stream: False
        """Have a stream fed from the log, from its cursor on; False: the log can't be read back."""

    def position(self, place: Place) -> str:
        """A place's wire form in the current epoch."""
        return format_position(self.epoch, place)

    def heartbeat(self) -> bytes:
        """The heartbeat of a LIVE stream: the head's position, made once for all of them."""
        now = (self.epoch, self.head, self.mark)
        if self._beat_at != now:
            self._beat_at = now
            self._beat = sse.heartbeat(self.position(self.head) + self.mark)
        return self._beat


class _Turn(NamedTuple):
    """From `place` on the topics are `topics`; `block` tells the client. Of `owed` ones it gets a snapshot first."""

    place: Place
    topics: frozenset[str]
    block: bytes
    owed: frozenset[str] = frozenset()


class Stream:
    """One client's stream.

    `grant` says whose it is and until when. `narrow` restricts it to these topics (None: all of the user's).
    `snapshot`: the client asked for the current rows of its topics.
    `wake` is called when there is something to take and the writer may be waiting.
    """

    __slots__ = (
        "__weakref__", "_clock", "_counted", "_counted_bytes", "_deferred", "_filters", "_held", "_narrow", "_noted",
        "_origin", "_paused", "_reset", "_rows", "_since", "_topics", "_turns", "_walk", "_walk_from", "_walk_topics",
        "after", "beaten", "bulk", "cursor", "express", "fill", "grant", "number", "paging", "pending", "snapshot",
        "state", "wake", "wire",
    )  # fmt: skip

    def __init__(
        self,
        grant: Grant,
        wire: Wire,
        wake: Callable[[], None],
        *,
        narrow: frozenset[str] | None = None,
        snapshot: bool = False,
    ) -> None:
        self.grant = grant
        self.wire = wire
        self.wake = wake
        self.state = StreamState.STARTING
        self._topics: tuple[str, ...] = ()
        self.cursor: Place = ORIGIN
        """BEHIND: everything up to here is pending or written."""
        self.after: Place | None = None
        """STARTING: the hub must have passed this place first."""
        self.pending: list[bytes] = []
        self._counted = self._counted_bytes = 0
        self.express = self.bulk = self.paging = False
        """On which queues of the flush it is."""
        self.number = 0
        """By which the wheel knows it."""
        self.beaten: Place = ORIGIN
        """A place that the client was told."""
        self.snapshot = snapshot
        self.fill: Fill | None = None
        """BEHIND: what must be sent before the stream goes on from its cursor."""
        self._filters: tuple[Filter, ...] = ()
        self._held: int | None = None
        """How many of the pending blocks may be taken; None: all."""
        self._noted = 0
        self._narrow = narrow
        self._deferred: dict[tuple[str, str | None], Entry] = {}
        """BEHIND: by topic and key, what is at or below the cursor and held until later than `_clock`."""
        self._clock = 0
        self._origin: Place = ORIGIN
        """What is held and not above it is not for this stream: it began there."""
        self._since: dict[str, Place] | None = None
        """The same for single topics that it got while something of them was held."""
        self._rows: frozenset[Place] | set[Place] = frozenset()
        """The same for single entries that were in the rows of a snapshot."""
        self._walk: Walk | None = None
        self._walk_from: int | None = None
        self._walk_topics: frozenset[str] = frozenset()
        self._turns: tuple[_Turn, ...] = ()
        self._paused: Place | None = None
        self._reset: str | None = None

    @property
    def topics(self) -> frozenset[str]:
        """What the stream is subscribed to at the hub's head, its user's own topic included.

        Kept as a tuple: a set of twenty takes a kilobyte more, and is asked for when subscriptions change.
        """
        return frozenset(self._topics)

    @topics.setter
    def topics(self, topics: frozenset[str]) -> None:
        self._topics = tuple(topics)

    # What the hub does to it

    def effective(self, topics: Iterable[str]) -> frozenset[str]:
        """What the stream gets when its user's rules give `topics`: with the token's and the user's own
        topic, narrowed as the client asked."""
        granted = frozenset(self.grant.topics).union(topics, (user_topic(self.grant.user),))
        return granted if self._narrow is None else granted & self._narrow

    def start(
        self,
        topics: frozenset[str],
        cursor: Place | None,
        reset: str | None = None,
        *,
        anew: bool = False,
        held: Iterable[Entry] = (),
        mark: int = 0,
    ) -> None:
        """Begin with effective topics: LIVE at the head, or BEHIND from `cursor`. `reset` tells the client
        why its position can't be resumed from. `anew`: there may be topics of which the client has no rows, or not
        all of them. `held` is what the client has not got of what is up to its cursor, by its `mark`."""
        assert self.state is StreamState.STARTING
        self.topics = topics
        self.state = StreamState.LIVE
        place = self.wire.head if cursor is None else cursor
        self._origin = place if cursor is None or not mark else ORIGIN
        deferred = {(entry.topic, entry.key): entry for entry in held}
        owed = self._owed(topics) if cursor is None or anew else frozenset()
        position = self._position(place, owed) + (format_mark(mark) if deferred else "")
        data = {
            "user": self.grant.user,
            "topics": self.listed(topics),
            "position": position,
            "replica": self.wire.replica,
        }
        if self.snapshot:
            data["snapshot"] = sorted(owed)
        block = sse.frame(_json(data), position=position, event="rowcast.ready")
        self._append(block)
        self.beaten = place
        if reset is not None:
            self._append(self._reset_block(reset, self.wire.head, owed))
        if cursor is not None or owed:
            self._fall_behind(place)
            self._deferred = deferred
            self._clock = min(mark, self.wire.throttle.clock)
            self._owe(owed)

    def offer(self, block: bytes) -> bool:
        """Give a started stream a block that is in no log, at once, whatever it is behind with. Returns False where it
        is not taken: too much waits for a client that does not read."""
        if self.state in (StreamState.STARTING, StreamState.ENDED) or self.pending_bytes > PENDING_LIMIT:
            return False
        self._append(block)
        return True

    def push(self, entry: Entry) -> None:
        """Give a LIVE stream the next entry of one of its topics.

        The hub appends frames to `pending` by itself, for many streams at once, which is just this.
        """
        self.pending.append(entry.frame(self.wire.epoch, self.wire.max_event))

    def bound(self) -> bool:
        """What is pending was not taken: LIVE, get behind if that is too much. Returns whether it did.

        To be called when everything up to the wire's head has been pushed.
        """
        if self.state is not StreamState.LIVE or self.pending_bytes <= PENDING_LIMIT:
            return False
        self._fall_behind(self.wire.head)
        return True

    def push_block(self, place: Place, block: bytes) -> bool:
        """Give a LIVE stream a block after which it has everything up to a place. Returns as `push` does."""
        self._append(block)
        self.beaten = place
        if self.pending_bytes <= PENDING_LIMIT:
            return False
        self._fall_behind(place)
        return True

    def concerns(self, entry: Entry) -> bool:
        """Whether an entry of one of the stream's topics that was held is for it."""
        place = entry.place
        return (
            place > self._origin
            and (self._since is None or place > self._since.get(entry.topic, ORIGIN))
            and place not in self._rows
        )

    def lag(self) -> None:
        """The transport of a LIVE stream is full: get behind, with nothing more to be written until it has drained.

        To be called when everything up to the wire's head has been pushed.
        """
        if self.state is StreamState.LIVE:
            self._fall_behind(self.wire.head)

    def change(self, place: Place, topics: frozenset[str], *, tell: bool = False) -> None:
        """The subscription changes at a place. `tell`: send the event also when nothing differs."""
        if self.state in (StreamState.STARTING, StreamState.ENDED) or (topics == self.topics and not tell):
            return
        owed = self._owed(topics - self.topics)
        block = self._subscriptions_block(place, topics, owed)
        if self.wire.throttle.held:
            self._leave_and_join(place, topics)
        self.topics = topics
        if self.state is StreamState.LIVE:
            self._append(sse.marked(block, self.wire.mark))
            self.beaten = place
            if owed or self.pending_bytes > PENDING_LIMIT:
                self._fall_behind(place)
                self._owe(owed)
        else:
            self._turn(_Turn(place, topics, block, owed))

    def pause(self, place: Place, reset: str | None = None) -> None:
        """From `place` on the topics are unknown until `resume`. `reset`: the log has a gap before `place`,
        and the client will be told this reason."""
        if self.state in (StreamState.STARTING, StreamState.ENDED):
            return
        if reset is not None:
            self._turns = ()
            self.fill = None
            self._filters = ()
            self._walk_topics = self.topics
            self._fall_behind(place)
            self._begin_at(place)
            self._reset = self._reset or reset
        elif self.state is StreamState.LIVE:
            self._fall_behind(place)
        self._paused = place if self._paused is None or reset is not None else self._paused

    @property
    def refused(self) -> Place | None:
        """Where it is paused, if a reset is due to it for what was before; else None."""
        return self._paused if self._reset is not None else None

    def resume(self, topics: frozenset[str], *, tell: bool = False, at: Place | None = None) -> None:
        """The topics from the place of the pause on. `at`: if a reset is due, they are known only from that place on,
        and it is told to refetch from there."""
        if self._paused is None or self.state is StreamState.ENDED:
            return
        place, self._paused = self._paused, None
        if self.wire.throttle.held:
            self._leave_and_join(place, topics)
        if self._reset is not None:
            if at is not None:
                place = at
                self._fall_behind(place)
                self._begin_at(place)
            self.topics = topics
            owed = self._owed(topics)
            block, self._reset = self._reset_block(self._reset, place, owed), None
            self._turn(_Turn(place, topics, block, owed))
        else:
            changed = topics != self.topics or tell
            owed = self._owed(topics - self.topics)
            block = self._subscriptions_block(place, topics, owed) if changed else b""
            self.topics = topics
            self._turn(_Turn(place, topics, block, owed))

    def release(self) -> None:
        """Let go of what it would still have sent: it is forgotten."""
        self.fill = None
        self._filters = ()
        self._turns = ()
        self._deferred.clear()

    def end(self, reason: str, retry: int | None = None) -> None:
        """Say `rowcast.bye` with a reason, and `retry:` in milliseconds if given; nothing comes after it."""
        if self.state is StreamState.ENDED:
            return
        if retry is not None:
            self._append(sse.retry(retry))
        self._append(sse.frame(_json({"reason": reason}), event="rowcast.bye"))
        self._held = None  # it can't wait any longer
        self.state = StreamState.ENDED

    def beat(self) -> None:
        """The heartbeat of a stream that has nothing else to say."""
        if self.pending or self.state is StreamState.ENDED:
            return
        if self.state is StreamState.LIVE and self.wire.head > self.beaten:
            self.beaten = self.wire.head
            self._append(self.wire.heartbeat())
        else:
            self._append(sse.PING)

    def hold(self) -> None:
        """Nothing that is appended from now on may be taken until `unhold`."""
        if self._held is None and self.state is not StreamState.ENDED:
            self._held = len(self.pending)

    def mark(self) -> None:
        """Note what is pending now, for `unhold`."""
        self._noted = len(self.pending)

    def unhold(self, *, marked: bool = False) -> None:
        """Everything may be taken again, or (`marked`) what was pending at the last `mark`."""
        if self._held is not None:
            self._held = self._noted if marked else None

    # What the writer does

    def take(self) -> bytes:
        """What is to be written now: b"" means wait to be woken, or the end when the stream is ENDED."""
        if self.state is StreamState.BEHIND and self.pending_bytes < PAGE:
            self._catch_up()
        if not self.pending:
            return b""
        if self._held is not None:
            return self._take_free(self._held)
        data = self.pending[0] if len(self.pending) == 1 else b"".join(self.pending)
        self.pending.clear()
        self._counted = self._counted_bytes = 0
        return data

    @property
    def pending_bytes(self) -> int:
        """Bytes that are pending. Counted when it is asked for: a delivery must not pay for it."""
        pending = self.pending
        if self._counted > len(pending):
            self._counted = self._counted_bytes = 0
        for i in range(self._counted, len(pending)):
            self._counted_bytes += len(pending[i])
        self._counted = len(pending)
        return self._counted_bytes

    def feed(self, page: Ring, upto: Place) -> bool:
        """Read on in a page of the log, which holds every entry above `page.floor` up to `upto`.

        Returns whether the stream has all of it, and wants the next one. If not, it must be drained first (over PAGE
        is pending), or is not behind any more, or is paused; then it asks again by itself.
        """
        ring = self.wire.ring
        while self.state is StreamState.BEHIND and page.floor <= self.cursor and self.pending_bytes < PAGE:
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
                if self.pending_bytes >= PAGE:
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
        """What the stream is fed can't be had any more: it gets a reset."""
        if self.state is StreamState.BEHIND:
            self._lose(reason)

    def listed(self, topics: frozenset[str]) -> list[str]:
        """Topics as the client is told them: sorted, without its user's own."""
        return sorted(topics - {user_topic(self.grant.user)})

    # Inside

    def _take_free(self, count: int) -> bytes:
        """Take so many blocks; those behind them are held."""
        free = self.pending[:count]
        del self.pending[:count]
        self._counted = self._counted_bytes = 0
        self._held = 0
        self._noted = max(0, self._noted - count)
        return b"".join(free)

    def _append(self, block: bytes) -> None:
        self.pending.append(block)

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

    def _turn(self, turn: _Turn) -> None:
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
            self._turns = (_Turn(turn.place, turn.topics, block, owed),)

    def _owed(self, topics: frozenset[str]) -> frozenset[str]:
        """Those of which the stream must send a snapshot when it gets them."""
        wants = self.wire.snapshots
        if not self.snapshot or wants is None:
            return frozenset()
        return frozenset(topic for topic in topics if wants.covers(topic))

    def _owe(self, owed: frozenset[str]) -> None:
        """From the cursor on the stream owes snapshots."""
        if owed:
            assert self.wire.snapshots is not None
            self.fill = Fill(owed)
            # What is deferred of them will be in the rows, and these may be newer.
            for name in [name for name, entry in self._deferred.items() if entry.xid and entry.topic in owed]:
                del self._deferred[name]
            self.wire.snapshots.want(self, self.fill)

    def _fill(self, fill: Fill) -> bool:
        """Append pages; returns whether the stream goes on from its cursor."""
        if fill.awaited or self._paused is not None:
            # Paused, it is not known what the user may see now, and so not which of the rows.
            return False
        # What was lost on the way to the head was lost before the rows were read, or may have been; if it was got
        # again, that has a turn of its own.
        allowed = self.topics.intersection(*(turn.topics for turn in self._turns))
        while self.pending_bytes < PAGE:
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
                if not self.wire.read_back(self):
                    self._lose("position_expired")
                return
            self._walk = walk
            for entry in walk:
                self._send(entry)
                self.cursor = entry.place
                if self.pending_bytes >= PAGE:
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
                self._walk_topics = frozenset()
                self._deferred.clear()  # the hub has them too
                if self.wire.caught_up is not None:
                    self.wire.caught_up(self)

    def _take_turn(self) -> None:
        turn, self._turns = self._turns[0], self._turns[1:]
        if self._deferred:
            self._give_up([name for name in self._deferred if name[0] not in turn.topics])
        self._walk_topics = turn.topics
        self.cursor = max(self.cursor, turn.place)
        if turn.block:
            lacking = OWED if self._filters and not turn.owed else ""
            self._append(sse.marked(turn.block, lacking + self._mark()))
        self._owe(turn.owed)

    # What is held

    def _mark(self) -> str:
        return format_mark(self._clock) if self._deferred else ""

    def _marked(self, block: bytes) -> bytes:
        return sse.marked(block, self._mark()) if self._deferred else block

    def _leave_out(self, ended: list[Filter]) -> None:
        """What is held, and was in the rows of snapshots that have been sent, is not for us."""
        held = self.wire.throttle.holding
        known = {entry.place for topic in self.topics for entry in held([topic])} & self._rows if self._rows else set()
        self._rows = known | {
            entry.place
            for one in ended
            for entry in held(one.topics)
            if entry.place <= one.after and one.has(entry.topic, entry)
        }

    def _overtake(self, entry: Entry) -> None:
        """An entry is about to be sent: what is deferred and must come before it is sent now."""
        self._deferred.pop((entry.topic, entry.key), None)
        if entry.kind is Kind.SWEEP:
            names = [name for name in self._deferred if name[0].startswith(entry.topic)]
        elif entry.interval and entry.key is None:
            names = [name for name in self._deferred if name[0] == entry.topic]
        else:
            return
        self._give_up(names, before=entry.place)

    def _twin(self, entry: Entry) -> Entry:
        """The entry as the throttle knows it, if it holds it: what is read from the log does not tell."""
        held = self.wire.throttle.held.get(entry.topic, {}).get(entry.key or "")
        return held if held is not None and held.place == entry.place else entry

    def _give_due(self) -> bool:
        """Send what is deferred and due by now. Returns False when a page is pending before that is done."""
        clock = self.wire.throttle.clock
        for entry in sorted(self._deferred.values(), key=_due) if self._deferred else ():
            if entry.due > clock:
                break
            if self.pending_bytes >= PAGE:
                return False
            self._clock = max(self._clock, entry.due)
            self._give_up([(entry.topic, entry.key)])
        self._clock = max(self._clock, clock)
        return True

    def _give_up(self, names: list[tuple[str, str | None]], before: Place | None = None) -> None:
        """Send what is deferred, in the order of its dues; `before`: since the entry at that place must not overtake
        it."""
        place = self.cursor if before is None else (before[0], before[1] - 1)
        for entry in sorted((self._deferred.pop(name) for name in names), key=_due):
            block = entry.frame(self.wire.epoch, self.wire.max_event)
            mark = format_mark(self._clock, entry.due if before is not None else 0)
            owed = OWED if self.fill is not None or self._filters else ""
            self._append(sse.at(block, self.wire.position(place) + owed + mark))

    def _leave_and_join(self, place: Place, topics: frozenset[str]) -> None:
        """Topics are about to change at a place: what is held of those that go is sent now, and what is held of those
        that come is not for us."""
        throttle = self.wire.throttle
        if self.state is StreamState.LIVE:
            for entry in sorted(throttle.holding(self.topics - topics), key=_due):
                if self.concerns(entry):
                    block = entry.frame(self.wire.epoch, self.wire.max_event)
                    self._append(sse.at(block, self.wire.position(place) + self.wire.mark))
        since = {topic: start for topic, start in (self._since or {}).items() if topic in throttle.held}
        since |= dict.fromkeys((topic for topic in topics - self.topics if topic in throttle.held), place)
        self._since = since or None

    def _begin_at(self, place: Place) -> None:
        """The client is told to refetch: what was before is not for it any more."""
        self._deferred.clear()
        self._origin = place

    # Inside

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
                self.wire.caught_up(self)

    def _reset_block(self, reason: str, place: Place, owed: frozenset[str]) -> bytes:
        position = self._position(place, owed)
        self.beaten = place
        self.wire.resets += 1
        data: dict[str, Any] = {"reason": reason, "position": position, "topics": self.listed(self.topics)}
        if self.snapshot:
            data["snapshot"] = sorted(owed)
        return sse.frame(_json(data), position=position, event="rowcast.reset")

    def _subscriptions_block(self, place: Place, topics: frozenset[str], owed: frozenset[str]) -> bytes:
        data = {
            "added": self.listed(topics - self.topics),
            "removed": self.listed(self.topics - topics),
            "topics": self.listed(topics),
        }
        if self.snapshot:
            data["snapshot"] = sorted(owed)
        return sse.frame(_json(data), position=self._position(place, owed), event="rowcast.subscriptions")

    def _position(self, place: Place, owed: frozenset[str]) -> str:
        """A place's wire form when snapshots of some topics are owed from there on."""
        return self.wire.position(place) + (OWED if owed else "")


def _due(entry: Entry) -> int:
    return entry.due
