"""Fan-out: what a delivery costs, how many a second there can be, and how late they are.

Each server runs alone on one core, the load generator on another; all get the same events of 150 bytes at the
same offered rate. Latency counts from the moment at which an event was due. A figure is the median of the runs.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from benchmarks import servers
from benchmarks.processes import Load
from benchmarks.servers import Server

GOOD_P99 = 250.0
"""Milliseconds: later than this, a delivery is no live one."""

LADDER = (0.06, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
"""Millions of deliveries a second that are offered, one after the other."""


class Shape(NamedTuple):
    """Who listens to what: `streams` streams with `each` of `topics` topics."""

    streams: int = 5_000
    topics: int = 1
    each: int = 1

    def topics_of(self, stream: int) -> list[int]:
        """The topics of one stream: spread, so that each topic has as many streams as any other."""
        return [(stream * self.each + n) % self.topics for n in range(self.each)]

    @property
    def fan(self) -> float:
        """Deliveries per event."""
        return self.streams * self.each / self.topics


class Run(NamedTuple):
    """One offered rate on one server."""

    offered: float
    delivered: float
    """Deliveries a second while it was published."""
    complete: float
    """Part of the due deliveries that came in the end."""
    cpu: float
    """Microseconds of the server's CPU per delivery."""
    p50: float
    p99: float
    most: float
    load: float
    """Part of a core that the load generator used."""

    @property
    def good(self) -> bool:
        """Whether everything came, in time."""
        return self.complete > 0.999 and self.p99 < GOOD_P99


def opened(server: Server, shape: Shape) -> Load:
    """The load generator with all streams of a shape open."""
    return settled(server, [server.request(n, shape.topics_of(n)) for n in range(shape.streams)])


def settled(server: Server, requests: list[str]) -> Load:
    """The load generator with a stream open for each request, for as long as the server needs to settle."""
    load = Load([server.url], requests, len(requests), mark=server.mark)
    time.sleep(server.settles)
    return load


def offer(server: Server, load: Load, shape: Shape, deliveries: float, seconds: float) -> Run:
    """Offer so many deliveries a second, wait for all of them (at most as long again and 10 s), and count."""
    rate = deliveries / shape.fan
    expected = int(rate * seconds) * shape.fan
    load.zero()
    before, began, load_before = server.cpu(), time.monotonic(), load.report()["cpu"]
    server.publish(rate, seconds, topics=shape.topics)
    report: dict[str, Any] = {"events": 0}
    while time.monotonic() - began < seconds * 2 + 10:
        time.sleep(0.25)
        last, report = report["events"], load.report()
        # Everything is here; or nothing came for a while after its time, so that nothing will.
        if report["events"] >= expected or (time.monotonic() - began > seconds + 3 and report["events"] == last):
            break
    used, load_used = server.cpu() - before, report["cpu"] - load_before
    figures = report["groups"][0]
    span = max(report["spread"] / 1e6, seconds)
    events = max(report["events"], 1)
    return Run(
        deliveries, report["events"] / span, report["events"] / expected, used / events * 1e6,
        figures["p50"] / 1e3, figures["p99"] / 1e3, figures["max"] / 1e3, load_used / span,
    )  # fmt: skip


def kinds() -> list[type[Server]]:
    """The servers to compare; nchan where it is installed."""
    found: list[type[Server]] = [servers.Rowcast, servers.Floor]
    return [*found, *([servers.Nchan] if servers.Nchan.available() else []), servers.SseStarlette]


def fan_out(runs: int, seconds: float) -> list[str]:
    """5,000 streams of one topic, 250,000 deliveries a second offered."""
    shape = Shape()
    lines = [
        "## One topic, 5,000 streams, 250,000 deliveries/s offered",
        "",
        "| server | CPU µs a delivery | × floor | delivered/s | p50 ms | p99 ms | all came |",
        "|---|---|---|---|---|---|---|",
    ]
    results: dict[str, list[Run]] = {}
    for _ in range(runs):
        for kind in kinds():
            with kind() as server, opened(server, shape) as load:
                offer(server, load, shape, 50_000, 1.0)
                results.setdefault(kind.name, []).append(offer(server, load, shape, 250_000, seconds))
    for name, figures in results.items():
        ratio = statistics.median(
            run.cpu / floor.cpu for run, floor in zip(figures, results[servers.Floor.name], strict=True)
        )
        run = _median(figures)
        lines.append(
            f"| {name} | {run.cpu:.2f} | {ratio:.2f} | {run.delivered:,.0f} | {run.p50:.1f} | {run.p99:.1f} "
            f"| {run.complete:.1%} |"
        )
    return lines


