"""Rows on their way from the database to the clients: bounded, and gone when nobody holds them."""

from __future__ import annotations

import gc

import pytest

from rowcast.core.pages import Overflow
from rowcast.spool import IN_MEMORY, Budget, Crowded, Spool


def test_pages_are_what_was_appended_in_memory_and_in_a_file() -> None:
    budget = Budget(1 << 22)
    spool = Spool(budget)
    blocks = [bytes([number % 256]) * (number * 97 % 3000 + 1) for number in range(400)]
    for block in blocks:
        spool.append(block)
    assert sum(map(len, blocks)) > IN_MEMORY
    assert budget.used == sum(map(len, blocks))
    assert len(spool) == 400
    assert [spool.page(number) for number in reversed(range(400))] == blocks[::-1]


def test_one_may_have_half_of_the_budget() -> None:
    spool = Spool(Budget(1000))
    spool.append(b"x" * 500)
    with pytest.raises(Overflow):
        spool.append(b"x")


def test_others_have_what_is_left_and_it_comes_back() -> None:
    budget = Budget(1000)
    spools = [Spool(budget) for _ in range(3)]
    spools[0].append(b"x" * 500)
    spools[1].append(b"x" * 400)
    with pytest.raises(Crowded):
        spools[2].append(b"x" * 200)
    del spools[1]
    gc.collect()
    spools[1].append(b"x" * 200)
    spools[0].clear()
    assert budget.used == 200
    assert len(spools[0]) == 0


def test_a_file_is_closed_with_its_spool() -> None:
    spool = Spool(Budget(1 << 22))
    spool.append(b"x" * (IN_MEMORY + 1))
    file = spool._room.file
    assert file is not None
    del spool
    gc.collect()
    assert file.closed
