"""What is in the log already: claims, failures, and the bound of the memory."""

from __future__ import annotations

import asyncio

from rowcast.deliveries import MemoryDeliveries


async def test_what_was_appended_is_not_claimed_again() -> None:
    deliveries = MemoryDeliveries()
    assert await deliveries.claim("a")
    await deliveries.settle("a", appended=True)
    assert not await deliveries.claim("a")
    assert await deliveries.claim("b")


async def test_what_failed_is_for_the_next_one() -> None:
    deliveries = MemoryDeliveries()
    assert await deliveries.claim("a")
    await deliveries.settle("a", appended=False)
    assert await deliveries.claim("a")


async def test_while_one_appends_the_others_wait_and_exactly_one_follows_a_failure() -> None:
    deliveries = MemoryDeliveries()
    assert await deliveries.claim("a")
    waiting = [asyncio.create_task(deliveries.claim("a")) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await deliveries.settle("a", appended=False)
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [True]
    await deliveries.settle("a", appended=True)
    assert sorted([await task for task in waiting]) == [False] * 4 + [True]


async def test_the_oldest_are_forgotten_first() -> None:
    deliveries = MemoryDeliveries(max_keys=2)
    for key in ("a", "b"):
        assert await deliveries.claim(key)
        await deliveries.settle(key, appended=True)
    assert not await deliveries.claim("a")  # seen last, so b is the oldest
    assert await deliveries.claim("c")
    await deliveries.settle("c", appended=True)
    assert not await deliveries.claim("a")
    assert await deliveries.claim("b")
