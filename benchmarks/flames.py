"""Flame graphs of the cases: `python -m benchmarks.flames [CASE …]`, or `make flames`.

py-spy samples a process while it does the work of a case, and the samples become an SVG of some kilobytes in
docs/images/flames: width is time, what calls is below what it calls, frames under half a percent are left out. Threads
that wait are not sampled.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from benchmarks import capture, fanout, log, processes, servers
from benchmarks.fanout import Shape
from rowcast.serve import GC_THRESHOLDS

HERE = Path(__file__).parent.parent / "docs" / "images" / "flames"
RATE = 250
"""Samples a second."""

WORK: dict[str, Callable[[], object]] = {
    "capture-nobody": lambda: capture.measure(400_000, ("memory:",), (False,)),
    "capture-all": lambda: capture.measure(300_000, ("memory:",), (True,)),
    "capture-redis": lambda: capture.measure(200_000, ("redis:",), (False,)),
    "log": lambda: log.run(1_000_000, 0),
}
"""Work that is done in this very process: samples count from where Rowcast's own code is entered."""


def served(name: str) -> tuple[Shape, float]:
    """Work that `rowcast serve` does: who listens, and the deliveries a second that are offered."""
    return {
        "fanout": (Shape(), 250_000.0),
        "personal": (Shape(5_000, 1_000, 20), 250_000.0),
    }[name]


SERVED = ("fanout", "personal")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.flames", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join([*WORK, *SERVED])}; all by default")
    parser.add_argument("--work", action="store_true", help="do the work of a case, and nothing else")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(WORK) - set(SERVED):
        parser.error(f"there is no case {min(unknown)!r}; choose from {', '.join([*WORK, *SERVED])}")
    if given.work:
        gc.set_threshold(*GC_THRESHOLDS)  # as `rowcast serve` does
        for name in given.cases:
            WORK[name]()
        return
    processes.build()
    spy = servers.SseStarlette.python().with_name("py-spy")
    HERE.mkdir(parents=True, exist_ok=True)
    for name in given.cases or [*WORK, *SERVED]:
        with tempfile.TemporaryDirectory(prefix="flames-") as directory:
            raw = Path(directory, "raw")
            record = [str(spy), "record", "--rate", str(RATE), "--function", "--format", "raw", "--output", str(raw)]
            if name in WORK:
                command = [*record, "--", sys.executable, "-m", "benchmarks.flames", name, "--work"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            else:
                _spy_on_server(record, *served(name))
            file = HERE / f"{name}.svg"
            file.write_text(svg(name, raw.read_text().splitlines()))
            print(f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}", flush=True)


def _spy_on_server(record: list[str], shape: Shape, deliveries: float) -> None:
    with servers.Rowcast() as server, fanout.opened(server, shape) as load:
        seconds = 5.0
        with _running([*record, "--pid", str(server.pid), "--duration", str(round(seconds))]):
            fanout.offer(server, load, shape, deliveries, seconds)


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield
    process.wait(60)


# From samples to the picture


@dataclass
class _Frame:
    """What was sampled in a function, called as it is here."""

    samples: int = 0
    inner: dict[str, _Frame] = field(default_factory=dict)


WIDTH, ROW = 1200, 17
LEAST = 0.005
"""Part of all samples below which a frame is left out."""

_COLOURS = {"core": "#f2b35d", "logs": "#e58f65", "sources": "#e0746a", "http": "#8fb8de", "hub": "#f4d35e"}


def svg(title: str, lines: Iterable[str]) -> str:
    """The flame graph of py-spy's raw lines (`frame;frame;… count`), from where Rowcast's own code is entered."""
    root = _Frame()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("<module>")]
        entered = next((i for i, frame in enumerate(frames) if "(rowcast/" in frame and _works(frame)), None)
        if entered is None or "importlib" in stack:
            continue
        at = root
        at.samples += int(count)
        for frame in frames[entered:]:
            at = at.inner.setdefault(frame, _Frame())
            at.samples += int(count)
    boxes: list[str] = []
    depth = _draw(root, 0.0, 0, root.samples or 1, boxes)
    height = (depth + 1) * ROW + 30
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
            'font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="6" y="16" font-weight="bold">{escape(title)}: {root.samples:,} samples</text>',
            f'<g transform="translate(0,{height})">',
            *boxes,
            "</g></svg>",
            "",
        ]
    )


def _works(frame: str) -> bool:
    """Whether a frame is of a replica at work, rather than of its start."""
    return not any(part in frame for part in ("cli.py", "serve.py", "workers.py", "cast.py", "replica.py", "testing/"))


def _draw(frame: _Frame, x: float, depth: int, total: int, boxes: list[str]) -> int:
    deepest = depth
    for name, inner in sorted(frame.inner.items(), key=lambda item: -item[1].samples):
        share = inner.samples / total
        if share >= LEAST:
            width = share * WIDTH
            short = name.partition(" (")[0]
            room = int(width / 6)
            text = short if len(short) <= room else f"{short[: room - 1]}…" if room > 3 else ""
            y = -(depth + 1) * ROW
            boxes.append(
                f"<g><title>{escape(name)}: {share:.1%}</title>"
                f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}"'
                f' fill="{_colour(name)}"/>'
                + (f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(text)}</text>' if text else "")
                + "</g>"
            )
            deepest = max(deepest, _draw(inner, x, depth + 1, total, boxes))
            x += width
    return deepest


def _colour(name: str) -> str:
    room = name.partition("(rowcast/")[2].partition("/")[0].partition(".")[0]
    return _COLOURS.get(room, "#f7c873" if "(rowcast/" in name else "#c9ced6")


if __name__ == "__main__":
    main()
