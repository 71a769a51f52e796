"""Every source passes the conformance suite."""

from __future__ import annotations

from pathlib import Path

from rowcast.sources import debezium, sequin
from rowcast.testing.source_suite import SourceSuite

DATA = Path(__file__).parents[1] / "data"


def samples(sender: str, **names: str) -> dict[str, bytes]:
    return {action: (DATA / sender / f"{name}.json").read_bytes() for action, name in names.items()}


class TestSequin(SourceSuite):
    parse = staticmethod(sequin.parse)
    samples = samples("sequin", insert="insert", update="update", delete="delete", read="read")
    table = "public.trades"


class TestDebezium(SourceSuite):
    parse = staticmethod(debezium.parse)
    samples = samples("debezium", insert="create", update="update", delete="delete", read="read", truncate="truncate")
    table = "public.trades"
