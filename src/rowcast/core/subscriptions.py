"""Who is subscribed to what, exactly: the rows of the subscription rules for the connected users.

A user's rows are read once, in one snapshot (`join`); from then on the row changes of the rules' tables are
applied as they come by in the log (`apply`). The two are joined by transaction id: a change whose
transaction the snapshot saw is skipped for that user, whatever its position; the recent changes that it had
not seen are applied on top of it. When the hub has passed the place at which the snapshot was taken
(`settle`), everything that the snapshot saw has come by, and the user's topics are exact from there on.

Rows are kept by key, so that a DELETE, which carries the key only, and an UPDATE that gives the row to
another user find whom they concern, without REPLICA IDENTITY FULL.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from rowcast.core import values
from rowcast.core.entry import Entry, RowChange
from rowcast.core.position import Place
from rowcast.core.rules import RowRule, SqlRule
from rowcast.core.snapshot import Snapshot

Row = dict[str, Any]


class UserRows(msgspec.Struct):
    """What one load read for one user: the rows of each row rule and the topics of each SQL rule, by the
    rule's index."""

    rows: dict[int, list[Row]] = msgspec.field(default_factory=dict)
    topics: dict[int, frozenset[str]] = msgspec.field(default_factory=dict)


class Load(msgspec.Struct):
    """What one load read: each user's rules in one snapshot, exact once the hub has passed `after`.

    `snapshot` None: nothing was read, since there are no rules to read.
    """

    after: Place
    users: dict[str, UserRows]
    snapshot: Snapshot | None = None

    def parts(self, rows: int) -> Iterator[Load]:
        """The same in parts of about so many rows; a user is in one of them. They may be joined at different times."""
        part: dict[str, UserRows] = {}
        count = 0
        for user, read in self.users.items():
            part[user] = read
            count += 1 + sum(map(len, read.rows.values()))
            if count >= rows:
                yield Load(self.after, part, self.snapshot)
                part, count = {}, 0
        if part:
            yield Load(self.after, part, self.snapshot)


class TopicChange(NamedTuple):
    """A user's topics changed; `topics` are those now in force."""

    user: str
    topics: frozenset[str]


class Effect(NamedTuple):
    """What a row change did: users whose topics changed, and users who must be read anew."""

    changed: list[TopicChange]
    stale: list[str]


class _Held:
    """A row as kept for a user. `count` is over 1 only for equal rows of a table without a key."""

    __slots__ = ("count", "row", "topics")

    def __init__(self, row: Row, topics: tuple[str, ...]) -> None:
        self.row = row
        self.topics = topics
        self.count = 1


class _User:
    __slots__ = ("after", "counts", "exact", "rows", "snapshot", "sql_topics", "topics")

    def __init__(self) -> None:
        self.rows: dict[int, dict[Hashable, _Held]] = {}
        self.sql_topics: dict[int, frozenset[str]] = {}
        self.counts: Counter[str] = Counter()
        self.topics: frozenset[str] = frozenset()
        self.snapshot: Snapshot | None = None
        self.after: Place | None = None
        """None: being read. Else the place from which on the rows are exact."""
        self.exact = False


class Subscriptions:
    """The subscription state of a replica's connected users.

    A user is unknown, loading (`expect`), joined (`join`) and exact (`settle`), until `forget`.
    """

    def __init__(self, rules: Sequence[RowRule | SqlRule]) -> None:
        self._rules = {rule.index: rule for rule in rules}
        self._users: dict[str, _User] = {}
        self._owners: dict[int, dict[Hashable, str | tuple[str, ...]]] = {i: {} for i in self._rules}
        self._recent: list[tuple[int, Place, RowChange]] = []
        self._settling: set[str] = set()
        self.none = not rules
        """Whether there are no rules: then every user is exact, and has no topics by them, without being expected."""
        self.has_sql = any(isinstance(rule, SqlRule) for rule in rules)

    # Users

    def expect(self, user: str) -> None:
        """The user is about to be read: from now on nothing about them is known until `join`."""
        self.forget(user)
        self._users[user] = _User()

    def forget(self, user: str) -> None:
        """The user is no longer connected."""
        state = self._users.pop(user, None)
        self._settling.discard(user)
        if state is not None:
            for index, rows in state.rows.items():
                for key in rows:
                    self._disown(index, key, user)

    def exact(self, user: str) -> bool:
        """Whether the user's topics are known exactly at the hub's head."""
        state = self._users.get(user)
        return self.none if state is None else state.exact

    def topics(self, user: str) -> frozenset[str]:
        """The topics that the rules give an exact user."""
        state = self._users.get(user)
        return frozenset() if state is None else state.topics

    def given(self, user: str) -> tuple[dict[int, Counter[str]], frozenset[str]]:
        """What gives an exact user their topics: those of the rows of each row rule, as often as rows give them, and
        those of the SQL rules."""
        state = self._users.get(user)
        counts: dict[int, Counter[str]] = {}
        if state is None:
            return counts, frozenset()
        for index, rows in state.rows.items():
            counts[index] = Counter()
            for held in rows.values():
                for topic in held.topics:
                    counts[index][topic] += held.count
        return counts, frozenset().union(*state.sql_topics.values())

    @property
    def recent(self) -> int:
        """How many recent row changes are kept for loads to come."""
        return len(self._recent)

    def recent_changes(self) -> list[tuple[int, RowChange]]:
        """The recent row changes, each with its xid: all those that a snapshot taken from now on may not see."""
        return [(xid, change) for xid, _, change in self._recent]

    def join(self, load: Load) -> list[str]:
        """Take over what was read, for those users who still wait for it.

        Returns users who must be read anew at once, since a rule can't be brought up to date without.
        """
        stale: list[str] = []
        for user, read in load.users.items():
            state = self._users.get(user)
            if state is None or state.after is not None:
                continue
            state.after = load.after
            state.snapshot = load.snapshot
            state.sql_topics = dict(read.topics)
            for index, rows in read.rows.items():
                rule = self._rules[index]
                assert isinstance(rule, RowRule)
                for row in rows:
                    self._add(user, state, rule, row)
            self._settling.add(user)
            for xid, _, change in self._recent:
                if self._unseen(state, xid) and (change.reload or self._apply_to(user, state, change)):
                    stale.append(user)
                    break
        if load.snapshot is not None:
            self.prune(load.snapshot)
        return stale

    def settle(self, head: Place) -> list[TopicChange]:
        """The users who became exact since the hub passed `head`."""
        if not self._settling:
            return []
        done = [user for user in self._settling if (after := self._users[user].after) is not None and after <= head]
        for user in done:
            state = self._users[user]
            self._settling.discard(user)
            state.exact = True
            state.snapshot = None
            state.topics = _topics(state)
        return [TopicChange(user, self._users[user].topics) for user in done]

    def prune(self, snapshot: Snapshot) -> None:
        """Let go of the recent changes that every load from now on will have seen."""
        self._recent = [item for item in self._recent if not snapshot.settled(item[0])]

    def restart(self) -> None:
        """The log had a gap: nothing that is known is exact any more. Every user must be expected anew."""
        self._recent.clear()
        for user in list(self._users):
            self.forget(user)

    # Changes

    def apply(self, entry: Entry) -> Effect:
        """Apply a ROW entry at its place."""
        change: RowChange = entry.body
        if change.rule not in self._rules:
            return Effect([], [])  # of a replica with other rules
        self._recent.append((entry.xid, entry.place, change))
        changed: list[TopicChange] = []
        stale: list[str] = []
        for user in self._concerned(change):
            state = self._users[user]
            if state.after is None or not self._unseen(state, entry.xid):
                continue
            if self._apply_to(user, state, change):
                stale.append(user)
            elif state.exact and (topics := _topics(state)) != state.topics:
                state.topics = topics
                changed.append(TopicChange(user, topics))
        if change.reload:
            return Effect([], [user for user, state in self._users.items() if state.after is not None])
        return Effect(changed, stale)

    def gaining(self, change: RowChange) -> list[str] | None:
        """The users, connected or not, who may get topics by a change; None when it does not tell."""
        if change.rule not in self._rules:
            return []
        if change.reload:
            return None
        rule = self._rules[change.rule]
        rows = [change.new] if isinstance(rule, RowRule) else [change.old, change.new]
        column = rule.user_column if isinstance(rule, RowRule) else "user"
        if change.action == "truncate":
            return [] if isinstance(rule, RowRule) else None
        named = [row.get(column, ...) for row in rows if row is not None]
        if ... in named or not (named or isinstance(rule, RowRule)):
            return None
        return [values.text(value) for value in named if value is not None]

    def _concerned(self, change: RowChange) -> Iterable[str]:
        """The connected users whom a row change concerns, each once."""
        rule = self._rules[change.rule]
        if change.action == "truncate":
            return list(self._users)
        column = rule.user_column if isinstance(rule, RowRule) else "user"
        named = [
            values.text(row[column])
            for row in (change.old, change.new)
            if row is not None and row.get(column) is not None
        ]
        if isinstance(rule, RowRule):
            named.extend(_owners(self._owners[rule.index].get(old_key(rule, change))))
        return [user for user in dict.fromkeys(named) if user in self._users]

    def _unseen(self, state: _User, xid: int) -> bool:
        return state.snapshot is None or not state.snapshot.saw(xid)

    def _apply_to(self, user: str, state: _User, change: RowChange) -> bool:
        """Apply a change for one user. Returns whether the user must be read anew instead."""
        rule = self._rules[change.rule]
        if isinstance(rule, SqlRule):
            return change.action == "truncate" or any(
                row is not None and row.get("user") is not None and values.text(row["user"]) == user
                for row in (change.old, change.new)
            )
        if change.action == "truncate":
            for key in list(state.rows.get(rule.index, ())):
                self._remove(user, state, rule, key, everything=True)
            return False
        before: Row | None = None
        if change.action != "insert":
            key = old_key(rule, change)
            held = state.rows.get(rule.index, {}).get(key)
            if held is not None:
                before = held.row
                self._remove(user, state, rule, key)
        if change.new is None or change.action == "delete":
            return False
        row = complete(rule, change, before)
        if rule.user_column in row:
            owner = row[rule.user_column]
            if owner is None or values.text(owner) != user:
                return False
        if any(column not in row for column in rule.columns):
            return True
        self._add(user, state, rule, row)
        return False

    # Rows

    def _add(self, user: str, state: _User, rule: RowRule, row: Row) -> None:
        key = row_key(rule, row)
        rows = state.rows.setdefault(rule.index, {})
        held = rows.get(key)
        if held is not None and rule.key:
            self._remove(user, state, rule, key)
        elif held is not None:
            held.count += 1
            return
        rows[key] = _Held(row, tuple(sys.intern(topic) for topic in dict.fromkeys(rule.topics(row))))
        state.counts.update(rows[key].topics)
        owners = self._owners[rule.index]
        owners[key] = _with(owners.get(key), user)

    def _remove(self, user: str, state: _User, rule: RowRule, key: Hashable, *, everything: bool = False) -> None:
        held = state.rows[rule.index][key]
        if held.count > 1 and not everything:
            held.count -= 1
            return
        del state.rows[rule.index][key]
        for topic in held.topics:
            state.counts[topic] -= 1
            if not state.counts[topic]:
                del state.counts[topic]
        self._disown(rule.index, key, user)

    def _disown(self, index: int, key: Hashable, user: str) -> None:
        owners = self._owners[index]
        left = tuple(owner for owner in _owners(owners.get(key)) if owner != user)
        if len(left) > 1:
            owners[key] = left
        elif left:
            owners[key] = left[0]
        else:
            owners.pop(key, None)


