"""The past: what users were subscribed to at an earlier place of the log.

A client that comes back with a position missed what its user was subscribed to then, not what they are subscribed to
now. The rows of then are not kept, but they follow from those of now: whoever knows what each change since did to them
takes these changes back, one after the other. What a change did is known where it tells the row before it: under
REPLICA IDENTITY FULL always, else of an INSERT, and of a table whose identity holds all that the rule needs.

Rules are judged on their own: one whose changes do not tell has its present rows also for the past.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rowcast.core import values
from rowcast.core.entry import RowChange
from rowcast.core.position import ORIGIN, Place
from rowcast.core.rules import Row, RowRule, SqlRule
from rowcast.core.subscriptions import complete

MAX_CHANGES = 50_000
"""Changes remembered, counted by user; the oldest are forgotten first."""

MAX_TOPICS = 500_000
"""The same for the topics in them."""


class Span(NamedTuple):
    """A user's topics from a place on."""

    place: Place
    topics: frozenset[str]


class _Done(NamedTuple):
    """What a change did to the topics of a user: by one row, given more than once if several rows give it."""

    place: Place
    rule: int
    taken: tuple[str, ...]
    given: tuple[str, ...]


class Past:
    """What the changes of the rules' tables did, as far back as they tell."""

    def __init__(self, rules: Sequence[RowRule | SqlRule]) -> None:
        self._rules = {rule.index: rule for rule in rules if isinstance(rule, RowRule)}
        self._floors: dict[int, Place] = dict.fromkeys(self._rules, ORIGIN)
        self._users: dict[str, deque[_Done]] = {}
        self._order: deque[tuple[Place, int, str]] = deque()
        self._topics = 0

    def restart(self, place: Place) -> None:
        """Nothing is known of what was before a place."""
        self._floors = dict.fromkeys(self._rules, place)
        self._users.clear()
        self._order.clear()
        self._topics = 0

    def note(self, change: RowChange, place: Place, unasked: Place = ORIGIN) -> None:
        """The next change. Nobody will ask for what was below `unasked`."""
        rule = self._rules.get(change.rule)
        if rule is None:
            return
        while self._order and self._order[0][0] <= unasked:
            self._forget()
        rows = _rows(rule, change)
        if rows is None:
            self._floors[rule.index] = place
            return
        done: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for row, new in zip(rows, (False, True), strict=True):
            owner = None if row is None else row[rule.user_column]
            if row is not None and owner is not None:
                topics = tuple(dict.fromkeys(rule.topics(row)))
                taken, given = done.get(values.text(owner), ((), ()))
                done[values.text(owner)] = (taken, topics) if new else (topics, given)
        for user, (taken, given) in done.items():
            if taken != given:
                self._users.setdefault(user, deque()).append(_Done(place, rule.index, taken, given))
                self._order.append((place, rule.index, user))
                self._topics += len(taken) + len(given)
        while len(self._order) > MAX_CHANGES or self._topics > MAX_TOPICS:
            self._forget()

    def known(self, place: Place) -> bool:
        """Whether all that was done to anybody above a place is known."""
        return all(floor <= place for floor in self._floors.values())

    def spans(self, user: str, after: Place, present: Mapping[int, Counter[str]], others: Iterable[str]) -> list[Span]:
        """A user's topics at a place (the first span's), and wherever they changed since.

        `present` are the topics that the rows of each rule give now, as often as they give them; `others` those that
        they have besides. The rules of which the past is not known are taken to have given then what they give now.
        """
        done = [one for one in self._users.get(user, ()) if one.place > after and self._floors[one.rule] <= after]
        counts: Counter[str] = Counter(others)
        for topics in present.values():
            counts.update(topics)
        for one in reversed(done):
            counts.subtract(one.given)
            counts.update(one.taken)
        spans = [Span(after, _held(counts))]
        for one in done:
            counts.subtract(one.taken)
            counts.update(one.given)
            if (held := _held(counts)) != spans[-1].topics:
                spans.append(Span(one.place, held))
        return spans

    def _forget(self) -> None:
        """Let go of the oldest change."""
        place, rule, user = self._order.popleft()
        done = self._users[user]
        oldest = done.popleft()
        self._topics -= len(oldest.taken) + len(oldest.given)
        if not done:
            del self._users[user]
        self._floors[rule] = max(self._floors[rule], place)


def _rows(rule: RowRule, change: RowChange) -> tuple[Row | None, Row | None] | None:
    """The row before and after a change, each None where there is none; None when they are not known."""
    if change.reload or change.action not in ("insert", "update", "delete"):
        return None
    old: Row | None = None
    new: Row | None = None
    if change.action != "delete":
        new = complete(rule, change, None)
        if any(column not in new for column in rule.columns):
            return None
    if change.action != "insert":
        old = change.old
        if old is None and change.action == "update" and rule.columns <= set(rule.key):
            old = new  # the identity is all that the rule needs, and is told when it changes
        if old is None or any(column not in old for column in rule.columns):
            return None
    return old, new


def _held(counts: Counter[str]) -> frozenset[str]:
    return frozenset(topic for topic, count in counts.items() if count > 0)
