"""`make bench`: runs the cases, prints their tables, and writes them and their plots to benchmarks/results/.

python -m benchmarks [CASE …] [--runs 3] [--seconds 4] [--rows 100000] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    alerts,
    capture,
    catchup,
    fanout,
    latency,
    log,
    plots,
    processes,
    rolling,
    slow_reader,
    storm,
    streams,
)

CASES: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "fanout": lambda given: fanout.fan_out(given.runs, given.seconds),
    "most": lambda given: fanout.most(given.runs, given.seconds),
    "personal": lambda given: fanout.personal(given.runs, given.seconds),
    "private": lambda given: fanout.private(given.runs, given.seconds),
    "one": lambda given: fanout.last_stream(given.runs, given.seconds),
    "idle": lambda given: streams.idle(given.runs, given.seconds),
    "connect": lambda given: streams.connect(given.runs, given.seconds),
    "growth": lambda given: streams.growth(given.runs, given.seconds),
    "workers": lambda given: streams.workers(given.runs, given.seconds),
    "capture": lambda given: capture.run(given.rows, given.runs),
    "latency": lambda given: latency.run(given.seconds, given.runs),
    "catchup": lambda given: catchup.run(given.runs),
    "log": lambda given: log.run(given.rows, given.runs),
    "scale": lambda given: streams.scale(given.runs, given.seconds),
    "storm": lambda given: storm.run(given.runs, given.seconds),
    "slow": lambda given: slow_reader.run(given.runs, given.seconds),
    "rolling": lambda given: rolling.run(given.runs, given.proxy, quick=given.quick),
    "drain": lambda given: rolling.drained(given.proxy, quick=given.quick),
    "alerts": lambda given: alerts.run(),
}
BY_NAME_ONLY = ("scale", "storm", "slow", "rolling", "drain", "alerts")
"""Cases that take long, or much memory: they run when they are named."""

DRILLS = {"rolling", "drain", "alerts"}
"""Cases in which something happens to several replicas."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all but {', '.join(BY_NAME_ONLY)} by default"
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=3,
        help="counted runs of each case; the median is told. rolling: rounds over all replicas",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="how long events are published in each run")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the capture case")
    parser.add_argument(
        "--quick", action="store_true", help="one run of a second and 20,000 rows: does it work at all?"
    )
    parser.add_argument("--proxy", nargs="+", choices=rolling.PROXIES, default=[*rolling.PROXIES], help="of the drills")
    parser.add_argument("--output", type=Path, help="the file to write (default: results/<date>.md)")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"there is no case {min(unknown)!r}; choose from {', '.join(CASES)}")
    if given.quick:
        given.runs, given.seconds, given.rows = 1, 1.0, 20_000
    if (os.cpu_count() or 1) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    processes.build()
    now = datetime.now(UTC)
    chosen = given.cases or [name for name in CASES if name not in BY_NAME_ONLY]
    path = given.output or Path(__file__).parent / "results" / f"{now:%Y-%m-%d}.md"
    lines = [f"# {now:%Y-%m-%d}", "", *_circumstances(given, chosen), ""]
    for name in chosen:
        began = time.monotonic()
        told = CASES[name](given)
        print("\n".join(told), flush=True)
        lines += told
        for file in plots.draw(name, told, path.with_suffix("")):
            lines += ["", f"![{name}]({path.stem}/{file.name})"]
        print(f"({name}: {time.monotonic() - began:.0f} s)\n", flush=True)
        lines.append("")
        path.write_text("\n".join(lines))
    print(f"written to {path}")


def _circumstances(given: argparse.Namespace, chosen: list[str]) -> list[str]:
    model = next(
        (s.partition(":")[2].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s), ""
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    command = f"{' '.join(chosen)} --runs {given.runs} --seconds {given.seconds:g} --rows {given.rows}"
    where = f"{os.cpu_count()} cores, {model or platform.machine()}"
    drills = set(chosen) <= DRILLS
    how = (
        "All processes shared the cores" if drills else "Each server ran alone on core 0, the load generator on core 1"
    )
    text = f"""
`python -m benchmarks {command}` at {commit or "no commit"};
Python {platform.python_version()}, Linux {platform.release()}, {where}.

{how}. Medians; ratios are of the same run. The load average
of the five minutes before was {os.getloadavg()[1]:.1f}: where that is not near 0, others used these cores as well, and
CPU per delivery and the ratios say more than rates and latencies do.
"""
    return text.strip().splitlines()


if __name__ == "__main__":
    main()