def most(runs: int, seconds: float) -> list[str]:
    """The most deliveries a second that all come, with a p99 under 250 ms: one topic."""
    return _most("one topic, 5,000 streams", Shape(), runs, seconds)


def personal(runs: int, seconds: float) -> list[str]:
    """The most deliveries a second with a p99 under 250 ms: 1,000 topics, 20 for each stream."""
    return _most("1,000 topics, 5,000 streams with 20 each", Shape(5_000, 1_000, 20), runs, seconds)


def _most(title: str, shape: Shape, runs: int, seconds: float) -> list[str]:
    lines = [
        f"## The most delivered with a p99 under {GOOD_P99:g} ms: {title}",
        "",
        "| server | deliveries/s | CPU µs a delivery | p99 ms | load's core | next step failed with |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds():
        found = [_climb(kind, shape, seconds) for _ in range(runs)]
        found.sort(key=lambda pair: pair[0].delivered if pair[0] else 0.0)
        best, failed = found[len(found) // 2]
        how = "–" if failed is None else f"{failed.offered:,.0f}: p99 {failed.p99:,.0f} ms, {failed.complete:.0%} came"
        if best is None:
            lines.append(f"| {kind.name} | under {LADDER[0] * 1e6:,.0f} | – | – | – | {how} |")
        else:
            lines.append(
                f"| {kind.name} | {best.offered:,.0f} | {best.cpu:.2f} | {best.p99:.0f} | {best.load:.0%} | {how} |"
            )
    return lines


def _climb(kind: type[Server], shape: Shape, seconds: float) -> tuple[Run | None, Run | None]:
    best = None
    with kind() as server, opened(server, shape) as load:
        offer(server, load, shape, LADDER[0] * 1e6, 0.5)
        for step in LADDER:
            run = offer(server, load, shape, step * 1e6, seconds)
            if not run.good:
                return best, run
            best = run
    return best, None


def last_stream(runs: int, seconds: float) -> list[str]:
    """One event to 5,000 streams: when the last one has it. And one event to one stream, idle."""
    lines = [
        "## One event",
        "",
        "| server | to the last of 5,000 streams, ms | × floor | to one idle stream, ms | × floor |",
    ]
    lines.append("|---|---|---|---|---|")
    results: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(runs):
        for kind in kinds():
            last, single = results.setdefault(kind.name, ([], []))
            for streams, found, field in ((5_000, last, "max"), (1, single, "p50")):
                shape = Shape(streams)
                with kind() as server, opened(server, shape) as load:
                    figures = []
                    for _ in range(7 if streams > 1 else 1):
                        load.zero()
                        count = 1 if streams > 1 else 300
                        server.publish(count * 2 if streams > 1 else 300, 0.5 if streams > 1 else 1.0, now=True)
                        deadline = time.monotonic() + 5
                        report = load.report()
                        while report["events"] < count * streams and time.monotonic() < deadline:
                            time.sleep(0.05)
                            report = load.report()
                        figures.append(report["groups"][0][field] / 1e3)
                    found.append(statistics.median(figures))
    floors = results[servers.Floor.name]
    for name, (last, single) in results.items():
        ratios = [
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in ((last, floors[0]), (single, floors[1]))
        ]
        lines.append(
            f"| {name} | {statistics.median(last):.1f} | {ratios[0]:.2f} "
            f"| {statistics.median(single):.3f} | {ratios[1]:.2f} |"
        )
    return lines


def private(runs: int, seconds: float) -> list[str]:
    """A private event's latency while a topic of 5,000 streams gets a million deliveries a second."""
    lines = [
        "## Private events (100/s, one stream each) beside a hot topic of 5,000 streams",
        "",
        "| server | hot topic, deliveries/s offered | hot p99 ms | private p50 ms | private p99 ms |",
        "|---|---|---|---|---|",
    ]
    for kind in (servers.Rowcast,):
        for offered in (250_000, 1_000_000):
            rows = []
            for _ in range(runs):
                with kind() as server:
                    requests = [server.request(n, [0, 1 + n]) for n in range(5_000)]
                    with settled(server, requests) as load:
                        load.zero()
                        server.publish(100, seconds, topics=5_000, first=1, group=1)
                        server.publish(offered / 5_000, seconds, group=0)
                        time.sleep(seconds + 2)
                        report = load.report()
                        rows.append(
                            [report["groups"][0]["p99"], report["groups"][1]["p50"], report["groups"][1]["p99"]]
                        )
            hot, middle, late = (statistics.median(column) / 1e3 for column in zip(*rows, strict=True))
            lines.append(f"| {kind.name} | {offered:,} | {hot:,.0f} | {middle:.1f} | {late:.1f} |")
    return lines


def _median(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda run: run.cpu)[len(runs) // 2]