def _topics(state: _User) -> frozenset[str]:
    return frozenset(state.counts).union(*state.sql_topics.values())


def _owners(found: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if found is None:
        return ()
    return (found,) if isinstance(found, str) else found


def _with(found: str | tuple[str, ...] | None, user: str) -> str | tuple[str, ...]:
    """Add an owner. Two users can hold one row only between a load that saw it move and one that did not."""
    owners = _owners(found)
    if user in owners:
        assert found is not None
        return found
    return (*owners, user) if owners else user


def row_key(rule: RowRule, row: Row) -> Hashable:
    """A row's identity: its key columns, or all that the rule needs when the table has no key."""
    columns = rule.key or sorted(rule.columns)
    return tuple(_hashable(row.get(column)) for column in columns)


def old_key(rule: RowRule, change: RowChange) -> Hashable:
    """The identity of the row before the change: the WAL tells it only when the key changed."""
    old = change.old
    if old is not None and all(column in old for column in rule.key):
        return row_key(rule, old)
    return row_key(rule, change.new or {})


def complete(rule: RowRule, change: RowChange, before: Row | None) -> Row:
    """The new row, with unchanged TOASTed values taken from what is known of the row before."""
    row = dict(change.new or {})
    for known in (change.old, before):
        if known is not None:
            for column in rule.columns:
                if column not in row and column in known:
                    row[column] = known[column]
    return row


def _hashable(value: Any) -> Hashable:
    return values.text(value) if isinstance(value, (list, dict)) else value
