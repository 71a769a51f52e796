"""A client of a history: what it makes of its streams, and whether that is what the model says.

Checked with every block: nothing comes twice, nothing out of order, nothing that the user was not subscribed to, no
reset without a reason. Checked at every position that says that it is whole: the tables are the model's. Checked at
rest: everything came that had to.
"""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import msgspec

from rowcast.core.entry import Entry, Kind, user_topic
from rowcast.core.grants import Grant
from rowcast.core.position import ORIGIN, Place, Position, parse_position
from rowcast.core.stream import Stream, StreamState
from rowcast.testing.model import Model
from rowcast.testing.simulated import Options

if TYPE_CHECKING:
    from rowcast.testing.by_hand import Replica


class Resumed(msgspec.Struct, frozen=True):
    """A resume: what is above `after` and up to `upto` was missed. `known`: the past subscriptions are known."""

    after: Place
    upto: Place
    known: bool


class View(msgspec.Struct):
    """What a client keeps, and what was told it."""

    position: str = ""
    topics: set[str] = msgspec.field(default_factory=set)
    tables: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    complete: set[str] = msgspec.field(default_factory=set)
    begin: Place = ORIGIN
    """What is not above it is none of its business: it began there, or was told to refetch."""
    resumes: list[Resumed] = msgspec.field(default_factory=list)
    got: list[int] = msgspec.field(default_factory=list)
    """The numbers of the entries since `begin`."""
    seen: set[tuple[int, str]] = msgspec.field(default_factory=set)
    joined: Place = ORIGIN
    """Where its snapshots were last complete: up to there it was given what was held, too."""
    last: Place = ORIGIN
    """The highest place of an entry that must not be overtaken by what comes."""
    newest: dict[tuple[str, str], Place] = msgspec.field(default_factory=dict)
    barriers: dict[str, Place] = msgspec.field(default_factory=dict)


class Viewer:
    """See the module's docstring. `snapshot`: it wants the rows of its topics first."""

    def __init__(
        self, model: Model, options: Options, grant: Grant, narrow: frozenset[str] | None, *, snapshot: bool
    ) -> None:
        self.model = model
        self.options = options
        self.grant = grant
        self.narrow = narrow
        self.snapshot = snapshot
        self.view = View()
        self.kept: View | None = None
        self.stream: Stream | None = None
        self.replica: Replica
        self.checks = 0
        self._cursor: str = ""
        self._waits = False
        self._fresh = False
        self._refused = ""
        """The position that a stream did not begin with."""
        self._loose: list[tuple[Entry, str]] = []
        """What came in blocks without an id: it counts once the next id has come."""
        self._paging = False
        self._head = ORIGIN
        """Where the hub was when the first page of a fill came."""

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.grant.user

    @property
    def the_stream(self) -> Stream:
        """Its stream: it is connected."""
        assert self.stream is not None
        return self.stream

    @property
    def settled(self) -> bool:
        """Whether it is live."""
        return self.stream is not None and self.stream.state is StreamState.LIVE

    # What happens to it

    def connect(self, replica: Replica) -> None:
        """Connect, with the position that it holds."""
        self.replica = replica
        self._cursor = self.view.position
        cursor = parse_position(self._cursor) if self._cursor else None
        self._waits, self._fresh, self._paging, self._refused = True, True, False, ""
        self.stream = replica.hub.connect(
            self.grant, lambda: None, narrow=self.narrow, cursor=cursor, snapshot=self.snapshot
        )
        self.look()

    def look(self) -> None:
        """Note where its stream was started, if that has just happened."""
        if self.stream is None or not self._waits or self.stream.state is StreamState.STARTING:
            return
        self._waits = False
        if self._cursor:
            cursor, head = parse_position(self._cursor), self.replica.hub.head
            if cursor.epoch == self.replica.hub.epoch:
                known = cursor.place >= self.replica.began and self.model.told(cursor.place, head)
                self.view.resumes.append(Resumed(cursor.place, head, known))

    def take(self) -> bool:
        """Read what there is. Returns whether there was anything."""
        stream = self.the_stream
        data = stream.take()
        for block in _blocks(data):
            self._block(block)
        if stream.state is StreamState.ENDED and not stream.pending:
            self._gone()
        elif self.view.position and stream.state is StreamState.LIVE and not self.replica.hub.wire.mark:
            # (While something is held, what a catch-up left out for it is still to come.)
            self._whole()
        return bool(data)

    def cut(self, rng: random.Random) -> None:
        """Read some blocks of what there is; the rest is lost with the connection."""
        stream = self.the_stream
        blocks = _blocks(stream.take())
        for block in blocks[: rng.randrange(len(blocks) + 1)]:
            self._block(block)
        self.replica.hub.drop(stream)
        self._gone()

    def keep(self) -> None:
        """Write down what it has."""
        if not self._loose and not self._waits and not self._fresh:
            self.kept = copy.deepcopy(self.view)

    def back(self) -> None:
        """Go back to what was written down."""
        if self.kept is not None:
            self.replica.hub.drop(self.the_stream)
            self._gone()
            self.view = copy.deepcopy(self.kept)

    def _gone(self) -> None:
        self.stream = None
        self._waits = False
        self._loose.clear()

    # What it is sent

    def _block(self, fields: dict[bytes, bytes]) -> None:
        name = fields.get(b"event", b"message").decode()
        position = fields[b"id"].decode() if b"id" in fields else None
        if position is not None and self.view.position:
            now, before = parse_position(position), parse_position(self.view.position)
            assert now.epoch != before.epoch or now.place >= before.place, "an id that goes back"
        if b"data" in fields:
            self._event(name, msgspec.json.decode(fields[b"data"]), position)
        if position is not None:
            for entry, topic in self._loose:
                self._count(entry, topic)
            self._loose.clear()
            now = parse_position(position)
            if self.view.position and parse_position(self.view.position).owed and not now.owed:
                self.view.joined = now.place
            self.view.position = position
            # In the middle of a conflated catch-up an older entry may have been left out for a newer one to come.
            if not self.options.keyed:
                self._whole()

    def _event(self, name: str, data: dict[str, Any], position: str | None) -> None:
        self._paging = self._paging and name == "rowcast.snapshot"
        if name in ("rowcast.ready", "rowcast.subscriptions", "rowcast.reset"):
            assert position is not None
            self._told(name, data, position)
        elif name == "rowcast.snapshot":
            self._page(data)
            self._paging = True
        elif name == "rowcast.bye":
            assert data["reason"] == "draining", data
        else:
            entry = self.model.by_number[data["number"]]
            self._loose.append((entry, data["topic"]))
            if "action" in data and (data["topic"] in self.view.complete or data["action"] == "truncate"):
                self._change(data, entry)

    def _told(self, name: str, data: dict[str, Any], position: str) -> None:
        view, place = self.view, parse_position(position).place
        assert self._fresh is (name == "rowcast.ready"), "ready comes first, and once"
        self._fresh = False
        if name == "rowcast.reset":
            self._reset(data["reason"], parse_position(self._refused or view.position))
        if name == "rowcast.reset" or (name == "rowcast.ready" and not self._continues(position)):
            # A ready with another position than asked for is followed by the reset that says why.
            self._refused = self._cursor if name == "rowcast.ready" else ""
            view.begin, view.resumes, view.got = place, [], []
            view.newest.clear()
        else:
            assert not self._refused, "refused without a reason"
        view.topics = set(data["topics"])
        for topic in view.tables.keys() - view.topics:
            del view.tables[topic]
            view.complete.discard(topic)
        view.complete -= set(data.get("snapshot", ()))
        assert self.snapshot or not view.complete

    def _continues(self, position: str) -> bool:
        return bool(self._cursor) and parse_position(position)[:3] == parse_position(self._cursor)[:3]

    def _reset(self, reason: str, position: Position) -> None:
        hub = self.replica.hub
        if reason == "other_epoch":
            assert position.epoch != hub.epoch
        elif reason == "position_expired":
            assert position.place < hub.ring.floor, "the ring holds it all"
            assert not self.options.readable or position.place < self.replica.world.first, "the log holds it all"
        elif reason == "too_slow":
            assert self.options.turns, "the number of changes was not bounded"
        else:
            assert reason in ("log_restarted", "log_gap"), reason
            assert self.replica.began > position.place

    def _page(self, page: dict[str, Any]) -> None:
        topic = page["topic"]
        if not self._paging:
            self._head = self.replica.hub.head
        since = self.model.since(self.user, topic, self._head)
        assert since is not None, "a snapshot of a topic that the user has not"
        rows = {} if page["first"] else self.view.tables[topic]
        for row, version in page["rows"]:
            assert row not in rows
            rows[row] = version
            assert self.model.died(topic, row, version) > since, "a row that was not there for the user"
        self.view.tables[topic] = rows
        if page["last"]:
            self.view.complete.add(topic)

    def _change(self, event: dict[str, Any], entry: Entry) -> None:
        if event["action"] == "truncate":
            for topic, rows in self.view.tables.items():
                if topic.startswith(event["topic"].removesuffix("*")):
                    rows.clear()
            return
        rows, row, version = self.view.tables[event["topic"]], event["row"], event["version"]
        if event["action"] == "upsert":
            older = row in rows and version <= rows[row]
            assert not older or (version == rows[row] and self._again(entry)), "an older row, or one twice"
            rows[row] = version
        elif not self.options.keyed or row in rows:
            assert rows[row] == version or self.options.keyed, "a delete of another row"
            del rows[row]

    def _count(self, entry: Entry, topic: str) -> None:
        """An entry came, whole."""
        view, number = self.view, entry.body.data["number"]
        place = entry.place
        if (number, topic) in view.seen:
            assert self._again(entry), "an entry twice"
            return
        view.seen.add((number, topic))
        assert self._may(entry), "an entry that the user was not subscribed to"
        view.got.append(number)
        held = entry.interval and entry.key is not None
        if not held:
            assert place >= view.last, "an entry out of order"
            view.last = place
        assert place >= view.barriers.get(entry.topic, ORIGIN), "an entry that was overtaken"
        if entry.key is not None:
            assert place > view.newest.get((entry.topic, entry.key), ORIGIN), "an older entry of a key"
            view.newest[entry.topic, entry.key] = place
        elif entry.kind is Kind.SWEEP:
            view.barriers |= dict.fromkeys(("t:a", "t:b"), place)
        elif entry.interval:
            view.barriers[entry.topic] = place

    # What the model says

    def effective(self, place: Place) -> frozenset[str]:
        """The topics of the stream at a place, by the rule, the token and what the client asked for."""
        topics = self.model.topics(self.user, place).union(self.grant.topics, (user_topic(self.user),))
        return topics if self.narrow is None else topics & self.narrow

    def _judged(self, place: Place) -> frozenset[str]:
        """The topics that decide about an entry: those at its place, or, where it was missed and the past is not known,
        those that there were at the resume."""
        for resume in reversed(self.view.resumes):
            if resume.after < place:
                if place <= resume.upto and not resume.known:
                    return self.effective(resume.upto)
                break
        return self.effective(place)

    def _due(self, entry: Entry) -> bool:
        topics = self._judged(entry.place)
        if entry.kind is Kind.SWEEP:
            return any(topic.startswith(entry.topic) for topic in topics)
        return entry.topic in topics

    def _again(self, entry: Entry) -> bool:
        """Whether it may come twice: the newest of a key, when a stream resumes that has just had its snapshots, or had
        lost the topic, was given what was held of it, and is judged by the topics of now."""
        if not self.view.resumes or not entry.interval or entry.key is None:
            return False
        resume = self.view.resumes[-1]
        rows = self.snapshot and bool(entry.xid) and entry.place <= min(self.view.joined, resume.after)
        lost = not resume.known and entry.place <= resume.after and entry.topic not in self.effective(resume.after)
        return rows or lost

    def _may(self, entry: Entry) -> bool:
        if entry.place > self.view.begin and self._due(entry):
            return True
        # The newest of a key from just before the stream had its topic, when it resumes while that is held.
        return bool(entry.interval and entry.key is not None) and any(
            entry.place <= resume.after
            and (entry.topic in self.effective(resume.upto) or entry.topic in self.effective(resume.after))
            for resume in self.view.resumes
        )

    def _whole(self) -> None:
        """Whoever holds a position has everything up to there, rows included unless the position says otherwise."""
        position = parse_position(self.view.position)
        if position.owed or position.mark or not self.snapshot:
            return
        tables = self.model.tables(position.place)
        for topic in self.view.topics:
            if not topic.startswith("t:"):
                continue
            if topic in self.view.complete:
                assert self.view.tables[topic] == tables[topic], f"{topic} at {self.view.position}"
            else:
                # Lost before its rows could be read: the client is about to be told.
                since = self.model.since(self.user, topic, self.replica.hub.head)
                assert since is None or since > position.place, f"a position before the snapshot of {topic} is whole"
        self.checks += 1

    def at_rest(self, head: Place) -> None:
        """Everything has come that will come."""
        view = self.view
        assert view.position, "a stream never held a position"
        topics = self.effective(head)
        assert view.topics == topics - {user_topic(self.user)}
        self._whole()
        got = set(view.got)
        must: dict[object, int] = {}
        plain: list[int] = []
        for entry in self.model.entries:
            if entry.place <= view.begin or not self._due(entry):
                continue
            number = entry.body.data["number"]
            if self.snapshot and entry.xid:
                continue  # the rows may hold it: the tables tell
            if entry.key is None:
                plain.append(number)
            else:
                must[entry.topic, entry.key] = number
        came = [n for n in view.got if (one := self.model.by_number[n]).key is None and not (self.snapshot and one.xid)]
        assert came == plain, "exactly what it was subscribed to"
        for number in must.values():
            entry = self.model.by_number[number]
            since = self.model.since(self.user, entry.topic, head)
            if entry.topic in topics and since is not None and entry.place > since:
                assert number in got, "the newest entry of a key did not come"
        self.checks += len(came)


def _blocks(data: bytes) -> list[dict[bytes, bytes]]:
    blocks = [block for block in data.split(b"\n\n") if block and not block.startswith(b":")]
    return [dict(line.split(b": ", 1) for line in block.split(b"\n")) for block in blocks]
