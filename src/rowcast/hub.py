"""The hub of a replica: tails the log, owns the topic index and the streams, dispatches.

Everything that touches streams happens in one thread, in calls that do not await: a batch is handled whole, and
the streams that got something are written afterwards, by the flush. So a stream never sees half a batch, and what is
known at `wire.head` is known for every stream alike.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rowcast import jitter
from rowcast.absent import Absentees
from rowcast.cache import Invalidation
from rowcast.core.doubt import Doubt
from rowcast.core.entry import Batch, Control, Entry, Kind
from rowcast.core.gains import Gains
from rowcast.core.grants import Grant
from rowcast.core.past import Past, Span
from rowcast.core.position import ORIGIN, Place, Position
from rowcast.core.ring import Ring
from rowcast.core.rules import RowRule, SqlRule
from rowcast.core.run import Packed, Run
from rowcast.core.stream import MAX_TURNS, Stream, StreamState, Wire
from rowcast.core.subscriptions import Load, Subscriptions, TopicChange
from rowcast.core.topics import TopicIndex
from rowcast.dismissed import Dismissed
from rowcast.doors import Doors
from rowcast.errors import Busy
from rowcast.flush import Flush
from rowcast.joins import Joins
from rowcast.ports import Loader, Log, ReadableLog, RowReader, State
from rowcast.readback import ReadBack
from rowcast.releases import Releases
from rowcast.snapshots import Snapshots
from rowcast.telemetry.histogram import Histogram
from rowcast.telemetry.journal import get_logger
from rowcast.turnstile import Turnstile
from rowcast.wheel import Wheel

if TYPE_CHECKING:
    from rowcast.telemetry.traces import Traces

logger = get_logger(__name__)

_NAMES = {kind: kind.name.lower() for kind in Kind}

MAX_STARTING = 5000
"""Streams that may wait for their subscriptions at once; in a storm, who comes then is told to come back later."""

TURN = 0.001
"""Seconds that batches may be handled before the loop goes on."""

GAP_PATIENCE = 3.0
"""Seconds after a gap of the log in which nothing is read that may not hold all that was committed in it."""

STARTS = 8
"""Streams that are started per turn of the loop when many wait for the same place."""

LEAVES = 16
"""Streams that are forgotten per turn when many clients go at once."""

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Hub:
    """Tails `log` and serves streams.

    `loader` reads users' subscription rows (None: there are no rules that need the database). `ring_bytes`
    bounds the ring, `max_event` an event, both in bytes. `max_streams` bounds the streams of this replica,
    `max_streams_per_user` those of one user: the oldest is ended for the newest. `heartbeat` is the pause between
    the heartbeats of a stream, in seconds. `reader` reads the rows of topics (None: no route has snapshots).
    `on_disconnect` is told of every "disconnect" that comes by: (user, Unix time at which it was asked for).
    """

    def __init__(
        self,
        log: Log,
        rules: Sequence[RowRule | SqlRule],
        loader: Loader | None,
        *,
        replica: str,
        ring_bytes: int,
        max_event: int,
        max_streams: int,
        max_streams_per_user: int,
        heartbeat: float,
        reader: RowReader | None = None,
        on_disconnect: Callable[[str, float], None] = lambda user, at: None,
    ) -> None:
        self.log = log
        self.ring = Ring(ring_bytes)
        self.wire = Wire(self.ring, max_event=max_event, replica=replica)
        self.subscriptions = Subscriptions(rules)
        self.joins = Joins(self, loader)
        self.snapshots = Snapshots(self, reader)
        if reader is not None:
            self.wire.snapshots = self.snapshots
        self.wheel = Wheel(self, heartbeat)
        self.readback = ReadBack(self, log if isinstance(log, ReadableLog) else None)
        self.wire.read_back = self.readback.want
        self.releases = Releases(self)
        self.max_streams = max_streams
        self.max_streams_per_user = max_streams_per_user
        self.users: dict[str, list[Stream]] = {}
        self.streams: dict[Stream, None] = {}
        self.draining = False
        self.doors = Doors()
        self.dismissed = Dismissed()
        self._starts = Turnstile(STARTS)
        self._leaves = Turnstile(LEAVES)
        self.deliveries = 0
        self.cache: Invalidation | None = None
        """What is given to a stream waits until it has deleted the user's cached keys; None: nothing is cached."""
        self.absent: Absentees | None = None
        """Deletes the cached keys of users without a stream; None: of nobody."""
        self.missed = 0
        """Blocks of the bridge that a stream could not take."""
        self.entries: Counter[str] = Counter()
        self.catchups: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Requests for streams that were told to come back later."""
        self.latency = Histogram(LATENCY_BOUNDS)
        """Seconds from commit to the write to a stream's transport, by the clocks of Postgres and of this machine."""
        self.warm = False
        self.patience = GAP_PATIENCE
        self._doubt = Doubt()
        self._gains = Gains()
        self._past = Past(rules)
        self._index: TopicIndex[Stream] = TopicIndex()
        self._starting: dict[Stream, Position | None] = {}
        self._awaiting: dict[Stream, None] = {}
        """Of these, those that wait for a place besides their user's subscriptions."""
        self._writing = Flush(self, latency=self.latency.add)
        self._on_disconnect = on_disconnect
        self._traces: Traces | None = None
        self._moved = asyncio.Event()
        self._since = self._now = time.time()

    def trace(self, traces: Traces) -> None:
        """Make a span of each catch-up from now on."""
        self._traces = traces
        self.wire.caught_up = traces.caught_up

    # What others ask

    @property
    def head(self) -> Place:
        """Every entry at or below this place has been dispatched."""
        return self.wire.head

    @property
    def epoch(self) -> str:
        """The log's epoch; "" before the log was reached."""
        return self.wire.epoch

    @property
    def streams_count(self) -> int:
        """Open streams."""
        return len(self.streams)

    def states(self) -> dict[str, int]:
        """How many streams are in each state."""
        counts = dict.fromkeys((state.value for state in StreamState), 0)
        for stream in self.streams:
            counts[stream.state.value] += 1
        return counts

    def state(self) -> State:
        """Whether this replica can take streams."""
        if self.draining:
            return State(ok=False, detail="draining: new streams go to another replica", since=self._since)
        if not self.warm:
            return State(ok=False, detail="warming up: reading what the log holds", since=self._since)
        return State(ok=True, detail=f"{len(self.streams)} streams", since=self._since)

    # Life

    async def run(self) -> None:
        """Tail the log until it is closed."""
        turn = done = time.perf_counter()
        async for batch in self.log.tail():
            now = time.perf_counter()
            if now - done >= TURN:  # the log had us wait, and the loop its turns
                turn = now
            self.handle(batch)
            done = time.perf_counter()
            if batch.entries and done - turn >= TURN:
                # A log that has many batches at hand need not wait between two of them; the flush must have its turn.
                # After each batch would be too often: beside a round of the flush a turn takes milliseconds.
                await asyncio.sleep(0)
                turn = done = time.perf_counter()

    async def warm_up(self) -> None:
        """Wait until everything that was committed before this call has been dispatched into the ring."""
        while not self.epoch:  # a log that is just being begun: without an epoch no position can be told
            self._moved.clear()
            await self._moved.wait()
        epoch = None
        while epoch != self.epoch:  # a log that begins anew meanwhile has other places
            epoch = self.epoch
            await self.passed(await self.log.head())
        await self.joins.prune()
        self.warm = True
        self._since = time.time()

    def drain(self) -> None:
        """Take no new stream from now on."""
        if not self.draining:
            self.draining = True
            self._since = time.time()

    async def passed(self, place: Place) -> None:
        """Wait until the head is at or above a place of the current epoch, or the epoch is another."""
        epoch = self.epoch
        while self.wire.head < place and self.epoch == epoch:
            self._moved.clear()
            await self._moved.wait()

    # The log's side

    def handle(self, batch: Batch) -> None:
        """Dispatch a batch."""
        self._now = time.time()
        if batch.reset is not None:
            self._restart(batch, batch.reset)
        entries = batch.entries
        for part in entries.parts if type(entries) is Packed else (entries,):
            if type(part) is Run:
                self._handle_run(part)
            else:
                for entry in part:
                    self.handle_entry(entry)
        self.wire.head = max(self.wire.head, batch.head)
        # As soon as whoever gets full can be told where it is: the rest can wait for the write, and not the other way.
        self._writing.hurry()
        self.snapshots.note(entries)
        if self.absent is not None:
            self.absent.settle(self.wire.head)
        self.settle()
        self.joins.mind(self.subscriptions.recent)
        self._moved.set()

    def _handle_run(self, run: Run) -> None:
        """Dispatch a run. Of entries that nobody here listens to no object is made, and nothing is called."""
        if self.absent is not None or self.wire.mark:
            for entry in run:
                self.handle_entry(entry)
            return
        self.entries["data"] += len(run)
        seq = self.ring.extend(run)
        if not self._index.has_any(run.topics):
            return
        for number, topic in enumerate(run.topics):
            if streams := self._index.get(topic):
                entry = self.ring.entry(seq + number) if seq + number >= self.ring.first else run.entry(number)
                if self.cache is not None:
                    self.cache.hold(streams)
                self._push(streams, entry)

    def handle_entry(self, entry: Entry) -> None:
        """Dispatch one entry: to the streams of its topic, to the subscriptions, or as a command."""
        self.entries[_NAMES[entry.kind]] += 1
        if entry.kind is Kind.DATA:
            self.ring.append(entry)
            if self.absent is not None:
                self.absent.note(entry.topic)
            if entry.interval and self.releases.hold(entry, self._now):
                return
            if self.cache is not None:
                self.cache.hold(self._index.get(entry.topic))
            if self.wire.mark:
                self.releases.push_marked(entry)
                return
            self._push(self._index.get(entry.topic), entry)
        elif entry.kind is Kind.ROW:
            self.wire.head = entry.place
            self._gains.note(self.subscriptions.gaining(entry.body), entry.place)
            self._past.note(entry.body, entry.place, ORIGIN if self.readback.able else self.ring.floor)
            if self.absent is not None:
                self.absent.apply(entry)
            effect = self.subscriptions.apply(entry)
            for change in effect.changed:
                self._change(change, entry.place)
            for user in effect.stale:
                self.reload(user)
        elif entry.kind is Kind.SWEEP:
            self.ring.append(entry)
            if self.absent is not None:
                self.absent.note_matching(entry.topic)
            self.releases.overtake(entry, self.wire.throttle.matching(entry.topic))
            if self.cache is not None:
                self.cache.hold(self._index.matching(entry.topic))
            if self.wire.mark:
                self.releases.push_marked(entry)
                return
            self._push(tuple(self._index.matching(entry.topic)), entry)
        else:
            self.wire.head = entry.place
            self._control(entry.body)

    def _push(self, streams: Collection[Stream], entry: Entry) -> None:
        """Give an entry to the LIVE ones of its subscribers; it is encoded only if there are any subscribers."""
        if streams:
            frame = entry.frame(self.wire.epoch, self.wire.max_event)
            self.deliveries += self._writing.push(streams, frame, entry.time / 1e6)

    def _control(self, control: Control) -> None:
        if control.action == "disconnect":
            self._on_disconnect(control.user, control.at)
            self.dismissed.note(control.user)
            for stream in tuple(self.users.get(control.user, ())):
                self.end(stream, "disconnected")
            return
        self._gains.note([control.user], self.wire.head)
        if control.user in self.users:
            if self.subscriptions.has_sql:
                self.reload(control.user, tell=True)
            elif not self.subscriptions.exact(control.user):
                self.joins.tell(control.user)
            else:
                # Row rules are exact without being asked: the event only answers the caller.
                topics = self.subscriptions.topics(control.user)
                self._change(TopicChange(control.user, topics), self.wire.head, tell=True)

    def _change(self, change: TopicChange, place: Place, *, tell: bool = False) -> None:
        for stream in self.users.get(change.user, ()):
            if stream.state not in (StreamState.STARTING, StreamState.ENDED):
                topics = stream.effective(change.topics)
                if self.cache is not None and self.wire.throttle.held:
                    self.cache.hold((stream,))  # what is held of topics that go is sent now
                self._reindex(stream, topics)
                stream.change(place, topics, tell=tell)
                self._mark(stream)

    def _restart(self, batch: Batch, reason: str) -> None:
        """The log starts anew here: forget what was known, and tell every stream that it has a gap."""
        first = not self.wire.epoch
        self.wire.epoch = batch.epoch
        self.wire.head = batch.head
        self.ring.restart(batch.head)
        self.readback.clear()
        self.releases.clear()
        self.subscriptions.restart()
        self.snapshots.restart()
        self._gains.restart(batch.head)
        self._past.restart(batch.head)
        if self.absent is not None:
            self.absent.restart(gap=not first)
        if not first:
            self._doubt.begin(time.monotonic() + self.patience)
            logger.warning("streams_reset", "log restarted at %s: %s", self.wire.position(batch.head), reason)
        for user, streams in self.users.items():
            for stream in streams:
                stream.after = None
                if stream.state not in (StreamState.STARTING, StreamState.ENDED):
                    stream.pause(batch.head, reset=reason)
                    if self.cache is not None:
                        self.cache.hold((stream,))
            self.subscriptions.expect(user)
            self.joins.want(user)

    # The bridge's side

    def deliver(self, topic: str, block: bytes) -> None:
        """Give a block that is in no log to the topic's streams, at most once: who can't take it now, misses it."""
        streams = self._index.get(topic)
        if self.cache is not None:
            self.cache.hold(streams)
        if self.absent is not None:
            self.absent.note(topic)
        for stream in streams:
            if stream.offer(block):
                self.deliveries += 1
                self._mark(stream)
            else:
                self.missed += 1
        self._flush()

    def listened(self, topic: str) -> bool:
        """Whether any stream has the topic."""
        return bool(self._index.get(topic))

    def resubscribe(self, user: str) -> None:
        """Read a user's rules anew on this replica, without an entry in the log."""
        self._control(Control("resubscribe", user))
        self.settle()

    def resubscribe_all(self) -> None:
        """A resubscribe may have been missed: read every connected user anew. Row rules need no reading."""
        self._gains.note(None, self.wire.head)
        if self.subscriptions.has_sql:
            self.reload_all()
        else:
            self.settle()

    def adopt(self, rules: Sequence[RowRule | SqlRule], loader: Loader | None) -> None:
        """Go on with other subscription rules: every connected user is read anew, and their streams pause here."""
        self._gains.note(None, self.wire.head)
        self.subscriptions = Subscriptions(rules)
        self._past = Past(rules)
        self._past.restart(self.wire.head)
        # Changes that have come by and are not visible yet are not remembered for these rules.
        self._doubt.begin(time.monotonic() + self.patience)
        self.joins.use(loader)
        self.reload_all()

    def reload_all(self) -> None:
        """Read every connected user anew."""
        for user in list(self.users):
            self.reload(user)
        self.settle()

    # The subscriptions' side

    def reload(self, user: str, *, tell: bool = False) -> None:
        """Read a user's rules anew; their streams pause here until that is done."""
        for stream in self.users.get(user, ()):
            stream.pause(self.wire.head)
            self._note_catchup(stream, "query")
        self.subscriptions.expect(user)
        self.joins.want(user, tell=tell)

    def join(self, load: Load) -> list[str]:
        """Take over what was loaded. Returns users who must be loaded once more, not at once."""
        stale = self.subscriptions.join(load)
        for user in stale:
            self.subscriptions.expect(user)
        self.settle()
        return stale

    def settle(self) -> None:
        """Start or resume the streams of the users who became exact at the head."""
        for change in self.subscriptions.settle(self.wire.head):
            tell = self.joins.told(change.user)
            for stream in self.users.get(change.user, ()):
                if stream.state is StreamState.STARTING:
                    self._starts.do(partial(self._start, stream))
                elif stream.state is not StreamState.ENDED:
                    topics = stream.effective(change.topics)
                    if self.cache is not None and (self.wire.throttle.held or topics - stream.topics):
                        self.cache.hold((stream,))  # it gets what came by on them during the query
                    self._reindex(stream, topics)
                    if stream.refused is None:
                        stream.resume(topics, tell=tell)
                    else:
                        self._resume_anew(stream, stream.refused, topics)
                    self._mark(stream)
        for stream in tuple(self._awaiting):
            self._start(stream)
        self._flush()

    # The clients' side

    def admit(self, waiting: int = 0) -> None:
        """Raise `Busy` when this replica takes no stream now, besides so many that wait at the doors."""
        if self.draining:
            raise Busy("this replica is draining; connect again", "draining")
        if not self.warm:
            raise Busy("this replica is warming up; connect again", "unavailable")
        if len(self.streams) + waiting >= self.max_streams:
            raise Busy(f"this replica has its {self.max_streams} streams; connect again later", "busy")
        if len(self._starting) >= MAX_STARTING:
            raise Busy("too many streams come at once; connect again later", "busy")

    def connect(
        self,
        grant: Grant,
        wake: Callable[[], None],
        *,
        narrow: frozenset[str] | None = None,
        cursor: Position | None = None,
        snapshot: bool = False,
        asked: int | None = None,
    ) -> Stream:
        """Open a stream for a user; `wake` is called when there is something to take, and may take it at once.

        It is STARTING until the user's subscriptions are exact. `cursor` is the client's last position (None:
        from now on). `snapshot`: the client wants the current rows of its topics first. `asked`: what
        `dismissed.number` was before it was found out whose stream it is (None: that took no time). Raises `Busy` when
        this replica takes no stream now, or the user was disconnected since.
        """
        self.admit()
        if asked is not None and self.dismissed.since(asked, grant.user):
            raise Busy("the user was disconnected while the stream was being opened; connect again", "unavailable")
        streams = self.users.setdefault(grant.user, [])
        while len(streams) >= self.max_streams_per_user:
            # One that is still to be forgotten goes before one that somebody reads.
            oldest = next((one for one in streams if one.state is StreamState.ENDED), streams[0])
            self.end(oldest, "busy", retry=jitter.retry(20.0, 40.0))
        stream = Stream(grant, self.wire, wake, narrow=narrow, snapshot=snapshot)
        if not streams:
            self.users[grant.user] = streams
            if not self.subscriptions.none:
                self.subscriptions.expect(grant.user)
                self.joins.want(grant.user)
        streams.append(stream)
        self.streams[stream] = None
        self._starting[stream] = cursor
        self.wheel.add(stream)
        if cursor is not None and cursor.epoch == self.epoch and cursor.place > self.wire.head:
            self._awaiting[stream] = None
            self.joins.want_head(stream)
        try:
            self._try_start(stream)
        except Exception:
            self.drop(stream)
            raise
        self._flush()
        return stream

    def end(self, stream: Stream, reason: str, *, retry: int | None = None) -> None:
        """End a stream with `rowcast.bye` and a reason; `retry` in milliseconds is told before it."""
        if stream.state is StreamState.ENDED:  # its client has gone already
            self.drop(stream)
            return
        stream.end(reason, retry)
        self.ended[reason] += 1
        self.drop(stream)
        self.wake(stream)

    def wake(self, stream: Stream) -> None:
        """Wake a stream's writer. One stream's trouble must not reach the others."""
        try:
            stream.wake()
            if stream.pending and stream.bound():
                self._note_catchup(stream, "slow")
                self.again(stream)  # its writer takes nothing by itself of a stream that is behind
        except Exception:
            self.fail(stream)

    def fail(self, stream: Stream) -> None:
        """Writing a stream raised what is being handled: forget it, and cut its connection."""
        logger.exception("stream_failed", "a stream could not be written")  # noqa: LOG004  # called while it is handled
        if stream.sink is not None:
            stream.sink.abort()
        self.drop(stream)

    def lag(self, stream: Stream) -> None:
        """A stream's transport is full: it catches up when it has drained, and `again` is called."""
        if stream.state is StreamState.LIVE:
            stream.lag()
            self._note_catchup(stream, "slow")

    def again(self, stream: Stream) -> None:
        """A stream has something to be taken that is in no hurry, or more of what it missed: wake it in its turn."""
        if stream.state is StreamState.BEHIND:
            self._writing.catch_up(stream)
        else:
            self._writing.later(stream)
        self._writing.start()

    def leave(self, stream: Stream) -> None:
        """A stream's client is gone: it gets nothing more, and is forgotten in its turn."""
        if stream in self.streams:
            stream.state = StreamState.ENDED
            stream.pending.clear()
            self._leaves.do(partial(self.drop, stream))

    def drop(self, stream: Stream) -> None:
        """Forget a stream: its client is gone, or it was ended. Forgetting twice is fine."""
        if stream not in self.streams:
            return
        del self.streams[stream]
        self._starting.pop(stream, None)
        self._awaiting.pop(stream, None)
        self.readback.forget(stream)
        self._reindex(stream, frozenset())
        stream.topics = frozenset()
        stream.state = StreamState.ENDED
        stream.release()
        if self._traces is not None:
            self._traces.gone(stream)
        self.wheel.remove(stream)
        streams = self.users[stream.grant.user]
        streams.remove(stream)
        if not streams:
            del self.users[stream.grant.user]
            self.subscriptions.forget(stream.grant.user)
            self.joins.forget(stream.grant.user)

    def _start(self, stream: Stream) -> None:
        """Start a stream whose turn has come, if it is still there."""
        if stream in self._starting and stream.state is StreamState.STARTING:
            self._try_start(stream)
            self._flush()

    def _try_start(self, stream: Stream) -> None:
        """Start a stream if its user is exact and the head is where it must be."""
        user = stream.grant.user
        cursor = self._starting[stream]
        if not self.subscriptions.exact(user) or self.joins.awaits_head(stream):
            return
        if stream.after is not None and stream.after > self.wire.head:
            return
        del self._starting[stream]
        self._awaiting.pop(stream, None)
        reset, place = self._resumable(cursor)
        present = stream.effective(self.subscriptions.topics(user))
        spans = None if place is None else self._spans(user, place)
        topics = present if spans is None else stream.effective(spans[0].topics)
        self._reindex(stream, present)
        held: list[Entry] | None = None
        if cursor is not None and place is not None:
            held = self.releases.owed(topics, cursor)
            if held is None:
                reset, place = "position_expired", None
        if self.cache is not None and cursor is not None:
            self.cache.hold((stream,))
        anew = cursor is not None and place is not None and (cursor.owed or self._gained(user, place, spans))
        mark = 0 if cursor is None else cursor.mark
        stream.start(topics, place, reset, anew=anew, held=held or (), mark=mark)
        if place is not None:
            self._change_since(stream, spans, present)
            self._note_catchup(stream, "reconnect")
        self._mark(stream)

    def _spans(self, user: str, place: Place) -> list[Span] | None:
        """What an exact user was subscribed to from a place on; None when that changed too often to be told."""
        spans = self._past.spans(user, place, *self.subscriptions.given(user))
        return spans if len(spans) <= MAX_TURNS else None

    def _gained(self, user: str, place: Place, spans: list[Span] | None) -> bool:
        """Whether the user may have got topics above a place that `spans` do not tell."""
        told = spans is not None and not self.subscriptions.has_sql and self._past.known(place)
        return not told and self._gains.since(user, place)

    def _change_since(self, stream: Stream, spans: list[Span] | None, present: frozenset[str]) -> None:
        """Bring a stream that is behind, with the topics of the first span, to the present ones."""
        for span in (spans or ())[1:]:
            stream.change(span.place, stream.effective(span.topics))
        stream.change(self.wire.head, present)

    def _resume_anew(self, stream: Stream, place: Place, present: frozenset[str]) -> None:
        """Resume a stream that is told to refetch: from that place on, if it is known what its user had since."""
        spans = self._spans(stream.grant.user, place) if self._past.known(place) else None
        if spans is None:
            stream.resume(present, at=self.wire.head)
        else:
            stream.resume(stream.effective(spans[0].topics))
            self._change_since(stream, spans, present)

    def _resumable(self, cursor: Position | None) -> tuple[str | None, Place | None]:
        """Whether a stream can go on from a client's position: (why not, the place to go on from)."""
        if cursor is None:
            return None, None
        if cursor.epoch != self.epoch:
            return "other_epoch", None
        if cursor.place < self.ring.floor and not self.readback.able:
            return "position_expired", None
        if cursor.place > self.wire.head:
            return "position_unknown", None
        return None, cursor.place

    # For the parts

    def subscribers(self, topic: str) -> Iterable[Stream]:
        """The streams that have a topic; not to be held over a change of subscriptions."""
        return self._index.get(topic)

    def matching(self, prefix: str) -> Iterable[Stream]:
        """The same for every topic with a prefix, each stream once."""
        return self._index.matching(prefix)

    def push_block(self, stream: Stream, place: Place, block: bytes) -> None:
        """Give a LIVE stream a block after which it has everything up to a place."""
        if stream.push_block(place, block):
            self._note_catchup(stream, "slow")
        self.deliveries += 1
        self._mark(stream)

    def relies_on(self, load: Load) -> bool:
        """Whether a load saw all that does not come by in the log; see `core.doubt`."""
        return load.snapshot is None or self._doubt.allows(load.snapshot, time.monotonic())

    @property
    def doubtful(self) -> bool:
        """Whether a snapshot may not see all that does not come by."""
        return self._doubt.present(time.monotonic())

    def flush(self) -> None:
        """Wake the writers of the streams that got something."""
        self._flush()

    # Inside

    def _note_catchup(self, stream: Stream, cause: str) -> None:
        self.catchups[cause] += 1
        if self._traces is not None and stream.state is StreamState.BEHIND:
            self._traces.behind(stream, cause)

    def _reindex(self, stream: Stream, topics: frozenset[str]) -> None:
        """Bring the index from the stream's topics to new ones. To be called before the stream changes."""
        for topic in stream.topics - topics:
            self._index.remove(topic, stream)
        for topic in topics - stream.topics:
            self._index.add(topic, stream)

    def _mark(self, stream: Stream) -> None:
        if stream.state is StreamState.BEHIND:
            self._writing.catch_up(stream)
        else:
            self._writing.add(stream)

    def _flush(self) -> None:
        """Have the streams written that got something."""
        self._writing.start()
