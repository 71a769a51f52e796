"""`make bench`: runs every case, prints a table, and writes it to benchmarks/results/.

python -m benchmarks [--rows 200000] [--runs 5] [--only capture,latency]
"""

from __future__ import annotations

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import capture, latency

CASES = {"capture": capture.run, "latency": latency.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the capture case")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each case, after one to warm up")
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    arguments = parser.parse_args()
    now = datetime.now(UTC)
    command = f"python -m benchmarks --rows {arguments.rows} --runs {arguments.runs} --only {arguments.only}"
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    lines = [f"# {now:%Y-%m-%d}", "", f"`{command}`, {machine}. Medians; ratios are of the same run.", ""]
    for name in arguments.only.split(","):
        for line in CASES[name](arguments.rows, arguments.runs):
            lines.append(line)
            print(line, flush=True)
        lines.append("")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{now:%Y-%m-%d}.md"
    path.write_text("\n".join(lines))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
