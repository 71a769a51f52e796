"""The demo's replay on a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from rowcast.demo import market
from rowcast.demo.replay import WRITE_BY_HAND, Replay, prepare


@pytest.fixture
def quotes(database: str) -> str:
    prepare(database, market.load())
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE seen (n serial, symbol text, price numeric(10,2))")
        connection.execute(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO seen (symbol, price) VALUES (NEW.symbol, NEW.price); RETURN NEW; END $$"
        )
        connection.execute("CREATE TRIGGER see AFTER UPDATE ON quotes FOR EACH ROW EXECUTE FUNCTION see()")
    return database


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


@contextlib.asynccontextmanager
async def running(replay: Replay) -> AsyncIterator[None]:
    task = asyncio.create_task(replay.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until_commits(replay: Replay, count: int) -> None:
    async with asyncio.timeout(30):
        while replay.commits < count:
            await asyncio.sleep(0.005)


async def test_the_recorded_prices_come_in_their_order_and_start_again(quotes: str) -> None:
    series = market.load()
    replay = Replay(quotes, series, rate=200)
    async with running(replay):
        await until_commits(replay, 6 * 60)
    for one in series:
        written = [
            price for (price,) in rows(quotes, f"SELECT price FROM seen WHERE symbol = '{one.symbol}' ORDER BY n")
        ]
        recorded = [point.price for point in one.points]
        expected = (recorded[1:] + recorded * (len(written) // len(recorded) + 1))[: len(written)]
        assert written == expected, one.symbol
    assert len(rows(quotes, "SELECT 1 FROM seen WHERE symbol = 'VIX'")) > 44, "one series has started again"


async def test_each_update_of_a_row_is_counted_by_whomever_it_is(quotes: str) -> None:
    assert rows(quotes, WRITE_BY_HAND)[0][0] <= Decimal(100)
    rows(quotes, WRITE_BY_HAND)
    assert rows(quotes, "SELECT tick, recorded_on FROM quotes WHERE symbol = 'YOU'") == [(2, None)]


async def test_held_it_writes_nothing_until_let_go(quotes: str) -> None:
    replay = Replay(quotes, market.load(), rate=1000)
    replay.paused = True
    async with running(replay):
        for _ in range(20):  # each takes longer than the replay's period
            await asyncio.to_thread(rows, quotes, WRITE_BY_HAND)
        assert replay.commits == 0
        assert {symbol for (symbol,) in rows(quotes, "SELECT symbol FROM seen")} == {market.HAND}
        replay.paused = False
        await until_commits(replay, 30)


async def test_a_lost_connection_is_made_anew(quotes: str) -> None:
    replay = Replay(quotes, market.load(), rate=50)
    async with running(replay):
        await until_commits(replay, 3)
        ended = rows(
            quotes,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'UPDATE quotes%'",
        )
        assert ended == [(True,)]
        await until_commits(replay, replay.commits + 20)
