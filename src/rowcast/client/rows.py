"""A keyed collection that is kept from snapshots and changes: what a table's rows are, as the stream tells."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

Row = dict[str, Any]
_Key = tuple[Any, ...]


class Rows:
    """The rows of a stream's topics.

    `topic` keeps one topic (None: all of the stream's). `key`: the columns that tell rows apart, where no snapshot
    says so. It may be read from any thread; it is changed by the one that reads the stream.
    """

    def __init__(self, topic: str | None = None, key: Iterable[str] = ("id",)) -> None:
        self.stale = False
        """Something was missed and no rows will follow by themselves: fetch them and call `replace`."""
        self._topic = topic
        self._key = tuple(key)
        self._topics: dict[str, dict[_Key, Row]] = {}
        self._staged: dict[str, dict[_Key, Row]] = {}
        self._list: tuple[Row, ...] | None = ()
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def get(self) -> tuple[Row, ...]:
        """The rows, in the order in which they came; the same tuple until something changes. Not to be written to."""
        with self._lock:
            if self._list is None:
                self._list = tuple(row for rows in self._topics.values() for row in rows.values())
            return self._list

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change, in the thread that reads the stream. Returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def replace(self, rows: Iterable[Row], topic: str | None = None) -> None:
        """Put `rows` in the place of all that is known of a topic (None: the one that is kept)."""
        with self._lock:
            self._topics[topic or self._topic or ""] = {self._name(row): row for row in rows}
            self.stale = False
        self._changed()

    def take(self, event: str, data: str) -> None:
        """Take an event of the stream, by its name and its text."""
        if event not in _TAKEN:
            return
        try:
            told = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return  # text that somebody published as such
        if not isinstance(told, dict):
            return
        with self._lock:
            changed = self._take(event, told)
        if changed:
            self._changed()

    def _take(self, event: str, told: dict[str, Any]) -> bool:
        if event == "message":
            return _is_change(told) and self._change(told)
        if event == "rowcast.snapshot":
            return told["topic"] == (self._topic or told["topic"]) and self._page(told)
        if event != "rowcast.reset":
            has = set(told["topics"])
            # A user's own topic is not listed; without a name is what was put in by `replace`.
            return self._keep(lambda topic: not topic or topic.startswith("user:") or topic in has)
        if told.get("snapshot"):
            return False
        self.stale = True
        return True

    def _page(self, page: dict[str, Any]) -> bool:
        topic = page["topic"]
        if page.get("failed"):
            self.stale = True
            return True
        self._key = tuple(page.get("key") or self._key)
        if page["first"]:
            self._staged[topic] = {}
        staged = self._staged.get(topic)
        if staged is None:
            return False
        staged.update((self._name(row), row) for row in page["rows"])
        if not page["last"]:
            return False
        self._topics[topic] = self._staged.pop(topic)
        self.stale = False
        return True

    def _change(self, change: dict[str, Any]) -> bool:
        topic, record = change["topic"], change["record"]
        if change["action"] == "truncate":
            start = topic.removesuffix("*")
            return self._keep(lambda name: not name.startswith(start))
        if topic != (self._topic or topic):
            return False
        rows = self._topics.setdefault(topic, {})
        name = self._name(record)
        if change["action"] == "delete":
            return rows.pop(name, None) is not None
        # An update that changed the key tells the old one among its `changes`.
        was = self._name({**record, **(change.get("changes") or {})})
        before = rows.pop(was, {}) if was != name else rows.get(name, {})
        # A large value that an update left alone is not in its record: the one that is there stays.
        rows[name] = {**before, **record}
        return True

    def _keep(self, keeps: Callable[[str], bool]) -> bool:
        lost = [topic for topic in self._topics if not keeps(topic)]
        for topic in lost:
            del self._topics[topic]
        return bool(lost)

    def _name(self, row: Row) -> _Key:
        return tuple(_hashable(row.get(column)) for column in self._key)

    def _changed(self) -> None:
        with self._lock:
            self._list = None
        for listener in list(self._listeners):
            listener()


_TAKEN = ("message", "rowcast.snapshot", "rowcast.ready", "rowcast.subscriptions", "rowcast.reset")


def _is_change(told: dict[str, Any]) -> bool:
    # Where the envelope is Sequin's, what is published stands alone, and may have an action of its own.
    if "action" not in told or not isinstance(told.get("topic"), str):
        return False
    return told["action"] == "truncate" or isinstance(told.get("record"), dict)


def _hashable(value: Any) -> Any:
    return msgspec.json.encode(value) if isinstance(value, (dict, list)) else value
