"""Metrics of several workers as one: what a scrape of any of them tells.

Counters and histograms are summed, over the dead ones too as they were last seen: a counter that went back would make
Prometheus take the whole rest for new. Gauges are of the living only, summed unless `_GAUGES` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_GAUGES: dict[str, Callable[[float, float], float]] = {
    # Every worker tells the same of the database.
    "rowcast_slot_held_bytes": max,
    "rowcast_slot_active": min,
    "rowcast_wal_lag_seconds": max,
    # With a redis log one of them leads, with a postgres log every one reads.
    "rowcast_leader": max,
}


class Sample(msgspec.Struct):
    """One sample of a family."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct):
    """A metric with its samples, as it travels between workers."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]

    @property
    def lasts(self) -> bool:
        """Whether it counts also when its worker is dead."""
        return self.type in ("counter", "histogram")


def families(metrics: Iterable[Metric]) -> list[Family]:
    """Metrics, ready to travel."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [Sample(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples],
        )
        for metric in metrics
    ]


def merge(workers: Iterable[list[Family]]) -> list[Family]:
    """The families of several workers as one list."""
    merged: dict[str, Family] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], Sample] = {}
    for worker in workers:
        for family in worker:
            mine = merged.setdefault(family.name, Family(family.name, family.documentation, family.type, []))
            for sample in family.samples:
                key = (family.name, sample.name, tuple(sorted(sample.labels.items())))
                known = values.get(key)
                if known is None:
                    values[key] = made = Sample(sample.name, sample.labels, sample.value)
                    mine.samples.append(made)
                else:
                    join = _GAUGES.get(family.name) if family.type == "gauge" else None
                    known.value = join(known.value, sample.value) if join else known.value + sample.value
    return list(merged.values())


def text(merged: Iterable[Family]) -> bytes:
    """The Prometheus text format, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Given(merged))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, given: Iterable[Family]) -> None:
        self._given = list(given)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for family in self._given:
            metric = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric
