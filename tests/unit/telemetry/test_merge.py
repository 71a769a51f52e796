"""Metrics of several workers, as one."""

from __future__ import annotations

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from rowcast.telemetry.merge import Family, families, merge, text


def worker(streams: int, held: int, entries: dict[str, int], buckets: tuple[int, int]) -> list[Family]:
    counter = CounterMetricFamily("rowcast_entries", "Entries", labels=["source"])
    for source, count in entries.items():
        counter.add_metric([source], count)
    histogram = HistogramMetricFamily("rowcast_latency_seconds", "Seconds")
    histogram.add_metric([], [("0.1", buckets[0]), ("+Inf", buckets[1])], sum_value=buckets[1] / 2)
    return families(
        [
            GaugeMetricFamily("rowcast_streams", "Streams", value=streams),
            GaugeMetricFamily("rowcast_slot_held_bytes", "Held", value=held),
            counter,
            histogram,
        ]
    )


def values(told: list[Family]) -> dict[tuple[str, str], float]:
    parsed = text_string_to_metric_families(text(told).decode())
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value for family in parsed for sample in family.samples
    }


def test_counts_are_summed_and_what_all_see_is_told_once() -> None:
    found = values(merge([worker(3, 70, {"data": 5}, (1, 4)), worker(4, 90, {"data": 2, "control": 1}, (2, 3))]))
    assert found == {
        ("rowcast_streams", ""): 7,
        ("rowcast_slot_held_bytes", ""): 90,
        ("rowcast_entries_total", "data"): 7,
        ("rowcast_entries_total", "control"): 1,
        ("rowcast_latency_seconds_bucket", "0.1"): 3,
        ("rowcast_latency_seconds_bucket", "+Inf"): 7,
        ("rowcast_latency_seconds_count", ""): 7,
        ("rowcast_latency_seconds_sum", ""): 3.5,
    }


def test_of_a_dead_worker_only_what_it_counted_lasts() -> None:
    told = worker(3, 70, {"data": 5}, (1, 4))
    assert {family.name for family in told if family.lasts} == {"rowcast_entries", "rowcast_latency_seconds"}


def test_one_worker_is_told_as_it_is() -> None:
    told = worker(3, 70, {"data": 5}, (1, 4))
    assert values(merge([told])) == values(told)
