"""Pages: the rows of a snapshot as SSE blocks.

A row goes through the very code that a change goes through: the route's `when` and template say to which topics it
belongs, `ChangeBody` writes it. So it looks exactly like the record of a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from rowcast.core import sse
from rowcast.core.body import ChangeBody
from rowcast.core.change import Change, RawTuple, Relation
from rowcast.core.plan import BoundRoute, Plan
from rowcast.core.routes import Route

PAGE_BYTES = 64 * 1024
"""Bytes of a page, unless a single row is larger."""

SMALLEST_ROW = 64
"""Bytes that a row may have however long the names of topic and table are."""

_encode = msgspec.json.encode


class Sink(Protocol):
    """Where the blocks of one topic go."""

    def append(self, block: bytes) -> None:
        """Take a block. Raises `Overflow` when there is no room."""
        ...

    def clear(self) -> None:
        """Forget all blocks."""
        ...


class Overflow(Exception):
    """A topic's rows take more room than they may have."""


class TopicPages:
    """Writes the rows of one topic. `position` is where the snapshot's rows join the tail, `max_event` in bytes.

    `finish` once after all rows.
    """

    def __init__(self, topic: str, sink: Sink, *, position: str, max_event: int) -> None:
        self.topic = topic
        self.failed = ""
        """Why there are no rows: "too_large", "timeout", or "" while all is well."""
        self._sink = sink
        self._position = position
        self._max_event = max_event
        self._source: dict[str, Any] = {}
        self._rows: list[msgspec.Raw] = []
        self._cut: list[int] = []
        self._size = 0
        self._room = 0
        self._first = True

    def begin(self, route: Route, relation: Relation) -> None:
        """The rows that follow come from another table or route."""
        if self._rows:
            self._flush()
        key = list(route.key or (column.name for column in relation.columns if column.key))
        self._source = {"key": key, "metadata": {"table_schema": relation.schema, "table_name": relation.table}}
        self._room = max(self._max_event - len(self._block([], last=False)), SMALLEST_ROW)

    def add(self, body: ChangeBody) -> None:
        """Add a row."""
        if self.failed:
            return
        record, cut = body.row(self._room)
        if self._rows and self._size + len(record) > min(PAGE_BYTES, self._room):
            self._flush()
        if self.failed:
            return
        if cut:
            self._cut.append(len(self._rows))
        self._rows.append(msgspec.Raw(record))
        self._size += len(record) + 1

    def fail(self, reason: str) -> None:
        """There will be no rows."""
        self.failed = reason
        self._rows.clear()
        self._cut.clear()
        self._sink.clear()
        self._first = True

    def finish(self) -> None:
        """That was all: the last page says so, and the only one of a topic without rows."""
        if not self.failed:
            self._flush(last=True)
        if self.failed:
            data = {"topic": self.topic, "rows": [], "failed": self.failed, "position": self._position}
            self._sink.append(_frame(data | {"first": True, "last": True}))

    def _flush(self, *, last: bool = False) -> None:
        block = self._block(self._rows, last=last)
        try:
            self._sink.append(block)
        except Overflow:
            self.fail("too_large")
            return
        self._rows, self._cut, self._size, self._first = [], [], 0, False

    def _block(self, rows: list[msgspec.Raw], *, last: bool) -> bytes:
        data: dict[str, Any] = {"topic": self.topic, "rows": rows, **self._source, "position": self._position}
        if self._cut and rows:
            data["truncated"] = self._cut
        return _frame(data | {"first": self._first, "last": last})


class RouteRows:
    """Puts rows of a route's table on those of `topics` that the route sends them to."""

    def __init__(self, route: Route, relation: Relation, topics: Iterable[TopicPages]) -> None:
        self.poisoned = 0
        """Rows that were left out since the route raised: it would not send their changes either."""
        self._route = route
        self._relation = relation
        bound = BoundRoute(route, relation)
        self._form = bound.form
        self._plan = Plan(relation, [], [bound])
        self._topics = {one.topic: one for one in topics}
        for one in self._topics.values():
            one.begin(route, relation)

    def add(self, raw: RawTuple) -> None:
        """Take a row of the table."""
        route = self._route
        assert route.template is not None
        row, _ = self._plan.pick(raw)
        try:
            if route.when is not None and not route.when.holds(row):
                return
            topics = route.template.render(row)
        except Exception:  # as the router does with such a row
            self.poisoned += 1
            return
        change: Change | None = None
        for topic in topics:
            pages = self._topics.get(topic)
            if pages is not None:
                change = change or Change("insert", self._relation, raw, None)
                pages.add(ChangeBody(change, topic, self._form))


def _frame(data: dict[str, Any]) -> bytes:
    return sse.frame(_encode(data), event="rowcast.snapshot")
