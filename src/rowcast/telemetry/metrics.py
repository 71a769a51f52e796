"""Prometheus metrics, read from the parts when they are scraped: nothing is counted twice, and counting
costs the hot path nothing but integers. No labels with users or topics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rowcast.logs.guard import Guard

if TYPE_CHECKING:
    from rowcast.cast import Rowcast


class Metrics(Collector):
    """The metrics of one Rowcast, as text by `expose`."""

    def __init__(self, cast: Rowcast) -> None:
        self._cast = cast
        self._poisoned: list[Callable[[], int]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def poisoned_by(self, count: Callable[[], int]) -> None:
        """Count also the rows that were skipped elsewhere than in the router."""
        self._poisoned.append(count)

    def expose(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing up front: metrics are known when they are collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the running parts."""
        if not self._cast.running:
            return
        replica, hub = self._cast.replica, self._cast.hub
        yield GaugeMetricFamily("rowcast_streams", "Open streams", value=hub.streams_count)
        states = GaugeMetricFamily("rowcast_stream_state", "Streams by state", labels=["state"])
        for state, count in hub.states().items():
            states.add_metric([state], count)
        yield states
        entries = CounterMetricFamily("rowcast_entries", "Entries dispatched", labels=["source"])
        for source, count in hub.entries.items():
            entries.add_metric([source], count)
        yield entries
        yield CounterMetricFamily("rowcast_deliveries", "Entries given to streams", value=hub.deliveries)
        latency = HistogramMetricFamily("rowcast_delivery_latency_seconds", "Seconds from commit to write")
        latency.add_metric([], hub.latency.buckets(), hub.latency.sum)
        yield latency
        yield CounterMetricFamily("rowcast_resets", "Streams told to refetch", value=hub.wire.resets)
        catchups = CounterMetricFamily("rowcast_catchups", "Streams that fell behind", labels=["cause"])
        for cause, count in hub.catchups.items():
            catchups.add_metric([cause], count)
        yield catchups
        ended = CounterMetricFamily("rowcast_disconnects", "Streams ended", labels=["reason"])
        for reason, count in hub.ended.items():
            ended.add_metric([reason], count)
        yield ended
        refused = CounterMetricFamily(
            "rowcast_refused", "Requests for streams that were told to come back later", labels=["reason"]
        )
        for reason, count in hub.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily(
            "rowcast_poisoned_rows",
            "Rows skipped since a route or rule raised, and webhook records that could not be taken",
            value=replica.router.poisoned + sum(count() for count in self._poisoned),
        )
        yield CounterMetricFamily(
            "rowcast_log_append_failures", "Appends to the log that failed", value=self._cast.append_failures
        )
        reloads = CounterMetricFamily("rowcast_config_reloads", "Reloads of the configuration", labels=["result"])
        for result in ("applied", "refused"):
            reloads.add_metric([result], self._cast.reloads[result])
        yield reloads
        yield GaugeMetricFamily(
            "rowcast_control_pending", "Control entries that wait for the log", value=len(replica.pending)
        )
        if hub.cache is not None:
            cleared = CounterMetricFamily("rowcast_cache_deletions", "Deletions of users' keys", labels=["outcome"])
            cleared.add_metric(["done"], hub.cache.deletions)
            cleared.add_metric(["failed"], hub.cache.failures)
            yield cleared
            yield CounterMetricFamily(
                "rowcast_cache_late", "Deliveries that did not wait for their deletion", value=hub.cache.late
            )
        if hub.absent is not None:
            cleared = CounterMetricFamily(
                "rowcast_cache_absent_deletions", "Deletions for users without a stream", labels=["outcome"]
            )
            cleared.add_metric(["done"], hub.absent.deletions)
            cleared.add_metric(["failed"], hub.absent.failures)
            yield cleared
            yield GaugeMetricFamily(
                "rowcast_cache_absent_waiting", "Topics whose users are to be deleted for", value=hub.absent.waiting
            )
            yield GaugeMetricFamily(
                "rowcast_cache_absent_rows", "Subscription rows known of all users", value=len(hub.absent.audience)
            )
        if replica.bridge is not None:
            messages = CounterMetricFamily("rowcast_bridge_messages", "Messages of the bridge", labels=["outcome"])
            for outcome in ("delivered", "control", "refused"):
                messages.add_metric([outcome], replica.bridge.messages[outcome])
            yield messages
            yield CounterMetricFamily("rowcast_bridge_missed", "Blocks a stream could not take", value=hub.missed)
        yield GaugeMetricFamily("rowcast_leader", "Whether this replica reads the WAL", value=replica.reads_wal)
        if replica.guard is not None:
            reading = replica.log.state()
            yield GaugeMetricFamily("rowcast_slot_held_bytes", "WAL held back by the slots", value=replica.guard.held)
            yield GaugeMetricFamily("rowcast_slot_active", "Whether the WAL is being read", value=reading.ok)
            lag = replica.guard.lag if isinstance(replica.guard, Guard) else 0.0
            if not reading.ok:
                lag = max(lag, time.time() - reading.since)
            yield GaugeMetricFamily("rowcast_wal_lag_seconds", "Seconds since the WAL was read", value=lag)
