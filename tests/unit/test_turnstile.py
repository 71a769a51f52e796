"""The turnstile and the doors: how much is done in a turn of the loop, counted in turns."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise

import pytest

import rowcast.doors
from rowcast.doors import OPENS, Doors
from rowcast.errors import Busy
from rowcast.turnstile import Turnstile


def test_without_a_loop_all_is_done_at_once() -> None:
    done: list[int] = []
    turnstile = Turnstile(2)
    for number in range(10):
        turnstile.do(partial(done.append, number))
    assert done == list(range(10))


async def test_so_much_in_a_turn_in_the_order_in_which_it_was_asked_for() -> None:
    done: list[int] = []
    turnstile = Turnstile(3)
    for number in range(10):
        turnstile.do(partial(done.append, number))
    counts = [len(done)]
    while len(turnstile):
        await asyncio.sleep(0)
        counts.append(len(done))
    assert done == list(range(10))
    assert counts[0] == 3, "who comes first need not wait"
    assert max(after - before for before, after in pairwise(counts)) == 3


async def test_what_comes_later_does_not_overtake_what_waits() -> None:
    done: list[int] = []
    turnstile = Turnstile(1)
    for number in range(5):
        turnstile.do(partial(done.append, number))
    for number in range(5, 20):
        await asyncio.sleep(0)
        turnstile.do(partial(done.append, number))
    while len(turnstile):
        await asyncio.sleep(0)
    assert done == list(range(20))


async def test_after_a_pause_the_turn_is_a_new_one() -> None:
    done: list[int] = []
    turnstile = Turnstile(2)
    for _ in range(3):
        for number in range(2):
            turnstile.do(partial(done.append, number))
        assert not len(turnstile)
        for _ in range(3):
            await asyncio.sleep(0)
    assert done == [0, 1] * 3


async def test_whoever_would_wait_too_long_is_turned_away_and_the_others_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rowcast.doors, "LINE", 20)
    doors = Doors()
    entered: list[int] = []

    async def enter(number: int) -> None:
        await doors.enter()
        entered.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(OPENS + 25)]
    tasks[OPENS + 3].cancel()  # its client went away, and the server gave its request up
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [number for number, result in enumerate(results) if isinstance(result, Busy)]
    assert refused == list(range(OPENS + 21, OPENS + 25))
    assert entered == [number for number in range(OPENS + 21) if number != OPENS + 3]
    assert str(results[-1]) == "too many streams come at once; connect again later"
    assert not len(doors)
