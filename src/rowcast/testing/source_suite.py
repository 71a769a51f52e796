"""The conformance suite for sources: what the reading of a webhook's body promises, as tests.

A source is a function `parse(body) -> Delivery` (`rowcast.sources.records`), as `sources.sequin` and `sources.debezium`
have it. Its author inherits from `SourceSuite` in a test module:

    class TestMine(SourceSuite):
        parse = staticmethod(mine.parse)
        samples = {"insert": b"…", "update": b"…", "delete": b"…"}
        table = "public.trades"

`samples` are bodies with one record each, of the actions that there are, all of `table` and with a column `key`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from rowcast.core.routes import Route
from rowcast.deliveries import MemoryDeliveries
from rowcast.errors import BadRequest
from rowcast.intake import Intake
from rowcast.ports import Draft
from rowcast.sources.records import Delivery, Record

_BROKEN = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"\xff\xfe",
    b'{"data":[]}',
    b'{"data":[{}]}',
    b"[" * 2000,
    b"<html>",
]


class SourceSuite:
    """Inherit from it; see the module's docstring."""

    parse: ClassVar[Callable[[bytes], Delivery]]
    samples: ClassVar[Mapping[str, bytes]]
    table: ClassVar[str]
    key: ClassVar[str] = "id"
    batches: ClassVar[bool] = True
    """Whether the sender may send several records at once."""

    def record(self, action: str) -> Record:
        """The one record of a sample."""
        delivery = type(self).parse(self.samples[action])
        assert delivery.refused == []
        [record] = delivery.records
        assert isinstance(record, Record)
        return record

    def test_a_record_tells_what_happened_and_to_which_row(self) -> None:
        """Action, table, and the row after it, or before it where it is gone; values as JSON texts."""
        for action in self.samples:
            record = self.record(action)
            assert record.action == action
            assert record.name == self.table
            if action == "truncate":
                continue
            row = record.old if action == "delete" else record.new
            assert row is not None
            assert row[self.key] is not None
            for value in (*(record.new or {}).values(), *(record.old or {}).values()):
                assert value is None or msgspec.json.decode(value) is not NotImplemented
            assert record.commit_time is None or record.commit_time > 10**15, "in microseconds since 1970"

    def test_a_delivery_that_is_sent_again_is_known_again(self) -> None:
        """The key depends on the record alone, and no two records have the same."""
        for action in self.samples:
            assert self.record(action).key == self.record(action).key
        keys = [self.record(action).key for action in self.samples]
        assert all(keys), "a record without a key comes twice when it is sent twice"
        assert len(set(keys)) == len(keys)

    def test_whatever_comes_is_read_or_refused_in_words(self) -> None:
        """A body is a delivery or a `BadRequest`; nothing else is raised, and nothing is lost without a word."""
        for body in [*_BROKEN, *self._damaged()]:
            with contextlib.suppress(BadRequest):
                assert all(refused.reason for refused in type(self).parse(body).refused)

    def _damaged(self) -> list[bytes]:
        """The samples, cut off and with a byte changed, at many places."""
        damaged = []
        for body in self.samples.values():
            step = max(1, len(body) // 60)
            for at in range(0, len(body), step):
                damaged += [body[:at], body[:at] + b"\x00" + body[at + 1 :], body[:at] + b"{" + body[at:]]
        return damaged

    async def test_records_go_through_the_routes_into_the_log_once(self) -> None:
        """In their order, however often they are sent."""
        appended: list[Draft] = []

        async def append(draft: Draft) -> None:
            appended.append(draft)

        route = Route.from_function(self.table, lambda change: "all")
        intake = Intake([route], append, MemoryDeliveries(), max_event=1 << 20)
        for body in itertools.chain(self.samples.values(), self.samples.values()):
            await intake.take(type(self).parse(body))
        events: list[Any] = [msgspec.json.decode(draft.data) for draft in appended]
        assert [event["action"] for event in events if event["action"] != "truncate"] == [
            action for action in self.samples if action != "truncate"
        ]
        for event in events:
            schema, _, table = self.table.partition(".")
            assert (event["metadata"]["table_schema"], event["metadata"]["table_name"]) == (schema, table)

    def test_several_samples_at_once_are_several_records(self) -> None:
        """As an array, where the sender may batch: in their order."""
        bodies = [body for action, body in self.samples.items() if action != "truncate"]
        if self.batches:
            delivery = type(self).parse(b"[" + b",".join(bodies) + b"]")
            assert [record.action for record in delivery.records if isinstance(record, Record)] == [
                action for action in self.samples if action != "truncate"
            ]
