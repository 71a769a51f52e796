"""The audience: all users of a rule's table by topic, whether or not they have a stream open.

The table is read once, in one snapshot (`begin`, `Reading.add`, `join`); from then on its row changes are applied as
they come by in the log (`apply`), and the two are joined by transaction id, as `subscriptions` does it for the
connected users. While it is read anew, what was known goes on to be used.

Whoever uses it asks for "everybody whose cache may be stale": a user too many does no harm, one too few does. So a row
of which a change does not tell enough keeps the topics that it gave, until the table has been read anew (`stale`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rowcast.core import values
from rowcast.core.entry import Entry, RowChange, user_topic
from rowcast.core.position import Place
from rowcast.core.rules import RowRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.subscriptions import complete, old_key, row_key

Row = dict[str, Any]

SHORT = 16
"""Characters of a text that Postgres surely stores in its row: what is that short is never left out of a change."""


class _Known(NamedTuple):
    """What is kept of a row: its user, their topics by it, and the values that a later change may leave out."""

    user: str
    topics: tuple[str, ...]
    long: Row | None


class _Index:
    """The rows of one rule. Of a table without a key, `copies` counts rows that are equal to one of `rows`."""

    __slots__ = ("copies", "rows", "rule", "topics")

    def __init__(self, rule: RowRule) -> None:
        self.rule = rule
        self.rows: dict[Hashable, _Known] = {}
        self.copies: Counter[Hashable] = Counter()
        # The one user by one row; else each user with the number of their rows.
        self.topics: dict[str, str | dict[str, int]] = {}

    def add(self, row: Row) -> None:
        owner = row.get(self.rule.user_column)
        if owner is None:
            return
        topics = tuple(sys.intern(topic) for topic in dict.fromkeys(self.rule.topics(row)))
        long = {name: row[name] for name in self.rule.columns if name in row and _long(row[name])} or None
        if topics or long:
            self.put(_key(self.rule, row), _Known(sys.intern(values.text(owner)), topics, long))

    def put(self, key: Hashable, known: _Known) -> None:
        if key in self.rows:
            if not self.rule.key:
                self.copies[key] += 1
                return
            self.pop(key)
        self.rows[key] = known
        for topic in known.topics:
            found = self.topics.get(topic)
            if found is None:
                self.topics[topic] = known.user
                continue
            if isinstance(found, str):
                found = self.topics[topic] = {found: 1}
            found[known.user] = found.get(known.user, 0) + 1

    def pop(self, key: Hashable) -> _Known | None:
        known = self.rows.get(key)
        if known is None:
            return None
        if key in self.copies:
            self.copies[key] -= 1
            if not self.copies[key]:
                del self.copies[key]
            return known
        del self.rows[key]
        for topic in known.topics:
            found = self.topics[topic]
            if isinstance(found, str):
                del self.topics[topic]
                continue
            found[known.user] -= 1
            if not found[known.user]:
                del found[known.user]
            if not found:
                del self.topics[topic]
        return known


class Reading:
    """The table as it is being read."""

    def __init__(self, rules: Iterable[RowRule], recent: Iterable[tuple[int, RowChange]]) -> None:
        self.indexes = {rule.index: _Index(rule) for rule in rules}
        self.recent = list(recent)

    def add(self, rule: int, row: Row) -> None:
        """Take over a row that was read."""
        self.indexes[rule].add(row)


class Audience:
    """Who is subscribed to what by `rules`.

    A user may be told more than once; see also the module's docstring.
    """

    def __init__(self, rules: Sequence[RowRule]) -> None:
        self.rules = tuple(rules)
        self._indexes = {rule.index: _Index(rule) for rule in rules}
        self._reading: Reading | None = None
        self._snapshot: Snapshot | None = None
        self._after: Place | None = None
        self.known = False
        """Whether it was read."""
        self.stale = True
        """Whether it must be read (again)."""

    def __len__(self) -> int:
        return sum(len(index.rows) for index in self._indexes.values())

    # Reading

    def begin(self, recent: Iterable[tuple[int, RowChange]]) -> Reading:
        """Begin to read; the snapshot is to be taken after this.

        `recent`: the changes that came by and may not be seen by that snapshot, with their xids (`Subscriptions`
        keeps them).
        """
        self.stale = False
        self._reading = Reading(self.rules, (item for item in recent if item[1].rule in self._indexes))
        return self._reading

    def join(self, reading: Reading, snapshot: Snapshot, after: Place) -> None:
        """Take over what was read in `snapshot`. Changes that it saw may come by until the hub has passed `after`."""
        if reading is not self._reading:
            return  # the log began anew meanwhile
        self._reading = None
        self._indexes = reading.indexes
        self._snapshot, self._after = snapshot, after
        self.known = True
        for xid, change in reading.recent:
            if not snapshot.saw(xid):
                self._apply(change)

    def failed(self) -> None:
        """It could not be read."""
        self._reading = None
        self.stale = True

    def restart(self) -> None:
        """The log had a gap, or nobody keeps this up to date any more: nothing is known."""
        self._indexes = {rule.index: _Index(rule) for rule in self.rules}
        self._reading = self._snapshot = self._after = None
        self.known, self.stale = False, True

    # Changes

    def apply(self, entry: Entry) -> _Known | None:
        """Apply a ROW entry. Returns what was known of the row until now, if it is another row now."""
        change: RowChange = entry.body
        if change.rule not in self._indexes:
            return None
        if self._reading is not None:
            self._reading.recent.append((entry.xid, change))
        if not self.known or (self._snapshot is not None and self._snapshot.saw(entry.xid)):
            return None
        return self._apply(change)

    def settle(self, head: Place) -> None:
        """The hub passed a place."""
        if self._after is not None and self._after <= head:
            self._snapshot = self._after = None

    def _apply(self, change: RowChange) -> _Known | None:
        index = self._indexes[change.rule]
        rule = index.rule
        if change.reload:
            self.stale = True
            return None
        if change.action == "truncate":
            # Another index: whoever goes through the old one is not disturbed.
            self._indexes[rule.index] = _Index(rule)
            return None
        before = None if change.action == "insert" else index.pop(_unwrapped(old_key(rule, change)))
        if change.new is None or change.action == "delete":
            return before
        row = complete(rule, change, before.long if before is not None else None)
        if before is not None:
            row.setdefault(rule.user_column, before.user)
        if all(column in row for column in rule.columns):
            index.add(row)
            return before
        self.stale = True
        if before is not None:
            index.put(_key(rule, row), before)
        return None

    # Who

    def users(self, topic: str) -> Iterator[str]:
        """The users who have a topic now, and whose own topic it is."""
        return _having(tuple(self._indexes.values()), topic)

    def matching(self, prefix: str) -> Iterator[str | None]:
        """The users who have any topic with a prefix; None for every row that gives none, so that whoever takes them
        can take a pause."""
        return _matching(tuple(self._indexes.values()), prefix)


def _having(indexes: tuple[_Index, ...], topic: str) -> Iterator[str]:
    if topic.startswith(user_topic("")):
        yield topic[len(user_topic("")) :]
    for index in indexes:
        found = index.topics.get(topic)
        if isinstance(found, str):
            yield found
        elif found is not None:
            yield from list(found)


def _matching(indexes: tuple[_Index, ...], prefix: str) -> Iterator[str | None]:
    for index in indexes:
        for user, topics, _ in list(index.rows.values()):
            if user_topic(user).startswith(prefix) or any(topic.startswith(prefix) for topic in topics):
                yield user
            else:
                yield None


def _key(rule: RowRule, row: Row) -> Hashable:
    return _unwrapped(row_key(rule, row))


def _unwrapped(key: Hashable) -> Hashable:
    """Most keys are one column: a tuple around it would take as much memory again."""
    return key[0] if isinstance(key, tuple) and len(key) == 1 else key


def _long(value: Any) -> bool:
    """Whether Postgres may store a value apart from its row, and then leave it out of a change."""
    if value is None or isinstance(value, (bool, int, float)):
        return False
    return not isinstance(value, str) or len(value) * (1 if value.isascii() else 4) > SHORT
