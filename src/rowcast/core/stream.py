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

from collections.abc import Iterable

import msgspec

from rowcast.core import sse
from rowcast.core.behind import MAX_TURNS as MAX_TURNS
from rowcast.core.behind import Behind
from rowcast.core.entry import Entry, user_topic
from rowcast.core.held import PAGE as PAGE
from rowcast.core.held import Turn
from rowcast.core.position import ORIGIN, Place, format_mark
from rowcast.core.wire import StreamState as StreamState
from rowcast.core.wire import Wire as Wire

PENDING_LIMIT = 256 * 1024
"""Bytes that may wait for a client that does not read, before its stream is no longer pushed to."""

_json = msgspec.json.encode


class Stream(Behind):
    """One client's stream.

    `grant` says whose it is and until when. `narrow` restricts it to these topics (None: all of the user's).
    `snapshot`: the client asked for the current rows of its topics.
    `wake` is called when there is something to take and the writer may be waiting.
    """

    __slots__ = ()

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
            self._leave_and_join(place, topics, owed)
        self.topics = topics
        if self.state is StreamState.LIVE:
            self._append(sse.marked(block, self.wire.mark))
            self.beaten = place
            if owed or self.pending_bytes > PENDING_LIMIT:
                self._fall_behind(place)
                self._owe(owed)
        else:
            self._turn(Turn(place, topics, block, owed))

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
            self._leave_and_join(place, topics, frozenset())  # it is behind: nothing is sent now
        if self._reset is not None:
            if at is not None:
                place = at
                self._fall_behind(place)
                self._begin_at(place)
            self.topics = topics
            owed = self._owed(topics)
            block, self._reset = self._reset_block(self._reset, place, owed), None
            self._turn(Turn(place, topics, block, owed))
        else:
            changed = topics != self.topics or tell
            owed = self._owed(topics - self.topics)
            block = self._subscriptions_block(place, topics, owed) if changed else b""
            self.topics = topics
            self._turn(Turn(place, topics, block, owed))

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
        self.free = None  # it can't wait any longer
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
        if self.free is None and self.state is not StreamState.ENDED:
            self.free = len(self.pending)

    def mark(self) -> None:
        """Note what is pending now, for `unhold`."""
        self._noted = len(self.pending)

    def unhold(self, *, marked: bool = False) -> None:
        """Everything may be taken again, or (`marked`) what was pending at the last `mark`."""
        if self.free is not None:
            self.free = self._noted if marked else None
