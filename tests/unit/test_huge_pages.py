"""Huge pages, as the kernel that the tests run on has them or not."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rowcast import huge_pages


def huge() -> int:
    """Bytes of this process that are on huge pages."""
    match = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(match[1]) * 1024 if match else 0


@pytest.fixture
def memory() -> mmap.mmap:
    """Some megabytes that are in use, and will stay where they are."""
    memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, len(memory), mmap.PAGESIZE):
        memory[start] = start // mmap.PAGESIZE % 251
    return memory


def test_what_is_in_use_is_on_huge_pages_afterwards_and_is_what_it_was(memory: mmap.mmap) -> None:
    done = huge_pages.collapse()
    if huge_pages.page_bytes() and done:
        assert done >= 12 << 20
        assert huge() >= 12 << 20
    assert all(memory[start] == start // mmap.PAGESIZE % 251 for start in range(0, len(memory), mmap.PAGESIZE))


def test_what_is_not_in_use_stays_free() -> None:
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as empty:
        empty[0] = 1
        before = huge_pages._resident()
        huge_pages.collapse()
        assert huge_pages._resident() - before < 32 << 20


_LIMITS = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
"""The files of a control group with its limit and with its use: of version 2, and of version 1."""

_CROWDED = """
import contextlib, mmap, os, pathlib, re, sys
from rowcast import huge_pages

group, limit, usage = pathlib.Path(sys.argv[1]), *sys.argv[2:]
(group / "cgroup.procs").write_text(str(os.getpid()))
memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"x" * len(memory))
(group / limit).write_text(str(int((group / usage).read_text()) + (512 << 10)))

def refused():
    file = group / "memory.failcnt"
    if file.exists():
        return int(file.read_text())
    return int(re.search(r"^max ([0-9]+)", (group / "memory.events").read_text(), re.M)[1])

counts = [refused()]
with contextlib.suppress(OSError):
    memory.madvise(huge_pages._COLLAPSE, 0, 4 << 20)
counts.append(refused())
huge_pages.collapse()
counts.append(refused())
print(counts[1] - counts[0], counts[2] - counts[1])
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group; the test is skipped where none can be made."""
    root = Path("/sys/fs/cgroup")
    group = (root / "memory" if (root / "memory").is_dir() else root) / f"rowcast-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        yield group
    finally:
        group.rmdir()


def test_where_the_control_group_may_have_no_more_it_is_not_tried_for_each_page(group: Path) -> None:
    files = next((pair for pair in _LIMITS.items() if (group / pair[0]).exists()), None)
    if files is None or not huge_pages.page_bytes():
        pytest.skip("no control of memory, or no huge pages here")
    done = subprocess.run([sys.executable, "-c", _CROWDED, group, *files], check=True, capture_output=True, text=True)
    one, all_of_them = map(int, done.stdout.split())
    assert all_of_them <= 2 * one


@pytest.mark.parametrize("setting", ["always madvise [never]", None])
async def test_where_nobody_wants_them_nothing_is_done(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
        (tmp_path / "hpage_pmd_size").write_text(str(2 << 20))
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    assert huge_pages.page_bytes() == huge_pages.collapse() == 0
    async with asyncio.timeout(10):
        await huge_pages.run()  # returns at once


def test_pages_of_half_a_gigabyte_are_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never")
    (tmp_path / "hpage_pmd_size").write_text(str(512 << 20))
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    assert huge_pages.page_bytes() == 0


@pytest.mark.parametrize(
    ("line", "pages"),
    [
        ("200000-600000 rw-p 00000000 00:00 0 ", [0x200000, 0x400000]),
        ("1ff000-600fff rw-p 00000000 00:00 0                          [heap]", [0x200000, 0x400000]),
        ("200000-400000 rw-p 00000000 00:00 0                          [anon:arena]", [0x200000]),
        ("201000-400000 rw-p 00000000 00:00 0 ", []),
        ("200000-400000 rw-p 00000000 00:00 0                          [stack]", []),
        ("200000-400000 rw-p 00000000 fd:00 1234                       /usr/lib/libc.so.6", []),
        ("200000-400000 r--p 00000000 00:00 0 ", []),
        ("200000-400000 rw-s 00000000 00:01 77                         /dev/zero (deleted)", []),
    ],
)
def test_only_memory_of_our_own_is_looked_at(
    line: str, pages: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.write_text(line + "\n")
    monkeypatch.setattr(huge_pages, "_MAPS", maps)
    assert list(huge_pages._aligned(2 << 20)) == pages


async def test_it_is_done_again_when_there_is_more_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = iter([100 << 20, 101 << 20, 103 << 20])
    done: list[int] = []

    def collapse() -> int:
        done.append(1)
        return 1

    ended = asyncio.Event()

    def more() -> int:
        if (now := next(resident, None)) is None:
            ended.set()
            return 103 << 20
        return now

    monkeypatch.setattr(huge_pages, "page_bytes", lambda: 2 << 20)
    monkeypatch.setattr(huge_pages, "_resident", more)
    monkeypatch.setattr(huge_pages, "collapse", collapse)
    monkeypatch.setattr(huge_pages, "INTERVAL", 0.0)
    running = asyncio.create_task(huge_pages.run())
    async with asyncio.timeout(10):
        await ended.wait()
    running.cancel()
    assert len(done) == 2
