"""Huge pages, as the kernel that the tests run on has them or not."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import re
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


class Kernel:
    """One that has every page in memory, and refuses to put any onto a huge one."""

    def __init__(self, error: int) -> None:
        self.asked = asked = list[int]()

        def mincore(address: int, size: int, used: ctypes.Array[ctypes.c_char]) -> int:
            used.raw = b"\1" * len(used)
            return 0

        def madvise(address: int, size: int, advice: int) -> int:
            asked.append(address)
            ctypes.set_errno(error)
            return -1

        self.mincore, self.madvise = mincore, madvise


@pytest.mark.parametrize(
    ("error", "tries"), [(errno.ENOMEM, 1), (errno.EBUSY, 1), (errno.EAGAIN, 3), (errno.EINVAL, 3)]
)
def test_where_there_is_no_more_it_is_not_tried_for_each_page(
    error: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EBUSY is what Linux says where a control group may have no more memory: seen in one that was at its limit."""
    kernel = Kernel(error)
    monkeypatch.setattr(huge_pages, "page_bytes", lambda: 2 << 20)
    monkeypatch.setattr(huge_pages, "_aligned", lambda size: range(0, 3 * size, size))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    assert huge_pages.collapse() == 0
    assert len(kernel.asked) == tries


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
