"""What the WAL says, by a model that knows nothing of hubs, rings and streams.

It is told every entry in the order of the log, and answers for any place: the topics of a user, the rows of a topic,
and which entries a user was to be given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import Any

from rowcast.core.entry import Entry, Kind, RowChange
from rowcast.core.position import ORIGIN, Place
from rowcast.testing.simulated import TABLE_TOPICS, USERS

NEVER: Place = (2**40, 0)


class Model:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        """DATA and SWEEP."""
        self.by_number: dict[int, Entry] = {}
        self.untold: list[Place] = []
        """Changes of the rule's table that do not tell the row before."""
        self._subs: dict[int, dict[str, Any]] = {}
        self._topics: dict[str, list[tuple[Place, frozenset[str]]]] = {user: [(ORIGIN, frozenset())] for user in USERS}
        self._rows: dict[tuple[str, int], list[tuple[Place, int | None]]] = defaultdict(list)

    def add(self, entry: Entry) -> None:
        """Replay the next entry."""
        if entry.kind is Kind.ROW:
            self._change(entry.body, entry.place)
        elif entry.kind is not Kind.CONTROL:
            event = entry.body.data
            self.entries.append(entry)
            self.by_number[event["number"]] = entry
            if entry.kind is Kind.SWEEP:
                for (topic, _), states in self._rows.items():
                    if topic.startswith(entry.topic):
                        states.append((entry.place, None))
            elif "row" in event:
                version = event["version"] if event["action"] == "upsert" else None
                self._rows[entry.topic, event["row"]].append((entry.place, version))

    def _change(self, change: RowChange, place: Place) -> None:
        if change.action == "truncate":
            self._subs.clear()
            self.untold.append(place)
        elif change.action == "delete":
            assert change.old is not None
            del self._subs[change.old["id"]]
            if "topics" not in change.old:
                self.untold.append(place)
        else:
            assert change.new is not None
            number = change.new["id"]
            self._subs[number] = self._subs.get(number, {}) | change.new
            if change.action == "update" and change.old is None:
                self.untold.append(place)
        for user, states in self._topics.items():
            rows = [row for row in self._subs.values() if row["user"] == user and row["on"]]
            topics = frozenset(topic for row in rows for topic in row["topics"])
            if topics != states[-1][1]:
                states.append((place, topics))

    # Questions

    def topics(self, user: str, place: Place) -> frozenset[str]:
        """What the rule gives a user at a place."""
        states = self._topics[user]
        return states[bisect_right(states, place, key=lambda state: state[0]) - 1][1]

    def since(self, user: str, topic: str, place: Place) -> Place | None:
        """Since when the rule gives a user a topic that it gives them at a place; None: it does not."""
        since: Place | None = None
        for start, topics in self._topics[user]:
            if start > place:
                break
            since = (since or start) if topic in topics else None
        return since

    def tables(self, place: Place) -> dict[str, dict[int, int]]:
        """The rows of each topic at a place, with their versions."""
        tables: dict[str, dict[int, int]] = {topic: {} for topic in TABLE_TOPICS}
        for (topic, row), states in self._rows.items():
            index = bisect_right(states, place, key=lambda state: state[0]) - 1
            version = states[index][1] if index >= 0 else None
            if version is not None:
                tables[topic][row] = version
        return tables

    def died(self, topic: str, row: int, version: int) -> Place:
        """The place from which on a row was not on a topic as it was in a version."""
        states = self._rows[topic, row]
        index = next(i for i, state in enumerate(states) if state[1] == version)
        return states[index + 1][0] if index + 1 < len(states) else NEVER

    def told(self, after: Place, upto: Place) -> bool:
        """Whether all changes of the rule's table above one place and up to another tell the row before."""
        return bisect_right(self.untold, after) == bisect_right(self.untold, upto)
