"""Plots of the tables, as SVG: bars, by nothing but text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

SHOWN: dict[str, tuple[str, ...]] = {
    "fanout": ("CPU µs",),
    "most": ("/s",),
    "personal": ("/s",),
    "private": ("p99",),
    "idle": ("20 topics",),
    "connect": ("streams/s",),
    "growth": ("CPU µs",),
    "capture": ("changes/s", "CPU µs"),
    "latency": ("p50 ms", "p99 ms"),
    "catchup": ("CPU µs",),
    "log": ("entries/s", "CPU µs"),
}
"""Of each case, which columns of its table are drawn: the first whose head has this text."""

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
WIDTH, LABEL, BAR, GAP = 720, 230, 18, 8


def draw(case: str, lines: Iterable[str], directory: Path) -> list[Path]:
    """Draw a case's columns, one file each, named by case and number. Returns the files."""
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break  # the first table tells it
    head, body = (rows[0], rows[2:]) if len(rows) > 2 else ([], [])
    files: list[Path] = []
    for wanted in SHOWN.get(case, ()):
        column = next((index for index, name in enumerate(head) if index and wanted in name), None)
        if column is None:
            continue
        # What comes before the first number is what tells the rows apart.
        bars = [
            (
                ", ".join(row[: max(1, column - 2)] if case in ("growth", "catchup") else row[:1]),
                float(found[0].replace(",", "")),
            )
            for row in body
            if len(row) > column and (found := _NUMBER.search(row[column]))
        ]
        if bars:
            directory.mkdir(exist_ok=True)
            file = directory / f"{case}-{len(files) + 1}.svg"
            file.write_text(_bars(f"{case}: {head[column]}", bars))
            files.append(file)
    return files


def _bars(title: str, bars: list[tuple[str, float]]) -> str:
    most = max(value for _, value in bars) or 1.0
    height = 34 + len(bars) * (BAR + GAP)
    room = WIDTH - LABEL - 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LABEL}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (label, value) in enumerate(bars):
        y = 30 + number * (BAR + GAP)
        width = max(1.0, value / most * room)
        ours = "rowcast" in label or "listening" in label or "append" in label or "tail" in label
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{"#2563a8" if ours else "#9aa5b1"}"/>',
            f'<text x="{LABEL + width + 6:.1f}" y="{y + 13}">{value:,.4g}</text>'
            if value < 1000
            else f'<text x="{LABEL + width + 6:.1f}" y="{y + 13}">{value:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
