"""Huge pages for what stays in memory.

An event for 5,000 streams touches some memory of each, and all of it lies on more pages of 4 kB than a processor
remembers the addresses of: looking them up takes longer than the Python that is run. Linux can put what is in memory
already onto pages of 2 MB, whole and at once, where it is asked to (madvise(2), MADV_COLLAPSE, since Linux 6.1). No
more memory is taken for it than what is free within a page that is nearly full.

Nothing depends on it: where the kernel does not know it, does not want it or has no such page left, everything stays as
it is. Not for a process that is somebody else's; `rowcast serve` does it for its own.

Source: "Transparent Hugepage Support", Documentation/admin-guide/mm/transhuge.rst of Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

INTERVAL = 5.0
"""Seconds between two looks at whether there is more memory than there was."""

FULL = 7 / 8
"""The part of a huge page that must be in use already: the rest is what it costs."""

LARGEST = 4 << 20
"""Bytes of the largest huge page that is of use; some processors have none below 512 MB."""

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
_STATM = Path("/proc/self/statm")

_COLLAPSE = 25  # MADV_COLLAPSE in linux/mman.h; the module mmap has no name for it

# There is no such page left; the control group may have no more (madvise_collapse_errno in mm/khugepaged.c). Each
# further try would look for one again, and take what is in the page cache for it.
_NO_MORE = (errno.ENOMEM, errno.EBUSY)

# Memory of this process alone that is no file's: the heap, and what allocators got beside it.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\]|\[anon.*)?$")


def page_bytes() -> int:
    """The size of a huge page; 0 where there are none, or an administrator wants none."""
    try:
        size = int((_SETTINGS / "hpage_pmd_size").read_text())
        wanted = "[never]" not in (_SETTINGS / "enabled").read_text()
    except (OSError, ValueError):
        return 0
    return size if wanted and size <= LARGEST else 0


def collapse() -> int:
    """Put what this process holds onto huge pages, as far as there are. Returns the bytes that are on them now.

    Other threads run on meanwhile; whichever needs the page that is just being moved waits for some 100 µs.
    """
    size = page_bytes()
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    for name, kinds in {
        "madvise": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        "mincore": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p),
    }.items():
        getattr(libc, name).argtypes = kinds
    done = 0
    used = ctypes.create_string_buffer(size // mmap.PAGESIZE)
    enough = FULL * len(used)
    for address in _aligned(size):
        # Somebody may have given the memory back by now, and others may have been quicker: the next one then.
        if libc.mincore(address, size, used) or sum(byte & 1 for byte in used.raw) < enough:
            continue
        if not libc.madvise(address, size, _COLLAPSE):
            done += size
        elif ctypes.get_errno() in _NO_MORE:
            break
    return done


async def run() -> None:
    """Do so whenever there is more in memory than there was, for ever; returns at once where there are none."""
    size = page_bytes()
    before = 0
    while size:
        now = _resident()
        if now - before >= size:
            before = now
            await asyncio.to_thread(collapse)
        await asyncio.sleep(INTERVAL)


def _aligned(size: int) -> Iterator[int]:
    """The addresses of all pages of a size that lie within memory of our own."""
    for line in _MAPS.read_text().splitlines():
        if match := _MAPPING.match(line):
            begin, end = int(match[1], 16), int(match[2], 16)
            yield from range(-(-begin // size) * size, end // size * size, size)


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE
