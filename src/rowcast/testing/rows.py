"""What a client makes of a stream with snapshots: the rows of its topics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from rowcast.testing.stream import Block


class Rows:
    """The rows of each topic by one of their columns, `key`, as the blocks of one stream after the other tell.

    Raises AssertionError on what can't be when a snapshot and its tail fit: a row twice, a change of no row.
    """

    def __init__(self, key: str = "id") -> None:
        self.rows: dict[str, dict[Any, Any]] = {}
        self.complete: set[str] = set()
        """The topics whose rows are all there."""
        self.pages: list[Any] = []
        self.position = ""
        """Where the stream can be resumed from."""
        self._key = key

    def take(self, blocks: Iterable[Block]) -> Self:
        """Go on with these blocks."""
        for block in blocks:
            if block.data is not None:
                self._event(block)
            self.position = block.id or self.position
        return self

    def _event(self, block: Block) -> None:
        if block.event == "rowcast.snapshot":
            assert not block.id, "a page has no position"
            self._page(block.data)
        elif block.event in ("rowcast.ready", "rowcast.subscriptions", "rowcast.reset"):
            for topic in self.rows.keys() - set(block.data["topics"]):
                if not topic.startswith("user:"):
                    del self.rows[topic]
            self.complete &= self.rows.keys()
            self.complete -= set(block.data["snapshot"])
        elif block.event == "message" and "action" in block.data:
            self._change(block.data)

    def _page(self, page: Any) -> None:
        self.pages.append(page)
        topic = page["topic"]
        rows = self.rows[topic] = {} if page["first"] else self.rows[topic]
        for row in page["rows"]:
            assert row[self._key] not in rows, f"twice: {row}"
            rows[row[self._key]] = row
        if page["last"]:
            self.complete.add(topic)

    def _change(self, event: Any) -> None:
        topic = event["topic"]
        if event["action"] == "truncate":
            for name, rows in self.rows.items():
                if name == topic or (topic.endswith("*") and name.startswith(topic.removesuffix("*"))):
                    rows.clear()
            return
        if topic not in self.complete:
            return  # lost before its rows were read
        rows = self.rows[topic]
        key = event["record"][self._key]
        if event["action"] == "delete":
            assert key in rows, f"a delete of no row: {event}"
            del rows[key]
            return
        assert event["action"] != "insert" or key not in rows, f"twice: {event}"
        rows[key] = event["record"]
